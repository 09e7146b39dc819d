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

from shared.words import WordCounts, WordIds


def count(special_tokens: list[str], tasks: Iterator[Any]) -> Iterator[Any]:
    """Count the words of texts; yield the counts at the end."""
    counts = WordCounts(special_tokens)
    while (texts := next(tasks)) is not None:
        counts.add(texts)
    yield counts.numbers.words, counts.counts.tolist()


def encode(
    merge: bytes, special_tokens: dict[str, int], vocab_size: int, texts: Iterator[bytes]
) -> Iterator[np.ndarray]:
    """Yield the ids of each text, whose words are merged by the pickled function `merge`."""
    yield from map(WordIds(pickle.loads(merge), special_tokens, vocab_size).encode, texts)


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
