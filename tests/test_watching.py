"""What a user sees of a model: before training, during it, and when it writes."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, by_characters, load_version, small_arguments, small_config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import shared.run
import v4_modern.run
from shared.model_table import measure
from shared.run import Run
from shared.run_folder import lock_metrics
from shared.terminal import print_text
from shared.tokens import decode_pieces
from v4_modern.run import BFLOAT16_PEAK

V4 = load_version("v4_modern")
BYTES = load_version("v2_bpe_rope").Tokenizer.train(["no pair twice"], 257)  # a token is a byte


@pytest.fixture
def finished(version, finished_runs):
    """The folder of a finished run of the version."""
    return finished_runs / version.__name__.removeprefix("ladder_")


# ---- text as it is made ----


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
@example("é漢🙂".encode())
@example(b"\xf0\x9f\x99 \xe6\xbc")  # cut, and cut at the end
def test_pieces_are_the_text_and_none_is_half_a_character(text):
    ids = [BYTES.vocab.index(bytes([byte])) for byte in text]
    pieces = list(decode_pieces(BYTES, ids))
    assert "".join(pieces) == BYTES.decode(ids) == text.decode("utf-8", "replace")
    sure = [len(text[:i].decode("utf-8", "ignore")) for i in range(1, len(text) + 1)]
    if "\ufffd" not in "".join(pieces):
        assert [len("".join(pieces[:i])) for i in range(1, len(text) + 1)] == sure


def test_tokens_are_printed_as_they_are_made(version, finished, capsys, monkeypatch):
    made, printed = [], []
    generate = version.generate

    def spied(*arguments):
        for token in generate(*arguments):
            printed.append(capsys.readouterr().out)
            made.append(token)
            yield token

    monkeypatch.setattr(version, "generate", spied)
    version.main(["--sample", "--out", str(finished), "--prompt", "the", "--temperature", "3"])
    tokenizer = version.Tokenizer.load(finished / "tokenizer.json")
    assert "".join(printed) + capsys.readouterr().out == "the" + tokenizer.decode(made) + "\n"
    pieces = [piece for i in tokenizer.encode("the") for piece in decode_pieces(tokenizer, [i])]
    assert printed[0] == "".join(pieces)
    assert printed[1:] == list(decode_pieces(tokenizer, made))[: len(made) - 1]
    assert len(made) > 1


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on Windows")
def test_a_terminal_is_asked_for_prompts(tmp_path, corpus_file):
    import pty

    version = load_version("v0_bigram")  # it lacks most characters
    version.main(small_arguments(version, data=corpus_file, out=tmp_path))
    terminal, other_end = pty.openpty()
    command = [sys.executable, str(ROOT / "v0_bigram" / "train.py"), "--sample", "--out", tmp_path]
    process = subprocess.Popen(command, stdin=other_end, stdout=subprocess.PIPE, encoding="utf-8")
    os.write(terminal, "the cat\n\nthe cat\n漢\n".encode() + b"\x04")
    said, _ = process.communicate(timeout=300)
    os.close(terminal)
    os.close(other_end)
    assert process.returncode == 0
    hint, first, alone, second, refused, end = said.split("> ")
    assert "Ctrl-D" in hint and end == "\n"
    assert first.startswith("the cat") and second.startswith("the cat") and first != second
    assert len(alone) > 1 and "lacks: ['漢']" in refused


def test_without_a_terminal_nobody_is_asked(version, finished, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    version.main(["--sample", "--out", str(finished)])
    asked_nothing = capsys.readouterr().out
    assert (finished / "samples.txt").read_bytes().decode("utf-8").endswith(f"\n{asked_nothing}")


# ---- during training ----


def events_in(folder) -> list[tuple[int, str, float]]:
    """What TensorBoard itself reads in `folder`."""
    events = EventAccumulator(str(folder)).Reload()
    return sorted(
        (event.step, name, event.value)
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    )


def test_event_files_hold_the_rows_also_of_a_resumed_run(corpus_file, tmp_path, monkeypatch):
    version = load_version("v0_bigram")
    log_step = Run.log_step

    def interrupt(run, *arguments):
        log_step(run, *arguments)
        if run.step == 11:
            signal.raise_signal(signal.SIGINT)

    arguments = small_arguments(version, data=corpus_file, out=tmp_path, steps=22)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "log_step", interrupt)
        version.main([*arguments, "--tensorboard"])
    assert max(step for step, *_ in events_in(tmp_path / "tensorboard")) == 10
    version.main(["--resume", "--out", str(tmp_path)])  # with --tensorboard, as it was begun
    version.main(["--resume", "--tensorboard", "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scalars = [{k: v for k, v in row.items() if k not in ("step", "sample")} for row in rows]
    expected = [(r["step"], name, s[name]) for r, s in zip(rows, scalars) for name in s]
    events = events_in(tmp_path / "tensorboard")
    assert [event[:2] for event in events] == sorted(row[:2] for row in expected)
    for event, row in zip(events, sorted(expected)):
        assert event[2] == pytest.approx(row[2], rel=1e-6)


def test_a_missing_tensorboard_is_told_before_any_work(version, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shared.files.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        version.main(["--tensorboard", "--data", "no-such-corpus", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and not (tmp_path / "run").exists()
    assert said.endswith(
        "--tensorboard needs a package that is not installed: pip install tensorboard\n"
    )


def test_loss_png_is_drawn_while_the_model_trains(
    corpus_file, tmp_path, monkeypatch, real_pictures
):
    version = load_version("v0_bigram")
    monkeypatch.setattr("shared.run.DRAW_EVERY", 0)
    seen = {}
    training_step = version.training_step

    def look(run, *arguments):
        seen[run.step] = (tmp_path / "loss.png").read_bytes()
        return training_step(run, *arguments)

    monkeypatch.setattr(version, "training_step", look)
    version.train(small_config(version, data=str(corpus_file), out=str(tmp_path), steps=12))
    drawn = list(dict.fromkeys(seen.values()))
    assert all(picture.startswith(b"\x89PNG") for picture in drawn)
    assert [step for step in seen if seen[step] != seen.get(step - 1)] == [0, 3, 6, 9, 10]


FIRST = {"step": 0, "val_loss": 5.7, "bits_per_byte": 4.2, "seconds": 0.0}


@pytest.mark.parametrize(
    "rows",
    [
        [FIRST],
        [FIRST, FIRST | {"step": 1}],
        [FIRST, {"step": 1, "train_loss": 3.2}, FIRST | {"step": 1}],
        [FIRST, {"step": 10, "train_loss": 1e300}, FIRST | {"step": 12, "val_loss": 1e38}],
        [FIRST | {"step": 10**12, "bits_per_byte": 0.0}, {"step": 10**12, "train_loss": 0.0}],
    ],
)
def test_any_rows_make_a_picture_always_the_same(rows, tmp_path, real_pictures):
    draw_loss, backend = shared.run.draw_loss, pyplot.get_backend()
    pyplot.switch_backend("svg")  # as a notebook has its own
    later = [row | {"seconds": 1.5} for row in rows]
    for path, drawn in ((tmp_path / "one.png", rows), (tmp_path / "two.png", later)):
        draw_loss(drawn, path, "v4_modern: 1.234 bits per byte")
    assert pyplot.get_backend() == "svg"
    pyplot.switch_backend(backend)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert pyplot.imread(tmp_path / "one.png").std() > 0.01  # it can be read, and is not blank


def test_the_picture_shows_the_rows(tmp_path, monkeypatch, real_pictures):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: figures.append(f) or save(f, *a, **k))
    scored = [(0, 5.0, 3.0), (1, 4.0, 2.0), (2, 3.0, 1.0)]
    names = ("step", "val_loss", "bits_per_byte")
    rows = [dict(zip(names, values)) for values in scored]
    rows.insert(3, {"step": 2, "train_loss": 4.5})
    shared.run.draw_loss(rows, tmp_path / "loss.png", "title")
    losses, bits = (
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in figures[0].axes
    )
    assert losses == {"training": [[2, 4.5]], "validation": [[0, 5], [1, 4], [2, 3]]}
    assert bits == {"validation": [[0, 3], [1, 2], [2, 1]]}


@pytest.mark.parametrize("backend", ["module://a_notebooks.backend", "nonsense"])
def test_a_backend_that_is_not_installed_costs_nothing(backend, tmp_path):
    """As every `!python` in a notebook of another environment has it."""
    code = "import sys; from pathlib import Path; from shared.curves import draw_loss; "
    code += "draw_loss([{'step': 1, 'train_loss': 2.0}], Path(sys.argv[1]), 'title')"
    command = [sys.executable, "-c", code, str(tmp_path / "loss.png")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"MPLBACKEND": backend}, check=True)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_costs_nothing(
    version, corpus_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(shared.run, "draw_loss", lambda *_: 1 / 0)
    version.train(small_config(version, data=str(corpus_file), out=str(tmp_path)))
    assert (tmp_path / "summary.json").exists()
    assert "loss.png cannot be drawn: division by zero" in capsys.readouterr().out


# ---- before training ----


def saved_bytes(model, loss_of) -> int:
    """The bytes that a real forward pass keeps, weights left out."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of()
    del loss
    return sum(memory.nbytes() for at, memory in kept.items() if at not in weights)


