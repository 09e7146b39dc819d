"""What a model and a step of its training take, told before any of it is allocated.

The model is built and run forward and backward, and its optimizers take a step, all with tensors
that have a shape and no data.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from shared.command_line import pick_dtype, print_text
from shared.files import UserError

PART = re.compile(r"(\w+)(?:\.\d+(\.\w+))?")  # of a module's name; blocks are taken together

# Dense bfloat16 TFLOP/s with sums in float32, as NVIDIA's data sheets and (GeForce) whitepapers of
# GA102 and AD102 tell them; where those tell them for sparse matrices, half. By the exact name, for
# a part of a GPU, or one for laptops, has another. GPUs before 2020 have no bfloat16.
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


@dataclass
class ModelSize:
    """Parts are named after the model's modules: "head", or "blocks.attention" of all blocks."""

    parameters: dict[str, int]  # of each part
    flops: dict[str, int]  # of each part's matrix products, for a token, forward
    forward_flops: int  # of all parts
    training_flops: int  # the same, forward and backward
    weights: int  # bytes, as what follows
    gradients: int
    optimizer_state: int
    activations: int  # what forward and loss keep for the backward pass of a batch

    @property
    def memory(self) -> int:
        """Bytes of all that is kept in a step."""
        return self.weights + self.gradients + self.optimizer_state + self.activations


def measure(config: Any, model_class: Callable, make_optimizers: Callable) -> ModelSize:  # noqa: ANN401
    """The size of the model that `config` asks for, and of its training in float32 on a CPU."""
    with torch.device("meta"):
        model = model_class(config).train()
        ids = torch.zeros(config.batch_size, config.context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(ids)
        training = training_flops(model, ids)
        optimizers = make_optimizers(model, config)
        for optimizer in optimizers:
            optimizer.step()
    with FakeTensorMode():  # on meta, attention would not run as it does on a device
        activations = kept_for_backward(model_class(config).train(), ids.shape)
    parameters, flops = Counter(), Counter()
    for name, parameter in model.named_parameters():
        parameters[part(name)] += parameter.numel()
    for name, counts in forward.get_flop_counts().items():
        name = name.partition(".")[2]  # the model's own comes first
        if PART.fullmatch(name):
            flops[part(name)] += sum(counts.values()) // ids.numel()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return ModelSize(
        dict(parameters),
        dict(flops),
        forward.get_total_flops() // ids.numel(),
        training,
        sum(parameter.nbytes for parameter in model.parameters()),
        sum(parameter.grad.nbytes for parameter in model.parameters()),
        sum(x.nbytes for state in states for x in state.values() if isinstance(x, Tensor)),
        activations,
    )


def part(name: str) -> str:
    """The part to which the module or parameter called `name` belongs."""
    return "".join(filter(None, PART.match(name).groups()))


def training_flops(model: nn.Module, ids: Tensor) -> int:
    """FLOPs of the matrix products for each of the `ids` (B, T), forward and backward."""
    with FlopCounterMode(display=False) as training:
        loss_of(model, ids).backward()
    return training.get_total_flops() // ids.numel()


def share_of_peak(model: nn.Module, config: Any, device: torch.device) -> float | None:  # noqa: ANN401
    """What share of the FLOPs that `device` is made for a token a second takes; None if unknown, or
    if products are not in bfloat16.

    Times tokens a second, it is the model FLOPs utilization of Chowdhery et al. 2022, appendix B,
    in which attention counts over the whole context.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    dtype = pick_dtype(getattr(config, "dtype", "float32"), device)
    if name not in BFLOAT16_PEAK or dtype != "bfloat16":
        return None
    with torch.device("meta"):
        alike = type(model)(config).train()
        ids = torch.zeros(1, config.context_length, dtype=torch.long)
        return training_flops(alike, ids) / (BFLOAT16_PEAK[name] * 1e12)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


def kept_for_backward(model: nn.Module, shape: tuple[int, int]) -> int:
    """The bytes of all that forward and loss keep for ids of `shape` (B, T), weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}  # the memory of a tensor may be kept as several views

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory._cdata not in weights:
            kept[memory._cdata] = memory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model, torch.zeros(shape, dtype=torch.long))
    return sum(memory.nbytes() for memory in kept.values())


def print_model(
    config: Any,  # noqa: ANN401
    load_data: Callable,
    model_class: Callable,
    make_optimizers: Callable,
) -> None:
    """Print the tables of --print-model; the text is read only by a version that needs it to know
    the size of its vocabulary."""
    if not config.vocab_size:
        config = replace(config, vocab_size=load_data(config)[0].vocab_size)
    try:
        size = measure(config, model_class, make_optimizers)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError("such a model or batch is larger than a computer can address") from None
    print_text(f"{'':28}{'parameters':>15}{'FLOPs a token':>18}")
    for name, count in size.parameters.items():
        print_text(f"{name:28}{count:15,}{size.flops.get(name, 0):18,}")
    print_text(f"{'all':28}{sum(size.parameters.values()):15,}{size.forward_flops:18,}")
    print_text(f"{'all, forward and backward':28}{'':15}{size.training_flops:18,}")
    batch = f"{config.batch_size:,} x {config.context_length:,} tokens"
    memory = {
        "weights": size.weights,
        "gradients": size.gradients,
        "optimizer state": size.optimizer_state,
        f"activations of {batch}": size.activations,
        "in all": size.memory,
    }
    print_text(f"\n{'memory of a step, in float32':43}{'MB':>18}")
    for name, n_bytes in memory.items():
        print_text(f"{name:43}{n_bytes / 1e6:18,.2f}")
