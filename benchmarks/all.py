"""Every published measurement, one after the other, all on one commit.

    python benchmarks/all.py                        what is not measured on this commit yet
    python benchmarks/all.py --list                 which that is, and how long each takes
    python benchmarks/all.py --only climb scale     some of it, also if it is measured
    python benchmarks/all.py --budget 90            what fits into 90 minutes
    python benchmarks/all.py --readme               measure nothing, write all tables again

Each part is a command of the READMEs, and should have the machine to itself. The code must be
committed; results need not be (records.py: `code`). What each part took, and on which commit, is
kept in results/all.json. If stopped, run it again: a part goes on where it was, as far as its
command can.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import RESULTS
from benchmarks.records import MEMORY, code, git, save_results, short_commit
from shared.command_line import clear_errors, parse_options
from shared.files import ROOT, UserError, read_json

PARTS = {  # folder of results -> command, and minutes where it was not timed yet
    "seconds-120": ("compare.py --seconds 120 --seeds 3", 60),
    "bytes-1000000": ("compare.py --bytes 1000000 --seeds 3", 15),
    "as-shipped": ("compare.py", 30),
    "climb": ("climb.py", 60),
    "ablate-v4": ("sweep.py --ablate --seeds 2", 15),
    "ablate-v3": ("sweep.py --ablate --version v3 --bytes 1000000", 9),
    "sweep-v4": ("sweep.py", 25),
    "larger-v4": ("sweep.py --larger --seeds 2", 30),
    "training": ("training.py --nanogpt ../nanoGPT --processes 1 2", 30),
    "against": ("against.py 485e8b9 --steps 600 750 1250", 25),
    "tokenizers": ("tokenizers.py --all-cores", 30),
    "scale": ("scale.py", 5),
    "faults": ("faults.py", 15),
    "soak": ("soak.py", 15),
    "engines": ("engines.py", 5),
}
WRITTEN = ("benchmarks/results", "benchmarks/README.md", "v4_modern/README.md")


@dataclass
class Options:
    """Measure all that is published, on one commit."""

    only: tuple[str, ...] = ()  # names of parts (--list shows them); also if they are measured
    budget: float = float("inf")  # minutes: a part that would take longer than is left stays out
    list: bool = False  # measure nothing, show the parts
    readme: bool = False  # measure nothing, write tables and README from all results.json
    commit: bool = False  # commit the results of each part once it is measured

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PARTS:
                raise UserError(f"--only {name}: there are {', '.join(PARTS)}")


def known() -> dict[str, dict]:
    """For each part that was begun: the "commit", the "minutes" it took, and if it is "done"."""
    path = RESULTS / "all.json"
    return read_json(path) if path.exists() else {}


def is_done(name: str, commit: str) -> bool:
    return (of := known().get(name, {})).get("done", False) and of["commit"] == commit


def minutes(name: str) -> float:
    """How long the part took when it was last measured, else a guess."""
    return of["minutes"] if (of := known().get(name, {})).get("done") else PARTS[name][1]


def tell(names: Sequence[str], commit: str) -> None:
    """Print a line for each part, and the minutes of those of `names`, which are to be measured."""
    for name, (command, _) in PARTS.items():
        state = "to do" if name in names else "done" if is_done(name, commit) else "left out"
        print(f"{state:8} {minutes(name):5.0f} min  {name:14} python benchmarks/{command}")
    print(f"{len(names)} to do, {sum(map(minutes, names)):,.0f} minutes", flush=True)


def run(name: str, *more: str) -> bool:
    """Whether the part's command succeeded."""
    script, *arguments = shlex.split(PARTS[name][0])
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, *more]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def measure(name: str, commit: str) -> bool:
    """Run a part, write its tables, and note what it took, also if it is stopped."""
    before = known().get(name, {})
    goes_on = before.get("commit") == commit and not before["done"]
    so_far, started, done = before["minutes"] if goes_on else 0, time.monotonic(), False
    try:
        done = run(name) and run(name, "--readme")
    finally:
        took = so_far + (time.monotonic() - started) / 60
        entry = {name: {"commit": commit, "minutes": round(took, 1), "done": done}}
        save_results(RESULTS / "all.json", known() | entry)
    return done


def measure_all(names: Sequence[str], commit: str, options: Options) -> None:
    """Run the parts of these `names`; UserError if some failed, or the code changed meanwhile."""
    ends, failed = time.monotonic() + 60 * options.budget, []
    for number, name in enumerate(names, 1):
        if minutes(name) > (ends - time.monotonic()) / 60:
            print(f"{name}: left out, since it takes {minutes(name):.0f} minutes", flush=True)
            continue
        rest = f"{sum(map(minutes, names[number - 1 :])):,.0f} minutes left"
        print(
            f"---- {name}, {number} of {len(names)}; {rest}, {time.strftime('%H:%M')}", flush=True
        )
        if not measure(name, commit):
            failed.append(name)
        elif options.commit:
            git("add", "--", *WRITTEN)
            git("commit", "-m", f"Measured: {name}", "--", *WRITTEN)
        if code() != commit:
            raise UserError(f"the code was changed while {name} was measured: its results are void")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; what they said stands above")


def main(arguments: list[str] | None = None) -> None:
    with clear_errors():
        options, commit = parse_options(Options, arguments), code()
        if options.readme:
            for name in options.only or PARTS:
                if (RESULTS / name / "results.json").exists() and not run(name, "--readme"):
                    raise UserError(f"the tables of {name} could not be written")
            return
        names = options.only or [name for name in PARTS if not is_done(name, commit)]
        tell(names, commit)
        if options.list:
            return
        if "-" in commit:
            raise UserError("the code has changes: commit them first, so that results say of what")
        print(f"code of {short_commit(commit)}; MB of memory: {MEMORY}", flush=True)
        measure_all(names, commit, options)


if __name__ == "__main__":
    main()
