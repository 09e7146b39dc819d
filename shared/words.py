"""Splitting text into words and numbering them, without a Python loop over words.

GPT-2's pattern splits a text into words; byte-pair encoding merges only within them:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

A text of millions of words has only some ten thousand distinct ones, so all work on a word is done
once, for its number: `numbers(block)` says which word is where, `words` how each is spelled. The
split is the regular expression's, but is derived from the kinds of neighbouring characters:

    text      I t ' s ␣ t w o ␣ ␣ 4 2
    kind      L L O L S L L L S S N N    letter, number, space, white, other, or end of the text
    change    ^ . ^ ^ ^ ^ . . ^ . ^ .    1. a word begins where the kind changes,
    blank     . . . . ^ . . . . ^ . .    2. and at the last blank before something visible;
    joined    . . . . . x . . . . x .    3. if that is a space, what follows is joined to it;
    's        . . . x . . . . . . . .    4. an apostrophe keeps its s, t, m, d, ll, ve or re.
    words     It  's  ␣two    ␣ ␣42

Rules 1 to 3 depend only on the kinds of a character, the one before and the one after. So a few
comparisons of a byte array with itself, shifted by one, find where all the words of a text begin.

Numbers are looked up in hash tables of machine words: a spelling of up to 8 bytes fits into one, up
to 16 bytes into two; what is left of them is filled with a byte that UTF-8 never has. Comparing
those compares the whole spelling, so a number is never wrong. Words that the tables do not have
(long ones, new ones, collisions) are looked up in a dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
import regex

from shared.files import UserError
from shared.machine import keep_freed_memory
from shared.text import END_OF_TEXT, utf8

OTHER, LETTER, NUMBER, END, WHITE, SPACE = range(6)  # visible < END < blank; WHITE: no space
BLOCK = 1 << 18  # bytes processed at a time: numpy's arrays for them fit into the CPU's cache
FIRST_BLOCK = 1 << 13  # bytes in the first block: all its words are new, later hardly any
SLOTS, MOST_SLOTS = 1 << 15, 1 << 19  # places in a table at first, and at most
MOST_WORDS = 1 << 19  # whose ids are kept: rare words must not fill the memory
MANY_WORDS = 1 << 15  # that are merged, or whose ids are laid, at a time
PIECE = 1 << 22  # bytes per piece of a long text
LONGEST_WORD = 1 << 20  # bytes; anything longer is not text
KIND = regex.compile(r"(\p{L})|(\p{N})|(\s)")
OF_GROUP = {1: LETTER, 2: NUMBER, 3: WHITE}
# Where a word ends, whatever comes before or after.
SAFE = regex.compile(
    r"(?r)(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})|(?<=[^\s\p{L}\p{N}])(?=[\s\p{N}])"
)


def kind_of(character: str) -> int:
    """The kind of a character, according to `regex`."""
    found = KIND.match(character)
    return SPACE if character == " " else OF_GROUP[found.lastindex] if found else OTHER


KIND_OF_BYTE = bytes(kind_of(chr(byte)) for byte in range(128)) + bytes(128)
NOTHING, NO_SPECIAL = np.zeros((0, 2), np.int64), np.zeros((0, 3), np.int64)
# What fills eight bytes of which a word has the first N, N from 0 to 8: 255, which UTF-8 never has.
FILL = np.array([(1 << 64) - (1 << 8 * n) for n in range(9)], np.uint64)
NO_KEY = FILL[0]  # no word is empty
UNKNOWN = 255
kind_of_code = np.full(0x110000, UNKNOWN, np.uint8)  # of the code points met so far


def word_bounds(data: bytes, fixed: np.ndarray = NOTHING) -> np.ndarray:
    """Where the N words of UTF-8 `data` begin, and where the last one ends, (N + 1,).

    Each span in `fixed`, (M, 2) starts and ends, is one word, whatever it contains; the text before
    a span is split as if it ended there.
    """
    kinds = np.full(len(data) + 3, END, np.uint8)
    of_data = kinds[1:-2]
    of_data[:] = np.frombuffer(data.translate(KIND_OF_BYTE), np.uint8)
    wide = () if data.isascii() else wide_characters(data, of_data)
    starts, lengths = fixed[:, 0], fixed[:, 1] - fixed[:, 0]
    others = np.cumsum(lengths) - lengths
    of_data[np.repeat(starts - others, lengths) + np.arange(lengths.sum())] = END
    before, kind, after = kinds[:-2], kinds[1:-1], kinds[2:]
    begins = (kind != before) & (before != SPACE) & (kind < END)
    begins |= (kind > END) & ((before <= END) | (after < END))
    if len(wide):  # of a multi-byte blank, the last byte was found to be before visible text
        first, last = wide
        begins[first] |= begins[last]
        begins[last] = False
    begins[starts] = begins[-1] = True
    if b"'" in data:
        keep_contractions(data, kinds[1:], begins)
    return np.flatnonzero(begins)


def wide_characters(data: bytes, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Set the kind of all bytes of each multi-byte character; return the first and the last byte of
    each that is blank."""
    byte = np.frombuffer(data, np.uint8)
    first = np.flatnonzero(byte >= 0xC0)
    lead, *rest = (byte.take(first + i, mode="clip").astype(np.int32) for i in range(4))
    if (lead > 0xF4).any():
        raise ValueError("bytes that UTF-8 never has: these are not texts")
    size = 2 + (lead >= 0xE0).astype(np.int8) + (lead >= 0xF0)
    a, b, c = (bits & 0x3F for bits in rest)
    codes = np.choose(
        size - 2,
        (
            (lead & 0x1F) << 6 | a,
            (lead & 0x0F) << 12 | a << 6 | b,
            (lead & 0x07) << 18 | a << 12 | b << 6 | c,
        ),
    )
    of_code = kind_of_code[codes]
    if (of_code == UNKNOWN).any():
        for code in set(codes[of_code == UNKNOWN].tolist()):
            kind_of_code[code] = kind_of(chr(code))
        of_code = kind_of_code[codes]
    for i in range(4):
        has = size > i
        kinds[first[has] + i] = of_code[has]
    blank = of_code == WHITE
    return first[blank], (first + size - 1)[blank]


