"""The machine: its cores and memory, and what is to be reported of it."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from shared.files import ROOT

PROCESSES, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # on Linux only


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache  # once is enough
def keep_freed_memory() -> None:
    """From now on, keep freed blocks of memory for later instead of returning them to the system,
    and ask for the next ones in pages of 2 MB, not 4 KB.

    Getting large ones again, page by page and zeroed, takes a tenth of a step of training, and up
    to a sixth of the time of encoding a text. Large pages spare the processor many searches for
    where a page is. Only for Linux's C library (man mallopt, madvise); other allocators decide for
    themselves.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14
    library.mallopt(M_MMAP_MAX, 0)  # large blocks, too, come from the heap
    library.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
    strict = PROCESSES / "sys" / "vm" / "overcommit_memory"
    if strict.exists() and strict.read_text().strip() == "2":
        return  # addresses count as memory there, and would be missing elsewhere
    library.malloc.restype = ctypes.c_void_p
    # Half of the machine's memory: only addresses, until they are used. The advice must come first.
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES") // 2
    if start := library.malloc(ctypes.c_size_t(pages * page)):  # no more than this process may have
        inside = ctypes.c_void_p(-(-start // page) * page)
        library.madvise(inside, ctypes.c_size_t((pages - 1) * page), MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(start))


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
