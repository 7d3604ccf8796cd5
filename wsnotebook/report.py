"""Result tables from figures/**.json, in README and in the notebooks: `wsnotebook report`; a test compares them.

A table stands between two marks, `<!-- zoo results -->` and `<!-- end of zoo results -->`, wherever these are. A mark
is one of `SECTIONS`, or names a JSON file whose metrics are columns and rows: `laptop/08_compare_generation/made`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from wsnotebook import evaluation, figures
from wsnotebook.methods.superweight_study import ARMS

NETWORKS = {"lenet-300-100": "", "lenet-5-caffe": "lenet-5-caffe/"}  # and the folder of its figures


def compression() -> str:
    """The text between result marks: notebook 01's table for each network, what it cost, and on what data."""
    cost = _facts("costs")["01_soft_weight_sharing"]
    lines = []
    for network, place in NETWORKS.items():
        facts = _facts(f"01_soft_weight_sharing/{place}results")
        metrics, data = facts["metrics"], facts["dataset"]
        source = "official files" if data["official"] else "not the official files"
        seeds, tau = len(metrics["seeds"]), metrics["tau"]
        lines += [f"**{network}** on {data['name']} ({source}), {seeds} seeds, tau = {tau:.3g}", ""]
        lines += [evaluation.table({row["method"]: row for row in metrics["results"]}), ""]
    return "\n".join(
        [
            *lines,
            "Mean and half-width of a 95 % interval. *File*: bytes of all parameters at float32 over those of a file",
            "that decodes bit for bit, all included. *Paper's count*: ideal code lengths of the weights alone. tau,",
            "the rule and the baselines' sizes were chosen on validation. For lenet-300-100 the whole notebook took",
            f"{cost['cpu_seconds'] / 60:.1f} CPU-minutes.",
        ]
    )


def zoos() -> str:
    """The text between zoo marks: notebook 03's lines between networks and its controls."""
    lines, controls = (_facts(f"03_model_zoos/{name}") for name in ("barriers", "novelty"))
    setting = f"{controls['metrics']['networks']} networks on {lines['dataset']['name']}, one zoo"
    text = evaluation.mean_and_half_width
    walks = [
        [line["line"], text(line["midpoint_accuracy"], 1), text(line["barrier_nats"], 2)]
        for line in lines["metrics"]["lines"]
    ]
    made = [
        [name, *(f"{value:.{digits}f}" for value, digits in zip(values, (2, 2, 2, 2, 0), strict=True))]
        for name, *values in controls["metrics"]["rows"]
    ]
    parts = [f"**Straight lines between networks** ({setting})"]
    parts += [evaluation.markdown(["accuracy at the midpoint (%)", "barrier (nats)"], walks)]
    parts += ["**Networks made without learning**, the controls of every generator"]
    parts += [evaluation.markdown(controls["metrics"]["columns"], made)]
    return "\n\n".join(parts)


def banks() -> str:
    """The text between bank marks: notebook 02's arms, and how far the bank is ahead of each."""
    arms, leads = (_facts(f"02_superweights/{name}")["metrics"] for name in ("arms", "differences"))
    text, rows = evaluation.mean_and_half_width, []
    for arm, own in ((arm, arms[arm]) for arm in ARMS):
        alone = " / ".join(f"{sum(column) / len(column):.1f}" for column in zip(*own["members"], strict=True))
        rows.append([arm, f"{own['parameters']:,}", alone, text(own["accuracy"], 1), text(own["nll"], 3)])
        rows[-1] += [
            text(leads[arm][name], digits) if arm in leads else "" for name, digits in (("seeds", 1), ("nll", 3))
        ]
    columns = [
        "parameters",
        "members alone (%)",
        "together (%)",
        "NLL (nats)",
        "the bank's lead (points)",
        "... (nats)",
    ]
    return evaluation.markdown(columns, rows)


def flows() -> str:
    """The text between flow marks: notebook 06's generators, of independent networks and of siblings."""
    text, parts = evaluation.mean_and_half_width, []
    for name in ("generators", "siblings"):
        facts = _facts(f"06_weight_flow/{name}")["metrics"]
        rows = [
            [label, *(text(values, digits) for values, digits in zip(columns, (2, 2, 2, 0), strict=True))]
            for label, *columns in facts["rows"]
        ]
        if name == "siblings":
            parts += [
                f"**Siblings**: {facts['networks']:,} networks from one initialisation, each with its own order of "
                "minibatches. Every\ngenerator at its best setting, chosen on validation images:"
            ]
        parts += [evaluation.markdown(facts["columns"], rows)]
    return "\n\n".join(parts)


