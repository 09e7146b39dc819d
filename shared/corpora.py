"""Corpora: where text comes from, and how it is split into training and validation documents.

`load_corpus` turns a name, or a path of what reading.py reads, into two UTF-8 files, one a split,
whose documents are separated by `<|endoftext|>`; `read_documents` reads them back one document at a
time. Every tenth document is for validation; a text of fewer than ten documents is cut at nine
tenths of its length instead, at the end of a line. A corpus that comes with a split of its own
keeps it.
"""

import ast
import hashlib
import os
import shutil
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.downloads import DOWNLOADS, download, one_at_a_time
from shared.files import (
    PIECE_BYTES,
    ROOT,
    UserError,
    atomic_write,
    file_sha256,
    json_sha256,
    read_json,
    write_json,
)
from shared.reading import (
    SEPARATOR,
    has_fields,
    named,
    read_document_pieces,
    read_texts,
    text_files,
    whole_documents,
)
from shared.terminal import progress
from shared.text import END_OF_TEXT, well_formed  # noqa: F401 - for the versions
from shared.token_files import VALIDATION_EVERY, is_token_data, token_splits

MOST_BLANK = 64  # pieces of a document that are only whitespace, which are held in memory
CHECKED_BYTES = 1 << 26  # a prepared corpus up to this size is verified by its hash when opened
SURELY = 10**10  # nanoseconds: a file that has been as it is for longer would show any change since


@dataclass(frozen=True)
class Corpus:
    """Two files of documents and their identity. Byte counts exclude the separators."""

    name: str
    sha256: str
    train: Path
    val: Path
    train_bytes: int
    val_bytes: int


def cache_folder() -> Path:
    """Where corpora, tokenizers and token files are kept: `runs/cache`, or $LADDER_CACHE."""
    return Path(os.environ.get("LADDER_CACHE") or ROOT / "runs" / "cache")


def load_corpus(data: str, field: str = "text", tokenizer: Any = None) -> Corpus:  # noqa: ANN401
    """The corpus called `data`: `pydocs`, a name in DOWNLOADS, a file of documents, a folder or a
    pattern of such files; in those of JSON lines or in tables, the documents are in that `field`.
    Given the `tokenizer` that made them, token files, too.

    It is prepared once and kept in the cache. UserError if there is no such corpus, if it cannot be
    downloaded or read as text, or is too short to be split.
    """
    if data == "pydocs":
        folder = cache_folder() / f"pydocs-{sys.implementation.name}-{sys.version.split()[0]}"
        if not (folder / "corpus.json").exists():
            _write_splits("pydocs", ((text, True) for text in _pydocs_documents()), folder)
        return _open_corpus(folder, data)
    if data in DOWNLOADS:
        folder = cache_folder() / data
        if not (folder / "corpus.json").exists():
            with one_at_a_time(folder):
                files = [download(url, folder) for url in DOWNLOADS[data]]
                if len(files) == 1:
                    _write_splits(data, read_document_pieces(files[0]), folder)
                else:
                    _keep_splits(data, *files, folder)
        return _open_corpus(folder, data)
    if tokenizer and is_token_data(data):
        splits = token_splits(data, tokenizer, cache_folder() / "tokens")
        (train, train_bytes, one), (val, val_bytes, other) = splits
        sha256, name = json_sha256([one, other]), Path(data).expanduser().resolve().name
        return _long_enough(Corpus(name, sha256, train, val, train_bytes, val_bytes))
    paths = named(data)
    if not paths:
        names = ", ".join(["pydocs", *DOWNLOADS])
        raise UserError(f"--data {data}: no file or folder of that name, nor one of {names}")
    cache = cache_folder().resolve()
    for path in paths:
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"--data {path} is neither a file nor a folder")
        if cache.is_relative_to(path.resolve()):
            raise UserError(f"--data {data} contains the cache, which is not text: {cache}")
    files = text_files(paths)
    before, name = _states(files), Path(data).expanduser().resolve().name or data
    folder = cache_folder() / "files" / _content_key(files, field)
    if not (folder / "corpus.json").exists():

        def pieces() -> Iterator[tuple[str, bool]]:
            yield from read_texts(files, field)
            if _states(files) != before:  # else it would be kept as what it was before
                raise UserError(f"--data {data} changed while it was read: run again")

        _write_splits(name, pieces(), folder)
    return _open_corpus(folder, name)


