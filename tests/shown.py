"""What an explorer shows, read back."""

import base64
import io
import re

import numpy as np
import plotly
from PIL import Image


def drawn(explorer):
    """Each trace's points, (n, 2), by its name."""
    return {trace.name: np.column_stack([trace.x, trace.y]).astype(float) for trace in explorer.plot.data}


def text_of(explorer):
    """Its readout without markup."""
    return re.sub("<[^>]*>", "", explorer.readout.value)


def opened(source):
    """The picture in a data address."""
    return Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))


def asks_for_nothing(page, room=None):
    """Check that a page's tags refer to nothing else, and that beside plotly.js it has less than room characters."""
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page)
    assert tags
    assert not [tag for tag in tags if re.search(r"\b(src|href)=", tag)]
    if room is not None:
        assert len(page) - len(plotly.offline.get_plotlyjs()) < room
