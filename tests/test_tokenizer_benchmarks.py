"""The benchmarks of tokenizers: what they measure is the same work, what they tell is computed."""

import gzip
import hashlib
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
from conftest import load_version, small_text

from benchmarks import scale, ties, tokenizers
from shared.corpora import END_OF_TEXT, read_documents
from shared.files import UserError, json_sha256
from shared.terminal import progress
from shared.token_files import open_token_file

Tokenizer = load_version("v4_modern").Tokenizer
MACHINE = {
    "python": "3.11",
    "torch": "2.13",
    "cpu": "Z80",
    "threads": 1,
    "commit": "0123456789abcdef",
}


def row(task, who, size, cores, cpu, seconds):
    of_text = {"task": task, "who": who, "bytes": size, "cores": cores}
    return of_text | {"cpu": cpu, "seconds": seconds}


TOY = {
    "options": {"vocab_size": 10_000, "repeats": 3, "data": ""},
    "machine": MACHINE,
    "peers": {"tiktoken": "0.14"},
    "not_ascii": 0.25,
    "rows": [
        row("train", "v4", 2_000_000, 1, 4.0, 9.0),
        row("train", "rustbpe", 2_000_000, 1, 5.0, 1.0),
        row("train", "v4", 2_000_000, 2, 9.0, 3.0),
        row("train", "rustbpe", 2_000_000, 2, 1.0, 2.0),
    ],
}


def test_shares_and_speeds_are_of_the_right_clock():
    """CPU seconds on one core, seconds on two: 4 / 5, 2 MB / 4 s; 3 / 2, 2 MB / 3 s."""
    text = tokenizers.report(TOY)
    assert "| rustbpe: train | 0.80 | 1.50 |" in text
    assert "| v4 on one core: train |  | 0.33 |" in text  # 3 / 9
    assert "| train | v4 | 4.000 | 0.5 | 1.00 |" in text
    assert "| train | v4 | 3.000 | 0.7 | 1.00 |" in text
    one_core, _, _, two_cores, *_ = tokenizers.draw(TOY).axes
    for panel, speeds in ((one_core, (0.5, 0.4)), (two_cores, (2 / 3, 1.0))):
        lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
        assert lines == {who: [[2.0, s]] for who, s in zip(("v4", "rustbpe"), speeds)}


@pytest.mark.parametrize("who", tokenizers.SAME_IDS)
@pytest.mark.parametrize("cores", ["1", "2"])
def test_every_contestant_encodes_the_same(who, cores, tmp_path, monkeypatch):
    if not who.startswith("v"):
        pytest.importorskip(who)
    text = small_text(20) + "é漢🙂 42" + END_OF_TEXT
    ours = Tokenizer.train([text], 300)
    ours.save(tmp_path / "ours.json")
    (tmp_path / "text.txt").write_bytes(text.encode("utf-8"))
    monkeypatch.setenv("RAYON_NUM_THREADS", cores)
    files = [str(tmp_path / "text.txt"), "300", str(tmp_path / "ours.json")]
    found = tokenizers.measure("encode", who, *files)
    expected = hashlib.sha256(np.array(ours.encode(text), np.uint32).tobytes()).hexdigest()
    assert found["sha256"] == expected


FIRST_OF_EQUALS = {"v4": b"cd", "tokenizers": b"ab", "rustbpe": b" c", "bpeasy": b" c"}


@pytest.mark.parametrize("who", FIRST_OF_EQUALS)
def test_which_of_equal_pairs_merges_first(who):
    """Of `ab`, ` c` and `cd`, as the table says."""
    if who != "v4":
        pytest.importorskip(who)
    learned = ties.FIRST[who][1](["ab cd"], 258)
    assert {t for t in learned if len(t) > 1} - {END_OF_TEXT.encode()} == {FIRST_OF_EQUALS[who]}


def test_tokens_in_common(monkeypatch):
    """Two of v4's three."""
    found = {"v4": {b"a", b"ab", b"bc", b"cd"}, "pytest": {b"b", b"ab", b"bc", b"xyz"}}
    monkeypatch.setattr(
        ties, "FIRST", {who: ("any", lambda *_, t=tokens: t) for who, tokens in found.items()}
    )
    rows = ties.compare([], 0)
    assert rows == [["v4", "any", "100.0%"], [f"pytest {pytest.__version__}", "any", "66.7%"]]


def test_text_grows_from_what_the_machine_has(monkeypatch):
    """Texts as they come, then their lines in another order; the same every time."""
    texts = [document + "\n" for document in small_text(9).split(END_OF_TEXT)]
    monkeypatch.setattr(tokenizers, "candidates", lambda: iter(texts))
    text = tokenizers.this_machines_text(300_000)
    assert 299_990 < len(text.encode("utf-8")) <= 300_000
    assert text == tokenizers.this_machines_text(300_000)
    assert text.startswith(END_OF_TEXT.join(texts))
    lines = set("".join(texts).splitlines())
    assert set(text.replace(END_OF_TEXT, "").splitlines()[:-1]) == lines


def test_pages_are_those_with_letters_that_are_not_latin(tmp_path, monkeypatch):
    pages = {"ja/man1/a.1.gz": "漢字 manual", "de/man1/a.1.gz": "Handbücher", "man1/a.1.gz": "漢字"}
    for name, page in (pages | {"ru/man8/b.8.gz": "страница", "ko/man1/bad.1.gz": ""}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(page.encode("utf-8")) if page else b"no gzip")
    pages["de/man1/b.1.gz"] = "Er heißt so, wie er heißt, und das Handbuch ist sehr lang"
    (tmp_path / "de/man1/b.1.gz").write_bytes(gzip.compress(pages["de/man1/b.1.gz"].encode()))
    monkeypatch.setattr(tokenizers, "MANUALS", tmp_path)
    found = tokenizers.translated_manuals()
    assert sorted(found) == sorted(["漢字 manual", "Handbücher", "страница"])
    assert found == tokenizers.translated_manuals()


