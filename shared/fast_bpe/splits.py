r"""The words of the splits after GPT-2's, without a Python loop over words.

They are derived from runs of characters of one kind, such as letters or line ends. A run begins a
word or joins the one before; this depends only on the kinds of the two runs before it and of the
one after it, and on whether the run before is a single sign:

    text      I f ␣ ␣ ( a ) : ⏎ ␣ ␣ x = 1 2 3 4
    kind      L L B B O L O O E B B L O N N N N    letter, blank, other, line end, number
    run       ^ . ^ . ^ ^ ^ . ^ ^ . ^ ^ ^ . . .
    words     If   ␣ ␣( a ):⏎   ␣ ␣x  = 123 4

1. Letters join a blank before them, and a single sign that no space is before.
2. Signs join a space before them, and take the line ends behind them.
3. Blanks join a line end behind them, and what they are then joins no more. The last of those
   before something visible is a word of its own, or joined to that by rules 1 and 2.
4. Numbers begin a word every three digits (Qwen: each).
5. An apostrophe with s, t, m, d, ll, ve, re is a word; GPT-4o's joins the letters before it.
6. GPT-4o's words also begin at a capital after a small letter. Letters without case are either:
   of letters up to the next small one, none begins a word; if there is none, the capitals at the
   end do. Marks are such letters, unless signs before them have begun a word that takes them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import regex

from shared.fast_bpe.pairs import number_in_run
from shared.splits import SPLITS, StrangersPattern

Bounds = Callable[..., np.ndarray]
# Letters: UPPER (and title case), LOWER, and those without case. Visible < END < blank.
LETTER, UPPER, LOWER, MARK, OTHER, NUMBER, TAKEN, END, NEWLINE, BLANK, UNKNOWN = range(11)
KIND = regex.compile(r"([\p{Lm}\p{Lo}])|([\p{Lu}\p{Lt}])|(\p{Ll})|(\p{M})|(\p{N})|([\r\n])|(\s)")
OF_GROUP = {1: LETTER, 2: UPPER, 3: LOWER, 4: MARK, 5: NUMBER, 6: NEWLINE, 7: BLANK}
WITHOUT_CASE = np.arange(UNKNOWN, dtype=np.uint8)
WITHOUT_CASE[[UPPER, LOWER, MARK]] = LETTER, LETTER, OTHER
SPACE, APOSTROPHE, SLASH, LONG_S = 32, 39, 47, 0x17F  # which is an s without case


def kind_of(character: str) -> int:
    """The kind of a character, according to `regex`."""
    found = KIND.match(character)
    return OF_GROUP[found.lastindex] if found else OTHER


ASCII = bytes(kind_of(chr(byte)) for byte in range(128)) + bytes(128)
kind_of_code = np.full(0x110000, UNKNOWN, np.uint8)  # of the code points met so far


def bounds_of(split: str) -> Bounds:
    """What finds the words of a split, a name or a pattern, in UTF-8 where some spans are `fixed`:
    what `word_bounds` in words.py does for GPT-2's."""
    if split in SPLITS:
        return partial(named_bounds, split)
    return partial(pattern_bounds, StrangersPattern(split))


def pattern_bounds(
    pattern: regex.Pattern | StrangersPattern, data: bytes, fixed: np.ndarray
) -> np.ndarray:
    """`bounds_of` a pattern that takes any text apart without a rest."""
    bounds, at = [], 0
    for start, end in [*fixed.tolist(), (len(data), len(data))]:
        for word in pattern.findall(data[at:start].decode("utf-8")):
            bounds.append(at)
            at += len(word.encode("utf-8"))
        bounds.append(start)
        at = end
    return np.array(bounds)


def named_bounds(split: str, data: bytes, fixed: np.ndarray) -> np.ndarray:
    """Where the N words of UTF-8 `data` begin, and where the last one ends, (N + 1,)."""
    in_bytes = fixed
    if ascii_only := data.isascii():
        codes = np.frombuffer(data + b"\0\0\0", np.uint8)
        kinds = np.frombuffer(data.translate(ASCII) + bytes([END] * 3), np.uint8)
    else:  # by characters; at the end, their places are translated to bytes
        codes = np.frombuffer((data.decode("utf-8") + "\0\0\0").encode("utf-32-le"), np.uint32)
        kinds = kinds_of_codes(codes)
        places = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80)
        places = np.append(places, len(data))
        fixed = places.searchsorted(fixed)
    by_case = split == "gpt4o"
    kinds = kinds.copy() if by_case else WITHOUT_CASE.take(kinds)
    kinds[-3:] = END
    for start, end in fixed.tolist():
        kinds[start:end] = END
    if by_case and not taken_by_signs(data, codes, kinds):
        return pattern_bounds(regex.compile(SPLITS[split]), data, in_bytes)
    begins = np.zeros(len(kinds) - 2, bool)
    begins[-1] = True
    begins[fixed[:, 0]] = True
    if b"'" in data:
        take_contractions(codes, kinds, begins, by_case)
    begin_runs(split, codes, kinds[:-2], begins)
    bounds = np.flatnonzero(begins)
    return bounds if ascii_only else places[bounds]


def kinds_of_codes(codes: np.ndarray) -> np.ndarray:
    """The kinds of code points."""
    kinds = kind_of_code.take(codes)
    if len(unknown := np.flatnonzero(kinds == UNKNOWN)):
        for code in set(codes[unknown].tolist()):
            kind_of_code[code] = kind_of(chr(code))
        kinds = kind_of_code.take(codes)
    return kinds