def test_the_table_is_what_torch_reports_of_a_real_model(version):
    config = small_config(version, vocab_size=300)
    size = measure(config, version.LanguageModel, version.make_optimizers)
    model = version.LanguageModel(config).train()
    optimizers = version.make_optimizers(model, config)
    ids = torch.randint(300, (config.batch_size, config.context_length))

    def loss_of():
        return model(ids, ids)

    assert size.activations == saved_bytes(model, loss_of)
    loss_of().backward()
    for optimizer in optimizers:
        optimizer.step()
    parameters = list(model.parameters())
    states = [s for o in optimizers for state in o.state.values() for s in state.values()]
    tensors = [state for state in states if torch.is_tensor(state)]
    assert sum(size.parameters.values()) == sum(p.numel() for p in parameters)
    assert size.weights == size.gradients == sum(p.numel() * p.element_size() for p in parameters)
    assert size.optimizer_state == sum(t.numel() * t.element_size() for t in tensors)
    with sdpa_kernel(SDPBackend.MATH):  # the one torch counts
        with FlopCounterMode(display=False) as forward:
            model(ids)
        with FlopCounterMode(display=False) as training:
            loss_of().backward()
    assert sum(size.flops.values()) == forward.get_total_flops() // ids.numel()
    assert size.training_flops == training.get_total_flops() // ids.numel()


