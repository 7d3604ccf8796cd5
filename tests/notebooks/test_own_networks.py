"""Somebody's own checkpoints, of a class that is not in the package, go through the comparisons by one parameter."""

import json
from pathlib import Path

import nbformat
import pytest
from safetensors.torch import save_file

from wsnotebook import evaluation, runs, zoo

pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory, digits):
    """Twenty of them, and the folder that they are in."""
    folder = tmp_path_factory.mktemp("own")
    nets = zoo.train("squeezed:squeezed", digits, 20, zoo.Config(epochs=2), folder=tmp_path_factory.mktemp("zoo"))
    for i in range(len(nets)):
        save_file(nets.module(i).state_dict(), folder / f"{i}.safetensors")
    return nets, folder


def run_on_them(number, folder, out, cache, monkeypatch, **parameters):
    monkeypatch.setenv("WSNOTEBOOK_CACHE", str(cache))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the class is
    given = {"zoo_path": str(folder), "network": "squeezed:squeezed", "dataset": "digits"} | parameters
    (run,) = runs.execute([runs.find(number)], given, copies=out, pictures=out / "figures")
    assert run.error is None
    return run, out / "figures" / "quick" / run.notebook


def test_generation(networks, digits, cache, tmp_path, monkeypatch):
    nets, folder = networks
    _, figures = run_on_them("08", folder, tmp_path, cache, monkeypatch, training={"epochs": 2})
    (about,) = json.loads((figures / "generation.json").read_text())["metrics"].items()
    assert about[0] == "your networks"
    rows = {row[0]: row for row in about[1]["rows"]}
    accuracy = evaluation.report(nets, digits.test).accuracy.mean()
    assert rows["the zoo, leave one out"][2] == [pytest.approx(accuracy)]
    assert {"weight flow", "SANE, kde", "Gaussian of PCA", "from scratch"} <= rows.keys()


def test_representations(networks, cache, tmp_path, monkeypatch):
    nets, folder = networks
    run, figures = run_on_them("09", folder, tmp_path, cache, monkeypatch, overrides={"iterations": 20})
    entries = json.loads((figures / "knowledge.json").read_text())["metrics"]["entries"]
    assert {"SANE, mean", "statistics s(W), tensors"} <= entries.keys()
    printed = "".join(
        output.text
        for cell in nbformat.read(run.path, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    )
    assert f"Zoo(14 x squeezed:squeezed, d={nets.layout.d}" in printed
    assert "6 networks set aside" in printed
