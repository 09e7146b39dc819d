"""Data-parallel training in several processes, started by `torchrun`. No model code.

    torchrun --nproc-per-node 2 v4_modern/train.py

Every process holds the whole model and takes the same steps, each on its share of every batch; the
gradients are averaged over all processes, so that the weights stay equal. Only the first process
writes and prints; while it works alone, the others wait. Started without torchrun, a process is the
first and only one, and nothing here has a cost.

All that processes exchange besides gradients goes through their CPUs, over a process group of its
own. On GPUs, gradients use NCCL, which times out after ten minutes; waiting for a tokenizer may
take longer, and must not make a GPU wait for its CPU.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from shared.files import UserError

T = TypeVar("T")
LONGEST_WAIT = timedelta(weeks=1)  # while one process works alone; a dead one is noticed at once
LOST = "another process of this run ended or is unreachable: --resume continues from the checkpoint"
_among_cpus: "dist.ProcessGroup | None" = None


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


def join(batch_size: int, device: str) -> None:
    """Connect to the other processes; UserError if they cannot evenly share batches of `batch_size`
    windows, or if there is no `device` for each."""
    global _among_cpus
    if processes() == 1 or dist.is_initialized():
        return
    if batch_size % processes():
        raise UserError(
            f"--batch-size {batch_size} is of all processes together: "
            f"{processes()} of them cannot share it evenly"
        )
    local = int(os.environ["LOCAL_RANK"])  # among the processes of this machine
    if device == "mps":
        raise UserError("--device mps trains in one process: start it without torchrun")
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs, fewer than its processes: "
                "give torchrun a lower --nproc-per-node, or --device cpu"
            )
        torch.cuda.set_device(local)  # what "cuda" means from now on
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    _among_cpus = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


def joined() -> bool:
    """Whether the processes of this run are connected, or there is only one."""
    return processes() == 1 or dist.is_initialized()


@contextmanager
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
    if _is_first_to_tell():
        tqdm.write(line, file=sys.stderr)  # not behind a progress bar


def _is_first_to_tell() -> bool:
    if processes() == 1:
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    try:  # torchrun's own store, which outlives this process
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        return store.add(f"told{attempt}", 1) == 1
    except RuntimeError:
        return True


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether `error` was caused by the end of another process."""
    if processes() == 1:
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


# ---- working alone, and exchanging values ----


def wait() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        dist.barrier(_among_cpus)


def in_turn(work: Callable[[], T]) -> T:
    """What `work` returns, in every process. What it caches on disk is made only once: by the first
    process, then by the first of each other machine (if it has other disks), then read by all."""
    if processes() == 1:
        return work()
    mine = 0 if is_first() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for turn in range(3):
        if turn == mine:
            result = work()
        wait()
    return result


def _from_all(values: list[float]) -> Tensor:
    """The `values` of every process, (processes, values) float64."""
    mine = torch.tensor(values, dtype=torch.float64)
    all_of_them = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(all_of_them, mine, group=_among_cpus)
    return torch.stack(all_of_them)


def mean(values: list[float]) -> list[float]:
    """The means of `values` over all processes."""
    return _from_all(values).mean(0).tolist() if processes() > 1 else values


def highest(value: int) -> int:
    """The highest `value` of any process; all processes get it once all are here."""
    return int(_from_all([value]).max()) if processes() > 1 else value


# ---- sharing the work of a step ----


def my_share(ids: Tensor, device: torch.device) -> Tensor:
    """This process's windows of `ids` (B, T), on the device: (B / processes, T).

    A GPU copies them asynchronously, from pinned memory, while the CPU goes on.
    """
    ids = ids[rank() :: processes()]
    if device.type == "cuda":
        return ids.contiguous().pin_memory().to(device, non_blocking=True)
    return ids.to(device)


def replica(model: nn.Module) -> nn.Module:
    """`model`, or, with several processes, a wrapper whose backward pass averages the gradients
    over all of them, each as soon as it is computed (Li et al. 2020); all start from the weights of
    the first."""
    if processes() == 1:
        return model
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def averaging(model: nn.Module, now: bool) -> AbstractContextManager:
    """Context for the forward pass of a replica: its backward pass averages the gradients `now`, or
    only accumulates them for a later one."""
    return nullcontext() if now or processes() == 1 else model.no_sync()
