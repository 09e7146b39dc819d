"""Token files as --data: what numpy, nanoGPT and llm.c write, and what is none of that."""

import pickle
import tracemalloc

import numpy as np
import pytest
from conftest import load_version, small_arguments, small_text
from hypothesis import example, given
from hypothesis import strategies as st
from test_errors import complaint

from shared import token_files
from shared.corpora import END_OF_TEXT, cache_folder, load_corpus
from shared.files import UserError, read_json
from shared.reading import NotTextError
from shared.token_files import documents, map_ids, token_splits, write_token_file
from v4_modern import encode

v0, v4 = (load_version(name) for name in ("v0_bigram", "v4_modern"))
TEXT = small_text(25)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A text, its tokenizer and its tokens, in all formats."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    tokenizer = v4.Tokenizer.train([TEXT], 300)
    tokenizer.save("tokenizer.json")
    for form, name in (("npy", "a.npy"), ("nanogpt", "b.bin"), ("llmc", "c.bin")):
        encode.main(["text.txt", name, "--tokenizer", "tokenizer.json", "--format", form])
    np.save("d.npy", np.load("a.npy").astype(">i8"))  # as others may have it
    return tmp_path


def splits_of(data):
    _, corpus, train, val = v4.load_data(v4.Config(data=data, tokenizer="tokenizer.json"))
    return corpus, train, val


@pytest.mark.parametrize("name", ["a.npy", "b.bin", "c.bin", "d.npy"])
def test_a_token_file_is_split_as_its_text_is(name, folder, monkeypatch):
    monkeypatch.setattr(token_files, "SLICE", 7)
    text, *expected = splits_of("text.txt")
    of_text = set((folder / "cache" / "tokens").iterdir())
    tokens, *found = splits_of(name)
    assert all(map(np.array_equal, found, expected)) and len(found[1]) > 100
    assert all(isinstance(ids, np.memmap) for ids in found)
    sizes = "train_bytes", "val_bytes"
    assert [getattr(tokens, n) for n in sizes] == [getattr(text, n) for n in sizes]
    assert tokens.name == name and splits_of(name)[0] == tokens  # from the cache
    made = {path: path.stat().st_mtime_ns for path in (folder / "cache" / "tokens").iterdir()}
    splits_of(name)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    damaged = next(path for path in made.keys() - of_text if path.suffix == ".npy")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{damaged.name} .*; delete it and run again"):
        splits_of(name)
    damaged.unlink()
    assert splits_of(name)[0] == tokens


END = 9


@given(st.lists(st.integers(7, END), max_size=90), st.integers(1, 20))
@example([], 1)
@example([END, END, 7, END, END, 8], 2)
def test_documents_are_those_between_ends(ids, size):
    parts = "".join(map(str, ids)).split(str(END))
    parts = [[int(i) for i in part] for part in parts if part]
    wanted = {"": parts, "train": [part for i, part in enumerate(parts, 1) if i % 10]}
    wanted["val"] = parts[9::10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "SLICE", size)
        for split, expected in wanted.items():
            found = [i for p in documents(np.array(ids, np.uint16), END, split) for i in p.tolist()]
            assert found == [END, *(i for part in expected for i in (*part, END))]


def test_of_few_documents_the_last_tenth_is_for_validation(folder):
    tokenizer = v4.Tokenizer.load("tokenizer.json")
    end = tokenizer.special_tokens[END_OF_TEXT]
    np.save("few.npy", np.array([end, *range(50), end, *range(50, 100)], np.int32))
    _, train, val = splits_of("few.npy")
    assert train.tolist() == [end, *range(50), end, *range(50, 90), end]
    assert val.tolist() == [end, *range(90, 100), end]


@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_a_folder_of_two_files_is_taken_as_it_is(suffix, folder):
    """As nanoGPT's data/*/prepare.py leaves it, with other files."""
    (folder / "pair").mkdir()
    (folder / "pair" / "prepare.py").write_text("# text")
    for name, ids in (("train", range(200)), ("val", range(200, 260))):
        ids = np.array(ids, np.uint16)
        path = folder / "pair" / f"{name}{suffix}"
        ids.tofile(path) if suffix == ".bin" else np.save(path, ids)
    corpus, train, val = splits_of("pair")
    assert train.tolist() == [*range(200)] and val.tolist() == [*range(200, 260)]
    assert corpus.train.samefile(folder / "pair" / f"train{suffix}") and corpus.name == "pair"
    assert not (folder / "cache" / "tokens").exists()
    tokenizer = v4.Tokenizer.load("tokenizer.json")
    assert corpus.val_bytes == sum(len(tokenizer.token_bytes(i)) for i in range(200, 260))


def test_a_run_on_tokens_is_the_run_on_their_text(folder):
    summaries = []
    for data in ("text.txt", "a.npy"):
        arguments = small_arguments(v4, data=data, out=folder / data[0], tokenizer="tokenizer.json")
        arguments = arguments[2:]  # a given tokenizer has its own size
        assert "--vocab-size" not in arguments
        v4.main(arguments)
        v4.main(["--resume", "--out", str(folder / data[0]), "--steps", "8"])
        summaries.append(read_json(folder / data[0] / "summary.json"))
    for name in ("val_loss", "bits_per_byte", "scored_bytes", "train_bytes", "steps"):
        assert summaries[0][name] == summaries[1][name], name
    assert summaries[1]["corpus"]["name"] == "a.npy" and summaries[1]["steps"] == 8


