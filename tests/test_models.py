"""The parts of the models against torch's, against naive versions, and against published values."""

import math
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import load_version, random_model, small_config
from hypothesis import given
from hypothesis import strategies as st

from shared.files import UserError

v1, v2, v3, v4 = (
    load_version(name) for name in ("v1_char_transformer", "v2_bpe_rope", "v3_alibi", "v4_modern")
)


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


# ---- attention and positions ----


@pytest.mark.parametrize("version", [v1, v2, v3])
def test_attention_equals_torchs(version):
    model, config = random_model(version)
    attention, x = model.blocks[0].attention, torch.randn(2, 9, config.width)
    parts = (attention.query, attention.key, attention.value)
    q, k, v = (part(x).unflatten(-1, (config.n_heads, -1)) for part in parts)  # (B, T, H, D)
    q, k = model.position.rotate(q), model.position.rotate(k)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    if version is v3:
        mask = model.position.bias(9, x.device)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    close(attention(x, model.position), attention.output(y.transpose(1, 2).flatten(2)))


class Elsewhere(torch.Tensor):
    """On the CPU, but does not say so: what a GPU takes, attention takes for it, too."""

    is_cpu = False


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@given(B=st.integers(1, 3), G=st.integers(1, 3), share=st.integers(1, 3), T=st.integers(1, 20))
def test_both_forms_of_attention_are_the_same(B, G, share, T, dtype, tolerance):
    """Written out, on a CPU, and fused, elsewhere and where it is long; gradients, too."""
    model, config = random_model(v4, n_heads=G * share, n_kv_heads=G, n_layers=1)
    attention, results = model.blocks[0].attention, []
    x = torch.randn(B, T, config.width)
    for part in (x, x.as_subclass(Elsewhere)):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            y = attention(part, model.position).as_subclass(torch.Tensor).float()
        results.append([y, *torch.autograd.grad(y.square().sum(), list(attention.parameters()))])
    largest = max(fused.abs().max() for fused in results[1])
    for ours, fused in zip(*results):
        close(ours / largest, fused / largest, tolerance)


def test_attention_is_written_out_on_a_cpu_and_fused_elsewhere(monkeypatch):
    model, config = random_model(v4)
    fused, attention = [], model.blocks[0].attention
    theirs = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *q, **k: fused.append(1) or theirs(*q, **k)
    )
    cases = (1, torch.Tensor, 1), (512, torch.Tensor, 0), (513, torch.Tensor, 1), (2, Elsewhere, 1)
    for T, where, expected in cases:
        fused.clear()
        attention(torch.randn(1, T, config.width).as_subclass(where), model.position)
        assert len(fused) == expected


def test_v1_has_the_published_size():
    config = v1.Config(vocab_size=111)
    model = v1.LanguageModel(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.82e6, rel=0.05)
    assert (config.context_length, config.batch_size, config.width) == (64, 32, 64)
    assert (config.n_layers, config.n_heads, config.head_size) == (6, 6, 64)
    assert (config.dropout, config.checkpoint_every) == (0.2, 1000)


def test_v1_reads_no_further_than_its_positions():
    model, _ = random_model(v1)
    with pytest.raises(ValueError, match="17 tokens, but only 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("version", [v2, v4])
@given(shift=st.integers(0, 500), seed=st.integers(0, 100))
def test_rotary_scores_depend_on_distance_only(version, shift, seed):
    torch.manual_seed(seed)
    position = version.Position(small_config(version)).double()
    q, k = torch.randn(2, 1, 12, 1, 8, dtype=torch.float64)

    def scores(q, k, first):
        q, k = (position.rotate(x, first).transpose(1, 2) for x in (q, k))
        return q @ k.mT  # (1, 1, 12, 12)

    close(scores(q, k, 0), scores(q, k, shift), 1e-4)
    close(position.rotate(q, shift).norm(dim=-1), q.norm(dim=-1))
    same = q[:, :1].expand(1, 12, 1, 8)  # one vector at all positions
    toeplitz = scores(same, same, 0)[0, 0]
    for distance in range(12):
        assert toeplitz.diagonal(-distance).std(correction=0) < 1e-5


@pytest.mark.parametrize("version", [v2, v4])
@pytest.mark.parametrize("base", [100.0, 10_000.0, 1e6])
@pytest.mark.parametrize("first", [0, 7])
def test_rotary_positions_are_complex_multiplication(version, base, first):
    config = small_config(version, rope_base=base)
    x = torch.randn(2, 10, config.n_heads, 8)  # (B, T, H, D)
    frequencies = base ** (-torch.arange(4) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:])
    turned = turned * torch.exp(1j * torch.arange(first, first + 10)[:, None, None] * frequencies)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    close(version.Position(config).rotate(x, first), expected)


