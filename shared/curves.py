"""The rows of metrics.jsonl as a picture, and as event files for TensorBoard."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from shared.files import atomic_write


def draw_loss(rows: list[dict], picture: Path, title: str) -> None:
    """Plot loss and bits per byte against steps."""
    import_matplotlib()
    from matplotlib.figure import Figure  # pyplot may need a display, or draw into a notebook
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label, style in (
        (left, "train_loss", "training", "C0-"),
        (left, "val_loss", "validation", "C1.-"),
        (right, "bits_per_byte", "validation", "C1.-"),
    ):
        of_kind = [row for row in rows if name in row]
        if of_kind:
            steps, values = zip(*((row["step"], row[name]) for row in of_kind))
            axes.plot(steps, values, style, label=label)
    for axes, label in ((left, "loss (nats per token)"), (right, "bits per byte")):
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    with atomic_write(picture) as file:
        figure.savefig(file, format="png", dpi=110)


def import_matplotlib() -> None:
    """Import it even if MPLBACKEND names a backend that is not installed here, such as that of the
    notebook that started this process."""
    named = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    import matplotlib

    if named:
        os.environ["MPLBACKEND"] = named
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = named


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
    """Write each value in a row of metrics.jsonl, at its step."""
    for name, value in row.items():
        if name == "sample":
            events.add_text(name, value, row["step"])
        elif name != "step":
            events.add_scalar(name, value, row["step"])
