"""What the page holds of the models themselves: v4's weights, with which the page goes on writing,
and where the attention of each looks."""

import base64
import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import climb
from benchmarks.report_data import colour, piece
from shared.corpora import END_OF_TEXT
from shared.run import Run

MOST_WEIGHTS = 4_000_000  # of a model in the page, which has a byte for each
MOST_ATTENTION = 100_000  # attention weights of a version in the page, likewise


def text_of(array: np.ndarray) -> str:
    """The bytes of `array` as JSON can hold them."""
    return base64.b64encode(array.tobytes()).decode("ascii")


# ---- weights ----


def in_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` (rows, columns) as whole numbers from -127 to 127, and what each row of them has to
    be multiplied by, (rows,)."""
    scale = weight.abs().amax(dim=1) / 127
    return (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """A copy of `model` with the weights that the page has."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            numbers, scale = in_8_bits(parameter)
            parameter.copy_(numbers * scale[:, None])
    return model


def packed(weight: Tensor) -> dict:
    """A matrix in 8 bits, a vector in float32, as JSON; the page's side is `unpack`."""
    if weight.ndim == 1:
        return {"vector": text_of(weight.numpy().astype("<f4"))}
    numbers, scale = in_8_bits(weight)
    columns = weight.shape[1]
    scale = text_of(scale.numpy().astype("<f4"))
    return {"columns": columns, "numbers": text_of(numbers.numpy()), "scale": scale}


def model_of(runs: dict[str, Run], text: str) -> dict:
    """The model with which the page writes, that of v4; {"why": ...} if it is not fit for that,
    nothing if there is no run of it. `bits_per_byte` are those of `text`, with rounded weights."""
    run = runs.get(climb.V4)
    if run is None:
        return {}
    size = sum(parameter.numel() for parameter in run.model.parameters())
    if size > MOST_WEIGHTS:
        return {"why": f"its {size:,} weights are too many for a page (up to {MOST_WEIGHTS:,})"}
    if hasattr(run.tokenizer, "made"):
        return {"why": "its tokenizer is another library's"}
    in_bytes = copy.copy(run)
    in_bytes.model = rounded(run.model)
    names = ("context_length", "n_layers", "n_heads", "n_kv_heads", "head_size", "rope_base")
    return {
        "version": climb.V4,
        "size": size,
        "bits_per_byte": colour(in_bytes, text)["bits_per_byte"] if text else None,
        "config": {name: getattr(run.config, name) for name in names},
        "special": run.tokenizer.special_tokens,
        "start": run.tokenizer.special_tokens[END_OF_TEXT],
        "weights": {name: packed(p.detach()) for name, p in run.model.named_parameters()},
    }


# ---- attention ----


@torch.no_grad()
def attention_weights(attention: nn.Module, x: Tensor, *others: object) -> Tensor:
    """How much each token of `x` (1, T, C) takes from each in section 6 of a version, (H, T, T).

    What a head hands on is the sum of the tokens' values, each times its weight. So with a channel
    for each token, 1 in its own value and 0 in all others', the sums are the weights. There are D
    channels: each copy of `x` in the batch shows the weights of D tokens.
    """
    T, D = x.shape[1], attention.head_size
    B = math.ceil(T / D)
    own = torch.eye(T, B * D).view(T, B, 1, D).transpose(0, 1)  # (B, T, 1, D)
    sums = []
    hooks = [
        attention.value.register_forward_hook(
            lambda _, __, values: own.expand(-1, -1, values.shape[-1] // D, -1).flatten(2)
        ),
        attention.output.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0])),
    ]
    try:
        attention(x.expand(B, -1, -1), *others)
    finally:
        for hook in hooks:
            hook.remove()
    heads = sums[0].view(B, T, -1, D).permute(2, 1, 0, 3)  # (H, T, B, D)
    return heads.flatten(2)[:, :, :T]


@torch.no_grad()
def attention_of_layers(model: nn.Module, ids: Tensor) -> Tensor:
    """The attention weights of all layers of `model` while it reads `ids` (T,), (L, H, T, T)."""
    inputs = []
    hooks = [
        block.attention.register_forward_pre_hook(lambda _, given: inputs.append(given))
        for block in model.blocks
    ]
    try:
        model.eval()(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    layers = zip(model.blocks, inputs)
    return torch.stack([attention_weights(block.attention, *given) for block, given in layers])


def attention_of(run: Run, text: str) -> dict:
    """Where `run` looks while it reads the first window of `text`.

    `tokens`: the text of each, the start token first. `weights`: of each layer, head and token,
    the weights of all tokens up to itself, as base64: a byte is 255 times a weight's square root,
    so that small ones are not all 0.
    """
    layers, heads = run.config.n_layers, run.config.n_heads
    most = math.isqrt(2 * MOST_ATTENTION // (layers * heads))
    ids = [run.tokenizer.special_tokens[END_OF_TEXT], *run.tokenizer.encode(text)]
    ids = ids[: min(run.config.context_length, max(2, most))]
    weights = attention_of_layers(run.model, torch.tensor(ids))
    rows, columns = torch.tril_indices(len(ids), len(ids))
    earlier = weights[:, :, rows, columns]  # (L, H, T * (T + 1) / 2)
    shown = [piece(run, token) for token in ids[1:]]
    return {
        "tokens": [END_OF_TEXT, *shown],
        "layers": layers,
        "heads": heads,
        "weights": text_of((255 * earlier.sqrt()).round().byte().numpy()),
    }


def attentions(runs: dict[str, Run], text: str) -> dict[str, dict]:
    """The same of each of `runs` that attends."""
    attending = {name: run for name, run in runs.items() if hasattr(run.config, "n_heads")}
    return {name: attention_of(run, text) for name, run in attending.items()} if text else {}
