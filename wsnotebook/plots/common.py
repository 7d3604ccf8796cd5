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


def in_words(figure: Figure) -> str:
    """The figure's texts, for who cannot see it: its title, titles and axes of its panels, the legend."""
    panels, keys = [], [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for axes in figure.axes:
        title = next(filter(None, map(axes.get_title, ("left", "center", "right"))), "")
        panels.append(
            ": ".join(filter(None, (title, " over ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel()))))))
        )
    names = dict.fromkeys(text.get_text() for key in keys for text in key.get_texts())
    said = [figure.get_suptitle(), "; ".join(dict.fromkeys(filter(None, panels))), ", ".join(names)]
    return " ".join(
        f"{text}." for text in [f"Figure: {said[0]}" if said[0] else "Figure", *filter(None, said[1:])]
    ).replace("\n", " ")
