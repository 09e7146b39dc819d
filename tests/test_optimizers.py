"""v4's loss, optimizers, clipping and schedule against torch's."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import load_version, random_model, small_config
from hypothesis import given
from hypothesis import strategies as st

v4 = load_version("v4_modern")


def close(left, right, tolerance=1e-6):
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(0.01, 100), st.integers(0, 99))
def test_cross_entropy_equals_torchs(n, V, scale, seed):
    torch.manual_seed(seed)
    logits = (torch.randn(n, 3, V, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.randint(V, (n, 3))
    ours, theirs = (
        v4.cross_entropy(logits, targets),
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(n, 3),
    )
    close(ours, theirs)
    close(*(torch.autograd.grad(losses.mean(), logits)[0] for losses in (ours, theirs)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_has_the_same_loss_and_gradients(dtype):
    """As torch.compile takes it apart; what it makes of the parts needs a compiler."""
    model, config = random_model(v4)
    ids, targets = torch.randint(config.vocab_size, (2, 3, 16))
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    results = []
    for forward in (model, compiled):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = forward(ids, targets)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, theirs in zip(*results):
        close(ours, theirs, 1e-5 if dtype == torch.float32 else 2e-2)


def same_start(seed=0, shapes=((4, 3), (5,), (1, 7))):
    torch.manual_seed(seed)
    ours = [torch.randn(shape).requires_grad_() for shape in shapes]
    return ours, [p.detach().clone().requires_grad_() for p in ours]


@given(
    lr=st.floats(1e-4, 0.5),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
    weight_decay=st.floats(0, 0.5),
)
def test_adamw_equals_torchs(lr, beta1, beta2, weight_decay):
    ours, theirs = same_start()
    options = {"lr": lr, "betas": (beta1, beta2), "weight_decay": weight_decay}
    left, right = v4.AdamW(ours, **options), torch.optim.AdamW(theirs, **options)
    for step in range(6):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p) * 10.0 ** (step - 3)
            q.grad = p.grad.clone()
        left.step()
        right.step()
    for p, q in zip(ours, theirs):
        close(p, q, 1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_muon_equals_torchs(shape, monkeypatch):
    """With the same polynomial in each step; torch's works in bfloat16, which has 8 bits; hence the
    tolerance."""
    orthogonalize = partial(v4.orthogonalize, steps=[(3.4445, -4.7750, 2.0315)] * 4)
    monkeypatch.setattr(v4, "orthogonalize", orthogonalize)
    ours, theirs = same_start(shapes=(shape, shape))
    left = v4.Muon(ours, lr=0.05, momentum=0.9, weight_decay=0)
    right = torch.optim.Muon(theirs, lr=0.05, momentum=0.9, weight_decay=0, ns_steps=4)
    start = [p.detach().clone() for p in ours]
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        left.step()
        right.step()
    for p, q, before in zip(ours, theirs, start):
        moved = (q - before).norm()
        assert (p - q).norm() < 0.02 * moved


def test_muon_decays_only_the_weights_that_its_update_shrinks():
    """A second model, without decay, shows which those are."""
    decayed, plain = same_start(shapes=((16, 16), (24, 8)))
    optimizers = v4.Muon(decayed, lr=0.1, weight_decay=0.5), v4.Muon(plain, lr=0.1, weight_decay=0)
    start = [p.detach().clone() for p in plain]
    for p, q in zip(decayed, plain):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for p, q, before in zip(decayed, plain, start):
        shrunk = (q - before) * before < 0
        assert 0.2 < shrunk.float().mean() < 0.8
        close(p, torch.where(shrunk, q - 0.05 * before, q), 1e-6)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_orthogonalize(rows, columns, seed):
    x = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    y = v4.orthogonalize(x)
    for before, after in zip(x.double(), y.double()):
        U, S, Vh = torch.linalg.svd(before, full_matrices=False)
        # Each singular value goes by the polynomial alone, directions stay.
        s = S / (S.square().sum().sqrt() + 1e-7)
        for a, b, c in v4.NEWTON_SCHULZ:
            s = a * s + b * s**3 + c * s**5
        close(after, U @ torch.diag(s) @ Vh, 2e-3)


def test_in_bfloat16_it_moves_singular_values_as_far():
    """Those that 8 bits can tell: each product adds about a 2^9th of the highest."""
    torch.manual_seed(0)
    for rows, columns in ((128, 128), (128, 344), (344, 128)):
        x = torch.linalg.qr(torch.randn(4, max(rows, columns), min(rows, columns)))[0]
        x = (x if rows > columns else x.mT) * torch.linspace(0.1, 1, columns)
        with torch.autocast("cpu", torch.bfloat16):
            y = v4.orthogonalize(x)
        assert y.dtype == torch.bfloat16
        values = torch.linalg.svdvals(y.float())
        assert 0.5 < values.min() and values.max() < 1.6


def test_no_odd_quintics_bring_singular_values_nearer_to_one():
    """An odd polynomial of degree 5 is the nearest to 1 if it is farthest from it four times, by as
    much, above and below in turn (Chebyshev); then the next step's interval is what it leaves."""
    low, high = 0.006, 1.0
    for a, b, c in v4.NEWTON_SCHULZ:
        s = torch.linspace(low, high, 100_001, dtype=torch.float64)
        off = a * s + b * s**3 + c * s**5 - 1
        turns = (off.diff().sign().diff() != 0).nonzero().flatten() + 1
        extremes = off[[0, *turns.tolist(), -1]]
        assert len(extremes) == 4 and (extremes.sign().diff() != 0).all()
        worst = off.abs().max().item()
        close(extremes.abs(), torch.full_like(extremes, worst), 2e-3)
        low, high = 1 - worst, 1 + worst
    assert 0.56 < low < high < 1.44


