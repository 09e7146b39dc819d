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

from shared import words, workers
from shared.files import UserError

Tokenizer = load_version("v4_modern").Tokenizer
TEXT = small_text(400) + "naïve 漢字漢字 🙂🙂 aaaa <|a|> <|endoftext|>\n\n" * 200
SPECIAL = ["<|endoftext|>", "<|a|>"]


def encode_for_ever(output: int) -> None:
    """Write to `output` the numbers of the processes started, and a word when they are at work."""

    def popen(*arguments, **options):
        process = started(*arguments, **options)
        os.write(output, b"%d\n" % process.pid)
        return process

    started, workers.subprocess.Popen = workers.subprocess.Popen, popen
    tokenizer = Tokenizer.train([TEXT], 300, workers=1)
    texts = iter(lambda: TEXT * 10, "")
    for i, _ in enumerate(tokenizer.encode_pieces(texts, workers=3)):
        if i == 3:
            os.write(output, b"encoding\n")


@pytest.fixture
def started(monkeypatch):
    """The processes that are started for however short a text."""
    monkeypatch.setattr(workers, "WORTH_COUNTING", 1)
    monkeypatch.setattr(workers, "WORTH_ENCODING", 1)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    return started


@pytest.mark.parametrize("size", [2000, 30_000])
def test_results_do_not_depend_on_processes_or_pieces(size, monkeypatch, started):
    tokenizer = Tokenizer.train([TEXT], 400, SPECIAL, workers=1)
    ids = tokenizer.encode(TEXT)
    monkeypatch.setattr(words, "PIECE", size)
    monkeypatch.setattr(workers, "PIECE", size)
    documents = TEXT.split("<|endoftext|>")
    for n in (2, 3):
        assert Tokenizer.train(documents, 400, SPECIAL, workers=n).merges == tokenizer.merges
        found = [i for piece in tokenizer.encode_pieces([TEXT], workers=n) for i in piece.tolist()]
        assert found == ids
    assert len(started) == 1 + 1 + 2 + 2  # besides this one, to train and to encode


def test_the_starter_works_rather_than_wait(started, monkeypatch):
    tokenizer, encoded_here = Tokenizer.train([TEXT], 300, workers=1), []
    encode_one = tokenizer.words.encode

    def encode(text):
        time.sleep(0.02)  # so that the worker, too, gets some, however busy the machine is
        encoded_here.append(text)
        return encode_one(text)

    texts = [f"{TEXT} {i}" for i in range(20)]
    expected = [tokenizer.encode(text) for text in texts]
    monkeypatch.setattr(tokenizer.words, "encode", encode)
    assert [ids.tolist() for ids in workers.encode_texts(texts, tokenizer.words, 2)] == expected
    assert len(started) == 1 and 0 < len(encoded_here) < len(set(texts))  # the worker some, too


def encode_all(tokenizer, n_workers):
    texts = [f"{TEXT} {i}" for i in range(4 * n_workers)]
    found = [ids.tolist() for ids in workers.encode_texts(texts, tokenizer.words, n_workers)]
    assert found == [tokenizer.encode(text) for text in texts]


def test_workers_wait_for_the_next_texts(started):
    """Of the same tokenizer and for as many workers; those that have died are replaced."""
    one, other = (Tokenizer.train([TEXT], size, workers=1) for size in (300, 400))
    for _ in range(3):
        encode_all(one, 2)
    assert len(started) == 1
    encode_all(other, 2)
    encode_all(one, 2)
    assert len(started) == 2
    encode_all(one, 3)
    assert len(started) == 4 and started[0].returncode is not None
    started[2].kill()
    started[2].wait()
    encode_all(one, 3)
    assert len(started) == 6 and started[3].returncode is not None


def test_workers_do_not_wait_for_long(started, monkeypatch):
    monkeypatch.setattr(workers, "REST", 0.01)
    tokenizer = Tokenizer.train([TEXT], 300, workers=1)
    encode_all(tokenizer, 3)
    for process in started:
        process.wait(60)
    encode_all(tokenizer, 3)
    assert len(started) == 4


