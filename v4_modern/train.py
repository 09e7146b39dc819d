"""v4: what today's models are made of, down to their loss and their optimizers.

New since v3 (sections 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13): v2's merges again, by delta-BPE, with
special tokens; memory-mapped token files; Qwen3's block (RMSNorm, v2's rotary positions, QK-norm,
grouped-query attention, SwiGLU, no biases or dropout); loss, optimizers, schedule, gradient
clipping from scratch; mixed precision; generation with a key-value cache; counts to start from.

    diff v3_alibi/train.py v4_modern/train.py
    python v4_modern/train.py

Expect about 1.59 bits per byte on `pydocs`, in two minutes on two CPU cores.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import chain
from math import cos, pi, sqrt
from pathlib import Path
from time import perf_counter
from typing import Literal

ROOT, VERSION = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent.name
sys.path.insert(0, str(ROOT))
from shared import fast_bpe
from shared.corpora import END_OF_TEXT, Corpus, load_corpus, well_formed
from shared.fast_bpe.encoder import Merger
from shared.files import UserError, checked_merges, read_tokenizer, write_json
from shared.model_table import build, print_model
from shared.reading import read_pieces
from shared.splits import SPLITS
from shared.terminal import progress
from shared.text import as_texts, special_pattern, tokens_of, whole_words
from shared.tokens import (
    cached_tokenizer,
    count_pairs,
    mapped_splits,
    random_windows,
    token_lengths,
    windows_in_order,
)
from v4_modern import command_line, parallel
from v4_modern.command_line import parse
from v4_modern.model_files import load_weights
from v4_modern.run import Run
from v4_modern.tokenizer_files import load_foreign

import numpy as np
import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn


# ---- 1. Config ----
@dataclass
class Config:
    """The settings of a run; every field is also a command-line option."""

    data: str = "pydocs"  # pydocs, tinystories, owt, wikitext, shakespeare, a file, folder, pattern
    text_field: str = "text"  # where documents are in .jsonl and .parquet files
    out: str = str(ROOT / "runs" / VERSION)  # folder for the run's files
    vocab_size: int = 4096  # tokens: 256 bytes, the merges, and <|endoftext|> (V)
    context_length: int = 128  # tokens per window: how far back the model looks (T)
    width: int = 128  # channels of the residual stream, which every block reads and adds to (C)
    n_layers: int = 3  # transformer blocks
    n_heads: int = 2  # attention heads per block (H)
    n_kv_heads: int = 2  # key/value heads (G), each shared by n_heads / n_kv_heads query heads
    head_size: int = 64  # channels per head (D); heads need not add up to the width
    feed_forward_size: int = 344  # hidden channels of the feed-forward layer
    tie_head: bool = False  # the head's weights are the embedding's, as in small models of Qwen3
    rope_base: float = 10_000.0  # the slowest channels turn one radian in about this many tokens
    steps: int = 1250  # optimizer steps
    batch_size: int = 8  # windows of text per batch (B), over all processes
    accumulation_steps: int = 1  # batches per optimizer step (gradient accumulation)
    learning_rate: float = 0.02  # for AdamW (embedding, head, norms): peak of a 1000-step run
    muon_learning_rate: float = 0.03  # for Muon (the blocks' weight matrices), likewise
    weight_decay: float = 0.2  # each step shrinks each weight by this times its learning rate
    warmup_steps: int = 0  # steps of linear warmup to the peak learning rate
    schedule: Literal["linear", "cosine"] = "linear"  # how it decays from there
    final_learning_rate: float = 0.0  # where the decay ends, as a fraction of the peak
    clip_norm: float = 1.0  # gradients with a larger norm are scaled down to it
    compile: bool = False  # use torch.compile; the log says after how many steps it pays off
    evaluate_every: int = 100  # steps between evaluations on the validation text
    checkpoint_every: int = 1000  # steps between checkpoints
    workers: int = 0  # processes for tokenizing a long text; 0: one per core
    seed: int = 0  # random seed
    device: str = "auto"  # cpu, cuda, mps, or auto: the best available
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matmuls; auto: bfloat16 if native
    split: Literal["gpt2", "gpt4", "gpt4o", "llama3", "qwen", "own"] = "gpt2"  # whose words merge
    tokenizer: str = ""  # file of a tokenizer to use, ours or another; without it, train one
    init_from: str = ""  # folder written by export.py: start from its model and tokenizer
    tensorboard: bool = False  # also write event files for tensorboard --logdir
    print_model: bool = False  # print parameters, FLOPs and memory for these options, then exit
    resume: bool = False  # continue from the checkpoint in --out
    sample: bool = False  # generate text with the model in --out instead of training
    score: str = ""  # file, folder or pattern to score with the model in --out instead of training
    best: bool = False  # sample or score with the weights of the best evaluation, not the last
    prompt: str = ""  # text to continue
    temperature: float = 0.8  # 0: always the most likely token; 1: the model's own probabilities
    top_k: int = 0  # sample from the k most likely tokens only; 0: all
    top_p: float = 1.0  # sample from the most likely tokens with this total probability; 1: all
    max_new_tokens: int = 300  # maximum length of a sample

    def __post_init__(self) -> None:
        command_line.check_config(self)


# ---- 2. Tokenizer ----
class Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) over UTF-8 bytes, as in GPT-2.

    Ids: the 256 bytes, then a token per merge in the order learned, then the special tokens, which
    are found in any text (of two that overlap, the one that starts first, then the longest). Merges
    never cross words, so a text is first split with GPT-2's pattern, or with another of SPLITS.
    """

    pattern = regex.compile(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    most_words = 1 << 18  # whose ids are kept: rare ones must not fill the memory

    def __init__(
        self,
        merges: list[tuple[int, int]],
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        split: str = "gpt2",
    ) -> None:
        self.split = split
        self.pattern = self.pattern if split == "gpt2" else regex.compile(SPLITS[split])
        self.merges = checked_merges(merges)
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.vocab = [bytes([byte]) for byte in range(256)]
        for left, right in self.merges:
            self.vocab.append(self.vocab[left] + self.vocab[right])
        special_tokens = dict.fromkeys(as_texts(special_tokens))  # without duplicates
        self.special_tokens = {text: i for i, text in enumerate(special_tokens, len(self.vocab))}
        self.vocab += [text.encode("utf-8") for text in special_tokens]
        self.special = special_pattern(special_tokens)
        self.vocab_size = len(self.vocab)
        self.cache: dict[str, list[int]] = {}  # word -> its ids

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        split: str = "gpt2",
    ) -> "Tokenizer":
        """Learn merges from `texts` until there are `vocab_size` tokens, or no pairs are left.

        The most frequent pair comes first; among equals, the greatest by its bytes. A merge changes
        few pairs, so all are counted only once, and the difference that each merge makes is added
        (delta-BPE). Of three times `the` and twice `hen`, h and e merge first:

            before    t h e    h e n    pairs    h e: 5    t h: 3    e n: 2
            after     t he     he n     pairs    t he: 3   he n: 2
        """
        empty = cls([], special_tokens, split)  # without merges
        n_merges = vocab_size - empty.vocab_size
        if n_merges < 0:
            raise UserError(f"--vocab-size {vocab_size} must be at least {empty.vocab_size}")
        parts = (p for t in as_texts(texts) for p in empty.special.split(well_formed(t))[::2])
        counts = Counter(w for part in parts for w in empty.pattern.findall(part))
        words = [(list(word.encode("utf-8")), count) for word, count in counts.items()]
        vocab, merges = [bytes([byte]) for byte in range(256)], []
        pairs, where = Counter(), defaultdict(set)  # how often a pair occurs, and in which words
        for i, (ids, count) in enumerate(words):
            for pair in zip(ids, ids[1:]):
                pairs[pair] += count
                where[pair].add(i)
        heap = [cls.priority(pair, count, vocab) for pair, count in pairs.items()]
        heapify(heap)
        with progress(total=256 + n_merges, initial=256, desc="merging") as bar:
            while heap and len(merges) < n_merges:
                minus_count, *_, best = heappop(heap)
                if pairs[best] < -minus_count:  # merges made it rarer since: its turn is later
                    if pairs[best]:
                        heappush(heap, cls.priority(best, pairs[best], vocab))
                    continue
                changes = Counter()
                for i in where.pop(best):  # it was there; where it no longer is, nothing merges
                    ids, count = words[i]
                    merged = cls.merge(ids, best, len(vocab))
                    words[i] = merged, count
                    for pair in zip(ids, ids[1:]):
                        changes[pair] -= count
                    for pair in zip(merged, merged[1:]):
                        changes[pair] += count
                        where[pair].add(i)
                merges.append(best)
                vocab.append(vocab[best[0]] + vocab[best[1]])
                for pair, change in changes.items():  # 0 but beside the new token
                    pairs[pair] += change
                    if change > 0:
                        heappush(heap, cls.priority(pair, pairs[pair], vocab))
                bar.update()
        return cls(merges, empty.special_tokens, split)

    @staticmethod
    def priority(pair: tuple[int, int], count: int, vocab: list[bytes]) -> tuple:
        """What a heap, whose least element comes first, sorts a pair by: all signs are turned. The
        1 after the bytes puts `ab` before `a`."""
        left, right = ([*(-byte for byte in vocab[i]), 1] for i in pair)
        return -count, left, right, pair

    @staticmethod
    def merge(ids: list[int], pair: tuple[int, int], token: int) -> list[int]:
        """`ids` with each `pair`, from left to right, replaced by `token`."""
        if pair[0] not in ids:
            return ids
        merged, i = [], 0
        while i < len(ids):
            if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
                merged.append(token)
                i += 2
            else:
                merged.append(ids[i])
                i += 1
        return merged

    def encode_word(self, word: str) -> list[int]:
        """The ids of one word: its bytes, merged in the order learned."""
        ids = list(word.encode("utf-8"))
        if len(ids) > fast_bpe.LONG_RUN:  # each of the rounds below goes through the whole word
            return Merger(self.merges)([bytes(ids)])[0].tolist()
        while len(ids) > 1:
            best = min(zip(ids, ids[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            ids = self.merge(ids, best, 256 + self.ranks[best])
        return ids

    def encode(self, text: str | bytes, special: bool = True) -> list[int]:
        """The ids of `text`; a lone surrogate is encoded as U+FFFD. If not `special`, what looks
        like special tokens is ordinary text, as it should be in other people's."""
        text, ids = well_formed(text), []
        for i, part in enumerate(self.special.split(text) if special else [text]):  # odd: special
            ids += [self.special_tokens[part]] if i % 2 else self.encode_part(part)
        return ids

    def encode_part(self, text: str) -> list[int]:
        """The ids of `text`, which has no special tokens."""
        ids = []
        for word in self.pattern.findall(text):
            if (of_word := self.cache.get(word)) is None:
                if len(self.cache) >= self.most_words:
                    self.cache.clear()
                of_word = self.cache[word] = self.encode_word(word)
            ids += of_word
        return ids

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """The ids of each of the `texts`."""
        return [self.encode(text) for text in as_texts(texts)]

    def encode_pieces(self, texts: Iterable[str | bytes]) -> Iterator[Sequence[int]]:
        """The ids of the joined `texts` (bytes: UTF-8), which may be split anywhere, in pieces."""
        return map(self.encode, whole_words(texts, self.special_tokens, self.split))

    def encode_iterable(self, texts: Iterable[str | bytes]) -> Iterator[int]:
        """The same one by one; only a few megabytes of text are held."""
        return chain.from_iterable(self.encode_pieces(texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(tokens_of(self.vocab, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return tokens_of(self.vocab, [token])[0]

    def to_json(self) -> dict:
        parts = {"merges": self.merges, "special_tokens": list(self.special_tokens)}
        return {"kind": "delta-bpe", **parts, "split": self.split}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer in `path`, ours or another's; UserError if there is neither."""
        return load_foreign(cls, path) or read_tokenizer(path, "delta-bpe", cls)


# ---- 3. Data ----
def load_data(config: Config) -> tuple[Tokenizer, Corpus, np.ndarray, np.ndarray]:
    """A tokenizer trained on the training text only, the corpus, and the ids of both splits.

    The ids stay in memory-mapped files, so training never holds the whole corpus in memory.
    """
    tokenizer = command_line.given_tokenizer(Tokenizer, config)
    corpus = load_corpus(config.data, config.text_field, tokenizer)
    is_long, vocab_size = fast_bpe.is_long(corpus.train), config.vocab_size
    kind = fast_bpe.fast(Tokenizer, config.workers) if is_long else Tokenizer  # alike but for speed
    tokenizer = tokenizer or cached_tokenizer(
        kind,
        (corpus.sha256, vocab_size, config.split),
        lambda: kind.train(whole_words(read_pieces(corpus.train)), vocab_size, split=config.split),
    )
    encoder = fast_bpe.sped_up(tokenizer, config.workers) if is_long else tokenizer
    return tokenizer, corpus, *mapped_splits(corpus, encoder)


def get_batch(tokens: np.ndarray, step: int, config: Config) -> tuple[Tensor, Tensor]:
    """Random windows of text and, as targets, the same windows a token later: (B, T) each.

    They depend only on the seed and the step, so a resumed run sees the same batches.
    """
    generator = np.random.default_rng((config.seed, step))
    windows = random_windows(tokens, config.batch_size, config.context_length + 1, generator)
    return windows[:, :-1], windows[:, 1:]


# ---- 4. Model: norm ----
class Norm(nn.Module):
    """Root mean square normalization (Zhang and Sennrich 2019): gives each token's channels a mean
    square of 1; unlike LayerNorm, it subtracts no mean and adds no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C). Squared in float32: in 16 bits, squares overflow or are coarse."""
        scale = (x.float().square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()  # (..., 1)
        return (x * scale * self.weight).type_as(x)


# ---- 5. Model: position ----
class Position(nn.Module):
    """Tells the model where a token is: to attention alone, earlier tokens are an unordered set.

    There are three places to do so: add to the embeddings, rotate queries and keys, or add to the
    attention scores. This version rotates queries and keys (RoPE, Su et al. 2021, section 3.2),
    each pair of channels by an angle proportional to the position: scores then depend on the
    distance between two tokens, not on where they are.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.head_size % 2:
            raise UserError(f"--head-size {config.head_size} must be even: channels turn in pairs")
        exponents = torch.arange(0, config.head_size, 2) / config.head_size
        self.register_buffer("frequencies", config.rope_base**-exponents, persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings (B, T, C), unchanged."""
        return x

    def rotate(self, x: Tensor, first: int = 0) -> Tensor:
        """Queries or keys (B, T, H, D) of tokens from position `first` on, rotated by position;
        channel i pairs with i + D/2."""
        t = torch.arange(first, first + x.shape[1], device=x.device)
        angles = t[:, None, None] * self.frequencies  # (T, 1, D/2), the same in all heads
        cos, sin = angles.cos(), angles.sin()
        left, right = x.chunk(2, dim=-1)  # (B, T, H, D/2)
        y = torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)
        return y.type_as(x)  # not float32 where x is in 16 bits

    def bias(self, T: int, device: torch.device) -> Tensor:
        """The mask added to the scores, (T, T): -inf where a key comes after its query."""
        return torch.full((T, T), float("-inf"), device=device).triu(1)


# ---- 6. Model: attention ----
class Cache:
    """The keys and values that one block has computed, so that each token is processed once."""

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)
        self.length = 0  # tokens

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values, (B, G, T, D) each; return all."""
        if self.length:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values, self.length = keys, values, keys.shape[2]
        return keys, values


class Attention(nn.Module):
    """Causal grouped-query attention: heads may share keys and values (Ainslie et al. 2023).
    Queries and keys are normalized before they are compared (QK-norm, Henry et al. 2020). Positions
    must come by rotation: fused, or with a cache, no other bias than the causal mask is added."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        H, G = config.n_heads, config.n_kv_heads
        if H % G:
            raise UserError(f"--n-kv-heads {G} must divide --n-heads {H}")
        self.group, self.head_size = H // G, config.head_size  # query heads to each of the others
        inner, inner_kv = H * config.head_size, G * config.head_size
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner_kv, bias=False)
        self.value = nn.Linear(config.width, inner_kv, bias=False)
        self.output = nn.Linear(inner, config.width, bias=False)
        self.query_norm, self.key_norm = Norm(config.head_size), Norm(config.head_size)

    def forward(self, x: Tensor, position: Position, cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); each token sees itself and those before it.

        With a `cache`, tokens also see those in it and are then added to it. Several tokens at
        once are allowed only while it is empty.
        """
        B, T, _ = x.shape
        q = self.query(x).view(B, T, -1, self.head_size)  # (B, T, H, D)
        k = self.key(x).view(B, T, -1, self.head_size)  # (B, T, G, D)
        v = self.value(x).view(B, T, -1, self.head_size)  # (B, T, G, D)
        first = 0 if cache is None else cache.length
        q = position.rotate(self.query_norm(q), first)
        k = position.rotate(self.key_norm(k), first)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # S tokens, more than T
        if x.is_cpu and 1 < T <= 512:  # written out; longer, the scores would take much memory
            k, v = (part.repeat_interleave(self.group, dim=1) for part in (k, v))
            scores = (q / self.head_size**0.5) @ k.mT  # (B, H, T, S)
            weights = F.softmax(scores + position.bias(T, x.device), dim=-1)
            y = weights @ v
        else:  # the same, fused (Dao et al. 2022): faster on a GPU; a single token sees all keys
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=self.group > 1)
        return self.output(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, H*D)


# ---- 7. Model: feed-forward ----
class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): an up projection multiplied by a SiLU gate, applied per token."""

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
    """Attention, then feed-forward: each reads a normalized copy of the stream and adds to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, position: Position, cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), position, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Module):
    """A decoder-only transformer with Qwen3's architecture (Yang et al. 2025, section 2).

    Whatever adds to the stream starts at zero, so that initially every block is the identity. The
    head starts at zero, too: all tokens are equally likely until counts or training tell otherwise.
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
                limit = 0.6 * sqrt(3 / parameter.shape[1])  # standard deviation 0.6 / sqrt(fan_in)
                nn.init.uniform_(parameter, -limit, limit)
        nn.init.zeros_(self.head.weight)
        if config.tie_head:  # (Press and Wolf 2017); so small that no token predicts itself
            self.head.weight = nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, caches: list[Cache] | None = None
    ) -> Tensor:
        """Ids (B, T) -> logits (B, T, V) for the token that follows each; given `targets` (B, T),
        the mean loss, (), instead. With `caches`, one per block, the ids continue those already in
        the caches."""
        x = self.position.embed(self.embedding(ids))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, self.position, caches[i] if caches else None)
        logits = self.head(self.norm(x))
        return logits if targets is None else cross_entropy(logits.float(), targets).mean()


@torch.no_grad()
def start_from_counts(model: LanguageModel, tokens: np.ndarray, prior: float = 20.0) -> None:
    """Let the untrained model predict what v0 learns: which of `tokens` (N,) follow which.

    If n_ij of n_i tokens after i are j, p(j|i) is taken to be (n_ij + prior p_j) / (n_i + prior)
    (MacKay and Peto 1995). But for a term of i, which softmax ignores, its log is log p_j + log(1 +
    n_ij / (prior p_j)). The second, 0 for pairs not seen, is a table. Singular vectors, weighted by
    frequency, are the embeddings and rows of the head whose products come closest to it (Levy and
    Goldberg 2014); no block adds to the stream yet.
    """
    V, C = model.embedding.weight.shape
    if C < 3 or model.head.weight is model.embedding.weight:
        return  # two channels are taken below; a tied head has no table of its own
    i, j, n = count_pairs(tokens, V)  # of each pair that is seen
    p = (torch.bincount(j, n, V) + 1) / (n.sum() + V)
    table = (p[i] * p[j]).sqrt() * (1 + n / (prior * p[j])).log()
    table = torch.sparse_coo_tensor(torch.stack((i, j)), table, (V, V), check_invariants=True)
    left, sizes, right = torch.svd_lowrank(table, min(V, C - 2))  # (V, R), (R,), (V, R)
    left, right = (part * (sizes / p[:, None]).sqrt() for part in (left, right))
    # The norm will make all embeddings equally long: one channel fills them up, one is always 1.
    scale = sqrt(C - 1) / left.norm(dim=1).max()
    rest = (C - 1 - (scale * left).square().sum(dim=1)).clamp(min=0).sqrt()
    turn = torch.linalg.qr(torch.randn(C, C)).Q[: len(sizes) + 2]  # so that no channel is special
    model.embedding.weight.copy_(torch.column_stack((scale * left, rest, torch.ones(V))) @ turn)
    model.head.weight.copy_(torch.column_stack((right / scale, 0 * rest, (V * p).log())) @ turn)


# ---- 9. Optimizer and schedule ----
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss in nats of each of `targets` (...) given `logits` (..., V): -log softmax(x)[t]."""
    return -logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2); as in torch, the
    decay is scaled by the rate."""

    def __init__(
        self, parameters: Iterable, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = closure and torch.enable_grad()(closure)()
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                # Bias correction, since both averages start at 0 (Kingma and Ba 2015, section 3).
                correction1, correction2 = (1 - beta ** state["step"] for beta in (beta1, beta2))
                deviation = (state["square"] / correction2).sqrt_().add_(1e-8)
                p.mul_(1 - lr * group["weight_decay"])
                p.addcdiv_(state["mean"], deviation, value=-lr / correction1)
        return loss


# Polar Express: each step's a, b, c are optimal given those before, for singular values > 0.006.
NEWTON_SCHULZ = (
    (8.25684, -24.26528, 17.95890),
    (3.85496, -2.87841, 0.55436),
    (3.04250, -2.27953, 0.48645),
)


def orthogonalize(x: Tensor, steps: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ) -> Tensor:
    """Matrices (N, rows, columns) with their singular values moved close to 1: those above 0.006
    times the matrix's Frobenius norm end up between 0.56 and 1.44.

    Newton-Schulz iteration: a x + b (x x') x + c (x x')^2 x has x's singular vectors, and singular
    values a s + b s^3 + c s^5; here, with the a, b, c that err least (Amsel et al. 2025).
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # so that x x' is small
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value exceeds 1
    for a, b, c in steps:
        g = x @ x.mT
        p = torch.baddbmm(g, g, g, beta=b, alpha=c)  # b g + c g g
        x = torch.baddbmm(x, p, x, beta=a)  # a x + p x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024), for matrices that multiply hidden vectors.

    A gradient moves a few directions a lot and the others hardly at all; here all move equally.
    A weight decays only where its update shrinks it, too (Chen et al. 2025, algorithm 1).
    Matrices of the same shape are processed together; each must have a gradient.
    """

    def __init__(
        self, parameters: Iterable, lr: float, weight_decay: float, momentum: float = 0.9
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = closure and torch.enable_grad()(closure)()
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for (rows, columns), parameters in shapes.items():
                grads = torch.stack([p.grad for p in parameters])  # (N, rows, columns)
                state = self.state[parameters[0]]  # shared by all of this shape
                if not state:
                    state["means"] = torch.zeros_like(grads)
                means = state["means"].lerp_(grads, 1 - group["momentum"])
                ahead = grads.lerp(means, group["momentum"])  # Nesterov momentum
                factor = sqrt(max(1, rows / columns))  # the entries of a tall update are smaller
                for p, update in zip(parameters, orthogonalize(ahead)):
                    p.mul_(1 - group["lr"] * group["weight_decay"] * (p * update >= 0))
                    p.sub_(update, alpha=group["lr"] * factor)
        return loss


def make_optimizers(model: LanguageModel, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all other parameters.

    The rate of each group is `learning_rate` times its `scale`. One Muon rate suits matrices of all
    sizes. Beyond width 128, the head's rate is inverse to the width: a logit sums over that many
    channels (Yang et al. 2022, table 3). The norms' gains decay, too.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    apart = {id(p) for p in (*matrices, model.head.weight)}
    others = {"params": [p for p in model.parameters() if id(p) not in apart]}
    head = {"params": [model.head.weight], "scale": min(1, 128 / config.width)}
    blocks = {"params": matrices, "scale": config.muon_learning_rate / config.learning_rate}
    rate, decay = config.learning_rate, config.weight_decay
    return [
        AdamW([others, head], rate, betas=(0.8, 0.99), weight_decay=decay),
        Muon([blocks], rate, weight_decay=decay),
    ]


def learning_rate(step: int, config: Config) -> float:
    """AdamW's rate at `step`: linear warmup for `warmup_steps`, then decay as `schedule` says. Its
    peak is `config.learning_rate` in a run of 1000 steps; 16 times as many steps halve it."""
    highest = config.learning_rate * (1000 / config.steps) ** 0.25
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    done = min(1, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    left = 1 - done if config.schedule == "linear" else (1 + cos(pi * done)) / 2
    lowest = config.final_learning_rate
    return highest * (lowest + (1 - lowest) * left)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients to a norm of `max_norm` at most; return theirs (Pascanu et al. 2013)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads] or [torch.zeros(())]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1)
    for grad in grads:
        grad *= scale
    return norm


# ---- 10. Evaluation ----
@torch.no_grad()
def evaluate(
    model: LanguageModel, tokens: np.ndarray, tokenizer: Tokenizer, length: int, batch: int = 64
) -> tuple[float, int]:
    """How well `model` predicts `tokens` (N,): its total loss in nats, and the bytes they encode.

    The first token is given; every other is predicted once, in windows of `length`, `batch` at a
    time. Tokens of no bytes count toward neither total. `model` is left in evaluation mode.
    """
    model.eval()
    device, lengths, nats, n_bytes = next(model.parameters()).device, token_lengths(tokenizer), 0, 0
    for inputs, targets in windows_in_order(tokens, length, batch):  # (B, T), (B*T,)
        logits = model.forward(inputs.to(device)).flatten(0, 1).float()  # (B*T, V)
        losses = cross_entropy(logits, targets.to(device)).cpu()
        nats += losses[lengths[targets] > 0].sum().item()
        n_bytes += lengths[targets].sum().item()
    return nats, n_bytes


# ---- 11. Sampling ----
def draw(logits: Tensor, config: Config, generator: torch.Generator) -> int:
    """Sample an id from `logits` (V,): temperature, top-k, top-p (Holtzman et al. 2020, 3.1)."""
    if config.temperature == 0:
        return int(logits.argmax())
    p = F.softmax((logits - logits.max()).float().cpu() / config.temperature, dim=-1)  # never +inf
    if config.top_k or config.top_p < 1:
        ordered, ids = p.sort(descending=True)
        ordered[config.top_k or len(p) :] = 0
        ordered[ordered.cumsum(0) - ordered >= config.top_p * ordered.sum()] = 0
        p = torch.empty_like(p).scatter(0, ids, ordered)  # the most likely token always stays
    ends = p.cumsum(0)  # p[i] is the interval from ends[i - 1] to ends[i]
    return int(torch.searchsorted(ends, ends[-1] * torch.rand(1, generator=generator), right=True))


@torch.inference_mode()
def generate(model: LanguageModel, ids: list[int], config: Config, stop: int) -> Iterator[int]:
    """Continue `ids` by up to `max_new_tokens`; each token is read once, then kept in caches.

    The caches hold at most `context_length` tokens. When they are full, the older half is dropped
    and the newer half read again, since its keys and values depended on what is gone.
    """
    model.eval()
    device, ids = next(model.parameters()).device, list(ids)
    generator = torch.Generator().manual_seed(config.seed)  # not training's generator
    caches, unread = [Cache() for _ in model.blocks], ids[-config.context_length :]
    for _ in range(config.max_new_tokens):
        if caches[0].length + len(unread) > config.context_length:
            caches = [Cache() for _ in model.blocks]
            unread = ids[-max(1, config.context_length // 2) :]
        window = torch.tensor([unread], device=device)  # (1, T)
        ids.append(draw(model.forward(window, caches=caches)[0, -1], config, generator))
        if ids[-1] == stop:
            return
        yield ids[-1]
        unread = ids[-1:]


# ---- 12. Checkpoint ----
def save_checkpoint(run: Run) -> None:
    """Save all that `run` needs to resume; the old checkpoint stays until this one is complete."""
    run.write_checkpoint(
        {
            "run": run.identity,  # the options that define it, its tokenizer and its text
            "progress": run.progress(),  # steps, seconds, rows of metrics.jsonl
            "model": run.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        }
    )


def load_checkpoint(run: Run) -> None:
    """Restore `run` from its checkpoint; UserError if that is damaged or from another run."""
    with run.read_checkpoint() as saved:  # then the progress is restored, too
        run.model.load_state_dict(saved["model"])
        for i, optimizer in enumerate(run.optimizers):  # none when sampling
            optimizer.load_state_dict(saved["optimizers"][i])


# ---- 13. Training loop ----
def training_step(run: Run, tokens: np.ndarray, config: Config) -> Tensor:
    """Take one optimizer step on `accumulation_steps` batches; return their mean loss, (), still on
    the device, since reading it would wait for the GPU. Each process gets a share of each batch.

    Matrix products, and what lies between two, are in `dtype`. Weights, residual stream and loss
    stay float32, or small updates would be lost (Micikevicius et al. 2018, section 3.1).
    """
    in_16_bits = command_line.pick_dtype(config.dtype, run.device) == "bfloat16"
    precision = torch.autocast(run.device.type, torch.bfloat16, enabled=in_16_bits)
    total, batches = 0.0, config.accumulation_steps
    run.model.zero_grad()
    for batch in range(run.step * batches, (run.step + 1) * batches):
        windows = get_batch(tokens, batch, config)
        inputs, targets = (parallel.my_share(ids, run.device) for ids in windows)
        last = (batch + 1) % batches == 0
        with precision, parallel.averaging(run.replica, now=last):
            loss = run.replica.train()(inputs, targets) / batches
        loss.backward()
        total += loss.detach()
    clip_grad_norm(run.model.parameters(), config.clip_norm)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, config) * group.get("scale", 1)
        with precision:  # for Muon's products
            optimizer.step()
    return total


def train(config: Config) -> dict:
    """Train a model, write the run to `config.out`, and return its summary."""
    parallel.join(config.batch_size, command_line.pick_device(config.device))
    tokenizer, corpus, train_tokens, val_tokens = parallel.in_turn(lambda: load_data(config))
    config = replace(config, vocab_size=tokenizer.vocab_size)
    get_batch(train_tokens, 0, config)  # UserError now, not later, if the text is too short
    torch.manual_seed(config.seed)
    model = build(LanguageModel, config)
    run = Run(VERSION, config, tokenizer, model, make_optimizers(model, config), corpus)
    if config.resume:
        load_checkpoint(run)
    elif config.init_from:
        load_weights(model, config.init_from)
    else:
        start_from_counts(model, train_tokens)
    with run:
        while True:
            if run.checkpoint_is_due():
                save_checkpoint(run)
            if run.evaluation_is_due():
                T, B = config.context_length, config.batch_size
                B //= parallel.processes()  # a larger one may not fit
                for part in run.parts_to_score(val_tokens):
                    run.log_scores(part, *evaluate(model, part, tokenizer, T, B))
                run.log_sample(generate)
            if run.is_done():
                break
            if run.compile_is_due():
                model.compile()  # its calls; `forward` stays as it is, for windows of other lengths
            started = perf_counter()
            loss = training_step(run, train_tokens, config)
            run.log_step(loss, learning_rate(run.step, config), perf_counter() - started)
    return run.finish(generate, len(train_tokens))


# ---- 14. Command line ----
def main(arguments: list[str] | None = None) -> None:
    """Train, sample or describe a model, as `arguments` (None: those of the process) say."""
    with command_line.clear_errors():
        config = parse(Config, arguments)
        if config.print_model:
            print_model(config, load_data, LanguageModel, make_optimizers)
        elif config.sample or config.score:
            tokenizer = Tokenizer.load(Path(config.out) / "tokenizer.json")
            run = Run(VERSION, config, tokenizer, build(LanguageModel, config))
            load_checkpoint(run)
            run.score(evaluate) if config.score else run.answer(generate)
        else:
            train(config)


if __name__ == "__main__":
    main()
