"""Several processes train as one does, and end as one does; and a GPU is not made to wait."""

import faulthandler
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, load_version, small_arguments, small_config

from shared.files import UserError, read_json
from shared.run import LOG_EVERY, Run
from v4_modern import command_line, parallel
from v4_modern.run import share_of_peak

v4 = load_version("v4_modern")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX has fork")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def together(n: int, folder, work) -> list[SimpleNamespace]:
    """How n processes end that do `work(rank)` as torchrun would start them: status, out, err.

    They are forked from this one, which has imported torch already and keeps the store that with
    torchrun is the agent's. It starts the store after them: the store is a thread, and a lock that
    a thread of this process holds (glibc's, on resolving names) is held in a child for ever.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    environment = {"WORLD_SIZE": n, "MASTER_ADDR": host, "MASTER_PORT": port}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RUN_ID": "tests"}
    children = {}
    for rank in range(n):
        if child := os.fork():
            children[child] = rank
            continue
        status = 99
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_WRONLY), number)
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))
            faulthandler.dump_traceback_later(250, file=sys.stderr)  # says where it hangs
            environment |= {"RANK": rank, "LOCAL_RANK": rank}
            os.environ |= {name: str(value) for name, value in environment.items()}
            work(rank)
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _store = torch.distributed.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    ends, deadline = {}, time.monotonic() + 300
    while children and time.monotonic() < deadline:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                ends[children.pop(child)] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for child, rank in children.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ends[rank] = "it hung"
    said = [[(folder / f"{name}{rank}") for name in ("out", "err")] for rank in range(n)]
    said = [[path.read_text(encoding="utf-8") for path in paths] for paths in said]
    return [
        SimpleNamespace(status=ends[rank], out=out, err=err) for rank, (out, err) in enumerate(said)
    ]


def errors(ends) -> list[str]:
    """The lines of all processes that say what went wrong."""
    lines = [line for end in ends for line in end.err.replace("\r", "\n").splitlines()]
    return [line for line in lines if line.startswith("error") or "Traceback" in line]


def state(folder) -> tuple[list[float], dict]:
    """The losses of all steps of a run without a row of them, and its weights."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    return saved["progress"]["losses"], saved["model"]


def assert_close(left, right):
    (losses, weights), (others, other_weights) = state(left), state(right)
    assert losses == pytest.approx(others, rel=1e-4) and len(losses) == 9
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], atol=2e-3, rtol=2e-3)


def arguments_for(corpus_file, out, **options) -> list[str]:
    options = {"data": corpus_file, "out": out, "steps": 9, "checkpoint_every": 3} | options
    return small_arguments(v4, **options)


def at_step(step, rank, do):
    """For a `work`: `do()` after the training step in the process of that rank."""
    log_step = Run.log_step

    def patched(run, *rest):
        log_step(run, *rest)
        if run.step == step and parallel.rank() == rank:
            do()

    Run.log_step = patched


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, corpus_file, tmp_path_factory):
    """A run of one process, and the accumulation steps of it."""
    folder = tmp_path_factory.mktemp("whole")
    v4.main(arguments_for(corpus_file, folder, accumulation_steps=request.param))
    return folder, request.param


# ---- the same training ----


@needs_fork
def test_two_processes_train_as_one_and_only_one_writes(corpus_file, tmp_path, whole):
    def work(rank):
        os.environ["LADDER_CACHE"] = str(tmp_path / "cache")  # with nothing in it yet
        if rank:
            os.replace = os.fsync = lambda *_: os.write(2, b"error: another one writes\n")
        options = {"accumulation_steps": whole[1]}
        v4.main(arguments_for(corpus_file, tmp_path / "run", **options))

    first, second = ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [0, 0], first.err + second.err
    assert errors(ends) == [] and second.out == "" and first.out.count("step      9 |") == 1
    assert ", 2 processes" in first.out and second.err == ""
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in whole[0].iterdir()}
    assert_close(whole[0], tmp_path / "run")
    for folder in (whole[0], tmp_path / "run"):
        assert read_json(folder / "summary.json")["train_tokens"] == 9 * 4 * 16 * whole[1]


@needs_fork
@pytest.mark.parametrize("whole", [1], indirect=True)
def test_a_compiled_model_is_cut_where_gradients_are_sent(corpus_file, tmp_path, whole):
    """As torch.compile takes it apart; what it makes of the parts needs a compiler."""

    def work(rank):
        parts = []

        def backend(graph, inputs):
            parts.append(graph)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 10_000  # the rest is sent by itself
        v4.LanguageModel.compile = lambda model: torch.nn.Module.compile(model, backend=backend)
        v4.Run.compile_is_due = lambda run: run.step == 2
        v4.main([*arguments_for(corpus_file, tmp_path / "run"), "--compile"])
        assert len(parts) > 1

    ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [0, 0], ends[0].err + ends[1].err
    assert_close(whole[0], tmp_path / "run")


