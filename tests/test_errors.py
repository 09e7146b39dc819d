"""Every mistake gets one line that says what to do, and exit status 2."""

import copy
import errno
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, VERSIONS, by_characters, load_version, small_arguments
from tqdm import tqdm

from shared import downloads
from shared.command_line import GROUPS, clear_errors, encode_prompt, parse_options
from shared.files import UserError, read_json, write_json
from shared.run_folder import lock_metrics


@pytest.fixture
def run(finished_runs, version, tmp_path):
    """A copy of the version's run."""
    name = version.__name__.removeprefix("ladder_")
    return shutil.copytree(finished_runs / name, tmp_path / name)


def complaint(version, arguments, capsys) -> str:
    """The one line that `arguments` are answered with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        version.main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err
    lines = [line for line in errors.replace("\r", "\n").splitlines() if "error:" in line]
    assert stop.value.code == 2
    assert len(lines) == 1 and errors.splitlines()[-1] == lines[0], errors
    assert lines[0].startswith("error: ") and "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--steps", "abc"], "--steps"),
        (["--steps", "0"], "--steps 0 must be more than 0"),
        (["--batch-size", "-3"], "--batch-size -3 must be more than 0"),
        (["--learning-rate", "nan"], "--learning-rate nan"),
        (["--learning-rate", "-0.1"], "--learning-rate -0.1 must be more than 0"),
        (["--top-p", "1.5"], "--top-p 1.5 must be more than 0, at most 1"),
        (["--no-such-option"], "--no-such-option"),
        (["--stesp", "3"], "Unrecognized options: --stesp, 3: perhaps --steps (see --help)"),
        (["--lr", "3"], "Unrecognized options: --lr, 3: perhaps --learning-rate (see --help)"),
        (
            ["--prompt", "-x"],
            "'--prompt'. Expected 1 values. If it begins with -, write --prompt=-",
        ),
        (["--device", "tpu"], "--device tpu"),
        (["--data", "no-such-corpus"], "no file or folder of that name, nor one of pydocs"),
        (["--data", "/dev/null"], "neither a file nor a folder"),
        (["--out", "x" * 300], "File name too long"),
    ],
)
def test_wrong_values(version, options, expected, capsys, corpus_file, tmp_path):
    arguments = [*small_arguments(version, data=corpus_file, out=tmp_path / "run"), *options]
    assert expected in complaint(version, arguments, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "holds no text"),
        (b"a", "too short"),
        (b"tiny\ntext", "too few for one window"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "a.txt is a PNG picture"),
    ],
)
def test_text_that_cannot_be_trained_on(version, content, expected, capsys, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    arguments = small_arguments(version, data=tmp_path / "a.txt", out=tmp_path / "run")
    assert expected in complaint(version, arguments, capsys)


def test_a_context_longer_than_the_text(version, capsys, corpus_file, tmp_path):
    arguments = small_arguments(
        version, data=corpus_file, out=tmp_path / "run", context_length=1_000_000
    )
    assert "lower --context-length" in complaint(version, arguments, capsys)


def test_no_network(version, capsys, tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/input.txt"  # nobody listens on the discard port
    monkeypatch.setitem(downloads.DOWNLOADS, "shakespeare", (url,))
    arguments = small_arguments(version, data="shakespeare", out=tmp_path / "run")
    line = complaint(version, arguments, capsys)
    assert url in line and "put the file at" in line and "--data pydocs" in line


def test_nothing_to_go_on_from(version, capsys, tmp_path):
    for option in ("--resume", "--sample"):
        line = complaint(version, [option, "--out", tmp_path / "nothing"], capsys)
        assert "train first" in line


def test_unknown_characters_in_a_prompt(version, capsys, run):
    arguments = ["--sample", "--out", run, "--prompt", "the cat \u4e00 \ud800"]
    line = complaint(version, arguments, capsys)
    assert ("'\u4e00'" in line) == by_characters(version)
    assert "'\\ud800'" in line


@pytest.mark.parametrize("name", ["checkpoint.pt", "tokenizer.json", "config.json"])
def test_damaged_files(version, name, capsys, run):
    whole = (run / name).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\x80\x04garbage", b"[1, 2]", b"{}"):
        (run / name).write_bytes(content)
        if name == "config.json" and content == b"{}":
            continue  # all defaults: another run, told by the checkpoint below
        for option in ("--sample", "--resume"):
            assert name in complaint(version, [option, "--out", run], capsys)
    (run / name).unlink()
    assert name in complaint(version, ["--sample", "--out", run], capsys)


NO_TOKENIZERS = {
    "characters": ["aa", ["a", "b"], "a\ud800", 5, None],
    "merges": [
        *([[256, 99], [97, 98]], [[97, 257], [97, 98]], [[97, 98], [97, 98]], [[97, -2]]),
        *([[97, 98.0]], [[97, "98"]], [[97, True]], [[97]], [[97, 98, 99]], {"97": 98}, "ab", 5),
        *([[97, 97], *([i, i] for i in range(256, 100_000))], None),
        # None of these is long.
        [[97, 97], *([i, i] for i in range(256, 275)), *([275, i] for i in range(256))],
    ],
    "scaffolds": [[255], [999], [-1], ["x"], [256, 256], 256, {"256": 1}, None],
    "special_tokens": [["a", "a"], [5], ["a", None], "ab", [""], ["\ud800"], {"a": 1}, 5, None],
    "split": ["(", 5, ["gpt2"], None],
}


def test_what_is_no_tokenizer_is_told(version, tmp_path):
    """One part of the file at a time; as a whole, it is JSON, and of the right kind."""
    path, size = tmp_path / "tokenizer.json", () if by_characters(version) else (259,)
    version.Tokenizer.train(["abab abab"], *size).save(path)
    saved = read_json(path)
    version.Tokenizer.load(path)
    tried = [(name, value) for name in saved for value in NO_TOKENIZERS.get(name, ())]
    assert tried
    for name, value in tried:
        write_json(path, saved | {name: value})
        with pytest.raises(UserError, match="tokenizer.json is damaged"):
            version.Tokenizer.load(path)
            pytest.fail(f"{name} {str(value)[:80]}")


@pytest.mark.parametrize("name", ["checkpoint.pt", "tokenizer.json", "config.json"])
def test_files_of_another_version(version, name, capsys, run, finished_runs):
    for other in VERSIONS:
        same_kind = name == "tokenizer.json" and by_characters(load_version(other))
        if other == run.name or (same_kind and by_characters(version)):
            continue
        shutil.copy(finished_runs / other / name, run / name)
        assert str(run) in complaint(version, ["--sample", "--out", run], capsys)


def test_a_checkpoint_of_another_config_or_text(version, capsys, run, tmp_path, corpus_file):
    line = complaint(version, ["--resume", "--out", run, "--batch-size", "5"], capsys)
    assert "batch-size 4, not 5" in line
    other = tmp_path / "other.txt"
    other.write_bytes(corpus_file.read_bytes().replace(b"cat", b"bat"))
    line = complaint(version, ["--resume", "--out", run, "--data", other], capsys)
    assert f"a run with another text, not what {other} holds now: use the same" in line
    line = complaint(version, ["--resume", "--out", run, "--steps", "2"], capsys)
    assert "has made 6 steps: give --steps as many or more" in line


def test_a_tokenizer_that_does_not_fit_the_checkpoint(version, capsys, run):
    tokenizer = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    key = "characters" if by_characters(version) else "merges"
    tokenizer[key] = tokenizer[key][:-1]
    if "scaffolds" in tokenizer:
        tokenizer["scaffolds"] = []
    (run / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "checkpoint.pt" in complaint(version, ["--sample", "--out", run], capsys)


def test_a_damaged_token_file(capsys, corpus_file, tmp_path, monkeypatch):
    version = load_version("v4_modern")
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    arguments = small_arguments(version, data=corpus_file, out=tmp_path / "run")
    version.main(arguments)
    (path,) = (tmp_path / "cache" / "tokens").glob("train-*.npy")
    path.write_bytes(path.read_bytes()[:-7])
    line = complaint(version, arguments, capsys)
    assert path.name in line and "delete it and run again" in line
    path.unlink()
    version.main(arguments)


def test_sizes_that_do_not_fit_together(capsys, corpus_file, tmp_path):
    for name, options, expected in (
        ("v2_bpe_rope", {"head_size": 7}, "--head-size 7 must be even"),
        ("v4_modern", {"head_size": 7}, "--head-size 7 must be even"),
        ("v4_modern", {"n_heads": 4, "n_kv_heads": 3}, "--n-kv-heads 3 must divide --n-heads 4"),
        ("v2_bpe_rope", {"vocab_size": 100}, "--vocab-size 100 must be at least 257"),
        ("v3_alibi", {"vocab_size": 100}, "--vocab-size 100 must be at least 257"),
        ("v4_modern", {"vocab_size": 100}, "--vocab-size 100 must be at least 257"),
    ):
        version = load_version(name)
        arguments = small_arguments(version, data=corpus_file, out=tmp_path / "run", **options)
        assert expected in complaint(version, arguments, capsys)


def test_a_loss_that_is_no_number_stops_the_run(version, capsys, corpus_file, tmp_path):
    arguments = small_arguments(
        version, data=corpus_file, out=tmp_path / "run", learning_rate=1e36, steps=50
    )
    line = complaint(version, arguments, capsys)
    assert re.search(r"the loss is \w+ at step \d+, the learning rate \S+e\+3\d, ", line)
    assert re.search(r"the gradient norm \S+: lower --learning-rate", line)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_earlier_run_is_kept_and_no_mistake_touches_it(version, capsys, run, corpus_file):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for options in ({"context_length": 10**6}, {"prompt": "\ud800"}, {"data": "nowhere"}):
        complaint(
            version, small_arguments(version, **{"data": corpus_file, "out": run} | options), capsys
        )
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    version.main(small_arguments(version, data=corpus_file, out=run, seed=9))
    kept = run.with_name(run.name + "-1")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert json.loads((run / "config.json").read_text())["seed"] == 9


@pytest.mark.parametrize(
    "left", [{"summary.json", "samples.txt"}, {"metrics.jsonl"}, {"config.json", "tokenizer.json"}]
)
def test_what_is_left_of_a_run_or_is_called_so_is_kept(version, run, corpus_file, left):
    for path in run.iterdir():
        if path.name not in left:
            path.unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    version.main(small_arguments(version, data=corpus_file, out=run))
    kept = run.with_name(run.name + "-1")
    assert before.items() <= {path.name: path.read_bytes() for path in kept.iterdir()}.items()


def test_other_files_are_not_renamed_with_an_earlier_run(version, capsys, run, corpus_file):
    (run / "thesis.tex").write_text("hours of work")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    line = complaint(version, small_arguments(version, data=corpus_file, out=run), capsys)
    assert "other files, such as thesis.tex: choose another --out" in line
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    version.main(["--resume", "--out", str(run), "--steps", "7"])


def test_an_export_is_kept_also_if_it_cannot_be_renamed(tmp_path, corpus_file, monkeypatch):
    v0, out = load_version("v0_bigram"), tmp_path / "model"
    out.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (out / name).write_text("{}")
    arguments = small_arguments(v0, data=corpus_file, out=out)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(PermissionError))
        for _ in range(2):
            with pytest.raises(SystemExit):
                v0.main(arguments)
            assert {path.name: path.read_text() for path in out.iterdir()} == {
                "config.json": "{}",
                "tokenizer.json": "{}",
            }


def test_a_mount_point_is_not_renamed(version, capsys, run, corpus_file, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    busy = OSError(errno.EBUSY, "Device or resource busy")
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(busy))
    line = complaint(version, small_arguments(version, data=corpus_file, out=run), capsys)
    assert "cannot be renamed (Device or resource busy): choose another --out" in line
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_size_that_follows_from_the_text(capsys, tmp_path):
    for name in ("v0_bigram", "v1_char_transformer"):
        line = complaint(load_version(name), ["--vocab-size", "9", "--out", tmp_path], capsys)
        assert "--vocab-size, 9: --vocab-size follows from the text" in line


def test_a_finished_run_says_how_it_goes_on_and_its_results(version, capsys, run, monkeypatch):
    """It is scored again only if what it said is gone, or is another run's."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    rows = [json.loads(line) for line in before["metrics.jsonl"].splitlines()]
    summary = json.loads(before["summary.json"])
    scored, evaluate = [], version.evaluate
    watched = lambda model, *rest: scored.append(type(model)) or evaluate(model, *rest)  # noqa: E731
    monkeypatch.setattr(version, "evaluate", watched)
    tables = int(version.__name__ == "ladder_v0_bigram")  # of counts, which no checkpoint holds
    version.main(["--resume", "--out", str(run)])
    said = capsys.readouterr().out
    assert "this run is finished: with more --steps than 6 it goes on" in said
    assert f"---- a sample ----\n{rows[-1]['sample']}\n-----" in said
    assert f"{summary['bits_per_byte']:.4f} bits per byte\n" in said
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert len(scored) == tables
    others = {name: value for name, value in summary.items() if name != "val_loss"}
    for name, content in (
        ("summary.json", None),
        ("summary.json", json.dumps(summary | {"steps": 5}).encode()),
        ("summary.json", json.dumps(others).encode()),
        ("metrics.jsonl", before["metrics.jsonl"].replace(b'"train', b'"other', 1) + b"5\n"),
    ):
        (run / name).write_bytes(content) if content else (run / name).unlink()
        scored.clear()
        version.main(["--resume", "--out", str(run)])
        assert len(scored) == tables + 1, (name, content)
        again = capsys.readouterr().out
        lines = [text.splitlines()[-3:] for text in (said, again)]
        assert [re.sub(r" in \d+ s", "", line) for line in lines[0]] == [
            re.sub(r" in \d+ s", "", line) for line in lines[1]
        ]


