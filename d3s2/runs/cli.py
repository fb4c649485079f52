"""The command line: `d3s2` run, rehearse, sweep, compare, check, fetch, results, export, lab,
publish.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

from d3s2 import __version__
from d3s2.core import places
from d3s2.core.errors import D3S2Error, NotebookFailed, printable
from d3s2.core.files import read_json
from d3s2.core.processes import end_with_parent
from d3s2.runs import config, container
from d3s2.runs.parameter_files import read_parameters
from d3s2.runs.parameters import parse
from d3s2.runs.profiles import PROFILES

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
NO_WINDOWS = (
    "Windows has no file locks and no limits of processes as d3s2 needs them: install it in WSL2 "
    "(there it is Linux), or take the container (docs/clusters-and-container.md)."
)
EARLIER = "The results in this folder are of other parameters or other code: run to the end."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a notebook or a check failed), 2 (bad input, or
    Windows), 130 (Ctrl-C).
    """
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        container.pass_on(words, _names(parser), os.environ)
    except D3S2Error as error:
        print(f"d3s2: {printable(error)}", file=sys.stderr)
        return EXIT_USAGE
    options = parser.parse_args(words)
    if sys.platform == "win32":
        print(f"d3s2: {NO_WINDOWS}", file=sys.stderr)
        return EXIT_USAGE
    end_with_parent()
    os.environ.pop(config.PARAMETERS, None)  # those of a run that this one was started in
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without the letter ± is no reason to fail.
            stream.reconfigure(errors="replace")
    try:
        return options.command(options)
    except NotebookFailed as error:
        print(f"d3s2: {printable(error)}", file=sys.stderr)
        return EXIT_FAILED
    except D3S2Error as error:
        print(f"d3s2: {printable(error)}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("d3s2: The disk is full: free some space, then run the same again.", file=sys.stderr)
        return EXIT_USAGE
    except UnicodeEncodeError:
        print(
            "d3s2: A path has letters that this machine's language setting "
            f"({sys.getfilesystemencoding()}) does not know: set PYTHONUTF8=1, then run the same "
            "again.",
            file=sys.stderr,
        )
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("\nd3s2: stopped. The same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d3s2", description="Dataset distillation for semantic segmentation."
    )
    parser.add_argument("--version", action="version", version=f"d3s2 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in _COMMANDS:
        add(commands)
    return parser


def _names(parser: argparse.ArgumentParser) -> set[str]:
    """The commands there are."""
    return {name for action in parser._actions for name in action.choices or ()}


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="execute the notebooks that are not up to date, in order")
    _add_parameters(run)
    _add_run_dir(run)
    run.add_argument(
        "--from",
        dest="first",
        type=_number,
        metavar="NN",
        help="execute notebook NN and all after it",
    )
    run.add_argument(
        "--until", dest="last", type=_number, metavar="NN", help="stop after notebook NN"
    )
    run.add_argument(
        "--force", action="store_true", help="execute all and make every artefact anew"
    )
    _add_places(run)
    run.set_defaults(command=_run)


def _add_rehearse(commands: Any) -> None:
    rehearse = commands.add_parser(
        "rehearse",
        help="run a profile's whole sequence in minutes: what would stop the long run stops here",
    )
    _add_parameters(rehearse)
    rehearse.add_argument(
        "--run-dir", help="folder of the rehearsal; default: runs/rehearse-<profile>"
    )
    rehearse.add_argument("--notebooks", type=Path, help="another folder of notebooks")
    rehearse.set_defaults(command=_rehearse)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep", help="a run for every point of a grid of parameters, and a table over them"
    )
    _add_parameters(sweep)
    sweep.add_argument(
        "-g",
        dest="grid",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="values of a parameter; may be repeated: all combinations are run",
    )
    sweep.add_argument(
        "--sweep-dir",
        type=Path,
        help="folder of all its runs; default: runs/sweep-<profile or file>",
    )
    _add_places(sweep)
    sweep.set_defaults(command=_sweep)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="distil by several methods, train on each set, and print the table of them; goes on "
        "where it was",
    )
    _add_parameters(compare)
    _add_run_dir(compare)
    option = compare.add_argument
    option("--methods", nargs="+", metavar="METHOD", help="default: all (--list names them)")
    option("--list", action="store_true", help="name all methods, and measure nothing")
    option("--budgets", default="", metavar="B,B", help="default: the parameter budget")
    option("--seeds", type=int, default=3, help="distillations of each, each trained on")
    option("--seeds-from", type=int, default=0, help="the first seed")
    option("--images-per-mask", type=int, default=1, metavar="M", help="of the methods that paint")
    option(
        "--networks",
        default="mask2former",
        metavar="N,N",
        help="trained on every set: mask2former, lraspp, unet; each has a CSV of its own",
    )
    option("--distillations", type=int, default=0, help="sets that the seeds share; 0 = one each")
    option("--split", choices=("val", "test"), default="val", help="what trainings are judged on")
    option("--work", type=Path, help="folder of sets and trainings; default: <run>/compare")
    option("--out", type=Path, help="the CSV to write; default: <work>/comparison.csv")
    option("--show", action="store_true", help="measure nothing, print what --out holds")
    _add_scheduler(compare)
    compare.set_defaults(command=_compare)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="say what is installed, and what of the data and weights is missing"
    )
    _add_parameters(check)
    _add_run_dir(check)
    check.set_defaults(command=_check)