def embeddings() -> str:
    """The text between SANE marks: notebook 04's probes, and what its networks are worth."""
    told, by_mlp, back, samples = (
        _facts(f"04_sane/{name}")["metrics"] for name in ("properties", "mlp_probes", "reconstruction", "samples")
    )
    told |= {features: found for features, found in by_mlp.items() if features.endswith("MLP")}
    text, targets = evaluation.mean_and_half_width, ("accuracy", "accuracy, last snapshots", "gap", "log step")
    rows = [
        [f, *(text(found[target]["other r2"], 3) if target in found else "" for target in targets)]
        for f, found in told.items()
    ]
    made = {name.partition(", ")[0]: values for name, *values in samples["rows"] if name.endswith(", kde 0.05")}
    decoded = [
        [name, f"{accuracy:.1f}", *(f"{value:.1f}" for value in made.get(name, ())[:2])]
        for name, (_, accuracy) in back["rows"].items()
    ]
    decoded = [row + [""] * (4 - len(row)) for row in decoded]
    heads = ["held-out networks, decoded (%)", "128 samples, bandwidth 0.05 (%)", "the best 16 on validation (%)"]
    parts = ["**What weights tell** of networks set aside: R2", evaluation.markdown([*targets], rows)]
    return "\n\n".join([*parts, "**What latents decode to**: test accuracy", evaluation.markdown(heads, decoded)])


def searches() -> str:
    """The text between search marks: notebook 05's verdicts, its autoencoder, and two compressed teachers."""
    every, untouched, wins, depths, *teachers = (
        _facts(f"05_swat_nn/{name}")["metrics"]
        for name in (
            "all_functions",
            "functions_that_no_setting_was_tuned_on",
            "wins",
            "depths",
            "compressed_413",
            "compressed_2241",
        )
    )
    seeds = {len(runs) for own in wins["errors"].values() for runs in own.values()}.pop()
    parts = []
    for head, verdicts in (("All {}", every), ("The {} that no setting was tuned on", untouched)):
        functions = sum(map(int, verdicts["rows"][0][1].split(" / ")))
        parts += [
            f"**{head.format(f'{functions} functions')}**: the trained decoder wins / ties / loses, by {seeds} seeds"
        ]
        parts += [evaluation.markdown(verdicts["columns"], verdicts["rows"])]
    fvu = ", ".join(f"{depths[f'depth {d}']:.2g}" for d in (1, 2, 3, 4))
    parts += [f"Held-out networks of 1, 2, 3, 4 hidden layers, decoded: {fvu} of the variance missed (median)."]
    for weights, smaller in zip(("413", "2,241"), teachers, strict=True):
        seeds = len(smaller["errors"]["cut"])
        head = f"**A trained network of {weights} weights, smaller**: share of its outputs' variance that is missed, in"
        parts += [f"{head} 1e-4; mean and half-width of a 95 % interval over {seeds} seeds"]
        rows = [
            [
                way,
                *(evaluation.mean_and_half_width([1e4 * e for e in column], 1) for column in zip(*errors, strict=True)),
            ]
            for way, errors in smaller["errors"].items()
        ]
        parts += [evaluation.markdown(smaller["columns"], rows)]
    return "\n\n".join(parts)


