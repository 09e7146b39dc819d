"""The benchmark of training: its numbers by hand, its parts of the step they are said to be of."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_version, small_config

from benchmarks import common, race, records, trainers, training
from benchmarks.trainers import NanoGPTTrainer, V4Trainer, complete_run, load_nanogpt
from shared.files import UserError, read_json

MACHINE = {"python": "3.11", "torch": "2.13", "threads": 2, "commit": "0123456789abcdef"}
# Seconds that can be told apart: 1 + 3 + 4 + 2 of clipping, AdamW, Muon and the rest, 10 in all.
SECONDS = {"data": 0.2, "forward and loss": 3.0, "backward": 4.0, "clipping": 0.3, "AdamW": 0.5}
SECONDS |= {"Muon": 1.5, "the rest": 0.5, "whole step": 10.0}
FLOPS = dict.fromkeys(SECONDS, 0) | {"forward and loss": 10e9, "backward": 20e9, "Muon": 20e9}
FLOPS |= {"whole step": 50e9}
ALONE = {
    "data": "toy",
    "machine": MACHINE,
    "steps": 20,
    "width": 128,
    "parameters": 1234,
    "tokens_a_step": 1000,
    "bytes_a_token": 2.5,
    "seconds": SECONDS,
    "flops": FLOPS,
    "dtype": "bfloat16",
    "peak_flops_a_second": 8e9,
    "written_a_second": {"cache": 600.0, "no cache": 100.0},
    "written": {"tokens": 500, "context": 256},
    "memory": {"before": 200e6, "kept": 30e6, "peak": 300e6},
}


def runs(who: str, steps: int, *bits: float | None) -> list[dict]:
    return [
        {"who": who, "steps": steps, "seed": seed, "bits_per_byte": b, "curve": [[0, 6.0]]}
        for seed, b in enumerate(bits)
    ]


RACE = {
    "machine": MACHINE,
    "text": {"name": "toy", "sha256": "ab" * 32, "val_bytes": 1000, "bytes": 10_000},
    "tokenizers": {
        race.SUBWORDS: {"vocab_size": 2048, "seconds": 1.0, "bytes_a_token": 2.5},
        race.CHARACTERS: {"vocab_size": 257, "seconds": 0.5, "bytes_a_token": 1.0},
    },
    "parameters": {race.NANOGPT: 800, race.SUBWORDS: 1300, race.CHARACTERS: 900},
    "step_turns": 100,
    "dtype": "bfloat16",
    "step_seconds": {
        race.NANOGPT: 0.05,
        race.SUBWORDS: 0.1,
        race.CHARACTERS: 0.08,
        race.ALIKE: 0.04,
    },
    "compiled_step_seconds": {
        race.NANOGPT: 0.04,
        race.SUBWORDS: 0.08,
        race.CHARACTERS: 0.06,
        race.UNCOMPILED: 0.05,
    },
    "written_a_second": {race.NANOGPT: 100.0, race.CHARACTERS: 550.0},
    "written": {"tokens": 500, "context": 256},
    "runs": [
        *runs(race.NANOGPT, 100, 2.0, 3.0),
        *runs(race.SUBWORDS, 10, 2.4, 2.7),
        *runs(race.SUBWORDS, 12, 2.0),  # stopped before the second seed
        *runs(race.SUBWORDS, 20, 2.4, 2.5),
        *runs(race.SUBWORDS, 40, 1.0, 2.0),
        *runs(race.CHARACTERS, 56, None, 2.0),
    ],
}
WIDE = ALONE | {"width": 256, "parameters": 12_345, "peak_flops_a_second": 10e9}
RESULTS = {"options": {"nanogpt_steps": 100}, "alone": ALONE, "wider": [WIDE], "nanogpt": RACE}
RESULTS["float32"] = ALONE | {"dtype": "float32", "peak_flops_a_second": 5e9}
RESULTS |= {"processes": [{"processes": 1, "tokens_a_step": 8.0, "tokens_a_second": 100.0}]}
RESULTS["processes"] += [{"processes": 2, "tokens_a_step": 16.0, "tokens_a_second": 150.0}]


# ---- what is told ----


def test_a_step_and_its_share_of_the_machine_by_hand():
    """1,000 tokens and 50 GFLOP in 10 s, 5 of the 8 GFLOP/s there are; the model's own are 30."""
    of = training.summarize(ALONE)
    assert of["shares"]["backward"] == pytest.approx(0.4)
    assert of["tokens_a_second"] == 100
    assert of["utilization"] == pytest.approx(5 / 8)
    assert of["model_utilization"] == pytest.approx(3 / 8)
    text = training.report(RESULTS)
    assert "| Muon | 1500.0 | 15.0% | 20.00 |" in text and "| data | 200.0 | 2.0% |  |" in text
    assert "5.0, **62%** of the 8.0" in text and "3.0, 38%" in text
    assert "| bytes a second | 250 |" in text
    wider, less_peak = "12,345 | 1,000 | 10,000 | 5 (50%) | 3 (30%)", "10,000 | 5 (100%) | 3 (60%)"
    assert f"| 256 | bfloat16 | {wider} | 200 | 30 | 300 |" in text
    assert f"| 128 | float32 | 1,234 | 1,000 | {less_peak} | 200 | 30 | 300 |" in text
    assert "600, 6.0 times the 100" in text


