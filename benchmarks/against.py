"""A version as it is now against what it was at an earlier commit, side by side in one run.

    python benchmarks/against.py 485e8b9                    v4 as shipped, three seeds each
    python benchmarks/against.py 485e8b9 --steps 700 1250   also in fewer steps

Machines change their speed by the minute, so the builds take turns, and what counts is the ratio
within a turn. A run is the whole command on an empty cache: it reads the text, learns its
tokenizer, encodes, trains and scores. The earlier build is a git worktree in runs/against/, and
needs what its own requirements name. If stopped, run the same command again to resume. Table,
picture and results.json go to benchmarks/results/against/; `--readme` measures nothing and writes
benchmarks/README.md, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tyro
from matplotlib.figure import Figure

from benchmarks.command import Shown, run_benchmark
from benchmarks.common import RESULTS, check_name, load_version, markdown, on_machine
from benchmarks.pictures import axes_of
from benchmarks.records import code, kept, write_results
from shared.files import ROOT, UserError, read_json
from shared.terminal import progress

NOW = "now"
WORKTREES = ROOT / "runs" / "against"
KEPT = "steps seconds bits_per_byte torch python cpu threads dtype".split()  # of a summary


@dataclass
class Options:
    """Train a version as it is now and as it was at a commit, in turns."""

    commit: Annotated[str, tyro.conf.Positional] = ""  # to compare with
    version: str = "v4_modern"  # its folder, at both commits
    steps: tuple[int, ...] = ()  # that ours trains for; without any, as many as it ships with
    seeds: int = 3  # turns
    data: str = "pydocs"  # the corpus, as for the versions
    name: str = "against"  # of the folder of results
    readme: bool = False  # measure nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        if not (self.commit or self.readme):
            raise UserError("name the commit to compare with: against.py COMMIT")
        if self.seeds < 1 or min(self.steps, default=1) < 1:
            raise UserError("--seeds and --steps must be 1 or more")


def checked_out(commit: str) -> Path:
    """A folder with the files of `commit`."""
    folder = WORKTREES / commit
    if not folder.exists():
        add = ["git", "worktree", "add", "--force", "--detach", str(folder), commit]
        done = subprocess.run(add, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(
                f"{commit} can't be checked out: {done.stderr.strip().splitlines()[-1]}"
            )
    return folder


# Runs a command and then writes the peak memory of it as the last line. A process's own account
# begins with what the one that started it held; this one holds little.
WATCH = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run(program: Path, out: Path, options: dict[str, object]) -> dict:
    """The whole command on an empty cache: its summary, wall-clock seconds, and peak bytes."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", WATCH, sys.executable, str(program)]
    command += ["--out", str(out), "--device", "cpu"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    out.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{out}.log")
    with tempfile.TemporaryDirectory() as cache, open(log, "wb") as told:
        started = time.perf_counter()
        environment = os.environ | {"LADDER_CACHE": cache}
        status = subprocess.call(command, env=environment, stdout=told, stderr=told)
        whole = time.perf_counter() - started
    if status:
        raise UserError(f"{program} ended with status {status}: see {log}")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * int(log.read_bytes().split()[-1])
    summary = read_json(out / "summary.json")
    kept = {name: summary.get(name) for name in KEPT}
    return kept | {"whole": whole, "peak": peak}


def measure(options: Options) -> dict:
    """All runs, in turns; those of the same question and the same code that are in results.json are
    kept."""
    program = Path(options.version) / "train.py"
    theirs = checked_out(options.commit) / program
    shipped = load_version(options.version).Config().steps
    builds = [(options.commit, theirs, shipped)]
    builds += [(NOW, ROOT / program, steps) for steps in options.steps or [shipped]]
    asked = {"build": options.commit, "version": options.version, "data": options.data}
    path = RESULTS / options.name / "results.json"
    results = kept(path)
    if results.get("asked") != asked:
        results = {"asked": asked, "runs": []}
    done = {(run["build"], run["steps"], run["seed"]) for run in results["runs"]}
    todo = [(*build, seed) for seed in range(options.seeds) for build in builds]
    with progress(total=len(todo), desc="runs") as bar:
        for build, path_of, steps, seed in todo:
            if (build, steps, seed) not in done:
                out = ROOT / "runs" / "against" / f"{build}-{steps}-{seed}"
                given = {"data": options.data, "seed": seed}
                given |= {"steps": steps} if steps != shipped else {}
                of = {"build": build, "seed": seed} | ({"commit": code()} if build == NOW else {})
                results["runs"].append(of | run(path_of, out, given))
                write_results(path, results)
            bar.update()
    return results


def rows_of(results: dict) -> list[dict]:
    """A row per build and number of steps: medians, and medians of the ratios within a turn."""
    runs, rows = results["runs"], []
    theirs = {run["seed"]: run for run in runs if run["build"] != NOW}
    for build, steps in dict.fromkeys((run["build"], run["steps"]) for run in runs):
        ours = [run for run in runs if (run["build"], run["steps"]) == (build, steps)]
        ours = [run | {"step": run["seconds"] / run["steps"]} for run in ours]
        row = {"build": build, "steps": steps}
        for name in ("whole", "step", "peak", "bits_per_byte"):
            row[name] = median(run[name] for run in ours)
            pairs = [(run, theirs[run["seed"]]) for run in ours if run["seed"] in theirs]
            row[f"{name} ratio"] = median(
                run[name] / (other[name] if name in other else other["seconds"] / other["steps"])
                for run, other in pairs
            )
        rows.append(row)
    return rows


def report(results: dict) -> str:
    """The table."""
    of = {"whole": (1, ".1f"), "step": (1000, ".1f"), "peak": (1e-6, ",.0f")}
    of["bits_per_byte"] = (1, ".4f")
    cells = [["build", "steps", "whole command, s", "step, ms", "peak, MB", "bits per byte"]]
    for row in rows_of(results):
        is_now = row["build"] == NOW
        cells.append([row["build"], f"{row['steps']:,}"])
        for name, (unit, form) in of.items():
            ratio = f" ({row[f'{name} ratio']:.2f})" if is_now else ""
            cells[-1].append(f"{row[name] * unit:{form}}{ratio}")
    runs, asked = results["runs"], results["asked"]
    turns = len({run["seed"] for run in runs})
    ours = [run for run in runs if run["build"] == NOW]
    says = (
        f"{asked['version']} on `{asked['data']}`, medians of {turns} turns, a seed each; in "
        f"brackets, of the ratios to {asked['build']} within a turn; {on_machine(*ours)}."
    )
    return f"{markdown(cells)}\n\n{says}"


def draw(results: dict) -> Figure:
    """Bits per byte over the seconds of the whole command, a dot per run."""
    figure, (axes,) = axes_of(1)
    for number, build in enumerate(dict.fromkeys(run["build"] for run in results["runs"])):
        runs = [run for run in results["runs"] if run["build"] == build]
        points = ([run["whole"] for run in runs], [run["bits_per_byte"] for run in runs])
        axes.plot(*points, "os"[number % 2], color=f"C{number}", label=build)
    axes.set_xlabel("seconds of the whole command")
    axes.set_ylabel("bits per byte")
    axes.legend()
    return figure


def show(results: dict) -> Shown:
    return report(results), {"against.png": draw(results)}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, measure, show)


if __name__ == "__main__":
    main()
