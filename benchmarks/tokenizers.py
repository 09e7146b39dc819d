"""Speed of tokenizers, side by side: ours and those that people pick instead.

    python benchmarks/tokenizers.py --sizes 1 30 200

Each measurement is a process of its own, on one core or on all; contestants take turns, and the
median of `--repeats` turns counts, in CPU seconds on one core and in seconds on all. Encoders work
with the vocabulary that v4 learned, and their ids are compared before a speed is printed.
Peers that are not installed are left out: `pip install tiktoken tokenizers rustbpe bpeasy`.
"""

import hashlib
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
import numpy as np  # after this, for `tokenizers` is the name of a package, too
from tqdm import tqdm

from benchmarks.common import RESULTS, load_version, markdown
from shared.command_line import clear_errors, parse_options, print_text
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import UserError, read_json, write_json, write_text
from shared.run import machine_facts

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SLOW = {"v2": 2}  # MB beyond which a contestant is left out: it would take hours


@dataclass
class Options:
    """Compare tokenizers in training and encoding."""

    sizes: tuple[float, ...] = (1, 30, 200)  # MB of text
    vocab_size: int = 10_000  # tokens to learn
    repeats: int = 3  # turns of each contestant
    all_cores: bool = False  # measure also with all cores
    data: str = ""  # a text file to use in place of this machine's own
    name: str = "tokenizers"  # of the folder of results


# ---- the text ----


def this_machines_text(n_bytes: int) -> str:
    """Text that this machine has, of about `n_bytes`: the embedded corpus, Python's sources and
    those of its packages, what lies under /usr/share; when that is used up, its lines again in
    another order. The same machine gives the same text."""
    texts, size = [], 0
    for text in candidates():
        texts.append(text)
        size += len(text.encode("utf-8"))
        if size > n_bytes:
            break
    chance, lines = random.Random(0), None
    while size < n_bytes:
        lines = lines or [line for text in texts for line in text.splitlines(keepends=True)]
        text = "".join(chance.choices(lines, k=1000))
        texts.append(text)
        size += len(text.encode("utf-8"))
    return END_OF_TEXT.join(texts).encode("utf-8")[:n_bytes].decode("utf-8", "ignore")


def candidates() -> Iterator[str]:
    """Texts in an order that mixes them: by the hash of their names."""
    yield from read_documents(load_corpus("pydocs").train)
    folders = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "/usr/share"]
    kinds = {".py", ".txt", ".md", ".rst", ".html", ".po", ".xml"}
    paths = {p for f in folders for p in Path(f).rglob("*") if p.suffix in kinds and p.is_file()}
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue


# ---- the contestants ----


def train_v2(texts: list[str], vocab_size: int) -> object:
    return load_version("v2_bpe_rope").Tokenizer.train(texts, vocab_size)


def train_v4(texts: list[str], vocab_size: int) -> object:
    return load_version("v4_modern").Tokenizer.train(texts, vocab_size)


def train_rustbpe(texts: list[str], vocab_size: int) -> object:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size - 1, pattern=GPT2)
    return tokenizer


def train_bpeasy(texts: list[str], vocab_size: int) -> object:
    import bpeasy

    return bpeasy.train_bpe(iter(texts), GPT2, 128, vocab_size - 1)


def train_hugging_face(texts: list[str], vocab_size: int) -> object:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    return tokenizer


Encode = Callable[[str], Iterable[int]]


def encode_v2(ours: object, texts: list[str]) -> Encode:
    return load_version("v2_bpe_rope").Tokenizer(ours.merges).encode


def encode_v4(ours: object, texts: list[str]) -> Encode:
    return ours.encode_array


def encode_tiktoken(ours: object, texts: list[str]) -> Encode:
    import tiktoken

    special = set(ours.special_tokens.values())
    ranks = {token: i for i, token in enumerate(ours.vocab) if i not in special}
    encoding = tiktoken.Encoding(
        "ours", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=ours.special_tokens
    )
    return lambda text: encoding.encode_to_numpy(text, allowed_special="all")


def encode_hugging_face(ours: object, texts: list[str]) -> Encode:
    import tokenizers

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    spelled = ["".join(table[byte] for byte in token) for token in ours.vocab]
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={spelled[i]: i for i in range(256 + len(ours.merges))},
            merges=[(spelled[a], spelled[b]) for a, b in ours.merges],
        )
    )
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_special_tokens(list(ours.special_tokens))
    return lambda text: theirs.encode(text, add_special_tokens=False).ids


def encode_rustbpe(ours: object, texts: list[str]) -> Encode:
    return train_rustbpe(texts, ours.vocab_size).encode  # it knows no other vocabulary


TRAIN = {
    "v2": train_v2,
    "v4": train_v4,
    "rustbpe": train_rustbpe,
    "bpeasy": train_bpeasy,
    "tokenizers": train_hugging_face,
}
ENCODE = {
    "v2": encode_v2,
    "v4": encode_v4,
    "tiktoken": encode_tiktoken,
    "rustbpe": encode_rustbpe,
    "tokenizers": encode_hugging_face,
}
SAME_IDS = ("v2", "v4", "tiktoken", "tokenizers")  # all of one vocabulary


# ---- measuring, in a process of its own ----


