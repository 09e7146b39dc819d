"""--dtype: what "auto" means on a device, and that bfloat16 learns what float32 does."""

import os

import pytest
import torch
from conftest import load_version, small_config
from test_distributed import arguments_for, needs_fork, state, together

from shared.command_line import pick_dtype

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
        assert {tensor.dtype for tensor in saved["states"][0].values()} == {torch.float32}
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.02)  # of 8 bits
    assert scores["bfloat16"] != scores["float32"]


@needs_fork
def test_two_processes_exchange_bfloat16(corpus_file, tmp_path):
    def work(_):
        os.environ["LADDER_CACHE"] = str(tmp_path / "cache")
        v4.main(arguments_for(corpus_file, tmp_path / "two", dtype="bfloat16"))

    ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [0, 0], ends[0].err + ends[1].err
    v4.main(arguments_for(corpus_file, tmp_path / "one", dtype="bfloat16"))
    assert state(tmp_path / "two")[0] == pytest.approx(state(tmp_path / "one")[0], rel=0.02)
