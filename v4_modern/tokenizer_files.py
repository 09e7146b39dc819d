"""Byte-pair encodings in other formats: GPT-2's two files and Hugging Face's single one.

Both spell a token with visible characters, one per byte: bytes that are visible in Latin-1 are
written as themselves, the others as the characters from U+0100 on (GPT-2's `bytes_to_unicode`).
In these files, a tokenizer is its tokens by id, its merges by rank and its special tokens.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from shared.files import UserError, read_json, write_text

T = TypeVar("T")
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}
NOT_GPT2S = ("add_prefix_space", "continuing_subword_prefix", "end_of_word_suffix")
NOT_GPT2S += ("ignore_merges", "dropout")  # settings that a foreign tokenizer.json may have
NOT_LITERAL = ("lstrip", "rstrip", "single_word")  # and its added tokens
BYTES = {character: byte for byte, character in CHARACTERS.items()}


def spell(token: bytes) -> str:
    """A token as spelled in these files: b" the" is "Ġthe"."""
    return "".join(CHARACTERS[byte] for byte in token)


def unspell(text: str) -> bytes:
    """The bytes of a token spelled that way."""
    return bytes(BYTES[character] for character in text)


def spelled_vocab(vocab: Sequence[bytes], special_tokens: dict[str, int]) -> dict[str, int]:
    """The spelling of each token, mapped to its id; special tokens are spelled literally."""
    special = {i: text for text, i in special_tokens.items()}
    return {special.get(i) or spell(token): i for i, token in enumerate(vocab)}


def spelled_merges(vocab: Sequence[bytes], merges: Iterable[tuple[int, int]]) -> list[list[str]]:
    """Each merge as the spellings of the two tokens it joins."""
    return [[spell(vocab[left]), spell(vocab[right])] for left, right in merges]


def parts(
    vocab: dict[str, int],
    merges: Iterable[Sequence[str]],
    special_tokens: Iterable[str],
    path: Path,
) -> tuple[list[tuple[int, int]], list[str], bytes]:
    """Merges by id, special tokens in the order of their ids, and the bytes with ids 0 to 255.

    UserError unless the ids are the bytes, then the merges in order, then the special tokens, as in
    GPT-2's own files: tokenizers here have no other form.
    """
    special = sorted(special_tokens, key=lambda text: vocab[text])
    written = {i: text for text, i in vocab.items()}
    merges = list(merges)
    expected = [unspell(left + right) for left, right in merges]
    ids = range(256, 256 + len(merges))
    if (
        sorted(written) != list(range(256 + len(merges) + len(special)))
        or sorted(unspell(written[i]) for i in range(256)) != [bytes([b]) for b in range(256)]
        or [unspell(written[i]) for i in ids] != expected
        or [vocab[text] for text in special] != list(range(len(vocab) - len(special), len(vocab)))
    ):
        raise UserError(f"{path}: its ids are not the bytes, the merges and the special tokens")
    first = b"".join(unspell(written[i]) for i in range(256))
    return [(vocab[left], vocab[right]) for left, right in merges], special, first


def save_gpt2(tokenizer: object, folder: str | Path) -> None:
    """Write `vocab.json` and `merges.txt` to `folder`."""
    vocab = spelled_vocab(tokenizer.vocab, tokenizer.special_tokens)
    merges = spelled_merges(tokenizer.vocab, tokenizer.merges)
    text = json.dumps(vocab, ensure_ascii=False)
    write_text(Path(folder) / "vocab.json", text)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    write_text(Path(folder) / "merges.txt", "\n".join(lines) + "\n")


def load_gpt2(tokenizer_class: type[T], folder: str | Path) -> T:
    """The tokenizer in `vocab.json` and `merges.txt`; tokens that no merge produces are special."""
    path = Path(folder) / "vocab.json"
    vocab = read_json(path)
    try:
        lines = (Path(folder) / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}/merges.txt cannot be read ({error})") from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return build(tokenizer_class, vocab, merges, path)


def save_hugging_face(tokenizer: object, path: str | Path, begin: str = "") -> None:
    """Write a `tokenizer.json` that the `tokenizers` library loads.

    That library then puts the special token `begin`, if given, before every text.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    ordinary = len(tokenizer.vocab) - len(tokenizer.special_tokens)
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "special": True} | special
            for text, i in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": begin_with(begin, tokenizer.special_tokens[begin]) if begin else None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": spelled_vocab(tokenizer.vocab[:ordinary], {}),
            "merges": spelled_merges(tokenizer.vocab, tokenizer.merges),
        },
    }
    write_text(Path(path), json.dumps(value, ensure_ascii=False, indent=1))


def begin_with(text: str, token: int) -> dict:
    """A post-processor for `tokenizer.json` that puts a special token before a text or a pair."""
    special, first, second = (
        {"SpecialToken": {"id": text, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    )
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, second],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }


def load_hugging_face(tokenizer_class: type[T], path: str | Path) -> T:
    """The byte-level BPE in a `tokenizer.json`; UserError if it holds another kind of tokenizer."""
    saved = read_json(path)
    try:
        model, added = saved["model"], saved["added_tokens"]
        split = saved["pre_tokenizer"] or {}
        kinds = model.get("type", "BPE"), split.get("type"), saved["normalizer"]
        if kinds != ("BPE", "ByteLevel", None):
            raise UserError(f"{path} is not a byte-level BPE like GPT-2's: {kinds}")
        settings = {"use_regex": True} | split | model
        others = [name for name in NOT_GPT2S if settings.get(name)]
        if others or not settings["use_regex"]:
            name = others[0] if others else "use_regex"
            raise UserError(f"{path} is not a byte-level BPE like GPT-2's: its {name} differs")
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        made = {left + right for left, right in merges} | set(BYTES)
        for token in added:
            if token["content"] in made or any(map(token.get, NOT_LITERAL)):
                raise UserError(f"{path} matches {token['content']!r} in another way than ours")
        special = {token["content"]: token["id"] for token in added}
        if len(special) < len(added):
            raise UserError(f"{path} is damaged: an added token occurs twice")
        vocab = model["vocab"] | special
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path} is not a tokenizer.json") from None
    return build(tokenizer_class, vocab, merges, Path(path))


def build(tokenizer_class: type[T], vocab: dict, merges: list, path: Path) -> T:
    """A tokenizer of these tokens and merges."""
    try:
        made = {left + right for left, right in merges} | set(BYTES)
        special = [text for text in vocab if text not in made]
        return tokenizer_class(*parts(vocab, merges, special, path))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: merges and tokens do not match") from None
