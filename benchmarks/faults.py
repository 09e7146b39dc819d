"""Break runs in all the ways that machines and people do, and check what is lost.

    python benchmarks/faults.py                                   all of it
    python benchmarks/faults.py --faults kill --rounds 20         some of it, longer
    python benchmarks/faults.py --versions v4 --seed 7            of one version, at other moments

A fault is survived if the run, when resumed, ends with exactly the weights, metrics, summary,
sample and picture of an undisturbed run, except for times; or if one line says what is wrong.
Results go to benchmarks/results/faults/; `--readme` breaks nothing and only rewrites the tables
from them (also those in README.md here). Linux and macOS.
"""

import codecs
import contextlib
import functools
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_origin
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.command import Shown, run_benchmark
from benchmarks.common import (
    RESULTS,
    VERSIONS,
    check_name,
    load_version,
    markdown,
    pick_versions,
)
from benchmarks.records import commits_of, kept, short_commit
from shared.checkpoints import all_finite
from shared.corpora import END_OF_TEXT, load_corpus
from shared.files import ROOT, UserError, read_json
from shared.run import Run
from shared.terminal import ended_by, progress

SIZES = {  # of a run of seconds; a version takes those that it knows
    "vocab_size": 300,
    "context_length": 16,
    "width": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_size": 16,
    "feed_forward_size": 48,
    "steps": 12,
    "batch_size": 4,
    "evaluate_every": 4,
    "checkpoint_every": 3,
    "max_new_tokens": 20,
    "device": "cpu",
}
PHASES = ("corpus", "tokenizer", "encoding", "step", "checkpoint", "evaluation", "end")
KILL = getattr(signal, "SIGKILL", 9)  # Windows has none
TIMES = {"seconds", "tokens_per_second", "mfu", "commit"}  # two runs may not have the same
RUN_FILES = ("config.json", "tokenizer.json", "checkpoint.pt")
WRONG_VALUES = ("0", "-1", "-0.5", "nan", "inf", "1e400", "1e-320", str(10**30), "1.5", "many", "")


@dataclass
class Options:
    """Break runs of the versions and check what is lost."""

    faults: tuple[
        str, ...
    ] = ()  # kill stop disk output numbers two files values texts; all if none
    versions: tuple[str, ...] = ()  # v2 v4; all if not given
    rounds: int = 2  # of kills, of stops and of full disks: some seven of each a version
    damages: int = 40  # of each file, of each version
    seed: int = 0  # of all moments and places
    name: str = "faults"  # of the folder of results
    readme: bool = False  # break nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        for fault in self.faults:
            if fault not in FAULTS:
                raise UserError(f"--faults {fault}: there are {', '.join(FAULTS)}")
        if self.rounds < 1 or self.damages < 1:
            raise UserError("--rounds and --damages must be more than 0")


# ---- runs of a version ----


def some_text(folder: Path, size: int = 60_000) -> Path:
    """A file of the first `size` bytes of `pydocs`."""
    path = folder / "text.txt"
    data = load_corpus("pydocs").train.read_bytes()[:size]
    path.write_bytes(data.decode("utf-8", "ignore").encode("utf-8"))  # no half character
    return path


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass
class Subject:
    """A version, a text, and a folder for the version's runs on that text."""

    version: str
    text: Path
    folder: Path
    sizes: dict[str, object]

    @property
    def module(self) -> ModuleType:
        return load_version(self.version)

    def arguments(self, out: Path, **options: object) -> list[str]:
        """The command line of a run into `out`; options that the version lacks are left out."""
        values = self.sizes | {"data": self.text, "out": out} | options
        known = [name for name in values if name in self.known]
        return [word for name in known for word in (option(name), str(values[name]))]

    @property
    def known(self) -> list[str]:
        """The options of the version, without those that it derives from the text."""
        fields = self.module.Config.__dataclass_fields__.values()
        return [field.name for field in fields if get_origin(field.type) is not Annotated]

    @functools.cached_property
    def untouched(self) -> "Outcome":
        """An undisturbed run, in `folder`/untouched."""
        outcome = start(self, self.folder / "untouched")
        if outcome.status:
            raise UserError(f"{self.version} does not run: {outcome.errors}")
        return outcome


