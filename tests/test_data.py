"""Corpora and token files."""

import ast
import errno
import importlib.util
import inspect
import json
import os
import platform
import shutil
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, load_version, small_config, small_text
from hypothesis import given
from hypothesis import strategies as st

import shared.text
from benchmarks.common import RESULTS
from benchmarks.records import read_results
from shared import corpora, fast_bpe, reading
from shared.corpora import END_OF_TEXT, load_corpus, read_documents, sample_documents
from shared.files import UserError, atomic_write, file_sha256, read_json, write_json
from shared.reading import read_pieces
from shared.token_files import open_token_file, slices, write_token_file
from shared.tokens import (
    SOURCES,
    cached_tokenizer,
    code_of,
    count_pairs,
    random_windows,
    windows_in_order,
)
from v4_modern import encode

v2, v3, v4 = (load_version(name) for name in ("v2_bpe_rope", "v3_alibi", "v4_modern"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


# ---- corpora ----


def test_every_tenth_document_is_for_validation(tmp_path):
    documents = [f"document {i}\r\n" for i in range(35)]
    corpus = load_corpus(str(write(tmp_path / "a.txt", END_OF_TEXT.join(documents))))
    assert list(read_documents(corpus.val)) == documents[9::10]
    assert list(read_documents(corpus.train)) == [d for i, d in enumerate(documents) if i % 10 != 9]
    assert corpus.train_bytes + corpus.val_bytes == sum(map(len, documents))


def test_a_text_of_few_documents_is_cut_at_the_end_of_a_line(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    corpus = load_corpus(str(write(tmp_path / "a.txt", text)))
    train, val = (next(read_documents(path)) for path in (corpus.train, corpus.val))
    assert train + val == text and train.endswith("\n")
    assert 0.88 < len(train) / len(text) < 0.92


@pytest.mark.parametrize("first", range(880, 905))
def test_the_cut_is_never_inside_a_separator(tmp_path, first):
    corpus = load_corpus(
        str(write(tmp_path / "a.txt", "a" * first + END_OF_TEXT + "b" * (987 - first)))
    )
    train, val = ("".join(read_documents(path)) for path in (corpus.train, corpus.val))
    assert train + val == "a" * first + "b" * (987 - first)


@pytest.mark.parametrize("first", range(4))
def test_the_cut_is_never_inside_a_character(tmp_path, first):
    text = "a" * first + "🙂漢é" * 111
    corpus = load_corpus(write(tmp_path / "a.txt", text))
    train, val = ("".join(read_documents(path)) for path in (corpus.train, corpus.val))
    assert train + val == text and len(train) / len(text) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("size", range(20, 60))
def test_documents_keep_their_blanks_where_pieces_end(tmp_path, size, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_BYTES", size)
    documents = [f"\n \n  text {i}\n" + "  \n" * (i % 7) for i in range(30)]
    corpus = load_corpus(write(tmp_path / "a.txt", END_OF_TEXT.join([" \n", *documents])))
    train = [document for i, document in enumerate(documents) if i % 10 != 9]
    assert list(read_documents(corpus.train)) == train
    assert list(read_documents(corpus.val)) == documents[9::10]


def test_blanks_without_end_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_BYTES", 10)
    monkeypatch.setattr(corpora, "MOST_BLANK", 4)
    with pytest.raises(UserError, match="4 MB of blanks: this is not text"):
        load_corpus(write(tmp_path / "a.txt", "one" + END_OF_TEXT + " " * 900 + "two"))


def test_a_folder_is_its_files_in_order(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    write(folder / "b.txt", "two"), write(folder / "a.txt", "one"), write(folder / ".hidden", "x")
    write(folder / "sub" / "c.txt", "three\nfour")
    corpus = load_corpus(str(folder))
    text = "".join(d for path in (corpus.train, corpus.val) for d in read_documents(path))
    assert text == "onetwothree\nfour"


def test_a_folder_of_one_file_and_that_file_alone(tmp_path):
    (tmp_path / "texts").mkdir()
    path = write(tmp_path / "texts" / "a.txt", "some text\n" * 20)
    for _ in range(2):
        of_folder, of_file = load_corpus(str(path.parent)), load_corpus(str(path))
        assert (of_folder.name, of_file.name) == ("texts", "a.txt")
        assert of_folder.sha256 == of_file.sha256


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "a.txt", "some text\n" * 20)
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts")
    corpus = load_corpus(str(tmp_path / "texts"))
    assert corpus.train_bytes + corpus.val_bytes == 200


def test_a_folder_that_holds_the_cache_is_no_text(tmp_path):
    write(tmp_path / "a.txt", "some text\n" * 20)
    with pytest.raises(UserError, match="contains the cache, which is not text"):
        load_corpus(str(tmp_path))


def test_a_corpus_is_prepared_once_and_again_when_it_changes(tmp_path):
    path = write(tmp_path / "a.txt", "some text\n" * 20)
    first = load_corpus(str(path))
    stamp = first.train.stat().st_mtime_ns
    assert load_corpus(str(path)) == first and first.train.stat().st_mtime_ns == stamp
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    assert load_corpus(str(link)) == first
    write(path, "same text\n" * 20)  # and as long
    os.utime(path, (2e9, 2e9))
    assert load_corpus(str(path)).sha256 != first.sha256


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_text_of_the_same_size_and_time_is_another(tmp_path, monkeypatch, size):
    """As after `rsync -t` and `cp -p`."""
    if size == "large":
        monkeypatch.setattr(corpora, "CHECKED_BYTES", 0)
    monkeypatch.setattr(corpora, "SURELY", -(10**11))
    path = write(tmp_path / "a.txt", "some text\n" * 20)
    kept = path.stat()
    first = load_corpus(str(path))
    for replaced in (False, True):
        other = write(tmp_path / "b.txt" if replaced else path, f"{replaced:4} text\n" * 20)
        os.utime(other, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        other.replace(path)
        assert path.stat().st_mtime_ns == kept.st_mtime_ns
        corpus = load_corpus(str(path))
        assert corpus.sha256 != first.sha256
        assert next(read_documents(corpus.val)).startswith(f"{replaced:4}")


def test_a_large_text_is_not_read_at_each_start(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CHECKED_BYTES", 0)
    path = str(write(tmp_path / "a.txt", "some text\n" * 20))
    hashed = []
    monkeypatch.setattr(
        corpora, "file_sha256", lambda file: hashed.append(file) or file_sha256(file)
    )
    first = load_corpus(path)
    assert load_corpus(path) == first and len(hashed) == 2  # it was just written
    monkeypatch.setattr(corpora, "SURELY", -(10**11))
    for _ in range(3):
        assert load_corpus(path) == first and len(hashed) == 3
    (known,) = corpora.cache_folder().glob("files/*.key")
    known.write_text('{"cOntent": "damaged"}')
    for _ in range(2):  # read once more, and then known again
        assert load_corpus(path) == first and len(hashed) == 4


def test_the_same_text_is_kept_once(tmp_path):
    text = small_text()
    (tmp_path / "texts").mkdir()
    files = [write(tmp_path / name, text) for name in ("a.txt", "b.md", "texts/c.txt")]
    names = [load_corpus(str(path)).name for path in (*files, tmp_path / "texts")]
    assert names == ["a.txt", "b.md", "c.txt", "texts"]
    assert len(list(corpora.cache_folder().glob("files/*/corpus.json"))) == 1


def test_a_text_that_changes_while_it_is_read_is_not_kept(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "some text\n" * 20)
    read_texts = corpora.read_texts

    def slow(*arguments):
        yield from read_texts(*arguments)
        write(path, "same text\n" * 20)

    monkeypatch.setattr(corpora, "read_texts", slow)
    with pytest.raises(UserError, match="a.txt changed while it was read: run again"):
        load_corpus(str(path))
    assert list(corpora.cache_folder().rglob("*.txt")) == []


@given(st.lists(st.text()), st.integers(1, 40))
def test_documents_survive_any_piece_size(texts, piece_bytes):
    texts = [t.encode("utf-8", "replace").decode().replace(END_OF_TEXT, "") for t in texts]
    texts = [text for text in texts if text]
    folder = corpora.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = write(folder / "any.txt", END_OF_TEXT.join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE_BYTES", piece_bytes)
        assert list(read_documents(path)) == texts
        pieces = [piece.decode("utf-8") for piece in read_pieces(path)]  # each is UTF-8
        assert "".join(pieces) == END_OF_TEXT.join(texts)


def test_a_sample_is_spread_over_the_corpus(tmp_path):
    documents = [f"{i:04}" * 25 for i in range(1000)]
    corpus = load_corpus(str(write(tmp_path / "a.txt", END_OF_TEXT.join(documents))))
    sample = list(sample_documents(corpus, 10_000))
    assert 9_000 <= sum(map(len, sample)) <= 11_000
    numbers = [int(document[:4]) for document in sample]
    assert numbers[0] < 50 and numbers[-1] > 900
    assert list(sample_documents(corpus, 10**9)) == list(read_documents(corpus.train))
    one = load_corpus(str(write(tmp_path / "one.txt", "é" * 5000)))  # a document, larger than asked
    assert "".join(sample_documents(one, 101)) == "é" * 50


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "holds no text"),
        (b" \n\n ", "holds no text"),
        (b"a", "too short"),
        (b"\x89PNG\r\n\xff\xfe", r"a\.txt is a PNG picture"),
        (b"fine<|endoftext|>not \xff fine", r"is not UTF-8 text \(byte 21\)"),
        (b"fine \xe6\xbc", r"is not UTF-8 text \(byte 5\)"),
        (b"a" * (1 << 20) + b"\xe6 a", r"is not UTF-8 text \(byte 1,048,576\)"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, content, complaint):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_corpus(str(tmp_path / "a.txt"))
        raise AssertionError("prepared, although it cannot be used")


@pytest.mark.parametrize("name", ["train.txt", "val.txt"])
def test_of_a_large_corpus_the_sizes_are_looked_at(tmp_path, name, monkeypatch):
    monkeypatch.setattr(corpora, "CHECKED_BYTES", 0)
    source = str(write(tmp_path / "a.txt", "some text\n" * 20))
    path = load_corpus(source).train.with_name(name)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged: delete it and run again"):
        load_corpus(source)


@pytest.mark.parametrize("name", ["corpus.json", "train.txt", "val.txt"])
def test_a_damaged_corpus_in_the_cache_is_named(tmp_path, name):
    source = str(write(tmp_path / "a.txt", "some text\n" * 20))
    path = load_corpus(source).train.with_name(name)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", whole[:7], whole[:-8], flipped, b"[]", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged: delete it and run again") as complaint:
            load_corpus(source)
        assert str(path.parent) in str(complaint.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is damaged: delete it and run again"):
        load_corpus(source)


def test_docstrings_are_found_in_the_order_of_a_walk():
    nested = "class A:\n def f(): \n  try:\n   class B: pass\n  except E:\n   def g(): lambda: 0\n"
    nested += "match x:\n case 1:\n  async def h(): [i for i in ()]\nwith y:\n def k(): pass\n"
    for source in (nested, inspect.getsource(inspect), inspect.getsource(shutil)):
        tree = ast.parse(source)
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        assert [*corpora._documented(tree)] == [n for n in ast.walk(tree) if isinstance(n, kinds)]


def test_pydocs_is_prose_and_the_same_each_time(pydocs, monkeypatch):
    assert 1e6 < pydocs.train_bytes < 3e6 and 5e4 < pydocs.val_bytes < 4e5
    documents = list(read_documents(pydocs.train))
    assert len(documents) > 2000 and len(set(documents)) == len(documents)
    assert any("Return" in document for document in documents)
    (published, *_) = read_results(RESULTS / "seconds-120" / "results.json")["runs"]
    if published["python"] == platform.python_version():
        assert published["corpus"]["sha256"] == pydocs.sha256
    part = {"stdlib": str(Path(json.__file__).parent)}  # the whole takes seconds
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: part)
    assert [*corpora._pydocs_documents()] == [*corpora._pydocs_documents()] != []


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = write(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"half of the ne")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("named") or replace(*names))
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"12345")
    assert calls[:2] == [5, "named"]


def test_two_processes_may_write_one_file(tmp_path):
    """Also if both have the same number, on two machines or in two containers."""
    path = tmp_path / "file"
    with atomic_write(path) as one:
        one.write(b"one")
        with atomic_write(path) as two:
            two.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"


def test_only_files_are_written_over(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match="is not a file"), atomic_write(tmp_path / name) as file:
            file.write(b"text")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "pipe"}
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_in_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    write(tmp_path / "texts" / "a.txt", "text")
    scandir = os.scandir

    def refusing(path):  # as for any user but root, who may read all
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="sub"):
        load_corpus(str(tmp_path / "texts"))


# ---- token files and windows ----

SHA = "ab" * 32


@given(st.lists(st.lists(st.integers(0, 70_000))), st.booleans())
def test_token_files_give_back_what_was_written(pieces, small):
    pieces = [[i % 60_000 for i in ids] if small else ids for ids in pieces]
    path = corpora.cache_folder() / "tokens.npy"
    count = write_token_file(path, pieces, 60_000 if small else 70_001, SHA)
    tokens = open_token_file(path, SHA)
    assert tokens.tolist() == [i for ids in pieces for i in ids] and len(tokens) == count
    assert tokens.dtype == (np.uint16 if small else np.uint32)
    del tokens  # Windows cannot replace a file that is mapped


def test_bad_token_files_are_named_and_refused(tmp_path):
    path = tmp_path / "tokens.npy"
    write_token_file(path, [range(1000)], 1000, SHA)
    whole = path.read_bytes()
    with pytest.raises(UserError, match="another tokenizer"):
        open_token_file(path, "cd" * 32)
    for size in (0, 5, 10, 127, 128, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="tokens.npy.*; delete it"):
            open_token_file(path, SHA)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="damaged"):
        open_token_file(path, SHA)
    for position in (*range(128), 1000, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(UserError, match="tokens.npy"):
            open_token_file(path, SHA)
    path.write_bytes(b"GIF89a" + bytes(2000))
    with pytest.raises(UserError, match="not a token file"):
        open_token_file(path, SHA)
    path.write_bytes(whole)
    for other in (b"", b"[]", b"{}", b'{"crc32": 1}'):
        (tmp_path / "tokens.npy.check").write_bytes(other)
        with pytest.raises(UserError, match="tokens.npy"):
            open_token_file(path, SHA)


@given(
    ids=st.lists(st.integers(0, 6), max_size=60),
    vocab_size=st.integers(7, 9),
    chunk=st.integers(1, 70),
)
def test_pairs_are_counted_across_chunks(ids, vocab_size, chunk):
    chunk = max(chunk, len(ids) // 16 + 1)  # no smaller one, or some would be left out
    counted = count_pairs(np.array(ids, np.uint16), vocab_size, chunk)
    counts = {(i, j): n for i, j, n in zip(*(part.tolist() for part in counted))}
    assert counts == Counter(zip(ids, ids[1:]))


def test_of_many_tokens_sixteen_chunks_are_counted(tmp_path):
    np.arange(1600, dtype=np.uint16).tofile(tmp_path / "tokens")
    left, right, _ = count_pairs(np.memmap(tmp_path / "tokens", np.uint16), 1600, chunk=3)
    assert left.tolist() == [100 * i + k for i in range(16) for k in range(3)]
    assert torch.equal(right, left + 1)


@given(st.integers(2, 200), st.integers(1, 30), st.integers(1, 5))
def test_windows_in_order_hold_every_target_once(n, length, count):
    tokens = np.arange(n)
    inputs, targets = [], []
    for x, y in windows_in_order(tokens, length, count):
        assert x.shape[0] <= count and x.shape[1] <= length and x.numel() == y.numel()
        inputs.append(x.flatten())
        targets.append(y)
    assert torch.cat(inputs).tolist() == list(range(n - 1))
    assert torch.cat(targets).tolist() == list(range(1, n))


@pytest.mark.parametrize("size", range(100, 113))
def test_end_of_text_is_not_cut_where_a_piece_of_a_file_ends(size, tmp_path, monkeypatch):
    """Else its characters would be learned as words."""
    monkeypatch.setattr(shared.text, "PIECE", size)
    source, out = tmp_path / "text.txt", tmp_path / "tokens.npy"
    source.write_text(END_OF_TEXT.join(["ab" * 20] * 20))
    learned, *_ = v4.load_data(v4.Config(data=str(source), vocab_size=1000, workers=1))
    encode.main([str(source), str(out), "--workers", "1"])
    for tokenizer in (learned, v4.Tokenizer.load(f"{out}.json")):
        assert set(b"".join(tokenizer.vocab[256:-1])) == set(b"ab")


def test_too_short_a_text_for_a_window_is_refused():
    with pytest.raises(UserError, match="too few for one window of 11"):
        random_windows(np.arange(10), 2, 11, np.random.default_rng(0))
    assert random_windows(np.arange(11), 2, 11, np.random.default_rng(0)).shape == (2, 11)


@pytest.mark.parametrize("vocab_size", [2**16 - 1, 2**16, 2**16 + 1])
def test_the_highest_id_fits(vocab_size, tmp_path):
    ids = np.array([0, vocab_size - 1], np.uint32)
    write_token_file(tmp_path / "t.npy", [ids], vocab_size, "ab" * 32)
    assert open_token_file(tmp_path / "t.npy", "ab" * 32).tolist() == ids.tolist()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="only Linux tells")
def test_what_was_read_of_a_token_file_is_not_kept(tmp_path):
    path = tmp_path / "t.npy"
    write_token_file(path, [np.zeros(1 << 20, np.uint16)] * 16, 1000, "ab" * 32)
    tokens = open_token_file(path, "ab" * 32)
    for step in range(50):
        random_windows(tokens, 64, 17, np.random.default_rng(step))
    for _ in islice(windows_in_order(tokens, 16, 1 << 14), 10):
        pass
    for piece in slices(tokens):
        piece.sum()
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.endswith(str(path)) for line in lines)  # leaves what is told of it
    held = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    assert held < 2000  # KB, of 32,768


