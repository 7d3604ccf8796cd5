"""Laws of the app: a page for each explorer and the tour, which lead nowhere that is not served or on the web."""

import importlib.util
import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="the app needs Voila: pip install 'wsnotebook[lab]'")
from wsnotebook import app, cli, gallery  # noqa: E402


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    paths = app.write(tmp_path_factory.mktemp("app"))
    return {path.stem: nbformat.read(path, as_version=4) for path in paths}


def test_the_tour_and_every_explorer_have_a_page(pages):
    assert set(pages) == {"00_start_here", *(f"{name}_explorer" for name in gallery.CARDS)}
    for notebook in pages.values():
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", gallery.CARDS)
def test_a_page_ends_with_its_explorer(pages, monkeypatch, name):
    made = gallery.CARDS[name]._replace(make=lambda: f"the {name} explorer")
    monkeypatch.setitem(gallery.CARDS, name, made)
    text, code = pages[f"{name}_explorer"].cells
    assert f"# {gallery.CARDS[name].title} explorer" in text.source
    *lines, last = code.source.splitlines()
    scope = {}
    exec("\n".join(line for line in lines if not line.startswith("session.")), scope)
    assert eval(last, scope) == f"the {name} explorer"


def test_links_lead_to_the_list_or_to_the_web(pages):
    for name, notebook in pages.items():
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        links = re.findall(r"\]\(([^)]+)\)", text)
        assert "../../" in links
        assert all(link == "../../" or link.startswith("https://github.com/") for link in links), name
        assert "colab" not in text


def test_the_command_serves_what_it_wrote_and_removes_it(monkeypatch):
    served = {}

    def serve(folder, port, browser):
        served.update(folder=folder, names={path.name for path in folder.iterdir()}, port=port, browser=browser)

    monkeypatch.setattr(app, "serve", serve)
    assert cli.main(["app", "--port", "1234", "--no-browser"]) == 0
    assert {"00_start_here.ipynb", "zoo_explorer.ipynb"} <= served["names"]
    assert (served["port"], served["browser"]) == (1234, False)
    assert not served["folder"].exists()


def test_without_voila_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'wsnotebook\[lab\]'"):
        app.serve(tmp_path, 8866, browser=False)
