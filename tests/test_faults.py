"""Nothing is lost and every fault is told in a line: the short form of benchmarks/faults.py."""

import errno
import functools
import io
import json
import os
import pickle
import random
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, VERSIONS, each_once, load_version, small_arguments
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from benchmarks import faults, soak
from benchmarks.common import RESULTS
from benchmarks.faults import Subject, call, difference, one_line_lacks
from benchmarks.records import read_results
from shared.checkpoints import tensors
from shared.command_line import load_config
from shared.files import UserError, read_json
from shared.run import Run
from shared.run_folder import RUN_FILES, give_back, lock_metrics, open_folder
from shared.terminal import progress
from shared.token_files import open_token_file, write_token_file

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX has fork")
NAMES = [name.split("_")[0] for name in VERSIONS]


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory, corpus_file):
    """A version and, in `folder`/untouched, a run of it with a cache of its own; each made once."""

    @functools.cache
    def make(name: str) -> Subject:
        folder = tmp_path_factory.mktemp(name)
        made = Subject(name, corpus_file, folder, faults.SIZES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LADDER_CACHE", str(folder / "untouched" / "cache"))
            assert call(made, made.arguments(folder / "untouched" / "run"))[0] == 0
        return made

    return make


@pytest.fixture(params=VERSIONS, ids=NAMES)
def subject(request, subject_of):
    return subject_of(request.param)


@pytest.fixture
def finished(subject, tmp_path):
    """A copy of the untouched run."""
    return shutil.copytree(subject.folder / "untouched" / "run", tmp_path / "run")


def lost(trials) -> list[tuple]:
    """The trials in which something was lost; an error if nothing was tried."""
    trials = list(trials)
    assert trials
    return [trial for trial in trials if trial[2]]


def refusal(subject, arguments) -> str:
    """The one line that ends a run with these arguments."""
    status, _, errors = call(subject, arguments)
    assert one_line_lacks(status, errors) == ""
    return errors.replace("\r", "\n").splitlines()[-1]


# ---- what tells a loss ----


def test_a_difference_is_seen_and_named(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    assert difference(finished, other) == ""
    checkpoint = torch.load(other / "checkpoint.pt", weights_only=True)
    next(iter(checkpoint["model"].values())).view(-1)[0] += 1e-6
    torch.save(checkpoint, other / "checkpoint.pt")
    *rows, _ = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(rows))
    for name in ("samples.txt", "loss.png", "tokenizer.json"):
        with open(other / name, "ab") as file:
            file.write(b" ")
    (other / "notes.tmp").touch()
    summary = read_json(other / "summary.json") | {"bits_per_byte": 1.0}
    (other / "summary.json").write_text(json.dumps(summary))
    parts = ("files", "checkpoint", "metrics", "summary", "sample", "tokenizer", "picture")
    assert difference(finished, other) == ", ".join(f"{part} differs" for part in parts)
    (other / "summary.json").unlink()
    assert difference(finished, other).startswith("no finished run: ")


def test_half_written_files_are_seen(finished):
    assert faults.damaged_files(finished.parent) == ""
    for name in ("checkpoint.pt", "summary.json"):
        path = finished / name
        path.write_bytes(path.read_bytes()[:-10])
    damaged = faults.damaged_files(finished.parent)
    assert "checkpoint.pt half-written" in damaged and "summary.json half-written" in damaged


def test_only_one_line_is_one_line():
    assert one_line_lacks(2, "a bar\rerror: no disk", "disk") == ""
    for status, errors, *words in (
        (0, "error: no disk"),
        (2, ""),
        (2, "error: a\nerror: b"),
        (1, "Traceback (most recent call last):\nKeyError: 'a'"),
        (2, "error: no disk", "memory"),
    ):
        assert one_line_lacks(status, errors, *words)


# ---- stopped ----


def killed(subject, arguments, n: int) -> bool:
    """Whether a process with these arguments was killed: at the nth write or step it comes to."""
    child = os.fork()
    if child == 0:
        left = n

        def deadly(function):
            def wrapped(*rest):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*rest)

            return wrapped

        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        Run.log_step = deadly(Run.log_step)
        os._exit(call(subject, arguments)[0])
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@needs_fork
def test_a_run_killed_at_its_writes_is_the_untouched_one(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    arguments, run = subject.arguments(tmp_path / "run"), tmp_path / "run"
    for n in count(1, 5):
        resume = ["--resume"] if (run / "checkpoint.pt").exists() else []
        if not killed(subject, [*arguments, *resume], n):
            break
        assert faults.damaged_files(tmp_path) == ""
    assert n > 20
    assert difference(subject.folder / "untouched" / "run", run) == ""


def test_a_process_killed_by_the_benchmark(subject, tmp_path, monkeypatch, started):
    if subject.version != "v4_modern":
        pytest.skip("one process is enough: the others are killed above")
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    outcome = faults.start(subject, tmp_path, ("checkpoint", 2, 0.001, faults.KILL))
    assert outcome.status == -faults.KILL and "step" in dict(outcome.phases)
    assert faults.damaged_files(tmp_path) == ""
    assert call(subject, ["--resume", "--out", tmp_path / "run"])[0] == 0
    assert difference(subject.folder / "untouched" / "run", tmp_path / "run") == ""


def test_a_process_stopped_by_the_benchmark(corpus_file, tmp_path, monkeypatch, started):
    stopped = Subject("v0_bigram", corpus_file, tmp_path, faults.SIZES)
    assert stopped.untouched.status == 0
    monkeypatch.setattr(faults, "moments", lambda *_: [("step", 3, 0.0, signal.SIGINT)])
    trials = list(faults.stop(stopped, random.Random(0), faults.Options(rounds=1)))
    assert [where for where, *_ in trials] == ["SIGINT in step", "the run after its stops"]
    assert lost(trials) == []


@pytest.mark.parametrize(
    "ended, said, is_lost",
    [
        ("in checkpoint", "stopped at step 5, saved; --resume --out run continues", False),
        ("in step", "stopped", True),
        ("between phases", "stopped", True),
        ("in end", "stopped", False),  # a signal meant for a step, which took less time than usual
    ],
)
def test_a_stopped_run_that_has_steps_to_go_must_say_how(
    ended, said, is_lost, tmp_path, monkeypatch
):
    outcome = faults.Outcome(128 + signal.SIGINT, said, [], ended)
    monkeypatch.setattr(faults, "start", lambda *_: outcome)
    monkeypatch.setattr(faults, "moments", lambda *_: [("step", 1, 0.0, signal.SIGINT)])
    monkeypatch.setattr(faults, "difference", lambda *_: "")
    subject = SimpleNamespace(version="v0_bigram", folder=tmp_path)
    (trial, _) = faults.stop(subject, random.Random(0), faults.Options(rounds=1))
    assert bool(trial[2]) == is_lost


STOPS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")  # Windows has only the first
STOPS = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]


