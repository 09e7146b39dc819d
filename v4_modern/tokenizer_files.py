"""Byte-pair encodings in other formats: GPT-2's two files, Hugging Face's one, tiktoken's ranks.

The first two spell a token with visible characters, one per byte: bytes that are visible in Latin-1
are written as themselves, the others as the characters from U+0100 on (GPT-2's `bytes_to_unicode`).
Where ids are not numbered as ours or what else differs, the tokenizer is a `foreign` one, of parts:

    pairs        the ids of the two tokens that each merge joins, in the order of the merges
    split        the name or the pattern by which texts are split into words
    vocab        the spelling of each token, by id; "" where there is none or a special one
    special_ids  the ids of the special tokens; two names may have the same
    whole_words  whether a word that is a token is that token, whatever the merges would make
    nfc          whether texts are brought into Unicode's normalization form C before
"""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

import regex

from shared.fast_bpe import LONG_RUN
from shared.fast_bpe.encoder import Merger
from shared.files import UserError, read_json, read_tokenizer, write_text
from shared.splits import SPLITS, StrangersPattern
from shared.text import END_OF_TEXT

T = TypeVar("T")
KIND = "foreign-bpe"  # in our own files
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in VISIBLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}
TO_LATIN_1 = {ord(c): chr(byte) for c, byte in BYTES.items()} | dict.fromkeys(HIDDEN, "\uffff")
# Settings of a tokenizer.json and of its added tokens that would give other ids.
NOT_OURS = ("add_prefix_space", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
NOT_LITERAL = ("lstrip", "rstrip", "single_word")
# Patterns by their text, also as others write them; of others, nothing is known in advance.
GPT2S = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NAMES = {pattern: name for name, pattern in SPLITS.items()} | {GPT2S: "gpt2"}
# What means another thing to `regex` than to Hugging Face's engine, gives other words by groups, or
# is written out when compiled, which may fill the memory (repeated groups, large counts).
OTHERWISE = regex.compile(
    r"\\[hHRXKGZN]|&&|\[\[|\[[^\]]*\[:|(?<!\\)\$|(?<![\[\\])\^|\((?!\?(?:i?:|i\)|#|>|<?[=!]))|"
    r"\)\{\d+|\{\d*,?\d{4}|(?<!\\[pP])\{[\d<=]*[deis]"
)
MOST_CHARACTERS = 10_000  # of a split; those in use have fewer than 1,000
# The end of a text in tokenizers without <|endoftext|>, if no tokenizer_config.json tells.
ENDS = ("<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|end\u2581of\u2581sentence|>", "<|im_end|>")
REST = r"[\s\S])+"  # the end of a pattern for what another one leaves out
# What batches are filled up with in an exported folder: the token of a byte that no UTF-8 has, so
# that the end of a text stays a token of its own, and no row has to be added to the embedding.
PAD, FILLER = "<|pad|>", CHARACTERS[0xFF]
MOST_BYTES = 1 << 10  # of a token in a file of ranks
# What a file of so many ranks leaves out: the split, the special tokens, and whether NFC applies.
FIM = {f"<|fim_{part}|>": 100258 + i for i, part in enumerate(("prefix", "middle", "suffix"))}
CHAT = {"<|im_start|>": 151644, "<|im_end|>": 151645}
LLAMA3 = {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006}
LLAMA3 |= {"<|end_header_id|>": 128007, "<|eot_id|>": 128009}
RANK_FILES = {
    50256: ("gpt2", {END_OF_TEXT: 50256}, False),  # r50k_base
    50280: ("gpt2", {END_OF_TEXT: 50256}, False),  # p50k_base
    100256: ("gpt4", {END_OF_TEXT: 100257, **FIM, "<|endofprompt|>": 100276}, False),
    128000: ("llama3", LLAMA3, False),
    151643: ("qwen", {END_OF_TEXT: 151643, **CHAT}, True),
    199998: ("gpt4o", {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}, False),
}


def spell(token: bytes) -> str:
    """A token as spelled in these files: b" the" is "Ġthe"."""
    return "".join(CHARACTERS[byte] for byte in token)


def unspell(text: str) -> bytes:
    """The bytes of a token spelled that way; ValueError if `text` has other characters."""
    return text.translate(TO_LATIN_1).encode("latin-1")


def foreign(tokenizer_class: type[T]) -> type[T]:
    """A subclass of v4's `tokenizer_class` for other ids and habits than ours."""

    class Foreign(tokenizer_class):
        def __init__(
            self,
            pairs: Sequence[tuple[int, int]],
            special_tokens: Iterable[str],
            split: str,
            vocab: list[str],
            special_ids: list[int],
            whole_words: bool,
            nfc: bool,
        ) -> None:
            """The module's docstring says what the parts are. ValueError, LookupError or TypeError
            if they do not fit each other."""
            super().__init__((), special_tokens)
            names = dict(zip(self.special_tokens, special_ids, strict=True))
            if {type(whole_words), type(nfc)} != {bool} or {*map(type, special_ids)} - {int}:
                raise TypeError("other types than these files have")
            self.merges = [(index(left), index(right)) for left, right in pairs]
            self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
            if len(self.ranks) < len(self.merges):
                raise ValueError("two merges join the same tokens")
            if any(i not in range(len(vocab)) for pair in self.merges for i in pair):
                raise ValueError("a merge of no tokens")
            self.vocab = [unspell(text) for text in vocab]
            ids = {token: i for i, token in enumerate(self.vocab) if token}
            if len(ids) + vocab.count("") < len(vocab):
                raise ValueError("two tokens have the same bytes")
            self.byte_ids = [ids[bytes([byte])] for byte in range(256)]
            self.made = [ids[self.vocab[i] + self.vocab[j]] for i, j in self.merges]
            for text, i in names.items():
                if i not in range(len(vocab)) or vocab[i] not in ("", text):
                    raise ValueError("a special token with the id of another one")
                self.vocab[i] = self.vocab[i] or text.encode("utf-8")
            if split not in SPLITS and OTHERWISE.search(split[: 3 * MOST_CHARACTERS]):
                raise ValueError("no split of ours")
            try:
                self.split, self.pattern = split, StrangersPattern(SPLITS.get(split, split))
            except (regex.error, RecursionError) as error:
                raise ValueError(f"the split is no pattern: {error}") from None
            self.special_tokens, self.vocab_size, self.spelled = names, len(vocab), vocab
            self.whole_words, self.nfc = ids if whole_words else {}, nfc
            self.others = self.byte_ids, self.made, self.whole_words, nfc  # for fast_bpe

        def encode_word(self, word: str) -> list[int]:
            """The ids of one word. Merges may make what earlier ones join, so each round merges at
            one place only."""
            data = word.encode("utf-8")
            if data in self.whole_words:
                return [self.whole_words[data]]
            if len(data) > LONG_RUN:
                return Merger(self.merges, *self.others[:2])([data])[0].tolist()
            ids, none = [self.byte_ids[byte] for byte in data], len(self.merges)
            while ranks := [self.ranks.get(pair, none) for pair in zip(ids, ids[1:])]:
                if (best := min(ranks)) == none:
                    break
                at = ranks.index(best)
                ids[at : at + 2] = [self.made[best]]
            return ids

        def encode_part(self, text: str) -> list[int]:
            return super().encode_part(normalize("NFC", text) if self.nfc else text)

        def to_json(self) -> dict:
            parts = {"pairs": self.merges, "special_tokens": list(self.special_tokens)}
            parts |= {"split": self.split, "vocab": self.spelled}
            parts |= {"special_ids": list(self.special_tokens.values())}
            return {"kind": KIND, **parts, "whole_words": bool(self.whole_words), "nfc": self.nfc}

    return Foreign


def with_room(tokenizer_class: type[T], tokenizer: T, path: Path) -> T:
    """`tokenizer`, of the file `path`, with as many ids as the model in config.json beside it has
    embeddings: often some more, which stand for no bytes."""
    config, size = path.with_name("config.json"), tokenizer.vocab_size
    n = read_json(config).get("vocab_size") if config.is_file() else 0
    if type(n) is not int or not size < n <= 2 * size + 1000:  # far more would fill the memory
        return tokenizer
    spelled, special = [""] * n, tokenizer.special_tokens
    for text, i in spelled_vocab(tokenizer).items():
        spelled[i] = text
    others = bool(getattr(tokenizer, "whole_words", {})), getattr(tokenizer, "nfc", False)
    parts = tokenizer.merges, special, tokenizer.split, spelled, [*special.values()]
    return foreign(tokenizer_class)(*parts, *others)


def build(
    tokenizer_class: type[T],
    path: Path,
    vocab: dict[str, int],
    merges: Sequence[Sequence[str]],
    special: dict[str, int],
    split: str = "gpt2",
    whole_words: bool = False,
    nfc: bool = False,
) -> T:
    """A tokenizer of spelled tokens and merges, of special tokens, and of what else differs."""
    try:
        made = {left + right for left, right in merges} | BYTES.keys()
        both = [text for text in special if text in made]
        if any(
            unspell(text) != text.encode("utf-8") or vocab[text] != special[text] for text in both
        ):
            raise UserError(f"{path} matches {both[0]!r} in another way than ours")
        if missing := [spelled for spelled in BYTES if spelled not in vocab]:
            raise UserError(
                f"{path} has no token for {len(missing)} of the 256 bytes: learn it anew with "
                "initial_alphabet=ByteLevel.alphabet()"
            )
        tokens = {text: i for text, i in vocab.items() if text not in special or text in made}
        used = [*tokens.values(), *special.values()]
        if min(used) < 0 or max(used) >= 2 * len(used) + 1000:
            raise ValueError("ids far beyond the number of tokens")
        if len(set(used)) + len(both) < len(used):
            raise ValueError("two tokens with the same id")
        pairs = [(tokens[left], tokens[right]) for left, right in merges]
        special = dict(sorted(special.items(), key=lambda item: item[1]))
        numbers = [tokens[CHARACTERS[byte]] for byte in range(256)]
        numbers += [tokens[left + right] for left, right in merges] + [*special.values()]
        in_order = numbers == [*range(len(tokens) + len(special))]
        if in_order and split in SPLITS and not whole_words and not nfc:
            return tokenizer_class(pairs, special, split)  # as ours
        spelled = [""] * (max(used) + 1)
        for text, i in tokens.items():
            spelled[i] = text
        if END_OF_TEXT not in special and (end := own_end(special, path)):
            special[END_OF_TEXT] = special[end]
        others = spelled, [*special.values()], whole_words, nfc
        return foreign(tokenizer_class)(pairs, special, split, *others)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: merges and tokens do not match ({error})") from None


def own_end(special: dict[str, int], path: Path) -> str:
    """The special token that ends a text, as tokenizer_config.json beside `path` or custom says."""
    config = path.with_name("tokenizer_config.json")
    end = read_json(config).get("eos_token") if config.is_file() else None
    end = end.get("content") if isinstance(end, dict) else end
    return next((text for text in (end, *ENDS) if text in special), "")


def load_foreign(tokenizer_class: type[T], path: str | Path) -> T | None:
    """The tokenizer of another library in `path`, a file or a folder of files, or what a run saved
    of one; None if it is one of ours; UserError if it is none, or one that v4 cannot have."""
    path = Path(path)
    if path.is_dir():
        names = ("tokenizer.json", "vocab.json", "encoder.json")
        path = next((path / name for name in names if (path / name).is_file()), path)
    if path.is_file():
        with open(path, "rb") as file:
            if regex.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\s*", file.readline(2 * MOST_BYTES)):
                return load_ranks(tokenizer_class, path)
    saved = read_json(path)
    if saved.get("kind") == KIND:
        return read_tokenizer(path, KIND, foreign(tokenizer_class))
    if isinstance(saved.get("kind"), str):  # every version's own file has one
        return None
    if path.name in ("vocab.json", "encoder.json") and not isinstance(saved.get("model"), dict):
        return load_gpt2(tokenizer_class, path)  # "kind" and "model" are tokens
    return with_room(tokenizer_class, load_hugging_face(tokenizer_class, path), path)


def save_gpt2(tokenizer: object, folder: str | Path) -> None:
    """Write `vocab.json` and `merges.txt` to `folder`."""
    text = json.dumps(spelled_vocab(tokenizer) | tokenizer.special_tokens, ensure_ascii=False)
    write_text(Path(folder) / "vocab.json", text)
    lines = ["#version: 0.2", *map(" ".join, spelled_merges(tokenizer))]
    write_text(Path(folder) / "merges.txt", "\n".join(lines) + "\n")


def spelled_vocab(tokenizer: object) -> dict[str, int]:
    """The spelling of each token but the special ones, mapped to its id."""
    if spelled := getattr(tokenizer, "spelled", []):
        return {text: i for i, text in enumerate(spelled) if text}
    special = set(tokenizer.special_tokens.values())
    return {spell(token): i for i, token in enumerate(tokenizer.vocab) if i not in special}


def spelled_merges(tokenizer: object) -> list[list[str]]:
    """Each merge as the spellings of the two tokens it joins."""
    return [[spell(tokenizer.vocab[i]) for i in pair] for pair in tokenizer.merges]


def load_gpt2(tokenizer_class: type[T], path: Path) -> T:
    """The tokenizer in `path`, a vocab.json or encoder.json, and the merges.txt or vocab.bpe beside
    it; tokens that no merge makes are special."""
    vocab, lines = read_json(path), path.with_name("merges.txt")
    if path.name == "encoder.json":
        lines = path.with_name("vocab.bpe")
    try:
        lines = lines.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{lines} cannot be read ({error})") from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    try:
        made = {left + right for left, right in merges} | BYTES.keys()
    except ValueError:
        raise UserError(f"{path} is damaged: a merge does not join two tokens") from None
    special = {text: i for text, i in vocab.items() if text not in made}
    return build(tokenizer_class, path, vocab, merges, special)


def load_ranks(tokenizer_class: type[T], path: Path) -> T:
    """The tokenizer in one of tiktoken's files of ranks. A merge may join any two tokens that make
    a third; words that are tokens do not merge."""
    ranks = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        if max(map(len, ranks)) > MOST_BYTES:
            raise ValueError
    except (OSError, ValueError, binascii.Error):
        raise UserError(f"{path} is not a file of ranks of tokens") from None
    if len(ranks) not in RANK_FILES:
        known = ", ".join(f"{n:,}" for n in RANK_FILES)
        raise UserError(
            f"{path} has {len(ranks):,} ranks: the split and the special tokens of such a file are "
            f"not known, only those of files with {known}: give its tokenizer.json"
        )
    split, special, nfc = RANK_FILES[len(ranks)]
    merges = []
    for token in sorted(ranks, key=ranks.get):
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        there = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        there.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spell(left), spell(right)) for left, right in there]
    vocab = {spell(token): rank for token, rank in ranks.items()}
    return build(tokenizer_class, path, vocab, merges, special, split, True, nfc)


