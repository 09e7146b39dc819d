"""Several processes count and encode as one does, and none is left behind."""

import io
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from itertools import product, zip_longest
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, load_version, small_text
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fast_bpe import ANY

from shared import fast_bpe
from shared import text as shared_text
from shared.fast_bpe import Encoder, encoder, learn, worker, workers
from shared.fast_bpe.workers import Worker
from shared.files import UserError
from shared.text import whole_words

TEXT = small_text(400) + "naïve 漢字漢字 🙂🙂 aaaa <|a|> <|endoftext|>\n\n" * 200
SPECIAL = ["<|endoftext|>", "<|a|>"]
MERGES = learn([TEXT], 144, SPECIAL, workers=1)
V4 = load_version("v4_modern").Tokenizer


def new_encoder() -> Encoder:
    return Encoder(MERGES, {text: 400 + i for i, text in enumerate(SPECIAL)})


def encode_for_ever(output: int) -> None:
    """Write to `output` the numbers of the processes started, and a word when they are at work."""

    def popen(*arguments, **options):
        process = started(*arguments, **options)
        os.write(output, b"%d\n" % process.pid)
        return process

    started, workers.subprocess.Popen = workers.subprocess.Popen, popen
    texts = iter(lambda: TEXT * 10, "")
    for i, _ in enumerate(new_encoder().encode_texts(texts, workers=3)):
        if i == 3:
            os.write(output, b"encoding\n")


@pytest.fixture
def started(monkeypatch):
    """The processes that are started for however short a text."""
    monkeypatch.setattr(workers, "ENOUGH", 1)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    return started


@pytest.mark.parametrize("size", [2000, 30_000])
def test_results_do_not_depend_on_processes_or_pieces(size, monkeypatch, started):
    ids = new_encoder().encode(TEXT).tolist()
    for module in (fast_bpe, encoder, shared_text):
        monkeypatch.setattr(module, "PIECE", size)
    documents = TEXT.split("<|endoftext|>")
    for n in (2, 3):
        assert learn(documents, 144, SPECIAL, workers=n) == MERGES
        pieces = new_encoder().encode_texts(whole_words([TEXT], SPECIAL), workers=n)
        assert [i for piece in pieces for i in piece.tolist()] == ids
    assert len(started) == 1 + 1 + 2 + 2  # besides this one, to learn and to encode


@settings(max_examples=6)  # each starts some processes
@given(st.lists(ANY, min_size=1), st.integers(2, 3), st.sampled_from([1, 20]))
def test_any_texts_are_shared_by_any_number_of_processes(texts, n, size):
    """The merges and ids of v4's own tokenizer, which knows no processes."""
    plain = V4.train(texts, 300, SPECIAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ENOUGH", 1)
        for module in (fast_bpe, encoder, shared_text):
            patch.setattr(module, "PIECE", size)
        assert learn(texts, 42, SPECIAL, workers=n) == plain.merges
        ours = Encoder(plain.merges, plain.special_tokens)
        assert [i for ids in ours.encode_texts(texts, n) for i in ids.tolist()] == [
            i for text in texts for i in plain.encode(text)
        ]


def test_the_starter_works_rather_than_wait(started, monkeypatch):
    ours, encoded_here = new_encoder(), []
    encode_one = ours.encode

    def encode(text):
        time.sleep(0.02)  # so that the worker, too, gets some, however busy the machine is
        encoded_here.append(text)
        return encode_one(text)

    texts = [f"{TEXT} {i}" for i in range(20)]
    expected = [ours.encode(text).tolist() for text in texts]
    monkeypatch.setattr(ours, "encode", encode)
    assert [ids.tolist() for ids in ours.encode_texts(texts, 2)] == expected
    assert len(started) == 1 and 0 < len(encoded_here) < len(set(texts))  # the worker some, too


def encode_all(ours, n_workers):
    texts = [f"{TEXT} {i}" for i in range(4 * n_workers)]
    found = [ids.tolist() for ids in ours.encode_texts(texts, n_workers)]
    assert found == [ours.encode(text).tolist() for text in texts]


def test_workers_wait_for_the_next_texts(started, monkeypatch):
    """Of the same encoder; those that have died are replaced."""
    monkeypatch.setattr(workers, "REST", 100)
    one, other = new_encoder(), new_encoder()
    for _ in range(3):
        encode_all(one, 2)
    assert len(started) == 1
    encode_all(other, 2)
    encode_all(one, 2)
    assert len(started) == 2
    encode_all(one, 3)
    assert len(started) == 3
    started[0].kill()
    started[0].wait()
    encode_all(one, 3)
    assert len(started) == 4 and started[2].returncode is None
    workers.end(one.rested + other.rested)
    assert all(process.returncode is not None for process in started)


def test_workers_do_not_wait_for_long(started, monkeypatch):
    monkeypatch.setattr(workers, "REST", 0.01)
    ours = new_encoder()
    encode_all(ours, 3)
    for process in started:
        process.wait(60)
    encode_all(ours, 3)
    assert len(started) == 4


def test_two_at_the_same_time_have_workers_of_their_own(started):
    ours = new_encoder()
    expected = ours.encode(TEXT).tolist()
    both = [ours.encode_texts([TEXT] * 9, 2) for _ in range(2)]
    for pair in zip_longest(*both):
        assert [ids.tolist() for ids in pair] == [expected] * 2
    encode_all(ours, 3)
    assert len(started) == 2


def test_workers_that_get_nothing(started):
    alone = fast_bpe.count_words([TEXT], SPECIAL, 1)
    shared = fast_bpe.count_words([TEXT], SPECIAL, 5)
    assert len(started) == 4 and dict(zip(*shared)) == dict(zip(*alone))
    assert [ids.tolist() for ids in new_encoder().encode_texts(["ab"], 3)] == [[*b"ab"]]


def test_a_worker_merges_words_without_importing_torch():
    """Nor what else takes long."""
    code = (
        "import pickle, sys\n"
        "(kind, *parts), text = pickle.load(sys.stdin.buffer)\n"
        "ids = kind(*parts).encode(text).tolist()\n"
        "print({'torch', 'transformers', 'matplotlib'} & set(sys.modules), ids)"
    )
    parts = Encoder, MERGES, {}
    given = pickle.dumps((parts, TEXT))
    told = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, cwd=ROOT)
    assert told.stdout.decode() == f"set() {Encoder(MERGES, {}).encode(TEXT).tolist()}\n"


