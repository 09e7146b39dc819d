"""Reading: documents from the files that people have, streamed, so that these may be of any size.

    .jsonl, .ndjson    a JSON object a line, whose field `--text-field` is a document
    .parquet           a row each, whose column `--text-field` is a document
    any other          UTF-8 text, with or without a byte-order mark

All but .parquet may be packed by gzip, bzip2, xz or zstd. A document ends with its line, row or
file, and at `<|endoftext|>`.
"""

import bz2
import codecs
import gzip
import json
import lzma
import os
import re
from codecs import utf_8_decode
from collections.abc import Iterable, Iterator
from functools import partial
from glob import glob
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from shared.files import PIECE_BYTES, UserError, need_package
from shared.terminal import print_text, progress
from shared.text import END_OF_TEXT, well_formed

SEPARATOR = END_OF_TEXT.encode("utf-8")
HEAD_BYTES = 512  # by which a file's kind is told
LONGEST_LINE = 1 << 26  # characters of JSON, which are held in memory
MOST_TIMES = 1000  # the size of a packed file, that of text being 3 to 50 times as large
ALWAYS_UNPACKED = 1 << 24  # bytes, however small the file
JSON_LINES = re.compile(r"\.(jsonl|ndjson)(\.(gz|bz2|xz|zst|zstd))?$", re.IGNORECASE)
# What begins like this is not text. UTF-16 may lack its mark: then half of the bytes are zero.
KINDS = {
    "UTF-32 text, not UTF-8": rb"\xff\xfe\0\0|\0\0\xfe\xff|([^\0]\0{3}){2}|(\0{3}[^\0]){2}",
    "UTF-16 text, not UTF-8": rb"\xff\xfe|\xfe\xff|([^\0]\0){2}|(\0[^\0]){2}",
    "a PNG picture": rb"\x89PNG",
    "a JPEG picture": rb"\xff\xd8\xff",
    "a GIF picture": rb"GIF8[79]a",
    "a video": rb"\0\0\0.ftyp|\x1aE\xdf\xa3",
    "a PDF document": rb"%PDF-",
    "a ZIP archive": rb"PK\x03\x04|PK\x05\x06",  # .docx, .xlsx, .epub, .npz and .pt are, too
    "a tar archive": rb".{257}ustar",
    "an SQLite database": rb"SQLite format 3\0",
    "a Parquet file, but not named so": rb"PAR1\x15",
    "a program": rb"\x7fELF",
    "a file of token ids, which only --data of v4 takes": rb"\x93NUMPY",
    "packed twice": rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd",
    "a pointer to a file that git lfs has not fetched": rb"version https://git-lfs\.",
}


