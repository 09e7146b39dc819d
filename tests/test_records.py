"""What is kept of measurements, of which code it is, and the command that makes all of them."""

import json
import subprocess

import pytest
import toy
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import all as everything
from benchmarks import common, records
from benchmarks.records import read_results, runs_of, save_results
from shared.files import read_json


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small one of its own; `commit` there commits all."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    for path in ("v0_toy/train.py", "shared/a/b.py", "benchmarks/soak.py", "benchmarks/all.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1\n")
    return tmp_path


def commit(folder) -> str:
    """Commit all; the commit's full name."""
    person = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*person, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    return head.stdout.strip()


# ---- the code ----


def test_the_code_is_the_last_commit_that_changed_it(repository):
    first = commit(repository)
    assert records.code() == first
    (repository / "README.md").write_text("a table\n")
    (repository / "benchmarks" / "all.py").write_text("2\n")
    assert records.code() == first  # what does not measure may change
    assert commit(repository) != first and records.code() == first
    codes = {first}
    for path in ("v0_toy/train.py", "shared/a/b.py", "benchmarks/soak.py", "v1_new/train.py"):
        (repository / path).parent.mkdir(exist_ok=True)
        (repository / path).write_text(path)
        changed = records.code()
        of, _, digest = changed.partition("-")
        assert changed not in codes and of in codes and len(digest) == 12
        codes |= {changed, commit(repository)}
        assert records.code() in codes - {changed}


def test_without_git_the_code_is_what_its_files_hold(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    before = records.code()
    assert before.startswith("unknown-") and records.code() == before
    (repository / "v0_toy" / "train.py").write_text("2\n")
    assert records.code() != before


def test_commits_are_short_and_tell_of_changes():
    assert records.short_commit("a" * 40) == "a" * 12
    assert records.short_commit("a" * 40 + "-0123") == "a" * 12 + " with changes"
    assert records.short_commit(None) == "unknown"


PROGRAM = """
import json, sys
from pathlib import Path

out = Path(sys.argv[2])
out.mkdir()
times = Path(out.parent / "times")
times.write_text((times.read_text() if times.exists() else "") + "a")
if "--steps" in sys.argv:
    sys.exit("error: the loss is nan")
summary = {"version": "v0_toy", "seed": 0, "val_loss": 1.0, "commit": "another"}
(out / "summary.json").write_text(json.dumps(summary))
"""


@pytest.mark.parametrize("options", [{}, {"steps": 1}])
def test_a_run_of_other_code_is_run_again(tmp_path, monkeypatch, capsys, options):
    """A run that ends, and one that diverges."""
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    for number, here in enumerate(("a" * 40, "a" * 40, "b" * 40, "b" * 40, "b" * 40 + "-12")):
        for module in (records, common):
            monkeypatch.setattr(module, "code", lambda here=here: here)
        run = common.train_or_diverge("v0_toy", tmp_path / "run", options, program=program)
        assert run.get("commit") == (None if options else here)
        assert (tmp_path / "times").read_text() == "a" * (1, 1, 2, 2, 3)[number]
        said = capsys.readouterr().out
        assert ("the code was another" in said) == (number in (2, 4)), said


# ---- results.json ----


RESULTS = [toy.results(), toy.sweep(), toy.ablations(), toy.climb()]


@pytest.mark.parametrize("results", RESULTS)
def test_results_are_read_as_they_were_written_a_run_a_line(results, tmp_path):
    path = tmp_path / "results.json"
    before = json.dumps(results)
    save_results(path, results)
    assert json.dumps(results) == before  # nothing is taken from the caller's
    again = read_results(path)
    assert again == json.loads(before, parse_float=lambda x: float(f"{float(x):.8g}"))
    text = path.read_text(encoding="utf-8")
    lines = [line.rstrip(",") for line in text.splitlines()]
    assert all(json.dumps(run) in lines for run in runs_of(read_json(path)))
    assert text.count(runs_of(results)[0]["corpus"]["sha256"]) < len(runs_of(results))


values = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text().filter(lambda name: name not in ("runs", "points")), values))
def test_any_json_has_its_lines_and_stays_the_same(value):
    assert json.loads(records.a_line_each(value)) == value


