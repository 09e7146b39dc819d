"""The command line of all five versions: options generated from a Config, and one-line errors."""

import contextlib
import dataclasses
import errno
import gc
import inspect
import io
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import torch
import tyro
from tqdm import tqdm

from shared.corpora import END_OF_TEXT, cache_folder
from shared.downloads import DOWNLOADS
from shared.files import UserError, need_package, read_json
from shared.reading import named
from shared.run_folder import check_folder
from shared.terminal import answered, ended_by, print_text, write_nowhere
from shared.tokens import Tokenizer

tqdm.pos = 0  # or a bar half built when a signal came would fail when it is deleted
ConfigType = TypeVar("ConfigType")
T = TypeVar("T")

# Limits of the options; all other numbers must be more than 0. Far beyond what a machine can hold,
# they turn a typo into a one-line error instead of a model that takes hours to build.
MAY_BE_ZERO = {"vocab_size", "dropout", "seed", "temperature", "top_k"}
MAY_BE_ZERO |= {"weight_decay", "warmup_steps", "final_learning_rate", "workers"}
AT_MOST = {"dropout": 0.95, "top_p": 1, "seed": 2**31, "n_layers": 1000, "workers": 1024}
AT_MOST |= dict.fromkeys(("n_heads", "n_kv_heads", "head_size"), 10_000)
AT_MOST |= dict.fromkeys(("width", "feed_forward_size"), 100_000)
AT_MOST |= dict.fromkeys(("batch_size", "accumulation_steps"), 1_000_000)
PATHS = {"data", "out", "init_from", "tokenizer", "score"}
# In which order --help shows the options, and under which titles.
GROUPS = {
    "data": "data text_field vocab_size tokenizer_sample_bytes tokenizer split workers",
    "model": "",  # all that no other group names
    "training": "steps batch_size accumulation_steps learning_rate muon_learning_rate weight_decay "
    "warmup_steps schedule final_learning_rate clip_norm seed init_from",
    "writing": "sample prompt temperature top_k top_p max_new_tokens",
    "this run": "out resume score best print_model evaluate_every checkpoint_every tensorboard "
    "device dtype compile",
}
TITLES = {name: title for title, names in GROUPS.items() for name in names.split()}
HELP = """\
{about}

Examples:

    python {program} --data my_text.txt --out runs/mine
    python {program} --resume --out runs/mine
    python {program} --sample --prompt "Return the"

Options, with the values they have unless you give others:"""
# System errors that the user can fix, such as a wrong name or a full disk.
THE_USERS = "ENOENT ENOTDIR EISDIR EEXIST EACCES EPERM EROFS ENAMETOOLONG ENOSPC EDQUOT"
# How torch's errors put it on Apple's and NVIDIA's GPUs, on a CPU, and in cuBLAS.
OUT_OF_MEMORY = "out of memory", "can't allocate memory", "ALLOC_FAILED"
SMALLEST, LARGEST = 1e-37, {int: 2**63 - 1, float: 1e38}  # what int64 and float32 can hold


def parse(
    config_class: type[ConfigType],
    arguments: Sequence[str] | None,
    default: ConfigType | None = None,
) -> ConfigType:
    """The config that `arguments` (None: those of the process) ask for.

    Options not given are those of `default` or, with --resume, --sample or --score, of the run in
    --out.
    """
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:] if arguments is None else arguments):
        print_text(help_text(config_class, shutil.get_terminal_size().columns))
        sys.exit()
    config = parse_options(config_class, arguments, default)
    out = os.path.expanduser(config.out)
    uses = config.sample or config.score  # a trained model
    trains = not (uses or config.print_model)
    if config.resume or uses:
        config = parse_options(config_class, arguments, load_config(config_class, out))
    if is_path := config.data not in ("pydocs", *DOWNLOADS):
        # A link's own name, not its file's, says of which format that is.
        config = replace(config, data=str(Path(os.path.expanduser(config.data)).absolute()))
    config = replace(config, out=out)
    if config.best and not uses:
        raise UserError("--best is for --sample and --score: training goes on from the last step")
    if config.tensorboard and trains:
        need_package("tensorboard", "--tensorboard")
    if trains and is_first():
        check_folder(Path(whole_path(config.out)))
    if is_path and trains:
        folders = (path.resolve() for path in named(config.data) if path.is_dir())
        if any(Path(whole_path(out)).is_relative_to(folder) for folder in folders):
            raise UserError(f"--out {out} is inside --data: the run's files would be read as text")
    return config


