"""Encode text as a token file, as v4 does before training. It may be all that --data may be: a file
of any format that shared/reading.py names, a folder, or a pattern in quotes.

    python v4_modern/encode.py my_text.txt my_text.npy
    python v4_modern/encode.py my_text.txt my_text.npy --tokenizer runs/v4_modern/tokenizer.json
    python v4_modern/encode.py my_text.txt my_text.bin --format nanogpt

The formats are described in shared/token_files.py. Without --tokenizer, a tokenizer is trained on
the text and saved next to the tokens, as my_text.npy.json.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import fast_bpe
from shared.command_line import (
    check_config,
    clear_errors,
    load_tokenizer,
    parse_options,
)
from shared.files import UserError, atomic_write, json_sha256, need_writable
from shared.reading import joined, named, read_texts, text_files
from shared.terminal import print_text
from shared.text import whole_words
from shared.token_files import LLMC, check_of, open_token_file, slices
from shared.tokens import encode_texts
from v4_modern.train import Tokenizer

import numpy as np
import tyro


@dataclass
class Options:
    """Encode text."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]  # file or folder
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]  # the token file
    tokenizer: str = ""  # file of a tokenizer to use, ours or another; without it, train one
    text_field: str = "text"  # where documents are in .jsonl and .parquet files
    vocab_size: int = 10_000  # size of the tokenizer to train, without --tokenizer
    split: Literal["gpt2", "gpt4", "gpt4o", "llama3", "qwen"] = "gpt2"  # whose words it merges
    format: Literal["npy", "nanogpt", "llmc"] = "npy"  # of the token file
    workers: int = 0  # processes to use; 0: one per core

    def __post_init__(self) -> None:
        check_config(self)
        for name in ("source", "out", "tokenizer"):
            setattr(self, name, os.path.expanduser(getattr(self, name)))
        source, out = self.source, Path(self.out)
        if not self.sources:
            raise UserError(f"{source} is not there")
        if not all(path.is_file() or path.is_dir() for path in self.sources):
            raise UserError(f"{source} is not a file; it is read twice, so it cannot be a pipe")
        if self.tokenizer and self.vocab_size != Options.vocab_size:
            raise UserError("--vocab-size is for training a tokenizer: omit it or --tokenizer")
        if self.tokenizer and self.split != Options.split:
            raise UserError("--split is for training a tokenizer: a given one has its own")
        if out.exists() and not out.is_file():
            raise UserError(f"{out} is not a file: choose another name to write to")
        tokenizer, check = Path(self.tokenizer or self.learned), check_of(out)
        written = {path.resolve() for path in (out, tokenizer, check)}
        need_writable(out.resolve().parent, self.out)
        read = [path.resolve() for path in self.sources]
        if len(written) < 3 or any(one.is_relative_to(path) for one in written for path in read):
            raise UserError(f"{source} or the tokenizer would be overwritten: name another file")
        suffix = ".npy" if self.format == "npy" else ".bin"
        if out.suffix != suffix:  # it could be any file of the tokenizer's folder
            raise UserError(f"{out}: the name of a token file in this format ends in {suffix}")

    @property
    def sources(self) -> list[Path]:
        """The files and folders that are to be read."""
        return named(self.source)

    @property
    def learned(self) -> str:
        """Where a newly trained tokenizer is saved: no two token files share it."""
        return f"{Path(self.out)}.json"


class Texts:
    """What is to be encoded, as UTF-8 in pieces, each time it is asked for; and its `size`."""

    def __init__(self, options: Options) -> None:
        self.files, self.field = text_files(options.sources), options.text_field

    def __iter__(self) -> Iterator[bytes]:
        self.size = 0
        for piece in joined(read_texts(self.files, self.field)):
            self.size += len(piece)
            yield piece


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options = parse_options(Options, arguments)
        out, texts = Path(options.out), Texts(options)
        kind = fast_bpe.fast(Tokenizer, options.workers) if is_long(texts) else Tokenizer
        if options.tokenizer:
            tokenizer = load_tokenizer(kind, options.tokenizer)
        else:
            started = perf_counter()
            tokenizer = kind.train(whole_words(texts), options.vocab_size, split=options.split)
            tell(f"learned {tokenizer.vocab_size:,} tokens", texts.size, started)
            if tokenizer.vocab_size < options.vocab_size:
                print_text(f"(no more pairs to merge; {options.vocab_size:,} were asked for)")
        started = perf_counter()
        if options.format == "npy":
            count = encode_texts(tokenizer, texts, out)
        else:
            with TemporaryDirectory(dir=out.resolve().parent) as folder:
                ids = Path(folder) / "ids.npy"
                count = encode_texts(tokenizer, texts, ids)
                write_as(
                    options.format, out, open_token_file(ids, json_sha256(tokenizer.to_json()))
                )
        if not options.tokenizer:  # last: until now, an earlier run's two files still match
            tokenizer.save(options.learned)
        tell(f"wrote {count:,} tokens to {out}", texts.size, started)


def write_as(form: str, path: Path, ids: np.ndarray) -> None:
    """Write `ids`, (N,) uint16 or uint32, as other trainers read them: nanoGPT's files are bare
    uint16, and llm.c's begin with 256 int32 (its data_common.py): a number for the type of the ids,
    its version, and N. UserError if a format can't have such ids."""
    header = np.zeros(256, "<i4")
    if form == "nanogpt" and ids.itemsize > 2:
        raise UserError("nanoGPT's files hold ids below 65,536: use a smaller vocabulary")
    if form == "llmc":
        if len(ids) >= 2**31:
            raise UserError(f"llm.c's files hold fewer than 2^31 tokens, not {len(ids):,}")
        header[:3] = *LLMC[ids.itemsize], len(ids)
    with atomic_write(path) as file:
        if form == "llmc":
            file.write(header.tobytes())
        for piece in slices(ids):
            file.write(piece.tobytes())


def is_long(texts: Texts) -> bool:
    """What `fast_bpe.is_long` tells of a text in a file. UserError if there is none."""
    start = bytearray()
    for piece in texts:
        start += piece
        if len(start) > fast_bpe.LONG:
            return True
    if not start:
        raise UserError("this holds no text")
    return max(map(len, start.split()), default=0) > fast_bpe.LONG_RUN


def tell(what: str, size: int, started: float) -> None:
    """Print what was done with so many bytes since `started`, and the speed."""
    seconds = perf_counter() - started
    print_text(f"{what}: {size / 1e6:,.1f} MB in {seconds:.2f} s, {size / 1e6 / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
