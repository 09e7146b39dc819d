"""The benchmarks' pictures: what tells their lines apart, and where their labels stand."""

import itertools

import numpy as np
import pytest
import toy
from conftest import VERSIONS
from matplotlib import colors
from matplotlib.figure import Figure

import shared.run
from benchmarks import pictures, sweep

# What eyes without red or green cones see of linear RGB: Machado, Oliveira and Fernandes 2009,
# table 1, severity 1. Then CIE 1976: XYZ of sRGB, and L*a*b* at its white point.
BLIND = {
    "red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "nothing": np.eye(3),
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colour: str, blind: str) -> np.ndarray:
    srgb = np.array(colors.to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(BLIND[blind] @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blind", BLIND)
def test_versions_are_told_apart_without_red_or_green(blind):
    seen = [lab(pictures.colour(version), blind) for version in VERSIONS]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 25  # 2.3 are just noticed
    assert np.linalg.norm(seen[2] - seen[3]) > 80  # their lines are the nearest


def written(figure: Figure) -> list:
    """The labels beside lines, drawn, from below."""
    figure.draw_without_rendering()
    labels = [text for axes in figure.axes for text in axes.texts]
    return sorted(labels, key=lambda text: text.get_window_extent().y0)


@pytest.mark.parametrize("log", [False, True])
def test_labels_stand_at_the_ends_of_lines_and_apart(log):
    figure, (axes,) = pictures.axes_of(1)
    ends = {"a": 1.0, "b": 1.2, "c": 1.4, "d": 5.0, "e": 5.0, "f": 10.0}
    for name, end in ends.items():
        axes.plot([1, 2], [1.5, end], label=name)
    if log:
        axes.set_yscale("log")
    pictures.label_ends(axes, [(2, end, name) for name, end in ends.items()])
    labels = written(figure)
    assert [label.get_text() for label in labels] == ["a", "b", "c", "d, e", "f"]
    boxes = [label.get_window_extent() for label in labels]
    assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:]))
    # They stand to the right of the ends, and no farther above or below than they have to.
    places = [axes.transData.transform((2, end)) for end in (1.0, 1.2, 1.4, 5.0, 10.0)]
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert all(box.x0 > x for box, (x, _) in zip(boxes, places))
    assert middles[3:] == pytest.approx([y for _, y in places[3:]], abs=2)
    assert all(abs(m - y) < 2.5 * boxes[0].height for m, (_, y) in zip(middles, places))


def test_labels_far_from_each_other_stay_where_they_are():
    figure, (axes,) = pictures.axes_of(1)
    axes.plot([0, 10], [0, 1])
    pictures.label_ends(axes, [(10, 0.5, "right"), (1, 0.5, "left")])
    one, other = written(figure)
    assert one.get_window_extent().y0 == other.get_window_extent().y0


def test_lines_go_on_to_the_stars_and_begin_at_the_start():
    results = toy.results()
    seconds, _ = pictures.draw_bits(results).axes
    lines, runs = list(seconds.lines), results["runs"]
    for run in runs:
        curve, end, star = lines[:3]
        assert curve.get_xdata()[0] == 0 and end.get_xydata()[0] == pytest.approx(
            curve.get_xydata()[-1]
        )
        assert end.get_xydata()[1] == pytest.approx(star.get_xydata()[0])
        assert tuple(star.get_xydata()[0]) == (run["seconds"], run["bits_per_byte"])
        lines = lines[3:]
    assert [text.get_text() for text in seconds.texts] == ["v1", "v2"]


def test_defaults_are_marked_and_panels_have_titles():
    points = sweep.summarize(toy.sweep()["points"])
    for row in points:
        row["what"] = "learning rate, ten times as long"
    (axes,) = pictures.draw_sweep(points).axes
    marked = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert marked == [row["value"] for row in points if row["factor"] == 1] != []
    assert (axes.get_xlabel(), axes.get_title()) == ("learning rate", "ten times as long")


def test_a_running_median_is_not_moved_by_what_is_rare():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 900.0, 7.0, 8.0, 9.0, 10.0]
    expected = [3.0, 3.5, 4.0, 4.5, 5.0, 7.0, 7.5, 8.0, 8.5, 9.0]
    assert pictures.running_median(values) == expected


def test_steps_are_whole_numbers(tmp_path, monkeypatch, real_pictures):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))
    rows = [{"step": step, "val_loss": 3.0 - step, "bits_per_byte": 2.0} for step in (0, 1)]
    shared.run.draw_loss(rows, tmp_path / "loss.png", "title")
    ticks = [tick for axes in figures[0].axes for tick in axes.get_xticks()]
    assert ticks and all(tick == round(tick) for tick in ticks)


def test_a_run_draws_in_its_own_colours_beside_the_benchmarks():
    """Some trials of faults.py run in its process, others not, and their pictures are compared."""
    figure, (axes,) = pictures.axes_of(1)
    assert axes.plot([0, 1])[0].get_color() == pictures.BLUE
    assert Figure().subplots().plot([0, 1])[0].get_color() == "#1f77b4"
