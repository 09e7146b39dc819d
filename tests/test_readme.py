"""The READMEs' code and commands as they stand there, and the way to a version of one's own."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import forked
import pytest
import torch
from conftest import ROOT, VERSIONS, load_version, small_arguments, small_text
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import RESULTS, mean
from benchmarks.records import read_results
from shared.command_line import parse_options

PLACES = "benchmarks/README.md", "shared/README.md", "README.md", "v4_modern/README.md"
TEXTS = {place: (ROOT / place).read_text(encoding="utf-8") for place in PLACES}
README = TEXTS["README.md"]
ALL = re.sub(r"(?s)<!-- results .*?<!-- /results -->", "", "\n".join(TEXTS.values()))
PYTHON = re.findall(r"(?ms)^```python\n(.*?)^```$", ALL)
# Lines of indented blocks (of four columns, seven in a list) that begin with a program's name, with
# what they go on with after a backslash; and what stands in a sentence and begins with `python`
# or `torchrun`.
PROGRAMS = r"(?:[A-Z_]+=\S+ )?(?:python|torchrun|pytest|pip|git|diff|grep) "
COMMANDS = re.findall(rf"(?m)^(?: {{4}}| {{7}})({PROGRAMS}(?:.*\\\n)*.*)$", ALL)
COMMANDS += re.findall(r"`((?:python|torchrun) [^`]+)`", ALL)
COMMANDS = list(dict.fromkeys(re.sub(r"\\?\n *", " ", command) for command in COMMANDS))
# A command is not run here if a comment behind it says how long it takes, or what it needs.
LONG = re.compile(r"#.*\b(seconds?|minutes?|hours?|days?|needs)\b")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
QUICK = [command for command in COMMANDS if not LONG.search(command)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository, with the text and the run of v4 that the README speaks of."""
    copy = tmp_path_factory.mktemp("readme") / "ladder"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("runs", ".*", "__pycache__"))
    (copy / "my_text.txt").write_text(small_text(), encoding="utf-8")
    v4 = load_version("v4_modern")
    folder = copy / "runs" / "v4_modern"
    v4.main(small_arguments(v4, data=copy / "my_text.txt", out=folder, context_length=64))
    return copy


def run_command(folder: Path, command: str) -> str:
    """What a command of the READMEs prints in `folder`."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "python":
        ended = forked.run([sys.executable, *arguments], cwd=folder)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    else:
        ended = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
        assert ended.stdout and not ended.stderr, f"{command}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_runs_as_printed(command, copy):
    run_command(copy, command)
    if "export.py" in command:
        assert (copy / shlex.split(command)[3]).exists()


def test_long_commands_say_how_long_they_take():
    """Which is all that keeps the test above from running them. What is run can be run by it."""
    assert len(QUICK) >= 12 and len(COMMANDS) - len(QUICK) >= 30
    assert all(command.split()[0] in ("python", "diff", "grep") for command in QUICK)


def test_sizes_are_as_the_table_says():
    """Also the options of commands that are too long to run are the versions' own."""
    v4 = load_version("v4_modern")
    sizes = re.findall(r"(?m)^\| [^|]* \| ([\d,]{9,}) \| \d\.\de\d+ \|", ALL)
    long = (c for c in COMMANDS if "--vocab-size" in c and "--feed-forward-size" in c)
    presets = ["python v4_modern/train.py", *long]
    assert len(sizes) == len(presets) == 6
    for command, size in zip(presets, sizes):
        arguments = shlex.split(command, comments=True)[2:]
        with torch.device("meta"):
            model = v4.LanguageModel(parse_options(v4.Config, arguments))
        assert f"{sum(p.numel() for p in model.parameters()):,}" == size, command


@pytest.fixture(scope="module")
def notebook(copy, pydocs):
    """The names that the Python blocks leave, run one after the other."""
    if not (copy / "my_model").exists():  # the command that makes it stands before the blocks
        run_command(copy, "python v4_modern/export.py runs/v4_modern my_model")
    names, before = {"printed": io.StringIO()}, os.getcwd()
    os.chdir(copy)
    try:
        for block in PYTHON:
            with contextlib.redirect_stdout(names["printed"]):
                exec(compile(block, "README.md", "exec"), names)
    finally:
        os.chdir(before)
    return names


def test_python_blocks_run_as_they_stand(notebook):
    assert len(PYTHON) == 5
    assert notebook["summary"]["steps"] == 20
    assert re.search(r"\]\nthe cat", notebook["printed"].getvalue())
    assert notebook["run"].tokenizer.decode(notebook["ids"]) == "the rat sat"


@pytest.mark.parametrize("name", VERSIONS[:-1])  # the last one is the README's
def test_every_version_can_be_used_so(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in PYTHON if "load_version" in block)
    exec(block.replace("v4_modern", name), {})
    assert capsys.readouterr().out.rpartition("]\n")[2].startswith("the cat")