def test_few_texts_start_no_process(monkeypatch):
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    assert learn([TEXT], 144, SPECIAL, workers=4) == MERGES
    assert list(new_encoder().encode_texts([TEXT], workers=4))


def test_a_worker_that_dies_is_told(started):
    pieces = new_encoder().encode_texts([TEXT] * 50, 2)
    next(pieces)
    started[0].kill()
    with pytest.raises(UserError, match="--workers 1"):
        list(pieces)
    assert all(process.returncode is not None for process in started)


def test_a_worker_that_dies_in_mid_answer_is_told(monkeypatch):
    whole = pickle.dumps((np.arange(99), [b"word"] * 9), pickle.HIGHEST_PROTOCOL)
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *a, **k: SimpleNamespace())
    one = Worker(Encoder, MERGES, {})
    one.process.stdin = io.BytesIO()
    for size in range(len(whole)):
        one.process.stdout = io.BytesIO(whole[:size])
        with pytest.raises(UserError, match="--workers 1"):
            one.call("encode", TEXT)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no job control")
def test_a_worker_that_is_paused_in_mid_answer_tells_all_of_it():
    """Also where Python's output is unbuffered, which then writes no more than fits."""
    with subprocess.Popen(
        [sys.executable, worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        worker.dump((Encoder, [], {}), process.stdin)
        text = b"".join(b" " + bytes(letters) for letters in product(b"abcdefghi", repeat=5))
        worker.dump(("encode", text), process.stdin)
        select.select([process.stdout], [], [])
        time.sleep(0.2)  # it fills the pipe and waits
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        killer = threading.Timer(60, process.kill)
        killer.start()
        ids = pickle.load(process.stdout)
        killer.cancel()
        process.stdin.close()
    assert bytes(ids.tolist()) == text


def test_a_worker_that_dies_while_it_counts_is_told(started, monkeypatch):
    """Soon, and not when the others have counted all the rest."""
    monkeypatch.setattr(fast_bpe, "PIECE", len(TEXT))

    def texts():
        for i in range(2000):
            if i == 20:
                started[0].kill()
            yield TEXT
        raise AssertionError("all was counted")

    with pytest.raises(UserError, match="--workers 1"):
        fast_bpe.count_words(texts(), [], 2)
    assert all(process.returncode is not None for process in started)


def test_nothing_is_left_when_the_reader_stops_early(started):
    pieces = new_encoder().encode_texts([TEXT] * 20, 2)
    next(pieces)
    pieces.close()
    assert len(started) == 1 and all(process.returncode is not None for process in started)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between open and read
        return False


def gone(*pids: int) -> bool:
    """Whether the processes end within a minute."""
    for _ in range(600):
        if not any(map(is_running, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_orphans(how):
    """Whatever ends the process that encodes, its workers end, too."""
    reading, writing = os.pipe()
    child = os.fork()  # it has imported all already
    if child == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            encode_for_ever(writing)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading) as said:
            pids = [int(said.readline()) for _ in range(2)]
            assert said.readline() == "encoding\n"
            assert all(map(is_running, [child, *pids]))
        if how == signal.SIGINT:
            os.killpg(child, how)  # as a terminal does: to all of them
        else:
            os.kill(child, how)
        assert gone(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert gone(*pids)
