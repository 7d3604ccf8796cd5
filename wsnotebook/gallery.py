"""The gallery, `wsnotebook gallery`: every explorer as a page that needs neither kernel nor network, and their index.

Each shows a small result at the scale `quick`: notebook 00's settings, and what notebooks 01, 07 and 10 do, reduced.
The results are kept in the cache folder, where notebook 00 finds them too. plotly.js lies once beside the pages.
"""

import base64
import html
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from plotly.offline import get_plotlyjs
from torch import nn
from tqdm.auto import tqdm

from wsnotebook import cornn, datasets, figures, symmetry, tuning, zoo
from wsnotebook.comparisons import compression as comparison
from wsnotebook.comparisons import compression_cases
from wsnotebook.explorers import (
    compression,
    front,
    interpolation,
    latent,
    mixture,
    search,
    sharing,
    trajectory,
)
from wsnotebook.explorers import zoo as zoos
from wsnotebook.explorers.common import PLOTLY, Displayed, beside_plotly, filled
from wsnotebook.methods import (
    compression_study,
    latent_search,
    sane,
    soft_weight_sharing,
    superweight_study,
    superweight_training,
    swat_nn,
    weight_flow,
)
from wsnotebook.methods import superweight_ensembles as ensembles
from wsnotebook.training import finished

PAGES = "explorers"  # the folder of the pages, beside the index


class Card(NamedTuple):
    """What the index says of an explorer, and how it is made."""

    title: str
    question: str  # what it answers
    notebook: str  # where it is at home
    make: Callable[[], Displayed]  # anew, or from what the cache keeps


# ---- small results ---------------------------------------------------------------------------------------------------


@cache
def _trained() -> tuple[compression_study.Preset, nn.Module]:
    """(settings of soft weight-sharing, the trained network that is compressed)."""
    setting = compression_study.preset("quick", network="mlp-64-100-10", overrides=compression_study.CONDENSING)
    return setting, compression_study.trained_network(setting, datasets.load("digits"), 0)[0]


def _mixture() -> Displayed:
    setting, network = _trained()
    made = soft_weight_sharing.compress(network, datasets.load("digits"), setting.config, keep=True)
    return mixture.Explorer(finished(made))


def _sharing() -> Displayed:
    preset = superweight_study.PRESETS["quick"]
    pair, data = superweight_study.prepared(replace(preset, width=0.5, train=600), 0)
    grouped = replace(preset.config, groups="gradient", epochs=5, pretraining=1, batches=8)
    bank = finished(superweight_training.train(pair, data, grouped, 40_000, keep=True))
    return sharing.Explorer(bank, grouped, ensembles.anytime(bank.model, data.validation))


@cache
def _population() -> tuple[zoo.Zoo, zoo.Zoo, zoo.Zoo]:
    """(a zoo with steps of its training, the same aligned, of this the last step)."""
    how = zoo.Config(epochs=8, batch=32, lr=2e-3, snapshots=(1, 50, 150))
    population = zoo.train("mlp-64-16-10", datasets.load("digits"), 40, how)
    last = population.filter(population.facts["step"] == population.facts["step"].max())
    order = symmetry.align(last, reference="mean")
    return population, order.carry(population), order.zoo


def _zoo() -> Displayed:
    population, carried, _ = _population()
    return zoos.Explorer(population, carried)


def _interpolation() -> Displayed:
    population, carried, _ = _population()
    return interpolation.Explorer({"raw": population, "aligned": carried}, datasets.load("digits").validation)


def _latent() -> Displayed:
    *_, aligned = _population()
    small = {"iterations": 60, "z": 16, "dim": 32, "batch": 16}
    embedder = finished(sane.train(aligned, sane.preset("ours", aligned, **small), keep=True))
    return latent.Explorer(embedder, aligned, datasets.load("digits").validation)


def _search() -> Displayed:
    swat = finished(swat_nn.train(swat_nn.Config(iterations=120), keep=True))
    table = cornn.table(["himmelblau"])
    quickly = latent_search.Config(restarts=2, steps=60, tuned=2)
    found = finished(latent_search.search(latent_search.latent(swat), table, quickly, keep=True))
    return search.Explorer(found, table, swat)


