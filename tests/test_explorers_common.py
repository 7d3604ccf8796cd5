"""Laws of what explorers have in common."""

import subprocess
import sys

import comm
import plotly.graph_objects as go
import pytest

from wsnotebook.explorers.common import FigureWidget, Plot


@pytest.mark.parametrize("kind", [FigureWidget, Plot])
def test_a_browser_first_hears_of_a_plot_when_it_is_whole(monkeypatch, kind):
    create, told = comm.create_comm, []
    monkeypatch.setattr(comm, "create_comm", lambda **message: told.append(message) or create(**message))
    plot = kind(go.Figure({"type": "scatter", "name": "curve", "y": [1, 3, 2]}, {"height": 321}))
    (state,) = [message["data"]["state"] for message in told if "_widget_data" in message["data"]["state"]]
    assert [trace["name"] for trace in state["_widget_data"]] == ["curve"]
    assert state["_widget_layout"]["height"] == 321
    assert plot.model_id


def test_grammars_that_no_notebook_needs_wait_for_their_first_use_and_then_answer_as_ever():
    ask = """
import sys
if {postponed}:
    from wsnotebook.explorers import trajectory
    assert "lark" not in sys.modules
from jsonschema import Draft202012Validator as Draft
addresses = ["http://ä.de/ö?x", "not an iri", "ä b", "http://[::1", "//x", ""]
print([Draft.FORMAT_CHECKER.conforms(text, kind) for text in addresses for kind in ("iri", "iri-reference")])
import rfc3987_syntax
print(rfc3987_syntax.is_valid_syntax("port", "80"), rfc3987_syntax.RFC3987_SYNTAX_TERMS, "lark" in sys.modules)
"""
    told = [
        subprocess.run(
            [sys.executable, "-c", ask.format(postponed=postponed)], capture_output=True, text=True, check=True
        )
        for postponed in (True, False)
    ]
    assert told[0].stdout == told[1].stdout
    assert "True" in told[0].stdout
    assert "False" in told[0].stdout
