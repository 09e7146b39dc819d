"""v4's options that name what others made: --tokenizer and --init-from.

Both are told before any work is done if they name nothing that v4 can begin with.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from shared import command_line
from shared.command_line import whole_path
from shared.files import UserError, read_json
from v4_modern.model_files import read_sizes

ConfigType = TypeVar("ConfigType")  # v4's Config


def parse(config_class: type[ConfigType], arguments: Sequence[str] | None) -> ConfigType:
    """The config that `arguments` ask for: as in the other versions, and --init-from brings the
    model's sizes and its tokenizer, --tokenizer its vocabulary size."""
    config = command_line.parse(config_class, arguments)
    if config.resume or config.sample:
        return _as_it_began(config)
    if config.init_from:
        config = _with_model(config, arguments)
    elif config.tokenizer:
        config = _with_tokenizer(config, arguments)
    if config.tokenizer:
        read_json(config.tokenizer)
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
    config = command_line.parse(type(config), arguments, type(config)(**sizes))
    if whole_path(config.out) == folder:
        raise UserError(f"--out {config.out} is the folder of --init-from: name another one")
    for name in sizes.keys() - {"context_length"}:  # the only one that may differ
        if getattr(config, name) != sizes[name]:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(config, name)}: the model has {sizes[name]}")
    if config.tokenizer:
        raise UserError("--tokenizer: the model of --init-from has its own")
    tokenizer = whole_path(f"{folder}/tokenizer.json")
    return dataclasses.replace(config, init_from=folder, tokenizer=tokenizer)


def _with_tokenizer(config: ConfigType, arguments: Sequence[str] | None) -> ConfigType:
    """`config` with no size for the tokenizer, which has its own."""
    config = command_line.parse(type(config), arguments, type(config)(vocab_size=0))
    if config.vocab_size:
        raise UserError("--vocab-size is for training a tokenizer: omit it or --tokenizer")
    return dataclasses.replace(config, tokenizer=whole_path(config.tokenizer))
