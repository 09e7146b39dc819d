"""Words found by numpy are those of GPT-2's pattern, and their numbers never lie."""

from collections import Counter
from itertools import chain, repeat

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from shared import text as shared_text
from shared.fast_bpe import words
from shared.fast_bpe.words import WordCounts, WordNumbers, find_special
from shared.files import UserError
from shared.text import whole_words

GPT2 = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
NASTY = "  \n\t'stmdlver aZ19.,<|>\x1c\x85\u00a0\u3000🙂é\u0301\0٣漢"
TEXTS = st.text() | st.text(st.sampled_from(NASTY), max_size=80)
TEXTS = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))


def split(text: str, fixed=words.NOTHING) -> list[str]:
    table = WordNumbers()
    numbers = table.numbers(text.encode("utf-8"), fixed)
    spelled = [word.decode("utf-8") for word in table.words]
    return [spelled[number] if number >= 0 else None for number in numbers]


@given(TEXTS)
@example("it's 'twas don't we'll they've you're I'm he'd O'S 's 'lx 'v")
@example("a''s ''s's 's't \n's\t'll'll  's 'l")
@example("  a   b \n c\n\n d \u3000e \u3000 f  ")
@example("x" * 14 + " " + "y" * 15 + " " + "z" * 16 + " " + "z" * 70)
@example("a\0 a a\0\0 \0")
def test_words_are_those_of_the_pattern(text):
    assert split(text) == GPT2.findall(text)


