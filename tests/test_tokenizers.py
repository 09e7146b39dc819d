"""Byte-pair encoding: v2, v4 and fast_bpe against each other and against other people's; v3's
promises."""

import random
from collections import Counter

import numpy as np
import pytest
import tiktoken
import tokenizers
from conftest import load_version
from hypothesis import example, given
from hypothesis import strategies as st
from test_fast_bpe import ANY, GPT2, PROSE, TEXTS

from shared import fast_bpe
from shared.corpora import END_OF_TEXT, read_documents
from shared.files import UserError, json_sha256
from shared.text import whole_words
from shared.token_files import open_token_file
from shared.tokens import encode_file

v2, v3, v4 = (load_version(name) for name in ("v2_bpe_rope", "v3_alibi", "v4_modern"))
KINDS = [v4.Tokenizer, fast_bpe.fast(v4.Tokenizer, workers=1)]  # plain, and for long texts


# ---- training ----


def count_pairs(words):
    """Of {tuple of symbols: count}, how often each symbol follows each other."""
    pairs = Counter()
    for word, count in words.items():
        for pair in zip(word, word[1:]):
            pairs[pair] += count
    return pairs


def merge(word, pair):
    """`word`, a tuple of symbols, with each `pair` from left to right made one symbol."""
    symbols, rest = [], list(word)
    while rest:
        if tuple(rest[:2]) == pair:
            symbols.append(rest.pop(0) + rest.pop(0))
        else:
            symbols.append(rest.pop(0))
    return tuple(symbols)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, vocab_size=st.integers(257, 300))
@example(["aaaa aaa aa a", "abab ababab"], 280)
@example(PROSE.split(END_OF_TEXT), 400)
def test_deltas_learn_the_merges_of_the_recount(kind, texts, vocab_size):
    assert kind.train(texts, vocab_size).merges == v2.Tokenizer.train(texts, vocab_size).merges


def test_tokens_of_the_same_bytes():
    """`abab` is made of ab ab, and of aba b: they are two tokens, and pairs with them may tie."""
    texts = ["abab ababx ababy aba abac abad ba bax bay b"] + ["abab abax"] * 3
    v2s = v2.Tokenizer.train(texts, 300)
    for kind in KINDS:
        assert kind.train(texts, 300).merges == v2s.merges


def test_all_of_pydocs(pydocs):
    """Merges as v2's, as far as that gets in some seconds, and all ids of all four."""
    documents = [text for part in (pydocs.train, pydocs.val) for text in read_documents(part)]
    text = END_OF_TEXT.join(documents)
    plain, fast = (kind.train(documents, 4096) for kind in KINDS)
    assert plain.merges == fast.merges and plain.vocab_size == 4096
    assert v2.Tokenizer.train(documents, 270).merges == plain.merges[: 270 - 257]
    ids = plain.encode(text)
    assert ids == fast.encode(text) == as_tiktoken(plain).encode(text, allowed_special="all")
    end = plain.special_tokens[END_OF_TEXT]
    of_v2 = v2.Tokenizer(plain.merges)
    assert [i for document in documents for i in (*of_v2.encode(document), end)][:-1] == ids


@given(TEXTS, st.integers(257, 290))
def test_merges_are_the_most_frequent_pairs(texts, vocab_size):
    """Against the definition, written for clarity: strings of symbols, every pair counted anew."""
    import regex

    words = Counter()
    for text in texts:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        words.update(tuple(bytes([b]) for b in w.encode()) for w in regex.findall(GPT2, whole))
    learned = []
    while len(learned) < vocab_size - 257:
        pairs = count_pairs(words)
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        learned.append(best)
        merged = Counter()
        for word, count in words.items():
            merged[merge(word, best)] += count
        words = merged
    tokenizer = v4.Tokenizer.train(texts, vocab_size)
    assert [(tokenizer.vocab[a], tokenizer.vocab[b]) for a, b in tokenizer.merges] == learned


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_is_a_list_of_one(kind):
    """Wherever texts are wanted; and so is one special token. Its letters are not."""
    text = "the cat<|a|> " * 20
    for one in (text, text.encode()):
        tokenizer = kind.train(one, 270, "<|a|>")
        assert tokenizer.to_json() == kind.train([text], 270, ["<|a|>"]).to_json()
        assert kind([], "<|a|>").special_tokens == {"<|a|>": 256}
        ids = tokenizer.encode(text)
        assert [list(piece) for piece in tokenizer.encode_pieces(one)] == [ids]
        assert list(tokenizer.encode_iterable(one)) == ids
        assert tokenizer.encode_batch(one) == [ids]
        assert fast_bpe.learn(one, 13, "<|a|>", workers=1) == tokenizer.merges
        words, counts = fast_bpe.count_words(one, "<|a|>", workers=1)
        assert dict(zip(words, counts)) == {b"the": 1, b" cat": 20, b" the": 19, b" ": 1}
        assert list(whole_words(one, "<|a|>")) == [text.encode()]


