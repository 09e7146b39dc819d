"""The experiments that people run first: learning rate, batch size, vocabulary, context.

    python benchmarks/sweep.py                                   all four, of v4
    python benchmarks/sweep.py --version v2 --what batch_size    one, of another version
    python benchmarks/sweep.py --ablate                          v4 without each of its parts
    python benchmarks/sweep.py --ablate --version v3             v3, likewise
    python benchmarks/sweep.py --larger                          its rates in longer, larger runs

Each takes the version as it ships, changes one thing by several factors, and trains on the same
number of bytes of text (`--larger` also on ten times as many). The ablations are in ablations.py.
Finished runs are not run again. `--readme` trains nothing and rewrites the tables from results.json
(also those in README.md here).
"""

import json
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import ablations, pictures
from benchmarks.command import Shown, run_benchmark
from benchmarks.common import (
    STOP,
    VERSIONS,
    check_alike,
    check_name,
    fold,
    has_diverged,
    load_version,
    markdown,
    mean,
    pick_versions,
    plus_minus,
    spread,
    steps_for_bytes,
    train_or_diverge,
    what_it_depends_on,
)
from shared.corpora import load_corpus
from shared.files import ROOT, UserError, json_sha256
from shared.terminal import progress

FACTORS = {
    "learning_rate": (0.2, 1, 5, 25, 125),  # all rates of the version together
    "batch_size": (0.25, 0.5, 1, 2, 4),
    "vocab_size": (0.25, 0.5, 1, 2, 4),
    "context_length": (0.25, 0.5, 1, 2, 4),  # batch size changes inversely: as many tokens per step
}
# v4's rates are meant to suit any length and size, by the rule in its file: no factor should beat
# 1, whatever is ten times as large. These options are changed ("bytes" of text: by this factor).
LARGER = {
    "learning rate, short runs": {},
    "learning rate, ten times as long": {"bytes": 10},
    "learning rate, ten times as large": {
        "width": 448,
        "n_layers": 5,
        "n_heads": 7,
        "n_kv_heads": 7,
        "feed_forward_size": 1200,
    },
}
LARGER_FACTORS = (0.5, 1, 2)


@dataclass
class Options:
    """Change one setting of a version at a time and see how it affects bits per byte."""

    version: str = VERSIONS[-1]  # which to sweep
    what: tuple[str, ...] = ()  # learning_rate batch_size vocab_size context_length; all if none
    ablate: bool = False  # take parts away instead; --what: muon rope ... (ablations.py)
    larger: bool = False  # only the rates, in short and in longer runs, and in a larger model
    bytes: float = 400_000  # of training text for each run
    seeds: int = 3  # runs of each value
    data: str = "pydocs"  # the corpus, as for the versions
    jobs: int = os.cpu_count() or 1  # runs at a time
    threads: int = 1  # CPU threads of each
    name: str = ""  # of the folder of results; sweep-v4, ablate-v4 or larger-v4 if not given
    fresh: bool = False  # run again what is finished
    readme: bool = False  # train nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        matching = pick_versions([self.version])
        if len(matching) != 1:
            raise UserError(f"--version {self.version}: one of {', '.join(VERSIONS)}")
        self.version = matching[0]
        parts = ablations.of_version(self.version)
        if self.ablate and not parts:
            versions = sorted({part.version for part in ablations.ABLATIONS.values()})
            raise UserError(f"--ablate only removes parts of {' and '.join(versions)}")
        if self.larger and (self.ablate or self.what or self.version != VERSIONS[-1]):
            raise UserError(f"--larger is only for {VERSIONS[-1]}, without --ablate and --what")
        known = parts if self.ablate else FACTORS
        for what in self.what:
            if what not in known:
                raise UserError(f"--what {what}: there are {', '.join(known)}")
        if not 0 < self.bytes < math.inf or min(self.seeds, self.jobs, self.threads) < 1:
            raise UserError("--bytes, --seeds, --jobs and --threads must be more than 0")
        kind = "ablate" if self.ablate else "larger" if self.larger else "sweep"
        self.name = self.name or f"{kind}-{self.version.split('_')[0]}"
        check_name(self.name)


