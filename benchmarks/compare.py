"""What each version buys: all of them on the same text, at an equal budget.

    python benchmarks/compare.py --seconds 120 --seeds 3     equal time of training on this machine
    python benchmarks/compare.py --bytes 1000000             equal text seen
    python benchmarks/compare.py                             each with the steps it ships with

Every run is a version's own train.py, in its own process, with its own command line. Tables,
pictures and results.json go to benchmarks/results/<name>/. If stopped, run the same command again
to resume. `--readme` trains nothing: it rewrites the tables from results.json, also in README.md
here, if that has a block of the name.
"""

import html
import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import pictures
from benchmarks.budgets import Budget, run_all
from benchmarks.command import Shown, run_benchmark
from benchmarks.common import (
    check_name,
    course,
    fold,
    markdown,
    mean,
    open_run,
    pick_versions,
    plus_minus,
    program_of,
    source,
    spread,
    what_it_depends_on,
)
from shared.corpora import load_corpus, read_documents
from shared.files import ROOT, UserError
from shared.terminal import progress

BEYOND = (1, 2, 4, 8)  # times the context that a model was trained on
PARAGRAPH = range(300, 700)  # characters of the document whose tokens are shown
MAP_TOKENS = 200  # most frequent tokens on the map of embeddings


@dataclass
class Options(Budget):
    """Compare the versions at an equal budget; without one, as they ship."""

    versions: tuple[str, ...] = ()  # v2 v4; all if not given
    prompts: tuple[str, ...] = ("Return the", "This module", "If the file")  # for the samples
    name: str = ""  # of the folder of results; after the budget if not given
    fresh: bool = False  # run again what is finished
    readme: bool = False  # train nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        if self.seconds and self.bytes:
            raise UserError("--seconds and --bytes are two budgets: choose one")
        super().__post_init__()
        self.name = self.name or self.title
        check_name(self.name)
        pick_versions(self.versions)


# ---- evaluating finished runs ----