# ---- the cache ----


def test_texts_that_share_a_tokenizer_do_not_share_tokens(tmp_path):
    for word in ("cat", "dog"):
        data = str(write(tmp_path / f"{word}.txt", f"a {word}\n" * 100))
        tokenizer, corpus, *splits = v4.load_data(v4.Config(data=data, vocab_size=257))  # bytes
        for ids, path in zip(splits, (corpus.train, corpus.val)):
            assert tokenizer.decode(ids[1:]) == path.read_text()


@pytest.mark.parametrize("version", [v2, v3])
def test_a_tokenizer_of_another_sample_is_another(tmp_path, version):
    data = str(write(tmp_path / "a.txt", small_text(40) + small_text(40, 1).upper()))
    for n_bytes in (200, 8000):
        config = small_config(version, data=data, tokenizer_sample_bytes=n_bytes)
        tokenizer, corpus, *_ = version.load_data(config)
        sample = sample_documents(corpus, n_bytes)
        expected = version.Tokenizer.train(sample, config.vocab_size)
        assert tokenizer.to_json() == expected.to_json()


@pytest.mark.parametrize("version", [v2, v3, v4])
def test_a_damaged_tokenizer_in_the_cache_is_told(tmp_path, version):
    config = small_config(version, data=str(write(tmp_path / "a.txt", small_text())))
    version.load_data(config)
    (path,) = corpora.cache_folder().glob("tokenizers/*.json")
    saved = read_json(path)
    saved["merges"][-1] = [1, 2]  # still a tokenizer
    write_json(path, saved)
    with pytest.raises(UserError, match="damaged: delete"):
        version.load_data(config)


