"""Where v4's steps spend their time, how much of the machine they use, and v4 against nanoGPT.

    python benchmarks/training.py                            v4 alone
    python benchmarks/training.py --processes 1 2            also by torchrun, 1 and 2 processes
    python benchmarks/training.py --nanogpt ../nanoGPT       also against a clone of nanoGPT

If stopped, run the same command again to resume; new parts are added to the finished ones. All is
measured on the CPU. Tables, picture and results.json go to benchmarks/results/training/. `--readme`
measures nothing: it rewrites the tables from results.json (also those in README.md here).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import race
from benchmarks.command import Shown, in_new_process, run_benchmark
from benchmarks.common import (
    check_name,
    load_version,
    markdown,
    on_machine,
    peak_memory,
    read_rows,
)
from benchmarks.pictures import BLUE, axes_of, colour, label_ends
from benchmarks.records import conditions, kept
from benchmarks.trainers import (
    NANOGPT_STEPS,
    V4,
    V4Trainer,
    interleave,
    load_nanogpt,
    parameters,
)
from shared import model_table
from shared.command_line import pick_dtype
from shared.corpora import load_corpus
from shared.files import ROOT, UserError, read_json, write_json
from shared.terminal import progress

WARM_UP = 3  # untimed steps before the timed ones
PEAK_SIZES = (1024, 2048)  # of the square matrices whose products give the machine's peak
PEAK_EVERY = 10  # steps between such products
WRITTEN, WRITTEN_CONTEXT, WRITE_TURNS = 500, 256, 3  # tokens written, with such a context
MEMORY_STEPS = 5  # steps to find peak memory
WIDER, WIDER_STEPS = (2, 4), 10  # times v4's width, heads and batch; steps that are timed
PROCESS_STEPS = 100  # of a run by torchrun
PARTS = ("data", "forward and loss", "backward", "clipping")  # then the optimizers, by their names
REST, WHOLE = "the rest", "whole step"


@dataclass
class Options:
    """Measure where a step of v4 goes and, given a clone of nanoGPT, train both."""

    nanogpt: str = ""  # folder of a clone of nanoGPT, to train v4 beside it
    text: str = "shakespeare"  # what both train on: a name or a path, as --data of the versions
    seeds: int = 3  # runs of each of them
    nanogpt_steps: int = NANOGPT_STEPS  # that nanoGPT trains for
    processes: tuple[int, ...] = ()  # 1 2: time also torchrun with 1 and with 2 processes
    data: str = "pydocs"  # what v4 alone trains on
    steps: int = 300  # of v4 alone that are timed
    threads: int = 0  # CPU threads; 0: as torch chooses
    name: str = "training"  # of the folder of results
    fresh: bool = False  # measure again what is finished
    readme: bool = False  # measure nothing, write tables and README from results.json

    def __post_init__(self) -> None:
        check_name(self.name)
        counts = (self.seeds, self.nanogpt_steps, self.steps, *self.processes)
        if min(counts) < 1 or self.threads < 0:
            raise UserError(
                "--seeds, --nanogpt-steps, --processes and --steps must be 1 or more, --threads 0 "
                "or more"
            )


# ---- a step ----


@contextmanager
def watched(trainer: V4Trainer, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """How much of `clock` each part of v4's own training step takes, in a `with` block.

    The functions that a step calls are wrapped, so that the step itself is measured, not a copy of
    it. If parts are nested, the outer one counts.
    """
    places = [
        (trainer.module, "get_batch", PARTS[0]),
        (trainer.model, "forward", PARTS[1]),
        (torch.Tensor, "backward", PARTS[2]),
        (trainer.module, "clip_grad_norm", PARTS[3]),
        *((optimizer, "step", type(optimizer).__name__) for optimizer in trainer.optimizers),
    ]
    taken = {part: 0 for _, _, part in places}
    under_way = []

    def watch(work: Callable, part: str) -> Callable:
        def do(*args: object, **named: object) -> object:
            if under_way:
                return work(*args, **named)
            under_way.append(part)
            before = clock()
            try:
                return work(*args, **named)
            finally:
                taken[part] += clock() - before
                under_way.clear()

        return do

    with ExitStack() as stack:
        for owner, name, part in places:
            if work := getattr(owner, name, None):
                stack.enter_context(patch.object(owner, name, watch(work, part)))
        yield taken


def split_step(trainer: V4Trainer, clock: Callable[[], float]) -> dict[str, float]:
    """How much of `clock` (seconds, or FLOPs so far) a step takes: each part, the rest, in all."""
    with watched(trainer, clock) as taken:
        before = clock()
        trainer.train_step()
        whole = clock() - before
    return taken | {REST: whole - sum(taken.values()), WHOLE: whole}


def count_flops(trainer: V4Trainer) -> dict[str, float]:
    """The FLOPs of one step's matrix products, part by part; a multiplication and an addition are
    two. Attention is written out, since the CPU's fused kernel is not counted; masked scores count
    like all others, since they are computed."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        return split_step(trainer, counter.get_total_flops)


