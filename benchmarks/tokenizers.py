"""Tokenizer speed, side by side: ours and the ones people usually pick.

    python benchmarks/tokenizers.py --sizes 1 30 200

Each measurement runs in its own process, on one core or on all; contestants take turns, and the
median of `--repeats` turns counts: CPU seconds on one core, elapsed seconds on all. Encoders use
the vocabulary that v4 learned, and their ids are compared before a speed is printed (except
rustbpe's, which cannot load a vocabulary and learns its own). Text that is not English is what
translated manual pages this machine has (Debian: manpages-ja, manpages-ru, manpages-zh, ...).
Peers that are not installed are left out:
`pip install tiktoken tokenizers rustbpe bpeasy gigatoken fastokens gigabpe`.
"""

import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import cycle, product
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
import numpy as np  # after this, for `tokenizers` is the name of a package, too
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.command import Shown, run_benchmark
from benchmarks.common import (
    VERSIONS,
    check_name,
    check_texts,
    fold,
    kind_of_v4,
    load_version,
    markdown,
    on_machine,
)
from benchmarks.pictures import COLOURS, axes_of, colour, label_ends
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import UserError
from shared.terminal import progress
from v4_modern.tokenizer_files import save_hugging_face

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LONG = 20  # a contestant whose turn takes more seconds gets only one
MANUALS = Path("/usr/share/man")
# MB beyond which a contestant is left out: it would take hours (or minutes, for encoding).
SLOW = {("train", "v2"): 0.1, ("encode", "v2"): 2}


@dataclass
class Options:
    """Compare tokenizers in training and encoding."""

    sizes: tuple[float, ...] = (1, 30, 200)  # MB of text
    vocab_size: int = 10_000  # tokens to learn
    repeats: int = 5  # turns of each contestant; one, if that takes more than 20 seconds
    all_cores: bool = False  # measure also with all cores
    data: str = ""  # a text file to use in place of this machine's own
    foreign: float = 30  # MB of text that is not English; 0: none
    name: str = "tokenizers"  # of the folder of results
    readme: bool = False  # measure nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        check_texts(self.sizes, self.vocab_size)
        if self.foreign < 0:
            raise UserError(f"--foreign {self.foreign:g} must be 0 or more")
        if self.repeats < 1:
            raise UserError("--repeats must be 1 or more")


# ---- the text ----


def this_machines_text(n_bytes: int) -> str:
    """About `n_bytes` of text found on this machine: the embedded corpus, the sources of Python and
    its packages, and /usr/share; when that is used up, its lines again in another order. The same
    machine always gives the same text."""
    return grown(candidates(), n_bytes)


def grown(found: Iterable[str], n_bytes: int) -> str:
    """The texts `found` up to `n_bytes`; if they are fewer, then their lines in another order."""
    texts, size = [], 0
    for text in found:
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
    """Texts in a mixed order: sorted by the hash of their names."""
    yield from read_documents(load_corpus("pydocs").train)
    folders = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "/usr/share"]
    kinds = {".py", ".txt", ".md", ".rst", ".html", ".po", ".xml"}
    paths = {p for f in folders for p in Path(f).rglob("*") if p.suffix in kinds and p.is_file()}
    for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue


def translated_manuals() -> list[str]:
    """The pages in MANUALS of which a tenth of all characters or more is not ASCII: those of the
    languages that are not written in Latin letters. Sorted by the hash of their names."""
    names = {path.relative_to(MANUALS).as_posix(): path for path in MANUALS.glob("*/man*/*.gz")}
    pages = []
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        try:
            page = gzip.decompress(names[name].read_bytes()).decode("utf-8")
        except (UnicodeDecodeError, EOFError, OSError, zlib.error):
            continue
        if not_ascii(page) >= 0.1:
            pages.append(page)
    return pages


def not_ascii(text: str) -> float:
    """The share of its characters."""
    return sum(character > "\x7f" for character in text) / max(1, len(text))


# ---- the contestants ----


def train_v2(texts: list[str], vocab_size: int, cores: int) -> object:
    return load_version("v2_bpe_rope").Tokenizer.train(texts, vocab_size)