def speeds() -> str:
    """The text between speed marks: how many promises are kept; folded, every row of `make bench` and its machine."""
    metrics = _facts("hot_paths", "benchmarks")["metrics"]
    machine, notes = metrics["machine"], dict.fromkeys(row["note"] for row in metrics["rows"] if row["note"])
    notes = {note: f"<sup>{number}</sup>" for number, note in enumerate(notes, 1)}
    rows = []
    for row in metrics["rows"]:
        promises = ", ".join(text if kept else f"**missed**: {text}" for text, kept in row["promises"].items())
        memory = ["" if row[name] is None else f"{row[name]:.3g}" for name in ("plain_mib", "ours_mib")]
        low, high = row["quartiles"]
        times = [f"{row['plain_ms']:.3g}", f"{row['ours_ms']:.3g}", f"{row['ratio']:.3g} ({low:.3g}-{high:.3g})"]
        difference = "" if row["difference"] is None else f"{row['difference']:.0e}" if row["difference"] else "0"
        rows += [[f"{row['path']}: {row['what']}{notes.get(row['note'], '')}", *times, promises, difference, *memory]]
    columns = [
        "straightforward (ms)",
        "ours (ms)",
        "ratio (quartiles)",
        "promised",
        "difference",
        "peak (MiB)",
        "ours (MiB)",
    ]
    vectors, numba = machine["vectors"], "with" if machine["compiled"] else "without"
    facts = f"{machine['cpu']}, {vectors}, one thread, torch {machine['torch']}, {numba} numba, {machine['date']}."
    told = [f"{mark} {note[0].upper()}{note[1:]}." for note, mark in notes.items()]
    promises = [kept for row in metrics["rows"] for kept in row["promises"].values()]
    kept = f"**{sum(promises)} of {len(promises)} promises are kept**; the table has all, and notes say why not."
    table = [evaluation.markdown(columns, rows), "<br>\n".join([facts, *told])]
    return "\n\n".join([kept, "<details><summary>The table, row by row</summary>", *table, "</details>"])


def tuned() -> str:
    """The text between tuning marks: notebook 10's table of the preset's settings and those that a search chose."""
    return evaluation.table({row["method"]: row for row in _facts("10_tune_compression/results")["metrics"]["results"]})


SECTIONS = {  # by their marks
    "results": compression,
    "bank results": banks,
    "zoo results": zoos,
    "sane results": embeddings,
    "search results": searches,
    "flow results": flows,
    "speed": speeds,
    "tuning results": tuned,
}


def home() -> Path:
    """The checkout around us, or around the package; FileNotFoundError if there is none."""
    found = figures.checkout(Path.cwd()) or figures.checkout(Path(__file__).resolve())
    if found is None:
        raise FileNotFoundError("no README to write into: run this inside a checkout of wsnotebook")
    return found


def _facts(name: str, scale: str = "laptop") -> dict:
    """What stands beside a figure: figures/<scale>/<name>.json."""
    return json.loads((home() / "figures" / scale / f"{name}.json").read_text(encoding="utf-8"))


def section(mark: str) -> str:
    """The text between marks. Raises ValueError for a mark that is neither a section nor a file with a table."""
    if mark in SECTIONS:
        return SECTIONS[mark]()
    scale, _, name = mark.partition("/")
    if scale not in figures.SCALES:
        raise ValueError(f"mark {mark!r}: expected one of {', '.join(SECTIONS)}, or <scale>/<notebook>/<name>")
    try:
        metrics = _facts(name, scale)["metrics"]
        return evaluation.markdown(metrics["columns"], metrics["rows"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"mark {mark!r}: no table in its file ({type(error).__name__}: {error}); expected metrics with columns and "
            "rows of texts"
        ) from None


def written(text: str) -> str:
    """The text with everything between marks brought up to date. Raises ValueError for a mark without its other."""
    pair = re.compile(r"(<!-- (?!end of )([^\n]*?) -->\n)((?:(?!<!-- ).)*?)(<!-- end of \2 -->)", re.DOTALL)
    if alone := [mark for mark in re.findall(r"<!-- (.*?) -->", pair.sub("", text)) if _is_mark(mark)]:
        raise ValueError(
            f"mark <!-- {alone[0]} --> stands alone: expected <!-- NAME --> at a line's end, what is to be "
            "replaced, and <!-- end of NAME -->, with the same name"
        )
    return pair.sub(lambda found: found[1] + section(found[2]) + "\n" + found[4], text)


def _is_mark(comment: str) -> bool:
    return comment in SECTIONS or comment.startswith("end of ") or comment.partition("/")[0] in figures.SCALES


def update(paths: Sequence[Path], write: bool = True) -> list[Path]:
    """Bring the marked tables of Markdown files and notebooks up to date; the paths of those that were not."""
    changed = []
    for path in paths:
        before = path.read_text(encoding="utf-8")
        after = _notebook(before) if path.suffix == ".ipynb" else written(before)
        if after != before:
            changed.append(path)
            if write:
                figures.write({path: after.encode()})
    return changed


def _notebook(text: str) -> str:
    if "<!-- " not in text:
        return text
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = written("".join(cell["source"])).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
