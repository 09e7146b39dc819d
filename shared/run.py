"""A run: a model in training, its progress, and the folder it is saved in. No model code.

config.json     the options it was started with    samples.txt     text it generated
metrics.jsonl   one JSON object per log line       loss.png        its curves so far
summary.json    the results                        tokenizer.json, checkpoint.pt
"""

import dataclasses
import errno
import io
import itertools
import json
import math
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from shared import distributed
from shared.command_line import (
    encode_prompt,
    ended_by,
    lock_metrics,
    pick_device,
    pick_dtype,
    print_text,
    write_nowhere,
)
from shared.corpora import END_OF_TEXT, Corpus
from shared.files import (
    ROOT,
    UserError,
    atomic_write,
    json_sha256,
    remove_unfinished,
    write_json,
    write_text,
)
from shared.machine import keep_freed_memory
from shared.model_table import share_of_peak
from shared.tokens import Tokenizer, decode_pieces, token_lengths

QUICK_BYTES = 50_000  # of validation text to score during training; at the end, all of it
LOG_EVERY = 10  # steps between rows of training loss
SLICE = 1 << 20  # tokens to process at a time when all are counted
DRAW_EVERY = 60  # seconds between updates of loss.png during training
Generate = Callable[[torch.nn.Module, list[int], Any, int], Iterable[int]]  # a version's

