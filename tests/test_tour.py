"""The notebook, run from top to bottom with few steps on a small text."""

import copy

import pytest
import torch
from conftest import ROOT

from benchmarks import report_model
from benchmarks.common import open_run
from shared.files import read_json

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
PATH = ROOT / "v4_modern" / "tour.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)


def tagged(notebook, tag: str) -> int:
    (number,) = (i for i, c in enumerate(notebook.cells) if tag in c.metadata.get("tags", ()))
    return number


@pytest.fixture(scope="module")
def ran(tmp_path_factory, corpus_file):
    """The folder of its runs, and its cells with their outputs; the last one's are added here."""
    out = tmp_path_factory.mktemp("tour")
    notebook = copy.deepcopy(NOTEBOOK)
    ours = f"data, steps, prompt, out = {str(corpus_file)!r}, 6, 'the cat', Path({str(out)!r})"
    notebook.cells.insert(
        tagged(notebook, "parameters") + 1, nbformat.v4.new_code_cell(ours, id="ours")
    )
    asked = "torch.save([ids, weights], out / 'attention.pt'); likeliest(run_v4, 'the', 5)"
    notebook.cells.append(nbformat.v4.new_code_cell(asked, id="asked"))
    where = {"metadata": {"path": str(PATH.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    return out, [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_it_trains_both_and_shows_them(ran):
    out, cells = ran
    assert [read_json(out / v / "summary.json")["steps"] for v in ("v0", "v4")] == [60, 6]
    told = "\n".join(map(printed, cells))
    for name in ("v0", "v4"):
        bits = read_json(out / name / "summary.json")["bits_per_byte"]
        assert f"{name}: {bits:.3f} bits per byte" in told
    assert "step      6" in told and "|" in told and "---- v4_modern, temperature 0.3" in told
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2  # bits; heads
    assert all("#" not in printed(cell) and "\r" not in printed(cell) for cell in cells)  # no bars


def test_an_error_is_a_line(ran):
    _, cells = ran
    (failed,) = (cell for cell in cells if any(o.output_type == "error" for o in cell.outputs))
    assert "raises-exception" in failed.metadata.tags
    (error,) = failed.outputs
    assert error.traceback == ["error: vocab_size 100 must be at least 257"]


def test_what_it_computes_is_right(ran):
    """Attention as the page has it, from hooks; tokens and what follows from the model."""
    out, cells = ran
    ids, weights = torch.load(out / "attention.pt")
    _, run = open_run("v4_modern", out / "v4")
    expected = report_model.attention_of_layers(run.model, torch.tensor(ids))
    assert weights.shape == (3, 2, len(ids), len(ids))
    assert torch.allclose(weights, expected, atol=1e-5)
    p = run.model(torch.tensor([run.tokenizer.encode("the")]))[0, -1].softmax(-1)
    told = [(run.tokenizer.decode([i]), p[i].item()) for i in p.topk(5).indices.tolist()]
    (result,) = cells[-1].outputs
    shown = eval(result.data["text/plain"])
    assert [text for text, _ in shown] == [text for text, _ in told]
    assert [q for _, q in shown] == pytest.approx([q for _, q in told], rel=1e-3)


def test_what_is_committed_is_small_and_was_run_in_order():
    assert PATH.stat().st_size < 100_000
    cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    failed = [c for c in cells if any(o.output_type == "error" for o in c.outputs)]
    assert failed == [NOTEBOOK.cells[tagged(NOTEBOOK, "raises-exception")]]
    assert str(ROOT) not in PATH.read_text(encoding="utf-8")
