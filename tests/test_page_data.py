"""What the page computes from finished runs."""

import math
import shutil

import pytest
import torch
from conftest import VERSIONS, load_version

from benchmarks import report_data
from benchmarks.common import open_run
from shared.corpora import read_documents
from shared.files import read_json, write_json


@pytest.fixture(scope="module")
def runs(finished_runs) -> dict:
    return report_data.open_runs({name: [finished_runs / name] for name in VERSIONS})


def test_the_paragraph_is_coloured_by_what_each_token_costs(runs):
    text = report_data.paragraph(runs)
    _, corpus, *_ = load_version("v0_bigram").load_data(runs["v0_bigram"].config)
    assert len(text) > 200 and any(text in document for document in read_documents(corpus.val))
    for name, coloured in report_data.coloured(runs, text).items():
        run = runs[name]
        ids = [run.tokenizer.special_tokens["<|endoftext|>"], *run.tokenizer.encode(text)]
        n_bytes = total = 0
        assert len(coloured["tokens"]) == len(ids) - 1 > run.config.context_length
        shown = "".join(piece for piece, *_ in coloured["tokens"])
        assert shown == text
        for i, (piece, bits, a_byte, rank, number) in enumerate(coloured["tokens"], start=1):
            window = torch.tensor([ids[max(0, i - run.config.context_length) : i]])
            p = run.model(window)[0, -1].detach().float().softmax(-1)
            assert bits == pytest.approx(-math.log2(p[ids[i]]), abs=0.02)
            assert a_byte == pytest.approx(bits / len(piece.encode()), abs=0.02)
            top = coloured["tops"][number]
            assert top[1::2] == pytest.approx((1e4 * p.topk(10).values).tolist(), abs=20)
            assert list(top[1::2]) == sorted(top[1::2], reverse=True)
            if rank <= 10 and top[1::2].count(top[2 * rank - 1]) == 1:
                assert coloured["vocab"][top[2 * rank - 2]] == piece
            total, n_bytes = total + bits, n_bytes + len(piece.encode())
        assert coloured["bits_per_byte"] == pytest.approx(total / n_bytes, abs=0.02)


def test_runs_of_another_text_or_damaged_ones_are_left_out(finished_runs, tmp_path, capsys):
    for name in VERSIONS[:4]:
        shutil.copytree(finished_runs / name, tmp_path / name)
    summary = read_json(tmp_path / VERSIONS[0] / "summary.json")
    summary["corpus"]["sha256"] = "00"
    write_json(tmp_path / VERSIONS[0] / "summary.json", summary)
    (tmp_path / VERSIONS[1] / "checkpoint.pt").write_bytes(b"")
    found = report_data.open_runs({name: [tmp_path / name] for name in VERSIONS})
    assert list(found) == VERSIONS[2:4]  # of v4, there is no run
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith(f"{VERSIONS[1]} is left out: ")
    assert said[1].endswith("is of another text")
    _, run = open_run(VERSIONS[2], tmp_path / VERSIONS[2], data="other")
    run.config.data = str(tmp_path / VERSIONS[2] / "samples.txt")
    run.summary = summary
    assert report_data.paragraph({VERSIONS[2]: run}) == "" == report_data.paragraph({})
    assert report_data.coloured({VERSIONS[2]: run}, "") == {}
    assert report_data.open_runs({name: [] for name in VERSIONS}) == {}
