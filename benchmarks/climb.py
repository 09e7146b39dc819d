"""From v3 to v4 one idea at a time: what each of them is worth.

    python benchmarks/climb.py                    all steps, at equal time and at equal text
    python benchmarks/climb.py --bytes 1000000    at equal text alone; --seconds 60: at equal time
    python benchmarks/climb.py --show 3           the diff of step 3 against step 2
    python benchmarks/climb.py --write            the steps as programs, in runs/climb/programs/

Sections are interchangeable parts, so a step is v3's file with some of its sections taken from v4:
a whole program, composed here out of the two files, that trains, samples and resumes as they do.
Step 0 is v3, the last is v4. Tables, a picture and results.json go to benchmarks/results/<name>/;
results of the other budget stay there. If stopped, run the same command again to resume.
`--readme` trains nothing: it rewrites the tables, the numbers of v4_modern/README.md, and the
origins in README.md here.
"""

import ast
import difflib
import functools
import json
import re
import shutil
import symtable
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import ablations, pictures
from benchmarks.budgets import Budget, run_all
from benchmarks.command import publish
from benchmarks.common import (
    RESULTS,
    check_name,
    fold,
    has_diverged,
    markdown,
    mean,
    of_seeds,
    plus_minus,
    sections,
    spread,
    under_conditions,
)
from benchmarks.records import kept, read_results, write_results
from shared.command_line import clear_errors, parse_options
from shared.corpora import load_corpus
from shared.files import ROOT, UserError, write_text
from shared.terminal import print_text

V3, V4 = "v3_alibi", "v4_modern"
RUNS = ROOT / "runs"
TOUR = ROOT / V4 / "README.md"
NOT_YET = "Not measured yet."
BUDGETS = {"seconds": 60.0, "bytes": 1e6}  # where neither is given
MEASURED = {"seconds": "at equal time", "bytes": "at equal text"}


# ---- the steps ----


@dataclass(frozen=True)
class Step:
    """What a step takes from v4, besides all that the steps below it took.

    Fields of Config that only sections of v4 use come with them, and those that no section uses any
    more go, as imports do. `functions` of v4 come only now, though their sections came before, and
    so do the lines that call them. `takes` names what must be said: fields that both versions have,
    of which v4's line is taken, fields that only shared/ uses, and imports of one name from two
    places. `sizes` are values of our own, for fields of v4 in a model as small as v3's.
    """

    name: str
    idea: str
    sections: tuple[int, ...] = ()
    functions: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)


STEPS = (
    Step("v3", "v3 as it is"),
    Step(
        "tokenizer",
        "merges of all text, in GPT-2's words; 4,096 tokens, in mapped files",
        sections=(2, 3),
        takes=("vocab_size",),
    ),
    Step("norm", "RMSNorm in place of LayerNorm", sections=(4,)),
    Step("position", "rotary positions in place of ALiBi", sections=(5,)),
    Step(
        "attention",
        "QK-norm, grouped queries, a key-value cache; blocks start as the identity",
        # 8 passes the caches on, and says how weights start, by names and shapes that v3's
        # feed-forward has, too (but for its biases, which are not zero).
        sections=(6, 8, 11),
        sizes={"n_kv_heads": 6},  # as many as v3's heads: none are shared in v4 as it ships, too
    ),
    Step(
        "feed_forward",
        "SwiGLU in place of GELU",
        sections=(7,),
        sizes={"feed_forward_size": 172},  # 3 * 64 * 172 weights, where v3 has 2 * 64 * 256
    ),
    Step(
        "optimizers",
        "Muon and AdamW, a falling rate, clipping, bfloat16",
        sections=(9, 13),
        # Muon's rate was found beside v4's for AdamW. The loop runs in several processes, asks v4's
        # `Run` whether to compile, and reads --init-from, which v4's command line makes sense of.
        takes=("learning_rate", "Run", "compile", "command_line", "parse", "tokenizer"),
    ),
    Step("sizes", "fewer but wider layers, fewer heads, a longer context, smaller batches", (1,)),
    Step(
        "counts",
        "embedding and head start from counted pairs of tokens",
        functions=("start_from_counts",),
    ),
)
# The first whose learning rates are v4's.
RATES_STEP = next(n for n, step in enumerate(STEPS) if "learning_rate" in step.takes)


