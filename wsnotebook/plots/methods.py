"""One colour and one marker for each method, the same in every comparison."""

from wsnotebook.plots.common import INK

GREY = "#8C8C8C"  # all baselines; their markers tell them apart

STYLES = {  # method: (colour, marker)
    "as trained": (INK, "*"),
    "soft weight-sharing": ("#0072B2", "o"),
    "SuperWeights": ("#D55E00", "s"),
    "SANE": ("#009E73", "^"),
    "SWAT-NN": ("#CC79A7", "v"),
    "weight flow": ("#E69F00", "P"),
    "pruning + k-means": (GREY, "X"),
    "uniform grid": (GREY, "d"),
    "low rank": (GREY, "<"),
    "thin network": (GREY, ">"),
    "from scratch": (GREY, "h"),
    "noise": (GREY, "x"),
    "interpolation": (GREY, "1"),
    "averages": (GREY, "+"),
    "kernel density": (GREY, "p"),
    "Gaussian of PCA": (GREY, "D"),
    "closed-form flow": ("#56B4E9", "P"),
    "statistics s(W)": (GREY, "H"),
    "raw weights": (GREY, "."),
    "aligned weights": (GREY, "o"),
    "PCA": (GREY, "D"),
    "Gaussian": (GREY, "s"),
}


def style(method: str) -> tuple[str, str]:
    """(colour, marker) of a method, or of a variant of it: "weight flow, reference" is drawn as "weight flow".

    Raises ValueError for a method that has none.
    """
    found = [name for name in STYLES if method == name or method.startswith(f"{name},")]
    if not found:
        raise ValueError(f"method={method!r}: no colour; known are {', '.join(STYLES)}, each with ', variant'")
    return STYLES[max(found, key=len)]