def help_text(config_class: type, width: int) -> str:
    """What --help shows, in lines of up to `width` columns: the first lines of the version's file,
    examples, and each option with its default and the comment behind its field, in GROUPS."""
    about = inspect.getdoc(sys.modules[config_class.__module__]) or ""
    lines, indent = [HELP.format(about=about, program=sys.argv[0])], 30
    source = inspect.getsource(config_class)
    groups = {title: [] for title in GROUPS}
    for field in dataclasses.fields(config_class):
        if get_origin(field.type) is Annotated:  # suppressed
            continue
        shown, default = "--" + field.name.replace("_", "-"), field.default
        if type(default) is not bool:
            default = f"{default:g}" if type(default) is float else str(default)
            shown += " " + (default or ("PATH" if field.name in PATHS else "TEXT"))
        comment = re.search(rf"(?m)^    {field.name}: .*?  # (.*)$", source)
        about = comment[1] if comment else ""
        if get_origin(field.type) is Literal:
            about += f" ({', '.join(get_args(field.type))})"
        groups[TITLES.get(field.name, "model")].append((shown, about))
    for title, options in groups.items():
        lines += ["", f"{title}:"]
        for shown, about in options:
            fits = len(shown) < indent - 3
            lines += [] if fits else [f"  {shown}"]
            first = f"  {shown}".ljust(indent) if fits else " " * indent
            space = {"initial_indent": first, "subsequent_indent": " " * indent}
            lines += textwrap.wrap(about, max(min(width, 100), 60), **space) or [first.rstrip()]
    return "\n".join(lines)


def whole_path(name: str) -> str:
    """The path that `name` stands for here and now: --resume may come from another folder."""
    return os.path.realpath(os.path.expanduser(name)) if name else ""


def parse_options(
    config_class: type[ConfigType],
    arguments: Sequence[str] | None = None,
    default: ConfigType | None = None,
) -> ConfigType:
    """Parse `arguments` with tyro, turning its boxed error messages into one line. Flags that are
    on in `default` stay on; they may be given, too, which tyro would refuse."""
    complaint, settings, on = io.StringIO(), {}, {}
    if default is not None:
        on = {name: True for name, value in vars(default).items() if value is True}
        settings["default"] = replace(default, **dict.fromkeys(on, False))
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                config_class, args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **settings
            )
        return replace(parsed, **on)
    except SystemExit as stop:
        if not stop.code:
            raise
        names = [field.name for field in dataclasses.fields(config_class)]
        raise UserError(f"{_in_one_line(complaint.getvalue(), names)} (see --help)") from None


def _in_one_line(box: str, names: list[str]) -> str:
    """What tyro's box says below its title, up to the next rule; frames differ by terminal. Of the
    rest, keep only the options similar to an unknown one, or those of `names` that it abbreviates.
    """
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    rule = "─-╭╮╰╯+ "
    text = "\n".join(line if line.strip(rule) else "" for line in lines).strip()
    complaint, _, rest = text.partition("\n\n")
    similar = re.findall(r"^--(?!help)\S+", rest, re.MULTILINE)
    if complaint.startswith("Unrecognized") and (unknown := re.search(r"--([\w-]+)", complaint)):
        short = {"--" + n.replace("_", "-"): "".join(w[0] for w in n.split("_")) for n in names}
        similar += [option for option in short if short[option] == unknown[1]]
        if unknown[0] in short:
            complaint += f": {unknown[0]} follows from the text"
        elif similar:
            complaint += f": perhaps {' or '.join(similar)}"
    elif missing := re.match(r"Missing value for argument '(--\S+)'", complaint):
        complaint += f" If it begins with -, write {missing[1]}=-..."
    return complaint.replace("\n", " ") or "wrong arguments"


def load_config(config_class: type[ConfigType], out: str) -> ConfigType:
    """The config that the run in folder `out` was started with."""
    path = Path(out) / "config.json"
    if not path.exists():
        raise UserError(f"{path} is not there: train first, or name the run with --out")
    values = read_json(path)
    try:
        fresh = {"out": out, "resume": False, "sample": False, "score": "", "compile": False}
        return config_class(**values | {k: v for k, v in fresh.items() if k in values})
    except TypeError:
        raise UserError(f"{path} is another version's: use its train.py or another --out") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_config(config: Any) -> None:  # noqa: ANN401 - the Config of any version
    """UserError unless each value of `config` is of its type and each number within its limits."""
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if get_origin(field.type) is Literal:
            fits, kind = value in get_args(field.type), f"one of {get_args(field.type)}"
        else:
            wanted = (get_args(field.type) or (field.type,))[0]  # the int of Annotated[int, ...]
            fits = type(value) is wanted or (wanted, type(value)) == (float, int)
            kind = f"of type {wanted.__name__}"
        if not fits:
            raise UserError(f"{option} {value!r} is not {kind}")
        if type(value) in (int, float):
            limit = AT_MOST.get(field.name, LARGEST[type(value)])
            low = value < SMALLEST and (value or field.name not in MAY_BE_ZERO)
            if low or not value <= limit:  # nan is not
                least = "0 or more" if field.name in MAY_BE_ZERO else "more than 0"
                raise UserError(f"{option} {value} must be {least}, at most {limit:,}")
        elif field.name in PATHS and value != field.default and not _can_be_a_path(value):
            raise UserError(f"{option} {value!r} cannot be the name of a file or folder")