def test_orthogonalized_singular_values_are_near_one():
    x = torch.randn(4, 64, 128, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(v4.orthogonalize(x))
    assert 0.56 < values.min() and values.max() < 1.44


@given(st.floats(0.01, 100), st.floats(0.1, 10), st.integers(0, 99))
def test_clipping_equals_torchs(scale, max_norm, seed):
    ours, theirs = same_start(seed)
    for p, q in zip(ours, theirs):
        p.grad = torch.randn_like(p) * scale
        q.grad = p.grad.clone()
    length = v4.clip_grad_norm((p for p in ours), max_norm)  # an iterator may be gone through once
    close(length, torch.nn.utils.clip_grad_norm_(theirs, max_norm), 1e-5)
    for p, q in zip(ours, theirs):
        close(p.grad, q.grad, 1e-5)


def test_clipping_without_gradients_does_nothing():
    ours, theirs = same_start()
    assert v4.clip_grad_norm(ours, 1.0) == torch.nn.utils.clip_grad_norm_(theirs, 1.0) == 0


@pytest.mark.parametrize("kind", ["AdamW", "Muon"])
def test_a_closure_computes_the_loss(kind):
    (p,), (same,) = same_start(shapes=((4, 4),))
    options = {"lr": 0.1, "weight_decay": 0.1} | ({"betas": (0.9, 0.95)} if kind == "AdamW" else {})
    left, right = (getattr(v4, kind)([x], **options) for x in (p, same))

    def closure():
        left.zero_grad()
        loss = p.pow(4).sum()
        loss.backward()
        return loss

    same.pow(4).sum().backward()
    right.step()
    expected = p.detach().pow(4).sum()
    assert torch.equal(left.step(closure), expected) and torch.equal(p, same)


@given(
    steps=st.integers(1, 50),
    warmup=st.integers(0, 20),
    final=st.just(0.0) | st.floats(1e-30, 1),
    schedule=st.sampled_from(["linear", "cosine"]),
)
def test_schedule_equals_torchs(steps, warmup, final, schedule):
    config = small_config(
        v4,
        steps=warmup + steps,
        warmup_steps=warmup,
        final_learning_rate=final,
        schedule=schedule,
        learning_rate=0.5 * ((warmup + steps) / 1000) ** 0.25,  # so that the highest is 0.5
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    if schedule == "linear":
        down = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=steps)
    else:
        down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.5 * final)
    for step in range(warmup):
        assert v4.learning_rate(step, config) == pytest.approx(0.5 * (step + 1) / warmup)
    for step in range(warmup, warmup + steps + 1):
        rate = optimizer.param_groups[0]["lr"]
        assert v4.learning_rate(step, config) == pytest.approx(rate, abs=1e-6)
        optimizer.step()
        down.step()
    last = v4.learning_rate(warmup + steps, config)  # torch's cosine rises again, by its formula
    assert last == v4.learning_rate(warmup + steps + 9, config) == pytest.approx(0.5 * final)


