"""What other engines make of an exported v4: their ids and their greedy text beside its own.

    python benchmarks/engines.py                        of a v4 that is trained for this, briefly
    python benchmarks/engines.py --run runs/v4_modern   of a run of your own

Each engine that this Python can import is asked in a process of its own; the others are named.
Some exclude each other: give them environments of their own, each with requirements.txt and
safetensors, and run this with one Python after the other. Each run replaces the rows of the engines
that it asked, as long as the model is the same. Table and results.json go to
benchmarks/results/engines/; `--readme` asks nothing and writes v4_modern/README.md, too.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Without this folder, for `tokenizers` is the name of a package, too.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
import torch

from benchmarks import common
from benchmarks.command import publish
from benchmarks.common import check_name, markdown, on_machine, open_run, train
from benchmarks.records import code, kept, read_results, write_results
from shared.command_line import clear_errors, parse_options
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import ROOT, UserError, file_sha256, read_json, write_json, write_text
from shared.machine import machine_facts
from shared.terminal import print_text

TOUR = ROOT / "v4_modern" / "README.md"
RUNS = ROOT / "runs" / "engines"
STEPS = 100  # of the model that is trained for this
TOKENS = 100  # of each greedy text
PATIENCE = 900  # seconds for an engine
PROMPTS = ("Return the", "This module", "If the file", "A list of", "class Node:\n    def ")
PROMPTS += (">>> import ", "The following", "New in version 3", "def main(", "For example, ")
ODD_TEXTS = (
    *("", " ", "  two  blanks  ", "\ttab\t\ttabs", "line\nends\n\n\nmany\n", "\r\nDOS\r\n\r"),
    *("blanks at the end   ", "\n   indent\n\tx", "don't DON'T it's I'll we\u2019ve 'tis"),
    *("3.14159 1e-10 42 4242 0x1F", "\u0664\u0662 \u00bd \u2167", f"a{END_OF_TEXT}b", END_OF_TEXT),
    *(f" {END_OF_TEXT} {END_OF_TEXT}{END_OF_TEXT}\n", "<|endoftext|", "<|im_start|>user"),
    *("é e\u0301 \u212b \ufb01", "\u00ff \u00c0\u00c1\u00f5", "\u6f22\u5b57\u3068\u304b\u306a"),
    *("\u0440\u0443\u0441\u0441\u043a\u0438\u0439", "\u0645\u0631\u062d\u0628\u0627 \u202eabc"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\U0001d400\U0001d7d8"),
    *("a\u00a0b\u2003c\u3000d", "a\u0085b\u2028c\u2029d", "a\u180eb\u200bc\ufeffd", "\ufeffbom"),
    *("a\x00b", "a\x1c\x1d\x7fb", "a" * 300, " " * 100 + "x", "!?" * 50 + "...---___"),
    *("https://x.org/?q=1&r=%20#a_b", "if(x==y){z+=1;}//"),
)


@dataclass
class Options:
    """Ask the engines that are installed what they make of an exported v4."""

    run: str = ""  # folder of a finished run of v4; without, one is trained
    engines: tuple[str, ...] = ()  # names of packages; without, all that can be imported
    name: str = "engines"  # of the folder of results
    readme: bool = False  # ask nothing, write the table from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        if wrong := set(self.engines) - set(ENGINES):
            raise UserError(f"--engines {min(wrong)}: there are {', '.join(ENGINES)}")


@dataclass
class Questions:
    """What each engine is asked, of the export in `folder` and the `run` that it is of."""

    folder: str
    run: str
    work: str  # a folder for what is converted
    texts: list[str]  # to encode
    prompts: list[str]
    starts: list[list[int]]  # the prompts' ids, behind that of the begin token
    documents: list[str]  # to be scored, from validation text
    tokens: int

    def converted(self, command: str) -> Path:
        """Run `command`, in which my_model and RUN stand for this one's, and what else begins with
        my_ for a file or folder to write, whose path is returned."""
        names, out = {"my_model": self.folder, "RUN": self.run}, Path()
        program, *words = shlex.split(command)
        for word in words:
            if word.startswith("my_") and word not in names:
                out = Path(self.work) / word
                names[word] = str(out)
        shutil.rmtree(out, ignore_errors=True)
        in_environment = Path(sysconfig.get_path("scripts")) / program
        program = sys.executable if program == "python" else str(in_environment)
        command = [program, *(names.get(word, word) for word in words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "killed").splitlines()[-1])
        return out


# ---- the engines ----

# What an engine answers. "greedy": ids or text that follow each prompt; "ids": those of each
# text, if it has a tokenizer of its own; "numbers": what else was measured, to be told.
Answer = dict


def generated(model: object, tokenizer: Callable, asked: Questions) -> list[list[int]]:
    """Greedy ids by the `generate` of transformers, called as on the model's card."""
    found = []
    for prompt in asked.prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=asked.tokens)
        found.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def ask_transformers(asked: Questions, _: str) -> Answer:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.folder)
    model = AutoModelForCausalLM.from_pretrained(asked.folder)
    ids = [tokenizer(text)["input_ids"] for text in asked.texts]
    return {"ids": ids, "greedy": generated(model, tokenizer, asked)}