@contextmanager
def handled(number, handler):
    """Within it, `handler` answers the signal, whatever we were started with, such as `nohup`."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.fixture
def unblocked(number):
    with handled(number, signal.default_int_handler):  # one that the code misses fails the test
        yield


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize(
    "subject, number", each_once([signal.SIGINT, *STOPS]), indirect=["subject"]
)
def test_a_signal_before_training_ends_in_a_word(subject, tmp_path, monkeypatch, number):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.fsync", lambda _: signal.raise_signal(number))
    status, _, errors = call(subject, subject.arguments(tmp_path / "run"))
    assert status == 128 + number and errors.splitlines()[-1].endswith("stopped")
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_bar_that_a_signal_leaves_half_made_ends_in_peace(monkeypatch):
    monkeypatch.setattr(tqdm, "_get_free_pos", lambda *_: signal.raise_signal(signal.SIGINT))
    bar = tqdm.__new__(tqdm)
    with pytest.raises(KeyboardInterrupt):
        bar.__init__(total=1)
    bar.close()  # as when nobody holds it any more


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize("subject, number", each_once(STOPS), indirect=["subject"])
def test_a_signal_in_training_saves_and_says_how_to_go_on(subject, tmp_path, monkeypatch, number):
    log_step = Run.log_step

    def interrupted(run, *rest):
        log_step(run, *rest)
        if run.step == 5:
            for _ in range(1 if number == signal.SIGTERM else 2):  # the shell tells of its end, too
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_step", interrupted)
        status, _, errors = call(subject, subject.arguments(tmp_path / "run"))
    assert status == 128 + number
    assert errors.endswith(f"stopped at step 5, saved; --resume --out {tmp_path}/run continues\n")
    assert call(subject, ["--resume", "--out", tmp_path / "run"])[0] == 0
    assert difference(subject.folder / "untouched" / "run", tmp_path / "run") == ""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_under_nohup_a_closed_terminal_stops_nothing(subject, tmp_path, monkeypatch):
    log_step = Run.log_step

    def hung_up(run, *rest):
        signal.raise_signal(signal.SIGHUP)
        log_step(run, *rest)

    monkeypatch.setattr(Run, "log_step", hung_up)
    with handled(signal.SIGHUP, signal.SIG_IGN):
        assert call(subject, subject.arguments(tmp_path / "run"))[0] == 0
    assert difference(subject.folder / "untouched" / "run", tmp_path / "run") == ""


class Unwritable(io.StringIO):
    """A log on a full disk, a closed terminal, or a pipe that nobody reads."""

    def __init__(self, number: int, lines: int = 3) -> None:
        super().__init__()
        self.number, self.lines = number, lines  # that are written before it fails

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") >= self.lines:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


OUTPUTS = [
    (name, e) for e in (errno.EPIPE, errno.ENOSPC, errno.EIO) for name in ("stdout", "stderr")
]


@pytest.mark.parametrize(
    "subject, output", each_once([*OUTPUTS, ("stdout", 0)]), indirect=["subject"]
)
def test_output_that_cannot_be_written_ends_no_run(subject, tmp_path, monkeypatch, output):
    """It is given up, and training goes on; but what `| head` ends stops and saves. 0: a closed
    one, in whose place Python has None."""
    output, number = output
    monkeypatch.setattr("shared.terminal.discard", lambda output: None)  # the test's own
    monkeypatch.setattr("shared.run.discard", lambda output: None)
    monkeypatch.setattr("shared.terminal.SECONDS", 0)  # progress is written, too
    arguments = [*map(str, subject.arguments(tmp_path / "run"))]
    with monkeypatch.context() as patch:
        patch.setattr(sys, output, Unwritable(number) if number else None)
        try:
            subject.module.main(arguments)
            status = 0
        except SystemExit as stop:
            status = stop.code
    if number == errno.EPIPE and output == "stdout":
        assert status == 128 + signal.SIGPIPE
        assert call(subject, ["--resume", "--out", tmp_path / "run"])[0] == 0
    else:
        assert status == 0
    assert difference(subject.folder / "untouched" / "run", tmp_path / "run") == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_run_without_any_output(corpus_file, tmp_path):
    """A full disk, on which Python fails again when it ends, and nothing at all."""
    v0 = load_version("v0_bigram")
    arguments = map(str, small_arguments(v0, data=corpus_file, out=tmp_path / "run"))
    command = '"$0" "$@" > /dev/full 2>&-'
    program = [sys.executable, str(ROOT / "v0_bigram" / "train.py")]
    assert subprocess.run(["sh", "-c", command, *program, *arguments]).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_progress_in_a_log_is_plain_lines(monkeypatch, capsys):
    """However often it is asked to show itself."""
    assert list(progress(range(3), desc="quick")) == [0, 1, 2]
    with progress(total=3, desc="quick") as bar:
        bar.set_description_str("still quick")
        bar.refresh()
    assert capsys.readouterr().err == ""  # no line is worth it
    monkeypatch.setattr("shared.terminal.SECONDS", 0)
    assert list(progress(range(3), desc="slow", unit="MB", miniters=1)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert "slow: 2 of 3 MB" in lines[-2] and not any("\r" in line for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGPIPE"])
def test_nothing_is_written_to_what_is_closed(name):
    import pty

    code = "import signal, sys; from shared.terminal import write_nowhere; print('before', "
    code += f"flush=True); write_nowhere(signal.{name}); print('after', flush=True)"
    ours, theirs = pty.openpty() if name == "SIGHUP" else os.pipe()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=theirs)
    assert done.returncode == 0 and os.read(ours, 1000).split() == [b"before"]
    os.close(theirs)
    os.close(ours)


# ---- disks and folders ----


def test_a_full_disk_leaves_the_checkpoint_before(subject, finished, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("LADDER_CACHE", str(subject.folder / "untouched" / "cache"))
    before = (finished / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, len(before) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            line = refusal(subject, ["--resume", "--out", finished, "--steps", "20"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(finished) in line and "large" in line
        assert (finished / "checkpoint.pt").read_bytes() == before
        assert list(finished.glob("*.tmp")) == []
    assert call(subject, ["--resume", "--out", finished, "--steps", "12"])[0] == 0
    assert difference(subject.folder / "untouched" / "run", finished) == ""


@contextmanager
def nobody():
    """Not root, whom no permission holds back."""
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if os.geteuid() == 65534:
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="only Linux changes users so")
def test_a_read_only_folder(subject, corpus_file, monkeypatch):
    with tempfile.TemporaryDirectory() as name:  # others may not look into pytest's
        folder = Path(name)
        shutil.copy(corpus_file, folder / "a.txt")
        shutil.copytree(subject.folder / "untouched" / "run", folder / "run")
        for path in (folder, folder / "run"):
            path.chmod(0o555)
        monkeypatch.setenv("LADDER_CACHE", str(folder / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        with nobody():
            new = refusal(subject, subject.arguments(folder / "new", data=folder / "a.txt"))
            resume = ["--resume", "--out", folder / "run", "--data", folder / "a.txt"]
            old = refusal(subject, resume)
        assert f"no files can be written to {folder}" in new
        assert f"no files can be written to {folder / 'run'}" in old
        for path in (folder, folder / "run"):
            path.chmod(0o755)


def test_a_folder_that_vanishes(subject, tmp_path, monkeypatch):
    log_step, out = Run.log_step, tmp_path / "run"

    def vanish(run, *rest):
        if run.step == 4:
            shutil.move(out, tmp_path / "moved")
        log_step(run, *rest)

    monkeypatch.setattr(Run, "log_step", vanish)
    assert "was moved or removed" in refusal(subject, subject.arguments(out))
    assert not out.exists()
    assert torch.load(tmp_path / "moved" / "checkpoint.pt")["progress"]["step"] == 3


def test_two_runs_into_one_folder(subject, finished):
    resume = ["--resume", "--out", finished]
    with lock_metrics(finished):
        for arguments in (resume, subject.arguments(finished)):
            assert f"another run is writing to {finished}" in refusal(subject, arguments)
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    assert call(subject, resume)[0] == 0


@pytest.mark.parametrize("name", sorted(RUN_FILES))
def test_nothing_is_written_through_a_link(subject, finished, tmp_path, name):
    """In a folder from elsewhere, names of a run's files may stand for other files or folders."""
    mine, link = tmp_path / "mine", finished / name
    if name == "tensorboard":
        (mine / "logs").mkdir(parents=True)
    else:
        link.write_bytes(b"best" if name == "best.pt" else link.read_bytes())
        shutil.move(link, mine)
    link.symlink_to(mine)
    (finished / "notes.1.tmp").write_text("removed as unfinished, if anything is")
    before, content = sorted(finished.iterdir()), mine.is_file() and mine.read_bytes()
    resume = ["--resume", "--out", finished, "--steps", "13"]
    for arguments in (resume, subject.arguments(finished)):
        assert f"{link} is a link" in refusal(subject, arguments)
    with pytest.raises(UserError, match="is a link"):
        open_folder(finished, resume=True)  # one that was made in the meantime
    assert sorted(finished.iterdir()) == before and link.is_symlink()
    assert mine.read_bytes() == content if content else (mine / "logs").is_dir()