@needs_fork
def test_all_processes_end_with_the_same_weights(corpus_file, tmp_path):
    """To the last bit: each makes all updates itself, of gradients that are the same in all."""
    runs = []

    def work(rank):
        enter = Run.__enter__
        Run.__enter__ = lambda run: runs.append(run) or enter(run)
        v4.main(arguments_for(corpus_file, tmp_path / "run", batch_size=6))
        torch.save(runs[0].model.state_dict(), tmp_path / f"weights{rank}")

    ends = together(3, tmp_path, work)
    assert [end.status for end in ends] == [0] * 3, [end.err for end in ends]
    first, *others = (torch.load(tmp_path / f"weights{rank}") for rank in range(3))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    saved = state(tmp_path / "run")[1]
    assert all(torch.equal(first[name], saved[name]) for name in first)


@needs_fork
def test_values_and_windows_are_those_of_all(tmp_path):
    def work(rank):
        parallel.join(3, "cpu")
        mean, highest = parallel.mean([1.0, float(rank)]), parallel.highest(rank)
        assert (mean, highest) == ([1, 1], 2)
        ids = torch.arange(12).view(6, 2)
        assert parallel.my_share(ids, ids.device).tolist() == ids[[rank, rank + 3]].tolist()

    ends = together(3, tmp_path, work)
    assert [end.status for end in ends] == [0] * 3, [end.err for end in ends]


@needs_fork
def test_gradients_are_exchanged_once_a_step(tmp_path):
    """And are those of the whole batch, for windows numbered 0 to 7 in two batches of four."""

    def work(rank):
        parallel.join(4, "cpu")
        model, exchanged = torch.nn.Linear(1, 1, bias=False), []
        replica = parallel.replica(model)

        def exchange(_, bucket):
            exchanged.append(bucket.buffer().clone())
            future = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
            return future.get_future().then(lambda done: done.value()[0])

        replica.register_comm_hook(None, exchange)
        for batch in range(2):
            windows = torch.arange(8.0).view(2, 4, 1)[batch]
            share = parallel.my_share(windows, windows.device)
            with parallel.averaging(replica, now=batch == 1):
                loss = replica(share).mean() / 2
            loss.backward()
        assert len(exchanged) == 1 and exchanged[0].item() == (3.0, 4.0)[rank]  # 0 2 4 6, 1 3 5 7
        assert model.weight.grad.item() == 3.5

    ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [0, 0], [end.err for end in ends]


def test_a_model_is_shown_also_under_torchrun(monkeypatch, capsys):
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    v4.main(small_arguments(v4) + ["--print-model"])
    assert "parameters" in capsys.readouterr().out


def test_one_process_shares_with_nobody():
    stack = torch.randn(2, 3, 4)
    assert parallel.replica(model := torch.nn.Linear(2, 2)) is model
    assert parallel.my_share(stack, stack.device).shape == stack.shape


# ---- ends ----


@needs_fork
@pytest.mark.parametrize("whole", [1], indirect=True)
@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_process_ends_the_run_and_it_goes_on_in_one(corpus_file, tmp_path, whole, dead):
    def work(rank):
        at_step(5, dead, lambda: os.kill(os.getpid(), signal.SIGKILL))
        v4.main(arguments_for(corpus_file, tmp_path / "run"))

    ends = together(2, tmp_path, work)  # gloo sees it at once
    assert ends[dead].status == -signal.SIGKILL and ends[1 - dead].status == 1
    assert len(errors(ends)) == 1 and errors(ends)[0].startswith(f"error: {command_line.LOST} (")
    v4.main(["--resume", "--out", str(tmp_path / "run")])
    assert_close(whole[0], tmp_path / "run")


def test_a_signal_to_one_stops_all_at_one_step(corpus_file, tmp_path):
    def work(rank):
        at_step(4, 1, lambda: signal.raise_signal(signal.SIGTERM))
        v4.main(arguments_for(corpus_file, tmp_path / "run"))

    ends = together(2, tmp_path, work)
    assert [end.status for end in ends] == [143, 143]
    assert errors(ends) == [] and not ends[1].out
    assert ["stopped at step 4, saved" in end.err for end in ends] == [True, False]
    assert len(state(tmp_path / "run")[0]) == 4