def _add_results(commands: Any) -> None:
    results = commands.add_parser("results", help="print the result table of a finished run")
    _add_parameters(results)
    _add_run_dir(results)
    results.set_defaults(command=_results)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a distilled set, or a trained Mask2Former, for use without d3s2",
    )
    export.add_argument("source", type=Path, help="folder of a run, a set or a training")
    export.add_argument(
        "--to", type=Path, required=True, metavar="FOLDER", help="a new or an empty folder"
    )
    export.add_argument(
        "--training",
        default="",
        metavar="NAME",
        help="of a run, this training instead of the set, such as balanced-0",
    )
    _add_parameters(export)
    export.set_defaults(command=_export)


def _add_lab(commands: Any) -> None:
    lab = commands.add_parser(
        "lab", help="JupyterLab on the notebooks; beyond this machine only with a token"
    )
    lab.add_argument(
        "--address", default="127.0.0.1", help="where it listens; default: this machine only"
    )
    lab.add_argument("--port", type=int, default=8888)
    lab.add_argument("--allow-root", action="store_true", help="let root start it")
    lab.set_defaults(command=_lab)


def _add_fetch(commands: Any) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="fetch all that a profile needs, a public data set, or a file such as published "
        "weights; goes on where it broke off",
    )
    _add_parameters(fetch)
    fetch.add_argument(
        "what",
        nargs="?",
        choices=["ade20k", "cocostuff", "voc2012", "voc2012aug", "file"],
        help="a data set or a file alone; default: data and models of the profile",
    )
    fetch.add_argument(
        "places",
        nargs="*",
        metavar="FOLDER | URL FILE",
        help="where the data goes; for a file: from where, and its path",
    )
    fetch.add_argument("--checksum", default="", metavar="sha256:DIGITS", help="of a file")
    fetch.add_argument(
        "--mirror",
        default="",
        metavar="URL",
        help="address that holds the archives of a data set instead",
    )
    fetch.add_argument(
        "--keep", action="store_true", help="keep the archives once they are unpacked"
    )
    fetch.set_defaults(command=_fetch)


def _add_publish(commands: Any) -> None:
    publish = commands.add_parser(
        "publish", help="put a run's executed notebooks into notebooks/, fit to commit"
    )
    publish.add_argument("run_dir", type=Path)
    publish.add_argument("--to", type=Path, help="another folder")
    publish.set_defaults(command=_publish)


def _add_run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", help="folder of the run; default: runs/<profile or file>")


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", choices=list(PROFILES), help="default: scenes")
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        metavar="FILE.yaml",
        help="a YAML file of parameters, such as a profile of your own; -p wins over it",
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a notebook parameter; may be repeated",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--notebooks", type=Path, help="another folder of notebooks NN_name.ipynb")
    _add_scheduler(parser)


def _add_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        default="",
        metavar="local|ADDRESS",
        help="spread the work over processes of this machine, or a Dask cluster; default: neither",
    )


_COMMANDS = (
    _add_run,
    _add_rehearse,
    _add_sweep,
    _add_compare,
    _add_check,
    _add_results,
    _add_export,
    _add_lab,
    _add_fetch,
    _add_publish,
)


