"""What every version must do, whatever is inside it."""

import errno
import itertools
import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace

import forked
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    VERSIONS,
    by_characters,
    each_once,
    load_version,
    random_model,
    small_arguments,
    small_config,
    small_text,
)
from hypothesis import given
from hypothesis import strategies as st

import shared.machine
import shared.run
from benchmarks.faults import equal, read_run
from shared.corpora import END_OF_TEXT, load_corpus, read_documents, well_formed
from shared.run import Run

FILES = {"config.json", "metrics.jsonl", "summary.json", "loss.png", "samples.txt"}
FILES |= {"tokenizer.json", "checkpoint.pt"}
CHARACTERS = "abc XYZ09.,'\n\r\t\0é漢🙂\u0301"


def tokenizer_of(version):
    """A small tokenizer: of CHARACTERS where tokens are characters, of some prose elsewhere."""
    if by_characters(version):
        return version.Tokenizer.train([CHARACTERS])
    return version.Tokenizer.train([small_text()], 330)


def text_for(version):
    """A strategy of the texts that the version's tokenizer can hold."""
    if by_characters(version):
        return st.text(st.sampled_from(CHARACTERS))
    return st.text() | st.text(st.sampled_from("the cat's <|endoftext|>  \r\n\ud800\udc00é漢🙂"))


NASTY = ["", "a\r\nb", "a  b", "  ", "\n\n\n", "🙂", "\x1c \x85", " ", "don't", END_OF_TEXT]


# ---- tokenizer ----


@pytest.mark.parametrize("name", VERSIONS)
def test_round_trip_and_bytes(name):
    version = load_version(name)
    tokenizer = tokenizer_of(version)

    @given(text_for(version))
    def check(text):
        ids = tokenizer.encode(text)
        whole = well_formed(text)
        assert tokenizer.decode(ids) == whole
        assert b"".join(map(tokenizer.token_bytes, ids)) == whole.encode("utf-8")
        assert all(0 <= i < tokenizer.vocab_size for i in ids)

    check()
    for text in NASTY if tokenizer.vocab_size > 256 else ["", "a\r\nb", "a  b", "🙂", "\n\n"]:
        check.hypothesis.inner_test(text)


@pytest.mark.parametrize("text", ["the cat sat on the mat " * 50, "naïve".encode()])
def test_a_text_alone_is_one_text(version, text):
    """Not its letters, nor, of bytes, its numbers."""
    size = () if by_characters(version) else (270,)
    assert (
        version.Tokenizer.train(text, *size).to_json()
        == version.Tokenizer.train([text], *size).to_json()
    )


def test_what_is_no_id_is_told(version):
    """-1 would be the last token; numbers of numpy and of torch are ids, too."""
    tokenizer = tokenizer_of(version)
    count, number = tokenizer.vocab_size, tokenizer.encode("a")[0]
    for kind in (int, np.uint16, np.int64, torch.tensor):
        assert tokenizer.decode([kind(number)]) == "a"
        assert tokenizer.token_bytes(kind(number)) == b"a"
    assert tokenizer.decode(torch.tensor([number])) == tokenizer.decode(np.array([number])) == "a"
    for wrong in (-1, -count, count, 10**6, np.int64(-1), torch.tensor(count)):
        said = f"^{int(wrong)} is not the id of a token: there are {count:,}$"
        for decode in (tokenizer.token_bytes, lambda i: tokenizer.decode(iter([number, i]))):
            with pytest.raises(ValueError, match=said):
                decode(wrong)


def test_decode_never_raises(version):
    tokenizer = tokenizer_of(version)

    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def check(ids):
        assert isinstance(tokenizer.decode(ids), str)

    check()


def test_a_lone_surrogate_becomes_a_replacement_character(version):
    size = () if by_characters(version) else (300,)
    tokenizer = version.Tokenizer.train(["a\ud800b\ufffd🙂"], *size)
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode("\ud83d\ude42") == tokenizer.encode("🙂")  # a pair is its character


