"""The words of all splits that have a name are those of their patterns, in numpy, too."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import regex
import tiktoken
from conftest import load_version, small_text
from hypothesis import example, given
from hypothesis import strategies as st

from shared import text as shared_text
from shared.fast_bpe import learn, words
from shared.fast_bpe.splits import bounds_of, pattern_bounds
from shared.fast_bpe.words import WordCounts, WordNumbers
from shared.splits import SPLITS
from shared.text import whole_words

v4 = load_version("v4_modern")
LATER = [name for name in SPLITS if name != "gpt2"]  # whose words test_words.py has
PATTERNS = {name: regex.compile(SPLITS[name]) for name in LATER}
# Blanks and line ends, letters with case (ǅ has both), without and of several bytes, marks, digits.
NASTY = "  \n\t\r'stmdlver aZATK19.,/!<|>\x1c\x85\u00a0\u3000🙂é\u0301\u0300\0٣漢ʰǅſßÉ’ा"
PARTS = ["'s", "'ll", "'RE", "'ſ", " '", "\n", "/", "!", "\u0301", "漢", "A", "b", "12", " ", "\r"]
TEXTS = st.text() | st.text(st.sampled_from(NASTY), max_size=80)
TEXTS |= st.lists(st.sampled_from([*PARTS, "it's", "\u2764\ufe0f", "\t"])).map("".join)
TEXTS = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))
NONE = np.zeros((0, 2), np.int64)


def split_at(bounds: np.ndarray, data: bytes) -> list[str]:
    assert bounds[0] == 0 or not data
    return [data[i:j].decode("utf-8") for i, j in zip(bounds.tolist(), bounds[1:].tolist())]


@pytest.mark.parametrize("name", LATER)
def test_words_are_those_of_the_pattern(name):
    """On any text; the examples are where the rules meet."""

    @given(TEXTS)
    @example("it's 'twas I'LL'S's 'S's's a\u0301's !'s \n's\t's's 'lx'v '' ''s 's")
    @example("  a \t b \n c\n\n d \u3000e \u00a0!f  (g) \t!h ((i) a!b !\u0301c  ")
    @example("!\n\n  x\n  \n \n  y \r\n!\r\n \r\n")
    @example("a\n \n  ")
    @example("!\n ")
    @example("1 12 123 1234 1234567 ١٢٣٤٥٦٧ 1\u0301234")
    @example("aB ABc ABC 漢A 漢Ab a漢A a漢Ab A漢B漢C A漢Bc aʰB it's漢Ab it'SAB Aa\u0301B ǅa Bǅ")
    @example("!\n/ !\n//x !/\n/!\n/! a\n/ /\n/ //\n\n/\n/ !\n\u0301/\n/ !!\u0301\n/x")
    @example("\u2764\ufe0f \u2764\ufe0fx !!\u0301x !\u0301x!\u0301!!\u0301x \u0301\u0301!\u0301A")
    @example("\0\0 \x1c\x85\u180e\u200b\u2028\ufeffa \U0001f469\u200d\U0001f4bb")
    def same(text):
        data = text.encode("utf-8")
        found = bounds_of(name)(data, NONE)
        assert split_at(found, data) == PATTERNS[name].findall(text)

    same()


@pytest.mark.parametrize("name", LATER)
def test_what_is_fixed_ends_and_begins_a_text(name):
    """So it does for the pattern, which gets the parts between; blocks make no difference."""

    @given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from(["é ", "'", "  ", "\n", "AB"]))
    def same(texts, fixed):
        parts = [part.encode("utf-8") for part in texts]
        ends = np.cumsum([len(part) + len(fixed.encode()) for part in parts])[:-1]
        spans = np.stack((ends - len(fixed.encode()), ends), 1)
        data = fixed.encode().join(parts)
        expected = [w for text in texts for w in (fixed, *PATTERNS[name].findall(text))][1:]
        for found in (bounds_of(name), lambda *given: pattern_bounds(PATTERNS[name], *given)):
            assert split_at(found(data, spans), data) == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(words, "BLOCK", 7)
            table = WordNumbers(name)
            numbers = table.numbers(data, spans).tolist()
            found = [table.words[n].decode("utf-8") if n >= 0 else fixed for n in numbers]
            assert found == expected

    same()


@pytest.mark.parametrize("name", LATER)
def test_texts_are_cut_where_words_end(name):
    @given(st.lists(TEXTS), st.integers(1, 30))
    def same(texts, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shared_text, "PIECE", size)
            pieces = list(whole_words(texts, [], name))
        found = [word for piece in pieces for word in PATTERNS[name].findall(piece.decode("utf-8"))]
        assert found == PATTERNS[name].findall("".join(texts))

    same()


# But for surrogates, for what is private, and for the planes in which there is nothing yet.
CHARACTERS = [chr(i) for i in (*range(0xD800), *range(0xF900, 0x34000), *range(0xE0000, 0xE0200))]


@cache
def kind_at_tiktokens(kind: str) -> np.ndarray:
    """Which of CHARACTERS are of a `kind` there: after an a, they are a word with it, and merge."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {b"a" + bytes([byte]): 256 + byte for byte in range(256)}
    pattern = rf"a\p{{{kind}}}|[\s\S]"
    them = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ids = them.encode_to_numpy("".join("a" + character for character in CHARACTERS))
    starts = np.cumsum([0, *(1 + len(character.encode("utf-8")) for character in CHARACTERS)])
    lengths = np.where(ids < 256, 1, 2)
    return np.isin(starts[:-1], (np.cumsum(lengths) - lengths)[ids >= 256])


