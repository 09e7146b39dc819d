"""Files of token ids, which are mapped into memory: only what is used of them takes any.

    .npy               numpy's own format, of any integers; ours are little-endian uint16 or uint32
    .bin               nanoGPT's: nothing but ids, 2 bytes each
    .bin with a header llm.c's: 256 numbers before the ids, the first of which tells their size

Ids mean nothing with another tokenizer, and nothing in these files would reveal it, nor a damaged
id. So a `.npy` of ours has a file beside it, `.npy.check`, with the SHA-256 of the tokenizer and a
CRC-32 of all bytes, which are read once when it is opened: this takes about a second per gigabyte.
Of other files, all ids must be tokens of the tokenizer.
"""

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.files import PIECE_BYTES, UserError, atomic_write, json_sha256, read_json, write_json
from shared.terminal import progress
from shared.text import END_OF_TEXT

DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
SUFFIXES = (".npy", ".bin")
LLMC = {2: (20240520, 1), 4: (20240801, 7)}  # bytes of an id -> how llm.c's files begin
LLMC_HEADER = 1024  # bytes
SLICE = 1 << 20  # ids that are held in memory at a time
VALIDATION_EVERY = 10  # every such document is for validation


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 if every id fits into it, else uint32."""
    return DTYPES[2] if vocab_size <= 2**16 else DTYPES[4]


def let_go(tokens: np.ndarray) -> None:
    """Release the memory of a file's pages: the system maps 64 KB around each byte that is read, so
    a few thousand windows could take as much memory as the whole file."""
    if isinstance(tokens, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        tokens._mmap.madvise(mmap.MADV_DONTNEED)


def slices(ids: np.ndarray) -> Iterator[np.ndarray]:
    """`ids`, (N,), in pieces, of which one is in memory at a time."""
    for start in progress(range(0, len(ids), SLICE), "reading ids", delay=1):
        yield ids[start : start + SLICE]
        let_go(ids)


# ---- ours ----


REBUILT = "delete it and run again: it will be rebuilt"


def check_of(path: Path) -> Path:
    """The file beside a token file of ours, which is written last."""
    return path.with_name(f"{path.name}.check")


def is_written(path: Path) -> bool:
    """Whether there is a whole token file of ours; it may have been damaged since."""
    return path.exists() and check_of(path).exists()


def write_token_file(
    path: str | Path,
    pieces: Iterable[Sequence[int]],
    vocab_size: int,
    tokenizer_sha256: str,
) -> int:
    """Write the ids of all `pieces` in order, holding one piece at a time; return how many."""
    dtype, count = smallest_dtype(vocab_size), 0
    with atomic_write(path) as file:
        _write_header(file, dtype, 0)
        for ids in pieces:
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            count += len(ids)
        file.seek(0)
        _write_header(file, dtype, count)
        file.flush()
        crc = _crc32(file.name)
    write_json(check_of(Path(path)), {"tokenizer": tokenizer_sha256, "crc32": crc})
    return count


def _crc32(path: str | Path) -> int:
    """The CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc


def _write_header(file: Any, dtype: np.dtype, count: int) -> None:  # noqa: ANN401 - a file
    """It is as long for any `count`: numpy leaves room for more digits."""
    about = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, about)


def open_token_file(path: str | Path, tokenizer_sha256: str, again: str = REBUILT) -> np.ndarray:
    """The ids in a file of ours, (count,) uint16 or uint32, memory-mapped.

    UserError if it is no token file, is damaged, or was made with another tokenizer.
    """
    path = Path(path)
    try:
        ids, said = map_ids(path), read_json(check_of(path))
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    if said.get("crc32") != _crc32(path):
        raise UserError(f"{path} is damaged; {again}")
    if said.get("tokenizer") != tokenizer_sha256:
        raise UserError(f"{path} was made by another tokenizer; {again}")
    return ids


# ---- anyone's ----


def is_token_data(data: str) -> bool:
    """Whether --data names a token file, or a folder of one for each split, as nanoGPT makes it."""
    path = Path(os.path.expanduser(data))
    return path.suffix in SUFFIXES if path.is_file() else bool(_pair(path))


def _pair(folder: Path) -> list[Path]:
    """The files of the two splits in `folder`, or none."""
    pairs = ([folder / f"{name}{suffix}" for name in ("train", "val")] for suffix in SUFFIXES)
    return next((pair for pair in pairs if all(path.is_file() for path in pair)), [])


