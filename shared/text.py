"""Text as all versions understand it: how documents end, what is well-formed, where to cut, what
tokens stand for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import regex

from shared.files import UserError
from shared.splits import SPLITS

T = TypeVar("T")
END_OF_TEXT = "<|endoftext|>"


def as_texts(texts: str | bytes | Iterable[str | bytes]) -> Iterable[str | bytes]:
    """`texts`; a single one becomes a list, or its letters would be taken for texts."""
    return [texts] if isinstance(texts, (str, bytes)) else texts


def tokens_of(vocab: Sequence[T], ids: Iterable[int]) -> list[T]:
    """What `ids` stand for; ValueError for what is no id in `vocab` (-1 would be the last)."""
    ids = list(ids)
    for i in ids:
        if not 0 <= i < len(vocab):
            raise ValueError(f"{int(i)} is not the id of a token: there are {len(vocab):,}")
    return [vocab[i] for i in ids]


def well_formed(text: str | bytes) -> str:
    """`text` (or UTF-8 bytes), with lone surrogates, which UTF-8 cannot encode, replaced by U+FFFD.

    A high surrogate followed by a low one becomes the character that the pair stands for. tiktoken
    does the same in both cases.
    """
    if isinstance(text, bytes):
        return text.decode("utf-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def utf8(text: str | bytes) -> bytes:
    """`text` as UTF-8 (bytes are returned as is); a lone surrogate is encoded as U+FFFD."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return well_formed(text).encode("utf-8")


def special_pattern(special_tokens: Iterable[str]) -> regex.Pattern:
    """A pattern for special tokens; of those that start at the same place, it finds the longest."""
    longest_first = sorted(as_texts(special_tokens), key=len, reverse=True)
    if "" in longest_first:
        raise ValueError("an empty special token would be everywhere")
    return regex.compile("(" + ("|".join(map(regex.escape, longest_first)) or "(?!)") + ")")


# ---- Cutting: a long text in pieces, so that words and special tokens stay whole ----

PIECE = 1 << 22  # bytes per piece of a long text
PART = 1 << 18  # characters that are encoded as UTF-8 at a time
LONGEST_WORD = 1 << 20  # bytes; anything longer is not text
# Where a word ends with each split that has a name, whatever comes before or after. (A mark, \p{M},
# belongs to what is before it, and normalization may make one character of the two.)
SAFE = regex.compile(
    r"(?r)(?<=\p{L})(?=[^\p{L}\p{M}'])|(?<=\p{N})(?=[^\p{N}\p{M}])"
    r"|(?<=[^\s\p{L}\p{N}])(?=\p{N}|[^\S\r\n])"
)


def whole_words(
    texts: Iterable[str | bytes],
    special_tokens: Iterable[str] = (END_OF_TEXT,),
    split: str = "gpt2",
) -> Iterator[bytes]:
    """The `texts`, joined and split again, into UTF-8 pieces of about PIECE bytes that end where a
    word ends and not inside a special token. UserError if that takes LONGEST_WORD bytes more; but
    where the words of a `split` without a name end is not known: pieces end at special tokens."""
    special_tokens = [token.encode("utf-8") for token in as_texts(special_tokens)]
    longest = max(map(len, special_tokens), default=1)
    rest, size, enough, done = [], 0, PIECE, 0
    for part in in_utf8(texts):
        rest.append(part)
        size += len(part)
        if size < enough:
            continue
        data = b"".join(rest)
        moved = partial(start_of_special, data=data, special_tokens=special_tokens)
        if split in SPLITS:
            cut = safe_cut(data, 0, len(data) - longest, moved)  # one may start near the end
        else:
            cut = moved(max([0, *map(data.rfind, special_tokens)]))
        if not cut and len(data) > LONGEST_WORD + PIECE and split in SPLITS:
            raise UserError(
                f"no word ends in {LONGEST_WORD:,} bytes from byte {done:,} on: this is not text"
            )
        yield data[:cut]
        rest, size, done = [data[cut:]], len(data) - cut, done + cut
        enough = size + max(PIECE, size)  # if none of it could be cut, twice as much
    yield b"".join(rest)


def in_utf8(texts: Iterable[str | bytes]) -> Iterator[bytes]:
    """The `texts` as UTF-8, in parts of about PART bytes; of a character above U+FFFF, one text
    may end with the first surrogate and the next begin with the second."""
    held = ""
    parts = (text[i : i + PART] for text in as_texts(texts) for i in range(0, len(text), PART))
    for part in parts:
        if isinstance(part, bytes):
            yield utf8(held) + part
            held = ""
        else:
            part = held + part
            held = part[-1] if "\ud800" <= part[-1] <= "\udbff" else ""
            yield utf8(part[: len(part) - len(held)])
    yield utf8(held)


def safe_cut(data: bytes, start: int, end: int, moved: Callable[[int], int]) -> int:
    """The last place in UTF-8 `data` after `start` and before `end` where a word ends, whatever
    follows; `start` if there is none. If that place is inside something that must stay whole,
    `moved` returns an earlier one."""
    end, reach = character_start(data, end), 1 << 7
    while end > start:
        first = character_start(data, max(start, end - reach))
        text = data[first:end].decode("utf-8")
        if found := SAFE.search(text):
            return max(start, moved(first + len(text[: found.start()].encode("utf-8"))))
        if first <= start:
            break
        reach *= 4
    return start


def character_start(data: bytes, at: int) -> int:
    """Where the character that contains byte `at` begins."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def start_of_special(cut: int, data: bytes, special_tokens: Sequence[bytes]) -> int:
    """The start of the special token in `data` that the cut is inside of; or the cut. Where some
    overlap, the cut is moved out of all of them."""
    across = [cut]
    while across:
        cut = min(across)
        windows = ((token, max(0, cut - len(token) + 1)) for token in special_tokens)
        found = (data.find(token, start, cut + len(token) - 1) for token, start in windows)
        across = [start for start in found if start >= 0]
    return cut
