"""The harness: versions loaded by path, a small corpus, and models that train in a moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import forked
import pytest
import torch
from hypothesis import HealthCheck, settings
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import shared.run
from benchmarks import common, faults
from benchmarks.common import VERSIONS, load_version  # noqa: F401 - tests import them from here
from benchmarks.faults import without_times
from shared.corpora import Corpus, load_corpus
from shared.files import atomic_write, lock

slow = [HealthCheck.too_slow]  # a busy machine is
settings.register_profile(
    "tests", deadline=None, max_examples=60, print_blob=True, suppress_health_check=slow
)
settings.load_profile("tests")
CACHE = None  # never the user's
if "PYTEST_XDIST_WORKER" not in os.environ:  # those that xdist starts share it
    CACHE = tempfile.TemporaryDirectory(prefix="ladder-tests-")  # until the tests end
    os.environ["LADDER_CACHE"] = CACHE.name
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has us ignore it
os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start
torch.set_num_threads(1)  # small models: threads would only wait for each other
os.fsync = lambda file: None  # no test cuts the power, and a disk takes 10 ms each time
if hasattr(os, "register_at_fork"):  # a child killed with tqdm's lock in hand would keep it for all
    os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


def pytest_unconfigure() -> None:
    if CACHE:
        CACHE.cleanup()


def sketch(rows: list[dict], picture: Path, title: str) -> None:
    """In place of `draw_loss`, which takes most of the time of a small run: all that the picture is
    made of, so that two are the same if all of that is. Tests of pictures ask for real ones."""
    shown = [without_times(row) for row in rows]
    with atomic_write(picture) as file:
        file.write(json.dumps([title, shown]).encode())


draw_loss, shared.run.draw_loss = shared.run.draw_loss, sketch


@pytest.fixture
def real_pictures(monkeypatch) -> None:
    monkeypatch.setattr(shared.run, "draw_loss", draw_loss)


def each_once(values: list) -> list[tuple]:
    """(version, value): each of the values with the last version, and with each other version one
    of them. For what takes long and is in shared/, or in sections that are the same in all."""
    of_others = [(name, values[i % len(values)]) for i, name in enumerate(VERSIONS[:-1])]
    return [(VERSIONS[-1], value) for value in values] + of_others


def by_characters(version: ModuleType) -> bool:
    """Whether the version's tokens are characters: then it knows only those it has seen."""
    return version.__name__ in ("ladder_v0_bigram", "ladder_v1_char_transformer")


SMALL = {
    "vocab_size": 300,
    "context_length": 16,
    "width": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_size": 8,
    "feed_forward_size": 24,
    "steps": 6,
    "batch_size": 4,
    "evaluate_every": 3,
    "checkpoint_every": 4,
    "max_new_tokens": 20,
    "device": "cpu",
    "dtype": "float32",  # as exact as on any machine
}


def small_config(version: ModuleType, **options):
    """The version's Config at a size that trains in a moment; options it lacks are left out."""
    fields = version.Config.__dataclass_fields__
    return version.Config(**{k: v for k, v in (SMALL | options).items() if k in fields})


def small_arguments(version: ModuleType, **options) -> list[str]:
    """The same as a command line."""
    fields = version.Config.__dataclass_fields__
    values = {k: v for k, v in (SMALL | options).items() if k in fields}
    if by_characters(version):
        values.pop("vocab_size", None)  # counted there, no option
    return [part for k, v in values.items() for part in ("--" + k.replace("_", "-"), str(v))]


def random_model(version: ModuleType, seed: int = 0, **options):
    """A model whose weights are all random: fresh ones may be zero, and zeros hide mistakes."""
    config = small_config(version, **options)
    torch.manual_seed(seed)
    model = version.LanguageModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval(), config


def small_text(n_documents: int = 60, seed: int = 0) -> str:
    """Documents of made-up prose, alike enough to be learned."""
    words = "the a cat dog sees finds big small red house tree and runs to from it's 42 don't"
    chance = random.Random(seed)
    documents = []
    for _ in range(n_documents):
        lines = [" ".join(chance.choices(words.split(), k=9)) + "." for _ in range(6)]
        documents.append("\n".join(lines))
    return "<|endoftext|>".join(documents)


@pytest.fixture(params=VERSIONS)  # a test may name others
def version(request) -> ModuleType:
    return load_version(request.param)


@pytest.fixture(scope="session")
def pydocs() -> Corpus:
    """Which takes seconds to prepare, so one of xdist's processes does it for all."""
    with open(Path(os.environ["LADDER_CACHE"]) / "pydocs.lock", "w") as file:
        while not lock(file):
            time.sleep(0.1)
        return load_corpus("pydocs")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "small.txt"
    path.write_bytes(small_text().encode("utf-8"))
    return path


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The command lines of the runs that the benchmarks have started, here in processes that need
    not import torch."""
    commands = []

    def start(command: list[str], **options) -> forked.Popen:
        commands.append(command)
        return forked.Popen(command, **options)

    for module in (common, faults):
        parts = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=start, **parts))
    return commands


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory, corpus_file) -> Path:
    """A folder with a finished run of every version, to be read, or copied and damaged."""
    folder = tmp_path_factory.mktemp("finished")
    for name in VERSIONS:
        version = load_version(name)
        version.train(small_config(version, data=str(corpus_file), out=str(folder / name)))
    return folder


CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()


@pytest.fixture(scope="module")
def browser():
    """Chromium or Chrome from the path; without it, or playwright, its tests are left out."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()
