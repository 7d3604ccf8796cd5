"""Postpones what an import of plotly's widgets ends in: grammars of internationalised addresses, half of its time.

plotly imports nbformat, that jsonschema, and that rfc3987_syntax, which comes with JupyterLab and compiles grammars for
two or three seconds when it is imported. Now it does at its first use, which a notebook does not come to.
"""

import importlib
import sys
from importlib.util import find_spec, module_from_spec

NAME = "rfc3987_syntax"


def postpone() -> None:
    """Let a stand-in import the module when something of it is used, unless it is imported already or not installed."""
    spec = None if NAME in sys.modules else find_spec(NAME)
    if spec is None:
        return

    def first_use(attribute: str):
        if sys.modules.get(NAME) is stand_in:
            del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), attribute)

    def is_valid_syntax(*args, **kwargs):  # what jsonschema takes when it is imported, and calls at its own first use
        return first_use("is_valid_syntax")(*args, **kwargs)

    stand_in = module_from_spec(spec)  # with its file and path, not executed
    stand_in.__getattr__ = first_use  # PEP 562
    stand_in.is_valid_syntax = is_valid_syntax
    sys.modules[NAME] = stand_in