# ---- composing ----


def compose(number: int) -> str:
    """The text of a step's program. It runs from any folder beside the versions'."""
    reached = STEPS[: number + 1]
    taken = {str(section) for step in reached for section in step.sections}
    takes = {name for step in reached for name in step.takes}
    sizes = {name: size for step in reached for name, size in step.sizes.items()}
    parts = sections(V3)
    parts |= {name: text for name, text in sections(V4).items() if name.split(".")[0] in taken}
    if "1" not in taken:
        used = set(re.findall(r"\bconfig\.(\w+)", "".join(parts.values())))
        parts["1. Config"] = compose_config(used, takes, sizes)
    del parts["Header"]
    for step in STEPS[number + 1 :]:
        for name in step.functions:
            parts = {title: without(name, text) for title, text in parts.items()}
    header = compose_header(number, "".join(parts.values()), takes)
    return header + "".join(f"# ---- {name} ----\n{text}" for name, text in parts.items())


def without(name: str, text: str) -> str:
    """`text` without the function `name`, and without the last branch that calls it."""
    text = re.sub(rf"(?ms)^(@[^\n]*\n)*def {name}\(.*?^(?=\S|\Z)", "", text)
    return re.sub(rf" +else:\n +{name}\(.*\n", "", text)


def compose_config(used: set[str], takes: set[str], sizes: dict[str, int]) -> str:
    """Section 1: v3's fields, and those of v4 that are `used` or in `takes`, in v4's order; those
    that only v3 has as long as they are `used`."""
    (before, ours, after), (_, theirs, _) = (
        split_config(sections(name)["1. Config"]) for name in (V3, V4)
    )
    names = list(theirs)
    for earlier, name in zip([None, *ours], ours):  # v3's own, each behind the one before it
        if name not in names:
            names.insert(names.index(earlier) + 1, name)
    lines = []
    for name in names:
        line = ours.get(name)
        if name in theirs and (name in takes or (line is None and name in used)):
            line = theirs[name]
            if name in sizes:
                line = re.sub(r"= [^#]*[^# ]", f"= {sizes[name]}", line, count=1)
        if line and (name in theirs or name in used):
            lines.append(line)
    return before + "".join(lines) + after


def split_config(text: str) -> tuple[str, dict[str, str], str]:
    """Section 1 as what stands before the fields, the line of each field, and what follows."""
    fields = {match[1]: match[0] for match in re.finditer(r"(?m)^    (\w+): .*\n", text)}
    before, _, _ = text.partition(next(iter(fields.values())))
    _, _, after = text.partition(list(fields.values())[-1])
    return before, fields, after


def compose_header(number: int, code: str, takes: set[str]) -> str:
    """What a step is; the imports of both headers whose names `code` uses, laid out as in both."""
    step, reached = STEPS[number], STEPS[: number + 1]
    taken = ", ".join(str(section) for section in sorted(sum((s.sections for s in reached), ())))
    of_v4 = f"sections {taken} of v4" if taken else "no section of v4 yet"
    about = textwrap.fill(f'"""Step {number} from v3 to v4: {step.idea}.', 100)
    about += f'\n\nv3 with {of_v4}, composed by benchmarks/climb.py.\n"""\n'
    headers = split_header(V3), split_header(V4)
    used = names_used("".join(fixed for fixed, _ in headers[0]) + code)
    blocks = [about]
    for (fixed, ours), (_, theirs) in zip(*headers):
        places = theirs | {
            name: ours[name] for name in ours if not (name in theirs and name in takes)
        }
        blocks.append(fixed + imports(places[name] for name in places if name in used))
    return "\n".join(blocks) + "\n\n"


