"""The files as a reader meets them: the same sections, and diffs that tell what headers promise."""

import ast
import difflib
import re

import pytest
from conftest import ROOT, VERSIONS, load_version

from benchmarks.common import sections, source

SECTIONS = [
    "1. Config",
    "2. Tokenizer",
    "3. Data",
    "4. Model: norm",
    "5. Model: position",
    "6. Model: attention",
    "7. Model: feed-forward",
    "8. Model: language model",
    "9. Optimizer and schedule",
    "10. Evaluation",
    "11. Sampling",
    "12. Checkpoint",
    "13. Training loop",
    "14. Command line",
]
NAMES = "Config Tokenizer LanguageModel get_batch learning_rate evaluate generate save_checkpoint"
NAMES += " load_checkpoint train main"
PARTS = "Norm Attention FeedForward Block"  # of a transformer, from v1 on


@pytest.mark.parametrize("name", VERSIONS)
def test_sections_and_names(name):
    assert list(sections(name))[1:] == SECTIONS
    assert all(body.strip() for body in sections(name).values())
    names = NAMES.split() + (PARTS.split() if name != VERSIONS[0] else [])
    assert [n for n in names if not hasattr(load_version(name), n)] == []
    for text in (line for line in source(name).splitlines() if line.startswith("# ----")):
        assert re.fullmatch(r"# ---- \d+\. .* ----", text)


@pytest.mark.parametrize("before, after", list(zip(VERSIONS, VERSIONS[1:])))
def test_headers_name_the_sections_that_differ(before, after):
    doc = ast.get_docstring(ast.parse(source(after)))
    number = before.split("_")[0]
    promised = re.search(rf"New since {number} \(sections? ([\d, ]+)\):", doc)
    assert promised, "the header names the sections that differ"
    old, new = sections(before), sections(after)
    differing = [s.split(".")[0] for s in SECTIONS if old[s] != new[s]]
    assert promised[1].split(", ") == differing
    assert f"diff {before}/train.py {after}/train.py" in doc
    assert f"python {after}/train.py" in doc


def test_neighbours_share_what_their_idea_leaves():
    """From v1 on the smaller share of lines is the new one; v4 replaces most of the model."""
    v1, v2, v3, v4 = VERSIONS[1:5]
    for before, after, share in ((v1, v2, 0.7), (v2, v3, 0.85), (v3, v4, 0.42), (v2, v4, 0.45)):
        old, new = source(before).splitlines(), source(after).splitlines()
        blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        assert sum(block.size for block in blocks) / len(new) > share, (before, after)


def test_sections_that_are_the_same():
    """Positions are v2's in v4; evaluation, checkpoints and the command line are everybody's."""
    of_v2, of_v4 = sections("v2_bpe_rope"), sections("v4_modern")
    assert of_v4["5. Model: position"] == of_v2["5. Model: position"]
    for name in ("10. Evaluation", "12. Checkpoint", "14. Command line"):
        assert len({sections(version)[name] for version in VERSIONS}) == 1, name


FORMULAS = r"softmax|cross_entropy|logsumexp|autograd\.Function|nn\.(Linear|Embedding)|optim\.\w+\("


def test_what_is_shared_holds_no_model():
    """No loss, no layer, no optimizer; merge rules are in fast_bpe alone. (What is measured of any
    model, such as bits per byte of its nats, is no formula of one.)"""
    for path in (ROOT / "shared").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(FORMULAS, text), path
        assert "fast_bpe" in path.parts or "merges" not in text or path.name == "files.py", path
    assert re.search(FORMULAS, source("v0_bigram"))


def test_files_stay_short():
    lengths = {name: len(source(name).splitlines()) for name in VERSIONS}
    assert lengths["v0_bigram"] <= 326
    assert lengths["v4_modern"] <= 821
    assert max(len(line) for name in VERSIONS for line in source(name).splitlines()) <= 100


@pytest.mark.parametrize("name", VERSIONS)
def test_no_version_imports_another(name):
    """Only what stands beside it in its own folder, and that imports no version."""
    for node in ast.walk(ast.parse(source(name))):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules += [f"{node.module}.{a.name}" for a in node.names]
        for module in modules:
            beside = re.match(rf"{name}\.(?!train\b)", module)
            assert beside or not re.match(r"v\d|benchmarks|tests", module)


def test_shared_imports_nothing_of_the_versions():
    for path in (ROOT / "shared").rglob("*.py"):
        assert not re.search(r"(?m)^(from|import) (v\d|benchmarks|tests)", path.read_text("utf-8"))