def test_processes_are_compared_with_the_fewest():
    text = training.report(RESULTS)
    assert "| 1 | 8 | 100 | 1.00 | 100% |" in text and "| 2 | 16 | 150 | 1.50 | 75% |" in text


def test_the_race_by_hand():
    """nanoGPT: 100 steps of 50 ms, 2.5 bits. v4 is there in 20 of 100 ms and 1 s of tokenizer, 3 s
    of 5; in 5 s it takes 40. By characters it takes (5 - 0.5) / 0.08 steps."""
    rows = race.summarize(RACE, 100)
    v4, characters = (rows[who] for who in race.OURS)
    assert v4["steps"] == 20 and v4["seconds"] == pytest.approx(3.0)
    assert v4["share"] == pytest.approx(0.6) and v4["equal_steps"] == 40
    assert characters["steps"] is None and characters["equal_steps"] == 56
    assert characters["step_ratio"] == pytest.approx(1.6)
    text = training.report(RESULTS)
    assert "| **share of nanoGPT's seconds** | **1.000** | **0.600** | not reached |" in text
    assert "seconds** | 2.500 ± 0.707 | 1.500 ± 0.707 | diverged, 1 of 2 |" in text
    assert "after those steps | 2.500 ± 0.707 | 2.450 ± 0.071 | not reached |" in text
    assert "| the same, times nanoGPT's in bfloat16 | 1.25 | 2.50 | 2.00 |" in text
    assert "| a compiled step, times nanoGPT's not compiled | 0.80 | 1.60 | 1.20 |" in text
    assert "| the same, times nanoGPT's compiled | 1.00 | 2.00 | 1.50 |" in text
    assert "| 100 |  | 550 (5.5 times) |" in text and "2 seeds" in text


def test_a_race_goes_on_with_its_own_text_alone(corpus_file):
    with pytest.raises(UserError, match="has changed since it was begun"):
        race.Race(None, str(corpus_file), 10, 1, {"text": RACE["text"]}, None)


# ---- what is measured ----


def toy_trainer(on_call, optimizers: list) -> SimpleNamespace:
    """A linear model, (6, 5) -> (6, 4), and its loss; a trainer that calls what v4's step calls."""

    class Model(torch.nn.Linear):
        def forward(self, x):
            on_call("loss")
            return super().forward(x).sum()

    module = SimpleNamespace(
        get_batch=lambda: on_call("data") or torch.ones(6, 5),
        clip_grad_norm=lambda: on_call("clip"),
    )
    model = Model(5, 4, bias=False)
    trainer = SimpleNamespace(module=module, model=model, optimizers=optimizers)

    def train_step():
        on_call("rest")
        model(module.get_batch()).backward()
        module.clip_grad_norm()
        for optimizer in optimizers:
            optimizer.step()

    trainer.train_step = train_step
    return trainer


def test_the_parts_of_a_step_are_told_apart():
    """A clock that each call moves on by another amount."""
    now, costs = [0], {"data": 1, "loss": 2, "clip": 4, "rest": 8, "adam": 16}

    def on_call(what):
        now[0] += costs[what]

    class Adam:
        def step(self):
            on_call("adam")

    trainer = toy_trainer(on_call, [Adam()])
    before = vars(trainer.module).copy()
    parts = training.split_step(trainer, lambda: now[0])
    assert parts == {"data": 1, "forward and loss": 2, "backward": 0, "clipping": 4} | {
        "Adam": 16,
        "the rest": 8,
        "whole step": 31,
    }
    assert vars(trainer.module) == before and "step" not in vars(trainer.optimizers[0])


