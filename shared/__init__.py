"""What all five versions share: data, runs, the command line. It is imported before torch, which
takes a second: meanwhile, Ctrl-C ends a program of ours at once, without a traceback."""

import os
import signal
import sys
from pathlib import Path

_program = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
if _program.parents[1:2] == Path(__file__).resolve().parents[1:2]:  # no notebook, no test
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not ignored, as after `&`
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until `clear_errors` answers