def test_training_stops_when_no_pair_is_left():
    for version in (v2, v3, v4):
        tokenizer = version.Tokenizer.train(["ab ab", ""], 1000)
        assert tokenizer.vocab_size == 256 + 2 + 1  # "ab" and " ab"
        assert version.Tokenizer.train([], 1000).vocab_size == 257


# ---- v4 against tiktoken and Hugging Face ----


def as_tiktoken(tokenizer):
    special = set(tokenizer.special_tokens.values())
    ranks = {token: i for i, token in enumerate(tokenizer.vocab) if i not in special}
    return tiktoken.Encoding(
        "ours", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=tokenizer.special_tokens
    )


def as_hugging_face(tokenizer):
    """Bytes are written there as visible characters, by GPT-2's table."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}

    def spell(token):
        return "".join(table[byte] for byte in token)

    n_ordinary = 256 + len(tokenizer.merges)
    model = tokenizers.models.BPE(
        vocab={spell(token): i for i, token in enumerate(tokenizer.vocab[:n_ordinary])},
        merges=[
            (spell(tokenizer.vocab[a]), spell(tokenizer.vocab[b])) for a, b in tokenizer.merges
        ],
    )
    theirs = tokenizers.Tokenizer(model)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_special_tokens(list(tokenizer.special_tokens))
    return theirs


TOKENIZER = v4.Tokenizer.train([PROSE, "naïve café 漢字漢字 🙂🙂 aaaa aaaaaaaa   \n\n\n1234"], 500)
FAST = KINDS[1](TOKENIZER.merges)
TIKTOKEN, HUGGING_FACE = as_tiktoken(TOKENIZER), as_hugging_face(TOKENIZER)


@given(ANY)
@example("a\ud800b \ud83d\ude42")
@example("<|endoftext|>the<|endoftext|><|endoftext|> cat")
@example(PROSE)
@example("a" * 70 + "'ll don't'")
def test_ids_equal_tiktokens(text):
    ids = TOKENIZER.encode(text)
    assert ids == FAST.encode(text) == TIKTOKEN.encode(text, allowed_special="all")


@given(ANY.map(lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")))
@example("<|endoftext|>the<|endoftext|><|endoftext|> cat")
@example(PROSE)
def test_ids_equal_hugging_faces(text):
    assert TOKENIZER.encode(text) == HUGGING_FACE.encode(text, add_special_tokens=False).ids


@given(ANY.filter(lambda text: END_OF_TEXT not in text))
def test_v2_and_v4_encode_alike(text):
    assert v2.Tokenizer(TOKENIZER.merges).encode(text) == TOKENIZER.encode(text)


# ---- special tokens ----


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind):
    specials = [END_OF_TEXT, "<|a|>", "<|a|><|b|>", "|>x", " "]
    tokenizer = kind(TOKENIZER.merges, specials)
    end, a, ab, x, blank = (tokenizer.special_tokens[s] for s in specials)
    assert (end, blank) == (256 + len(TOKENIZER.merges), tokenizer.vocab_size - 1)
    assert tokenizer.encode("<|a|>") == [a]
    assert tokenizer.encode("<|a|><|b|>") == [ab]  # of two that begin together, the longer
    assert tokenizer.encode("<|a|>x<|a|><|a|>") == [a, *tokenizer.encode("x"), a, a]
    assert tokenizer.encode("|>x<|a|><|b|>") == [x, ab]
    assert tokenizer.encode("a b") == [97, blank, 98]
    assert tokenizer.encode("<|b|>") == kind(TOKENIZER.merges).encode("<|b|>")  # none
    assert tokenizer.decode([a, ab, x, end]) == "<|a|><|a|><|b|>|>x<|endoftext|>"


@pytest.mark.parametrize("kind", KINDS)
def test_no_special_tokens_and_doubled_ones(kind):
    none = kind.train(["ab ab"], 258, special_tokens=[])
    assert none.vocab_size == 258 and len(none.merges) == 2
    assert none.encode("ab<|endoftext|>")[1:] == list(b"<|endoftext|>")
    assert list(none.encode_iterable(["a", "b a", "b"])) == none.encode("ab ab")
    assert kind([], ["<|a|>", "<|a|>"]).special_tokens == {"<|a|>": 256}


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_special_token_is_refused(kind):
    with pytest.raises(ValueError, match="everywhere"):
        kind([], [""])


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_smaller_than_the_bytes_is_refused(kind):
    with pytest.raises(UserError, match="--vocab-size 257 must be at least 258"):
        kind.train(["ab"], 257, ["<|a|>", "<|b|>"])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_not_learned_from(kind):
    with_specials = kind.train(["ab<|endoftext|>ab<|endoftext|>"], 300)
    assert with_specials.merges == kind.train(["ab", "ab"], 300).merges
    assert END_OF_TEXT.encode() in with_specials.vocab


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_other_peoples_text_are_text(kind):
    """Also where they are words."""
    specials = [END_OF_TEXT, "the", " cat", "x"]
    tokenizer, never_asked = (kind(TOKENIZER.merges, specials) for _ in range(2))
    without = kind(TOKENIZER.merges, [])

    @given(ANY | st.lists(st.sampled_from([*specials, " ", "a"])).map("".join))
    @example("<|endoftext|>the cat<|endoftext|>")
    def same(text):
        ids = tokenizer.encode(text, special=False)
        assert ids == TIKTOKEN.encode_ordinary(text) == without.encode(text)
        assert tokenizer.encode(text) == never_asked.encode(text)

    same()


# ---- many texts ----


def test_a_batch_is_each_of_its_texts(monkeypatch):
    texts = [PROSE[:n] + "é🙂\ud800" * (n % 3) for n in range(0, 900, 30)]
    expected = [TOKENIZER.encode(text) for text in texts]
    several = fast_bpe.fast(v4.Tokenizer, workers=2)(TOKENIZER.merges)
    for size in (100, 1 << 20):  # bytes that a worker gets at a time
        monkeypatch.setattr(fast_bpe, "PIECE", size)
        for tokenizer in (TOKENIZER, FAST, several):
            assert tokenizer.encode_batch(texts) == expected
            assert (
                tokenizer.encode_batch(iter(texts)) == expected and tokenizer.encode_batch([]) == []
            )


# ---- streaming ----

OVERLAPPING = [END_OF_TEXT, "<|a|>", "<|a|> <|b|>", "a b"]
STREAMING = [kind(TOKENIZER.merges, tokens) for kind in KINDS for tokens in ([], OVERLAPPING)]


@given(
    st.text(st.sampled_from("the cat's  \n\r\t<|a|> b>\u3000\u00a0🙂\ud83d\ude42"), max_size=120)
    | st.lists(st.sampled_from(["<|a|>", "<|b|>", " ", "a", "a b", END_OF_TEXT, "'ll"])).map(
        "".join
    ),
    st.randoms(use_true_random=False),
)
def test_streaming_gives_the_ids_of_the_whole(text, chance):
    pieces, rest = [], text
    while rest:
        size = chance.randint(0, 9)
        pieces, rest = [*pieces, rest[:size]], rest[size:]
    for tokenizer in STREAMING:
        ids = list(tokenizer.encode_iterable(pieces))
        assert ids == tokenizer.encode(text) and {type(i) for i in ids} <= {int}
        assert [i for part in tokenizer.encode_pieces(pieces) for i in part] == ids


@pytest.mark.parametrize("tokenizer", [TOKENIZER, FAST])
def test_encode_file(tokenizer, tmp_path, monkeypatch):
    text = PROSE.replace("cat", "cät\r\n") * 3 + END_OF_TEXT
    (tmp_path / "text.txt").write_bytes(text.encode("utf-8"))
    monkeypatch.setattr("shared.reading.PIECE_BYTES", 1000)  # many pieces
    count = encode_file(tokenizer, tmp_path / "text.txt", tmp_path / "tokens.npy")
    sha256 = json_sha256(TOKENIZER.to_json())
    tokens = open_token_file(tmp_path / "tokens.npy", sha256)
    end = TOKENIZER.special_tokens[END_OF_TEXT]
    assert isinstance(tokens, np.memmap) and len(tokens) == count
    assert tokens.tolist() == [end, *TOKENIZER.encode(text)]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, FAST])
def test_streaming_does_not_hold_the_text(tokenizer, monkeypatch):
    """However long the text, what was read and is not yet encoded stays short."""
    monkeypatch.setattr("shared.text.PIECE", 1 << 20)
    read, encoded, waiting = 0, 0, []

    def texts():
        nonlocal read
        for _ in range(100):
            text = "the cat sees a tree " * 5000
            read += len(text)
            yield text

    for ids in tokenizer.encode_pieces(texts()):
        encoded += len(tokenizer.decode(ids))
        waiting.append(read - encoded)
    assert encoded == read == 10_000_000
    assert max(waiting) < 2_000_000


def test_a_long_word_takes_no_pass_for_each_merge(monkeypatch):
    """Plain Python hands it to fast_bpe, and gets the ids it would have found itself."""
    tokenizer = v4.Tokenizer(TOKENIZER.merges)
    word = "".join(random.Random(0).choices("the cat's réd aaa".split(), k=700))
    expected = tokenizer.encode_word(word)
    monkeypatch.setattr(fast_bpe, "LONG_RUN", len(word))
    tokenizer.ranks = None
    assert tokenizer.encode_word(word) == expected and len(word.encode()) > len(word)


@pytest.mark.parametrize("kind", KINDS)
def test_long_words_merge_like_short_ones(kind):
    """fast_bpe merges words of more than 128 bytes otherwise; the ids are those of a naive BPE."""
    for word in ("a" * 2049, "abcab" * 300, "cats" * 999, "ab" * 1024 + "a"):
        tokenizer = kind.train([word, "cat cats aaaa abc abab"], 290)
        ids = list(word.encode())
        for rank, pair in enumerate(tokenizer.merges):
            i, merged = 0, []
            while i < len(ids):
                both = tuple(ids[i : i + 2]) == pair
                merged.append(256 + rank if both else ids[i])
                i += 1 + both
            ids = merged
        assert tokenizer.encode(word) == ids


# ---- v3: English words, no scaffolds ----


def test_merges_hold_english_letters_only():
    text = PROSE + " naïve café 12 12 12 ...... ------ \n\n\n\n été été été    x_y_z __init__"
    tokenizer = v3.Tokenizer.train([text], 400)
    assert len(tokenizer.vocab) > 280
    for token in tokenizer.vocab[256:-1]:
        assert token.lstrip(b" ").isalpha() and token.isascii() and token.count(b" ") <= 1


SCAFFOLDED = v3.Tokenizer.train([PROSE], 275)


def test_there_are_scaffolds_and_as_many_tokens_as_asked_for():
    assert SCAFFOLDED.vocab_size == 275
    assert SCAFFOLDED.scaffolds
    assert len(SCAFFOLDED.merges) == 275 - 257 + len(SCAFFOLDED.scaffolds)


@given(st.text() | st.text(st.sampled_from("the cat sees dog small red house")))
@example(PROSE)
def test_scaffolds_are_never_emitted(text):
    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in SCAFFOLDED.merges:
        spelled.append(spelled[left] + spelled[right])
    ordinary = {spelled[n] for n in range(len(spelled)) if n not in SCAFFOLDED.scaffolds}
    for token in SCAFFOLDED.encode(text.replace(END_OF_TEXT, "")):
        assert SCAFFOLDED.token_bytes(token) in ordinary


def naive_scaffold_bpe(words: dict[str, int], n_tokens: int):
    """Scaffold-BPE by its rule, on tuples of strings: the merges and the scaffolds' spellings."""
    words = {tuple(word): count for word, count in words.items()}
    tokens, scaffolds, merges = [], set(), []

    while len(tokens) - len(scaffolds) < n_tokens and (pairs := count_pairs(words)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        for word in list(words):
            words[merge(word, best)] = words.pop(word)
        next_best = max(count_pairs(words).values(), default=0)
        for part in best:
            remaining = sum(word.count(part) * count for word, count in words.items())
            if part in tokens and remaining < next_best:
                scaffolds.add(part)
    return merges, scaffolds


@pytest.mark.parametrize("seed", range(8))
def test_scaffolds_are_those_of_the_rule(seed):
    chance = random.Random(seed)
    stems = ["th", "the", "ther", "zero", "zer", "abcab", "aaaa", "cab"]
    words = Counter(chance.choice(stems) + chance.choice(["", "s", "e"]) for _ in range(300))
    merges, scaffolds = naive_scaffold_bpe(words, 12)
    text = "\n".join(word for word, count in words.items() for _ in range(count))
    tokenizer = v3.Tokenizer.train([text], 257 + 12)
    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in tokenizer.merges:
        spelled.append(spelled[left] + spelled[right])
    assert [(spelled[a].decode(), spelled[b].decode()) for a, b in tokenizer.merges] == merges
    assert {spelled[n].decode() for n in tokenizer.scaffolds} == scaffolds