@pytest.mark.parametrize("kind", ["a pipe", "a file"])
@pytest.mark.parametrize(
    "given, prompt", [(b"the cat", "the cat"), (b"the\ncat\n", "the\ncat"), (b"", "")]
)
def test_what_is_piped_is_the_prompt(
    version, capsys, run, monkeypatch, tmp_path, kind, given, prompt
):
    version.main(["--sample", "--out", str(run), "--prompt", prompt])
    expected = capsys.readouterr().out
    with open_input(kind, given, tmp_path) as file:
        monkeypatch.setattr("sys.stdin", file)
        version.main(["--sample", "--out", str(run)])
    assert capsys.readouterr().out == expected and expected.startswith(prompt)


def open_input(kind, given, folder):
    if kind == "a file":
        (folder / "prompt").write_bytes(given)
        return open(folder / "prompt", encoding="ascii")
    ours, theirs = os.pipe()
    os.write(theirs, given)
    os.close(theirs)
    return open(ours, encoding="ascii")


def test_a_prompt_that_is_not_text(version, capsys, run, monkeypatch, tmp_path):
    with open_input("a pipe", b"caf\xe9", tmp_path) as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", file)
        line = complaint(version, ["--sample", "--out", run], capsys)
    assert "standard input holds is not UTF-8" in line
    assert "udce9" in complaint(version, ["--sample", "--out", run, "--prompt", "\udce9"], capsys)
    typed = iter([UnicodeDecodeError("ascii", b"\xe9", 0, 1, "no"), EOFError()])
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(next(typed)))
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True})())
    version.main(["--sample", "--out", str(run)])
    assert "error: that is not text in the terminal" in capsys.readouterr().out


