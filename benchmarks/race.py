"""v4 against nanoGPT on the same text: the steps and seconds it takes to reach nanoGPT's score, and
the score it reaches in the seconds that nanoGPT takes.

Seconds here are steps times the median seconds per step, measured with all trainers taking turns in
one process, so that a busy machine slows all of them alike. v4's learning rate falls to zero at the
end of a run, so its score after fewer steps is only known from complete runs of that length.
"""

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable
from statistics import median
from types import ModuleType

import numpy as np
import torch

from benchmarks.common import kind_of_v4, load_version, markdown, mean, plus_minus, spread
from benchmarks.trainers import (
    NANOGPT_SHAPE,
    V4,
    NanoGPTTrainer,
    Trainer,
    V4Trainer,
    complete_run,
    interleave,
    load_nanogpt,
    parameters,
)
from shared.command_line import pick_dtype
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import UserError
from shared.terminal import print_text

NANOGPT, SUBWORDS, CHARACTERS = "nanoGPT", "v4", "v4, characters"
OURS = (SUBWORDS, CHARACTERS)
UNCOMPILED = "nanoGPT, not compiled"
ALIKE = "nanoGPT, its products of v4's dtype"
# v4 with nanoGPT's hidden sizes: SwiGLU's three matrices are as large as nanoGPT's two of 4 x 128.
# A vocabulary of only the bytes and <|endoftext|> has no merges.
AS_NANOGPT = {"vocab_size": 257, "context_length": 64, "batch_size": 12, "n_layers": 4}
AS_NANOGPT |= {"width": 128, "n_heads": 2, "n_kv_heads": 2, "head_size": 64}
AS_NANOGPT |= {"feed_forward_size": 344}
# The rates for characters were chosen on `pydocs`.
RATES = {"learning_rate": 0.0135, "muon_learning_rate": 0.036, "weight_decay": 0.1}
V4_OPTIONS = {SUBWORDS: {}, CHARACTERS: AS_NANOGPT | RATES}
STEP_TURNS = 300  # after 100, the ratio of medians was off by 5% on a shared machine
WRITE_TURNS, WRITTEN, WRITTEN_CONTEXT = 10, 500, 256  # tokens written, with such a context
TOKENIZER_TURNS = 10
GRID = 1.05  # the factor between the numbers of steps that are tried
LEAST_STEPS = 5
LOOKS = 8  # evaluations during nanoGPT's run