@needs_fork
def test_the_lock_of_a_killed_run_is_none(tmp_path):
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_metrics(tmp_path):
            os.write(write, b"x")
            signal.pause()
    try:
        os.read(ready, 1)
        with pytest.raises(UserError, match="another run"):
            lock_metrics(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    lock_metrics(tmp_path).close()
    os.close(ready), os.close(write)


# ---- bad files, values, numbers, texts ----


def test_damaged_files_are_told_or_harmless(subject):
    options = faults.Options(damages=1)
    assert lost(faults.files(subject, random.Random(0), options)) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 100), st.booleans())
@example(b"", 0, True)
def test_any_bytes_in_a_file_are_told(subject, content, kept, whole):
    """After the first `kept` hundredths of the true file, what stood there or nothing of it."""
    run = subject.folder / "untouched" / "run"
    module = subject.module
    for name in ("tokenizer.json", "config.json"):
        true = (run / name).read_bytes()
        at = len(true) * kept // 100
        path = subject.folder / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(true[:at] + content + (true[at + len(content) :] if whole else b""))
        try:
            if name == "tokenizer.json":
                module.Tokenizer.load(path)
            else:
                load_config(module.Config, path.parent)
        except UserError as error:
            assert name in str(error)
    path = subject.folder / "out" / "tokens.npy"
    write_token_file(path, [range(40)], 40, "ab" * 32)
    true = path.read_bytes()
    at = len(true) * kept // 100
    path.write_bytes(true[:at] + content + (true[at + len(content) :] if whole else b""))
    if path.read_bytes() != true:
        with pytest.raises(UserError, match="tokens.npy"):
            open_token_file(path, "ab" * 32)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_does_not(subject, finished, tmp_path):
    bomb = pickle.dumps({"run": Bomb(tmp_path / "burst")})
    packed = io.BytesIO()
    with zipfile.ZipFile(finished / "checkpoint.pt") as true, zipfile.ZipFile(packed, "w") as made:
        for name in true.namelist():
            made.writestr(name, bomb if name.endswith("data.pkl") else true.read(name))
    for content in (bomb, packed.getvalue()):
        (finished / "checkpoint.pt").write_bytes(content)
        for option in ("--sample", "--resume"):
            assert "checkpoint.pt" in refusal(subject, [option, "--out", finished])
    assert not (tmp_path / "burst").exists()
    pickle.loads(bomb)
    assert (tmp_path / "burst").exists()  # it would have


