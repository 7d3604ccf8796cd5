"""The explorers of zoos in a real JupyterLab: keys move the pictures, a choice in the cloud is walked below."""

import pytest
from driving import click_point, kept, kept_in_the_dark, timed, wait_idle, walked_by_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

CELLS = [
    """from wsnotebook import datasets, symmetry, zoo
from wsnotebook.explorers import interpolation
from wsnotebook.explorers import zoo as zoos

digits = datasets.load("digits")
raw = zoo.train("mlp-64-16-10", digits, 6, zoo.Config(epochs=3, batch=32, lr=3e-3, snapshots=(0, 10, 40)))
aligned = symmetry.align(raw, reference=3).zoo
cloud = zoos.Explorer(raw, aligned)
cloud""",
    'interpolation.Explorer({"raw": raw, "aligned": aligned}, digits.validation, picked=cloud)',
]
# what plot k and readout k show
SEEN = """k => {
  const plot = document.querySelectorAll('.js-plotly-plot')[k];
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelectorAll('[role=status][aria-live=polite]')[k].textContent,
    data: JSON.stringify(plot.data.map(trace => [values(trace.x).slice(0, 80), values(trace.y).slice(0, 80)])),
  };
}"""

CHANGED = "seen => document.querySelectorAll('[role=status][aria-live=polite]')[1].textContent !== seen"


@pytest.mark.parametrize(("k", "explorer", "keys"), [
    (0, "zoo", ("ArrowLeft", "ArrowRight")), (1, "interpolation", ("ArrowRight",)),
])  # fmt: skip
def test_keys_move_the_picture_and_the_readout(page, k, explorer, keys):
    before = page.evaluate(SEEN, k)
    timed(page, explorer, *keys, k=k, presses=13)
    after = page.evaluate(SEEN, k)
    assert before["data"] != after["data"]
    assert before["readout"] != after["readout"]
    kept(page, explorer, k)


def test_a_click_in_the_cloud_is_another_walk(page):
    before = [page.evaluate(SEEN, k) for k in (0, 1)]
    click_point(page, "networks", 4)
    page.wait_for_function(CHANGED, arg=before[1]["readout"], timeout=20_000)
    for k in (0, 1):
        after = page.evaluate(SEEN, k)
        assert after["readout"] != before[k]["readout"]
        assert after["data"] != before[k]["data"]


def test_another_network_in_the_cloud_is_another_walk(page):
    before = page.evaluate(SEEN, 1)
    page.get_by_label("second", exact=True).first.select_option(index=4)
    page.wait_for_function(CHANGED, arg=before["readout"], timeout=20_000)
    assert page.evaluate(SEEN, 1)["data"] != before["data"]


def test_a_third_network_opens_the_plane(page):
    page.get_by_label("third", exact=True).first.select_option(index=3)
    wait_idle(page)
    page.get_by_role("button", name="plane").click()
    contours = (
        "() => [...document.querySelectorAll('.js-plotly-plot')].at(-1).data.filter(t => t.type === 'contour').length"
    )
    page.wait_for_function(f"() => ({contours})() === 2", timeout=20_000)
    page.wait_for_timeout(500)
    kept(page, "interpolation_plane", 1)


@pytest.mark.parametrize(("k", "explorer"), [(0, "zoo"), (1, "interpolation_plane")])
def test_it_is_readable_in_the_dark_and_walked_by_tab(page, k, explorer):
    kept_in_the_dark(page, explorer, k)
    assert walked_by_tab(page, k)


def test_the_console_has_no_error(page):
    assert page.errors == []
