"""What a worker of shared/workers.py does.

It is a process of its own: what is not imported here, it need not wait for.
"""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import numpy as np

from shared.words import CutTexts, WordCounts


def count(special_tokens: list[str], tasks: Iterator[Any]) -> Iterator[Any]:
    """Count the words of texts; tell the counts at the end."""
    counts = WordCounts(special_tokens)
    while (texts := next(tasks)) is not None:
        counts.add(texts)
    yield counts.numbers.words, counts.counts.tolist()


def encode(special_tokens: dict[str, int], tasks: Iterator[Any]) -> Iterator[Any]:
    """Lay the ids of the text before the last, cut the next; tell those ids and its new words."""
    texts = CutTexts(special_tokens)
    new = texts.cut(b"") + texts.cut(b"")  # before the first there were two without words
    yield np.zeros(0, np.uint32), new
    for merged, text in tasks:
        yield texts.lay(*merged), texts.cut(text)


def dump(value: Any, stream: BinaryIO) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def work() -> None:
    """Do what is asked for, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us

    def tasks() -> Iterator[Any]:
        while True:
            yield pickle.load(sys.stdin.buffer)

    # Python's own may be unbuffered (-u), and then write less than it was given.
    answers = open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        name, special_tokens = pickle.load(sys.stdin.buffer)
        job = {"count": count, "encode": encode}[name]
        for answer in job(special_tokens, tasks()):
            dump(answer, answers)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # without another look at the broken pipe


if __name__ == "__main__":
    work()
