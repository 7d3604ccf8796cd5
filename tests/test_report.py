"""README's numbers are the figures' numbers, and its paths exist."""

import json
import re
from pathlib import Path

import pytest

from wsnotebook import cli, report

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_figures(capsys):
    assert cli.main(["report", "--check"]) == 0, capsys.readouterr().out
    assert all(f"<!-- end of {mark} -->" in README for mark in report.SECTIONS)


def test_a_stale_table_is_found_and_written_anew(tmp_path, monkeypatch):
    stale = re.sub(r"\d+\.\d+ ±", "9.99 ±", README)
    assert stale != README
    assert report.written(stale) == README
    cells = [{"cell_type": kind, "source": [stale], "metadata": {}} for kind in ("markdown", "code")]
    notebook, text = tmp_path / "01_some.ipynb", tmp_path / "README.md"
    notebook.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    text.write_text(stale, encoding="utf-8")
    assert report.update([notebook, text], write=False) == [notebook, text]
    assert text.read_text(encoding="utf-8") == stale
    assert report.update([notebook, text]) == [notebook, text]
    assert report.update([notebook, text]) == []
    assert text.read_text(encoding="utf-8") == README
    markdown, code = ("".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    assert (markdown, code) == (README, stale)


def test_a_mark_may_name_a_file_and_must_name_something(tmp_path, monkeypatch):
    (tmp_path / "figures/quick/09_some").mkdir(parents=True)
    facts = {"metrics": {"columns": ["a", "b"], "rows": [["x", "1", "2"]]}}
    (tmp_path / "figures/quick/09_some/table.json").write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.setattr(report, "home", lambda: tmp_path)
    text = "<!-- {0} -->\nold\n<!-- end of {0} -->"
    made = report.written(text.format("quick/09_some/table"))
    assert made.splitlines()[-2] == "| x | 1 | 2 |"
    with pytest.raises(ValueError, match="mark 'nothing': expected one of results, "):
        report.written(text.format("nothing"))
    with pytest.raises(FileNotFoundError, match="other"):
        report.written(text.format("quick/09_some/other"))


@pytest.mark.parametrize(
    "text",
    [
        "<!-- zoo reslts -->\nold\n<!-- end of zoo results -->",
        "<!-- zoo results -->\nold\n<!-- end of zoo reslts -->",
        "<!-- zoo results -->\nold",
        "<!-- laptop/07_some/table -->\nold",
        "<!-- zoo results --> old <!-- end of zoo results -->",
        "<!-- end of zoo results -->\nold\n<!-- zoo results -->",
        "<!-- zoo results -->\n<!-- zoo results -->\nold\n<!-- end of zoo results -->",
    ],
)
def test_a_mark_without_its_other_is_told(text, tmp_path):
    with pytest.raises(ValueError, match="mark <!-- .* --> stands alone: expected <!-- NAME -->"):
        report.written(text)
    cells = [{"cell_type": "markdown", "source": [text], "metadata": {}}]
    (tmp_path / "01_some.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    with pytest.raises(ValueError, match="stands alone"):
        report.update([tmp_path / "01_some.ipynb"])


def test_other_comments_are_left_alone():
    text = "<!-- a remark -->\nabout zoo results <!-- another -->"
    assert report.written(text) == text


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:\]\(|src=\")(?!http)([^)#\"]+)", README))))
def test_its_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_numbers_in_the_readmes_prose_are_the_figures():
    workers, large = (report._facts(name, "benchmarks")["metrics"] for name in ("workers", "large_zoo"))
    table = report._facts("07_compare_compression/table_perceptron")["metrics"]["rows"]
    sizes = {
        row[0]: float(row[2].split()[0]) / 1000
        for row in table
        if row[0] in ("soft weight-sharing", "pruning + k-means")
    }
    assert f"{workers['ratio']:.2f} times quicker" in README
    assert f"most {large['most_mib'] / 1024:.1f} GiB of the process's own" in README
    assert f"they are {sizes['soft weight-sharing']:.1f} and {sizes['pruning + k-means']:.1f} kB" in README
