"""What other engines make of an exported v4: their ids and their greedy text beside its own.

    python benchmarks/engines.py                        of a v4 that is trained for this, briefly
    python benchmarks/engines.py --run runs/v4_modern   of a run of your own

Each engine that this Python can import is asked in a process of its own; the others are named.
Some exclude each other: give them environments of their own, each with requirements.txt and
safetensors, and run this with one Python after the other. Each run replaces the rows of the engines
that it asked, as long as the model is the same. Table and results.json go to
benchmarks/results/engines/; `--readme` asks nothing and writes v4_modern/README.md, too.
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Without this folder, for `tokenizers` is the name of a package, too.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]
import torch

from benchmarks import common
from benchmarks.command import publish
from benchmarks.common import check_name, markdown, on_machine, open_run, train
from shared.command_line import clear_errors, parse_options
from shared.corpora import END_OF_TEXT, load_corpus, read_documents
from shared.files import ROOT, UserError, file_sha256, read_json, write_json, write_text
from shared.machine import machine_facts
from shared.terminal import print_text

TOUR = ROOT / "v4_modern" / "README.md"
RUNS = ROOT / "runs" / "engines"
STEPS = 100  # of the model that is trained for this
TOKENS = 100  # of each greedy text
PATIENCE = 900  # seconds for an engine
PROMPTS = ("Return the", "This module", "If the file", "A list of", "class Node:\n    def ")
PROMPTS += (">>> import ", "The following", "New in version 3", "def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--ask"]:
        answer_here(*arguments[1:])
        return
    with clear_errors():
        options = parse_options(Options, arguments)
        folder = common.RESULTS / options.name
        results = read_json(folder / "results.json") if options.readme else compare(options)
        if options.readme:
            tour = TOUR.read_text(encoding="utf-8")
            write_text(TOUR, common.readme_with(tour, options.name, report(results)))
        publish(folder, report(results), {}, options.readme)


if __name__ == "__main__":
    main()