@dataclass
class Outcome:
    """How a process ended."""

    status: int
    errors: str  # on stderr
    phases: list[tuple[str, float]]  # (name, seconds) of each phase that ended
    ended: str  # "in" the phase in which it ended, or "between phases"


def start(
    subject: Subject,
    out: Path,
    fault: tuple[str, int, float, int] | None = None,
    file_size: int | None = None,
    **options: object,
) -> Outcome:
    """Run the version into `out`/run, with its cache in `out`/cache; resume it if possible.

    `fault` is (phase, n, seconds, signal): the signal is sent that many seconds after the phase
    began for the nth time. No file can grow beyond `file_size`.
    """
    resume = ["--resume"] if (out / "run" / "checkpoint.pt").exists() else []
    code = "from benchmarks import faults; faults.tell_phases()"
    command = [sys.executable, "-c", code, subject.version]
    command += [*subject.arguments(out / "run", **options), *resume]
    environment = os.environ | {"LADDER_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    environment["MPLCONFIGDIR"] = str(subject.folder / "matplotlib")

    def limit() -> None:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    phases, begun, where = [], {}, "between phases"
    count = 0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            preexec_fn=limit if file_size is not None else None,
        )
        try:
            for line in process.stdout:
                event, _, phase = line.strip().partition(" phase ")
                if event == "begin":
                    begun[phase], where = time.perf_counter(), f"in {phase}"
                    count += bool(fault) and phase == fault[0]
                    if fault and phase == fault[0] and count == fault[1]:
                        time.sleep(fault[2])
                        process.send_signal(fault[3])
                elif event == "end":
                    phases.append((phase, time.perf_counter() - begun[phase]))
                    where = "between phases"
            process.wait()
        finally:
            process.kill()  # whatever stopped us stops it
            process.wait()
        errors.seek(0)
        told = errors.read().decode("utf-8", "replace").replace("\r", "\n")
    return Outcome(process.returncode, told, phases, where)


def tell_phases() -> None:
    """Run a version's main in a child process, printing a line when each phase begins and ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell puts us behind
    version, *arguments = sys.argv[1:]
    module = load_version(version)
    for phase, owner, name in (
        ("corpus", module, "load_corpus"),
        ("tokenizer", module.Tokenizer, "train"),
        ("encoding", module, "encode_splits"),
        ("encoding", module, "mapped_splits"),
        ("step", module, "training_step"),
        ("checkpoint", Run, "write_checkpoint"),
        ("evaluation", module, "evaluate"),
        ("end", Run, "finish"),
    ):
        if hasattr(owner, name):
            setattr(owner, name, telling(phase, getattr(owner, name)))
    module.main(arguments)


def telling(phase: str, function: Callable) -> Callable:
    def wrapped(*arguments: object, **options: object) -> object:
        print(f"begin phase {phase}", flush=True)
        result = function(*arguments, **options)
        print(f"end phase {phase}", flush=True)
        return result

    return wrapped


def read_run(folder: Path) -> dict[str, Any]:
    """What a run leaves, except its times, the code's commit and the folder's name."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["run"] = {k: v for k, v in state["run"].items() if k not in ("out", "resume")}
    state["progress"]["rows"] = list(map(without_times, state["progress"]["rows"]))
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "checkpoint": state | {"progress": without_times(state["progress"])},
        "metrics": [without_times(json.loads(row)) for row in rows],
        "summary": without_times(read_json(folder / "summary.json")),
        "sample": (folder / "samples.txt").read_bytes(),
        "tokenizer": (folder / "tokenizer.json").read_bytes(),
        "picture": (folder / "loss.png").read_bytes(),
    }


def without_times(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in TIMES}


