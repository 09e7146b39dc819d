"""A run: a model in training, its progress, and the folder it is saved in. No model code.

config.json     the options it was started with    samples.txt     text it wrote, by step
metrics.jsonl   one JSON object per log line       loss.png        its curves so far
summary.json    the results                        tokenizer.json, checkpoint.pt
best.pt         the weights of the best evaluation, if that was not the last
"""

import dataclasses
import itertools
import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from shared.checkpoints import (
    all_finite,
    check_tensors,
    checked_progress,
    named_states,
    read_state,
    states_after,
    unlike,
    write_state,
)
from shared.command_line import encode_prompt, pick_device, pick_dtype, processes
from shared.corpora import END_OF_TEXT, Corpus
from shared.curves import draw_loss, event_writer, write_events
from shared.files import UserError, json_sha256, read_json, write_json, write_text
from shared.machine import keep_freed_memory, machine_facts
from shared.model_table import check_memory
from shared.reading import named, read_texts, text_files, whole_documents
from shared.run_folder import give_back, open_folder
from shared.terminal import (
    answered,
    discard,
    ended_by,
    piped_text,
    print_text,
    progress,
    write_nowhere,
)
from shared.tokens import Tokenizer, decode_pieces, encode_documents, token_lengths

QUICK_BYTES = 50_000  # of validation text to score during training; at the end, all of it
LOG_EVERY = 10  # steps between rows of training loss
SLICE = 1 << 20  # tokens to process at a time when all are counted
DRAW_EVERY = 60  # seconds between updates of loss.png during training
SAMPLE_TOKENS = 40  # of the text that is shown at each evaluation
Generate = Callable[[torch.nn.Module, list[int], Any, int], Iterable[int]]  # a version's
Evaluate = Callable[[torch.nn.Module, np.ndarray, Tokenizer, int, int], tuple[float, int]]

# Options that may change when a run is resumed or sampled from (when sampling, also the seed and,
# except with learned positions, the context length); all others define the run.
FREE_OPTIONS = {
    *("data", "out", "steps", "device", "resume", "sample", "prompt", "temperature", "top_k"),
    *("top_p", "max_new_tokens", "checkpoint_every", "compile", "workers", "tensorboard"),
    *("print_model", "init_from", "dtype", "evaluate_every", "score", "best", "text_field"),
}