def test_saved_tokenizer_gives_the_same_ids(version, tmp_path):
    tokenizer = tokenizer_of(version)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = version.Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.special_tokens == tokenizer.special_tokens

    @given(text_for(version))
    def check(text):
        assert loaded.encode(text) == tokenizer.encode(text)

    check()


def test_a_tokenizer_can_be_made_of_what_is_read_only_once(version):
    """Its parts may come from a generator: read twice, it would leave a vocabulary empty."""
    tokenizer = tokenizer_of(version)
    parts = {name: part for name, part in tokenizer.to_json().items() if name != "kind"}
    once = {n: part if isinstance(part, str) else iter(part) for n, part in parts.items()}
    again = version.Tokenizer(**once)
    assert again.vocab == tokenizer.vocab and again.vocab_size == tokenizer.vocab_size
    text = CHARACTERS if by_characters(version) else small_text(3)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.to_json() == tokenizer.to_json()


# ---- model ----


def test_logits_have_the_promised_shape(version):
    model, config = random_model(version)
    assert model(torch.zeros(3, 7, dtype=torch.long)).shape == (3, 7, config.vocab_size)


@given(t=st.integers(0, 15), seed=st.integers(0, 100))
def test_causality(t, seed):
    for name in VERSIONS:
        model, config = random_model(load_version(name), seed)
        ids = torch.randint(
            config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(seed)
        )
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % config.vocab_size
        before, after = model(ids), model(changed)
        torch.testing.assert_close(before[:, :t], after[:, :t], atol=1e-5, rtol=1e-5)
        assert not torch.equal(before[:, t], after[:, t])


# ---- evaluation ----


def naive_score(version, model, tokens, tokenizer, length):
    """Nats and bytes, a token at a time, each from its own call of the model in float64."""
    model = model.double()
    special = set(tokenizer.special_tokens.values())
    nats, n_bytes = 0.0, 0
    for t in range(1, len(tokens)):
        if int(tokens[t]) in special:
            continue
        first = (t - 1) // length * length
        window = torch.tensor(tokens[first:t].astype(np.int64))[None]
        log_p = torch.log_softmax(model(window)[0, -1], dim=-1)
        nats -= log_p[int(tokens[t])].item()
        n_bytes += len(tokenizer.token_bytes(int(tokens[t])))
    return nats, n_bytes


def test_evaluation_scores_each_token_once(version):
    tokenizer = tokenizer_of(version)
    model, _ = random_model(version, vocab_size=tokenizer.vocab_size)
    text = "the cat\nabc" if tokenizer.vocab_size > 256 else CHARACTERS
    end = tokenizer.special_tokens[END_OF_TEXT]
    tokens = np.array([end, *tokenizer.encode(text), end, *tokenizer.encode(text * 4), end])
    results = [version.evaluate(model, tokens, tokenizer, 16, batch) for batch in (1, 2, 3, 64)]
    for nats, n_bytes in results:
        assert n_bytes == 5 * len(text.encode("utf-8"))
        assert nats == pytest.approx(results[0][0], rel=1e-5)
    nats, n_bytes = naive_score(version, model, tokens, tokenizer, 16)
    assert (results[0][0], results[0][1]) == (pytest.approx(nats, rel=1e-4), n_bytes)


def test_perplexity_and_bits_per_byte(version, corpus_file, tmp_path, monkeypatch):
    """Against the definition, from the nats and the text itself."""
    monkeypatch.setattr("shared.run.SLICE", 7)
    summary = version.train(small_config(version, data=str(corpus_file), out=str(tmp_path)))
    corpus = load_corpus(str(corpus_file))
    tokenizer = version.Tokenizer.load(tmp_path / "tokenizer.json")
    documents = list(read_documents(corpus.val))
    n_tokens = sum(len(tokenizer.encode(document)) for document in documents)
    n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    assert n_bytes == corpus.val_bytes
    nats = summary["val_loss"] * n_tokens
    assert summary["perplexity"] == pytest.approx(math.exp(nats / n_tokens))
    assert summary["bits_per_byte"] == pytest.approx(nats / n_bytes / math.log(2))