def equal(left: object, right: object) -> bool:
    """Whether two nested structures of dicts, lists, numbers and tensors are bitwise equal."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def difference(left: Path, right: Path) -> str:
    """What differs between two finished runs; "" if nothing does."""
    try:
        one, other = read_run(left), read_run(right)
    except (OSError, ValueError, UserError) as error:
        return f"no finished run: {error}"
    return ", ".join(f"{part} differs" for part in one if not equal(one[part], other[part]))


# ---- faults: each yields what was broken (where), how it ended, and what was lost ----

Trials = Iterator[tuple[str, str, str]]


def damaged_files(out: Path) -> str:
    """Files in `out` that have their final names but are incomplete; "" if there are none."""
    damaged = []
    for path in out.rglob("*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            damaged.append(path.name)
    checkpoint = out / "run" / "checkpoint.pt"
    if checkpoint.exists() and not (zipfile.is_zipfile(checkpoint) and not bad_part(checkpoint)):
        damaged.append(checkpoint.name)
    return ", ".join(f"{name} half-written" for name in damaged)


def bad_part(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def moments(subject: Subject, chance: random.Random, number: int) -> Iterator[tuple]:
    """A random moment, for sending a signal, in each phase in turn."""
    for phase in PHASES:
        lengths = [seconds for name, seconds in subject.untouched.phases if name == phase]
        n = chance.randint(1, max(1, len(lengths) // 2))
        if lengths:
            yield phase, n, chance.uniform(0, lengths[n - 1]), number


def kill(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """SIGKILL at any moment, again and again in one run."""
    for n in range(options.rounds):
        out = subject.folder / f"killed{n}"
        for fault in moments(subject, chance, KILL):
            outcome = start(subject, out, fault)
            if outcome.status != -KILL:
                break  # it ended before that moment came
            yield f"kill {outcome.ended}", "resumed", damaged_files(out)
        start(subject, out)
        lost = difference(subject.folder / "untouched" / "run", out / "run")
        yield "the run after its kills", "resumed", lost


def stop(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """Ctrl-C, and the signals of systems and clusters that want their machine back, at any time. A
    signal a round; each version begins where the one before it ended, so that all have their turn.
    """
    numbers = [signal.SIGINT, *ended_by()]
    first = VERSIONS.index(subject.version) * options.rounds
    for n in range(options.rounds):
        number = numbers[(first + n) % len(numbers)]
        out = subject.folder / f"stopped{n}"
        for fault in moments(subject, chance, number):
            outcome = start(subject, out, fault)
            if outcome.status == 0 or (out / "run" / "summary.json").exists():
                break  # it ended before that moment came
            lost = damaged_files(out) or ", ".join(path.name for path in out.rglob("*.tmp"))
            if outcome.status != 128 + number or "Traceback" in outcome.errors:
                lost = f"status {outcome.status}: {outcome.errors[-200:]}"
            elif (
                fault[0] in ("step", "checkpoint")
                and outcome.ended != "in end"  # all its steps were done before the signal came
                and "--resume" not in outcome.errors
            ):
                lost = "does not say how to go on"
            yield f"{signal.Signals(number).name} in {fault[0]}", "resumed", lost
        start(subject, out)
        lost = difference(subject.folder / "untouched" / "run", out / "run")
        yield "the run after its stops", "resumed", lost


def disk(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """No space for files beyond some size, from the start or from the middle of a run on."""
    whole = subject.folder / "untouched"
    largest = (whole / "run" / "checkpoint.pt").stat().st_size
    half = subject.folder / "half"
    fault = ("step", 8, 0.0, signal.SIGTERM)
    start(subject, half, fault)
    for n in range(options.rounds * 3):
        out = subject.folder / f"full{n}"
        if n % 3:
            shutil.copytree(half, out)
        before = None if n % 3 == 0 else (out / "run" / "checkpoint.pt").read_bytes()
        outcome = start(subject, out, file_size=chance.randint(0, largest * 11 // 10))
        lost = damaged_files(out)
        if outcome.status:
            lost = lost or one_line_lacks(outcome.status, outcome.errors)
            if before and (out / "run" / "checkpoint.pt").read_bytes() != before:
                lost = lost or "the checkpoint before"
        start(subject, out)
        lost = lost or difference(whole / "run", out / "run")
        yield "disk full", "refused, then resumed" if outcome.status else "fitted", lost


def output(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """A full disk behind a log, and no output at all: training goes on."""
    _ = subject.untouched  # the run to compare with
    for where in ("> /dev/full", "2> /dev/full", ">&- 2>&-"):
        out = subject.folder / "output"
        shutil.rmtree(out, ignore_errors=True)
        program = [sys.executable, str(ROOT / subject.version / "train.py")]
        program += map(str, subject.arguments(out / "run"))
        one_thread = os.environ | {"LADDER_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(["sh", "-c", f'"$0" "$@" {where}', *program], env=one_thread)
        lost = f"status {ended.returncode}" if ended.returncode else ""
        lost = lost or difference(subject.folder / "untouched" / "run", out / "run")
        yield "no output", "went on", lost and f"{where}: {lost}"


def numbers(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """A weight that becomes NaN or infinite in some step, just before a checkpoint or not."""
    step = subject.module.training_step
    for n in range(options.rounds * 2):
        at, value = chance.randrange(12), (float("nan"), float("inf"))[n % 2]
        out = subject.folder / f"nan{n}"

        def spoil(run: Run, *arguments: object, at: int = at, value: float = value) -> float:
            loss = step(run, *arguments)
            if run.step == at:
                next(run.model.parameters()).data.flatten()[-1] = value
            return loss

        with mock.patch.object(subject.module, "training_step", spoil):
            status, _, errors = call(subject, subject.arguments(out))
        saved = torch.load(out / "checkpoint.pt", weights_only=True)
        lost = one_line_lacks(status, errors, "step")
        if not all_finite(saved):
            lost = "a checkpoint of weights that are not finite"
        if saved["progress"]["step"] != at // 3 * 3:
            lost = f"the checkpoint of step {at // 3 * 3}"
        yield "weights that are not finite", "refused", lost


def two(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """A second run in a folder where another one is writing, and after that one is killed."""
    out = subject.folder / "two" / "run"
    code = "from benchmarks import faults; faults.tell_phases()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, subject.version, *subject.arguments(out, steps=10**7)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        for line in first.stdout:
            if line.startswith("begin phase step"):
                break
        for resume in ([], ["--resume"]):
            status, _, errors = call(subject, [*subject.arguments(out), *resume])
            yield "two runs", "refused", one_line_lacks(status, errors, "another run")
    finally:
        first.kill()
        first.communicate()
    status, _, errors = call(subject, [*subject.arguments(out, steps=10**7 + 1), "--resume"], 3)
    yield "after a killed one", "resumed", "" if status == 0 else errors[-200:]


def files(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """Bytes flipped, cut off, added or replaced in each file that is read."""
    run, cache = (subject.folder / "untouched" / name for name in ("run", "cache"))
    if not run.exists():
        start(subject, run.parent)
    cached = [path for path in cache.rglob("*") if path.is_file()]
    out = subject.folder / "out"
    write = ["--sample", "--out", str(run), "--device", "cpu", "--prompt", "", "--top-k", "0"]
    write += ["--top-p", "1", "--temperature", "1", "--max-new-tokens", "20", "--seed", "0"]
    train = subject.arguments(out, steps=1, max_new_tokens=1)
    with mock.patch.dict(os.environ, {"LADDER_CACHE": str(cache)}):
        for path in [*(run / name for name in RUN_FILES), *cached]:
            arguments = write if path.parent == run else train
            whole, expected = path.read_bytes(), result(subject, arguments, out)
            for _ in range(options.damages):
                path.write_bytes(damage(whole, chance))
                got = result(subject, arguments, out)
                named = (str(path), path.parent.name, "option", "--")
                status, _, errors = got
                lost = one_line_lacks(status, errors, *named) if status else ""
                if not status and got[1] != expected[1]:
                    lost = f"another result, silently: {path.name}"
                kind = path.name if path.parent == run else f"cached {path.suffix[1:]}"
                yield f"damaged {kind}", "refused" if status else "harmless", lost
            path.write_bytes(whole)


def result(subject: Subject, arguments: list[str], out: Path) -> tuple[int, object, str]:
    """Status, result and stderr of a call that trains into `out` or writes a sample."""
    shutil.rmtree(out, ignore_errors=True)
    status, said, errors = call(subject, arguments)
    if (out / "summary.json").exists():
        return status, without_times(read_json(out / "summary.json")), errors
    return status, said, errors


def damage(whole: bytes, chance: random.Random) -> bytes:
    """The bytes, damaged in some way."""
    at = chance.randrange(len(whole) + 1)
    noise = chance.randbytes(chance.randint(1, 64))
    flipped = bytearray(whole)
    flipped[at % len(whole)] ^= 1 << chance.randrange(8)
    kinds = [bytes(flipped)] * 3
    kinds += [whole[:at], whole[:at] + noise + whole[at:], whole[:at] + noise, b"", noise]
    return chance.choice(kinds)


def values(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """Each option with each of the wrong values: used in training, or refused in one line."""
    out = subject.folder / "values"
    left_out = {"out", "prompt", "resume", "sample", "compile"}  # folders, any text, and switches
    for name in (name for name in subject.known if name not in left_out):
        for value in WRONG_VALUES:
            shutil.rmtree(out, ignore_errors=True)
            arguments = subject.arguments(out, steps=1, max_new_tokens=1)
            status, _, errors = call(subject, [*arguments, option(name), value], 2)
            lost = one_line_lacks(status, errors) if status else ""
            yield (
                "wrong values",
                "refused" if status else "trained",
                lost and f"{option(name)} {value}: {lost}",
            )


def texts(subject: Subject, chance: random.Random, options: Options) -> Trials:
    """Whatever a file may contain: trained on, or refused in one line."""
    prose = subject.text.read_bytes()
    picture = (RESULTS / "seconds-120" / "bits.png").read_bytes()
    lines = [json.dumps({"text": line}) for line in prose.decode("utf-8").splitlines() if line]
    rows, packed = "\n".join(lines).encode(), gzip.compress(prose)
    for name, content in {
        "JSON lines.jsonl": rows,
        "JSON lines, cut short.jsonl": rows[:-2],
        "JSON lines of other fields.jsonl": rows.replace(b'"text"', b'"body"'),
        "JSON lines of numbers.jsonl": b"1\n" * 1000,
        "packed.gz": packed,
        "packed JSON lines.jsonl.gz": gzip.compress(rows),
        "packed, cut short.gz": packed[:-100],
        "packed, then more.gz": packed + b"more",
        "packed blanks.gz": gzip.compress(bytes(50_000_000)),
        "a packed picture.gz": gzip.compress(picture),
        "a byte-order mark": codecs.BOM_UTF8 + prose,
        "random bytes": chance.randbytes(100_000),
        "a picture": picture,
        "NULs": bytes(100_000),
        "Latin-1": "naïve café\n".encode("latin-1") * 1000,
        "UTF-16": prose.decode("utf-8").encode("utf-16"),
        "any characters": "".join(map(chr, range(1, 0xD800))).encode("utf-8"),
        "one line of 5 MB": b"all on one line " * 312_500,
        "one word of 50 KB": b"abcdefghij" * 5_000,
        "50,000 empty documents": END_OF_TEXT.encode() * 50_000,
        "50,000 empty documents and a text": END_OF_TEXT.encode() * 50_000 + prose,
        "white space": b" \n\t\r\n" * 20_000,
    }.items():
        _, dot, suffixes = name.partition(".")
        path = subject.folder / f"any.{suffixes if dot else 'txt'}"
        path.write_bytes(content)
        out = subject.folder / "texts"
        shutil.rmtree(out, ignore_errors=True)
        arguments = subject.arguments(out, data=path, steps=2, evaluate_every=2, context_length=8)
        status, _, errors = call(subject, arguments)
        lost = one_line_lacks(status, errors) if status else ""
        yield "any text", "refused" if status else "trained", lost and f"{name}: {lost}"


def one_line_lacks(status: int, errors: str, *words: str) -> str:
    """What is wrong with an error: it needs one line, one of the `words`, and status 1 or 2."""
    lines = [line for line in errors.replace("\r", "\n").splitlines() if "rror" in line]
    if status not in (1, 2) or len(lines) != 1 or "Traceback" in errors:
        return f"status {status}: {errors[-300:]}"
    if words and not any(word in lines[0] for word in words):
        return f"says only: {lines[0]}"
    return ""


class Enough(Exception):
    """The run has shown that it continues."""


def call(subject: Subject, arguments: list[str], most: int = 100) -> tuple[int, str, str]:
    """Status, stdout and stderr of the version's main in this process, of `most` steps at most."""
    log_step, steps = Run.log_step, 0

    def count(run: Run, *rest: object) -> None:
        nonlocal steps
        log_step(run, *rest)
        steps += 1
        if steps == most:
            raise Enough

    said, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            with mock.patch.object(Run, "log_step", count):
                subject.module.main([str(argument) for argument in arguments])
        except Enough:
            pass
        except SystemExit as ended:
            status = ended.code or 0
        except Exception as error:  # what a user would see as a traceback
            status = -1
            errors.write(f"Traceback: {type(error).__name__}: {error}\n")
    return status, said.getvalue(), errors.getvalue()