def ask_peft(asked: Questions, _: str) -> Answer:
    """With fresh adapters, which change nothing; then they are trained on a padded batch, whose
    loss in the evaluation before is to be ours: the ends count and the padding does not."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(asked.folder)
    model = AutoModelForCausalLM.from_pretrained(asked.folder)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    greedy = generated(model, tokenizer, asked)
    batch = [{"input_ids": tokenizer(text + END_OF_TEXT).input_ids} for text in asked.documents]
    size = {f"per_device_{what}_batch_size": len(batch) for what in ("train", "eval")}
    trainer = Trainer(
        model,
        TrainingArguments(asked.work, max_steps=20, learning_rate=0.01, report_to=[], **size),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=batch,
        eval_dataset=batch,
    )
    before, _, after = trainer.evaluate(), trainer.train(), trainer.evaluate()
    losses = {"before": before["eval_loss"], "after": after["eval_loss"]}
    return {"greedy": greedy, "numbers": losses}


def ask_ctranslate2(asked: Questions, command: str) -> Answer:
    import ctranslate2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.folder)
    model = ctranslate2.Generator(str(asked.converted(command)), compute_type="float32")
    starts = [tokenizer.convert_ids_to_tokens(start) for start in asked.starts]
    limits = {"max_length": asked.tokens, "include_prompt_in_result": False}
    return {"greedy": [r.sequences_ids[0] for r in model.generate_batch(starts, **limits)]}


def ask_llama_cpp(asked: Questions, command: str) -> Answer:
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    path, greedy = asked.converted(command), []
    model = llama_cpp.LlamaModel(str(path), llama_cpp.LlamaModelParams())
    options = llama_cpp.LlamaContextParams()
    options.n_ctx, options.type_k, options.type_v = 512, 0, 0  # 0: float32
    options.flash_attn_type = 0  # off: it would round more
    for unread in asked.starts:
        context = llama_cpp.LlamaContext(model, options)
        choice = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
        choice.add_greedy()
        found, place = [], 0
        for _ in range(asked.tokens):
            context.decode(llama_cpp.llama_batch_get_one(unread, place))
            place += len(unread)
            unread = [choice.sample(context, -1)]
            found += unread
        greedy.append(found)
    vocab = model.get_vocab()
    return {"greedy": greedy, "ids": [vocab.tokenize(text, True, True) for text in asked.texts]}


def ask_mlx(asked: Questions, _: str) -> Answer:
    import mlx.core
    import mlx_lm
    from mlx_lm.generate import generate_step

    model, tokenizer = mlx_lm.load(asked.folder)
    greedy = [
        [int(i) for i, _ in generate_step(mlx.core.array(start), model, max_tokens=asked.tokens)]
        for start in asked.starts
    ]
    return {"greedy": greedy, "ids": [tokenizer.encode(text) for text in asked.texts]}


def ask_onnxruntime_genai(asked: Questions, command: str) -> Answer:
    import onnxruntime_genai

    model, greedy = onnxruntime_genai.Model(str(asked.converted(command))), []
    tokenizer = onnxruntime_genai.Tokenizer(model)
    for start in asked.starts:
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=len(start) + asked.tokens)
        generator = onnxruntime_genai.Generator(model, options)
        generator.append_tokens(start)
        while not generator.is_done():
            generator.generate_next_token()
        greedy.append(generator.get_sequence(0)[len(start) :].tolist())
    return {"greedy": greedy, "ids": [tokenizer.encode(text).tolist() for text in asked.texts]}


def ask_optimum_onnx(asked: Questions, command: str) -> Answer:
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    path = asked.converted(command)
    tokenizer = AutoTokenizer.from_pretrained(path)
    greedy = generated(ORTModelForCausalLM.from_pretrained(path), tokenizer, asked)
    return {"greedy": greedy, "ids": [tokenizer(text)["input_ids"] for text in asked.texts]}


def ask_openvino(asked: Questions, command: str) -> Answer:
    import numpy as np
    import openvino
    import openvino_genai

    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    model = openvino_genai.LLMPipeline(str(asked.converted(command)), "CPU", **exact)
    tokenizer, limits = model.get_tokenizer(), {"max_new_tokens": asked.tokens, "do_sample": False}
    starts = [openvino.Tensor(np.array([start])) for start in asked.starts]
    return {
        "greedy": [list(model.generate(start, **limits).tokens[0]) for start in starts],
        "ids": [tokenizer.encode(text).input_ids.data[0].tolist() for text in asked.texts],
    }


def ask_mistralrs(asked: Questions, _: str) -> Answer:
    os.environ["MISTRALRS_CPU_KV_F32"] = "1"
    from mistralrs import CompletionRequest, ModelDType, Runner, Which

    model = Runner(which=Which.Plain(model_id=asked.folder, dtype=ModelDType.F32))
    options = {"model": "default", "max_tokens": asked.tokens, "temperature": 0.0}
    asked_for = [CompletionRequest(prompt=prompt, **options) for prompt in asked.prompts]
    return {
        "greedy": [model.send_completion_request(one).choices[0].text for one in asked_for],
        "ids": [model.tokenize_text(text, True, None) for text in asked.texts],
    }


def ask_lm_eval(asked: Questions, _: str) -> Answer:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    bits = {}
    n_bytes = sum(len(text.encode("utf-8")) for text in asked.documents)
    texts = [
        Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(asked.documents)
    ]
    for name, begin in (("as_it_is", None), ("without", False)):
        model = HFLM(asked.folder, device="cpu", dtype="float32", add_bos_token=begin)
        bits[name] = -sum(model.loglikelihood_rolling(texts)) / n_bytes / math.log(2)
    return {"numbers": bits}


@dataclass(frozen=True)
class Engine:
    """An engine, by its packages, of which the first one's version is told."""

    packages: tuple[str, ...]
    ask: Callable[[Questions, str], Answer]
    command: str  # that brings a model to it
    know: str = ""  # what one should; with numbers of the answer