def matrix_peak(size: int, dtype: str) -> float:
    """The FLOP/s of one product of two square matrices."""
    left, right, out = (torch.ones(size, size, dtype=getattr(torch, dtype)) for _ in range(3))
    started = time.perf_counter()
    torch.mm(left, right, out=out)
    return 2 * size**3 / (time.perf_counter() - started)


def time_steps(trainer: V4Trainer, steps: int) -> tuple[dict[str, float], float]:
    """The median seconds of a step's parts, and the best FLOP/s of matrix products computed between
    the steps, in the same minute."""
    taken, peak, dtype = [], 0.0, pick_dtype(trainer.config.dtype, trainer.device)
    for step in progress(range(-WARM_UP, steps), desc="steps"):
        parts = split_step(trainer, time.perf_counter)
        if step >= 0:
            taken.append(parts)
        if step % PEAK_EVERY == 0:
            peak = max(peak, *(matrix_peak(size, dtype) for size in PEAK_SIZES))
    return {part: median(each[part] for each in taken) for part in taken[0]}, peak


# ---- v4 alone ----


def make_v4(data: str, **options: int | str) -> tuple[V4Trainer, float]:
    """A new v4 on a corpus, with the defaults except for `options`, and the bytes per token."""
    module = load_version(V4)
    config = module.Config(data=data, device="cpu")
    tokenizer, corpus, *splits = module.load_data(config)
    config = replace(config, vocab_size=tokenizer.vocab_size, **options)
    return V4Trainer(config, tokenizer, *splits), corpus.train_bytes / len(splits[0])


def memory_of_training(data: str, threads: int, options: dict[str, int | str]) -> dict[str, int]:
    """Peak bytes of this process during some steps of v4, the bytes it held before, and those that
    a step keeps according to --print-model."""
    torch.set_num_threads(threads)
    before = peak_memory()
    trainer, _ = make_v4(data, **options)
    for _ in range(MEMORY_STEPS):
        trainer.train_step()
    peak, module = peak_memory(), trainer.module
    size = model_table.measure(trainer.config, module.LanguageModel, module.make_optimizers)
    return {"before": before, "kept": size.memory, "peak": peak}


def measure_step(data: str, steps: int, **options: int | str) -> dict:
    """The seconds and FLOPs of a step's parts, the FLOP/s the machine can reach, and memory."""
    trainer, bytes_a_token = make_v4(data, **options)
    config = trainer.config
    seconds, peak = time_steps(trainer, steps)
    return {
        "steps": steps,
        "width": config.width,
        "dtype": pick_dtype(config.dtype, trainer.device),
        "parameters": parameters(trainer),
        "tokens_a_step": config.batch_size * config.context_length * config.accumulation_steps,
        "bytes_a_token": bytes_a_token,
        "seconds": seconds,
        "flops": count_flops(trainer),
        "peak_flops_a_second": peak,
        "memory": in_new_process(memory_of_training, data, torch.get_num_threads(), options),
    }