def test_all_results_are_small():
    """If not: what of them could be computed from the rest?"""
    paths = [path for path in common.RESULTS.rglob("*") if path.suffix in (".json", ".md")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    assert sum(text.count("\n") for text in texts) <= 1500
    assert sum(len(text.encode("utf-8")) for text in texts) <= 250_000


def test_two_commits_are_not_shown_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)

    def measured(name, commit):
        results = {"runs": [toy.run("v0_bigram", seed, 1.0, commit=commit) for seed in (0, 1)]}
        save_results(tmp_path / name / "results.json", results)
        (tmp_path / name / "table.md").write_text(f"A; {common.on_machine(*results['runs'])}.\n")
        return results

    measured("a", "a" * 40)
    results = measured("b", "a" * 40)
    assert common.origins() == f"All that follows was measured on commit {'a' * 12}."
    for other in ("b" * 40, "a" * 40 + "-dirty", None):
        measured("b", other)
        told = common.origins()
        assert "All" not in told and f"threads: 2, commit {'a' * 12} |" in told
        assert told.endswith(f"threads: 2, commit {records.short_commit(other)} |")
    results["runs"][0]["commit"] = "b" * 40  # within one set
    save_results(tmp_path / "b" / "results.json", results)
    (tmp_path / "b" / "table.md").write_text(f"A; {common.on_machine(*results['runs'])}.\n")
    assert common.origins().endswith(f"commit {'a' * 12}, {'b' * 12} |")
    assert common.in_brief("b", f"A; {common.on_machine(*results['runs'])}. B, c.") == (
        "A; Python 3.11.7, torch 2.13.0, CPU threads: 2. B, c."
    )


# ---- all of them ----


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Three parts of five minutes, the second of which fails; and which were run."""
    ran, parts = [], {name: (f"{name}.py --steps 3", 5) for name in "abc"}

    def run(name, *more):
        ran.append(" ".join([name, *more]))
        return name != "b"

    monkeypatch.setattr(everything, "PARTS", parts)
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    monkeypatch.setattr(everything, "run", run)
    monkeypatch.setattr(everything, "code", lambda: "a" * 40)
    return ran


def test_what_is_measured_on_this_code_is_not_measured_again(parts, monkeypatch, capsys):
    for left in (["a", "a --readme", "b", "c", "c --readme"], ["b"]):
        with pytest.raises(SystemExit) as stop:
            everything.main([])
        assert stop.value.code == 2 and "failed: b;" in capsys.readouterr().err
        assert parts == left
        parts.clear()
    everything.main(["--only", "c"])  # asked for by name
    assert parts == ["c", "c --readme"]
    monkeypatch.setattr(everything, "code", lambda: "b" * 40)
    everything.main(["--list"])
    assert "3 to do, 5 minutes" in capsys.readouterr().out  # two were timed, and took none
    everything.main(["--only", "a", "b", "--budget", "4"])  # b would take 5
    assert parts == ["c", "c --readme", "a", "a --readme"]
    assert "b: left out" in capsys.readouterr().out


def test_code_that_is_not_committed_is_not_measured(parts, monkeypatch, capsys):
    for codes, said in ((["a-1"], "commit them first"), (["a", "b"], "was changed while a was")):
        codes = iter(codes)
        monkeypatch.setattr(everything, "code", lambda codes=codes: next(codes))
        with pytest.raises(SystemExit) as stop:
            everything.main([])
        assert stop.value.code == 2 and said in capsys.readouterr().err
    assert parts == ["a", "a --readme"]


def test_a_part_that_is_stopped_is_not_done(parts, monkeypatch, tmp_path):
    def stopped(name, *more):
        raise KeyboardInterrupt

    monkeypatch.setattr(everything, "run", stopped)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - as main makes of it
        everything.main(["--only", "a"])
    assert not read_json(tmp_path / "all.json")["a"]["done"]
    assert not everything.is_done("a", "a" * 40)


def test_every_part_is_a_command_of_the_readme():
    places = common.README, ROOT / "v4_modern" / "README.md"
    readme = "".join(place.read_text(encoding="utf-8") for place in places)
    for name, (command, _) in everything.PARTS.items():
        assert f"    python benchmarks/{command}  #" in readme, name
        assert (ROOT / "benchmarks" / command.split()[0]).exists(), name
    folders = {path.parent.name for path in common.RESULTS.glob("*/results.json")}
    assert folders <= set(everything.PARTS)
