"""Memory that is freed is kept, as the kernel's count of page faults shows."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAULTS = """
import resource
import numpy as np
from shared.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()  # the first time, numpy's own memory too
by_default = faults()
keep_freed_memory()
faults()  # gets the memory that is kept
print(by_default, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is Linux's")
def test_freed_memory_is_kept():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not the GNU C library")
    command = [sys.executable, "-c", FAULTS]  # this process may keep its memory already
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert kept < by_default / 10