class Claim:
    """What a file calls a tensor of 4 million numbers, in no more bytes than that takes to say."""

    def __reduce__(self):
        return torch.FloatTensor, (1 << 22,)


def repeated(times: int) -> list:
    """Lists within lists, which take 2 ** `times` steps to walk through or to print."""
    nested = []
    for _ in range(times):
        nested = [nested, nested]
    return nested


def first_of(values: dict) -> str:
    return next(iter(values))


def change_weight(saved, change):
    saved["model"][first_of(saved["model"])] = change(saved["model"][first_of(saved["model"])])


def expand_state(saved):
    state = saved["optimizers"][0]["state"]
    values = state[first_of(state)]
    name = next(name for name in values if getattr(values[name], "ndim", 0))
    values[name] = torch.zeros(1).expand(values[name].shape)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda saved: change_weight(saved, lambda x: torch.zeros(1).expand(4000, 4000)), "(4000"),
        (
            lambda saved: change_weight(saved, lambda x: torch.zeros(1).expand(x.shape)),
            "(ValueError)",
        ),
        (
            lambda saved: change_weight(saved, lambda x: x.to(torch.float8_e4m3fn)),
            "is torch.float8",
        ),
        (lambda saved: change_weight(saved, lambda x: x.to(torch.complex64)), "is torch.complex64"),
        (lambda saved: change_weight(saved, lambda x: x.int()), "is torch.int32"),
        (
            lambda saved: saved["model"].update(more=torch.zeros(1).expand(4000, 4000)),
            "other names",
        ),
        (expand_state, "(ValueError)"),
        (lambda saved: saved["optimizers"].append(Claim()), "(ValueError)"),
        (lambda saved: saved["run"].update(batch_size=repeated(20)), "(TypeError)"),
        (lambda saved: saved["progress"]["rows"][0].update(more=repeated(20)), "(ValueError)"),
    ],
)
def test_what_a_checkpoint_claims_is_checked_first(subject, finished, monkeypatch, change, said):
    saved = torch.load(finished / "checkpoint.pt", weights_only=True)
    change(saved)
    torch.save(saved, finished / "checkpoint.pt")
    isfinite, size = torch.Tensor.isfinite, (finished / "checkpoint.pt").stat().st_size

    def counted(tensor):
        assert tensor.nbytes <= size
        return isfinite(tensor)

    monkeypatch.setattr(torch.Tensor, "isfinite", counted)
    for option in ("--sample", "--resume"):
        line = refusal(subject, [option, "--out", finished])
        assert f"{finished}/checkpoint.pt is not a whole checkpoint" in line and said in line