def test_mistakes_are_told(folder, capsys):
    (folder / "pair").mkdir()
    for name in ("train.bin", "val.bin"):
        (folder / "pair" / name).write_bytes(bytes(200))
    for data in ("a.npy", "b.bin", "pair"):
        line = complaint(v4, ["--data", data, "--out", "run"], capsys)
        assert f"{data} holds ids: name the --tokenizer that made them" in line
    v4.Tokenizer.train([TEXT], 299).save("other.json")
    given_other = ["--tokenizer", "other.json", "--out", "run", "--data"]
    assert "a.npy was made by another tokenizer" in complaint(v4, [*given_other, "a.npy"], capsys)
    line = complaint(v4, [*given_other, "b.bin"], capsys)
    assert line.endswith("b.bin holds the id 299; the tokenizer has 299")
    np.save("e.npy", np.array([5, -1]))
    assert "holds the id -1" in complaint(v4, [*given_other, "e.npy"], capsys)
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-1] + b"\x07")
    assert "a.npy is damaged; make it again" in complaint(v4, [*given_other, "a.npy"], capsys)
    np.save("short.npy", np.array([5, 6, 7]))
    assert "too short" in complaint(v4, [*given_other, "short.npy"], capsys)
    line = complaint(v0, ["--data", "d.npy", "--out", "run"], capsys)
    assert "token ids, which only --data of v4 takes" in line
    with pytest.raises(NotTextError):
        load_corpus("d.npy")
    assert not (folder / "run").exists()


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('burst')",)


def test_what_holds_no_ids_is_told(folder):
    np.save("objects.npy", np.array([Bomb()], object))
    np.save("floats.npy", np.zeros(5))
    np.save("square.npy", np.zeros((5, 5), int))
    (folder / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    (folder / "odd.bin").write_bytes(bytes(201))
    for name in ("none.bin", "none.npy"):
        (folder / name).touch()
    whole = (folder / "c.bin").read_bytes()
    (folder / "cut.bin").write_bytes(whole[:-2])
    (folder / "long.bin").write_bytes(whole + b"ab")
    (folder / "cut.npy").write_bytes((folder / "d.npy").read_bytes()[:-3])
    (folder / "long.npy").write_bytes((folder / "d.npy").read_bytes() + b"a")
    names = "objects.npy floats.npy square.npy pickle.npy odd.bin none.bin none.npy cut.bin"
    for name in [*names.split(), "long.bin", "cut.npy", "long.npy", "nowhere.bin", "text.txt"]:
        with pytest.raises(UserError, match=name):
            map_ids(folder / name)


HEADER = "{'descr': '<u2', 'fortran_order': False, 'shape': (%s,), }"


@given(st.binary(max_size=200) | st.text(st.sampled_from(HEADER), max_size=80).map(str.encode))
@example((HEADER % -5).encode())
@example((HEADER % 10**30).encode())
@example((HEADER % 5).replace("u2", "O").encode())
@example(b"(" * 150)
@example(b"'''")
def test_any_bytes_are_ids_or_told(content):
    size = len(content).to_bytes(2, "little")
    for name, data in (
        ("x.bin", content),
        ("x.npy", b"\x93NUMPY\1\0" + size + content + bytes(10)),
        ("x.bin", np.array([20240520, 1, len(content)], "<i4").tobytes() + content),
    ):
        path = cache_folder() / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            ids = map_ids(path)
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert ids.dtype.kind in "iu" and ids.nbytes <= len(data)


def test_memory_does_not_grow_with_the_file(folder, monkeypatch):
    """Only one slice is held: here a thousandth of the file."""
    monkeypatch.setattr(token_files, "SLICE", 1 << 13)
    tokenizer = v4.Tokenizer.load("tokenizer.json")
    end = tokenizer.special_tokens[END_OF_TEXT]
    ids = np.arange(1 << 23, dtype=np.uint16) % 250
    ids[::1000] = end
    ids.tofile("large.bin")
    del ids
    tracemalloc.start()
    try:
        token_splits("large.bin", tokenizer, folder / "cache")
        assert tracemalloc.get_traced_memory()[1] < 4e6  # of 16.8 MB
    finally:
        tracemalloc.stop()


def test_many_processes_may_prepare_the_same(folder):
    """What one has written stays valid while another writes it again."""
    path = folder / "x.npy"
    write_token_file(path, [range(100)], 300, "ab" * 32)

    def pieces():
        yield range(50)
        assert len(token_files.open_token_file(path, "ab" * 32)) == 100
        yield range(50, 100)

    write_token_file(path, pieces(), 300, "ab" * 32)
    assert token_files.open_token_file(path, "ab" * 32).tolist() == [*range(100)]
