"""Byte-pair encoding of long texts: the merges and the ids of v4's tokenizer, some times faster.

v4's file has it in plain Python. Here it is in numpy and on all cores:

    words.py    splits texts into words, numbers them, counts them; splits.py: other splits
    pairs.py    learns merges: where pairs of tokens are, and which of them is the most frequent
    encoder.py  encodes: the ids of a word are found once, then looked up
    workers.py  shares texts among processes; worker.py is what they run
"""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from shared.fast_bpe.encoder import Encoder, Merger  # noqa: F401 - for v4
from shared.fast_bpe.pairs import FrequentPairs, LinkedWords, Pair
from shared.fast_bpe.words import WordCounts
from shared.fast_bpe.workers import crew, enough_for, shared_out
from shared.files import UserError
from shared.terminal import progress
from shared.text import END_OF_TEXT, PIECE, as_texts, utf8, whole_words

T = TypeVar("T")
LONG = 4_000_000  # bytes of text from which on all this is worth its while
LONG_RUN = 1_000  # bytes without a blank: plain Python goes through a word once for every merge


def is_long(path: str | Path) -> bool:
    """Whether the text in `path`, or one of its words, is so long that all this is worth it."""
    if os.path.getsize(path) > LONG:
        return True
    return max(map(len, Path(path).read_bytes().split()), default=0) > LONG_RUN


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For work that makes many small objects and keeps them: searching them, and all earlier ones,
    for garbage would take a quarter of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_garbage_collection()
def learn(
    texts: Iterable[str | bytes],
    n_merges: int,
    special_tokens: Iterable[str] = (),
    workers: int = 0,
    split: str = "gpt2",
) -> list[Pair]:
    """The merges of `texts`, which are not joined: `n_merges`, or fewer if no pairs are left. The
    tokens are the 256 bytes, then one for each merge; special tokens are not learned from.

    The merges are v2's: the most frequent pair comes first; among equals, the greatest by its
    bytes. But a merge changes only the counts of neighbouring pairs (delta-BPE), so only those are
    updated. Most pairs are rare and never merge: only those more frequent than `least` are kept;
    when none is left, `least` falls and all are recounted.
    """
    special_tokens = list(as_texts(special_tokens))
    if n_merges < 0:
        least = 256 + len(special_tokens)
        raise UserError(f"--vocab-size {least + n_merges} must be at least {least}")
    words = LinkedWords(*count_words(texts, special_tokens, workers, split))
    vocab, merges, least = [bytes([byte]) for byte in range(256)], [], 1 + words.total // 1000
    frequent = FrequentPairs([], least, vocab)
    for token in progress(range(256, 256 + n_merges), "merging"):
        while not (best := frequent.pop()) and least:
            least //= 10  # by 100: at 200 MB faster by 1%
            frequent = FrequentPairs(words.pairs(least).items(), least, vocab)
        if not best:
            break
        rarer, new = words.merge(*best, token)
        merges.append(best)
        vocab.append(vocab[best[0]] + vocab[best[1]])
        frequent.lower(rarer)
        frequent.add(new)
    return merges


def count_words(
    texts: Iterable[str | bytes],
    special_tokens: Iterable[str],
    workers: int = 0,
    split: str = "gpt2",
) -> tuple[list[bytes], list[int]]:
    """The distinct words of `texts`, which are not joined, and how often each occurs.

    Long texts are shared among `workers` processes, this one included; 0: one per core. The order
    of the words depends on that.
    """
    special_tokens = list(as_texts(special_tokens))
    pieces, workers = enough_for(workers, batches(texts))
    pieces = progress(pieces, "counting words", unit="MB", unit_scale=PIECE >> 20)
    here = WordCounts(special_tokens, split)
    with crew(workers - 1, WordCounts, special_tokens, split) as others:
        for _ in shared_out(here, "add", pieces, others):
            pass
        found = [here.found(), *(other.call("found") for other in others)]
    if len(found) == 1:
        return found[0]
    counts = {}
    for word, count in chain.from_iterable(zip(*one) for one in found):
        counts[word] = counts.get(word, 0) + count
    return list(counts), list(counts.values())


def batches(texts: Iterable[str | bytes]) -> Iterator[list[bytes]]:
    """The `texts` as UTF-8, in batches of about PIECE bytes."""
    batch, size = [], 0
    for text in map(utf8, as_texts(texts)):
        batch.append(text)
        size += len(text)
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    yield batch


def fast(tokenizer_class: type[T], workers: int = 0) -> type[T]:
    """A subclass of v4's `tokenizer_class` that learns the same merges and gives the same ids, but
    sooner for long texts, with `workers` processes; 0: one per core."""

    class Fast(tokenizer_class):
        @cached_property
        def encoder(self) -> Encoder:
            others = getattr(self, "others", ())  # what foreign tokenizers have in another way
            return Encoder(self.merges, self.special_tokens, self.split, *others)

        @classmethod
        def train(
            cls,
            texts: Iterable[str | bytes],
            vocab_size: int,
            special_tokens: Iterable[str] = (END_OF_TEXT,),
            split: str = "gpt2",
        ) -> T:
            special_tokens = list(dict.fromkeys(as_texts(special_tokens)))
            n_merges = vocab_size - 256 - len(special_tokens)
            merges = learn(texts, n_merges, special_tokens, workers, split)
            return cls(merges, special_tokens, split)

        def encode(self, text: str | bytes, special: bool = True) -> list[int]:
            return self.encoder.encode(text, special).tolist()

        def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
            found = self.encoder.encode_texts(batches(texts), workers, "encode_each")
            return [ids.tolist() for some in found for ids in some]

        def encode_pieces(self, texts: Iterable[str | bytes]) -> Iterator[np.ndarray]:
            pieces = whole_words(texts, self.special_tokens, self.split)
            return self.encoder.encode_texts(pieces, workers)

        def encode_iterable(self, texts: Iterable[str | bytes]) -> Iterator[int]:
            """In one process, which holds less text."""
            pieces = whole_words(texts, self.special_tokens, self.split)
            return chain.from_iterable(map(self.encode, pieces))

    return Fast


def sped_up(tokenizer: T, workers: int = 0) -> T:
    """A tokenizer of v4's with the same ids as the given one, of its class made `fast`."""
    parts = tokenizer.to_json()
    del parts["kind"]
    return fast(type(tokenizer), workers)(**parts)