def test_a_prompt_in_a_locale_without_it():
    """Bytes beyond ASCII come as surrogates, and are the characters they are in UTF-8."""
    v4 = load_version("v4_modern")
    tokenizer = v4.Tokenizer.train(["some text"], 257)
    as_given = "é漢".encode().decode("ascii", "surrogateescape")
    assert encode_prompt(tokenizer, as_given) == list("é漢".encode())


def test_a_run_that_ended_before_its_first_checkpoint_is_not_kept(tmp_path, corpus_file):
    v0, out = load_version("v0_bigram"), tmp_path / "run"
    out.mkdir()
    for name, text in {"config.json": "{}", "tokenizer.json": "{}", "metrics.jsonl": ""}.items():
        (out / name).write_text(text)
    v0.main(small_arguments(v0, data=corpus_file, out=out))
    assert list(tmp_path.iterdir()) == [out] and (out / "summary.json").exists()


@pytest.mark.parametrize("way", ["the folder we are in", "a link"])
def test_an_earlier_run_is_kept_wherever_it_is(way, tmp_path, corpus_file, monkeypatch):
    v0, out, link = load_version("v0_bigram"), tmp_path / "run", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    monkeypatch.chdir(out)
    for seed in (1, 2):
        name = "." if way == "the folder we are in" else link
        v0.main(small_arguments(v0, data=corpus_file, out=name, seed=seed))
    for seed, folder in enumerate((tmp_path / "run-1", out), start=1):
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
        assert (folder / "checkpoint.pt").exists()


