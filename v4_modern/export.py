"""Export a trained v4 as a Hugging Face folder, which transformers and its users load as is, or as
a GGUF file, which llama.cpp and its users do.

    python v4_modern/export.py runs/v4_modern my_model
    python v4_modern/export.py runs/v4_modern my_model.gguf --type q8_0

v4's block is Qwen3's, so nothing has to be converted: sizes, weights and tokens only get the names
and files that others expect (model_files.py, tokenizer_files.py and gguf_files.py beside this). For
the way back, `python v4_modern/train.py --init-from my_model` starts from such a folder.
"""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import command_line
from shared.corpora import END_OF_TEXT
from shared.files import (
    UserError,
    need_package,
    need_writable,
    read_json,
    write_json,
    write_text,
)
from shared.model_table import build
from shared.run import best_row
from shared.terminal import print_text
from v4_modern.gguf_files import save_gguf
from v4_modern.model_files import qwen3_config, save_weights
from v4_modern.tokenizer_files import PAD, padding, save_hugging_face
from v4_modern.train import VERSION, Config, LanguageModel, Run, Tokenizer, load_checkpoint

import tyro


@dataclass
class Options:
    """Write a trained v4 as a Hugging Face folder or a GGUF file."""

    # the folder of a finished run
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    # the folder to write, new or an earlier export, or the file, if the name ends in .gguf
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    best: bool = False  # with the weights of the best evaluation, not the last
    type: Literal["f32", "f16", "bf16", "q8_0"] = "f32"  # of the numbers in a .gguf file's matrices


# In the order in which they appear: without the last, nothing reads the folder.
FILES = ("generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES += ("README.md", "config.json")
MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A language model with {parameters:,} parameters and Qwen3's architecture, trained on
`{corpus[name]}` by `{version}/train.py`. It is small: its output only resembles that text.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("{name}")
    model = AutoModelForCausalLM.from_pretrained("{name}")
    inputs = tokenizer("Return the", return_tensors="pt")
    print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))

| | |
|---|---|
| bits per byte of validation text | {bits_per_byte:.4f} |
| loss, nats per token | {val_loss:.4f} |
| perplexity per token | {perplexity:.2f} |
| validation text | {corpus[val_bytes]:,} bytes, {scored_bytes:,} scored |
| training text | {corpus[train_bytes]:,} bytes, corpus sha256 {corpus[sha256]} |
| weights | after {steps:,} steps, in a run of {train_tokens:,} tokens, {train_bytes:,} bytes |
| vocabulary | {vocab_size:,} tokens, byte-level BPE |
| context | {context_length:,} tokens |
| trained in | {seconds:,.0f} s on {device} in {dtype}, seed {seed} |
| with | torch {torch}, Python {python}, commit {commit} |

Every text starts with `{end}`, which the tokenizer adds, and ends with it.
"""


def export(folder: Path, out: Path, best: bool = False, form: str = "f32") -> None:
    """Write the run in `folder` to `out`, with the weights of its `best` evaluation or the last, to
    a .gguf file of that `form`; UserError if it is not finished or not v4's.

    All files are written before the first replaces one of an earlier export.
    """
    if out.suffix.lower() == ".gguf":
        need_writable(out.parent, str(out))
        run, _ = finished_run(folder, best)
        save_gguf(run.model, run.config, run.tokenizer, out, form)
        return
    if form != "f32":
        raise UserError(f"--type {form} is for a .gguf file, and {out} is a folder")
    names = {path.name for path in out.glob("[!.]*")}
    if names and "generation_config.json" not in names:
        raise UserError(f"{out} is not an earlier export: name a new or empty folder")
    if others := names.difference(FILES):
        raise UserError(f"{out} holds other files, such as {min(others)}: name another folder")
    need_writable(out, str(out))
    need_package("safetensors", "exporting")
    run, summary = finished_run(folder, best)
    config, tokenizer = run.config, run.tokenizer
    end = tokenizer.special_tokens[END_OF_TEXT]
    text = tokenizer.decode([end])  # in some foreign tokenizers, it has another name
    try:
        card = MODEL_CARD.format(name=out.name, end=text, **summary)
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{folder / 'summary.json'} is damaged") from None
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": padding(tokenizer)}
    sampling = {"max_new_tokens": config.max_new_tokens, "do_sample": config.temperature > 0}
    if config.temperature:
        sampling |= {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
    out.mkdir(parents=True, exist_ok=True)
    for unfinished in out.glob(".unfinished-*"):  # of a killed process
        shutil.rmtree(unfinished)
    new = Path(mkdtemp(prefix=".unfinished-", dir=out))
    try:
        save_weights(run.model, new / "model.safetensors")
        write_json(new / "config.json", qwen3_config(config) | ends)
        write_json(new / "generation_config.json", ends | sampling)
        save_hugging_face(tokenizer, new / "tokenizer.json", begin=text, pad=True)
        write_json(
            new / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",  # without, Qwen2's, and its split
                "model_input_names": ["input_ids", "attention_mask"],
                "bos_token": text,
                "eos_token": text,
                "pad_token": PAD,
                "clean_up_tokenization_spaces": False,
                "model_max_length": config.context_length,
            },
        )
        write_text(new / "README.md", card)
        (out / "config.json").unlink(missing_ok=True)
        for name in FILES:
            (new / name).replace(out / name)
    finally:
        shutil.rmtree(new)


def finished_run(folder: Path, best: bool) -> tuple[Run, dict]:
    """The run in `folder`, with those weights, and its summary."""
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} holds no finished run: train v4, or finish with --resume")
    config = replace(command_line.load_config(Config, str(folder)), device="cpu", best=best)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    run = Run(VERSION, config, tokenizer, build(LanguageModel, config))
    load_checkpoint(run)
    summary = read_json(folder / "summary.json")
    if run.checkpoint == run.best:  # then the last was not the best
        of_step = [row for row in run.rows if row["step"] == run.step]
        summary |= best_row(of_step) | {"steps": run.step}
    elif summary.get("steps") != run.step:
        raise UserError(f"{folder} was trained further after its end: finish it with --resume")
    return run, summary


def main(arguments: list[str] | None = None) -> None:
    """Export as `arguments` (None: the process's own) say."""
    with command_line.clear_errors():
        options = command_line.parse_options(Options, arguments)
        export(options.run, options.out, options.best, options.type)
        what = "GGUF file" if options.out.suffix.lower() == ".gguf" else "Hugging Face folder"
        print_text(f"{options.run} is now a {what}: {options.out}")


if __name__ == "__main__":
    main()
