"""Numbers of the benchmarks are computed from results, and the README shows nothing else."""

import ast
import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import toy
from conftest import ROOT, VERSIONS, load_version
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from benchmarks import (
    ablations,
    against,
    budgets,
    climb,
    command,
    common,
    compare,
    faults,
    report,
    report_data,
    report_diffs,
    report_steps,
    scale,
    soak,
    sweep,
    tokenizers,
    training,
)
from benchmarks import all as everything
from benchmarks.records import read_results
from shared.files import UserError, write_json
from v4_modern import encode

README = common.README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?s)<!-- results (\S+) -->\n(.*?)\n<!-- /results -->", README)


# ---- measures ----


def test_every_measure_against_a_value_found_by_hand():
    v1, v2 = compare.summarize(toy.results())
    assert v2["bits_per_byte"] == pytest.approx(3.0)
    assert v2["spread"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert v1["spread"] == pytest.approx(math.sqrt(2))
    assert v2["change"] == pytest.approx(3 / 4 - 1) and v1["change"] is None
    assert v2["bytes_a_token"] == pytest.approx(2)
    assert v2["context_bytes"] == pytest.approx(128)
    # 1,000 bytes in 50 words: 20 bytes a word, so b bits a byte make a perplexity of 2^(20 b).
    assert v2["word_perplexity"] == pytest.approx((2**20 + 2**40 + 2**120) / 3)
    assert v1["perplexity"] == pytest.approx((4**3 + 4**5) / 2)
    assert v1["seconds"] == pytest.approx(2.5)
    assert v1["bytes_a_second"] == pytest.approx((6000 / 2 + 6000 / 3) / 2)
    assert v2["beyond"] == [
        {"times": t, "mean": pytest.approx(3 * t), "spread": pytest.approx(t * math.sqrt(7))}
        for t in (1, 2, 4, 8)
    ]
    assert v1["beyond"] == [] and "64 positions" in v1["why_not_beyond"]


def test_tables_have_as_many_cells_in_each_row_and_texts_are_escaped():
    text = compare.report(toy.results())
    assert "v2_bpe_rope:\n\n<pre>A &lt;b&gt; dog &amp; $1</pre>" in text
    assert "**3.000** ± 2.646" in text and "6.000 ± 5.292 (+100.0%)" in text
    for table in re.findall(r"(?m)(?:^\|.*\|\n)+", text + "\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_sweep_tells_the_best_the_worse_and_the_diverged():
    rows = sweep.summarize(toy.sweep()["points"])
    assert [row["diverged"] for row in rows] == ["", "", "2 of 2"]
    assert rows[1]["bits_per_byte"] == 2 and rows[1]["spread"] == pytest.approx(math.sqrt(0.5))
    text = sweep.report(toy.sweep())
    assert "best at 0.01, 2.000 ± 0.707 bits per byte; 0.001 costs +50.0%, 0.1 diverges" in text


def test_the_bits_of_a_real_run_are_those_of_a_naive_count(corpus_file, tmp_path, started):
    """One token at a time through torch's own softmax, words by a pattern."""
    options = {"data": str(corpus_file), "steps": 2, "batch_size": 2, "width": 16, "n_layers": 1}
    record = common.train("v2_bpe_rope", tmp_path / "run", options | {"vocab_size": 300}, threads=1)
    module, run = common.open_run("v2_bpe_rope", tmp_path / "run", device="cpu")
    corpus = compare.load_corpus(str(corpus_file))
    text = corpus.val.read_text(encoding="utf-8")
    record["beyond"] = compare.read_beyond("v2_bpe_rope", tmp_path / "run")
    documents = [document for document in text.split("<|endoftext|>") if document]
    words = sum(len(re.findall(r"\S+", document)) for document in documents)
    ids = [run.tokenizer.special_tokens["<|endoftext|>"]]
    for document in documents:
        ids += [*run.tokenizer.encode(document), ids[0]]
    nats, length = 0.0, run.config.context_length
    with torch.no_grad():
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor(ids[start : start + length + 1])
            logs = torch.log_softmax(run.model.eval()(window[None, :-1])[0].double(), -1)
            nats -= sum(logs[i, t].item() for i, t in enumerate(window[1:]) if t != ids[0])
    n_bytes = sum(len(document.encode("utf-8")) for document in documents)
    (row,) = compare.summarize({"validation_words": words, "runs": [record]})
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert row["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-3)
    tokens = sum(token != ids[0] for token in ids)
    assert row["bytes_a_token"] == pytest.approx(n_bytes / tokens, rel=1e-6)
    assert row["beyond"][0]["mean"] == pytest.approx(row["bits_per_byte"], rel=1e-5)
    assert {scored for *_, scored in record["beyond"]["lengths"]} == {n_bytes}
    assert [times for times, *_ in record["beyond"]["lengths"]] == [1, 2, 4, 8]


# ---- commands ----


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Runs and results of the commands below go to a folder of the test."""
    for module in (compare, sweep):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    return tmp_path


def test_a_comparison_runs_goes_on_and_is_not_run_twice(
    elsewhere, started, corpus_file, capsys, monkeypatch
):
    drawn = []
    monkeypatch.setattr(command, "save", lambda figure, path: drawn.append(path.name))
    asked = f"--bytes 4000 --seeds 1 --threads 1 --name toy --data {corpus_file} --prompts the"
    asked = asked.split()
    compare.main([*asked, "--versions", "v1"])
    assert len(started) == 1 and str(ROOT / "v1_char_transformer" / "train.py") in started[0]
    capsys.readouterr()
    compare.main([*asked, "--versions", "v1", "v0"])  # as if it had been stopped after v1
    assert len(started) == 2
    out = capsys.readouterr().out
    results = read_results(elsewhere / "results" / "toy" / "results.json")
    assert [run["version"] for run in results["runs"]] == ["v0_bigram", "v1_char_transformer"]
    for run in results["runs"]:  # as near to the budget as whole steps come
        assert abs(run["train_bytes"] - 4000) <= run["train_bytes"] / run["steps"]
        assert set(results["exhibits"][run["version"]]["samples"]) == {"the"}
    assert "only 64 positions were learned" in out and "v0_bigram, seed 0: " in out
    assert results["runs"][0]["beyond"]["reads"] == 1  # a table looks at one character
    table = (elsewhere / "results" / "toy" / "table.md").read_text(encoding="utf-8")
    assert table.strip() in out and drawn[4:] == [
        "ladder.png",
        "bits.png",
        "beyond.png",
        "rates.png",
    ]
    with pytest.raises(SystemExit) as stop:  # the same name for something else
        compare.main([*asked, "--bytes", "5000", "--versions", "v0"])
    assert stop.value.code == 2 and "--fresh" in capsys.readouterr().err
    compare.main([*asked, "--fresh", "--versions", "v0"])
    assert len(started) == 3


def test_runs_of_another_dtype_or_text_do_not_go_with_ours():
    runs = [toy.run("v2_bpe_rope", seed, 2.0) for seed in range(2)]
    corpus = SimpleNamespace(name="toy", sha256="ab" * 32)
    common.check_alike([*runs, toy.run("v4_modern", 0, 2.0, dtype="bfloat16")], corpus)
    with pytest.raises(UserError, match="--dtype"):
        common.check_alike([*runs, toy.run("v2_bpe_rope", 2, 2.0, dtype="bfloat16")], corpus)
    with pytest.raises(UserError, match="has changed since: use --fresh"):
        common.check_alike(runs, SimpleNamespace(name="toy", sha256="cd" * 32))


def test_a_gpu_that_a_run_may_use_does_not_read_what_is_on_the_cpu(monkeypatch, tmp_path):
    """Runs say --device auto; windows to compare lie on the CPU."""

    def opened(version, folder, **options):
        assert options["device"] == "cpu"
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "open_run", opened)
    for look in (compare.read_beyond, compare.map_embeddings):
        with pytest.raises(KeyboardInterrupt):
            look("v4_modern", tmp_path)


def test_seconds_become_steps_by_timing(monkeypatch, tmp_path):
    """A step of 20 ms: 100 of them in 2 s, found from runs that count after their tenth step."""

    def fake(version, folder, options, threads, **_):
        rows = [{"step": s, "train_loss": 1, "seconds": 9 + s / 50} for s in range(10, 50, 10)]
        folder.mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")

    monkeypatch.setattr(budgets, "train", fake)
    budget, program = budgets.Budget(seconds=2), common.program_of("v1_char_transformer")
    assert budgets.choose_steps("v1_char_transformer", program, budget, tmp_path) == 100


def test_a_first_run_that_misses_its_seconds_is_run_once_more(tmp_path, capsys):
    """10 ms a step where 20 ms were measured: 100 steps took 1 s of 2, so 200 are right. All seeds
    make as many, also where the machine is slower, and when the comparison goes on."""
    steps, finished = [], {}

    def fake(folder, settings):
        folder.mkdir(exist_ok=True)
        if settings["seed"] not in finished or steps == [100]:
            steps.append(settings["steps"])
            seconds = settings["steps"] / (100 if settings["seed"] == 0 else 50)
            finished[settings["seed"]] = {"steps": settings["steps"], "seconds": seconds}
        return finished[settings["seed"]]

    budget, taken = budgets.Budget(seconds=2), []
    for seeds in ([0, 1], [0, 1, 2]):
        settings = budgets.lasting(100)
        for seed in seeds:
            out = tmp_path / str(seed)
            taken.append(budgets.run_one(fake, out, seed, settings, budget)["seconds"])
        assert settings == budgets.lasting(200)
    assert taken == [2, 4, 2, 4, 4] and steps == [100, 200, 200, 200]
    assert capsys.readouterr().out.count("once more") == 1


def test_a_run_that_diverges_is_recorded_and_one_that_fails_is_told(tmp_path, corpus_file, started):
    settings = {"data": str(corpus_file), "steps": 30, "learning_rate": 1e30, "seed": 0}
    run = sweep.run_one("v1_char_transformer", tmp_path, settings | {"batch_size": 1}, 1)
    assert "the loss is" in run["diverged"] and sweep.has_diverged(run)
    with pytest.raises(common.RunFailed, match="no file or folder") as failure:
        sweep.run_one("v0_bigram", tmp_path, {"data": "nowhere"}, 1)
    assert isinstance(failure.value, UserError)


def test_a_sweep_runs_what_experiments_share_once(
    elsewhere, started, corpus_file, capsys, monkeypatch
):
    monkeypatch.setattr(sweep, "FACTORS", dict.fromkeys(sweep.FACTORS, (0.5, 1)))
    asked = f"--version v0 --bytes 4000 --seeds 1 --jobs 2 --data {corpus_file}".split()
    sweep.main([*asked, "--what", "learning_rate", "batch_size", "vocab_size"])
    runs = [command for command in started if "train.py" in str(command)]
    assert len(runs) == 3
    out = capsys.readouterr().out
    assert "v0_bigram has no --vocab-size" in out and "**Batch size**: best at" in out
    assert (elsewhere / "results" / "sweep-v0" / "sweep.png").stat().st_size > 1000


def test_a_sweep_that_failed_does_not_stop_the_next_one(
    elsewhere, started, corpus_file, monkeypatch
):
    monkeypatch.setattr(sweep, "FACTORS", {"learning_rate": (1,)})
    asked = f"--version v0 --bytes 4000 --seeds 1 --data {corpus_file}".split()
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train_or_diverge", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sweep.main(asked)
    sweep.main(asked)
    assert len(started) == 1 and (elsewhere / "results" / "sweep-v0" / "results.json").exists()


def test_larger_is_ten_times_as_long_and_as_large(corpus_file):
    v4 = load_version("v4_modern")
    options = sweep.Options(larger=True, bytes=200_000, data=str(corpus_file))
    sizes = {}
    for point in sweep.plan_larger(options):
        config = v4.Config(**point["options"])
        assert config.learning_rate == pytest.approx(v4.Config.learning_rate * point["factor"])
        rates = config.learning_rate, config.muon_learning_rate
        assert rates[1] / rates[0] == pytest.approx(1.5)
        with torch.device("meta"):
            size = sum(p.numel() for p in v4.LanguageModel(config).parameters())
        sizes.setdefault(point["what"], set()).add((config.steps, size))
    [(steps, size)], [(more_steps, same)], [(same_steps, larger)] = sizes.values()
    assert more_steps == pytest.approx(10 * steps, rel=0.05) and same == size
    assert larger == pytest.approx(10 * size, rel=0.1) and same_steps == steps


@pytest.mark.parametrize(
    "module, arguments, said",
    [
        (compare, "--seconds 1 --bytes 1", "two budgets"),
        (compare, "--seconds nan", "0 or more"),
        (compare, "--name ../precious --fresh", "--name"),
        (sweep, "--version v0 --what vocab_size", "v0_bigram has none of vocab_size"),
        (scale, "--sizes nan", "--sizes"),
        (tokenizers, "--sizes 1 0", "--sizes"),
        (tokenizers, "--repeats 0", "--repeats"),
        (report, "--results sweep-v4", "compare.py"),
        (report, "--climb seconds-120", "climb.py"),
        (climb, "--seeds 0", "--seeds"),
        (sweep, "--bytes inf", "more than 0"),
        (compare, "--name nowhere --readme", "results.json"),
        (sweep, "--what colour", "batch_size"),
        (sweep, "--version v9", "v4_modern"),
        (sweep, "--ablate --what colour", "learned_positions"),
        (sweep, "--ablate --version v2", "parts of v3_alibi and v4_modern"),
        (sweep, "--larger --version v2", "v4_modern"),
        (sweep, "--larger --what vocab_size", "without"),
    ],
)
def test_a_wrong_option_is_told_in_a_line(module, arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(arguments.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and said in err


# ---- README ----


@pytest.mark.parametrize("name, text", BLOCKS)
def test_the_readme_shows_what_the_results_give(name, text):
    """If a file's length has changed: python benchmarks/compare.py --seconds 120 --readme, which
    also rewrites the table of origins."""
    if name == "origins":
        assert common.origins() == text and "unknown" not in text
        return
    results = read_results(common.RESULTS / name / "results.json")
    of_their_own = {"tokenizers": tokenizers, "scale": scale, "faults": faults}
    of_their_own |= {"training": training, "against": against}
    of_their_own |= {"ablate-v3": ablations, "ablate-v4": ablations}
    module = of_their_own.get(name, sweep if "points" in results else compare)
    assert common.in_brief(name, module.report(results)) == text and "<details>" not in text
    table = (common.RESULTS / name / "table.md").read_text(encoding="utf-8")
    assert table == module.report(results) + "\n"


def test_the_readme_shows_all_results():
    """But those of climb and engines, which are in the tour, and two tables behind a link."""
    folders = {path.name for path in common.RESULTS.iterdir() if path.is_dir()}
    elsewhere = {"climb", "engines", "as-shipped", "soak"}
    assert {name for name, _ in BLOCKS} == folders - elsewhere | {"origins"}


def test_readme_is_written_between_its_markers_alone():
    readme = "a\n<!-- results x -->\nold\n<!-- /results -->\nb <!-- /results -->"
    new = "a\n<!-- results x -->\nnew\n<!-- /results -->\nb <!-- /results -->"
    assert common.readme_with(readme, "x", "new") == new
    assert common.readme_with(new, "x", "new") == new
    with pytest.raises(UserError, match="results y"):
        common.readme_with(readme, "y", "new")


def test_readme_without_a_block_of_the_results_shows_their_origin(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(common.readme_with(README, "origins", "of long ago"), encoding="utf-8")
    monkeypatch.setattr(common, "RESULTS", shutil.copytree(common.RESULTS, tmp_path / "results"))
    monkeypatch.setattr(common, "README", readme)
    monkeypatch.setattr(command, "save", lambda figure, path: pyplot.close(figure))
    soak.main(["--readme"])
    assert readme.read_text(encoding="utf-8") == README


def results_of(name: str) -> dict[str, dict]:
    rows = compare.summarize(read_results(common.RESULTS / name / "results.json"))
    return {row["version"].split("_")[0]: row for row in rows}


def test_at_equal_time_the_ladder_goes_up():
    """Beyond the spread of the seeds: by more than the sum of both deviations."""
    rows = results_of("seconds-120")
    v0, v1, v2, v4 = (rows[name]["bits_per_byte"] for name in ("v0", "v1", "v2", "v4"))
    assert v0 > v1 > v2 > v4
    for below, share in (("v1", 0.72), ("v2", 0.95)):
        margin = rows[below]["spread"] + rows["v4"]["spread"]
        assert v4 + margin <= share * rows[below]["bits_per_byte"]


def test_alibi_reads_on_where_rotation_does_not():
    beyond = {name: row["beyond"] for name, row in results_of("seconds-120").items()}
    at = {name: {b["times"]: b["mean"] for b in beyond[name]} for name in ("v2", "v3", "v4")}
    assert at["v3"][4] <= 1.03 * at["v3"][1]
    assert at["v2"][4] > at["v2"][1] and at["v4"][4] > at["v4"][1]


@pytest.mark.parametrize("name", VERSIONS)
def test_headers_promise_what_was_measured(name):
    promised = re.search(
        r"about (\d\.\d\d) bits per byte", ast.get_docstring(ast.parse(common.source(name)))
    )
    measured = results_of("as-shipped")[name.split("_")[0]]["bits_per_byte"]
    newer = read_results(common.RESULTS / "against" / "results.json")
    if name == newer["asked"]["version"]:  # measured again, as shipped
        measured = against.rows_of(newer)[-1]["bits_per_byte"]
    assert float(promised[1]) == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize(
    "place", ["README.md", "benchmarks/README.md", "shared/README.md", "v4_modern/README.md"]
)
def test_every_file_and_option_of_the_readmes_exists(place):
    readme = (ROOT / place).read_text(encoding="utf-8")
    readme = re.sub(r"(?s)<!-- results engines -->.*?<!-- /results -->", "", readme)  # others' own
    options = {
        "--type",
        "--help",
        "--logdir",
    }  # the second is TensorBoard's, the others torchrun's and pip's
    options |= {"--index-url", "--ablate", "--signals-to-handle"}
    options |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}
    configs = [load_version(name).Config for name in VERSIONS]
    programs = (compare, sweep, report, encode, training, tokenizers, climb, everything)
    others = [program.Options for program in programs]
    for config in configs + others:
        options |= {"--" + field.replace("_", "-") for field in config.__dataclass_fields__}
    assert set(re.findall(r"--[a-z][a-z-]+", readme)) <= options
    for path in re.findall(r"[\w./-]+\.(?:py|txt|png|md)\b", readme):
        if "/" in path and not path.startswith(("my_", "runs/", "v5_", "texts/")):
            assert (ROOT / path).exists() or ((ROOT / place).parent / path).exists(), path


# ---- the page ----


def plain(html: str | None) -> str | None:
    """What a browser shows of a piece of HTML."""
    import html as html_module

    return None if html is None else html_module.unescape(re.sub(r"<[^>]*>", "", str(html)))


def unfold(rows: list[dict]) -> list[dict]:
    return [row for each in rows for row in (each["rows"] if each["kind"] == "fold" else [each])]


lines = st.lists(st.sampled_from(["a = 1", "", "    b < 2", '"""', "# c & d", "x"]), max_size=30)


@given(lines, lines)
def test_a_diff_holds_both_texts(old, new):
    rows = unfold(report_diffs.side_by_side("\n".join(old), "\n".join(new), (5, 7)))
    for side, first in (("old", 5), ("new", 7)):
        shown = [line for row in rows for line in row[side]]
        assert [number for number, _ in shown] == list(range(first, first + len(shown)))
    before = [plain(line) for row in rows for _, line in row["old"]]
    after = [plain(line) for row in rows for _, line in row["new"]]
    assert "\n".join(before).rstrip("\n") == "\n".join(old).rstrip("\n")
    assert "\n".join(after).rstrip("\n") == "\n".join(new).rstrip("\n")
    for row in rows:
        pair = ([plain(line) for _, line in row[side]] for side in ("old", "new"))
        assert (row["kind"] == "same") == (next(pair) == next(pair))


def marked(line: str) -> str:
    """A line's HTML as text, with its marks in brackets."""
    return plain(re.sub(r'<span class="[^"]*-Changed">(.*?)</span>', r"[\1]", line))


def test_words_that_changed_are_marked():
    old = "def f(a, b):\n    return g(a) + 1\n\nx = 1\nspam = eggs(2)\n  y = 2"
    new = "def f(a, c):\n    return g(a) + max(1, 2)\n\nz.append(y)\nspam = ham(3)\ny = 2"
    rows = unfold(report_diffs.side_by_side(old, new))
    before, after = (
        [marked(line) for row in rows for _, line in row[side]] for side in ("old", "new")
    )
    assert before[:3] == ["def f(a, [b]):", "    return g(a) + 1", ""]
    assert after[1].replace("][", "") == "    return g(a) + [max(]1[, 2)]"
    assert after[0] == "def f(a, [c]):" and (before[4], after[4]) == (
        "spam = [eggs]([2])",
        "spam = [ham]([3])",
    )
    # Lines that came or went as a whole have none, nor have those whose blanks changed.
    assert (before[3], after[3]) == ("x = 1", "z.append(y)")
    assert (before[5], after[5]) == ("  y = 2", "y = 2")


some_lines = st.lists(st.text("ab (+", max_size=9), max_size=6)


@given(some_lines, some_lines)
def test_what_is_not_marked_is_the_same(old, new):
    """In the lines that were changed; and a line that is marked has one that it became."""
    columns = report_diffs.changed_words(old, new)
    sides = [
        [
            "".join(c for i, c in enumerate(line) if i not in marks and not c.isspace())
            for line, marks in zip(lines, of_side)
        ]
        for lines, of_side in zip((old, new), columns)
    ]
    assert len(sides[0]) == len(old) and len(sides[1]) == len(new)
    for mine, others, marks in zip(sides, sides[::-1], columns):
        assert all(rest in others for rest, marked in zip(mine, marks) if marked)


def test_steps_show_the_sections_that_differ():
    for before, after in zip(VERSIONS, VERSIONS[1:]):
        step = report_steps.step(before, after)
        names = {section["name"] for section in step["changed"]}
        old, new = common.sections(before), common.sections(after)
        assert names == {name for name in new if old[name] != new[name]}
        for section in step["changed"]:
            rows = unfold(section["rows"])
            shown = [line for row in rows for line in row["new"]]
            text = "\n".join(plain(line) for _, line in shown)
            assert text.rstrip() == new[section["name"]].rstrip()
            lines = common.source(after).splitlines()  # numbered as in the file
            assert all(lines[number - 1] == plain(line).rstrip() for number, line in shown)


def test_positions_alone():
    """ALiBi takes slope times distance off; rotation gives the mean cosine of its angles."""
    scores = report.attention_scores("v3_alibi", 8)
    position = load_version("v3_alibi").Position
    slopes = position.slopes(6)
    for head, slope in enumerate(slopes):
        assert scores[head, 7, 2].item() == pytest.approx(1 - 5 * slope, abs=1e-5)
    for name in ("v2_bpe_rope", "v4_modern"):
        scores = report.attention_scores(name, 8)
        angles = [5 * 10_000 ** (-i / 64) for i in range(0, 64, 2)]
        expected = sum(map(math.cos, angles)) / 32
        assert scores[0, 7, 2].item() == pytest.approx(expected, abs=1e-5)
        assert scores[0, 2, 7].isnan()
    assert report.attention_scores("v0_bigram", 8) is None
    assert report.attention_scores("v1_char_transformer", 8) is None


def test_labels_on_the_map_do_not_overlap():
    figure = report.draw_map([[" the", 0, 0], [" of", 0.01, 0], [" in", 5, 5], ["$", 5, 0]])
    (axes,) = figure.axes
    shown = [label for label in axes.texts if label.get_visible()]
    assert [label.get_text() for label in shown] == ["·the", "·in", r"\$"]
    assert len(axes.lines) == 4


def test_the_page_shows_the_numbers_and_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report_data, "places", lambda results: {})  # no runs of one's own
    write_json(tmp_path / "toy" / "results.json", toy.results())
    write_json(tmp_path / "toy-sweep" / "results.json", toy.sweep())
    out = tmp_path / "page.html"
    report.main(f"--results toy --sweep toy-sweep --out {out}".split())
    html = out.read_text(encoding="utf-8")
    assert "<b>3.000</b> ± 2.646" in html and "-25.0%" in html
    assert "A &lt;b&gt; dog &amp; $1" in html  # text is shown, not obeyed
    assert "0.1 diverges" in html and "only 64 positions were learned" in html
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|@import|url\((?!#|['"]?data:)""", html)
    assert html.count("<svg") == 6  # curves, rates, beyond, v2's positions, map, sweep


def test_the_page_goes_to_v4_in_single_ideas(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report_data, "places", lambda results: {})  # no runs of one's own
    write_json(tmp_path / "toy" / "results.json", toy.to_v4())
    write_json(tmp_path / "climb" / "results.json", toy.climb())
    report.main(f"--results toy --sweep none --out {tmp_path / 'page.html'}".split())
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    html = html.partition("v3_alibi → v4_modern</h3>")[2].partition("<h2")[0]
    titles = [plain(title) for title in re.findall("<h4>(.*)</h4>", html)]
    ideas = [f"{i}. {step.idea}" for i, step in enumerate(climb.STEPS) if i]
    assert [title.lower() for title in titles] == [idea.lower() for idea in ideas]
    shown = [name for name in re.findall(r"<summary>(\d+)\. ", html) if name != "1"]
    asked = [str(section) for step in climb.STEPS for section in step.sections if section != 1]
    assert shown == [*asked, "8", "13"]  # the last step is a function and its call
    assert "Bits per byte: at equal time -0.300 ± 0.283, at equal text +0.250." in html
    assert html.count("<svg") == 1
    assert not any(each["bought"] for each in report_steps.climbed_steps(None))  # not measured yet


def test_every_step_has_its_lesson_and_every_ablation_its_section():
    assert set(report_steps.LESSONS) == set(VERSIONS[1:])
    for before, after in zip(VERSIONS, VERSIONS[1:-1]):
        lesson, keys = report_steps.LESSONS[after]
        assert lesson.count(". ") == 2 and lesson.endswith(".")  # three sentences
        changed = report_steps.step(before, after)["changed"]
        is_open = [section["name"].partition(".")[0] for section in changed if section["is_open"]]
        assert is_open == [*map(str, keys)] and len(is_open) < len(changed)
        assert [section["is_open"] for section in changed[: len(keys)]] == [True] * len(keys)
    for each in report_steps.climbed_steps(None):
        sections = climb.STEPS[each["number"]].sections or (8,)  # a function of section 8
        assert each["changed"][0]["name"].startswith(f"{sections[0]}. ")
        assert [section["is_key"] for section in each["changed"][:2]] == [True, False]
    # An ablation is told beside a section that its version changes.
    assert set(report_steps.ABLATED) == set(ablations.ABLATIONS)
    for name, ablation in ablations.ABLATIONS.items():
        before = VERSIONS[VERSIONS.index(ablation.version) - 1]
        old, new = common.sections(before), common.sections(ablation.version)
        section = next(s for s in new if s.startswith(f"{report_steps.ABLATED[name]}. "))
        assert old[section] != new[section]
    told = report_steps.worths(toy.ablations())
    assert told["5"] == ["RoPE → no positions: 0.300 ± 0.283 more"]
    assert told["9"] == ["clipping of gradients → nothing: diverged, 1 of 2"]


def test_prompts_that_end_alike_are_told():
    twice = {"samples": {"as the": "as the cat", "one": "one cat"}}
    other = {"samples": {"as the": "as the cat", "one": "one dog"}}
    assert report.alike({"v9": other, "v0": twice}) == ("v0", "e")
    assert report.alike({"v9": other}) == report.alike({}) == ("", "")
    assert report.alike({"v0": {"samples": {"as": "as it", "is he": "is he it"}}}) == ("", "")
    assert report.alike({"v0": {"samples": {"as": "as it"}}}) == ("", "")


@pytest.mark.parametrize("name", VERSIONS[1:])
def test_a_sweep_of_context_keeps_the_tokens_of_a_step(name):
    config = load_version(name).Config()
    for factor in sweep.FACTORS["context_length"]:
        changed = replace(config, **sweep.changed("context_length", factor, config))
        assert changed.context_length == config.context_length * factor
        tokens = changed.context_length * changed.batch_size
        assert tokens == config.context_length * config.batch_size


def test_a_record_is_what_the_run_wrote(tmp_path):
    """Scored at steps 0, 2 and 4 of 4, in which 80 bytes were seen."""
    write_json(
        tmp_path / "summary.json",
        {"train_bytes": 80, "steps": 4, "val_loss": 1.0, "vocab_size": 1808},
    )
    scores = {step: {"val_loss": 3.0 - step, "bits_per_byte": 9.0 - step} for step in (0, 2, 4)}
    rows = [{"step": step, "seconds": step / 2} | score for step, score in scores.items()]
    rows[1:1] = [{"step": 1, "seconds": 0.5, "train_loss": 2.5, "learning_rate": 0.1}]
    rows[3:3] = [{"step": 3, "seconds": 1.5, "train_loss": 7.5, "learning_rate": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = common.record(tmp_path)
    assert run["last_loss"] == 7.5 and common.has_diverged(run)  # ln 1808 = 7.4999
    assert not common.has_diverged(run | {"vocab_size": 1809})
    assert "perplexity" not in run  # that is e to the loss
    course = common.course(tmp_path)
    assert course == {"curve": [[0, 0, 9.0], [2, 1, 7.0]], "rates": [[1, 0.1], [3, 0.2]]}
