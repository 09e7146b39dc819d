"""--dtype: what "auto" means on a device, and that bfloat16 learns what float32 does."""

import os
from types import SimpleNamespace

import pytest
import torch
from conftest import load_version, random_model, small_config
from test_distributed import arguments_for, needs_fork, state, together
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.faults import equal
from shared.command_line import pick_device, pick_dtype
from v4_modern.run import Run

v4 = load_version("v4_modern")


@pytest.mark.parametrize(
    "flags, dtype",
    [
        ({}, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_has_it(flags, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert pick_dtype("auto", torch.device("cpu")) == dtype
    assert pick_dtype("auto", torch.device("mps")) == "float32"
    for name in ("float32", "bfloat16"):
        assert pick_dtype(name, torch.device("cpu")) == name


def test_bfloat16_learns_what_float32_does(corpus_file, tmp_path):
    scores = {}
    for dtype in ("float32", "bfloat16"):
        files = {"data": str(corpus_file), "out": str(tmp_path / dtype)}
        summary = v4.train(small_config(v4, **files, dtype=dtype, steps=60, checkpoint_every=60))
        assert summary["dtype"] == dtype
        scores[dtype] = summary["bits_per_byte"]
        saved = torch.load(tmp_path / dtype / "checkpoint.pt", weights_only=True)
        assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.02)  # of 8 bits
    assert scores["bfloat16"] != scores["float32"]


class Seen(TorchDispatchMode):
    """The types of what matrix products give, and of what is summed up over many numbers."""

    PRODUCTS = "mm", "bmm", "baddbmm"
    SUMS = "_softmax", "_log_softmax", "mean", "linalg_vector_norm"

    def __init__(self):
        super().__init__()
        self.products, self.sums = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        name = str(function).split(".")[1]
        if name in self.PRODUCTS:
            self.products.append(result.dtype)
        if name in self.SUMS:
            self.sums.append((name, arguments[0].dtype))
        return result


def test_products_are_in_bfloat16_and_nothing_else(monkeypatch):
    """On a CPU, torch 2.13's autocast would leave the sums in 16 bits where it finds them so."""
    model, config = random_model(v4, dtype="bfloat16")
    optimizers, dtypes = v4.make_optimizers(model, config), []
    orthogonalize, cross_entropy = v4.orthogonalize, v4.cross_entropy

    def seen(*x):
        dtypes.append(x[0].dtype)
        return x

    monkeypatch.setattr(v4, "orthogonalize", lambda x: seen(orthogonalize(x))[0])
    monkeypatch.setattr(v4, "cross_entropy", lambda *x: cross_entropy(*seen(*x)))
    model.head.register_forward_hook(lambda *x: seen(x[2]) and None)
    model.norm.register_forward_pre_hook(lambda _, x: seen(*x) and None)  # the residual stream
    device = torch.device("cpu")
    run = SimpleNamespace(model=model, replica=model, step=0, device=device, optimizers=optimizers)
    with Seen() as kinds:
        v4.training_step(run, torch.randint(config.vocab_size, (200,)).numpy(), config)
    stream, logits, scored, *updates = dtypes
    assert (stream, logits, scored) == (torch.float32, torch.bfloat16, torch.float32)
    assert updates and set(updates) == {torch.bfloat16}
    assert len(kinds.products) > 50 and set(kinds.products) == {torch.bfloat16}
    assert set(kinds.sums) == {(name, torch.float32) for name in Seen.SUMS}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_optimizers_remember_comes_back_as_it_was(version, dtype):
    """`load_state_dict` turns all but "step" into its parameter's type (torch 2.13): that is no
    change as long as it already has this type."""
    model, config = random_model(version, vocab_size=300)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, after = version.make_optimizers(model, config), version.make_optimizers(model, config)
    for old, new in zip(before, after):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            old.step()
        new.load_state_dict(old.state_dict())
        assert new.state and equal(old.state_dict(), new.state_dict())
        for parameter, kept in old.state.items():
            for name, value in kept.items():
                loaded = new.state[parameter][name]
                assert type(loaded) is type(value)
                if name != "step" and isinstance(value, torch.Tensor):
                    assert value.dtype == loaded.dtype == parameter.dtype


@needs_fork
def test_two_processes_exchange_bfloat16(corpus_file, tmp_path):
    def work(rank):
        os.environ["LADDER_CACHE"] = str(tmp_path / "cache")
        finish = Run.finish

        def finished(run, *rest):
            torch.save(run.model.state_dict(), tmp_path / f"weights{rank}")
            return finish(run, *rest)

        Run.finish = finished
        v4.main(arguments_for(corpus_file, tmp_path / "two", dtype="bfloat16"))

    ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [0, 0], ends[0].err + ends[1].err
    first, second = (torch.load(tmp_path / f"weights{rank}", weights_only=True) for rank in (0, 1))
    assert equal(first, second)
    v4.main(arguments_for(corpus_file, tmp_path / "one", dtype="bfloat16"))
    assert state(tmp_path / "two")[0] == pytest.approx(state(tmp_path / "one")[0], rel=0.02)


@pytest.mark.parametrize(
    "cuda, mps, device", [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_best_device(cuda, mps, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == device
