"""session.start: the same seed gives the same numbers, and bad arguments are told before anything is set."""

import io
import random
import sys
import types

import matplotlib
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image

from wsnotebook import session


@pytest.fixture(autouse=True)
def _state_put_back():
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_the_seed_decides_every_global_generator():
    session.start("01_x", seed=7)
    first = draws()
    assert len(set(first)) == 3
    assert first != draws()
    session.start("01_x", seed=7)
    assert draws() == first
    session.start("01_x", seed=8)
    assert not set(draws()) & set(first)


def test_the_session_records_what_it_was_given():
    given = session.start("01_soft_weight_sharing", scale="laptop", seed=3, dataset="mnist", overrides={"lr": 0.1})
    assert (given.notebook, given.scale, given.seed) == ("01_soft_weight_sharing", "laptop", 3)
    assert given.device == torch.device("cpu")
    assert given.parameters == {"dataset": "mnist", "overrides": {"lr": 0.1}}


def test_threads_and_style_are_set_and_nothing_is_printed(capsys):
    matplotlib.rcParams["svg.hashsalt"] = "another"
    session.start("01_x", threads=2)
    assert torch.get_num_threads() == 2
    assert matplotlib.rcParams["svg.hashsalt"] == "wsnotebook"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("notebook", "arguments", "message"),
    [
        ("soft", {}, "notebook='soft'.*01_soft_weight_sharing"),
        ("01_x.ipynb", {}, "without .ipynb"),
        ("01_x", {"scale": "huge"}, "scale='huge'.*quick, laptop, paper"),
        ("01_x", {"seed": -1}, "seed=-1"),
        ("01_x", {"seed": 0.5}, "seed=0.5"),
        ("01_x", {"threads": 0}, "threads=0"),
        ("01_x", {"threads": True}, "threads=True"),
        ("01_x", {"seed": True}, "seed=True"),
        (
            "01_x",
            {"choices": {"sampler": {"tpe": 1, "gp": 2}}, "sampler": "qp"},
            "sampler='qp': expected one of tpe, gp",
        ),
        ("01_x", {"choices": {"sampler": ("tpe", "gp")}, "sampler": ["tpe"]}, r"sampler=\['tpe'\]: expected one of"),
        (
            "01_x",
            {"several": {"nets": {"deep": 1, "d": 2}}, "nets": "d"},
            "nets='d': expected a list of some of deep, d",
        ),
        ("01_x", {"several": {"nets": ("deep", "d")}, "nets": "deep"}, "nets='deep': expected a list of some of"),
        ("01_x", {"several": {"nets": {"deep": 1}}, "nets": [[1]]}, r"nets=\[\[1\]\]: expected a list of some of deep"),
        ("01_x", {"several": {"nets": {"deep": 1}}, "nets": ["deep", "d"]}, "expected a list of some of deep, or"),
        ("01_x", {"device": "abacus"}, "device='abacus'.*this machine has cpu"),
        ("01_x", {"device": "cuda:99"}, "device='cuda:99'"),
    ],
)
def test_bad_arguments_name_what_was_expected_and_set_nothing(notebook, arguments, message):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        session.start(notebook, **arguments)
    assert torch.equal(torch.get_rng_state(), state)


def test_right_choices_are_taken_and_empty_ones():
    known = {
        "choices": {"sampler": ("tpe", "gp"), "preset": ("a",)},
        "several": {"nets": {"deep": 1}, "target": ("a",)},
    }
    given = {"sampler": "gp", "preset": "", "nets": ["deep"], "target": {"a": 3.0}}
    assert session.start("01_x", **known, **given).parameters == given
    assert session.start("01_x", several={"nets": ("deep",)}, nets=[]).parameters == {"nets": []}


def test_colab_gets_its_widget_manager(monkeypatch):
    calls = []
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: calls.append("enabled"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(output=output))
    session.start("01_x")
    assert calls == ["enabled"]


def test_jupyter_draws_a_figure_that_ends_a_cell_at_its_size(monkeypatch):
    shell = types.SimpleNamespace(display_formatter=DisplayFormatter())
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    session.start("01_x")
    figure = Figure(figsize=(3, 2), dpi=150)
    axes = figure.subplots()
    axes.plot([1, 2], label="ours")
    axes.set(xlabel="epoch", ylabel="error (%)", title="two points")
    axes.legend()
    data, metadata = shell.display_formatter.format(figure)
    with Image.open(io.BytesIO(data["image/png"])) as image:
        assert image.size == (450, 300)
    words = "Figure. two points: error (%) over epoch. ours."
    assert metadata["image/png"] == {"width": 288, "height": 192, "alt": words}
    assert data["text/plain"] == words
    figure.suptitle("All is well")
    assert shell.display_formatter.format(figure)[0]["text/plain"] == words.replace("Figure", "Figure: All is well")


def test_machine_tells_plain_facts():
    facts = session.machine()
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_gib"] > 0
    assert facts["devices"][0] == "cpu"


def test_the_executor_is_none_for_one_process_and_limits_the_threads_of_more():
    with session.executor(1) as pool:
        assert pool is None
    torch.set_num_threads(2)
    with session.executor(2, threads=1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    with pytest.raises(ValueError, match="processes=0"):
        session.executor(0)
