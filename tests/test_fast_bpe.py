"""The engine for long texts learns the merges of v2's recount and gives the ids of tiktoken."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import regex
import tiktoken
from conftest import load_version, small_text
from hypothesis import example, given
from hypothesis import strategies as st

from shared import fast_bpe
from shared.corpora import END_OF_TEXT
from shared.fast_bpe import Encoder, encoder, learn, pairs, words
from shared.fast_bpe.encoder import Merger, PairRanks, Rows

v2 = load_version("v2_bpe_rope")
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Few letters, so that pairs come again; and what splits words in odd places.
TEXTS = st.lists(
    st.text(st.sampled_from("aab b'st\n\r 1é漢🙂\u0301\u00a0\x1c\x85\u3000")) | st.text(),
    max_size=4,
)
PROSE = small_text()


# ---- learning ----


def assert_merges_are_v2s(texts, n_merges, few):
    """With loops over `few` places, and numpy over more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "FEW", few)
        assert learn(texts, n_merges) == v2.Tokenizer.train(texts, 257 + n_merges).merges


@given(TEXTS, st.integers(0, 43), st.sampled_from([0, 3, pairs.FEW]))
@example(["aaaa aaa aa a", "abab ababab"], 23, 0)
@example(["aaaa aaa aa a", "abab ababab"], 23, pairs.FEW)
@example(PROSE.split(END_OF_TEXT), 143, pairs.FEW)
def test_deltas_learn_the_merges_of_the_recount(texts, n_merges, few):
    assert_merges_are_v2s(texts, n_merges, few)


@given(
    st.lists(st.text("abc", min_size=1, max_size=8), min_size=6, max_size=9),
    st.integers(0, 43),
    st.sampled_from([0, 3, pairs.FEW]),
)
def test_rare_pairs_are_counted_when_their_turn_comes(words, n_merges, few):
    """Some words are thousands of times as frequent as others, whose pairs come last."""
    assert_merges_are_v2s([f" {word}" * 3**i for i, word in enumerate(words)], n_merges, few)


@pytest.mark.parametrize("count", [3, 2**31 - 1, 2**31, 2**40])
@pytest.mark.parametrize("token", [256, 2**16 + 256])
@pytest.mark.parametrize("few", [0, pairs.FEW])
def test_counts_and_tokens_of_any_size(count, token, few, monkeypatch):
    monkeypatch.setattr(pairs, "FEW", few)
    words = pairs.LinkedWords([b"ab", b"abc", b"xabc"], [count, count, 1])
    a, b, c, x = b"abcx"
    assert words.total == 3 * count + 4 * count + 5
    assert words.pairs(1) == {(a, b): 2 * count + 1, (b, c): count + 1}
    rarer, new = map(list, words.merge(a, b, token))
    assert sorted(rarer) == [((b, c), count + 1), ((x, a), 1)]
    assert new == [((token, c), count + 1)]
    assert words.pairs(0) == {(token, c): count + 1, (x, token): 1}


PAIRS = st.tuples(st.integers(0, 6), st.integers(0, 6))


@given(
    st.dictionaries(PAIRS, st.integers(1, 9)),
    st.integers(0, 4),
    st.lists(st.lists(st.tuples(PAIRS, st.integers(1, 5)), max_size=6), max_size=30),
)
def test_the_most_frequent_pair_comes_first_whatever_has_changed(counts, least, turns):
    """Against a dictionary that is searched every time; 2 and 5 are tokens of the same bytes."""
    vocab = [b"a", b"b", b"ab", b"", b"aba", b"ab", b"\xff"]
    counts = {pair: least + count for pair, count in counts.items()}
    frequent = pairs.FrequentPairs(counts.items(), least, vocab)
    while found := frequent.pop():
        most = max(counts.values())
        equals = [(vocab[a], vocab[b]) for (a, b), count in counts.items() if count == most]
        assert counts.pop(found) == most > least
        assert (vocab[found[0]], vocab[found[1]]) == max(equals)
        for pair, change in turns.pop() if turns else []:
            if pair in counts and change <= counts[pair]:
                frequent.lower([(pair, change)])
                counts[pair] -= change
            elif pair not in counts:
                frequent.lower([(pair, change)])  # not there: nothing happens
                counts[pair] = min(change + least, most)
                frequent.add([(pair, counts[pair])])
    assert all(count <= least for count in counts.values()) and not frequent.counts


def test_learning_stops_when_no_pair_is_left():
    assert len(learn(["ab ab", ""], 1000)) == 2  # "ab" and " ab"
    assert learn([], 1000) == [] == learn(["ab"], 0)


def test_special_tokens_are_not_learned_from():
    merges = learn(["ab<|endoftext|>ab<|endoftext|>"], 43, [END_OF_TEXT])
    assert merges == learn(["ab", "ab"], 43)


# ---- encoding ----