def _can_be_a_path(name: str) -> bool:
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def processes() -> int:
    """How many processes torchrun started. Some clusters set WORLD_SIZE for anything they start."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the first of them."""
    return processes() == 1 or os.environ["RANK"] == "0"


def tell_error(line: str) -> None:
    """Print why the program ends, unless another process that torchrun started already did: they
    end because one did, or for the same reason."""
    if processes() > 1:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        with contextlib.suppress(RuntimeError):  # torchrun's own store, which outlives this process
            store = torch.distributed.TCPStore(host, port, timeout=timedelta(seconds=2))
            if store.add(f"told{attempt}", 1) > 1:
                return
    tqdm.write(line, file=sys.stderr)  # not behind a progress bar


@cache  # once is enough
def save_time() -> None:
    """Spare this process what it would do for nothing."""
    # All that was imported stays: to search it for garbage, again and again, takes longer than to
    # parse the standard library for its docstrings.
    gc.freeze()
    # Optimizers import torch's compiler to have it leave them alone, a second and 50 MB, unless
    # they find what that would give them (torch/_compile.py).
    for method in vars(torch.optim.Optimizer).values():
        if inner := getattr(method, "__wrapped__", None):
            inner.__dynamo_disable = inner


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report errors in one line. The exit status is 2 for errors that the user can fix, 128 plus
    the signal's number for Ctrl-C and other signals, and 1 if the system failed."""
    save_time()

    def stop(number: int, _: object) -> None:
        write_nowhere(number)
        raise KeyboardInterrupt(number)

    ours = ended_by()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        ours.append(signal.SIGINT)
    with answered(ours, stop):
        try:
            yield
        except BrokenPipeError:  # the reader of our output, such as `head`, is gone
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            line, status = line_and_status(error)
            if not line:
                raise
            tell_error(line)
            sys.exit(status)


def line_and_status(error: BaseException) -> tuple[str, int]:
    """What to print of an error and with which status to end; no line for a fault of the code."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 128 + (error.args[0] if error.args else signal.SIGINT)
    if isinstance(error, OSError):
        path = error.filename or "a file"
        path, cache = Path(str(path)), cache_folder()
        in_cache = path.is_relative_to(cache) or path.is_absolute() and cache.is_relative_to(path)
        hint = " ($LADDER_CACHE can name another folder)" if in_cache else ""
        status = 2 if errno.errorcode.get(error.errno) in THE_USERS.split() else 1
        return f"error: {error.strerror or error}: {path}{hint}", status
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if full or any(words in str(error) for words in OUT_OF_MEMORY):
        return "error: out of memory: use a smaller model, batch or context length", 2
    reason = (str(error).splitlines() or [""])[0]
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"error: --compile: {reason}: run without it", 2
    return "", 1


def pick_device(name: str) -> str:
    """The device for `--device name`; UserError if this machine does not have it."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available.get(name):
        raise UserError(f"--device {name}: this machine has no such device; use --device auto")
    return name


def pick_dtype(name: str, device: torch.device) -> str:
    """What `--dtype name` means on a device: "auto" is bfloat16 if the hardware supports it, else
    float32, since emulated bfloat16 is many times slower; on Apple's GPUs it is float32, too."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        of_cpu = torch.cpu.get_capabilities()
        has = device.type == "cpu" and (of_cpu.get("avx512_bf16") or of_cpu.get("amx_bf16"))
    return "bfloat16" if has else "float32"


def given_tokenizer(tokenizer_class: type[T], config: Any) -> T | None:  # noqa: ANN401
    """The tokenizer that a run need not train: its own if it is resumed, or that of --tokenizer."""
    if config.resume:
        return load_tokenizer(tokenizer_class, Path(config.out) / "tokenizer.json")
    path = getattr(config, "tokenizer", "")
    return load_tokenizer(tokenizer_class, path) if path else None


def load_tokenizer(tokenizer_class: type[T], path: str | Path) -> T:
    """The tokenizer in `path`; UserError if it has no `<|endoftext|>`."""
    tokenizer = tokenizer_class.load(path)
    if END_OF_TEXT not in tokenizer.special_tokens:
        raise UserError(f"{path} has no {END_OF_TEXT}, which separates documents here")
    return tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of `prompt`; UserError if the tokenizer cannot represent all of it."""
    with contextlib.suppress(UnicodeError):  # in a locale without UTF-8, bytes became surrogates
        prompt = prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    ids = tokenizer.encode(prompt)
    if tokenizer.decode(ids) != prompt:
        lost = sorted({c for c in prompt if tokenizer.decode(tokenizer.encode(c)) != c})
        raise UserError(f"--prompt holds characters that the vocabulary lacks: {lost}")
    return ids
