"""Programs in processes that have imported torch already, which takes longer than what tests run in
them. They are forked from a server that has nothing else in it, so nothing of the tests is in them.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from functools import partial
from multiprocessing import reduction
from multiprocessing.connection import wait
from operator import methodcaller
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# What takes long to import; torch's own optimizers import torch._dynamo at their first step.
PRELOADED = ["pytest", "torch", "torch._dynamo", "tyro", "regex", "matplotlib.pyplot"]
# A process that starts asks how all others ended, so two threads may read the one answer that there
# is: the second finds nothing, and takes that for status 255.
ASKING = threading.Lock()


class Output:
    """An open file of this process, which is another number in one that it is sent to."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return methodcaller("detach"), (reduction.DupFd(self.file.fileno()),)


def act(arguments: list[str], environment: dict[str, str], folder: str, outputs: list[int]) -> None:
    """Do what `python` does with the `arguments`: -c and code, -m and a module, or a file."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))  # it was read at the import
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    ours = {str(HERE), str(HERE.parent)}  # which no program finds unless it looks there
    sys.path[:] = [path for path in sys.path if path not in ours]
    first, *rest = arguments
    if first == "-c":
        sys.argv, sys.path[:0] = [first, *rest[1:]], [""]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[:0] = rest, [folder]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = arguments, [str(Path(first).resolve().parent)]
        runpy.run_path(first, run_name="__main__")


class Popen:
    """The part of subprocess.Popen that we use; the command begins with Python."""

    def __init__(self, command, stdout, stderr, env=None, cwd=None, encoding=None, preexec_fn=None):
        assert preexec_fn is None
        if stdout == subprocess.PIPE:
            read, write = os.pipe()
            self.stdout, stdout = open(read, encoding=encoding), open(write, "wb")
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        command, outputs = list(map(str, command[1:])), [Output(stdout), Output(stderr)]
        environment, folder = dict(env or os.environ), str(cwd or os.getcwd())
        self.process = server.Process(target=act, args=(command, environment, folder, outputs))
        with ASKING:
            self.process.start()
        if hasattr(self, "stdout"):
            stdout.close()
        self.send_signal = partial(os.kill, self.process.pid)

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


def run(command, cwd=None) -> subprocess.CompletedProcess:
    """How a command that begins with Python ends, in `cwd`, and what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdout", "stderr")]
        with open(paths[0], "wb") as out, open(paths[1], "wb") as errors:
            process = Popen(command, stdout=out, stderr=errors, cwd=cwd)
            try:
                process.wait(300)  # on a busy machine
            finally:
                process.kill()
        said = [path.read_text(encoding="utf-8") for path in paths]
    return subprocess.CompletedProcess(command, process.returncode, *said)
