"""The page in a real browser."""

import json
import re
import runpy
import shutil
import sys
from itertools import accumulate, product

import conftest
import pytest
import torch
import toy
from conftest import VERSIONS
from pygments.styles import get_style_by_name

from benchmarks import climb, report, report_data, report_model
from benchmarks.common import open_run
from shared.files import read_json, write_json
from shared.splits import SPLITS


@pytest.fixture(scope="module")
def address(tmp_path_factory, finished_runs) -> str:
    folder = tmp_path_factory.mktemp("page")
    write_json(folder / "toy" / "results.json", toy.to_v4())
    write_json(folder / "toy-sweep" / "results.json", toy.sweep())
    write_json(folder / "climb" / "results.json", toy.climb())
    write_json(folder / "ablate-v4" / "results.json", toy.ablations())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "RESULTS", folder)
        ours = {name: [finished_runs / name] for name in VERSIONS}
        patch.setattr(report_data, "places", lambda results: ours)
        report.main(f"--results toy --sweep toy-sweep --out {folder / 'page.html'}".split())
    return (folder / "page.html").as_uri()


MARKS = """() => {
    const lines = (side) => [...document.querySelectorAll(`.change > .${side} > [data-line]`)];
    const mark = (line) => getComputedStyle(line, "::after").content;
    const same = [...document.querySelectorAll(".same [data-line]")].map(mark);
    const number = (line) => getComputedStyle(line, "::before").content;
    if (lines("new").some((line) => number(line) !== `"${line.dataset.line}"`)) throw "no numbers";
    const colours = ["old", "new"].map(
        (side) => getComputedStyle(document.querySelector(`.change > .${side}`)).backgroundColor);
    return {old: lines("old").map(mark), new: lines("new").map(mark), colours,
            same: same.filter((mark) => mark !== "none").length};
}"""


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(browser, address, width, colours):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=colours)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(address, wait_until="load")
    # Nothing is fetched but the page itself, nothing complains.
    assert [url for url in asked if not url.startswith("data:")] == [address] and errors == []
    # Every picture is there: drawings have a size, images within them are decoded.
    assert page.locator("figure svg").count() == 8  # positions of v2 and v3; the climb
    for drawing in page.locator("figure svg").all():
        box = drawing.bounding_box()
        assert box["width"] > 100 and box["height"] > 100
    decoded = """() => Promise.all([...document.querySelectorAll("image, img")].map(async old => {
        const image = new Image(); image.src = old.href ? old.href.baseVal : old.src;
        await image.decode(); return image.naturalWidth;
    }))"""
    sizes = page.evaluate(decoded)
    assert sizes and min(sizes) > 1
    # The sections that carry v2's ideas are open, the others open on a click, as do folds within.
    first, second = (page.locator("#steps ~ details.section").nth(i) for i in (0, 2))
    assert first.locator("summary").first.inner_text().startswith("2. Tokenizer")
    assert first.locator(".row").first.is_visible()
    assert not second.locator(".row").first.is_visible()
    second.locator("summary").first.click()
    assert second.locator(".row").first.is_visible()
    inner = page.locator("#steps ~ details.section details").first
    page.evaluate("for (const d of document.querySelectorAll('details.section')) d.open = true")
    assert not inner.locator(".row").first.is_visible()
    inner.locator("summary").click()
    assert inner.locator(".row").first.is_visible()
    # What is added and removed is told by marks, not by colours alone, and lines have numbers.
    marks = page.evaluate(MARKS)
    assert set(marks["old"]) == {'"−"'} and set(marks["new"]) == {'"+"'} and not marks["same"]
    assert len(set(marks["colours"])) == 2
    # So is what changed within a line.
    changed = page.locator('.change > .new [class$="-Changed"]').first
    assert "underline" in changed.evaluate("e => getComputedStyle(e).textDecorationLine")
    # Beside sections stands what they are worth. Two columns where there is room, else one.
    worth = page.locator("h4 ~ details .worth").all_inner_texts()
    assert any("RoPE → no positions: 0.300 ± 0.283 more" in each for each in worth)
    pair = (
        first.locator(".row.change").filter(has=page.locator(".old")).first.locator("> div").all()
    )
    left, right = (each.bounding_box() for each in pair)
    assert (left["y"] == right["y"]) == (width == 1280) == (left["x"] < right["x"])
    # The way to v4 is told in single ideas.
    assert page.locator("h4").count() == len(climb.STEPS) - 1
    # Nothing stands out at the side, and dark is dark.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (page.evaluate(brightness) < 100) == (colours == "dark")
    page.close()


