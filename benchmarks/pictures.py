"""The pictures of the benchmarks, drawn only from results; each version always has the same
colour."""

import io
import textwrap
from pathlib import Path

from shared.curves import import_matplotlib

import_matplotlib()
import matplotlib

matplotlib.use("Agg")  # no screen needed
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.common import VERSIONS, idea
from shared.files import atomic_write
from shared.run import QUICK_BYTES

HEAD = {"va": "center", "fontsize": 10.5, "fontweight": "bold"}
BAR_TEXT = {"ha": "right", "va": "center", "fontweight": "bold"}
WRITTEN = {"va": "center", "family": "monospace", "fontsize": 9.5, "parse_math": False}


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def colour(version: str) -> str:
    return f"C{VERSIONS.index(version)}"


def axes_of(count: int, width: float = 5, height: float = 4) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, each with a grid."""
    figure, axes = pyplot.subplots(
        1, count, figsize=(count * width, height), layout="constrained", squeeze=False
    )
    for each in axes[0]:
        each.grid(alpha=0.15)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def draw_ladder(rows: list[dict], results: dict) -> Figure:
    """Each version's bits per byte as a bar, beside the beginning of what it wrote after the first
    prompt."""
    figure, (axes,) = axes_of(1, width=11, height=1.2 + 0.72 * len(rows))
    at_most, right = (max(row["bits_per_byte"] for row in rows) * share for share in (1, 1.09))
    axes.text(0, -0.85, "bits for a byte of text it has not seen; less is better", **HEAD)
    for place, row in enumerate(rows):
        bits, name = row["bits_per_byte"], row["version"]
        axes.barh(place, bits, height=0.42, color="#4477aa")
        axes.text(bits - 0.04 * at_most, place, f"{bits:.2f}", color="white", **BAR_TEXT)
        axes.text(0, place - 0.28, f"{name}: {idea(name)}", fontsize=9.5, va="bottom")
        for prompt, text in [*results["exhibits"].get(name, {}).get("samples", {}).items()][:1]:
            if place == 0:
                axes.text(right, -0.85, f'what it writes after "{prompt}"', **HEAD)
            lines = textwrap.wrap(" ".join(text.split()), 58)
            axes.text(right, place, "\n".join(lines[:2]), **WRITTEN)
    axes.set(xlim=(0, 2.2 * at_most), ylim=(len(rows) - 0.7, -1), yticks=[], xticks=[])
    axes.spines[:].set_visible(False)
    return figure


def draw_bits(results: dict) -> Figure:
    """Bits per byte against seconds of training and against bytes seen, one line per run.

    Lines are for the first part of the validation text, the stars at their ends for all of it.
    """
    figure, both = axes_of(2)
    for axes, name in zip(both, ("seconds", "bytes")):
        for run in results["runs"]:
            curve = [point for point in run["curve"] if point[name]]
            end = run["seconds"] if name == "seconds" else run["train_bytes"]
            paint = {"color": colour(run["version"]), "alpha": 0.7}
            x, y = [p[name] for p in curve], [p["bits_per_byte"] for p in curve]
            label = run["version"] if run["seed"] == 0 else None
            axes.plot(x, y, linewidth=1.2, label=label, **paint)
            axes.plot([end], [run["bits_per_byte"]], "*", **paint)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter("")
    both[0].xaxis.set_major_formatter("{x:g}")
    both[1].xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}")
    both[0].set(xlabel="seconds of training", ylabel="bits per byte of validation text")
    both[1].set(xlabel="MB of training text seen")
    label = f"all of it (lines: its first {QUICK_BYTES:,} bytes)"
    both[0].plot([], [], "*", color="gray", label=label)
    lines, labels = both[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def draw_beyond(results: dict) -> Figure:
    """Bits per byte against the length of the windows read, one line per run."""
    figure, (axes,) = axes_of(1)
    for run in results["runs"]:
        lengths = run["beyond"]["lengths"]
        if len(lengths) > 1:
            axes.plot(
                [length["times"] for length in lengths],
                [length["bits_per_byte"] for length in lengths],
                "o-",
                color=colour(run["version"]),
                alpha=0.7,
                label=run["version"] if run["seed"] == 0 else None,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set(xlabel="window, in contexts of the training", ylabel="bits per byte, the same text")
    if axes.lines:
        axes.legend()
    return figure


def draw_rates(results: dict) -> Figure:
    """The learning rate (AdamW's) through each version's run."""
    figure, (axes,) = axes_of(1)
    for run in results["runs"]:
        if run["seed"] == 0:
            axes.plot(
                [row["step"] / run["steps"] for row in run["rates"]],
                [row["learning_rate"] for row in run["rates"]],
                color=colour(run["version"]),
                linestyle="--" if run["version"].startswith("v3") else "-",  # on v2's line
                label=run["version"],
            )
    axes.set(xlabel="share of the run", ylabel="learning rate of AdamW")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def draw_soak(runs: dict[str, dict]) -> Figure:
    """Memory and the time of a step over long runs."""
    figure, (memory, seconds) = axes_of(2)
    for version, run in runs.items():
        points = run["points"][1:]  # the first one imports and warms up
        steps = [point["step"] for point in points]
        paint = {"color": colour(version), "linewidth": 1.2, "label": version}
        memory.plot(steps, [point["memory"] / 1e6 for point in points], **paint)
        seconds.plot(steps, [1000 * point["step_seconds"] for point in points], **paint)
    memory.set(xlabel="step", ylabel="memory, MB", ylim=(0, None))
    seconds.set(xlabel="step", ylabel="CPU ms a step", ylim=(0, None))
    memory.legend()
    return figure


def draw_sweep(rows: list[dict]) -> Figure:
    """Bits per byte against the changed value, mean and spread; a cross where runs diverged."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    figure, panels = axes_of(len(whats), width=3.2, height=3.2)
    for axes, what in zip(panels, whats):
        of = [row for row in rows if row["what"] == what]
        whole = [row for row in of if not row["diverged"]]
        axes.errorbar(
            [row["value"] for row in whole],
            [row["bits_per_byte"] for row in whole],
            [row["spread"] for row in whole],
            fmt="o-",
            capsize=3,
        )
        diverged = [row["value"] for row in of if row["diverged"]]
        if diverged:
            top = axes.get_xaxis_transform()  # at this height, whatever the scale
            axes.plot(diverged, [0.97] * len(diverged), "rX", transform=top, label="diverged")
            axes.legend(loc="lower right")
        axes.set_xscale("log")
        axes.set_xticks([row["value"] for row in of], [f"{row['value']:g}" for row in of])
        axes.minorticks_off()
        axes.set(xlabel=what.replace("_", " "))
    panels[0].set(ylabel="bits per byte (scales differ)")
    return figure


def draw_ablations(rows: list[dict]) -> Figure:
    """What removing each part costs in bits per byte, mean and spread, the costliest at the top;
    the first row is the complete model, at 0."""
    figure, (axes,) = axes_of(1, width=8, height=1 + 0.3 * len(rows))
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows):
        if row["diverged"]:
            axes.plot([0], [place], "rX")
        else:
            axes.barh(place, row["cost"], xerr=row["cost_spread"], color="C0", capsize=3)
    axes.set_yticks(places, [f"{row['without']}: {row['instead']}" for row in rows])
    axes.set(xlabel=f"bits per byte more than {rows[0]['instead']}; a cross: diverged")
    return figure


def draw_climb(rows: list[dict]) -> Figure:
    """Bits per byte of each step, the first at the top, mean and spread; a cross: diverged."""
    figure, (axes,) = axes_of(1, width=11, height=1.2 + 0.42 * len(rows))
    for unit, label, style in (
        ("seconds", "at equal time", "o-"),
        ("bytes", "at equal text", "s--"),
    ):
        whole = [row for row in rows if row[unit] and not row[unit]["diverged"]]
        if whole:
            bits = [row[unit]["bits_per_byte"] for row in whole]
            spreads = [row[unit]["spread"] for row in whole]
            places = [-row["step"] for row in whole]
            axes.errorbar(bits, places, xerr=spreads, fmt=style, capsize=3, label=label)
        diverged = [-row["step"] for row in rows if row[unit] and row[unit]["diverged"]]
        left = axes.get_yaxis_transform()  # at this share of the width, whatever the scale
        axes.plot([0.98] * len(diverged), diverged, "rX", transform=left)
    places = [-row["step"] for row in rows]
    axes.set_yticks(places, [f"{row['step']}  {row['idea'].split(';')[0]}" for row in rows])
    axes.set(xlabel="bits per byte of validation text; less is better")
    axes.legend()
    return figure
