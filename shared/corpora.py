"""Corpora: where text comes from, and how it is split into training and validation documents.

`load_corpus` turns a name or a path into two UTF-8 files, one a split, whose documents are
separated by `<|endoftext|>`; `read_documents` reads them back one document at a time. Every tenth
document is for validation; a text of fewer than ten documents is cut at nine tenths of its length
instead, at the end of a line. A corpus that comes with a split of its own keeps it.
"""

import ast
import hashlib
import os
import shutil
import sys
import sysconfig
from codecs import utf_8_decode
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from shared.downloads import DOWNLOADS, download, one_at_a_time
from shared.files import ROOT, UserError, atomic_write, read_json, write_json
from shared.terminal import progress
from shared.text import END_OF_TEXT, well_formed

SEPARATOR = END_OF_TEXT.encode("utf-8")
PIECE_BYTES = 1 << 20  # how much of a file is held in memory at a time
VALIDATION_EVERY = 10  # every such document is for validation
CHECKED_BYTES = 1 << 26  # a prepared corpus up to this size is verified by its hash when opened


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


def load_corpus(data: str) -> Corpus:
    """The corpus called `data`: `pydocs`, a name in DOWNLOADS, a text file, or a folder of them.

    It is prepared once and kept in the cache. UserError if there is no such corpus, if it cannot be
    downloaded, is not UTF-8 text, or is too short to be split.
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
    path = Path(data).expanduser()
    if not path.exists():
        names = ", ".join(["pydocs", *DOWNLOADS])
        raise UserError(f"--data {data}: no file or folder of that name, nor one of {names}")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"--data {data} is neither a file nor a folder")
    if cache_folder().resolve().is_relative_to(path.resolve()):
        raise UserError(f"--data {data} contains the cache, which is not text: {cache_folder()}")
    files = [path] if path.is_file() else sorted(_visible_files(path))
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    name = path.resolve().name or str(path)
    key = hashlib.sha256(repr((name, states)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = cache_folder() / "files" / key
    if not (folder / "corpus.json").exists():
        pieces = chain.from_iterable(read_document_pieces(file) for file in files)
        _write_splits(name, pieces, folder)
    return _open_corpus(folder, name)


def read_pieces(path: str | Path) -> Iterator[bytes]:
    """The bytes of a UTF-8 file, in order, in pieces that end where a character ends.

    UserError if it cannot be read or is not UTF-8; the error gives the place of the first bad byte.
    """
    rest, offset = b"", 0  # the start of a character that goes on in the next piece
    try:
        with open(path, "rb") as file:
            while piece := rest + file.read(PIECE_BYTES):
                ends = len(piece) == len(rest)
                # ASCII need not be decoded to be checked.
                whole = len(piece) if piece.isascii() else utf_8_decode(piece, "strict", ends)[1]
                yield piece[:whole]
                rest, offset = piece[whole:], offset + whole
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise UserError(f"{path} is not UTF-8 text (byte {place:,}): convert it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def read_document_pieces(path: str | Path) -> Iterator[tuple[str, bool]]:
    """The documents of a UTF-8 file, in order, in pieces, each with whether a document ends there:
    a document may be larger than memory."""
    rest, held_back = "", len(END_OF_TEXT) - 1  # a separator may span two pieces
    for piece in map(bytes.decode, read_pieces(path)):
        *documents, rest = (rest + piece).split(END_OF_TEXT)
        yield from ((document, True) for document in documents)
        yield rest[:-held_back], False
        rest = rest[-held_back:]
    yield rest, True


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a UTF-8 file, in order and unchanged; empty ones are left out."""
    parts = []
    for piece, ends in read_document_pieces(path):
        parts.append(piece)
        if ends:
            if document := "".join(parts):
                yield document
            parts = []


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
    files = sorted(
        f for f in library.rglob("*.py") if not skipped & set(f.relative_to(library).parts)
    )
    texts: dict[str, None] = {}  # a set that keeps the order
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in progress(files, desc="reading pydocs", unit="file"):
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # skip what this Python cannot parse
        for node in ast.walk(tree):
            if isinstance(node, documented):
                texts[well_formed(ast.get_docstring(node) or "")] = None
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        topics = {}
    texts.update(dict.fromkeys(topics[name] for name in sorted(topics)))
    yield from (text for text in texts if len(text) >= 100)


# ---- preparing the two splits ----


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    seen = set()  # a symbolic link may lead to a parent folder
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent) / name for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


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
        facts |= {"train": folder / facts["train"], "val": folder / facts["val"]}
        sizes = [facts[split].stat().st_size for split in ("train", "val")]
        whole = facts.pop("sizes", sizes) == sizes  # older caches lack them
        corpus = Corpus(**facts)
        whole &= corpus.name == name
        whole &= sizes[0] >= corpus.train_bytes and sizes[1] >= corpus.val_bytes
        if sum(sizes) <= CHECKED_BYTES:
            whole &= Corpus(name, *_measure(corpus.train, corpus.val)) == corpus
    except (KeyError, TypeError, ValueError, OSError, UserError):
        whole = False
    if not whole:
        raise UserError(f"{folder} is damaged: delete it and run again")
    if not (corpus.train_bytes and corpus.val_bytes):
        raise UserError(f"{corpus.name} is too short to set a tenth of it aside for validation")
    return corpus
