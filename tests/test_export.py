"""Exported models in transformers' hands, and back: the same tokens, logits and text."""

import errno
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import sys

import pytest
import safetensors.torch
import torch
from conftest import ROOT, load_version, small_arguments, small_config, small_text
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GenerationConfig,
)
from transformers.utils import logging

from benchmarks.common import open_run
from shared.corpora import END_OF_TEXT
from shared.files import UserError, read_json, write_json
from v4_modern import model_files
from v4_modern.command_line import parse

logging.disable_progress_bar()
v4 = load_version("v4_modern")
spec = importlib.util.spec_from_file_location("ladder_export", ROOT / "v4_modern" / "export.py")
export = sys.modules["ladder_export"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export)
SIZES = {"vocab_size": 300, "context_length": 48, "n_heads": 4, "n_kv_heads": 2}  # 4 x 8 > width
SIZES["rope_base"] = 500.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory, corpus_file):
    """A run with random weights (trained ones are still almost zero), and its export."""
    run_folder, out = (tmp_path_factory.mktemp("export") / name for name in ("run", "model"))
    sampling = {"top_k": 7, "top_p": 0.9, "max_new_tokens": 21}
    v4.main(small_arguments(v4, data=corpus_file, out=run_folder, **SIZES, **sampling))
    _, run = open_run("v4_modern", run_folder)
    torch.manual_seed(0)
    for parameter in run.model.parameters():
        parameter.data.normal_(std=0.3)
    v4.save_checkpoint(run)
    export.main([str(run_folder), str(out)])
    return run_folder, out


@pytest.fixture(scope="module")
def run(folders):
    return open_run("v4_modern", folders[0], temperature=0.0, max_new_tokens=30)[1]


@pytest.fixture(scope="module")
def theirs(folders):
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folders[1]).eval()


def test_transformers_loads_every_weight_and_no_other(folders):
    _, said = AutoModelForCausalLM.from_pretrained(folders[1], output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@torch.no_grad()
def test_the_same_logits(run, theirs):
    ids = torch.randint(300, (4, 48), generator=torch.Generator().manual_seed(1))
    assert theirs.dtype == torch.float32
    difference = (run.model(ids) - theirs(ids).logits).abs().max().item()
    assert difference < 1e-4, difference


@pytest.mark.parametrize("prompt", ["", "the cat", "A dog's\n 42", "漢字 é"])
def test_the_same_greedy_text_token_for_token(run, theirs, folders, prompt):
    end = run.tokenizer.special_tokens[END_OF_TEXT]
    start = [end, *run.tokenizer.encode(prompt)]
    ours = list(v4.generate(run.model, start, run.config, end))
    ids = AutoTokenizer.from_pretrained(folders[1])(prompt, return_tensors="pt")
    assert ids["input_ids"][0].tolist() == start
    new = theirs.generate(**ids, do_sample=False, max_new_tokens=30)[0, len(start) :].tolist()
    assert new[: len(ours)] == ours and new[len(ours) :] in ([], [end])
    assert len(ours) > 5


def test_the_same_ids(run, folders):
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    end = run.tokenizer.special_tokens[END_OF_TEXT]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (end, end)
    assert len(tokenizer) == run.tokenizer.vocab_size

    texts = st.text().map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))

    @given(texts | st.text(st.sampled_from("the cat's 42 \n\té漢,.<|endoftext|>")))
    @example("don't  ,  e\u0301 \u212b . 'a' <|endoftext|> x")  # what clean-up or NFC would change
    @example("42 4242 ÿ \xff")  # what Qwen2's tokenizer splits, which a folder of Qwen3 has else
    def check(text):
        ids = run.tokenizer.encode(text)
        assert tokenizer(text)["input_ids"] == [end, *ids]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == run.tokenizer.decode(ids)

    check()


