"""Folders of a real Qwen3, written by transformers with small sizes: in, trained on, and out."""

import json
import math
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch
from conftest import load_version, random_model, small_config
from test_export import complaint, export
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.common import open_run
from shared.files import read_json, write_json
from shared.model_table import build, measure
from shared.splits import SPLITS
from v4_modern import command_line, encode, model_files

v4 = load_version("v4_modern")
TEXTS = ["It's 42, the cat\n\n  said:\tno", "e\u0301 漢字 <think>so</think> <|im_end|>", ""]


def qwens_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """As Qwen3's, but learned from little: NFC, its split, tokens for chats and for thinking."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(SPLITS["qwen"]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text], learn)
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ("<think>",)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_file) -> Path:
    """A Qwen3-0.6B but for its sizes: tied, in bfloat16, in several files, with spare rows."""
    folder = tmp_path_factory.mktemp("qwen") / "Qwen3"
    qwens_tokenizer(corpus_file.read_text(encoding="utf-8")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    sizes |= {"vocab_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 1_000_000}
    settings = {"max_position_embeddings": 40960, "rope_parameters": rope, "max_window_layers": 28}
    settings |= {"tie_word_embeddings": True, "attention_dropout": 0.1}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **settings, eos_token_id=292, bos_token_id=290))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def begin(folder: Path, *options: str) -> tuple:
    """The config, tokenizer and model with which v4 begins."""
    options = ["--context-length", "64", "--device", "cpu", *options]
    config = command_line.parse(v4.Config, ["--init-from", str(folder), *options])
    model = build(v4.LanguageModel, config)
    model_files.load_weights(model, folder)
    return config, command_line.given_tokenizer(v4.Tokenizer, config), model.eval()


@torch.no_grad()
def assert_alike(model, folder: Path, atol: float = 1e-4) -> None:
    """The same logits and the same greedy text as transformers."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(320, (4, 64), generator=torch.Generator().manual_seed(1))
    difference = (model(ids) - theirs(ids).logits).abs().max().item()
    assert difference < atol, difference
    config = v4.Config(temperature=0.0, max_new_tokens=50, context_length=64)
    ours = list(v4.generate(model, [290, 5, 77], config, stop=-1))
    start = torch.tensor([[290, 5, 77]])
    kept = {"do_sample": False, "max_new_tokens": 50, "eos_token_id": None, "pad_token_id": 0}
    assert theirs.generate(start, **kept)[0, 3:].tolist() == ours


def test_logits_text_and_ids_are_transformers(folder):
    config, tokenizer, model = begin(folder)
    assert_alike(model, folder)
    assert (config.vocab_size, config.rope_base, config.tie_head) == (320, 1_000_000, True)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.vocab_size == 320 > len(theirs) == 294
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert tokenizer.decode([300, 72, 319]) == tokenizer.decode([72])  # rows without a token


def test_a_room_far_beyond_the_tokens_is_not_made(folder, tmp_path):
    shutil.copy(folder / "tokenizer.json", tmp_path)
    for rows, ids in ((320, 320), (294, 294), (100, 294), (10**12, 294), ("many", 294)):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
        assert v4.Tokenizer.load(tmp_path).vocab_size == ids