def test_a_token_tells_what_was_expected(browser, address):
    """By pointer, by a tap on a small screen, and by keys."""
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.goto(address)
    data = page.evaluate("data.coloured")
    assert list(data) == VERSIONS
    paragraphs = page.locator(".coloured")
    assert paragraphs.count() == 5
    for name, of in data.items():
        headline = page.locator(".headline").inner_text()
        assert f"{name.split('_')[0]} {of['bits_per_byte']:.2f}" in headline
    expected = page.locator("#expected")

    def shown(part) -> tuple[list[str], list[float]]:
        cells = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        rows = part.locator("tr").evaluate_all(cells)
        return [row[0] for row in rows], [float(row[1].strip("%")) for row in rows]

    def should_be(name: str, number: int) -> tuple[list[str], list[float]]:
        top = data[name]["tops"][data[name]["tokens"][number][4]]
        names = [data[name]["vocab"][i] for i in top[::2]]
        return [report.visible(name) for name in names], [p / 100 for p in top[1::2]]

    def check(name: str, number: int) -> None:
        """All five tell of the place where token `number` of version `name` begins."""
        place = len("".join(token[0] for token in data[name]["tokens"][:number]).encode())
        pointed = expected.locator("> .pointed")
        assert pointed.count() == 1 and pointed.inner_text().startswith(name[:2])
        for other, part in zip(VERSIONS, expected.locator("> div").all()):
            ends = accumulate(len(token[0].encode()) for token in data[other]["tokens"])
            at = next(i for i, end in enumerate(ends) if end > place)
            assert other != name or at == number
            token, bits, _, rank, _ = data[other]["tokens"][at]
            came = part.locator("p").inner_text()
            assert (
                came
                == f"{other[:2]} {report.visible(token)} guess no. {rank:,}, cost {bits:.1f} bits"
            )
            tokens, percents = shown(part)
            assert len(tokens) == 10 and tokens == should_be(other, at)[0]
            assert percents == pytest.approx(should_be(other, at)[1], abs=0.51)
            chosen = paragraphs.nth(VERSIONS.index(other)).locator(".chosen")
            assert chosen.all_inner_texts() == [token.replace("\n", "⏎\n")]

    paragraphs.nth(4).locator("span").nth(5).hover()
    check(VERSIONS[4], 5)
    paragraphs.nth(4).focus()
    page.keyboard.press("ArrowRight")
    check(VERSIONS[4], 6)
    page.close()

    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(address)
    expected, paragraphs = page.locator("#expected"), page.locator(".coloured")
    token = page.locator(".coloured").nth(2).locator("span").nth(9)
    token.scroll_into_view_if_needed()
    token.tap()
    check(VERSIONS[2], 9)
    box = expected.bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] <= 844 + 1  # it is seen where one reads
    # The costlier a token, the stronger its colour.
    strength = page.evaluate(
        """[...document.querySelectorAll(".coloured")].map(p => [...p.children].map(
            s => parseFloat(s.style.getPropertyValue("--b"))))"""
    )
    for shades, of in zip(strength, data.values()):
        costs = [token[2] for token in of["tokens"]]
        assert shades == pytest.approx([min(100, 100 * cost / 8) for cost in costs], abs=0.51)
    page.close()


NASTY = [
    *(
        "",
        " ",
        "  a",
        "a  b \t\r\n\n c",
        "don't we'll CAN'T 'S ''s",
        "x\u0085y\u001cz\ufeffw\u200b",
    ),
    *("ÀÉ naïve Straße e\u0301 ﬁ", "日本語 テスト", "😀👩\u200d👩\u200d👧 ok", "١٢٣ 1,234.5 ²½Ⅷ"),
    *(
        "<|endoftext|> and <b>&amp;",
        "\x00\x7f\u2028\u3000\u00a0 end  ",
        "a" * 50 + " " * 9 + "!" * 40,
    ),
    *("the thethe  the cat sees\n\n    return self.encode(text)  # why", "\U000e0001\ufffd\uffff"),
]