FAULTS = {
    f.__name__: f for f in (kill, stop, disk, output, numbers, two, files, values, texts)
}  # name -> function


# ---- all of them, and the table ----


def break_all(options: Options) -> dict:
    """The faults of the versions; what goes into results.json. Those that are not asked for stay
    there as they were, if they are of the same code."""
    versions = pick_versions(options.versions)
    jobs = [(version, fault) for version in versions for fault in options.faults or FAULTS]
    before = kept(RESULTS / options.name / "results.json").get("trials", [])
    trials = [
        trial | {"count": {version: times}}
        for trial in before
        for version, times in trial["count"].items()
        if (version, trial["fault"]) not in jobs
    ]
    with tempfile.TemporaryDirectory(prefix="ladder-faults-") as folder:
        text = some_text(Path(folder))
        torch.set_num_threads(1)
        subjects = {v: Subject(v, text, Path(folder) / v, SIZES) for v in versions}
        bar = progress(jobs, unit="fault")
        for version, fault in bar:
            bar.set_description_str(f"{fault} {version}")
            subject = subjects[version]
            subject.folder.mkdir(exist_ok=True)
            chance = random.Random(f"{options.seed} {version} {fault}")
            for where, ended, lost in FAULTS[fault](subject, chance, options):
                trial = {"fault": fault, "where": where, "ended": ended, "lost": lost}
                trials.append(trial | {"count": {version: 1}})
                bar.set_postfix(tried=times(trials), lost=times(trials, "lost"))
                if lost:
                    bar.write(f"{version}, {where}: {lost}")
    return {"trials": gathered(trials), "seed": options.seed}