def keep_contractions(data: bytes, kinds: np.ndarray, begins: np.ndarray) -> None:
    """Correct `begins` where a word starts with an apostrophe and one of s, t, m, d, ll, ve, re.

    `begins` has one element more than `data`, at its end, and `kinds` has two.
    """
    byte = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(byte == ord("'"))
    at = at[begins[at] & (kinds[at] == OTHER) & (kinds[at + 1] == LETTER)]  # fixed: neither
    one, two = byte[at + 1], byte.take(at + 2, mode="clip")
    short = at[(one == ord("s")) | (one == ord("t")) | (one == ord("m")) | (one == ord("d"))]
    pairs = ((one == a) & (two == b) for a, b in (b"ll", b"ve", b"re"))
    long = at[np.logical_or.reduce(list(pairs)) & (kinds[at + 2] == LETTER)]
    begins[short + 1] = begins[long + 1] = False
    begins[short + 2] = begins[long + 3] = True


def find_special(data: bytes, special_tokens: Sequence[bytes]) -> np.ndarray:
    """The start, end and number of each special token in `data`, (M, 3); where two overlap, the one
    that starts first counts, then the longest."""
    found, byte = [], np.frombuffer(data, np.uint8)
    for number, token in enumerate(special_tokens):
        if token not in data:
            continue
        start = np.flatnonzero(byte[: len(data) - len(token) + 1] == token[0])
        for i in range(1, len(token)):
            start = start[byte[start + i] == token[i]]
        found.append(np.stack((start, start + len(token), np.full_like(start, number)), 1))
    if not found:
        return NO_SPECIAL
    found = np.concatenate(found)
    found = found[np.lexsort((-found[:, 1], found[:, 0]))]
    if (found[1:, 0] < found[:-1, 1]).any():
        kept, end = [], 0
        for i, (start, its_end, _) in enumerate(found.tolist()):
            if start >= end:
                kept.append(i)
                end = its_end
        found = found[kept]
    return found