def test_alibis_published_slopes():
    assert v3.Position.slopes(8) == [2.0**-i for i in range(1, 9)]  # section 3 of the paper
    assert v3.Position.slopes(16) == [2 ** (-i / 2) for i in range(1, 17)]
    assert v3.Position.slopes(6) == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert v3.Position.slopes(12) == [2.0**-i for i in range(1, 9)] + [
        2**-0.5,
        2**-1.5,
        2**-2.5,
        2**-3.5,
    ]
    assert v3.Position.slopes(1) == [2**-8]


def test_alibis_bias():
    config = small_config(v3, n_heads=3)
    bias = v3.Position(config).bias(5, torch.device("cpu"))
    for head, slope in enumerate(v3.Position.slopes(3)):
        for query in range(5):
            for key in range(5):
                expected = -slope * (query - key) if key <= query else -math.inf
                assert bias[head, query, key] == pytest.approx(expected)


@pytest.mark.parametrize("version", [v2, v3, v4])
def test_longer_contexts_than_trained_can_be_read(version):
    model, config = random_model(version)
    logits = model(torch.randint(config.vocab_size, (1, 8 * config.context_length)))
    assert logits.isfinite().all()


# ---- v4's block ----


def test_norm_equals_torchs():
    ours, theirs = v4.Norm(24), torch.nn.RMSNorm(24, eps=1e-6)
    theirs.weight.data = ours.weight.data = torch.randn(24)
    x = (torch.randn(3, 5, 24) * 10).requires_grad_()
    grad = torch.randn(3, 5, 24)
    close(ours(x), theirs(x))
    for left, right in zip(
        torch.autograd.grad(ours(x), (x, ours.weight), grad),
        torch.autograd.grad(theirs(x), (x, theirs.weight), grad),
    ):
        close(left, right)


@pytest.mark.parametrize("dtype, bits", [(torch.float16, 11), (torch.bfloat16, 8)])
@pytest.mark.parametrize("scale", [1, 1000])
def test_norm_squares_in_float32(dtype, bits, scale):
    """In float16, the square of 1,000 overflows; and each element errs by its own rounding alone,
    with gradients on and off."""
    norm, x = v4.Norm(256), (torch.randn(50, 256) * scale).to(dtype)
    norm.weight.data = torch.rand(256) + 0.5
    exact = F.rms_norm(x.double(), (256,), norm.weight.double(), 1e-6)
    for y in (norm(x), torch.no_grad()(norm)(x)):
        assert y.dtype == dtype
        assert ((y.double() - exact).abs() <= exact.abs() * 2**-bits + 1e-7).all()


def naive_qwen3(model, config, ids):
    """Logits of one sequence, from the published equations and one head at a time."""

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def turn(x):  # (T, D)
        half = config.head_size // 2
        angles = torch.arange(len(x))[:, None] * config.rope_base ** (-torch.arange(half) / half)
        z = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angles)
        return torch.cat((z.real, z.imag), dim=-1)

    x, D = model.embedding.weight[ids], config.head_size
    for block in model.blocks:
        attention, h = block.attention, norm(x, block.attention_norm.weight)
        outputs = []
        for head in range(config.n_heads):
            shared = head // (config.n_heads // config.n_kv_heads)
            q = h @ attention.query.weight[head * D : (head + 1) * D].T
            k = h @ attention.key.weight[shared * D : (shared + 1) * D].T
            v = h @ attention.value.weight[shared * D : (shared + 1) * D].T
            q, k = (
                turn(norm(q, attention.query_norm.weight)),
                turn(norm(k, attention.key_norm.weight)),
            )
            scores = q @ k.T / math.sqrt(D)
            scores[torch.ones_like(scores, dtype=torch.bool).triu(1)] = -math.inf
            outputs.append(torch.softmax(scores, -1) @ v)
        x = x + torch.cat(outputs, -1) @ attention.output.weight.T
        h, ff = norm(x, block.feed_forward_norm.weight), block.feed_forward
        gate = h @ ff.gate.weight.T
        x = x + (gate * torch.sigmoid(gate) * (h @ ff.up.weight.T)) @ ff.down.weight.T
    return norm(x, model.norm.weight) @ model.head.weight.T