@needs_fork
@pytest.mark.parametrize("whole", [2], indirect=True)
def test_a_run_of_one_goes_on_in_two(corpus_file, tmp_path, whole, monkeypatch):
    log_step = Run.log_step

    def interrupt(run, *rest):
        log_step(run, *rest)
        if run.step == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "log_step", interrupt)
        v4.main(arguments_for(corpus_file, tmp_path / "run", accumulation_steps=2))
    ends = together(2, tmp_path, lambda rank: v4.main(["--resume", "--out", f"{tmp_path}/run"]))
    assert [end.status for end in ends] == [0, 0]
    assert_close(whole[0], tmp_path / "run")


@needs_fork
def test_what_ends_one_ends_all_in_one_line(corpus_file, tmp_path):
    out = tmp_path / "run"

    def tried(version="v4_modern", prepare=lambda: None, **options):
        def work(rank):
            prepare()
            version_ = load_version(version)
            options_ = {"data": corpus_file, "out": out, "checkpoint_every": 2} | options
            version_.main(small_arguments(version_, **options_))

        ends = together(2, tmp_path, work)
        lines = errors(ends)
        for path in tmp_path.glob("???[01]"):  # what they said
            path.unlink()
        assert len(lines) == 1 and all(end.status in (1, 2) for end in ends)
        return lines[0]

    def no_number_in_the_second():
        if parallel.rank() == 1:
            at_step(
                3, 1, lambda: setattr(v4, "cross_entropy", lambda x, _: x.mean() * float("nan"))
            )

    assert "--batch-size 3 is of all processes together: 2 of them" in tried(batch_size=3)
    assert "--steps" in tried(steps="many")
    assert "no file or folder of that name" in tried(data=tmp_path / "none")
    assert "v0_bigram trains in one process" in tried("v0_bigram")
    assert not out.exists()
    assert "the loss is nan at step 3," in tried(prepare=no_number_in_the_second)
    assert torch.load(out / "checkpoint.pt")["progress"]["step"] == 2
    gone = lambda: at_step(3, 0, lambda: shutil.move(out, tmp_path / "moved"))  # noqa: E731
    assert "was moved or removed" in tried(prepare=gone)


def test_what_cannot_be_shared_is_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert parallel.processes() == 1 and parallel.is_first()  # not torchrun's
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, words in (("mps", "in one process"), ("cuda", "this machine has 1 GPU")):
        with pytest.raises(UserError, match=words):
            parallel.join(4, device)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGUSR1 on Windows")