def _states(files: list[Path]) -> list[tuple]:
    """What changes with the content of files: any writing, copying or renaming sets a new ctime,
    which nobody can set back (but on Windows, where it is the time of creation)."""
    parts = "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return [(name, *(getattr(state, part) for part in parts)) for name, state in stats]


def _content_key(files: list[Path], field: str) -> str:
    """A name for what is in `files`, however they are called. Of a large text, it is kept for as
    long as the files are in the same state, so that it need not be read each time."""
    states, started = _states(files), time.time_ns()
    fields = [field if has_fields(file) else "" for file in files]
    known = cache_folder() / "files" / f"{json_sha256([states, fields])[:16]}.key"
    if os.name != "nt" and known.exists():
        if isinstance(key := read_json(known).get("content"), str):  # else it is damaged
            return key
    bar = progress(files, desc="hashing", unit="file")
    key = json_sha256([(file_sha256(file), field) for file, field in zip(bar, fields)])[:16]
    size, newest = sum(s[3] for s in states), max((s[5] for s in states), default=0)
    if size > CHECKED_BYTES and newest < started - SURELY:
        write_json(known, {"content": key})
    return key


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a UTF-8 file, in order and unchanged; empty ones are left out."""
    return whole_documents(read_document_pieces(path))


def sample_documents(corpus: Corpus, n_bytes: int) -> Iterator[str]:
    """Training documents of about `n_bytes` in all, spread evenly over the corpus."""
    share = n_bytes / max(1, corpus.train_bytes)
    seen = taken = 0
    for document in read_documents(corpus.train):
        data = document.encode("utf-8")
        if taken <= seen * share and taken < n_bytes:
            yield data[: n_bytes - taken].decode("utf-8", "ignore")
            taken += len(data)
        seen += len(data)


# ---- the embedded corpus ----


def _pydocs_documents() -> Iterator[str]:
    """The documentation that comes with every CPython: docstrings and the topics of `pydoc`.

    The standard library's docstrings of at least 100 characters, without duplicates, read with
    `ast` (nothing is imported). About 2 MB of prose in 4,000 documents; it differs slightly between
    Python versions.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "lib2to3", "turtledemo", "__pycache__"}
    skipped |= {"site-packages", "dist-packages"}
    files = []
    for folder, folders, names in os.walk(library):
        folders[:] = set(folders) - skipped  # those are not walked
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    texts: dict[str, None] = {}  # a set that keeps the order
    for file in progress(sorted(files), desc="reading pydocs", unit="file"):
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # skip what this Python cannot parse
        for node in _documented(tree):
            texts[well_formed(ast.get_docstring(node) or "")] = None
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        topics = {}
    texts.update(dict.fromkeys(topics[name] for name in sorted(topics)))
    yield from (text for text in texts if len(text) >= 100)


def _documented(tree: ast.Module) -> Iterator[ast.AST]:
    """What can have a docstring, in the order of `ast.walk`, but without a look at expressions."""
    with_docstring = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    with_statements = ast.mod, ast.stmt, ast.excepthandler, ast.match_case
    to_do = deque([tree])
    while to_do:
        node = to_do.popleft()
        if isinstance(node, with_docstring):
            yield node
        children = ast.iter_child_nodes(node)
        to_do.extend(child for child in children if isinstance(child, with_statements))


# ---- preparing the two splits ----


def _write_splits(name: str, pieces: Iterable[tuple[str, bool]], folder: Path) -> None:
    """Write train.txt, val.txt and, last of all, corpus.json, which marks them as complete.

    `pieces` are pieces of documents, each with whether its document ends there.
    """
    count = 0  # of documents
    train, val = folder / "train.txt", folder / "val.txt"
    with atomic_write(train) as train_file, atomic_write(val) as val_file:
        for piece, ends in progress(_visible(pieces), desc="splitting", unit="piece"):
            file = train_file if (count + 1) % VALIDATION_EVERY else val_file
            file.write(piece.encode("utf-8"))
            if ends:
                file.write(SEPARATOR)
                count += 1
        if not count:
            raise UserError(f"{name} holds no text")
        if count < VALIDATION_EVERY:
            _cut_off_a_tenth(train_file, val_file)
    _keep_splits(name, train, val, folder)


