"""The table of engines: an answer that differs is seen, and what is missing is said."""

import json
from types import SimpleNamespace

import pytest
from conftest import load_version, small_arguments

from benchmarks import common, engines
from shared.files import read_json

v4 = load_version("v4_modern")
MACHINE = {"python": "3", "torch": "2", "threads": 1, "commit": "abc"}


@pytest.fixture(scope="module")
def ours():
    tokenizer = v4.Tokenizer.train(["the cat sat on the mat"], 270)
    end = tokenizer.vocab_size - 1
    texts = ["the cat", "é mat", "a"]
    answer = {
        "ids": [[end, *tokenizer.encode(text)] for text in texts],
        "greedy": [tokenizer.encode(text) for text in texts],
        "numbers": {"our_loss": 5.0, "our_bits": 2.0},
    }
    return answer, tokenizer


def test_equal_answers_are_counted(ours):
    answer, tokenizer = ours
    end = tokenizer.vocab_size - 1
    row = engines.row_of(answer, answer, tokenizer)
    assert (row["greedy"], row["ids"]) == ("3 of 3", "3 of 3")
    longer = [ids + [end, 5, 6] for ids in answer["greedy"]]  # what follows the end is cut
    bare = [ids[1:] for ids in answer["ids"]]
    row = engines.row_of({"greedy": longer, "ids": bare}, answer, tokenizer)
    assert (row["greedy"], row["ids"]) == ("3 of 3", "3 of 3, without a begin token")
    texts = [tokenizer.decode(ids) for ids in answer["greedy"]]
    assert engines.row_of({"greedy": texts}, answer, tokenizer)["greedy"] == "3 of 3"


def test_an_answer_that_differs_is_seen(ours):
    answer, tokenizer = ours
    wrong = [answer["greedy"][0][:-1] + [7], answer["greedy"][1][:-1], answer["greedy"][2]]
    ids = [answer["ids"][0], answer["ids"][1], answer["ids"][2] + [7]]
    row = engines.row_of({"greedy": wrong, "ids": ids}, answer, tokenizer)
    assert (row["greedy"], row["ids"]) == ("1 of 3", "2 of 3")
    wrong = ["the cat", "é  mat", "A"]
    assert engines.row_of({"greedy": wrong}, answer, tokenizer)["greedy"] == "1 of 3"
    with pytest.raises(ValueError):
        engines.row_of({"greedy": wrong[:2]}, answer, tokenizer)


def test_the_table_has_every_version_and_names_what_is_missing():
    rows = {
        "b": {"engine": "lm-eval", "version": "2", "machine": MACHINE}
        | {"numbers": {"without": 2.25, "our_bits": 2.25, "as_it_is": 2.5}},
        "a": {"engine": "transformers", "version": "5", "greedy": "9 of 10", "machine": MACHINE},
        "c": {"engine": "transformers", "version": "4", "failed": "x | y", "machine": MACHINE},
    }
    rows["a"]["numbers"] = {}
    text = engines.report({"model": {"parameters": 1234}, "rows": rows})
    lines = text.splitlines()
    assert lines[2].startswith("| transformers 4 |") and "failed: x \\| y" in lines[2]
    assert lines[3].startswith("| transformers 5 |") and "| 9 of 10 |" in lines[3]
    assert "2.2500 bits per byte (ours 2.2500)" in lines[4] and "2.5000" in lines[4]
    absent = lines[-1].partition("not asked: ")[2]
    assert absent.rstrip(".").split(", ") == [
        name for name in engines.ENGINES if name not in ("transformers", "lm-eval")
    ]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Results and READMEs of this test, a text, and one engine, asked in this process."""
    readme, tour = tmp_path / "README.md", tmp_path / "TOUR.md"
    readme.write_text("<!-- results origins -->\n<!-- /results -->")
    tour.write_text("before\n<!-- results engines -->\n<!-- /results -->\nafter")
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "README", readme)
    monkeypatch.setattr(engines, "TOUR", tour)
    monkeypatch.setattr(engines, "RUNS", tmp_path)
    monkeypatch.setattr(engines, "TOKENS", 9)
    monkeypatch.setattr(engines, "load_corpus", lambda _: SimpleNamespace(val=""))
    monkeypatch.setattr(engines, "read_documents", lambda _: ["the cat runs", "A dog sees."])

    def here(name, asked):
        questions, said = tmp_path / "questions.json", tmp_path / "said.json"
        questions.write_text(json.dumps(vars(asked)))
        engines.answer_here(name, str(questions), str(said))
        return read_json(said)

    monkeypatch.setattr(engines, "answer", here)
    return tmp_path


def test_transformers_is_asked_and_compared(places, corpus_file, capsys):
    run = places / "a_run"
    v4.main(small_arguments(v4, data=corpus_file, out=run, context_length=64))
    engines.main(["--run", str(run), "--engines", "transformers"])
    (row,) = read_json(places / "results" / "engines" / "results.json")["rows"].values()
    assert row["greedy"] == f"{len(engines.PROMPTS)} of {len(engines.PROMPTS)}"
    assert row["ids"] == f"{len(engines.ODD_TEXTS)} of {len(engines.ODD_TEXTS)}"
    engines.main(["--readme"])
    table = (places / "results" / "engines" / "table.md").read_text(encoding="utf-8")
    begin, end = "before\n<!-- results engines -->\n", "<!-- /results -->\nafter"
    assert (places / "TOUR.md").read_text(encoding="utf-8") == begin + table + end
    with pytest.raises(SystemExit):
        engines.main(["--engines", "none"])
    assert "--engines none: there are transformers, " in capsys.readouterr().err


def test_the_tour_shows_what_engines_answered():
    """If not: python benchmarks/engines.py --readme"""
    results = read_json(common.RESULTS / "engines" / "results.json")
    text = engines.report(results)
    assert f"<!-- results engines -->\n{text}\n<!-- /results -->" in engines.TOUR.read_text("utf-8")
