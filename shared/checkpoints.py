"""Files that hold a checkpoint: written as a whole or not at all, and, since they may come from
anybody, not believed when they are read."""

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from operator import index
from pathlib import Path
from typing import Any

import torch

from shared.files import UserError, atomic_write


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, where what was before stays until this is complete and on disk."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError if a disk is full
        system = error if isinstance(error, OSError) else error.__context__
        reason = getattr(system, "strerror", None) or "is the disk full?"
        raise UserError(f"{path} cannot be written ({reason})") from None


def read_state(path: Path) -> dict[str, Any]:
    """What was written to `path`, as far as it takes no more memory than the file; any error if it
    is damaged."""
    with warnings.catch_warnings():  # we report unusable files ourselves
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path) as archive:  # torch ignores wrong checksums
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path} is packed, which no checkpoint of ours is")
            if damaged := archive.testzip():
                raise UserError(f"{path} is damaged (in {damaged})")
        return torch.load(path, map_location="cpu", weights_only=True)


def check_tensors(saved: dict[str, Any], path: Path) -> None:
    """ValueError if tensors read from `path` are views that repeat a number, which would take more
    memory than the file as soon as they are used, or are not finite."""
    size = path.stat().st_size
    if any(not x.nbytes <= x.untyped_storage().nbytes() <= size for x in tensors(saved)):
        raise ValueError("tensors are larger than the file")
    if not all_finite(saved):
        raise ValueError("weights are not finite")


def checked_progress(progress: dict) -> dict:
    """`progress`; ValueError unless each part of it is what `Run.progress` returned."""
    numbers = progress["seconds"], *progress["losses"]
    whole = type(progress["step"]) is int and progress["step"] >= 0
    whole &= all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    whole &= all(type(row.get("step")) is int for row in progress["rows"])
    whole &= all(type(x) in (int, float, str) for row in progress["rows"] for x in row.values())
    if not whole:
        raise ValueError("not the progress of a run")
    return {name: progress[name] for name in ("step", "seconds", "losses", "rows")}


def unlike(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> str:
    """How `theirs` differ from tensors with the names, shapes and types of `ours`, or ""."""
    if theirs.keys() != ours.keys():
        return "its tensors have other names"
    for name, mine in ours.items():
        found, wanted = (f"{x.dtype} {tuple(x.shape)}" for x in (theirs[name], mine))
        if found != wanted:
            return f"{name} is {found}, not {wanted}"
    return ""


def states_after(step: int, optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """The states that fresh `optimizers` will have after `step` steps, but for the data."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    twins = {id(p): torch.empty_like(p, device="meta") for g in groups for p in g["params"]}
    for twin in twins.values():
        twin.grad = torch.empty_like(twin)
    alike = deepcopy(list(optimizers), dict(twins))
    for optimizer in alike if step else ():
        optimizer.step()
    return [optimizer.state_dict() for optimizer in alike]


def named_states(states: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """All that optimizers keep of parameters, by names; TypeError if that is neither a tensor nor,
    like a count of steps, a whole number, which becomes one."""
    return {
        f"{name} of parameter {number} in optimizer {i}": value
        if isinstance(value, torch.Tensor)
        else torch.tensor(index(value))
        for i, state in enumerate(states)
        for number, values in state["state"].items()
        for name, value in values.items()
    }


def tensors(state: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401
    """The tensors in nested dicts and lists, each once: lists within lists may repeat endlessly."""
    parts, seen = [state], set()
    while parts:
        part = parts.pop()
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, dict | list | tuple | set) and id(part) not in seen:
            seen.add(id(part))
            parts += part.values() if isinstance(part, dict) else part


def all_finite(state: Any) -> bool:  # noqa: ANN401
    """Whether all numbers in all tensors of nested dicts and lists are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors(state))