def _trajectory() -> Displayed:
    *_, aligned = _population()
    flow = finished(weight_flow.train(aligned, weight_flow.Config(iterations=400), keep=True))
    return trajectory.Explorer(flow, aligned, datasets.load("digits").validation)


def _compression() -> Displayed:
    case = compression_cases.deep()
    recipes = compression_cases.of_deep("quick")
    some = {method: own[:1] for method, own in recipes.items() if "SWAT-NN" not in method}  # its search is not kept
    return compression.Explorer({case.name: comparison.compared(case, some)[0]})


def _front() -> Displayed:
    setting, network = _trained()
    asked = tuning.Config(trials=6, front=True, sampler="random", prune=False, every=setting.config.epochs)
    space = {"tau": tuning.Range(0.1, 2.0, log=True), "pi_0": tuning.Range(0.9, 0.99)}
    trials = tuning.trials(tuning.search(setting, asked, space=space))  # the first is the mixture explorer's
    load = partial(tuning.result_of, setting, network=network, dataset=datasets.load("digits"))
    return front.Explorer(trials, load, asked.allowance)


CARDS = {
    "mixture": Card(
        "Mixture",
        "How does a network's file get small while its weights cluster? Move the epoch.",
        "01_soft_weight_sharing",
        _mixture,
    ),
    "sharing": Card(
        "Sharing",
        "Which layers of two networks can share one bank of parameters? Move the threshold and the budget.",
        "02_superweights",
        _sharing,
    ),
    "zoo": Card(
        "Zoo",
        "What does a population of networks look like as it trains? Move the step.",
        "03_model_zoos",
        _zoo,
    ),
    "interpolation": Card(
        "Interpolation",
        "What lies on the straight line between two networks, before and after alignment? Move along it.",
        "03_model_zoos",
        _interpolation,
    ),
    "latent": Card(
        "Latent",
        "What does an embedding of weights know, and what does it decode to? Walk through it.",
        "04_sane",
        _latent,
    ),
    "search": Card(
        "Search",
        "Can architecture and weights be searched together? Replay how a small perceptron is found.",
        "05_swat_nn",
        _search,
    ),
    "trajectory": Card(
        "Trajectory",
        "Does a flow over weights make new networks, or copies? Follow a particle from noise to weights.",
        "06_weight_flow",
        _trajectory,
    ),
    "compression": Card(
        "Compression",
        "Which method makes the smallest file at what error? Go through the files, and see what is in them.",
        "07_compare_compression",
        _compression,
    ),
    "front": Card(
        "Front",
        "Which settings give the smallest file at an allowed loss? Go along the front of a search.",
        "10_tune_compression",
        _front,
    ),
}


def explorers() -> Iterator[tuple[str, Displayed]]:
    """Each name in CARDS with its explorer, as its result is made or found in the cache."""
    return ((name, card.make()) for name, card in CARDS.items())


# ---- the pages -------------------------------------------------------------------------------------------------------


def write(folder: str | Path, made: Iterable[tuple[str, Displayed]]) -> Path:
    """Write index.html, and in `explorers/` plotly.js and a page and a picture of each explorer. Returns the index.

    made: names in CARDS with their explorers, as `explorers()` gives them. The gallery is written whole or not at all.
    Raises OSError when the folder cannot be written.
    """
    folder = Path(folder).resolve()
    files, cards = {folder / PAGES / PLOTLY: get_plotlyjs().encode()}, []
    with _scratch(folder) as scratch:
        for name, explorer in tqdm(made, total=len(CARDS), desc="gallery", unit="explorer", leave=False):
            bundle = explorer._repr_mimebundle_()
            page = explorer.to_html(Path(scratch, "page.html")).read_text(encoding="utf-8")
            files[folder / PAGES / f"{name}.html"] = _page(name, page, _notebooks(folder / PAGES)).encode()
            files[folder / PAGES / f"{name}.png"] = base64.b64decode(bundle["image/png"])
            cards.append(_card(name, explorer, bundle["text/plain"], _notebooks(folder)))
    index = folder / "index.html"
    files[index] = INDEX.replace("CARDS", "".join(cards)).encode()  # the last, when all that it refers to is there
    figures.write(files)
    return index


