"""Pairs of neighbouring tokens: where they occur in words, and which of them merge."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from heapq import heappop, heappush, heapreplace
from itertools import chain, repeat
from operator import or_

import numpy as np

PARTS = 8  # in which pairs are counted: all at once would take much memory
FEW = 64  # up to this many places a Python loop is faster than numpy
Pair = tuple[int, int]
PairCounts = Iterable[tuple[Pair, int]]


class LinkedWords:
    """Distinct words, each with its number of occurrences, as linked lists of tokens.

    Every byte of every word has a place, and between words there is a place without a token. A
    token is at the place of its first byte and links to the places before and after it, so that a
    merge touches only its neighbours:

        place      0   1   2   3   4                0   1   2   3   4
        token     none t   h   e  none    t h      none th      e  none
        before         0   1   2   3      --->          0       1   3
        after      1   2   3   4                    1   3       4
    """

    def __init__(self, words: Sequence[bytes], counts: Sequence[int]) -> None:
        text = np.frombuffer(b"\0".join([b"", *words, b""]), np.uint8)
        lengths = np.fromiter(map(len, words), np.int64, len(words)) + 1
        # Python arrays for loops; the numpy arrays `all_...` are views of the same memory. `times`
        # holds, for each place, how often its word occurs.
        large = max(counts, default=0) > 0x7FFFFFFF
        self.token, self.before, self.after, self.times = (
            array(kind, [0]) * len(text) for kind in ("iiiq" if large else "iiii")
        )
        self.all_token, self.all_before, self.all_after, self.all_times = (
            np.frombuffer(a, a.typecode) for a in (self.token, self.before, self.after, self.times)
        )
        self.all_token[:] = text
        self.ends = np.cumsum(lengths)  # the place after each word
        self.all_token[0] = self.all_token[self.ends] = -1  # none
        self.all_before[:] = np.arange(-1, len(text) - 1, dtype=np.int32)
        self.all_after[:] = np.arange(1, len(text) + 1, dtype=np.int32)
        self.all_times[1:] = np.repeat(np.array(counts, self.times.typecode), lengths)
        self.total = int(self.all_times.sum())  # occurrences of all places
        # Where frequent pairs are, or once were, in ascending order.
        self.where: dict[Pair, Sequence[int]] = {}
        self.least = 0  # pairs that occur more often than this are frequent
        self.small = np.uint16  # a type for tokens and a bit; 16 bits sort fastest

    def pairs(self, least: int) -> dict[Pair, int]:
        """The counts of all pairs that occur more than `least` times; from now on, `merge` reports
        only such pairs as new."""
        self.least, self.where, pairs = least, {}, {}
        part_of = (self.all_token % PARTS).astype(np.uint8)  # of each place, by its token
        part_of[self.all_token < 0] = PARTS
        part_of[self.all_before.take(self.ends)] = PARTS  # a word's last token begins no pair
        for part in range(PARTS):
            places = np.flatnonzero(part_of == part).astype(np.int32)
            left = self.all_token.take(places)
            right = self.all_token.take(self.all_after.take(places))
            for pair, count, here in self.groups(places, left, right)[2]:
                pairs[pair], self.where[pair] = count, here
        return pairs

    def merge(self, left: int, right: int, token: int) -> tuple[PairCounts, PairCounts]:
        """Replace `left` followed by `right` with `token`, in each word from left to right.

        This changes the neighbouring pairs. Returns by how much each old pair's count has dropped,
        and the counts of the new pairs that are frequent.
        """
        if token > 0x7FFF:
            self.small = np.uint32
        places = self.where.pop((left, right))
        merge = self.merge_few if len(places) < FEW else self.merge_many
        return merge(places, left, right, token)

    def merge_few(
        self, places: Sequence[int], left: int, right: int, token: int
    ) -> tuple[PairCounts, PairCounts]:
        """`merge`, one place after the other."""
        tokens, before, after = self.token, self.before, self.after
        befores, afters = defaultdict(list), defaultdict(list)  # token -> where its pairs begin
        for place in places if isinstance(places, list) else places.tolist():
            second = after[place]
            if tokens[place] == left and tokens[second] == right:  # not merged with others since
                first, third = before[place], after[second]
                tokens[place], tokens[second] = token, -1
                after[place], before[third] = third, place
                x, y = tokens[first], tokens[third]
                if x == token:  # two new tokens in a row
                    afters[token].append(afters[left].pop())
                elif x >= 0:
                    befores[x].append(first)
                if y >= 0:
                    afters[y].append(place)
        changes = [((x, left), (x, token), here) for x, here in befores.items()]
        for y, here in afters.items():
            changes.append(((right, left if y == token else y), (token, y), here))
        times, rarer, new = self.times, [], []
        for old, pair, here in changes:
            count = times[here[0]] if len(here) == 1 else sum([times[place] for place in here])
            rarer.append((old, count))
            if count > self.least:
                self.where[pair] = here
                new.append((pair, count))
        return rarer, new

    def merge_many(
        self, places: Sequence[int], left: int, right: int, token: int
    ) -> tuple[PairCounts, PairCounts]:
        """`merge`, at all places at once."""
        tokens, before, after = self.all_token, self.all_before, self.all_after
        place = np.asarray(places)
        second = after.take(place)
        there = (tokens.take(place) == left) & (tokens.take(second) == right)
        place, second = place[there], second[there]
        if left == right:  # of a a a, the first two merge
            even = number_in_run(np.append(False, place[1:] == second[:-1])) % 2 == 0
            place, second = place[even], second[even]
        third = after.take(second)
        tokens[place], tokens[second] = token, -1
        after[place], before[third] = third, place
        first = before.take(place)
        x, y = tokens.take(first), tokens.take(third)
        has_x, has_y = (x >= 0) & (x != token), y >= 0
        # Both sides at once, for small arrays take mostly calls; `side` marks tokens that follow.
        side = 1 << 15 if self.small == np.uint16 else 1 << 30
        (both,), counts, frequent = self.groups(
            np.concatenate((first[has_x], place[has_y])),
            np.concatenate((x[has_x], y[has_y] + np.int32(side))),
        )
        new = []
        for (other,), count, here in frequent:
            pair = (other, token) if other < side else (token, other - side)
            new.append((pair, count))
            self.where[pair] = here
        n_x = both.searchsorted(side)
        x, y = both[:n_x], both[n_x:] - side
        y[y == token] = left  # two new tokens in a row
        old = chain(zip(x.tolist(), repeat(left)), zip(repeat(right), y.tolist()))
        return zip(old, counts.tolist()), new

    def groups(
        self, places: np.ndarray, *tokens: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray, list[tuple[tuple[int, ...], int, np.ndarray]]]:
        """Group `places` (N,) that have the same `tokens` (N,): the tokens of each group and how
        often they occur, (groups,); of each frequent group, its tokens, that number, its places."""
        tokens = [column.astype(self.small, copy=False) for column in tokens]
        order = np.lexsort(tokens)  # radix sort
        places, tokens = places.take(order), [column.take(order) for column in tokens]
        first = np.ones(len(places) + 1, bool)
        first[1:-1] = reduce(or_, [column[1:] != column[:-1] for column in tokens])
        bounds = first.nonzero()[0]
        counts = np.add.reduceat(self.all_times.take(places), bounds[:-1], dtype=np.int64)
        frequent = (counts > self.least).nonzero()[0]
        spans = zip(bounds[frequent].tolist(), bounds[frequent + 1].tolist())
        where = [places[start:end] for start, end in spans]
        tokens = [column[bounds[:-1]] for column in tokens]
        of_frequent = zip(*(column[frequent].tolist() for column in tokens))
        return tokens, counts, list(zip(of_frequent, counts[frequent].tolist(), where))


class FrequentPairs:
    """The counts of pairs, and which is the most frequent; among equals, the greatest by its bytes.

    When the count of a pair falls, its entry in the heap stays, and gets the new count once it is
    at the top.
    """

    def __init__(self, pairs: PairCounts, least: int, vocab: list[bytes]) -> None:
        """All `pairs` are more frequent than `least`, and are dropped when they no longer are;
        `vocab` has the bytes of each token, and may grow."""
        self.least, self.vocab, self.order = least, vocab, []
        self.counts: dict[Pair, int] = {}
        self.heap: list[tuple[int, str, str, Pair]] = []
        self.add(pairs)

    def add(self, pairs: PairCounts) -> None:
        """Add pairs."""
        order = self.order
        order += map(descending, self.vocab[len(order) :])
        for pair, count in pairs:
            self.counts[pair] = count
            heappush(self.heap, (-count, order[pair[0]], order[pair[1]], pair))

    def lower(self, pairs: PairCounts) -> None:
        """Lower the counts of pairs, of those that are here."""
        counts = self.counts
        for pair, drop in pairs:
            if pair in counts:
                counts[pair] -= drop

    def pop(self) -> Pair | None:
        """Remove and return the most frequent pair; None if there is none."""
        counts, heap = self.counts, self.heap
        while heap:
            was, left, right, pair = heap[0]
            count = counts[pair]
            if self.least < count < -was:
                heapreplace(heap, (-count, left, right, pair))
                continue
            heappop(heap)
            del counts[pair]
            if count == -was:
                return pair
        return None


COMPLEMENT = bytes(range(255, -1, -1))


def descending(token: bytes) -> str:
    """A string that is the smaller, the greater the bytes of a token are."""
    return token.translate(COMPLEMENT).decode("latin-1") + "\u0100"  # after all that goes on


def number_in_run(follows: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the things of each run, (N,); `follows` (N,) says for each whether it is in
    the run of the one before."""
    number = np.arange(len(follows))
    return number - np.maximum.accumulate(np.where(follows, 0, number))
