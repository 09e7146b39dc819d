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

PROCESSES, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # on Linux only


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


def free_memory(device: Any) -> int | None:  # noqa: ANN401 - a torch.device
    """The bytes that this process can still use on a `device`; None if the system does not say."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        memory = (PROCESSES / "meminfo").read_text(encoding="utf-8")
        groups = (PROCESSES / "self" / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return None
    if device.type != "cpu":
        return None
    free = [1024 * sum(map(int, re.findall(r"^(?:MemAvailable|SwapFree): +(\d+)", memory, re.M)))]
    for line in groups.splitlines():
        _, kinds, path = line.split(":", 2)
        root, files, part = CGROUPS, ("memory.max", "memory.current"), ""
        if kinds:  # version 1 has a tree for each kind of limit
            root, part = CGROUPS / "memory", "total_"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes"
        group = root / path.strip("/")
        for folder in (group, *group.parents) if kinds in ("", "memory") else ():
            try:
                limit, used = (int((folder / name).read_text()) for name in files)
                numbers = dict(x.split() for x in (folder / "memory.stat").read_text().splitlines())
                caches = (int(numbers[f"{part}{of}active_file"]) for of in ("", "in"))
                free.append(limit - used + sum(caches))  # caches of files give way
            except (OSError, ValueError, LookupError):  # not there, or no limit
                continue
    return min(free)


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
