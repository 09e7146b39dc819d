"""v4's model and its tokenizer as one file, GGUF, for llama.cpp and what is built on it.

To llama.cpp, too, v4's block is Qwen3's. Splits it knows only by name: that of a tokenizer which
has the split, and possibly other habits.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from shared.corpora import END_OF_TEXT
from shared.files import UserError, atomic_write, need_package
from v4_modern.model_files import FIXED, qwen3_name
from v4_modern.tokenizer_files import spelled_merges, spelled_vocab

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
Q8_0_BLOCK = 32  # weights of a row that share a scale
# What llama.cpp calls each split. With the second name, a word that is a token is that token.
SPLIT_NAMES = {
    "gpt2": ("gpt-2", "gpt-2"),
    "gpt4": ("smaug-bpe", "llama-bpe"),  # but for blanks at the end of a text
    "gpt4o": ("gpt-4o", "gpt-4o"),  # but for marks, and capitals that are not English
    "llama3": ("smaug-bpe", "llama-bpe"),
    "qwen": ("qwen2", "qwen2"),
}


def save_gguf(model: nn.Module, config: Any, tokenizer: Any, path: Path, form: str) -> None:  # noqa: ANN401
    """Write v4's `model`, of that `config`, and `tokenizer` to `path`, with matrices of the `form`,
    one of TYPES; a head that is the embedding is left out. UserError if llama.cpp has no such
    tokenizer, or a package is missing."""
    need_package("gguf", f"writing {path.name}")
    import gguf

    parts = tokenizer_parts(tokenizer, len(model.embedding.weight))
    with atomic_write(path) as file, closing(gguf.GGUFWriter(file.name, "qwen3")) as writer:
        writer.add_name(path.stem)
        writer.add_file_type(gguf.LlamaFileType[TYPES[form]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.width)
        writer.add_block_count(config.n_layers)
        writer.add_head_count(config.n_heads)
        writer.add_head_count_kv(config.n_kv_heads)
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
        writer.add_feed_forward_length(config.feed_forward_size)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_layer_norm_rms_eps(FIXED["rms_norm_eps"])
        writer.add_tokenizer_model("gpt2")  # any byte-level BPE
        writer.add_tokenizer_pre(parts["pre"])
        writer.add_token_list(parts["tokens"])
        writer.add_token_types([gguf.TokenType[name] for name in parts["types"]])
        writer.add_token_merges(parts["merges"])
        end = tokenizer.special_tokens[END_OF_TEXT]
        writer.add_bos_token_id(end)  # missing, it would be 11
        writer.add_eos_token_id(end)
        writer.add_add_bos_token(True)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layers)
        for name, weights in model.named_parameters():  # shared ones come once
            own = form if weights.ndim > 1 else "f32"
            if own == "q8_0" and weights.shape[1] % Q8_0_BLOCK:
                own = "f16"  # as llama.cpp does
            own = gguf.GGMLQuantizationType[own.upper()]
            data = gguf.quantize(weights.detach().float().numpy(), own)
            writer.add_tensor(names.get_name(qwen3_name(name), (".weight",)), data, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def tokenizer_parts(tokenizer: Any, rows: int) -> dict:  # noqa: ANN401 - v4's Tokenizer
    """What llama.cpp wants to know of a tokenizer, with a token for each of the embedding's `rows`;
    UserError if it cannot have it."""
    if tokenizer.split not in SPLIT_NAMES:
        raise UserError("llama.cpp knows no split like this tokenizer's: export a folder instead")
    texts = {i: text for text, i in spelled_vocab(tokenizer).items()}
    special = {i: tokenizer.vocab[i].decode("utf-8") for i in tokenizer.special_tokens.values()}
    both = texts | special
    merges = [" ".join(pair) for pair in spelled_merges(tokenizer)]
    if not merges:
        raise UserError("llama.cpp takes no tokenizer without merges: use a larger --vocab-size")
    if len({*both.values()}) < len(both):
        raise UserError("llama.cpp takes no tokenizer with a special token spelled as another one")
    kinds = {**dict.fromkeys(texts, "NORMAL"), **dict.fromkeys(special, "CONTROL")}
    return {
        "pre": SPLIT_NAMES[tokenizer.split][bool(getattr(tokenizer, "whole_words", {}))],
        "tokens": [both.get(i, f"<|unused {i}|>") for i in range(rows)],
        "types": [kinds.get(i, "UNUSED") for i in range(rows)],
        "merges": merges,
    }