def test_characters_that_training_never_saw_are_told_and_not_scored(version, tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("abab cdcd\n" * 90 + "abab cdcd\u6f22\n" * 7, encoding="utf-8")
    summary = version.train(small_config(version, data=str(path), out=str(tmp_path / "run")))
    left_out = summary["corpus"]["val_bytes"] - summary["scored_bytes"]
    assert left_out == (21 if by_characters(version) else 0)  # of three bytes each
    assert ("21 bytes of validation text" in capsys.readouterr().out) == by_characters(version)


# ---- training ----


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_a_run_leaves_its_files_and_learns(version, corpus_file, tmp_path, real_pictures):
    options = {"data": str(corpus_file), "out": str(tmp_path), "steps": 60, "evaluate_every": 30}
    config = small_config(version, **options)
    summary = version.train(config)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert summary == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert {*summary} >= {
        *("version", "corpus", "vocab_size", "parameters", "context_length", "batch_size", "steps"),
        *("train_tokens", "train_bytes", "seconds", "tokens_per_second", "val_loss", "perplexity"),
        *("bits_per_byte", "device", "dtype", "seed", "torch", "python", "commit"),
    }
    assert {*summary["corpus"]} >= {"name", "sha256", "train_bytes", "val_bytes"}
    assert summary["train_tokens"] == 60 * 4 * 16
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0] - 0.1  # v4 begins with what v0 learns
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_all_versions_are_of_the_same_text(version, corpus_file, tmp_path, monkeypatch):
    """The tokens of the first bytes are scored all along, at the end those of all, too."""
    monkeypatch.setattr("shared.run.QUICK_BYTES", 500)
    config = small_config(version, data=str(corpus_file), out=str(tmp_path), max_new_tokens=1)
    summary = version.train(config)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scored = [row["scored_bytes"] for row in map(json.loads, lines) if "scored_bytes" in row]
    longest = 12  # bytes of a token: " to" and "house" are among the longest
    assert all(500 <= n_bytes < 500 + longest for n_bytes in scored) and len(scored) == 3
    assert summary["scored_bytes"] == summary["corpus"]["val_bytes"]