@pytest.mark.parametrize("kind", ["L", "N", "M", "Ll"])
def test_kinds_of_characters_are_tiktokens(kind):
    """But for those younger than its Unicode, which to it are nothing yet (v4_modern/README.md)."""
    theirs, ours = (
        {c for c, is_kind in zip(CHARACTERS, kinds) if is_kind}
        for kinds in (
            kind_at_tiktokens(kind),
            [regex.match(rf"\p{{{kind}}}", character) for character in CHARACTERS],
        )
    )
    unknown = {c for c, is_kind in zip(CHARACTERS, kind_at_tiktokens("Cn")) if is_kind}
    assert len(ours & theirs) > 1500
    assert ours - theirs <= unknown
    younger = {c for c in theirs - ours if regex.match(r"\p{Cn}", c)}  # with an older `regex`
    assert theirs - ours - younger <= ({"\u0295"} if kind == "Ll" else set())  # lost its case


def test_words_of_an_unknown_split_are_cut_only_at_special_tokens(monkeypatch):
    """Words of two letters: each cut inside would move all that follow."""
    monkeypatch.setattr(shared_text, "PIECE", 5)
    pieces = list(whole_words(["ab cd e<|a|>f gh i j<|a|>", "kl"], ["<|a|>"], r"\w?[\s\S]"))
    assert pieces == [b"ab cd e<|a|>f gh i j", b"<|a|>kl"]
    assert list(whole_words(["ab cd e<|a|>f", " gh", "ij"], ["<|a|>"], r"\w?[\s\S]"))[1:] == [
        b"<|a|>f ghij"
    ]
    monkeypatch.setattr(words, "MOST_WORDS", 3)  # what is forgotten does not change the split
    counts = WordCounts(["<|a|>"], r"\w?[\s\S]")
    counts.add(["ab cd e<|a|>f gh"])
    counts.add(["gh ab"])
    expected = Counter(["ab", " ", "cd", " ", "e", "f ", "gh", "gh", " ", "ab"])
    assert {word.decode(): n for word, n in zip(*counts.found())} == expected


@pytest.mark.parametrize("name", LATER)
def test_v4_and_fast_bpe_learn_alike(name):
    assert v4.Tokenizer.pattern.pattern == SPLITS["gpt2"]
    text = small_text() + " It's I'LL CamelCase 123456\n\n  x //\n/ naïve 漢字A" * 3
    tokenizer = v4.Tokenizer.train([text], 400, split=name)
    assert learn([text], 400 - 257, ["<|endoftext|>"], 1, name) == tokenizer.merges
    assert tokenizer.merges != v4.Tokenizer.train([text], 400).merges
