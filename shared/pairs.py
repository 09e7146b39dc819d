"""Pairs of neighbouring tokens: where they stand in words, and which of them merge."""

import gc
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

FEW = 96  # places over which a loop is faster than numpy
Pair = tuple[int, int]
Places = tuple[Sequence[int], int, int]  # [i:j] of a sequence
Group = tuple[int, int, Places]  # a code, how often it occurs, and where
Change = tuple[Pair, Pair, int]  # a pair that was, what it is now, how often


class LinkedWords:
    """Different words, each of which occurs so many times, as linked lists of tokens.

    Every byte of every word has a place, and between words there is one without a token. A token
    is at the place of its first byte and knows the places before and after it, so that a merge
    touches nothing but its neighbours:

        place      0   1   2   3   4                0   1   2   3   4
        token     none t   h   e  none    t h      none th      e  none
        before         0   1   2   3      --->          0       1   3
        after      1   2   3   4                    1   3       4
    """

    def __init__(self, words: Sequence[bytes], counts: Sequence[int]) -> None:
        text = np.frombuffer(b"\0".join([b"", *words, b""]), np.uint8)
        lengths = np.fromiter(map(len, words), np.int64, len(words)) + 1
        # Arrays of Python for loops; numpy's `all_` are views of the same memory.
        self.token, self.before, self.after, self.of_word = (
            array("i", [0]) * len(text) for _ in range(4)
        )
        self.all_token, self.all_before, self.all_after, self.all_of_word = (
            np.frombuffer(a, np.int32) for a in (self.token, self.before, self.after, self.of_word)
        )
        self.all_token[:] = text
        self.all_token[0] = self.all_token[np.cumsum(lengths)] = -1  # none
        self.all_before[:] = np.arange(-1, len(text) - 1, dtype=np.int32)
        self.all_after[:] = np.arange(1, len(text) + 1, dtype=np.int32)
        self.all_of_word[1:] = np.repeat(np.arange(len(words), dtype=np.int32), lengths)
        self.all_count = np.array(counts, np.int64)  # of words
        self.count = array("q", self.all_count.tobytes())
        self.where: dict[Pair, Places] = {}  # where pairs are, or were

    def pairs(self) -> dict[Pair, int]:
        """How often each pair of bytes occurs."""
        token = self.all_token
        places = np.flatnonzero((token[:-1] >= 0) & (token[1:] >= 0)).astype(np.int32)
        codes = (token[places] << 8 | token[places + 1]).astype(np.uint16)
        order = codes.argsort(kind="stable")  # radix sort
        codes, places = codes[order], places[order]
        del order  # the largest of all that is held
        pairs = {}
        for code, count, here in self.groups(codes, places):
            self.where[code >> 8, code & 255] = here
            pairs[code >> 8, code & 255] = count
        return pairs

    def merge(self, left: int, right: int, token: int) -> list[Change]:
        """Put `token` wherever `left` is before `right`, in each word from its beginning on.

        That changes the pairs beside it: [(a pair that was, what it is now, how often), ...]. A
        pair that is now is new, for `token` is, and is told once.
        """
        places, start, end = self.where.pop((left, right))
        places = places[start:end]
        merge = self.merge_few if len(places) < FEW else self.merge_many
        return merge(places, left, right, token)

    def merge_few(self, places: Sequence[int], left: int, right: int, token: int) -> list[Change]:
        """`merge` one place after the other."""
        tokens, before, after, merged = self.token, self.before, self.after, []
        for place in places if isinstance(places, list) else places.tolist():
            second = after[place]
            if tokens[place] == left and tokens[second] == right:  # not merged with others since
                tokens[place], tokens[second] = token, -1
                after[place] = third = after[second]
                before[third] = place
                merged.append(place)
        befores, afters = defaultdict(list), defaultdict(list)  # of each token, where pairs begin
        for place in merged:
            first = before[place]
            x, y = tokens[first], tokens[after[place]]
            if x >= 0 and x != token:
                befores[x].append(first)
            if y >= 0:
                afters[y].append(place)
        where, count, of_word, changes = self.where, self.count, self.of_word, []
        for x, here in befores.items():
            where[x, token] = here, 0, len(here)
            times = sum([count[of_word[place]] for place in here])
            changes.append(((x, left), (x, token), times))
        for y, here in afters.items():  # where two new tokens are in a row, the second
            where[token, y] = here, 0, len(here)
            times = sum([count[of_word[place]] for place in here])
            changes.append(((right, left if y == token else y), (token, y), times))
        return changes

    def merge_many(self, places: Sequence[int], left: int, right: int, token: int) -> list[Change]:
        """`merge_few` at all places at once."""
        tokens, before, after = self.all_token, self.all_before, self.all_after
        place = np.asarray(places)
        second = after.take(place)
        there = (tokens.take(place) == left) & (tokens.take(second) == right)
        place, second = place[there], second[there]
        if left == right:  # of a a a, the first two merge
            odd = every_other(place[1:] == second[:-1])
            place, second = place[odd], second[odd]
        third = after.take(second)
        tokens[place], tokens[second] = token, -1
        after[place], before[third] = third, place
        first = before.take(place)
        x, y = tokens.take(first), tokens.take(third)
        has_x, has_y = (x >= 0) & (x != token), y >= 0
        # Of what is before the new token the code is even, of what is after it odd.
        codes = np.concatenate((2 * x[has_x], 2 * y[has_y] + 1)).astype(np.int64)
        places = np.concatenate((first[has_x], place[has_y]))
        both = np.sort(codes << 32 | places)  # faster than to sort by codes alone
        changes = []
        for code, count, here in self.groups(both >> 32, both & 0xFFFFFFFF):
            other = code >> 1
            if code & 1:
                was, now = (right, left if other == token else other), (token, other)
            else:
                was, now = (other, left), (other, token)
            self.where[now] = here
            changes.append((was, now, count))
        return changes

    def groups(self, codes: np.ndarray, places: np.ndarray) -> Iterator[Group]:
        """Of sorted `codes` (N,), each different one, how often it occurs, and where."""
        first = np.ones(len(codes), bool)
        np.not_equal(codes[1:], codes[:-1], out=first[1:])
        starts = first.nonzero()[0]
        ends = np.append(starts[1:], len(codes))
        counts = self.all_count.take(self.all_of_word.take(places))
        counts = np.add.reduceat(counts, starts) if len(starts) else counts
        spans = zip(codes[starts].tolist(), counts.tolist(), starts.tolist(), ends.tolist())
        return ((code, count, (places, start, end)) for code, count, start, end in spans)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For work that makes many small objects and keeps them: to look for garbage among them, and
    among all that was there before, would take a quarter of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def every_other(follows: np.ndarray) -> np.ndarray:
    """Of N things in runs, the first, third, fifth of each run, as (N,) bool; `follows` (N - 1,)
    says of each but the first whether it is in the run of the one before."""
    number = np.arange(len(follows) + 1)
    start = np.maximum.accumulate(np.where(np.append(False, follows), 0, number))  # of its run
    return (number - start) % 2 == 0


