"""What a model and a training step cost in FLOPs and memory, before any of it is allocated.

The model is built and run forward and backward, and its optimizers take a step, all with tensors
that have shapes but no data.
"""

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from shared.command_line import pick_dtype, processes
from shared.files import UserError
from shared.machine import free_memory
from shared.terminal import print_text

OVERHEAD = 1.15  # of a step's memory as measured: gaps in the heap, what kernels need for a moment
PART = re.compile(r"(\w+)(?:\.\d+(\.\w+))?")  # of a module's name; all blocks are one part


@dataclass
class ModelSize:
    """Parts are named after modules: "head", or "blocks.attention" for that of all blocks."""

    parameters: dict[str, int]  # of each part
    flops: dict[str, int]  # of each part's matrix products, per token, forward
    training_flops: int  # of all parts, forward and backward
    weights: int  # in bytes, like the fields below
    gradients: int
    optimizer_state: int
    activations: int  # what forward pass and loss save for a batch's backward pass

    @property
    def memory(self) -> int:
        """Total bytes held during a step."""
        return self.weights + self.gradients + self.optimizer_state + self.activations


def measure(config: Any, model_class: Callable, make_optimizers: Callable) -> ModelSize:  # noqa: ANN401
    """The size of the model that `config` describes, and of its training in float32 on a CPU."""
    with torch.device("meta"):
        model = model_class(config).train()
        ids = torch.zeros(config.batch_size, config.context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(ids)
        training = training_flops(model, ids)
        optimizers = make_optimizers(model, config)
        for optimizer in optimizers:
            optimizer.step()
    with FakeTensorMode():  # on meta, attention takes another path than on a device
        activations = kept_for_backward(model_class(config).train(), ids.shape)
    every, flops = model.named_parameters(remove_duplicate=False), Counter()
    parameters = Counter({part(name): 0 for name, _ in every})  # a part may have another's weights
    for name, parameter in model.named_parameters():
        parameters[part(name)] += parameter.numel()
    for name, counts in forward.get_flop_counts().items():
        name = name.partition(".")[2]  # without the model's own name
        if PART.fullmatch(name):
            flops[part(name)] += sum(counts.values()) // ids.numel()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return ModelSize(
        dict(parameters),
        dict(flops),
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
    """FLOPs per token of the matrix products for `ids` (B, T), forward and backward."""
    with FlopCounterMode(display=False) as training:
        model(ids, targets=ids).backward()  # any targets take as many
    return training.get_total_flops() // ids.numel()


def kept_for_backward(model: nn.Module, shape: tuple[int, int]) -> int:
    """Bytes that forward pass and loss save for ids of `shape` (B, T), not counting weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}  # several saved tensors may be views of the same memory

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory._cdata not in weights:
            kept[memory._cdata] = memory
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(shape, dtype=torch.long)
        model(ids, targets=ids)
    return sum(memory.nbytes() for memory in kept.values())


class MemoryInUse(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on, and are still there."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = {id(tensor.untyped_storage()) for tensor in before}
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: Sequence, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:  # noqa: ANN401
        made = function(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                memory = tensor.untyped_storage()
                if id(memory) not in self.alive:  # else it is a view, or changed in place
                    self.alive.add(id(memory))
                    self.bytes += memory.nbytes()
                    weakref.finalize(memory, self.freed, id(memory), memory.nbytes())
        self.peak = max(self.peak, self.bytes)
        return made

    def freed(self, number: int, n_bytes: int) -> None:
        self.alive.discard(number)
        self.bytes -= n_bytes


def peak_of_a_step(config: Any, model_class: Callable, make_optimizers: Callable) -> int:  # noqa: ANN401
    """The most bytes that the first step of training on a CPU holds at a time besides the weights:
    what forward and backward pass and optimizers keep, and what they pass on."""
    with FakeTensorMode():
        model = model_class(config).train()
        optimizers = make_optimizers(model, config)
        with MemoryInUse([*model.parameters(), *model.buffers()]) as memory:
            ids = torch.zeros(config.batch_size, config.context_length, dtype=torch.long)
            model(ids, targets=ids).backward()
            for optimizer in optimizers:
                optimizer.step()
    return round(OVERHEAD * memory.peak)


class WithoutWeights(TorchFunctionMode):
    """While it is on, weights have shapes but no numbers. Not `torch.device("meta")`, on which some
    functions that compute other tensors import torch's compiler, which takes a second."""

    def __torch_function__(
        self, function: Callable, types: Sequence, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:  # noqa: ANN401
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor")
        on_meta = {"device": "meta"} if function in (torch.empty, torch.ones) else {}
        return function(*args, **(kwargs or {}) | on_meta)


def build(model_class: Callable[[Any], nn.Module], config: Any) -> nn.Module:  # noqa: ANN401
    """`model_class(config)`; UserError if its weights take more memory than is free, since a config
    may come from anybody."""
    free = free_memory(torch.device("cpu"))
    with addressable(), WithoutWeights():
        weights = sum(parameter.nbytes for parameter in model_class(config).parameters())
    if free is not None and weights > free:
        raise UserError(
            f"the model's weights take {weights / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are "
            "free: choose a smaller model"
        )
    return model_class(config)


@contextmanager
def addressable() -> Iterator[None]:
    """UserError instead of torch's error for a tensor whose bytes no 64-bit number can count."""
    try:
        yield
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError("such a model or batch is larger than a computer can address") from None


def check_memory(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    config: Any,  # noqa: ANN401
    device: torch.device,
) -> None:
    """UserError if the first step of training takes more memory than is free.

    On a CPU, that is about what it takes. On a GPU, which has other kernels, only what it keeps is
    counted: half of it or more.
    """
    free, weights = free_memory(device), sum(parameter.nbytes for parameter in model.parameters())
    windows = max(1, config.batch_size // processes())
    if free is None or weights * windows * config.context_length < free:
        return  # of each token, models keep fewer numbers than they have weights

    def alike(twin: nn.Module, _: object) -> list[torch.optim.Optimizer]:
        pairs = zip(model.parameters(), twin.parameters())
        return deepcopy(optimizers, {id(ours): theirs for ours, theirs in pairs})

    in_16_bits = pick_dtype(getattr(config, "dtype", "float32"), device) == "bfloat16"
    with torch.random.fork_rng([]), torch.autocast("cpu", torch.bfloat16, enabled=in_16_bits):
        config = replace(config, batch_size=windows)
        if device.type == "cpu":
            needed = peak_of_a_step(config, type(model), alike)
        else:
            needed = measure(config, type(model), alike).memory - weights
    if needed > free:
        raise UserError(
            f"a step needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: "
            "lower --batch-size or --context-length, or choose a smaller model"
        )


def print_model(
    config: Any,  # noqa: ANN401
    load_data: Callable,
    model_class: Callable,
    make_optimizers: Callable,
) -> None:
    """Print the tables of --print-model. Only a version whose vocabulary size depends on the text
    reads the text."""
    if not config.vocab_size:
        config = replace(config, vocab_size=load_data(config)[0].vocab_size)
    with addressable():
        size = measure(config, model_class, make_optimizers)
    print_text(f"{'':28}{'parameters':>15}{'FLOPs a token':>18}")
    for name, count in size.parameters.items():
        print_text(f"{name:28}{count:15,}{size.flops.get(name, 0):18,}")
    print_text(f"{'all':28}{sum(size.parameters.values()):15,}{sum(size.flops.values()):18,}")
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
