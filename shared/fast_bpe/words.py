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
to 16 bytes into two, up to 32 into four; what is left of them is filled with a byte that UTF-8
never has. Comparing those compares the whole spelling, so a number is never wrong. What finds no
place there (longer words, collisions) is looked up in a dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import regex

from shared.fast_bpe.splits import bounds_of
from shared.machine import keep_freed_memory
from shared.splits import SPLITS
from shared.text import as_texts, safe_cut, utf8

OTHER, LETTER, NUMBER, END, WHITE, SPACE = range(6)  # visible < END < blank; WHITE: no space
BLOCK = 1 << 19  # bytes processed at a time: more would take memory, less would take more calls
SLOTS = 1 << 18  # places in a table of words
MOST_WORDS = 1 << 19  # that are numbered before all is forgotten: rare words must not fill memory
KIND = regex.compile(r"(\p{L})|(\p{N})|(\s)")
OF_GROUP = {1: LETTER, 2: NUMBER, 3: WHITE}


def kind_of(character: str) -> int:
    """The kind of a character, according to `regex`."""
    found = KIND.match(character)
    return SPACE if character == " " else OF_GROUP[found.lastindex] if found else OTHER


KIND_OF_BYTE = bytes(kind_of(chr(byte)) for byte in range(128)) + bytes(128)
NOTHING = np.zeros((0, 2), np.int64)
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
    at = np.flatnonzero(byte >= 0x80)  # without the others, it is a text, too
    byte = byte[at]
    codes = np.frombuffer(byte.tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)
    for code in set(codes[kind_of_code[codes] == UNKNOWN].tolist()):
        kind_of_code[code] = kind_of(chr(code))
    of_code = kind_of_code[codes]
    first = np.flatnonzero(byte >= 0xC0)
    size = np.diff(first, append=len(byte))
    kinds[at] = np.repeat(of_code, size)
    blank = of_code == WHITE
    return at[first[blank]], at[(first + size - 1)[blank]]


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
    found, kept, end = [], [], 0
    for number, token in enumerate(special_tokens):
        start = data.find(token)
        while start >= 0:
            found.append((start, -len(token), number))
            start = data.find(token, start + 1)
    for start, negated, number in sorted(found):
        if start >= end:
            end = start - negated
            kept.append((start, end, number))
    return np.array(kept, np.int64).reshape(-1, 3)


def start_of_span(cut: int, spans: np.ndarray) -> int:
    """The start of the span, (M, 2) starts and ends, that the cut is inside of; or the cut."""
    i = int(spans[:, 0].searchsorted(cut)) - 1  # the last one that begins before
    return int(spans[i, 0]) if i >= 0 and spans[i, 1] > cut else cut


