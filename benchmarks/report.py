"""The page: the ladder, its diffs and its curves, in one HTML file that opens anywhere.

    python benchmarks/report.py                    writes runs/report.html
    python benchmarks/report.py --run runs/mine    the page of a run of one's own

Made from committed results, the sources, and the finished runs in runs/, if there are any; nothing
is trained or downloaded.
"""

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared.command_line import clear_errors, parse_options
from shared.files import ROOT, UserError, need_package, write_text

with clear_errors():
    for package in ("jinja2", "pygments"):
        need_package(package, "the page")

import jinja2
import markupsafe
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import JavascriptLexer

from benchmarks import climb, compare, pictures, report_data, report_model, sweep
from benchmarks.common import (
    RESULTS,
    idea,
    load_version,
    sections,
    source,
    what_it_depends_on,
)
from benchmarks.records import read_results
from benchmarks.report_steps import climbed_steps, step, worths
from shared.run import Run

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SCRIPTS = [TEMPLATE.with_name(f"report{part}.js") for part in ("_bpe", "_model", "")]
STYLES = {"light": "xcode", "dark": "github-dark"}  # of code; their colours stand out enough
INK = "#010203"  # placeholder for the colour of the page's text


@dataclass
class Options:
    """Write the page that shows what each version adds and what it buys."""

    results: str = "seconds-120"  # the comparison to show, a folder of benchmarks/results
    sweep: str = "sweep-v4"  # the sweep to show, if it is there
    climb: str = "climb"  # the climb from v3 to v4 to show, if it is there
    run: str = ""  # folder of a finished run: make the page of that one instead
    out: str = str(ROOT / "runs" / "report.html")  # the page


# ---- pictures ----


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of glyphs that matplotlib lacks: the browser draws the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def svg(figure: Figure, label: str) -> markupsafe.Markup:
    """`figure` as SVG to embed in the page, with text and axes in the colour of the page's text."""
    buffer = io.StringIO()
    with quiet():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue().replace(INK, "currentColor")
    text = text[text.index("<svg") :]
    head = f'<svg role="img" aria-label="{markupsafe.escape(label)}" '
    return markupsafe.Markup(re.sub(r"<svg (?:width|height)=\S+ (?:width|height)=\S+ ", head, text))


def ink() -> dict[str, object]:
    """Settings of matplotlib that give figures the page's own colours and fonts."""
    inked = "text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color"
    return dict.fromkeys(inked.split(), INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "page",
        "font.family": "sans-serif",
        "legend.facecolor": "none",
        "legend.edgecolor": "none",
        "axes.facecolor": "none",
    }


def attention_scores(version: str, T: int) -> torch.Tensor | None:
    """The effect of a version's positions alone on the attention scores, (heads or 1, T, T).

    All queries and keys are the same vector, of length 1, so that only the effect of rotation or
    bias with distance is left. None if the version does nothing to the scores.
    """
    module = load_version(version)
    if not hasattr(module, "Position"):
        return None
    config = module.Config()
    position = module.Position(config)
    same = torch.ones(1, T, 1, config.head_size) / config.head_size**0.5  # (B, T, H, D)
    turned = position.rotate(same).transpose(1, 2)  # (1, 1, T, D)
    scores = (turned @ turned.mT + position.bias(T, same.device))[0]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, float("nan"))
    last = scores[:, -1]
    return None if torch.allclose(last, last[:, :1]) else scores