@pytest.mark.parametrize("n_heads, n_kv_heads", [(2, 2), (4, 2), (4, 1)])
def test_the_model_is_qwen3s(n_heads, n_kv_heads):
    model, config = random_model(v4, n_heads=n_heads, n_kv_heads=n_kv_heads)
    ids = torch.randint(config.vocab_size, (2, 13))
    expected = torch.stack([naive_qwen3(model, config, row) for row in ids])
    close(model(ids), expected, 1e-4)


# ---- v4's cache ----


def test_cached_logits_equal_uncached():
    model, config = random_model(v4, n_heads=4, n_kv_heads=2)
    ids = torch.randint(config.vocab_size, (2, 16))
    caches = [v4.Cache() for _ in model.blocks]
    pieces = [model(ids[:, :7], caches=caches)]
    pieces += [model(ids[:, t : t + 1], caches=caches) for t in range(7, 16)]
    close(torch.cat(pieces, dim=1), model(ids), 1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prompt_length", [1, 5, 16, 17, 50])
@pytest.mark.parametrize("context_length", [1, 2, 7, 16])
def test_cached_generation_equals_uncached(temperature, prompt_length, context_length):
    options = {"context_length": context_length, "max_new_tokens": 45, "temperature": temperature}
    model, config = random_model(v4, **options)
    prompt = [(7 * i) % config.vocab_size for i in range(prompt_length)]
    ids, first = list(prompt), max(0, prompt_length - context_length)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(45):  # the same windows, read anew for every token
        if len(ids) - first > context_length:
            first = len(ids) - max(1, context_length // 2)
        logits = model(torch.tensor([ids[first:]]))[0, -1]
        ids.append(v4.draw(logits, config, generator))
    assert list(v4.generate(model, prompt, config, stop=-1)) == ids[prompt_length:]


# ---- v0 ----


def test_gradient_descent_finds_the_counted_bigram(tmp_path, corpus_file, capsys):
    v0 = load_version("v0_bigram")
    options = {"data": str(corpus_file), "out": str(tmp_path), "steps": 400, "learning_rate": 0.1}
    summary = v0.train(small_config(v0, **options, batch_size=32))
    assert summary["bits_per_byte"] == pytest.approx(summary["counted_bits_per_byte"], rel=0.05)
    assert f"{summary['counted_bits_per_byte']:.4f} bits per byte" in capsys.readouterr().out


def test_counted_bigrams():
    v0 = load_version("v0_bigram")
    config = small_config(v0, vocab_size=3)
    model = v0.count_bigrams(torch.tensor([0, 1, 2, 1, 2, 0]).numpy(), config, smoothing=0.5)
    expected = torch.tensor([[0.5, 1.5, 0.5], [0.5, 0.5, 2.5], [1.5, 1.5, 0.5]])
    close(model.table.weight.exp(), expected / expected.sum(1, keepdim=True))
    tokens = np.random.default_rng(0).integers(0, 3, (5 << 19) + 7, np.uint16)  # in parts
    expected = np.histogram2d(tokens[:-1], tokens[1:], bins=3)[0] + 0.03
    found = v0.count_bigrams(tokens, config).table.weight.detach().exp().numpy()
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("version", [v1, v2, v3])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dropout_drops_its_share(version, share):
    model, config = random_model(version, dropout=share)
    dropped = []

    def look(module, inputs, output):
        kept = inputs[0] != 0  # in weights of attention the future is zero before
        dropped.append(float((output[kept] == 0).float().mean()))

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(look)
    model.train()(torch.randint(config.vocab_size, (8, 16)))
    assert len(dropped) == 3 * config.n_layers  # weights and output of attention, feed-forward
    assert dropped == pytest.approx([share] * len(dropped), abs=0.05)


def test_each_step_and_each_seed_drops_others():
    config = small_config(v1, dropout=0.5)
    model, masks = v1.LanguageModel(config), []
    dropout = model.blocks[0].feed_forward.dropout
    dropout.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    for step, seed in ((0, 0), (1, 0), (0, 1)):
        run = SimpleNamespace(model=model, step=step, device=torch.device("cpu"), optimizers=[])
        v1.training_step(run, np.zeros(50, np.uint16), replace(config, seed=seed))
    assert not any(torch.equal(one, other) for one, other in combinations(masks, 2))


def test_matrices_begin_with_a_deviation_of_06_over_the_root_of_fan_in():
    torch.manual_seed(0)
    model = v4.LanguageModel(v4.Config(vocab_size=300, n_kv_heads=1))
    drawn = [p for p in model.blocks.parameters() if p.ndim == 2 and p.any()]
    assert len(drawn) == 3 * 5  # query, key, value, gate and up; what adds to the stream is zero
    for p in drawn:
        assert p.std().item() * math.sqrt(p.shape[1]) == pytest.approx(0.6, rel=0.03)


def test_a_table_of_too_many_characters_is_refused():
    v0 = load_version("v0_bigram")
    with pytest.raises(UserError, match="use v1"):
        v0.LanguageModel(small_config(v0, vocab_size=10_001))


# ---- what v4 starts from ----


def counted(tokens, V):
    """How often each token follows each, (V, V), and each token's share of those that follow."""
    n = np.zeros((V, V))
    for i, j in zip(tokens.tolist(), tokens[1:].tolist()):
        n[i, j] += 1
    return n, (n.sum(axis=0) + 1) / (n.sum() + V)


@pytest.mark.parametrize("prior", [0.5, 20.0])
def test_the_untrained_model_predicts_the_counted_pairs(prior):
    """Exactly, where the width leaves a channel to each token and two more."""
    V, tokens = 10, np.random.default_rng(0).integers(0, 9, 200).astype(np.uint16) ** 2 % 10
    model = v4.LanguageModel(small_config(v4, vocab_size=V, width=12))
    v4.start_from_counts(model, tokens, prior)
    n, p = counted(tokens, V)
    expected = (n + prior * p) / (n.sum(axis=1, keepdims=True) + prior)
    close(model(torch.arange(V).view(1, V))[0].softmax(-1).double(), torch.from_numpy(expected))
    close(model.embedding.weight.square().mean(1), torch.ones(V))


def test_in_fewer_channels_nothing_could_come_closer():
    """What is missing of the table of v4's docstring is what numpy's last singular values hold (a
    little more: torch's come from random vectors, in two rounds)."""
    V, C, rng = 40, 12, np.random.default_rng(0)
    tokens = (rng.zipf(1.4, 4000) * rng.integers(1, 4, 4000) % V).astype(np.uint16)
    torch.manual_seed(0)
    model = v4.LanguageModel(small_config(v4, vocab_size=V, width=C))
    v4.start_from_counts(model, tokens, prior=5.0)
    n, p = counted(tokens, V)
    table, weights = np.log(1 + n / (5 * p)), np.sqrt(np.outer(p, p))
    logits = model(torch.arange(V).view(1, V))[0].detach().double().numpy()
    error = weights * (logits - np.log(V * p) - table)
    left_out = np.linalg.svd(weights * table, compute_uv=False)[C - 2 :]
    assert 1 <= (error**2).sum() / (left_out**2).sum() < 1.15


@pytest.mark.parametrize("width", [1, 2])
def test_a_model_too_narrow_for_counts_starts_as_it_is(width):
    model = v4.LanguageModel(small_config(v4, vocab_size=9, width=width))
    before = model.embedding.weight.clone()
    v4.start_from_counts(model, np.arange(9).astype(np.uint16))
    assert torch.equal(model.embedding.weight, before) and not model.head.weight.any()
