"""Programs in processes that have imported torch already, which takes longer than what tests run in
them. They are forked from a server that has nothing else in it, so nothing of the tests is in them.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path

import torch

# A process that starts asks how all others ended, so two threads may read the one answer that there
# is: the second finds nothing, and takes that for status 255.
ASKING = threading.Lock()


def run(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Run the Python file that the `arguments` begin with, as `python` would, into `output`."""
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))  # it was read at the import
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


class Popen:
    """The part of subprocess.Popen that the benchmarks use."""

    def __init__(self, command, env, stdout, stderr):
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["pytest", "torch", "tyro", "regex", "matplotlib.pyplot"])
        self.process = server.Process(target=run, args=(command[1:], env, stdout.name))
        with ASKING:
            self.process.start()

    @property
    def returncode(self):
        with ASKING:
            return self.process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        wait([self.process.sentinel], timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("run", timeout)

    def kill(self):
        self.process.kill()


if "forkserver" not in multiprocessing.get_all_start_methods():  # on Windows
    Popen = subprocess.Popen
