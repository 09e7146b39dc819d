"""The rows of metrics.jsonl as a picture, and as event files for TensorBoard."""

import shutil
from pathlib import Path
from typing import Any

from shared.files import atomic_write


def draw_loss(rows: list[dict], picture: Path, title: str) -> None:
    """Plot loss and bits per byte against steps.

    Scores on the first part of the validation text are a line; scores on all of it are a star.
    """
    from matplotlib.figure import Figure  # pyplot may need a display, or draw into a notebook

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    whole = max(row.get("scored_tokens", 0) for row in rows)
    some = min(row.get("scored_tokens", whole) for row in rows)
    for axes, name, label, style, scored in (
        (left, "train_loss", "training", "C0-", None),
        (left, "val_loss", "validation", "C1.-", some),
        (left, "val_loss", "validation, all of it", "C1*", whole),
        (right, "bits_per_byte", "validation", "C1.-", some),
        (right, "bits_per_byte", "validation, all of it", "C1*", whole),
    ):
        of_kind = [r for r in rows if name in r and r.get("scored_tokens") == scored and r["step"]]
        if of_kind and not (style == "C1*" and some == whole):
            axes.plot([r["step"] for r in of_kind], [r[name] for r in of_kind], style, label=label)
    for axes, label in ((left, "loss (nats per token)"), (right, "bits per byte")):
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    with atomic_write(picture) as file:
        figure.savefig(file, format="png", dpi=110)


def event_writer(folder: Path, rows: list[dict]) -> Any:  # noqa: ANN401 - tensorboard is optional
    """A writer of TensorBoard event files in `folder`, which then holds exactly `rows`: later rows
    of a resumed run will be written again."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    events = SummaryWriter(str(folder))
    for row in rows:
        write_events(events, row)
    return events


def write_events(events: Any, row: dict) -> None:  # noqa: ANN401
    """Write a scalar for each value in a row of metrics.jsonl, at its step."""
    for name, value in row.items():
        if name != "step":
            events.add_scalar(name, value, row["step"])