def _number(text: str) -> int:
    """A notebook's number: 3, 03, 03_guided_sampling or its file name."""
    try:
        return int(Path(text).name[:2])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no notebook number such as 03") from None


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """What was set in the parameter file and on the command line, which wins, as typed values.

    Raises D3S2Error naming what is wrong with it.
    """
    names, lists = _from_file(options)
    if lists:
        name = next(iter(lists))
        raise D3S2Error(
            f"{options.file}: {name} has a list of values, which is for d3s2 sweep: give one value."
        )
    return names


def grid_of(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """(parameters of all runs, the grid) of a sweep: `-g`, and the lists of the parameter file."""
    from d3s2.runs import sweep

    fixed, lists = _from_file(options)
    asked = [text.partition("=")[0] for text in options.grid]
    lists = {name: values for name, values in lists.items() if name not in asked}
    return fixed, sweep.parse_grid(options.grid, fixed, lists)


def _from_file(
    options: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    names, lists = read_parameters(options.file) if options.file else ({}, {})
    if options.file:
        names.setdefault("run_dir", str(places.home() / "runs" / options.file.stem))
    names |= {"profile": options.profile or names.get("profile", "scenes")}
    for text in options.parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise D3S2Error(f"-p {text} has no value: write -p {text}=VALUE.")
        names[name] = parse(name, value)
        lists.pop(name, None)
    if getattr(options, "run_dir", None) is not None:
        names["run_dir"] = options.run_dir
    return names, lists


def _run(options: argparse.Namespace) -> int:
    from d3s2.runs import runner

    plan = runner.Plan(options.first, options.last, options.force)
    names = parameters(options)
    say_estimate(names, options.notebooks)
    settings = runner.run(names, plan, options.notebooks, options.scheduler)
    run_dir = Path(settings.run_dir)
    for name, seconds, peak_mb in runner.timings(run_dir):
        print(f"  {name:<26} {seconds:7.1f} s  {peak_mb:6d} MB")
    if (run_dir / "report" / "results.md").is_file():
        # A run that was stopped early may lie in a folder with results of other parameters.
        whole = runner.is_finished(names, options.notebooks)
        print(f"\n{printable(runner.results(run_dir)) if whole else EARLIER}\n")
    for what, folder in (
        ("executed notebooks", runner.EXECUTED),
        ("distilled dataset", "distilled"),
        ("report", "report"),
    ):
        if (run_dir / folder).is_dir():
            print(f"{what + ':':<20} {run_dir / folder}{_set_size(run_dir / folder)}")
    return 0


def _set_size(folder: Path) -> str:
    """What a distilled set's card says of its size; nothing of another folder, or without one."""
    try:
        card = read_json(folder / "card.json")
        begun = card["recipe"]["strength"]
        begins = "" if begun == 1 else f", begun at photographs: strength {begun:g}"
        return f" ({card['images']} images of {card.get('masks', card['images'])} masks{begins})"
    except (D3S2Error, KeyError, TypeError, ValueError):
        return ""


def say_estimate(names: dict[str, Any], notebooks: Path | None = None) -> None:
    """Print what a run that takes hours will take, once nothing stands in its way; nothing for one
    that has all its results.
    """
    from d3s2.runs import estimate, refusals, runner

    settings = config.resolve(names, remember=False)
    if not estimate.wants(settings):
        return
    refusals.refuse_early(settings)
    if not runner.is_finished(names, notebooks):
        for line in estimate.lines(settings):
            print(line, flush=True)


def _rehearse(options: argparse.Namespace) -> int:
    from d3s2.runs import rehearsal, runner

    names = parameters(options)
    settings = rehearsal.rehearse(names, options.notebooks, lambda line: print(line, flush=True))
    for name, seconds, peak_mb in runner.timings(settings.run_dir):
        print(f"  {name:<26} {seconds:7.1f} s  {peak_mb:6d} MB")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from d3s2.runs import sweep

    fixed, grid = grid_of(options)
    name = options.file.stem if options.file else fixed["profile"]
    folder = (options.sweep_dir or places.home() / "runs" / f"sweep-{name}").absolute()
    fixed.pop("run_dir", None)  # every run of a sweep has a folder of its own
    records = sweep.sweep(
        fixed,
        grid,
        folder,
        options.scheduler,
        options.notebooks,
        lambda line: print(line, flush=True),
    )
    print(
        f"\n{(folder / 'table.md').read_text(encoding='utf-8')}\nreport: {folder / 'report.html'}"
    )
    return EXIT_FAILED if any(record["state"] == sweep.FAILED for record in records) else 0


def _compare(options: argparse.Namespace) -> int:
    from d3s2.methods.table import METHODS
    from d3s2.runs import contest

    if options.list:
        for name, method in METHODS.items():
            print(f"{name:22s} {method.says}")
        return 0
    names = {"threads": 1} if options.scheduler else {}
    settings = config.resolve(names | parameters(options), remember=False)
    work = options.work or Path(settings.run_dir) / "compare"
    out = options.out or work / "comparison.csv"
    if not options.show:
        _measure(options, settings, work, out)
    print(printable(contest.report(out)))
    return 0


def _measure(options: argparse.Namespace, settings: Any, work: Path, out: Path) -> None:
    """Measure what `compare` was asked for; what would stop it later stops it here."""
    from d3s2.methods.comparison import Command
    from d3s2.runs import contest, refusals

    rows = contest.rows_of(options.methods or [], options.images_per_mask)
    networks = contest.networks_of(options.networks)
    budgets = [budget_of(each) for each in options.budgets.split(",") if each]
    refusals.refuse_early(settings)
    contest.compare(
        contest.open_contest(settings, work, options.split, options.scheduler),
        out,
        rows,
        budgets or [settings.budget],
        range(options.seeds_from, options.seeds_from + options.seeds),
        options.distillations,
        Command(f"d3s2 compare --profile {settings.profile}"),
        networks,
    )


def budget_of(text: str) -> float | int:
    """A budget as it is typed: "1%", a share such as 0.01, or a number of masks such as 40.

    Raises D3S2Error for anything else.
    """
    try:
        if text.strip().endswith("%"):
            return float(text.strip().removesuffix("%")) / 100
        return int(text) if text.strip().isdecimal() else float(text)
    except ValueError:
        raise D3S2Error(
            f"--budgets has {text!r}: give 1%, a share such as 0.01, or a number of masks."
        ) from None


def _lab(options: argparse.Namespace) -> int:
    from d3s2.runs import lab

    lab.start(options.address, options.port, options.allow_root)
    return 0


def _check(options: argparse.Namespace) -> int:
    from d3s2.runs import readiness

    good = True
    for line in readiness.check(config.resolve(parameters(options), remember=False)):
        print(printable(line), flush=True)
        good &= line.ok
    return 0 if good else EXIT_FAILED


def _results(options: argparse.Namespace) -> int:
    from d3s2.runs import runner

    print(printable(runner.results(config.resolve(parameters(options), remember=False).run_dir)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from d3s2.runs import export

    source, target = options.source.expanduser(), options.to.expanduser()
    given = bool(options.profile or options.file or options.parameters)
    if options.training or export.is_training(source):
        if given:
            raise D3S2Error("--profile, -f and -p say nothing of a training: leave them away.")
        folder = export.export_training(source, options.training, target)
    else:
        settings = export.settings_of(source, parameters(options), given)
        folder = export.export_set(source, target, settings)
    for path in sorted(folder.iterdir()):
        print(printable(path))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from d3s2.data import fetch

    def say(line: str) -> None:
        print(line, flush=True)

    if options.what is None:
        from d3s2.runs import provisions

        settings = config.resolve(parameters(options), remember=False)
        provisions.fetch_all(settings, say, options.mirror, options.keep)
        return 0
    wanted = 2 if options.what == "file" else 1
    if len(options.places) != wanted:
        raise D3S2Error(
            f"fetch {options.what} takes {'URL FILE' if wanted == 2 else 'FOLDER'}: "
            f"{len(options.places)} words were given."
        )
    if options.what == "file":
        print(fetch.download(options.places[0], Path(options.places[1]), options.checksum))
        return 0
    if options.what == "voc2012aug":
        raise D3S2Error(
            "The augmented VOC has no archive that can be fetched by address: fetch voc2012, then "
            "put SegmentationClassAug and ImageSets/Segmentation/trainaug.txt into its VOC2012 "
            "(mmsegmentation's voc_aug.py makes them from SBD)."
        )
    folder = Path(options.places[0])
    fetch.fetch_dataset(
        fetch.ARCHIVES[options.what],
        folder,
        say,
        options.mirror,
        options.keep,
    )
    print(f"Use it with -p data_root={folder.absolute()}")
    return 0


def _publish(options: argparse.Namespace) -> int:
    from d3s2.runs import runner

    for path in runner.publish_run(options.run_dir, options.to):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