def start_of_span(cut: int, spans: np.ndarray) -> int:
    """The start of the span, (M, 2) starts and ends, that the cut is inside of; or the cut."""
    i = int(spans[:, 0].searchsorted(cut)) - 1  # the last one that begins before
    return int(spans[i, 0]) if i >= 0 and spans[i, 1] > cut else cut


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


def block_end(data: bytes, start: int, size: int, moved: Callable[[int], int]) -> int:
    """The end of a block of UTF-8 `data` that begins at `start` and has at most `size` bytes; a
    longer word gets a larger block."""
    end = start
    while end == start:
        end = len(data)
        if start + size < end:
            end = safe_cut(data, start, start + size, moved)
        size *= 2
    return end


def in_pieces(data: bytes, special_tokens: Sequence[bytes]) -> Iterator[bytes]:
    """UTF-8 `data` in pieces of at most 2 * PIECE bytes (or one longer word), cut where words end
    and not inside a special token."""
    start, moved = 0, partial(start_of_special, data=data, special_tokens=special_tokens)
    while len(data) - start > 2 * PIECE:
        end = block_end(data, start, PIECE, moved)
        yield data[start:end]
        start = end
    yield data[start:]


def character_start(data: bytes, at: int) -> int:
    """Where the character that contains byte `at` begins."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def whole_words(
    texts: Iterable[str | bytes], special_tokens: Iterable[str] = (END_OF_TEXT,)
) -> Iterator[bytes]:
    """The `texts`, joined and split again, into UTF-8 pieces of about PIECE bytes that end where a
    word ends and not inside a special token. UserError if that takes LONGEST_WORD bytes more."""
    special_tokens = [token.encode("utf-8") for token in special_tokens]
    longest = max(map(len, special_tokens), default=1)
    rest, size, enough, done = [], 0, PIECE, 0
    for part in in_utf8(texts):
        rest.append(part)
        size += len(part)
        if size < enough:
            continue
        data = b"".join(rest)
        moved = partial(start_of_special, data=data, special_tokens=special_tokens)
        cut = safe_cut(data, 0, len(data) - longest, moved)  # one may start near the end
        if not cut and len(data) > LONGEST_WORD + PIECE:
            raise UserError(
                f"no word ends in {LONGEST_WORD:,} bytes from byte {done:,} on: this is not text"
            )
        yield data[:cut]
        rest, size, done = [data[cut:]], len(data) - cut, done + cut
        enough = size + PIECE
    yield b"".join(rest)


def in_utf8(texts: Iterable[str | bytes]) -> Iterator[bytes]:
    """The `texts` as UTF-8, in parts of about BLOCK bytes; of a character above U+FFFF, one text
    may end with the first surrogate and the next begin with the second."""
    held = ""
    for part in (text[i : i + BLOCK] for text in texts for i in range(0, len(text), BLOCK)):
        if isinstance(part, bytes):
            yield utf8(held) + part
            held = ""
        else:
            part = held + part
            held = part[-1] if "\ud800" <= part[-1] <= "\udbff" else ""
            yield utf8(part[: len(part) - len(held)])
    yield utf8(held)


class WordNumbers:
    """Numbers for words, 0, 1, 2, ... in the order they first occur; `words` has the spellings."""

    def __init__(self) -> None:
        keep_freed_memory()  # for the arrays of the next block
        self.words: list[bytes] = []
        self.known: dict[bytes, int] = {}
        self.short, self.middle = Table(1), Table(2)  # words of up to 8 and of up to 16 bytes
        self.block = FIRST_BLOCK

    def numbers(self, data: bytes, fixed: np.ndarray = NOTHING) -> np.ndarray:
        """The number of each word of UTF-8 `data`, in order, (N,) int32.

        Each span in `fixed`, (M, 2) starts and ends, is a word of its own, with number -1.
        ValueError if a byte is one that UTF-8 never has: words are filled up with it.
        """
        found, start = [np.zeros(0, np.int32)], 0
        moved = partial(start_of_span, spans=fixed)
        while start < len(data):
            end = block_end(data, start, self.block, moved)
            first, last = fixed[:, 0].searchsorted((start, end))
            found.append(self.numbers_of_block(data[start:end], fixed[first:last] - start))
            start, self.block = end, min(2 * self.block, BLOCK)
        return np.concatenate(found)

    def numbers_of_block(self, block: bytes, fixed: np.ndarray) -> np.ndarray:
        """`numbers` for one block."""
        bounds = word_bounds(block, fixed)
        starts, lengths = bounds[:-1], np.diff(bounds)
        padded = np.frombuffer(block + bytes(16), np.uint8)
        eights = np.ndarray(len(block) + 9, "<u8", padded, strides=(1,))  # one from every byte on
        eights = eights.copy()  # or each `take` would
        first = eights.take(starts) | FILL.take(lengths, mode="clip")
        numbers, hit = self.short.look_up(first)
        hit &= lengths <= 8
        if len(fixed):
            where = starts.searchsorted(fixed[:, 0])
            hit[where], numbers[where] = True, -1
        missed = np.flatnonzero(~hit)
        if len(missed):
            starts, lengths, first = (x[missed] for x in (starts, lengths, first))
            second = eights.take(starts + 8, mode="clip") | FILL.take(lengths - 8, mode="clip")
            found, hit = self.middle.look_up(first, second)
            new = np.flatnonzero(~hit | (lengths > 16))
            found[new] = self.ask(block, starts[new], lengths[new], first[new], second[new])
            short = np.flatnonzero(lengths <= 8)
            self.short.put(found[short], first[short])
            numbers[missed] = found
        return numbers

    def ask(
        self,
        block: bytes,
        starts: np.ndarray,
        lengths: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
    ) -> np.ndarray:
        """The numbers, (N,), of words that the tables do not have, from the dictionary."""
        spokesman, short = np.arange(len(starts)), np.flatnonzero(lengths <= 16)
        self.middle.put(short, first[short], second[short])
        asks_for, hit = self.middle.look_up(first[short], second[short])
        spokesman[short] = np.where(hit, asks_for, short)  # one of equal words asks for all
        asks = np.flatnonzero(spokesman == np.arange(len(starts)))
        begins, ends = starts[asks].tolist(), (starts + lengths)[asks].tolist()
        numbers = np.zeros(len(starts), np.int32)
        numbers[asks] = self.numbers_of_words(block[i:j] for i, j in zip(begins, ends))
        numbers = numbers[spokesman]
        self.middle.put(numbers[short], first[short], second[short])
        while len(self.short.numbers) < min(4 * len(self.words), MOST_SLOTS):
            self.short.grow()
            self.middle.grow()
        return numbers

    def numbers_of_words(self, words: Iterable[bytes]) -> np.ndarray:
        """The number of each of `words`, (N,) int32."""
        known = self.known
        numbers = [known.setdefault(word, len(known)) for word in words]
        self.words += list(islice(reversed(known), len(known) - len(self.words)))[::-1]
        return np.array(numbers, np.int32)


class Table:
    """Numbers of keys (uint64, in one or two columns); of keys that collide, only one is kept."""

    def __init__(self, columns: int) -> None:
        self.keys = np.full((columns, SLOTS), NO_KEY)
        self.numbers = np.zeros(SLOTS, np.int32)

    def grow(self) -> None:
        """Double the number of places."""
        kept = np.flatnonzero(self.keys[0] != NO_KEY)
        numbers, keys = self.numbers[kept], self.keys[:, kept]
        self.keys = np.full((len(keys), 2 * len(self.numbers)), NO_KEY)
        self.numbers = np.zeros(2 * len(self.numbers), np.int32)
        self.put(numbers, *keys)

    def places(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Where keys are kept: the highest bits of a product, which depend on all bits of a key."""
        mixed = keys[0] if len(keys) == 1 else keys[0] ^ keys[1] * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed * np.uint64(0xD6E8FEB86659FD93)
        mixed >>= 65 - len(self.numbers).bit_length()
        return mixed.view(np.int64)

    def look_up(self, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number at each key's place, (N,), and whether it is this key's, (N,) bool."""
        # mode="clip" only for speed: no place is out of range.
        places = self.places(keys)
        hit = self.keys[0].take(places, mode="clip") == keys[0]
        for column, key in zip(self.keys[1:], keys[1:]):
            hit &= column.take(places, mode="clip") == key
        return self.numbers.take(places, mode="clip"), hit

    def put(self, numbers: np.ndarray, *keys: np.ndarray) -> None:
        """Store the `numbers` of keys, (N,)."""
        places = self.places(keys)
        for column, key in zip(self.keys, keys):
            column[places] = key
        self.numbers[places] = numbers


class WordCounts:
    """How often each word occurs in texts; special tokens do not count as words."""

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        self.special_tokens = [token.encode("utf-8") for token in special_tokens]
        self.numbers, self.counts = WordNumbers(), np.zeros(0, np.int64)

    def add(self, texts: Iterable[str | bytes]) -> None:
        """Count the words of `texts`, which are not joined."""
        parts = [utf8(text) for text in texts]
        whole = b"\0".join([*parts, b""])  # numpy's overhead is the same for a long text
        if any(token in whole for token in self.special_tokens):
            parts = [part for text in parts for part in self.between_special_tokens(text)]
            whole = b"\0".join([*parts, b""])
        ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)
        numbers = self.numbers.numbers(whole, np.stack((ends - 1, ends), 1))
        counts = np.bincount(numbers + 1, minlength=len(self.numbers.words) + 1)[1:]
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def between_special_tokens(self, text: bytes) -> list[bytes]:
        """The parts of UTF-8 `text` around its special tokens."""
        cuts = find_special(text, self.special_tokens)[:, :2].ravel().tolist()
        return [text[i:j] for i, j in zip([0, *cuts[1::2]], [*cuts[::2], len(text)])]

    def add_counted(self, words: Sequence[bytes], counts: Sequence[int]) -> None:
        """Add the counts of distinct `words`, counted elsewhere."""
        numbers = self.numbers.numbers_of_words(words)
        total = np.zeros(len(self.numbers.words), np.int64)
        total[: len(self.counts)] = self.counts
        total[numbers] += np.array(counts, np.int64)  # may be empty
        self.counts = total


class WordIds:
    """Encodes texts, also in several threads at once; `merge` is called only once for each distinct
    word (or once for each of the threads). Special tokens are recognized.

    It takes a list of words and returns their ids, concatenated, and the number of ids of each.
    """

    def __init__(
        self,
        merge: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]],
        special_tokens: dict[str, int],
        vocab_size: int,
    ) -> None:
        if "" in special_tokens:
            raise ValueError("an empty special token would be everywhere")
        self.merge, self.special_tokens, self.vocab_size = merge, special_tokens, vocab_size
        self.special_bytes = [token.encode("utf-8") for token in special_tokens]
        self.dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32  # as in token files
        self.unused: list[KnownWords] = []

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of `text`, (N,) uint16 or uint32."""
        with self.known_words() as known:
            # A long text in pieces: new memory for the whole of it would take a fifth of the time.
            pieces = in_pieces(utf8(text), self.special_bytes)
            return np.concatenate([np.zeros(0, self.dtype), *map(known.encode, pieces)])

    @contextmanager
    def known_words(self) -> Iterator["KnownWords"]:
        """`KnownWords` that no other thread uses meanwhile. Work that ends early, as by Ctrl-C, may
        leave words without ids in them, so then they are not used again."""
        try:
            known = self.unused.pop()
        except IndexError:
            known = KnownWords(self)
        yield known
        self.unused.append(known)


class KnownWords:
    """The words of the texts so far, and their ids; `of` says how new ones are merged."""

    def __init__(self, of: WordIds) -> None:
        self.of = of
        self.forget()

    def forget(self) -> None:
        """Start over. The first rows are the special tokens', followed by one for each word."""
        self.numbers, self.rows = WordNumbers(), Rows(self.of.dtype)
        ids = np.array(list(self.of.special_tokens.values()), self.of.dtype)
        self.rows.append(ids, np.ones_like(ids, np.int64))

    def encode(self, data: bytes) -> np.ndarray:
        """The ids of UTF-8 `data`, (N,)."""
        if len(self.numbers.words) > MOST_WORDS:
            self.forget()
        known, n_special = len(self.numbers.words), len(self.of.special_bytes)
        specials = find_special(data, self.of.special_bytes)
        numbers = self.numbers.numbers(data, specials[:, :2])
        numbers += n_special
        numbers[np.flatnonzero(numbers < n_special)] = specials[:, 2]
        new = self.numbers.words[known:]
        for i in range(0, len(new), MANY_WORDS):  # as many as fit into the CPU's cache
            self.rows.append(*self.of.merge(new[i : i + MANY_WORDS]))
        parts = range(0, len(numbers), MANY_WORDS)
        laid = [self.rows.lay(numbers[i : i + MANY_WORDS]) for i in parts]
        return np.concatenate([np.zeros(0, self.of.dtype), *laid])


class Rows:
    """Non-empty rows of ids of different lengths, stored one after the other."""

    def __init__(self, dtype: np.dtype) -> None:
        self.count, self.used = 0, 0
        self.ids, self.firsts = np.zeros((2, 1), dtype)
        self.starts, self.lengths = np.zeros(1, np.int64), np.zeros(1, np.int32)

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows of `lengths` (N,), whose concatenated ids are (sum of lengths,)."""
        starts = np.cumsum(lengths) - lengths
        self.firsts = extended(self.firsts, self.count, ids[starts])
        starts += self.used
        self.ids = extended(self.ids, self.used, ids)
        self.starts = extended(self.starts, self.count, starts)
        self.lengths = extended(self.lengths, self.count, lengths)
        self.count, self.used = self.count + len(lengths), self.used + len(ids)

    def lay(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of the rows with these `numbers` (N,), concatenated. Most rows have one id, so
        all first ids are laid at once, around the rest of the longer rows."""
        longer = np.flatnonzero(self.lengths.take(numbers) > 1)
        rows = numbers[longer]
        more = self.lengths[rows] - 1
        before = np.cumsum(more) - more
        step = np.arange(1, more.sum() + 1) - np.repeat(before, more)  # 1, 2, ...
        targets = np.repeat(longer + before, more) + step
        is_first = np.ones(len(numbers) + len(step), bool)
        is_first[targets] = False
        ids = np.empty(len(is_first), self.ids.dtype)
        ids[is_first] = self.firsts.take(numbers)
        ids[targets] = self.ids.take(np.repeat(self.starts[rows], more) + step)
        return ids


def extended(array: np.ndarray, used: int, values: np.ndarray) -> np.ndarray:
    """`array` with `values` after its first `used` elements; when full, a larger copy of it."""
    end = used + len(values)
    if end > len(array):
        array = np.concatenate((array, np.zeros(end, array.dtype)))
    array[used:end] = values
    return array