def changed(what: str, factor: float, config: object) -> dict[str, float]:
    """The options that differ from `config`, the version's own, when `what` is times `factor`."""
    if what == "learning_rate":
        names = [n for n in vars(config) if n.endswith("learning_rate") and "final" not in n]
        options = {name: float(f"{getattr(config, name) * factor:.3g}") for name in names}
    elif what == "context_length":
        options = {
            "context_length": round(config.context_length * factor),
            "batch_size": max(1, round(config.batch_size / factor)),
        }
    else:
        least = {"vocab_size": 257}.get(what, 1)  # the bytes and <|endoftext|>
        options = {what: max(least, round(getattr(config, what) * factor))}
    return {name: value for name, value in options.items() if value != getattr(config, name)}


def sweep(options: Options) -> dict:
    """Run what is not finished yet, several at a time; what goes into results.json."""
    folder = ROOT / "runs" / options.name
    make_plan = plan_ablations if options.ablate else plan_larger if options.larger else plan
    points, corpus = make_plan(options), load_corpus(options.data)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    runs = {}  # a run that several experiments share, the version as it is, is run once
    for point in points:
        for seed in range(options.seeds):
            settings = point["options"] | {"seed": seed}
            runs[json.dumps(settings)] = settings
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {
            pool.submit(run_one, options.version, folder, settings, options.threads): key
            for key, settings in runs.items()
        }
        try:
            for job in progress(as_completed(jobs), total=len(jobs), desc="runs"):
                runs[jobs[job]] = job.result()
                check_alike([run for run in runs.values() if "version" in run], corpus)
        except BaseException:
            STOP.set()
            pool.shutdown(cancel_futures=True)  # when all have ended
            raise
        finally:
            STOP.clear()
    for point in points:
        keys = [json.dumps(point["options"] | {"seed": seed}) for seed in range(options.seeds)]
        point["runs"] = [runs[key] for key in keys]
    return {"version": options.version, "bytes": options.bytes, "seconds": 0, "points": points}


def plan(options: Options) -> list[dict]:
    """Each value to try: `what` it changes, the `value`, its `factor`, and the run's `options`."""
    config = load_version(options.version).Config()
    points = []
    for what in options.what or FACTORS:
        if not getattr(config, what, 0):
            print(f"{options.version} has no --{what.replace('_', '-')}: left out", flush=True)
            continue
        for factor in progress(FACTORS[what], desc=f"preparing {what}"):
            settings = full_settings(options, changed(what, factor, config))
            value = settings.get(what, getattr(config, what))
            points.append({"what": what, "value": value, "factor": factor, "options": settings})
    if not points:
        raise UserError(f"{options.version} has none of {', '.join(options.what)}")
    return points


def plan_ablations(options: Options) -> list[dict]:
    """The version as it is, then without each part: `what` is away, and the `options` of a run."""
    config = load_version(options.version).Config()
    points = [{"what": "", "options": full_settings(options, {})}]
    parts = options.what or ablations.of_version(options.version)
    for what in progress(parts, desc="preparing"):
        changes, module = ablations.ABLATIONS[what].options(config), ablations.ablated(what)
        settings = full_settings(options, changes, module=module)
        points.append({"what": what, "options": settings | {"ablate": what}})
    return points


def plan_larger(options: Options) -> list[dict]:
    """The rates times each factor: in short runs, in longer ones, and in a larger model."""
    config = load_version(options.version).Config()
    points = []
    for what, larger in progress(LARGER.items(), desc="preparing"):
        changes = {name: value for name, value in larger.items() if name != "bytes"}
        for factor in LARGER_FACTORS:
            settings = changes | changed("learning_rate", factor, config)
            settings = full_settings(options, settings, times=larger.get("bytes", 1))
            value = settings.get("learning_rate", config.learning_rate)
            points.append({"what": what, "value": value, "factor": factor, "options": settings})
    return points


def full_settings(
    options: Options,
    changes: dict[str, object],
    times: float = 1,
    module: ModuleType | None = None,
) -> dict[str, object]:
    """The options of a run of `module` (None: the version as it is): the `changes`, and the steps
    in which it sees its share of text, or `times` as much."""
    settings = {"data": options.data} | changes
    module = module or load_version(options.version)
    steps = steps_for_bytes(module, options.bytes * times, settings)
    return settings | {"steps": steps, "evaluate_every": steps}


