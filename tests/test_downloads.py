"""Downloads, from good and bad servers on this machine."""

import errno
import gzip
import hashlib
import http.server
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import corpora, downloads
from shared.corpora import END_OF_TEXT, load_corpus
from shared.files import UserError

ADDRESSES = dict(downloads.DOWNLOADS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))


class Server(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    breaks_after: int | None = None  # bytes sent before the connection is closed, once
    behaviour = ""  # what is wrong with the server
    ranges: list[str] = []  # the ones asked for

    def do_GET(self):
        if self.behaviour.startswith("redirects to ") and self.path != "/moved.txt":
            self.send_response(302)
            self.send_header("Location", self.behaviour.removeprefix("redirects to "))
            return self.end_headers()
        if self.behaviour == "hangs":
            return hung.wait(20)
        body = self.files[self.path]
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked and self.behaviour != "ignores ranges" else 0
        if start >= len(body):
            return self.send_error(416)
        if start and self.behaviour == "sends another range":
            start -= 1
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.behaviour != "tells no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if self.breaks_after is not None:
            body, Server.breaks_after = body[: Server.breaks_after], None
        if self.behaviour == "sends too little":
            body = body[:-1]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


hung = threading.Event()  # set: no request needs to hang any longer


@pytest.fixture
def server(monkeypatch):
    hung.clear()
    monkeypatch.setattr(downloads, "SCHEMES", ("http",))  # this server speaks no https
    monkeypatch.setenv("no_proxy", "*")
    text = ("Once upon a time.\n" + END_OF_TEXT) * 100
    Server.files = {"/train.txt": text.encode(), "/valid.txt": b"A dog. " * 9}
    Server.files["/t.txt.gz"] = gzip.compress(text.encode())
    Server.files["/v.txt.gz"] = gzip.compress(b"A dog. " * 9)
    Server.breaks_after, Server.behaviour, Server.ranges = None, "", []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/"
        addresses = {
            "plain": (url + "train.txt", url + "valid.txt"),
            "packed": (url + "t.txt.gz", url + "v.txt.gz"),
            "single": (url + "train.txt",),
        }
        monkeypatch.setattr(corpora, "DOWNLOADS", addresses)
        yield url
        hung.set()
        running.shutdown()


@pytest.mark.parametrize("name", ["plain", "packed"])
def test_published_splits_are_kept(server, name):
    corpus = load_corpus(name)
    assert corpus.train.read_bytes() == Server.files["/train.txt"]
    assert corpus.val.read_bytes() == Server.files["/valid.txt"]
    assert (corpus.train_bytes, corpus.val_bytes) == (1800, 63)
    asked = len(Server.ranges)
    assert load_corpus(name) == corpus and len(Server.ranges) == asked  # from the cache


def test_a_single_file_is_split(server):
    assert load_corpus("single").val_bytes == 180


@pytest.mark.parametrize("name, size", [("plain", 700), ("packed", 30)])
def test_a_broken_download_goes_on_where_it_stopped(server, name, size):
    Server.breaks_after = size
    with pytest.raises(UserError, match="run again"):
        load_corpus(name)
    assert load_corpus(name).train.read_bytes() == Server.files["/train.txt"]
    assert Server.ranges[1] == f"bytes={size}-"


def test_two_do_not_download_the_same(server):
    folder = corpora.cache_folder() / "plain"
    with downloads.one_at_a_time(folder):
        with pytest.raises(UserError, match="another process is downloading plain"):
            load_corpus("plain")
    assert Server.ranges == [] and load_corpus("plain").val_bytes == 63


def test_a_disk_that_is_full_while_unpacking_costs_no_download(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            load_corpus("packed")
    asked = len(Server.ranges)
    assert load_corpus("packed").val_bytes == 63
    assert len(Server.ranges) == asked + 1  # the other file alone


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3100), max_size=5), st.booleans())
def test_any_number_of_broken_downloads_end_in_the_whole(server, breaks, ranges):
    """Also when the connection breaks right at the end, or before anything came."""
    Server.behaviour = "" if ranges else "ignores ranges"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADDER_CACHE", folder)
        for size in breaks:
            Server.breaks_after = size
            try:
                load_corpus("plain")
            except UserError:
                assert not (Path(folder) / "plain" / "train.txt").exists()
        Server.breaks_after = None
        assert load_corpus("plain").train.read_bytes() == Server.files["/train.txt"]


@pytest.mark.parametrize(
    "behaviour, complaint",
    [
        ("sends too little", r"3,099 of 3,100 bytes arrived"),
        ("tells no length", "does not say how long"),
        ("hangs", "timed out"),
        ("redirects to ftp://127.0.0.1/train.txt", "ftp://127.0.0.1/train.txt is not http"),
        ("redirects to file:///etc/passwd", "file:///etc/passwd' is not allowed"),
        ("redirects to /train.txt", "infinite loop"),
    ],
)
def test_what_a_bad_server_sends_is_no_corpus(server, behaviour, complaint, monkeypatch):
    Server.behaviour = behaviour
    with monkeypatch.context() as patch:
        if behaviour == "hangs":
            patch.setattr(downloads, "TIMEOUT", 0.2)
        for _ in range(2):
            with pytest.raises(UserError, match=complaint):
                load_corpus("plain")
    assert not (corpora.cache_folder() / "plain" / "train.txt").exists()
    Server.behaviour = ""
    assert load_corpus("plain").train.read_bytes() == Server.files["/train.txt"]


def test_another_part_than_was_asked_for_is_refused(server):
    Server.breaks_after = 700
    with pytest.raises(UserError):
        load_corpus("plain")
    Server.behaviour = "sends another range"
    with pytest.raises(UserError, match="sent another part"):
        load_corpus("plain")
    Server.behaviour = ""
    assert load_corpus("plain").train.read_bytes() == Server.files["/train.txt"]


def test_a_redirect_is_followed(server):
    Server.files["/moved.txt"] = Server.files["/train.txt"]
    Server.behaviour = f"redirects to {server}moved.txt"
    Server.breaks_after = 700
    with pytest.raises(UserError):
        load_corpus("single")
    assert load_corpus("single").train_bytes == 1620
    assert Server.ranges == ["", "bytes=700-"]


def test_only_https_is_downloaded_from(server, monkeypatch):
    monkeypatch.setattr(downloads, "SCHEMES", ("https",))
    with pytest.raises(UserError, match="is not https"):
        load_corpus("plain")
    assert Server.ranges == []
    assert all(url.startswith("https://") for urls in ADDRESSES.values() for url in urls)


def test_a_checksum_is_checked(server, monkeypatch):
    monkeypatch.setitem(downloads.CHECKSUMS, server + "train.txt", "0" * 64)
    with pytest.raises(UserError, match="wrong SHA-256"):
        load_corpus("single")
    right = hashlib.sha256(Server.files["/train.txt"]).hexdigest()
    monkeypatch.setitem(downloads.CHECKSUMS, server + "train.txt", right)
    assert load_corpus("single").train_bytes == 1620


def test_named_corpora_have_the_documented_addresses():
    hub = "https://huggingface.co/datasets/"
    assert ADDRESSES == {
        "tinystories": (
            hub + "roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt",
            hub + "roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt",
        ),
        "owt": (
            hub + "stanford-cs336/owt-sample/resolve/main/owt_train.txt.gz",
            hub + "stanford-cs336/owt-sample/resolve/main/owt_valid.txt.gz",
        ),
        "wikitext": tuple(
            "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/"
            f"wikitext-2/{split}.txt"
            for split in ("train", "valid")
        ),
        "shakespeare": (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
            "input.txt",
        ),
    }
