"""Memory that is freed is kept, and what is not there is not asked for."""

import ctypes
import re
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from conftest import load_version, random_model, small_arguments, small_config

from benchmarks.faults import equal
from shared import machine, model_table
from shared.files import UserError
from shared.machine import free_memory
from shared.model_table import (
    OVERHEAD,
    WithoutWeights,
    build,
    check_memory,
    measure,
    peak_of_a_step,
)

ROOT = Path(__file__).resolve().parents[1]
FAULTS = """
import resource
import numpy as np
from shared.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 26, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()  # the first time, numpy's own memory too
by_default = faults()
keep_freed_memory()
faults()  # gets the memory that is kept
print(by_default, faults())
"""


# Of arrays too small for numpy to ask for large pages itself: what the system was advised of them.
FLAGS = """
import re
from pathlib import Path
import numpy as np
import torch
from shared.machine import keep_freed_memory

def flags(address):
    for area in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        start, end = (int(number, 16) for number in area.split()[0].split("-"))
        if start <= address < end:
            return re.search("VmFlags:(.*)", area)[1].split()

before = np.ones(3 << 20, np.uint8)
keep_freed_memory()
used = np.ones(50 << 20, np.uint8)  # what was free before
array, tensor = np.ones(3 << 20, np.uint8), torch.ones(1 << 20)
addresses = before.ctypes.data, array.ctypes.data, tensor.data_ptr()
print(*("hg" in flags(address) for address in addresses))
"""


def printed(code: str) -> list[str]:
    """What `code` prints in a process of its own: this one may keep its memory already."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not the GNU C library")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is Linux's")
def test_freed_memory_is_kept():
    by_default, kept = map(int, printed(FAULTS))
    assert kept < by_default / 10


@pytest.mark.skipif(sys.platform != "linux", reason="madvise is Linux's")
def test_large_pages_are_asked_for():
    assert printed(FLAGS) == ["False", "True", "True"]


RESERVED = """
from pathlib import Path
import shared.machine

def pages():
    return int(Path("/proc/self/statm").read_text().split()[0])

shared.machine.PROCESSES, before = Path({folder!r}), pages()
shared.machine.keep_freed_memory()
print(pages() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="madvise is Linux's")
@pytest.mark.parametrize("overcommit", ["0", "1", "2"])
def test_where_addresses_count_as_memory_none_are_reserved(overcommit, tmp_path):
    (tmp_path / "sys" / "vm").mkdir(parents=True)
    (tmp_path / "sys" / "vm" / "overcommit_memory").write_text(overcommit + "\n")
    (pages,) = map(int, printed(RESERVED.format(folder=str(tmp_path))))
    assert (pages < 1000) == (overcommit == "2")


MEMORY = "MemTotal: 9000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\nSwapFree:  5 kB\n"
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
V2 = "memory.max", "memory.current", ""


@pytest.mark.parametrize(
    "names, tree, line, groups, free",
    [
        (V2, "", "0::/a/b", {}, 4005 * 1024),
        (V2, "", "0::/a/b", {"a/b": ("max", 70_000)}, 4005 * 1024),
        (V2, "", "0::/a/b", {"a/b": (100_000, 70_000)}, 31_100),
        (V2, "", "0::/a/b", {"a/b": ("max", 70_000), "a": (90_000, 80_000)}, 11_100),
        (V2, "", "0::/", {"": (100_000, 70_000)}, 31_100),
        (V1, "memory", "4:memory:/a", {"a": (2**63 - 4096, 70_000)}, 4005 * 1024),
        (V1, "memory", "4:memory:/a", {"a": (100_000, 70_000)}, 31_100),
        (V1, "memory", "4:memory:/elsewhere", {"": (100_000, 70_000)}, 31_100),
        (V1, "memory", "4:cpu:/a", {"a": (100_000, 70_000)}, 4005 * 1024),
    ],
)
def test_free_memory_is_what_the_machine_and_its_groups_leave(
    names, tree, line, groups, free, tmp_path, monkeypatch
):
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(MEMORY)
    (tmp_path / "self" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    limit_file, used_file, part = names
    for group, (limit, used) in groups.items():
        folder = tmp_path / "groups" / tree / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit_file).write_text(f"{limit}\n")
        (folder / used_file).write_text(f"{used}\n")
        caches = f"{part}active_file 1000\n{part}inactive_file 100\n"
        (folder / "memory.stat").write_text(f"anon 9\n{caches}")
    monkeypatch.setattr(machine, "PROCESSES", tmp_path)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    assert free_memory(torch.device("cpu")) == free


