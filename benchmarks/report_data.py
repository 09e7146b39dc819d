"""What the page computes from finished runs; the same runs give the same."""

import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import compare
from benchmarks.common import VERSIONS, course, open_run, read_rows, record, under_conditions
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import ROOT, UserError, read_json
from shared.run import Run
from shared.tokens import token_lengths

LIKELIEST = 10  # next tokens shown for each token of the paragraph
MOST_BITS = 8  # a byte: what a token costs whose colour is the strongest


def places(results: str) -> dict[str, list[Path]]:
    """Where a run of each version may be: of the comparison first, then one's own."""
    runs = ROOT / "runs"
    return {name: [runs / "compare" / results / f"{name}-0", runs / name] for name in VERSIONS}


def open_runs(folders: dict[str, list[Path]]) -> dict[str, Run]:
    """The finished run of each version in the first of its `folders` that has one, of those that
    were trained on the text that most were; a line on the terminal tells which are left out."""
    runs = {}
    for name, of_version in folders.items():
        folder = next((f for f in of_version if (f / "summary.json").exists()), None)
        try:
            if folder:
                _, runs[name] = open_run(name, folder, device="cpu")
                runs[name].summary = read_json(folder / "summary.json")
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    texts = Counter(run.summary["corpus"]["sha256"] for run in runs.values())
    for name, run in list(runs.items()):
        if run.summary["corpus"]["sha256"] != texts.most_common(1)[0][0]:
            print(f"{name} is left out: {run.out} is of another text", file=sys.stderr)
            del runs[name]
    return runs


def results_of(folder: Path) -> dict:
    """What compare.py would keep of the finished run in `folder`; UserError if there is none, or
    its text has changed since. It goes on from how three of its training documents begin."""
    if not (folder / "summary.json").exists():
        raise UserError(f"--run {folder}: no finished run is there")
    run = record(folder)
    version, config = run["version"], read_json(folder / "config.json")
    corpus = load_corpus(config["data"], config["text_field"])
    if corpus.sha256 != run["corpus"]["sha256"]:
        raise UserError(f"--run {folder}: {config['data']} has changed since")
    documents, known = list(read_documents(corpus.val)), islice(read_documents(corpus.train), 3)
    prompts = tuple(dict.fromkeys(" ".join(document.split()[:2]) for document in known))
    exhibit = compare.read_exhibits(version, folder, prompts, compare.paragraph_of(documents))
    conditions = under_conditions(run["corpus"], [run], run["dtype"])
    return {
        "depends": f"{run['steps']:,} steps in {run['seconds']:,.0f} s, {conditions}",
        "seconds": 0,
        "bytes": 0,
        "validation_words": sum(len(document.split()) for document in documents),
        "runs": [run | course(folder) | {"beyond": compare.read_beyond(version, folder)}],
        "exhibits": {version: exhibit | {"map": compare.map_embeddings(version, folder)}},
    }


# ---- a paragraph, token by token ----


def paragraph(runs: dict[str, Run]) -> str:
    """A paragraph of the validation text of `runs`; nothing if there are none, or it has changed
    since."""
    for run in runs.values():
        corpus = load_corpus(run.config.data, run.config.text_field)
        if corpus.sha256 == run.summary["corpus"]["sha256"]:
            return compare.paragraph_of(list(read_documents(corpus.val)))
        print(f"{run.config.data} has changed since: no paragraph is shown", file=sys.stderr)
        break
    return ""


@torch.no_grad()
def predictions(model: torch.nn.Module, ids: torch.Tensor, length: int) -> torch.Tensor:
    """Of the token after each of `ids` (N,), seeing up to `length` of them: the natural logarithm
    of the probability of each token, (N, V)."""
    model.eval()
    logits = [model(ids[None, :length])[0]]
    if len(ids) > length:  # from here on, each prediction has its own window
        windows = ids[1:].unfold(0, length, 1)
        logits += [model(some)[:, -1] for some in windows.split(64)]
    return F.log_softmax(torch.cat(logits).double(), dim=-1)