@pytest.mark.parametrize("pages", [["漢字\n", "страница\n"], []])
def test_it_says_what_text_there_is(pages, monkeypatch, tmp_path, capsys):
    measured = []

    def compare_at(options, n_bytes, cores, text_file, ours_file):
        measured.append(text_file.read_text(encoding="utf-8"))
        return [row("train", "v4", n_bytes, cores, 1.0, 1.0)]

    monkeypatch.setattr(tokenizers, "translated_manuals", lambda: pages)
    monkeypatch.setattr(tokenizers, "candidates", lambda: iter(["an English text\n"]))
    monkeypatch.setattr(tokenizers, "compare_at", compare_at)
    options = tokenizers.Options(sizes=(0.0005, 0.001), vocab_size=300, foreign=0.002)
    results = tokenizers.compare(options)
    kinds = [(row["text"], row["bytes"]) for row in results["rows"]]
    english = [("", 500), ("", 1000)]
    if pages:
        assert kinds[:2] == english and kinds[2][0] == "manuals" and 1996 < kinds[2][1] <= 2000
        assert set(measured[2].replace(END_OF_TEXT, "")[:-9]) <= set("漢字страница\n")
        assert results["foreign"]["pages"] == 2 and results["foreign"]["bytes"] == 7 + 17
    else:
        assert kinds == english and results["foreign"] is None
        assert "no translated manual pages" in capsys.readouterr().out


def test_scale_writes_its_text_again_and_measures_it(pydocs, tmp_path):
    for name in ("a.txt", "b.txt"):
        scale.make_text(tmp_path / name, 300_000)
    text = tmp_path / "a.txt"
    assert text.read_bytes() == (tmp_path / "b.txt").read_bytes()
    assert 300_000 <= text.stat().st_size < 320_000
    words = [word for document in read_documents(text) for word in document.split(" ")]
    counts = {word: words.count(word) for word in words[:: scale.NEW_WORDS]}
    assert set(counts.values()) == {1}  # the new ones
    for task in scale.TASKS:
        assert scale.measure(task, text, 300)["seconds"] > 0
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = open_token_file(tmp_path / "a.txt.npy", json_sha256(tokenizer.to_json()))
    assert tokenizer.decode(ids[1:].tolist()) == text.read_text(encoding="utf-8")


def test_scale_ends_its_text_where_no_progress_is_shown(pydocs, monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(scale, "progress", partial(progress, disable=True))  # TQDM_DISABLE=1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, limits[1]))
    try:
        scale.make_text(tmp_path / "a.txt", 300_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 300_000 <= (tmp_path / "a.txt").stat().st_size < 320_000


def test_scale_does_not_fill_the_disk(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 10, 2_000_000_000))
    with pytest.raises(UserError, match="2.0 GB left, 4.4 GB are needed"):
        scale.run(scale.Options(folder=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_the_middle_turn_counts_and_ids_must_be_equal(tmp_path, monkeypatch):
    taken = {who: iter((9.0, 1.0, 2.0)) for who in ("v4", "tiktoken")}
    sha256 = dict.fromkeys(taken, "same")

    def turn(arguments, cores):
        seconds = next(taken[arguments[1]])
        cold, warm = ({"cpu": s, "seconds": 2 * s} for s in (seconds, seconds / 10))
        return {"cold": cold, "warm": warm, "sha256": sha256[arguments[1]]}

    monkeypatch.setattr(tokenizers, "turn", turn)
    monkeypatch.setattr(tokenizers, "TRAIN", {})
    monkeypatch.setattr(tokenizers, "ENCODE", dict.fromkeys(taken))
    options, files = tokenizers.Options(repeats=3), (tmp_path / "text", tmp_path / "ours")
    rows = tokenizers.compare_at(options, 100, 1, *files)
    found = {(row["who"], row["task"]): (row["cpu"], row["seconds"]) for row in rows}
    assert found == {(who, "cold"): (2.0, 4.0) for who in taken} | {
        (who, "warm"): (0.2, 0.4) for who in taken
    }
    taken |= {who: iter((1.0,) * 3) for who in taken}
    sha256["tiktoken"] = "another"
    with pytest.raises(UserError, match="the ids differ"):
        tokenizers.compare_at(options, 100, 1, *files)


def test_time_is_also_that_of_started_processes():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    _, taken = tokenizers.timed(lambda: subprocess.run([sys.executable, "-c", burn], check=True))
    assert taken["cpu"] > 0.2


def test_the_first_time_is_cold(tmp_path, monkeypatch):
    asked = []

    def encode():  # works for it the first time alone
        if not asked:
            start = time.process_time()
            while time.process_time() < start + 0.1:
                pass
        asked.append(1)
        return [[1, 2], [3]]

    Tokenizer.train(["ab"], 260).save(tmp_path / "ours.json")
    (tmp_path / "text.txt").write_text("ab")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setitem(tokenizers.ENCODE, "v4", lambda *_: encode)
    files = [str(tmp_path / "text.txt"), "260", str(tmp_path / "ours.json")]
    found = tokenizers.measure("encode", "v4", *files)
    assert len(asked) == 2 and found["cold"]["cpu"] > 0.09 > found["warm"]["cpu"]
    assert found["sha256"] == hashlib.sha256(np.array([1, 2, 3], np.uint32)).hexdigest()