def test_tiktoken_gives_our_ids(notebook):
    tokenizer, encoding = notebook["tokenizer"], notebook["encoding"]
    texts = st.text().map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))

    @given(texts | st.text(st.sampled_from("the cat's 42 \n\té漢,.<|endoftext|>")))
    def check(text):
        assert encoding.encode(text, allowed_special="all") == tokenizer.encode(text)
        assert encoding.decode(tokenizer.encode(text)) == text

    check()
    assert len(tokenizer.encode(" the cat")) < 6  # merges were learned, and are used


# ---- what is said of results, and where it points ----


def test_the_ladder_and_the_samples_are_those_of_the_results():
    results = read_results(RESULTS / "seconds-120" / "results.json")
    ladder = re.findall(r"(?m)^\| \[(\w+)\]\(\1/train\.py\) \|.*\| (\S+) \|$", README)
    bits = {
        name: [r["bits_per_byte"] for r in results["runs"] if r["version"] == name]
        for name in VERSIONS
    }
    assert ladder == [(name, f"{mean(bits[name]):.3f}") for name in VERSIONS]
    samples = re.findall(r"(?m)^    v(\d)  (.*)$", README)
    assert [version for version, _ in samples] == ["0", "0", "1", "2", "3", "4"]
    for version, line in samples:
        seen = results["exhibits"][VERSIONS[int(version)]]["samples"].values()
        assert any(text.startswith(line) for text in seen), line


def test_what_was_found_stands_in_the_table_that_it_points_to():
    found = re.search(r"(?ms)^## What was found\n(.*?)^## ", README)[1]
    _, *findings = re.split(r"(?m)^- ", found)
    assert len(findings) == 6
    for finding in findings:
        (place,) = re.findall(r"\]\(([^)#]+)", finding)
        for number in re.findall(r"\*\*(\S+?)\*\*", finding):
            share = f"{float(number[:-1]) / 100:.3f}" if number.endswith("%") else number
            forms = {number, share, share.removesuffix("0")}
            cells = set(re.findall(r"[\d.,]*\d%?", (ROOT / place).read_text(encoding="utf-8")))
            assert forms & cells, (number, place)


def test_every_benchmark_stands_in_the_index_with_its_command_and_time():
    index = TEXTS["benchmarks/README.md"].partition("<!-- results")[0]
    rows = re.findall(r"(?m)^\| .* \| `(.*)` \| (.*) \|$", index)
    listed = [f"python benchmarks/{command}  # {time}" for command, time in rows]
    measured = re.findall(r"(?m)^    (python benchmarks/.*)$", TEXTS["benchmarks/README.md"])
    assert sorted(listed) == sorted(measured)
    programs = {p.name for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert programs == set(re.findall(r"\w+\.py", index))


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("place", PLACES)
def test_links_and_pictures_are_there(place):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[place]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / place).parent / path if path else ROOT / place
        assert file.exists(), target
        titles = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8")) if anchor else []
        assert not anchor or anchor in map(slug, titles), target


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


# ---- Add v5_yours ----


@pytest.fixture(scope="module")
def with_v5(copy):
    """The copy, and in it v4 as v5 with the README's header and a line more in section 6."""
    shutil.copytree(copy / "v4_modern", copy / "v5_yours")
    path = copy / "v5_yours" / "train.py"
    header = textwrap.dedent(re.search(r'(?ms)^ +"""v5: .*?"""\n', README)[0])
    _, _, code = path.read_text(encoding="utf-8").split('"""', 2)
    banner = "# ---- 7. Model: feed-forward ----"
    assert banner in code
    path.write_text(header + code[1:].replace(banner, f"# Mine.\n\n{banner}"), encoding="utf-8")
    for path in (copy / "v5_yours").glob("*.py"):
        code = path.read_text(encoding="utf-8")
        path.write_text(code.replace("from v4_modern", "from v5_yours"), encoding="utf-8")
    return copy


def test_the_harness_finds_a_new_version(with_v5):
    some = "sections or headers or imports or round_trip or batches_are"
    files = "-p no:cacheprovider tests/test_contract.py tests/test_sections.py"
    command = f"python -m pytest -q {files} -k 'v5_yours and ({some})'"
    assert re.search(r"(?m)^5 passed", run_command(with_v5, command))


def test_comparison_and_page_find_a_new_version(with_v5):
    asked = "--bytes 3000 --seeds 1 --name mine --data my_text.txt --versions v5 --prompts A"
    said = run_command(with_v5, f"python benchmarks/compare.py {asked}")
    assert "| v5_yours | **" in said
    run_command(with_v5, "python benchmarks/report.py --results mine")
    page = (with_v5 / "runs" / "report.html").read_text(encoding="utf-8")
    assert "v5_yours" in page and "your idea in a line" in page
