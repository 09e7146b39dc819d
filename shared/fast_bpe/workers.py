"""Counting and encoding text on several cores.

A worker is a separate Python process that imports this package but no model code: importing torch
would take longer than encoding most texts. It receives its tasks on its standard input, a few
megabytes of text at a time, and answers on its standard output. When the process that started it
ends, for whatever reason, the worker's input ends and the worker exits. Nothing is shared, so
nothing can leak, and it works the same on every system. Whenever the starter would have to wait for
the workers, it works itself.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Timer
from typing import Any

from shared.fast_bpe import worker
from shared.files import UserError
from shared.machine import cores

ENOUGH = 5  # pieces of text from which on workers save more time than they need to start
REST = 10  # seconds that workers wait for the next texts


class Worker:
    """A process that makes a `kind(*parts)` of its own, and calls its methods."""

    def __init__(self, kind: type, *parts: Any) -> None:
        self.unsent = (kind, *parts)  # until the process runs, a long message waits
        command = [sys.executable, str(Path(worker.__file__).resolve())]
        one_thread = dict(os.environ, OPENBLAS_NUM_THREADS="1")  # more would start more slowly
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=one_thread, **pipes)

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method returns."""
        try:
            if self.unsent:
                worker.dump(self.unsent, self.process.stdin)
                self.unsent = None
            worker.dump((method, *arguments), self.process.stdin)
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):  # it may have died in mid-message
            message = "a worker process was killed (out of memory?): try --workers 1"
            raise UserError(message) from None


@contextmanager
def crew(
    count: int, kind: type, *parts: Any, rested: list[Worker] | None = None
) -> Iterator[list[Worker]]:
    """So many workers, in a `with` block, those that are `rested` first: if all goes well, they
    stay there for some seconds, because texts that follow find their words known."""
    workers = []
    try:
        while len(workers) < count:
            workers.append(taken_from(rested or []) or Worker(kind, *parts))
            if workers[-1].process.poll() is not None:  # it was killed while it rested
                end([workers.pop()])
        yield workers
        if workers and rested is not None:
            rested += workers
            workers.clear()
            timer = Timer(REST, end, [rested])
            timer.daemon = True
            timer.start()
    finally:
        end(workers)


def end(workers: list[Worker]) -> None:
    """Kill all `workers`; the list is empty afterwards."""
    while one := taken_from(workers):
        one.process.kill()
        one.process.communicate()  # waits, and closes its pipes


def taken_from(workers: list[Worker]) -> Worker | None:
    """One of the `workers`, if there is one; only one thread gets it."""
    with suppress(IndexError):
        return workers.pop()


def shared_out(
    thing: Any, method: str, tasks: Iterable[Any], workers: list[Worker]
) -> Iterator[Any]:
    """What the method returns for each of the `tasks`, in order: called of `thing` in this process,
    which works only while it would have to wait, or of what one of the `workers` made."""
    here = getattr(thing, method)
    if not workers:
        yield from map(here, tasks)
        return
    waiting, answers = SimpleQueue(), deque()  # tasks that nobody has begun; futures of all answers

    def keep_busy(one: Worker) -> None:
        while job := waiting.get():
            task, answer = job
            try:
                answer.set_result(one.call(method, task))
            except Exception as error:
                answer.set_exception(error)

    def oldest() -> Any:
        with suppress(Empty):
            while not answers[0].done():
                task, answer = waiting.get_nowait()
                answer.set_result(here(task))
        return answers.popleft().result()

    threads = ThreadPoolExecutor(len(workers))
    try:
        for one in workers:
            threads.submit(keep_busy, one)
        for task in tasks:
            answers.append(Future())
            waiting.put((task, answers[-1]))
            if len(answers) > 2 * len(workers) + 2:  # so that nobody has to wait
                yield oldest()
        while answers:
            yield oldest()
    finally:
        for _ in workers:
            waiting.put(None)
        threads.shutdown(wait=False)


def enough_for(workers: int, pieces: Iterable[Any]) -> tuple[Iterator[Any], int]:
    """The `pieces`, and the number of processes worth starting for them: 1 if there are few."""
    pieces, workers = iter(pieces), workers or cores()
    first = deque(islice(pieces, ENOUGH if workers > 1 else 0))
    workers = workers if len(first) == ENOUGH else 1
    return chain((first.popleft() for _ in range(len(first))), pieces), workers  # frees them