def _scratch(folder: Path) -> tempfile.TemporaryDirectory:
    """A folder in it that is removed again, made before anything is computed; OSError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".", dir=folder)
    except OSError as error:
        advice = "choose another folder with --out, or WSNOTEBOOK_FIGURES for all figures"
        raise type(error)(f"cannot write the gallery to {folder} ({error.strerror}): {advice}") from error


def _notebooks(folder: Path) -> str:
    """Where a page in this folder finds the notebooks: beside it in a checkout, else in the repository."""
    home = figures.checkout(folder)
    if home:
        return Path(os.path.relpath(home / "notebooks", folder)).as_posix()
    urls = dict(line.split(", ") for line in metadata("wsnotebook").get_all("Project-URL"))
    return f"{urls['Repository']}/blob/HEAD/notebooks"


def _page(name: str, page: str, notebooks: str) -> str:
    """An explorer's page with the way back, and plotly.js beside it."""
    home = CARDS[name].notebook
    links = f'<a href="../index.html">All explorers</a> <a href="{notebooks}/{home}.ipynb">Notebook {home}</a>'
    return beside_plotly(page.replace("<body>", f"<body>\n<nav style='display: flex; gap: 1.6em'>{links}</nav>", 1))


def _card(name: str, explorer: Displayed, text: str, notebooks: str) -> str:
    card = CARDS[name]
    values = {
        "PAGE": f"{PAGES}/{name}.html",
        "PICTURE": f"{PAGES}/{name}.png",
        "TITLE": card.title,
        "QUESTION": card.question,
        "TEXT": html.escape(text),
        "FACTS": explorer.readout.value.replace(LIVE, ""),
        "NOTEBOOK": card.notebook,
        "PLACE": f"{notebooks}/{card.notebook}.ipynb",
    }
    return filled(CARD, values)


LIVE = " role='status' aria-live='polite'"  # of a readout that changes

CARD = """
<article>
<h2>@TITLE@ explorer</h2>
<p>@QUESTION@</p>
<a href="@PAGE@"><img src="@PICTURE@" alt="@TEXT@"></a>
<div class="facts">@FACTS@</div>
<p class="links"><a href="@PAGE@">Open the live page</a> <a href="@PLACE@">Notebook @NOTEBOOK@</a></p>
</article>
"""

INDEX = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>wsnotebook: explorers</title>
<style>
:root { color-scheme: light dark; --link: light-dark(#0b5cad, #8ab8ff) }
body { font: 15px/1.6 "DejaVu Sans", Verdana, sans-serif; color: light-dark(#333333, #e6e6e6) }
body { max-width: 84em; margin: 1em auto; padding: 0 1em; background: light-dark(white, #111315) }
h1 { font-size: 1.6em; margin: 0.4em 0 }
h2 { font-size: 1.15em; margin: 0 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34em), 1fr)) }
main { gap: 1.5em; align-items: start; grid-auto-flow: dense }
article:has(table) { grid-column: 1 / -1 }
article:has(table) img { max-width: 42em }
article { background: light-dark(#f4f5f7, #1d2024); border-radius: 8px; padding: 1em; min-width: 0 }
article p { margin: 0.3em 0 0.7em }
img { width: 100%; height: auto; border-radius: 4px; background: white }
a { color: var(--link) }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.facts { font-size: 13px; margin: 0.4em 0; overflow-wrap: break-word }
.links { display: flex; flex-wrap: wrap; gap: 0.2em 1.6em }
</style>
</head>
<body>
<h1>Explorers of trained networks' weights</h1>
<p>Each picture below is one small result, made in seconds on 8 x 8 digits: its live page moves in this browser, without
Python and without a network.</p>
<main>CARDS</main>
</body>
</html>
"""
