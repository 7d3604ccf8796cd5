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


def flows() -> str:
    """The text between README's flow marks: notebook 06's generators, of independent networks and of siblings."""
    text, parts = evaluation.mean_and_half_width, []
    for name in ("generators", "siblings"):
        path = ROOT / f"figures/laptop/06_weight_flow/{name}.json"
        facts = json.loads(path.read_text(encoding="utf-8"))["metrics"]
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
    """The text between README's SANE marks: notebook 04's probes, and what its networks are worth."""
    told, by_mlp, back, samples = (
        json.loads((ROOT / f"figures/laptop/04_sane/{name}.json").read_text(encoding="utf-8"))["metrics"]
        for name in ("properties", "mlp_probes", "reconstruction", "samples")
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
    """The text between README's search marks: notebook 05's verdicts, its autoencoder, and a compressed teacher."""
    every, untouched, wins, depths, smaller = (
        json.loads((ROOT / f"figures/laptop/05_swat_nn/{name}.json").read_text(encoding="utf-8"))["metrics"]
        for name in ("all_functions", "functions_that_no_setting_was_tuned_on", "wins", "depths", "compressed_413")
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
    rows = [
        [way, *(f"{1e4 * sum(column) / len(column):.2g}" for column in zip(*errors, strict=True))]
        for way, errors in smaller["errors"].items()
    ]
    head = "**A trained network of 413 weights, smaller**: share of its outputs' variance that is missed, in 1e-4"
    parts += [f"{head}, mean of {len(smaller['errors']['cut'])} seeds"]
    return "\n\n".join([*parts, evaluation.markdown(smaller["columns"], rows)])


SECTIONS = {  # by their marks in README
    "results": compression,
    "zoo results": zoos,
    "sane results": embeddings,
    "search results": searches,
    "flow results": flows,
}


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