def colour(run: Run, text: str) -> dict:
    """`text` in the tokens of `run`: what each cost in bits, and what the model expected.

    `tokens`: the text of each, its bits, its bits per byte (None if it is no text), its rank among
    the tokens expected there, and the number of a list in `tops`; `bytes`: how long each is. Such a
    list alternates between the number of a token in `vocab` and its probability in hundredths of a
    percent.
    """
    tokenizer = run.tokenizer
    ids = torch.tensor([tokenizer.special_tokens[END_OF_TEXT], *tokenizer.encode(text)])
    logs = predictions(run.model, ids[:-1], run.config.context_length)
    lengths = token_lengths(tokenizer)[ids[1:]].tolist()
    likeliest = logs.topk(min(LIKELIEST, logs.shape[1]))
    vocab, tops, tokens, bits = {}, {}, [], 0.0
    for i, (token, length) in enumerate(zip(ids[1:].tolist(), lengths)):
        own = logs[i, token].item()
        cost = -own / math.log(2)
        bits += cost if length else 0
        top = []
        for other, log in zip(likeliest.indices[i].tolist(), likeliest.values[i].tolist()):
            top += [vocab.setdefault(piece(run, other), len(vocab)), round(1e4 * math.exp(log))]
        rank = int((logs[i] > own).sum()) + 1
        number = tops.setdefault(tuple(top), len(tops))
        each = cost / length if length else None
        tokens.append([piece(run, token), round(cost, 2), each and round(each, 2), rank, number])
    return {
        "tokens": tokens,
        "bytes": lengths,
        "tops": list(tops),
        "vocab": list(vocab),
        "bits_per_byte": bits / max(1, sum(lengths)),
        "of_all": run.summary["bits_per_byte"],
        "steps": run.step,
        "context": run.config.context_length,
    }


def piece(run: Run, token: int) -> str:
    """What is shown of a token: parts of characters as U+FFFD."""
    return run.tokenizer.token_bytes(token).decode("utf-8", "replace")


def coloured(runs: dict[str, Run], text: str) -> dict[str, dict]:
    """`text` as each of `runs` reads it."""
    return {name: colour(run, text) for name, run in runs.items()} if text else {}


# ---- merges ----


def merging(tokenizer: object) -> dict:
    """A byte-level BPE for the page's own encoder: its words' pattern as JavaScript has it, the
    `merges` (left, right, left, right, ...), and which of their results are `scaffolds`."""
    pattern = tokenizer.pattern.pattern
    return {
        # JavaScript's \s is another set of characters.
        "pattern": pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}"),
        "merges": [part for pair in tokenizer.merges for part in pair],
        "scaffolds": sorted(getattr(tokenizer, "scaffolds", ())),
    }


def mergings(runs: dict[str, Run]) -> dict[str, dict]:
    """The same of each of `runs` that merges bytes; foreign tokenizers have ids of their own."""
    tokenizers = {name: run.tokenizer for name, run in runs.items()}
    return {
        name: merging(tokenizer)
        for name, tokenizer in tokenizers.items()
        if hasattr(tokenizer, "merges") and not hasattr(tokenizer, "made")
    }


# ---- text by step ----


def learning(runs: dict[str, Run]) -> dict:
    """What the last of `runs` wrote as it learned: its version, and for each evaluation the step,
    the text, and bits per byte on the start of the validation text; nothing without texts."""
    for name, run in reversed(runs.items()):
        rows = read_rows(run.out / "metrics.jsonl")
        bits = {row["step"]: row["bits_per_byte"] for row in rows if "bits_per_byte" in row}
        texts = {row["step"]: row["sample"] for row in rows if "sample" in row}
        if texts:
            steps = [[step, text, bits.get(step)] for step, text in texts.items()]
            return {"version": name, "steps": steps}
    return {}