class Race:
    """The trainers on one text; each measurement is added to `kept` (see `race`), and `keep` is
    then called to save it."""

    def __init__(
        self, module: ModuleType, text: str, steps: int, seeds: int, kept: dict, keep: Callable
    ) -> None:
        self.module, self.steps, self.seeds = module, steps, range(seeds)
        self.kept, self.keep = kept, keep
        corpus = load_corpus(text)
        documents = [d for path in (corpus.train, corpus.val) for d in read_documents(path)]
        text = "".join(documents)
        cut = len(text) * 9 // 10  # as nanoGPT cuts it
        if cut < 1000:
            raise UserError(f"--text {corpus.name}: {len(text):,} characters are too few")
        self.train_text, self.val_text = text[:cut], text[cut:]
        sha256 = hashlib.sha256(text.encode("utf-8")).hexdigest()
        sizes = {"val_bytes": len(self.val_text.encode("utf-8")), "bytes": len(text.encode())}
        facts = {"name": corpus.name, "sha256": sha256} | sizes
        if kept.setdefault("text", facts) != facts:
            raise UserError(f"--text {corpus.name} has changed since it was begun: use --fresh")
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        characters, ids = np.unique(codes, return_inverse=True)
        self.n_characters, self.characters = len(characters), (ids[:cut], ids[cut:])
        self.tokens = {}  # for each of ours: its tokenizer, and the ids of both splits
        for who, options in V4_OPTIONS.items():
            self.tokens[who] = self.make_tokens(who, load_version(V4).Config(**options).vocab_size)

    def make_tokens(self, who: str, vocab_size: int) -> tuple:
        """Learn a tokenizer, encode both splits, and count the pairs that v4 starts from; record
        the median of the seconds it takes."""
        cores, taken, v4 = torch.get_num_threads(), [], load_version(V4)
        for _ in range(TOKENIZER_TURNS):
            started = time.perf_counter()
            tokenizer = kind_of_v4(len(self.train_text), cores).train([self.train_text], vocab_size)
            start = np.array([tokenizer.special_tokens[END_OF_TEXT]], np.uint32)
            splits = [
                np.concatenate([start, *tokenizer.encode_pieces([text])])
                for text in (self.train_text, self.val_text)
            ]
            config = v4.Config(**V4_OPTIONS[who] | {"vocab_size": tokenizer.vocab_size})
            v4.start_from_counts(v4.LanguageModel(config), splits[0])
            taken.append(time.perf_counter() - started)
        facts = {"vocab_size": tokenizer.vocab_size, "seconds": median(taken)}
        facts["bytes_a_token"] = self.kept["text"]["val_bytes"] / (len(splits[1]) - 1)
        self.kept.setdefault("tokenizers", {}).setdefault(who, facts)  # what was measured stays
        return tokenizer, *splits

    def trainer(self, who: str, seed: int, steps: int, **options: int) -> Trainer:
        """A new trainer, whose schedule ends after `steps`."""
        if who == NANOGPT:
            val_bytes = len(self.val_text[1:].encode("utf-8"))
            return NanoGPTTrainer(
                self.module, seed, steps, self.n_characters, *self.characters, val_bytes, **options
            )
        tokenizer, *splits = self.tokens[who]
        options = V4_OPTIONS[who] | {"vocab_size": tokenizer.vocab_size} | options
        config = load_version(V4).Config(seed=seed, steps=steps, device="cpu", **options)
        return V4Trainer(config, tokenizer, *splits)

    def measure_steps(self) -> None:
        """The median seconds of each trainer's step, taking turns."""
        if "step_seconds" not in self.kept:
            trainers = {who: self.trainer(who, 0, self.steps) for who in (NANOGPT, *OURS)}
            self.kept["parameters"] = {who: parameters(t) for who, t in trainers.items()}
            self.kept["dtype"] = pick_dtype("auto", torch.device("cpu"))
            trainers[ALIKE] = self.trainer(NANOGPT, 0, self.steps, dtype=self.kept["dtype"])
            self.kept["step_turns"] = STEP_TURNS
            work = {who: trainer.train_step for who, trainer in trainers.items()}
            self.kept["step_seconds"] = interleave(work, STEP_TURNS, "steps in turn")
            self.keep()

    def measure_compiled_steps(self) -> None:
        """The same for compiled models and nanoGPT's uncompiled one; nothing without a compiler."""
        if "compiled_step_seconds" not in self.kept:
            trainers = {who: self.trainer(who, 0, self.steps) for who in (NANOGPT, *OURS)}
            try:
                for trainer in trainers.values():
                    trainer.model.compile(dynamic=False)  # as that of the only model in a process
                trainers[UNCOMPILED] = self.trainer(NANOGPT, 0, self.steps)
                work = {who: trainer.train_step for who, trainer in trainers.items()}
                seconds = interleave(work, STEP_TURNS, "compiled steps in turn")
            except RuntimeError as error:
                print_text(f"compiled steps were not timed ({type(error).__name__}): no compiler?")
                return
            self.kept["compiled_step_seconds"] = seconds
            self.keep()

    def measure_writing(self) -> None:
        """Tokens a second of nanoGPT's own `generate` and of v4's cache."""
        if "written_a_second" not in self.kept:
            theirs = self.trainer(NANOGPT, 0, 1, block_size=WRITTEN_CONTEXT)
            lengths = {"context_length": WRITTEN_CONTEXT, "max_new_tokens": WRITTEN}
            work = {who: self.trainer(who, 0, 1, **lengths).write for who in OURS}
            work[NANOGPT] = lambda: theirs.write(WRITTEN)
            seconds = interleave(work, WRITE_TURNS, "writing in turn")
            self.kept["written_a_second"] = {who: WRITTEN / s for who, s in seconds.items()}
            self.kept["written"] = {"tokens": WRITTEN, "context": WRITTEN_CONTEXT}
            self.keep()

    def runs_of(self, who: str, steps: int) -> list[dict]:
        """Complete runs of this many steps, one per seed; those in `kept` are not run again."""
        runs = self.kept.setdefault("runs", [])
        for seed in self.seeds:
            if not any((r["who"], r["steps"], r["seed"]) == (who, steps, seed) for r in runs):
                looks = LOOKS if who == NANOGPT else 0
                run = complete_run(self.trainer(who, seed, steps), steps, looks)
                runs.append({"who": who, "seed": seed} | run)
                self.keep()
                print_text(f"{who}, seed {seed}: {steps:,} steps, {tell_bits(runs[-1:])}")
        return [run for run in runs if (run["who"], run["steps"]) == (who, steps)]

    def search(self, who: str, target: float) -> None:
        """Find, on a grid, the fewest steps after which `who` is at or below `target`."""
        steps, grid = float(self.steps), []
        while steps >= LEAST_STEPS:
            grid.append(round(steps))
            steps /= GRID
        grid = sorted(set(grid)) or [self.steps]
        bisect_left(grid, True, key=lambda steps: reaches(self.runs_of(who, steps), target))

    def run(self) -> None:
        """Make all measurements that are not in `kept` yet."""
        self.keep()
        self.measure_steps()
        self.measure_compiled_steps()
        self.measure_writing()
        target = bits_of(self.runs_of(NANOGPT, self.steps))
        for who in OURS:
            self.runs_of(who, steps_in_their_seconds(self.kept, who, self.steps))
            if target is not None:
                self.search(who, target)