def test_a_checkpoint_is_not_unpacked(subject, finished, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(finished / "checkpoint.pt") as true:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
            for name in true.namelist():
                made.writestr(name, true.read(name) + bytes(1 << 20) * name.endswith("data.pkl"))
    (finished / "checkpoint.pt").write_bytes(packed.getvalue())
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: raise_(AssertionError))
    for option in ("--sample", "--resume"):
        assert "checkpoint.pt is packed" in refusal(subject, [option, "--out", finished])


def test_tensors_in_endless_lists_are_found():
    tensor = torch.zeros(2)
    assert [*tensors({"a": repeated(60), "b": [tensor, (tensor,)], "c": {"d"}})] == [tensor, tensor]


def test_damaged_metrics_cost_nothing(subject, finished):
    for content in (b"\xff{\n[1]", None):
        (finished / "metrics.jsonl").unlink()
        if content is not None:
            (finished / "metrics.jsonl").write_bytes(content)
        assert call(subject, ["--resume", "--out", finished])[0] == 0
        assert difference(subject.folder / "untouched" / "run", finished) == ""


def test_values_of_every_kind(subject, tmp_path):
    left_out = {"data", "out", "prompt", "resume", "sample", "compile", "device", "steps"}
    names = [name for name in subject.known if name not in left_out]
    numbers = st.sampled_from(faults.WRONG_VALUES) | st.integers(-2, 9) | st.floats(-1, 4)
    values = numbers | st.floats() | st.text(string.printable, max_size=5)

    @settings(max_examples=8)
    @given(st.dictionaries(st.sampled_from(names), values, max_size=4))
    def check(options):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        arguments = subject.arguments(tmp_path / "run", steps=1, max_new_tokens=1)
        for name, value in options.items():
            arguments += [faults.option(name) + "=" + str(value)]
        status, _, errors = call(subject, arguments, most=1)
        assert not status or one_line_lacks(status, errors) == ""

    check()