def test_where_the_system_does_not_say_nothing_is_refused(version, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROCESSES", tmp_path)
    assert free_memory(torch.device("cpu")) is free_memory(torch.device("mps")) is None
    model, config = random_model(version, batch_size=10**6)
    check_memory(model, (), config, torch.device("cpu"))


def test_a_model_that_does_not_fit_is_not_built(version, monkeypatch):
    """Its weights are counted before there are any, and those that are made then are the same."""
    config = small_config(version)
    torch.manual_seed(5)
    expected = version.LanguageModel(config).state_dict()
    n_bytes = 4 * sum(p.numel() for p in version.LanguageModel(config).parameters())
    torch.manual_seed(5)
    monkeypatch.setattr(model_table, "free_memory", lambda _: n_bytes)
    assert equal(dict(build(version.LanguageModel, config).state_dict()), dict(expected))
    monkeypatch.setattr(model_table, "free_memory", lambda _: n_bytes - 1)
    made = []
    monkeypatch.setattr(torch.nn.Parameter, "__new__", spied(torch.nn.Parameter.__new__, made))
    with pytest.raises(UserError, match="the model's weights take .* choose a smaller model"):
        build(version.LanguageModel, config)
    assert made and all(parameter.is_meta for parameter in made)


def test_weights_without_numbers_need_no_compiler(version, monkeypatch):
    """Torch imports it to draw numbers for weights without data, or to compute others there."""
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, None)
    with WithoutWeights():
        model = version.LanguageModel(small_config(version))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_training_without_compile_does_not_import_the_compiler(corpus_file, tmp_path):
    """As torch's optimizers do, for a second and 50 MB; v4 has its own."""
    v4 = load_version("v4_modern")
    arguments = [v4.__file__, *small_arguments(v4, data=corpus_file, out=tmp_path / "run", steps=2)]
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    code += "; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert "2 steps in" in done.stdout and "'torch.optim.optimizer'" in done.stdout, done.stderr
    assert "'torch._dynamo'" not in done.stdout


def spied(function, results: list):
    def spy(*arguments, **options):
        results.append(function(*arguments, **options))
        return results[-1]

    return spy


def test_training_does_not_begin_with_a_model_that_does_not_fit(
    version, corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(model_table, "free_memory", lambda _: 2000)
    with pytest.raises(SystemExit) as stop:
        version.main(small_arguments(version, data=corpus_file, out=tmp_path / "run"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and re.fullmatch(r"error: the model's weights take .*\n", said)
    assert not (tmp_path / "run").exists()


def test_a_step_that_does_not_fit_is_refused(version, monkeypatch):
    model, config = random_model(version, batch_size=1000)
    optimizers = version.make_optimizers(model, config)
    needed = peak_of_a_step(config, version.LanguageModel, version.make_optimizers)
    before = torch.get_rng_state()
    monkeypatch.setattr(model_table, "free_memory", lambda _: needed)
    check_memory(model, optimizers, config, torch.device("cpu"))
    monkeypatch.setattr(model_table, "free_memory", lambda _: needed - 1)
    with pytest.raises(UserError, match="a step needs about .* lower --batch-size"):
        check_memory(model, optimizers, config, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(optimizer.state for optimizer in optimizers)


def test_the_memory_of_a_step_is_what_torchs_allocator_gave(version):
    """By the profiler, whose record has every allocation and release of a true step."""
    config = small_config(version, batch_size=32, context_length=32)
    model = version.LanguageModel(config).train()
    optimizers = version.make_optimizers(model, config)
    ids = torch.zeros(config.batch_size, config.context_length, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as recorded:
        model(ids, targets=ids).backward()
        for optimizer in optimizers:
            optimizer.step()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    highest = OVERHEAD * max(accumulate(changes))
    estimate = peak_of_a_step(config, version.LanguageModel, version.make_optimizers)
    assert estimate == pytest.approx(highest, rel=0.02)


def test_on_a_gpu_what_is_kept_is_counted(monkeypatch):
    """Its kernels are other ones: what does not fit for sure is refused."""
    v4 = load_version("v4_modern")
    model, config = random_model(v4, batch_size=1000)
    optimizers, gpu = v4.make_optimizers(model, config), torch.device("mps")
    size = measure(config, v4.LanguageModel, v4.make_optimizers)
    needed = size.gradients + size.optimizer_state + size.activations
    monkeypatch.setattr(model_table, "free_memory", lambda _: needed)
    check_memory(model, optimizers, config, gpu)
    monkeypatch.setattr(model_table, "free_memory", lambda _: needed - 1)
    with pytest.raises(UserError, match="a step needs about"):
        check_memory(model, optimizers, config, gpu)


def test_what_surely_fits_costs_no_measurement(version, monkeypatch):
    monkeypatch.setattr(model_table, "free_memory", lambda _: 4 * 10**9)
    for name in ("measure", "peak_of_a_step"):
        monkeypatch.setattr(model_table, name, lambda *_: (_ for _ in ()).throw(AssertionError))
    model, config = random_model(version)
    check_memory(model, version.make_optimizers(model, config), config, torch.device("cpu"))


def test_16_bits_take_less(monkeypatch):
    v4, asked = load_version("v4_modern"), []
    config = small_config(v4, batch_size=1000)
    model = v4.LanguageModel(config)
    true = peak_of_a_step
    monkeypatch.setattr(model_table, "free_memory", lambda _: 10**5)
    monkeypatch.setattr(model_table, "peak_of_a_step", spied(true, asked))
    for dtype in ("float32", "bfloat16"):
        config.dtype = dtype
        with pytest.raises(UserError):
            check_memory(model, v4.make_optimizers(model, config), config, torch.device("cpu"))
    assert asked[1] < asked[0]