LOAD = 'AutoModelForCausalLM.from_pretrained("my_model")'
ENGINES = {
    "transformers": Engine(
        ("transformers",),
        ask_transformers,
        LOAD,
        "beyond the trained context it does not drop what is old, as v4 does: texts differ from "
        'there; to generate in batches, `padding_side="left"`',
    ),
    "peft": Engine(
        ("peft", "accelerate"),
        ask_peft,
        "get_peft_model(...)",
        "LoRA goes to q_proj and v_proj unless told otherwise; `Trainer` with padded batches: loss "
        "{before:.4f} (ours {our_loss:.4f}), after 20 steps {after:.2f}",
    ),
    "llama.cpp": Engine(
        ("cyllama", "gguf"),
        ask_llama_cpp,
        "python v4_modern/export.py RUN my_model.gguf",
        "with `-ctk f32 -ctv f32 -fa off`; otherwise it rounds more",
    ),
    "ctranslate2": Engine(
        ("ctranslate2", "transformers"),
        ask_ctranslate2,
        "ct2-transformers-converter --model my_model --output_dir my_ct2",
        "tokenizes with transformers; on a CPU, the package from PyPI has no bfloat16 or float16",
    ),
    "mlx-lm": Engine(
        ("mlx-lm", "mlx"),
        ask_mlx,
        'mlx_lm.load("my_model")',
        "on Linux, `pip install mlx[cpu]`, too",
    ),
    "onnxruntime-genai": Engine(
        ("onnxruntime-genai", "onnx-ir", "transformers"),
        ask_onnxruntime_genai,
        "python -m onnxruntime_genai.models.builder -m my_model -o my_onnx -p fp32 -e cpu",
        "its tokenizer puts nothing before a text, and stops at a NUL: give it the begin token",
    ),
    "optimum-onnx": Engine(
        ("optimum-onnx", "onnxruntime"),
        ask_optimum_onnx,
        "optimum-cli export onnx --model my_model --task text-generation-with-past my_onnx",
    ),
    "openvino-genai": Engine(
        ("openvino-genai", "optimum-intel"),
        ask_openvino,
        "optimum-cli export openvino --model my_model --task text-generation-with-past "
        "--weight-format fp32 my_openvino",
        "with `INFERENCE_PRECISION_HINT` and `KV_CACHE_PRECISION` at f32; by default, it computes "
        "in bfloat16 where the CPU has it",
    ),
    "mistralrs": Engine(
        ("mistralrs",),
        ask_mistralrs,
        'Runner(which=Which.Plain(model_id="my_model", dtype=ModelDType.F32))',
        "with `MISTRALRS_CPU_KV_F32=1`; otherwise its cache is in float16",
    ),
    "lm-eval": Engine(
        ("lm-eval", "transformers"),
        ask_lm_eval,
        "lm_eval --model_args pretrained=my_model,add_bos_token=False",
        "{without:.4f} bits per byte (ours {our_bits:.4f}); without `add_bos_token=False`, "
        "{as_it_is:.4f}: the begin token is scored, too",
    ),
}