def save_hugging_face(
    tokenizer: object, path: str | Path, begin: str = "", pad: bool = False
) -> None:
    """Write a `tokenizer.json` that the `tokenizers` library loads.

    That library then puts the special token `begin`, if given, before every text. If `pad`, there
    is a special token PAD, which is that of the byte 0xFF unless the tokenizer has its own.
    """
    vocab, named = spelled_vocab(tokenizer), tokenizer.special_tokens
    merges = spelled_merges(tokenizer)
    # Of two names of a token, only one is written.
    named = {text: i for text, i in named.items() if tokenizer.vocab[i] == text.encode("utf-8")}
    if pad and PAD not in named:
        named = {PAD: padding(tokenizer)} | named
        vocab = {PAD if text == FILLER else text: i for text, i in vocab.items()}
        merges = [pair for pair in merges if FILLER not in pair[0] + pair[1]]  # none meets a text
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    words = byte_level | {"use_regex": tokenizer.split == "gpt2"}
    if tokenizer.split != "gpt2":
        pattern = {"Regex": SPLITS.get(tokenizer.split, tokenizer.split)}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        words = {"type": "Sequence", "pretokenizers": [split, words]}
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "special": True} | special for text, i in named.items()
        ],
        "normalizer": {"type": "NFC"} if getattr(tokenizer, "nfc", False) else None,
        "pre_tokenizer": words,
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
            "ignore_merges": bool(getattr(tokenizer, "whole_words", {})),
            "vocab": vocab,
            "merges": merges,
        },
    }
    write_text(Path(path), json.dumps(value, ensure_ascii=False, indent=1))


