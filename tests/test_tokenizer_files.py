"""Tokenizers in other people's files: the same ids there and back."""

import json
import shutil

import pytest
import tiktoken
import tokenizers
import torch
from conftest import load_version, small_arguments, small_text
from hypothesis import example, given
from hypothesis import strategies as st
from test_errors import complaint

from shared.corpora import END_OF_TEXT
from shared.files import UserError
from v4_modern import tokenizer_files as files

v4 = load_version("v4_modern")
Tokenizer = v4.Tokenizer
PROSE = small_text()
TOKENIZER = Tokenizer.train([PROSE, "naïve 漢字漢字 aaaaaa \n\n 1234"], 420, [END_OF_TEXT, "<|a|>"])
# GPT-2 numbers bytes in another order: those that are visible first.
ORDER = bytes([*files.VISIBLE, *files.HIDDEN])
GPT2S = Tokenizer(
    [tuple(ORDER.index(i) if i < 256 else i for i in pair) for pair in TOKENIZER.merges],
    TOKENIZER.special_tokens,
    ORDER,
)
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
    again = files.load_gpt2(Tokenizer, tmp_path)
    assert again.to_json() == tokenizer.to_json()
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


def make_of_a_later_one(saved):
    """The first merge is of what only the second makes."""
    bytes_only = {text: i for text, i in saved["model"]["vocab"].items() if i < 256}
    saved["model"] |= {"vocab": bytes_only | {"zqx": 256, "zq": 257}}
    saved["model"] |= {"merges": [["zq", "x"], ["z", "q"]]}
    saved["added_tokens"] = []


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda saved: saved.pop("model"), "is not a tokenizer.json"),
        (lambda saved: saved["model"].update(type="Unigram"), "not a byte-level BPE"),
        (lambda saved: saved.update(pre_tokenizer=None), "not a byte-level BPE"),
        (lambda saved: saved["pre_tokenizer"].update(use_regex=False), "its use_regex differs"),
        (lambda saved: saved["model"].update(ignore_merges=True), "its ignore_merges differs"),
        (
            lambda saved: saved["model"].update(end_of_word_suffix="</w>"),
            "its end_of_word_suffix differs",
        ),
        (lambda saved: saved["model"]["merges"].append("the"), "is not a tokenizer.json"),
        (lambda saved: saved["added_tokens"][0].update(lstrip=True), "another way"),
        (lambda saved: saved["added_tokens"].append({"id": 97, "content": "a"}), "another way"),
        (lambda saved: saved["added_tokens"].append({"id": 301, "content": ""}), "ids are not"),
        (lambda saved: saved["model"]["vocab"].pop("Ġthe"), "do not fit|ids are not"),
        (lambda saved: saved["model"]["vocab"].update(a=7, b=7), "do not fit|ids are not"),
        (lambda saved: saved["model"]["merges"].pop(0), "ids are not|do not fit"),
        (lambda saved: saved["model"]["merges"].append(["漢", "a"]), "do not match"),
        (lambda saved: saved["added_tokens"][0].update(content=7), "do not match"),
        (lambda saved: saved["added_tokens"].append(saved["added_tokens"][0]), "occurs twice"),
        (make_of_a_later_one, "do not match"),
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
