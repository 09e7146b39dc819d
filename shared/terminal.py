"""The terminal that a process was started from: what it can show, and what it says by signals."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from tqdm import tqdm

from shared.files import UserError

SECONDS = 30  # between two lines of progress in a log


class progress(tqdm):  # noqa: N801 - as tqdm, which it is on a terminal
    """A progress bar on a terminal; elsewhere, such as in a log, a plain line now and then. If they
    cannot be written, the work goes on without."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.shown = monotonic()
        if not self.on_terminal:
            options |= {"mininterval": SECONDS, "delay": SECONDS, "disable": sys.stderr is None}
            options["bar_format"] = "{desc}: {n_fmt} of {total_fmt} {unit} [{elapsed}<{remaining}]"
        super().__init__(*arguments, **{"leave": False} | options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        try:
            if self.on_terminal:
                super().display(msg, pos)
            # Not at each `refresh`; tqdm, which asks every SECONDS, may be a little early.
            elif msg is None and monotonic() >= self.shown + 0.9 * SECONDS:
                print(self, file=sys.stderr)
                self.shown = monotonic()
        except OSError:
            self.disable = True
            discard(2)


def print_text(text: str, end: str = "\n") -> None:
    """Print any text on any terminal, above a progress bar: characters its encoding lacks become
    question marks. If it cannot be written, such as to a full disk, no text is from now on."""
    if sys.stdout is None:  # closed by our parent process
        return
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "replace").decode(encoding)
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            tqdm.write(text, end=end)
        else:
            print(text, end=end, flush=True)
    except BrokenPipeError:  # the reader, such as `| head`, wants no more
        raise
    except OSError:
        discard(1)


def piped_text() -> str:
    """The text that a pipe or a file has for our standard input, without its last newline."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not the system's
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError("what standard input holds is not UTF-8 text") from None


def ended_by() -> list[int]:
    """The signals besides Ctrl-C's that end a run: SIGTERM, and unless our parent blocked them, as
    `nohup` does, SIGHUP (a closed terminal) and what clusters send before a time limit."""
    names = "SIGHUP", "SIGUSR1", "SIGXCPU"  # Windows has none of them
    others = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [signal.SIGTERM, *(n for n in others if signal.getsignal(n) != signal.SIG_IGN)]


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
    for output in (1, 2):
        with contextlib.suppress(OSError):  # it may have none
            if is_closed(os.fstat(output).st_mode):
                discard(output)


def discard(output: int) -> None:
    """Have all that is written to a file descriptor from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