def test_a_run_that_another_renamed_before_it_was_locked(tmp_path, monkeypatch):
    def slow(file):  # another process starts a run in the folder before we have the lock
        (tmp_path / "run").rename(tmp_path / "run-1")
        return True

    monkeypatch.setattr("shared.run_folder.lock", slow)
    with pytest.raises(UserError, match="at the same moment"):
        lock_metrics(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["progress"].update(step=-5),
        lambda saved: saved["progress"].update(step=1.5),
        lambda saved: saved["progress"].update(seconds=None),
        lambda saved: saved["progress"].update(losses=["a"]),
        lambda saved: saved["progress"].update(rows=[1]),
        lambda saved: saved["optimizers"].pop(),
        lambda saved: saved.pop("optimizers"),
        lambda saved: saved["model"].popitem(),
        lambda saved: next(iter(saved["model"].values())).fill_(math.nan),
    ],
)
def test_a_checkpoint_of_wrong_values(change, capsys, finished_runs, tmp_path):
    v4, run = (
        load_version("v4_modern"),
        shutil.copytree(finished_runs / "v4_modern", tmp_path / "r"),
    )
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    change(saved)
    torch.save(saved, run / "checkpoint.pt")
    assert "not a whole checkpoint" in complaint(v4, ["--resume", "--out", run], capsys)