def measure_wider(options: Options, times: int) -> dict:
    """A step of a v4 of several times the width, with as many times the windows per batch."""
    config = load_version(V4).Config()
    names = ("width", "n_heads", "n_kv_heads", "feed_forward_size", "batch_size")
    wider = {name: times * getattr(config, name) for name in names}
    return measure_step(options.data, WIDER_STEPS, **wider)


def measure_alone(options: Options) -> dict:
    """v4 as it ships: the parts of a step, FLOPs, tokens written a second, memory."""
    measured = measure_step(options.data, options.steps)
    writer, _ = make_v4(options.data, context_length=WRITTEN_CONTEXT, max_new_tokens=WRITTEN)
    work = {"cache": writer.write, "no cache": writer.write_uncached}
    written = interleave(work, WRITE_TURNS, "writing in turn")
    return {
        "data": Path(options.data).name,
        "machine": conditions(),
        **measured,
        "written_a_second": {how: WRITTEN / taken for how, taken in written.items()},
        "written": {"tokens": WRITTEN, "context": WRITTEN_CONTEXT},
    }


# ---- several processes ----


def run_processes(count: int, folder: Path, options: Options) -> dict:
    """Tokens per second of v4 under torchrun with `count` single-threaded processes.

    The first row of metrics.jsonl is left out as warm-up.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), str(ROOT / V4 / "train.py"), "--out", str(folder)]
    command += ["--data", options.data, "--device", "cpu", "--steps", str(PROCESS_STEPS)]
    command += ["--evaluate-every", str(PROCESS_STEPS)]
    log = folder.with_name(folder.name + ".log")
    print(f"{count} processes: {PROCESS_STEPS} steps", flush=True)
    with open(log, "wb") as output:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        done = subprocess.run(command, env=environment, stdout=output, stderr=output)
    if done.returncode:
        raise UserError(f"{count} processes ended with status {done.returncode}: see {log}")
    return {"processes": count} | tokens_a_second(folder)


def tokens_a_second(folder: Path) -> dict:
    """Tokens per step, and per second between the first and the last row of a finished run."""
    summary = read_json(folder / "summary.json")
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "train_loss" in row]
    steps, seconds = (rows[-1][name] - rows[0][name] for name in ("step", "seconds"))
    a_step = summary["train_tokens"] / summary["steps"]
    return {"tokens_a_step": a_step, "tokens_a_second": a_step * steps / seconds}


# ---- all of it ----


def measure(options: Options) -> dict:
    """All that is asked for and not kept from before; what goes into results.json."""
    folder = ROOT / "runs" / "training" / options.name
    if options.nanogpt:
        load_nanogpt(options.nanogpt)  # UserError for a wrong folder before any work
        load_corpus(options.text)
    load_corpus(options.data)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("text", "seeds", "nanogpt_steps", "data", "steps", "threads")
    asked = {name: getattr(options, name) for name in names}
    asked["dtype"] = pick_dtype("auto", torch.device("cpu"))  # rows in another dtype do not fit
    asked["format"] = 3  # nor do those of another form
    path = folder / "results.json"
    results = kept(path) or {"options": asked}
    if results["options"] != asked:
        raise UserError(
            f"{folder} is of {results['options']}, not {asked}: use --fresh or another --name"
        )

    def keep() -> None:
        write_json(path, results)

    if "alone" not in results:
        results["alone"] = measure_alone(options)
        keep()
    if "float32" not in results and results["alone"]["dtype"] != "float32":
        results["float32"] = measure_step(options.data, options.steps, dtype="float32")
        keep()
    for times in WIDER[len(results.setdefault("wider", [])) :]:
        results["wider"].append(measure_wider(options, times))
        keep()
    for count in options.processes:
        rows = results.setdefault("processes", [])
        if all(row["processes"] != count for row in rows):
            rows.append(run_processes(count, folder / f"processes-{count}", options))
            keep()
    if options.nanogpt:
        beside = results.setdefault("nanogpt", {"machine": conditions()})
        race.race(options.nanogpt, options.text, options.nanogpt_steps, options.seeds, beside, keep)
    else:
        print("nanoGPT is not trained: --nanogpt FOLDER names a clone of it")
    return without_paths(results)


def without_paths(results: dict) -> dict:
    """What may be published: only the names of the texts, which may be files on this machine."""
    names = {name: Path(results["options"][name]).name for name in ("text", "data")}
    return results | {"options": results["options"] | names}


# ---- reporting ----


def summarize(step: dict) -> dict:
    """A step in summary: each part's share, and its FLOP/s as a share of the machine's peak."""
    seconds, flops = step["seconds"], step["flops"]
    whole, peak = seconds[WHOLE], step["peak_flops_a_second"]
    of_model = flops["forward and loss"] + flops["backward"]
    return {
        "shares": {part: taken / whole for part, taken in seconds.items()},
        "tokens_a_second": step["tokens_a_step"] / whole,
        "flops_a_second": flops[WHOLE] / whole,
        "utilization": flops[WHOLE] / whole / peak,
        "model_flops_a_second": of_model / whole,
        "model_utilization": of_model / whole / peak,
    }


def report_alone(alone: dict) -> str:
    """A table of the step's parts, and one of what else was measured."""
    of, peak = summarize(alone), alone["peak_flops_a_second"]
    table = [["of a step of v4", "milliseconds", "share", "GFLOP"]]
    for part, seconds in alone["seconds"].items():
        gflop = alone["flops"][part] / 1e9
        cells = [f"{1000 * seconds:.1f}", f"{of['shares'][part]:.1%}"]
        table.append([part, *cells, f"{gflop:.2f}" if gflop else ""])
    written, lengths = alone["written_a_second"], alone["written"]
    facts = [
        ["of v4", ""],
        ["tokens a second", f"{of['tokens_a_second']:,.0f}"],
        ["bytes a second", f"{of['tokens_a_second'] * alone['bytes_a_token']:,.0f}"],
        [
            "GFLOP/s of the whole step",
            f"{of['flops_a_second'] / 1e9:.1f}, **{of['utilization']:.0%}** of the "
            f"{peak / 1e9:.1f} that matrix products alone reach",
        ],
        [
            "of the model's forward and backward alone (MFU)",
            f"{of['model_flops_a_second'] / 1e9:.1f}, {of['model_utilization']:.0%}",
        ],
        [
            f"tokens written a second ({lengths['tokens']:,} at context {lengths['context']:,})",
            f"{written['cache']:,.0f}, {written['cache'] / written['no cache']:.1f} times the "
            f"{written['no cache']:,.0f} without cache",
        ],
    ]
    return (
        f"{markdown(table)}\n\n{markdown(facts)}\n\nv4 as it ships ({alone['parameters']:,} "
        f"parameters, {alone['tokens_a_step']:,} tokens a step) on `{alone['data']}`; medians of "
        f"{alone['steps']} steps, so the parts make the whole only about; the products are of "
        f"{alone['dtype']} matrices, {' and '.join(map(str, PEAK_SIZES))} rows, the best of those "
        f"made between the steps; {on_machine(alone['machine'])}."
    )


