"""Downloads: the corpora that are published somewhere."""

import gzip
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.files import PIECE_BYTES, UserError, atomic_write, file_sha256, lock
from shared.terminal import progress

TIMEOUT = 60  # seconds without a response before a download fails
SCHEMES = ("https",)  # allowed in download addresses and redirects

_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
_OWT = "https://huggingface.co/datasets/stanford-cs336/owt-sample/resolve/main/"
_WIKITEXT = (
    "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
)
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"

# Name -> the address of the text, or the addresses of its two published splits.
DOWNLOADS: dict[str, tuple[str, ...]] = {
    "tinystories": (
        _TINYSTORIES + "TinyStoriesV2-GPT4-train.txt",
        _TINYSTORIES + "TinyStoriesV2-GPT4-valid.txt",
    ),
    "owt": (_OWT + "owt_train.txt.gz", _OWT + "owt_valid.txt.gz"),
    "wikitext": (_WIKITEXT + "train.txt", _WIKITEXT + "valid.txt"),
    "shakespeare": (_CHAR_RNN + "tinyshakespeare/input.txt",),
}
# SHA-256 of the files for which it is published or known.
CHECKSUMS = {
    DOWNLOADS["shakespeare"][0]: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """UserError if another process is downloading into `folder`: both would write to one file."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "download.lock", "w") as file:
        if not lock(file):
            raise UserError(f"another process is downloading {folder.name}: wait until it is done")
        yield


def download(url: str, folder: Path) -> Path:
    """Download `url` into `folder`, resuming a broken download, and unpack it if it is gzip."""
    archive = folder / url.rsplit("/", 1)[1]
    text = archive.with_suffix("") if archive.suffix == ".gz" else archive
    if text.exists():
        return text
    partial = archive.with_name(archive.name + ".part")
    folder.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        try:
            _fetch(url, partial)
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError, timeouts too
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"cannot download {url} ({reason}): run again to resume, or put the file at "
                f"{archive}, or train on the embedded corpus with --data pydocs"
            ) from None
        if (expected := CHECKSUMS.get(url)) and file_sha256(partial) != expected:
            partial.unlink()
            raise UserError(f"{url} arrived damaged (wrong SHA-256) and was removed: run again")
        os.replace(partial, archive)
    if text != archive:
        try:
            with gzip.open(archive) as packed, atomic_write(text) as unpacked:
                with progress.wrapattr(
                    unpacked, "write", desc=f"unpacking {archive.name}"
                ) as counted:
                    shutil.copyfileobj(packed, counted, PIECE_BYTES)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{archive} cannot be unpacked ({error}): delete it, run again"
            ) from None
        archive.unlink()
    return text


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not to an unencrypted address, where text can be tampered with."""

    def redirect_request(self, request, file, code, message, headers, url):  # noqa: ANN001, ANN201
        _check_scheme(url)
        return super().redirect_request(request, file, code, message, headers, url)


def _check_scheme(url: str) -> None:
    if url.partition(":")[0].lower() not in SCHEMES:
        raise OSError(f"{url} is not {' or '.join(SCHEMES)}")


def _fetch(url: str, partial: Path) -> None:
    """Append the missing part of `url` to `partial`; OSError if the connection ends early."""
    _check_scheme(url)
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # "range not satisfiable": nothing follows `start`
            raise
        partial.unlink()  # we cannot tell whether what we have is complete: start over
        return _fetch(url, partial)
    with response:
        if response.status != 206:  # the server sends everything from the beginning
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError("the server sent another part than requested")
        left = response.headers.get("Content-Length")
        if not left and not response.chunked:  # its end would look like a lost connection
            raise OSError("the server does not say how long the file is")
        total = start + int(left) if left else None
        with open(partial, "ab" if start else "wb") as file:
            bar = progress(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem)
            with bar:
                while piece := response.read(PIECE_BYTES):
                    file.write(piece)
                    bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and partial.stat().st_size != total:
        raise OSError(f"{partial.stat().st_size:,} of {total:,} bytes arrived")
