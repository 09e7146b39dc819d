"""The files that people have: of which formats text is read, and what is said of all others."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import random
import sqlite3
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import load_version, small_arguments
from hypothesis import given
from hypothesis import strategies as st
from test_errors import complaint

from shared import files, reading
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import UserError
from shared.reading import joined, named, read_texts, text_files
from shared.text import well_formed
from v4_modern import encode
from v4_modern.train import Tokenizer

DOCUMENTS = [f"document {i}\r\nü, {i * i}\n" for i in range(40)]
TEXT = END_OF_TEXT.join(DOCUMENTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))


def rows(documents, field="text"):
    return [{"id": i, field: text} for i, text in enumerate(documents)]


def json_lines(documents, field="text"):
    return "".join(json.dumps(row) + "\r\n\n" for row in rows(documents, field))


def table(documents, field="text"):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows(documents, field)), file)
    return file.getvalue()


def zstd(data):
    zstandard = pytest.importorskip("zstandard")
    return zstandard.compress(data[:700]) + zstandard.compress(data[700:])  # two frames


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
FORMATS = {
    ".txt": TEXT,
    ".md": TEXT,
    "": TEXT,
    ".jsonl": json_lines(DOCUMENTS),
    ".NDJSON": json_lines(DOCUMENTS),
}


def documents_of(corpus):
    """In any order."""
    return sorted(d for path in (corpus.train, corpus.val) for d in read_documents(path))


def texts_in(path, field="text"):
    return b"".join(joined(read_texts(text_files(named(str(path))), field))).decode("utf-8")


# ---- formats ----


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", FORMATS)
def test_the_same_documents_are_read_of_all_formats(name, packed, mark, tmp_path):
    path = tmp_path / f"a{name}{packed}"
    path.write_bytes(PACKED[packed]((mark + FORMATS[name]).encode("utf-8")))
    corpus = load_corpus(str(path))
    assert list(read_documents(corpus.val)) == DOCUMENTS[9::10]
    assert documents_of(corpus) == sorted(DOCUMENTS)
    assert texts_in(path) == TEXT


def test_a_table_is_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(table(DOCUMENTS, "story"))
    assert documents_of(load_corpus(str(tmp_path / "a.parquet"), "story")) == sorted(DOCUMENTS)


def test_every_version_learns_from_the_text_in_json_lines(version, tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(DOCUMENTS * 3, "body").encode()))
    out = tmp_path / "run"
    arguments = small_arguments(version, data=path, text_field="body", out=out, context_length=8)
    version.main(arguments)
    corpus = json.loads((out / "summary.json").read_text())["corpus"]
    assert corpus["train_bytes"] + corpus["val_bytes"] == 3 * sum(
        len(d.encode()) for d in DOCUMENTS
    )
    assert version.Tokenizer.load(out / "tokenizer.json").encode("{")[0] in (1, ord("{"))  # unseen
    assert "no field 'text'; --text-field can name another: 'id', 'body'" in complaint(
        version, small_arguments(version, data=path, out=tmp_path / "other"), capsys
    )


def test_a_folder_may_mix_them_and_what_is_no_text_is_left_out(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    contents = {
        "1.txt": "\ufeffone".encode(),
        "2.jsonl": json_lines(["two", "three"]).encode(),
        "3.txt.gz": gzip.compress("\ufefffour".encode()),
        "4.parquet": table(["five", "six"]),
        "a.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "b.txt": b"\x00\xffno text",
        "c.pdf": b"%PDF-1.7\n",
        "d.zip": b"PK\x03\x04" + bytes(30),
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / "texts" / name).write_bytes(content)
    texts = texts_in(tmp_path / "texts").split(END_OF_TEXT)
    assert texts == ["one", "two", "three", "four", "five", "six", ""]
    assert capsys.readouterr().out == (
        "left out 4 of 9 files: a.png is a PNG picture, b.txt is not UTF-8 text (byte 1): convert "
        "it, c.pdf is a PDF document, ...\n"
    )
    corpus = load_corpus(str(tmp_path / "texts"))
    assert "".join(documents_of(corpus)).count("\ufeff") == 0
    only = tmp_path / "texts" / "a.png"
    with pytest.raises(UserError, match="holds no text"):
        load_corpus(str(only.with_name("[ab].*")))


def test_a_pattern_names_all_that_match_it(tmp_path, monkeypatch):
    (tmp_path / "in [1]" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in [1]")
    for name in ("b.txt", "a.txt", "c.md", ".d.txt", "deeper/e.txt"):
        (tmp_path / "in [1]" / name).write_text(name)
    for pattern in ("*.txt", str(tmp_path / "in [1]" / "*.txt")):
        assert texts_in(pattern) == END_OF_TEXT.join(["a.txt", "b.txt"])
    assert texts_in("*") == END_OF_TEXT.join(["a.txt", "b.txt", "c.md", "deeper/e.txt"])
    assert named("*.csv") == named("nowhere/*.txt") == []


def test_a_run_inside_what_a_pattern_names(version, capsys, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(TEXT)
    arguments = small_arguments(version, data=tmp_path / "t*", out=tmp_path / "texts" / "run")
    assert "the run's files would be read as text" in complaint(version, arguments, capsys)


def test_a_link_says_by_its_own_name_what_it_leads_to(tmp_path):
    v0 = load_version("v0_bigram")
    (tmp_path / "blob").write_text(json_lines(DOCUMENTS))
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "blob")
    arguments = small_arguments(v0, data=tmp_path / "a.jsonl", out=tmp_path / "run")
    config = v0.command_line.parse(v0.Config, arguments)
    assert documents_of(load_corpus(config.data)) == sorted(DOCUMENTS)


@given(st.lists(st.text(), min_size=1), st.integers(1, 40))
def test_json_lines_survive_any_piece_size(tmp_path_factory, texts, piece_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    verbatim = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(texts))
    for data in (json_lines(texts), verbatim):
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "PIECE_BYTES", piece_bytes)
            assert texts_in(path) == END_OF_TEXT.join(texts)


def test_surrogates_escaped_in_json(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "\ud83d\ude42 \ud83d"}')
    assert texts_in(tmp_path / "a.jsonl") == well_formed("🙂 \ud83d") == "🙂 \ufffd"


# ---- what is not text ----


def saved(write):
    """The bytes that `write` puts into a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def database(tmp_path):
    connection = sqlite3.connect(tmp_path / "db")
    connection.execute("create table t (text)")
    connection.commit()
    return (tmp_path / "db").read_bytes()


