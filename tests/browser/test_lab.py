"""Notebook 01 in a real JupyterLab and a real Chromium: run all, press the slider's keys, see the picture change.

The screenshot is kept in runs/screenshots/.
"""

import http.client
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NOTEBOOK = "01_soft_weight_sharing.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on PATH: apt-get install chromium", allow_module_level=True)

SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # draw all cells, not only visible ones
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
# what the page shows: the readout, the first points of every trace, and the drawn curve
SEEN = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const values = v => Array.from(v && v.bdata !== undefined ? Object.values(v._inputArray ?? {}) : v ?? []);
  return {
    readout: document.querySelector('[role=status][aria-live=polite]').textContent,
    data: JSON.stringify(plot.data.map(trace => values(trace.y).slice(0, 80))),
    path: [...plot.querySelectorAll('.scatterlayer path.js-line')].map(path => path.getAttribute('d')).join(' '),
  };
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, with settings, cache and figures of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "WSNOTEBOOK_CACHE": "cache",
        "WSNOTEBOOK_FIGURES": "figures",
    }
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()} | {"OMP_NUM_THREADS": "1"}
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": home / "notebooks",
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_server(server, port, home / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(server, port, log, seconds=120):
    for _ in range(4 * seconds):
        if server.poll() is not None:
            break
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/api")
                return connection.getresponse().read()
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(lab):
    """The notebook open in the browser, its kernel idle."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1250, "height": 1000})
        page.set_default_timeout(90_000)
        page.goto(f"{lab}/lab/tree/{NOTEBOOK}?reset")
        wait_idle(page)
        yield page
        browser.close()


def wait_idle(page):
    page.wait_for_function(
        """() => {
          const widget = window.jupyterapp?.shell?.currentWidget;
          return widget?.context?.isReady && widget?.sessionContext?.session?.kernel?.status === 'idle';
        }"""
    )


def press(page, key):
    """Press a key on the focused slider and wait until plotly has drawn; milliseconds from key to picture."""
    page.evaluate(
        """() => {
          const plot = document.querySelector('.js-plotly-plot'), slider = document.querySelector('[role=slider]');
          slider.focus();
          window.drawn = new Promise(done => slider.addEventListener('keydown', () => {
            const start = performance.now();
            plot.once('plotly_afterplot', () => done(performance.now() - start));
          }, {once: true}));
        }"""
    )
    page.keyboard.press(key)
    return page.evaluate("() => window.drawn")


def test_the_slider_moves_the_picture(page):
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_function("() => document.querySelector('[role=status]')?.textContent.includes('times smaller')")
    page.wait_for_timeout(500)
    end = page.evaluate(SEEN)
    delays = [press(page, "ArrowLeft") for _ in range(12)]
    back = page.evaluate(SEEN)
    for part in ("readout", "data", "path"):
        assert back[part] != end[part], f"{part} did not change"
    assert "epoch 30 of 30" in end["readout"]
    assert "epoch 18 of 30" in back["readout"]
    print(f"key to picture: median {statistics.median(delays):.0f} ms of {len(delays)}, longest {max(delays):.0f} ms")

    page.locator(".js-plotly-plot").first.scroll_into_view_if_needed()
    page.screenshot(path=ROOT / "runs" / "screenshots" / "mixture_explorer.png")


def test_every_cell_ran_without_an_error(page):
    page.wait_for_function(
        """() => {
          const cells = window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code');
          return cells.every(cell => cell.model.executionCount !== null);
        }"""
    )
    wait_idle(page)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0