def test_a_text_is_scored_as_at_the_end_of_training(version, corpus_file, tmp_path, capsys):
    config = small_config(version, data=str(corpus_file), out=str(tmp_path))
    summary = version.train(config)
    val = load_corpus(str(corpus_file)).val
    capsys.readouterr()
    version.main(["--score", str(val), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"val loss {summary['val_loss']:.4f} | perplexity {summary['perplexity']:8.2f}" in said
    assert f"bits per byte {summary['bits_per_byte']:.4f}" in said
    assert f"{summary['scored_bytes']:,} bytes" in said
    documents = [json.dumps({"body": text}) for text in read_documents(val)]
    (tmp_path / "val.jsonl").write_text("\n".join(documents))
    field = ["--text-field", "body", "--out", str(tmp_path)]
    version.main(["--score", str(tmp_path / "val.jsonl"), *field])
    assert capsys.readouterr().out == said.replace(str(val), str(tmp_path / "val.jsonl"))
    with pytest.raises(SystemExit) as stop:
        version.main(["--score", str(tmp_path / "missing.txt"), "--out", str(tmp_path)])
    assert stop.value.code == 2 and "missing.txt" in capsys.readouterr().err


@pytest.mark.parametrize("version, best", each_once([0, 4, 6]), indirect=["version"])
def test_the_best_weights_are_kept(version, best, corpus_file, tmp_path, monkeypatch, capsys):
    """Evaluations at steps 0, 2, 4, 6 of a text that is read too often."""
    train_step, evaluate, at = version.training_step, version.evaluate, {}

    def look(run, *arguments):
        at[run.step] = {name: w.clone() for name, w in run.model.state_dict().items()}
        return train_step(run, *arguments)

    def rising(model, *arguments):
        nats, n_bytes = evaluate(model, *arguments)
        return nats * (1 + abs(next(steps) - best)), n_bytes

    steps = itertools.count(0, 2)
    monkeypatch.setattr(version, "training_step", look)
    out = str(tmp_path / "run")
    arguments = {"data": str(corpus_file), "out": out, "steps": 6, "evaluate_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(version, "evaluate", rising)
        summary = version.train(small_config(version, **arguments))
    told = capsys.readouterr().out.splitlines()[-1]
    assert summary["best_step"] == best and summary["times_read"] > 0
    assert (tmp_path / "run" / "best.pt").exists() == (best < 6)
    if best == 6:
        assert told.endswith("best evaluation: the last")
        at[6] = weights(tmp_path / "run")["model"]
    else:
        assert f"best evaluation: step {best}, " in told
    used = []
    monkeypatch.setattr(version, "generate", lambda model, *_: used.append(model) or ())
    version.main(["--sample", "--best", "--out", out])
    assert equal(dict(used[0].state_dict()), at[best])
    with pytest.raises(SystemExit) as stop:
        version.main(["--resume", "--best", "--out", out])
    assert stop.value.code == 2 and "--best is for" in capsys.readouterr().err


def test_a_kill_in_the_last_evaluation_costs_no_best_weights(
    version, corpus_file, tmp_path, monkeypatch
):
    """The third, at step 4, is the best, between the checkpoints at 0 and 6."""
    options = {"data": str(corpus_file), "out": str(tmp_path), "evaluate_every": 2}
    options |= {"checkpoint_every": 6}
    evaluate, factors, at = version.evaluate, iter([3, 2, 1, None, 9, 9]), []

    def rated(model, *arguments):
        nats, n_bytes = evaluate(model, *arguments)
        at.append({name: w.clone() for name, w in model.state_dict().items()})
        if (factor := next(factors)) is None:
            raise KeyboardInterrupt
        return nats * factor, n_bytes

    monkeypatch.setattr(version, "evaluate", rated)
    with pytest.raises(KeyboardInterrupt):
        version.train(small_config(version, **options))
    summary = version.train(small_config(version, **options, resume=True))
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert summary["best_step"] == best["progress"]["step"] == 4
    assert equal(dict(best["model"]), at[2])


def test_the_best_evaluation_is_one_whose_weights_are_left(version, corpus_file, tmp_path):
    """Not one before the end of a run that then goes on: its last was the best."""
    evaluate, factors = version.evaluate, iter([1, 0.5, 0.3, 2, 3, 4, 5, 6])

    def rated(*arguments):
        nats, n_bytes = evaluate(*arguments)
        return nats * next(factors), n_bytes

    options = {"data": str(corpus_file), "out": str(tmp_path), "evaluate_every": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(version, "evaluate", rated)
        if version.__name__ == "ladder_v0_bigram":  # scores a table of counts, too
            patch.setattr(version, "count_bigrams", lambda *_: version.LanguageModel(_[1]))
            factors = iter([1, 0.5, 0.3, 1, 2, 3, 4])
        first = version.train(small_config(version, **options, steps=3))
        assert first["best_step"] == 3 and not (tmp_path / "best.pt").exists()
        summary = version.train(small_config(version, **options, steps=6, resume=True))
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["progress"]["step"] == summary["best_step"] == 4


def test_samples_are_kept_with_their_steps(version, corpus_file, tmp_path, capsys):
    options = {"out": str(tmp_path), "steps": 4, "evaluate_every": 2}
    version.train(small_config(version, data=str(corpus_file), **options))
    samples = (tmp_path / "samples.txt").read_text(encoding="utf-8")
    parts = re.split(r"^---- step (\d+) ----\n", samples, flags=re.MULTILINE)
    assert parts[1::2] == ["0", "2", "4"]
    said = capsys.readouterr().out
    assert all(" ".join(text.split()) in said for text in parts[2:6:2])


def test_the_seed_decides_everything(version, corpus_file, tmp_path):
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, seed in zip(folders, (3, 3, 4)):
        version.train(small_config(version, data=str(corpus_file), out=str(folder), seed=seed))
    one, same, other = map(read_run, folders)
    assert equal(one, same)
    assert not equal(one["checkpoint"]["model"], other["checkpoint"]["model"])


def test_evaluation_does_not_change_training(version, corpus_file, tmp_path):
    for every in (1, 100):
        out = str(tmp_path / str(every))
        version.train(small_config(version, data=str(corpus_file), out=out, evaluate_every=every))
    left, right = weights(tmp_path / "1"), weights(tmp_path / "100")
    assert all(equal(left[part], right[part]) for part in ("model", "optimizers"))


@pytest.fixture(scope="module")
def uninterrupted(corpus_file, tmp_path_factory):
    """A folder with a run of 12 steps of every version."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for name in VERSIONS:
        options = {"data": str(corpus_file), "steps": 12, "out": str(folder / name)}
        load_version(name).train(small_config(load_version(name), **options))
    return folder


@pytest.mark.parametrize("version, step", each_once([1, 3, 4, 11, 12]), indirect=["version"])
def test_a_resumed_run_is_the_uninterrupted_one(
    version, uninterrupted, corpus_file, tmp_path, monkeypatch, step
):
    options = {"data": str(corpus_file), "steps": 12, "out": str(tmp_path / "broken")}
    log_step = Run.log_step

    def interrupt(run, *arguments):
        log_step(run, *arguments)
        if run.step == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Run, "log_step", interrupt)
        version.train(small_config(version, **options))
    assert stop.value.code == 130
    saved = weights(tmp_path / "broken")
    assert saved["progress"]["step"] == step
    saved["progress"]["seconds"] += 1000
    torch.save(saved, tmp_path / "broken" / "checkpoint.pt")
    version.main(["--resume", "--out", options["out"]])
    whole = uninterrupted / version.__name__.removeprefix("ladder_")
    assert equal(read_run(whole), read_run(tmp_path / "broken"))
    summary = json.loads((tmp_path / "broken" / "summary.json").read_text(encoding="utf-8"))
    assert summary["seconds"] > 1000


def test_batches_are_windows_of_the_text(version):
    config = small_config(version)
    tokens = np.arange(100, dtype=np.uint16)
    inputs, targets = version.get_batch(tokens, 5, config)
    assert inputs.shape == targets.shape == (4, 16)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))
    assert torch.equal(inputs, version.get_batch(tokens, 5, config)[0])
    assert not torch.equal(inputs, version.get_batch(tokens, 6, config)[0])
    starts = {
        int(x) for step in range(400) for x in version.get_batch(tokens, step, config)[0][:, 0]
    }
    assert starts == set(range(100 - 16))  # each window can come, the first and the last too


# ---- sampling ----


def test_no_point_draws_what_is_left_out(version, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(1))
    config = small_config(version, temperature=1.0, top_k=1)
    assert version.draw(torch.tensor([0.0, 3.0, 2.0]), config, torch.Generator()) == 1


def test_sampling_options(version):
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0])

    def drawn(**options):
        config = small_config(version, **options)
        generator = torch.Generator().manual_seed(0)
        return [version.draw(logits, config, generator) for _ in range(3000)]

    assert set(drawn(temperature=0.0)) == set(drawn(temperature=1e-37)) == {1}
    assert set(drawn(temperature=5.0, top_k=3)) == {1, 2, 3}
    p = torch.softmax(logits, 0)
    assert set(drawn(temperature=1.0, top_p=float(p[1]) - 0.01)) == {1}
    assert set(drawn(temperature=1.0, top_p=float(p[1] + p[2]) - 0.01)) == {1, 2}
    counts = torch.bincount(torch.tensor(drawn(temperature=2.0)), minlength=5) / 3000
    torch.testing.assert_close(counts, torch.softmax(logits / 2, 0), atol=0.04, rtol=0)


def test_top_p_is_of_what_top_k_leaves(version):
    """As transformers has it: .4 and .3 are left, and .4 is more than half of that."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper  # which takes a second

    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    left = TopPLogitsWarper(0.5)(None, TopKLogitsWarper(2)(None, logits[None]))[0]
    config = small_config(version, temperature=1.0, top_k=2, top_p=0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = {version.draw(logits, config, generator) for _ in range(200)}
    assert drawn == set(left.isfinite().nonzero().flatten().tolist()) == {1}


def test_generation_stops_and_is_seeded(version):
    model, config = random_model(version, temperature=1.0, max_new_tokens=40)
    ids = list(version.generate(model, [0, 5], config, stop=-1))
    assert len(ids) == 40 and all(0 <= i < config.vocab_size for i in ids)
    assert ids == list(version.generate(model, [0, 5], config, stop=-1))
    assert ids != list(version.generate(model, [0, 5], replace(config, seed=1), stop=-1))
    assert list(version.generate(model, [0, 5], config, stop=ids[7])) == ids[: ids.index(ids[7])]
    long_prompt = [i % config.vocab_size for i in range(100)]
    assert len(list(version.generate(model, long_prompt, config, stop=-1))) == 40


def test_resume_sample_and_prompt_by_command_line(version, corpus_file, tmp_path, capsys):
    out = str(tmp_path / "run")
    version.main(small_arguments(version, data=str(corpus_file), out=out))
    version.main(["--resume", "--out", out, "--steps", "8"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 8
    capsys.readouterr()
    version.main(["--sample", "--out", out, "--prompt", "the cat", "--max-new-tokens", "5"])
    printed = capsys.readouterr().out
    assert printed.startswith("the cat")
    for seed, same in ((0, True), (1, False)):
        options = ["--sample", "--out", out, "--prompt", "the cat", "--seed", str(seed)]
        version.main([*options, "--max-new-tokens", "5"])
        assert (capsys.readouterr().out == printed) is same


def test_a_vocabulary_that_the_text_cannot_fill_resumes(version, tmp_path):
    """The pairs run out long before 5,000 tokens; the run goes on with the tokenizer it has."""
    path, out = tmp_path / "short.txt", str(tmp_path / "run")
    path.write_text(small_text(12), encoding="utf-8")
    version.main(small_arguments(version, data=str(path), out=out, vocab_size=5000))
    version.main(["--resume", "--out", out, "--steps", "7"])


@pytest.mark.parametrize("name", VERSIONS)
def test_runs_from_any_working_directory(name, corpus_file, tmp_path):
    arguments = small_arguments(load_version(name), data=str(corpus_file), out="run")
    command = [sys.executable, str(ROOT / name / "train.py"), *arguments]
    result = forked.run(command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left - {"best.pt"} == FILES  # which is there if the last evaluation was not the best
    assert "bits per byte" in result.stdout and "corpus small.txt" in result.stdout
    assert result.stderr == ""  # no terminal, no bars


def test_tokens_per_second(corpus_file, tmp_path):
    v0 = load_version("v0_bigram")
    summary = v0.train(small_config(v0, data=str(corpus_file), out=str(tmp_path), steps=40))
    tokens = summary["tokens_per_second"] * summary["seconds"]
    assert tokens == pytest.approx(summary["train_tokens"], rel=0.1)


def test_signals_are_as_before(corpus_file, tmp_path):
    v0, numbers = load_version("v0_bigram"), (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    v0.train(small_config(v0, data=str(corpus_file), out=str(tmp_path)))
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_summary_is_written_last(corpus_file, tmp_path, monkeypatch):
    """It says that the run is finished."""

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left", str(path))

    monkeypatch.setattr(shared.run, "write_text", full)
    v0 = load_version("v0_bigram")
    with pytest.raises(OSError):
        v0.train(small_config(v0, data=str(corpus_file), out=str(tmp_path)))
    assert not (tmp_path / "summary.json").exists()


def test_a_users_own_unfinished_files_are_left(corpus_file, tmp_path):
    v0 = load_version("v0_bigram")
    v0.train(small_config(v0, data=str(corpus_file), out=str(tmp_path)))
    for name in ("notes.tmp", "notes.123.tmp", f"loss.png.{'09af' * 4}.tmp"):
        (tmp_path / name).touch()
    v0.main(["--resume", "--out", str(tmp_path), "--steps", "7"])
    assert {path.name for path in tmp_path.glob("*.tmp")} == {"notes.tmp", "notes.123.tmp"}


def test_changed_files_show_in_the_commit(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "1"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(shared.machine, "ROOT", tmp_path)
    clean = shared.machine.machine_facts()["commit"]
    (tmp_path / "file").write_text("2")
    assert len(clean) == 40 and shared.machine.machine_facts()["commit"] == clean + "-dirty"
