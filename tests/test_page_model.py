"""What the page has of the models: v4 in JavaScript, and where the attention of each looks."""

import base64
import json
import random
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import VERSIONS, load_version, random_model, small_config, small_text

from benchmarks import climb, report, report_data, report_model

SCRIPTS = [path.read_text(encoding="utf-8") for path in report.SCRIPTS[:2]]
NASTY = [
    *("", " ", "a  b \t\r\n\n c", "don't WE'LL 'S ''s", "\ufeffx\u0085y\u001cz\ufeffw\u200b"),
    *(
        "naïve e\u0301 ﬁ",
        "日本語 ١٢٣ ²½Ⅷ",
        "👩\u200d👧 ok \U000e0001\ufffd\uffff",
        "\x00\x7f\u2028\u3000 ",
    ),
    *(
        "the cat<|endoftext|>",
        "<|endoftext|><|endoftext|>\n<|endoftext",
        "a<|x|>b<|x|> c $& [x]^ <|x|",
    ),
]


@pytest.fixture(scope="module", params=["browser", "node"])
def javascript(request):
    """Calls a function of JavaScript, given as text, on an argument, where the page's scripts for
    tokenizer and model are loaded: in a browser, or in node."""
    if request.param == "browser":
        page = request.getfixturevalue("browser").new_page()
        for script in SCRIPTS:
            page.add_script_tag(content=script)
        yield page.evaluate
        page.close()
        return
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")

    def call(function: str, argument: object) -> object:
        program = "\n".join([*SCRIPTS, f"const argument = {json.dumps(argument)};"])
        program += f"\nprocess.stdout.write(JSON.stringify(({function})(argument)));"
        ran = subprocess.run([node, "-"], input=program.encode(), capture_output=True, check=True)
        return json.loads(ran.stdout)

    yield call


def run_of(**options: object) -> SimpleNamespace:
    """A run of v4 with random weights, as far as the page needs one."""
    v4 = load_version("v4_modern")
    special = ("<|endoftext|>", "<|x|>", "<|x|> c", "$&", "[x]^")
    tokenizer = v4.Tokenizer.train([small_text(), "".join(NASTY)], 300, special)
    model, config = random_model(v4, vocab_size=tokenizer.vocab_size, **options)
    return SimpleNamespace(model=model, config=config, tokenizer=tokenizer)


def packed(run: SimpleNamespace) -> dict:
    return report_model.model_of({climb.V4: run}, "")


LOGITS = """([packed, texts]) => {
    const model = languageModel(packed);
    return texts.map((ids) => [...model.after(ids)]);
}"""


@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (3, 1)])
def test_the_pages_logits_are_torchs(javascript, heads):
    run = run_of(n_heads=heads[0], n_kv_heads=heads[1], rope_base=100.0)
    exact = report_model.rounded(run.model)
    chance = random.Random(0)
    ids = [chance.randrange(run.config.vocab_size) for _ in range(16)]
    # One token more each time; another text with the same start; the first again, and again.
    texts = [*(ids[:n] for n in range(1, 17)), [*ids[:5], *ids[:7]], ids, ids]
    for text, logits in zip(texts, javascript(LOGITS, [packed(run), texts])):
        expected = exact(torch.tensor([text]))[0, -1].detach()
        assert expected.std() > 0.1  # they could be wrong by more than what is allowed
        assert logits == pytest.approx(expected.tolist(), abs=1e-4)
    # The weights of all parts matter, those of the norms too, and so does rounding.
    unrounded = run.model(torch.tensor([ids]))[0, -1].detach()
    assert not torch.allclose(unrounded, expected, atol=1e-3)


GREEDY = """([packed, ids, n]) => {
    const model = languageModel(packed), start = ids.length;
    while (ids.length < start + n) {
        const { left } = probabilities(model.after(ids), 0, 1);
        ids.push(draw(left, 0.5));
    }
    return ids.slice(start);
}"""


@pytest.mark.parametrize("n_prompt", [1, 9, 16, 40])
def test_the_page_writes_on_beyond_the_context_as_v4_does(javascript, n_prompt):
    v4, run = load_version("v4_modern"), run_of(context_length=16, max_new_tokens=50)
    config = small_config(v4, context_length=16, max_new_tokens=50, temperature=0.0)
    chance = random.Random(n_prompt)
    prompt = [chance.randrange(run.config.vocab_size) for _ in range(n_prompt)]
    expected = list(v4.generate(report_model.rounded(run.model), prompt, config, stop=-1))
    assert javascript(GREEDY, [packed(run), prompt, 50]) == expected
    assert len(set(expected)) > 5


IDS = """([of, special, texts, all]) => {
    const { encode, decode } = tokenizer(merger(of), special);
    return [texts.map(encode), texts.map((text) => decode(encode(text))), all.map(decode)];
}"""


def test_the_pages_ids_and_texts_are_those_of_python(javascript):
    tokenizer, chance = run_of().tokenizer, random.Random(0)
    # Any bytes in any order, most of them no UTF-8.
    lists = [[chance.randrange(tokenizer.vocab_size) for _ in range(20)] for _ in range(50)]
    argument = [report_data.merging(tokenizer), tokenizer.special_tokens, NASTY, lists]
    ids, texts, decoded = javascript(IDS, argument)
    assert ids == [tokenizer.encode(text) for text in NASTY] and texts == NASTY
    assert {i for text in ids for i in text} >= set(tokenizer.special_tokens.values())
    assert decoded == [tokenizer.decode(ids) for ids in lists]


