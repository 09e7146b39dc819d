"""What is kept of measurements: of which code they are, and results.json, a run a line."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shared.files import ROOT, read_json, write_text
from shared.machine import PROCESSES, machine_facts

# All that a measurement depends on; what only shows it is left out.
CODE = ("v[0-9]*/**/*.py", "shared/**/*.py", "benchmarks/**/*.py", "requirements.txt")
SHOWING = ("benchmarks/all.py", "benchmarks/pictures.py", "benchmarks/report*.py")
DIGITS = 8  # of a number: more than any table shows
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


# ---- the code ----


def git(*arguments: str) -> str:
    """What a git command says of this repository; nothing if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return "" if done.returncode else done.stdout.strip()


def code() -> str:
    """Which code is here: the last commit that changed it. If it has been changed since, or there
    is no git, "-" and a digest of its files follow."""
    paths = [f":(glob){path}" for path in CODE] + [f":(exclude,glob){path}" for path in SHOWING]
    commit = git("log", "-1", "--format=%H", "--", *paths)
    if commit and not git("status", "--porcelain", "--untracked-files=all", "--", *paths):
        return commit
    digest = hashlib.sha256()
    shown = {path for pattern in SHOWING for path in ROOT.glob(pattern)}
    for path in sorted({path for pattern in CODE for path in ROOT.glob(pattern)} - shown):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return f"{commit or 'unknown'}-{digest.hexdigest()[:12]}"


def short_commit(commit: str | None) -> str:
    """The first 12 digits of a commit, and whether there were uncommitted changes."""
    commit, _, changed = (commit or "unknown").partition("-")
    return commit[:12] + (" with changes" if changed else "")


def commits_of(results: object) -> set[str]:
    """The commits that any part of `results` names as its own."""
    parts = results.values() if isinstance(results, dict) else results
    own = {results["commit"] or "unknown"} if "commit" in results else set()
    return own.union(*(commits_of(part) for part in parts if isinstance(part, dict | list)))


def kept(path: Path) -> dict:
    """What an earlier command left in `path`; {} if that is nothing, or of other code than what is
    here now, which a line tells. So it is measured again: one table is of one code."""
    results = read_json(path) if path.exists() else {}
    commits = commits_of(results)
    if commits == {code()}:
        return with_all(results)
    if results:
        of = ", ".join(sorted(map(short_commit, commits))) or "unknown"
        print(f"{path.parent.name}: measured again, the code was another ({of})", flush=True)
    return {}


# ---- the machine ----


def conditions() -> dict:
    """The machine, its memory, the versions of packages, and the code."""
    required = re.findall(r"(?m)^[\w-]+", (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    return machine_facts() | {
        "commit": code(),
        "memory": MEMORY,
        "packages": {name: installed(name) for name in required},
    }


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory_state() -> dict:
    """MB of memory in all and free, of swap in use, and when Linux gives large pages."""
    try:
        lines = (PROCESSES / "meminfo").read_text(encoding="ascii")
    except OSError:
        return {}
    size = {name: int(kb) // 1000 for name, kb in re.findall(r"(?m)^(\w+): +(\d+) kB", lines)}
    pages = re.search(r"\[(\w+)\]", LARGE_PAGES.read_text() if LARGE_PAGES.exists() else "[never]")
    return {
        "total": size["MemTotal"],
        "free": size["MemAvailable"],
        "swapped": size["SwapTotal"] - size["SwapFree"],
        "large_pages": pages[1],
    }


MEMORY = memory_state()  # when the command starts


# ---- results.json ----


def runs_of(results: dict) -> list[dict]:
    """All runs in `results`, without those that diverged, of which only that is known."""
    parts = [results, *results.get("points", ())]
    return [run for part in parts for run in part.get("runs", ()) if "diverged" not in run]


def write_results(path: Path, results: dict) -> None:
    """Write `results`, the command, and its conditions: a run a line, and what all runs have in
    common once, as "all_runs"."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv]  # no folders
    command = shlex.join(["python", f"benchmarks/{Path(words[0]).name}", *words[1:]])
    made = {"command": command, "machine": conditions()}
    save_results(path, made | results | made)


def save_results(path: Path, results: dict) -> None:
    results = json.loads(json.dumps(results), parse_float=lambda x: float(f"{float(x):.{DIGITS}g}"))
    runs = runs_of(results)
    if len(runs) > 1:
        in_all = {name: x for name, x in runs[0].items() if all(r.get(name) == x for r in runs)}
        for run in runs:
            for name in in_all:
                del run[name]
        results = {"all_runs": in_all} | results
    write_text(path, a_line_each(results) + "\n")


def a_line_each(value: object, whole: bool = True) -> str:
    """JSON with a line for each part of the `whole`, and for each object in a list or a mapping of
    objects; but what is within one run stays on its line."""
    if isinstance(value, dict) and value and (whole or "runs" in value or of_objects(value)):
        parts = [f"{json.dumps(key)}: {a_line_each(part, False)}" for key, part in value.items()]
        if whole or of_objects(value):
            return "{\n" + ",\n".join(parts) + "\n}"
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(a_line_each(part, False) for part in value) + "\n]"
    return json.dumps(value)


def of_objects(value: dict) -> bool:
    return all(isinstance(part, dict) for part in value.values())


def read_results(path: Path) -> dict:
    """What `write_results` was given, and the command and its conditions."""
    return with_all(read_json(path))


def with_all(results: dict) -> dict:
    """`results` with "all_runs" in each of them again."""
    if in_all := results.pop("all_runs", {}):
        for run in runs_of(results):
            run |= in_all
    return results
