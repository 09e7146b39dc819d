"""The folder of a run: one run at a time writes to it, and no mistake overwrites an earlier one."""

import itertools
import os
import shutil
from pathlib import Path
from typing import IO

from shared.files import UserError, lock, need_writable, remove_unfinished
from shared.terminal import print_text

# All that a run writes to its folder.
RUN_FILES = {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoint.pt", "summary.json"}
RUN_FILES |= {"samples.txt", "loss.png", "best.pt", "tensorboard"}


def check_folder(out: Path) -> None:
    """UserError if no files can be written to `out`, or if another run is writing to it."""
    need_writable(out, f"--out {out}")
    refuse_links(out)
    if (out / "metrics.jsonl").exists():
        lock_metrics(out).close()


def refuse_links(out: Path) -> None:
    """UserError if a run file in `out`, which may come from elsewhere, is a link: writing to it
    would change a file in another place."""
    for path in (out / name for name in sorted(RUN_FILES)):
        if path.is_symlink():
            raise UserError(f"{path} is a link: remove it, or choose another --out")


def lock_metrics(out: Path) -> IO[str]:
    """The metrics.jsonl in `out`, locked and open for appending: one run at a time may write it."""
    refuse_links(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "metrics.jsonl"
    file = open(path, "a", encoding="utf-8")
    if not lock(file):
        file.close()
        raise UserError(
            f"another run is writing to {out}: wait until it ends or choose another --out"
        )
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))):
        file.close()  # another run has just renamed its folder
        raise UserError(f"another run started in {out} at the same moment: choose another --out")
    return file


def open_folder(out: Path, resume: bool) -> tuple[IO[str], Path | None]:
    """The locked metrics.jsonl of a run that begins or is to `resume`. One that begins finds its
    folder empty: an earlier run's is renamed, since no mistake may cost hours of training, and its
    new name returned."""
    begun = (out / "metrics.jsonl").exists()
    file = lock_metrics(out)
    remove_unfinished(out)
    if resume or not _holds_files(out, begun):
        return file, None
    file.close()  # Windows does not rename a folder with an open file
    if not begun:
        (out / "metrics.jsonl").unlink()  # ours
    others = {path.name for path in out.glob("[!.]*")} - RUN_FILES
    if others:
        other = f"{out} holds a run and other files, such as {min(others)}"
        raise UserError(f"{other}: choose another --out")
    names = (out.with_name(f"{out.name}-{n}") for n in itertools.count(1))
    kept = next(path for path in names if not path.exists())
    try:
        out.rename(kept)
    except OSError as error:  # a mount point, or in a folder that we may not change
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{out} holds a run and cannot be renamed ({reason}): choose another --out"
        ) from None
    print_text(f"what was in {out} is now in {kept}")
    return lock_metrics(out), kept


def give_back(out: Path, kept: Path) -> None:
    """Undo what `open_folder` did for a run that then could not make a step."""
    if {path.name for path in out.glob("*")} <= RUN_FILES:
        shutil.rmtree(out, ignore_errors=True)
        kept.rename(out)
        print_text(f"what was in {kept} is in {out} again")


def _holds_files(out: Path, begun: bool) -> bool:
    """Whether the folder has files of a run, or with such names, not counting those of a run that
    was `begun` but ended before its first checkpoint, when metrics.jsonl had no rows."""
    names = RUN_FILES - {"metrics.jsonl"}
    if begun:
        names -= {"config.json", "tokenizer.json", "tensorboard"}
    has_rows = (out / "metrics.jsonl").stat().st_size > 0
    return has_rows or any((out / name).exists() for name in names)
