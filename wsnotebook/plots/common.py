"""What the pictures have in common: the style, and one colour code for a mixture wherever it is drawn."""

import functools
from pathlib import Path

from matplotlib import style

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
