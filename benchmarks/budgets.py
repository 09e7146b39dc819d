"""Programs at an equal budget: as many steps as some seconds of training on this machine, or some
bytes of text, allow each. What compare.py and climb.py share."""

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import (
    check_alike,
    load_program,
    read_rows,
    steps_for_bytes,
    train,
    train_or_diverge,
)
from benchmarks.records import code, kept
from shared.corpora import Corpus
from shared.files import UserError, write_json
from shared.terminal import progress

MISSED = 0.1  # a run may miss its budget of seconds by this fraction


@dataclass
class Budget:
    """What each run may use: seconds or bytes; with neither, the steps that it ships with."""

    seconds: float = 0  # of training for each run on this machine
    bytes: float = 0  # of training text for each run
    seeds: int = 3  # runs of each program
    data: str = "pydocs"  # the corpus, as for the versions
    threads: int = 0  # CPU threads of a run; 0: as torch chooses

    def __post_init__(self) -> None:
        if not (0 <= self.seconds < math.inf and 0 <= self.bytes < math.inf):
            raise UserError("--seconds and --bytes are numbers of 0 or more")
        if self.seeds < 1 or self.threads < 0:
            raise UserError("--seeds must be 1 or more, --threads 0 or more")

    @property
    def title(self) -> str:
        """A name for the folder of what is run at this budget."""
        if self.seconds:
            return f"seconds-{self.seconds:g}"
        return f"bytes-{self.bytes:.0f}" if self.bytes else "as-shipped"


def plan(programs: dict[str, Path], budget: Budget, folder: Path) -> dict[str, dict[str, object]]:
    """The options of each program's runs. They are kept in `folder`, so that a comparison that is
    resumed uses the same ones, as long as the code is the same."""
    path = folder / "plan.json"
    asked = {name: getattr(budget, name) for name in ("seconds", "bytes", "data", "threads")}
    planned = kept(path) or {"asked": asked, "commit": code(), "runs": {}}
    if planned["asked"] != asked:
        raise UserError(
            f"{folder} is of {planned['asked']}, not {asked}: use --fresh or another --name"
        )
    for version, program in programs.items():
        if version not in planned["runs"]:
            planned["runs"][version] = {"data": budget.data}
            if budget.seconds or budget.bytes:
                steps = choose_steps(version, program, budget, folder)
                planned["runs"][version] |= lasting(steps)
            write_json(path, planned)
    return {version: planned["runs"][version] for version in programs}


def lasting(steps: int) -> dict[str, object]:
    """The options for a run of this many steps."""
    return {"steps": steps, "evaluate_every": math.ceil(steps / 10)}


def choose_steps(version: str, program: Path, budget: Budget, folder: Path) -> int:
    """The steps that the budget allows the program."""
    if budget.bytes:
        return steps_for_bytes(load_program(program), budget.bytes, {"data": budget.data})
    steps = max(40, load_program(program).Config().steps // 10)
    for share in (1 / 4, 1):  # a short run tells how long a quarter takes, that the whole
        few = {"data": budget.data, "steps": steps, "evaluate_every": steps}
        print(f"{version}: timing {steps:,} steps", flush=True)
        out = folder / f"{version}-timing-{share:g}"
        train(version, out, few, budget.threads, program=program)
        steps = max(20, round(share * budget.seconds / step_seconds(out)))
    return steps


def step_seconds(folder: Path) -> float:
    """The mean time of a step in a run, without the first ten, which warm up."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "train_loss" in row]
    return (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])


def run_one(
    run: Callable[..., dict],
    out: Path,
    seed: int,
    settings: dict[str, object],
    budget: Budget,
) -> dict:
    """What `run(out, options)`, a training, returns. If the first seed misses the budget of
    seconds, it is run again with the number of steps that its time suggests. The other seeds take
    as many steps (`settings`), so that they differ only by seed, not by how busy the machine was.
    """
    record = run(out, settings | {"seed": seed})
    if budget.seconds and seed == 0 and "diverged" not in record:
        if abs(record["seconds"] / budget.seconds - 1) > MISSED:
            print(f"{out.name}: {record['seconds']:.1f} s, once more", flush=True)
            settings |= lasting(round(record["steps"] * budget.seconds / record["seconds"]))
            shutil.rmtree(out)
            record = run(out, settings | {"seed": seed})
        if "diverged" not in record:
            settings |= lasting(record["steps"])  # also if the comparison is resumed
    return record


def run_all(
    programs: dict[str, Path],
    budget: Budget,
    folder: Path,
    corpus: Corpus,
    may_diverge: bool = False,
) -> list[dict]:
    """The record of each run, seed by seed, so that early results cover all programs.

    If they `may_diverge`, a run that did is {"version": ..., "seed": ..., "diverged": why}.
    """
    runs = plan(programs, budget, folder)
    todo = [(version, seed) for seed in range(budget.seeds) for version in runs]
    start = train_or_diverge if may_diverge else train
    records = []
    shown = "{l_bar}{bar}| {elapsed}<{remaining}"
    with progress(total=len(todo), desc="runs", unit="runs", bar_format=shown) as bar:
        for done, (version, seed) in enumerate(todo):
            bar.set_description_str(f"{version}, seed {seed}")
            program, settings = programs[version], runs[version]
            steps = settings.get("steps") or load_program(program).Config().steps

            def show(step: int, done: int = done, steps: int = steps) -> None:
                bar.n = round(done + step / steps, 1)
                bar.refresh()

            run = partial(start, version, threads=budget.threads, progress=show, program=program)
            last = run_one(run, folder / f"{version}-{seed}", seed, settings, budget)
            records.append({"version": version, "seed": seed} | last)
            check_alike([record for record in records if "diverged" not in record], corpus)
            said = last.get("diverged") or (
                f"{last['steps']:,} steps in {last['seconds']:.1f} s of training, "
                f"{last['bits_per_byte']:.4f} bits per byte"
            )
            bar.write(f"{version}, seed {seed}: {said}", file=sys.stdout)
            show(steps)
    return records
