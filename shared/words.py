"""Text cut into words and every word numbered, without a loop over words.

GPT-2's pattern cuts a text into words, within which byte-pair encoding merges:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

A text of millions of words has some ten thousand different ones, so what is to be done for a word
is done once for its number: `numbers(text)` says which word stands where, `words` how each is
spelled. The cut is the regular expression's, found from the kinds of neighbouring characters:

    text      I t ' s ␣ t w o ␣ ␣ 4 2
    kind      L L O L W L L L W W N N    letter, other, white, number
    change    ^ . ^ ^ ^ ^ . . ^ . ^ .    1. a word begins where the kind changes,
    blank     . . . . ^ . . . . ^ . .    2. and at the last blank before something visible,
    joined    . . . . . x . . . . x .    3. which, if it is a space, what follows joins;
    's        . . . x . . . . . . . .    4. an apostrophe keeps its s, t, m, d, ll, ve or re.
    words     It  's  ␣two    ␣ ␣42

Each line is an operation of numpy on the whole text. Numbers are then looked up in a table of
machine words: a spelling of less than 16 bytes is two of them, and comparing those is comparing the
spelling, so that a number is never wrong; what the table does not know (long words, new ones, two
that want the same place) is looked up in a dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import regex

OTHER, LETTER, NUMBER, WHITE, FIXED = range(5)  # kinds of characters; FIXED: of a fixed word
SPACE, APOSTROPHE = ord(" "), ord("'")
BLOCK = 1 << 18  # characters worked on at a time: what numpy makes of them stays in the cache
SMALL_BLOCK = 1 << 13  # of the first ones: all their words are new, and then hardly any
LONGEST = 15  # bytes of a word that fits into the table
SLOTS = 1 << 17  # places of the table
MOST_WORDS = 1 << 20  # whose ids are kept: rare words must not fill the memory


@cache
def kinds_of_characters() -> np.ndarray:
    """The kind of each code point, (0x110000,) uint8, as `regex` has it."""
    kinds = np.zeros(0x110000, np.uint8)
    characters = "".join(map(chr, [*range(0xD800), *[0xFFFD] * 0x800, *range(0xE000, 0x110000)]))
    for kind, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (WHITE, r"\s+")):
        for run in regex.finditer(pattern, characters):
            kinds[run.start() : run.end()] = kind
    return kinds


def word_starts(
    text: str, fixed: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Where the words of `text` begin, as offsets into its UTF-8 bytes, (N,), which of them are
    `fixed`, (N,) bool, and those bytes.

    What stands at `fixed`, (start, end) in characters, is a word each, whatever is in it; the text
    before it ends there.
    """
    data = text.encode("utf-8")
    if len(data) == len(text):
        codes = np.frombuffer(data, np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = kinds_of_characters()[codes]
    for start, end in fixed:
        kinds[start:end] = FIXED
    begins = np.empty(len(codes), bool)
    begins[:1] = True
    np.not_equal(kinds[1:], kinds[:-1], out=begins[1:])
    visible = kinds[1:] < WHITE
    last_blank = visible & (kinds[:-1] == WHITE)
    begins[:-1] |= last_blank
    begins[1:] &= ~(last_blank & (codes[:-1] == SPACE))
    for start, _ in fixed:
        begins[start] = True
    if APOSTROPHE in data:
        keep_contractions(codes, kinds, begins)
    starts = np.flatnonzero(begins)
    is_fixed = kinds[starts] == FIXED
    if len(data) != len(text):
        sizes = 1 + (codes >= 0x80).astype(np.int8) + (codes >= 0x800) + (codes >= 0x10000)
        starts = (np.cumsum(sizes) - sizes)[starts]
    return starts, is_fixed, data


def keep_contractions(codes: np.ndarray, kinds: np.ndarray, begins: np.ndarray) -> None:
    """Mend `begins` where a word begins with an apostrophe and one of s, t, m, d, ll, ve, re."""
    at = np.flatnonzero((codes == APOSTROPHE) & (kinds == OTHER) & begins)
    after = np.stack([codes.take(at + i, mode="clip") for i in (1, 2)])  # (2, N)
    letters = np.stack([kinds.take(at + i, mode="clip") == LETTER for i in (1, 2)])
    letters &= at + np.array([[1], [2]]) < len(codes)
    one = letters[0] & np.isin(after[0], [ord(c) for c in "stmd"])
    two = np.zeros(len(at), bool)
    for first, second in ("ll", "ve", "re"):
        two |= (after[0] == ord(first)) & (after[1] == ord(second))
    two &= letters[0] & letters[1]
    begins[at[one | two] + 1] = False
    ends = np.concatenate((at[one] + 2, at[two] + 3))
    begins[ends[ends < len(codes)]] = True


class WordNumbers:
    """Numbers for words, 0, 1, 2, ... as they first occur; `words` spells them."""

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self.known: dict[bytes, int] = {}
        self.keys = np.zeros((2, SLOTS), np.uint64)  # of the word in each place; none is 0, 0
        self.places = np.zeros(SLOTS, np.int32)  # its number
        self.seen = 0  # characters

    def numbers(self, text: str, fixed: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """The number of each word of `text`, in order, (N,) int32.

        What stands at `fixed`, (start, end) in order, is a word of its own, of number -1.
        """
        parts, start, done = [], 0, 0
        while start < len(text):
            size = BLOCK if self.seen > BLOCK else SMALL_BLOCK
            end = len(text)
            while start + size < len(text):  # a word that is longer than a block is a block
                end = safe_cut(text, start, start + size, fixed[done:])
                if end > start:
                    break
                size, end = 2 * size, len(text)
            inside = []
            while done < len(fixed) and fixed[done][0] < end:
                inside.append((fixed[done][0] - start, fixed[done][1] - start))
                done += 1
            parts.append(self.look_up(*word_starts(text[start:end], inside)))
            self.seen += end - start
            start = end
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def look_up(self, starts: np.ndarray, is_fixed: np.ndarray, data: bytes) -> np.ndarray:
        """The numbers of the words of `data` that begin at `starts`; new words get new ones."""
        lengths = np.diff(starts, append=len(data))
        low, high = spellings(starts, lengths, data)
        # Multiplied, every bit of a spelling moves the highest bits of the product.
        mixed = (low ^ (high * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
        places = (mixed >> np.uint64(64 - SLOTS.bit_length() + 1)).astype(np.int64)
        numbers = self.places[places]
        hit = (self.keys[0][places] == low) & (self.keys[1][places] == high) & (lengths <= LONGEST)
        missed = np.flatnonzero(~(hit | is_fixed))
        if len(missed):
            begins, ends = starts[missed], (starts + lengths)[missed]
            numbers[missed] = [
                self.number(data[begin:end]) for begin, end in zip(begins.tolist(), ends.tolist())
            ]
            short = missed[lengths[missed] <= LONGEST]
            self.keys[0][places[short]], self.keys[1][places[short]] = low[short], high[short]
            self.places[places[short]] = numbers[short]
        numbers[is_fixed] = -1
        return numbers

    def number(self, word: bytes) -> int:
        """The number of a `word`, a new one if it is new."""
        number = self.known.setdefault(word, len(self.words))
        if number == len(self.words):
            self.words.append(word)
        return number


def spellings(
    starts: np.ndarray, lengths: np.ndarray, data: bytes
) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of each word as two numbers, (N,) uint64 each, of words of up to LONGEST bytes.

    The highest byte of the second is the length, so that "a" and "a\\0" are two words.
    """
    padded = np.frombuffer(data + bytes(16), np.uint8)
    eights = np.ndarray(len(data) + 9, "<u8", padded, strides=(1,))  # one begins at every byte
    masks = np.array([(1 << 8 * i) - 1 for i in range(9)], np.uint64)
    short = np.minimum(lengths, LONGEST)
    low = eights[starts] & masks[np.minimum(short, 8)]
    high = eights[starts + 8] & masks[np.maximum(short, 8) - 8]
    return low, high | (short.astype(np.uint64) << np.uint64(56))


class Rows:
    """Rows of ids of different lengths, kept one after the other."""

    def __init__(self) -> None:
        self.ids, self.starts, self.lengths = (np.zeros(0, np.int64) for _ in range(3))

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows of `lengths` (N,), whose ids (sum of lengths,) follow each other."""
        starts = len(self.ids) + np.cumsum(lengths) - lengths
        self.ids = np.concatenate((self.ids, ids))
        self.starts = np.concatenate((self.starts, starts))
        self.lengths = np.concatenate((self.lengths, lengths))

    def lay(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of the rows of these `numbers`, one row after the other."""
        lengths = self.lengths[numbers]
        begins = np.cumsum(lengths) - lengths  # where each row begins in what is returned
        return self.ids[
            np.repeat(self.starts[numbers] - begins, lengths) + np.arange(lengths.sum())
        ]


class WordIds:
    """The ids of texts, word by word; `merge` is asked once for the ids of each different word.

    It gets a list of words and gives their ids, one word after the other, and how many each has.
    """

    def __init__(self, merge: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]]) -> None:
        self.merge = merge
        self.forget()

    def forget(self) -> None:
        """Begin anew. The first row stands for all that is fixed."""
        self.numbers, self.rows = WordNumbers(), Rows()
        self.rows.append(np.array([-1]), np.array([1]))

    def encode(
        self, text: str, fixed: Sequence[tuple[int, int]], fixed_ids: Sequence[int]
    ) -> np.ndarray:
        """The ids of `text`, (N,) int64; what stands at `fixed` has the `fixed_ids`, one each."""
        rows = self.numbers.numbers(text, fixed) + 1
        new = self.numbers.words[len(self.rows.lengths) - 1 :]
        if new:
            self.rows.append(*self.merge(new))
        ids = self.rows.lay(rows)
        ids[ids < 0] = fixed_ids
        if len(self.numbers.words) > MOST_WORDS:
            self.forget()
        return ids


def join(texts: Iterable[str]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The `texts` joined to longer ones, and where the separators stand, (start, end): numpy does
    as much for a long text as for a short one."""
    parts, size = [], 0
    for text in texts:
        parts.append(text)
        size += len(text) + 1
        if size > BLOCK:
            yield join_all(parts)
            parts, size = [], 0
    yield join_all(parts)


def join_all(texts: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """All `texts` in one, and where the separators stand."""
    ends = np.cumsum([len(text) + 1 for text in texts])[:-1].tolist()
    return "\0".join(texts), [(end - 1, end) for end in ends]


def safe_cut(text: str, start: int, end: int, fixed: Sequence[tuple[int, int]] = ()) -> int:
    """The last place in `text` after `start` and up to `end` where a word ends whatever may follow;
    `start` if there is none.

    No word goes on from something visible to a blank; but such a place may lie within what is
    `fixed`, and then that has to begin the next piece.
    """
    found = regex.search(r"(?r)(?<=\S)\s", text, pos=start, endpos=max(start, end))
    cut = found.start() if found else start
    return max(start, next((first for first, last in fixed if first < cut < last), cut))
