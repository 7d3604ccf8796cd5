"""What the pictures have in common: the style, and one colour code for a mixture wherever it is drawn."""

import functools
import io
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

STYLE = Path(__file__).parents[1] / "style.mplstyle"
SPIKE, OTHER, WEIGHTS, INK = "#0072B2", "#D55E00", "#A6A6A6", "#333333"  # spike at zero, other components, bars, text
SIGMA, PLUS_MINUS, ARROW = "\N{GREEK SMALL LETTER SIGMA}", "\N{PLUS-MINUS SIGN}", "\N{RIGHTWARDS ARROW}"


def styled(function):
    """Draw in our style, whatever the caller's is, and leave that as it was."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with style.context(STYLE):
            return function(*args, **kwargs)

    return wrapped


def compact_png(figure: Figure) -> bytes:
    """The figure as a PNG of 256 colours, a third of the size in full colour: for a notebook's outputs."""
    full, compact = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi="figure", metadata={"Software": None})
    colours = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(compact, "png", optimize=True)
    return compact.getvalue()
