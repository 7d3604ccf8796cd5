"""README's numbers are the figures' numbers, and its paths exist."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import readme

    assert all(section() in README for section in readme.SECTIONS.values())
    assert readme.written(README) == README
    stale = re.sub(r"\d+\.\d+ ±", "9.99 ±", README)
    assert stale != README
    assert readme.written(stale) == README
    sys.modules.pop("readme")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_its_links_lead_somewhere(path):
    assert (ROOT / path).exists()
