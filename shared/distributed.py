"""Which of the processes that train together this one is, and how they speak with one voice.

Only the first process of a run writes and prints; while it works alone, the others wait. Started
without torchrun, a process is the first and only one, and nothing here has a cost. What only
training in several processes needs is in v4_modern/parallel.py.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

LOST = "another process of this run ended or is unreachable: --resume continues from the checkpoint"
among_cpus: "dist.ProcessGroup | None" = None  # for all but gradients; see v4_modern/parallel.py


def processes() -> int:
    """How many processes train together. Some clusters set WORLD_SIZE for anything they start."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


# ---- beginning and end ----


def joined() -> bool:
    """Whether the processes of this run are connected, or there is only one."""
    return processes() == 1 or dist.is_initialized()


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Show only the first process's output and progress bars. Processes that end normally leave the
    group cleanly."""
    try:
        if is_first():
            yield
        else:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    yield
    except SystemExit:
        _leave()
        raise
    _leave()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def tell_error(line: str) -> None:
    """Print why this process ends, unless another one already did: the other processes of a run end
    because one did, or for the same reason."""
    told = 0
    if processes() > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        with contextlib.suppress(RuntimeError):  # torchrun's own store, which outlives this process
            store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
            told = store.add(f"told{attempt}", 1) - 1
    if not told:
        tqdm.write(line, file=sys.stderr)  # not behind a progress bar


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether `error` was caused by the end of another process."""
    if processes() == 1:
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


# ---- working alone, and exchanging values ----


def wait() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        dist.barrier(among_cpus)


def _from_all(values: list[float]) -> Tensor:
    """The `values` of every process, (processes, values) float64."""
    mine = torch.tensor(values, dtype=torch.float64)
    all_of_them = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(all_of_them, mine, group=among_cpus)
    return torch.stack(all_of_them)


def mean(values: list[float]) -> list[float]:
    """The means of `values` over all processes."""
    return _from_all(values).mean(0).tolist() if processes() > 1 else values


def highest(value: int) -> int:
    """The highest `value` of any process; all processes get it once all are here."""
    return int(_from_all([value]).max()) if processes() > 1 else value
