"""v4's models in another format: Hugging Face's folder for a Qwen3 (Yang et al. 2025).

The block is the same, so only names differ: config.json has the sizes, model.safetensors the
weights, or several files do, and model.safetensors.index.json says which.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
    "tie_head": "tie_word_embeddings",
}
FIXED = {  # what cannot differ in v4; also what a config.json means that leaves it out
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
}
DEFAULTS = {  # the size of a Qwen3 whose config.json does not tell (transformers' Qwen3Config)
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "intermediate_size": 22016,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
INDEX = "model.safetensors.index.json"
SMALL = 1 << 28  # bytes: a model that may be built before its weights are looked at
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
    """The contents of config.json for a model of these sizes. Some of it says the same twice, for
    readers older or newer than others, and what Qwen3 has by default, for those that ask for it."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    return (
        FIXED
        | sizes
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_dropout": 0.0,
            "layer_types": ["full_attention"] * config.n_layers,
            "max_window_layers": config.n_layers,  # would be the first with a sliding window
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
            "sliding_window": None,
            "torch_dtype": "float32",
        }
    )


def read_sizes(folder: str | Path) -> dict[str, int | float | bool]:
    """The options of v4 for the model in `folder`; UserError if v4 cannot represent that model."""
    path = Path(folder) / "config.json"
    theirs = read_json(path)
    if "model_type" not in theirs:
        raise UserError(f"{path} is not from a Hugging Face folder; export.py makes one of a run")
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}  # since transformers 5
    if not isinstance(rope, dict):
        raise UserError(f"{path}: its rotary positions are {rope}")
    if "rope_theta" in rope:
        theirs["rope_theta"] = rope["rope_theta"]
    for name, value in FIXED.items():
        if (found := theirs.get(name, value)) != value:
            raise UserError(f"{path}: {name} is {found}, but v4's is {value}")
    kinds = theirs.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(f"{path}: layer_types are not all full_attention, as v4's are")
    kind = rope.get("rope_type", rope.get("type", "default"))  # `type` in older files
    if kind != "default":
        raise UserError(f"{path}: v4 has no rotary positions of type {kind}")
    theirs = DEFAULTS | theirs
    if missing := [name for name in SIZES.values() if theirs[name] is None]:
        raise UserError(f"{path} does not say {missing[0]}")
    return {ours: theirs[name] for ours, name in SIZES.items()}


def qwen3_name(name: str) -> str:
    """Qwen3's name for v4's parameter `name`."""
    return ".".join(NAMES.get(part, part) for part in name.split("."))


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of v4's `model` by Qwen3's names; of a head that is the embedding, nothing."""
    return {qwen3_name(name): weights for name, weights in model.named_parameters()}


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the weights of v4's `model` to a safetensors file with Qwen3's names."""
    import safetensors.torch

    weights = {name: tensor.detach().contiguous() for name, tensor in weights_of(model).items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(weights, metadata={"format": "pt"}))


@torch.no_grad()
def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights in `folder` into `model`; UserError if they do not fit it."""
    need_package("safetensors", "--init-from")
    import safetensors

    ours = weights_of(model)
    places = ours | {"lm_head.weight": model.head.weight}  # some files repeat a tied embedding
    path = Path(folder)
    try:
        with ExitStack() as until_loaded:
            theirs = {}  # name -> file, and the file opened
            for path in weight_files(Path(folder)):
                if path.exists() and not path.is_file():  # a pipe would keep us waiting
                    raise UserError(f"{path} is not a file")
                file = until_loaded.enter_context(safetensors.safe_open(path, "pt"))
                theirs |= {name: (path, file) for name in file.keys()}
            if wrong := (ours.keys() - theirs.keys()) | (theirs.keys() - places.keys()):
                raise UserError(f"{folder} has other weights than v4, or lacks some: {min(wrong)}")
            found = [(name, *theirs[name]) for name in places if name in theirs]
            for name, path, file in found:  # all, before any is read
                check_shape(name, file.get_slice(name), places[name].shape, path)
            for name, path, file in found:
                tensor = file.get_tensor(name).to(places[name])
                if not tensor.isfinite().all():
                    raise UserError(f"{path}: {name} holds numbers that are not finite")
                if name not in ours and not torch.equal(tensor, places[name]):
                    raise UserError(f"{path}: {name} is not the embedding, to which it is tied")
                places[name].copy_(tensor)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})") from None


def weight_files(folder: Path) -> list[Path]:
    """The files in `folder` that hold a model's weights."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists() or not index.exists():
        return [single]
    names = read_json(index).get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{index} does not say in which files of its folder the weights are")
    return [folder / name for name in dict.fromkeys(names)]


def check_bytes(folder: str | Path, sizes: dict[str, Any]) -> None:
    """UserError if the weights in `folder` are far too few for a model of these `sizes` (see
    `read_sizes`): to build it, only to find that out, might fill the memory."""
    V, C, F, L = (sizes[n] for n in ("vocab_size", "width", "feed_forward_size", "n_layers"))
    held = sum(path.stat().st_size for path in weight_files(Path(folder)) if path.is_file())
    needed = 2 * (V * C + 3 * C * F * L)  # bytes of the embedding and the SwiGLUs in 16 bits
    if needed > max(held, SMALL):
        raise UserError(f"{folder}: {held:,} bytes hold no model of the sizes in config.json")


def check_shape(name: str, found: Any, shape: torch.Size, path: Path) -> None:  # noqa: ANN401
    """UserError unless what is `found` in the file of weights has this shape and is of FLOATS."""
    if found.get_dtype() not in FLOATS:
        raise UserError(f"{path}: {name} is {found.get_dtype()}, not one of {', '.join(FLOATS)}")
    if (theirs := tuple(found.get_shape())) != tuple(shape):
        raise UserError(f"{path}: {name} is {theirs}, not {tuple(shape)}")
