"""Laws of the gallery: it says what the explorers say, all that it links to is there, and nothing comes from afar."""

import base64
import functools
import html
import re
from urllib.parse import urljoin, urlparse

import pytest
from plotly.offline import get_plotlyjs
from test_plots import tiny_run
from test_plots_comparison_compression import tried
from test_plots_zoo import aligned_zoo, tiny_zoo

pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'wsnotebook[tune]'")
from wsnotebook import cli, datasets, figures, gallery, runs
from wsnotebook.explorers import compression, interpolation, mixture
from wsnotebook.explorers import zoo as zoos

ROOM = 400_000  # characters of a tiny explorer's page; plotly.js has 4.8 million


@functools.cache
def made():
    """Four explorers on tiny results: of facts in rows and in a table, of texts to escape, of short and long pages."""
    return {
        "mixture": mixture.Explorer(tiny_run()),
        "zoo": zoos.Explorer(tiny_zoo(), aligned_zoo()),
        "interpolation": interpolation.Explorer({"raw": tiny_zoo(), "aligned": aligned_zoo()}, rows()),
        "compression": compression.Explorer({"n": tried()}),
    }


def rows():
    return datasets.load("digits").first(validation=50).validation


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like a checkout's, with empty notebooks of the true names."""
    home = tmp_path_factory.mktemp("checkout")
    (home / "pyproject.toml").write_text('name = "wsnotebook"\n')
    (home / "notebooks").mkdir()
    for notebook in runs.notebooks():
        (home / "notebooks" / notebook.path.name).touch()
    return home


@pytest.fixture(scope="module")
def index(checkout):
    return gallery.write(checkout / "figures" / "interactive", made().items())


def links(path):
    """What a page's tags refer to."""
    return re.findall(r"<[a-z]+\b[^>]*? (?:href|src)=[\"']([^\"']*)", path.read_text(encoding="utf-8"))


def pages(index):
    return [index, *(index.parent / gallery.PAGES / f"{name}.html" for name in made())]


def test_every_link_is_to_a_file_that_is_there(index):
    for page in pages(index):
        assert links(page)
        for link in links(page):
            target = urlparse(urljoin(page.as_uri(), link))
            assert target.scheme == "file" or link.startswith("data:image/"), f"{page.name}: {link}"
            assert link.startswith("data:") or (page.parent / link).is_file(), f"{page.name}: {link}"


def test_every_explorer_has_a_card_with_its_own_picture_text_and_numbers(index):
    text = index.read_text(encoding="utf-8")
    assert len([path for path in index.parent.rglob("*") if path.is_file()]) == 2 + 2 * len(made())
    cards = re.findall(r"<article>(.*?)</article>", text, re.S)
    assert len(cards) == len(made())
    for card, (name, explorer) in zip(cards, made().items(), strict=True):
        bundle = explorer._repr_mimebundle_()
        (alt,) = re.findall(r'alt="([^"]*)"', card)
        assert html.unescape(alt) == bundle["text/plain"]
        png = (index.parent / gallery.PAGES / f"{name}.png").read_bytes()
        assert png == base64.b64decode(bundle["image/png"])
        told, shown = (re.sub("<[^>]*>", "", part) for part in (explorer.readout.value, card))
        assert told in shown
        assert gallery.CARDS[name].question in shown
        assert "aria-live" not in card, "nothing on the index changes"
    assert text.count("<h1>") == 1
    assert '<html lang="en">' in text


def test_plotly_is_there_once_and_the_pages_are_small(index, tmp_path):
    scripts = [path for path in index.parent.rglob("*") if path.suffix == ".js"]
    assert [path.name for path in scripts] == ["plotly.min.js"]
    assert scripts[0].read_text(encoding="utf-8") == get_plotlyjs()
    for name, page in zip(made(), pages(index)[1:], strict=True):
        text = page.read_text(encoding="utf-8")
        assert len(text) < ROOM
        assert text.count('<script src="plotly.min.js"></script>') == 1
        alone = made()[name].to_html(tmp_path / "page.html").read_text(encoding="utf-8")
        body = text.partition("</nav>")[2]
        assert alone.endswith(body.replace(' src="plotly.min.js">', f">{get_plotlyjs()}"))


def test_nothing_comes_from_afar(index):
    for page in pages(index):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*https?:", text)
        assert not re.findall(r"url\(|@import", text)


def test_outside_a_checkout_the_notebooks_are_the_repositorys(tmp_path):
    (name, explorer), *_ = made().items()
    index = gallery.write(tmp_path, [(name, explorer)])
    (notebook,) = [link for link in links(index) if link.endswith(".ipynb")]
    assert (
        notebook == f"https://github.com/wsnotebook/wsnotebook/blob/HEAD/notebooks/{gallery.CARDS[name].notebook}.ipynb"
    )


def test_cards_are_of_explorers_and_notebooks_that_exist():
    assert {card.notebook for card in gallery.CARDS.values()} <= {notebook.name for notebook in runs.notebooks()}
    files = (figures.checkout(runs.folder()) / "wsnotebook" / "explorers").glob("*.py")
    assert set(gallery.CARDS) == {path.stem for path in files if "\nclass Explorer" in path.read_text(encoding="utf-8")}


def test_what_cannot_be_written_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")

    def asked():
        yield pytest.fail("an explorer was made")

    monkeypatch.setattr(gallery, "explorers", asked)
    assert cli.main(["gallery", "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"cannot write the gallery to {tmp_path / 'file'}" in told
    assert "--out" in told


def test_a_failure_leaves_the_earlier_gallery_whole(tmp_path):
    (name, explorer), *_ = made().items()
    gallery.write(tmp_path, [(name, explorer)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken():
        yield "zoo", made()["zoo"]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        gallery.write(tmp_path, broken())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