def test_batches_are_padded_and_texts_still_end(run, theirs, folders):
    """The padding is masked in what is learned, the ends are not; no text becomes it."""
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert pad == theirs.config.pad_token_id == theirs.generation_config.pad_token_id == 255 != end
    assert "token_type_ids" not in tokenizer(["a"])
    texts = ["the cat<|endoftext|>", "a<|endoftext|>"]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    for text, row in zip(texts, labels.tolist()):
        assert [i for i in row if i != -100] == [end, *run.tokenizer.encode(text)]
    assert (labels == -100).any()

    prompts = ["the cat", "A dog's\n 42 sees", ""]
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    new = theirs.generate(**batch, do_sample=False, max_new_tokens=20)
    for prompt, row in zip(prompts, new[:, batch["input_ids"].shape[1] :].tolist()):
        start = [end, *run.tokenizer.encode(prompt)]
        ours = list(v4.generate(run.model, start, run.config, end))[:20]
        assert row[: len(ours)] == ours and set(row[len(ours) :]) <= {end, pad}


def test_their_own_settings_and_our_numbers(run, theirs, folders):
    sampling = theirs.generation_config
    assert sampling.do_sample and (sampling.temperature, sampling.top_k) == (0.8, 7)
    assert (sampling.top_p, sampling.max_new_tokens) == (0.9, 21)
    assert sampling.eos_token_id == theirs.config.eos_token_id
    assert theirs.config.max_position_embeddings == 48
    card = (folders[1] / "README.md").read_text(encoding="utf-8")
    summary = json.loads((folders[0] / "summary.json").read_text())
    for name in ("bits_per_byte", "val_loss"):
        assert f"{summary[name]:.4f}" in card
    assert f"{theirs.num_parameters():,} parameters" in card and summary["corpus"]["sha256"] in card


def test_lm_eval_scores_documents_as_we_do(run, folders, tmp_path, capsys):
    """Those of one window, and of three whole ones: in one that is not whole, it reads more."""
    lm_eval = pytest.importorskip("lm_eval.models.huggingface", reason="pip install lm-eval[hf]")
    from lm_eval.api.instance import Instance

    # Else the start token that the tokenizer adds is to be predicted, after another one.
    model = lm_eval.HFLM(str(folders[1]), device="cpu", add_bos_token=False, batch_size=2)
    text, size = small_text(3).replace(END_OF_TEXT, "\n"), 3 * run.config.context_length
    three = next(text[:n] for n in range(len(text)) if len(run.tokenizer.encode(text[:n])) == size)
    for document in ("the cat", "A dog's\n 42", "漢字 é", three):
        (tmp_path / "text.txt").write_text(document, encoding="utf-8")
        capsys.readouterr()
        v4.main(["--out", str(folders[0]), "--score", str(tmp_path / "text.txt")])
        ours = float(capsys.readouterr().out.partition("bits per byte ")[2].split()[0])
        (nats,) = model.loglikelihood_rolling([Instance("", {}, (document,), 0)], True)
        theirs = -nats / math.log(2) / len(document.encode("utf-8"))
        assert ours == pytest.approx(theirs, abs=1e-3), document


