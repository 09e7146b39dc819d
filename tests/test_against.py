"""One build against another: what is run, in which order, and what is made of it."""

import pytest
import toy
from conftest import ROOT

from benchmarks import against, common, records
from shared.files import UserError, read_json


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The runs that are started, none of which trains. Ours take a quarter of the time; the turn
    of the second seed is twice as slow for both."""
    runs = []

    def run(program, out, options):
        build = "old" if "worktree" in program.parts else against.NOW
        steps = options.get("steps", 1250)
        runs.append((build, steps, options["seed"]))
        seconds = (0.4 if build == "old" else 0.1) * steps * (1 + options["seed"])
        facts = {name: toy.run("", 0, 1.0)[name] for name in ("torch", "python", "threads")}
        facts |= {"steps": steps, "seconds": seconds, "whole": 2 * seconds}
        return facts | {"peak": 2e9 if build == "old" else 1e9, "bits_per_byte": 1.5}

    monkeypatch.setattr(against, "run", run)
    monkeypatch.setattr(against, "checked_out", lambda commit: tmp_path / "worktree")
    for module in (against, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return runs


def test_builds_take_turns_and_ratios_are_within_a_turn(started, tmp_path, monkeypatch, capsys):
    command = ["0123456", "--steps", "500", "1250", "--seeds", "2"]
    against.main(command)
    turn = [("old", 1250), (against.NOW, 500), (against.NOW, 1250)]
    assert started == [(*run, seed) for seed in (0, 1) for run in turn]
    said = capsys.readouterr().out
    assert "| 0123456 | 1,250 | 1500.0 | 600.0 | 2,000 | 1.5000 |" in said
    assert "| now | 500 | 150.0 (0.10) | 150.0 (0.25) | 1,000 (0.50) | 1.5000 (1.00) |" in said
    against.main(command[:-1] + ["3"])  # only the third turn is left
    assert started[6:] == [(*run, 2) for run in turn]
    assert len(read_json(tmp_path / "against" / "results.json")["runs"]) == 9
    monkeypatch.setattr(records, "code", lambda: "f" * 40)
    against.main(command)  # of other code: no turn is of both
    assert started[9:] == [(*run, seed) for seed in (0, 1) for run in turn]


def test_a_run_is_the_whole_command_on_an_empty_cache(tmp_path):
    """A program that writes down its options and what it found."""
    program = tmp_path / "train.py"
    program.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "out = Path(sys.argv[2])\n"
        "out.mkdir()\n"
        "found = {'torch': os.listdir(os.environ['LADDER_CACHE']), 'cpu': sys.argv[3:]}\n"
        "(out / 'summary.json').write_text(json.dumps(found | {'steps': 3}))\n"
        "held = bytearray(300 << 20)\n"
        "sys.exit('--fail' in sys.argv)\n"
    )
    told = against.run(program, tmp_path / "runs" / "a", {"seed": 7})
    assert told["torch"] == [] and told["cpu"] == ["--device", "cpu", "--seed", "7"]
    assert told["steps"] == 3 and told["whole"] > 0 and 300 << 20 < told["peak"] < 400 << 20
    with pytest.raises(UserError, match="status 1: see .*b.log"):
        against.run(program, tmp_path / "runs" / "b", {"fail": ""})


def test_an_unknown_commit_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(against, "WORKTREES", tmp_path)
    with pytest.raises(UserError, match="nosuchcommit can't be checked out: .*"):
        against.checked_out("nosuchcommit")
    assert against.checked_out("HEAD").joinpath("v4_modern", "train.py").exists()
    against.subprocess.run(["git", "worktree", "remove", "--force", tmp_path / "HEAD"], cwd=ROOT)