def train_v4(texts: list[str], vocab_size: int, cores: int) -> object:
    return kind_of_v4(sum(map(len, texts)), cores).train(texts, vocab_size)


def train_rustbpe(texts: list[str], vocab_size: int, cores: int) -> object:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size - 1, pattern=GPT2)
    return tokenizer


def train_bpeasy(texts: list[str], vocab_size: int, cores: int) -> object:
    import bpeasy

    return bpeasy.train_bpe(iter(texts), GPT2, 128, vocab_size - 1)


def train_hugging_face(texts: list[str], vocab_size: int, cores: int) -> object:
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


def train_gigabpe(texts: list[str], vocab_size: int, cores: int) -> object:
    """It learns from files alone; writing one takes a hundredth of its time."""
    import gigabpe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        return gigabpe.train_bpe(
            [str(path)], vocab_size - 1, pretokenizer="bytelevel", special_tokens=[], threads=cores
        )


Encode = Callable[[], list[Sequence[int]]]  # the ids, of the parts of the text, in order


def encode_v2(ours: object, text: str, cores: int) -> Encode:
    tokenizer, texts = load_version("v2_bpe_rope").Tokenizer(ours.merges), text.split(END_OF_TEXT)
    return lambda: [in_one(map(tokenizer.encode, texts), ours)]


def encode_v4(ours: object, text: str, cores: int) -> Encode:
    tokenizer = kind_of_v4(len(text), cores)(ours.merges, ours.special_tokens, ours.split)
    tokenizer.encode("")  # makes what encodes: like that of others, before the time is taken
    return lambda: list(tokenizer.encode_pieces([text]))


def encode_tiktoken(ours: object, text: str, cores: int) -> Encode:
    import tiktoken

    special = set(ours.special_tokens.values())
    ranks = {token: i for i, token in enumerate(ours.vocab) if i not in special}
    encoding = tiktoken.Encoding(
        "ours", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=ours.special_tokens
    )
    encode = partial(encoding.encode_to_numpy, allowed_special="all")
    if cores == 1:
        return lambda: [encode(text)]
    parts = in_parts(text, cores)

    def encode_parts() -> list[np.ndarray]:  # its own encode_batch gives lists, which is slower
        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(encode, parts))

    return encode_parts