def versions(engine: Engine) -> list[str]:
    """Of its packages; an empty list if one is not installed."""
    try:
        return [version(package) for package in engine.packages]
    except PackageNotFoundError:
        return []


def answer(name: str, asked: Questions) -> Answer:
    """What an engine answers, asked in a process of its own, or {"failed": why}."""
    work = Path(asked.work)
    shutil.rmtree(work, ignore_errors=True)
    questions, said = work / "questions.json", work / "answer.json"
    write_json(questions, asdict(asked))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    command = [sys.executable, __file__, "--ask", name, str(questions), str(said)]
    with open(work / "log", "w+", encoding="utf-8", errors="replace") as log:
        try:
            subprocess.run(
                command, env=os.environ | offline, stdout=log, stderr=log, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no answer in {PATIENCE} seconds"}
        if said.exists():
            return read_json(said)
        log.seek(0)
        return {"failed": (log.read().strip() or "killed").splitlines()[-1]}


def answer_here(name: str, questions: str, said: str) -> None:
    """The same in this process, from and to files."""
    engine, asked = ENGINES[name], Questions(**json.loads(Path(questions).read_text("utf-8")))
    write_json(said, engine.ask(asked, engine.command))


# ---- comparing ----


@torch.inference_mode()
def our_answer(asked: Questions) -> Answer:
    """What v4 itself answers, in float32."""
    limits = {"temperature": 0.0, "max_new_tokens": asked.tokens, "device": "cpu"}
    v4, run = open_run("v4_modern", Path(asked.run), **limits)
    end = run.tokenizer.special_tokens[END_OF_TEXT]
    losses, n_bytes = [], 0
    for text in asked.documents:
        ids = torch.tensor([end, *run.tokenizer.encode(text), end])
        losses.append(v4.cross_entropy(run.model(ids[None, :-1])[0], ids[1:]))
        n_bytes += len(text.encode("utf-8"))
    of_text = sum(loss[:-1].sum().item() for loss in losses)  # without the end
    bits = of_text / n_bytes / math.log(2)
    return {
        "ids": [[end, *run.tokenizer.encode(text)] for text in asked.texts],
        "greedy": [list(v4.generate(run.model, ids, run.config, end)) for ids in asked.starts],
        "numbers": {"our_loss": torch.cat(losses).mean().item(), "our_bits": bits},
    }


def alike(theirs: list[int] | str, ours: list[int], tokenizer: object, end: int) -> bool:
    """Whether an engine's text, or its ids up to that of the `end`, are ours."""
    if isinstance(theirs, str):  # where a character is cut in two, engines show this or that
        return theirs.rstrip("\ufffd") == tokenizer.decode(ours).rstrip("\ufffd")
    return (theirs[: theirs.index(end)] if end in theirs else theirs) == ours


def row_of(theirs: Answer, ours: Answer, tokenizer: object) -> dict:
    """How much of an engine's answer is as ours. Of the ids, whichever is more: with or without
    the begin token."""
    if "failed" in theirs:
        return theirs
    end, row = tokenizer.special_tokens[END_OF_TEXT], {}
    if "greedy" in theirs:
        pairs = list(zip(theirs["greedy"], ours["greedy"], strict=True))
        same = sum(alike(*pair, tokenizer, end) for pair in pairs)
        row["greedy"] = f"{same} of {len(pairs)}"
    if "ids" in theirs:
        pairs = list(zip(theirs["ids"], ours["ids"], strict=True))
        begun, bare = (sum(a == b[start:] for a, b in pairs) for start in (0, 1))
        row["ids"] = f"{max(begun, bare)} of {len(pairs)}"
        row["ids"] += ", without a begin token" if bare > begun else ""
    return row | {"numbers": ours["numbers"] | theirs.get("numbers", {})}


def exported(folder: Path) -> Path:
    """The run in `folder` as a folder of Hugging Face's format."""
    out = RUNS / "model"
    command = [sys.executable, str(ROOT / "v4_modern" / "export.py"), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr.strip().removeprefix("error: "))
    return out


def compare(options: Options) -> dict:
    """Ask all engines that are here; rows of the same model and the same code that were found
    elsewhere are kept."""
    folder = Path(options.run).resolve() if options.run else RUNS / "run"
    if not options.run:
        train("v4_modern", folder, {"steps": STEPS})
    model = exported(folder)
    _, run = open_run("v4_modern", folder)
    tokenizer, documents = run.tokenizer, read_documents(load_corpus("pydocs").val)
    end = tokenizer.special_tokens[END_OF_TEXT]
    asked = Questions(
        folder=str(model),
        run=str(folder),
        work=str(RUNS / "work"),
        texts=list(ODD_TEXTS),
        prompts=list(PROMPTS),
        starts=[[end, *tokenizer.encode(prompt)] for prompt in PROMPTS],
        documents=[text[:100] for _, text in zip(range(40), documents)],
        tokens=TOKENS,
    )
    longest = max(map(len, asked.starts)) + asked.tokens
    if longest > run.config.context_length:
        raise UserError(f"--run {options.run}: a context of {longest} tokens is needed")
    path = common.RESULTS / options.name / "results.json"
    about = {"sha256": file_sha256(model / "model.safetensors"), "parameters": run.parameters}
    results = kept(path)
    if results.get("model") != about:
        results = {"model": about, "rows": {}}
    ours, facts = our_answer(asked), machine_facts() | {"commit": code()}
    for name in options.engines or ENGINES:
        if not (found := versions(ENGINES[name])):
            print_text(f"{name} is not installed: pip install {' '.join(ENGINES[name].packages)}")
            continue
        row = {"engine": name, "version": found[0]} | row_of(answer(name, asked), ours, tokenizer)
        print_text(f"{name} {found[0]}: {row.get('failed') or row.get('greedy', '')}")
        results["rows"][f"{name} {found[0]}"] = row | {"machine": facts}
        write_results(path, results)
    return results


# ---- reporting ----


def report(results: dict) -> str:
    """The table, and which engines are not in it."""
    table = [["engine", "how", "same text", "same ids", "to know"]]
    rows, missing = results["rows"].values(), []
    for name, engine in ENGINES.items():
        own = sorted((row for row in rows if row["engine"] == name), key=lambda row: row["version"])
        missing += [] if own else [name]
        for row in own:
            know = "" if "failed" in row else engine.know.format(**row["numbers"])
            cells = [f"failed: {row['failed']}" if "failed" in row else row.get("greedy", "")]
            cells += [row.get("ids", ""), know]
            cells = [f"{name} {row['version']}", f"`{engine.command}`", *cells]
            table.append([cell.replace("|", "\\|") for cell in cells])
    about = (
        f"Same text: of {len(PROMPTS)} prompts, those that {TOKENS} greedy tokens follow as in v4, "
        f"in float32; same ids: of {len(ODD_TEXTS)} odd texts. llama.cpp is that of the package "
        f"cyllama. A v4 with {results['model']['parameters']:,} parameters; "
        f"{on_machine(*(row['machine'] for row in rows))}."
    )
    absent = f" Not installed, so not asked: {', '.join(missing)}." if missing else ""
    return markdown(table) + "\n\n" + about + absent


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--ask"]:
        answer_here(*arguments[1:])
        return
    with clear_errors():
        options = parse_options(Options, arguments)
        folder = common.RESULTS / options.name
        if not options.readme:
            compare(options)
        results = read_results(folder / "results.json")
        if options.readme:
            tour = TOUR.read_text(encoding="utf-8")
            write_text(TOUR, common.readme_with(tour, options.name, report(results)))
        publish(folder, report(results), {}, options.readme)


if __name__ == "__main__":
    main()
