"""What is exported is used by a process that cannot import d3s2, and says what chapter 04 says.

On a machine without a compiler mmcv has no compiled operations, and d3s2 puts a stand-in there. The
process below has none of d3s2's: it gets a module whose operations fail when they are called, which
none is on a CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import make_run, make_set, quick
from training_jobs import CLASSES, make_job, write_splits

from d3s2.data.folder import open_folder
from d3s2.models.plain_config import require_plain
from d3s2.runs import cli, export
from d3s2.runs.stages import Stage
from d3s2.training import mask2former
from d3s2.training.job import WEIGHTS, open_split
from d3s2.training.plain_training import as_python, training_config, words_of
from d3s2.training.registered import FolderDataset
from d3s2.training.worker import train

WITHOUT_D3S2 = """
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "d3s2":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Refuse())
try:
    import d3s2
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("d3s2 can be imported here")


class Uncompiled(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("get_"):
            return lambda: "none"

        def missing(*arguments, **more):
            raise RuntimeError(name)

        return missing


if importlib.util.find_spec("mmcv._ext") is None:
    sys.modules["mmcv._ext"] = Uncompiled("mmcv._ext")
    sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", None)
"""
TRAINS_AND_OPENS = """
import json

import numpy as np
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import DATASETS

set_config, model_config, checkpoint, image, work = sys.argv[1:]

model = init_model(model_config, checkpoint, device="cpu")
answer = inference_model(model, np.load(image))
np.savez(
    f"{work}/answer.npz",
    logits=answer.seg_logits.data.numpy(),
    labels=answer.pred_sem_seg.data[0].numpy(),
)

config = Config.fromfile(set_config)
init_default_scope(config.default_scope)
plain = config.train_dataloader.dataset.copy()
plain.pipeline = [each for each in plain.pipeline if each.type in
                  ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")]
read = DATASETS.build(plain)
first = read[0]
np.savez(
    f"{work}/first.npz",
    image=first["inputs"].numpy(),
    labels=first["data_samples"].gt_sem_seg.data[0].numpy(),
)
sample = DATASETS.build(config.train_dataloader.dataset)[0]
config.train_cfg.max_iters = 2
config.work_dir = f"{work}/trained"
runner = Runner.from_cfg(config)
before = {name: value.clone() for name, value in runner.model.state_dict().items()}
runner.train()
moved = [name for name, value in runner.model.state_dict().items() if (value != before[name]).any()]
print("FOUND " + json.dumps({
    "classes": list(read.metainfo["classes"]),
    "palette": [list(color) for color in read.metainfo["palette"]],
    "shown": [list(model.dataset_meta["classes"]), list(map(list, model.dataset_meta["palette"]))],
    "images": len(read),
    "sample": list(sample["inputs"].shape),
    "iterations": runner.iter,
    "moved": len(moved),
    "head": type(runner.model.decode_head).__module__,
    "d3s2": sorted(name for name in sys.modules if name.partition(".")[0] == "d3s2"),
}))
"""


# ---------------------------------------------------------------- a process that cannot import d3s2
@dataclass(frozen=True)
class Elsewhere:
    """What a process without d3s2 found, and what it was given."""

    found: dict[str, Any]
    answer: dict[str, np.ndarray]
    first: dict[str, np.ndarray]
    source: Path
    target: Path
    job: Any
    image: np.ndarray


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """A set and a training, exported and used: one process for both, it takes long to begin."""
    work = tmp_path_factory.mktemp("work")
    source = make_set(work / "set")
    target = export.export_set(source, work / "it's plain", quick())
    data = write_splits(work / "data")
    job = make_job(data, work / "run", iterations=2)
    threads = torch.get_num_threads()
    train(job)
    torch.set_num_threads(threads)
    model = export.export_training(Path(job.work_dir), "", work / "model")
    image = np.ascontiguousarray(open_split(data, "val", None, job.size).read_image(0)[..., ::-1])
    np.save(work / "image.npy", image)
    places = [target / export.TRAINS, model / export.OPENS, model / export.CHECKPOINT]
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-W", "ignore", "-c", WITHOUT_D3S2 + TRAINS_AND_OPENS),
            *(*map(str, places), str(work / "image.npy"), str(work)),
        ],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    arrays = {}
    for name in ("answer", "first"):
        with np.load(work / f"{name}.npz") as stored:
            arrays[name] = dict(stored)
    found = json.loads(line.removeprefix("FOUND "))
    return Elsewhere(found, arrays["answer"], arrays["first"], source, target, job, image)


@pytest.mark.processes
def test_a_set_trains_a_mask2former_without_d3s2(elsewhere: Elsewhere) -> None:
    found = elsewhere.found
    assert found["d3s2"] == [] and found["head"].startswith("mmseg.")
    assert (found["images"], found["sample"]) == (6, [3, 32, 48])
    assert found["iterations"] == 2 and found["moved"] > 100


@pytest.mark.processes
def test_what_it_reads_is_what_chapter_04_reads(elsewhere: Elsewhere) -> None:
    ours = FolderDataset(str(elsewhere.source), "train", None, None, pipeline=[])
    item = ours.get_data_info(0)
    np.testing.assert_array_equal(elsewhere.first["image"], item["img"].transpose(2, 0, 1))
    np.testing.assert_array_equal(elsewhere.first["labels"], item["gt_seg_map"])
    assert (elsewhere.first["labels"] == 255).any()
    assert elsewhere.found["classes"] == list(ours.source.class_names)
    assert elsewhere.found["palette"] == ours.source.palette.tolist()


@pytest.mark.processes
def test_a_training_answers_without_d3s2_as_with_it(elsewhere: Elsewhere) -> None:
    model = mask2former.build_model(elsewhere.job, Path(elsewhere.job.work_dir) / WEIGHTS)
    val = open_split(elsewhere.job.val_root, "val", None, elsewhere.job.size)
    shown = [list(val.class_names), val.palette.tolist()]
    assert elsewhere.found["shown"] == shown
    inputs = {"inputs": [torch.from_numpy(elsewhere.image.transpose(2, 0, 1).copy())]}
    with torch.no_grad():
        data = model.data_preprocessor(inputs, False)
        meta = {"ori_shape": (32, 48), "img_shape": (32, 48)}
        logits = model.inference(data["inputs"], [meta])[0].numpy()
    np.testing.assert_allclose(elsewhere.answer["logits"], logits, atol=1e-4)
    np.testing.assert_array_equal(elsewhere.answer["labels"], logits.argmax(0))
    with np.load(Path(elsewhere.job.work_dir) / "predictions.npz") as stored:
        np.testing.assert_array_equal(elsewhere.answer["labels"], stored[val.ids[0]])


# --------------------------------------------------------------------------------------- the files
@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    work = tmp_path_factory.mktemp("exported")
    source = make_set(work / "set")
    return source, export.export_set(source, work / "deep" / "plain", quick())


def test_the_set_is_an_image_folder_of_hugging_faces_datasets(exported: tuple[Path, Path]) -> None:
    """As `datasets` documents it: metadata.jsonl beside the files, whose columns `file_name` and
    `*_file_name` name them, each once; no other picture lies anywhere.
    """
    source, target = exported
    lines = (target / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row.keys() == {"file_name", "mask_file_name"} for row in rows)
    named = [target / "train" / name for row in rows for name in row.values()]
    assert sorted(named) == sorted(target.rglob("*.png")) and len(named) == 12
    theirs, ours = open_folder(target, "train"), open_folder(source, "train")
    assert theirs.classes == ours.classes and theirs.ids == ours.ids
    for index in range(len(ours)):
        np.testing.assert_array_equal(theirs.read_image(index), ours.read_image(index))
        np.testing.assert_array_equal(theirs.read_labels(index), ours.read_labels(index))


def test_masks_are_ids_whatever_they_were(tmp_path: Path) -> None:
    """Ids with gaps become train ids, which the configuration's classes are numbered by."""
    source = make_set(tmp_path / "set")
    rows = [f"{9 * i},c{i},{60 * i},{200 - 50 * i},90" for i in range(CLASSES)]
    (source / "classes.csv").write_text("\n".join(["id,name,red,green,blue", *rows]) + "\n")
    for path in (source / "train" / "labels").iterdir():
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 255, 255, labels * 9).astype(np.uint8)).save(path)
    target = export.export_set(source, tmp_path / "plain", quick())
    found = np.array(Image.open(target / "train" / "labels" / "0.png"))
    assert set(np.unique(found)) == {0, 1, 2, 3, 255}
    assert (target / "classes.csv").read_text().splitlines()[2].startswith("1,c1,")


