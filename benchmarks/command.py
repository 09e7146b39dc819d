"""What the command of a benchmark does, whatever it measures."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.pictures import Figure, save
from benchmarks.records import read_results, write_results
from shared.command_line import clear_errors, parse_options
from shared.files import UserError, write_text
from shared.terminal import print_text

Shown = tuple[str, dict[str, Figure]]  # a report, and pictures by file name


def run_benchmark(
    options_class: type,
    arguments: list[str] | None,
    measure: Callable[[Any], dict],
    show: Callable[[dict], Shown],
) -> None:
    """Parse the command line, `measure` with these options, and publish what `show` makes of the
    results. All goes to the folder `--name` in RESULTS. With `--readme`, nothing is measured:
    `show` is given what results.json holds.
    """
    with clear_errors():
        options = parse_options(options_class, arguments)
        folder = common.RESULTS / options.name
        if not options.readme:
            write_results(folder / "results.json", measure(options))
        publish(folder, *show(read_results(folder / "results.json")), options.readme)


def publish(folder: Path, text: str, figures: dict[str, Figure], readme: bool = False) -> None:
    """Print the `text` of a benchmark, and write it as table.md, with its pictures (by file name),
    to its results folder; with `readme`, also do what `write_readme` does."""
    write_text(folder / "table.md", text + "\n")
    for name, figure in figures.items():
        save(figure, folder / name)
    if readme:
        common.write_readme(folder.name, text)
    print_text(text)


def in_new_process(function: Callable[..., dict], *arguments: object) -> dict:
    """What `function` returns in a process of its own, whose memory holds nothing of this one's."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError(f"{function.__name__} was killed: out of memory?") from error