def in_parts(text: str, cores: int) -> list[str]:
    """The text in about equal numbers of documents, each of which keeps its `<|endoftext|>`."""
    documents = re.split(f"(?<={re.escape(END_OF_TEXT)})", text)
    share = -(-len(documents) // cores)
    return ["".join(documents[i : i + share]) for i in range(0, len(documents), share)]


def in_their_file(ours: object, load: Callable[[str], object]) -> object:
    """What `load` makes of our vocabulary in the format of Hugging Face."""
    with tempfile.TemporaryDirectory() as folder:
        save_hugging_face(ours, Path(folder) / "tokenizer.json")
        return load(str(Path(folder) / "tokenizer.json"))


def encode_gigatoken(ours: object, text: str, cores: int) -> Encode:
    import gigatoken

    theirs, parts = in_their_file(ours, gigatoken.Tokenizer), in_parts(text, cores)
    if cores == 1:
        return lambda: [theirs.encode(text)]
    return lambda: list(theirs.encode_batch(parts, parallel=True))


def encode_fastokens(ours: object, text: str, cores: int) -> Encode:
    import fastokens

    theirs, parts = in_their_file(ours, fastokens.Tokenizer.from_file), in_parts(text, cores)
    return lambda: [np.frombuffer(theirs.encode_batch_flat(parts)[0], np.uint32)]


def encode_hugging_face(ours: object, text: str, cores: int) -> Encode:
    import tokenizers

    theirs = in_their_file(ours, tokenizers.Tokenizer.from_file)
    texts = text.split(END_OF_TEXT)
    if cores == 1:  # all at once would hold many times the text
        return lambda: [in_one((theirs.encode(document).ids for document in texts), ours)]
    return lambda: [in_one((found.ids for found in theirs.encode_batch_fast(texts)), ours)]


def encode_rustbpe(ours: object, text: str, cores: int) -> Encode:
    tokenizer = train_rustbpe(text.split(END_OF_TEXT), ours.vocab_size, 1)  # it loads no other's
    texts = text.split(END_OF_TEXT)
    if cores == 1:
        return lambda: [in_one(map(tokenizer.encode, texts), ours)]
    return lambda: [in_one(tokenizer.batch_encode(texts), ours)]


def in_one(documents: Iterable[Iterable[int]], ours: object) -> list[int]:
    """The ids of all documents, with `<|endoftext|>` between them."""
    ids, end = [], ours.special_tokens[END_OF_TEXT]
    for document in documents:
        ids += document
        ids.append(end)
    return ids[:-1]


TRAIN = {
    "v2": train_v2,
    "v4": train_v4,
    "rustbpe": train_rustbpe,
    "bpeasy": train_bpeasy,
    "gigabpe": train_gigabpe,
    "tokenizers": train_hugging_face,
}
ENCODE = {
    "v2": encode_v2,
    "v4": encode_v4,
    "tiktoken": encode_tiktoken,
    "gigatoken": encode_gigatoken,
    "fastokens": encode_fastokens,
    "rustbpe": encode_rustbpe,
    "tokenizers": encode_hugging_face,
}
PEERS = ("tiktoken", "tokenizers", "rustbpe", "bpeasy", "gigatoken", "fastokens", "gigabpe")
SAME_IDS = ("v2", "v4", "tiktoken", "gigatoken", "fastokens", "tokenizers")  # all of one vocabulary


# ---- measuring, in a process of its own ----


def clocks() -> tuple[float, float]:
    """CPU seconds of this process with all its threads and children, and elapsed seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def timed(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """What `work` returns, and the CPU seconds and elapsed seconds it took."""
    before = clocks()
    result = work()
    cpu, seconds = (after - start for after, start in zip(clocks(), before))
    return result, {"cpu": cpu, "seconds": seconds}


def measure(task: str, who: str, text_file: str, vocab_size: str, ours_file: str) -> dict:
    """One turn of a contestant."""
    text, cores = Path(text_file).read_bytes().decode("utf-8"), int(os.environ["RAYON_NUM_THREADS"])
    if task == "train":
        texts = text.split(END_OF_TEXT)
        TRAIN[who](["what is imported is no part of training"], 260, 1)
        _, taken = timed(lambda: TRAIN[who](texts, int(vocab_size), cores))
        return {"train": taken}
    encode = ENCODE[who](load_version("v4_modern").Tokenizer.load(ours_file), text, cores)
    parts, cold = timed(encode)
    _, warm = timed(encode)
    ids = np.concatenate([np.asarray(part, np.uint32) for part in parts])
    sha256 = hashlib.sha256(ids.tobytes()).hexdigest()
    return {"cold": cold, "warm": warm, "sha256": sha256}


def turn(arguments: list[str], cores: int) -> dict:
    """`measure` in a new process with this many `cores`."""
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
    rows, largest = [], int(max(options.sizes) * 1e6)
    text = Path(options.data).read_text(encoding="utf-8") if options.data else ""
    text = text or this_machines_text(largest)
    texts = [("", text, int(size * 1e6)) for size in options.sizes]
    foreign, pages = None, translated_manuals() if options.foreign else []
    if pages:
        found, n_bytes = sum(len(page.encode("utf-8")) for page in pages), options.foreign * 1e6
        texts.append(("manuals", grown(pages, int(n_bytes)), int(n_bytes)))
        share = not_ascii(texts[-1][1])
        foreign = {"pages": len(pages), "bytes": found, "not_ascii": share}
    elif options.foreign:
        print(f"no translated manual pages in {MANUALS}: only English is measured")
    with tempfile.TemporaryDirectory() as folder:
        for kind, whole, n_bytes in texts:
            part = whole.encode("utf-8")[:n_bytes].decode("utf-8", "ignore")
            text_file, ours_file = Path(folder) / "text.txt", Path(folder) / "tokenizer.json"
            text_file.write_bytes(part.encode("utf-8"))
            train_v4(part.split(END_OF_TEXT), options.vocab_size, 0).save(ours_file)
            for cores in dict.fromkeys((1, os.cpu_count() if options.all_cores else 1)):
                found = compare_at(options, len(part.encode("utf-8")), cores, text_file, ours_file)
                rows += [row | {"text": kind} for row in found]
    peers = {who: version(who) for who in PEERS if importlib.util.find_spec(who)}
    return {
        "options": asdict(options),
        "peers": peers,
        "not_ascii": not_ascii(text),
        "foreign": foreign,
        "rows": rows,
    }


def compare_at(
    options: Options, n_bytes: int, cores: int, text_file: Path, ours_file: Path
) -> list[dict]:
    """The medians of all contestants on one text."""
    contestants = [
        (task, who)
        for task, whos in (("train", TRAIN), ("encode", ENCODE))
        for who in whos
        if who.startswith("v") or importlib.util.find_spec(who)
        if n_bytes <= SLOW.get((task, who), 1e6) * 1e6
    ]
    turns, slow = {contestant: [] for contestant in contestants}, set()
    for task, who in progress(
        contestants * options.repeats, f"{n_bytes / 1e6:g} MB, {cores} cores"
    ):
        if (task, who) in slow:
            continue
        arguments = [task, who, str(text_file), str(options.vocab_size), str(ours_file)]
        start = time.perf_counter()
        turns[task, who].append(turn(arguments, cores))
        if time.perf_counter() - start > LONG:
            slow.add((task, who))
    ids = {who: turns["encode", who][0]["sha256"] for who in SAME_IDS if ("encode", who) in turns}
    if len(set(ids.values())) > 1:
        raise UserError(f"the ids differ at {n_bytes:,} bytes: {ids}")
    rows = []
    for (task, who), taken in turns.items():
        for measure in ("train",) if task == "train" else ("cold", "warm"):
            row = {"task": measure, "who": who, "bytes": n_bytes, "cores": cores}
            for clock in ("cpu", "seconds"):
                row[clock] = median(one[measure][clock] for one in taken)
            rows.append(row)
    return rows


# ---- reporting ----

TASKS = {"train": "train", "cold": "encode, nothing seen before", "warm": "encode again"}


def groups(results: dict) -> dict[tuple[str, int, int], list[dict]]:
    """The rows of each kind of text, its size, and number of cores."""
    found = {}
    for row in results["rows"]:
        found.setdefault((row.get("text", ""), row["bytes"], row["cores"]), []).append(row)
    return found


def size_of(text: str, n_bytes: int) -> str:
    """Of a text: its size, and that it is not English."""
    return f"{n_bytes / 1e6:g} MB" + (" not English" if text else "")


def clock(cores: int) -> str:
    """The time that counts: CPU time on one core, wall-clock time on several."""
    return "cpu" if cores == 1 else "seconds"


def of_v4(task: str, rows: list[dict]) -> dict:
    """v4's row."""
    return next(row for row in rows if (row["task"], row["who"]) == (task, "v4"))


def ratio(row: dict, rows: list[dict]) -> float:
    """v4's time as a fraction of this row's."""
    ours = of_v4(row["task"], rows)
    return ours[clock(row["cores"])] / row[clock(row["cores"])]


def own_share(measured: dict, task: str, text: str, n_bytes: int, cores: int) -> str:
    """v4's elapsed time on all cores as a fraction of that on one; nothing for one core."""
    if cores == 1:
        return ""
    on_all, on_one = (of_v4(task, measured[text, n_bytes, n])["seconds"] for n in (cores, 1))
    return f"{on_all / on_one:.2f}"


def report(results: dict) -> str:
    """v4's time as a fraction of each peer's, and all that was measured."""
    measured = groups(results)
    heads = [size_of(t, b) + (f", {c} cores" if c > 1 else "") for t, b, c in measured]
    shares = [["v4's time, as a share of", *heads]]
    rivals = dict.fromkeys((r["task"], r["who"]) for r in results["rows"] if r["who"] != "v4")
    for task in dict.fromkeys(task for task, _ in rivals):
        for who in [who for of, who in rivals if of == task]:
            line = [f"{who}: {TASKS[task]}"]
            for rows in measured.values():
                found = [r for r in rows if (r["task"], r["who"]) == (task, who)]
                line.append(f"{ratio(found[0], rows):.2f}" if found else "")
            shares.append(line)
        if any(cores > 1 for _, _, cores in measured):
            line = [own_share(measured, task, *of) for of in measured]
            shares.append([f"v4 on one core: {TASKS[task]}", *line])
    parts = [markdown(shares)]
    details = []
    for (text, n_bytes, cores), rows in measured.items():
        table = [["", "tokenizer", "seconds", "MB/s", "v4's share"]]
        for row in rows:
            seconds = row[clock(cores)]
            speed = f"{n_bytes / 1e6 / seconds:.1f}"
            cells = [
                f"{seconds:.3f}",
                speed,
                f"{ratio(row, rows):.2f}",
            ]
            table.append([TASKS[row["task"]], row["who"], *cells])
        how = "CPU seconds on one core" if cores == 1 else f"seconds on {cores} cores"
        details.append(f"{size_of(text, n_bytes)}, {how}:\n\n{markdown(table)}")
    options = results["options"]
    text = options["data"] or "files of this Python, its packages and /usr/share, and `pydocs`"
    if found := results.get("foreign"):
        foreign = (
            f"not English: {found['pages']:,} translated manual pages ({found['bytes'] / 1e6:.1f} "
            f"MB, then their lines again), {found['not_ascii']:.1%} not ASCII; "
        )
    else:
        foreign = ""
    peers = ", ".join(f"{who} {number}" for who, number in results["peers"].items())
    parts.append(
        f"A vocabulary of {options['vocab_size']:,}; the median of {options['repeats']} turns "
        f"(one, if that takes more than {LONG} seconds); "
        f"text: {text}, {results['not_ascii']:.1%} of its characters not ASCII; "
        f"{foreign}{peers}; "
        f"{on_machine(results['machine'])}."
    )
    parts.append(fold("All that was measured", "\n\n".join(details)))
    return "\n\n".join(parts)


def draw(results: dict) -> Figure:
    """MB/s against the size of the text: a line for each tokenizer, a column for each task, a row
    for each kind of text and number of cores."""
    kinds = dict.fromkeys((row.get("text", ""), row["cores"]) for row in results["rows"])
    ours = {name: colour(VERSIONS[int(name[1])]) for name in ("v2", "v4")}
    paint = dict(zip(PEERS, cycle(c for c in COLOURS if c not in ours.values()))) | ours
    figure, panels = axes_of(len(TASKS), width=4.2, height=3.5, rows=len(kinds))
    for panel, ((text, cores), task) in zip(panels, product(kinds, TASKS)):
        speeds = {}  # who -> its points
        for row in results["rows"]:
            if (row.get("text", ""), row["cores"], row["task"]) == (text, cores, task):
                size = row["bytes"] / 1e6
                speeds.setdefault(row["who"], []).append((size, size / row[clock(cores)]))
        for who, points in speeds.items():
            panel.plot(*zip(*points), "o-", color=paint[who], label=who)
        how = f"{cores} cores" if cores > 1 else "one core (CPU time)"
        panel.set_title(f"{TASKS[task]}, {how}{', not English' if text else ''}", fontsize=10)
        panel.set(xlabel="MB of text", ylabel="MB/s", xscale="log", yscale="log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
    lows, highs = zip(*(panel.get_ylim() for panel in panels))
    for panel in panels:
        panel.set_ylim(min(lows), max(highs))
        label_ends(panel, [(*line.get_xydata()[-1], line.get_label()) for line in panel.lines])
    return figure


def show(results: dict) -> Shown:
    return report(results), {"speed.png": draw(results)}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--measure"]:
        print(json.dumps(measure(*arguments[1:])))
    else:
        run_benchmark(Options, arguments, compare, show)


if __name__ == "__main__":
    main()
