"""v3: merges only within English words, no tokens that only help to build others, ALiBi.

New since v2 (sections 1, 2, 5): the vocabulary is spent on English words, and on no token that
only helps to build others (Scaffold-BPE); positions are encoded by a penalty on distance, so that
the model can read contexts longer than it was trained on.

    diff v2_bpe_rope/train.py v3_alibi/train.py
    python v3_alibi/train.py

Expect about 2.19 bits per byte on `pydocs`, in two minutes on two CPU cores.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters
from time import perf_counter

ROOT, VERSION = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent.name
sys.path.insert(0, str(ROOT))
from shared import command_line
from shared.command_line import parse
from shared.corpora import END_OF_TEXT, Corpus, load_corpus, sample_documents, well_formed
from shared.files import UserError, checked_merges, read_tokenizer, write_json
from shared.model_table import build, print_model
from shared.run import Run
from shared.terminal import progress
from shared.text import as_texts, tokens_of
from shared.tokens import (
    cached_tokenizer,
    encode_splits,
    random_windows,
    token_lengths,
    windows_in_order,
)

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
    vocab_size: int = 1024  # tokens: 256 bytes, merges except scaffolds, and <|endoftext|> (V)
    tokenizer_sample_bytes: int = 100_000  # of training text to learn the merges from
    context_length: int = 64  # tokens per window: how far back the model looks (T)
    width: int = 64  # channels of the residual stream, which every block reads and adds to (C)
    n_layers: int = 6  # transformer blocks
    n_heads: int = 6  # attention heads per block (H)
    head_size: int = 64  # channels per head (D); heads need not add up to the width
    dropout: float = 0.0  # fraction of activations zeroed in training
    steps: int = 350  # optimizer steps
    batch_size: int = 32  # windows of text per step (B)
    learning_rate: float = 6e-3  # for AdamW
    evaluate_every: int = 100  # steps between evaluations on the validation text
    checkpoint_every: int = 1000  # steps between checkpoints
    seed: int = 0  # random seed
    device: str = "auto"  # cpu, cuda, mps, or auto: the best available
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
    """Byte-pair encoding of English words, without scaffolds (Scaffold-BPE, Lian et al. 2024).

    Ids: the 256 bytes, then a token per merge that makes no scaffold, then `<|endoftext|>`. Merges
    stay within a run of English letters and the space before it; other text is encoded as bytes. A
    scaffold is the result of a merge that only serves to build longer tokens: it gets no id. Until
    scaffolds are taken apart, ids are numbers instead: a byte, or 256 + the rank of a merge.
    """

    pattern = regex.compile(r" ?[A-Za-z]+|.", regex.DOTALL)
    most_words = 1 << 18  # whose ids are kept: rare ones must not fill the memory

    def __init__(self, merges: list[tuple[int, int]], scaffolds: Iterable[int]) -> None:
        self.merges = checked_merges(merges)
        self.scaffolds = set(scaffolds)  # numbers
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.vocab = [bytes([byte]) for byte in range(256)]
        self.apart = [[byte] for byte in range(256)]  # number -> its id, or its parts' ids
        for number, (left, right) in enumerate(self.merges, start=256):
            parts = self.apart[left] + self.apart[right]
            if number not in self.scaffolds:
                self.vocab.append(b"".join(self.vocab[i] for i in parts))
                parts = [len(self.vocab) - 1]
            self.apart.append(parts)
        self.special_tokens = {END_OF_TEXT: len(self.vocab)}
        self.vocab.append(END_OF_TEXT.encode("utf-8"))
        self.vocab_size = len(self.vocab)
        self.cache: dict[str, list[int]] = {}  # word -> its ids

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from `texts` until there are `vocab_size` tokens, or no pairs are left.

        The most frequent pair comes first; among equals, the greatest by its bytes. All pairs are
        counted again for every merge, which is slow (merges times distinct words) but simple. A
        token that a merge leaves rarer than the next pair to be merged becomes a scaffold.
        """
        if vocab_size < 257:
            raise UserError(f"--vocab-size {vocab_size} must be at least 257: 256 bytes and 1 more")
        counts = Counter(w for t in as_texts(texts) for w in cls.pattern.findall(well_formed(t)))
        english = ((word, count) for word, count in counts.items() if word[-1] in ascii_letters)
        words = [(list(word.encode("utf-8")), count) for word, count in english]
        vocab, merges, scaffolds = [bytes([byte]) for byte in range(256)], [], set()
        with progress(total=vocab_size - 1, initial=256, desc="merging") as bar:
            while True:
                pairs = Counter()
                for ids, count in words:
                    for pair in zip(ids, ids[1:]):
                        pairs[pair] += count
                most = max(pairs.values(), default=0)
                for number in merges[-1] if merges else ():  # the parts of the last
                    if number >= 256 and most > sum(ids.count(number) * n for ids, n in words):
                        scaffolds.add(number)
                bar.update(len(vocab) - len(scaffolds) - bar.n)
                if most == 0 or len(vocab) - len(scaffolds) == vocab_size - 1:
                    break
                equals = sorted(pair for pair, count in pairs.items() if count == most)
                best = max(equals, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
                words = [(cls.merge(ids, best, len(vocab)), count) for ids, count in words]
                merges.append(best)
                vocab.append(vocab[best[0]] + vocab[best[1]])
        return cls(merges, scaffolds)

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
        """The ids of one word: its bytes, merged in the order learned; scaffolds taken apart."""
        ids = list(word.encode("utf-8"))
        while len(ids) > 1:
            best = min(zip(ids, ids[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            ids = self.merge(ids, best, 256 + self.ranks[best])
        return [i for number in ids for i in self.apart[number]]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a lone surrogate is encoded as U+FFFD."""
        ids = []
        for word in self.pattern.findall(well_formed(text)):
            if (of_word := self.cache.get(word)) is None:
                if len(self.cache) >= self.most_words:
                    self.cache.clear()
                of_word = self.cache[word] = self.encode_word(word)
            ids += of_word
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(tokens_of(self.vocab, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return tokens_of(self.vocab, [token])[0]

    def to_json(self) -> dict:
        scaffolds = sorted(self.scaffolds)
        return {"kind": "scaffold-bpe", "merges": self.merges, "scaffolds": scaffolds}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer saved in `path`; UserError if it is damaged or from another version."""
        return read_tokenizer(path, "scaffold-bpe", cls)


# ---- 3. Data ----
def load_data(config: Config) -> tuple[Tokenizer, Corpus, np.ndarray, np.ndarray]:
    """A tokenizer trained on the training text only, the corpus, and the ids of both splits."""
    tokenizer = command_line.given_tokenizer(Tokenizer, config)
    corpus = load_corpus(config.data, config.text_field)
    n_bytes, vocab_size = config.tokenizer_sample_bytes, config.vocab_size
    tokenizer = tokenizer or cached_tokenizer(
        Tokenizer,
        (corpus.sha256, n_bytes, vocab_size),
        lambda: Tokenizer.train(sample_documents(corpus, n_bytes), vocab_size),
    )
    return tokenizer, corpus, *encode_splits(corpus, tokenizer)


def get_batch(tokens: np.ndarray, step: int, config: Config) -> tuple[Tensor, Tensor]:
    """Random windows of text and, as targets, the same windows a token later: (B, T) each.

    They depend only on the seed and the step, so a resumed run sees the same batches.
    """
    generator = np.random.default_rng((config.seed, step))
    windows = random_windows(tokens, config.batch_size, config.context_length + 1, generator)
    return windows[:, :-1], windows[:, 1:]


# ---- 4. Model: norm ----
class Norm(nn.LayerNorm):
    """Layer normalization (Ba et al. 2016): gives each token's channels mean 0 and variance 1."""


# ---- 5. Model: position ----
class Position(nn.Module):
    """Tells the model where a token is: to attention alone, earlier tokens are an unordered set.

    There are three places to do so: add to the embeddings, rotate queries and keys, or add to the
    attention scores. This version adds to the scores (ALiBi, Press et al. 2022, section 3): a
    penalty proportional to the distance, however large, with a different slope in each head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        slopes = torch.tensor(self.slopes(config.n_heads))
        self.register_buffer("slope", slopes.view(-1, 1, 1), persistent=False)  # (H, 1, 1)

    @staticmethod
    def slopes(n_heads: int) -> list[float]:
        """2^(-8/n), 2^(-16/n), ... for n heads; if n is not a power of two, those for the power of
        two below it, then every other one for the power of two above (as in the paper's code)."""
        power = 1 << n_heads.bit_length() - 1
        slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
        slopes += [2 ** (-4 * i / power) for i in range(1, 2 * power, 2)]
        return slopes[:n_heads]

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings (B, T, C), unchanged."""
        return x

    def rotate(self, x: Tensor, first: int = 0) -> Tensor:
        """Queries or keys (B, T, H, D) of tokens from position `first` on, unchanged."""
        return x

    def bias(self, T: int, device: torch.device) -> Tensor:
        """The bias added to the scores, (H, T, T): -inf where a key comes after its query."""
        t = torch.arange(T, device=device)
        distance = (t[:, None] - t).float()  # (T, T), negative in the future
        return (-self.slope * distance).masked_fill(distance < 0, float("-inf"))


# ---- 6. Model: attention ----
class Attention(nn.Module):
    """Multi-head causal self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_size = config.head_size
        inner = config.n_heads * config.head_size
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner, bias=False)
        self.value = nn.Linear(config.width, inner, bias=False)
        self.output = nn.Linear(inner, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, position: Position) -> Tensor:
        """(B, T, C) -> (B, T, C); each token sees itself and those before it."""
        B, T, _ = x.shape
        q = self.query(x).view(B, T, -1, self.head_size)  # (B, T, H, D)
        k = self.key(x).view(B, T, -1, self.head_size)  # (B, T, H, D)
        v = self.value(x).view(B, T, -1, self.head_size)  # (B, T, H, D)
        q, k = position.rotate(q), position.rotate(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        scores = (q / self.head_size**0.5) @ k.mT  # (B, H, T, T)
        weights = F.softmax(scores + position.bias(T, x.device), dim=-1)
        y = (self.dropout(weights) @ v).transpose(1, 2).reshape(B, T, -1)  # (B, T, H*D)
        return self.dropout(self.output(y))


# ---- 7. Model: feed-forward ----
class FeedForward(nn.Module):
    """Two layers with GELU between (Hendrycks and Gimpel 2016), applied per token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.down(F.gelu(self.up(x))))


# ---- 8. Model: language model ----
class Block(nn.Module):
    """Attention, then feed-forward: each reads a normalized copy of the stream and adds to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = Norm(config.width)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config.width)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, position: Position) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), position)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LanguageModel(nn.Module):
    """A decoder-only transformer, pre-norm (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = Position(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = Norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Ids (B, T) -> logits (B, T, V) for the token that follows each; given `targets` (B, T),
        the mean loss, (), instead."""
        x = self.position.embed(self.embedding(ids))  # (B, T, C)
        for block in self.blocks:
            x = block(x, self.position)
        logits = self.head(self.norm(x))
        return logits if targets is None else cross_entropy(logits, targets).mean()


# ---- 9. Optimizer and schedule ----
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss in nats of each of `targets` (...) given `logits` (..., V): -log softmax(x)[t]."""
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def make_optimizers(model: LanguageModel, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter 2019) for all parameters."""
    return [torch.optim.AdamW(model.parameters(), lr=config.learning_rate)]


def learning_rate(step: int, config: Config) -> float:
    """The learning rate at `step`: constant."""
    return config.learning_rate


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


@torch.no_grad()
def generate(model: LanguageModel, ids: list[int], config: Config, stop: int) -> Iterator[int]:
    """Continue `ids` by up to `max_new_tokens`, each sampled given the last `context_length`."""
    model.eval()
    device, ids = next(model.parameters()).device, list(ids)
    generator = torch.Generator().manual_seed(config.seed)  # not training's generator
    for _ in range(config.max_new_tokens):
        window = torch.tensor([ids[-config.context_length :]], device=device)  # (1, T)
        ids.append(draw(model(window)[0, -1], config, generator))
        if ids[-1] == stop:
            return
        yield ids[-1]


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
def training_step(run: Run, tokens: np.ndarray, config: Config) -> float:
    """Take one optimizer step on one batch; return its loss."""
    torch.manual_seed(config.seed * 1_000_003 + run.step)  # a resumed run draws the same numbers
    inputs, targets = (ids.to(run.device) for ids in get_batch(tokens, run.step, config))
    loss = run.model.train()(inputs, targets)
    run.model.zero_grad()
    loss.backward()
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, config) * group.get("scale", 1)
        optimizer.step()
    return loss.item()


def train(config: Config) -> dict:
    """Train a model, write the run to `config.out`, and return its summary."""
    tokenizer, corpus, train_tokens, val_tokens = load_data(config)
    config = replace(config, vocab_size=tokenizer.vocab_size)
    get_batch(train_tokens, 0, config)  # UserError now, not later, if the text is too short
    torch.manual_seed(config.seed)
    model = build(LanguageModel, config)
    run = Run(VERSION, config, tokenizer, model, make_optimizers(model, config), corpus)
    if config.resume:
        load_checkpoint(run)
    with run:
        while True:
            if run.checkpoint_is_due():
                save_checkpoint(run)
            if run.evaluation_is_due():
                T, B = config.context_length, config.batch_size
                for part in run.parts_to_score(val_tokens):
                    run.log_scores(part, *evaluate(model, part, tokenizer, T, B))
                run.log_sample(generate)
            if run.is_done():
                break
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
