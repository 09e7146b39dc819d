"""Ablations: what v3 and v4 lose or gain when one of their parts is removed or replaced.

`python benchmarks/sweep.py --ablate` runs all of v4's, with `--version v3` v3's. They have no
switches for this: a copy of the version's module is loaded, some of its names are rebound, and it
trains as usual, each ablation in its own process:

    python benchmarks/ablations.py --ablate rope --steps 100 --out runs/without_rope
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.common import (
    fold,
    has_diverged,
    load_version,
    markdown,
    mean,
    plus_minus,
    spread,
    what_it_depends_on,
)
from shared.command_line import clear_errors
from shared.files import UserError

V2, V3, V4 = "v2_bpe_rope", "v3_alibi", "v4_modern"
# AdamW's learning rate for the matrices, as a fraction of the rate for the other parameters: the
# best of 0.1, 0.15, 0.3 and 0.6 at 0.4 MB of text.
ADAMW_SHARE = 0.15
# The constant learning rate, as a fraction of the peak of one that decays: likewise, the best of
# 0.25, 0.35, 0.5, 0.7 and 1.
CONSTANT_SHARE = 0.5


# ---- patches: each rebinds names of v3's or v4's module ----


def words_of_v2(v3: ModuleType) -> None:
    v3.Tokenizer = load_version(V2).Tokenizer


def scaffolds_as_tokens(v3: ModuleType) -> None:
    """v2's merges within v3's words."""

    class Tokenizer(load_version(V2).Tokenizer):
        pattern = v3.Tokenizer.pattern

        @classmethod
        def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
            words = (word for text in texts for word in regex.findall(" ?[A-Za-z]+", text))
            return super().train(words, vocab_size)

    v3.Tokenizer = Tokenizer


def positions_of_v2(v3: ModuleType) -> None:
    v2 = load_version(V2)
    v3.Position, v3.Config.rope_base = v2.Position, v2.Config.rope_base


def adamw_alone(v4: ModuleType) -> None:
    """AdamW in Muon's place, for the same parameters; --muon-learning-rate is then its rate."""
    make = v4.make_optimizers

    def make_optimizers(model: nn.Module, config: object) -> list[torch.optim.Optimizer]:
        adamw, muon = make(model, config)
        defaults = adamw.defaults
        return [adamw, v4.AdamW(muon.param_groups, defaults["lr"], defaults["betas"], 0)]

    v4.make_optimizers = make_optimizers


def decay_of_all(v4: ModuleType) -> None:
    class Muon(v4.Muon):
        """Its own decay is off: weights shrink before its step, which does not look at them."""

        def __init__(self, parameters: Iterable, lr: float, weight_decay: float) -> None:
            super().__init__(parameters, lr, weight_decay=0)
            self.decay = weight_decay

        def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data *= 1 - group["lr"] * self.decay
            return super().step(closure)

    v4.Muon = Muon


def no_qk_norm(v4: ModuleType) -> None:
    class Attention(v4.Attention):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            for name, part in list(self.named_children()):
                if isinstance(part, v4.Norm):
                    setattr(self, name, nn.Identity())

    v4.Attention = Attention


def no_positions(v4: ModuleType) -> None:
    class Position(v4.Position):
        def rotate(self, x: Tensor, first: int = 0) -> Tensor:
            return x

    v4.Position = Position


def learned_positions(v4: ModuleType) -> None:
    """v1's: a learned vector for each position, added to the tokens' embeddings."""
    no_positions(v4)

    class LanguageModel(v4.LanguageModel):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            self.places = nn.Embedding(config.context_length, config.width)
            self.first = 0  # the position of the first of the ids
            self.embedding.register_forward_hook(self.add_places)

        def add_places(self, _: nn.Module, ids: tuple[Tensor], x: Tensor) -> Tensor:
            return x + self.places.weight[self.first : self.first + x.shape[1]]

        def forward(
            self, ids: Tensor, targets: Tensor | None = None, caches: list | None = None
        ) -> Tensor:
            self.first = caches[0].length if caches else 0
            return super().forward(ids, targets, caches)

    v4.LanguageModel = LanguageModel


