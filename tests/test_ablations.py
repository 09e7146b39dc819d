"""A part taken away from a version is away, what stands in its place does what it says, and nothing
else has changed."""

import math

import pytest
import torch
import toy
from conftest import load_version, random_model, small_arguments, small_config, small_text

from benchmarks import ablations, common, pictures, sweep
from benchmarks.records import read_results
from shared.files import UserError, read_json

V4 = load_version("v4_modern")
without = ablations.ablated


def bits_of(version, folder, corpus_file, **options) -> float:
    """Of a small run; gradients are cut at so little that clipping makes a difference."""
    version.main(small_arguments(version, data=corpus_file, out=folder, clip_norm=0.01, **options))
    return read_json(folder / "summary.json")["bits_per_byte"]


@pytest.fixture(scope="module")
def full_bits(corpus_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    versions = {one.version for one in ablations.ABLATIONS.values()}
    return {name: bits_of(load_version(name), folder / name, corpus_file) for name in versions}


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_the_version_trains_and_writes_without_it_and_otherwise(
    name, full_bits, corpus_file, tmp_path
):
    version, ablation = without(name), ablations.ABLATIONS[name]
    assert version is not load_version(ablation.version)
    options = ablation.options(small_config(version, vocab_size=540))
    bits = bits_of(version, tmp_path / "run", corpus_file, **options)
    assert math.isfinite(bits) and bits != full_bits[ablation.version]
    assert (tmp_path / "run" / "samples.txt").stat().st_size > 1


@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_all_that_is_left_is_trained(name):
    version = without(name)
    model, config = random_model(version)
    optimizers = version.make_optimizers(model, config)
    of_all = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, of_all)) == sorted(map(id, model.parameters()))


def test_without_muon_its_matrices_move_as_under_torchs_adamw():
    v4 = without("muon")
    model, config = random_model(v4, muon_learning_rate=0.004, weight_decay=0.1)
    optimizers = v4.make_optimizers(model, config)
    assert all(type(optimizer) is v4.AdamW for optimizer in optimizers)
    ours = model.blocks[0].attention.query.weight
    (group,) = (g for g in optimizers[1].param_groups if any(p is ours for p in g["params"]))
    theirs = ours.detach().clone().requires_grad_()
    group["lr"] *= group["scale"]  # as the training loop does
    torchs = torch.optim.AdamW(
        [theirs], 0.004, betas=group["betas"], weight_decay=group["weight_decay"]
    )
    for _ in range(4):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        optimizers[1].step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert group["betas"] == optimizers[0].param_groups[0]["betas"]


def test_all_matrices_decay_whatever_their_updates_do():
    """By as much as the same step without decay leaves them larger."""
    weights = []
    for decay in (0.5, 0):
        v4 = without("caution")
        model, config = random_model(v4, weight_decay=decay)
        muon = v4.make_optimizers(model, config)[1]
        before = muon.param_groups[0]["params"][0].detach().clone()
        for p in muon.param_groups[0]["params"]:
            p.grad = torch.ones_like(p).tril()
        muon.step()
        weights.append(muon.param_groups[0]["params"][0].detach())
    lost = muon.param_groups[0]["lr"] * 0.5 * before
    torch.testing.assert_close(weights[1] - weights[0], lost, atol=1e-6, rtol=1e-4)


def test_a_constant_rate():
    v4 = without("schedule")
    config = small_config(v4, steps=50, learning_rate=0.5 * (50 / 1000) ** 0.25)
    assert {round(v4.learning_rate(step, config), 9) for step in range(50)} == {0.5}
    assert len({V4.learning_rate(step, config) for step in range(50)}) == 50


def test_gradients_stay_as_long_as_they_are():
    v4, p = without("clipping"), torch.zeros(3, requires_grad=True)
    p.grad = torch.full((3,), 1e6)
    v4.clip_grad_norm([p], 1.0)
    assert p.grad.tolist() == [1e6] * 3


