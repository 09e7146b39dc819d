"""The steps from v3 to v4: each is a whole version, each changes what it says, and the numbers
told of them are those of the results."""

import difflib
import re
import signal

import pytest
import torch
import toy
from conftest import random_model, small_arguments, small_config

from benchmarks import ablations, budgets, climb
from benchmarks.common import load_program, record, sections, sections_of
from benchmarks.faults import equal, read_run
from benchmarks.records import code, read_results
from shared.files import write_json
from shared.run import Run

STEPS = range(len(climb.STEPS))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Far from the versions' folders, and from shared/."""
    return list(climb.write_programs(tmp_path_factory.mktemp("programs")).values())


@pytest.fixture(params=STEPS)
def step(request, programs):
    return load_program(programs[request.param])


# ---- what a step is made of ----


def test_the_first_is_v3_and_the_last_is_v4():
    for number, version in ((0, climb.V3), (STEPS[-1], climb.V4)):
        ours, theirs = sections_of(climb.compose(number)), sections(version)
        assert list(ours) == list(theirs)
        heads = [each.pop("Header").split('"""\n', 1)[1] for each in (ours, theirs)]
        assert ours == theirs and heads[0].strip() == heads[1].split('"""\n')[-1].strip()


@pytest.mark.parametrize("number", STEPS[1:])
def test_a_step_changes_what_it_says(number):
    """And with it the header, and the fields of Config that come and go."""
    old, new = (sections_of(climb.compose(n)) for n in (number - 1, number))
    changed = {name.split(".")[0] for name in new if old[name] != new[name]}
    step, later = climb.STEPS[number], climb.STEPS[number + 1 :]
    asked = {str(section) for section in step.sections}
    functions = {"8", "13"} if step.functions else set()  # where one is defined, and called
    assert changed - {"Header", "1"} == asked - {"1"} | functions
    for name in new:
        if name.split(".")[0] in asked | functions:
            of_v4 = sections(climb.V4)[name]
            for function in (function for step in later for function in step.functions):
                of_v4 = climb.without(function, of_v4)
            assert new[name] == of_v4


def test_a_function_goes_with_the_branch_that_calls_it():
    f = "@a\n@b(1)\ndef f():\n    pass\n\n\n"
    g = "def g():\n    if x:\n        y()\n{}    z()\n"
    text = f + g.format("    else:\n        f()\n")
    assert climb.without("f", text) == g.format("")
    assert climb.without("h", text) == text


def test_fields_keep_their_values_until_a_step_takes_them(programs):
    configs = [load_program(program).Config() for program in programs]
    v3, v4 = configs[0], configs[-1]
    sizes = next(number for number, step in enumerate(climb.STEPS) if 1 in step.sections)
    for step, below, config in zip(climb.STEPS[1:sizes], configs, configs[1:]):
        for name, value in vars(config).items():
            if name in step.takes:
                assert value == getattr(v4, name)
            elif name in step.sizes:
                assert value == step.sizes[name]
            elif name != "out":
                kept = vars(below) if hasattr(below, name) else vars(v4)
                assert value == kept[name], (step.name, name)
        assert config.width == v3.width and config.n_layers == v3.n_layers
    fields = [set(vars(config)) for config in configs]
    assert fields[0] - fields[1] == {"tokenizer_sample_bytes"}
    assert "dropout" in fields[4] and "dropout" not in fields[5]
    assert fields[3] - fields[2] == {"rope_base"} and fields[-3] == fields[-1]


def test_the_sizes_of_our_own_are_as_large_as_v3s(programs):
    """SwiGLU's three matrices as v3's two, all heads with keys and values of their own."""
    sizes = {}
    for number in (0, 4, 5):
        module = load_program(programs[number])
        with torch.device("meta"):
            block = module.Block(module.Config())
        for part in ("attention", "feed_forward"):
            parameters = getattr(block, part).parameters()
            sizes[number, part] = sum(p.numel() for p in parameters)
    assert sizes[5, "feed_forward"] == pytest.approx(sizes[4, "feed_forward"], rel=0.01)
    assert sizes[4, "attention"] == pytest.approx(sizes[0, "attention"], rel=0.01)


