"""Two trainers to run side by side in one process: v4, with its own functions, and nanoGPT, whose
model is loaded from the user's clone. Both train on the CPU."""

import importlib.util
import io
import math
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
import torch

from benchmarks.common import load_version
from shared.corpora import END_OF_TEXT
from shared.files import UserError
from shared.machine import keep_freed_memory
from shared.terminal import progress
from shared.tokens import Tokenizer, random_windows, windows_in_order

V4 = "v4_modern"
SCORED_WINDOWS = 64  # windows scored at a time

# What nanoGPT's README gives to train by characters on a CPU ("I only have a macbook"), and what
# its train.py and config/train_shakespeare_char.py add to that.
NANOGPT_SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
NANOGPT_SHAPE |= {"dropout": 0.0, "bias": False}
NANOGPT_BATCH, NANOGPT_STEPS, NANOGPT_WARM_UP = 12, 2000, 100
NANOGPT_RATE, NANOGPT_LAST_RATE = 1e-3, 1e-4
NANOGPT_DECAY, NANOGPT_BETAS, NANOGPT_CLIP = 0.1, (0.9, 0.99), 1.0


class V4Trainer:
    """v4 in training. Its `training_step` uses this in place of a Run: `model`, `replica`,
    `optimizers`, `device` and `step`. Its rates fall until the end of `config.steps`."""

    def __init__(
        self,
        config: object,  # v4's Config, with the size of the tokenizer's vocabulary
        tokenizer: Tokenizer,
        train_tokens: np.ndarray,  # (N,), as are those to validate
        val_tokens: np.ndarray,
    ) -> None:
        self.module, self.config, self.tokenizer = load_version(V4), config, tokenizer
        self.train_tokens, self.val_tokens = train_tokens, val_tokens
        torch.manual_seed(config.seed)
        self.model = self.replica = self.module.LanguageModel(config)
        self.optimizers = self.module.make_optimizers(self.model, config)
        self.module.start_from_counts(self.model, train_tokens)
        self.device, self.step = torch.device("cpu"), 0
        keep_freed_memory()  # as a Run does; nanoGPT beside it gains as much

    def train_step(self) -> float:
        """Take one step; return the loss in nats per token."""
        loss = float(self.module.training_step(self, self.train_tokens, self.config))
        self.step += 1
        return loss

    def score(self) -> float:
        """Bits per byte of the whole validation text."""
        length = self.config.context_length
        nats, n_bytes = self.module.evaluate(
            self.model, self.val_tokens, self.tokenizer, length, SCORED_WINDOWS
        )
        return nats / math.log(2) / n_bytes

    def write(self) -> None:
        """Generate `max_new_tokens`, each token read once; no token stops it."""
        start = [self.tokenizer.special_tokens[END_OF_TEXT]]
        for _ in self.module.generate(self.model, start, self.config, stop=-1):
            pass

    @torch.no_grad()
    def write_uncached(self) -> None:
        """The same without caches: the whole window is read again for each token."""
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        ids = [self.tokenizer.special_tokens[END_OF_TEXT]]
        self.model.eval()
        for _ in range(config.max_new_tokens):
            window = torch.tensor([ids[-config.context_length :]])  # (1, T)
            ids.append(self.module.draw(self.model(window)[0, -1], config, generator))


def load_nanogpt(folder: str) -> ModuleType:
    """nanoGPT's model.py from a clone in `folder`, which is not added to the import path."""
    path = Path(folder).expanduser() / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        assert module.GPT and module.GPTConfig
    except Exception as error:  # another project's model.py may do anything
        del sys.modules[spec.name]
        raise UserError(
            f"--nanogpt {folder}: {path} is not nanoGPT's model ({type(error).__name__}); git "
            "clone https://github.com/karpathy/nanoGPT and name that folder"
        ) from None
    return module


