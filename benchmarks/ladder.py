"""The README's table: every version as it ships, each seed in its own process.

    python benchmarks/ladder.py

Runs `train.py` of each version with its defaults on `pydocs`, writes results.json, table.md and
v4's loss curve to benchmarks/results/ladder/, and the table into the README between its markers.
A finished run is not run again; delete its folder below runs/ladder/ for that.
"""

import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from shared.files import write_json, write_text

VERSIONS = sorted(path.parent.name for path in ROOT.glob("v[0-9]*_*/train.py"))
RESULTS = ROOT / "benchmarks" / "results" / "ladder"
MARKERS = ("<!-- ladder: written by benchmarks/ladder.py -->", "<!-- /ladder -->")


@dataclass
class Options:
    """Train all versions as they ship and write the README's table."""

    seeds: int = 3  # runs of each version
    render: bool = False  # train nothing, write the table from the committed results.json
    runs: str = str(ROOT / "runs" / "ladder")  # where the runs go


def run(version: str, seed: int, folder: Path) -> dict:
    """The summary of one run, trained now unless it is there."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, str(ROOT / version / "train.py")]
        subprocess.run([*command, "--seed", str(seed), "--out", str(folder)], check=True)
    return json.loads(summary.read_text(encoding="utf-8"))


def idea(version: str) -> str:
    """What the version says of itself in the first line of its file."""
    source = (ROOT / version / "train.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0].partition(": ")[2].rstrip(".")


def table(summaries: list[dict]) -> str:
    """One row a version: mean and standard deviation over its seeds."""
    rows = [
        "| version | idea | bits per byte | parameters | lines | diff |",
        "|---|---|---|---|---|---|",
    ]
    versions = sorted({summary["version"] for summary in summaries})
    for before, version in zip([None, *versions], versions):
        runs = [summary for summary in summaries if summary["version"] == version]
        bits = [summary["bits_per_byte"] for summary in runs]
        spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
        lines = len((ROOT / version / "train.py").read_text(encoding="utf-8").splitlines())
        diff = f"`diff {before}/train.py {version}/train.py`" if before else ""
        rows.append(
            f"| [{version}]({version}/train.py) | {idea(version)} "
            f"| **{statistics.mean(bits):.3f}** ± {spread:.3f} | {runs[0]['parameters']:,} "
            f"| {lines} | {diff} |"
        )
    return "\n".join(rows)


def report(summaries: list[dict]) -> str:
    """The table, and what its numbers depend on."""
    first = summaries[0]
    seeds = len({summary["seed"] for summary in summaries})
    commits = ", ".join(sorted({str(summary["commit"])[:12] for summary in summaries}))
    return (
        f"{table(summaries)}\n\n"
        f"Mean ± standard deviation of {seeds} seeds, the whole validation split of "
        f"`{first['corpus']['name']}` ({first['corpus']['val_bytes']:,} bytes, Python "
        f"{first['python']}, sha256 {first['corpus']['sha256'][:12]}), {first['threads']} threads, "
        f"torch {first['torch']}, commit {commits}."
    )


def readme_with(text: str, readme: str) -> str:
    """`readme` with `text` between its markers."""
    begin, end = map(re.escape, MARKERS)
    block = "\n".join((MARKERS[0], text, MARKERS[1]))
    return re.sub(rf"(?s){begin}.*{end}", lambda _: block, readme)


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    if not options.render:
        summaries = [
            run(version, seed, Path(options.runs) / f"{version}-{seed}")
            for seed in range(options.seeds)
            for version in VERSIONS
        ]
        write_json(RESULTS / "results.json", summaries)
        shutil.copy(Path(options.runs) / f"{VERSIONS[-1]}-0" / "loss.png", RESULTS / "v4_loss.png")
    text = report(json.loads((RESULTS / "results.json").read_text(encoding="utf-8")))
    write_text(RESULTS / "table.md", text + "\n")
    readme = ROOT / "README.md"
    write_text(readme, readme_with(text, readme.read_text(encoding="utf-8")))
    print(text)


if __name__ == "__main__":
    main()
