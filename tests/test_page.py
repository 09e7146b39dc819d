"""The page in a real browser; left out where none is installed (`pip install playwright`, and
Chromium or Chrome on the path)."""

import shutil

import pytest
import toy

from benchmarks import climb
from shared.files import write_json

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    from benchmarks import report

    folder = tmp_path_factory.mktemp("page")
    write_json(folder / "toy" / "results.json", toy.to_v4())
    write_json(folder / "toy-sweep" / "results.json", toy.sweep())
    write_json(folder / "climb" / "results.json", toy.climb())
    kept, report.RESULTS = report.RESULTS, folder
    report.main(f"--results toy --sweep toy-sweep --out {folder / 'page.html'}".split())
    report.RESULTS = kept
    return (folder / "page.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


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
    assert page.locator("figure svg").count() == 9  # positions of v2, v3 and v4; the climb
    for drawing in page.locator("figure svg").all():
        box = drawing.bounding_box()
        assert box["width"] > 100 and box["height"] > 100
    decoded = """() => Promise.all([...document.querySelectorAll("image, img")].map(async old => {
        const image = new Image(); image.src = old.href ? old.href.baseVal : old.src;
        await image.decode(); return image.naturalWidth;
    }))"""
    sizes = page.evaluate(decoded)
    assert sizes and min(sizes) > 1
    # Folds open, those inside of them too.
    first = page.locator("details.section").first
    assert not first.locator(".row").first.is_visible()
    first.locator("summary").first.click()
    assert first.locator(".row").first.is_visible()
    inner = page.locator("details.section details").first
    page.evaluate("for (const d of document.querySelectorAll('details.section')) d.open = true")
    assert not inner.locator(".row").first.is_visible()
    inner.locator("summary").click()
    assert inner.locator(".row").first.is_visible()
    # The way to v4 is told in single ideas.
    assert page.locator("h4").count() == len(climb.STEPS) - 1
    # Nothing stands out at the side, and dark is dark.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert (page.evaluate(brightness) < 100) == (colours == "dark")
    page.close()
