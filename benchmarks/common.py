"""What the benchmarks share: the versions, runs started as a user would, and tables."""

import ast
import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from benchmarks.records import code, commits_of, kept, read_results, short_commit
from shared import command_line, fast_bpe
from shared.corpora import Corpus
from shared.files import ROOT, UserError, read_json, write_json, write_text
from shared.model_table import build
from shared.run import Run

VERSIONS = sorted(path.parent.name for path in ROOT.glob("v[0-9]*_*/train.py"))
RESULTS = ROOT / "benchmarks" / "results"
README = RESULTS.parent / "README.md"  # which shows them all
KEPT = "version seed steps seconds train_bytes val_loss bits_per_byte scored_bytes parameters"
KEPT = f"{KEPT} vocab_size corpus dtype torch python cpu threads commit".split()  # of a summary
RATES = 50  # learning rates kept of a run
DIVERGED = ("the loss is", "the weights are not finite")  # how train.py tells non-finite numbers
COMMITS = r"commit (?:(?:[0-9a-f]{12}|unknown)(?: with changes)?(?:, )?)+"  # in a caption
STOP = threading.Event()  # when set, all current runs end


class RunFailed(UserError):
    """A run ended with an error; `said` is its last line."""

    def __init__(self, version: str, status: int, said: str, log: Path) -> None:
        super().__init__(f"{version} ended with status {status}: {said} ({log})")
        self.said = said


def program_of(version: str) -> Path:
    """The version's file."""
    return ROOT / version / "train.py"


def load_version(name: str, copy: str = "") -> ModuleType:
    """The version's module; for each `copy`, another one."""
    return load_program(program_of(name), copy)


def load_program(path: Path, copy: str = "") -> ModuleType:
    """The module at `path`, named after its folder, since all such files are called train.py."""
    key = f"ladder_{path.parent.name}{copy}"
    if getattr(sys.modules.get(key), "__file__", "") != str(path):
        spec = importlib.util.spec_from_file_location(key, path)
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


def kind_of_v4(size: int, cores: int) -> type:
    """The tokenizer that v4 takes for a text of `size` bytes, in words of usual length."""
    v4 = load_version("v4_modern")
    return fast_bpe.fast(v4.Tokenizer, cores) if size > fast_bpe.LONG else v4.Tokenizer


def pick_versions(names: Sequence[str]) -> list[str]:
    """The versions whose names begin with one of `names` (v2, v4_modern), in order; else all."""
    for name in names:
        if not any(version.startswith(name) for version in VERSIONS):
            raise UserError(f"--versions {name}: there are {', '.join(VERSIONS)}")
    return [v for v in VERSIONS if not names or any(v.startswith(name) for name in names)]


def source(version: str) -> str:
    """The text of a version's file."""
    return program_of(version).read_text(encoding="utf-8")


def idea(version: str) -> str:
    """The version's description, from the first line of its file."""
    return ast.get_docstring(ast.parse(source(version))).splitlines()[0].partition(": ")[2][:-1]


def sections(version: str) -> dict[str, str]:
    """The version's source split at its banners: {"Header": ..., "1. Config": ...}."""
    return sections_of(source(version))


def sections_of(text: str) -> dict[str, str]:
    """The same of any program's text."""
    parts = re.split(r"(?m)^# ---- (\d+\. .*) ----\n", text)
    return {"Header": parts[0]} | dict(zip(parts[1::2], parts[2::2]))


