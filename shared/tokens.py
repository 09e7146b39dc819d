"""Token ids: encoding a corpus, and cutting ids into windows. Files of them: token_files.py."""

import codecs
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, NoneType
from typing import Protocol, TypeVar

import numpy as np
import regex
import torch
from torch import Tensor

from shared.corpora import END_OF_TEXT, Corpus, cache_folder, read_documents
from shared.files import ROOT, UserError, json_sha256, write_text
from shared.reading import read_pieces
from shared.terminal import progress
from shared.token_files import (
    SUFFIXES,
    is_written,
    let_go,
    map_ids,
    open_token_file,
    smallest_dtype,
    write_token_file,
)

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
    of the cache, memory-mapped. An edit of the code that encodes gets new ones. Of a corpus of
    token files, it is those."""
    if corpus.train.suffix in SUFFIXES:
        return map_ids(corpus.train), map_ids(corpus.val)
    sha256 = json_sha256(tokenizer.to_json())
    encoder = json_sha256([sha256, *code_of(type(tokenizer))])
    splits = []
    for text in (corpus.train, corpus.val):
        name = f"{text.stem}-{corpus.sha256[:16]}-{encoder[:16]}.npy"
        path = cache_folder() / "tokens" / name
        if not is_written(path):
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
