"""v4_modern/encode.py: what it writes, and what it must not write over."""

import os

import numpy as np
import pytest
from test_errors import complaint

from shared import token_files
from shared.files import json_sha256
from shared.token_files import open_token_file
from v4_modern import encode
from v4_modern.train import Tokenizer

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "text.npy.json").write_text(TEXT)
    (tmp_path / "text.npy.check").write_text(TEXT)
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    Tokenizer.train([TEXT], 270).save("learned.json")
    Tokenizer.train([TEXT], 270, special_tokens=["<|end|>"]).save("other.json")
    return tmp_path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The file of a tokenizer whose ids don't fit into 16 bits."""
    path = tmp_path_factory.mktemp("large") / "large.json"
    Tokenizer([divmod(i, 256) for i in range(1 << 16)]).save(path)
    return path


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("text.txt text.txt", "overwritten"),
        ("text.npy.json text.npy", "overwritten"),  # by the tokenizer
        ("text.npy.check text.npy", "overwritten"),  # by the checksum
        ("text.txt learned.json --tokenizer learned.json", "overwritten"),
        ("text.txt folder/../learned.json --tokenizer learned.json", "overwritten"),
        ("text.txt learned.json --tokenizer .", "ends in .npy"),
        ("text.txt learned.json --format llmc", "ends in .bin"),
        ("text.txt new.npy --format nanogpt", "ends in .bin"),
        ("text.txt folder", "folder is not a file"),
        ("text.txt .", ". is not a file"),
        ("text.txt pipe", "pipe is not a file"),
        ("text.txt nothing.txt/new.npy", "no files can be written to"),
        ("pipe new.npy", "cannot be a pipe"),
        ("nowhere.txt new.npy", "nowhere.txt is not there"),
        ("nothing.txt new.npy", "no text"),
        ("text.txt new.npy --tokenizer learned.json --vocab-size 300", "--vocab-size"),
        ("text.txt new.npy --tokenizer other.json", "has no <|endoftext|>"),
    ],
)
def test_nothing_is_overwritten_and_mistakes_are_told(arguments, said, folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert said in complaint(encode, arguments.split(), capsys)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_tokens_and_their_tokenizer_stay_until_both_can_be_replaced(folder, monkeypatch):
    encode.main(["text.txt", "new.npy", "--vocab-size", "275"])
    before = {path: path.read_bytes() for path in folder.glob("new.npy*")}
    (folder / "text.txt").write_text(TEXT.upper())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(encode, "encode_texts", interrupted)
    with pytest.raises(SystemExit):
        encode.main(["text.txt", "new.npy", "--vocab-size", "280"])
    assert {path: path.read_bytes() for path in folder.glob("new.npy*")} == before


@pytest.mark.parametrize("options", ["--vocab-size 275", "--tokenizer learned.json"])
def test_the_tokens_are_of_the_text_and_of_the_tokenizer(options, folder):
    encode.main(["text.txt", "new.npy/", *options.split()])
    name = "learned.json" if "learned" in options else "new.npy.json"
    tokenizer = Tokenizer.load(folder / name)
    assert tokenizer.vocab_size == (270 if "learned" in options else 275)
    tokens = open_token_file(folder / "new.npy", json_sha256(tokenizer.to_json()))
    assert tokenizer.decode(tokens) == "<|endoftext|>" + TEXT


def bare(path):
    """As nanoGPT's train.py reads its train.bin."""
    return np.memmap(path, dtype=np.uint16, mode="r")


def with_header(path):
    """As llm.c's train_gpt2.py and train_llama3.py read a shard."""
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(256 * 4), dtype=np.int32)
        types = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}
        tokens = np.frombuffer(file.read(), dtype=types[header[0], header[1]])
    assert len(tokens) == header[2] and not header[3:].any()
    return tokens


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("form, read", [("npy", np.load), ("nanogpt", bare), ("llmc", with_header)])
def test_other_trainers_read_what_is_written_for_them(
    form, read, is_large, folder, large, monkeypatch, capsys
):
    name = str(large) if is_large else "learned.json"
    if form == "nanogpt" and is_large:
        command = ["text.txt", "new.bin", "--tokenizer", name, "--format", form]
        assert "ids below 65,536" in complaint(encode, command, capsys)
        assert not (folder / "new.bin").exists()
        return
    monkeypatch.setattr(token_files, "SLICE", 7)
    command = ["text.txt", "new.npy", "--tokenizer", name]
    encode.main(command)
    tokenizer = Tokenizer.load(folder / name)
    ids = open_token_file(folder / "new.npy", json_sha256(tokenizer.to_json()))
    other = "other.npy" if form == "npy" else "other.bin"
    encode.main([*command[:1], other, *command[2:], "--format", form])
    tokens = read(folder / other)
    assert tokens.dtype == ids.dtype and np.array_equal(tokens, ids)
    left = {path.name for path in folder.iterdir() if path.is_dir()}
    assert left == {"folder"}