def test_too_little_memory_is_told(subject, tmp_path, monkeypatch):
    allocator = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    errors = [RuntimeError(allocator), RuntimeError("MPS backend out of memory (MPS allocated: 1")]
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), *errors):
        monkeypatch.setattr(subject.module, "training_step", lambda *_, error=error: raise_(error))
        assert "out of memory" in refusal(subject, subject.arguments(tmp_path / "run"))
        shutil.rmtree(tmp_path / "run")


def test_memory_that_is_not_there_is_told_before_anything_moves(subject, finished, monkeypatch):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("shared.model_table.free_memory", lambda _: 10_000)
        assert "0.0 GB are free: " in refusal(subject, subject.arguments(finished))
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert call(subject, ["--sample", "--out", finished])[0] == 0


@pytest.mark.parametrize("what", ["training_step", "evaluate", "save_checkpoint"])
def test_a_run_that_cannot_start_leaves_the_folder_to_the_earlier_one(
    subject, finished, monkeypatch, what
):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    monkeypatch.setattr(subject.module, what, lambda *_: raise_(MemoryError()))
    assert "out of memory" in refusal(subject, subject.arguments(finished))
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_what_others_put_there_is_not_removed(finished, tmp_path):
    out, kept = tmp_path / "new", finished
    out.mkdir()
    (out / "notes.txt").touch()
    give_back(out, kept)
    assert (out / "notes.txt").exists() and (kept / "summary.json").exists()


def raise_(error):
    raise error


def test_weights_that_are_no_numbers_are_never_saved(subject):
    assert lost(faults.numbers(subject, random.Random(1), faults.Options(rounds=1))) == []


def test_any_bytes_are_trained_on_or_refused(subject, tmp_path):
    some = st.binary(max_size=3000) | st.text(max_size=1000).map(
        lambda t: t.encode("utf-8", "replace")
    )

    @settings(max_examples=6)
    @given(some | st.binary(min_size=1, max_size=3).map(lambda piece: piece * 999))
    @example(bytes(3000))
    @example(b"<|endoftext|>" * 3000 + b"a word or two\n" * 20)
    def check(content):
        (tmp_path / "a.txt").write_bytes(content)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        arguments = subject.arguments(tmp_path / "run", data=tmp_path / "a.txt", context_length=4)
        status, _, errors = call(subject, arguments, most=1)
        assert not status or one_line_lacks(status, errors) == ""

    check()


