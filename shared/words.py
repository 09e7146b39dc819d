"""Text cut into words and every word numbered, without a loop over words.

GPT-2's pattern cuts a text into words, within which byte-pair encoding merges:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

A text of millions of words has some ten thousand different ones, so what is to be done for a word
is done once for its number: `numbers(block)` says which word stands where, `words` how each is
spelled. The cut is the regular expression's, found from the kinds of neighbouring characters:

    text      I t ' s ␣ t w o ␣ ␣ 4 2
    kind      L L O L S L L L S S N N    letter, number, space, white, other, or end of the text
    change    ^ . ^ ^ ^ ^ . . ^ . ^ .    1. a word begins where the kind changes,
    blank     . . . . ^ . . . . ^ . .    2. and at the last blank before something visible,
    joined    . . . . . x . . . . x .    3. which, if it is a space, what follows joins;
    's        . . . x . . . . . . . .    4. an apostrophe keeps its s, t, m, d, ll, ve or re.
    words     It  's  ␣two    ␣ ␣42

Rules 1 to 3 ask for three kinds: of the character before, of itself, of the one after. There are
6 * 6 * 6 = 216 such cases, so the case of every byte is a byte, and one `bytes.translate` says for
all of a text where words begin.

Numbers are looked up in tables of machine words: a spelling of up to 7 bytes and its length are one
of them, of up to 15 two, and comparing those is comparing the spelling, so that a number is never
wrong; what the tables do not know (long words, new ones, two that want the same place) is looked up
in a dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import regex

from shared.corpora import well_formed
from shared.files import UserError

KINDS = OTHER, LETTER, NUMBER, WHITE, SPACE, END = range(6)  # WHITE: any blank but the space
VISIBLE, BLANK = (OTHER, LETTER, NUMBER), (WHITE, SPACE)
BLOCK = 1 << 17  # bytes worked on at a time: what numpy makes of them stays in the cache
FIRST_BLOCK = 1 << 13  # of a text: all its words are new, and then hardly any
SLOTS = 1 << 17  # places of a table
MOST_WORDS = 1 << 19  # whose ids are kept: rare words must not fill the memory
MANY_WORDS = 1 << 15  # whose ids are laid at a time
PLACE = (1 << 32) - 1  # where the id of a special token comes
PIECE = 1 << 20  # bytes of a text that is worked on in pieces
LONGEST_WORD = 1 << 20  # bytes; what goes on for longer is no text
KIND = regex.compile(r"(\p{L})|(\p{N})|(\s)")  # the number of the group is the kind
# Where a word ends whatever may stand before or after.
SAFE = regex.compile(
    r"(?r)(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})|(?<=[^\s\p{L}\p{N}])(?=[\s\p{N}])"
)


def kind_of(character: str) -> int:
    """The kind of a character, as `regex` has it."""
    found = KIND.match(character)
    return SPACE if character == " " else found.lastindex if found else OTHER


def begins_word(before: int, kind: int, after: int) -> bool:
    """Whether a word begins at a character, by its kind and its neighbours' (rules 1 to 3)."""
    if kind == END or before == END:
        return kind != END
    if kind in BLANK:
        return before not in BLANK or after in VISIBLE
    return before != kind and before != SPACE


KIND_OF_BYTE = bytes(kind_of(chr(byte)) for byte in range(128)) + bytes(128)
CASES = bytes(begins_word(a, b, c) for a in KINDS for b in KINDS for c in KINDS).ljust(256, b"\0")
NOTHING = np.zeros((0, 2), np.int64)
UNKNOWN = 255
kind_of_code = np.full(0x110000, UNKNOWN, np.uint8)  # of the code points met so far


def word_starts(data: bytes, fixed: np.ndarray = NOTHING) -> np.ndarray:
    """Where the words of UTF-8 `data` begin, (N,).

    What stands at `fixed`, (M, 2) starts and ends, is a word each, whatever is in it; the text
    before it ends there.
    """
    kinds = np.full(len(data) + 3, END, np.uint8)
    of_data = kinds[1:-2]
    of_data[:] = np.frombuffer(data.translate(KIND_OF_BYTE), np.uint8)
    wide = () if data.isascii() else wide_characters(data, of_data)
    starts, lengths = fixed[:, 0], fixed[:, 1] - fixed[:, 0]
    before = np.cumsum(lengths) - lengths
    of_data[np.repeat(starts - before, lengths) + np.arange(lengths.sum())] = END
    cases = kinds[:-3] * np.uint8(36)
    cases += of_data * np.uint8(6)
    cases += kinds[2:-1]
    begins = np.frombuffer(bytearray(cases.tobytes().translate(CASES)), bool)
    if len(wide):  # of a blank of several bytes, the last one was found to be before visible text
        first, last = wide
        begins[first] |= begins[last]
        begins[last] = False
    begins[starts] = True
    if b"'" in data:
        keep_contractions(data, kinds[1:], begins)
    return np.flatnonzero(begins)


