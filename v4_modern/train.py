"""v4: what today's models are made of, down to their loss and their optimizers.

New since v3 (sections 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13): delta-BPE with special tokens; token
files read lazily; RMSNorm, rotary positions, QK-norm, fused and grouped-query attention, SwiGLU, no
biases or dropout: the block of Qwen3; loss, optimizers, schedule and clipping from scratch; mixed
precision; cached generation.

    diff v3_alibi/train.py v4_modern/train.py
    python v4_modern/train.py

Expect about 1.65 bits per byte on `pydocs`, in two minutes on two CPU cores.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import chain
from math import cos, pi, sqrt
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

ROOT, VERSION = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent.name
sys.path.insert(0, str(ROOT))
from shared import command_line, distributed
from shared.corpora import END_OF_TEXT, Corpus, load_corpus, read_pieces
from shared.decoding import Reader
from shared.files import UserError, json_sha256, read_tokenizer, write_json
from shared.functions import nats_of, rms_norm
from shared.model_files import load_weights
from shared.model_table import print_model
from shared.pairs import LinkedWords, PairRanks, every_other, no_garbage_collection
from shared.run import Run
from shared.tokens import (
    cached_token_file,
    cached_tokenizer,
    random_windows,
    token_lengths,
    windows_in_order,
    write_token_file,
)
from shared.words import WordIds, whole_words
from shared.workers import count_words, encode_texts


# ---- 1. Config ----
@dataclass
class Config:
    """What a run depends on; every field is an option of the command line."""

    data: str = "pydocs"  # pydocs, tinystories, owt, wikitext, shakespeare, a text file or a folder
    out: str = str(ROOT / "runs" / VERSION)  # the folder of the run
    vocab_size: int = 4096  # tokens: 256 bytes, the merges, and <|endoftext|> (V)
    context_length: int = 128  # tokens the model looks back (T)
    width: int = 128  # channels of a token in the stream that all blocks read and add to (C)
    n_layers: int = 3  # blocks
    n_heads: int = 2  # attention heads a block (H)
    n_kv_heads: int = 2  # heads of keys and values (G), each for n_heads / n_kv_heads of queries
    head_size: int = 64  # channels of a head (D)
    feed_forward_size: int = 344  # channels inside the feed-forward
    rope_base: float = 10_000.0  # the slowest channels turn one radian in about so many tokens
    steps: int = 1250  # optimizer steps
    batch_size: int = 8  # windows of text at a time (B), of all processes together
    accumulation_steps: int = 1  # batches whose gradients make one step
    learning_rate: float = 0.02  # of AdamW (embedding, head, norms); the highest of a 1000-step run
    muon_learning_rate: float = 0.03  # of Muon (the matrices of the blocks), likewise
    weight_decay: float = 0.2  # times its rate, the share of each weight that a step takes off
    warmup_steps: int = 0  # steps in which the rate rises to its highest
    schedule: Literal["linear", "cosine"] = "linear"  # how it falls from there
    final_learning_rate: float = 0.0  # what it falls to, as a share of the highest
    clip_norm: float = 1.0  # longer gradients are cut to this length
    compile: bool = False  # fuse the model with torch.compile; the log says when that has paid
    evaluate_every: int = 100  # steps between looks at the validation text
    checkpoint_every: int = 1000  # steps between checkpoints
    workers: int = 0  # processes that turn text into tokens; 0: one a core
    seed: int = 0  # of everything random
    device: str = "auto"  # cpu, cuda, mps, or auto: the best this machine has
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of products; auto: as the device can
    init_from: str = ""  # a folder of export.py, whose model and tokenizer to begin with
    tensorboard: bool = False  # write event files, too: tensorboard --logdir shows them
    print_model: bool = False  # show what model and memory the options make, and end
    resume: bool = False  # go on from the checkpoint in --out
    sample: bool = False  # write text with the model in --out instead of training
    prompt: str = ""  # text to go on from
    temperature: float = 0.8  # 0: always the likeliest token; 1: as the model says
    top_k: int = 0  # draw among the k likeliest tokens only; 0: all
    top_p: float = 1.0  # draw among the likeliest that hold this share of probability; 1: all
    max_new_tokens: int = 300  # length of a sample

    def __post_init__(self) -> None:
        command_line.check_config(self)


# ---- 2. Tokenizer ----
class Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) over UTF-8 bytes, as in GPT-2.

    Ids: the 256 bytes, in the order of `first`, then a token for each merge in the order learned,
    then the special tokens, which stand for themselves in any text; where two overlap, the first
    counts, then the longest.
    Merges stay within words, so a text is cut into words first, as GPT-2 does (shared/words.py).
    """

    def __init__(
        self,
        merges: list[tuple[int, int]],
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        first: bytes = bytes(range(256)),
    ) -> None:
        self.merges, self.first = [(left, right) for left, right in merges], bytes(first)
        self.vocab = [bytes([byte]) for byte in self.first]
        for left, right in merges:
            self.vocab.append(self.vocab[left] + self.vocab[right])
        self.special_tokens = {}
        for text in dict.fromkeys(special_tokens):  # each once
            self.special_tokens[text] = len(self.vocab)
            self.vocab.append(text.encode("utf-8"))
        self.vocab_size = len(self.vocab)
        self.ranks = PairRanks(self.merges)
        self.words = WordIds(self.merge_words, self.special_tokens)

    @classmethod
    @no_garbage_collection()
    def train(
        cls,
        texts: Iterable[str | bytes],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        workers: int = 0,
    ) -> "Tokenizer":
        """Learn merges from `texts` until there are `vocab_size` tokens, or no pair is left.

        The most frequent pair first, of equals the greatest by its bytes: v2's merges. But a merge
        changes the counts of the pairs beside it alone (delta-BPE), so no others are counted again.
        The count of a pair in the heap is right or too high; if it is too high when its turn comes,
        it is put back. Most pairs are rare and never have a turn: the heap holds those more
        frequent than `least`; when it is empty, `least` falls, and all pairs are counted again.
        """
        special_tokens = list(dict.fromkeys(special_tokens))
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise UserError(f"--vocab-size {vocab_size} must be at least {vocab_size - n_merges}")
        words = LinkedWords(*count_words(texts, special_tokens, workers))
        counts, heap, merges, least = {}, [], [], 1 + words.total // 100
        order = [chr(255 - byte) + "\u0100" for byte in range(256)]  # sorts b before ab before a

        def entry(pair: tuple[int, int]) -> tuple:
            return -counts[pair], order[pair[0]], order[pair[1]], pair

        with tqdm(total=n_merges, desc="merging", leave=False) as bar:
            while len(merges) < n_merges and (heap or least):
                if not heap:
                    least //= 100  # by 30 is as fast, by 1000 slower
                    counts = words.pairs(least)
                    heap = [entry(pair) for pair in counts]
                    heapify(heap)
                    continue
                count, _, _, best = heappop(heap)
                if -count != counts[best]:  # it has fallen since
                    if counts[best] > least:
                        heappush(heap, entry(best))
                    continue
                token = len(order)
                merges.append(best)
                order.append(order[best[0]][:-1] + order[best[1]])
                rarer, new = words.merge(*best, token)
                for pair, times in rarer:
                    if pair in counts:
                        counts[pair] -= times
                for pair, times in new:
                    counts[pair] = times
                    heappush(heap, entry(pair))
                del counts[best]
                bar.update()
        return cls(merges, special_tokens)

    def merge_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all `words`, one word after the other, and how many each has, (words,).

        A word begins as its bytes. In each round every word merges the pair in it that was learned
        first (of equal ones the leftmost), until no word has one. All words lie in one array with
        `none` between them; a token stands where its first byte did (drawn in shared/pairs.py).
        In `pairs` the rank and the place of each make one number: a word's lowest merges next.
        """
        none, no_rank = self.vocab_size, len(self.merges)
        text = np.frombuffer(b"\0".join([b"", *words, b""]), np.uint8)
        ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)) + 1)
        starts = np.append(0, ends[:-1])
        ids, place = np.argsort(list(self.first))[text], np.arange(len(text))  # inverts `first`
        ids[0] = ids[ends] = none
        for word in np.flatnonzero(ends - starts > 128):
            long = ids[starts[word] + 1 : ends[word]]
            merged = self.merge_long(long)
            long[: len(merged)], long[len(merged) :] = merged, none
        before, after = place - 1, place + 1
        pairs = np.append(self.ranks.look_up(ids[:-1], ids[1:]), no_rank) << 32 | place
        while len(starts):
            best = np.minimum.reduceat(pairs, starts)  # of each word
            learned = np.flatnonzero(best < no_rank << 32)
            starts, best = starts[learned], best[learned]
            token, at = 256 + (best >> 32), best & 0xFFFFFFFF
            second = after[at]
            first, third = before[at], after[second]
            ids[at], ids[second], pairs[second] = token, none, no_rank << 32
            after[at], before[third] = third, at
            left, right = np.append(first, at), np.append(at, third)
            pairs[left] = self.ranks.look_up(ids[left], ids[right]) << 32 | left
        is_token = ids != none
        return ids[is_token], np.diff(np.cumsum(is_token)[ends], prepend=0)

    def merge_long(self, ids: np.ndarray) -> np.ndarray:
        """Merge in one word (N,): all pairs of the lowest rank at a time, from left to right."""
        while True:
            ranks = self.ranks.look_up(ids[:-1], ids[1:])
            if (best := ranks.min(initial=len(self.merges))) == len(self.merges):
                return ids
            at = np.flatnonzero(ranks == best)
            at = at[every_other(np.diff(at) == 1)]  # of a a a, the first two merge
            ids[at] = 256 + best
            ids = np.delete(ids, at + 1)

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `text`, (N,) uint32; a lone surrogate counts as U+FFFD."""
        return self.words.encode(text)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a lone surrogate counts as U+FFFD."""
        return self.encode_array(text).tolist()

    def encode_pieces(self, texts: Iterable[str], workers: int = 0) -> Iterator[np.ndarray]:
        """The ids of the `texts` joined, some at a time; the texts may be cut anywhere.

        Long ones are encoded by as many processes as `workers` says; 0: one a core.
        """
        return encode_texts(whole_words(texts, self.special_tokens), self.words, workers)

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """The ids of the `texts` joined, one by one; some megabytes of text are held."""
        return chain.from_iterable(ids.tolist() for ids in self.encode_pieces(texts, workers=1))

    def encode_file(self, source: str | Path, destination: str | Path, workers: int = 0) -> int:
        """Encode a text file into a token file that begins with `<|endoftext|>`; return its length.

        Both are streamed: a longer text needs no more memory.
        """
        start = [np.array([self.special_tokens[END_OF_TEXT]])]
        ids = chain(start, self.encode_pieces(read_pieces(source), workers))
        return write_token_file(destination, ids, self.vocab_size, json_sha256(self.to_json()))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 read as U+FFFD."""
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return self.vocab[token]

    def to_json(self) -> dict:
        parts = {"merges": self.merges, "special_tokens": list(self.special_tokens)}
        return {"kind": "delta-bpe", **parts, "first": list(self.first)}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer saved in `path`; UserError if it is damaged or of another version."""

        def build(saved: dict) -> "Tokenizer":
            return cls(saved["merges"], saved["special_tokens"], saved.get("first", range(256)))

        return read_tokenizer(path, "delta-bpe", build)


# ---- 3. Data ----
def load_data(config: Config) -> tuple[Tokenizer, Corpus, np.ndarray, np.ndarray]:
    """A tokenizer that knows the training text alone, the corpus, and the ids of both splits.

    The ids stay in memory-mapped files: training never holds the corpus.
    """
    corpus = load_corpus(config.data)
    tokenizer = command_line.resumed_tokenizer(Tokenizer, config)
    tokenizer = tokenizer or cached_tokenizer(
        Tokenizer,
        (corpus.sha256, config.vocab_size),
        lambda: Tokenizer.train(
            whole_words(read_pieces(corpus.train)), config.vocab_size, workers=config.workers
        ),
    )
    splits = (
        cached_token_file(corpus, path, tokenizer, config.workers)
        for path in (corpus.train, corpus.val)
    )
    return tokenizer, corpus, *splits


def get_batch(tokens: np.ndarray, step: int, config: Config) -> tuple[Tensor, Tensor]:
    """Random windows of text, and the same a token later, to be predicted: (B, T) each.

    They depend on the seed and the step alone: a resumed run sees what it would have seen.
    """
    generator = np.random.default_rng((config.seed, step))
    windows = random_windows(tokens, config.batch_size, config.context_length + 1, generator)
    return windows[:, :-1], windows[:, 1:]


# ---- 4. Model: norm ----
class Norm(nn.Module):
    """Root mean square normalization (Zhang and Sennrich 2019): each token's channels to a mean
    square of 1; unlike in LayerNorm, no mean is taken off and no bias added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return rms_norm(x, self.weight.type_as(x), eps=1e-6)