def test_torchrun_starts_and_stops_it(corpus_file, tmp_path):
    """By a signal that it passes on only with the option that the README names."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    readme = (ROOT / "v4_modern" / "README.md").read_text(encoding="utf-8")
    command += re.search("--signals-to-handle [A-Z0-9,]+", readme)[0].split()
    command += ["--log-dir", str(tmp_path / "logs")]  # else torchrun leaves a folder in /tmp
    command += [str(ROOT / "v4_modern" / "train.py")]
    command += arguments_for(corpus_file, tmp_path / "run", steps=100_000, evaluate_every=100_000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with open(tmp_path / "said", "wb") as said:
        process = forked.Popen(command, stdout=said, stderr=said)
        deadline = time.monotonic() + 300
        try:
            while not (metrics.exists() and "train_loss" in metrics.read_text()):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGUSR1)
            process.wait(60)
    assert process.returncode != 0
    text = (tmp_path / "said").read_text(encoding="utf-8")
    assert text.count("saved; --resume") == 1 and command_line.LOST not in text
    step = torch.load(tmp_path / "run" / "checkpoint.pt")["progress"]["step"]
    assert step >= LOG_EVERY and f"stopped at step {step:,}, saved" in text


# ---- a GPU does not wait ----


def lazy_run(corpus_file, folder) -> Run:
    """A run that takes its device for a GPU when it has begun."""
    config = small_config(v4, data=str(corpus_file), out=str(folder), steps=40)
    tokenizer, corpus, _, _ = v4.load_data(config)
    return v4.Run("v4_modern", config, tokenizer, v4.LanguageModel(config), [None], corpus)


def test_losses_on_a_gpu_are_read_when_they_are_logged(corpus_file, tmp_path):
    with lazy_run(corpus_file, tmp_path) as run:
        run.device = torch.device("cuda")
        for step in range(LOG_EVERY - 1):
            run.log_step(torch.tensor(float(step)), 0.1, 0.01)
        assert run.losses == [] and len(run.unread) == LOG_EVERY - 1
        run.log_step(torch.tensor(9.0), 0.1, 0.01)
        assert run.rows[-1]["train_loss"] == 4.5 and run.unread == []
        run.log_step(torch.tensor(1.0), 0.1, 0.01)
        run.config.checkpoint_every = 11
        assert run.checkpoint_is_due() and run.losses == [1.0]  # what it writes is read
        for loss in (1.0, float("nan"), float("nan")):
            run.log_step(torch.tensor(loss), 0.1, 0.01)
        run.config.evaluate_every = 14
        with pytest.raises(UserError, match="the loss is nan at step 12, the learning rate 0.1"):
            run.evaluation_is_due()
        run.metrics_file.close()


def test_speed_is_of_the_steps_since_the_last_scores(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    with lazy_run(corpus_file, tmp_path) as run:
        cuda, in_float32 = torch.device("cuda"), replace(run.config, dtype="float32")
        run.config = replace(run.config, dtype="bfloat16")
        assert share_of_peak(run.model, in_float32, cuda) is None
        run.share_of_peak = share_of_peak(run.model, run.config, cuda)
        assert run.speed(0, 0.0) == {}
        for _ in range(2):  # the second time, since the first
            for _ in range(4):
                run.log_step(1.0, 0.1, 0.0)
            run.seconds += 0.5  # no time but this
            run.log_scores(*run.parts_to_score(np.array([0, 97, 98])), 1.0, 2)
            assert run.rows[-1]["tokens_per_second"] == pytest.approx(4 * 64 / 0.5, rel=0.05)
        config, flops = run.config, 0
        weights = dict(run.model.named_parameters())
        for name, weight in weights.items():
            if weight.ndim == 2 and name != "embedding.weight":
                flops += 6 * weight.numel()
        T, inner = config.context_length, config.n_heads * config.head_size
        flops += 12 * config.n_layers * inner * T  # attention (Chowdhery et al. 2022, B)
        assert run.speed(1, 1e-9)["mfu"] == pytest.approx(64e9 * flops / 989.5e12, rel=1e-3)
        monkeypatch.setattr(parallel, "processes", lambda: 4)
        mfu = run.speed(4, 1e-9)["mfu"]  # on four GPUs
        assert mfu == pytest.approx(64e9 * flops / 989.5e12, rel=1e-3)
        run.metrics_file.close()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    for device in ("cuda", "cpu"):
        assert share_of_peak(run.model, run.config, torch.device(device)) is None


@needs_gpu
def test_a_step_on_a_gpu_waits_for_nothing(corpus_file, tmp_path):
    files = {"data": str(corpus_file), "out": str(tmp_path)}
    # Of more than 4,096 tokens torch's embedding makes its gradient in another way.
    config = small_config(v4, **files, device="cuda", dtype="auto", steps=30, batch_size=600)
    tokenizer, corpus, tokens, _ = v4.load_data(config)
    model = v4.LanguageModel(config)
    run = v4.Run("v4_modern", config, tokenizer, model, [], corpus)
    run.optimizers = v4.make_optimizers(model, config)
    with run:
        run.log_step(v4.training_step(run, tokens, config), 0.1, 0.0)  # what is set up once
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(LOG_EVERY - 2):
                run.log_step(v4.training_step(run, tokens, config), 0.1, 0.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.log_step(v4.training_step(run, tokens, config), 0.1, 0.0)
        assert len(run.rows) == 1 and run.rows[0]["train_loss"] < 6.0
        run.metrics_file.close()


@needs_gpu
@needs_fork
def test_a_gpu_learns_what_a_cpu_does(corpus_file, tmp_path):
    bits = {}
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        options = {"data": str(corpus_file), "out": out, "device": device, "steps": 60}
        bits[device] = v4.train(small_config(v4, dtype="auto", **options))["bits_per_byte"]
    assert bits["cuda"] == pytest.approx(bits["cpu"], rel=0.02)  # of bfloat16's 8 bits


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_two_gpus_train_as_one(corpus_file, tmp_path):
    train = str(ROOT / "v4_modern" / "train.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        arguments = arguments_for(corpus_file, tmp_path / name, device="cuda", dtype="auto")
        subprocess.run([sys.executable, *launcher, train, *arguments], check=True)
    losses, others = (state(tmp_path / name)[0] for name in ("one", "two"))
    assert losses == pytest.approx(others, rel=0.02)


@pytest.mark.parametrize("rank, local, waits", [(0, 0, 0), (1, 1, 2), (2, 0, 1), (3, 1, 2)])
def test_the_first_of_each_machine_works_before_the_others(rank, local, waits, monkeypatch):
    """The first of all, for all; then the first of each other machine; then the rest."""
    place = {"WORLD_SIZE": 4, "RANK": rank, "LOCAL_RANK": local, "TORCHELASTIC_RUN_ID": "run"}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    waited = []
    monkeypatch.setattr(parallel, "wait", lambda: waited.append(1))
    assert parallel.in_turn(lambda: len(waited)) == waits and len(waited) == 3
