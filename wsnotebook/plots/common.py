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
    panels, names = [], []
    for axes in figure.axes:
        title = axes.get_title("left") or axes.get_title("center") or axes.get_title("right")
        panels.append(_joined(": ", [title, _joined(" over ", [axes.get_ylabel(), axes.get_xlabel()])]))
    for key in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        names += [text.get_text() for text in key.get_texts()] if key else []
    head = _joined(": ", ["Figure", figure.get_suptitle()])
    return _joined(". ", [head, _joined("; ", panels), _joined(", ", names)]).replace("\n", " ") + "."


def _joined(mark: str, texts: list[str]) -> str:
    """Those that say something, each once."""
    return mark.join(dict.fromkeys(filter(None, texts)))