def test_flops_of_a_linear_model_are_counted_as_by_hand():
    """2 m n k for the product, as many for the weights' gradient; none for the input's, which
    needs none; and for an optimizer that multiplies (4, 5) by (5, 4), 2 * 4 * 5 * 4."""

    class Gram:
        def step(self):
            trainer.model.weight.detach() @ trainer.model.weight.detach().T

    trainer = toy_trainer(lambda what: None, [Gram()])
    flops, product = training.count_flops(trainer), 2 * 6 * 5 * 4
    assert flops["forward and loss"] == flops["backward"] == product
    assert flops["Gram"] == 2 * 4 * 5 * 4
    assert flops["whole step"] == 2 * product + flops["Gram"] and flops["the rest"] == 0


@pytest.fixture
def small_v4() -> V4Trainer:
    v4 = load_version("v4_modern")
    tokenizer = v4.Tokenizer.train(["the cat sat on the mat. " * 50], 270)
    tokens = np.array(tokenizer.encode("the cat sat on the mat. " * 50))
    config = small_config(v4, vocab_size=tokenizer.vocab_size)
    return V4Trainer(config, tokenizer, tokens, tokens[:40])


def test_flops_of_v4_are_counted_as_by_hand(small_v4):
    """Forward: each matrix times each token, and two products of attention a head and block.
    Backward: twice that."""
    c = small_v4.config
    model = small_v4.model
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    matrices += model.head.weight.numel()
    attention = 2 * c.n_layers * c.batch_size * c.n_heads * c.context_length**2 * c.head_size
    forward = 2 * (c.batch_size * c.context_length * matrices + attention)
    flops = training.count_flops(small_v4)
    assert flops["forward and loss"] == forward and flops["backward"] == 2 * forward
    assert flops["Muon"] > 0 and flops["whole step"] == 3 * forward + flops["Muon"]


def test_the_parts_of_v4s_step_make_the_whole(small_v4, monkeypatch):
    monkeypatch.setattr(training.time, "perf_counter", time.process_time)  # others wait, we do not
    parts, peak = training.time_steps(small_v4, 5)
    whole = parts.pop("whole step")
    assert list(parts)[:4] == list(training.PARTS) and list(parts)[-1] == "the rest"
    assert sum(parts.values()) == pytest.approx(whole, rel=0.5)  # medians of their own
    assert all(seconds > 0 for seconds in parts.values()) and peak > 0
    assert parts["the rest"] < 0.5 * whole  # nothing that matters has been missed


def test_wider_means_more_heads_feed_forward_and_windows_too(small_v4, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        training, "make_v4", lambda data, **options: asked.update(options) or (small_v4, 2.5)
    )
    monkeypatch.setattr(training, "in_new_process", lambda *_: {})
    row, shipped = training.measure_wider(training.Options(), 3), load_version("v4_modern").Config()
    assert asked.pop("feed_forward_size") == 3 * shipped.feed_forward_size
    assert {name: value / getattr(shipped, name) for name, value in asked.items()} == dict.fromkeys(
        ("width", "n_heads", "n_kv_heads", "batch_size"), 3
    )
    c = small_v4.config
    assert row["width"] == c.width and row["tokens_a_step"] == c.batch_size * c.context_length


def test_memory_is_of_the_model_asked_for(small_v4, monkeypatch):
    monkeypatch.setattr(training, "make_v4", lambda data, **options: (small_v4, options["width"]))
    memory = training.memory_of_training("toy", torch.get_num_threads(), {"width": 16})
    of_weights = 4 * sum(p.numel() for p in small_v4.model.parameters())
    assert 3 * of_weights < memory["kept"] < 30e6 < memory["before"] <= memory["peak"]


