"""The README's numbers come from the committed results, and from nowhere else."""

import ast
import importlib.util
import json
import re
import statistics

import pytest
from conftest import ROOT, VERSIONS, load_version

spec = importlib.util.spec_from_file_location("ladder", ROOT / "benchmarks" / "ladder.py")
ladder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ladder)
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((ladder.RESULTS / "results.json").read_text(encoding="utf-8"))


def test_the_table_is_what_the_results_give():
    """If only the length of a file has changed: python benchmarks/ladder.py --render"""
    assert ladder.readme_with(ladder.report(RESULTS), README) == README
    assert ladder.report(RESULTS) in README


def test_the_table_computes_mean_and_spread():
    toy = [dict(RESULTS[0], version="v0_bigram", bits_per_byte=b) for b in (1, 2, 6)]
    assert "**3.000** ± 2.646" in ladder.table(toy)  # sqrt((4 + 1 + 9) / 2)


def bits(name):
    return statistics.mean(run["bits_per_byte"] for run in RESULTS if run["version"] == name)


def test_the_ladder_goes_up():
    v0, v1, v2, _, v4 = map(bits, VERSIONS)
    assert v0 > v1 > v2 > v4
    assert v4 <= 0.72 * v1 and v4 <= 0.95 * v2


@pytest.mark.parametrize("name", VERSIONS)
def test_headers_promise_what_was_measured(name):
    source = (ROOT / name / "train.py").read_text(encoding="utf-8")
    promised = re.search(r"about (\d\.\d\d) bits per byte", ast.get_docstring(ast.parse(source)))
    assert float(promised[1]) == pytest.approx(bits(name), abs=0.02)


def test_every_file_and_option_of_the_readme_exists():
    options = set()
    for name in VERSIONS:
        fields = load_version(name).Config.__dataclass_fields__
        options |= {"--" + field.replace("_", "-") for field in fields}
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= options | {"--help"}
    for path in re.findall(r"[\w./]+\.(?:py|txt|png)\b", README):
        if "/" in path and not path.startswith("my_"):
            assert (ROOT / path).exists(), path
