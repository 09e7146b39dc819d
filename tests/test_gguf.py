"""GGUF files: read back with the package `gguf`, and in llama.cpp's hands, if that is installed."""

from unicodedata import category, ucd_3_2_0

import gguf
import numpy as np
import pytest
import regex
import torch
from conftest import load_version, small_config
from hypothesis import example, given
from test_errors import complaint
from test_splits import NASTY, TEXTS

from benchmarks.common import open_run
from shared.corpora import END_OF_TEXT
from shared.files import UserError
from shared.splits import SPLITS
from v4_modern import export, gguf_files
from v4_modern.gguf_files import save_gguf
from v4_modern.tokenizer_files import foreign, spell

v4 = load_version("v4_modern")
SIZES = {"width": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_size": 32}
SIZES |= {"feed_forward_size": 72, "context_length": 128, "rope_base": 500.0}
WHERE_RULES_MEET = "it's I'LL 12345  a\t b\n c\n\n !\r\n x  \u00a0漢A aB ABc (g) 'twas\n /!"
WORDS = [WHERE_RULES_MEET[i:] for i in range(40)] + [NASTY[i:] for i in range(30)]


def trained(split="gpt2", vocab_size=300):
    """A tokenizer whose merges do not know the split, so that ids tell where words end."""

    class Unsplit(v4.Tokenizer):
        pattern = regex.compile(r"[\s\S]{1,6}")

    return v4.Tokenizer(Unsplit.train(WORDS, vocab_size).merges, split=split)


def untrained(tokenizer, **sizes):
    """A model with random weights, and its config."""
    config = v4.Config(vocab_size=tokenizer.vocab_size, **SIZES | sizes)
    torch.manual_seed(0)
    model = v4.LanguageModel(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model, config


def read(path):
    """The fields and the tensors in a file: what they hold, and their types."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors, {t.name: t.tensor_type.name for t in reader.tensors}


THEIRS = {"embedding.weight": "token_embd", "head.weight": "output", "norm.weight": "output_norm"}
THEIRS |= {"blocks.1.attention.key.weight": "blk.1.attn_k"}
THEIRS |= {"blocks.0.attention.query_norm.weight": "blk.0.attn_q_norm"}
THEIRS |= {"blocks.1.feed_forward_norm.weight": "blk.1.ffn_norm"}
THEIRS |= {"blocks.0.feed_forward.gate.weight": "blk.0.ffn_gate"}
THEIRS |= {"blocks.0.feed_forward.down.weight": "blk.0.ffn_down"}


@pytest.mark.parametrize("form", gguf_files.TYPES)
def test_a_file_holds_the_model_and_the_tokenizer(form, tmp_path):
    tokenizer = trained()
    model, config = untrained(tokenizer)
    save_gguf(model, config, tokenizer, tmp_path / "m.gguf", form)
    fields, tensors, types = read(tmp_path / "m.gguf")
    weights = model.state_dict()
    assert len(tensors) == len(weights)
    for ours, theirs in THEIRS.items():
        found = torch.from_numpy(np.array(tensors[f"{theirs}.weight"]))
        expected = weights[ours]
        if form in ("f16", "bf16") and expected.ndim > 1:
            expected = expected.to({"f16": torch.float16, "bf16": torch.bfloat16}[form]).float()
        if form != "q8_0" or expected.ndim == 1:
            assert torch.equal(found, expected), ours
        elif "down" in ours:  # rows of 72 are no blocks of 32
            assert torch.equal(found, expected.half().float())
        else:  # a 254th of the block's range is half a step; the scale is rounded, too
            largest = expected.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
            error = (found - expected).unflatten(1, (-1, 32)).abs()
            assert (error <= largest / 254 * 1.2).all() and error.max() > 0
    assert types["blk.0.attn_q.weight"] == form.upper() and types["output_norm.weight"] == "F32"
    assert fields["general.architecture"] == "qwen3"
    keys = ("block_count", "context_length", "attention.head_count", "attention.head_count_kv")
    assert [fields[f"qwen3.{key}"] for key in keys] == [2, 128, 4, 2]
    assert fields["qwen3.attention.key_length"] == fields["qwen3.attention.value_length"] == 32
    assert fields["qwen3.rope.freq_base"] == 500
    assert fields["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == [*map(spell, tokenizer.vocab[:-1]), END_OF_TEXT]
    assert fields["tokenizer.ggml.token_type"] == [1] * 299 + [3]
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 299
    assert fields["tokenizer.ggml.add_bos_token"] is True
    left, right = tokenizer.merges[5]
    assert fields["tokenizer.ggml.merges"][5] == f"{tokens[left]} {tokens[right]}"


def test_a_tied_head_and_ids_without_a_token(tmp_path):
    names = [spell(bytes([i])) for i in range(256)]
    vocab = [names[0], "", "", *names[1:], "", "ab"]
    others = [END_OF_TEXT, "<b>"], "llama3", vocab, [1, 2], True, False
    tokenizer = foreign(v4.Tokenizer)([(97 + 2, 98 + 2)], *others)
    _, config = untrained(tokenizer)
    config.vocab_size += 3  # as in Qwen3, whose embedding has more rows than it has ids
    model = v4.LanguageModel(config)
    model.head.weight = model.embedding.weight
    save_gguf(model, config, tokenizer, tmp_path / "m.gguf", "f32")
    fields, tensors, _ = read(tmp_path / "m.gguf")
    assert "output.weight" not in tensors and tensors["token_embd.weight"].shape[0] == 263
    assert fields["tokenizer.ggml.tokens"][:4] == [names[0], END_OF_TEXT, "<b>", names[1]]
    assert fields["tokenizer.ggml.token_type"] == [1, 3, 3, *[1] * 255, 5, 1, 5, 5, 5]
    assert len({*fields["tokenizer.ggml.tokens"]}) == 263  # llama.cpp wants no two alike
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"


def test_what_llama_cpp_cannot_have_is_told(tmp_path):
    path = tmp_path / "m.gguf"
    own = foreign(v4.Tokenizer)
    names = [spell(bytes([i])) for i in range(256)]
    for tokenizer, said in (
        (
            own([(97, 98)], [END_OF_TEXT], r"\S+|\s+", [*names, "ab", ""], [257], False, False),
            "split",
        ),
        (v4.Tokenizer([]), "without merges"),
        (v4.Tokenizer([(97, 98)], [END_OF_TEXT, "ab"]), "spelled as another"),
    ):
        with pytest.raises(UserError, match=said):
            save_gguf(*untrained(tokenizer), tokenizer, path, "f32")
    assert not [*tmp_path.iterdir()]


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    tokenizer, path = trained(), tmp_path / "m.gguf"
    model, config = untrained(tokenizer)
    path.write_bytes(b"an earlier one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError):
        save_gguf(model, config, tokenizer, path, "f16")
    assert path.read_bytes() == b"an earlier one" and len([*tmp_path.iterdir()]) == 1


def test_export_writes_it(corpus_file, tmp_path_factory, tmp_path, capsys, monkeypatch):
    folder, path = tmp_path_factory.mktemp("run"), tmp_path / "m.gguf"
    v4.train(small_config(v4, data=str(corpus_file), out=str(folder)))
    export.main([str(folder), str(path), "--type", "bf16"])
    _, run = open_run("v4_modern", folder)
    _, tensors, types = read(path)
    expected = run.model.embedding.weight.detach().bfloat16().float()
    assert types["token_embd.weight"] == "BF16"
    assert torch.equal(torch.from_numpy(tensors["token_embd.weight"]), expected)
    for arguments, said in (
        ([folder, tmp_path / "model", "--type", "q8_0"], "is for a .gguf file"),
        ([folder, tmp_path / "m.gguf", "--type", "q4"], "--type"),
        ([tmp_path, tmp_path / "m.gguf"], "holds no finished run"),
        ([folder, path / "m.gguf"], "no files can be written to"),
    ):
        assert said in complaint(export, arguments, capsys)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install gguf" in complaint(export, [folder, tmp_path / "n.gguf"], capsys)
    assert [*tmp_path.iterdir()] == [path]


# ---- llama.cpp ----


@pytest.fixture
def llama():
    """llama.cpp, as the package cyllama has it."""
    library = pytest.importorskip("cyllama.llama.llama_cpp", reason="needs the package cyllama")
    library.disable_logging()
    return library


def known_alike(split, text):
    """`text` without that of which llama.cpp has another opinion: characters that came late to
    Unicode, and what the README says of the split."""
    text = "".join(c for c in text if ucd_3_2_0.category(c) not in ("Cn", "Cs"))
    if split == "gpt4o":
        return "".join(c for c in text if c.isascii() or category(c) not in OF_CASE)
    if split != "gpt2":
        text = text.replace("'\u017f", "")
    return text + "x" if split == "gpt4" else text


OF_CASE = ("Lu", "Ll", "Lt", "Mn", "Mc", "Me")


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_llama_cpps(split, llama, tmp_path):
    tokenizer = trained(split, 800)
    save_gguf(*untrained(tokenizer), tokenizer, tmp_path / "m.gguf", "f32")
    model = llama.LlamaModel(str(tmp_path / "m.gguf"), llama.LlamaModelParams())
    theirs, end = model.get_vocab(), tokenizer.special_tokens[END_OF_TEXT]
    assert theirs.is_control(end) and theirs.is_eog(end)

    @given(TEXTS.map(lambda text: known_alike(split, text)))
    @example(known_alike(split, WHERE_RULES_MEET + NASTY))
    @example(f"a{END_OF_TEXT} b\n{END_OF_TEXT}{END_OF_TEXT}x")
    def check(text):
        ids = tokenizer.encode(text)
        assert theirs.tokenize(text, True, True) == [end, *ids]  # with a begin token

    check()
    others = {name: trained(name, 800).encode(WHERE_RULES_MEET) for name in SPLITS}
    assert len({*map(tuple, others.values())}) > 3  # the ids tell the splits apart


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_text_is_llama_cpps(tied, llama, tmp_path):
    tokenizer = trained()
    model, config = untrained(tokenizer, temperature=0.0, max_new_tokens=60)
    if tied:
        model.head.weight = model.embedding.weight
    save_gguf(model, config, tokenizer, tmp_path / "m.gguf", "f32")
    theirs = llama.LlamaModel(str(tmp_path / "m.gguf"), llama.LlamaModelParams())
    options = llama.LlamaContextParams()
    options.n_ctx, options.type_k, options.type_v, options.n_threads = 128, 0, 0, 1  # 0: float32
    for prompt in ("", "the cat", "漢字 é\n 42"):
        start = [tokenizer.special_tokens[END_OF_TEXT], *tokenizer.encode(prompt)]
        context = llama.LlamaContext(theirs, options)
        choice = llama.LlamaSampler(llama.LlamaSamplerChainParams())
        choice.add_greedy()
        unread, place, found = start, 0, []
        while len(found) < 60:
            context.decode(llama.llama_batch_get_one(unread, place))
            place += len(unread)
            unread = [choice.sample(context, -1)]
            found += unread
        assert found == list(v4.generate(model, start, config, stop=-1))
        assert len({*found}) > 3