@given(st.lists(TEXTS, max_size=6), st.integers(1, 40))
def test_blocks_do_not_show(texts, size):
    """However small the blocks, the words are the same."""
    text = " ".join(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", size)
        assert split(text) == GPT2.findall(text)


@given(st.lists(TEXTS), st.lists(st.sampled_from(["<|a|>", "<|a|>b", " c d", "é ", "'"])))
def test_counts_are_those_of_the_pattern(texts, special_tokens):
    """Text by text, and what is between special tokens for itself."""
    expected = Counter()
    longest_first = sorted(special_tokens, key=lambda token: len(token.encode("utf-8")))[::-1]
    pattern = "|".join(map(regex.escape, longest_first)) or "(?!)"
    for text in texts:
        for part in regex.split(pattern, text):
            expected.update(GPT2.findall(part))
    counts = WordCounts(special_tokens)
    for text in texts:
        counts.add([text])
    together = WordCounts(special_tokens)
    together.add(texts)
    for found in (counts, together):
        assert {word.decode("utf-8"): n for word, n in zip(*found.found())} == expected


@given(
    st.lists(TEXTS),
    st.lists(st.sampled_from(["<|a|>", "b b", "a", "aa", "é é"]), unique=True),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_texts_cut_anywhere_are_cut_anew_where_words_end(texts, special_tokens, size, chance):
    special = "|".join(sorted(special_tokens, key=len)[::-1]) or "(?!)"

    def cut(piece):
        parts = regex.split(f"({special})", piece)
        return [w for i, p in enumerate(parts) for w in ([p] if i % 2 else GPT2.findall(p))]

    given = []
    for text in texts:
        data, at = text.encode("utf-8"), chance.randint(0, 20)  # bytes also inside a character
        given += chance.choice([[text], [data[:at], data[at:]]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_text, "PIECE", size)
        pieces = list(whole_words(given, special_tokens))
    assert [word for piece in pieces for word in cut(piece.decode("utf-8"))] == cut("".join(texts))


def test_a_letter_of_two_surrogates_is_not_cut_from_its_word(monkeypatch):
    monkeypatch.setattr(shared_text, "PIECE", 16)
    text = "x" * 6 + "A\ud801\udc00" + "!" * 40 + "\ud801"
    for size in range(1, len(text)):
        pieces = list(whole_words(text[i : i + size] for i in range(0, len(text), size)))
        cut = [word for piece in pieces for word in GPT2.findall(piece.decode("utf-8"))]
        assert cut == ["xxxxxxA\U00010400", "!" * 40 + "\ufffd"], size
    assert b"".join(whole_words(["a\ud801", b"b", "\udc00"])).decode() == "a\ufffdb\ufffd"


def test_what_has_no_words_is_refused(monkeypatch):
    monkeypatch.setattr(shared_text, "PIECE", 100)
    monkeypatch.setattr(shared_text, "LONGEST_WORD", 1000)
    with pytest.raises(UserError, match="from byte 3 on"):
        list(whole_words(chain(["abc "], repeat("\0" * 50))))
    with pytest.raises(UserError, match="from byte 0 on"):
        list(whole_words(repeat(" \n" * 50)))
    assert b"".join(whole_words(["abc ", *["\0" * 50] * 15])) == b"abc " + b"\0" * 750


@given(TEXTS, st.sampled_from(["<|end|>", "s", " ", "'", "é", "1"]), TEXTS, TEXTS)
def test_what_is_fixed_is_a_word_of_its_own(before, special, between, after):
    text, fixed, expected = "", [], []
    for part in (before, between):
        text, expected = text + part, [*expected, *GPT2.findall(part), None]
        start = len(text.encode("utf-8"))
        fixed.append((start, start + len(special.encode("utf-8"))))
        text += special
    assert split(text + after, np.array(fixed)) == [*expected, *GPT2.findall(after)]


@given(st.lists(st.lists(st.text(max_size=20), min_size=1), max_size=4), st.sampled_from([2, 64]))
def test_tables_of_few_places_still_number_words(many, slots):
    """Of words that want the same place, one is in the table and all are in the dictionary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "SLOTS", slots)
        table = WordNumbers()
        for texts in many:
            text = " ".join(texts).encode("utf-8", "replace").decode("utf-8")
            numbers = table.numbers(text.encode("utf-8"))
            assert [table.words[n].decode("utf-8") for n in numbers] == GPT2.findall(text)


def test_words_that_begin_alike_have_numbers_of_their_own():
    """Of all lengths, and of the bytes that an empty place in a table could be confused with."""
    text = "\n".join(letter * n for n in range(1, 40) for letter in ("a", "\0", "ÿ", "\U0010ffff"))
    table = WordNumbers()
    for _ in range(2):
        numbers = table.numbers(text.encode("utf-8"))
        assert [table.words[n].decode("utf-8") for n in numbers] == GPT2.findall(text)
    assert len(table.words) == len(set(GPT2.findall(text)))


@pytest.mark.parametrize("data", [b"a\xff", b"\xf8\x88\x80\x80\x80 a"])
def test_bytes_that_are_not_utf8_are_refused(data):
    with pytest.raises(ValueError, match="utf-8"):
        WordNumbers().numbers(data)


def test_every_character_is_of_the_kind_that_the_pattern_says():
    """Asked where it matters: each between two letters, spaces, blanks and signs."""
    codes = [*range(0xD800), *range(0xE000, 0x110000, 7)]
    for frame in ("a{}a", " {} ", "1{}\n", "!{}!"):
        text = "\n\n".join(frame.format(chr(code)) for code in codes)
        assert split(text) == GPT2.findall(text)


BYTES = st.lists(st.sampled_from([b"a", b"b", b"<"]), min_size=1, max_size=4).map(b"".join)


@given(st.lists(BYTES, max_size=20).map(b"".join), st.lists(BYTES, max_size=4, unique=True))
def test_special_tokens_are_found_from_left_to_right(data, special_tokens):
    """Against a search at every place; of those that start at one, the longest counts."""
    expected, at = [], 0
    while at < len(data):
        here = [token for token in special_tokens if data.startswith(token, at)]
        if here:
            token = max(here, key=len)
            expected.append([at, at + len(token), special_tokens.index(token)])
        at += len(token) if here else 1
    assert find_special(data, special_tokens).tolist() == expected