class Run:
    """A model, the progress of its training, and the folder in which both are saved.

    As a context manager it records the training: the progress bar, metrics.jsonl, and requests to
    stop. Ctrl-C and the signals of `ended_by` only make a checkpoint due, since training cannot
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
        self.out = Path(config.out).resolve()  # the current folder may be renamed, or be a link
        self.metrics, self.checkpoint = self.out / "metrics.jsonl", self.out / "checkpoint.pt"
        self.best = self.out / "best.pt"
        if config.best and self.best.exists():  # else the last evaluation was the best
            self.checkpoint = self.best
        self.device = torch.device(pick_device(config.device))
        keep_freed_memory()
        model.to(self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for matmuls not in bfloat16
        if corpus:
            check_memory(model, optimizers, config, self.device)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.tokens_a_step = config.batch_size * config.context_length
        self.tokens_a_step *= getattr(config, "accumulation_steps", 1)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []  # of the steps since the last row of training loss
        self.unread: list[tuple[float | torch.Tensor, float]] = []  # losses and learning rates
        self.rows: list[dict] = []
        self.scores: dict[str, float] = {}  # the latest ones
        self.best_weights: dict[str, torch.Tensor] = {}  # until they are written to best.pt
        self.signal = 0  # the signal that asked us to stop
        self.place = str(self.device)  # where it trains, as announced
        self.metrics_file = self.events = None  # until they are opened
        self.summary, self.results = {}, ""  # of a run that was finished before, what it says
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
        """Write `state` to checkpoint.pt; after a signal, exit here."""
        self._save(state)
        if stop := self.stop_signal():
            self.bar.close()
            line = f"stopped at step {self.step:,}, saved; --resume --out {self.out} continues"
            print(line, file=sys.stderr)
            sys.exit(128 + stop)

    def _save(self, state: dict[str, Any]) -> None:
        """The previous checkpoint stays until this one is complete and on disk, and for good if the
        weights are no longer finite."""
        self._check_folder()
        if not all_finite(state):
            raise UserError(
                f"the weights are not finite after step {self.step}: lower the learning rates "
                "and start again; the last checkpoint is kept"
            )
        # First, so that a checkpoint's best evaluation has its weights on disk. At the end, too: a
        # kill may come before `finish` knows whether the last evaluation is better.
        if self.best_weights:
            step = {"step": best_row(self.rows[self.kept_from :])["step"]}
            progress = state["progress"] | step
            changed = {"model": self.best_weights, "optimizers": [], "progress": progress}
            write_state(state | changed, self.best)
            self.best_weights = {}
        write_state(state, self.checkpoint)

    @contextmanager
    def read_checkpoint(self) -> Iterator[dict[str, Any]]:
        """The state in checkpoint.pt, for a block that restores the model and optimizers from it;
        after the block, the progress is restored.

        UserError if there is no checkpoint, if it is from another run or damaged, or if restoring
        fails in any way.
        """
        path, other = self.checkpoint, ""
        if "context_length" not in self.identity:
            other = ", or of another --context-length"
        if not path.exists():
            raise UserError(f"{path} is not there: train first, or name the run with --out")
        try:
            saved = read_state(path)
            self._check_identity(saved["run"])
            progress = checked_progress(saved["progress"])
            if wrong := unlike(saved["model"], self.model.state_dict()):
                raise UserError(f"{path} is not a whole checkpoint{other}: {wrong}")
            check_tensors(saved, path)
            if self.optimizers:  # they would take wrong states, and fail at their first step
                ours = named_states(states_after(progress["step"], self.optimizers))
                if wrong := unlike(named_states(saved["optimizers"]), ours):
                    raise UserError(f"{path} is not a whole checkpoint: {wrong}")
            yield saved
            vars(self).update(progress)
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            kind = type(error).__name__
            raise UserError(f"{path} is not a whole checkpoint{other} ({kind})") from None

    def _check_identity(self, saved: dict) -> None:
        """UserError unless `saved` is the identity of this run."""
        for name, value in self.identity.items():
            if name in FREE_OPTIONS or value is None:
                continue
            if not isinstance(saved[name], int | float | str):  # lists may be too long to print
                raise TypeError(name)
            if saved[name] != value:
                theirs, ours = f"{name.replace('_', '-')} {saved[name]}", value
                if name == "corpus":
                    theirs, ours = "another text", f"what {self.config.data} holds now"
                raise UserError(
                    f"{self.checkpoint} is of a run with {theirs}, not {ours}: use the same, or "
                    "start a new run with another --out"
                )

    # -- training --

    def __enter__(self) -> "Run":
        steps = self.config.steps
        if self.step > steps:
            raise UserError(
                f"the run in {self.out} has made {self.step:,} steps: give --steps as many or more"
            )
        if processes() > 1 and not torch.distributed.is_initialized():
            raise UserError(f"{self.version} trains in one process: start it without torchrun")
        self.until_exit = ExitStack()
        if self.is_done() and (results := self._earlier_results()):
            self.summary, self.results = results
            self._announce()
            return self
        self._open_files()
        # Of earlier evaluations no weights are left once the last was the best.
        self.kept_from = 0 if self.best.exists() else len(self.rows)
        stops = signal.SIGINT, *ended_by()
        self.until_exit.enter_context(answered(stops, self._remember))
        self.began = self.step
        self.timed = self.step, self.seconds  # where the last measurement of speed ended
        self._announce()
        bar = progress(total=steps, initial=self.step, unit="step", desc="training")
        self.bar = self.until_exit.enter_context(bar)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.until_exit.close()
        if kind and self.metrics_file:  # else `finish` still needs its lock
            self.metrics_file.close()
            if self.earlier and self.step == 0 and issubclass(kind, Exception):
                give_back(self.out, self.earlier)

    def _open_files(self) -> None:
        """Write the files with which a run begins."""
        self.metrics_file, self.earlier = open_folder(self.out, self.config.resume)
        write_json(self.out / "config.json", dataclasses.asdict(self.config))
        self.tokenizer.save(self.out / "tokenizer.json")
        self.metrics_file.truncate(0)
        self.metrics_file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self.drawn = perf_counter()
        if self.config.tensorboard:
            events = event_writer(self.out / "tensorboard", self.rows)
            self.events = self.until_exit.enter_context(events)

    def _announce(self) -> None:
        config, corpus = self.config, self.corpus
        is_long = corpus.val_bytes > QUICK_BYTES
        quick = f" (until the end, only {QUICK_BYTES:,})" if is_long else ""
        print_text(
            f"{self.version}: {self.parameters:,} parameters, {config.vocab_size:,} tokens in "
            f"the vocabulary, context of {config.context_length:,}, on {self.place}\n"
            f"corpus {corpus.name}: {corpus.train_bytes:,} bytes to train on, "
            f"{corpus.val_bytes:,} to validate{quick}, sha256 {corpus.sha256[:16]}\n"
            f"{config.steps:,} steps of {self.tokens_a_step:,} tokens, into {self.out}"
        )

        if self.is_done():
            print_text(f"this run is finished: with more --steps than {self.step} it goes on")

    def _remember(self, number: int, _: object) -> None:
        # A second Ctrl-C or SIGTERM stops at once. Others come often: the shell sends SIGHUP, too.
        if self.signal and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt(number)
        self.signal = number
        write_nowhere(number)

    def _show(self, show: Callable, *what: object) -> None:
        """Call `show(*what)`, which prints: a lost reader must not interrupt a step half-way."""
        try:
            show(*what)
        except BrokenPipeError:  # the reader, such as `| head`, is gone
            self._remember(getattr(signal, "SIGPIPE", 13), None)  # Windows has none
        except OSError:  # such as a closed terminal's: we are meant to outlive it
            discard(2)

    def _check_folder(self) -> None:
        """UserError if the folder is gone: a new one would hold only part of the run."""
        if not self.metrics.exists():
            raise UserError(f"{self.out} is gone: it was moved or removed during the run")

    def is_done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step == self.config.steps

    def checkpoint_is_due(self) -> bool:
        """Whether to save now: at the end, every `checkpoint_every` steps, or if asked to stop."""
        if self.summary:
            return False
        on_time = self.is_done() or self.step % self.config.checkpoint_every == 0
        due = on_time or self.stop_signal() > 0
        if due:
            self._read_losses()
        return due

    def stop_signal(self) -> int:
        """The signal that asked to stop, or 0."""
        return self.signal

    def evaluation_is_due(self) -> bool:
        """Whether to evaluate now."""
        if self.summary:
            return False
        due = self.is_done() or self.step % self.config.evaluate_every == 0
        if due:
            self._read_losses()
        return due

    def parts_to_score(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Of the validation `tokens` (N,) those of its first QUICK_BYTES bytes, so that curves of
        different tokenizers cover the same text; at the end all of them, too."""
        start = tokens[: 2 * QUICK_BYTES]  # includes special tokens, of no bytes
        ends = token_lengths(self.tokenizer)[start.astype(np.int64)].cumsum(0)
        start = start[: int((ends < QUICK_BYTES).sum()) + 1]
        self.quick_tokens = len(start)
        return [start, tokens] if self.is_done() and len(start) < len(tokens) else [start]

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
        if self.step % LOG_EVERY == 0:
            row = {"step": self.step, "train_loss": sum(self.losses) / len(self.losses)}
            row |= {"learning_rate": learning_rate, "seconds": round(self.seconds, 3)}
            self._append_row(row)
            self.losses = []

    def _read_losses(self) -> None:
        """Read the pending losses."""
        if not self.unread:
            return
        started, first = perf_counter(), self.step - len(self.unread)
        losses, rates = zip(*self.unread)
        losses = self._numbers(torch.stack([torch.as_tensor(x) for x in losses]))
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

    def _numbers(self, losses: torch.Tensor) -> list[float]:
        return losses.tolist()  # waits for the GPU

    def log_scores(self, tokens: np.ndarray, nats: float, n_bytes: int) -> None:
        """Print how well the model predicts `tokens` (N,). If they are the part that is scored all
        along, add a row and keep the best weights; scores of the whole are for summary.json."""
        self.scores = scores_of(tokens, nats, n_bytes, self.tokenizer)
        if not math.isfinite(nats):
            raise UserError(f"the weights are not finite at step {self.step}: lower the rates")
        speed = self.speed(self.step - self.timed[0], self.seconds - self.timed[1])
        self.timed = self.step, self.seconds
        if len(tokens) == self.quick_tokens:
            seconds = round(self.seconds, 3)
            self._append_row({"step": self.step, **self.scores, "seconds": seconds, **speed})
            if best_row(self.rows[self.kept_from :]) is self.rows[-1]:
                weights = self.model.state_dict().items()
                self.best_weights = {name: weight.to("cpu", copy=True) for name, weight in weights}
        trained = [row["train_loss"] for row in self.rows if "train_loss" in row]
        train_loss = f"{trained[-1]:.4f}" if trained else "     -"
        self._show(
            print_text,
            f"step {self.step:>6,} | train loss {train_loss} | {in_words(self.scores)} | "
            f"{self.seconds:5.0f} s"
            + (f" | {speed['tokens_per_second']:,.0f} tokens/s" if speed else "")
            + (f" | MFU {speed['mfu']:.1%}" if "mfu" in speed else "")
            + (" | on all of the text" if len(tokens) > self.quick_tokens else ""),
        )

    def speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Tokens per second of `steps` that took `seconds`, as rows and summary have it."""
        rate = steps * self.tokens_a_step / seconds if seconds else 0
        return {"tokens_per_second": round(rate, 1)} if rate else {}

    def _append_row(self, row: dict) -> None:
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
        try:
            draw_loss(self.rows, self.out / "loss.png", f"{self.version}: {title}")
        except Exception as error:  # nothing drawn may cost anything computed
            self._show(print_text, f"loss.png cannot be drawn: {error}")

    # -- writing text --

    def write(self, generate: Generate, tokens: int = 0) -> Iterator[str]:
        """The prompt and its continuation by the version's `generate`, piece by piece; of `tokens`,
        or else of --max-new-tokens."""
        end = self.tokenizer.special_tokens[END_OF_TEXT]
        prompt = encode_prompt(self.tokenizer, self.config.prompt)
        config = dataclasses.replace(
            self.config, max_new_tokens=tokens or self.config.max_new_tokens
        )
        new = generate(self.model, [end, *prompt], config, end)
        return decode_pieces(self.tokenizer, itertools.chain(prompt, new))

    def log_sample(self, generate: Generate) -> None:
        """Record and print the start of a text; at the end, `finish` does so with a longer one."""
        if self.is_done():
            return
        sample = "".join(self.write(generate, min(SAMPLE_TOKENS, self.config.max_new_tokens)))
        self._append_row({"step": self.step, "sample": sample})
        self._write_samples()
        self._show(print_text, f"    {' '.join(sample.split())}")

    def _write_samples(self) -> None:
        samples = (
            f"---- step {r['step']:,} ----\n{r['sample']}\n" for r in self.rows if "sample" in r
        )
        write_text(self.out / "samples.txt", "\n".join(samples))

    def answer(self, generate: Generate) -> None:
        """Print a continuation of --prompt or, without one, of each line typed on a terminal or of
        all that is piped to us.

        Each answer has its own seed, so that the same line typed again gives another text.
        """
        if self.config.prompt or sys.stdin is None or not sys.stdin.isatty():
            prompt = self.config.prompt or piped_text()
            self.config = dataclasses.replace(self.config, prompt=prompt)
            self._print_pieces(generate)
            return
        print_text("Type the start of a text, then Enter (Enter alone: a new text); Ctrl-D quits.")
        for seed in itertools.count(self.config.seed):
            try:
                self.config = dataclasses.replace(self.config, prompt=input("> "), seed=seed)
                self._print_pieces(generate)
            except EOFError:
                print_text("")
                return
            except UnicodeDecodeError:
                print_text("error: that is not text in the terminal's encoding")
            except UserError as error:
                print_text(f"error: {error}")

    def _print_pieces(self, generate: Generate) -> None:
        for piece in self.write(generate):
            print_text(piece, end="")
        print_text("")

    # -- scoring --

    def score(self, evaluate: Evaluate) -> None:
        """Print how well the model predicts the text in --score, by the version's `evaluate`: the
        number at the end of training, if it is the validation text."""
        config = self.config
        if not (files := text_files(named(config.score))):
            raise UserError(f"--score {config.score}: no text of that name")
        documents = whole_documents(read_texts(files, config.text_field))
        tokens = encode_documents(documents, self.tokenizer)
        of_text = evaluate(
            self.model, tokens, self.tokenizer, config.context_length, config.batch_size
        )
        scores = scores_of(tokens, *of_text, self.tokenizer)
        print_text(
            f"{self.version}, step {self.step:,}, on {config.score}: {in_words(scores)} | "
            f"{scores['scored_bytes']:,} bytes scored"
        )

    # -- the end --

    def finish(self, generate: Generate, corpus_tokens: int) -> dict:
        """Write summary.json, samples.txt and loss.png, print the results, and return the summary.

        `corpus_tokens`, the length of the training text, converts tokens seen to bytes seen. A run
        that was finished before only prints them again.
        """
        if self.summary:
            print_text(self.results)
            return self.summary
        sample, best = "".join(self.write(generate)), best_row(self.rows[self.kept_from :])
        self._check_folder()
        self._append_row({"step": self.step, "sample": sample})
        self._write_samples()
        if best["step"] == self.step:
            self.best.unlink(missing_ok=True)
        summary = self._summary(corpus_tokens)
        self._draw(f"{summary['bits_per_byte']:.3f} bits per byte of all validation text")
        write_json(self.out / "summary.json", summary)  # last: it marks the run as finished
        self.metrics_file.close()
        print_text(self._results(summary, self.rows))
        return summary

    def _results(self, summary: dict, rows: list[dict]) -> str:
        """What a finished run says of its `summary`, and of its `rows`, which end with a sample."""
        *_, best = (r for r in rows if "bits_per_byte" in r and r["step"] == summary["best_step"])
        left_out = summary["corpus"]["val_bytes"] - summary["scored_bytes"]
        unknown = f"{left_out:,} bytes of validation text are unknown characters and not scored\n"
        told = f"step {best['step']:,}, {best['bits_per_byte']:.4f} bits per byte: see --best"
        bits = summary["bits_per_byte"]
        return (
            f"{unknown if left_out else ''}---- a sample ----\n{rows[-1]['sample']}\n"
            f"------------------\n{self.version} on {self.corpus.name}, {self.step:,} steps in "
            f"{summary['seconds']:.0f} s: loss {summary['val_loss']:.4f} nats per token, "
            f"perplexity {summary['perplexity']:.2f}, {bits:.4f} bits per byte\n"
            f"training text read {summary['times_read']:.1f} times; best evaluation: "
            + ("the last" if best["step"] == self.step else told)
        )

    def _earlier_results(self) -> tuple[dict, str] | None:
        """The summary with which this run was finished and what it said, if both are still there
        and of the same run as the checkpoint."""
        try:
            rows = [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]
            summary = read_json(self.out / "summary.json")
            ours = summary["steps"] == rows[-1]["step"] == self.step
            ours &= rows[: len(self.rows)] == self.rows
            return (summary, self._results(summary, rows)) if ours else None
        except (OSError, ValueError, LookupError, TypeError, UserError):
            return None

    def _summary(self, corpus_tokens: int) -> dict:
        config, corpus, tokens = self.config, self.corpus, self.step * self.tokens_a_step
        of_corpus = "name", "sha256", "train_bytes", "val_bytes"
        return {
            "version": self.version,
            "corpus": {name: getattr(corpus, name) for name in of_corpus},
            "vocab_size": config.vocab_size,
            "parameters": self.parameters,
            "context_length": config.context_length,
            "batch_size": config.batch_size,
            "steps": self.step,
            "train_tokens": tokens,
            "train_bytes": round(tokens * corpus.train_bytes / corpus_tokens),
            "times_read": round(tokens / corpus_tokens, 2),
            "best_step": best_row(self.rows[self.kept_from :])["step"],
            "seconds": round(self.seconds, 3),
            "tokens_per_second": None,
            **self.speed(self.step, self.seconds),
            **self.scores,
            "device": str(self.device),
            "dtype": pick_dtype(getattr(config, "dtype", "float32"), self.device),
            "seed": config.seed,
            **machine_facts(),
        }


def scores_of(
    tokens: np.ndarray, nats: float, n_bytes: int, tokenizer: Tokenizer
) -> dict[str, float]:
    """How well `tokens` (N,) are predicted, with `nats` in all: loss and perplexity are per token,
    bits per byte can be compared across tokenizers. UserError if no token counts."""
    if n_bytes == 0:
        raise UserError("the text to score holds no character that the training text has")
    lengths = token_lengths(tokenizer)
    parts = (tokens[i : i + SLICE].astype(np.int64) for i in range(1, len(tokens), SLICE))
    loss = nats / sum((lengths[part] > 0).sum().item() for part in parts)
    return {
        "val_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "scored_bytes": n_bytes,
    }


def in_words(scores: dict[str, float]) -> str:
    loss, perplexity, bits = (scores[n] for n in ("val_loss", "perplexity", "bits_per_byte"))
    return f"val loss {loss:.4f} | perplexity {perplexity:8.2f} | bits per byte {bits:.4f}"


def best_row(rows: list[dict]) -> dict:
    """The row of the best evaluation."""
    scored = (row for row in rows if "bits_per_byte" in row)
    return min(scored, key=lambda row: row["bits_per_byte"])