def test_two_at_the_same_time_have_workers_of_their_own(started):
    tokenizer = Tokenizer.train([TEXT], 300, workers=1)
    both = [workers.encode_texts([TEXT] * 9, tokenizer.words, 2) for _ in range(2)]
    for pair in zip_longest(*both):
        assert [ids.tolist() for ids in pair] == [tokenizer.encode(TEXT)] * 2
    assert len(started) == 2 and [process.poll() is None for process in started].count(True) == 1
    encode_all(tokenizer, 2)
    assert len(started) == 2


def test_workers_that_get_nothing(started):
    alone = workers.count_words([TEXT], SPECIAL, 1)
    shared = workers.count_words([TEXT], SPECIAL, 5)
    assert len(started) == 4 and dict(zip(*shared)) == dict(zip(*alone))


def test_counts_from_elsewhere_are_added():
    counts = words.WordCounts()
    counts.add(["a b b", "c"])
    counts.add_counted([b" b", b"d", b"c"], [10, 2**40, 5])
    counts.add(["d d"])
    counts.add_counted([], [])
    found = dict(zip(counts.numbers.words, counts.counts.tolist()))
    assert found == {b"a": 1, b" b": 12, b"c": 6, b"d": 2**40 + 1, b" d": 1}


def test_a_worker_merges_words_without_importing_torch():
    tokenizer, new = Tokenizer.train([TEXT], 400, SPECIAL, workers=1), [b" the", "漢字".encode()]
    code = (
        "import pickle, sys\n"
        "merge, new = pickle.load(sys.stdin.buffer)\n"
        "ids, lengths = pickle.loads(merge)(new)\n"
        "print('torch' in sys.modules, ids.tolist(), lengths.tolist())"
    )
    given = pickle.dumps((workers.by_value(tokenizer.words.merge), new))
    told = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, cwd=ROOT)
    each = [tokenizer.encode(word.decode("utf-8")) for word in new]
    assert told.stdout.decode() == f"False {sum(each, [])} {[*map(len, each)]}\n"


def test_few_texts_start_no_process(monkeypatch):
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    tokenizer = Tokenizer.train([TEXT], 300, workers=4)
    assert list(tokenizer.encode_pieces([TEXT], workers=4))


def test_a_worker_that_dies_is_told(started):
    tokenizer = Tokenizer.train([TEXT], 300, workers=1)
    pieces = workers.encode_texts([TEXT] * 50, tokenizer.words, 2)
    next(pieces)
    started[0].kill()
    with pytest.raises(UserError, match="--workers 1"):
        list(pieces)
    assert all(process.returncode is not None for process in started)


def test_a_worker_that_dies_in_mid_answer_is_told():
    whole = pickle.dumps((np.arange(1000), [b"word"] * 9), pickle.HIGHEST_PROTOCOL)
    for size in range(len(whole)):
        with pytest.raises(UserError, match="--workers 1"):
            workers.receive(SimpleNamespace(stdout=io.BytesIO(whole[:size])))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no job control")
def test_a_worker_that_is_paused_in_mid_answer_tells_all_of_it():
    """Also where Python's output is unbuffered, which then writes no more than fits."""
    with subprocess.Popen(
        [sys.executable, workers.worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        tokenizer = Tokenizer([])
        merge = workers.by_value(tokenizer.words.merge)
        workers.worker.dump(("encode", merge, {}, 256), process.stdin)
        text = b"".join(b" " + bytes(letters) for letters in product(b"abcdefghi", repeat=5))
        workers.worker.dump(text, process.stdin)
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
    """At once, and not when the others have counted all the rest."""
    monkeypatch.setattr(workers, "PIECE", len(TEXT))

    def texts():
        for i in range(2000):
            if i == 20:
                started[0].kill()
            yield TEXT
        raise AssertionError("all was counted")

    with pytest.raises(UserError, match="--workers 1"):
        workers.count_words(texts(), [], 2)
    assert all(process.returncode is not None for process in started)


def test_nothing_is_left_when_the_reader_stops_early(started):
    tokenizer = Tokenizer.train([TEXT], 300, workers=1)
    pieces = workers.encode_texts([TEXT] * 20, tokenizer.words, 2)
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
    child = os.fork()  # it has imported torch already
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
