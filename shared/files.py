"""Files that are either complete or not there, and errors that say in one line what to do."""

import hashlib
import importlib.util
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import IO, Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]  # the repository
PIECE_BYTES = 1 << 20  # how much of a file is held in memory at a time
TOKEN_BYTES = 1 << 28  # of a file's tokens in all; GPT-4o's 200,000 tokens have 1.5 million


class UserError(Exception):
    """An error that the user can fix; its message says how, in one line."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, where an option is a field of Config: that line alone."""
        option = r"--([a-z]+(?:-[a-z]+)*)"
        return [f"error: {re.sub(option, lambda name: name[1].replace('-', '_'), str(self))}"]


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, which appears at `path` only once it is complete.

    It is written next to `path`, flushed to disk and renamed, so that after a crash, a full disk or
    a kill, `path` is as before. UserError if `path` is not a regular file but a folder or a device.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file: choose another name to write to")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: on two machines, or in two containers, that may be the same.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # errors from a full disk do not name the file
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that killed processes left unfinished in `folder` (see `atomic_write`)."""
    for path in folder.glob("*.tmp"):
        if re.search(r"\.[0-9a-f]{16}\.tmp$", path.name):
            path.unlink()


def lock(file: IO) -> bool:
    """Lock an open file; False if another process has it locked.

    The system releases the lock when the file is closed, even if its process is killed.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # a byte beyond the end, since locked bytes cannot be read
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # some network file systems have no locks
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` as a UTF-8 file, with lone surrogates replaced."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` as indented JSON."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode("ascii"))


def need_package(name: str, option: str) -> None:
    """UserError if the package `name`, which only `option` needs, is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{option} needs a package that is not installed: pip install {name}")


def need_writable(folder: Path, what: str) -> None:
    """UserError, starting with `what`, if `folder` cannot be created or no files can be written to
    it."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{what}: no files can be written to {existing}")


def json_sha256(value: Any) -> str:  # noqa: ANN401
    """The SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict:
    """The JSON object in `path`; UserError if there is none."""
    if Path(path).exists() and not Path(path).is_file():  # no pipe: some files are read twice
        raise UserError(f"{path} is not a file")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def checked_merges(merges: Iterable) -> list[tuple[int, int]]:
    """`merges` as pairs of ids; ValueError or TypeError unless each joins two tokens that are made
    before it, and no two join the same."""
    merges = [(index(left), index(right)) for left, right in merges]
    for token, pair in enumerate(merges, start=256):
        if min(pair) < 0 or max(pair) >= token:
            raise ValueError(f"{pair}, which make token {token}, are not both made before it")
    if len(set(merges)) < len(merges):
        raise ValueError("two merges join the same tokens")
    return merges


def read_tokenizer(path: str | Path, kind: str, build: Callable[..., T]) -> T:
    """`build` called with the parts in `path`; UserError if they are damaged or not of that `kind`.

    Most damage shows in that the tokenizer, saved again, would be in another file.
    """
    parts = read_json(path)
    if (found := parts.pop("kind", None)) != kind:
        raise UserError(f"{path} is another version's tokenizer ({found}, not {kind})")
    if parts.pop("first", None) not in (None, [*range(256)]):  # v4 had it, for other libraries'
        raise UserError(f"{path} has the bytes in another order: give the file it was read from")
    try:
        merges, total, lengths = checked_merges(parts.get("merges", ())), 0, [1] * 256
        for left, right in merges:  # sixty that double would make a token of exabytes
            lengths.append(lengths[left] + lengths[right])
            total += lengths[-1]
            if total > TOKEN_BYTES:
                raise ValueError("tokens that fill the memory")
        if not {*parts.get("scaffolds", ())} <= {*range(256, 256 + len(merges))}:
            raise ValueError("a scaffold that no merge makes")
        tokenizer = build(**parts)
        again = tokenizer.to_json()
        again = {name: again[name] for name in parts}
        written = (json.dumps(p, ensure_ascii=False).encode("utf-8") for p in (parts, again))
        if len({*written}) > 1:
            raise ValueError("saved again, it would be another file")
        return tokenizer
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError):
        raise UserError(f"{path} is damaged") from None