def test_the_way_back_is_exact(run, theirs, folders, corpus_file, tmp_path, monkeypatch):
    """Our folder, and the same model and tokenizer as transformers writes them again."""
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    AutoTokenizer.from_pretrained(folders[1]).save_pretrained(again)
    for folder in (folders[1], again):
        folder = shutil.copytree(folder, tmp_path / "model")
        out = tmp_path / "run"
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(v4, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            arguments = ["--init-from", folder, "--data", corpus_file, "--out", out, "--steps", 2]
            v4.main(list(map(str, [*arguments, "--device", "cpu"])))
        _, begun = open_run("v4_modern", out)  # its checkpoint is of step 0
        assert begun.step == 0 and begun.tokenizer.to_json() == run.tokenizer.to_json()
        for name, weights in run.model.state_dict().items():
            assert torch.equal(weights, begun.model.state_dict()[name]), name
        shutil.rmtree(folder)
        v4.main(["--resume", "--out", str(out)])  # which needs the folder no more
        assert json.loads((out / "summary.json").read_text())["steps"] == 2
        shutil.rmtree(out)


def complaint(main, arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    *bars, line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ")
    assert not any("error" in bar or "Traceback" in bar for bar in bars)
    return line


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def killed(arguments, n: int) -> bool:
    """Whether an export with these arguments was killed: at the nth change of a file."""
    child = os.fork()
    if child == 0:
        left = itertools.count(n, -1)

        def deadly(function):
            def wrapped(*rest, **options):
                if next(left) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*rest, **options)

            return wrapped

        for name in ("fsync", "replace", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
        export.main(list(map(str, arguments)))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX has fork")
def test_an_export_killed_at_its_writes_mixes_no_two_models(folders, tmp_path, corpus_file, capsys):
    """It leaves the earlier model, the new one, or a folder that nothing begins from."""
    other, earlier, out = tmp_path / "other", tmp_path / "earlier" / "model", tmp_path / "model"
    v4.main(small_arguments(v4, data=corpus_file, out=other, **SIZES | {"vocab_size": 280}))
    export.main([str(other), str(earlier)])
    old, new, ends = contents(earlier), contents(folders[1]), []
    assert old["tokenizer.json"] != new["tokenizer.json"] and old["README.md"] != new["README.md"]
    for n in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(earlier, out)
        if not killed([folders[0], out], n):
            break
        now = contents(out)
        ends.append("old" if now == old else "new" if now == new else "refused")
        if ends[-1] == "refused":
            arguments = ["--init-from", out, "--data", corpus_file, "--out", tmp_path / "run"]
            assert "config.json is not there" in complaint(v4.main, arguments, capsys)
            export.main([str(folders[0]), str(out)])
            assert {path.name: path.read_bytes() for path in out.iterdir()} == new
    assert set(ends) == {"old", "refused", "new"} and ends == sorted(ends, key=ends.index)


def test_an_export_that_fails_leaves_the_earlier_one(folders, tmp_path, capsys, monkeypatch):
    out = shutil.copytree(folders[1], tmp_path / "model")
    (out / "config.json").write_text("the earlier one")
    before = contents(out)
    full = OSError(errno.ENOSPC, "No space left on device", "file")
    monkeypatch.setattr(export, "save_hugging_face", lambda *_, **__: (_ for _ in ()).throw(full))
    assert "No space left" in complaint(export.main, [folders[0], out], capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_best_weights_are_exported(corpus_file, tmp_path, capsys, monkeypatch):
    """Of a text that is read too often: each evaluation is worse than the one before."""
    evaluate, factors = v4.evaluate, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(v4, "evaluate", lambda *a: (evaluate(*a)[0] * next(factors), 1000))
        v4.train(small_config(v4, data=str(corpus_file), out=str(tmp_path / "run")))
    export.main([str(tmp_path / "run"), str(tmp_path / "last")])
    export.main([str(tmp_path / "run"), str(tmp_path / "best"), "--best"])
    for name, file in (("last", "checkpoint.pt"), ("best", "best.pt")):
        weights = torch.load(tmp_path / "run" / file, weights_only=True)["model"]
        exported = safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(exported["lm_head.weight"], weights["head.weight"])
    assert "| weights | after 0 steps" in (tmp_path / "best" / "README.md").read_text()


def test_what_cannot_be_exported(folders, corpus_file, tmp_path, capsys, monkeypatch):
    assert "no finished run" in complaint(export.main, [tmp_path, tmp_path / "out"], capsys)
    assert "is not an earlier export" in complaint(export.main, [folders[0], folders[0]], capsys)
    assert "--help" in complaint(export.main, [folders[0]], capsys)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "README.md").write_text("mine")
    assert "is not an earlier export" in complaint(export.main, [folders[0], notes], capsys)
    mixed = shutil.copytree(folders[1], tmp_path / "mixed")
    (mixed / "notes.txt").write_text("mine")
    assert "other files, such as notes.txt" in complaint(export.main, [folders[0], mixed], capsys)
    assert contents(mixed) == contents(folders[1]) | {"notes.txt": b"mine"}
    (mixed / "notes.txt").rename(mixed / ".notes")
    export.main([str(folders[0]), str(mixed)])
    assert (mixed / ".notes").read_text() == "mine"
    summary = json.loads((folders[0] / "summary.json").read_text())
    for change, said in (({"steps": 3}, "trained on"), ({"seconds": "long"}, "json is damaged")):
        run = shutil.copytree(folders[0], tmp_path / said)
        (run / "summary.json").write_text(json.dumps(summary | change))
        assert said in complaint(export.main, [run, tmp_path / "out"], capsys)
    v3 = load_version("v3_alibi")
    v3.main(small_arguments(v3, data=corpus_file, out=tmp_path / "v3"))
    capsys.readouterr()
    assert "another version's" in complaint(
        export.main, [tmp_path / "v3", tmp_path / "out"], capsys
    )
    monkeypatch.setattr("shared.files.importlib.util.find_spec", lambda name: None)
    said = complaint(export.main, [folders[0], tmp_path / "out"], capsys)
    assert said.endswith("pip install safetensors")
    assert not (tmp_path / "out").exists()


def change_config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def rename_a_weight(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"q_norm", b"r_norm", 1))


def spoil_a_weight(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = math.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def weights_of_type(dtype):
    def change(folder):
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    return change


def enlarge_weights(folder):
    weights = {name: torch.zeros(9, 9) for name in load_names(folder)}
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def claim_more(folder):
    """A header of numbers that the file does not hold."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"[300,16]", b"[999,16]"))


def load_names(folder):
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def rename_end_of_text(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("endoftext", "end"), encoding="utf-8")


@pytest.mark.parametrize(
    "change, options, said",
    [
        (lambda folder: shutil.rmtree(folder), (), "config.json is not there"),
        (lambda folder: (folder / "model.safetensors").unlink(), (), "safetensors is not there"),
        (lambda folder: (folder / "tokenizer.json").unlink(), (), "tokenizer.json is not there"),
        (change_config(model_type="llama"), (), "model_type is llama, but v4's is qwen3"),
        (change_config(tie_word_embeddings=True), (), "lm_head.weight is not the embedding"),
        (change_config(tie_word_embeddings="x"), (), "--tie-head 'x' is not of type bool"),
        (
            change_config(layer_types=["sliding_attention"] * 2),
            (),
            "layer_types are not all full_attention",
        ),
        (change_config(vocab_size=301), (), "embed_tokens.weight is (300, 16), not (301, 16)"),
        (change_config(rope_scaling={"rope_type": "yarn"}), (), "rotary positions of type yarn"),
        (change_config(rope_parameters={"type": "linear"}), (), "positions of type linear"),
        (change_config(rope_scaling=[1]), (), "rotary positions are [1]"),
        (change_config(hidden_size=None), (), "does not say hidden_size"),
        (change_config(hidden_size=24), (), "embed_tokens.weight is (300, 16), not (300, 24)"),
        (change_config(num_hidden_layers=1), (), "other weights"),
        (cut_weights, (), "model.safetensors is damaged"),
        (rename_a_weight, (), "other weights"),
        (spoil_a_weight, (), "norm.weight holds numbers that are not finite"),
        (weights_of_type(torch.int32), (), "model.norm.weight is I32, not one of F32, BF16,"),
        (weights_of_type(torch.float8_e4m3fn), (), "model.norm.weight is F8_E4M3, not one of"),
        (weights_of_type(torch.complex64), (), "model.norm.weight is C64, not one of"),
        (enlarge_weights, (), "embed_tokens.weight is (9, 9), not (300, 16)"),
        (claim_more, (), "model.safetensors is damaged"),
        (rename_end_of_text, (), "has no <|endoftext|>"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            (),
            "export.py makes one of a run",
        ),
        (lambda folder: None, ("--width", "32"), "--width 32: the model has 16"),
        (lambda folder: None, ("--tokenizer", "any.json"), "--init-from has its own"),
    ],
)
def test_folders_that_v4_cannot_begin_from(
    folders, corpus_file, tmp_path, capsys, change, options, said
):
    folder = shutil.copytree(folders[1], tmp_path / "model")
    change(folder)
    arguments = ["--init-from", folder, "--data", corpus_file, "--out", tmp_path / "run", *options]
    assert said in complaint(v4.main, arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_not_read(folders, corpus_file, tmp_path, capsys, monkeypatch):
    folder, opened = shutil.copytree(folders[1], tmp_path / "model"), safetensors.safe_open
    enlarge_weights(folder)

    class Opened:
        def __init__(self, *arguments):
            self.file = opened(*arguments)

        def __enter__(self):
            self.keys, self.get_slice = self.file.keys, self.file.get_slice
            return self  # which reads no tensor

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(safetensors, "safe_open", Opened)
    arguments = ["--init-from", folder, "--data", corpus_file, "--out", tmp_path / "run"]
    assert "is (9, 9), not" in complaint(v4.main, arguments, capsys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precision_are_taken(folders, dtype, tmp_path):
    folder, model = (
        shutil.copytree(folders[1], tmp_path / "model"),
        open_run("v4_modern", folders[0]),
    )
    weights_of_type(dtype)(folder)
    model_files.load_weights(model[1].model, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model[1].model.norm.weight, weights.float())


def test_the_model_to_begin_from_is_not_overwritten(folders, corpus_file, capsys):
    before = {path.name: path.read_bytes() for path in folders[1].iterdir()}
    arguments = ["--init-from", folders[1], "--data", corpus_file, "--out", folders[1]]
    assert "folder of --init-from" in complaint(v4.main, arguments, capsys)
    assert {path.name: path.read_bytes() for path in folders[1].iterdir()} == before


def test_a_context_other_than_the_models(folders):
    arguments = ["--init-from", str(folders[1]), "--context-length", "20"]
    config = parse(v4.Config, arguments)
    assert (config.context_length, config.n_kv_heads, config.vocab_size) == (20, 2, 300)
    with pytest.raises(UserError, match="is not there"):
        parse(v4.Config, ["--init-from", str(folders[0] / "nothing")])


def test_what_changes_logits_is_fixed():
    """As v4 has it, whatever else a model of this type may have."""
    v4s = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
    v4s |= {"attention_bias": False, "use_sliding_window": False}
    assert v4s.items() <= model_files.FIXED.items()


@pytest.mark.parametrize("name", model_files.FIXED)
def test_another_model_than_v4s_is_refused(name, tmp_path):
    config = model_files.qwen3_config(v4.Config())
    write_json(tmp_path / "config.json", config)
    assert model_files.read_sizes(tmp_path)["width"] == 128
    write_json(tmp_path / "config.json", config | {name: 0.5})
    with pytest.raises(UserError, match=f"{name} is 0.5"):
        model_files.read_sizes(tmp_path)


def test_rotary_positions_where_transformers_5_has_them(tmp_path):
    config = model_files.qwen3_config(v4.Config())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    write_json(tmp_path / "config.json", config)
    assert model_files.read_sizes(tmp_path)["rope_base"] == 1e6


def test_a_model_that_does_not_fit_is_not_exported(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shared.model_table.free_memory", lambda _: 2000)
    said = complaint(export.main, [folders[0], tmp_path / "out"], capsys)
    assert "the model's weights take" in said and not list(tmp_path.rglob("*.safetensors"))


def test_a_greedy_run_is_exported_as_one(folders, tmp_path):
    run_folder = shutil.copytree(folders[0], tmp_path / "run")
    config = read_json(run_folder / "config.json")
    write_json(run_folder / "config.json", config | {"temperature": 0.0})
    export.main([str(run_folder), str(tmp_path / "model")])
    assert not GenerationConfig.from_pretrained(tmp_path / "model").do_sample
    assert AutoTokenizer.from_pretrained(tmp_path / "model").model_max_length == 48
