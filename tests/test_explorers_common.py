"""Laws of what explorers have in common."""

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