# ---- results ----


def test_nothing_was_lost():
    results = read_results(RESULTS / "faults" / "results.json")
    kills = [trial for trial in results["trials"] if trial["where"].startswith("kill in")]
    assert faults.times(kills) >= 50 and {v for kill in kills for v in kill["count"]} == {*VERSIONS}
    assert not any(trial["lost"] for trial in results["trials"])


def test_what_is_lost_is_shown():
    trial = {"fault": "kill", "where": "kill in step", "ended": "resumed"}
    trial |= {"commit": "abc", "count": {"v0_bigram": 1}}
    trials = [trial | {"lost": lost} for lost in ("", "metrics differs", "")]
    trials = faults.gathered(trials)
    assert [trial["count"] for trial in trials] == [{"v0_bigram": 2}, {"v0_bigram": 1}]
    machine = {"python": "3", "torch": "2"}
    text = faults.report({"trials": trials, "seed": 0, "machine": machine})
    assert "| kill in step | 3 | resumed | **1** |" in text
    trials += [trial | {"where": f"kill in {phase}", "lost": ""} for phase in ("end", "corpus")]
    text = faults.report({"trials": trials, "seed": 0, "machine": machine})
    assert "| kill in step | 3 | resumed | **1** |" in text
    assert "| kill in end, corpus | 2 | resumed | nothing |" in text


def test_a_long_run_does_not_grow():
    results = read_results(RESULTS / "soak" / "results.json")
    assert [run["version"] for run in results["runs"]] == VERSIONS and results["steps"] >= 20_000
    assert (RESULTS / "soak" / "table.md").read_text(encoding="utf-8") == soak.report(
        results
    ) + "\n"
    for run in results["runs"]:
        first, last = soak.tenth_medians(run["step_seconds"])
        assert soak.slope(run) * results["steps"] < 20e6
        assert run["left_open"] == 0
        assert last < 1.3 * first


def test_a_short_soak(corpus_file, tmp_path, monkeypatch):
    """The child's part of it, here: 10 measurements, and a sample at the last."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux has /proc")
    monkeypatch.setattr(soak, "POINTS", 10)
    monkeypatch.setattr(Run, "log_step", Run.log_step)  # it puts another in its place
    subject = Subject("v4_modern", corpus_file, tmp_path, soak.SMALLER)
    arguments = subject.arguments(tmp_path / "run", steps=20, evaluate_every=10)
    result = tmp_path / "result.json"
    command = ["-c", subject.version, "20", str(result), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    written, write = [], Run.write
    monkeypatch.setattr(
        Run, "write", lambda run, *how: written.append(run.step) or write(run, *how)
    )
    soak.measure_child()
    assert read_json(result)["step"] == list(range(2, 21, 2))
    assert written == [0, 10, 20, 20]  # at evaluations, ours, and at the end


def test_growth_is_seen():
    points = range(200)
    run = {"step": [10 * i for i in points], "memory": [10**8 + 500 * i for i in points]}
    assert soak.slope(run) == pytest.approx(50)
    seconds = [0.001 * (1 + i // 100) for i in points]
    assert soak.tenth_medians(seconds) == pytest.approx((0.001, 0.002))


def test_open_files_are_counted(tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux has /proc")
    before = soak.process_state()["handles"]
    with open(tmp_path / "a", "w"):
        assert soak.process_state()["handles"] == before + 1
    assert soak.process_state()["handles"] == before


def test_the_second_signal_does_not_wait(corpus_file, tmp_path, monkeypatch, capsys):
    v0 = load_version("v0_bigram")

    def hang(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waits")

    monkeypatch.setattr(v0, "training_step", hang)
    with pytest.raises(SystemExit) as stop:
        v0.main(small_arguments(v0, data=corpus_file, out=tmp_path))
    assert stop.value.code == 130 and capsys.readouterr().err.endswith("stopped\n")
