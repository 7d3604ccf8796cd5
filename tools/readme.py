"""Write the README's results from figures/laptop/**.json: `python tools/readme.py`; a test compares the two."""

import json
import re
from pathlib import Path

from wsnotebook import evaluation

ROOT = Path(__file__).resolve().parent.parent


NETWORKS = {"lenet-300-100": "", "lenet-5-caffe": "lenet-5-caffe"}  # and the folder of its figures


def compression() -> str:
    """The text between README's result marks: notebook 01's table for each network, what it cost, and on what data."""
    folder = ROOT / "figures/laptop/01_soft_weight_sharing"
    cost = json.loads((ROOT / "figures/laptop/costs.json").read_text(encoding="utf-8"))["01_soft_weight_sharing"]
    lines = []
    for network, place in NETWORKS.items():
        if not (folder / place / "results.json").exists():
            continue
        facts = json.loads((folder / place / "results.json").read_text(encoding="utf-8"))
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
    """The text between README's zoo marks: notebook 03's lines between networks and its controls."""
    lines, controls = (
        json.loads((ROOT / f"figures/laptop/03_model_zoos/{name}.json").read_text(encoding="utf-8"))
        for name in ("barriers", "novelty")
    )
    setting = f"{controls['metrics']['networks']} networks on {lines['dataset']['name']}, one zoo"
    rows = [f"**Straight lines between networks** ({setting})", ""]
    rows += ["| | accuracy at the midpoint (%) | barrier (nats) |", "|---|---:|---:|"]
    for line in lines["metrics"]["lines"]:
        (mid, mid_half), (wall, wall_half) = map(evaluation.interval, (line["midpoint_accuracy"], line["barrier_nats"]))
        rows.append(f"| {line['line']} | {mid:.1f} ± {mid_half:.1f} | {wall:.2f} ± {wall_half:.2f} |")
    columns = controls["metrics"]["columns"]
    rows += ["", "**Networks made without learning**, the controls of every generator", ""]
    rows += [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, accuracy, near, other, overlap, joint in controls["metrics"]["rows"]:
        rows.append(f"| {name} | {accuracy:.2f} | {near:.2f} | {other:.2f} | {overlap:.2f} | {joint:.0f} |")
    return "\n".join(rows)


def flows() -> str:
    """The text between README's flow marks: notebook 06's table of generators."""
    facts = json.loads((ROOT / "figures/laptop/06_weight_flow/generators.json").read_text(encoding="utf-8"))
    columns, rows = facts["metrics"]["columns"], facts["metrics"]["rows"]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, *cells in rows:
        pairs = [(*evaluation.interval(cell), digits) for cell, digits in zip(cells, (2, 2, 2, 0), strict=True)]
        texts = [f"{mean:.{d}f}" + (f" ± {half:.{d}f}" if half > 0 else "") for mean, half, d in pairs]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


SECTIONS = {"results": compression, "zoo results": zoos, "flow results": flows}  # by their marks in README


def written(readme: str) -> str:
    """README with the text between its marks brought up to date."""
    for mark, section in SECTIONS.items():
        marks = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
        readme = re.sub(
            marks, lambda found, section=section: found[1] + section() + "\n" + found[2], readme, flags=re.DOTALL
        )
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