def test_the_table_is_what_a_hand_counts():
    """v4: two FLOPs a weight that multiplies, and attention over the whole context."""
    config = small_config(V4)
    C, D, V, T = config.width, config.head_size, config.vocab_size, config.context_length
    attention = 2 * C * config.n_heads * D + 2 * C * config.n_kv_heads * D
    feed_forward = 3 * C * config.feed_forward_size
    size = measure(config, V4.LanguageModel, V4.make_optimizers)
    assert size.parameters == {
        "embedding": V * C,
        "blocks.attention_norm": 2 * C,
        "blocks.attention": 2 * (attention + 2 * D),
        "blocks.feed_forward_norm": 2 * C,
        "blocks.feed_forward": 2 * feed_forward,
        "norm": C,
        "head": V * C,
    }
    assert size.flops == {
        "blocks.attention": 2 * (2 * attention + 4 * T * config.n_heads * D),
        "blocks.feed_forward": 2 * 2 * feed_forward,
        "head": 2 * V * C,
    }
    adamw, muon = size.parameters["embedding"] * 2 + 5 * C + 4 * D, 2 * (attention + feed_forward)
    assert size.optimizer_state == 4 * (2 * adamw + muon)
    assert size.training_flops == 3 * sum(size.flops.values())


@settings(max_examples=10)
@given(
    T=st.sampled_from([2, 16, 512, 513, 700]),  # from 513 on, a CPU takes the fused form
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    sizes=st.tuples(st.integers(1, 3), *[st.sampled_from([2, 6, 16])] * 3, st.integers(257, 300)),
    B=st.integers(1, 3),
)
def test_flops_follow_the_closed_formula(T, heads, sizes, B):
    """Two for each weight that multiplies, and four in attention for each channel of a head and
    each token of the context; three times that with the backward pass. So for any shape, and
    though torch 2.13's counter takes fused attention on a CPU for nothing."""
    (H, G), (layers, C, D, hidden, V) = heads, sizes
    shape = {"n_layers": layers, "n_heads": H, "n_kv_heads": G, "head_size": D, "width": C}
    shape |= {"feed_forward_size": hidden, "vocab_size": V, "context_length": T, "batch_size": B}
    config = small_config(V4, **shape)
    weights = layers * C * (2 * H * D + 2 * G * D + 3 * hidden) + C * V
    expected = 2 * weights + 4 * layers * H * D * T
    size = measure(config, V4.LanguageModel, V4.make_optimizers)
    assert sum(size.flops.values()) == expected
    assert size.training_flops == 3 * expected


