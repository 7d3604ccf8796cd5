"""figures.save: the same input gives the same bytes, the facts are complete, and a failure changes nothing."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from wsnotebook import figures
from wsnotebook.session import Session

SESSION = Session("01_soft", "quick", 3, torch.device("cpu"), {"dataset": "digits", "overrides": {"lr": 0.1}})
KINDS = ("png", "svg", "json")


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    sizes: tuple[int, ...] = (3, 4)


@dataclass(frozen=True)
class Data:
    name: str = "digits"
    checksum: str = "abc"
    official: bool = True

    @property
    def label(self):
        return self.name if self.official else f"{self.name} (not the official files)"


def drawn():
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 0], label="a")
    axes.imshow(np.eye(2), extent=(0, 0.5, 0, 0.5), aspect="auto")
    axes.legend()
    return figure


def contents(folder=None):
    return {kind: ((folder or figures.folder(SESSION)) / f"curve.{kind}").read_bytes() for kind in KINDS}


def test_twice_the_same_input_gives_the_same_bytes():
    given = dict(dataset=Data(), config=Config(), metrics={"error": 1.5})
    figures.save(drawn(), "curve", SESSION, **given)
    first = contents()
    with matplotlib.rc_context({"svg.hashsalt": None, "savefig.bbox": "tight", "savefig.dpi": 40}):
        figures.save(drawn(), "curve", SESSION, **given)
    assert contents() == first


def test_another_process_gives_the_same_bytes(tmp_path):
    code = "import test_figures as t; t.figures.save(t.drawn(), 'curve', t.SESSION)"
    for seed in ("1", "2"):
        environment = os.environ | {"WSNOTEBOOK_FIGURES": str(tmp_path / seed), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parent, check=True)
    one, two = (contents(tmp_path / seed / "quick" / "01_soft") for seed in ("1", "2"))
    assert one == two


def test_another_preset_and_the_files_of_a_run_have_folders_of_their_own(tmp_path, monkeypatch):
    other = Session("01_soft", "quick", 3, torch.device("cpu"), {"preset": "lenet-5-caffe"})
    assert figures.folder(other) == figures.folder(SESSION) / "lenet-5-caffe"
    monkeypatch.setenv("WSNOTEBOOK_RUNS", str(tmp_path))
    assert figures.run_folder(SESSION) == tmp_path / "01_soft"
    assert figures.run_folder(other) == tmp_path / "01_soft" / "lenet-5-caffe"
    monkeypatch.delenv("WSNOTEBOOK_RUNS")
    monkeypatch.chdir(tmp_path)
    assert figures.run_folder(SESSION) == tmp_path / "runs" / "quick" / "01_soft"


def test_the_facts_are_complete_and_plain():
    metrics = {
        "error": torch.tensor(2.5),
        "rates": np.array([0.5, 1.0]),
        "rows": [{"n": np.int64(3), "ok": np.bool_(True)}],
        "none": None,
        "grid": torch.ones(1, 2, requires_grad=True),
    }
    path = figures.save(drawn(), "curve", SESSION, dataset=Data(), config={"method": Config()}, metrics=metrics)
    assert path == figures.folder(SESSION) / "curve.png"
    assert path.parent.parts[-2:] == ("quick", "01_soft")
    facts = json.loads(path.with_suffix(".json").read_text())
    assert {key: facts[key] for key in ("notebook", "figure", "scale", "seed", "device")} == {
        "notebook": "01_soft",
        "figure": "curve",
        "scale": "quick",
        "seed": 3,
        "device": "cpu",
    }
    assert facts["parameters"] == SESSION.parameters
    assert facts["dataset"] == {"name": "digits", "checksum": "abc", "official": True}
    assert facts["config"] == {"method": {"lr": 0.1, "sizes": [3, 4]}}
    assert facts["metrics"] == {
        "error": 2.5,
        "rates": [0.5, 1.0],
        "rows": [{"n": 3, "ok": True}],
        "none": None,
        "grid": [[1.0, 1.0]],
    }
    assert set(facts["versions"]) == {"python", "wsnotebook", "torch", "numpy", "matplotlib"}
    written = {kind: hashlib.sha256(data).hexdigest() for kind, data in contents().items() if kind != "json"}
    assert facts["sha256"] == written


def test_the_pictures_describe_themselves():
    path = figures.save(drawn(), "curve", SESSION, dataset=Data())
    with Image.open(path) as image:
        facts = json.loads(image.text["Description"])
    assert facts["notebook"] == "01_soft"
    assert facts["dataset"] == {"name": "digits", "checksum": "abc", "official": True}
    assert "01_soft" in path.with_suffix(".svg").read_text()


def test_a_figure_of_unofficial_data_says_so_and_is_left_as_it_was():
    figure = drawn()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        path = figures.save(figure, "curve", SESSION, dataset=Data(official=False))
        svg = path.with_suffix(".svg").read_text()
        assert "digits (not the official files)" in svg
        assert json.loads(path.with_suffix(".json").read_text())["dataset"]["official"] is False
        figures.save(figure, "curve", SESSION, dataset=Data())
        once = contents()
        figures.save(drawn(), "curve", SESSION, dataset=Data())
        assert contents() == once


def test_what_is_said_of_the_data_stands_clear_of_a_legend_below_and_that_of_the_axes():
    figure = Figure(figsize=(3, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], label="a curve with a long name")
    legend = figure.legend(loc="outside lower center")
    pad = legend.borderaxespad
    with figures._noted(figure, Data(name="some images of some size", official=False)):
        figure.draw_without_rendering()
        note = figure.texts[-1].get_window_extent()
        assert note.overlaps(figure.bbox)
        assert not legend.get_window_extent().overlaps(note)
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    assert (figure.texts, legend.borderaxespad) == ([], pad)


def test_a_table_has_only_its_facts():
    path = figures.save(None, "results", SESSION, metrics={"rows": [1, 2]})
    assert path == figures.folder(SESSION) / "results.json"
    assert json.loads(path.read_text())["metrics"] == {"rows": [1, 2]}
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"error": float("nan")}, r"metrics\['error'\] is nan"),
        ({"rows": [{"a": torch.tensor(float("inf"))}]}, r"metrics\['rows'\]\[0\]\['a'\] is inf"),
        ({"x": np.array([1.0, np.nan])}, r"metrics\['x'\]\[1\] is nan"),
        ({3: 1.0}, "metrics has the key 3"),
        ({"set": {1}}, r"metrics\['set'\] is a set"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_earlier_files_stay(metrics, message):
    figures.save(drawn(), "curve", SESSION, metrics={"error": 1.0})
    before = contents()
    with pytest.raises(ValueError, match=message):
        figures.save(drawn(), "curve", SESSION, metrics=metrics)
    assert contents() == before


@pytest.mark.parametrize("name", ["", "a b", "Curve", "../curve", "curve.png"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(ValueError, match="small letters, digits and _"):
        figures.save(drawn(), name, SESSION)


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_files():
    figures.save(drawn(), "curve", SESSION)
    before = contents()
    broken = drawn()
    broken.text(0.5, 0.5, r"$\nosuchcommand$")
    with pytest.raises(ValueError, match="nosuchcommand"):
        figures.save(broken, "curve", SESSION)
    assert contents() == before


def test_a_disk_that_fails_half_way_leaves_the_earlier_files_and_no_others(monkeypatch):
    figures.save(drawn(), "curve", SESSION)
    before = contents()
    plain = Path.write_bytes

    def full(path, data):
        if ".json" in path.name:
            raise OSError(28, "No space left on device")
        return plain(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            figures.save(drawn(), "curve", SESSION, metrics={"new": 1})
    assert contents() == before
    assert {path.suffix for path in figures.folder(SESSION).iterdir()} == {".png", ".svg", ".json"}


@pytest.mark.parametrize("place", ["a file", "/proc/nothing"])
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(place, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("WSNOTEBOOK_FIGURES", str(tmp_path / place))
    with pytest.raises(OSError, match=f"{place}.*: set WSNOTEBOOK_FIGURES"):
        figures.save(drawn(), "curve", SESSION)


def test_figures_land_in_the_checkout_around_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("WSNOTEBOOK_FIGURES")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert figures.root() == tmp_path / "deep" / "er" / "figures"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "wsnotebook"\n')
    assert figures.root() == tmp_path / "figures"
    (tmp_path / "deep" / "pyproject.toml").write_text('[project]\nname = "wsnotebook-plugin"\n')
    assert figures.root() == tmp_path / "figures"