def feed_forward(activation: Callable[[Tensor], Tensor]) -> Callable[[ModuleType], None]:
    """Two layers with `activation` between. SwiGLU has three, so these are half as large again."""

    def patch(v4: ModuleType) -> None:
        class FeedForward(nn.Module):
            def __init__(self, config: object) -> None:
                super().__init__()
                inner = round(1.5 * config.feed_forward_size)
                self.up = nn.Linear(config.width, inner, bias=False)
                self.down = nn.Linear(inner, config.width, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return self.down(activation(self.up(x)))

        v4.FeedForward = FeedForward

    return patch


def layer_norm(v4: ModuleType) -> None:
    v4.Norm = nn.LayerNorm  # for queries and keys, too


def no_zeros(v4: ModuleType) -> None:
    """Initialize the matrices that start at zero like the queries', scaled to their size."""

    class LanguageModel(v4.LanguageModel):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            drawn = self.blocks[0].attention.query.weight
            if drawn.is_meta:  # weights are only counted
                return
            deviation = drawn.std().item() * drawn.shape[1] ** 0.5
            for parameter in self.parameters():
                if parameter.ndim == 2 and not parameter.any():
                    limit = deviation * (3 / parameter.shape[1]) ** 0.5
                    nn.init.uniform_(parameter, -limit, limit)

    v4.LanguageModel = LanguageModel


def no_counts(v4: ModuleType) -> None:
    v4.start_from_counts = lambda model, tokens: None


def constant_rate(v4: ModuleType) -> None:
    falling = v4.learning_rate
    v4.learning_rate = lambda step, config: falling(config.warmup_steps, config)


def no_clipping(v4: ModuleType) -> None:
    v4.clip_grad_norm = lambda parameters, max_norm: None


def nothing(v4: ModuleType) -> None:
    """No patch, for an ablation that the version's options can express."""


# ---- the ablations ----


@dataclass(frozen=True)
class Ablation:
    """A `part` and what replaces it (`instead`), by a patch, by options, or both."""

    part: str
    instead: str
    patch: Callable[[ModuleType], None] = nothing
    options: Callable[[object], dict[str, float]] = lambda config: {}  # of the version's own Config
    version: str = V4


def slower(share: float) -> Callable[[object], dict[str, float]]:
    """Both rates, times `share`."""
    names = ("learning_rate", "muon_learning_rate")
    return lambda config: {name: getattr(config, name) * share for name in names}


ABLATIONS = {
    "words": Ablation(
        "English words, dropping of scaffolds", "v2's tokenizer", words_of_v2, version=V3
    ),
    "scaffolds": Ablation(
        "dropping of scaffolds", "they stay tokens", scaffolds_as_tokens, version=V3
    ),
    "alibi": Ablation("ALiBi", "v2's RoPE", positions_of_v2, version=V3),
    "muon": Ablation(
        "Muon",
        f"AdamW for all; matrices at {ADAMW_SHARE:g} of its rate",
        adamw_alone,
        lambda config: {"muon_learning_rate": config.learning_rate * ADAMW_SHARE},
    ),
    "caution": Ablation("decay where updates shrink", "decay of all matrices", decay_of_all),
    "schedule": Ablation(
        "falling rate",
        f"a constant rate, {CONSTANT_SHARE:g} of the highest",
        constant_rate,
        slower(CONSTANT_SHARE),
    ),
    "zeros": Ablation("projections of zeros", "drawn as the other matrices", no_zeros),
    "counts": Ablation("start from counted pairs", "random embedding, head of zeros", no_counts),
    "clipping": Ablation("clipping of gradients", "nothing", no_clipping),
    "qk_norm": Ablation("QK-norm", "nothing", no_qk_norm),
    "layer_norm": Ablation("RMSNorm", "LayerNorm", layer_norm),
    "rope": Ablation("RoPE", "no positions", no_positions),
    "learned_positions": Ablation("RoPE", "learned positions", learned_positions),
    "gelu": Ablation("SwiGLU", "GELU, as many parameters", feed_forward(F.gelu)),
    "relu2": Ablation(
        "SwiGLU", "ReLU², as many parameters", feed_forward(lambda x: F.relu(x).square())
    ),
    "bytes": Ablation("vocabulary", "bytes alone", options=lambda config: {"vocab_size": 257}),
    "half_vocabulary": Ablation(
        "vocabulary", "half", options=lambda config: {"vocab_size": config.vocab_size // 2}
    ),
    "double_vocabulary": Ablation(
        "vocabulary", "double", options=lambda config: {"vocab_size": config.vocab_size * 2}
    ),
}


def of_version(version: str) -> dict[str, Ablation]:
    """The ablations of one version, by name."""
    return {name: one for name, one in ABLATIONS.items() if one.version == version}


@cache
def ablated(name: str) -> ModuleType:
    """A copy of the version's module, without the part called `name`."""
    if name not in ABLATIONS:
        raise UserError(f"--ablate {name}: there are {', '.join(ABLATIONS)}")
    module = load_version(ABLATIONS[name].version, copy=f"_without_{name}")
    ABLATIONS[name].patch(module)
    return module


def main(arguments: list[str] | None = None) -> None:
    """Run a version without a part, with all other `arguments` passed on to it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ablate", default="")
    chosen, others = parser.parse_known_args(arguments)
    with clear_errors():
        ablated(chosen.ablate).main(others)


# ---- reporting ----


def summarize(results: dict) -> list[dict]:
    """A row for each point: the version as it is, then the ablations, the costliest at the top.

    Mean and spread of bits per byte, and of what removing the part `cost`, seed by seed; omitted if
    a run diverged.
    """
    rows, as_it_is = [], f"{results['version'].split('_')[0]} as it is"
    for point in results["points"]:
        ablation = ABLATIONS.get(point["what"], Ablation("nothing", as_it_is))
        finished = [run for run in point["runs"] if "diverged" not in run]
        diverged = sum(map(has_diverged, point["runs"]))
        row = {
            "without": ablation.part,
            "instead": ablation.instead,
            "steps": point["options"]["steps"],
            "parameters": finished[0]["parameters"] if finished else None,
            "diverged": f"{diverged} of {len(point['runs'])}" if diverged else "",
        }
        if not diverged:
            bits = [run["bits_per_byte"] for run in point["runs"]]
            if not rows:
                of_full = bits
            costs = [without - full for without, full in zip(bits, of_full)]
            row |= {"bits_per_byte": mean(bits), "spread": spread(bits)}
            row |= {"cost": mean(costs), "cost_spread": spread(costs)}
        elif not rows:
            raise UserError(f"{as_it_is} diverged ({row['diverged']} seeds): nothing to compare")
        rows.append(row)
    return rows[:1] + sorted(rows[1:], key=lambda row: -row.get("cost", math.inf))


def report(results: dict) -> str:
    """The table, as it stands in table.md."""
    rows = summarize(results)
    full = rows[0]
    cells = [["without", "instead", "bits per byte", "difference"]]
    details = [["without", "instead", "steps", "parameters"]]
    for row in rows:
        score, cost = f"diverged, {row['diverged']}", ""
        if not row["diverged"]:
            score = f"**{row['bits_per_byte']:.3f}**{plus_minus(row['spread'])}"
        if row is not full and not row["diverged"]:
            share = row["cost"] / full["bits_per_byte"]
            cost = f"{row['cost']:+.3f}{plus_minus(row['cost_spread'])} ({share:+.1%})"
        names = [row["without"], row["instead"]]
        cells.append([*names, score, cost])
        size = f"{row['parameters']:,}" if row["parameters"] else ""
        details.append([*names, f"{row['steps']:,}", size])
    runs = [run for point in results["points"] for run in point["runs"] if "diverged" not in run]
    says = f"Difference: to {full['instead']}, seed by seed."
    depends = f"{what_it_depends_on(results, runs)} {says}"
    return "\n\n".join([markdown(cells), depends, fold("Steps and parameters", markdown(details))])


if __name__ == "__main__":
    main()