# Options that may change when a run is resumed or sampled from (when sampling, also the seed and,
# except with learned positions, the context length); all others define the run.
FREE_OPTIONS = {
    *("data", "out", "steps", "device", "resume", "sample", "prompt", "temperature", "top_k"),
    *("top_p", "max_new_tokens", "checkpoint_every", "compile", "workers", "tensorboard"),
    *("print_model", "init_from", "dtype", "evaluate_every"),
}
# All that a run writes to its folder.
RUN_FILES = {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoint.pt", "summary.json"}
RUN_FILES |= {"samples.txt", "loss.png", "tensorboard"}


class Run:
    """A model, the progress of its training, and the folder in which both are saved.

    As a context manager it records the training: the progress bar, metrics.jsonl, and requests to
    stop. Ctrl-C, SIGTERM and a closed terminal only make a checkpoint due, since training cannot
    resume from half a step; once it is written, the process ends.
    """

    def __init__(
        self,
        version: str,
        config: Any,  # noqa: ANN401
        tokenizer: Tokenizer,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        corpus: Corpus | None = None,
    ) -> None:
        self.version, self.config, self.tokenizer = version, config, tokenizer
        self.model, self.optimizers, self.corpus = model, optimizers, corpus
        self.replica = model
        self.out = Path(config.out).resolve()  # the current folder may be renamed, or be a link
        self.metrics, self.checkpoint = self.out / "metrics.jsonl", self.out / "checkpoint.pt"
        self.device = torch.device(pick_device(config.device))
        keep_freed_memory()
        model.to(self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for matmuls not in bfloat16
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []  # of the steps since the last row of training loss
        self.unread: list[tuple[float | torch.Tensor, float]] = []  # losses and learning rates
        self.clock: list[float] = []  # seconds, to measure whether compiling pays off
        self.rows: list[dict] = []
        self.scores: dict[str, float] = {}  # the latest ones
        self.signal = 0  # the signal that asked us to stop
        self.metrics_file = self.events = None  # only the first process has them
        encode_prompt(tokenizer, config.prompt)  # UserError now, not after training
        # What must be the same in a checkpoint, except what is in FREE_OPTIONS.
        self.identity = {"version": version} | dataclasses.asdict(config)
        self.identity |= {"tokenizer": json_sha256(tokenizer.to_json())}
        self.identity |= {"corpus": corpus and corpus.sha256}
        if corpus is None:  # for sampling; models without learned positions read any length
            del self.identity["context_length"], self.identity["seed"]

    # -- checkpoints --

    def progress(self) -> dict[str, Any]:
        """What a resumed run goes on from besides its weights, all of it in numbers."""
        names = "step", "seconds", "losses", "rows"
        return {name: getattr(self, name) for name in names}

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `state` to checkpoint.pt; after a signal, exit here.

        The previous checkpoint stays until this one is complete and on disk, and for good if the
        weights are no longer finite.
        """
        if distributed.is_first():
            self._check_folder()
            if not all_finite(state):
                raise UserError(
                    f"the weights are not finite after step {self.step}: lower the learning rates "
                    "and start again; the last checkpoint is kept"
                )
            try:
                with atomic_write(self.checkpoint) as file:
                    torch.save(state, file)
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError if a disk is full
                system = error if isinstance(error, OSError) else error.__context__
                reason = getattr(system, "strerror", None) or "is the disk full?"
                raise UserError(f"{self.checkpoint} cannot be written ({reason})") from None
        if stop := distributed.highest(self.signal):
            self.bar.close()
            line = f"stopped at step {self.step:,}, saved; --resume --out {self.out} continues"
            print(line, file=sys.stderr)
            sys.exit(128 + stop)

    @contextmanager
    def read_checkpoint(self) -> Iterator[dict[str, Any]]:
        """The state in checkpoint.pt, for a block that restores the model and optimizers from it;
        after the block, the progress is restored.

        UserError if there is no checkpoint, if it is from another run or damaged, or if restoring
        fails in any way.
        """
        path = self.checkpoint
        if not path.exists():
            raise UserError(f"{path} is not there: train first, or name the run with --out")
        try:
            with warnings.catch_warnings():  # we report unusable files ourselves
                warnings.simplefilter("ignore")
                with zipfile.ZipFile(path) as archive:  # torch ignores wrong checksums
                    if damaged := archive.testzip():
                        raise UserError(f"{path} is damaged (in {damaged})")
                saved = torch.load(path, map_location="cpu", weights_only=True)
            self._check_identity(saved["run"])
            progress = checked_progress(saved["progress"])
            if not all_finite(saved):
                raise ValueError("weights are not finite")
            yield saved
            vars(self).update(progress)
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            other = "" if "context_length" in self.identity else ", or of another --context-length"
            kind = type(error).__name__
            raise UserError(f"{path} is not a whole checkpoint{other} ({kind})") from None

    def _check_identity(self, saved: dict) -> None:
        """UserError unless `saved` is the identity of this run."""
        for name, value in self.identity.items():
            if name not in FREE_OPTIONS and value is not None and saved[name] != value:
                theirs, ours = f"{name.replace('_', '-')} {saved[name]}", value
                if name == "corpus":
                    theirs, ours = "another text", f"what {self.config.data} holds now"
                raise UserError(
                    f"{self.checkpoint} is of a run with {theirs}, not {ours}: use the same, or "
                    "start a new run with another --out"
                )

    # -- training --

    def __enter__(self) -> "Run":
        if self.step > self.config.steps:
            raise UserError(
                f"the run in {self.out} has made {self.step:,} steps: give --steps as many or more"
            )
        if not distributed.joined():
            raise UserError(f"{self.version} trains in one process: start it without torchrun")
        if distributed.is_first():
            self._open_folder()
        distributed.wait()
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in (signal.SIGINT, *ended_by()):
                self.handlers[number] = signal.signal(number, self._remember)
        self.replica = distributed.replica(self.model)
        self.share_of_peak = share_of_peak(self.model, self.config, self.device)
        self.began = self.step
        self.timed = self.step, self.seconds  # where the last measurement of speed ended
        self._announce()
        steps = self.config.steps
        self.bar = tqdm(total=steps, initial=self.step, unit="step", desc="training", leave=False)
        return self

    def _open_folder(self) -> None:
        """Write the files with which a run begins."""
        begun = self.metrics.exists()
        self.metrics_file = lock_metrics(self.out)
        remove_unfinished(self.out)
        if not self.config.resume and self._holds_files(begun):
            self.metrics_file.close()  # Windows does not rename a folder with an open file
            if not begun:
                self.metrics.unlink()  # ours
            self._keep_earlier_run()
            self.metrics_file = lock_metrics(self.out)
        write_json(self.out / "config.json", dataclasses.asdict(self.config))
        self.tokenizer.save(self.out / "tokenizer.json")
        self.metrics_file.truncate(0)
        self.metrics_file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self.drawn = perf_counter()
        if self.config.tensorboard:
            self.events = event_writer(self.out / "tensorboard", self.rows)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.bar.close()
        if self.events:
            self.events.close()
        if kind and self.metrics_file:
            self.metrics_file.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        # A second Ctrl-C or SIGTERM stops at once. SIGHUP may come twice: the shell sends it, too.
        if self.signal and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt(number)
        self.signal = number
        write_nowhere(number)

    def _show(self, show: Callable, *what: object) -> None:
        """Call `show(*what)`, which prints: a lost reader must not interrupt a step half-way."""
        try:
            show(*what)
        except BrokenPipeError:  # the reader, such as `| head`, is gone
            self._remember(signal.SIGPIPE, None)
        except OSError as error:  # the terminal was closed, but we are meant to outlive it
            if error.errno != errno.EIO:
                raise
            write_nowhere(signal.SIGHUP)

    def _check_folder(self) -> None:
        """UserError if the folder is gone: a new one would hold only part of the run."""
        if not self.metrics.exists():
            raise UserError(f"{self.out} is gone: it was moved or removed during the run")

    def _holds_files(self, begun: bool) -> bool:
        """Whether the folder has files of a run, or with such names, not counting those of a run
        that was `begun` but ended before its first checkpoint, when metrics.jsonl had no rows."""
        if self.metrics.stat().st_size:
            return True
        names = RUN_FILES - {"metrics.jsonl"}
        if begun:
            names -= {"config.json", "tokenizer.json", "tensorboard"}
        return any((self.out / name).exists() for name in names)

    def _keep_earlier_run(self) -> None:
        """Rename the folder of an earlier run: no mistake may cost hours of training. UserError if
        other files would be renamed with it."""
        others = {path.name for path in self.out.glob("[!.]*")} - RUN_FILES
        if others:
            other = f"{self.out} holds a run and other files, such as {min(others)}"
            raise UserError(f"{other}: choose another --out")
        names = (self.out.with_name(f"{self.out.name}-{n}") for n in itertools.count(1))
        kept = next(path for path in names if not path.exists())
        self.out.rename(kept)
        print_text(f"what was in {self.out} is now in {kept}")

    def _announce(self) -> None:
        config, corpus, n = self.config, self.corpus, distributed.processes()
        together = f", {n} processes" if n > 1 else ""
        is_long = corpus.val_bytes > QUICK_BYTES
        quick = f" (until the end, only {QUICK_BYTES:,})" if is_long else ""
        print_text(
            f"{self.version}: {self._parameters():,} parameters, {config.vocab_size:,} tokens in "
            f"the vocabulary, context of {config.context_length:,}, on {self.device}{together}\n"
            f"corpus {corpus.name}: {corpus.train_bytes:,} bytes to train on, "
            f"{corpus.val_bytes:,} to validate{quick}, sha256 {corpus.sha256[:16]}\n"
            f"{config.steps:,} steps of {self._tokens_a_step():,} tokens, into {self.out}"
        )

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _tokens_a_step(self) -> int:
        config = self.config
        accumulation = getattr(config, "accumulation_steps", 1)
        return config.batch_size * config.context_length * accumulation

    def is_done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step == self.config.steps

    def checkpoint_is_due(self) -> bool:
        """Whether to save now: at the end, every `checkpoint_every` steps, or if asked to stop."""
        on_time = self.is_done() or self.step % self.config.checkpoint_every == 0
        started = perf_counter()
        due = on_time or distributed.highest(self.signal) > 0
        self.seconds += perf_counter() - started  # spent waiting for the other processes
        if due:
            self._read_losses()
        return due

    def evaluation_is_due(self) -> bool:
        """Whether to evaluate now; the first process does, while the others wait."""
        due = self.is_done() or self.step % self.config.evaluate_every == 0
        if due:
            self._read_losses()
            if not distributed.is_first():
                distributed.wait()
        return due and distributed.is_first()

    def part_to_score(self, tokens: np.ndarray) -> np.ndarray:
        """All the validation `tokens` (N,) at the end; before that, those of its first QUICK_BYTES
        bytes, so that curves of different tokenizers cover the same text."""
        if self.is_done():
            return tokens
        start = tokens[: 2 * QUICK_BYTES]  # includes special tokens, of no bytes
        ends = token_lengths(self.tokenizer)[start.astype(np.int64)].cumsum(0)
        return start[: int((ends < QUICK_BYTES).sum()) + 1]

    def log_step(self, loss: float | torch.Tensor, learning_rate: float, seconds: float) -> None:
        """Count a step with this training `loss`; UserError if it is not finite.

        On a GPU, losses are read only when they are logged: reading one waits until everything
        before it is computed, and meanwhile the GPU is given no new work.
        """
        self.step += 1
        self.seconds += seconds
        self.unread.append((loss, learning_rate))
        if self.device.type == "cpu" or self.step % LOG_EVERY == 0:
            self._read_losses()
        self._show(self.bar.update)
        if getattr(self.config, "compile", False):
            self._time_compiled_steps()
        if self.step % LOG_EVERY == 0:
            self._log_training_loss(learning_rate)

    def compile_is_due(self) -> bool:
        """Whether to compile the model now: after enough steps to time them uncompiled."""
        return self.config.compile and self.step - self.began == 2 * LOG_EVERY

    def _time_compiled_steps(self) -> None:
        """Read the clock four times, every LOG_EVERY steps: the first interval is uncompiled, the
        second includes compiling, the third is compiled. Then print whether that pays off."""
        if (self.step - self.began) % LOG_EVERY or len(self.clock) == 4:
            return
        self._read_losses()  # waits for the GPU
        self.clock.append(self.seconds)
        if len(self.clock) == 4 and distributed.is_first():
            before, compiling, after = (b - a for a, b in itertools.pairwise(self.clock))
            compiling -= after
            saved = (before - after) / LOG_EVERY
            pays = f"pays after {compiling / saved:,.0f} steps" if saved > 0 else "does not pay"
            before, after = (f"{1000 * seconds / LOG_EVERY:.1f} ms" for seconds in (before, after))
            self._show(
                self.bar.write,
                f"compiled in {compiling:.0f} s; a step takes {after} instead of {before}: {pays}",
            )

    def _read_losses(self) -> None:
        """Read the pending losses, averaged over all processes."""
        if not self.unread:
            return
        started, first = perf_counter(), self.step - len(self.unread)
        losses, rates = zip(*self.unread)
        losses = distributed.mean(torch.stack([torch.as_tensor(x) for x in losses]).tolist())
        self.seconds += perf_counter() - started  # spent waiting for the GPU
        for step, (loss, rate) in enumerate(zip(losses, rates), first):
            if not math.isfinite(loss):
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                raise UserError(
                    f"the loss is {loss} at step {step}, the learning rate {rate:g}, the gradient "
                    f"norm {torch.nn.utils.get_total_norm(gradients):g}: lower --learning-rate and "
                    "start again; the last checkpoint is kept"
                )
        self.losses += losses
        self.unread = []
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    def _log_training_loss(self, learning_rate: float) -> None:
        row = {"step": self.step, "train_loss": sum(self.losses) / len(self.losses)}
        row |= {"learning_rate": learning_rate, "seconds": round(self.seconds, 3)}
        self._append_row(row)
        self.losses = []

    def log_scores(self, tokens: np.ndarray, nats: float, n_bytes: int) -> None:
        """Record and print how well the model predicts `tokens` (N,).

        Loss and perplexity are per token; bits per byte is comparable across tokenizers.
        """
        if not math.isfinite(nats):
            raise UserError(f"the weights are not finite at step {self.step}: lower the rates")
        if n_bytes == 0:
            raise UserError("the validation text holds no character that the training text has")
        lengths, n = token_lengths(self.tokenizer), len(tokens)
        parts = (tokens[i : i + SLICE].astype(np.int64) for i in range(1, n, SLICE))
        loss = nats / sum((lengths[part] > 0).sum().item() for part in parts)
        scores = {"val_loss": loss, "perplexity": math.exp(min(loss, 700))}
        scores["bits_per_byte"] = nats / math.log(2) / n_bytes
        scores["scored_bytes"] = n_bytes
        self.scores = scores
        row = {"step": self.step} | scores | {"scored_tokens": len(tokens) - 1}
        speed = self._speed()
        self._append_row(row | {"seconds": round(self.seconds, 3)} | speed)
        trained = [row["train_loss"] for row in self.rows if "train_loss" in row]
        train_loss = f"{trained[-1]:.4f}" if trained else "     -"
        self._show(
            self.bar.write,
            f"step {self.step:>6,} | train loss {train_loss} | val loss {scores['val_loss']:.4f} | "
            f"perplexity {scores['perplexity']:8.2f} | bits per byte {scores['bits_per_byte']:.4f} "
            f"| {self.seconds:5.0f} s"
            + (f" | {speed['tokens_per_second']:,.0f} tokens/s" if speed else "")
            + (f" | MFU {speed['mfu']:.1%}" if "mfu" in speed else ""),
        )
        distributed.wait()  # the others wait in evaluation_is_due

    def _speed(self) -> dict[str, float]:
        """Tokens per second since the last scores and, if the GPU's peak is known, the fraction of
        all GPUs' peak that this takes (MFU)."""
        steps, seconds = self.step - self.timed[0], self.seconds - self.timed[1]
        self.timed = self.step, self.seconds
        if not (steps and seconds):
            return {}
        return self._speed_of(steps * self._tokens_a_step() / seconds)

    def _speed_of(self, tokens_per_second: float) -> dict[str, float]:
        speed = {"tokens_per_second": round(tokens_per_second, 1)}
        if self.share_of_peak:
            share = tokens_per_second * self.share_of_peak / distributed.processes()
            speed["mfu"] = round(share, 4)
        return speed

    def _append_row(self, row: dict) -> None:
        if not distributed.is_first():
            return
        self.rows.append(row)
        try:
            self.metrics_file.write(json.dumps(row) + "\n")
            self.metrics_file.flush()
        except OSError as error:
            error.filename = str(self.metrics)  # errors from a full disk do not name the file
            raise
        if self.events:
            write_events(self.events, row)
        if perf_counter() - self.drawn > DRAW_EVERY:
            self._draw(f"step {self.step:,}")
            self.drawn = perf_counter()

    def _draw(self, title: str) -> None:
        draw_loss(self.rows, self.out / "loss.png", f"{self.version}: {title}")

    # -- writing text --

    def write(self, generate: Generate) -> Iterator[str]:
        """The prompt and its continuation by the version's `generate`, piece by piece."""
        end = self.tokenizer.special_tokens[END_OF_TEXT]
        prompt = encode_prompt(self.tokenizer, self.config.prompt)
        new = generate(self.model, [end, *prompt], self.config, end)
        return decode_pieces(self.tokenizer, itertools.chain(prompt, new))

    def answer(self, generate: Generate) -> None:
        """Print a continuation of --prompt or, without one on a terminal, of each line typed.

        Each answer has its own seed, so that the same line typed again gives another text.
        """
        if self.config.prompt or sys.stdin is None or not sys.stdin.isatty():
            self._print_pieces(generate)
            return
        print_text("Type the start of a text, then Enter (Enter alone: a new text); Ctrl-D quits.")
        for seed in itertools.count(self.config.seed):
            try:
                prompt = input("> ")
            except EOFError:
                print()
                return
            try:
                self.config = dataclasses.replace(self.config, prompt=prompt, seed=seed)
                self._print_pieces(generate)
            except UserError as error:
                print_text(f"error: {error}")

    def _print_pieces(self, generate: Generate) -> None:
        for piece in self.write(generate):
            print_text(piece, end="")
        print()

    # -- the end --

    def finish(self, generate: Generate, corpus_tokens: int) -> dict:
        """Write summary.json, samples.txt and loss.png, print the results, and return the summary.

        `corpus_tokens`, the length of the training text, converts tokens seen to bytes seen.
        Processes other than the first wait for it and return {}.
        """
        if not distributed.is_first():
            distributed.wait()
            return {}
        sample = "".join(self.write(generate))
        self._check_folder()
        summary = self._summary(corpus_tokens)
        write_text(self.out / "samples.txt", sample + "\n")
        self._draw(f"{summary['bits_per_byte']:.3f} bits per byte")
        write_json(self.out / "summary.json", summary)  # last: it marks the run as finished
        self.metrics_file.close()
        if left_out := self.corpus.val_bytes - summary["scored_bytes"]:
            print(f"{left_out:,} bytes of validation text are unknown characters and not scored")
        print("---- a sample ----")
        print_text(sample)
        print_text(
            f"------------------\n{self.version} on {self.corpus.name}, {self.step:,} steps in "
            f"{self.seconds:.0f} s: loss {summary['val_loss']:.4f} nats per token, perplexity "
            f"{summary['perplexity']:.2f}, {summary['bits_per_byte']:.4f} bits per byte"
        )
        distributed.wait()
        return summary

    def _summary(self, corpus_tokens: int) -> dict:
        config, corpus = self.config, self.corpus
        tokens = self.step * self._tokens_a_step()
        return {
            "version": self.version,
            "corpus": {
                "name": corpus.name,
                "sha256": corpus.sha256,
                "train_bytes": corpus.train_bytes,
                "val_bytes": corpus.val_bytes,
            },
            "vocab_size": config.vocab_size,
            "parameters": self._parameters(),
            "context_length": config.context_length,
            "batch_size": config.batch_size,
            "steps": self.step,
            "train_tokens": tokens,
            "train_bytes": round(tokens * corpus.train_bytes / corpus_tokens),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": None,
            **(self._speed_of(tokens / self.seconds) if self.seconds else {}),
            **self.scores,
            "device": str(self.device),
            "processes": distributed.processes(),
            "dtype": pick_dtype(getattr(config, "dtype", "float32"), self.device),
            "seed": config.seed,
            **machine_facts(),
        }


def read_rows(path: Path) -> list[dict]:
    """The rows of metrics.jsonl, up to the first line that is damaged or still being written."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def event_writer(folder: Path, rows: list[dict]) -> Any:  # noqa: ANN401 - tensorboard is optional
    """A writer of TensorBoard event files in `folder`, which then holds exactly `rows`: later rows
    of a resumed run will be written again."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    events = SummaryWriter(str(folder))
    for row in rows:
        write_events(events, row)
    return events


def write_events(events: Any, row: dict) -> None:  # noqa: ANN401
    """Write a scalar for each value in a row of metrics.jsonl, at its step."""
    for name, value in row.items():
        if name != "step":
            events.add_scalar(name, value, row["step"])


def checked_progress(progress: dict) -> dict:
    """`progress`; ValueError unless each part of it is what `Run.progress` returned."""
    numbers = progress["seconds"], *progress["losses"]
    whole = type(progress["step"]) is int and progress["step"] >= 0
    whole &= all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
    whole &= all(type(row.get("step")) is int for row in progress["rows"])
    if not whole:
        raise ValueError("not the progress of a run")
    return {name: progress[name] for name in ("step", "seconds", "losses", "rows")}


def all_finite(state: Any) -> bool:  # noqa: ANN401
    """Whether all numbers in all tensors of nested dicts and lists are finite."""
    if isinstance(state, torch.Tensor):
        return bool(state.isfinite().all())
    parts = state.values() if isinstance(state, dict) else state
    return not isinstance(state, dict | list) or all(map(all_finite, parts))


def draw_loss(rows: list[dict], picture: Path, title: str) -> None:
    """Plot loss and bits per byte against steps.

    Scores on the first part of the validation text are a line; scores on all of it are a star.
    """
    from matplotlib.figure import Figure  # pyplot may need a display, or draw into a notebook

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    whole = max(row.get("scored_tokens", 0) for row in rows)
    some = min(row.get("scored_tokens", whole) for row in rows)
    for axes, name, label, style, scored in (
        (left, "train_loss", "training", "C0-", None),
        (left, "val_loss", "validation", "C1.-", some),
        (left, "val_loss", "validation, all of it", "C1*", whole),
        (right, "bits_per_byte", "validation", "C1.-", some),
        (right, "bits_per_byte", "validation, all of it", "C1*", whole),
    ):
        of_kind = [r for r in rows if name in r and r.get("scored_tokens") == scored and r["step"]]
        if of_kind and not (style == "C1*" and some == whole):
            axes.plot([r["step"] for r in of_kind], [r[name] for r in of_kind], style, label=label)
    left.set(xlabel="step", ylabel="loss (nats per token)")
    right.set(xlabel="step", ylabel="bits per byte")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_write(picture) as file:
        file.write(buffer.getvalue())


def cpu_name() -> str:
    """The model name of this machine's processor, or at least its architecture."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8")  # only on Linux
    except OSError:
        known = ""
    name = re.search(r"^model name\s*:\s*(.+)", known, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def machine_facts() -> dict[str, Any]:
    """What a result depends on besides the config: versions, the machine, and the commit."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
        commit = commit.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": commit,
    }
