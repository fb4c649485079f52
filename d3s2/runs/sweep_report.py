"""What came out of a sweep: a table with mean and standard deviation over the seeds, and an HTML
page in one file.
"""

from __future__ import annotations

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from d3s2.core.files import read_json, write_csv, write_text

SEED = "seed"


class SweepRow(NamedTuple):
    """One line of the table: a point of the grid without its seed, and a training set.

    mious: one value (percent) for each finished run.
    """

    values: tuple[Any, ...]
    training_set: str
    images: int
    mious: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.mious)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample; None for a single run, which has none."""
        return statistics.stdev(self.mious) if len(self.mious) > 1 else None


def write(
    folder: Path, grid: Mapping[str, Sequence[Any]], records: Sequence[Mapping[str, Any]]
) -> None:
    """Write `table.csv`, `table.md` and `report.html` from the finished runs in the sweep's
    folder.
    """
    names = [name for name in grid if name != SEED]
    rows = collect(folder, names, records)
    header = [*names, "training set", "images", "runs", "mean mIoU (%)", "standard deviation"]
    numbers = [
        [*row.values, row.training_set, row.images, len(row.mious), row.mean, row.deviation]
        for row in rows
    ]
    write_csv(folder / "table.csv", [header, *numbers])
    cells = [_cells(row) for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    write_text(folder / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    write_text(folder / "report.html", page(folder, names, header, rows, records))


def collect(
    folder: Path, names: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[SweepRow]:
    """The rows of the table, in the order of the grid; runs without results add nothing."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        path = folder / record["name"] / "report" / "results.json"
        if record["state"] != "finished" or not path.is_file():
            continue
        for row in read_json(path)["rows"]:
            key = (tuple(record["parameters"][name] for name in names), row["set"], row["images"])
            groups.setdefault(key, []).append(row["miou_mean"])
    return [SweepRow(*key, tuple(mious)) for key, mious in groups.items()]


def _cells(row: SweepRow) -> list[str]:
    deviation = "" if row.deviation is None else f"{row.deviation:.1f}"
    return [
        *map(str, row.values),
        row.training_set,
        str(row.images),
        str(len(row.mious)),
        f"{row.mean:.1f}",
        deviation,
    ]


# --------------------------------------------------------------------------------------------- page
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
td, th {{ border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left }}
img {{ max-width: 100% }}
.failed {{ color: #b00020 }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{figure}
<h2>Results</h2>
{results}
<h2>Runs</h2>
{runs}
</body></html>
"""


def page(
    folder: Path,
    names: Sequence[str],
    header: Sequence[str],
    rows: Sequence[SweepRow],
    records: Sequence[Mapping[str, Any]],
) -> str:
    """The report as one HTML file: nothing in it is loaded from elsewhere; links to notebooks are
    relative.
    """
    finished = sum(record["state"] == "finished" for record in records)
    failed = sum(record["state"] == "failed" for record in records)
    summary = f"{len(records)} runs: {finished} finished, {failed} failed. "
    summary += "Mean and standard deviation are over runs that differ in the seed."
    figure = (
        '<img alt="Validation mIoU of every point" '
        f'src="data:image/png;base64,{_figure(names, rows)}">'
        if rows
        else ""
    )
    results = _table(header, [[html.escape(cell) for cell in _cells(row)] for row in rows])
    runs = _table(
        ["run", "state", "seconds", "executed notebooks"],
        [_run(folder, record) for record in records],
    )
    return PAGE.format(
        title=html.escape(f"Sweep {folder.name}"),
        summary=summary,
        figure=figure,
        results=results,
        runs=runs,
    )


def _run(folder: Path, record: Mapping[str, Any]) -> list[str]:
    notebooks = sorted((folder / record["name"] / "executed").glob("*.ipynb"))
    links = [
        f'<a href="{quote(path.relative_to(folder).as_posix())}">{html.escape(path.stem[:2])}</a>'
        for path in notebooks
    ]
    said = " ".join(filter(None, (record["state"], record["message"])))
    state = f'<span class="{record["state"]}">{html.escape(said)}</span>'
    return [html.escape(record["name"]), state, str(record["seconds"]), " ".join(links)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """header: text; rows: HTML."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _figure(names: Sequence[str], rows: Sequence[SweepRow]) -> str:
    """Base64 of a PNG: mean mIoU and deviation of each training set, over the points of the
    grid.
    """
    from matplotlib.figure import Figure

    points = list(dict.fromkeys(row.values for row in rows))
    sets = list(dict.fromkeys(row.training_set for row in rows))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(sets):
        mine = [row for row in rows if row.training_set == name]
        places = [points.index(row.values) + 0.15 * (number - (len(sets) - 1) / 2) for row in mine]
        axes.errorbar(
            places,
            [row.mean for row in mine],
            [row.deviation or 0 for row in mine],
            fmt="o",
            capsize=3,
            label=name,
        )
    axes.set_xticks(
        range(len(points)), [", ".join(map(str, point)) or "all runs" for point in points]
    )
    axes.set_xlabel(", ".join(names))
    axes.set_ylabel("validation mIoU (%)")
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode()