def clocks() -> tuple[float, float]:
    """CPU seconds of this process, all its threads and children included, and seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def timed(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """What `work` returns, and the CPU seconds and seconds it took."""
    before = clocks()
    result = work()
    cpu, seconds = (after - start for after, start in zip(clocks(), before))
    return result, {"cpu": cpu, "seconds": seconds}


def measure(task: str, who: str, text_file: str, vocab_size: int, ours_file: str) -> dict:
    """One turn of a contestant."""
    text = Path(text_file).read_bytes().decode("utf-8")
    texts = text.split(END_OF_TEXT)
    if task == "train":
        _, taken = timed(lambda: TRAIN[who](texts, vocab_size))
        return {"train": taken, "peak": peak()}
    ours = load_version("v4_modern").Tokenizer.load(ours_file)
    encode = ENCODE[who](ours, texts)
    end = ours.special_tokens[END_OF_TEXT]

    def all_ids() -> Iterable[int]:
        if who != "tokenizers":
            return encode(text)
        ids = encode(texts[0])  # it holds many times the text, so it gets a document at a time
        for document in texts[1:]:
            ids.append(end)
            ids += encode(document)
        return ids

    ids, cold = timed(all_ids)
    _, warm = timed(all_ids)
    sha256 = hashlib.sha256(np.asarray(ids, np.uint32).tobytes()).hexdigest()
    return {"cold": cold, "warm": warm, "peak": peak(), "sha256": sha256, "tokens": len(ids)}


def peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def turn(arguments: list[str], cores: int) -> dict:
    """`measure` in a new process that has so many `cores`."""
    environment = dict(os.environ, RAYON_NUM_THREADS=str(cores), OMP_NUM_THREADS=str(cores))
    environment["TOKENIZERS_PARALLELISM"] = "true" if cores > 1 else "false"
    command = [sys.executable, __file__, "--measure", *arguments]
    if cores == 1 and hasattr(os, "sched_setaffinity"):
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"{arguments[1]} failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: Options) -> dict:
    """All measurements."""
    rows = []
    corpus = Path(options.data).read_text(encoding="utf-8") if options.data else ""
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            n_bytes = int(size * 1e6)
            text = (
                corpus.encode("utf-8")[:n_bytes].decode("utf-8", "ignore")
                if corpus
                else this_machines_text(n_bytes)
            )
            text_file, ours_file = Path(folder) / "text.txt", Path(folder) / "tokenizer.json"
            text_file.write_bytes(text.encode("utf-8"))
            train_v4(text.split(END_OF_TEXT), options.vocab_size).save(ours_file)
            for cores in (1, os.cpu_count()) if options.all_cores else (1,):
                rows += compare_at(options, len(text.encode("utf-8")), cores, text_file, ours_file)
    return {"options": asdict(options), "machine": machine_facts(), "rows": rows}


def compare_at(
    options: Options, n_bytes: int, cores: int, text_file: Path, ours_file: Path
) -> list[dict]:
    """The medians of all contestants on one text."""
    contestants = [
        (task, who)
        for task, whos in (("train", TRAIN), ("encode", ENCODE))
        for who in whos
        if who.startswith("v") or importlib.util.find_spec(who)
        if n_bytes <= SLOW.get(who, 1e6) * 1e6
    ]
    turns = {contestant: [] for contestant in contestants}
    order = contestants * options.repeats
    for task, who in tqdm(order, desc=f"{n_bytes / 1e6:g} MB, {cores} cores"):
        arguments = [task, who, str(text_file), str(options.vocab_size), str(ours_file)]
        turns[task, who].append(turn(arguments, cores))
    ids = {who: turns["encode", who][0]["sha256"] for who in SAME_IDS if ("encode", who) in turns}
    if len(set(ids.values())) > 1:
        raise UserError(f"the ids differ at {n_bytes:,} bytes: {ids}")
    rows = []
    for (task, who), taken in turns.items():
        for measure in ("train",) if task == "train" else ("cold", "warm"):
            row = {"task": measure, "who": who, "bytes": n_bytes, "cores": cores}
            for clock in ("cpu", "seconds"):
                row[clock] = median(one[measure][clock] for one in taken)
            rows.append(row | {"peak": max(one["peak"] for one in taken)})
    return rows


# ---- telling ----


def report(results: dict) -> str:
    """A table a size and number of cores: speed, and our time as a share of each peer's."""
    names = {"train": "train", "cold": "encode, nothing seen before", "warm": "encode again"}
    parts = []
    groups = dict.fromkeys((row["bytes"], row["cores"]) for row in results["rows"])
    for n_bytes, cores in groups:
        of = [r for r in results["rows"] if (r["bytes"], r["cores"]) == (n_bytes, cores)]
        clock = "cpu" if cores == 1 else "seconds"
        table = [["", "tokenizer", "seconds", "MB/s", "v4's time / its", "peak MB"]]
        for row in of:
            ours = next(r for r in of if (r["task"], r["who"]) == (row["task"], "v4"))
            table.append(
                [
                    names[row["task"]],
                    row["who"],
                    f"{row[clock]:.3f}",
                    f"{n_bytes / 1e6 / row[clock]:.1f}",
                    f"{ours[clock] / row[clock]:.2f}",
                    f"{row['peak'] / 1e6:,.0f}",
                ]
            )
        how = "CPU seconds on one core" if cores == 1 else f"seconds on {cores} cores"
        parts.append(f"{n_bytes / 1e6:g} MB, {how}:\n\n{markdown(table)}")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--measure"]:
        task, who, text_file, vocab_size, ours_file = arguments[1:]
        print(json.dumps(measure(task, who, text_file, int(vocab_size), ours_file)))
        return
    with clear_errors():
        options = parse_options(Options, arguments)
        folder = RESULTS / options.name
        write_json(folder / "results.json", compare(options))
        text = report(read_json(folder / "results.json"))
        write_text(folder / "table.md", text + "\n")
        print_text(text)


if __name__ == "__main__":
    main()