MERGES = learn([PROSE, "naïve café 漢字漢字 🙂🙂 aaaa aaaaaaaa   \n\n\n1234"], 243)
END = 256 + len(MERGES)
ENCODER = Encoder(MERGES, {END_OF_TEXT: END})


def as_tiktoken(merges, special_tokens):
    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    ranks = {token: i for i, token in enumerate(spelled)}
    return tiktoken.Encoding(
        "ours", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=special_tokens
    )


ANY = st.text() | st.text(
    st.sampled_from("the cat's réd 42 aa\n\t \u00a0\x1c\x85\u3000🙂漢"), max_size=60
)


def test_bytes_may_have_other_ids():
    """And tokens: in the files of other libraries, they are in another order; here, turned."""
    turned = [tuple(END - i for i in pair) for pair in MERGES]
    parts = range(END, END - 256, -1), range(END - 256, 0, -1)
    ids = Encoder(turned, {END_OF_TEXT: 0}, "gpt2", *parts).encode(PROSE).tolist()
    assert [END - i for i in ids] == ENCODER.encode(PROSE).tolist()


def test_special_tokens():
    specials = [END_OF_TEXT, "<|a|>", "<|a|><|b|>", "|>x", " "]
    ours = Encoder(MERGES, {text: END + i for i, text in enumerate(specials)})
    end, a, ab, x, blank = range(END, END + 5)

    def encode(text):
        return ours.encode(text).tolist()

    assert encode("<|a|>") == [a]
    assert encode("<|a|><|b|>") == [ab]  # of two that begin together, the longer
    assert encode("<|a|>x<|a|><|a|>") == [a, *encode("x"), a, a]
    assert encode("|>x<|a|><|b|>") == [x, ab]
    assert encode("a b" + END_OF_TEXT) == [97, blank, 98, end]
    assert encode("<|b|>") == ENCODER.encode("<|b|>").tolist()  # none
    with pytest.raises(ValueError, match="everywhere"):
        Encoder(MERGES, {"": END})


@pytest.mark.parametrize("vocab_size", [2**16, 2**16 + 1])
def test_ids_are_as_small_as_the_vocabulary_allows(vocab_size):
    ours = Encoder([], {f"<{i}>": 256 + i for i in range(vocab_size - 256)})
    ids = ours.encode(f"a<{vocab_size - 257}>")
    assert ids.tolist() == [ord("a"), vocab_size - 1]
    assert ids.itemsize == (2 if vocab_size == 2**16 else 4)


@pytest.mark.parametrize("word", ["a" * 2049, "abcab" * 300, "cats" * 999, "ab" * 1024 + "a"])
def test_long_words_merge_like_short_ones(word):
    """Words of more than 128 bytes are merged otherwise; the ids are those of a naive BPE."""
    merges, ids = learn([word, "cat cats aaaa abc abab"], 33), list(word.encode())
    for rank, pair in enumerate(merges):
        i, merged = 0, []
        while i < len(ids):
            both = tuple(ids[i : i + 2]) == pair
            merged.append(256 + rank if both else ids[i])
            i += 1 + both
        ids = merged
    assert Encoder(merges, {}).encode(word).tolist() == ids


RUNS = st.lists(st.sampled_from(["a", "b", "c", "ab", "aaaaaa", "abcabc"])).map("".join)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=40),
    st.lists(RUNS.filter(bool), min_size=1, max_size=9),
    st.sampled_from([0, 3, encoder.LONG_WORD]),
)
@example([(0, 0), (1, 2), (0, 1)], ["aaabc", "aaaabcaaaab"], 0)  # overlaps, in one group
@example([(1, 0), (0, 0)], ["baaaa"], 0)  # where one takes the first a of others
def test_long_words_are_merged_like_short_ones_whatever_the_merges(drawn, words, long):
    """Of groups of merges at once, v2 makes one after the other."""
    merges, tokens = [], [*b"abc"]
    for pair in drawn:
        left, right = (tokens[i % len(tokens)] for i in pair)
        if (left, right) not in merges:
            merges.append((left, right))
            tokens.append(255 + len(merges))
    ours, simple = Merger(merges), v2.Tokenizer(merges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "LONG_WORD", long)
        ids, lengths = ours([word.encode() for word in words])
    expected = [simple.encode_word(word) for word in words]
    assert ids.tolist() == sum(expected, []) and lengths.tolist() == [len(e) for e in expected]