KINDS = {
    "UTF-16 text": ["any\ntext".encode(c) for c in ("utf-16", "utf-16-le", "utf-16-be")],
    "UTF-32 text": ["any\ntext".encode(c) for c in ("utf-32", "utf-32-le", "utf-32-be")],
    "a ZIP archive": [saved(lambda f: zipfile.ZipFile(f, "w").writestr("a.txt", "text"))],
    "a tar archive": [
        saved(lambda f: tarfile.open(fileobj=f, mode="w").addfile(tarfile.TarInfo()))
    ],
    "packed twice": [gzip.compress(gzip.compress(b"text")), lzma.compress(bz2.compress(b"text"))],
    "a JPEG picture": [b"\xff\xd8\xff\xe0\0\x10JFIF"],
    "a GIF picture": [b"GIF89a\1\0"],
    "a video": [b"\0\0\0\x20ftypisom"],
    "a pointer to a file": [b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n"],
    "UTF-16 text, not": [gzip.compress("text".encode("utf-16"))],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_text_is_named_for_what_it_is(kind, tmp_path):
    for content in KINDS[kind]:
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"a.txt is {kind}"):
            load_corpus(str(tmp_path / "a.txt"))


def test_a_database_and_a_table_of_another_name(tmp_path):
    for content, kind in (
        (database(tmp_path), "an SQLite"),
        (table(["text"]), "a Parquet file, but"),
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match=f"a is {kind}"):
            load_corpus(str(tmp_path / "a"))


def test_text_is_not_taken_for_something_else(tmp_path):
    for text in (
        "BZh is no name",
        "PAR1 and PAR2",
        "MZ\n",
        "RIFF or WEBP",
        "GIF87 is old",
        "PK",
        "\0",
    ):
        (tmp_path / "a.txt").write_text(text)
        assert texts_in(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"text": "a"', "this is no JSON"),
        ("text", "this is no JSON"),
        ("[" * 100_000, "this is no JSON"),
        ('["text"]', "no object with fields but list"),
        ('{"body": "a", "id": 1}', "no field 'text'; --text-field can name another: 'body', 'id'"),
        ("{}", "no field 'text'; --text-field can name another: none"),
        ('{"text": null}', "the field 'text' is no text but NoneType"),
        ('{"text": ["a"]}', "the field 'text' is no text but list"),
        ('"' + "a" * 200_000, "longer than 150,000 characters"),
    ],
)
def test_a_bad_line_is_told(line, said, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_LINE", 150_000)
    monkeypatch.setattr(reading, "PIECE_BYTES", 100_000)
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n' + line + "\n{}")
    with pytest.raises(UserError) as told:
        load_corpus(str(tmp_path / "a.jsonl"))
    assert str(told.value).startswith(f"{tmp_path / 'a.jsonl'}, line 3: {said}")
    assert "\n" not in str(told.value)


def test_bad_tables_are_told(tmp_path):
    pytest.importorskip("pyarrow")
    path, whole = tmp_path / "a.parquet", table([*DOCUMENTS, None])
    for content, said in (
        (whole, "a.parquet, row 41: the field 'text' is no text but NoneType"),
        (
            table(DOCUMENTS, "body"),
            "a.parquet: no field 'text'; --text-field can name another: 'id",
        ),
        (whole[: len(whole) // 2], "a.parquet cannot be read"),
        (table(["a\xff" * 9]).replace(b"\xc3\xbf", b"\xff\xff"), "a.parquet cannot be read"),
        (b"text", "a.parquet cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            load_corpus(str(path))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_what_is_packed_badly_is_told(packed, tmp_path):
    path, whole = tmp_path / f"a.txt{packed}", PACKED[packed](TEXT.encode())
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:20] + bytes(30) + whole[50:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read|is not UTF-8"):
            texts_in(path)


@pytest.mark.parametrize("packed", [".bz2", ".xz", ".zst"])
def test_a_bomb_is_not_unpacked(packed, tmp_path):
    (tmp_path / "bomb.txt").write_bytes(PACKED[packed](b"boom\n" * (4 << 20)))
    with pytest.raises(UserError, match="unpacks to over 1,000 times its size"):
        load_corpus(str(tmp_path / "bomb.txt"))
    (tmp_path / "bomb.txt").write_bytes(PACKED[packed](b"boom\n" * 100_000))  # a small one may be
    assert texts_in(tmp_path / "bomb.txt") == "boom\n" * 100_000


@pytest.mark.parametrize("name, package", [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_package_that_is_missing_is_named(name, package, version, tmp_path, monkeypatch, capsys):
    if package == "zstandard" and sys.version_info >= (3, 14):
        pytest.skip("this Python has its own")
    (tmp_path / name).write_bytes(b"PAR1" if package == "pyarrow" else b"\x28\xb5\x2f\xfd")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda _: None)
    line = complaint(version, small_arguments(version, data=tmp_path / name, out=tmp_path), capsys)
    assert f"{name} needs a package that is not installed: pip install {package}" in line


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_of_a_long_file_little_is_held(packed, tmp_path):
    chance, path = random.Random(0), tmp_path / f"a.jsonl{packed}"
    text = json_lines(chance.randbytes(5000).hex() for _ in range(3000))  # 30 MB
    path.write_bytes(PACKED[packed](text.encode()))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece, _ in read_texts([path], "text")) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def test_of_a_long_table_little_is_held(tmp_path):
    chance, pa = random.Random(0), pytest.importorskip("pyarrow")
    texts = table(chance.randbytes(5000).hex() for _ in range(6000))  # 60 MB
    (tmp_path / "a.parquet").write_bytes(texts)
    before = pa.total_allocated_bytes()
    for _ in read_texts([tmp_path / "a.parquet"], "text"):
        assert pa.total_allocated_bytes() - before < 35e6


# ---- v4_modern/encode.py ----


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "texts", "texts/*"])
def test_the_same_is_encoded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(DOCUMENTS, "body").encode()))
    (tmp_path / "a.parquet").write_bytes(table(DOCUMENTS, "body"))
    (tmp_path / "texts").mkdir()
    for i, document in enumerate(DOCUMENTS):
        mark = codecs.BOM_UTF8 if i % 2 else b""
        (tmp_path / "texts" / f"{i:02}.txt").write_bytes(mark + document.encode())
    (tmp_path / "texts" / "picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    encode.main([name, "a.npy", "--vocab-size", "300", "--text-field", "body"])
    tokens = np.load("a.npy")
    assert Tokenizer.load("a.npy.json").decode(tokens) == END_OF_TEXT + TEXT


@pytest.mark.parametrize("out", ["texts/a.bin", "texts/a.txt", "texts"])
def test_nothing_is_written_into_what_is_read(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    complaint(encode, ["texts", out], capsys)
    assert (tmp_path / "texts" / "a.txt").read_text() == "text"
    assert len(list((tmp_path / "texts").iterdir())) == 1