def test_every_parameter_has_one_optimizer():
    model, config = random_model(v4)
    adamw, muon = v4.make_optimizers(model, config)
    left = {id(p) for group in adamw.param_groups for p in group["params"]}
    right = {id(p) for group in muon.param_groups for p in group["params"]}
    assert not left & right and left | right == {id(p) for p in model.parameters()}
    assert id(model.embedding.weight) in left and id(model.head.weight) in left
    assert id(model.blocks[0].attention.query.weight) in right


def test_rates_fall_with_length_and_width(tmp_path):
    for steps, factor in ((1000, 1), (16_000, 1 / 2), (100, 10**0.25)):
        config = small_config(v4, steps=steps, warmup_steps=0)
        highest = factor * config.learning_rate
        assert v4.learning_rate(0, config) == pytest.approx(highest)
        assert v4.learning_rate(steps // 2, config) == pytest.approx(highest / 2)
    model, config = random_model(v4, width=512, steps=1000, out=str(tmp_path))
    optimizers = v4.make_optimizers(model, config)
    run = SimpleNamespace(
        model=model, replica=model, step=0, device=torch.device("cpu"), optimizers=optimizers
    )
    v4.training_step(run, torch.randint(config.vocab_size, (200,)).numpy(), config)
    rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert rates[id(model.head.weight)] == pytest.approx(config.learning_rate / 4)
    assert rates[id(model.embedding.weight)] == config.learning_rate
    matrix = model.blocks[0].attention.query.weight
    assert rates[id(matrix)] == pytest.approx(config.muon_learning_rate)
    narrow, _ = v4.make_optimizers(*random_model(v4, width=64))  # never above the others'
    assert [group.get("scale", 1) for group in narrow.param_groups] == [1, 1]


def test_optimizers_do_as_their_options_say():
    model, config = random_model(v4, weight_decay=0.15)
    adamw, muon = v4.make_optimizers(model, config)
    assert {g["weight_decay"] for o in (adamw, muon) for g in o.param_groups} == {0.15}
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.99)}
    assert {group["momentum"] for group in muon.param_groups} == {0.9}


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, monkeypatch):
    model, config = random_model(v4, accumulation_steps=3, out=str(tmp_path))
    tokens = torch.randint(config.vocab_size, (200,)).numpy()
    batches = [v4.get_batch(tokens, 6 + i, config) for i in range(3)]  # the batches of step 2
    inputs, targets = (torch.cat(parts) for parts in zip(*batches))
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    grads = torch.autograd.grad(expected, list(model.parameters()))

    optimizers = v4.make_optimizers(model, config)
    run = SimpleNamespace(
        model=model, replica=model, step=2, device=torch.device("cpu"), optimizers=optimizers
    )
    seen = []
    monkeypatch.setattr(v4, "clip_grad_norm", lambda p, _: seen.extend(q.grad.clone() for q in p))
    loss = v4.training_step(run, tokens, config)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(seen, grads):
        close(ours, theirs, 1e-5)
    assert math.isfinite(loss)