def report_wider(rows: list[dict]) -> str:
    """The share of the machine's peak, which depends on the type of the matrix products and grows
    with the model's width; and the memory."""
    head = ["width", "products in", "parameters", "tokens a step", "milliseconds"]
    head += ["GFLOP/s (of the peak)", "of the model alone (MFU)"]
    table = [[*head, "MB before", "MB kept in a step", "MB at most"]]
    for row in rows:
        of = summarize(row)
        kind = [str(row["width"]), row["dtype"]]
        kind += [f"{row[name]:,}" for name in ("parameters", "tokens_a_step")]
        speeds = [
            f"{of['flops_a_second'] / 1e9:,.0f} ({of['utilization']:.0%})",
            f"{of['model_flops_a_second'] / 1e9:,.0f} ({of['model_utilization']:.0%})",
        ]
        memory = [f"{row['memory'][name] / 1e6:,.0f}" for name in ("before", "kept", "peak")]
        table.append([*kind, f"{1000 * row['seconds'][WHOLE]:,.0f}", *speeds, *memory])
    return (
        f"{markdown(table)}\n\nHeads, feed-forward and batch grow with the width; medians of "
        f"{rows[-1]['steps']} steps of the wider ones, the peak measured between the steps as "
        "above. MB of a process: before it has a model; kept in a step, as `--print-model` "
        "tells, all in float32; and the most that it holds."
    )