def test_sizes_far_beyond_the_weights_are_not_built(folder, tmp_path, capsys, monkeypatch):
    shutil.copytree(folder, tmp_path / "theirs")
    settings = read_json(tmp_path / "theirs" / "config.json")
    write_json(tmp_path / "theirs" / "config.json", settings | {"intermediate_size": 99_000})
    monkeypatch.setattr(v4.LanguageModel, "__init__", None)
    monkeypatch.setattr(model_files, "SMALL", 1 << 20)
    with pytest.raises(SystemExit) as stop:
        v4.main(["--init-from", str(tmp_path / "theirs"), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2 and "hold no model of the sizes" in capsys.readouterr().err


def test_weights_that_are_no_file_are_told(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "Qwen3")
    (copy / "model.safetensors").mkdir()
    assert "safetensors is not a file" in complaint(v4.main, arguments(copy, tmp_path), capsys)


def test_ids_made_by_its_tokenizer_can_be_trained_on(folder, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat <think>\n" * 60, encoding="utf-8")
    ids = tmp_path / "ids.npy"
    encode.main([str(tmp_path / "text.txt"), str(ids), "--tokenizer", str(folder)])
    v4.main(arguments(folder, tmp_path, data=ids, steps=1))
    assert (tmp_path / "run" / "summary.json").exists()


def as_older_versions_write(settings: dict) -> None:
    del settings["rope_parameters"], settings["layer_types"]
    settings |= {"rope_theta": 1_000_000, "rope_scaling": None}


def with_what_is_usual_left_out(settings: dict) -> None:
    usual = Qwen3Config().to_dict()
    for name in [name for name in settings if name != "model_type"]:
        if settings[name] == usual.get(name):
            del settings[name]
    assert not {"rms_norm_eps", "hidden_act", "attention_bias"} & settings.keys()


@pytest.mark.parametrize("change", [as_older_versions_write, with_what_is_usual_left_out])
def test_settings_as_others_write_them(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "Qwen3")
    settings = json.loads((copy / "config.json").read_text())
    change(settings)
    (copy / "config.json").write_text(json.dumps(settings))
    assert_alike(begin(copy)[2], folder)


def test_sizes_that_nothing_tells_are_transformers_own(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    usual = Qwen3Config()
    rope = {"rope_theta": usual.rope_parameters["rope_theta"]}
    sizes = model_files.read_sizes(tmp_path)
    for ours, theirs in model_files.SIZES.items():
        assert sizes[ours] == (rope | usual.to_dict())[theirs], ours


def test_rotary_base_said_twice_is_read_as_by_transformers(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text()) | {"rope_theta": 77.0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    theirs = Qwen3Config.from_pretrained(tmp_path).rope_parameters["rope_theta"]
    assert model_files.read_sizes(tmp_path)["rope_base"] == theirs


@pytest.mark.parametrize("factor", [1, 2])
def test_a_tied_head_that_the_file_repeats(folder, tmp_path, factor, capsys):
    """As in Qwen3-0.6B's own file. It must be the embedding."""
    copy = shutil.copytree(folder, tmp_path / "Qwen3")
    index = json.loads((copy / model_files.INDEX).read_text())
    table = safetensors.torch.load_file(copy / index["weight_map"]["model.embed_tokens.weight"])
    table = {"lm_head.weight": factor * table["model.embed_tokens.weight"]}
    safetensors.torch.save_file(table, copy / "head.safetensors", metadata={"format": "pt"})
    index["weight_map"]["lm_head.weight"] = "head.safetensors"
    (copy / model_files.INDEX).write_text(json.dumps(index))
    if factor == 1:
        assert_alike(begin(copy)[2], copy)
    else:
        said = complaint(v4.main, arguments(copy, tmp_path), capsys)
        assert "lm_head.weight is not the embedding, to which it is tied" in said


@pytest.mark.parametrize(
    "index, said",
    [
        ({"weight_map": {"a": "../Qwen3/a"}}, "does not say in which files of its folder"),
        ({"weight_map": ["a"]}, "does not say in which files of its folder"),
        ({"weight_map": {"a": 1}}, "does not say in which files of its folder"),
        ({"weight_map": {"a": "none"}}, "none is not there"),
        ({"weight_map": {}}, "lacks some: model.embed_tokens.weight"),
    ],
)
def test_an_index_that_names_no_files(folder, tmp_path, index, said, capsys):
    copy = shutil.copytree(folder, tmp_path / "Qwen3")
    (copy / model_files.INDEX).write_text(json.dumps(index))
    assert said in complaint(v4.main, arguments(copy, tmp_path), capsys)


def arguments(folder: Path, tmp_path: Path, **options) -> list[str]:
    """A few steps of fine-tuning."""
    options = {"data": tmp_path / "text.txt", "out": tmp_path / "run", "steps": 4} | options
    options |= {"context-length": 64, "batch-size": 2, "device": "cpu", "dtype": "float32"}
    options |= {"evaluate-every": 4, "max-new-tokens": 8, "init-from": folder}
    (tmp_path / "text.txt").write_text("the cat sat on the mat <think>\n" * 60, encoding="utf-8")
    return [str(part) for name, value in options.items() for part in ("--" + name, value)]


def test_trained_on_exported_and_back(folder, tmp_path, capsys):
    v4.main(arguments(folder, tmp_path))
    _, run = open_run("v4_modern", tmp_path / "run")
    assert run.model.head.weight is run.model.embedding.weight
    before = begin(folder)[2]
    assert run.parameters == sum(p.numel() for p in before.parameters())
    moved = (run.model.embedding.weight - before.embedding.weight).abs().max().item()
    assert 1e-4 < moved < 1
    out = ["--out", str(tmp_path / "run")]
    v4.main(["--sample", "--prompt", "the cat", *out])
    v4.main(["--score", str(tmp_path / "text.txt"), *out])
    assert "bits per byte" in capsys.readouterr().out

    model = tmp_path / "model"
    export.main([str(tmp_path / "run"), str(model)])
    settings = json.loads((model / "config.json").read_text())
    assert settings["tie_word_embeddings"] is True
    assert "lm_head.weight" not in safetensors.torch.load_file(model / "model.safetensors")
    assert_alike(run.model, model)
    _, tokenizer, again = begin(model)
    assert torch.equal(again.embedding.weight, run.model.embedding.weight)
    assert tokenizer.to_json() == run.tokenizer.to_json()
    theirs, end = AutoTokenizer.from_pretrained(model), 290
    for text in TEXTS:
        assert theirs(text)["input_ids"] == [end, *tokenizer.encode(text)]


def test_resumed_is_the_same_as_never_stopped(folder, tmp_path):
    v4.main(arguments(folder, tmp_path, out=tmp_path / "whole"))
    half, step = tmp_path / "half", v4.training_step

    def stopped(run, *rest):
        if run.step == 2:
            raise KeyboardInterrupt
        return step(run, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(v4, "training_step", stopped)
        v4.main(arguments(folder, tmp_path, out=half, **{"checkpoint-every": 2}))
    v4.main(["--resume", "--tie-head", "--out", str(half)])
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("whole", "half")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_tied_table_is_one_parameter_and_gets_one_update():
    """The gradient is the sum of both uses; the table moves once, at the head's rate."""
    model, config = random_model(v4, tie_head=True, width=256)
    optimizers = v4.make_optimizers(model, config)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    updated = [id(p) for group in groups for p in group["params"]]
    assert len(updated) == len({*updated}) == len(list(model.parameters()))
    table = model.embedding.weight
    assert [group["scale"] for group in groups if any(p is table for p in group["params"])] == [0.5]

    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(0))
    model(ids[:, :-1], ids[:, 1:]).backward()
    apart, _ = random_model(v4, width=256)
    apart.load_state_dict(model.state_dict())
    apart(ids[:, :-1], ids[:, 1:]).backward()
    both = apart.embedding.weight.grad + apart.head.weight.grad
    assert torch.allclose(table.grad, both, atol=1e-6)


def test_a_tied_model_learns_from_scratch(corpus_file, tmp_path):
    config = small_config(v4, tie_head=True, data=str(corpus_file), out=str(tmp_path), steps=60)
    torch.manual_seed(0)
    model = v4.LanguageModel(config)
    ids = torch.arange(300).view(10, 30)
    assert abs(model(ids, ids.flip(1)).item() - math.log(300)) < 0.1
    before = model.head.weight.clone()
    v4.start_from_counts(model, ids.flatten().numpy())  # is for a head of its own
    assert torch.equal(model.head.weight, before)
    assert v4.train(config)["val_loss"] < math.log(300) - 1.5


def test_the_table_of_a_tied_model():
    """Its weights count once, and the head's products are still shown."""
    sizes = [
        measure(small_config(v4, tie_head=tied), v4.LanguageModel, v4.make_optimizers)
        for tied in (False, True)
    ]
    table = 300 * 16
    assert sizes[1].parameters == sizes[0].parameters | {"head": 0}
    assert sizes[1].flops == sizes[0].flops and sizes[1].flops["head"] == 2 * table
    for name, n_bytes in (("weights", 4), ("gradients", 4), ("optimizer_state", 8)):
        assert getattr(sizes[0], name) - getattr(sizes[1], name) == n_bytes * table


def test_sizes_are_printed_of_a_folder_with_settings_alone(folder, tmp_path, capsys):
    shutil.copy(folder / "config.json", tmp_path)
    v4.main(["--init-from", str(tmp_path), "--print-model", "--context-length", "8"])
    theirs = Qwen3ForCausalLM(Qwen3Config.from_pretrained(tmp_path)).num_parameters()
    assert f"{theirs:,}" in capsys.readouterr().out.split()
