"""v4's command line: that of all versions (shared/command_line.py), for several processes, which
speak with one voice, and with options that name what others made: --tokenizer and --init-from.

Both options are refused before any work is done if they name nothing that v4 can begin with.
"""

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from shared import command_line
from shared.command_line import (  # noqa: F401 - v4 uses them as they are
    check_config,
    given_tokenizer,
    pick_device,
    pick_dtype,
    whole_path,
)
from shared.files import UserError
from shared.terminal import ended_by
from shared.token_files import is_token_data
from v4_modern.model_files import check_bytes, read_sizes
from v4_modern.parallel import is_first, processes

ConfigType = TypeVar("ConfigType")  # v4's Config
LOST = "another process of this run ended or is unreachable: --resume continues from the checkpoint"


# ---- one voice ----


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report errors in one line, as in the other versions; of several processes, only the first
    prints anything else. The exit status is 1 if another process of the run was lost."""
    with command_line.clear_errors():
        if not is_first():  # the others have nothing to clean up
            for number in (signal.SIGINT, *ended_by()):
                signal.signal(number, signal.SIG_DFL)
        try:
            with one_voice():
                yield
        except Exception as error:
            if command_line.line_and_status(error)[0] or not is_of_a_lost_process(error):
                raise
            reason, _, _ = str(error).partition("\n")
            command_line.tell_error(f"error: {LOST} ({reason})")
            sys.exit(1)


@contextmanager
def one_voice() -> Iterator[None]:
    """Show only the first process's output and progress bars. Processes that end normally leave the
    group cleanly."""
    try:
        if is_first():
            yield
        else:
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                with redirect_stdout(nowhere), redirect_stderr(nowhere):
                    yield
    except SystemExit:
        _leave()
        raise
    _leave()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether `error` was caused by the end of another process."""
    if processes() == 1:
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


# ---- options ----


def parse(config_class: type[ConfigType], arguments: Sequence[str] | None) -> ConfigType:
    """The config that `arguments` ask for: as in the other versions, and --init-from brings the
    model's sizes and its tokenizer, --tokenizer its vocabulary size."""
    config = command_line.parse(config_class, arguments)
    if config.resume or config.sample or config.score:
        return _as_it_began(config)
    if config.init_from:
        config = _with_model(config, arguments)
    elif config.tokenizer:
        config = _with_tokenizer(config, arguments)
    elif config.split == "own":
        raise UserError("--split own is a given tokenizer's: name it, or another split")
    if is_token_data(config.data) and not config.tokenizer:
        raise UserError(f"--data {config.data} holds ids: name the --tokenizer that made them")
    if config.tokenizer and not (config.print_model or Path(config.tokenizer).exists()):
        raise UserError(f"{config.tokenizer} is not there")
    return config


def _as_it_began(config: ConfigType) -> ConfigType:
    """`config`, of a run that goes on; UserError if it began with another model or tokenizer."""
    kept = command_line.load_config(type(config), config.out)
    for name in ("init_from", "tokenizer"):
        ours, theirs = getattr(config, name), getattr(kept, name)
        if ours != theirs and whole_path(ours) != theirs:
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} {ours}: the run in {kept.out} began with {theirs or 'its own'}"
            )
    return dataclasses.replace(config, init_from=kept.init_from, tokenizer=kept.tokenizer)


def _with_model(config: ConfigType, arguments: Sequence[str] | None) -> ConfigType:
    """`config` with the sizes of the model in --init-from, and that model's tokenizer."""
    folder = whole_path(config.init_from)
    sizes = read_sizes(folder)
    # The arguments again, now on top of the model's sizes: which of them were given shows only so.
    config = command_line.parse(type(config), arguments, type(config)(**sizes, split="own"))
    if whole_path(config.out) == folder:
        raise UserError(f"--out {config.out} is the folder of --init-from: name another one")
    for name in sizes.keys() - {"context_length"}:  # the only one that may differ
        if getattr(config, name) != sizes[name]:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(config, name)}: the model has {sizes[name]}")
    if config.tokenizer:
        raise UserError("--tokenizer: the model of --init-from has its own")
    need_own_split(config)
    if not config.print_model:
        check_bytes(folder, sizes)
    tokenizer = whole_path(f"{folder}/tokenizer.json")
    return dataclasses.replace(config, init_from=folder, tokenizer=tokenizer)


def need_own_split(config: object) -> None:
    """UserError if `config` asks for another split than that of a given tokenizer."""
    if config.split != "own":
        raise UserError("--split is for training a tokenizer: a given one has its own")


def _with_tokenizer(config: ConfigType, arguments: Sequence[str] | None) -> ConfigType:
    """`config` with no size for the tokenizer, which has its own."""
    own = type(config)(vocab_size=0, split="own")
    config = command_line.parse(type(config), arguments, own)
    if config.vocab_size:
        raise UserError("--vocab-size is for training a tokenizer: omit it or --tokenizer")
    need_own_split(config)
    return dataclasses.replace(config, tokenizer=whole_path(config.tokenizer))