@pytest.mark.parametrize("letters", ["ACGT", "的一是不了人我在有他这中大来上国个到说们"])
def test_a_long_word_takes_no_pass_for_each_merge(letters, monkeypatch):
    """The ids are tiktoken's, and each place is looked at a few times, however many merges."""
    texts = ["".join(random.Random(seed).choices(letters, k=20_000)) for seed in range(2)]
    merges, looked_at, look_up = learn(texts[:1], 1000), [], PairRanks.look_up

    def counted(ranks, left, right):
        looked_at.append(len(left))
        return look_up(ranks, left, right)

    ours = Encoder(merges, {})
    monkeypatch.setattr(PairRanks, "look_up", counted)
    assert ours.encode(texts[1]).tolist() == as_tiktoken(merges, {}).encode_ordinary(texts[1])
    assert sum(looked_at) < 10 * len(texts[1].encode("utf-8"))


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), unique=True, max_size=300))
def test_ranks_of_pairs(some):
    """Also where some want the same place."""
    ranks, known = PairRanks(some), dict(zip(some, range(len(some))))
    asked = [*some, *((b, a) for a, b in some), (-1, -1), (5, -1), (-1, 5)]
    found = ranks.look_up(*np.array(asked, np.int64).T)
    assert found.tolist() == [known.get(pair, len(some)) for pair in asked]
    assert PairRanks([(a, b) for a in range(30) for b in range(90)]).shared.any()


def spell(new: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of words for which no merge was learned: their bytes."""
    return np.frombuffer(b"".join(new), np.uint8), np.array([len(word) for word in new], np.int64)


def spelling(merge, special_tokens) -> Encoder:
    """An encoder without merges that calls `merge` with new words."""
    ours = Encoder([], special_tokens)
    ours.merger = merge
    return ours


@given(st.lists(st.lists(ANY, min_size=1)), st.sampled_from([0, 5, 1000]))
def test_a_word_is_merged_once_unless_forgotten(texts, most):
    asked = []

    def merge(new):
        asked.append(new)
        return spell(new)

    texts = [[part.encode("utf-8", "replace").decode("utf-8") for part in t] for t in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "MOST_WORDS", most)
        patch.setattr(encoder, "MANY_WORDS", 3)
        patch.setattr(words, "SLOTS", 64)  # large tables take milliseconds to make
        ours = spelling(merge, {"<|b|>": 257, "<|a|>": 256})
        for parts in texts:
            encoded = ours.encode("<|a|>".join(parts)).tolist()
            assert encoded == [i for part in parts for i in [256, *part.encode("utf-8")]][1:]
    assert all(len(new) <= 3 for new in asked)
    distinct = [{w.encode("utf-8") for p in t for w in regex.findall(GPT2, p)} for t in texts]
    if most == 0:
        assert Counter(sum(asked, [])) == Counter(w for of_one in distinct for w in of_one)
    if most == 1000:
        assert Counter(sum(asked, [])) == Counter(set().union(*distinct))


@given(st.lists(ANY, min_size=1), st.sampled_from([1, 7, 30]))
def test_a_text_longer_than_a_piece_is_cut_where_words_end(parts, size):
    asked = []

    def merge(new):
        asked.extend(new)
        return spell(new)

    parts = [part.encode("utf-8", "replace").decode("utf-8") for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "PIECE", size)
        patch.setattr(words, "SLOTS", 64)
        ids = spelling(merge, {"<|a|>": 256}).encode("<|a|>".join(parts))
    assert ids.dtype == np.uint16
    assert ids.tolist() == [i for part in parts for i in [256, *part.encode("utf-8")]][1:]
    assert Counter(asked) == Counter(
        {w.encode("utf-8") for part in parts for w in regex.findall(GPT2, part)}
    )


def test_a_merge_that_is_interrupted_is_asked_for_again():
    asked = []

    def merge(new):
        asked.append(new)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return spell(new)

    ours = spelling(merge, {})
    assert ours.encode("a b").tolist() == [*b"a b"]
    with pytest.raises(KeyboardInterrupt):
        ours.encode("b c")
    assert ours.encode("c d").tolist() == [*b"c d"]
    assert ours.encode("a b c d").tolist() == [*b"a b c d"]


def test_several_threads_may_encode():
    texts = [f"{PROSE} {i}" * 3 for i in range(40)]
    ours = Encoder(MERGES, {END_OF_TEXT: END})
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ours.encode, texts))
    assert [ids.tolist() for ids in found] == [ENCODER.encode(text).tolist() for text in texts]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1), st.data())
def test_rows(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    table = Rows(np.dtype(np.uint8))
    for some in (rows[:cut], rows[cut:]):
        ids = np.array([i for row in some for i in row], np.int64)
        table.append(ids, np.array([len(row) for row in some], np.int64))
    numbers = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    laid = table.lay(np.array(numbers, np.int64)).tolist()
    assert laid == [i for number in numbers for i in rows[number]]


# ---- the tokenizer that v4 uses for long texts ----


def test_it_is_for_long_texts_and_for_long_words(tmp_path, monkeypatch):
    """Plain Python goes through a word again for every merge."""
    path = tmp_path / "text.txt"
    for text, expected in (("ab " * 20_000, False), ("a" * 2_000, True), ("", False)):
        path.write_text(text)
        assert fast_bpe.is_long(path) is expected
    monkeypatch.setattr(fast_bpe, "LONG", 10)
    path.write_text("ab " * 4)
    assert fast_bpe.is_long(path)