def test_a_diff_is_between_neighbours(capsys):
    climb.main(["--show", "3"])
    lines = capsys.readouterr().out.splitlines()
    old, new = climb.compose(2).splitlines(), climb.compose(3).splitlines()
    assert lines == list(
        difflib.unified_diff(old, new, climb.title(2), climb.title(3), lineterm="")
    )
    for number in (-1, len(STEPS)):
        with pytest.raises(SystemExit) as stop:
            climb.main(["--show", str(number)])
        assert stop.value.code == 2 and "--show" in capsys.readouterr().err


# ---- what every version must do, and is not in sections that no step changes ----


def test_a_step_trains_goes_on_where_it_stopped_and_writes(
    step, corpus_file, tmp_path, monkeypatch, capsys
):
    options = {"data": str(corpus_file), "steps": 5}
    summary = step.train(small_config(step, out=str(tmp_path / "whole"), **options))
    assert summary["version"] == step.VERSION and summary["version"].startswith("climb_")
    log_step = Run.log_step

    def interrupt(run, *arguments):
        log_step(run, *arguments)
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Run, "log_step", interrupt)
        step.main(small_arguments(step, out=tmp_path / "broken", **options))
    assert stop.value.code == 130
    step.main(["--resume", "--out", str(tmp_path / "broken")])
    assert equal(read_run(tmp_path / "whole"), read_run(tmp_path / "broken"))
    capsys.readouterr()
    step.main(["--sample", "--out", str(tmp_path / "whole"), "--prompt", "the cat"])
    assert capsys.readouterr().out.startswith("the cat")


def test_no_token_sees_what_follows(step):
    model, config = random_model(step)
    ids = torch.randint(config.vocab_size, (2, 16))
    changed = ids.clone()
    changed[:, 9] = (ids[:, 9] + 1) % config.vocab_size
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-5, rtol=1e-5)
    assert not torch.equal(before[:, 9], after[:, 9])
    assert not torch.allclose(before[:, 15], after[:, 15], atol=1e-3)  # and sees what came before


def test_writing_with_a_cache_is_writing_without_one(step):
    """Token by token, each from a call of the model with all that came before."""
    model, config = random_model(step, temperature=0.0, max_new_tokens=10)
    ids = [3, 1, 4, 1, 5]
    for token in step.generate(model, list(ids), config, stop=-1):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 15


# ---- what is told of them ----


def test_the_table_against_numbers_found_by_hand():
    text = climb.report(toy.climb())
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d \|", line)]
    assert rows[0][2:] == ["", "**2.500** ± 0.707", "", "**2.500**", " |"]
    assert rows[1][3:] == ["**2.200** ± 0.424", "-0.300 ± 0.283", "**2.750**", "+0.250 |"]
    assert rows[2][3:] == ["diverged, 1 of 2", "", "", " |"] and rows[3][3:5] == ["", ""]
    diff = climb.diff(2).splitlines()[2:]
    counts = [sum(line.startswith(sign) for line in diff) for sign in "-+"]
    assert rows[2][2] == "-{} +{}".format(*counts)
    assert "| 1 | 1,234 | 40, 2.5, 0.01 | 40, 2.5, 0.01 |" in text


def test_a_step_on_top_of_one_that_diverged_has_no_change():
    toys = toy.climb()
    toys["runs"] += [toy.run(climb.title(3), i, 1.0, budget="seconds") for i in (0, 1)]
    row = climb.summarize(toys)[3]["seconds"]
    assert row["bits_per_byte"] == 1.0 and "change" not in row