def race(folder: str, text: str, steps: int, seeds: int, kept: dict, keep: Callable) -> None:
    """Train nanoGPT from the clone in `folder` and v4 on `text`, and put all measurements into
    `kept`: `text`, `tokenizers`, `parameters`, `step_seconds`, `compiled_step_seconds`,
    `written_a_second`, `runs`."""
    Race(load_nanogpt(folder), text, steps, seeds, kept, keep).run()


# ---- reporting ----


def bits_of(runs: list[dict]) -> float | None:
    """The mean bits per byte; None if there are no runs, or some diverged."""
    bits = [run["bits_per_byte"] for run in runs]
    return mean(bits) if bits and None not in bits else None


def reaches(runs: list[dict], target: float) -> bool:
    """Whether the mean of `runs` is at or below `target`."""
    bits = bits_of(runs)
    return bits is not None and bits <= target


def tell_bits(runs: list[dict]) -> str:
    """Mean and spread of the runs' bits per byte, or how many of them diverged."""
    if not runs:
        return "not measured"
    bits = [run["bits_per_byte"] for run in runs]
    if diverged := bits.count(None):
        return f"diverged, {diverged} of {len(bits)}"
    return f"{mean(bits):.3f}{plus_minus(spread(bits))}"


def steps_in_their_seconds(kept: dict, who: str, steps: int) -> int:
    """The steps that `who` can take, after all that comes before, while nanoGPT takes `steps`."""
    seconds = steps * kept["step_seconds"][NANOGPT] - kept["tokenizers"][who]["seconds"]
    return max(1, round(seconds / kept["step_seconds"][who]))


def seconds_of(kept: dict, who: str, steps: int) -> float:
    """The seconds for `steps`, plus those before the first of them, if there are any."""
    made = kept["tokenizers"][who]["seconds"] if who in OURS else 0.0
    return steps * kept["step_seconds"][who] + made


def summarize(kept: dict, steps: int) -> dict[str, dict]:
    """For each trainer: its runs within nanoGPT's seconds (`equal`), and the shortest runs that
    reach nanoGPT's score (`reached`; none if it does not)."""
    runs = {}
    for run in kept.get("runs", []):
        runs.setdefault(run["who"], {}).setdefault(run["steps"], []).append(run)
    seeds = len(runs.get(NANOGPT, {}).get(steps, []))
    target = bits_of(runs.get(NANOGPT, {}).get(steps, []))
    summary = {}
    for who in (NANOGPT, *OURS):
        equal = steps if who == NANOGPT else steps_in_their_seconds(kept, who, steps)
        by_steps = runs.get(who, {})
        whole = {n: of for n, of in by_steps.items() if len(of) >= seeds > 0}
        reached = [n for n, of in whole.items() if target is not None and reaches(of, target)]
        fewest = min(reached, default=None)
        seconds = seconds_of(kept, who, fewest) if fewest else None
        summary[who] = {
            "equal_steps": equal,
            "equal": by_steps.get(equal, []),
            "steps": fewest,
            "reached": by_steps.get(fewest, []),
            "seconds": seconds,
            "share": seconds and seconds / seconds_of(kept, NANOGPT, steps),
            "step_ratio": kept["step_seconds"][who] / kept["step_seconds"][NANOGPT],
        }
    return summary