# ------------------------------------------------------------------------------- the configuration
def test_the_configuration_holds_values_alone_and_moves_with_its_folder(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    source, target = exported
    text = (target / export.TRAINS).read_text()
    require_plain(target / export.TRAINS)
    assert "D3S2" not in text and str(source.parent) not in text
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / export.TRAINS).write_text(text)
    found = mask2former.Config.fromfile(moved / export.TRAINS)
    assert found.train_dataloader.dataset.data_root == str(moved)


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "backbone.pth").write_bytes(b"weights")
    swin = {"network": "swin-s", "backbone_weights": str(tmp_path / "backbone.pth")}
    given = {
        "scaled-down": {"iterations": 70, "seed": 5},
        "swin-s": swin | {"protocol": "published", "precision": "bfloat16", "device": "cuda"},
        "float16": {"precision": "float16", "device": "cuda"},
    }
    return {name: make_job(tmp_path, tmp_path, **more) for name, more in given.items()}


@pytest.mark.parametrize("name", ["scaled-down", "swin-s", "float16"])
def test_the_network_and_its_training_are_those_of_chapter_04(
    jobs: dict[str, Any], name: str, tmp_path: Path
) -> None:
    job = jobs[name]
    names = [f"c{i}" for i in range(CLASSES)]
    text = as_python(training_config(job, names, [[1, 2, 3]] * CLASSES), words_of(job))
    (tmp_path / "mmseg_config.py").write_text(text)
    require_plain(tmp_path / "mmseg_config.py")
    plain = mask2former.Config.fromfile(tmp_path / "mmseg_config.py")
    ours = mask2former.build_config(job)
    assert str(tmp_path) not in text and "d3s2" not in str(plain.to_dict()).lower()
    model = ours.model.to_dict()
    model["decode_head"]["type"] = "Mask2FormerHead"
    shipped = mask2former.Config.fromfile(str(mask2former.SHIPPED)).model.backbone.init_cfg
    model["backbone"]["init_cfg"] = shipped.to_dict() if name == "swin-s" else None
    assert plain.model.to_dict() == model
    read, *rest = plain.train_dataloader.dataset.pipeline[1:]
    assert read.type == "LoadAnnotations"
    assert rest == list(ours.train_dataloader["dataset"]["pipeline"])
    assert plain.train_dataloader.sampler == ours.train_dataloader["sampler"]
    assert plain.train_dataloader.batch_size == job.batch_size
    assert plain.param_scheduler == ours.param_scheduler
    assert plain.train_cfg.max_iters == job.iterations and plain.randomness.seed == job.seed
    for part in ("clip_grad", "paramwise_cfg"):
        assert plain.optim_wrapper[part] == ours.optim_wrapper[part]
    optimizer = {k: v for k, v in ours.optim_wrapper.optimizer.items() if k != "fused"}
    assert plain.optim_wrapper.optimizer == optimizer
    mixed = {"scaled-down": None, "swin-s": ("bfloat16", 1.0), "float16": ("float16", "dynamic")}
    found = plain.optim_wrapper.get("dtype"), plain.optim_wrapper.get("loss_scale")
    assert found == (mixed[name] or (None, None))
    kinds = {"scaled-down": "OptimWrapper"}
    assert plain.optim_wrapper.type == kinds.get(name, "AmpOptimWrapper")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    return tmp_path


# -------------------------------------------------------------------------------------- the command
def test_a_run_is_exported_with_its_own_parameters(home: Path, capsys: Any) -> None:
    run = make_run(home / "run", iterations=33, batch_size=3)
    assert cli.main(["export", str(run), "--to", str(home / "plain")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(home / "plain" / export.README)
    found = mask2former.Config.fromfile(home / "plain" / export.TRAINS)
    assert (found.train_cfg.max_iters, found.train_dataloader.batch_size) == (33, 3)
    assert Stage.find(run, "distilled").folder == run / "distilled"  # as it was
    words = ["export", str(run), "--to", str(home / "other"), "-p", "iterations=3"]
    assert cli.main(words) == 2
    assert "is a run and has parameters of its own" in capsys.readouterr().err


def test_a_set_takes_parameters(home: Path) -> None:
    source = make_set(home / "set")
    words = ["--to", str(home / "plain"), "-p", "iterations=34"]
    assert cli.main(["export", str(source), *words]) == 0
    assert mask2former.Config.fromfile(home / "plain" / export.TRAINS).train_cfg.max_iters == 34