def report_processes(rows: list[dict]) -> str:
    """Tokens a second against the number of processes."""
    rows = sorted(rows, key=lambda row: row["processes"])
    table = [["processes of one thread", "tokens a step", "tokens a second", "times", "efficiency"]]
    for row in rows:
        times = row["tokens_a_second"] / rows[0]["tokens_a_second"]
        more = row["processes"] / rows[0]["processes"]
        cells = [f"{row['tokens_a_step']:,.0f}", f"{row['tokens_a_second']:,.0f}"]
        table.append([str(row["processes"]), *cells, f"{times:.2f}", f"{times / more:.0%}"])
    return markdown(table)


def report(results: dict) -> str:
    """All tables, of the parts that were measured."""
    alone = results["alone"]
    rows = [alone, *([results["float32"]] if "float32" in results else []), *results["wider"]]
    parts = [report_alone(alone), report_wider(rows)]
    if "processes" in results:
        parts.append(report_processes(results["processes"]))
    if "nanogpt" in results:
        beside = race.report(results["nanogpt"], results["options"]["nanogpt_steps"])
        parts.append(f"{beside} {on_machine(results['nanogpt']['machine'])}.")
    return "\n\n".join(parts)


def draw(results: dict) -> Figure:
    """The parts of a step as bars; beside nanoGPT, bits per byte against seconds."""
    beside = results.get("nanogpt", {})
    figure, panels = axes_of(2 if beside.get("runs") else 1)
    seconds = {part: s for part, s in results["alone"]["seconds"].items() if part != WHOLE}
    bars = panels[0].barh(list(seconds), [1000 * s for s in seconds.values()], color=colour(V4))
    shares = summarize(results["alone"])["shares"]
    panels[0].bar_label(bars, [f"{shares[part]:.0%}" for part in seconds], padding=3)
    panels[0].invert_yaxis()
    panels[0].margins(x=0.15)
    panels[0].set(xlabel="milliseconds of a step of v4")
    if beside.get("runs"):
        draw_race(panels[1], beside)
    return figure


def draw_race(axes: Axes, beside: dict) -> None:
    """nanoGPT's runs as lines, v4's complete runs as dots."""
    paint = {race.NANOGPT: "gray", race.SUBWORDS: colour(V4), race.CHARACTERS: BLUE}
    ends = {}  # who -> of the last run
    for run in beside["runs"]:
        who, curve = run["who"], [[run["steps"], run["bits_per_byte"]]]
        if run["bits_per_byte"] is None:  # diverged
            continue
        curve = [point for point in run["curve"] if point[0]] + curve
        seconds = [race.seconds_of(beside, who, steps) for steps, _ in curve]
        style = ".-" if who == race.NANOGPT else "o"
        axes.plot(seconds, [bits for _, bits in curve], style, color=paint[who], alpha=0.6)
        end = seconds[-1], curve[-1][1], who
        ends[who] = max(end, ends.get(who, end))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="seconds of training (v4: a dot is a complete run)")
    axes.set(ylabel="bits per byte of validation text")
    label_ends(axes, list(ends.values()))


def show(results: dict) -> Shown:
    return report(results), {"training.png": draw(results)}


def main(arguments: list[str] | None = None) -> None:
    run_benchmark(Options, arguments, measure, show)


if __name__ == "__main__":
    main()