DRAWN = """([logits, cases]) => cases.map(([temperature, topP, chance]) =>
    draw(probabilities(logits, temperature, topP).left, chance))"""


def test_the_page_draws_as_v4_does(javascript):
    """The same token for the same number between 0 and 1."""
    v4 = load_version("v4_modern")
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    cases, expected = [], []
    for seed in range(60):
        options = {
            "temperature": (0.0, 0.5, 1.0, 2.0)[seed % 4],
            "top_p": (0.1, 0.6, 1.0)[seed % 3],
        }
        chance = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
        cases.append([*options.values(), chance])
        config = small_config(v4, **options)
        expected.append(v4.draw(logits, config, torch.Generator().manual_seed(seed)))
    assert javascript(DRAWN, [logits.tolist(), cases]) == expected
    assert len(set(expected)) > 15
    # At both ends, and where rounding leaves nothing for the last.
    ends = [[1, 1, 0], [1, 1, 1], [1, 0.1, 1]]
    first, last, kept = javascript(DRAWN, [logits.tolist(), ends])
    assert (first, last) == (0, 299)
    assert kept in logits.topk(10).indices.tolist()


def test_weights_are_rounded_by_half_a_step_at_most():
    weight = torch.randn(50, 30) * torch.logspace(-6, 3, 50)[:, None]
    weight[7] = 0
    numbers, scale = report_model.in_8_bits(weight)
    assert numbers.dtype == torch.int8 and numbers.abs().amax(dim=1).tolist() == [
        0 if row == 7 else 127 for row in range(50)
    ]
    error = (numbers * scale[:, None] - weight).abs()
    assert (error <= 0.501 * scale[:, None]).all() and error.max() > 0


def test_a_model_that_does_not_fit_says_why(monkeypatch, finished_runs, tmp_path):
    run = run_of()
    size = sum(p.numel() for p in run.model.parameters())
    monkeypatch.setattr(report_model, "MOST_WEIGHTS", size)
    assert packed(run)["size"] == size and report_model.model_of({VERSIONS[2]: run}, "") == {}
    run.tokenizer.made = []
    assert packed(run) == {"why": "its tokenizer is another library's"}
    monkeypatch.setattr(report_model, "MOST_WEIGHTS", 10)
    report.main(["--run", str(finished_runs / climb.V4), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "weights are too many for a page" in page and "writing-text" not in page.split("<script")[0]
    )


# ---- attention ----


@pytest.mark.parametrize("name", VERSIONS[1:5])
def test_attention_weights_are_those_that_a_version_uses(name):
    """Times the values, they give what the module hands on; where the version drops out weights,
    they are what it would drop from."""
    version = load_version(name)
    model, config = random_model(version, n_heads=4, n_kv_heads=2)
    ids = torch.randint(config.vocab_size, (16,), generator=torch.Generator().manual_seed(0))
    weights = report_model.attention_of_layers(model, ids)  # (L, H, T, T)
    assert weights.shape == (2, 4, 16, 16) and weights.triu(1).abs().max() == 0
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    used, dropped = [], []
    for block in model.blocks:
        attention = block.attention
        attention.register_forward_hook(
            lambda _, given, returned: used.append((given[0], returned))
        )
        if hasattr(attention, "dropout"):
            attention.dropout.register_forward_pre_hook(lambda _, x: dropped.append(x[0]))
    with torch.no_grad():
        model(ids[None])
        for layer, (block, (x, returned)) in enumerate(zip(model.blocks, used.copy())):
            values = block.attention.value(x).view(16, -1, 8).transpose(0, 1)  # (H or G, T, D)
            values = values.repeat_interleave(4 // len(values), dim=0)  # (H, T, D)
            y = (weights[layer] @ values).transpose(0, 1).reshape(1, 16, -1)
            assert torch.allclose(block.attention.output(y), returned, atol=1e-5)
            assert returned.std() > 0.1
            if dropped:
                assert torch.allclose(weights[layer], dropped[2 * layer][0], atol=1e-6)
    assert bool(dropped) == (name != climb.V4)


def test_the_page_has_the_attention_of_the_paragraph(finished_runs, monkeypatch):
    runs = report_data.open_runs({name: [finished_runs / name] for name in VERSIONS})
    text = report_data.paragraph(runs)
    shown = report_model.attentions(runs, text)
    assert list(shown) == VERSIONS[1:] and report_model.attentions(runs, "") == {}
    for name, of in shown.items():
        T, heads = len(of["tokens"]), of["layers"] * of["heads"]
        assert T == 16 and of["tokens"][0] == "<|endoftext|>"
        assert text.startswith("".join(of["tokens"][1:]))
        run = runs[name]
        ids = [run.tokenizer.special_tokens["<|endoftext|>"], *run.tokenizer.encode(text)][:T]
        exact = report_model.attention_of_layers(run.model, torch.tensor(ids)).flatten(0, 1)
        roots = np.frombuffer(base64.b64decode(of["weights"]), np.uint8) / 255
        at = 0
        for head in range(heads):
            for token in range(T):
                row = torch.tensor(roots[at : at + token + 1])
                expected = exact[head, token, : token + 1].double()
                assert torch.allclose(row, expected.sqrt(), atol=0.51 / 255)
                at += token + 1
        assert at == len(roots)
    monkeypatch.setattr(report_model, "MOST_ATTENTION", 4 * 6)  # of two layers of two heads
    assert len(report_model.attention_of(runs[climb.V4], text)["tokens"]) == 3
