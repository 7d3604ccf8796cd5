"""`wsnotebook gallery` in a real Chromium without a network: from the index to every page, whose keys move its picture.

The screenshots, light and dark, are kept in runs/screenshots/.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from driving import FAINT, SCREENSHOTS, listen
from PIL import Image

from wsnotebook import cli
from wsnotebook.gallery import CARDS
from wsnotebook.plots.common import WEIGHTS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# what a page shows: its readout, and the numbers of every trace
SEEN = """() => {
  const plot = document.getElementById('plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: [...document.querySelectorAll('#facts, #label')].map(line => line.textContent).join(' '),
    data: JSON.stringify(plot.data.map(t => [values(t.x), values(t.y), values(t.z), t.text])),
  };
}"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The real gallery, from an empty cache."""
    home = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSNOTEBOOK_CACHE", str(home / "cache"))
        assert cli.main(["gallery", "--out", str(home / "out")]) == 0
    return home / "out" / "index.html"


@pytest.fixture(params=["light", "dark"])
def page(chromium, index, request):
    """The index, offline, in this colour scheme; what the console complains of is in `errors`."""
    context = chromium.new_context(color_scheme=request.param, viewport={"width": 1250, "height": 1000})
    context.set_offline(True)
    page = context.new_page()
    listen(page)
    page.scheme = request.param
    page.goto(index.as_uri())
    yield page
    assert page.errors == []
    context.close()


def kept(page, name):
    page.screenshot(path=SCREENSHOTS / f"{name}_{page.scheme}.png", full_page=True)
    faint = page.locator("body").evaluate(FAINT)
    assert not faint, f"hard to read: {faint}"


def opened(page, name):
    """Follow the index's link to this explorer, and wait until its plot is drawn."""
    article = page.locator("article", has=page.get_by_role("heading", name=CARDS[name].title, exact=False))
    article.get_by_role("link", name="live page").click()
    page.wait_for_selector("#plot .main-svg")
    page.wait_for_timeout(1500)


def test_the_index_shows_every_picture(page):
    pictures = page.locator("img").evaluate_all("all => all.map(img => [img.naturalWidth, img.alt.length])")
    assert len(pictures) == len(CARDS)
    assert all(width > 300 and text > 20 for width, text in pictures)
    cut = (
        "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent.slice(0, 80))"
    )
    assert page.locator("article, article div").evaluate_all(cut) == []
    kept(page, "gallery")


@pytest.mark.parametrize("name", CARDS)
def test_keys_move_the_page(page, name):
    opened(page, name)
    kept(page, f"gallery_{name}")
    before = page.evaluate(SEEN)
    assert before["readout"]
    slider = page.locator("input[type=range]").first
    key = "ArrowLeft" if slider.evaluate("s => s.value !== s.min") else "ArrowRight"
    for _ in range(12):  # a step of the sharing explorer's threshold may change no cluster
        slider.press(key)
        page.wait_for_timeout(400)
        after = page.evaluate(SEEN)
        if after["data"] != before["data"]:
            break
    assert after["data"] != before["data"]
    assert after["readout"] != before["readout"]
    page.get_by_role("link", name="All explorers").click()
    assert Path(page.url).name == "index.html"


def test_the_compression_page_shows_the_weights(page):
    opened(page, "compression")
    shown = np.asarray(Image.open(io.BytesIO(page.locator("#plot").screenshot())).convert("RGB"))
    right = shown[:, shown.shape[1] // 2 :]
    assert (right == list(bytes.fromhex(WEIGHTS[1:]))).all(-1).sum() > 100, "nothing lies over the histogram"


def test_on_a_phone_nothing_is_cut_off(chromium, index):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, is_mobile=True)
    page = context.new_page()
    page.goto(index.as_uri())
    for place in ("index", "page"):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=SCREENSHOTS / f"gallery_phone_{place}.png")
        if place == "index":
            opened(page, "latent")
    context.close()
