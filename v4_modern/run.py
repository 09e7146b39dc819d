"""What a run of v4 can do besides what every run does (shared/run.py): train in several processes,
say whether compiling pays off, and say how much of a GPU's peak it reaches."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from shared import run
from shared.command_line import pick_dtype
from shared.model_table import training_flops
from shared.run import LOG_EVERY
from shared.terminal import print_text
from v4_modern import parallel

# Peak dense bfloat16 TFLOP/s with float32 accumulation, from NVIDIA's data sheets and (GeForce) the
# GA102 and AD102 whitepapers; where those are for sparse matrices, half. Names must match exactly:
# a partitioned or laptop GPU has another peak. GPUs before 2020 have no bfloat16.
BFLOAT16_PEAK = {
    "NVIDIA H200": 989.5,
    "NVIDIA H100 80GB HBM3": 989.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA A10": 125,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71,
}


class Run(run.Run):
    """A run whose steps may be compiled, whose speed is also told as a share of the GPU's peak, and
    whose `replica` of the model averages gradients over all processes. Its config may lack v4's
    options: then there is nothing to time.

    All processes call the same methods, in the same order. The first alone writes and evaluates;
    meanwhile the others wait.
    """

    def __enter__(self) -> "Run":
        if parallel.processes() > 1:
            self.place += f", {parallel.processes()} processes"
        self.replica = parallel.replica(self.model)
        self.share_of_peak = share_of_peak(self.model, self.config, self.device)
        self.clock: list[float] = []  # seconds, to measure whether compiling pays off
        return super().__enter__()

    # -- several processes --

    def _open_files(self) -> None:
        if parallel.is_first():
            super()._open_files()
        parallel.wait()

    def _save(self, state: dict[str, Any]) -> None:
        if parallel.is_first():
            super()._save(state)

    def _append_row(self, row: dict) -> None:
        if parallel.is_first():
            super()._append_row(row)

    def _numbers(self, losses: torch.Tensor) -> list[float]:
        """Averaged over all processes."""
        return parallel.mean(super()._numbers(losses))

    def stop_signal(self) -> int:
        """The highest signal of any process, so that all stop at the same step."""
        started = perf_counter()
        highest = parallel.highest(self.signal)
        self.seconds += perf_counter() - started  # spent waiting for the other processes
        return highest

    def evaluation_is_due(self) -> bool:
        """Whether to evaluate now; the others wait until the first has the scores."""
        due = super().evaluation_is_due()
        if due and not parallel.is_first():
            parallel.wait()
        return due and parallel.is_first()

    def log_sample(self, generate: run.Generate) -> None:
        """Record and print the start of a text, then let the others go on."""
        super().log_sample(generate)
        parallel.wait()

    def finish(self, generate: run.Generate, corpus_tokens: int) -> dict:
        """What every run writes and prints at its end; the others wait for it and return {}."""
        summary = super().finish(generate, corpus_tokens) if parallel.is_first() else {}
        parallel.wait()
        return summary

    def _summary(self, corpus_tokens: int) -> dict:
        return super()._summary(corpus_tokens) | {"processes": parallel.processes()}

    # -- compiling, and speed --

    def log_step(self, loss: torch.Tensor, learning_rate: float, seconds: float) -> None:
        """Count a step, as every run does, and time it if the model is to be compiled."""
        super().log_step(loss, learning_rate, seconds)
        if getattr(self.config, "compile", False):
            self._time_compiled_steps()

    def compile_is_due(self) -> bool:
        """Whether to compile the model now: after enough steps to time them uncompiled."""
        compiles = getattr(self.config, "compile", False)
        return compiles and self.step - self.began == 2 * LOG_EVERY

    def _time_compiled_steps(self) -> None:
        """Read the clock four times, every LOG_EVERY steps: the first interval is uncompiled, the
        second includes compiling, the third is compiled. Then print whether that pays off."""
        if (self.step - self.began) % LOG_EVERY or len(self.clock) == 4:
            return
        self._read_losses()  # waits for the GPU
        self.clock.append(self.seconds)
        if len(self.clock) == 4 and parallel.is_first():
            before, compiling, after = np.diff(self.clock) / LOG_EVERY  # seconds a step
            saved, lost = before - after, LOG_EVERY * (compiling - after)
            pays = f"pays after {lost / saved:,.0f} steps" if saved > 0 else "does not pay"
            self._show(
                print_text,
                f"compiled in {lost:.0f} s; a step takes {1000 * after:.1f} ms instead of "
                f"{1000 * before:.1f} ms: {pays}",
            )

    def speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Tokens per second and, if the GPU's peak is known, the fraction of all GPUs' peak that
        this takes (MFU)."""
        speed = super().speed(steps, seconds)
        if speed and self.share_of_peak:
            tokens_per_second = steps * self.tokens_a_step / seconds
            share = tokens_per_second * self.share_of_peak / parallel.processes()
            speed["mfu"] = round(share, 4)
        return speed


def share_of_peak(model: nn.Module, config: Any, device: torch.device) -> float | None:  # noqa: ANN401
    """The fraction of the peak FLOP/s of `device` that one token per second takes; None if the peak
    is unknown, or if products are not in bfloat16.

    Times tokens per second, this is the model FLOPs utilization (MFU) of Chowdhery et al. 2022,
    appendix B, in which attention counts over the whole context.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    dtype = pick_dtype(getattr(config, "dtype", "float32"), device)
    if name not in BFLOAT16_PEAK or dtype != "bfloat16":
        return None
    with torch.device("meta"):
        alike = type(model)(config).train()
        ids = torch.zeros(1, config.context_length, dtype=torch.long)
        return training_flops(alike, ids) / (BFLOAT16_PEAK[name] * 1e12)
