"""Turn a text file into a file of tokens, as v4 does before it trains.

    python v4_modern/encode.py my_text.txt my_text.bin
    python v4_modern/encode.py my_text.txt my_text.bin --tokenizer runs/v4_modern/tokenizer.json

The file of tokens is described in shared/tokens.py. Without a tokenizer, one is learned from the
text and kept beside the tokens, as my_text.bin.json.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.command_line import (
    check_config,
    clear_errors,
    need_end_of_text,
    parse_options,
    print_text,
)
from shared.corpora import read_pieces
from shared.files import UserError, need_writable
from shared.words import whole_words
from v4_modern.train import Tokenizer


@dataclass
class Options:
    """Encode a text file."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]  # a text file
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]  # the token file
    tokenizer: str = ""  # a tokenizer.json of a run of v4; none: learn one
    vocab_size: int = 10_000  # tokens to learn, without --tokenizer
    workers: int = 0  # processes to use; 0: one a core

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
            raise UserError("--vocab-size is of a tokenizer to learn: leave it out, or --tokenizer")
        if out.exists() and not out.is_file():
            raise UserError(f"{out} is not a file: choose another name to write to")
        paths = source, out, Path(self.tokenizer or self.learned)
        need_writable(out.resolve().parent, self.out)
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError(f"{source} would be overwritten, or the tokenizer: name another file")

    @property
    def learned(self) -> str:
        """Where a tokenizer that was learned is kept: no two files of tokens share it."""
        return f"{Path(self.out)}.json"


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options = parse_options(Options, arguments)
        out = Path(options.out)
        if options.tokenizer:
            tokenizer = need_end_of_text(Tokenizer.load(options.tokenizer), options.tokenizer)
        else:
            started = perf_counter()
            texts = whole_words(read_pieces(options.source))
            tokenizer = Tokenizer.train(texts, options.vocab_size, workers=options.workers)
            tell(f"learned {tokenizer.vocab_size:,} tokens", options.source, started)
            if tokenizer.vocab_size < options.vocab_size:
                print_text(f"(no more pairs to merge; {options.vocab_size:,} were asked for)")
        started = perf_counter()
        count = tokenizer.encode_file(options.source, out, options.workers)
        if not options.tokenizer:  # last, so that an earlier run's two files fit together until now
            tokenizer.save(options.learned)
        tell(f"wrote {count:,} tokens to {out}", options.source, started)


def tell(what: str, source: str, started: float) -> None:
    """Print what was done since `started`, and how fast."""
    size, seconds = os.path.getsize(source), perf_counter() - started
    print_text(f"{what}: {size / 1e6:,.1f} MB in {seconds:.2f} s, {size / 1e6 / seconds:.1f} MB/s")


if __name__ == "__main__":
    main()
