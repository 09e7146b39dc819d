"""A long run of a tiny model: does it grow, leave files open, or slow down?

    python benchmarks/soak.py                     every version, 20,000 steps
    python benchmarks/soak.py --versions v4 --steps 100000

Trains with evaluation and checkpoints, generates a sample now and then, and measures the process
between steps. Tables, picture and results.json go to benchmarks/results/soak/; `--readme` trains
nothing and rewrites them from results.json, and the origins in README.md here. Memory and open
files are read from Linux's /proc.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import pictures
from benchmarks.command import Shown, run_benchmark
from benchmarks.common import check_name, load_version, markdown, on_machine, pick_versions
from benchmarks.faults import SIZES, Subject, some_text
from shared.files import ROOT, UserError, read_json, write_json
from shared.run import Run
from shared.terminal import progress

POINTS = 100  # measurements of a run
SMALLER = SIZES | {"n_layers": 1, "width": 16, "head_size": 8, "feed_forward_size": 24}
WARM_UP = 0.1  # the first part of a run, left out of the slope: allocators need to settle


@dataclass
class Options:
    """Train tiny models for a long time and measure the process."""

    steps: int = 20_000  # of each run
    versions: tuple[str, ...] = ()  # v2 v4; all if not given
    name: str = "soak"  # of the folder of results
    readme: bool = False  # train nothing, write tables and picture from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.steps < POINTS:
            raise UserError(f"--steps {self.steps} must be at least {POINTS}")


def measure_child() -> None:
    """Run a version's main in a child process, measured between its steps; at the end, write a JSON
    file of the measurements. Samples are generated now and then."""
    version, steps, path, *arguments = sys.argv[1:]
    module, every = load_version(version), int(steps) // POINTS
    log_step, points = Run.log_step, []
    started = time.process_time()

    def measured(run: Run, *rest: object) -> None:
        nonlocal started
        log_step(run, *rest)
        if run.step % every == 0:
            point = {"step": run.step, "step_seconds": (time.process_time() - started) / every}
            points.append(point | process_state())
            if run.step % (10 * every) == 0:
                "".join(run.write(module.generate))
            started = time.process_time()

    Run.log_step = measured
    before = process_state()["handles"]
    module.main(arguments)
    courses = {name: [point[name] for point in points] for name in points[0]}
    write_json(path, courses | {"left_open": process_state()["handles"] - before})


def process_state() -> dict[str, int]:
    """This process's bytes of memory and open files, except the fonts matplotlib keeps open."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    handles = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    handles = [path for path in handles if not path.endswith(".ttf")]
    return {"memory": pages * os.sysconf("SC_PAGE_SIZE"), "handles": len(handles)}


def soak(options: Options) -> dict:
    """Train every version in a process of its own; what goes into results.json."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="ladder-soak-") as name:
        folder = Path(name)
        text = some_text(folder, 20_000)
        for version in progress(pick_versions(options.versions), unit="version"):
            subject = Subject(version, text, folder, SMALLER)
            every = options.steps // POINTS
            arguments = subject.arguments(
                folder / version, steps=options.steps, evaluate_every=every, checkpoint_every=every
            )
            code = "from benchmarks import soak; soak.measure_child()"
            result = folder / f"{version}.json"
            command = [sys.executable, "-c", code, version, str(options.steps), str(result)]
            environment = os.environ | {"LADDER_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
            )
            if done.returncode:
                raise UserError(f"{version} ended with status {done.returncode}")
            runs.append({"version": version} | read_json(result))
    return {"steps": options.steps, "runs": runs}


def slope(run: dict) -> float:
    """Bytes of memory that each step adds: least squares, after the warm-up."""
    first = int(WARM_UP * len(run["step"]))
    return float(np.polyfit(run["step"][first:], run["memory"][first:], 1)[0])


def tenth_medians(step_seconds: Sequence[float]) -> tuple[float, float]:
    """The median CPU time of a step, in seconds, in the first and in the last tenth of a run."""
    tenth = max(1, len(step_seconds) // 10)
    parts = step_seconds[1 : 1 + tenth], step_seconds[-tenth:]  # the first imports and warms up
    first, last = (float(np.median(part)) for part in parts)
    return first, last


def report(results: dict) -> str:
    """The table, as it stands in table.md."""
    head = ["version", "memory, MB", "grows by, bytes a step", "handles", "left open"]
    rows = [[*head, "CPU ms a step, first tenth", "last tenth"]]
    for run in results["runs"]:
        memory, handles = run["memory"], run["handles"]
        settled = memory[int(WARM_UP * len(memory))]
        rows.append(
            [
                run["version"],
                f"{settled / 1e6:.1f} → {memory[-1] / 1e6:.1f}",
                f"{slope(run):.0f}",
                " to ".join(map(str, dict.fromkeys((min(handles), max(handles))))),
                str(run["left_open"]),
                *(f"{1000 * seconds:.2f}" for seconds in tenth_medians(run["step_seconds"])),
            ]
        )
    depends = (
        f"{results['steps']:,} steps of a tiny model with {POINTS} evaluations and checkpoints, "
        f"whose time is in a step's, and {POINTS // 10} samples. loss.png is first redrawn after a "
        "minute: that keeps some MB, once. "
        f"{on_machine(results['machine'] | {'threads': 1})}."
    )
    return f"{markdown(rows)}\n\n{depends}"


def show(results: dict) -> Shown:
    return report(results), {"soak.png": pictures.draw_soak(results["runs"])}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, soak, show)


if __name__ == "__main__":
    main()