def gathered(trials: list[dict]) -> list[dict]:
    """The trials, with equal outcomes merged into one that has the "count" of each version."""
    counts = {}
    for trial in trials:
        outcome = tuple((k, v) for k, v in trial.items() if k != "count")
        counts.setdefault(outcome, Counter()).update(trial["count"])
    return [dict(outcome) | {"count": dict(count)} for outcome, count in counts.items()]


def times(trials: Iterable[dict], what: str = "count") -> int:
    """The number of trials, or of those in which something was lost."""
    return sum(sum(trial["count"].values()) for trial in trials if trial[what])


def report(results: dict) -> str:
    """The table, as it stands in table.md: a row for each kind of
    fault, wherever it struck, but one for each place where something was lost."""
    kinds: dict[str, list[dict]] = {}
    losing = {trial["where"] for trial in results["trials"] if trial["lost"]}
    for trial in results["trials"]:
        where = trial["where"]
        kind = re.match(r"(kill in|SIG\w+ in|damaged) ", where + " ")
        kinds.setdefault(kind[1] if kind and where not in losing else where, []).append(trial)
    rows = [["what happened", "how often", "how it ended", "lost"]]
    order = list(dict.fromkeys(where.split()[0] for where in kinds))
    for where, trials in sorted(kinds.items(), key=lambda kind: order.index(kind[0].split()[0])):
        ends = sorted({trial["ended"] for trial in trials})
        counts = [(times(t for t in trials if t["ended"] == end), end) for end in ends]
        ended = ", ".join(f"{n:,} {end}" for n, end in counts) if len(counts) > 1 else ends[0]
        lost = times(trials, "lost")
        places = dict.fromkeys(trial["where"].removeprefix(where).strip() for trial in trials)
        where = f"{where} {', '.join(places)}".strip()
        rows.append([where, f"{times(trials):,}", ended, f"**{lost}**" if lost else "nothing"])
    machine = results["machine"]
    commits = sorted({*map(short_commit, commits_of(results))})
    versions = len({version for trial in results["trials"] for version in trial["count"]})
    depends = (
        f"{times(results['trials']):,} trials in {versions} versions, seed {results['seed']}; "
        f"Python {machine['python']}, torch {machine['torch']}, commit {', '.join(commits)}."
    )
    return f"{markdown(rows)}\n\n{depends}"


def show(results: dict) -> Shown:
    return report(results), {}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, break_all, show)


if __name__ == "__main__":
    main()