def read_beyond(version: str, folder: Path) -> dict:
    """Bits per byte with windows of 1, 2, 4 and 8 times the training context.

    The same tokens, those of the whole validation text, are scored at each length. `reads` is the
    context that the model uses: 1 if nothing before the last token affects its output. `lengths`
    are [times the context, bits per byte, bytes scored].
    """
    module, run = open_run(version, folder, device="cpu")
    config, tokenizer = run.config, run.tokenizer
    _, _, _, tokens = module.load_data(replace(run.config, resume=True))  # its own tokenizer
    window = torch.from_numpy(tokens[: config.context_length].astype(np.int64))[None]
    with torch.no_grad():
        run.model.eval()
        alone = torch.allclose(run.model(window)[0, -1], run.model(window[:, -1:])[0, -1])
    if alone:
        return {"reads": 1, "lengths": [], "why": "it looks at the last token alone"}
    lengths, why = [], ""
    for times in BEYOND:
        length = times * config.context_length
        try:
            nats, n_bytes = module.evaluate(
                run.model, tokens, tokenizer, length, max(1, 32 // times)
            )
        except ValueError as error:  # the model says so itself
            why = str(error)
            break
        bits = nats / math.log(2) / n_bytes
        lengths.append([times, bits, n_bytes])
    return {"reads": config.context_length, "lengths": lengths, "why": why}


def read_exhibits(version: str, folder: Path, prompts: tuple[str, ...], paragraph: str) -> dict:
    """What the page shows of a run: its samples, and a paragraph split into its tokens."""
    samples = {}
    for prompt in prompts:
        module, run = open_run(version, folder, prompt=prompt, max_new_tokens=120)
        samples[prompt] = "".join(run.write(module.generate))
    ids = run.tokenizer.encode(paragraph)
    pieces = [run.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return {"samples": samples, "tokens": pieces}


def paragraph_of(documents: list[str]) -> str:
    """The first of `documents` that is a paragraph by its length, or the start of the first."""
    return next((d for d in documents if len(d) in PARAGRAPH), documents[0][: PARAGRAPH.stop])


def map_embeddings(version: str, folder: Path) -> list[list]:
    """The most frequent tokens, each with its embedding's place on their two main axes (PCA)."""
    module, run = open_run(version, folder, device="cpu")
    if not hasattr(run.model, "embedding"):
        return []
    _, _, tokens, _ = module.load_data(replace(run.config, resume=True))  # its own tokenizer
    counts = np.bincount(tokens, minlength=run.tokenizer.vocab_size)
    special = set(run.tokenizer.special_tokens.values())
    ids = [int(i) for i in counts.argsort()[::-1] if i not in special][:MAP_TOKENS]
    vectors = run.model.embedding.weight.detach()[ids].double()  # (tokens, C)
    centred = vectors - vectors.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    return [
        [run.tokenizer.token_bytes(i).decode("utf-8", "replace"), round(x, 3), round(y, 3)]
        for i, (x, y) in zip(ids, places.tolist())
    ]


def compare(options: Options) -> dict:
    """Run what is not finished yet, evaluate all runs, and return what goes into results.json."""
    folder = ROOT / "runs" / "compare" / options.name
    corpus = load_corpus(options.data)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    programs = {version: program_of(version) for version in pick_versions(options.versions)}
    records = run_all(programs, options, folder, corpus)
    documents = list(read_documents(corpus.val))
    paragraph = paragraph_of(documents)
    if options.threads:
        torch.set_num_threads(options.threads)
    exhibits = {}
    for record in progress(records, desc="reading beyond the context"):
        out = folder / f"{record['version']}-{record['seed']}"
        record |= course(out) | {"beyond": read_beyond(record["version"], out)}
        if record["seed"] == 0:
            exhibits[record["version"]] = read_exhibits(
                record["version"], out, options.prompts, paragraph
            )
    last = records[-1]["version"]
    exhibits[last]["map"] = map_embeddings(last, folder / f"{last}-0")
    return {
        "seconds": options.seconds,
        "bytes": options.bytes,
        "validation_words": sum(len(document.split()) for document in documents),
        "runs": records,
        "exhibits": exhibits,
    }


# ---- reporting ----


def summarize(results: dict) -> list[dict]:
    """A dictionary for each version, in order: the mean of each measure over its seeds.

    Perplexity per word is exp(nats of the whole validation text / its words), where words are
    separated by whitespace; `change` is in mean bits per byte, from the previous version.
    """
    rows = []
    for version in sorted({run["version"] for run in results["runs"]}):
        runs = [run for run in results["runs"] if run["version"] == version]
        bits = [run["bits_per_byte"] for run in runs]
        bytes_a_token = mean(run["val_loss"] / math.log(2) / run["bits_per_byte"] for run in runs)
        words, steps = results["validation_words"], [run["steps"] for run in runs]
        nats_a_word = [b * math.log(2) * run["scored_bytes"] / words for b, run in zip(bits, runs)]
        rows.append(
            {
                "version": version,
                "seeds": len(runs),
                "bits_per_byte": mean(bits),
                "spread": spread(bits),
                "change": mean(bits) / rows[-1]["bits_per_byte"] - 1 if rows else None,
                "parameters": runs[0]["parameters"],
                "vocab_size": runs[0]["vocab_size"],
                "bytes_a_token": bytes_a_token,
                "context_tokens": runs[0]["beyond"]["reads"],
                "context_bytes": runs[0]["beyond"]["reads"] * bytes_a_token,
                "steps": sorted({min(steps), max(steps)}),
                "seconds": mean(run["seconds"] for run in runs),
                "seconds_spread": spread([run["seconds"] for run in runs]),
                "train_bytes": mean(run["train_bytes"] for run in runs),
                "bytes_a_second": mean(run["train_bytes"] / run["seconds"] for run in runs),
                "loss": mean(run["val_loss"] for run in runs),
                "perplexity": mean(math.exp(run["val_loss"]) for run in runs),
                "word_perplexity": mean(math.exp(min(nats, 700)) for nats in nats_a_word),
                "beyond": summarize_beyond(runs),
                "why_not_beyond": runs[0]["beyond"]["why"],
            }
        )
    return rows


def summarize_beyond(runs: list[dict]) -> list[dict]:
    """For each multiple of the context, mean and spread of bits per byte over the seeds."""
    summary = []
    for lengths in zip(*(run["beyond"]["lengths"] for run in runs)):
        bits = [bits for _, bits, _ in lengths]
        summary.append({"times": lengths[0][0], "mean": mean(bits), "spread": spread(bits)})
    return summary


def large(value: float) -> str:
    """A number of any size in few characters."""
    return f"{value:,.1f}" if value < 1e5 else f"{value:.1e}"


def ladder_table(rows: list[dict]) -> str:
    """What each version reaches, and in how many lines."""
    table = [["version", "bits per byte", "change", "lines"]]
    for before, row in zip([None, *rows], rows):
        name = row["version"]
        table.append(
            [
                name,
                f"**{row['bits_per_byte']:.3f}**{plus_minus(row['spread'])}",
                f"{row['change']:+.1%}" if before else "",
                str(len(source(name).splitlines())),
            ]
        )
    return markdown(table)


def measure_table(rows: list[dict]) -> str:
    """All that was measured, one row per measure: five columns fit on a page, fifteen do not."""
    measures = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "vocabulary": lambda r: f"{r['vocab_size']:,}",
        "bytes a token": lambda r: f"{r['bytes_a_token']:.2f}",
        "context, tokens": lambda r: f"{r['context_tokens']:,}",
        "context, bytes": lambda r: f"{r['context_bytes']:,.0f}",
        "steps": lambda r: "–".join(f"{steps:,}" for steps in r["steps"]),
        "training, seconds": lambda r: f"{r['seconds']:.1f}{plus_minus(r['seconds_spread'], 1)}",
        "text seen, MB": lambda r: f"{r['train_bytes'] / 1e6:,.2f}",
        "bytes a second": lambda r: f"{r['bytes_a_second']:,.0f}",
        "loss a token, nats": lambda r: f"{r['loss']:.3f}",
        "perplexity a token": lambda r: f"{r['perplexity']:.2f}",
        "perplexity a word": lambda r: large(r["word_perplexity"]),
        "**bits per byte**": lambda r: f"**{r['bits_per_byte']:.3f}**{plus_minus(r['spread'])}",
        "change from the version before": lambda r: (
            "" if r["change"] is None else f"{r['change']:+.1%}"
        ),
    }
    table = [["", *(row["version"].split("_")[0] for row in rows)]]
    table += [[name, *(show(row) for row in rows)] for name, show in measures.items()]
    return markdown(table)


def beyond_table(rows: list[dict]) -> str:
    """Bits per byte at multiples of the training context, with the change from one times it."""
    table = [["windows of", *(f"{times}× the context" for times in BEYOND)]]
    reading = [row for row in rows if len(row["beyond"]) > 1]
    for row in reading:
        once = row["beyond"][0]["mean"]
        cells = [f"{b['mean']:.3f}{plus_minus(b['spread'])}" for b in row["beyond"]]
        for i, b in enumerate(row["beyond"][1:], 1):
            cells[i] += f" ({b['mean'] / once - 1:+.1%})"
        table.append([row["version"], *cells])
    others = [f"{r['version']} ({r['why_not_beyond']})" for r in rows if r not in reading]
    return markdown(table) + (f"\n\nNot shown: {', '.join(others)}." if others else "")


def written(exhibits: dict[str, dict]) -> str:
    """How the first run of each version continues the first prompt."""
    samples = {
        version: next(iter(seen["samples"].values()), "") for version, seen in exhibits.items()
    }
    return "\n\n".join(
        f"{version}:\n\n<pre>{html.escape(text)}</pre>" for version, text in samples.items()
    )


def report(results: dict) -> str:
    """The tables, as they stand in table.md, and what the versions write."""
    rows = summarize(results)
    return "\n\n".join(
        [
            ladder_table(rows),
            what_it_depends_on(results, results["runs"]),
            fold("What they write", written(results["exhibits"])),
            fold("All that was measured", measure_table(rows)),
            fold("Bits per byte beyond the training context", beyond_table(rows)),
        ]
    )


def show(results: dict) -> Shown:
    figures = {
        "ladder.png": pictures.draw_ladder(summarize(results), results),
        "bits.png": pictures.draw_bits(results),
        "beyond.png": pictures.draw_beyond(results),
        "rates.png": pictures.draw_rates(results),
    }
    return report(results), figures


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, compare, show)


if __name__ == "__main__":
    main()