def test_the_code_of_a_tokenizer_is_all_that_it_uses():
    code = code_of(v4.Tokenizer)
    names = ["Tokenizer", "fast_bpe", "files", "terminal", "text"]  # fast_bpe merges long words
    assert [part.split("'")[1] for part in code[1:]] == names
    assert code_of(fast_bpe.fast(v4.Tokenizer)) == code
    for path in (ROOT / "shared" / "fast_bpe").glob("*.py"):
        assert path.read_text() in SOURCES["fast_bpe"], path


@pytest.mark.parametrize("file", ["v4_modern/train.py", "shared/text.py"])
def test_an_edit_while_a_text_is_prepared_is_not_what_prepared_it(file, tmp_path):
    for name in ("shared", "v4_modern"):
        shutil.copytree(ROOT / name, tmp_path / name)
    program = """
import sys
from shared.tokens import code_of
from v4_modern.train import Tokenizer
before = code_of(Tokenizer)
text = open(sys.argv[1]).read()
open(sys.argv[1], "w").write(text.replace("1 << 18", "1 << 17"))
assert code_of(Tokenizer) == before
print(before)
"""
    run = [sys.executable, "-c", program, file]
    ends = [forked.run(run, cwd=tmp_path) for _ in range(3)]
    codes = [end.stdout for end in ends]
    assert codes[0] != codes[1] == codes[2] != "", ends[0].stderr