def draw_scores(version: str, scores: torch.Tensor) -> Figure:
    """One head's scores as an image of queries and keys, and all heads' scores by distance."""
    figure, (left, right) = pictures.axes_of(2, width=4, height=3.2)
    heads, T = scores.shape[0], scores.shape[-1]
    shown = scores[heads // 2]
    left.grid(False)
    image = left.imshow(shown.numpy(), cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=left, shrink=0.8)
    which = f", head {heads // 2 + 1} of {heads}" if heads > 1 else ""
    left.set(xlabel="key", ylabel="query", title=f"{version}{which}")
    for head in range(heads):
        name = f"head {head + 1}" if heads > 1 else None
        right.plot(scores[head, -1].flip(0), label=name, linewidth=1.2)
    right.set(xlabel=f"distance in tokens, up to {T}", ylabel="score")
    if heads > 1:
        right.legend(fontsize=8)
    return figure


def draw_map(tokens: list[list]) -> Figure:
    """The tokens on the map, coloured by the kind of their characters; of labels that would be in
    the same place, only that of the most frequent token is shown."""
    figure, (axes,) = pictures.axes_of(1, width=9, height=6.5)
    kinds = {
        "a word or the start of one": lambda t: t.startswith(" ") and t[1:].isalpha(),
        "letters within a word": str.isalpha,
        "digits, signs, blanks": lambda t: True,
    }
    seen = set()
    for token, x, y in tokens:
        number, kind = next((i, k) for i, k in enumerate(kinds) if kinds[k](token))
        label = None if kind in seen else kind
        seen.add(kind)
        paint = {"color": pictures.CYCLE[number]}
        axes.plot(x, y, ".", markersize=2, alpha=0.6, label=label, **paint)
        text = visible(token).replace("$", r"\$")
        axes.annotate(text, (x, y), fontsize=7.5, ha="center", va="bottom", **paint)
    axes.set(xlabel="first axis", ylabel="second axis")
    axes.legend(markerscale=5, loc="upper right")
    with quiet():
        figure.draw_without_rendering()  # places the labels
    kept = []
    for label in axes.texts:
        box = label.get_window_extent()
        if any(box.overlaps(other) for other in kept):
            label.set_visible(False)
        else:
            kept.append(box)
    return figure


def visible(token: str) -> str:
    """A token with its whitespace made visible."""
    marks = {" ": "·", "\n": "⏎", "\t": "⇥"}
    return "".join(marks.get(c, c) for c in token)


# ---- the page ----


def page(
    results: dict,
    swept: dict | None,
    climbed: dict | None,
    ablated: dict[str, dict],
    runs: dict[str, Run],
) -> str:
    """The whole page, as HTML; `ablated` and `runs` are of versions, by name."""
    depends = results.get("depends") or what_it_depends_on(results, results["runs"])
    worth = {version: worths(of) for version, of in ablated.items()}
    rows = compare.summarize(results)
    names = [row["version"] for row in rows]
    with pyplot.rc_context(ink()):
        positions = {}  # section 5 -> the first version that has it so
        for name in names:
            positions.setdefault(sections(name)["5. Model: position"], name)
        biases = [(name, attention_scores(name, 64)) for name in positions.values()]
        drawn = {
            "bits": svg(pictures.draw_bits(results), "bits per byte against time and text"),
            "rates": svg(pictures.draw_rates(results), "learning rates"),
            "beyond": svg(pictures.draw_beyond(results), "bits per byte beyond the context"),
            "biases": [
                svg(draw_scores(name, scores), f"attention scores of {name}")
                for name, scores in biases
                if scores is not None
            ],
        }
        places = next((e["map"] for e in results["exhibits"].values() if e.get("map")), [])
        if places:
            drawn["map"] = svg(draw_map(places), "map of token embeddings")
        points = sweep.summarize(swept["points"]) if swept else []
        if points:
            drawn["sweep"] = svg(pictures.draw_sweep(points), "sweeps")
        if climbed:
            picture = pictures.draw_climb(climb.summarize(climbed))
            drawn["climb"] = svg(picture, "bits per byte of each step from v3 to v4")
    steps = [step(before, after, worth.get(after)) for before, after in zip(names, names[1:])]
    for each in steps:  # a diff of nearly all, as that to v4 is, tells nothing
        is_climb = (each["before"], each["after"]) == (climb.V3, climb.V4)
        each["climb"] = climbed_steps(climbed, worth.get(climb.V4)) if is_climb else []
    whats = list(dict.fromkeys(point["what"] for point in points))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    text = report_data.paragraph(runs)
    data = {
        "coloured": report_data.coloured(runs, text),
        "attention": report_model.attentions(runs, text),
        "mergings": report_data.mergings(runs),
        "learning": report_data.learning(runs),
        "model": report_model.model_of(runs, text),
    }
    scripts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=rows,
        ideas={name: idea(name) for name in names},
        lines={name: len(source(name).splitlines()) for name in names},
        most_bits=max(row["bits_per_byte"] for row in rows),
        steps=steps,
        climb_depends=climb.caption(climbed).replace("`", "") if climbed else "",
        exhibits=results["exhibits"],
        alike=alike(results["exhibits"]),
        prompts=list(next(iter(results["exhibits"].values()))["samples"]),
        depends=depends.replace("`", ""),
        findings=[
            bold(sweep.finding(what, [p for p in points if p["what"] == what])) for what in whats
        ],
        sweep_bytes=swept["bytes"] if swept else 0,
        drawn=drawn,
        most_bits_a_byte=report_data.MOST_BITS,
        data=data,
        scripts=[markupsafe.Markup(script) for script in scripts],
        model_code=highlighted(scripts[1]),
        **data,
        light=HtmlFormatter(style=STYLES["light"]).get_style_defs(".code"),
        dark=HtmlFormatter(style=STYLES["dark"]).get_style_defs(".code"),
    )


def alike(exhibits: dict[str, dict]) -> tuple[str, str]:
    """The first version that goes on in the same way after prompts that end in the same character,
    and that character; nothing if there is none."""
    for version, exhibit in exhibits.items():
        written = exhibit["samples"]
        ends = {prompt[-1:] for prompt in written}
        if len(written) > 1 == len(ends) == len({text[len(p) :] for p, text in written.items()}):
            return version, ends.pop()
    return "", ""


def bold(text: str) -> markupsafe.Markup:
    """Markdown's **bold** as HTML."""
    return markupsafe.Markup(re.sub(r"\*\*(.*?)\*\*", r"<b>\1</b>", str(markupsafe.escape(text))))


def highlighted(script: str) -> markupsafe.Markup:
    """JavaScript as HTML."""
    return markupsafe.Markup(highlight(script, JavascriptLexer(), HtmlFormatter(nowrap=True)))


def own_page(folder: Path) -> str:
    """The page of the finished run in `folder`."""
    results = report_data.results_of(folder)
    runs = report_data.open_runs({results["runs"][0]["version"]: [folder]})
    return page(results, None, None, {}, runs)


def ladder_page(options: Options) -> str:
    """The page of all versions."""
    results = read_results(RESULTS / options.results / "results.json")
    paths = [RESULTS / name / "results.json" for name in (options.sweep, options.climb)]
    swept, climbed = (read_results(path) if path.exists() else None for path in paths)
    if "exhibits" not in results or (swept and "points" not in swept):
        raise UserError("--results is from compare.py, --sweep from sweep.py: see --help")
    if climbed and not any("budget" in run for run in climbed.get("runs", ())):
        raise UserError("--climb is from climb.py: see --help")
    paths = {v: RESULTS / f"ablate-{v[:2]}" / "results.json" for v in (climb.V3, climb.V4)}
    ablated = {version: read_results(path) for version, path in paths.items() if path.exists()}
    runs = report_data.open_runs(report_data.places(options.results))
    return page(results, swept, climbed, ablated, runs)


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options = parse_options(Options, arguments)
        shown = own_page(Path(options.run)) if options.run else ladder_page(options)
        write_text(Path(options.out), shown)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
