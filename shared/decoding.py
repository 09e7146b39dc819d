"""v4's model processing one token at a time, in numpy.

In a small model a token takes about a hundred operations on a few hundred numbers each, and torch
takes longer to launch each one than to compute it. Numpy launches them in a fraction of that time.
"""

from math import sqrt
from weakref import finalize

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

TOLERANCE = 1e-3  # for the error of logits, as a fraction of the largest


class Reader:
    """Feeds tokens to `model` and returns the next token's logits; on a CPU, one by one in numpy.

    The model has the last word: it also processes the first single token, the second, the fourth,
    the eighth and so on. If its logits differ, because it was changed, it takes over for good.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.blocks, self.read = [], 0  # single tokens read so far
        self.caches = None  # the ones whose keys and values the numpy blocks hold
        self.cos = self.sin = np.zeros((0, 0))
        if self.device.type == "cpu":
            limits = threadpool_limits(1, "blas")  # numpy's: more would compete with torch's
            finalize(self, limits.restore_original_limits)
            try:
                self.blocks = [NumpyBlock(block) for block in model.blocks]
                self.embedding, self.head = array(model.embedding), array(model.head)
                self.gain = array(model.norm)
            except (AttributeError, TypeError):  # other parts: not v4's model
                self.blocks = []

    def __call__(self, ids: list[int], caches: list) -> Tensor:
        """The logits (V,) for the token after `ids`, which follow those in the `caches`."""
        if self.blocks and len(ids) == 1 and caches[0].length:
            try:
                return self.read_one(ids[0], caches)
            except (AttributeError, TypeError, ValueError):  # other shapes: not v4's model
                self.blocks = []
        return self.model.forward(torch.tensor([ids], device=self.device), caches)[0, -1]

    def read_one(self, token: int, caches: list) -> Tensor:
        """The logits (V,) for the token after `token`, which follows those in the `caches`."""
        if self.caches is not caches:
            for block, cache in zip(self.blocks, caches):
                block.remember(cache.keys, cache.values)
            self.caches = caches
        length = caches[0].length
        ours = self.logits(token, length)
        self.read += 1
        if self.read & (self.read - 1):  # not a power of two
            for cache in caches:
                cache.length += 1
            return ours
        for block, cache in zip(self.blocks, caches):
            cache.keys, cache.values = block.remembered(length)
        theirs = self.model.forward(torch.tensor([[token]]), caches)[0, -1]
        if (theirs - ours).abs().max() > TOLERANCE * theirs.abs().max():
            self.blocks = []
        return theirs

    def logits(self, token: int, t: int) -> Tensor:
        """The logits (V,) for the token after `token`, which is at position `t`."""
        if t >= len(self.cos):
            turn = self.model.position(0, 2 * t)  # (T, H, D); heads are alike
            self.cos, self.sin = (each[:, 0].numpy() for each in turn)
        x = self.embedding[token]
        for block in self.blocks:
            x = block(x, t, self.cos[t], self.sin[t])
        return torch.from_numpy(self.head @ norm(x, self.gain))


class NumpyBlock:
    """A block of v4 and the keys and values of the tokens it has processed."""

    def __init__(self, block: nn.Module) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self.G, self.D = attention.n_kv_heads, attention.head_size
        self.H = attention.n_heads
        self.attention_gain = array(block.attention_norm)
        self.feed_forward_gain = array(block.feed_forward_norm)
        # One matrix product instead of three (here), and instead of two (gate and up).
        parts = attention.query, attention.key, attention.value
        self.to_heads = np.concatenate([array(part) for part in parts])
        self.gains = np.concatenate(
            (
                np.tile(array(attention.query_norm) / np.sqrt(np.float32(self.D)), (self.H, 1)),
                np.tile(array(attention.key_norm), (self.G, 1)),
            )
        )
        self.output = array(attention.output)
        self.gate_and_up = np.concatenate([array(feed_forward.gate), array(feed_forward.up)])
        self.down = array(feed_forward.down)

    def remember(self, keys: Tensor, values: Tensor) -> None:
        """Start from these keys and values, (1, G, T, D) each."""
        T = keys.shape[2]
        self.keys, self.values = np.zeros((2, self.G, 2 * T, self.D), np.float32)
        self.keys[:, :T], self.values[:, :T] = keys[0].numpy(), values[0].numpy()

    def remembered(self, T: int) -> tuple[Tensor, Tensor]:
        """The first `T` keys and values, (1, G, T, D) each."""
        return torch.tensor(self.keys[None, :, :T]), torch.tensor(self.values[None, :, :T])

    def __call__(self, x: np.ndarray, t: int, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """(C,) -> (C,) for a token at position `t`, whose cosines and sines are (D,) each."""
        H, G, D = self.H, self.G, self.D
        heads = (self.to_heads @ norm(x, self.attention_gain)).reshape(-1, D)  # (H + G + G, D)
        qk = heads[: H + G]
        squares = np.einsum("hd,hd->h", qk, qk)[:, None]
        qk = qk * (self.gains / np.sqrt(squares / np.float32(D) + np.float32(1e-6)))
        qk = qk * cos + np.concatenate((qk[:, D // 2 :], qk[:, : D // 2]), 1) * sin
        if t == self.keys.shape[1]:
            self.keys, self.values = (
                np.concatenate((kept, np.zeros_like(kept)), 1) for kept in (self.keys, self.values)
            )
        self.keys[:, t], self.values[:, t] = qk[H:], heads[H + G :]
        q = qk[:H].reshape(G, H // G, D)
        weights = q @ self.keys[:, : t + 1].transpose(0, 2, 1)  # (G, H / G, T)
        weights -= weights.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        y = weights @ self.values[:, : t + 1] / weights.sum(-1, keepdims=True)
        x = x + self.output @ y.ravel()
        gate, up = (self.gate_and_up @ norm(x, self.feed_forward_gain)).reshape(2, -1)
        return x + self.down @ (gate / (1 + np.exp(-gate)) * up)


def array(module: nn.Module) -> np.ndarray:
    """The weight of a module, sharing its memory."""
    return module.weight.detach().numpy()


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """x (C,), scaled to a mean square of 1, times `gain`."""
    return x * (gain * np.float32(1 / sqrt(x.dot(x) / len(x) + 1e-6)))
