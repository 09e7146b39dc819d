"""Token ids: encoding a corpus, cutting ids into windows, and storing them in files.

A token file is a 64-byte header followed by the ids, little-endian, with nothing between them:

    bytes  0-7   the magic b"LMTOKENS"
    bytes  8-11  version of the format, 2
    bytes 12-15  bytes per id: 2 (uint16) or 4 (uint32)
    bytes 16-23  number of ids
    bytes 24-55  SHA-256 of the tokenizer that made them
    bytes 56-59  CRC-32 of the ids
    bytes 60-63  zero

The hash is there because ids mean nothing with another tokenizer, and nothing else would reveal it.
Nor would anything reveal a damaged id, so all ids are read once when a file is opened: this takes
about a second per gigabyte.
"""

import codecs
import inspect
import mmap
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, NoneType
from typing import Protocol, TypeVar

import numpy as np
import regex
import torch
from torch import Tensor

from shared.corpora import END_OF_TEXT, Corpus, cache_folder, read_documents
from shared.files import PIECE_BYTES, ROOT, UserError, atomic_write, json_sha256, write_text
from shared.reading import read_pieces
from shared.terminal import progress

T = TypeVar("T")
CONSTANTS = NoneType, bool, int, float, str, bytes, regex.Pattern  # whose repr says all
SOURCES: dict[str, str] = {}  # file or package in shared/ -> its code, as when this was imported
for _path in sorted((ROOT / "shared").rglob("*.py")):
    _name = _path.relative_to(ROOT / "shared").parts[0].removesuffix(".py")
    SOURCES[_name] = SOURCES.get(_name, "") + _path.read_text(encoding="utf-8")
UNKNOWN = "<|unknown|>"  # what v0 and v1 take a character for that the training text has not


class Tokenizer(Protocol):
    """What the tokenizers of all versions have in common."""

    vocab_size: int
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...
    def to_json(self) -> dict: ...
    def save(self, path: str | Path) -> None: ...


