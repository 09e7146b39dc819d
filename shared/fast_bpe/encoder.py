"""Encoding words with given merges, and texts by looking up the ids of their words."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import chain
from threading import Lock
from unicodedata import normalize

import numpy as np

from shared.fast_bpe.pairs import Pair, number_in_run
from shared.fast_bpe.words import MOST_WORDS, WordNumbers, cuts, find_special, start_of_span
from shared.fast_bpe.workers import crew, enough_for, shared_out
from shared.terminal import progress
from shared.text import PIECE, as_texts, utf8

MANY_WORDS = 1 << 15  # are merged or laid at a time: they fit into the CPU's cache
LONG_WORD = 128  # bytes; longer ones are merged one by one


class Encoder:
    """Encodes texts. The words of earlier texts and their ids are known, so that a distinct word is
    merged only once. Special tokens are recognized. Several threads may use it, in turn."""

    def __init__(
        self,
        merges: Sequence[Pair],
        special_tokens: dict[str, int],
        split: str = "gpt2",
        byte_ids: Sequence[int] = range(256),
        made: Sequence[int] | None = None,
        whole_words: dict[bytes, int] | None = None,
        nfc: bool = False,
    ) -> None:
        """`byte_ids` has the id of each byte, `made` that of the token that each merge makes (None:
        256, 257, ...). A word in `whole_words` is one token, whatever the merges. If `nfc`, a text
        is brought into normalization form C before."""
        if "" in special_tokens:
            raise ValueError("an empty special token would be everywhere")
        self.parts = merges, special_tokens, split, byte_ids, made, whole_words, nfc
        self.merger = Merger(merges, byte_ids, made, whole_words)
        self.special_tokens, self.split, self.nfc = special_tokens, split, nfc
        self.special_bytes = [token.encode("utf-8") for token in special_tokens]
        most = max(*byte_ids, *self.merger.made.tolist(), *special_tokens.values())
        self.dtype = np.uint16 if most < 1 << 16 else np.uint32  # as in token files
        self.lock, self.rested = Lock(), []
        self.forget()

    def forget(self) -> None:
        """Know no words. The first rows are the special tokens', followed by one for each word."""
        self.numbers, self.rows = WordNumbers(self.split), Rows(self.dtype)
        ids = np.array(list(self.special_tokens.values()), self.dtype)
        self.rows.append(ids, np.ones_like(ids, np.int64))

    def encode(self, text: str | bytes, special: bool = True) -> np.ndarray:
        """The ids of `text`, (N,) uint16 or uint32; a lone surrogate is encoded as U+FFFD. If not
        `special`, special tokens are ordinary text."""
        data, ids = utf8(text), [np.zeros(0, self.dtype)]
        specials = find_special(data, self.special_bytes if special else ())
        if self.nfc and not data.isascii():
            data, specials = normalized(data, specials)
        # In pieces: new memory for the whole of a long text would take a fifth of the time.
        size = PIECE if self.numbers.in_blocks else len(data)
        for start, end in cuts(data, size, partial(start_of_span, spans=specials[:, :2])):
            first, last = specials[:, 0].searchsorted((start, end))
            here = specials[first:last] - (start, start, 0)
            with self.lock:
                try:
                    ids += self.encode_piece(data[start:end], here)
                except BaseException:  # such as Ctrl-C: words may have no ids yet
                    self.forget()
                    raise
        return np.concatenate(ids)

    def encode_piece(self, data: bytes, specials: np.ndarray) -> list[np.ndarray]:
        """The ids of UTF-8 `data`, in parts; `specials` (M, 3) are found in it."""
        if len(self.numbers.words) > MOST_WORDS:
            self.forget()
        known, n_special = len(self.numbers.words), len(self.special_bytes)
        numbers = self.numbers.numbers(data, specials[:, :2])
        numbers += n_special
        numbers[np.flatnonzero(numbers < n_special)] = specials[:, 2]
        new = self.numbers.words[known:]
        for i in range(0, len(new), MANY_WORDS):
            self.rows.append(*self.merger(new[i : i + MANY_WORDS]))
        parts = range(0, len(numbers), MANY_WORDS)
        return [self.rows.lay(numbers[i : i + MANY_WORDS]) for i in parts]

    def encode_each(self, texts: Iterable[str | bytes]) -> list[np.ndarray]:
        """The ids of each of the `texts`."""
        return [self.encode(text) for text in texts]

    def encode_texts(
        self, texts: Iterable[str | bytes], workers: int = 0, method: str = "encode"
    ) -> Iterator[np.ndarray]:
        """The ids of each of the `texts`, in order. Many are shared among `workers` processes, this
        one included; 0: one per core. The ids do not depend on that."""
        texts, workers = enough_for(workers, as_texts(texts))
        texts = progress(texts, "encoding", unit="MB", unit_scale=PIECE >> 20)
        with crew(workers - 1, Encoder, *self.parts, rested=self.rested) as others:
            yield from shared_out(self, method, texts, others)