# ---- 5. Model: position ----
class Position(nn.Module):
    """Rotary positions (RoPE, Su et al. 2021, section 3.2), as in v2 and in Qwen3.

    The angles are the same in all blocks, so they are made once for a batch.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.head_size % 2:
            raise UserError(f"--head-size {config.head_size} must be even: channels turn in pairs")
        self.n_heads = config.n_heads
        exponents = torch.arange(0, config.head_size, 2) / config.head_size
        self.register_buffer("frequencies", config.rope_base**-exponents, persistent=False)

    def forward(self, first: int, T: int) -> tuple[Tensor, Tensor]:
        """The `turn` of T tokens from place `first` on: cosines and sines, (T, H, D) each, half of
        the sines negated for `rotate`. Heads are alike: repeated in memory, they are faster."""
        t = torch.arange(first, first + T, device=self.frequencies.device)
        angles = (t[:, None] * self.frequencies)[:, None].repeat(1, self.n_heads, 1)  # (T, H, D/2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, T, H, D), turned by position; channel i pairs with i + D/2."""
    cos, sin = (each[:, : x.shape[2]] for each in turn)  # keys may have fewer heads
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).type_as(x)


# ---- 6. Model: attention ----
class Cache:
    """The keys and values that one block has computed, so that each token is read once."""

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)
        self.length = 0  # tokens

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new ones, (B, G, T, D) each, and return all."""
        if self.length:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values, self.length = keys, values, keys.shape[2]
        return keys, values


class Attention(nn.Module):
    """Causal self-attention in which heads may share keys and values (Ainslie et al. 2023), with
    queries and keys normalized before they are compared (QK-norm, Henry et al. 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise UserError(
                f"--n-kv-heads {config.n_kv_heads} must divide --n-heads {config.n_heads}"
            )
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_size = config.head_size
        inner, inner_kv = (n * config.head_size for n in (config.n_heads, config.n_kv_heads))
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner_kv, bias=False)
        self.value = nn.Linear(config.width, inner_kv, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)
        self.query_norm = Norm(config.head_size)
        self.key_norm = Norm(config.head_size)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); each token sees itself and those before it.

        With a `cache`, also the tokens in it; it then holds these, too. More than one token at a
        time may be read only into an empty one.
        """
        B, T, _ = x.shape
        q = self.query(x).view(B, T, self.n_heads, self.head_size)  # (B, T, H, D)
        k = self.key(x).view(B, T, self.n_kv_heads, self.head_size)  # (B, T, G, D)
        v = self.value(x).view(B, T, self.n_kv_heads, self.head_size).transpose(1, 2)
        q = rotate(self.query_norm(q), turn).transpose(1, 2)  # (B, H, T, D)
        k = rotate(self.key_norm(k), turn).transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = F.scaled_dot_product_attention(  # from scores to sum in one (Dao et al. 2022)
            q, k, v, is_causal=T > 1, enable_gqa=self.n_heads != self.n_kv_heads
        )
        return self.output(y.transpose(1, 2).reshape(B, T, -1))


# ---- 7. Model: feed-forward ----
class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): what goes up is let through by a gate, for each token alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.feed_forward_size, bias=False)
        self.up = nn.Linear(config.width, config.feed_forward_size, bias=False)
        self.down = nn.Linear(config.feed_forward_size, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


# ---- 8. Model: language model ----
class Block(nn.Module):
    """Attention, then feed-forward, each reading a normalized copy and adding to the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), turn, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Module):
    """A decoder-only transformer of Qwen3's shape (Yang et al. 2025, section 2).

    What adds to the stream starts at zero, so that at first every block passes its input on. The
    head starts at zero, too, so that at first every token is as likely as any other.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = Position(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = Norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                limit = 0.6 * sqrt(3 / parameter.shape[1])  # deviation 0.6 / sqrt(fan in)
                nn.init.uniform_(parameter, -limit, limit)
        nn.init.zeros_(self.head.weight)

    def forward(
        self, ids: Tensor, caches: list[Cache] | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Ids (B, T) -> logits (B, T, V) of the token that follows each, or, for `targets` (B, T),
        their mean loss, (), made here so that it is compiled, too. With `caches`, one a block, the
        ids go on from those that the caches have seen."""
        x = self.embedding(ids)  # (B, T, C)
        turn = self.position(caches[0].length if caches else 0, ids.shape[1])
        for i, block in enumerate(self.blocks):
            x = block(x, turn, caches[i] if caches else None)
        logits = self.head(self.norm(x))
        return logits if targets is None else cross_entropy(logits.float(), targets).mean()