@functools.cache
def names_used(code: str) -> set[str]:
    """The names that `code` reads from its module, or would: not those of local variables."""
    used, tables = set(), [symtable.symtable(code, "train.py", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        outermost = table.get_type() == "module"
        read = (name for name in table.get_symbols() if name.is_referenced())
        used |= {name.get_name() for name in read if outermost or name.is_global()}
    return used


def split_header(version: str) -> list[tuple[str, dict[str, tuple[str, str]]]]:
    """The header's blocks after the docstring: the statements that import nothing, and for each
    name imported, the module ("" for `import x`) and what is written after `import`."""
    blocks = []
    for block in sections(version)["Header"].split('"""\n')[-1].strip().split("\n\n"):
        fixed, places = "", {}
        for node in ast.parse(block).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    place = getattr(node, "module", ""), ast.unparse(alias)
                    places[alias.asname or alias.name] = place
            else:
                fixed += ast.get_source_segment(block, node) + "\n"
        blocks.append((fixed, places))
    return blocks


def imports(places: Iterable[tuple[str, str]]) -> str:
    """The import statements in the order and the layout that ruff gives them."""
    modules = {}
    for module, name in places:
        modules.setdefault(module, set()).add(name)
    lines = [f"import {name}\n" for name in sorted(modules.pop("", ()))]
    for module, names in sorted(modules.items()):
        ordered = sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
        line = f"from {module} import {', '.join(ordered)}\n"
        if len(line) > 101:  # the line's end counts
            each = "".join(f"    {name},\n" for name in ordered)
            line = f"from {module} import (\n{each})\n"
        lines.append(line)
    return "".join(lines)


def title(number: int) -> str:
    """The name of a step's program, as summaries tell it."""
    return f"climb_{number}_{STEPS[number].name}"


def write_programs(folder: Path) -> dict[str, Path]:
    """Write each step's program to a folder of its name; wherever that is, it finds shared/."""
    programs = {title(number): folder / title(number) / "train.py" for number in range(len(STEPS))}
    for number, path in enumerate(programs.values()):
        here = f"Path({json.dumps(str(ROOT))})"
        write_text(path, compose(number).replace("Path(__file__).resolve().parents[1]", here, 1))
    return programs


def diff(number: int) -> str:
    """What a step changes in the one below."""
    both = number - 1, number
    old, new = (compose(n).splitlines(keepends=True) for n in both)
    return "".join(difflib.unified_diff(old, new, *map(title, both)))


# ---- running ----


@dataclass
class Options(Budget):
    """Climb from v3 to v4 at equal time and at equal text, or at the one that is given."""

    name: str = "climb"  # of the folder of results
    fresh: bool = False  # run again what is finished
    show: int = 0  # train nothing, print the diff of this step against the one below
    write: bool = False  # train nothing, write the steps as programs
    readme: bool = False  # train nothing, write tables and the tour from results.json

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.show < len(STEPS):
            raise UserError(f"--show {self.show}: there are steps 1 to {len(STEPS) - 1}")
        check_name(self.name)


def budgets(options: Options) -> dict[str, Budget]:
    """What is asked for: seconds, bytes, or both."""
    asked = {unit: getattr(options, unit) for unit in BUDGETS if getattr(options, unit)} or BUDGETS
    return {
        unit: Budget(
            **{unit: value}, seeds=options.seeds, data=options.data, threads=options.threads
        )
        for unit, value in asked.items()
    }


def climb(options: Options) -> None:
    """Run what is not finished yet. Each budget replaces its own runs in results.json alone, as
    long as text and code are the same."""
    folder, path = RUNS / options.name, RESULTS / options.name / "results.json"
    programs, corpus = write_programs(folder / "programs"), load_corpus(options.data)
    for unit, budget in budgets(options).items():
        if options.fresh:
            shutil.rmtree(folder / budget.title, ignore_errors=True)
        records = run_all(programs, budget, folder / budget.title, corpus, may_diverge=True)
        runs = [{"budget": unit} | run for run in records]
        about = {name: getattr(corpus, name) for name in ("name", "sha256", "val_bytes")}
        results = kept(path)
        if results.get("corpus") == about:
            runs += [run for run in results["runs"] if run["budget"] != unit]
        else:
            results = {}
        runs.sort(key=lambda run: (list(BUDGETS).index(run["budget"]), run["version"], run["seed"]))
        results |= {"corpus": about, unit: getattr(budget, unit), "runs": runs}
        write_results(path, results)


# ---- reporting ----


def summarize(results: dict) -> list[dict]:
    """A row for each step: its lines, and under "seconds" and "bytes" what was measured, if so."""
    rows, below = [], {}
    for number, step in enumerate(STEPS):
        lines = [line[0] for line in diff(number).splitlines()[2:]] if number else []
        row = {"step": number, "name": title(number), "idea": step.idea}
        row |= {"removed": lines.count("-"), "added": lines.count("+")}
        for unit in BUDGETS:
            runs = [
                run
                for run in results["runs"]
                if (run["budget"], run["version"]) == (unit, title(number))
            ]
            row[unit] = measure(runs, below.get(unit, [])) if runs else None
            below[unit] = runs
        rows.append(row)
    return rows


def measure(runs: list[dict], below: list[dict]) -> dict:
    """Mean and spread of bits per byte, and of the change from the runs of the step `below`, seed
    by seed; omitted if a run diverged."""
    finished = [run for run in runs if "diverged" not in run]
    diverged = sum(map(has_diverged, runs))
    measured = {"diverged": f"{diverged} of {len(runs)}" if diverged else ""}
    for name in ("parameters", "steps", "seconds", "train_bytes"):
        measured[name] = mean(run[name] for run in finished) if finished else None
    if diverged:
        return measured
    bits = [run["bits_per_byte"] for run in runs]
    measured |= {"bits_per_byte": mean(bits), "spread": spread(bits)}
    before = {run["seed"]: run for run in below}
    if below and not any(map(has_diverged, below)):
        changes = [
            run["bits_per_byte"] - before[run["seed"]]["bits_per_byte"]
            for run in runs
            if run["seed"] in before
        ]
        measured |= {"change": mean(changes), "change_spread": spread(changes)}
    return measured


def score(measured: dict | None) -> str:
    """A cell: bits per byte, or that runs diverged."""
    if not measured:
        return ""
    if measured["diverged"]:
        return f"diverged, {measured['diverged']}"
    return f"**{measured['bits_per_byte']:.3f}**{plus_minus(measured['spread'])}"


def change(measured: dict | None) -> str:
    """A cell: how much that is more than the step below."""
    if not measured or "change" not in measured:
        return ""
    return f"{measured['change']:+.3f}{plus_minus(measured['change_spread'])}"


def table(rows: list[dict], results: dict) -> str:
    """What each step is, reaches and buys."""
    units = [unit for unit in BUDGETS if unit in results]
    cells = [["step", "idea", "lines", *sum(([MEASURED[unit], "change"] for unit in units), [])]]
    for row in rows:
        lines = f"-{row['removed']} +{row['added']}" if row["step"] else ""
        measured = [[score(row[unit]), change(row[unit])] for unit in units]
        cells.append([str(row["step"]), row["idea"], lines, *sum(measured, [])])
    return markdown(cells)


def detail_table(rows: list[dict], results: dict) -> str:
    """How large each step is, and what its runs took."""
    units = [unit for unit in BUDGETS if unit in results]
    cells = [["step", "parameters", *(f"{MEASURED[unit]}: steps, seconds, MB" for unit in units)]]
    for row in rows:
        sizes = [row[unit]["parameters"] for unit in units if row[unit]]
        size = f"{sizes[0]:,.0f}" if sizes and sizes[0] else ""
        cells.append([str(row["step"]), size, *(taken(row[unit]) for unit in units)])
    return markdown(cells)


def report(results: dict) -> str:
    """The tables, as they stand in table.md."""
    rows = summarize(results)
    details = fold("Sizes and steps", detail_table(rows, results))
    return "\n\n".join([table(rows, results), caption(results), details])


def taken(measured: dict | None) -> str:
    """A cell: steps, seconds and megabytes of text of the mean run."""
    if not measured or measured["steps"] is None:
        return ""
    steps, seconds, seen = (measured[name] for name in ("steps", "seconds", "train_bytes"))
    return f"{steps:,.0f}, {seconds:.1f}, {seen / 1e6:.2f}"


def caption(results: dict) -> str:
    """What the numbers depend on."""
    runs = [run for run in results["runs"] if "diverged" not in run]
    told = {
        "seconds": f"equal time is {results.get('seconds', 0):g} seconds of training",
        "bytes": f"equal text is {results.get('bytes', 0) / 1e6:g} MB",
    }
    products, kinds = "", {}
    for run in sorted(runs, key=lambda run: run["version"]):  # by step
        kinds.setdefault(run["dtype"], run["version"].split("_")[1])
    for dtype, step in kinds.items():
        products += f", from step {step} on {dtype}" if products else dtype
    limits = ", ".join(told[unit] for unit in BUDGETS if unit in results)
    return (
        f"{limits[0].upper()}{limits[1:]}; {of_seeds(runs)}, "
        f"{under_conditions(results['corpus'], runs, products)} Change: to the step below, seed by "
        "seed. No rates were tuned for the steps between: they are v3's, and v4's from step "
        f"{RATES_STEP} on."
    )


# ---- the tour ----


def worth(name: str) -> str:
    """What a block of the tour says of `climb`, the table; of `climb/3`, what step 3 bought; of
    `ablate-v4/qk_norm`, what v4 loses without its QK-norm."""
    folder, _, part = name.partition("/")
    path = RESULTS / folder / "results.json"
    results = read_results(path) if path.exists() else None
    if not part:
        return f"{table(summarize(results), results)}\n\n{caption(results)}" if results else NOT_YET
    if folder != "climb":
        return f"- {worth_in_v4(results, ablations.ABLATIONS[part]) if results else NOT_YET}"
    told = bought(summarize(results)[int(part)]) if results else ""
    return f"- In bits per byte: {told}." if told else f"- {NOT_YET}"


def bought(row: dict) -> str:
    """How a step's score differs from that of the step below; nothing where it was not measured."""
    measured = {unit: row[unit] for unit in BUDGETS if row[unit]}
    return ", ".join(f"{MEASURED[unit]} {change(m) or score(m)}" for unit, m in measured.items())


def worth_in_v4(results: dict, ablation: ablations.Ablation) -> str:
    """What v4 loses without a part of it, in a sentence."""
    names = ablation.part, ablation.instead
    rows = ablations.summarize(results)
    row = next((row for row in rows if (row["without"], row["instead"]) == names), None)
    if row is None:
        return NOT_YET
    lost = f"{row['diverged']} runs diverged"
    if not row["diverged"]:
        lost = f"{row['cost']:+.3f}{plus_minus(row['cost_spread'])}"
    seen = f"{results['bytes'] / 1e6:g} MB of text"
    return f"In v4, {ablation.part} → {ablation.instead}: {lost} at {seen}."


def tour(text: str) -> str:
    """The tour with its blocks written anew: what each step or part named there is worth."""
    return re.sub(
        r"(?s)(<!-- results ((?:climb|ablate)[^>]*) -->\n).*?(<!-- /results -->)",
        lambda block: block[1] + "".join(worth(n) + "\n" for n in block[2].split()) + block[3],
        text,
    )


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options = parse_options(Options, arguments)
        if options.show:
            print_text(diff(options.show), end="")
            return
        if options.write:
            for path in write_programs(RUNS / options.name / "programs").values():
                print(path)
            return
        if options.readme:
            write_text(TOUR, tour(TOUR.read_text(encoding="utf-8")))
        else:
            climb(options)
        results = read_results(RESULTS / options.name / "results.json")
        figures = {"climb.png": pictures.draw_climb(summarize(results))}
        publish(RESULTS / options.name, report(results), figures, options.readme)


if __name__ == "__main__":
    main()
