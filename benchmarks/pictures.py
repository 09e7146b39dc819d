"""The pictures of the benchmarks, drawn only from results; each version always has the same
colour, and no two need an eye for red and green."""

import io
import textwrap
from pathlib import Path

from shared.curves import import_matplotlib

import_matplotlib()
import matplotlib

matplotlib.use("Agg")  # no screen needed
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from benchmarks.common import VERSIONS, idea
from shared.files import atomic_write
from shared.run import QUICK_BYTES

# Of the versions, in order; chosen for distance to eyes that lack one kind of cone, too.
COLOURS = "#949494", "#946232", "#2f6fc0", "#d98200", "#9a3cff", "#e0629e"
BLUE, ORANGE = COLOURS[2:4]
CYCLE = [*COLOURS[2:], *COLOURS[:2]]  # of lines that are of no version
LABEL_GAP, LABEL_WIDTH = 0.065, 0.15  # of the labels of lines, as shares of height and width
MEDIAN_OF = 9  # points around each, in the running median of a long run's times
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
    return COLOURS[VERSIONS.index(version) % len(COLOURS)]


def short(version: str) -> str:
    """v2 of v2_bpe_rope."""
    return version.partition("_")[0]


def label_ends(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Write each label beside the end (x, y) of its line; those in each other's way move apart, and
    lines that end in the same place share one. All else has to be drawn before."""
    axes.get_xlim(), axes.get_ylim()  # brings the scales up to date
    to_share = axes.transData + axes.transAxes.inverted()
    columns = []  # of labels that stand one above the other: {place -> labels}
    last = -1.0
    for x, y, label in sorted(ends):
        across, height = to_share.transform((x, y)).round(2)
        if across > last + LABEL_WIDTH:
            columns.append({})
        last = across
        columns[-1].setdefault((height, x), []).append(label)
    for column in columns:
        places = sorted(column)
        heights = apart([max(height, LABEL_GAP / 2) for height, _ in places])
        for (_, x), place, height in zip(places, places, heights):
            axes.annotate(
                ", ".join(column[place]),
                (x, height),
                xycoords=("data", "axes fraction"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )


def apart(heights: list[float]) -> list[float]:
    """The rising `heights`, moved as little as puts them `LABEL_GAP` apart."""
    blocks = []  # of labels that touch, each its height less what it has to be above the first
    for number, height in enumerate(heights):
        blocks.append([height - number * LABEL_GAP])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    means = [float(np.mean(block)) for block in blocks for _ in block]
    return [mean + number * LABEL_GAP for number, mean in enumerate(means)]


def axes_of(
    count: int, width: float = 5, height: float = 4, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, in each of `rows`, all with a grid."""
    size = (count * width, rows * height)
    figure, axes = pyplot.subplots(rows, count, figsize=size, layout="constrained", squeeze=False)
    for each in axes.flat:
        each.set_prop_cycle(color=CYCLE)  # not for all figures: a run draws its own, too
        each.grid(alpha=0.15)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


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

    Lines are for the first part of the validation text, the stars behind them for all of it.
    """
    figure, both = axes_of(2)
    runs = results["runs"]
    for axes, name in zip(both, ("seconds", "train_bytes")):
        ends = {}  # version -> of its last run
        for run in runs:
            end, points = run[name], [(seconds, bits) for _, seconds, bits in run["curve"]]
            if axes is both[1]:
                points = [(s / run["steps"] * end, bits) for s, _, bits in run["curve"] if s]
            paint = {"color": colour(run["version"]), "alpha": 0.7, "linewidth": 1.2}
            axes.plot(*zip(*points), **paint)
            axes.plot(*zip(*points[-1:], (end, run["bits_per_byte"])), ":", **paint)
            axes.plot([end], [run["bits_per_byte"]], "*", **paint)
            furthest = max(end, ends.get(run["version"], (0,))[0])
            ends[run["version"]] = furthest, run["bits_per_byte"], short(run["version"])
        trained = [bits for run in runs for *_, bits in run["curve"][1:]]
        axes.set_ylim(top=1.03 * max([*trained, *(run["bits_per_byte"] for run in runs)]))
        if axes is both[1]:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter("")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}")
        label_ends(axes, list(ends.values()))
    both[0].set(xlabel="seconds of training", ylabel="bits per byte of validation text")
    both[1].set(xlabel="MB of training text seen")
    label = f"all of the validation text (lines: its first {QUICK_BYTES:,} bytes)"
    star = both[0].plot([], [], "*", color="gray", label=label)
    figure.legend(handles=star, loc="outside lower center", fontsize=9)
    return figure


def draw_beyond(results: dict) -> Figure:
    """Bits per byte against the length of the windows read, one line per run."""
    figure, (axes,) = axes_of(1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}×")
    ends = {}  # version -> of its last run
    for run in results["runs"]:
        lengths = run["beyond"]["lengths"]
        if len(lengths) > 1:
            times, bits, _ = zip(*lengths)
            axes.plot(times, bits, "o-", color=colour(run["version"]), alpha=0.7)
            ends[run["version"]] = times[-1], bits[-1], short(run["version"])
    axes.set(xlabel="length of the windows read, in contexts of the training")
    axes.set(ylabel="bits per byte of validation text")
    label_ends(axes, list(ends.values()))
    return figure


def draw_rates(results: dict) -> Figure:
    """The learning rate (AdamW's) through each version's run."""
    figure, (axes,) = axes_of(1)
    ends = []
    for run in results["runs"]:
        if run["seed"] == 0:
            shares = [step / run["steps"] for step, _ in run["rates"]]
            rates = [rate for _, rate in run["rates"]]
            style = "--" if run["version"].startswith("v3") else "-"  # on v2's line
            axes.plot(shares, rates, style, color=colour(run["version"]))
            ends += [(1.0, rates[-1], short(run["version"]))] if rates else []
    axes.set(xlabel="share of the run", ylabel="learning rate of AdamW", ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    label_ends(axes, ends)
    return figure


def draw_soak(runs: list[dict]) -> Figure:
    """Memory and the time of a step over long runs, the latter as a running median."""
    figure, (memory, seconds) = axes_of(2)
    ends = {memory: [], seconds: []}
    for run in runs:
        version, steps = run["version"], run["step"][1:]  # the first point imports and warms up
        for axes, values in (
            (memory, [held / 1e6 for held in run["memory"][1:]]),
            (seconds, running_median([1000 * taken for taken in run["step_seconds"][1:]])),
        ):
            axes.plot(steps, values, linewidth=1.2, color=colour(version))
            ends[axes].append((steps[-1], values[-1], short(version)))
    memory.set(xlabel="step", ylabel="memory, MB", ylim=(0, None))
    label = f"CPU ms a step (medians of {MEDIAN_OF} points)"
    seconds.set(xlabel="step", ylabel=label, ylim=(0, None))
    for axes, of in ends.items():
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        label_ends(axes, of)
    return figure


def running_median(values: list[float]) -> list[float]:
    """The median of `MEDIAN_OF` values around each; at the ends, of those that are there."""
    half = MEDIAN_OF // 2
    around = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [float(np.median(some)) for some in around]


def draw_sweep(rows: list[dict]) -> Figure:
    """Bits per byte against the changed value, mean and spread, the version's own value marked; a
    cross where runs diverged."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    figure, panels = axes_of(len(whats), width=3.2, height=3.4)
    for axes, what in zip(panels, whats):
        of = [row for row in rows if row["what"] == what]
        whole = [row for row in of if not row["diverged"]]
        bits, spreads = ([row[name] for row in whole] for name in ("bits_per_byte", "spread"))
        axes.errorbar([row["value"] for row in whole], bits, spreads, fmt="o-", capsize=3)
        top = axes.get_xaxis_transform()  # at this height, whatever the scale
        diverged = [row["value"] for row in of if row["diverged"]]
        if diverged:
            style = {"color": ORANGE, "transform": top, "label": "diverged"}
            axes.plot(diverged, [0.97] * len(diverged), "X", **style)
            axes.legend(loc="lower right")
        for default in [row["value"] for row in of if row["factor"] == 1]:
            axes.axvline(default, color="gray", linestyle=":", zorder=0)
            axes.text(default, 1.01, "default", transform=top, ha="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xticks([row["value"] for row in of], [f"{row['value']:g}" for row in of])
        axes.minorticks_off()
        name, _, title = what.replace("_", " ").partition(", ")
        axes.set_xlabel(name)
        axes.set_title(title, fontsize=11, pad=18)
    panels[0].set(ylabel="bits per byte (scales differ)")
    return figure


def draw_ablations(rows: list[dict]) -> Figure:
    """What replacing each part costs or saves in bits per byte, mean and spread, the costliest at
    the top; the first row is the complete model, at 0."""
    figure, (axes,) = axes_of(1, width=9, height=1.3 + 0.3 * len(rows))
    parts = rows[1:]
    places = range(len(parts), 0, -1)
    for place, row in zip(places, parts):
        if row["diverged"]:
            axes.plot([0], [place], "X", color=BLUE)
            axes.annotate("diverged", (0, place), (8, 0), textcoords="offset points", va="center")
        else:
            paint = {"color": BLUE if row["cost"] > 0 else ORANGE, "ecolor": "gray"}
            axes.barh(place, row["cost"], xerr=row["cost_spread"], capsize=3, **paint)
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(places, [f"{row['without']} → {row['instead']}" for row in parts])
    axes.set(xlabel=f"bits per byte, compared with {rows[0]['instead']}")
    top = axes.get_xaxis_transform()
    axes.text(0, 1.02, "←  better so    ", ha="right", transform=top)
    axes.text(0, 1.02, "    worse so  →", ha="left", transform=top)
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
        axes.plot([0.98] * len(diverged), diverged, "X", color=ORANGE, transform=left)
    places = [-row["step"] for row in rows]
    axes.set_yticks(places, [f"{row['step']}  {row['idea'].split(';')[0]}" for row in rows])
    axes.set(xlabel="bits per byte of validation text; less is better")
    axes.legend()
    return figure
