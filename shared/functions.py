"""Functions of v4 that torch has, too, but slower on a CPU.

Torch's autograd computes gradients one operation at a time. The norm's and the loss's, written as
one formula, take half the time on a CPU, where every extra operation is another pass through
memory. Attention is the other way round: there, torch's fused operation is slow in bfloat16.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) times `weight` (C,), for x (..., C)."""
    if x.is_cpu and torch.is_grad_enabled():
        return RootMeanSquare.apply(x, weight, eps)
    # Since torch 2.12, CUDA's autocast would make it float32.
    casts = x.is_cuda and torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", enabled=False) if casts else nullcontext():
        return F.rms_norm(x, weight.shape, weight, eps)  # one operation on a GPU


def nats_of(logits: Tensor, targets: Tensor) -> Tensor:
    """log sum exp(x) - x[t] for logits x (..., V), which are overwritten, and targets t (...)."""
    return CrossEntropy.apply(logits, targets)


FUSED_FROM = 513  # tokens; where fused attention starts to be faster in bfloat16 on a CPU


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """softmax(q k' / sqrt(D)) v, fused (Dao et al. 2022), for queries (B, H, T, D), keys and values
    (B, G, S, D); with `is_causal`, T and S are equal and each token sees only those up to itself.
    """
    (B, H, T, D), G = q.shape, k.shape[1]
    if not (q.is_cpu and q.dtype == torch.bfloat16 and is_causal and T < FUSED_FROM):
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=H != G)
    k, v = (x if H == G else x.repeat_interleave(H // G, dim=1) for x in (k, v))
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    later = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    weights = torch.baddbmm(later, q, k.mT, alpha=D**-0.5).softmax(dim=-1)
    return torch.bmm(weights, v).view(B, H, T, D)


class RootMeanSquare(torch.autograd.Function):
    """x r w for x (..., C), gains w (C,) and r = 1 / sqrt(mean x^2 + eps), with its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, eps: float) -> Tensor:
        """(..., C), (C,) -> (..., C)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, r, w)
        return (x * r).mul_(w)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """(..., C) -> (..., C), (C,): the gradient of x is r (w grad - x mean(x w grad) r^2)."""
        x, r, w = ctx.saved_tensors
        grad = grad * r
        products = (grad * x).flatten(0, -2)  # (N, C)
        share = (products @ w).view_as(r).mul_(r).mul_(r)  # (..., 1)
        grad = grad.mul_(w).addcmul_(x, share, value=-1 / x.shape[-1])
        return grad, products.sum(0), None


class CrossEntropy(torch.autograd.Function):
    """log sum exp(x) - x[t] for logits x (..., V) and targets t (...).

    Its gradient is softmax(x) minus 1 at t. The softmax is computed in place of the logits: in a
    small model with a large vocabulary, they take most of a step's memory.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, t: Tensor) -> Tensor:
        """(..., V), (...) -> (...); `x` is overwritten."""
        t = t.unsqueeze(-1)
        right = x.gather(-1, t)
        highest = x.amax(-1, keepdim=True)
        total = x.sub_(highest).exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(x, t, total)
        return (total.log() + highest - right).squeeze(-1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """(...) -> (..., V)."""
        x, t, total = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        return x.mul_(grad / total).scatter_add_(-1, t, -grad), None
