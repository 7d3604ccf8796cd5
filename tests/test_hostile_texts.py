"""Hostile texts, made by hand: code in parameters, names of files and tensors, tables that are none."""

import ast
import json
import os

import pytest
import safetensors.torch
import torch
from fuzzed_parsers import a_zoo, same
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from wsnotebook import cli, figures, networks, report, runs, session, zoo
from wsnotebook.layout import Layout
from wsnotebook.methods import codec

NAMES = [
    "a b",
    'it\'s "q" `x` $(y) \\',
    "é 漢字 🙂",
    "new\nline",
    "-dash",
    "{seed} %s {0}",
    "*?[a]",
    "x.pt.safetensors",
]


# ---- code in parameters ------------------------------------------------------------------------------------------

CODE = [
    "__import__('os').system('touch ran')",
    "'); open('ran', 'w')  # ",
    '"\nopen("ran", "w")\n"',
    '"""\nopen("ran", "w")\n"""',
    "'''\\'\nopen('ran', 'w')\n'''",
    "a\\",
    "a\\\nb\r\tc\0d\x1b\x85\u2028e",
    "{open('ran', 'w')} %s {0} ${x}",
    "!touch ran\n%run ran\n?",
    "!!python/object/apply:os.mkdir [ran]",
    "é 漢字 🙂 \u202e",
]


@pytest.mark.parametrize("text", CODE)
def test_code_on_the_command_line_stays_text_or_is_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    literal = text.startswith(('"""', "'''"))  # which is what it says, a text too
    assert runs.parse(text) == (ast.literal_eval(text) if literal else text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{{}: 1}", "0b_", "2001-13-45", "[" * 999, "(" * 9999, "-" * 9999 + "1", "&a [*a"])
def test_what_is_almost_a_value_is_text(text):
    assert runs.parse(text) == text


@pytest.mark.notebooks
def test_texts_arrive_in_the_kernel_as_they_are_and_nothing_runs(tmp_path, monkeypatch, capsys):
    books, out = tmp_path / NAMES[2] / NAMES[5] / NAMES[0], tmp_path / NAMES[5] / NAMES[1] / NAMES[4]
    books.mkdir(parents=True)
    code = "import json, pathlib\npathlib.Path('got.json').write_text(json.dumps([text, overrides, repr(overrides)]))"
    parameters = new_code_cell('scale = "quick"\ntext = ""\noverrides = {}', metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell("# x"), parameters, new_code_cell(code)])
    (books / "01_x.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setenv("WSNOTEBOOK_NOTEBOOKS", str(books))
    monkeypatch.chdir(tmp_path)
    given = {f"key {i}: {text}": text for i, text in enumerate(CODE)} | {"numbers": "{1: (2, {3: 'x'})}"}
    arguments = [part for name, value in given.items() for part in ("-p", name, value)]
    arguments += ["-p", "text", "".join(CODE), "--out", str(out)]
    assert cli.main(["run", "1", *arguments]) == 0, capsys.readouterr().err
    text, _, shown = json.loads((books / "got.json").read_text())
    assert text == "".join(CODE)
    assert shown == repr({name: runs.parse(value) for name, value in given.items()})
    assert (out / "01_x.ipynb").is_file()
    assert not list(tmp_path.rglob("ran"))


def test_the_parameters_cell_is_read_and_not_run(tmp_path):
    path = tmp_path / "01_x.ipynb"
    deep = ["x = " + "-" * 9999 + "1", "x = " + "(" * 999, "x\0 = 1"]
    for source in (*CODE, *deep, "x = {[]: 1}", "x = open('ran', 'w')"):
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        path.write_text(json.dumps(new_notebook(cells=[new_markdown_cell("# x"), cell])), encoding="utf-8")
        with pytest.raises(ValueError, match=r"01_x\.ipynb: the parameters cell"):
            runs.read(path)
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "metadata": [], "source": ""}]}))
    with pytest.raises(ValueError, match="is no notebook: AttributeError"):
        runs.read(path)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_good_for_a_zoo_checkpoints_and_compressed_files(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    one = a_zoo()
    assert zoo.load(one.save(folder / name)).weights.equal(one.weights)
    (folder / name).unlink()
    state = networks.build("mlp-6-4-3").state_dict()
    safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    torch.save(state, tmp_path / "s.pt")  # which writes no file with a backslash in its name
    (tmp_path / "s.pt").rename(folder / f"{name}.pt")
    nets = zoo.from_checkpoints(folder, "mlp-6-4-3")
    assert nets.facts["file"].tolist() == sorted([f"{name}.pt", f"{name}.safetensors"])
    again = zoo.load(nets.save(tmp_path / "z"))
    assert again.facts["file"].tolist() == nets.facts["file"].tolist()
    monkeypatch.chdir(folder)
    assert cli.main(["compress", "--", f"{name}.safetensors"]) == 0
    assert cli.main(["inspect", "--", f"{name}.wsn"]) == 0
    assert cli.main(["decompress", "-o", f"{folder / name}/x", "--", f"{name}.wsn"]) == 0
    back = safetensors.torch.load_file(folder / name / "x")
    assert same({n: back[n] for n in state}, state)


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_is_good_for_figures(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WSNOTEBOOK_FIGURES", str(tmp_path / name))
    place = figures.save(None, "sizes", session.start("01_first"), metrics={name: name})
    assert json.loads(place.read_text(encoding="utf-8"))["metrics"] == {name: name}
    assert place == tmp_path / name / "quick" / "01_first" / "sizes.json"
    for bad in ("../sizes", "a/b", name):
        with pytest.raises(ValueError, match="name="):
            figures.save(None, bad, session.start("01_first"))


def test_names_of_tensors_are_printed_so_that_no_terminal_obeys_and_written_where_they_can_be(tmp_path, capsys):
    path = tmp_path / "x.wsn"
    path.write_bytes(codec.encode({"\x1b[31mred\n": torch.zeros(2), "é": torch.zeros(1)}))
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert r"'\x1b[31mred\n'" in shown
    assert "\x1b" not in shown
    assert "\né " in shown
    for state in ({"__metadata__": torch.zeros(2)}, {"z": torch.zeros(2, dtype=torch.complex128)}):
        path.write_bytes(codec.encode(state))
        assert cli.main(["decompress", str(path)]) == 2
        assert ".safetensors cannot hold a tensor called" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["x.wsn"]


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"columns": [1], "rows": []}}', "[" * 100_000])
def test_a_file_without_a_table_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(report, "home", lambda: tmp_path)
    (tmp_path / "figures" / "quick").mkdir(parents=True)
    (tmp_path / "figures" / "quick" / "a (b)*.json").write_text(text)
    with pytest.raises(ValueError, match=r"mark 'quick/a \(b\)\*': no table in its file"):
        report.section("quick/a (b)*")
    table = {"metrics": {"columns": ["c"], "rows": [["\\1", "2"]]}}
    (tmp_path / "figures" / "quick" / "a (b)*.json").write_text(json.dumps(table))
    marks = "<!-- quick/a (b)* -->\nold\n<!-- end of quick/a (b)* -->"
    assert report.written(marks) == marks.replace("old", "|  | c |\n| ---|---: |\n| \\1 | 2 |")


def test_layout_refuses_parts_that_do_not_fit_together():
    for parts in ((("a",), (), ("bias",)), (("a", "a"), ((1,), (1,)), ("bias",) * 2), (("a",), ((1,),), ("x",))):
        with pytest.raises(ValueError, match="no layout: names"):
            Layout(*parts)