def map_ids(path: Path) -> np.ndarray:
    """The ids in a file of any of these formats, (N,), memory-mapped; UserError if it is none."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(LLMC_HEADER)
        if start.startswith(b"\x93NUMPY"):
            ids = np.lib.format.open_memmap(path, mode="r")
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise UserError(f"{path} holds {ids.dtype} in {ids.ndim} dimensions, not ids")
            whole = size == ids.offset + ids.nbytes
        elif path.suffix == ".bin":
            kind, version, count = np.frombuffer(start.ljust(12, b"\0"), "<i4", 3).tolist()
            itemsize = next((n for n, begin in LLMC.items() if begin == (kind, version)), 0)
            offset, dtype = LLMC_HEADER if itemsize else 0, DTYPES[itemsize or 2]
            count = count if itemsize else size // 2
            whole = size == offset + count * dtype.itemsize and count > 0
            ids = np.memmap(path, dtype, "r", offset, (count,)) if whole else None
        else:
            raise UserError(f"{path} is not a token file")
    except UserError:
        raise
    except Exception as error:  # numpy has several for a damaged header
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"the token file {path} cannot be read ({reason})") from None
    if not whole:
        raise UserError(f"{path} is truncated or damaged, or holds more than ids")
    return ids


def token_splits(data: str, tokenizer: Any, cache: Path) -> list[tuple[Path, int, str]]:  # noqa: ANN401
    """For training and for validation: a token file, how many bytes its ids stand for, and their
    SHA-256. UserError if what `data` names is not made of ids of `tokenizer`.

    Two files in a folder are taken as they are. Those of one file are divided as texts are: every
    tenth document is for validation, or, of fewer than ten, the last tenth. They go to the `cache`.
    """
    path, sha256 = Path(os.path.expanduser(data)), json_sha256(tokenizer.to_json())
    if pair := _pair(path):
        return [(split, *_measure(split, tokenizer, sha256)[:2]) for split in pair]
    _, of_ids, n_documents = _measure(path, tokenizer, sha256)
    ids, end = map_ids(path), tokenizer.special_tokens[END_OF_TEXT]
    if n_documents < VALIDATION_EVERY:
        cut = len(ids) - len(ids) // VALIDATION_EVERY
        parts = {"train": documents(ids[:cut], end), "val": documents(ids[cut:], end)}
    else:
        parts = {split: documents(ids, end, split) for split in ("train", "val")}
    splits = []
    for split, pieces in parts.items():
        splits.append(cache / f"{split}-{json_sha256([of_ids, sha256])[:16]}.npy")
        if not is_written(splits[-1]):
            write_token_file(splits[-1], pieces, tokenizer.vocab_size, sha256)
    return [(split, *_measure(split, tokenizer, sha256, REBUILT)[:2]) for split in splits]


def documents(ids: np.ndarray, end: int, split: str = "") -> Iterator[np.ndarray]:
    """The documents of `ids`, (N,), or those of a `split`, in pieces: an `end`, and another one
    after each of them, as `encode_documents` has them; empty ones are left out."""
    yield np.array([end])
    number, last, ends_here = 0, True, True  # of the document; whether an end was last
    for piece in slices(ids):
        is_end = piece == end
        after_end = np.concatenate(([last], is_end[:-1]))
        numbers = number + np.cumsum(after_end & ~is_end)
        number, last = numbers[-1], is_end[-1]
        chosen = ~(after_end & is_end)
        if split:
            chosen &= (numbers % VALIDATION_EVERY == 0) == (split == "val")
        piece = piece[chosen]
        ends_here = piece[-1] == end if len(piece) else ends_here
        yield piece
    if not ends_here:
        yield np.array([end])


def _measure(
    path: Path,
    tokenizer: Any,  # noqa: ANN401
    sha256: str,
    again: str = "make it again, or name the tokenizer that made it",
) -> tuple[int, str, int]:
    """How many bytes the ids in `path` stand for, their SHA-256, and the number of documents."""
    ids = open_token_file(path, sha256, again) if is_written(path) else map_ids(path)
    end = tokenizer.special_tokens[END_OF_TEXT]
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    lengths[end] = 0
    size, n_documents, last, digest = 0, 0, True, hashlib.sha256()
    for piece in slices(ids):
        for i in (piece.min(), piece.max()):
            if not 0 <= i < len(lengths):
                raise UserError(f"{path} holds the id {i}; the tokenizer has {len(lengths):,}")
        size += int(lengths[piece].sum())
        is_end = piece == end
        n_documents += int((np.concatenate(([last], is_end[:-1])) & ~is_end).sum())
        last = is_end[-1]
        digest.update(piece.tobytes())
    return size, digest.hexdigest(), n_documents