def report(kept: dict, steps: int) -> str:
    """The table, and what its numbers mean."""
    if "step_seconds" not in kept:
        return "nanoGPT: nothing is measured yet."
    rows, made = summarize(kept, steps), kept["tokenizers"]
    written = kept.get("written_a_second", {})
    everyone = (NANOGPT, *OURS)

    def line(title: str, tell: Callable[[str], str]) -> list[str]:
        return [title, *map(tell, everyone)]

    def of_ours(tell: Callable[[str], str]) -> Callable[[str], str]:
        return lambda who: tell(who) if who in OURS else ""

    def if_reached(tell: Callable[[dict], str]) -> Callable[[str], str]:
        return lambda who: tell(rows[who]) if rows[who]["steps"] else "not reached"

    def speed_of(who: str) -> str:
        if who not in written:
            return ""
        ratio = f" ({written[who] / written[NANOGPT]:.1f} times)" if who in OURS else ""
        return f"{written[who]:,.0f}{ratio}"

    def times_alike(who: str) -> float:
        return kept["step_seconds"][who] / kept["step_seconds"][ALIKE]

    table = [
        ["", NANOGPT, "v4 as shipped", "v4 by characters, in nanoGPT's shape"],
        line("parameters", lambda who: f"{kept['parameters'][who]:,}"),
        line("bytes a token", of_ours(lambda who: f"{made[who]['bytes_a_token']:.2f}")),
        line("tokenizer, ids and counts, seconds", of_ours(lambda w: f"{made[w]['seconds']:.2f}")),
        line("milliseconds a step", lambda who: f"{1000 * kept['step_seconds'][who]:.1f}"),
        line("a step, times nanoGPT's", lambda who: f"{rows[who]['step_ratio']:.2f}"),
        line(f"the same, times nanoGPT's in {kept['dtype']}", lambda w: f"{times_alike(w):.2f}"),
        line("steps to nanoGPT's last bits per byte", if_reached(lambda row: f"{row['steps']:,}")),
        line("bits per byte after those steps", if_reached(lambda row: tell_bits(row["reached"]))),
        line("seconds for those steps", if_reached(lambda row: f"{row['seconds']:.1f}")),
        line("**share of nanoGPT's seconds**", if_reached(lambda row: f"**{row['share']:.3f}**")),
        line("steps in nanoGPT's seconds", lambda who: f"{rows[who]['equal_steps']:,}"),
        line("**bits per byte in nanoGPT's seconds**", lambda who: tell_bits(rows[who]["equal"])),
    ]
    if compiled := kept.get("compiled_step_seconds"):
        plain, theirs = compiled[UNCOMPILED], compiled[NANOGPT]
        table += [
            line("milliseconds a compiled step", lambda who: f"{1000 * compiled[who]:.1f}"),
            line(
                "milliseconds of nanoGPT's not compiled, beside them",
                lambda who: f"{1000 * plain:.1f}" if who == NANOGPT else "",
            ),
            line(
                "a compiled step, times nanoGPT's not compiled",
                lambda who: f"{compiled[who] / plain:.2f}",
            ),
            line("the same, times nanoGPT's compiled", lambda who: f"{compiled[who] / theirs:.2f}"),
        ]
    if written:
        of = f"{kept['written']['tokens']:,} tokens at context {kept['written']['context']:,}"
        table.append(line(f"tokens written a second ({of})", speed_of))
    text, seeds = kept["text"], len(rows[NANOGPT]["equal"])
    shape, rates = (
        ", ".join(f"{name} {value}" for name, value in options.items())
        for options in (NANOGPT_SHAPE, RATES)
    )
    return (
        f"{markdown(table)}\n\n[nanoGPT](https://github.com/karpathy/nanoGPT) with the "
        f"configuration that its README gives for a CPU ({shape}), {steps:,} steps; mean ± "
        f"standard deviation of {seeds} seeds, on the last tenth of `{text['name']}` "
        f"({text['val_bytes']:,} bytes, sha256 {text['sha256'][:12]}), all of it. Seconds are "
        f"steps × the median seconds of a step ({kept['step_turns']} turns, the trainers "
        "alternating in one process), and for v4 those before its first step. Products of matrices "
        f"are of {kept['dtype']} in v4, of float32 in nanoGPT, whose train.py knows no other on a "
        "CPU, but in the row that says so. v4's rate ends at "
        f"zero, so each number of steps is complete runs; those tried are {GRID - 1:.0%} apart. "
        f"Its rates by characters ({rates}) were chosen on `pydocs`. By characters, v4 has an id "
        "for each byte, with a vector in the embedding and one in the head; nanoGPT shares one "
        "between them."
    )