def merging_tokenizers() -> list:
    """v2's, v3's with scaffolds, v4's, and v4's with words as other tokenizers have them."""
    text = ("the other brother bathes in the lather. " * 9 + "gather 日本語 12 12 don't\n") * 3
    text += "".join(NASTY)
    of = {name: conftest.load_version(name).Tokenizer for name in VERSIONS[2:5]}
    v2, v3, v4 = (kind.train([text], 400) for kind in of.values())
    others = [type(v4)(v4.merges, split=split) for split in SPLITS]
    assert v3.scaffolds
    return [v2, v3, v4, *others]


def test_the_pages_encoder_gives_the_ids_of_python(browser, address):
    page = browser.new_page()
    page.goto(address)
    run = "([of, texts, step]) => texts.map(text => merger(of).encode(text, step ?? undefined))"
    for tokenizer in merging_tokenizers():
        of = report_data.merging(tokenizer)
        plain = {"special": False} if hasattr(tokenizer, "special") else {}
        for text, made in zip(NASTY, page.evaluate(run, [of, NASTY, None])):
            assert made["ids"] == tokenizer.encode(text, **plain), text
        # A lone surrogate cannot be passed to the browser, only written there.
        lone = page.evaluate(f"merger({json.dumps(of)}).encode('a\\ud800b \\udc00').ids")
        assert lone == tokenizer.encode("a\ud800b \udc00", **plain)
        # Halfway, it is the tokenizer of the merges so far; no scaffold is taken apart yet.
        rest = {"scaffolds": ()} if hasattr(tokenizer, "scaffolds") else {}
        rest |= {"split": tokenizer.split} if hasattr(tokenizer, "split") else {}
        for step in (0, 1, len(tokenizer.merges) // 2, len(tokenizer.merges)):
            so_far = type(tokenizer)(tokenizer.merges[:step], **rest)
            for text, made in zip(NASTY, page.evaluate(run, [of, NASTY, step])):
                assert made["numbers"] == so_far.encode(text, **plain), (step, text)
    page.close()


BACK = """() => {
    const back = document.getElementById("merging-back"), seen = [];
    const count = (what) => document.querySelectorAll(`#merging-tokens ${what}`).length;
    for (;;) {
        seen.push([count("span"), count(".scaffold")]);
        if (back.disabled) return seen;
        back.click();
    }
}"""


def test_the_slider_goes_through_the_merges(browser, address, finished_runs):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    tokens = page.locator("#merging-tokens span")
    ids = page.locator("#merging-ids")
    for name in VERSIONS[2:5]:
        folder = page.evaluate(f"data.mergings.{name}")
        assert set(folder) == {"pattern", "merges", "scaffolds"}
        page.select_option("#merging-of", name)
        page.fill("#merging-text", "the cat\nsees houses")
        path = finished_runs / name / "tokenizer.json"
        expected = conftest.load_version(name).Tokenizer.load(path).encode("the cat\nsees houses")
        assert ids.inner_text() == " ".join(map(str, expected))
        assert tokens.count() == len(expected) < 19
        counts, scaffolds = zip(*page.evaluate(BACK))
        assert any(scaffolds) == (name == "v3_alibi")
        if any(scaffolds):  # they vanish in the last step
            assert scaffolds[0] == 0 < scaffolds[1] and counts[0] > counts[1]
            counts = counts[1:]
        assert list(counts) == sorted(counts)
        assert tokens.count() == 19  # its bytes
        page.click("#merging-on")
        assert 17 <= tokens.count() <= 18 and " + " in page.locator("#merging-says").inner_text()
    page.close()


def test_the_slider_shows_what_was_written_at_each_step(browser, address, finished_runs):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    written = (finished_runs / "v4_modern" / "samples.txt").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^---- step (\d+) ----\n", written)[1:]
    rows = (finished_runs / "v4_modern" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    scored = [row for row in map(json.loads, rows) if "bits_per_byte" in row]
    bits = {row["step"]: row["bits_per_byte"] for row in scored}
    slider = page.locator("#learning-step")
    assert len(parts) // 2 == 3 == int(slider.get_attribute("max")) + 1  # steps 0, 3 and 6
    for step, text in reversed(list(zip(parts[::2], parts[1::2]))):
        says = page.locator("#learning-says").inner_text()
        assert says == f"Step {step}, {bits[int(step)]:.2f} bits per byte"
        shown = page.locator("#learning-text").evaluate("e => e.textContent")
        assert shown.strip() == text.strip()
        slider.press("ArrowLeft")
    page.close()


def test_a_head_shows_where_each_token_looks(browser, address, finished_runs):
    page = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(address)
    tokens, heads = page.locator("#attention-tokens span"), page.locator("#attention-heads button")
    says = page.locator("#attention-says")
    assert page.locator("#attention-of option").all_inner_texts() == VERSIONS[1:]
    runs = report_data.open_runs({name: [finished_runs / name] for name in VERSIONS})
    text = report_data.paragraph(runs)
    for name in VERSIONS[1:5]:
        page.select_option("#attention-of", name)
        run = runs[name]
        ids = [run.tokenizer.special_tokens["<|endoftext|>"], *run.tokenizer.encode(text)][:16]
        weights = report_model.attention_of_layers(run.model, torch.tensor(ids))
        assert heads.count() == 4 and tokens.count() == 16
        heads.nth(2).click()
        tokens.nth(3).hover()
        assert page.locator("#attention-tokens .later").count() == 12
        tokens.nth(7).tap()
        taken = weights[1, 0, 7, :8]
        assert says.inner_text().startswith("In layer 2, head 1, ")
        said = [int(n) for n in re.findall(r"(\d+)% from", says.inner_text())]
        # A byte is a root, so that a weight is known to within a percent or so.
        assert said == pytest.approx(
            (100 * taken.sort(descending=True).values[:5]).tolist(), abs=1.1
        )
        shades = "all => all.map(s => parseFloat(s.style.getPropertyValue('--b')))"
        roots = (taken / taken.max()).sqrt().tolist() + 8 * [0]
        assert tokens.evaluate_all(shades) == pytest.approx([100 * root for root in roots], abs=1.1)
        later = tokens.evaluate_all("all => all.map(span => span.className)")
        assert later == [*7 * ["shade"], "shade chosen", *8 * ["later"]]
        page.locator("#attention-tokens").press("ArrowRight")
        assert page.locator("#attention-tokens .later").count() == 7
    # The picture of a head has its weights, a row for each token.
    pixels = """canvas => [...canvas.getContext("2d").getImageData(0, 0, 16, 16).data]
        .filter((_, i) => i % 4 === 3)"""
    drawn = torch.tensor(heads.nth(2).locator("canvas").evaluate(pixels)).view(16, 16)
    assert torch.allclose(drawn / 255, weights[1, 0].sqrt(), atol=1.1 / 255)
    pressed = page.locator("#attention-heads [aria-pressed=true]")
    assert pressed.count() == 1 and pressed.get_attribute("aria-label") == "layer 2, head 1"
    page.close()


def test_v4_writes_in_the_page(browser, address, finished_runs):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    v4, run = open_run(VERSIONS[4], finished_runs / VERSIONS[4], temperature=0.0, max_new_tokens=40)
    run.model, end = report_model.rounded(run.model), run.tokenizer.special_tokens["<|endoftext|>"]
    area, rows = page.locator("#writing-text"), page.locator("#writing-choices tr")

    def logits_after(text: str) -> torch.Tensor:
        ids = torch.tensor([[end, *run.tokenizer.encode(text)]])
        return run.model(ids[:, -16:])[0, -1].detach()

    def shown() -> tuple[list[str], list[float]]:
        cells = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
        return [row[0] for row in cells], [
            float(row[1].strip("%").replace("cut off", "0")) for row in cells
        ]

    def name(token: int) -> str:
        return report.visible(run.tokenizer.decode([token]))

    # What may follow, at the temperature and the top-p that are set.
    for text, temperature, top_p in (("the dog", 0.8, 1), ("a <|endoftext|>the cat", 2, 0.5)):
        area.fill(text)
        page.locator("#writing-temperature").fill(str(temperature))
        page.locator("#writing-top-p").fill(str(top_p))
        p = (logits_after(text) / temperature).softmax(-1).sort(descending=True)
        kept = p.values * (p.values.cumsum(0) - p.values < top_p)
        names, percents = shown()
        assert names == [name(i) for i in p.indices[:10]]
        assert percents == pytest.approx((100 * kept[:10] / kept.sum()).tolist(), abs=0.51)
        others = page.locator("#writing-rest").inner_text()
        assert others.startswith(f"{int((kept[10:] > 0).sum())} others: ")
    # At temperature 0, it writes what v4 writes, beyond its context, until it is stopped.
    area.fill("the dog")
    page.locator("#writing-temperature").fill("0")
    expected = list(
        v4.generate(run.model, [end, *run.tokenizer.encode("the dog")], run.config, end)
    )
    for token in expected[:3]:
        assert shown()[0][0] == name(token)
        page.click("#writing-step")
    written = "the dog" + run.tokenizer.decode(expected)
    page.click("#writing-run")
    page.wait_for_function(
        "n => document.getElementById('writing-text').value.length >= n", arg=len(written)
    )
    if page.locator("#writing-run").inner_text() == "Stop":
        page.click("#writing-run")
    stopped = area.input_value()
    assert stopped.startswith(written) and len(expected) > 16
    page.wait_for_timeout(100)
    assert area.input_value() == stopped
    # A click takes another token.
    other = shown()[0][4]
    rows.nth(4).locator("button").click()
    assert report.visible(area.input_value()) == report.visible(stopped) + other
    page.close()


@pytest.mark.parametrize("name", [VERSIONS[0], VERSIONS[4]])
def test_the_page_of_ones_own_run(browser, finished_runs, tmp_path, name):
    out = tmp_path / "page.html"
    report.main(["--run", str(finished_runs / name), "--out", str(out)])
    page = browser.new_page(viewport={"width": 390, "height": 844})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(out.as_uri())
    assert errors == [] and page.evaluate("document.documentElement.scrollWidth") <= 390
    summary = read_json(finished_runs / name / "summary.json")
    assert f"{summary['bits_per_byte']:.3f}" in page.locator("#ladder-table").inner_text()
    assert "6 steps in " in page.locator("#ladder ~ p.soft").first.inner_text()
    headings = page.locator("h1, h2").all_inner_texts()
    assert headings[0].startswith(name) and "What changes from one to the next" not in headings
    assert page.locator(".coloured").count() == 1 == page.locator("#learning-text").count()
    parts = page.locator("#merging, #attention-tokens, #writing-text")
    assert parts.count() == (3 if name == VERSIONS[4] else 0)
    targets = page.locator("nav a").evaluate_all("links => links.map(link => link.hash.slice(1))")
    assert all(page.locator(f"h2#{target}").count() == 1 for target in targets)
    page.close()


@pytest.mark.parametrize("width, colours", [(390, "light"), (1280, "dark")])
def test_everyone_can_use_the_page(browser, address, width, colours):
    """By axe-core's rules; code has a test of its own, since they take long for it."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=colours)
    page.goto(address)
    page.evaluate("for (const code of document.querySelectorAll('.diff')) code.remove()")
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20  # it did look
    told = [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert told == []
    page.close()


def luminance(colour: str) -> float:
    """As WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("number, colours", [(0, "light"), (1, "dark")])
def test_code_stands_out_from_what_is_behind_it(number, colours):
    css = report.TEMPLATE.read_text(encoding="utf-8").split("prefers-color-scheme: dark")[number]
    behind = [re.search(rf"--{name}: (#\w{{6}})", css)[1] for name in ("card", "removed", "added")]
    style = get_style_by_name(report.STYLES[colours])
    skipped = "Error", "Generic", "Whitespace", "Doc"  # the page's own, or not in working code
    inks = {of["color"] for kind, of in style if not {*skipped} & {*map(str, kind)}} - {None, ""}
    assert len(inks) > 5
    for ink, back in product(inks, behind):
        dark, light = sorted((luminance(f"#{ink}"), luminance(back)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, back)


@pytest.mark.parametrize("package", ["jinja2", "pygments"])
def test_a_package_that_is_missing_is_named_in_a_line(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(report.__file__, run_name="__main__")
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in said
    assert said == f"error: the page needs a package that is not installed: pip install {package}"


def test_a_run_that_cannot_be_shown_is_refused_in_a_line(finished_runs, tmp_path, capsys):
    shutil.copytree(finished_runs / VERSIONS[2], tmp_path / "other")
    config = read_json(tmp_path / "other" / "config.json")
    config["data"] = str(tmp_path / "other" / "samples.txt")
    (tmp_path / "other" / "samples.txt").write_text("Other text. " * 500, encoding="utf-8")
    write_json(tmp_path / "other" / "config.json", config)
    for folder, why in (("nowhere", "no finished run is there"), ("other", "has changed since")):
        with pytest.raises(SystemExit) as stopped:
            report.main(["--run", str(tmp_path / folder), "--out", str(tmp_path / "page.html")])
        said = capsys.readouterr().err.strip()
        assert stopped.value.code == 2 and why in said and "\n" not in said
    assert not (tmp_path / "page.html").exists()