class NanoGPTTrainer:
    """nanoGPT in training with its published configuration for a CPU.

    Its model and its choice of optimizer are its own; batches are drawn as in v4, which is faster
    than in its own train.py.
    """

    def __init__(
        self,
        module: ModuleType,
        seed: int,
        steps: int,  # after which the rate is at its lowest
        vocab_size: int,
        train_tokens: np.ndarray,  # (N,), ids of characters, as are those to validate
        val_tokens: np.ndarray,
        val_bytes: int,  # of the validation text without its first character, which is given
        block_size: int = NANOGPT_SHAPE["block_size"],
        dtype: str = "float32",  # of matrix products; its train.py knows no other on a CPU
    ) -> None:
        self.train_tokens, self.val_tokens, self.val_bytes = train_tokens, val_tokens, val_bytes
        self.seed, self.steps, self.step = seed, steps, 0
        self.block_size, self.dtype = block_size, dtype
        torch.manual_seed(seed)
        shape = NANOGPT_SHAPE | {"block_size": block_size, "vocab_size": vocab_size}
        with redirect_stdout(io.StringIO()):  # it tells its size
            self.model = module.GPT(module.GPTConfig(**shape))
            self.optimizer = self.model.configure_optimizers(
                NANOGPT_DECAY, NANOGPT_RATE, NANOGPT_BETAS, "cpu"
            )

    def learning_rate(self) -> float:
        """Linear warmup, then cosine decay to a tenth of the peak."""
        if self.step < NANOGPT_WARM_UP:
            return NANOGPT_RATE * (self.step + 1) / (NANOGPT_WARM_UP + 1)
        done = (self.step - NANOGPT_WARM_UP) / max(1, self.steps - NANOGPT_WARM_UP)
        left = (1 + math.cos(math.pi * min(1, done))) / 2
        return NANOGPT_LAST_RATE + (NANOGPT_RATE - NANOGPT_LAST_RATE) * left

    def train_step(self) -> float:
        """Take one step; return the loss in nats per character."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        chance = np.random.default_rng((self.seed, self.step))
        windows = random_windows(self.train_tokens, NANOGPT_BATCH, self.block_size + 1, chance)
        inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()  # (B, T)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            _, loss = self.model.train()(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), NANOGPT_CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def score(self) -> float:
        """Bits per byte of the whole validation text, read in windows of the context."""
        nats = 0.0
        self.model.eval()
        for inputs, targets in windows_in_order(self.val_tokens, self.block_size, SCORED_WINDOWS):
            _, loss = self.model(inputs, targets.view_as(inputs))
            nats += loss.item() * len(targets)
        return nats / math.log(2) / self.val_bytes

    def write(self, count: int) -> None:
        """Generate this many characters with its own `generate`."""
        self.model.eval().generate(torch.zeros(1, 1, dtype=torch.long), count)


Trainer = V4Trainer | NanoGPTTrainer


def parameters(trainer: Trainer) -> int:
    return sum(p.numel() for p in trainer.model.parameters())


def complete_run(trainer: Trainer, steps: int, looks: int = 0) -> dict:
    """Train for `steps`: the bits per byte at the end, and at `looks` evenly spaced steps before.

    A non-finite loss ends the run: its bits are None, and `diverged` is the step.
    """
    looked_at = {steps * look // looks for look in range(looks)} if looks else set()
    curve = []
    for step in progress(range(steps), desc="training", unit="step"):
        if step in looked_at:
            curve.append([step, trainer.score()])
        if not math.isfinite(trainer.train_step()):
            return {"steps": steps, "bits_per_byte": None, "diverged": step, "curve": curve}
    bits = trainer.score()
    bits = bits if math.isfinite(bits) else None
    return {"steps": steps, "bits_per_byte": bits, "curve": curve}


def interleave(work: dict[str, Callable[[], object]], turns: int, what: str) -> dict[str, float]:
    """The median seconds of each of `work` over this many `turns`, each turn running all of them,
    so that other load slows all alike. A tenth more turns, at least one, warm up."""
    seconds = {name: [] for name in work}
    for turn in progress(range(-max(1, turns // 10), turns), desc=what):
        for name, do in work.items():
            started = time.perf_counter()
            do()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(taken) for name, taken in seconds.items()}
