"""A real JupyterLab and a real Chromium."""

import os
import shutil
import statistics
import sys
from pathlib import Path

import nbformat
import pytest
from driving import DELAYS, listen, new_page, served, wait_idle

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # draw all cells, not only visible ones
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


def pytest_terminal_summary(terminalreporter):
    """How long a key takes to be seen, median and longest. The machine is seldom idle, so its load is told as well."""
    if DELAYS:
        terminalreporter.section("from key to picture, 100 ms wanted")
    for explorer, (delays, load) in sorted(DELAYS.items()):
        told = f"median {statistics.median(delays):4.0f} ms, longest {max(delays):4.0f} ms of {len(delays)} keys"
        terminalreporter.write_line(f"{explorer:<18} {told}, load {load:.1f}")


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory):
    """A folder with a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    return shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))


@pytest.fixture(scope="session")
def lab(notebooks):
    """Address of a JupyterLab on this folder, with settings, cache and figures of its own."""
    home = notebooks.parent
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": notebooks,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with served(lambda port: [*command, f"--ServerApp.port={port}"], home, environment) as address:
        yield address


@pytest.fixture(scope="session")
def chromium():
    """A browser."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def opened(lab, chromium):
    """A function: the notebook of this name, run until it has drawn its plots; `errors` has what the console says."""

    def open_page(notebook, plots=1):
        page = new_page(chromium)
        page.goto(f"{lab}/lab/tree/{notebook}?reset")
        wait_idle(page)
        listen(page)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        drawn = "plots => document.querySelectorAll('.js-plotly-plot:has(.main-svg)').length >= plots"
        page.wait_for_function(drawn, arg=plots)
        return page

    return open_page


@pytest.fixture(scope="session")
def ran(opened, notebooks):
    """A function: a new notebook of cells that each end with an explorer, in the browser, run."""
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}

    def run_cells(name, *sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=python), notebooks / f"{name}.ipynb")
        page = opened(f"{name}.ipynb", plots=len(sources))
        wait_idle(page)
        page.wait_for_timeout(1000)
        return page

    return run_cells


@pytest.fixture(scope="module")
def page(ran, request):
    """The page of a module's CELLS."""
    page = ran(request.module.__name__.removeprefix("test_"), *request.module.CELLS)
    yield page
    page.close()
