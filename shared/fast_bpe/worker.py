"""The program that a worker process runs: it makes an object, and answers calls of its methods.

Each message on its standard input is pickled: first a class of this package and what it is made of,
then, for each call, the name of a method and its argument. It ends when its input does.
"""

import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO


def dump(value: Any, stream: BinaryIO) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def work() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter handles Ctrl-C
    # sys.stdout may be unbuffered (-u), and then writes may be partial.
    answers = open(sys.stdout.fileno(), "wb", closefd=False)
    try:
        kind, *parts = pickle.load(sys.stdin.buffer)
        thing = kind(*parts)
        while True:
            method, *arguments = pickle.load(sys.stdin.buffer)
            dump(getattr(thing, method)(*arguments), answers)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)  # without touching the broken pipe again


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # unpickling imports this package
    work()
