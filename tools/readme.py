"""Write the README's results from figures/laptop/**.json: `python tools/readme.py`; a test compares the two."""

import json
import re
from pathlib import Path

from wsnotebook import evaluation

ROOT = Path(__file__).resolve().parent.parent


def results() -> str:
    """The text between README's result marks: the table of notebook 01, what it cost, and on what data."""
    facts = json.loads((ROOT / "figures/laptop/01_soft_weight_sharing/results.json").read_text(encoding="utf-8"))
    cost = json.loads((ROOT / "figures/laptop/costs.json").read_text(encoding="utf-8"))["01_soft_weight_sharing"]
    metrics, data = facts["metrics"], facts["dataset"]
    seeds = len(metrics["seeds"])
    results = {row["method"]: row for row in metrics["results"]}
    source = "official files" if data["official"] else "not the official files"
    return "\n".join(
        [
            evaluation.table(results),
            "",
            f"LeNet-300-100 on {data['name']} ({source}), {seeds} seeds: mean and half-width of a 95 % interval of the",
            "test error. The ratio is the paper's count, 32-bit weights over ideal code lengths; tau, the rule and the",
            f"baseline's learning rate were chosen on validation (tau = {metrics['tau']:g}). The whole notebook took",
            f"{cost['cpu_seconds'] / 60:.1f} CPU-minutes.",
        ]
    )


def written(readme: str) -> str:
    """README with the text between its marks brought up to date."""
    marks = r"(<!-- results -->\n).*?(<!-- end of results -->)"
    return re.sub(marks, lambda found: found[1] + results() + "\n" + found[2], readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