def begin_runs(split: str, codes: np.ndarray, kinds: np.ndarray, begins: np.ndarray) -> None:
    """Set `begins` where runs of a kind, or parts of them, begin a word. The last kind is END."""
    starts = np.append(0, np.flatnonzero(kinds[1:] != kinds[:-1]) + 1)
    ends = np.append(starts[1:], len(kinds))
    lengths = ends - starts
    own = np.concatenate(([END, END], kinds[starts], [END]))
    before2, before, own, after = own[:-3], own[1:-2], own[2:-1], own[3:]
    open_blank = np.append(False, (own == BLANK) & (codes[ends - 1] == SPACE))[:-1]  # before it
    prefix = (own == OTHER) & (lengths == 1) & ~open_blank
    joins = (before == BLANK) | np.append(False, prefix[:-1])
    first = own <= LOWER
    if split == "gpt4o":
        first &= before > LOWER
        capital = (own == UPPER) & (before == LETTER) & ((before2 == LOWER) | (after > LOWER))
        first_of_case = capital | (own == UPPER) & (before == LOWER)
    line_goes_on = (before == NEWLINE) & (before2 != OTHER)
    blank = own == BLANK
    last = blank & (after < END)
    goes_on = blank & line_goes_on
    goes_on &= (after == NEWLINE) | (split == "gpt4") & (after == END)
    at_run = (first & ~joins) | ((own == OTHER) & ~open_blank) | (own == NUMBER)
    at_run |= (own == NEWLINE) & (before != OTHER) & (before != BLANK)
    at_run |= blank & ~goes_on
    if split == "gpt4o":
        at_run |= first_of_case
    begins[starts[at_run]] = True
    begins[ends[last] - 1] = True
    if split == "qwen":
        begins |= kinds == NUMBER
    elif len(long := np.flatnonzero((own == NUMBER) & (lengths > 3))):
        threes = (lengths[long] - 1) // 3
        step = np.arange(1, threes.sum() + 1) - np.repeat(np.cumsum(threes) - threes, threes)
        begins[np.repeat(starts[long], threes) + 3 * step] = True


def take_contractions(
    codes: np.ndarray, kinds: np.ndarray, begins: np.ndarray, by_case: bool
) -> None:
    """Set the kind of each contraction to TAKEN, and `begins` where it is a word of its own."""
    at = np.flatnonzero(codes == APOSTROPHE)
    at = at[(kinds[at] == OTHER) & (kinds[at + 1] <= LOWER)]
    before, code = kinds[at - 1], codes[at - 1]  # of the first, the END behind the text
    if by_case:  # it ends a word
        at = at[before <= LOWER]
    else:  # it begins one
        at = at[(before != OTHER) & ((before != BLANK) | (code != SPACE))]
    one, two = codes[at + 1] | 32, codes[at + 2] | 32  # in lower case, if it is a letter of ASCII
    short = np.isin(one, [*b"stmd"]) | (codes[at + 1] == LONG_S)
    long = ((one == ord("l")) & (two == ord("l"))) | (
        ((one == ord("v")) | (one == ord("r"))) & (two == ord("e"))
    )
    long &= kinds[at + 2] <= LOWER
    at, end = at[short | long], (at + 2 + long)[short | long]
    if by_case:  # of 's's, the second is a word's beginning
        ends_one = number_in_run(at == np.append(-1, end[:-1])) % 2 == 0
        at, end = at[ends_one], end[ends_one]
    else:
        begins[at] = True
    kinds[at] = kinds[at + 1] = kinds[end - 1] = TAKEN


def taken_by_signs(data: bytes, codes: np.ndarray, kinds: np.ndarray) -> bool:
    """GPT-4o's: slashes in the line ends behind signs become line ends, marks in signs become
    signs, and all other marks letters. False, with nothing done, in the rare case that slashes and
    marks depend on each other: `data` has to be split by the pattern."""
    has_slashes = b"\n/" in data or b"\r/" in data
    if has_slashes:
        slashes = taken_slashes(codes, kinds)
        kinds[slashes] = NEWLINE
    if (kinds == MARK).any():
        at = np.flatnonzero((kinds == OTHER) | (kinds == MARK))
        sign = kinds[at] == OTHER
        after_space = (codes[at - 1] == SPACE) & (kinds[at - 1] == BLANK)
        taken = since_in_run(at, sign & (after_space | (kinds[at + 1] == OTHER)))
        kinds[at[~sign]] = np.where(taken[~sign], OTHER, LETTER)
        return not has_slashes or not len(taken_slashes(codes, kinds))
    return True


def taken_slashes(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Where slashes are that belong to a sign before line ends before them."""
    at = np.flatnonzero((kinds == NEWLINE) | ((codes == SLASH) & (kinds == OTHER)))
    newline = kinds[at] == NEWLINE
    return at[since_in_run(at, newline & (kinds[at - 1] == OTHER)) & ~newline]


def since_in_run(at: np.ndarray, event: np.ndarray) -> np.ndarray:
    """For ascending places (N,), whether there is an `event` (N,) at it or before, in the same run
    of adjacent places."""
    number = np.arange(len(at))
    begin = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) > 1, number, 0))
    return np.maximum.accumulate(np.where(event, number, -1)) >= begin