def normalized(data: bytes, specials: np.ndarray) -> tuple[bytes, np.ndarray]:
    """UTF-8 `data` in normalization form C, but for the special tokens in it, and where they are
    then, (M, 3)."""
    parts, at, specials = [], 0, specials.copy()
    for span in specials:
        start, end, _ = span.tolist()
        parts.append(normalize("NFC", data[at:start].decode("utf-8")).encode("utf-8"))
        parts.append(data[start:end])
        at = end
    parts.append(normalize("NFC", data[at:].decode("utf-8")).encode("utf-8"))
    bounds = np.cumsum([len(part) for part in parts])[: 2 * len(specials)]
    specials[:, :2] = bounds.reshape(-1, 2)
    return b"".join(parts), specials


class Merger:
    """Merges words. Each starts as its bytes; in each round, it merges the one of its pairs that
    was learned first (the leftmost, if it occurs twice), until none is left. All words lie in one
    array, with -1 between them; a token is at its first byte's place (diagram: pairs.py).
    `pairs` packs a pair's rank and place into one integer: the minimum of a word merges next."""

    def __init__(
        self,
        merges: Sequence[Pair],
        byte_ids: Sequence[int] = range(256),
        made: Sequence[int] | None = None,
        whole_words: dict[bytes, int] | None = None,
    ) -> None:
        self.ranks, self.ids = PairRanks(merges), np.array(byte_ids, np.int64)
        # The rank of each pair of bytes, first byte << 8 | second.
        self.of_bytes = self.ranks.look_up(self.ids.repeat(256), np.tile(self.ids, 256))
        self.made = np.array(range(256, 256 + len(merges)) if made is None else made, np.int64)
        self.whole_words = whole_words or {}
        groups, start, when, used = [], 0, {}, set()  # when a token was made; what merged
        self.in_order = True  # no merge makes what an earlier one merges, as in all that v4 learns
        for rank, (pair, token) in enumerate(zip(merges, self.made.tolist())):
            # A group: in a row, and none merges what another one makes.
            start = rank if max(when.get(pair[0], -1), when.get(pair[1], -1)) >= start else start
            groups.append(start)
            when[token] = rank
            used.update(pair)
            self.in_order = self.in_order and token not in used
        self.known = {} if self.in_order else {tuple(p): rank for rank, p in enumerate(merges)}
        groups = np.unique([*groups, len(merges)], return_inverse=True)[1]
        self.groups = groups.astype(np.min_scalar_type(groups[-1]))  # 16 bits sort fastest

    def __call__(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all `words`, concatenated, and the number of ids in each word, (words,)."""
        found = [self.whole_words.get(word, -1) for word in words] if self.whole_words else []
        if found:  # each becomes one byte, whose id is then the word's
            words = [word if token < 0 else b"\0" for word, token in zip(words, found)]
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        order = np.minimum(lengths, LONG_WORD + 1).argsort(kind="stable")
        text = b"\0".join([b"", *(words[i] for i in order.tolist()), b""])
        ends = np.cumsum(lengths[order] + 1)
        starts = np.append(0, ends)[:-1]
        text, place = np.frombuffer(text, np.uint8), np.arange(len(text))
        ids, none = self.ids[text], self.ranks.none << 32
        pairs = self.of_bytes.take(text[:-1].astype(np.int64) << 8 | text[1:]) << 32 | place[:-1]
        ids[0] = ids[ends] = -1
        pairs[starts] = pairs[ends - 1] = none
        if found:
            found = np.array(found)[order]
            ids[starts[found >= 0] + 1] = found[found >= 0]
        starts = starts[: (lengths <= LONG_WORD).sum()]
        short = ends[len(starts) - 1] if len(starts) else 0
        if short < len(text) - 1:
            merge = self.merge_long if self.in_order else self.merge_in_turn
            ids[short + 1 :] = merge(ids[short + 1 :])
        pairs, before, after = pairs[: short + 1], place - 1, place + 1
        while len(starts):
            best = np.minimum.reduceat(pairs, starts)  # of each word
            learned = np.flatnonzero(best < none)
            starts, best = starts[learned], best[learned]
            token, at = self.made[best >> 32], best & 0xFFFFFFFF
            second = after[at]
            first, third = before[at], after[second]
            ids[at], ids[second], pairs[second] = token, -1, none
            after[at], before[third] = third, at
            left, right = np.append(first, at), np.append(at, third)
            pairs[left] = self.ranks.look_up(ids[left], ids[right]) << 32 | left
        is_token, back = ids >= 0, order.argsort()
        rows, lengths = Rows(ids.dtype), np.diff(np.cumsum(is_token)[ends], prepend=0)
        rows.append(ids[is_token], lengths)
        return rows.lay(back), lengths[back]

    def merge_long(self, ids: np.ndarray) -> np.ndarray:
        """Merge the `ids` (N,) of words, each with a -1 behind it, in place.

        A round for each merge would take long. Here it is for a group of merges: what they make,
        only later groups merge. It touches only the places where their pairs are.
        """
        at, waiting = np.arange(len(ids)), defaultdict(list)  # group -> where its pairs are or were
        before, after, ranks = np.roll(at, 1), np.roll(at, -1), np.empty_like(at)
        while True:
            ranks[at] = self.ranks.look_up(ids[at], ids[after[at]])
            at = at[ranks[at] < self.ranks.none]
            at = at[self.groups[ranks[at]].argsort(kind="stable")]
            groups = self.groups[ranks[at]]
            bounds = np.flatnonzero(np.diff(groups, prepend=-1, append=-1))
            for group, start, end in zip(groups[bounds[:-1]].tolist(), bounds, bounds[1:]):
                waiting[group].append(at[start:end])
            if not waiting:
                return ids
            group = min(waiting)
            at = np.sort(np.concatenate(waiting.pop(group)))
            at = at[(self.groups[ranks[at]] == group) & (np.diff(at, prepend=-1) > 0)]
            own, left, right = ranks[at], ranks[before[at]], ranks[after[at]]
            # Of pairs that overlap, the one of the lowest rank merges; of a a a, the first two.
            late, number = (left < own) | (right < own), number_in_run(left == own)
            late |= late[np.arange(len(at)) - number] | (number % 2 == 1)  # with its run, or second
            at, rest = at[~late], at[late]
            second = after[at]
            third = after[second]
            ids[at], ids[second], ranks[second] = self.made[ranks[at]], -1, self.ranks.none
            after[at], before[third] = third, at
            at = np.concatenate((before[at], at, rest))

    def merge_in_turn(self, ids: np.ndarray) -> np.ndarray:
        """The same for merges in any order: one place at a time, from a heap."""
        ranks = self.ranks.look_up(ids[:-1], ids[1:]).tolist()
        heap = [(rank, at) for at, rank in enumerate(ranks) if rank < self.ranks.none]
        heapify(heap)
        before, after = [*range(-1, len(ids) - 1)], [*range(1, len(ids) + 1)]
        ranks.append(self.ranks.none)
        while heap:
            rank, at = heappop(heap)
            if ranks[at] != rank:  # another merge took one of the two
                continue
            second = after[at]
            after[at] = third = after[second]
            before[third % len(ids)] = at
            ids[at], ids[second] = self.made[rank], -1
            ranks[second] = ranks[at] = self.ranks.none
            for left, right in ((before[at], at), (at, third)):
                if 0 <= left and right < len(ids):
                    ranks[left] = self.known.get((int(ids[left]), int(ids[right])), self.ranks.none)
                    if ranks[left] < self.ranks.none:
                        heappush(heap, (ranks[left], left))
        return ids


class PairRanks:
    """The ranks of pairs of tokens: how early each was learned.

    An exact hash table. If pairs collide, the first one gets the place; the others are few, and are
    found by binary search in a sorted array.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.none = len(pairs)  # the rank of all other pairs
        self.bits = len(pairs).bit_length() + 2
        flat = np.fromiter(chain.from_iterable(pairs), np.int64, 2 * len(pairs))
        keys, places = self.keys_and_places(*flat.reshape(-1, 2).T)
        self.keys = np.full(1 << self.bits, -1)
        self.ranks = np.full(1 << self.bits, self.none)
        self.keys[places[::-1]], self.ranks[places[::-1]] = keys[::-1], np.arange(self.none)[::-1]
        others = np.flatnonzero(self.keys[places] != keys)
        self.shared = np.zeros(1 << self.bits, bool)
        self.shared[places[others]] = True
        others = others[keys[others].argsort(kind="stable")]
        self.other_keys = np.append(keys[others], np.iinfo(np.int64).max)  # never looked up
        self.other_ranks = np.append(others, self.none)

    def keys_and_places(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A key for each pair, and its place in the table: the highest bits of a product."""
        keys = left << 32
        keys |= right
        mixed = keys.view(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
        mixed >>= np.uint64(64 - self.bits)
        return keys, mixed.view(np.int64)

    def look_up(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The rank of each pair of tokens (N,) int64, (N,) int64."""
        # mode="clip" only for speed: no place is out of range.
        keys, places = self.keys_and_places(left, right)
        ranks = self.ranks.take(places, mode="clip")
        missed = np.flatnonzero(self.keys.take(places, mode="clip") != keys)
        ranks[missed] = self.none
        again = missed[self.shared.take(places[missed], mode="clip")]
        at = self.other_keys.searchsorted(keys[again])
        found = self.other_keys[at] == keys[again]
        ranks[again] = np.where(found, self.other_ranks[at], self.none)
        return ranks


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
        all first ids are laid at once, then the rest of the longer rows."""
        numbers = numbers.astype(np.int64)  # or each `take` would
        lengths = self.lengths.take(numbers)
        ends = np.cumsum(lengths)
        ids, at = np.empty(ends[-1] if len(ends) else 0, self.ids.dtype), ends - lengths
        ids[at] = self.firsts.take(numbers)
        longer = np.flatnonzero(lengths > 1)
        more = lengths[longer] - 1
        before = np.cumsum(more) - more
        rest = np.arange(1, more.sum() + 1)
        froms = rest + np.repeat(self.starts[numbers[longer]] - before, more)
        ids[rest + np.repeat(at[longer] - before, more)] = self.ids.take(froms)
        return ids


def extended(array: np.ndarray, used: int, values: np.ndarray) -> np.ndarray:
    """`array` with `values` after its first `used` elements; when full, a larger copy of it."""
    end = used + len(values)
    if end > len(array):
        array = np.concatenate((array, np.zeros(end, array.dtype)))
    array[used:end] = values
    return array
