"""Words found by numpy are those of GPT-2's pattern, and their numbers never lie."""

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from shared import words
from shared.words import Rows, WordNumbers, join

GPT2 = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
NASTY = "  \n\t'stmdlver aZ19.,<|>\x1c\x85\u00a0\u3000🙂é\u0301\0٣漢"
TEXTS = st.text() | st.text(st.sampled_from(NASTY), max_size=80)
TEXTS = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))


def split(text: str, fixed=()) -> list[str]:
    table = WordNumbers()
    numbers = table.numbers(text, fixed)
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
    """However small the blocks, the words and their numbers are the same."""
    text = " ".join(texts)
    whole = WordNumbers()
    numbers = whole.numbers(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", size)
        patch.setattr(words, "SMALL_BLOCK", size)
        pieces = WordNumbers()
        assert pieces.numbers(text).tolist() == numbers
    assert pieces.words == whole.words


@given(st.lists(TEXTS), st.integers(1, 40))
def test_joined_texts_are_cut_as_each_alone(texts, size):
    expected = [word for text in texts for word in GPT2.findall(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "BLOCK", size)
        found = [word for text, fixed in join(texts) for word in split(text, fixed)]
    assert [word for word in found if word is not None] == expected


@given(TEXTS, st.sampled_from(["<|end|>", "s", " ", "'", "é", "1"]), TEXTS, TEXTS)
def test_what_is_fixed_is_a_word_of_its_own(before, special, between, after):
    text, fixed, expected = "", [], []
    for part in (before, between):
        text, expected = text + part, [*expected, *GPT2.findall(part), None]
        fixed.append((len(text), len(text) + len(special)))
        text += special
    assert split(text + after, fixed) == [*expected, *GPT2.findall(after)]


@given(st.lists(st.lists(st.text(max_size=20), min_size=1), max_size=4))
def test_a_table_of_one_place_still_numbers_words(many):
    """All words want the same place: each is found in the dictionary then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "SLOTS", 2)
        table = WordNumbers()
        for texts in many:
            text = " ".join(texts).encode("utf-8", "replace").decode("utf-8")
            numbers = table.numbers(text)
            assert [table.words[n].decode("utf-8") for n in numbers] == GPT2.findall(text)


def test_every_character_is_of_the_kind_that_the_pattern_says():
    kinds = words.kinds_of_characters()
    for code in [*range(0xD800), *range(0xE000, 0x110000, 7)]:
        c = chr(code)
        expected = (
            words.LETTER
            if regex.match(r"\p{L}", c)
            else words.NUMBER
            if regex.match(r"\p{N}", c)
            else words.WHITE
            if regex.match(r"\s", c)
            else words.OTHER
        )
        assert kinds[code] == expected, hex(code)


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1), st.data())
def test_rows(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    table = Rows()
    for some in (rows[:cut], rows[cut:]):
        ids = np.array([i for row in some for i in row], np.int64)
        table.append(ids, np.array([len(row) for row in some], np.int64))
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    laid = table.lay(np.array(numbers, np.int64)).tolist()
    assert laid == [i for number in numbers for i in rows[number]]