# ---- 9. Optimizer and schedule ----
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats for each of the `targets` (...) under `logits` (..., V), which it overwrites:
    log sum exp(x) - x[t], which is -log softmax(x)[t]; its gradient is in shared/functions.py."""
    return nats_of(logits, targets)


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    As in torch the decay is times the rate. `_foreach` functions work on all tensors of a list.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p] |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            grads = [p.grad for p in parameters]
            means = [self.state[p]["mean"] for p in parameters]
            squares = [self.state[p]["square"] for p in parameters]
            (beta1, beta2), lr = group["betas"], group["lr"]
            group["step"] += 1
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            # Both averages began at 0; this makes up for it (Kingma and Ba 2015, section 3).
            correction1, correction2 = (1 - beta ** group["step"] for beta in (beta1, beta2))
            scales = torch._foreach_sqrt(squares)
            torch._foreach_add_(scales, group["eps"] * sqrt(correction2))
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
            rate = lr * sqrt(correction2) / correction1
            torch._foreach_addcdiv_(parameters, means, scales, -rate)


# a, b, c of each step: the best after the steps before it, for singular values above 0.006.
NEWTON_SCHULZ = (
    (8.25684, -24.26528, 17.95890),
    (3.85496, -2.87841, 0.55436),
    (3.04250, -2.27953, 0.48645),
)


def orthogonalize(x: Tensor, steps: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ) -> Tensor:
    """Matrices (N, rows, columns) with their singular values moved to about 1: to 0.56 to 1.44
    those above 0.006 of the matrix's norm, the root of the sum of all their squares.

    Newton-Schulz iteration, each step with the polynomial that errs least (Polar Express, Amsel et
    al. 2025): p(x x') x, where p(g) = a + b g + c g^2. Its factors p depend on g = x x' alone,
    which is smaller than x: they are multiplied first (there: for rectangular matrices).
    """

    def p(g: Tensor, a: float, b: float, c: float) -> Tensor:
        y = torch.baddbmm(g, g, g, beta=b, alpha=c)
        y.diagonal(dim1=-2, dim2=-1).add_(a)
        return y

    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value is above 1
    g = x @ x.mT
    product = factor = p(g, *steps[0])
    for step in steps[1:]:
        g = factor @ g @ factor  # x x' after one more step
        factor = p(g, *step)
        product = factor @ product
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024): for matrices that multiply hidden vectors.

    A gradient moves a few directions much and the others hardly; here all move alike. Matrices of
    one shape are worked on together; each must have a gradient.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for (rows, columns), parameters in shapes.items():
                grads = torch.stack([p.grad for p in parameters])  # (N, rows, columns)
                state = self.state[parameters[0]]  # of all that have its shape
                if "means" not in state:
                    state["means"] = torch.zeros_like(grads)
                means = state["means"].lerp_(grads, 1 - group["momentum"])
                ahead = grads.lerp_(means, group["momentum"])  # Nesterov's
                updates = distributed.shared_out(orthogonalize, ahead).unbind()
                scale = sqrt(max(1, rows / columns))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)


def make_optimizers(model: LanguageModel, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embedding, head and the norms' gains.

    One rate of Muon serves matrices of all sizes. The head's rate falls with the width beyond 128,
    for in each logit so many channels add up (Yang et al. 2022, table 3). Gains decay, too.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [model.embedding.weight, *(p for p in model.parameters() if p.ndim == 1)]
    head = {"params": [model.head.weight], "scale": min(1, 128 / config.width)}
    rate, decay = config.learning_rate, config.weight_decay
    return [
        AdamW([{"params": others}, head], rate, betas=(0.8, 0.95), weight_decay=decay),
        Muon(matrices, config.muon_learning_rate, weight_decay=decay),
    ]


def learning_rate(step: int, config: Config) -> float:
    """The rate of AdamW at `step`: up in a line for `warmup_steps`, then down by `schedule`. Its
    highest is `config.learning_rate` in a run of 1000 steps; 16 times as many steps halve it."""
    highest = config.learning_rate * (1000 / config.steps) ** 0.25
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else (1 + cos(pi * done)) / 2
    lowest = config.final_learning_rate
    return highest * (lowest + (1 - lowest) * left)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Shorten all gradients together to length `max_norm` if they are longer; return their length
    (Pascanu et al. 2013, algorithm 1)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack(torch._foreach_norm(grads)).norm()
    torch._foreach_mul_(grads, (max_norm / (length + 1e-6)).clamp(max=1))
    return length


# ---- 10. Evaluation ----
@torch.no_grad()
def evaluate(
    model: LanguageModel, tokens: np.ndarray, tokenizer: Tokenizer, length: int, batch: int = 64
) -> tuple[float, int]:
    """How well `model` predicts `tokens` (N,): the nats it spends in all, and the bytes they hold.

    The first token is given; each other is predicted once, in windows of `length`, `batch` at a
    time. Special tokens count on neither side. `model` is left in evaluation mode.
    """
    model.eval()
    device, lengths, nats, n_bytes = next(model.parameters()).device, token_lengths(tokenizer), 0, 0
    for inputs, targets in windows_in_order(tokens, length, batch):  # (B, T), (B*T,)
        logits = model.forward(inputs.to(device)).flatten(0, 1).float()  # (B*T, V), uncompiled
        losses = cross_entropy(logits, targets.to(device)).cpu()
        nats += losses[lengths[targets] > 0].sum().item()
        n_bytes += lengths[targets].sum().item()
    return nats, n_bytes


# ---- 11. Sampling ----
def draw(logits: Tensor, config: Config, generator: torch.Generator) -> int:
    """Draw an id from `logits` (V,): temperature, top-k, top-p (Holtzman et al. 2020, 3.1)."""
    if config.temperature == 0:
        return int(logits.argmax())
    p = F.softmax((logits - logits.max()).float().cpu() / config.temperature, dim=-1)  # never +inf
    if config.top_k or config.top_p < 1:
        ordered, ids = p.sort(descending=True)
        ordered[config.top_k or len(p) :] = 0
        ordered[ordered.cumsum(0) - ordered >= config.top_p * ordered.sum()] = 0
        p = torch.empty_like(p).scatter(0, ids, ordered)  # the likeliest token always stays
    ends = p.cumsum(0)  # p[i] is what lies between ends[i - 1] and ends[i]
    return int(torch.searchsorted(ends, ends[-1] * torch.rand(1, generator=generator), right=True))


@torch.inference_mode()
def generate(model: LanguageModel, ids: list[int], config: Config, stop: int) -> Iterator[int]:
    """Go on from `ids` by up to `max_new_tokens`; each token is read once, then kept in caches.

    At most `context_length` tokens are remembered. When the caches are full, the older half is
    dropped and the newer read again, for its keys and values were made from what is gone.
    """
    model.eval()
    ids, read = list(ids), Reader(model)  # on a CPU it reads single tokens in numpy
    generator = torch.Generator().manual_seed(config.seed)  # leaves the training's alone
    caches, unread = [Cache() for _ in model.blocks], ids[-config.context_length :]
    for _ in range(config.max_new_tokens):
        if caches[0].length + len(unread) > config.context_length:
            caches = [Cache() for _ in model.blocks]
            unread = ids[-max(1, config.context_length // 2) :]
        ids.append(draw(read(unread, caches), config, generator))
        if ids[-1] == stop:
            return
        yield ids[-1]
        unread = ids[-1:]


# ---- 12. Checkpoint ----
def save_checkpoint(run: Run) -> None:
    """Write all that `run` needs to go on; the checkpoint before stays until this one is whole."""
    run.write_checkpoint(run.model, *run.optimizers)


def load_checkpoint(run: Run) -> None:
    """Go back to where `run` was saved; UserError if that is damaged or of another run."""
    run.read_checkpoint(run.model, *run.optimizers)


# ---- 13. Training loop ----
def mixed_precision(device: torch.device, config: Config) -> AbstractContextManager:
    """Matrix products, and what lies between two, in `config.dtype`. Weights, residual stream and
    loss are float32, or small changes would be lost (Micikevicius et al. 2018, section 3.1)."""
    dtype = command_line.pick_dtype(config.dtype, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def training_step(run: Run, tokens: np.ndarray, config: Config) -> Tensor:
    """Move the weights once against the gradient of the batches' loss; return that, (), still on
    the device: to read it is to wait. Of several processes, each has a share of the batch."""
    total, batches = 0.0, config.accumulation_steps
    run.model.zero_grad()
    for batch in range(run.step * batches, (run.step + 1) * batches):
        inputs, targets = (
            distributed.my_share(ids, run.device) for ids in get_batch(tokens, batch, config)
        )
        last = (batch + 1) % batches == 0
        with mixed_precision(run.device, config), distributed.averaging(run.replica, now=last):
            loss = run.replica.train()(inputs, targets=targets) / batches
        loss.backward()
        total += loss.detach()
    clip_grad_norm(run.model.parameters(), config.clip_norm)
    rate = learning_rate(run.step, config)
    adamw, muon = run.optimizers
    for optimizer, ratio in ((adamw, 1), (muon, config.muon_learning_rate / config.learning_rate)):
        for group in optimizer.param_groups:
            group["lr"] = rate * ratio * group.get("scale", 1)
        with mixed_precision(run.device, config):  # of Muon's products
            optimizer.step()
    return total


def train(config: Config) -> dict:
    """Train a model, leave the run in `config.out`, and return its summary."""
    distributed.join(config.batch_size, command_line.pick_device(config.device))
    tokenizer, corpus, train_tokens, val_tokens = distributed.in_turn(lambda: load_data(config))
    config = replace(config, vocab_size=tokenizer.vocab_size)
    get_batch(train_tokens, 0, config)  # too short a text is refused here, before anything is lost
    torch.manual_seed(config.seed)
    model = LanguageModel(config)
    run = Run(VERSION, config, tokenizer, model, make_optimizers(model, config), corpus)
    if config.resume:
        load_checkpoint(run)
    elif config.init_from:
        load_weights(model, config.init_from)
    with run:
        while True:
            if run.checkpoint_is_due():
                save_checkpoint(run)
            if run.evaluation_is_due():
                part, T, B = run.part_to_score(val_tokens), config.context_length, config.batch_size
                B //= distributed.processes()  # more may not fit
                run.log_scores(part, *evaluate(model, part, tokenizer, T, B))
            if run.is_done():
                break
            if run.compile_is_due():
                model.compile()
            started = perf_counter()
            loss = training_step(run, train_tokens, config)
            run.log_step(loss, learning_rate(run.step, config), perf_counter() - started)
    return run.finish(generate, len(train_tokens))


# ---- 14. Command line ----
def main(arguments: list[str] | None = None) -> None:
    """Train, or write with what was trained, as `arguments` (None: the process's own) say."""
    with command_line.clear_errors():
        config = command_line.parse(Config, arguments)
        if config.print_model:
            print_model(config, load_data, LanguageModel, make_optimizers)
        elif config.sample:
            tokenizer = Tokenizer.load(Path(config.out) / "tokenizer.json")
            run = Run(VERSION, config, tokenizer, LanguageModel(config))
            load_checkpoint(run)
            run.answer(generate)
        else:
            train(config)


if __name__ == "__main__":
    main()
