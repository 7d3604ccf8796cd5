"""All benchmarks, each in a process of one thread: their rows, `figures/benchmarks/hot_paths.json` and `growth.png`.

    python tests/benchmarks              # make bench
    python tests/benchmarks bench_codec  # one of them, nothing kept

A script that fails is named at the end, the others run on, and what was kept before stays as it was.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from growth import growth, larger
from measured import Curve, exponent, told

from wsnotebook import figures
from wsnotebook.methods import mixture_passes

HERE = Path(__file__).parent


def measure(name: str, path: Path) -> None:
    """Write a script's rows and curves to a file."""
    script = import_module(name)
    rows = [asdict(row) | {"promises": row.promises} for row in told(script.rows())]
    curves = [asdict(curve) for curve in script.curves()] if hasattr(script, "curves") else []
    path.write_text(json.dumps({"rows": rows, "curves": curves}), encoding="utf-8")


def machine() -> dict:
    """What the times depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "torch": torch.__version__,
        "compiled": mixture_passes.COMPILED,  # numba is there
        "date": time.strftime("%Y-%m-%d"),
    }


def save(rows: list[dict], curves: list[Curve]) -> Path:
    """Keep the table and the figure; the figure's path."""
    session = SimpleNamespace(notebook="", scale="benchmarks", seed=0, device="cpu", parameters={})
    metrics = {"machine": machine(), "rows": rows}
    drawn = [
        asdict(c) | {"exponents": {name: exponent(larger(points)) for name, points in c.series.items()}} for c in curves
    ]
    figures.save(None, "hot_paths", session, metrics=metrics)
    return figures.save(growth(curves), "growth", session, metrics={"machine": machine(), "curves": drawn})


def main(names: list[str]) -> int:
    rows, curves, failed = [], [], []
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or sorted(path.stem for path in HERE.glob("bench_*.py")):
            path = Path(folder, name)
            print(f"\n{name}", flush=True)
            command = [sys.executable, "-W", "error", str(HERE), name, str(path)]
            if subprocess.run(command, env=one_thread, check=False).returncode:
                failed.append(name)
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            rows += found["rows"]
            curves += [Curve(**curve) for curve in found["curves"]]
    missed = [(row, text) for row in rows for text, kept in row["promises"].items() if not kept]
    for row, text in missed:
        print(f"MISSED {text}: {row['path']}, {row['what']}: {row['ratio']:.2f} x, {row['ours_ms']:.3g} ms")
    if failed:
        print(f"failed: {', '.join(failed)}; nothing was kept")
    elif not names:
        print(f"wrote {save(rows, curves)}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