class NotTextError(UserError):
    """A file that is of another `kind` than text."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(f"{path} is {kind}")
        self.kind = kind


# ---- which files ----


def named(data: str) -> list[Path]:
    """The file or folder `data`, or all that match it as a pattern, such as `texts/*.txt`."""
    path = Path(os.path.expanduser(data))
    if path.exists():
        return [path]
    base = next(parent for parent in path.parents if parent.exists())
    return [base / name for name in sorted(glob(str(path.relative_to(base)), root_dir=base))]


def text_files(paths: list[Path]) -> list[Path]:
    """The text files among `paths` and in folders among them, in order. Other files are left out,
    which a line tells, but if there is no more than one path, NotTextError."""
    files = []
    for path in paths:
        files += sorted(_visible_files(path)) if path.is_dir() else [path]
    texts, others = [], []
    for file in progress(files, desc="looking", unit="file"):
        try:
            next(_pieces(file), None)
            texts.append(file)
        except NotTextError as error:
            if paths == [file]:
                raise
            others.append(f"{file.name} is {error.kind}")
    if others:
        names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        print_text(f"left out {len(others):,} of {len(files):,} files: {names}")
    return texts


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


# ---- documents ----


def read_texts(files: Iterable[Path], field: str) -> Iterator[tuple[str, bool]]:
    """The documents in `files`, in order, in pieces, each with whether a document ends there: a
    document may be larger than memory. UserError if a file cannot be read, or a line or row has no
    text in that `field`."""
    for file in files:
        if file.suffix.lower() == ".parquet":
            yield from _split(_from_rows(file, field))
        elif has_fields(file):
            yield from _split(_from_lines(file, map(bytes.decode, _pieces(file)), field))
        else:
            yield from _split(_whole(_pieces(file)))


def has_fields(file: Path) -> bool:
    """Whether documents are fields of what is in a file."""
    return file.suffix.lower() == ".parquet" or bool(JSON_LINES.search(file.name))


def whole_documents(pieces: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """The documents, each as a whole; empty ones are left out."""
    parts = []
    for piece, ends in pieces:
        parts.append(piece)
        if ends:
            if document := "".join(parts):
                yield document
            parts = []


def joined(pieces: Iterable[tuple[str, bool]]) -> Iterator[bytes]:
    """The documents as one UTF-8 text again, with `<|endoftext|>` between any two."""
    between = b""
    for piece, ends in pieces:
        yield between + piece.encode("utf-8")
        between = SEPARATOR if ends else b""


def read_document_pieces(path: str | Path) -> Iterator[tuple[str, bool]]:
    """The documents of a UTF-8 file, like those of `read_texts`, and unchanged."""
    return _split(_whole(read_pieces(path)))


def read_pieces(path: str | Path) -> Iterator[bytes]:
    """The bytes of a UTF-8 file, in order and unchanged, in pieces that end where a character ends.

    UserError if it cannot be read or is not UTF-8; the error gives the place of the first bad byte.
    """
    return _characters(path, _bytes(path))


def _whole(pieces: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
    yield from ((piece.decode("utf-8"), False) for piece in pieces)
    yield "", True


def _split(pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """The same documents, and those that `<|endoftext|>` separates."""
    rest, held_back = "", len(END_OF_TEXT) - 1  # a separator may span two pieces
    for piece, ends in pieces:
        *documents, rest = (rest + piece).split(END_OF_TEXT)
        yield from ((document, True) for document in documents)
        cut = len(rest) if ends else max(0, len(rest) - held_back)
        yield rest[:cut], ends
        rest = rest[cut:]


def _from_lines(path: Path, pieces: Iterable[str], field: str) -> Iterator[tuple[str, bool]]:
    """The documents in lines of JSON; blank lines are left out."""
    rest, number = "", 1  # of the line that goes on in the next piece
    for piece in chain(pieces, ["\n"]):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            where, number = f"{path}, line {number:,}", number + 1
            if line and not line.isspace():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}: this is no JSON ({error})") from None
                yield _text_in(row, field, where), True
        if len(rest) > LONGEST_LINE:
            raise UserError(f"{path}, line {number:,}: longer than {LONGEST_LINE:,} characters")


def _from_rows(path: Path, field: str) -> Iterator[tuple[str, bool]]:
    """The documents in rows of a Parquet file."""
    need_package("pyarrow", path.name)
    from pyarrow import ArrowException, parquet

    streamed, number = {"pre_buffer": False, "buffer_size": PIECE_BYTES}, count(1)
    try:
        with parquet.ParquetFile(path, **streamed) as table:
            if field not in table.schema_arrow.names:  # then rows would be empty
                _text_in(dict.fromkeys(table.schema_arrow.names), field, str(path))
            for batch in table.iter_batches(100, columns=[field]):
                for row in batch.to_pylist():
                    yield _text_in(row, field, f"{path}, row {next(number):,}"), True
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]})") from None


def _text_in(row: Any, field: str, where: str) -> str:  # noqa: ANN401 - any JSON value
    if not isinstance(row, dict):
        raise UserError(f"{where}: no object with fields but {type(row).__name__}")
    if field not in row:
        names = ", ".join(map(repr, row)) or "none"
        raise UserError(f"{where}: no field {field!r}; --text-field can name another: {names}")
    if not isinstance(row[field], str):
        raise UserError(f"{where}: the field {field!r} is no text but {type(row[field]).__name__}")
    return well_formed(row[field])


# ---- bytes ----


def _pieces(path: Path) -> Iterator[bytes]:
    """The UTF-8 text in a file, unpacked and without a byte-order mark, in pieces that end where a
    character ends; of a Parquet file, which is read by rows, nothing."""
    pieces, head = _bytes(path, unpack=True), b""
    while len(head) < HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    if path.suffix.lower() == ".parquet" and head.startswith(b"PAR1"):
        return
    for kind, start in KINDS.items():
        if re.match(start, head, re.DOTALL):
            raise NotTextError(path, kind)
    mark = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    yield from _characters(path, chain([head[mark:]], pieces), mark)


def _characters(path: str | Path, pieces: Iterable[bytes], offset: int = 0) -> Iterator[bytes]:
    """UTF-8 `pieces`, cut where characters end; `offset` is that of the first in its file."""
    rest = b""  # the start of a character that goes on in the next piece
    try:
        for piece in chain(filter(None, pieces), [b""]):
            data = rest + piece
            # ASCII need not be decoded to be checked.
            whole = len(data) if data.isascii() else utf_8_decode(data, "strict", not piece)[1]
            yield data[:whole]
            rest, offset = data[whole:], offset + whole
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise NotTextError(path, f"not UTF-8 text (byte {place:,}): convert it") from None


def _bytes(path: str | Path, unpack: bool = False) -> Iterator[bytes]:
    """The bytes of a file, or, if it is to be unpacked and can be, of what is packed in it."""
    size = 0
    try:
        with open(path, "rb") as file:
            head = file.peek(10) if unpack else b""
            pieces = next((way for start, way in PACKED.items() if re.match(start, head)), _read)
            most = max(ALWAYS_UNPACKED, MOST_TIMES * os.fstat(file.fileno()).st_size)
            for piece in pieces(file):
                size += len(piece)
                if size > most and pieces is not _read:
                    raise UserError(f"{path} unpacks to over {MOST_TIMES:,} times its size")
                yield piece
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each unpacker has its own
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason})") from None


def _read(file: BinaryIO) -> Iterator[bytes]:
    return iter(partial(file.read, PIECE_BYTES), b"")


def _read_zstd(file: BinaryIO) -> Iterator[bytes]:
    try:
        from compression.zstd import ZstdDecompressor as begin  # from Python 3.14 on
    except ImportError:
        need_package("zstandard", file.name)
        from zstandard import ZstdDecompressor

        begin = lambda: ZstdDecompressor().decompressobj()  # noqa: E731 - what the other is
    frame, unpacked = None, bytearray()
    while packed := file.read(1 << 10):  # which may hold thirty thousand times as much
        while packed:
            frame = frame or begin()
            unpacked += frame.decompress(packed)
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if len(unpacked) >= PIECE_BYTES:
            yield bytes(unpacked)
            unpacked.clear()
    if frame:
        raise EOFError("it ends too early")
    yield bytes(unpacked)


# How files begin that are packed, and what reads them.
PACKED = {
    rb"\x1f\x8b": lambda file: _read(gzip.open(file)),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": lambda file: _read(bz2.open(file)),
    rb"\xfd7zXZ\0": lambda file: _read(lzma.open(file)),
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": _read_zstd,
}