def test_tokens_a_second_are_of_the_steps_after_the_first_row(tmp_path):
    """From step 10 at 5 s to step 30 at 9 s: 20 steps of 8 tokens in 4 s."""
    (tmp_path / "summary.json").write_text('{"train_tokens": 240, "steps": 30}')
    rows = [{"step": 0, "val_loss": 3.0, "seconds": 0.0}]
    rows += [{"step": s, "train_loss": 2.0, "seconds": t} for s, t in ((10, 5.0), (30, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training.tokens_a_second(tmp_path) == {"tokens_a_step": 8, "tokens_a_second": 40}


# ---- the race ----

NANOGPT = '''
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    """Each character alike likely, at first."""
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        torch.nn.init.zeros_(self.table.weight)
    def configure_optimizers(self, decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), rate, betas, weight_decay=decay)
    def forward(self, ids, targets):
        logits = self.table(ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss
    def generate(self, ids, count):
        return ids
'''


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "model.py").write_text(NANOGPT)
    return tmp_path / "clone"


def test_nanogpt_is_scored_in_bits_per_byte_and_its_rate_is_the_published(clone):
    """log2 of 8 characters for each one but the first, in one byte each."""
    ids = np.arange(100) % 8
    trainer = NanoGPTTrainer(load_nanogpt(str(clone)), 0, 300, 8, ids, ids, len(ids) - 1)
    assert trainer.score() == pytest.approx(3.0)
    rates = []
    for step in (0, 99, 100, 200, 300):
        trainer.step = step
        rates.append(trainer.learning_rate())
    assert rates == pytest.approx([1e-3 / 101, 1e-3 * 100 / 101, 1e-3, 5.5e-4, 1e-4])


def test_nanogpt_learns_what_follows_and_is_scored_on_it(clone):
    """A table that gives half of the probability to the character that does follow costs a bit."""
    ids = np.arange(100) % 8
    trainer = NanoGPTTrainer(load_nanogpt(str(clone)), 0, 300, 8, ids, ids, len(ids) - 1)
    table, follows = trainer.model.table.weight, (torch.arange(8) + 1) % 8
    with torch.no_grad():
        table[torch.arange(8), follows] = math.log(7)
    assert trainer.score() == pytest.approx(1.0)
    before, trainer.step = table.detach().clone(), 100  # at its highest rate
    for _ in range(3):
        trainer.train_step()
    up = table.detach() > before
    assert torch.equal(up, torch.nn.functional.one_hot(follows, 8).bool())
    assert trainer.step == 103 and table.grad is None


def test_a_run_whose_loss_is_no_number_is_recorded():
    losses = iter([2.0, math.nan])
    trainer = SimpleNamespace(train_step=lambda: next(losses), score=lambda: 4.0)
    run = complete_run(trainer, 5, looks=5)
    assert run["bits_per_byte"] is None and run["diverged"] == 1
    assert run["curve"] == [[0, 4.0], [1, 4.0]]


def test_the_search_finds_the_fewest_steps_in_few_tries():
    """Bits of 100 / steps are at 1 or below from 100 steps on; the grid is 10% wide."""
    tried = []

    def runs_of(who, steps):
        tried.append(steps)
        return [{"bits_per_byte": 100 / steps if steps > 60 else None}]

    one = SimpleNamespace(steps=2000, runs_of=runs_of)
    race.Race.search(one, race.SUBWORDS, 1.0)
    found = min(steps for steps in tried if steps >= 100)
    assert found < 111 and max(steps for steps in tried if steps < 100) > 90
    assert len(tried) <= 7


@pytest.fixture
def quick(monkeypatch, tmp_path, corpus_file):
    """The command at a size that ends in a moment; its folders are the test's."""
    small = {"vocab_size": 270, "context_length": 8, "batch_size": 2, "n_layers": 1, "width": 16}
    small |= {"n_heads": 1, "n_kv_heads": 1, "head_size": 16, "feed_forward_size": 16}
    monkeypatch.setattr(
        race,
        "V4_OPTIONS",
        {who: small | {"vocab_size": v} for who, v in zip(race.OURS, (270, 257))},
    )
    for name, value in {"STEP_TURNS": 2, "WRITTEN": 3, "TOKENIZER_TURNS": 1, "LOOKS": 2}.items():
        monkeypatch.setattr(race, name, value)
    # To compile takes half a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, dynamic: None)
    monkeypatch.setattr(records, "code", lambda: MACHINE["commit"])
    monkeypatch.setattr(training, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(training, "measure_alone", lambda options: ALONE)
    monkeypatch.setattr(training, "measure_wider", lambda options, times: WIDE)
    monkeypatch.setattr(
        training, "measure_step", lambda data, steps, dtype: ALONE | {"dtype": dtype}
    )
    return f"--data {corpus_file} --text {corpus_file} --seeds 2 --nanogpt-steps 6".split()


def test_the_command_trains_goes_on_and_is_not_run_twice(
    quick, clone, tmp_path, monkeypatch, capsys
):
    training.main(quick)
    assert "--nanogpt FOLDER" in capsys.readouterr().out
    training.main([*quick, "--nanogpt", str(clone)])
    out = capsys.readouterr().out
    results = read_json(tmp_path / "results" / "training" / "results.json")
    assert str(tmp_path.parent) not in json.dumps(results)  # no path of this machine
    taken = results["nanogpt"]["runs"]
    assert {run["who"] for run in taken} == {race.NANOGPT, *race.OURS}
    assert len(results["nanogpt"]["compiled_step_seconds"]) == 4
    assert len({(run["who"], run["steps"], run["seed"]) for run in taken}) == len(taken)
    assert "nanoGPT, seed 1: 6 steps, " in out and "**share of nanoGPT's seconds**" in out
    table = (tmp_path / "results" / "training" / "table.md").read_text(encoding="utf-8")
    assert table.strip() in out and "| 128 | bfloat16 |" in table and "| 128 | float32 |" in table
    assert (tmp_path / "results" / "training" / "training.png").stat().st_size > 1000
    monkeypatch.setattr(race, "complete_run", None)  # nothing is run again
    training.main([*quick, "--nanogpt", str(clone)])
    assert read_json(tmp_path / "results" / "training" / "results.json") == results
    with pytest.raises(SystemExit) as stop:
        training.main([*quick, "--nanogpt-steps", "7"])
    assert stop.value.code == 2 and "--fresh" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--nanogpt nowhere", "git clone https://github.com/karpathy/nanoGPT"),
        ("--seeds 0", "--seeds"),
        ("--processes 0 2", "--processes"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        training.main(arguments.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("text", ["GPT = 1", "1 / 0", "not Python"])
def test_another_model_is_refused(tmp_path, text):
    (tmp_path / "model.py").write_text(text)
    with pytest.raises(UserError, match="is not nanoGPT's model"):
        load_nanogpt(str(tmp_path))


# ---- what is measured ----


def test_flops_of_a_product(monkeypatch):
    times = iter([0.0, 2.0])
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(times))
    assert training.matrix_peak(8, "float32") == 2 * 8**3 / 2.0


def test_the_middle_turn_counts_and_the_first_warms_up(monkeypatch):
    clock, taken = [0.0], iter((50.0, 1.0, 9.0, 2.0))
    monkeypatch.setattr(trainers.time, "perf_counter", lambda: clock[0])

    def work():
        clock[0] += next(taken)

    assert trainers.interleave({"who": work}, 3, "") == {"who": 2.0}


def test_steps_that_warm_up_are_not_counted(monkeypatch):
    steps = iter([100.0] * training.WARM_UP + [1.0] * 3)
    monkeypatch.setattr(training, "split_step", lambda trainer, clock: {"whole": next(steps)})
    monkeypatch.setattr(training, "matrix_peak", lambda size, dtype: float(size))
    trainer = SimpleNamespace(config=SimpleNamespace(dtype="float32"), device=torch.device("cpu"))
    assert training.time_steps(trainer, 3) == ({"whole": 1.0}, max(training.PEAK_SIZES))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nanogpts_step_is_its_own(clone, dtype):
    """In training mode after it was scored, in the dtype asked for, its gradient cut to 1."""
    ids, seen, lengths = np.arange(100) % 8, [], []
    module = load_nanogpt(str(clone))
    trainer = NanoGPTTrainer(module, 0, 300, 8, ids, ids, len(ids) - 1, dtype=dtype)
    table = trainer.model.table.weight
    trainer.model.register_forward_pre_hook(
        lambda model, _: seen.append((model.training, torch.is_autocast_enabled("cpu")))
    )
    table.register_hook(lambda gradient: 1e4 * gradient)
    trainer.optimizer.register_step_pre_hook(lambda *_: lengths.append(table.grad.norm().item()))
    trainer.score()
    trainer.train_step()
    assert seen[-1] == (True, dtype == "bfloat16")
    assert lengths == pytest.approx([1.0], rel=1e-3)


def test_a_race_counts_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "TOKENIZER_TURNS", 1)
    sizes = {who: {"vocab_size": v} for who, v in zip(race.OURS, (300, 257))}
    monkeypatch.setattr(race, "V4_OPTIONS", sizes)
    text, kept = "".join(f"é漢 line {i}\n" for i in range(400)), {}
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8"))
    one = race.Race(None, str(tmp_path / "a.txt"), 10, 1, kept, lambda: None)
    val = text[len(text) * 9 // 10 :]
    n_bytes = len(val.encode("utf-8"))
    assert (kept["text"]["bytes"], kept["text"]["val_bytes"]) == (len(text.encode()), n_bytes)
    for who, (tokenizer, *_) in one.tokens.items():
        held = n_bytes / len(tokenizer.encode(val))
        assert kept["tokenizers"][who]["bytes_a_token"] == pytest.approx(held)
    assert kept["tokenizers"][race.CHARACTERS]["bytes_a_token"] == 1
