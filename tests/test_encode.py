"""v4_modern/encode.py: what it writes, and what it must not write over."""

import os

import pytest
from test_errors import complaint

from shared.files import json_sha256
from shared.tokens import open_token_file
from v4_modern import encode
from v4_modern.train import Tokenizer

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "text.bin.json").write_text(TEXT)
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    Tokenizer.train([TEXT], 270).save("learned.json")
    Tokenizer.train([TEXT], 270, special_tokens=["<|end|>"]).save("other.json")
    return tmp_path


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("text.txt text.txt", "overwritten"),
        ("text.bin.json text.bin", "overwritten"),  # by the tokenizer
        ("text.txt learned.json --tokenizer learned.json", "overwritten"),
        ("text.txt folder/../learned.json --tokenizer learned.json", "overwritten"),
        ("text.txt folder", "folder is not a file"),
        ("text.txt .", ". is not a file"),
        ("text.txt pipe", "pipe is not a file"),
        ("text.txt nothing.txt/new.bin", "no files can be written to"),
        ("pipe new.bin", "cannot be a pipe"),
        ("nowhere.txt new.bin", "nowhere.txt is not there"),
        ("nothing.txt new.bin", "no text"),
        ("text.txt new.bin --tokenizer learned.json --vocab-size 300", "--vocab-size"),
        ("text.txt new.bin --tokenizer other.json", "has no <|endoftext|>"),
    ],
)
def test_nothing_is_overwritten_and_mistakes_are_told(arguments, said, folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert said in complaint(encode, arguments.split(), capsys)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_tokens_and_their_tokenizer_stay_until_both_can_be_replaced(folder, monkeypatch):
    encode.main(["text.txt", "new.bin", "--vocab-size", "275"])
    before = {path: path.read_bytes() for path in folder.glob("new.bin*")}
    (folder / "text.txt").write_text(TEXT.upper())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(encode, "encode_texts", interrupted)
    with pytest.raises(SystemExit):
        encode.main(["text.txt", "new.bin", "--vocab-size", "280"])
    assert {path: path.read_bytes() for path in folder.glob("new.bin*")} == before


@pytest.mark.parametrize("options", ["--vocab-size 275", "--tokenizer learned.json"])
def test_the_tokens_are_of_the_text_and_of_the_tokenizer(options, folder):
    encode.main(["text.txt", "new.bin/", *options.split()])
    name = "learned.json" if "learned" in options else "new.bin.json"
    tokenizer = Tokenizer.load(folder / name)
    assert tokenizer.vocab_size == (270 if "learned" in options else 275)
    tokens = open_token_file(folder / "new.bin", json_sha256(tokenizer.to_json()))
    assert tokenizer.decode(tokens) == "<|endoftext|>" + TEXT