@pytest.mark.parametrize("T", [512, 513])
def test_both_forms_of_attention_take_the_flops_of_the_table(T, monkeypatch):
    """Counted while a CPU runs them: written out, and as the one fused form that torch counts."""
    config = small_config(V4, context_length=T, n_layers=1, batch_size=1, vocab_size=270)
    fused, called = F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **o: called.append(1) or fused(*a, **o)
    )
    model, ids = V4.LanguageModel(config).train(), torch.zeros(1, T, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    assert bool(called) == (T > 512)
    size = measure(config, V4.LanguageModel, V4.make_optimizers)
    assert counter.get_total_flops() == size.training_flops * T


def test_print_model_trains_nothing(version, corpus_file, tmp_path, capsys):
    arguments = small_arguments(version, data=corpus_file, out=tmp_path / "run")
    version.main([*arguments, "--print-model"])
    rows = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert not (tmp_path / "run").exists()
    version.main(arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if by_characters(version) or summary["vocab_size"] == 300:  # else the pairs ran out
        assert rows["all"][0] == f"{summary['parameters']:,}"
    assert rows["weights"] == [f"{4 * int(rows['all'][0].replace(',', '')) / 1e6:.2f}"]


def test_print_model_leaves_the_folder_to_a_run_in_it(version, corpus_file, tmp_path, capsys):
    arguments = small_arguments(version, data=corpus_file, out=tmp_path / "run")
    with lock_metrics(tmp_path / "run"):
        version.main([*arguments, "--print-model"])
    assert "all, forward and backward" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_model_larger_than_the_machine_is_told_in_a_moment(capsys):
    V4.main("--print-model --n-layers 4 --width 65536 --feed-forward-size 100000".split())
    rows = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert float(rows["weights"][0].replace(",", "")) > 300_000  # MB


def test_the_log_says_after_how_many_steps_compiling_pays(
    corpus_file, tmp_path, capsys, monkeypatch
):
    """A second a step, then half a second, and half a minute to compile."""
    now, steps, compiled = [0.0], [], []
    step_of = V4.training_step

    def training_step(run, *others):
        now[0] += 30.5 if compiled == [run.step] else 0.5 if compiled else 1.0
        steps.append(run.step)
        return step_of(run, *others)

    monkeypatch.setattr(V4, "training_step", training_step)
    for module in (V4, shared.run, v4_modern.run):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(V4.LanguageModel, "compile", lambda self: compiled.append(len(steps)))
    options = {"data": str(corpus_file), "out": str(tmp_path), "steps": 45, "compile": True}
    V4.train(small_config(V4, **options))
    assert compiled == [20]
    told = "compiled in 30 s; a step takes 500.0 ms instead of 1000.0 ms: pays after 60 steps"
    assert told in capsys.readouterr().out


def test_any_text_is_printed_at_once_on_any_terminal(monkeypatch):
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, "ascii", newline="\n")  # keeps what nobody flushes
    monkeypatch.setattr(sys, "stdout", terminal)
    print_text("é漢 cat")
    assert written.getvalue() == b"?? cat\n"


def test_peaks_are_those_of_the_data_sheets():
    """Dense, without sparsity."""
    sheets = {"NVIDIA A100-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989.5}
    assert sheets.items() <= BFLOAT16_PEAK.items()
