"""How much of a vocabulary is chance: of pairs that occur equally often, one has to merge first.

    pip install tokenizers rustbpe bpeasy
    python benchmarks/ties.py

Each library learns as many tokens as v4 does as it ships, from the same text, in GPT-2's words.
The table says which of equal pairs it takes, and how many of v4's tokens, bytes left out, it has,
too.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
from benchmarks.common import load_version, markdown
from benchmarks.tokenizers import train_bpeasy, train_hugging_face, train_rustbpe
from shared.command_line import clear_errors
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.terminal import print_text
from v4_modern.tokenizer_files import BYTES


def of_v4(texts: list[str], size: int) -> set[bytes]:
    """The tokens that v4 learns, `size` and the special one; like those below."""
    return set(load_version("v4_modern").Tokenizer.train(texts, size).vocab)


def of_tokenizers(texts: list[str], size: int) -> set[bytes]:
    spelled = set(train_hugging_face(texts, size, 1).get_vocab()) - {END_OF_TEXT}
    return {bytes(BYTES[character] for character in token) for token in spelled}


def of_rustbpe(texts: list[str], size: int) -> set[bytes]:
    return {bytes(token) for token, _ in train_rustbpe(texts, size, 1).get_mergeable_ranks()}


def of_bpeasy(texts: list[str], size: int) -> set[bytes]:
    return set(train_bpeasy(texts, size, 1))


FIRST: dict[str, tuple[str, Callable]] = {
    "v4": ("the greatest by its bytes", of_v4),
    "tokenizers": ("the smallest ids; a blank, as in GPT-2, is 220", of_tokenizers),
    "rustbpe": ("the smallest ids; a blank is 32", of_rustbpe),
    "bpeasy": ("the smallest ids; a blank is 32", of_bpeasy),
}


def compare(texts: list[str], size: int) -> list[list[str]]:
    """A row for each library: name and version, what it takes, the share of v4's tokens."""
    rows, single = [], {bytes([byte]) for byte in range(256)} | {END_OF_TEXT.encode()}
    for name, (rule, learn) in FIRST.items():
        learned = learn(texts, size) - single
        if name == "v4":
            v4s = learned
        name += f" {version(name)}" if name != "v4" else ""
        rows.append([name, rule, f"{len(learned & v4s) / len(v4s):.1%}"])
    return rows


def main() -> None:
    with clear_errors():
        texts = list(read_documents(load_corpus("pydocs").train))
        size = load_version("v4_modern").Config().vocab_size
        head = ["", "of pairs equally often, merges first", "tokens in common"]
        print_text(markdown([head, *compare(texts, size)]))


if __name__ == "__main__":
    main()