def run_one(version: str, folder: Path, settings: dict[str, object], threads: int) -> dict:
    """The record of a run, or {"diverged": why} if its loss became non-finite.

    The setting "ablate" is not an option of train.py but of the program that patches it.
    """
    program = Path(ablations.__file__) if "ablate" in settings else None
    out = folder / f"{version}-{json_sha256([settings, threads])[:12]}"
    return train_or_diverge(version, out, settings, threads, program=program)


# ---- reporting ----


def summarize(points: list[dict]) -> list[dict]:
    """For each point, mean and spread of bits per byte; None if any of its runs diverged."""
    rows = []
    for point in points:
        diverged = sum(map(has_diverged, point["runs"]))
        finished = [run for run in point["runs"] if "diverged" not in run]
        bits = [run["bits_per_byte"] for run in finished]
        rows.append(
            {
                "what": point["what"],
                "value": point["value"],
                "factor": point["factor"],
                "steps": point["options"]["steps"],
                "parameters": finished[0]["parameters"] if finished else None,
                "seconds": mean(run["seconds"] for run in finished) if finished else None,
                "diverged": f"{diverged} of {len(point['runs'])}" if diverged else "",
                "bits_per_byte": None if diverged else mean(bits),
                "spread": None if diverged else spread(bits),
            }
        )
    return rows


def finding(what: str, rows: list[dict]) -> str:
    """What an experiment shows, as a sentence with its numbers."""
    whole = [row for row in rows if not row["diverged"]]
    if not whole:
        return f"**{title(what)}**: every value diverged."
    best = min(whole, key=lambda row: row["bits_per_byte"])
    others = [
        f"{row['value']:g} diverges ({row['diverged']} seeds)"
        if row["diverged"]
        else f"{row['value']:g} costs {row['bits_per_byte'] / best['bits_per_byte'] - 1:+.1%}"
        for row in rows
        if row is not best
    ]
    return (
        f"**{title(what)}**: best at {best['value']:g}, {best['bits_per_byte']:.3f}"
        f"{plus_minus(best['spread'])} bits per byte; {', '.join(others)}."
    )


def title(what: str) -> str:
    return what.replace("_", " ").replace("vocab size", "vocabulary").capitalize()


def table(what: str, rows: list[dict]) -> str:
    head = [title(what).lower(), "× default", "steps", "parameters", "bits per byte"]
    cells = [head]
    for row in rows:
        bits = row["diverged"] and f"diverged, {row['diverged']}"
        cells.append(
            [
                f"{row['value']:g}",
                f"{row['factor']:g}",
                f"{row['steps']:,}",
                f"{row['parameters']:,}" if row["parameters"] else "",
                bits or f"**{row['bits_per_byte']:.3f}**{plus_minus(row['spread'])}",
            ]
        )
    return markdown(cells)


def report(results: dict) -> str:
    """The findings, and the tables behind them, as they stand in table.md."""
    rows = summarize(results["points"])
    whats = list(dict.fromkeys(row["what"] for row in rows))
    of = {what: [row for row in rows if row["what"] == what] for what in whats}
    findings = "\n".join(f"- {finding(what, of[what])}" for what in whats)
    tables = "\n\n".join(table(what, of[what]) for what in whats)
    runs = [run for point in results["points"] for run in point["runs"] if "diverged" not in run]
    depends = what_it_depends_on(results, runs)
    if any("bytes" in LARGER.get(what, {}) for what in whats):
        depends += " Ten times as long: ten times the steps, on ten times the text."
    if "diverged" in tables:
        depends += " Diverged: the loss is not finite, or at the end above an untrained model's."
    return "\n\n".join([findings, depends, fold("The tables", tables)])


def show(results: dict) -> Shown:
    if results["points"][0]["what"]:
        return report(results), {"sweep.png": pictures.draw_sweep(summarize(results["points"]))}
    ablated = ablations.summarize(results)  # what is away, which at first is nothing
    return ablations.report(results), {"ablate.png": pictures.draw_ablations(ablated)}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, sweep, show)


if __name__ == "__main__":
    main()
