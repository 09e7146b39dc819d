"""Files that are whole or not there, and errors that say in one line what to do."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]  # the repository


class UserError(Exception):
    """Something the user can put right; its message is the one line that says how."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, which takes its place at `path` only when it is whole.

    It is written beside `path`, flushed to the disk and renamed, so that a crash, a full disk or a
    kill leaves what was at `path` before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, lone surrogates replaced."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` as JSON, one key a line where it is an object."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode("ascii"))


def need_package(name: str, option: str) -> None:
    """UserError if the package `name`, which only `option` needs, is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{option} needs a package that is not installed: pip install {name}")


def json_sha256(value: Any) -> str:  # noqa: ANN401
    """The SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def read_json(path: str | Path) -> dict:
    """The JSON object in `path`; UserError if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: train first, or name the run with --out") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def read_tokenizer(path: str | Path, kind: str, build: Callable[[dict], T]) -> T:
    """`build` applied to the JSON in `path`; UserError if it is damaged or not of that `kind`."""
    saved = read_json(path)
    if saved.get("kind") != kind:
        raise UserError(f"{path} is a tokenizer of kind {saved.get('kind')}, not {kind}")
    try:
        return build(saved)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged") from None
