"""The command line, `wsnotebook`: what it understands, and what it prints."""

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from wsnotebook import figures, runs
from wsnotebook.runs import Notebook, Run


def main(argv: Sequence[str] | None = None) -> int:
    """The command `wsnotebook`: 0 if all went well, 1 if a notebook failed, 2 for bad usage, 130 if interrupted."""
    try:
        options = _parser().parse_args(argv)
        return options.act(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"wsnotebook: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wsnotebook: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="wsnotebook", description="Run the numbered notebooks without a browser; compress networks.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="number, title and promise of every notebook")
    command.set_defaults(act=_list)

    command = commands.add_parser("run", help="run one notebook")
    command.set_defaults(act=_run_one)
    command.add_argument("notebook", help="its number or its name")
    command.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, or a field of its method's Config; may be repeated",
    )
    command.add_argument("--scale", choices=figures.SCALES, help="default: the notebook's own, quick")
    _add_scheduler(command, "workers train what the notebook could train side by side")
    _add_out(command)

    command = commands.add_parser("figures", help="run every notebook and write its figures")
    command.set_defaults(act=_run_all)
    command.add_argument("--scale", choices=figures.SCALES, default="quick", help="default: %(default)s")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time; default: %(default)s")
    command.add_argument(
        "--fresh", action="store_true", help="use no kept results, and record what each notebook costs"
    )
    _add_scheduler(command, "workers run the notebooks, instead of --jobs")
    _add_out(command)

    command = commands.add_parser("refresh", help="run notebooks and commit-ready outputs into their files")
    command.set_defaults(act=_refresh)
    command.add_argument("notebooks", nargs="*", help="numbers or names; default: all")

    command = commands.add_parser("report", help="write the result tables of README and notebooks from figures/**.json")
    command.set_defaults(act=_tables)
    command.add_argument("--check", action="store_true", help="write nothing; fail if a table is not up to date")

    command = commands.add_parser(
        "badges", help="write the notebooks' Colab badges and guard cells from pyproject.toml"
    )
    command.set_defaults(act=_badges)
    command.add_argument("--check", action="store_true", help="write nothing; fail if a notebook is not up to date")

    command = commands.add_parser("compress", help="write a network as a small file that gives it back bit for bit")
    command.set_defaults(act=_on_file)
    command.add_argument("model", type=Path, help="a .safetensors file, or a .pt file with a state dict")
    command.add_argument("-o", dest="out", type=Path, metavar="FILE", help="default: the model's name with .wsn")
    command.add_argument("--levels", type=int, metavar="N", help="round weights first, to N even steps a tensor (odd)")
    command.add_argument("--half", action="store_true", help="round what is not clustered (biases, ..) to float16")
    command.add_argument("--mode", choices=("context", "huffman"), default="context", help="default: %(default)s")

    command = commands.add_parser("decompress", help="write the tensors of a compressed file as .safetensors")
    command.set_defaults(act=_on_file)
    command.add_argument("file", type=Path)
    command.add_argument("-o", dest="out", type=Path, metavar="FILE", help="default: its name with .safetensors")
    _add_limit(command)

    command = commands.add_parser("inspect", help="what the bytes of a compressed file are spent on")
    command.set_defaults(act=_on_file)
    command.add_argument("file", type=Path)
    _add_limit(command)

    command = commands.add_parser("gallery", help="write every explorer as a page that needs no Python, and an index")
    command.set_defaults(act=_gallery)
    command.add_argument("--out", type=Path, metavar="DIR", help="default: figures/interactive in the checkout")

    command = commands.add_parser("app", help="serve notebook 00 and every explorer as pages, on 127.0.0.1")
    command.set_defaults(act=_app)
    command.add_argument("--port", type=int, default=8866, metavar="N", help="default: %(default)s")
    command.add_argument("--no-browser", dest="browser", action="store_false", help="open no browser")
    return parser


def _add_limit(command: argparse.ArgumentParser) -> None:
    text = "refuse a file whose tensors take more; default: %(default)s"
    command.add_argument("--limit", type=int, default=1 << 28, metavar="BYTES", help=text)


def _on_file(options: argparse.Namespace) -> int:
    from wsnotebook import files

    return getattr(files, options.command)(options)


def _gallery(options: argparse.Namespace) -> int:
    from wsnotebook import gallery, session

    session.start("00_start_here")  # whose kept results it shares
    index = gallery.write(options.out or figures.root() / "interactive", gallery.explorers())
    print(f"wrote {os.path.relpath(index)}")
    return 0