def train(
    version: str,
    folder: Path,
    options: dict[str, object],
    threads: int = 0,
    progress: Callable[[int], None] = lambda step: None,
    program: Path | None = None,
) -> dict:
    """Run the version's train.py with `options` into `folder`, unless that holds a finished run of
    the same code.

    `program`, if given, is run instead. `progress` is called with the number of steps taken.
    Returns what `record` makes of the folder. RunFailed if the run failed; its full output is in
    `folder`.log.
    """
    if (folder / "summary.json").exists() and kept(folder / "code.json"):
        return record(folder)
    commit = code()
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted run: its times would be unreliable
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(folder.name + ".log")
    program = program or program_of(version)
    command = [sys.executable, str(program), "--out", str(folder), "--device", "cpu"]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    environment = dict(os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while process.poll() is None and not STOP.is_set():
                rows = read_rows(folder / "metrics.jsonl")
                progress(rows[-1]["step"] if rows else 0)
                try:
                    process.wait(timeout=2)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            process.kill()  # if we are stopped, so is it
            process.wait()
    if STOP.is_set():
        raise KeyboardInterrupt
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
        said = [line.strip() for line in lines if line.strip()] or ["nothing"]
        raise RunFailed(version, process.returncode, said[-1], log)
    write_json(folder / "code.json", {"commit": commit})
    return record(folder)


def train_or_diverge(version: str, folder: Path, *rest: object, **how: object) -> dict:
    """The same, but {"diverged": why} if the loss became non-finite, also when asked again."""
    ended = folder.with_name(folder.name + ".diverged.json")
    if diverged := kept(ended):
        return {"diverged": diverged["diverged"]}
    ended.unlink(missing_ok=True)
    commit = code()
    try:
        return train(version, folder, *rest, **how)
    except RunFailed as failure:
        if not any(words in failure.said for words in DIVERGED):
            raise
        write_json(ended, {"diverged": failure.said, "commit": commit})
        return {"diverged": failure.said}


def read_rows(path: Path) -> list[dict]:
    """The rows of metrics.jsonl, up to the first line that is damaged or still being written."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def record(folder: Path) -> dict:
    """What is kept of a finished run: of its summary, what nothing else tells, and `last_loss`, the
    nats per token in the last steps of training."""
    summary, rows = read_json(folder / "summary.json"), read_rows(folder / "metrics.jsonl")
    if (folder / "code.json").exists():
        summary |= read_json(folder / "code.json")
    losses = [row["train_loss"] for row in rows if "train_loss" in row] or [summary["val_loss"]]
    return {k: summary[k] for k in KEPT if k in summary} | {"last_loss": losses[-1]}


def course(folder: Path) -> dict:
    """The `curve` of a finished run, [step, seconds, bits per byte] at each evaluation but the
    last, always on the same first bytes of the validation text; and its `rates`, [step, learning
    rate] at about fifty steps."""
    rows = read_rows(folder / "metrics.jsonl")
    scored = [row for row in rows if "bits_per_byte" in row]
    rates = [row for row in rows if "learning_rate" in row]
    return {
        "curve": [[row["step"], row["seconds"], row["bits_per_byte"]] for row in scored[:-1]],
        "rates": [
            [row["step"], row["learning_rate"]]
            for row in rates[:: math.ceil(len(rates) / RATES) or 1]
        ],
    }


def has_diverged(run: dict) -> bool:
    """Whether a run's loss became non-finite, or ended worse than if all tokens were equally
    likely."""
    return "diverged" in run or run["last_loss"] > math.log(run["vocab_size"])


def open_run(version: str, folder: Path, **options: object) -> tuple[ModuleType, Run]:
    """A finished run, loaded for use: its version's module, and the run with its model."""
    module = load_version(version)
    config = command_line.load_config(module.Config, str(folder))
    config = replace(config, **options)
    tokenizer = module.Tokenizer.load(folder / "tokenizer.json")
    run = Run(version, config, tokenizer, build(module.LanguageModel, config))
    module.load_checkpoint(run)
    return module, run


def tokens_a_step(config: object) -> int:
    """Tokens that one optimizer step sees."""
    batches = getattr(config, "accumulation_steps", 1)
    return config.batch_size * config.context_length * batches


def steps_for_bytes(module: ModuleType, n_bytes: float, options: dict[str, object]) -> int:
    """The steps in which a version, with these `options`, sees `n_bytes` of training text."""
    config = module.Config(**options)
    _, corpus, train_tokens, _ = module.load_data(config)
    bytes_a_token = corpus.train_bytes / len(train_tokens)
    return max(1, round(n_bytes / (tokens_a_step(config) * bytes_a_token)))


def peak_memory() -> int:
    """The peak memory of this process in bytes. `getrusage` is the last resort: in a child process
    its value starts at what the parent held."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def check_name(name: str) -> None:
    """UserError unless `name` can be that of a folder of results, which --fresh clears."""
    if name in (".", "..") or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name {name}: letters, digits, dots and hyphens make a name")


def check_texts(sizes: Sequence[float], vocab_size: int) -> None:
    """UserError unless `sizes`, in MB, and `vocab_size` are possible."""
    if not sizes or not all(0 < size < math.inf for size in sizes) or vocab_size < 257:
        raise UserError("--sizes are one or more numbers above 0, --vocab-size 257 or more")


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1); 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def plus_minus(spread: float, digits: int = 3) -> str:
    """The spread as shown after a mean; nothing if it is zero."""
    return f" ± {spread:.{digits}f}" if spread else ""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def fold(title: str, text: str) -> str:
    """`text` folded behind a title to click on, as HTML in Markdown."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def check_alike(runs: list[dict], corpus: Corpus) -> None:
    """UserError unless all `runs` used this corpus, and all runs of a version the same dtype: some
    may have been kept from before."""
    dtypes = {(run["version"], run.get("dtype")) for run in runs}  # older ones do not say
    if len(dtypes) > len({version for version, _ in dtypes}):
        raise UserError("kept runs are in another --dtype than this machine's: use --fresh")
    if any(run["corpus"]["sha256"] != corpus.sha256 for run in runs):
        raise UserError(f"kept runs are of a {corpus.name} that has changed since: use --fresh")


def what_it_depends_on(results: dict, runs: list[dict]) -> str:
    """Budget, text, seeds, machine, dtype and commit of the `runs`, in a line."""
    budget = "the steps each ships with"
    if results["seconds"]:
        budget = f"{results['seconds']:g} seconds of training each"
    elif results["bytes"]:
        budget = f"{results['bytes'] / 1e6:g} MB of text seen by each"
    dtypes = {}  # dtype -> versions
    for run in runs:
        dtypes.setdefault(run["dtype"], set()).add(run["version"])
    products = " and ".join(
        dtype if len(dtypes) == 1 else f"{dtype} ({', '.join(sorted(who))})"
        for dtype, who in sorted(dtypes.items())
    )
    return f"At {budget}: {of_seeds(runs)}, {under_conditions(runs[0]['corpus'], runs, products)}"


def of_seeds(runs: list[dict]) -> str:
    seeds = len({run["seed"] for run in runs})
    return f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"


def under_conditions(corpus: dict, runs: list[dict], products: str) -> str:
    """The validation text, the dtype of matrix `products`, the machine and the commit."""
    return (
        f"on the whole validation split of `{corpus['name']}` ({corpus['val_bytes']:,} bytes, "
        f"sha256 {corpus['sha256'][:12]}), matrix products in {products}; {on_machine(*runs)}."
    )


def on_machine(first: dict, *others: dict) -> str:
    """For a caption: the software versions, machine and commits of some measurements."""
    commits = sorted({short_commit(facts["commit"]) for facts in (first, *others)})
    cpu = f"{first['cpu']}, " if "cpu" in first else ""  # older results do not tell
    return (
        f"Python {first['python']}, torch {first['torch']}, {cpu}CPU threads: {first['threads']}, "
        f"commit {', '.join(commits)}"
    )


def readme_with(readme: str, name: str, text: str) -> str:
    """`readme` with `text` between the markers of `name`; UserError if it has none."""
    begin = f"<!-- results {name} -->\n"
    before, marker, rest = readme.partition(begin)
    _, end, after = rest.partition("<!-- /results -->")
    if not end:
        raise UserError(f"{README} has no lines {begin.strip()} and <!-- /results -->")
    return "".join((before, marker, text, "\n", end, after))


def in_brief(name: str, text: str) -> str:
    """A report as README shows it: without what is folded, which stays in the folder's table.md,
    and without the commit, which `origins` tells."""
    brief = re.sub(r"(?s)\n\n<details>.*?</details>", "", text)
    more = f"\n\n[All that was measured](results/{name}/table.md)." if brief != text else ""
    return re.sub(f", {COMMITS}", "", brief) + more


def origins() -> str:
    """Of which commit all results are, in a sentence; if that is not one, and whole, then of which
    machine and commits each folder's are, as its table.md says."""
    paths = sorted(RESULTS.glob("*/results.json"))
    commits = {short_commit(c) for path in paths for c in commits_of(read_results(path))}
    if len(commits) == 1 and re.fullmatch("[0-9a-f]{12}", "".join(commits)):
        return f"All that follows was measured on commit {''.join(commits)}."
    rows = [["results", "made by"]]
    for path in paths:
        name, text = path.parent.name, (path.parent / "table.md").read_text(encoding="utf-8")
        made = re.search(f"Python \\d[^;]*?, {COMMITS}", text)
        rows.append([f"[{name}](results/{name}/table.md)", made[0] if made else "unknown"])
    return (
        "These results are of several commits, so that those of two sections do not compare:\n\n"
        + markdown(rows)
    )


def write_readme(name: str, text: str) -> None:
    """Put a report, in brief, into README between the markers of `name`, if it has them, and all
    origins on top."""
    readme = README.read_text(encoding="utf-8")
    if f"<!-- results {name} -->" in readme:
        readme = readme_with(readme, name, in_brief(name, text))
    write_text(README, readme_with(readme, "origins", origins()))
