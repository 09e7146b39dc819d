"""The machine: its cores and memory, and what is to be reported of it."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.files import ROOT


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """From now on, keep freed blocks of memory for later instead of returning them to the system.

    Getting large ones again, page by page and zeroed, takes a tenth of a step of training, and up
    to a sixth of the time of encoding a text. Only for Linux's C library (man mallopt); other
    allocators decide for themselves.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def cpu_name() -> str:
    """The model name of this machine's processor, or at least its architecture."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8")  # only on Linux
    except OSError:
        known = ""
    name = re.search(r"^model name\s*:\s*(.+)", known, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def machine_facts() -> dict[str, Any]:
    """What a result depends on besides the config: versions, the machine, and the commit."""
    import torch  # here, since processes that only read text import this file and start sooner

    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
        commit = commit.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": commit,
    }
