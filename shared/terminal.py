"""The terminal that a process was started from: what it can show, and what it says by signals."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def print_text(text: str, end: str = "\n") -> None:
    """Print any text on any terminal: characters its encoding lacks become question marks."""
    if sys.stdout is None:  # closed by our parent process
        return
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end=end, flush=True)


def ended_by() -> list[int]:
    """The signals besides Ctrl-C's that end a run: SIGTERM, and SIGHUP (a closed terminal) unless
    `nohup` blocks it."""
    closed = getattr(signal, "SIGHUP", None)  # Windows has none
    keeps_off = closed is None or signal.getsignal(closed) == signal.SIG_IGN
    return [signal.SIGTERM] if keeps_off else [signal.SIGTERM, closed]


@contextmanager
def answered(numbers: Iterable[int], handler: Callable | int) -> Iterator[None]:
    """Within it, `handler` answers these signals, in the main thread: Python allows no other."""
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_nowhere(number: int) -> None:
    """If a signal says that the terminal was closed, or that nobody reads our pipe any more,
    discard all output from now on: writing it would fail."""
    if number == getattr(signal, "SIGHUP", None):
        is_closed = stat.S_ISCHR  # isatty is False for a closed one
    elif number == getattr(signal, "SIGPIPE", None):
        is_closed = stat.S_ISFIFO
    else:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with contextlib.suppress(OSError):  # it may have none
            if is_closed(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
