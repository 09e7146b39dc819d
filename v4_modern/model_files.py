"""v4's models in another format: Hugging Face's folder for a Qwen3 (Yang et al. 2025).

The block is the same, so only names differ: config.json has the sizes, model.safetensors the
weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shared.files import UserError, atomic_write, need_package, read_json

SIZES = {  # field of v4's Config -> its name in config.json
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "width": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "feed_forward_size": "intermediate_size",
    "rope_base": "rope_theta",
}
FIXED = {  # what cannot differ in v4
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
FLOATS = ("F32", "BF16", "F16", "F64")  # types of weights that v4 can begin with
NAMES = {  # module of v4 -> its name in Qwen3
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward": "mlp",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def qwen3_config(config: Any) -> dict:  # noqa: ANN401 - v4's Config
    """The contents of config.json for a model of these sizes."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    return FIXED | sizes | {"architectures": ["Qwen3ForCausalLM"], "torch_dtype": "float32"}


def read_sizes(folder: str | Path) -> dict[str, int | float]:
    """The options of v4 for the model in `folder`; UserError if v4 cannot represent that model."""
    path = Path(folder) / "config.json"
    theirs = read_json(path)
    if "model_type" not in theirs:
        raise UserError(f"{path} is not from a Hugging Face folder; export.py makes one of a run")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}  # since transformers 5
    if not isinstance(rope, dict):
        raise UserError(f"{path}: its rotary positions are {rope}")
    theirs = {"rope_theta": rope.get("rope_theta")} | theirs
    for name, value in FIXED.items():
        if theirs.get(name) != value:
            raise UserError(f"{path}: {name} is {theirs.get(name)}, but v4's is {value}")
    kind = rope.get("rope_type", rope.get("type", "default"))  # `type` in older files
    if kind != "default":
        raise UserError(f"{path}: v4 has no rotary positions of type {kind}")
    if missing := [name for name in SIZES.values() if theirs.get(name) is None]:
        raise UserError(f"{path} does not say {missing[0]}")
    return {ours: theirs[name] for ours, name in SIZES.items()}


def qwen3_name(name: str) -> str:
    """Qwen3's name for v4's parameter `name`."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def save_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Write `weights`, given with v4's names, to a safetensors file with Qwen3's names."""
    import safetensors.torch

    renamed = {qwen3_name(name): tensor.contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(renamed, metadata={"format": "pt"}))


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights in `folder` into `model`; UserError if they do not fit it."""
    need_package("safetensors", "--init-from")
    import safetensors

    path = Path(folder) / "model.safetensors"
    ours = {qwen3_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    try:
        with safetensors.safe_open(path, "pt") as file:  # it compares the header with the size
            if set(file.keys()) != set(ours):
                raise UserError(f"{path} has other weights than v4")
            for name, shape in ours.items():
                found = file.get_slice(name)
                if found.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{path}: {name} is {found.get_dtype()}, not one of {', '.join(FLOATS)}"
                    )
                if tuple(found.get_shape()) != shape:
                    sizes = f"{tuple(found.get_shape())}, not {tuple(shape)}"
                    raise UserError(f"{path}: {name} is {sizes}")
            theirs = {name: file.get_tensor(name) for name in ours}
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})") from None
    for name, tensor in theirs.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds numbers that are not finite")
    model.load_state_dict({name: theirs[qwen3_name(name)] for name in model.state_dict()})