def _visible(pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """The pieces of those documents that are not only whitespace."""
    blank, visible = [], False
    for piece, ends in pieces:
        visible = visible or not (piece.isspace() or not piece)
        if visible:
            yield "".join([*blank, piece]), ends
        blank = [] if visible or ends else [*blank, piece]
        visible = visible and not ends
        if len(blank) > MOST_BLANK:
            raise UserError(f"a document begins with {MOST_BLANK} MB of blanks: this is not text")


def _cut_off_a_tenth(train: BinaryIO, val: BinaryIO) -> None:
    """Move the last tenth of a text from one file to the other, cut at the start of a line."""
    size = train.tell() - len(SEPARATOR)
    cut = size * 9 // 10
    train.seek(cut)
    for line in iter(lambda: train.readline(PIECE_BYTES), b""):
        if line.endswith(b"\n") and train.tell() < size:
            cut = train.tell()
            break
    around = max(0, cut - len(SEPARATOR))
    train.seek(around)
    near = train.read(2 * len(SEPARATOR))
    while cut - around < len(near) and near[cut - around] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    separator = around + near.find(SEPARATOR)
    if around <= separator < cut:  # not inside a separator
        cut = separator
    train.seek(cut)
    shutil.copyfileobj(train, val, PIECE_BYTES)
    train.seek(cut)
    train.truncate()
    train.write(SEPARATOR)


def _keep_splits(name: str, train: Path, val: Path, folder: Path) -> None:
    """Record two complete files of documents as a corpus."""
    corpus = Corpus(name, *_measure(train, val))
    sizes = [path.stat().st_size for path in (train, val)]  # with separators
    facts = asdict(corpus) | {"train": train.name, "val": val.name, "sizes": sizes}
    write_json(folder / "corpus.json", facts)


def _measure(train: Path, val: Path) -> tuple[str, Path, Path, int, int]:
    """All fields of a Corpus but its name, measured from its two files."""
    digest = hashlib.sha256()
    sizes = []
    for path in (train, val):
        size = of_document = 0
        bar = progress(
            read_document_pieces(path), desc=f"hashing {path.name}", unit="piece", leave=False
        )
        for piece, ends in bar:
            data = piece.encode("utf-8")
            digest.update(data)
            size, of_document = size + len(data), of_document + len(data)
            if ends and of_document:
                digest.update(SEPARATOR)
                of_document = 0
        digest.update(b"\xff")  # between the splits: this byte never occurs in UTF-8
        sizes.append(size)
    return digest.hexdigest(), train, val, sizes[0], sizes[1]


def _open_corpus(folder: Path, name: str) -> Corpus:
    """The corpus `name`, kept in `folder`; UserError if it is damaged. To be quick, a large one is
    checked only by the sizes of its files."""
    try:
        facts = read_json(folder / "corpus.json")
        facts |= {"name": name}  # the same text may have had another
        facts |= {"train": folder / facts["train"], "val": folder / facts["val"]}
        sizes = [facts[split].stat().st_size for split in ("train", "val")]
        whole = facts.pop("sizes") == sizes
        corpus = Corpus(**facts)
        whole &= sizes[0] >= corpus.train_bytes and sizes[1] >= corpus.val_bytes
        if sum(sizes) <= CHECKED_BYTES:
            whole &= Corpus(name, *_measure(corpus.train, corpus.val)) == corpus
    except (KeyError, TypeError, ValueError, OSError, UserError):
        whole = False
    if not whole:
        raise UserError(f"{folder} is damaged: delete it and run again")
    return _long_enough(corpus)


def _long_enough(corpus: Corpus) -> Corpus:
    if not (corpus.train_bytes and corpus.val_bytes):
        raise UserError(f"{corpus.name} is too short to set a tenth of it aside for validation")
    return corpus