def test_states_of_optimizers_of_wrong_shapes_are_told(version, capsys, run):
    """At once, not at the first step; whatever part it is, and whatever is left out."""
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    states = [of["state"] for of in whole["optimizers"]]
    parts = [(i, n, name) for i, of in enumerate(states) for n in of for name in of[n]]
    for i, number, name in (parts[0], parts[len(parts) // 2], parts[-1]):
        for wrong in (torch.zeros(2, 7), torch.zeros(()).half(), [1.0], None):
            saved = copy.deepcopy(whole)
            state = saved["optimizers"][i]["state"][number]
            state |= {name: wrong}
            if wrong is None:
                del state[name]
            torch.save(saved, run / "checkpoint.pt")
            line = complaint(version, ["--resume", "--out", run, "--steps", "7"], capsys)
            assert "not a whole checkpoint" in line
            told = f"{name} of parameter {number} in optimizer {i} is torch.float"
            said = {type(None): "other names", list: "TypeError"}.get(type(wrong), told)
            assert said in line
    torch.save(whole, run / "checkpoint.pt")
    version.main(["--resume", "--out", str(run), "--steps", "7"])


def test_tokens_of_any_length_are_refused(capsys, finished_runs, tmp_path):
    """Sixty merges, each of the last token with itself, make one of 2^60 bytes."""
    v4, run = (
        load_version("v4_modern"),
        shutil.copytree(finished_runs / "v4_modern", tmp_path / "r"),
    )
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    tokenizer["merges"] = [[97, 97], *([i, i] for i in range(256, 315))]
    (run / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "tokenizer.json is damaged" in complaint(v4, ["--sample", "--out", run], capsys)


def test_a_model_that_nothing_can_hold(capsys):
    v4 = load_version("v4_modern")
    sizes = ["--context-length", "1000000000000", "--batch-size", "1000000"]
    assert "larger than a computer" in complaint(v4, ["--print-model", *sizes], capsys)


def test_a_folder_that_cannot_be_written_to(version, capsys, corpus_file):
    arguments = small_arguments(version, data=corpus_file, out=corpus_file / "run")
    assert "no files can be written" in complaint(version, arguments, capsys)


def test_a_run_inside_its_own_text(version, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    arguments = small_arguments(version, data=tmp_path, out=tmp_path / "run")
    assert "the run's files would be read as text" in complaint(version, arguments, capsys)


def test_home_is_found_also_where_the_shell_does_not_look(version, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    arguments = small_arguments(version, data="~/a.txt", out="~/run")
    config = version.command_line.parse(version.Config, arguments)
    assert config.data == str((tmp_path / "a.txt").resolve())
    assert config.out == str(tmp_path / "run")


@pytest.mark.parametrize(
    "number, status", [("EROFS", 2), ("ENOSPC", 2), ("EACCES", 2), ("EIO", 1), ("EBADF", 1)]
)
@pytest.mark.parametrize("folder", ["cache", "cache/tokens", "", "elsewhere"])
def test_what_the_system_refuses(number, status, folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    path = str(tmp_path / folder / "train.txt" if folder else tmp_path)
    with pytest.raises(SystemExit) as stop, clear_errors():
        raise OSError(getattr(errno, number), "The system's words", path)
    hint = " ($LADDER_CACHE can name another folder)" if folder != "elsewhere" else ""
    assert stop.value.code == status
    assert capsys.readouterr().err == f"error: The system's words: {path}{hint}\n"


def test_an_error_in_a_notebook_is_a_line():
    """IPython asks an exception for it (InteractiveShell.showtraceback)."""
    with pytest.raises(UserError) as error:
        load_version("v0_bigram").Config(batch_size=-1)
    line = "error: batch_size -1 must be more than 0, at most 1,000,000"
    assert error.value._render_traceback_() == [line]


def test_an_error_has_a_line_of_its_own(capsys):
    with pytest.raises(SystemExit), clear_errors():
        bar = tqdm(total=3, leave=False)
        raise UserError("so it is")
    bar.close()
    assert "\rerror: so it is\n" in capsys.readouterr().err


def test_a_model_that_cannot_be_compiled(capsys):
    import torch._inductor.exc as compiling

    with pytest.raises(SystemExit) as stop, clear_errors():
        raise compiling.InvalidCxxCompiler
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "--compile" in said


def test_validation_text_of_unknown_characters_only(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 80 + "\n" + "z" * 17)
    for name in ("v0_bigram", "v1_char_transformer"):
        version = load_version(name)
        arguments = small_arguments(version, data=tmp_path / "a.txt", out=tmp_path / name)
        assert "no character that the training text has" in complaint(version, arguments, capsys)


def test_damaged_values_in_a_config(version, capsys, run):
    whole = json.loads((run / "config.json").read_text())
    for name, value in {"vocab_size": "x", "schedule": "up", "steps": 1.5}.items():
        if name in whole:
            (run / "config.json").write_text(json.dumps(whole | {name: value}))
            line = complaint(version, ["--sample", "--out", run], capsys)
            assert "--" + name.replace("_", "-") in line


def test_a_config_of_a_model_that_does_not_fit(version, capsys, run, monkeypatch):
    """It may be anybody's, of any width: no weights are made for it."""
    monkeypatch.setattr("shared.model_table.free_memory", lambda _: 2000)
    monkeypatch.setattr(version, "Run", None)  # takes the model
    for option in (["--sample"], ["--score", run / "samples.txt"]):
        line = complaint(version, [*option, "--out", run], capsys)
        assert "the model's weights take" in line and "choose a smaller model" in line


ANOTHER_RUN = {
    "batch_size": 5,
    "accumulation_steps": 2,
    "learning_rate": 0.5,
    "muon_learning_rate": 0.5,
    "warmup_steps": 2,
    "weight_decay": 0.5,
    "clip_norm": 9.0,
    "dropout": 0.5,
    "rope_base": 9.0,
    "tokenizer_sample_bytes": 50,
    "seed": 7,
}
THE_SAME_RUN = {
    "evaluate_every": 2,
    "checkpoint_every": 2,
    "prompt": "the",
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "max_new_tokens": 3,
}


def test_what_may_change_when_a_run_goes_on(version, run, capsys):
    for option, value in (ANOTHER_RUN | THE_SAME_RUN).items():
        name = option.replace("_", "-")
        arguments = ["--resume", "--out", run, "--" + name, value]
        if option not in version.Config.__dataclass_fields__:
            continue
        if option in THE_SAME_RUN:
            version.main([str(argument) for argument in arguments])
        else:
            assert name in complaint(version, arguments, capsys)


PROGRAMS = [f"{name}/train.py" for name in VERSIONS]
PROGRAMS += ["v4_modern/encode.py", "v4_modern/export.py"]


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_torch_is_imported(program, ignored, tmp_path):
    """In its place, a module that sends the signal. Where a shell had it ignored, it still is."""
    text = "import signal\nsignal.raise_signal(signal.SIGINT)\nraise SystemExit(5)\n"
    (tmp_path / "torch.py").write_text(text)
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL  # then Python installs its own
    done = subprocess.run(
        [sys.executable, str(ROOT / program), "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (5 if ignored else 130, b"", b"")


def test_other_programs_keep_their_ctrl_c(tmp_path):
    """A notebook's kernel must not end when it is interrupted."""
    (tmp_path / "other.py").write_text("import shared, signal; print(signal.getsignal(2))")
    command = [sys.executable, str(tmp_path / "other.py")]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=paths, capture_output=True, text=True, check=True).stdout
    inherited = subprocess.run(
        [sys.executable, "-c", "import signal; print(signal.getsignal(2))"],
        capture_output=True,
        text=True,
    )
    assert said == inherited.stdout


@pytest.mark.parametrize("moment", ["parse", "load_data", "build", "make_optimizers", "Run"])
def test_ctrl_c_before_training(version, moment, capsys, corpus_file, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    stopped = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
    monkeypatch.setattr(version, moment, stopped)
    with pytest.raises(SystemExit) as stop:
        version.main(small_arguments(version, data=corpus_file, out=tmp_path / "run"))
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number, status", [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, 1)])
def test_the_status_tells_whose_fault_it_was(number, status):
    with pytest.raises(SystemExit) as stop, clear_errors():
        raise OSError(number, os.strerror(number), "file")
    assert stop.value.code == status


def test_help_is_the_files_first_lines_and_every_option(version, capsys, monkeypatch):
    """Examples can be parsed, and so can the options as they are shown: they are the defaults."""
    monkeypatch.setattr(sys, "argv", ["here/train.py"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        version.main(["--steps", "3", "--help"])
    told = capsys.readouterr().out
    assert not stop.value.code and told.startswith(version.__doc__.strip() + "\n")
    examples = re.findall(r"(?m)^    python here/train.py (.*)$", told)
    configs = [parse_options(version.Config, shlex.split(example)) for example in examples]
    assert len(configs) == 3 and configs[1].resume and configs[2].prompt == "Return the"
    _, _, options = told.partition("give others:\n")
    assert re.findall(r"(?m)^(\S.*):$", options) == list(GROUPS) and "(default" not in options
    assert all(len(line) <= 80 for line in options.splitlines() if "--out /" not in line)
    shown = re.findall(r"(?m)^  --(\S+)(?: (\S+))?(?:$|  +\S)", options)
    counted = {"vocab_size"} if by_characters(version) else set()
    names = [name.replace("-", "_") for name, _ in shown]
    assert sorted(names) == sorted(version.Config.__dataclass_fields__.keys() - counted)
    given = [[f"--{name}", value] for name, value in shown if value not in ("", "PATH", "TEXT")]
    assert parse_options(version.Config, sum(given, [])) == version.Config()
    assert set(" ".join(GROUPS.values()).split()) <= set(
        load_version(VERSIONS[-1]).Config.__dataclass_fields__
    ) | {"tokenizer_sample_bytes"}