def wide_characters(data: bytes, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give all bytes of each character of several bytes its kind; return the first and the last
    byte of each that is blank."""
    byte = np.frombuffer(data + bytes(3), np.uint8)
    first = np.flatnonzero(byte >= 0xC0)
    lead, *rest = (byte[first + i].astype(np.int32) for i in range(4))
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
    """Mend `begins` where a word begins with an apostrophe and one of s, t, m, d, ll, ve, re.

    `kinds` has two more at its end.
    """
    byte = np.frombuffer(data + bytes(2), np.uint8)
    at = np.flatnonzero((byte[:-2] == ord("'")) & begins & (kinds[:-2] == OTHER))
    at = at[kinds[at + 1] == LETTER]  # what is fixed is no letter
    one, two = byte[at + 1], byte[at + 2]
    short = at[(one == ord("s")) | (one == ord("t")) | (one == ord("m")) | (one == ord("d"))]
    pairs = ((one == a) & (two == b) for a, b in (b"ll", b"ve", b"re"))
    long = at[np.logical_or.reduce(list(pairs)) & (kinds[at + 2] == LETTER)]
    begins[short + 1] = begins[long + 1] = False
    ends = np.concatenate((short + 2, long + 3))
    begins[ends[ends < len(data)]] = True


def find_special(data: bytes, special_tokens: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """Where special tokens start and end in `data`, and which they are; where two overlap, the
    first counts, then the longest. `bytes.find` is three times as fast as a pattern."""
    found, kept, end = [], [], 0
    for number, token in enumerate(special_tokens):
        start = data.find(token)
        while start >= 0:
            found.append((start, -len(token), number))
            start = data.find(token, start + 1)
    for start, minus_length, number in sorted(found):
        if start >= end:
            end = start - minus_length
            kept.append((start, end, number))
    return kept


def spans(found: list[tuple[int, int, int]]) -> np.ndarray:
    """Where special tokens start and end, (M, 2)."""
    return np.array(found, np.int64).reshape(-1, 3)[:, :2]


def utf8(text: str) -> bytes:
    """The UTF-8 of `text`; a lone surrogate counts as U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return well_formed(text).encode("utf-8")


def safe_cut(data: bytes, start: int, end: int, fixed: np.ndarray = NOTHING) -> int:
    """The last place in UTF-8 `data` after `start` and before `end` where a word ends whatever may
    follow; `start` if there is none.

    Such a place may lie within what is `fixed`, (M, 2); then that has to begin the next piece.
    """
    end, reach = character_start(data, end), 1 << 7
    while end > start:
        first = character_start(data, max(start, end - reach))
        text = data[first:end].decode("utf-8", "surrogatepass")
        if found := SAFE.search(text):
            cut = first + len(text[: found.start()].encode("utf-8", "surrogatepass"))
            i = int(fixed[:, 0].searchsorted(cut)) - 1  # the last one that begins before
            return max(start, int(fixed[i, 0])) if i >= 0 and fixed[i, 1] > cut else cut
        if first <= start:
            break
        reach *= 4
    return start


def character_start(data: bytes, at: int) -> int:
    """Where the character begins that the byte `at` belongs to."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def whole_words(texts: Iterable[str], special_tokens: Iterable[str] = ()) -> Iterator[str]:
    """The `texts` joined and cut anew, into pieces of about PIECE bytes that end where words end,
    and not within a special token. UserError if a word does not end for LONGEST_WORD bytes."""
    special_tokens = [token.encode("utf-8") for token in special_tokens]
    longest = max(map(len, special_tokens), default=1)
    rest, enough, done = bytearray(), PIECE, 0
    for part in (text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE)):
        rest += part.encode("utf-8", "surrogatepass")
        if len(rest) < enough:
            continue
        data = bytes(rest)
        specials = spans(find_special(data, special_tokens))
        cut = safe_cut(data, 0, len(data) - longest, specials)  # one may yet be coming
        if not cut and len(data) > LONGEST_WORD + PIECE:
            raise UserError(
                f"no word ends in {LONGEST_WORD:,} bytes from byte {done:,} on: no text"
            )
        yield data[:cut].decode("utf-8", "surrogatepass")
        del rest[:cut]
        enough, done = len(rest) + PIECE, done + cut
    yield rest.decode("utf-8", "surrogatepass")


class WordNumbers:
    """Numbers for words, 0, 1, 2, ... in the order in which they are met; `words` spells them."""

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self.known: dict[bytes, int] = {}
        self.short, self.middle = Table(1), Table(2)  # words of up to 7 and of up to 15 bytes
        self.block = FIRST_BLOCK

    def numbers(self, data: bytes, fixed: np.ndarray = NOTHING) -> np.ndarray:
        """The number of each word of UTF-8 `data`, in order, (N,) int32.

        What stands at `fixed`, (M, 2) starts and ends, is a word of its own, of number -1.
        """
        found, start = [np.zeros(0, np.int32)], 0
        while start < len(data):
            size, end = self.block, start
            while end == start:  # a word that is longer than a block is a block
                end = len(data)
                if start + size < end:
                    end = safe_cut(data, start, start + size, fixed)
                size *= 2
            first, last = fixed[:, 0].searchsorted((start, end))
            found.append(self.numbers_of_block(data[start:end], fixed[first:last] - start))
            start, self.block = end, min(2 * self.block, BLOCK)
        return np.concatenate(found)

    def numbers_of_block(self, block: bytes, fixed: np.ndarray) -> np.ndarray:
        """`numbers` of a short text."""
        starts = word_starts(block, fixed)
        lengths = np.diff(starts, append=len(block))
        sizes = lengths.view(np.uint64)
        padded = np.frombuffer(block + bytes(16), np.uint8)
        eights = np.ndarray(len(block) + 9, "<u8", padded, strides=(1,))  # one from every byte on
        first = eights.take(starts) << 64 - 8 * np.minimum(sizes, 8)
        key = first | sizes  # of up to 7 bytes, the lowest is free for their number
        numbers, hit = self.short.look_up(key)
        hit &= lengths < 8
        where = starts.searchsorted(fixed[:, 0])
        hit[where], numbers[where] = True, -1
        missed = np.flatnonzero(~hit)
        if len(missed):
            starts, lengths, sizes, first = (x[missed] for x in (starts, lengths, sizes, first))
            second = eights.take(starts + 8, mode="clip") << 128 - 8 * np.clip(sizes, 8, 16)
            second |= sizes
            found, hit = self.middle.look_up(first, second)
            new = np.flatnonzero(~hit | (lengths > 15))
            found[new] = self.ask(block, starts[new], lengths[new], first[new], second[new])
            self.short.put(found[lengths < 8], key[missed[lengths < 8]])
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
        """The numbers of words that the tables do not know, (N,), from the dictionary."""
        spokesman, short = np.arange(len(starts)), np.flatnonzero(lengths < 16)
        self.middle.put(short, first[short], second[short])
        asks_for, hit = self.middle.look_up(first[short], second[short])
        spokesman[short] = np.where(hit, asks_for, short)  # one of equal words asks for all
        asks = np.flatnonzero(spokesman == np.arange(len(starts)))
        begins, ends = starts[asks].tolist(), (starts + lengths)[asks].tolist()
        known, numbers = self.known, np.zeros(len(starts), np.int32)
        numbers[asks] = [known.setdefault(block[i:j], len(known)) for i, j in zip(begins, ends)]
        numbers = numbers[spokesman]
        self.middle.put(numbers[short], first[short], second[short])
        self.words += list(islice(reversed(known), len(known) - len(self.words)))[::-1]
        return numbers


class Table:
    """Numbers of keys, uint64 in one or two columns; of keys that want one place, one stays."""

    def __init__(self, columns: int) -> None:
        self.keys = np.zeros((columns, SLOTS), np.uint64)  # no word has key 0: its size is in it
        self.numbers = np.zeros(SLOTS, np.int32)

    def places(self, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Where keys are kept: the highest bits of a product, which every bit of a key moves."""
        mixed = keys[0] if len(keys) == 1 else keys[0] ^ keys[1] * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed * np.uint64(0xD6E8FEB86659FD93)
        mixed >>= 65 - SLOTS.bit_length()
        return mixed.view(np.int64)

    def look_up(self, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number at the place of each key, (N,), and whether it is this key's, (N,) bool."""
        # mode="clip" only because it is fast: no place is outside.
        places = self.places(keys)
        hit = self.keys[0].take(places, mode="clip") == keys[0]
        for column, key in zip(self.keys[1:], keys[1:]):
            hit &= column.take(places, mode="clip") == key
        return self.numbers.take(places, mode="clip"), hit

    def put(self, numbers: np.ndarray, *keys: np.ndarray) -> None:
        """Keep the `numbers` of keys, (N,)."""
        places = self.places(keys)
        for column, key in zip(self.keys, keys):
            column[places] = key
        self.numbers[places] = numbers


class WordCounts:
    """How often each word occurs in texts; special tokens are no words."""

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        self.special_tokens = [token.encode("utf-8") for token in special_tokens]
        self.numbers, self.counts = WordNumbers(), np.zeros(0, np.int64)

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of `texts`, each for itself."""
        parts = []
        for data in map(utf8, texts):
            found = find_special(data, self.special_tokens)
            cuts = [0, *(at for start, end, _ in found for at in (start, end)), len(data)]
            parts += [data[i:j] for i, j in zip(cuts[::2], cuts[1::2]) if i < j]
        ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)
        between = np.stack((ends - 1, ends), 1)  # numpy does as much for a long text as for a short
        numbers = self.numbers.numbers(b"\0".join([*parts, b""]), between)
        counts = np.bincount(numbers + 1, minlength=len(self.numbers.words) + 1)[1:]
        counts[: len(self.counts)] += self.counts
        self.counts = counts


class WordIds:
    """The ids of texts, word by word; `merge` is asked once for the ids of each different word.

    It gets a list of words and gives their ids, one word after the other, and how many each has.
    Special tokens stand for themselves.
    """

    def __init__(
        self,
        merge: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]],
        special_tokens: dict[str, int],
    ) -> None:
        self.merge, self.special_tokens = merge, special_tokens
        self.special_bytes = [token.encode("utf-8") for token in special_tokens]
        self.special_ids = np.array(list(special_tokens.values()), np.uint32)
        self.forget()

    def forget(self) -> None:
        """Begin anew. Row 0 keeps a place for a special token; word 0 is row 1, and so on."""
        self.numbers, self.rows = WordNumbers(), Rows()
        self.rows.append(np.array([PLACE]), np.array([1]))

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, (N,) uint32."""
        return self.encode_utf8(utf8(text))

    def encode_utf8(self, data: bytes) -> np.ndarray:
        """`encode` of a text that is UTF-8 already."""
        specials = find_special(data, self.special_bytes)
        rows = self.numbers.numbers(data, spans(specials)) + 1
        new = self.numbers.words[self.rows.count - 1 :]
        if new:
            self.rows.append(*self.merge(new))
        laid = [np.zeros(0, np.uint32)]
        for i in range(0, len(rows), MANY_WORDS):  # as much as fits into the cache
            laid.append(self.rows.lay(rows[i : i + MANY_WORDS]))
        ids = np.concatenate(laid)
        ids[ids == PLACE] = self.special_ids[[number for _, _, number in specials]]
        if len(self.numbers.words) > MOST_WORDS:
            self.forget()
        return ids


class Rows:
    """Rows of ids of different lengths, none empty, kept one after the other."""

    def __init__(self) -> None:
        self.count, self.used = 0, 0
        self.ids = np.zeros(1, np.uint32)
        self.starts, self.lengths = np.zeros((2, 1), np.int64)

    def append(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows of `lengths` (N,), whose ids (sum of lengths,) follow each other."""
        starts = self.used + np.cumsum(lengths) - lengths
        self.ids = extended(self.ids, self.used, ids)
        self.starts = extended(self.starts, self.count, starts)
        self.lengths = extended(self.lengths, self.count, lengths)
        self.count, self.used = self.count + len(lengths), self.used + len(ids)

    def lay(self, numbers: np.ndarray) -> np.ndarray:
        """The ids of the rows of these `numbers` (N,), one row after the other. Most have one id,
        so that is laid for all, and what follows for the others."""
        lengths, sources = self.lengths.take(numbers), self.starts.take(numbers)
        starts = np.cumsum(lengths)
        ids = np.empty(starts[-1] if len(starts) else 0, np.uint32)
        starts -= lengths
        ids[starts] = self.ids.take(sources)
        longer = np.flatnonzero(lengths > 1)
        lengths = lengths[longer] - 1
        begins = np.cumsum(lengths) - lengths
        targets = np.repeat(starts[longer] + 1 - begins, lengths) + np.arange(lengths.sum())
        ids[targets] = self.ids.take(targets + np.repeat((sources - starts)[longer], lengths))
        return ids


def extended(array: np.ndarray, used: int, values: np.ndarray) -> np.ndarray:
    """`array` with `values` after its first `used`; when it is full, one twice as long."""
    end = used + len(values)
    if end > len(array):
        array = np.concatenate((array, np.zeros(end, array.dtype)))
    array[used:end] = values
    return array
