"""Counting and encoding text on several cores.

A worker is a Python process of its own that knows `shared/words.py` and nothing of models. It gets
a task through its standard input, a megabyte of text at a time, and answers through its standard
output; when it meets new words it asks back for their ids. When the process that started it is
gone, however that ended, its input ends and so does the worker. Nothing is shared, so there is
nothing to leak, and it is the same on every system.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
from shared.files import UserError
from shared.words import PIECE, WordCounts, WordIds

WORTH_IT = 8  # pieces of text from which on other processes save more time than they take to start


def count_words(
    texts: Iterable[str | bytes], special_tokens: Iterable[str], workers: int = 0
) -> tuple[list[bytes], list[int]]:
    """The different words of `texts`, each for itself, and how often each occurs.

    A long text is shared among `workers` processes; 0: one a core. In which order the words come
    depends on that.
    """
    special_tokens = list(special_tokens)
    pieces, workers = enough_for(workers, batches(texts))
    pieces = tqdm(pieces, desc="counting words", unit="MB", leave=False)
    if workers == 1:
        counts = WordCounts(special_tokens)
        for piece in pieces:
            counts.add(piece)
        return counts.numbers.words, counts.counts.tolist()
    total = {}
    with Crew(workers, count, special_tokens) as crew:
        for _ in crew.in_order(pieces):
            pass
        for _ in range(workers):  # they take turns
            for word, times in zip(*crew.ask(None)):
                total[word] = total.get(word, 0) + times
    return list(total), list(total.values())


def encode_texts(
    texts: Iterable[str | bytes], words: WordIds, workers: int = 0
) -> Iterator[np.ndarray]:
    """The ids of each of the `texts`, (N,) uint32, in order.

    Many are shared among `workers` processes; 0: one a core. The ids do not depend on that.
    """
    texts, workers = enough_for(workers, texts)
    texts = tqdm(texts, desc="encoding", unit="MB", leave=False)
    if workers == 1:
        yield from map(words.encode, texts)
        return
    with Crew(workers, encode, words.special_tokens, merge=words.merge) as crew:
        yield from crew.in_order(texts)


def enough_for(workers: int, pieces: Iterable[Any]) -> tuple[Iterator[Any], int]:
    """The `pieces`, and how many processes they are worth: 1 if they are few."""
    pieces, workers = iter(pieces), workers or cores()
    first = list(islice(pieces, WORTH_IT)) if workers > 1 else []
    return chain(first, pieces), workers if len(first) == WORTH_IT else 1


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batches(texts: Iterable[str | bytes]) -> Iterator[list[str | bytes]]:
    """The `texts`, so many at a time that they are about PIECE characters or bytes."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    yield batch


class Crew:
    """Workers that do one `job`, a function below; `merge` answers their questions."""

    def __init__(
        self,
        workers: int,
        job: Callable,
        special_tokens: Iterable[str],
        merge: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.merge, self.idle = merge, SimpleQueue()
        command = [sys.executable, str(Path(__file__).resolve())]
        one_thread = dict(os.environ, OPENBLAS_NUM_THREADS="1")  # more take time to start
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=one_thread)
            for _ in range(workers)
        ]
        for process in self.processes:
            send(process.stdin, (job.__name__, special_tokens))
            self.idle.put(process)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()  # waits, and closes its pipes

    def ask(self, task: Any) -> Any:
        """What the next idle worker makes of a `task`."""
        process = self.idle.get()
        try:
            send(process.stdin, task)
            while True:
                done, answer = pickle.load(process.stdout)
                if done:
                    return answer
                send(process.stdin, self.merge(answer))
        except (EOFError, OSError):
            raise UserError(
                "a process that cuts text into words was ended (out of memory?): try --workers 1"
            ) from None
        finally:
            self.idle.put(process)

    def in_order(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """What becomes of each of the `tasks`, in order; few are held at a time."""
        workers = len(self.processes)
        with ThreadPoolExecutor(workers) as threads:
            waiting = deque()
            for task in tasks:
                waiting.append(threads.submit(self.ask, task))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def send(stream: BinaryIO, value: Any) -> None:
    pickle.dump(value, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


# ---- in a worker ----


def count(special_tokens: Iterable[str], ask: Callable) -> Callable:
    """Count words; for no texts, tell the counts."""
    counts = WordCounts(special_tokens)

    def job(texts: list[str | bytes] | None) -> tuple[list[bytes], list[int]] | None:
        if texts is None:
            return counts.numbers.words, counts.counts.tolist()
        counts.add(texts)

    return job


def encode(special_tokens: dict[str, int], ask: Callable) -> Callable:
    """Encode a text."""
    return WordIds(ask, special_tokens).encode


def work() -> None:
    """Do what is asked for, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    tasks, answers = sys.stdin.buffer, sys.stdout.buffer

    def ask(words: list[bytes]) -> Any:
        send(answers, (False, words))
        return pickle.load(tasks)

    try:
        name, special_tokens = pickle.load(tasks)
        job = {"count": count, "encode": encode}[name](special_tokens, ask)
        while True:
            send(answers, (True, job(pickle.load(tasks))))
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without another look at the broken pipe


if __name__ == "__main__":
    work()
