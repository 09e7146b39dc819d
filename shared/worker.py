"""The program that a worker process of shared/workers.py runs.

It imports little, so that it starts quickly.
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
    """Count the words of texts; yield the counts at the end."""
    counts = WordCounts(special_tokens)
    while (texts := next(tasks)) is not None:
        counts.add(texts)
    yield counts.numbers.words, counts.counts.tolist()


def encode(special_tokens: dict[str, int], vocab_size: int, tasks: Iterator[Any]) -> Iterator[Any]:
    """For each task, lay the ids of the text before the last one, cut the next one, and yield those
    ids and its new words."""
    texts = CutTexts(special_tokens, vocab_size)
    new = texts.cut(b"") + texts.cut(b"")  # as if two texts without words came first
    yield np.zeros(0, texts.dtype), new
    for merged, text in tasks:
        yield texts.lay(*merged), texts.cut(text)


def dump(value: Any, stream: BinaryIO) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def work() -> None:
    """Do the job that is asked for, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter handles Ctrl-C

    def tasks() -> Iterator[Any]:
        while True:
            yield pickle.load(sys.stdin.buffer)

    # sys.stdout may be unbuffered (-u), and then writes may be partial.
    answers = open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        name, *arguments = pickle.load(sys.stdin.buffer)
        job = {"count": count, "encode": encode}[name]
        for answer in job(*arguments, tasks()):
            dump(answer, answers)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # without touching the broken pipe again


if __name__ == "__main__":
    work()