def _app(options: argparse.Namespace) -> int:
    from wsnotebook import app

    with tempfile.TemporaryDirectory(prefix="wsnotebook-") as folder:
        app.write(Path(folder))
        app.serve(Path(folder), options.port, options.browser)
    return 0


def _add_scheduler(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--scheduler", metavar="ADDRESS", help=f"of a Dask cluster, tcp://HOST:8786, whose {text}")


def _add_out(command: argparse.ArgumentParser) -> None:
    text = "for executed notebooks, with figures in DIR/figures; default: runs/<scale> and figures in the checkout"
    command.add_argument("--out", type=Path, metavar="DIR", help=text)


def _list(options: argparse.Namespace) -> int:
    for notebook in runs.notebooks():
        print(f"{notebook.number}  {notebook.title}\n    {notebook.promise}")
    return 0


def _run_one(options: argparse.Namespace) -> int:
    notebook = runs.find(options.notebook)
    parameters = {name: runs.parse(value) for name, value in options.parameters}
    if options.scale:
        parameters["scale"] = options.scale
    if options.scheduler:
        os.environ["WSNOTEBOOK_SCHEDULER"] = options.scheduler  # for `session.executor`
    scale = parameters.get("scale", notebook.parameters.get("scale", "quick"))
    return _report([notebook], parameters, scale, options.out)


def _run_all(options: argparse.Namespace) -> int:
    how = {"jobs": options.jobs, "fresh": options.fresh}
    with nullcontext() if options.scheduler is None else _scheduler(options.scheduler) as executor:
        return _report(runs.notebooks(), {"scale": options.scale}, options.scale, options.out, **how, executor=executor)


def _scheduler(address: str):
    from wsnotebook import cluster

    return cluster.connect(address)


def _refresh(options: argparse.Namespace) -> int:
    ended = runs.refresh([runs.find(name) for name in options.notebooks] or runs.notebooks())
    return int(any(run.error for run in ended))


def _tables(options: argparse.Namespace) -> int:
    from wsnotebook import report

    paths = [report.home() / "README.md", *(notebook.path for notebook in runs.notebooks())]
    return _rewritten(report.update(paths, write=not options.check), options.check)


def _badges(options: argparse.Namespace) -> int:
    from wsnotebook import badges

    paths = [notebook.path for notebook in runs.notebooks()]
    return _rewritten(badges.rewrite(paths, write=not options.check), options.check)


def _rewritten(stale: list[Path], check: bool) -> int:
    """Say which files were `stale`; the exit status."""
    for path in stale:
        print(f"{'not up to date:' if check else 'wrote'} {os.path.relpath(path)}")
    return int(check and bool(stale))


def _report(chosen: list[Notebook], parameters: dict, scale: str, out: Path | None, **how) -> int:
    """Execute, print what was written and what it took; the exit status."""
    here = figures.checkout(Path.cwd()) or Path.cwd()
    copies, pictures = (out, out / "figures") if out else (here / "runs" / str(scale), figures.root())
    before = _stamps(chosen, copies, pictures)
    ended = runs.execute(chosen, parameters, copies=copies, pictures=pictures, **how)
    after = _stamps(chosen, copies, pictures)
    for line in _written(path for path in after if after[path] != before.get(path)):
        print(f"wrote {line}")
    print(_summary(ended))
    return int(any(run.error for run in ended))


def _summary(ended: Iterable[Run]) -> str:
    """A line for each run: how it ended, what it took."""
    lines = [f"{'notebook':<30} {'':<6} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}"]
    for run in ended:
        peak = "" if run.peak_mib is None else f"{run.peak_mib:,.0f}"
        outcome = "failed" if run.error else "ok"
        lines.append(f"{run.notebook:<30} {outcome:<6} {run.seconds:>8.1f} {run.cpu_seconds:>8.1f} {peak:>9}")
    return "\n".join(lines)


def _stamps(chosen: list[Notebook], copies: Path, pictures: Path) -> dict[Path, tuple]:
    """Of every file that a run may write, what changes when it does, whichever way the clock goes."""
    paths = [copies.resolve() / notebook.path.name for notebook in chosen] + sorted(pictures.rglob("*"))
    stats = {path: path.stat() for path in paths if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def _written(paths: Iterable[Path]) -> list[str]:
    """Files relative to here, in a line what differs in its suffix: `figures/quick/01_x/sizes.{json,png,svg}`."""
    kinds = defaultdict(list)
    for path in paths:
        kinds[os.path.relpath(path.with_suffix(""))].append(path.suffix.removeprefix("."))
    return [f"{stem}.{some[0]}" if len(some) == 1 else f"{stem}.{{{','.join(some)}}}" for stem, some in kinds.items()]


if __name__ == "__main__":
    sys.exit(main())