class PairRanks:
    """The ranks of pairs of tokens: how early each was learned.

    An exact hash table. Of pairs that want one place the first has it; the others are few, and
    looked up in order.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.none = len(pairs)  # the rank of pairs that are not among them
        self.bits = len(pairs).bit_length() + 2
        left, right = np.array(pairs, np.int64).reshape(-1, 2).T
        keys, places = self.keys_and_places(left, right)
        self.keys = np.full(1 << self.bits, -1)
        self.ranks = np.full(1 << self.bits, self.none)
        self.keys[places[::-1]], self.ranks[places[::-1]] = keys[::-1], np.arange(self.none)[::-1]
        others = np.flatnonzero(self.keys[places] != keys)
        self.shared = np.zeros(1 << self.bits, bool)
        self.shared[places[others]] = True
        others = others[keys[others].argsort(kind="stable")]
        self.other_keys = np.append(keys[others], np.iinfo(np.int64).max)  # never looked for
        self.other_ranks = np.append(others, self.none)

    def keys_and_places(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A number for each pair, and where the table has it: the highest bits of a product."""
        keys = left << 32
        keys |= right
        mixed = keys.view(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
        mixed >>= np.uint64(64 - self.bits)
        return keys, mixed.view(np.int64)

    def look_up(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The rank of each pair of tokens (N,) int64, (N,) int64."""
        # mode="clip" only because it is fast: no place is outside.
        keys, places = self.keys_and_places(left, right)
        ranks = self.ranks.take(places, mode="clip")
        missed = np.flatnonzero(self.keys.take(places, mode="clip") != keys)
        ranks[missed] = self.none
        again = missed[self.shared.take(places[missed], mode="clip")]
        at = self.other_keys.searchsorted(keys[again])
        found = self.other_keys[at] == keys[again]
        ranks[again] = np.where(found, self.other_ranks[at], self.none)
        return ranks
