"""The sequence without its lessons: each notebook's parameters, the cells that write its stages,
word for word, and the few lines these need. A run of it on very few images takes a fraction of the
smoke run's time, for tests that need many.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from smoke_run import SmokeRun

from d3s2.core.places import notebooks_folder

VALUES: dict[str, object] = {
    "train_images": 16,
    "val_images": 4,
    "feature_images": 6,
    "budget": 6,
    "steps": 4,
    "sampling_batch": 2,
    "iterations": 4,
    "threads": 1,
}
OPEN = """from d3s2.runs.run import open_run
run = open_run(globals())
settings, train = run.settings, run.train"""
LINES = {
    "00_start_here": [OPEN.replace("globals()", "globals(), begin=True")],
    "01_data_statistics": [
        OPEN,
        """from d3s2.runs.stages import write_csv
from d3s2.runs.weights import load_models
from d3s2.statistics.features import feature_statistics
from d3s2.statistics.pixels import class_table, count_pixels
models = load_models(run)
counts = count_pixels(train)
table = class_table(counts, train.classes)
chosen = train.subset(range(settings.feature_images))
moments = feature_statistics(chosen, models.proxy, batch_size=2)""",
        "statistics",
    ],
    "02_mask_selection": [
        OPEN,
        """from d3s2.runs.stages import write_csv, write_json
from d3s2.selection import class_weights, coverage, greedy, presence, random_ranking
k = run.size
a = presence(run.counts, settings.presence_threshold)
ranking = greedy(a, class_weights(run.counts.image_counts(), settings.beta), delta=settings.delta)
rankings = {"greedy": ranking, "random": random_ranking(len(train), settings.seed)}
spread = {name: coverage(a, order.first(k)).per_class for name, order in rankings.items()}""",
        "selection",
    ],
    "03_guided_sampling": [
        OPEN,
        """from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.sampler import Guidance
from d3s2.runs.weights import load_models
models = load_models(run)
generator, proxy = models.generator, models.proxy
ranking, k = run.ranking("greedy"), run.size
targets = FeatureTargets.from_moments(run.moments, run.device)
window = (settings.window_start, settings.window_end)
l1, l2 = settings.lambda_seg, settings.lambda_feat""",
        "distilled",
    ],
    "04_train_mask2former": [
        OPEN,
        """from d3s2.runs.network_choice import protocol_facts
from d3s2.training import evaluation
from d3s2.training.job import TrainingJob, job_key
from d3s2.training.side_by_side import train_all
val, k, run_on = run.val, run.size, run.device
def job_of(name, data):
    return TrainingJob(
        f"{name}-{settings.seed}", str(data.root), str(val.root), train.num_classes,
        f"{settings.run_dir}/training/{name}-{settings.seed}", data.ids, val.ids,
        iterations=settings.iterations, batch_size=2, seed=settings.seed, checkpoint_every=2)
groups = {"d3s2": [job_of("d3s2", run.distilled)],
          "random": [job_of("random", train.subset(run.random_masks(settings.seed)))]}""",
        "training",
        "table = evaluation.summarise(results)",
        "report",
    ],
}
"""By notebook: lines of our own, and the names of stages, which stand for the cells that write
them.
"""


def short_notebooks(folder: Path) -> Path:
    """Write the short sequence into a folder."""
    folder.mkdir(parents=True)
    for name, lines in LINES.items():
        cells = [
            cell
            for cell in nbformat.read(notebooks_folder() / f"{name}.ipynb", as_version=4).cells
            if cell.cell_type == "code"
        ]
        sources = [
            next((cell.source for cell in cells if f'run.stage("{text}"' in one_line(cell)), text)
            for text in lines
        ]
        parameters = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
        tagged = new_code_cell(parameters.source, metadata={"tags": ["parameters"]})
        whole = new_notebook(cells=[tagged, *map(new_code_cell, sources)])
        nbformat.write(whole, folder / f"{name}.ipynb")
    return folder


def one_line(cell: nbformat.NotebookNode) -> str:
    """A cell's source without the line breaks between a bracket and what it opens."""
    return cell.source.replace("(\n    ", "(")


class ShortRun(SmokeRun):
    """`d3s2 run` of the short sequence, with its own home."""

    def __init__(self, home: Path, notebooks: Path):
        super().__init__(home)
        self.notebooks = notebooks
        self.command += ["--notebooks", str(notebooks)]
        self.command = self.given(VALUES).command

    def names(self) -> dict[str, object]:
        """What it is given."""
        return {"profile": "smoke", "run_dir": str(self.folder), **VALUES}