def padding(tokenizer: object) -> int:
    """The id of the token PAD in an exported tokenizer."""
    return tokenizer.special_tokens.get(PAD, spelled_vocab(tokenizer)[FILLER])


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
    """The byte-level BPE in a `tokenizer.json`; UserError that names what differs if v4 cannot have
    it."""
    path, saved = Path(path), read_json(path)
    try:
        model, added = saved["model"], saved["added_tokens"]
        if (kind := model.get("type", "BPE")) != "BPE":
            raise UserError(f"{path} is not a byte-level BPE: its model is {kind}")
        nfc = is_nfc(saved["normalizer"], path)
        split = split_of(saved["pre_tokenizer"], path)
        for name in NOT_OURS:
            if model.get(name):
                raise UserError(f"{path} is not a byte-level BPE like GPT-2's: its {name} differs")
        for token in added:
            if any(map(token.get, NOT_LITERAL)) or (nfc and token.get("normalized")):
                raise UserError(f"{path} matches {token['content']!r} in another way than ours")
        special = {token["content"]: token["id"] for token in added}
        if len(special) < len(added):
            raise UserError(f"{path} is damaged: an added token occurs twice")
        if "" in special:
            raise UserError(f"{path} is damaged: an added token is empty")
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        if any(len(merge) != 2 for merge in merges):
            raise UserError(f"{path} is damaged: a merge does not join two tokens")
        vocab, whole = model["vocab"], bool(model.get("ignore_merges"))
        if FILLER not in vocab and PAD in special:  # as exported
            vocab |= {FILLER: special.pop(PAD)}
            vocab.pop(PAD, None)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path} is not a tokenizer.json") from None
    return build(tokenizer_class, path, vocab, merges, special, split, whole, nfc)