def encode_splits(corpus: Corpus, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the training and the validation text, (N,) each, held in memory."""
    train, val = (
        encode_documents(read_documents(path), tokenizer) for path in (corpus.train, corpus.val)
    )
    return train, val


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of `documents`, (N,): an `<|endoftext|>`, and another one after each of them."""
    end = tokenizer.special_tokens[END_OF_TEXT]
    dtype = smallest_dtype(tokenizer.vocab_size)
    pieces = [np.array([end], dtype)]
    for document in progress(documents, "encoding", unit="document"):
        pieces.append(np.array([*tokenizer.encode(document), end], dtype))
    return np.concatenate(pieces)


def decode_pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` in pieces, one per id; each character comes with the id of its last byte.

    Joined, the pieces are what the tokenizer's `decode` returns for all the ids.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        yield decoder.decode(tokenizer.token_bytes(i))
    yield decoder.decode(b"", final=True)


def token_lengths(tokenizer: Tokenizer) -> Tensor:
    """The number of bytes in each token, (V,); 0 for those that stand for no text."""
    no_text = {tokenizer.special_tokens.get(name) for name in (END_OF_TEXT, UNKNOWN)}
    ids = range(tokenizer.vocab_size)
    return torch.tensor([0 if i in no_text else len(tokenizer.token_bytes(i)) for i in ids])


def random_windows(
    tokens: np.ndarray, count: int, length: int, generator: np.random.Generator
) -> Tensor:
    """`count` windows of `length` consecutive ids, from anywhere in `tokens` (N,): (count, length).

    From a memory map, only the windows are read. UserError if `tokens` is shorter than a window.
    """
    if len(tokens) < length:
        raise UserError(
            f"the training text has {len(tokens):,} tokens, too few for one window of {length:,}: "
            "lower --context-length or give more text"
        )
    starts = generator.integers(0, len(tokens) - length + 1, size=(count, 1))
    windows = torch.from_numpy(tokens[starts + np.arange(length)].astype(np.int64))
    let_go(tokens)
    return windows


def let_go(tokens: np.ndarray) -> None:
    """Release the memory of a file's pages: the system maps 64 KB around each byte that is read, so
    a few thousand windows could take as much memory as the whole file."""
    if isinstance(tokens, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        tokens._mmap.madvise(mmap.MADV_DONTNEED)


def count_pairs(
    tokens: np.ndarray, vocab_size: int, chunk: int = 1 << 20
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pair of neighbours in `tokens` (N,), ids below `vocab_size`, its left and its right
    token and how often it is there: (M,) each. Of many tokens, only 16 chunks, spread evenly."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0)
    for start in range(0, len(tokens) - 1, max(chunk, len(tokens) // 16)):
        ids = tokens[start : start + chunk + 1].astype(np.int64)
        here, times = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
        pairs, places = np.unique(np.concatenate((pairs, here)), return_inverse=True)
        counts = np.bincount(places, np.concatenate((counts, times)))
    left, right = map(torch.from_numpy, divmod(pairs, vocab_size))
    return left, right, torch.from_numpy(counts).float()


def windows_in_order(
    tokens: np.ndarray, length: int, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of `tokens` (N,) in windows: inputs (B, T) and the id that follows each, (B*T,).

    Every id but the first is a target exactly once. B is `count` and T is `length`, except at the
    end, where the rest comes in fewer windows and then one shorter window.
    """
    starts = range(0, len(tokens) - 1, count * length)
    for start in progress(starts, desc="evaluating", delay=1):
        piece = torch.from_numpy(tokens[start : start + count * length + 1].astype(np.int64))
        let_go(tokens)
        inputs, targets = piece[:-1], piece[1:]
        whole = len(inputs) // length * length
        if whole:
            yield inputs[:whole].view(-1, length), targets[:whole]
        if whole < len(inputs):
            yield inputs[whole:].view(1, -1), targets[whole:]


MAGIC = b"LMTOKENS"
VERSION = 2
HEADER = struct.Struct("<8sIIQ32sI4x")
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def smallest_dtype(vocab_size: int) -> np.dtype:
    """uint16 if every id fits into it, else uint32."""
    return DTYPES[2] if vocab_size <= 2**16 else DTYPES[4]


def write_token_file(
    path: str | Path,
    pieces: Iterable[Sequence[int]],
    vocab_size: int,
    tokenizer_sha256: str,
) -> int:
    """Write the ids of all `pieces` in order, holding one piece at a time; return how many."""
    dtype = smallest_dtype(vocab_size)
    count = crc = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER.size))  # filled in at the end, when the count is known
        for ids in pieces:
            data = np.asarray(ids, dtype=dtype).tobytes()
            file.write(data)
            count += len(ids)
            crc = zlib.crc32(data, crc)
        file.seek(0)
        sha256 = bytes.fromhex(tokenizer_sha256)
        file.write(HEADER.pack(MAGIC, VERSION, dtype.itemsize, count, sha256, crc))
    return count


def open_token_file(path: str | Path, tokenizer_sha256: str) -> np.ndarray:
    """The ids in `path`, (count,) uint16 or uint32, memory-mapped: only what is used takes memory.

    UserError if the file is not a token file, is damaged, or was made with another tokenizer.
    """
    path = Path(path)
    again = f"delete {path} and run again: it will be rebuilt"
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
            size, crc = len(header), 0
            while piece := file.read(PIECE_BYTES):
                size, crc = size + len(piece), zlib.crc32(piece, crc)
    except OSError as error:
        raise UserError(f"the token file {path} cannot be read ({error.strerror})") from None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path} is not a token file; {again}")
    _, version, itemsize, count, sha256, expected_crc = HEADER.unpack(header)
    if version != VERSION or itemsize not in DTYPES:
        raise UserError(f"{path} is a token file of an unknown kind (version {version}); {again}")
    if size != HEADER.size + count * itemsize:
        raise UserError(f"{path} should hold {count:,} tokens but is truncated or damaged; {again}")
    if crc != expected_crc:
        raise UserError(f"{path} is damaged; {again}")
    if sha256.hex() != tokenizer_sha256:
        raise UserError(f"{path} was made by another tokenizer; {again}")
    if count == 0:  # an empty range cannot be mapped
        return np.zeros(0, dtype=DTYPES[itemsize])
    return np.memmap(path, dtype=DTYPES[itemsize], mode="r", offset=HEADER.size, shape=(count,))


def encode_file(tokenizer: Tokenizer, source: str | Path, destination: str | Path) -> int:
    """Write a text file's ids, after an `<|endoftext|>`, to a token file; return their number."""
    return encode_texts(tokenizer, read_pieces(source), destination)


def encode_texts(tokenizer: Tokenizer, texts: Iterable[bytes], destination: str | Path) -> int:
    """The same of joined UTF-8 texts. Both are streamed: longer ones need no more memory."""
    start = [[tokenizer.special_tokens[END_OF_TEXT]]]
    ids = chain(start, tokenizer.encode_pieces(texts))
    return write_token_file(
        destination, ids, tokenizer.vocab_size, json_sha256(tokenizer.to_json())
    )


def mapped_splits(corpus: Corpus, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the training and the validation text, as `encode_splits` has them, but in files
    of the cache, memory-mapped. An edit of the code that encodes gets new ones."""
    sha256 = json_sha256(tokenizer.to_json())
    encoder = json_sha256([sha256, *code_of(type(tokenizer))])
    splits = []
    for text in (corpus.train, corpus.val):
        name = f"{text.stem}-{corpus.sha256[:16]}-{encoder[:16]}-v{VERSION}.bin"
        path = cache_folder() / "tokens" / name
        if not path.exists():
            encode_file(tokenizer, text, path)
        splits.append(open_token_file(path, sha256))
    return splits[0], splits[1]


def cached_tokenizer(tokenizer_class: type[T], key: tuple, train: Callable[[], T]) -> T:
    """What `train()` returns, cached under `key` and the code of the class.

    A tokenizer depends on its text and on its code, so neither a new text nor an edit of the code
    ever gets an old one. A checksum is stored next to it, since a damaged tokenizer is mostly still
    a valid one, only different.
    """
    name = json_sha256([*code_of(tokenizer_class), *key])[:16]
    path = cache_folder() / "tokenizers" / f"{name}.json"
    checksum = path.with_suffix(".sha256")
    if checksum.exists():  # written last
        try:
            tokenizer = tokenizer_class.load(path)
        except UserError as error:
            raise UserError(f"{error}: delete {path.parent} and run again") from None
        if checksum.read_bytes() != json_sha256(tokenizer.to_json()).encode():
            raise UserError(f"{path} is damaged: delete {path.parent} and run again")
        return tokenizer
    tokenizer = train()
    tokenizer.save(path)
    write_text(checksum, json_sha256(tokenizer.to_json()))
    return tokenizer


def code_of(tokenizer_class: type) -> list[str]:
    """What decides how a class works: the compiled code of it, of its bases and of what they use of
    their modules, and the source of each file or package in shared/ from which they use something.

    It is of what runs here: an edit of a file since the program's start makes no difference.
    """
    parts, to_do = {}, list(tokenizer_class.__mro__[:-1])  # but object
    while to_do:
        thing, names = to_do.pop(), set()
        name, module = thing.__qualname__, sys.modules[thing.__module__]
        if module.__name__.startswith("shared."):
            name = module.__name__.split(".")[1]
            parts[name] = [SOURCES[name]]
        elif name not in parts:
            parts[name] = [_described(thing, names)]
        for value in (inspect.unwrap(vars(module)[n]) for n in sorted(names & vars(module).keys())):
            if not isinstance(value, (type, FunctionType)):
                parts[name].append(_described(value, set()))
            elif value.__module__.startswith(("shared.", module.__name__)):
                to_do.append(value)
    return [str(sys.implementation.cache_tag), *sorted(map(str, parts.items()))]


def _described(value: object, names: set[str]) -> str | list:
    """What decides how a class, function or constant works, in the same words in every process;
    `names` gets those that its code uses."""
    value = getattr(value, "__func__", getattr(value, "fget", value))  # of a method, a property
    if isinstance(value, type):
        own = vars(value).items()  # but __module__, __doc__ and the like
        value = {k: v for k, v in own if k[:2] != "__" or isinstance(v, FunctionType)}
    elif isinstance(value := inspect.unwrap(value), FunctionType):
        value = value.__code__, value.__defaults__, value.__kwdefaults__
    elif isinstance(value, CodeType):
        names.update(value.co_names)
        value = value.co_code, value.co_names, value.co_varnames, value.co_consts
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, (tuple, list)):
        return [_described(part, names) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return repr(value) if isinstance(value, CONSTANTS) else type(value).__name__