@pytest.fixture
def tiny(monkeypatch, tmp_path) -> list[str]:
    """Two steps, v3 and its norm, of a size that trains in a moment, in this process; all goes to
    `tmp_path`. The names of the steps that were trained."""
    compose, trained = climb.compose, []
    monkeypatch.setattr(climb, "RUNS", tmp_path)
    monkeypatch.setattr(climb, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(climb, "STEPS", (climb.STEPS[0], climb.STEPS[2]))
    values = {"vocab_size": 300, "width": 8, "n_layers": 1, "n_heads": 1, "head_size": 8}
    values |= {"max_new_tokens": 5}

    def smaller(number: int) -> str:
        text = compose(number)
        for name, value in values.items():
            text = re.sub(rf"(?m)^    {name}: (\w+) = \S+", rf"    {name}: \1 = {value}", text)
        return text

    def in_this_process(version, folder, options, program, **_):
        if not (folder / "summary.json").exists():
            trained.append(version)
            module = load_program(program)
            module.train(module.Config(out=str(folder), device="cpu", **options))
        return record(folder) | {"commit": code()}

    monkeypatch.setattr(climb, "compose", smaller)
    monkeypatch.setattr(budgets, "train_or_diverge", in_this_process)
    return trained


def test_both_budgets_share_a_file_and_what_is_finished_is_kept(
    corpus_file, tmp_path, monkeypatch, tiny, capsys
):
    asked = f"--seeds 1 --data {corpus_file}".split()
    climb.main([*asked, "--bytes", "3000"])
    climb.main([*asked, "--bytes", "3000"])
    assert len(tiny) == 2
    monkeypatch.setattr(budgets, "MISSED", 1e9)
    monkeypatch.setattr(budgets, "choose_steps", lambda *_: 7)  # it would train to find them
    climb.main([*asked, "--seconds", "10"])
    assert len(tiny) == 4
    results = read_results(tmp_path / "results" / "climb" / "results.json")
    runs = [(run["budget"], run["version"]) for run in results["runs"]]
    names = [climb.title(0), climb.title(1)]
    assert runs == [(unit, name) for unit in ("seconds", "bytes") for name in names]
    assert [run["steps"] for run in results["runs"][:2]] == [7, 7]
    assert (tmp_path / "results" / "climb" / "climb.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("| 1 | RMSNorm") == 3


# ---- the tour ----


def test_the_tour_shows_what_the_results_give():
    """If not: python benchmarks/climb.py --readme"""
    text = climb.TOUR.read_text(encoding="utf-8")
    assert climb.tour(text) == text
    blocks = " ".join(re.findall(r"<!-- results (.+) -->", text)).split()
    assert {f"climb/{number}" for number in STEPS[1:]} | {"climb"} <= set(blocks)
    of_v4 = {name.partition("/")[2] for name in blocks if name.startswith("ablate-v4/")}
    assert {"qk_norm", "zeros", "clipping", "schedule", "muon", "caution"} <= of_v4
    assert of_v4 <= set(ablations.ABLATIONS)


def test_the_tour_points_at_what_is_there():
    """Names of the file and the commands' options exist, and it stays a short walk. What follows it
    is of v4 in use, and looked at with the other READMEs."""
    text, _, _ = climb.TOUR.read_text(encoding="utf-8").partition("\n# Your own size")
    code = climb.compose(STEPS[-1])
    for name in re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", text):
        for part in name.split("."):
            assert re.search(rf"\b{part}\b", code), name
    options = {*climb.Options.__dataclass_fields__, "what", "ablate"}
    options |= set(load_program(climb.ROOT / climb.V4 / "train.py").Config.__dataclass_fields__)
    for option in re.findall(r"--([a-z][a-z-]+)", text):
        assert option.replace("-", "_") in options | {"nproc_per_node"}, option
    written = re.sub(r"(?s)<!-- results .*?<!-- /results -->", "", text)
    assert len(written.splitlines()) <= 220


def test_blocks_of_the_tour_are_rewritten_from_results(tmp_path, monkeypatch):
    monkeypatch.setattr(climb, "RESULTS", tmp_path)
    text = "a\n<!-- results {} -->\nold\n<!-- /results -->\nb"
    text += "\n<!-- results climb -->\n<!-- /results -->"

    def told(names):
        lines = climb.tour(climb.tour(text.format(names))).splitlines()
        assert lines[:2] == ["a", f"<!-- results {names} -->"] and "old" not in lines
        return lines[2 : lines.index("<!-- /results -->")]

    assert told("climb") == ["Not measured yet."]
    assert told("climb/1 ablate-v4/rope") == ["- Not measured yet."] * 2
    write_json(tmp_path / "climb" / "results.json", toy.climb())
    write_json(tmp_path / "ablate-v4" / "results.json", toy.ablations())
    assert told("climb/1 climb/2 climb/3 ablate-v4/rope ablate-v4/clipping ablate-v4/muon") == [
        "- In bits per byte: at equal time -0.300 ± 0.283, at equal text +0.250.",
        "- In bits per byte: at equal time diverged, 1 of 2.",
        "- Not measured yet.",
        "- In v4, RoPE → no positions: +0.300 ± 0.283 at 0.006 MB of text.",
        "- In v4, clipping of gradients → nothing: 1 of 2 runs diverged at 0.006 MB of text.",
        "- Not measured yet.",
    ]
    assert "\n".join(told("climb")) + "\n" in climb.report(toy.climb())