def is_nfc(normalizer: dict | None, path: Path) -> bool:
    """Whether a tokenizer.json normalizes; UserError if it does in another way than by NFC."""
    normalizer = normalizer or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if others := [step["type"] for step in steps if step["type"] != "NFC"]:
        raise UserError(
            f"{path} is not a byte-level BPE like GPT-2's: its normalizer is {others[0]}"
        )
    return bool(steps)


def split_of(pre_tokenizer: dict | None, path: Path) -> str:
    """The name or pattern by which a tokenizer.json splits a text; UserError if otherwise."""
    steps = [pre_tokenizer or {"type": "missing"}]
    if steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    kinds, last = [step["type"] for step in steps], steps[-1]
    differs = f"{path} is not a byte-level BPE like GPT-2's: its"
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise UserError(f"{differs} pre_tokenizer is {' and '.join(kinds)}")
    if last.get("add_prefix_space"):
        raise UserError(f"{differs} add_prefix_space differs")
    if last.get("use_regex", True) != (len(steps) == 1):
        raise UserError(f"{differs} use_regex differs")
    if len(steps) == 1:
        return "gpt2"
    pattern, how = steps[0]["pattern"].get("Regex"), (steps[0]["behavior"], steps[0]["invert"])
    if pattern in NAMES and how in (("Isolated", False), ("Removed", True)):
        return NAMES[pattern]  # without a rest, there is nothing to remove
    if pattern is None or how != ("Isolated", False):
        raise UserError(f"{differs} Split differs: {pattern or 'of a string'}, {how[0]}")
    if len(pattern) > MOST_CHARACTERS:
        raise UserError(f"{differs} Split has more than {MOST_CHARACTERS:,} characters")
    if found := OTHERWISE.search(pattern):
        raise UserError(f"{differs} Split has {found[0]!r}, which `regex` takes otherwise")
    try:
        if regex.compile(pattern).fullmatch(""):
            raise UserError(f"{differs} Split may take nothing for a word")
        if not pattern.endswith(REST):  # what the pattern leaves out is a word, too
            pattern = regex.compile(f"{pattern}|(?:(?!{pattern}){REST}").pattern
        return pattern
    except (regex.error, RecursionError) as error:
        raise UserError(f"{differs} Split is no pattern of `regex`: {error}") from None
