"""wsnotebook: a Jupyter-first laboratory for weight-space methods."""

__version__ = "0.5.0"
