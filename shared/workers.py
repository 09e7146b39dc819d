"""Counting and encoding text on several cores.

A worker is a separate Python process that imports `shared/words.py` but no model code: importing
torch would take longer than encoding most texts. So it is sent the code that merges words, which is
in v4's file. It receives its tasks on its standard input, a few megabytes of text at a time, and
answers on its standard output. When the process that started it ends, for whatever reason, the
worker's input ends and the worker exits. Nothing is shared, so nothing can leak, and it works the
same on every system. Whenever the starter would have to wait for the workers, it works itself.
After encoding, workers wait a while for more texts: those that follow need no new ones, and find
their words known.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Timer
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import numpy as np
from tqdm import tqdm

from shared import worker
from shared.files import UserError
from shared.machine import cores
from shared.text import utf8
from shared.words import PIECE, WordCounts, WordIds

# Pieces of text from which on workers save more time than they need to start and to learn words
# that others already know; measured with two workers.
WORTH_COUNTING, WORTH_ENCODING = 6, 4
REST = 10  # seconds that workers wait for the next texts after they have encoded all
resting: WeakKeyDictionary[WordIds, tuple[list[subprocess.Popen], Timer]] = WeakKeyDictionary()


def count_words(
    texts: Iterable[str | bytes], special_tokens: Iterable[str], workers: int = 0
) -> tuple[list[bytes], list[int]]:
    """The distinct words of `texts`, which are not joined, and how often each occurs.

    Long texts are shared among `workers` processes, this one included; 0: one per core. The order
    of the words depends on that.
    """
    special_tokens = list(special_tokens)
    pieces, workers = enough_for(workers, batches(texts), WORTH_COUNTING)
    pieces = iter(tqdm(pieces, "counting words", unit="MB", unit_scale=PIECE >> 20, leave=False))
    counts, lock = WordCounts(special_tokens), Lock()

    def next_piece() -> list[bytes] | None:
        with lock:
            return next(pieces, None)

    def feed(process: subprocess.Popen) -> tuple[list[bytes], list[int]]:
        send(process, ("count", special_tokens))
        while True:
            piece = next_piece()
            send(process, piece)
            if piece is None:
                return receive(process)

    with ThreadPoolExecutor(workers) as threads, crew(workers - 1) as processes:
        fed = [threads.submit(feed, process) for process in processes]
        while not any(future.done() for future in fed) and (piece := next_piece()) is not None:
            counts.add(piece)
        while fed:
            done = next(as_completed(fed))
            fed.remove(done)
            counts.add_counted(*done.result())
    return counts.numbers.words, counts.counts.tolist()


def encode_texts(
    texts: Iterable[str | bytes], words: WordIds, workers: int = 0
) -> Iterator[np.ndarray]:
    """The ids of each of the `texts`, (N,) uint16 or uint32, in order.

    Many texts are shared among `workers` processes, this one included, which encodes only while it
    would have to wait; 0: one per core. The ids do not depend on that.
    """
    texts, workers = enough_for(workers, texts, WORTH_ENCODING)
    texts = tqdm(texts, desc="encoding", unit="MB", unit_scale=PIECE >> 20, leave=False)
    if workers == 1:
        yield from map(words.encode, texts)
        return
    job = "encode", by_value(words.merge), words.special_tokens, words.vocab_size
    idle, under_way = SimpleQueue(), deque()  # processes; texts, and futures of their ids

    def begin(process: subprocess.Popen) -> None:
        try:
            send(process, job)
        finally:  # if it has died, the next one to use it tells
            idle.put(process)

    def encoded(text: str | bytes) -> np.ndarray:
        process = idle.get()
        try:
            send(process, text)
            return receive(process)
        finally:
            idle.put(process)

    def help_out() -> bool:
        """Encode the first text that no worker has begun; whether there was one."""
        for i, (text, ids) in enumerate(under_way):
            if ids.cancel():
                under_way[i] = text, Future()
                under_way[i][1].set_result(words.encode(text))
                return True
        return False

    def oldest() -> np.ndarray:
        while not under_way[0][1].done() and help_out():
            pass
        return under_way.popleft()[1].result()

    rested = rested_crew(words, workers - 1)
    with ThreadPoolExecutor(workers - 1) as threads, crew(workers - 1, rested) as processes:
        for process in processes:
            idle.put(process) if rested else threads.submit(begin, process)
        for text in texts:
            under_way.append((text, threads.submit(encoded, text)))
            if len(under_way) > 2 * workers:
                yield oldest()
        while under_way:
            yield oldest()
        rest(words, processes)


def by_value(function: Callable) -> bytes:
    """A pickle of `function` that includes its code, so that its module need not be imported."""
    cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    return cloudpickle.dumps(function)


def enough_for(workers: int, pieces: Iterable[Any], worth_it: int) -> tuple[Iterator[Any], int]:
    """The `pieces`, and the number of processes worth starting for them: 1 if there are few."""
    pieces, workers = iter(pieces), workers or cores()
    first = deque(islice(pieces, worth_it if workers > 1 else 0))
    workers = workers if len(first) == worth_it else 1
    return chain((first.popleft() for _ in range(len(first))), pieces), workers  # frees them


def batches(texts: Iterable[str | bytes]) -> Iterator[list[bytes]]:
    """The `texts` as UTF-8, in batches of about PIECE bytes."""
    batch, size = [], 0
    for text in map(utf8, texts):
        batch.append(text)
        size += len(text)
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    yield batch


GONE = "a worker process was killed (out of memory?): try --workers 1"


@contextmanager
def crew(workers: int, rested: Sequence[subprocess.Popen] = ()) -> Iterator[list[subprocess.Popen]]:
    """`workers` processes, in a `with` block: the `rested` or new ones. At its end, those that are
    left in the list are ended.

    The first thing to send to new ones is the name of a job, a function of shared/worker.py, and
    its arguments; until they run, a long message waits.
    """
    command = [sys.executable, str(Path(worker.__file__).resolve())]
    one_thread = dict(os.environ, OPENBLAS_NUM_THREADS="1")  # more would start more slowly
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = list(rested)
    try:
        while len(processes) < workers:
            processes.append(subprocess.Popen(command, env=one_thread, **pipes))
        yield processes
    finally:
        end(processes)


def end(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()  # waits, and closes its pipes


def rest(words: WordIds, processes: list[subprocess.Popen]) -> None:
    """Let `processes`, which know `words`, wait for REST seconds. The list is empty afterwards."""
    dismiss(words)
    timer = Timer(REST, dismiss, [words])
    timer.daemon = True
    resting[words] = processes.copy(), timer
    processes.clear()
    timer.start()


def rested_crew(words: WordIds, workers: int) -> list[subprocess.Popen]:
    """`workers` processes that know `words`, if as many wait; otherwise none."""
    processes = wake(words)
    if len(processes) == workers and all(process.poll() is None for process in processes):
        return processes
    end(processes)
    return []


def dismiss(words: WordIds) -> None:
    """End the processes that wait, if any do."""
    end(wake(words))


def wake(words: WordIds) -> list[subprocess.Popen]:
    """The processes that wait; from now on they do not."""
    processes, timer = resting.pop(words, ([], None))
    if timer:
        timer.cancel()
    return processes


def send(process: subprocess.Popen, task: Any) -> None:
    """Give a worker a `task`."""
    try:
        worker.dump(task, process.stdin)
    except OSError:
        raise UserError(GONE) from None


def receive(process: subprocess.Popen) -> Any:
    """A worker's next answer."""
    try:
        return pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):  # it may have died in mid-message
        raise UserError(GONE) from None