def outputs(v4, ids, **options):
    """Of a block alone: with two, the second would tell order from what the first has mixed."""
    model, _ = random_model(v4, n_layers=1, **options)
    return model, model(torch.tensor([ids])).detach()[0]


def test_without_qk_norm_longer_queries_matter():
    for v4, matters in ((V4, False), (without("qk_norm"), True)):
        model, before = outputs(v4, [1, 2, 3, 4])
        with torch.no_grad():
            model.blocks[0].attention.query.weight *= 10
        after = model(torch.tensor([[1, 2, 3, 4]]))[0]
        assert torch.allclose(before, after, atol=1e-3) != matters


@pytest.mark.parametrize("name, knows", [("rope", False), ("learned_positions", True)])
def test_what_knows_the_order_of_what_came_before(name, knows):
    v4 = without(name)
    x = torch.randn(1, 2, 4, 8)
    assert torch.equal(v4.Position(small_config(v4)).rotate(x, 3), x)
    for module, tells in ((V4, True), (v4, knows)):
        last, other = (outputs(module, ids)[1][-1] for ids in ([1, 2, 3, 4], [3, 1, 2, 4]))
        assert torch.allclose(last, other, atol=1e-4) != tells


def test_learned_positions_are_v1s_also_with_caches():
    v4, ids = without("learned_positions"), torch.tensor([[5, 6, 7, 8]])
    model, config = random_model(v4)
    whole, caches = model(ids), [v4.Cache() for _ in model.blocks]
    parts = [model(part, caches=caches) for part in (ids[:, :2], ids[:, 2:3], ids[:, 3:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    v1 = load_version("v1_char_transformer")
    position = v1.Position(small_config(v1))
    position.embedding.weight = model.places.weight
    expected = position.embed(torch.nn.functional.embedding(ids, model.embedding.weight))
    model(ids)
    torch.testing.assert_close(model.embedding(ids), expected)


@pytest.mark.parametrize(
    "name, activation",
    [
        ("gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        ("relu2", lambda x: max(x, 0) ** 2),
    ],
)
def test_a_feed_forward_of_two_layers_and_as_many_parameters(name, activation):
    v4 = without(name)
    sizes = []
    for module in (V4, v4):
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in module.FeedForward(module.Config()).parameters()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    model, config = random_model(v4)
    part, x = model.blocks[0].feed_forward, torch.randn(config.width)
    inner = torch.tensor([activation(value) for value in (part.up.weight @ x).tolist()])
    torch.testing.assert_close(part(x), part.down.weight @ inner, atol=1e-4, rtol=1e-4)


def test_layer_norm_takes_the_mean_off():
    x = 3 + 2 * torch.randn(7, 64)
    y = without("layer_norm").Norm(64)(x)
    expected = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert V4.Norm(64)(x).mean() > 0.5


def test_no_matrix_starts_at_zero_and_all_of_the_blocks_alike():
    def deviations(v4):
        torch.manual_seed(0)
        model = v4.LanguageModel(small_config(v4, width=64, feed_forward_size=96, head_size=32))
        matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2}
        return {n: p.std().item() * p.shape[1] ** 0.5 for n, p in matrices.items()}

    before, after = deviations(V4), deviations(without("zeros"))
    zeros = [name for name in before if before[name] == 0]
    assert "head.weight" in zeros and len(zeros) == 1 + 2 * 2
    for name in zeros:
        assert after[name] == pytest.approx(before["blocks.0.attention.query.weight"], rel=0.1)
    assert {name: after[name] for name in before if name not in zeros} == {
        name: before[name] for name in before if name not in zeros
    }


def test_v3_without_any_of_its_parts_is_v2():
    v2 = load_version("v2_bpe_rope")
    assert without("words").Tokenizer is v2.Tokenizer
    model, config = random_model(without("alibi"))
    of_v2, _ = random_model(v2)
    of_v2.load_state_dict(model.state_dict())
    ids = torch.randint(config.vocab_size, (2, config.context_length))
    torch.testing.assert_close(model(ids), of_v2(ids))


def test_scaffolds_as_tokens_are_v2s_merges_of_english_words():
    v3, alone = load_version("v3_alibi").Tokenizer, without("scaffolds").Tokenizer
    text = small_text() + "naïve 漢字漢字 ==== 1234 1234 don't 'table 'table"
    tokenizer, merges = alone.train([text], 300), v3.train([text], 300).merges
    assert len(merges) > len(tokenizer.merges) == 300 - 257  # since some make no token
    assert tokenizer.merges == merges[: len(tokenizer.merges)]
    assert tokenizer.encode(text) == v3(tokenizer.merges, ()).encode(text)


def test_steps_are_counted_in_the_tokens_of_the_one_that_runs(corpus_file):
    options = sweep.Options(ablate=True, version="v3", what=("words",), data=str(corpus_file))
    full, of_v2 = [point["options"]["steps"] for point in sweep.plan_ablations(options)]
    assert of_v2 < 0.98 * full  # v2's tokens are longer


def test_an_unknown_part_is_told_in_a_line(capsys):
    with pytest.raises(SystemExit) as stop:
        ablations.main(["--ablate", "colour", "--steps", "1"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "learned_positions" in err


def test_the_table_against_numbers_found_by_hand():
    text = ablations.report(toy.ablations())
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:5]
    part = {name: ablation.instead for name, ablation in ablations.ABLATIONS.items()}
    assert rows == [  # what costs most at the top
        "| nothing | v4 as it is | **2.500** ± 0.707 |  |",
        f"| clipping of gradients | {part['clipping']} | diverged, 1 of 2 |  |",
        f"| RoPE | {part['rope']} | **2.800** ± 0.424 | +0.300 ± 0.283 (+12.0%) |",
        f"| SwiGLU | {part['gelu']} | **2.400** ± 0.707 | -0.100 (-4.0%) |",
    ]
    assert f"| RoPE | {part['rope']} | 40 | 1,357 |" in text
    (axes,) = pictures.draw_ablations(ablations.summarize(toy.ablations())).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.3, -0.1])
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2  # a cost and a gain
    crosses = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "X"]
    assert crosses == [[3]] and "diverged" in [text.get_text() for text in axes.texts]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[1] == f"RoPE → {part['rope']}"


def test_differences_to_a_model_that_diverged_are_refused():
    results = toy.ablations()
    results["points"][0]["runs"][0] = {"diverged": "error: the loss is nan at step 3"}
    with pytest.raises(UserError, match="1 of 2"):
        ablations.report(results)


def test_runs_are_of_equal_text_patched_by_name_and_kept(
    corpus_file, monkeypatch, tmp_path, started
):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    asked = f"--ablate --what gelu --bytes 12000 --seeds 1 --data {corpus_file}".split()
    sweep.main(asked)
    sweep.main(asked)  # nothing is left to do
    programs = sorted(command[1].rpartition("/")[2] for command in started)
    assert programs == ["ablations.py", "train.py"]
    full, gelu = read_results(tmp_path / "ablate-v4" / "results.json")["points"]
    assert "ablate" not in full["options"] and gelu["options"]["ablate"] == "gelu"
    for point in (full, gelu):
        (run,) = point["runs"]
        assert abs(run["train_bytes"] - 12_000) <= run["train_bytes"] / run["steps"]
    config = V4.Config()  # two matrices in place of three
    inner = 2 * round(1.5 * config.feed_forward_size) - 3 * config.feed_forward_size
    change = gelu["runs"][0]["parameters"] - full["runs"][0]["parameters"]
    assert change == inner * config.width * config.n_layers
    assert (tmp_path / "ablate-v4" / "ablate.png").read_bytes().startswith(b"\x89PNG")