def cuts(data: bytes, size: int, moved: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """The start and end of each block of UTF-8 `data`: it ends where a word ends, and has at most
    `size` bytes, or one longer word. `safe_cut` says what `moved` is."""
    start = 0
    while start < len(data):
        end, most = start, size
        while end == start:
            last = start + most >= len(data)
            end = len(data) if last else safe_cut(data, start, start + most, moved)
            most *= 2
        yield start, end
        start = end


class WordNumbers:
    """Numbers for the words of a split, a name or a pattern (shared/splits.py): 0, 1, 2, ...;
    `words` has the spellings.

    A word is in the first of the `tables` that takes words of its length and whose place for it was
    free when it came; only what found no place is in the dictionary.
    """

    def __init__(self, split: str = "gpt2") -> None:
        self.bounds = word_bounds if split == "gpt2" else bounds_of(split)
        self.in_blocks = split in SPLITS  # where the words of others end, nothing tells
        keep_freed_memory()  # for the arrays of the next block
        self.words: list[bytes] = []
        self.tables = [Table(1), Table(2), Table(4)]  # words of up to 8, 16, 32 bytes
        self.others = {b"": -1}

    def numbers(self, data: bytes, fixed: np.ndarray = NOTHING) -> np.ndarray:
        """The number of each word of UTF-8 `data`, in order, (N,) int32.

        Each span in `fixed`, (M, 2) starts and ends, is a word of its own, with number -1.
        ValueError if `data` is not UTF-8: words are filled up with a byte that it never has.
        """
        found = [np.zeros(0, np.int32)]
        size = BLOCK if self.in_blocks else len(data)
        for start, end in cuts(data, size, partial(start_of_span, spans=fixed)):
            first, last = fixed[:, 0].searchsorted((start, end))
            found.append(self.numbers_of_block(data[start:end], fixed[first:last] - start))
        return np.concatenate(found)

    def numbers_of_block(self, block: bytes, fixed: np.ndarray) -> np.ndarray:
        """`numbers` for one block."""
        bounds = self.bounds(block, fixed)
        starts, lengths = bounds[:-1], np.diff(bounds)
        lengths[starts.searchsorted(fixed[:, 0])] = 0  # the empty word has number -1
        padded = np.frombuffer(block + bytes(16), np.uint8)
        eights = np.ndarray(len(block) + 9, "<u8", padded, strides=(1,))  # one from every byte on
        return self.ask(block, eights.copy(), starts, lengths)  # a copy, or each `take` would

    def ask(
        self,
        block: bytes,
        eights: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        keys: Sequence[np.ndarray] = (),
        level: int = 0,
    ) -> np.ndarray:
        """The numbers, (N,) int32, of words that no table before `level` takes."""
        if level == len(self.tables):
            spans = zip(starts.tolist(), (starts + lengths).tolist())
            return np.array([self.ask_dictionary(block[i:j]) for i, j in spans], np.int32)
        table = self.tables[level]
        ats = range(8 * len(keys), table.longest, 8)
        more = (
            eights.take(starts + i, mode="clip") | FILL.take(lengths - i, mode="clip") for i in ats
        )
        keys = [*keys, *more]
        places = table.places(keys)
        numbers, hit = table.look_up(places, keys)
        hit &= lengths <= table.longest
        missed = np.flatnonzero(~hit)
        free = table.keys[0].take(places[missed]) == NO_KEY
        new = missed[free & (lengths[missed] <= table.longest)]
        if len(new):
            there = places[new], [key[new] for key in keys]
            first = new[table.put(*there, len(self.words))]
            spans = zip(starts[first].tolist(), (starts + lengths)[first].tolist())
            self.words += [block[i:j] for i, j in spans]
            numbers[new], hit[new] = table.look_up(*there)
            missed = np.flatnonzero(~hit)
        if len(missed):
            starts, lengths, *keys = (x[missed] for x in (starts, lengths, *keys))
            numbers[missed] = self.ask(block, eights, starts, lengths, keys, level + 1)
        return numbers

    def ask_dictionary(self, word: bytes) -> int:
        """The number of a word that no table has."""
        if word not in self.others:
            self.others[word] = len(self.words)
            self.words.append(word)
        return self.others[word]


class Table:
    """Numbers of keys (uint64, in some columns). There is one place for each key."""

    def __init__(self, columns: int) -> None:
        self.keys = np.full((columns, SLOTS), NO_KEY)
        self.numbers = np.full(SLOTS, -1, np.int32)
        self.longest = 8 * columns

    def places(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Where keys are kept: the highest bits of a product, which depend on all bits of a key."""
        mixed = keys[0]
        for key in keys[1:]:
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) ^ key
        mixed = mixed * np.uint64(0xD6E8FEB86659FD93)
        mixed >>= 65 - SLOTS.bit_length()
        return mixed.view(np.int64)

    def look_up(
        self, places: np.ndarray, keys: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The number at each key's place, (N,), and whether it is this key's, (N,) bool."""
        # mode="clip" only for speed: no place is out of range.
        hit = self.keys[0].take(places, mode="clip") == keys[0]
        for column, key in zip(self.keys[1:], keys[1:]):
            hit &= column.take(places, mode="clip") == key
        return self.numbers.take(places, mode="clip"), hit

    def put(self, places: np.ndarray, keys: Sequence[np.ndarray], number: int) -> np.ndarray:
        """Store keys at free places, with numbers from `number` on. Of keys that want the same
        place, one gets it: returns which ones did, (N,)."""
        everyone = np.arange(len(places))
        self.numbers[places] = everyone
        first = np.flatnonzero(self.numbers[places] == everyone)
        for column, key in zip(self.keys, keys):
            column[places[first]] = key[first]
        self.numbers[places[first]] = number + np.arange(len(first))
        return first


class WordCounts:
    """How often each word occurs in texts; special tokens do not count as words."""

    def __init__(self, special_tokens: Iterable[str] = (), split: str = "gpt2") -> None:
        self.special_tokens = [token.encode("utf-8") for token in as_texts(special_tokens)]
        self.split = split
        self.earlier: dict[bytes, int] = {}  # counts of words of texts long ago
        self.numbers, self.counts = WordNumbers(split), np.zeros(0, np.int64)

    def add(self, texts: Iterable[str | bytes]) -> None:
        """Count the words of `texts`, which are not joined."""
        parts = [utf8(text) for text in as_texts(texts)]
        whole = b"\0".join([*parts, b""])  # numpy's overhead is the same for a long text
        if any(token in whole for token in self.special_tokens):
            parts = [part for text in parts for part in self.between_special_tokens(text)]
            whole = b"\0".join([*parts, b""])
        ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)
        numbers = self.numbers.numbers(whole, np.stack((ends - 1, ends), 1))
        counts = np.bincount(numbers + 1, minlength=len(self.numbers.words) + 1)[1:]
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        if len(counts) > MOST_WORDS:
            self.forget()

    def between_special_tokens(self, text: bytes) -> list[bytes]:
        """The parts of UTF-8 `text` around its special tokens."""
        cuts = find_special(text, self.special_tokens)[:, :2].ravel().tolist()
        return [text[i:j] for i, j in zip([0, *cuts[1::2]], [*cuts[::2], len(text)])]

    def forget(self) -> None:
        """Keep the counts, but not the numbers: they are for few words."""
        for word, count in zip(self.numbers.words, self.counts.tolist()):
            self.earlier[word] = self.earlier.get(word, 0) + count
        self.numbers, self.counts = WordNumbers(self.split), np.zeros(0, np.int64)

    def found(self) -> tuple[list[bytes], list[int]]:
        """The distinct words, and how often each occurs."""
        if not self.earlier:
            return self.numbers.words, self.counts.tolist()
        self.forget()
        return list(self.earlier), list(self.earlier.values())
