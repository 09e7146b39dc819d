"""Time and memory of learning a tokenizer, of encoding and of reading batches, from 10 MB to 2 GB.

    python benchmarks/scale.py

generates its own text in a temporary folder and removes it: the words of the embedded corpus, with
the same frequencies, and one word in 500 that was never seen before. Each measurement runs in its
own process with one worker, so that its time and peak memory are its own.
"""

import random
import shutil
import string
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from matplotlib.figure import Figure

from benchmarks.command import Shown, in_new_process, run_benchmark
from benchmarks.common import (
    check_name,
    check_texts,
    load_version,
    markdown,
    on_machine,
    peak_memory,
)
from benchmarks.pictures import axes_of, label_ends
from shared import fast_bpe
from shared.corpora import load_corpus, read_documents
from shared.files import UserError, json_sha256
from shared.reading import SEPARATOR, read_pieces
from shared.terminal import print_text, progress
from shared.text import whole_words
from shared.token_files import open_token_file
from shared.tokens import encode_file

TASKS = ("train", "encode", "batches")
NEW_WORDS = 500  # one word in this many is new
DOCUMENT = 1000  # words
BATCHES = 1000


@dataclass
class Options:
    """Measure how time and memory grow with the text."""

    sizes: tuple[float, ...] = (10, 30, 100, 300, 1000, 2000)  # MB of text
    vocab_size: int = 10_000  # tokens to learn
    folder: str = tempfile.gettempdir()  # where the text is made
    name: str = "scale"  # of the folder of results
    readme: bool = False  # measure nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        check_texts(self.sizes, self.vocab_size)


def make_text(path: Path, n_bytes: int) -> None:
    """Write about `n_bytes` of text, the same every time."""
    counts = Counter(
        w for text in read_documents(load_corpus("pydocs").train) for w in text.split()
    )
    words, weights = list(counts), np.cumsum(list(counts.values()))
    draw, letters = np.random.default_rng(0), random.Random(0)
    with open(path, "wb") as file, progress(total=n_bytes, desc="writing", unit="B") as bar:
        while file.tell() < n_bytes:
            drawn = np.searchsorted(weights, draw.integers(weights[-1], size=DOCUMENT), "right")
            document = [words[i] for i in drawn.tolist()]
            for i in range(0, DOCUMENT, NEW_WORDS):
                document[i] = "".join(letters.choices(string.ascii_lowercase, k=9))
            bar.update(file.write(" ".join(document).encode("utf-8") + SEPARATOR))


def measure(task: str, text: Path, vocab_size: int) -> dict:
    """Run one task in this process: its seconds, its peak memory, and the growth to that peak."""
    module = load_version("v4_modern")
    Tokenizer = fast_bpe.fast(module.Tokenizer, workers=1)
    tokenizer_file, token_file = text.with_name("tokenizer.json"), Path(f"{text}.npy")
    before, started = peak_memory(), time.perf_counter()
    if task == "train":
        texts = whole_words(read_pieces(text))
        Tokenizer.train(texts, vocab_size).save(tokenizer_file)
    elif task == "encode":
        encode_file(Tokenizer.load(tokenizer_file), text, token_file)
    else:
        sha256 = json_sha256(Tokenizer.load(tokenizer_file).to_json())
        tokens, config = open_token_file(token_file, sha256), module.Config()
        for step in range(BATCHES):
            module.get_batch(tokens, step, config)
    seconds = time.perf_counter() - started
    return {"task": task, "seconds": seconds, "peak": peak_memory(), "more": peak_memory() - before}


def run(options: Options) -> dict:
    """All tasks at all sizes."""
    needed = 2.2e6 * max(options.sizes)  # the text, and its tokens, of two or four bytes
    free = shutil.disk_usage(options.folder).free
    if free < needed:
        raise UserError(
            f"--folder {options.folder} has {free / 1e9:.1f} GB left, {needed / 1e9:.1f} GB are "
            "needed: name another one, or smaller --sizes"
        )
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in options.sizes:
            text = Path(folder) / "text.txt"
            make_text(text, int(size * 1e6))
            for task in TASKS:
                taken = in_new_process(measure, task, text, options.vocab_size)
                rows.append({"bytes": text.stat().st_size} | taken)
                print_text(f"{size:g} MB: {rows[-1]}")
    return {"vocab_size": options.vocab_size, "rows": rows}


def report(results: dict) -> str:
    """A line for each size."""
    table = [["text", "", "peak", "encode", "peak", "open, 1,000 batches", "peak, more"]]
    table[0][1] = f"learn {results['vocab_size']:,} tokens"
    rows = results["rows"]
    for size in dict.fromkeys(row["bytes"] for row in rows):
        train, encode, batches = (
            next(row for row in rows if (row["bytes"], row["task"]) == (size, task))
            for task in TASKS
        )
        line = [f"{size / 1e6:,.0f} MB"]
        for row in (train, encode):
            speed = size / 1e6 / row["seconds"]
            line += [f"{row['seconds']:,.1f} s ({speed:.1f} MB/s)", f"{row['peak'] / 1e6:,.0f} MB"]
        table.append([*line, f"{batches['seconds']:.2f} s", f"{batches['more'] / 1e6:,.0f} MB"])
    return (
        f"{markdown(table)}\n\nText: words of `pydocs` drawn at random, as often as there, and "
        f"one in {NEW_WORDS} made up (more different words take more time and memory). One "
        f"process with one worker each; {on_machine(results['machine'])}. The peaks are of all the "
        "process holds, torch and the rest of v4 included; of reading batches, what it adds. To "
        "open a file of tokens is to read it once."
    )


def draw(results: dict) -> Figure:
    """Seconds and peak memory against the size of the text, with a line for proportional growth."""
    figure, both = axes_of(2)
    for task, label in zip(TASKS, ("learn", "encode", f"open, {BATCHES:,} batches")):
        rows = [row for row in results["rows"] if row["task"] == task]
        sizes = [row["bytes"] / 1e6 for row in rows]
        both[0].plot(sizes, [row["seconds"] for row in rows], "o-", label=label)
        both[1].plot(sizes, [row["peak"] / 1e6 for row in rows], "o-", label=label)
        if task == "train":
            proportional = [rows[-1]["seconds"] * size / sizes[-1] for size in sizes]
            both[0].plot(sizes[::-1], proportional[::-1], ":", color="gray", label="proportional")
    both[0].set(xscale="log", yscale="log", ylabel="seconds")
    both[1].set(xscale="log", ylim=(0, None), ylabel="peak memory, MB")
    both[0].yaxis.set_major_formatter("{x:g}")
    for axes in both:
        axes.set(xlabel="MB of text")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        label_ends(axes, [(*line.get_xydata()[-1], line.get_label()) for line in axes.lines])
    return figure


def show(results: dict) -> Shown:
    return report(results), {"scale.png": draw(results)}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, run, show)


if __name__ == "__main__":
    main()
