"""Encode a text file as a token file, as v4 does before training.

    python v4_modern/encode.py my_text.txt my_text.bin
    python v4_modern/encode.py my_text.txt my_text.bin --tokenizer runs/v4_modern/tokenizer.json

The token file format is described in shared/tokens.py. Without --tokenizer, a tokenizer is trained
on the text and saved next to the tokens, as my_text.bin.json.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import fast_bpe
from shared.command_line import (
    check_config,
    clear_errors,
    load_tokenizer,
    parse_options,
)
from shared.corpora import read_pieces
from shared.files import UserError, need_writable
from shared.terminal import print_text
from shared.text import whole_words
from shared.tokens import encode_file
from v4_modern.train import Tokenizer


@dataclass
class Options:
    """Encode a text file."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]  # a text file
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]  # the token file
    tokenizer: str = ""  # tokenizer.json to use, ours or Hugging Face's; without it, train one
    vocab_size: int = 10_000  # size of the tokenizer to train, without --tokenizer
    workers: int = 0  # processes to use; 0: one per core

    def __post_init__(self) -> None:
        check_config(self)
        for name in ("source", "out", "tokenizer"):
            setattr(self, name, os.path.expanduser(getattr(self, name)))
        source, out = Path(self.source), Path(self.out)
        if not source.exists():
            raise UserError(f"{source} is not there")
        if not source.is_file():
            raise UserError(f"{source} is not a file; it is read twice, so it cannot be a pipe")
        if not source.stat().st_size:
            raise UserError(f"{source} holds no text")
        if self.tokenizer and self.vocab_size != Options.vocab_size:
            raise UserError("--vocab-size is for training a tokenizer: omit it or --tokenizer")
        if out.exists() and not out.is_file():
            raise UserError(f"{out} is not a file: choose another name to write to")
        paths = source, out, Path(self.tokenizer or self.learned)
        need_writable(out.resolve().parent, self.out)
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError(f"{source} or the tokenizer would be overwritten: name another file")

    @property
    def learned(self) -> str:
        """Where a newly trained tokenizer is saved: no two token files share it."""
        return f"{Path(self.out)}.json"


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options = parse_options(Options, arguments)
        out, is_long = Path(options.out), fast_bpe.is_long(options.source)
        kind = fast_bpe.fast(Tokenizer, options.workers) if is_long else Tokenizer
        if options.tokenizer:
            tokenizer = load_tokenizer(kind, options.tokenizer)
        else:
            started = perf_counter()
            texts = whole_words(read_pieces(options.source))
            tokenizer = kind.train(texts, options.vocab_size)
            tell(f"learned {tokenizer.vocab_size:,} tokens", options.source, started)
            if tokenizer.vocab_size < options.vocab_size:
                print_text(f"(no more pairs to merge; {options.vocab_size:,} were asked for)")
        started = perf_counter()
        count = encode_file(tokenizer, options.source, out)
        if not options.tokenizer:  # last: until now, an earlier run's two files still match
            tokenizer.save(options.learned)
        tell(f"wrote {count:,} tokens to {out}", options.source, started)


def tell(what: str, source: str, started: float) -> None:
    """Print what was done since `started`, and the speed."""
    size, seconds = os.path.getsize(source), perf_counter() - started
    print_text(f"{what}: {size / 1e6:,.1f} MB in {seconds:.2f} s, {size / 1e6 / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
