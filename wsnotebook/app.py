"""The app, `wsnotebook app`: notebook 00 and every explorer, each a page that Voila shows without its code.

A page has a kernel of its own, which ends when the page is left. Its result is one of the gallery's: made when it is
first asked for, kept in the cache folder from then on.
"""

import importlib.util
import os
import re
from pathlib import Path

from wsnotebook import figures, runs

HOME = "[All pages](../../)"
BADGE = re.compile(r"\[!\[[^]]*\]\([^)]*\)\]\(https://colab\.research\.google\.com/github/(\S*/)[^/)]+\)\s*")
CELL = """from wsnotebook import gallery, session

session.start({notebook!r})
gallery.CARDS[{name!r}].make()"""


def write(folder: Path) -> list[Path]:
    """Write notebook 00 and a notebook of each explorer into the folder, for `serve`. Returns their paths.

    Raises FileNotFoundError without the numbered notebooks, OSError when the folder cannot be written.
    """
    import nbformat

    from wsnotebook import gallery

    tour = runs.find("00").path
    pages = {tour.stem: _at_home(nbformat.read(tour, as_version=4))}
    for name, card in gallery.CARDS.items():
        cell = CELL.format(notebook=card.notebook, name=name)
        pages[f"{name}_explorer"] = page(f"{card.title} explorer", card.question, cell)
    for name, notebook in pages.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return [folder / f"{name}.ipynb" for name in pages]


def page(title: str, text: str, cell: str):
    """A notebook, as nbformat has it, of a title, a paragraph, and a cell of code that ends with what is shown."""
    from nbformat import v4

    cells = [v4.new_markdown_cell(f"{HOME}\n\n# {title}\n\n{text}"), v4.new_code_cell(cell)]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": runs.KERNEL})


def serve(folder: Path, port: int, browser: bool) -> None:
    """Serve the folder's notebooks as pages, and their list, on 127.0.0.1 until interrupted.

    port: others are tried when it is taken. browser: open the list in one. Raises ModuleNotFoundError without Voila.
    """
    if importlib.util.find_spec("voila") is None:
        raise ModuleNotFoundError("the app needs Voila: pip install 'wsnotebook[lab]'")
    from voila.app import Voila

    ours = {"WSNOTEBOOK_FIGURES": str(folder), "OMP_NUM_THREADS": "1"}
    ours["TQDM_DELAY"] = "1e9"  # seconds until a progress bar shows: a page comes when all is done, and bars are closed
    os.environ.update(figures.absolute_folders() | ours)  # kernels inherit it
    options = {"ip": "127.0.0.1", "port": port, "open_browser": browser}
    given = [f"--Voila.{name}={value}" for name, value in options.items()]
    shown = [f"--VoilaConfiguration.{name}=True" for name in ("strip_sources", "show_tracebacks", "classic_tree")]
    Voila.launch_instance([str(folder), *given, *shown])


def _at_home(tour):
    """Notebook 00 as a page: without its badge, its links to other notebooks leading to where the badge's leads."""
    places = []
    for cell in tour.cells:
        if cell.cell_type == "markdown":
            places += BADGE.findall(cell.source)
            cell.source = BADGE.sub(f"{HOME}\n\n", cell.source)
            cell.source = re.sub(r"\]\((\d\d_\w+\.ipynb)\)", rf"](https://github.com/{places[0]}\1)", cell.source)
    return tour