def test_changed_code_gets_new_ids(tmp_path, monkeypatch):
    config = small_config(v4, data=str(write(tmp_path / "a.txt", small_text())))
    tokenizer, *_ = v4.load_data(config)
    monkeypatch.setattr(v4.Tokenizer, "encode_pieces", lambda *_: [np.array([7, 8], np.uint16)])
    assert v4.load_data(config)[2].tolist() == [tokenizer.special_tokens[END_OF_TEXT], 7, 8]


@pytest.mark.parametrize("name", ["Tokenizer", "Child"])
def test_an_edited_tokenizer_is_trained_anew(name, tmp_path, monkeypatch):
    trained = []

    def ask(source):
        path = write(tmp_path / f"{abs(hash(source))}.py", source)  # or bytecode could be stale
        spec = importlib.util.spec_from_file_location("ladder_edited", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "ladder_edited", module)
        spec.loader.exec_module(module)
        tokenizer_class = getattr(module, name)

        def train():
            trained.append(source)
            return tokenizer_class.train(["ab"], 300)

        cached_tokenizer(tokenizer_class, ("key",), train)

    source = Path(v2.__file__).read_text() + "\n\nclass Child(Tokenizer):\n    pass\n"
    edited = source.replace(r" ?\p{L}+", " ?[a-z]+")
    for text in (source, source, edited):
        ask(text)
    assert trained == [source, edited] and source != edited
