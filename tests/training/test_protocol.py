"""The published protocol, on small copies of ADE20K: originals of several sizes, judged at their
own.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from training_jobs import make_job, write_splits

from d3s2.data.miniatures import write_miniature
from d3s2.data.splits import open_splits
from d3s2.runs import config
from d3s2.runs.network_choice import protocol_facts, training_data, training_network
from d3s2.training import evaluation, mask2former
from d3s2.training.job import PREDICTIONS, WEIGHTS, TrainingJob, job_key, validation_split
from d3s2.training.worker import train

SIZES = {"ADE_val_00000003": (48, 64), "ADE_val_00000009": (72, 40), "ADE_val_00000010": (33, 100)}
"""Of the originals that are judged."""
SIDE = 32


def widen(part: Path, name: str, size: tuple[int, int]) -> None:
    """One more image and mask, of the first one's content at another size and aspect."""
    for kind, ending, how in (
        ("images", "jpg", Image.Resampling.BILINEAR),
        ("annotations", "png", Image.Resampling.NEAREST),
    ):
        with Image.open(part / kind / "validation" / f"ADE_val_00000003.{ending}") as first:
            picture = first.resize(size[::-1], how)
        picture.save(part / kind / "validation" / f"{name}.{ending}")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    root = write_miniature("ade20k", tmp_path_factory.mktemp("data"), 3, 1, (48, 64))
    for name, size in list(SIZES.items())[1:]:
        widen(root / "ADEChallengeData2016", name, size)
    return root


@pytest.fixture(scope="module")
def job(originals, tmp_path_factory) -> TrainingJob:
    return make_job(
        originals,
        tmp_path_factory.mktemp("work"),
        num_classes=150,
        iterations=2,
        size=(SIDE, SIDE),
        protocol="published",
        train_format="ade20k",
        val_format="ade20k",
    )


@pytest.fixture(scope="module")
def result(job):
    threads = torch.get_num_threads()
    yield train(job)
    torch.set_num_threads(threads)


def answers(job: TrainingJob) -> dict[str, np.ndarray]:
    with np.load(Path(job.work_dir) / PREDICTIONS) as stored:
        return {name: stored[name] for name in stored}


def annotated(root: Path, name: str) -> np.ndarray:
    """The file's own pixels: 0 for none, 1 to 150."""
    path = root / "ADEChallengeData2016" / "annotations" / "validation" / f"{name}.png"
    return np.array(Image.open(path)).astype(int)


@pytest.mark.processes  # it trains
def test_answers_have_the_originals_sizes_and_the_score_is_counted_there(job, result, originals):
    said = answers(job)
    assert {name: labels.shape for name, labels in said.items()} == SIZES
    scores = []
    for number in range(150):
        both = either = 0
        for name, labels in said.items():
            true = annotated(originals, name)
            called = (labels == number) & (true > 0)
            both += (called & (true == number + 1)).sum()
            either += (called | (true == number + 1)).sum()
        scores.append(100 * both / either if either else np.nan)
    np.testing.assert_allclose(result.per_class_iou, scores)
    assert result.miou == pytest.approx(np.nanmean(scores)) and (np.array(scores) == 0).any()
    assert result.train_images == 3


@pytest.mark.processes
def test_an_answer_is_that_of_the_whole_image_at_its_own_aspect(job, result, originals):
    """By hand: the short side brought to the job's, filled up to multiples of 32, the network, cut,
    brought to the mask's size.
    """
    model = mask2former.build_model(job, Path(job.work_dir) / WEIGHTS)
    said = answers(job)
    judged = validation_split(job)
    for index, name in enumerate(judged.ids):
        image = judged.read_image(index)
        height, width = image.shape[:2]
        share = min(SIDE / min(height, width), 4 * SIDE / max(height, width))
        size = [int(side * share + 0.5) for side in (height, width)]
        small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        values = torch.from_numpy(small.copy()).permute(2, 0, 1).float()[None]
        processor = model.data_preprocessor
        values = (values - processor.mean) / processor.std
        missing = [-side % 32 for side in size]
        values = F.pad(values, (0, missing[1], 0, missing[0]))
        with torch.no_grad():
            logits = model.encode_decode(values, [{"img_shape": values.shape[2:]}])
        logits = logits[..., : size[0], : size[1]]
        whole = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(said[name], whole[0].argmax(0).numpy())


def test_the_pipelines_are_the_shipped_ones_at_512(job):
    from dataclasses import replace

    for network in ("scaled-down", "swin-s"):
        large = mask2former.build_config(replace(job, size=(512, 512), network=network))
        shipped = mask2former.Config.fromfile(str(mask2former.SHIPPED))
        stuff = mask2former.CONFIGS / "_base_" / "datasets" / "coco-stuff164k.py"
        for theirs in (shipped, mask2former.Config.fromfile(str(stuff))):
            steps = [dict(step) for step in theirs.test_pipeline if "Load" not in step["type"]]
            judged = [dict(step) for step in large.val_dataloader["dataset"]["pipeline"]]
            assert judged == steps
            assert large.val_dataloader["batch_size"] == theirs.val_dataloader.batch_size == 1
        training = large.train_dataloader["dataset"]["pipeline"]
        steps = [dict(step) for step in training if step["type"] != "Pad"]
        assert steps == [
            dict(step) for step in shipped.train_pipeline if "Load" not in step["type"]
        ]
        processor = large.model.data_preprocessor
        assert processor.test_cfg == shipped.model.data_preprocessor.test_cfg
        assert tuple(processor["size"]) == tuple(shipped.model.data_preprocessor["size"])
        assert large.model.test_cfg == {"mode": "whole"}


def test_crops_are_cut_from_the_originals_and_labels_to_judge_stay_whole(job, originals):
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    init_default_scope("mmseg")
    config_of = mask2former.build_config(job)
    crops = DATASETS.build(config_of.train_dataloader["dataset"])
    assert {tuple(crops[k]["inputs"].shape) for k in range(3)} == {(3, SIDE, SIDE)}
    assert crops.get_data_info(0)["img"].shape == (48, 64, 3)
    whole = DATASETS.build(config_of.val_dataloader["dataset"])
    for index, (name, size) in enumerate(SIZES.items()):
        sample = whole[index]["data_samples"]
        assert sample.img_path == name and sample.ori_shape == size
        assert min(whole[index]["inputs"].shape[1:]) <= SIDE
        true = annotated(originals, name)
        labels = sample.gt_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(labels, np.where(true == 0, 255, true - 1))


# -------------------------------------------------------------------------- from a run's parameters
@pytest.fixture
def settings(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    names = {"profile": "ade20k", "data_root": str(originals), "device": "cpu"}
    names |= {"image_size": f"{SIDE}x{SIDE}", "network": "scaled-down"}
    return lambda **more: config.resolve(names | more, remember=False)


def job_of(settings, data, val, folder: Path) -> TrainingJob:
    return TrainingJob(
        "set",
        num_classes=150,
        work_dir=str(folder),
        size=(SIDE, SIDE),
        **training_data(settings, data, val),
        **training_network(settings),
    )


@pytest.mark.filterwarnings("ignore:ade20k/")  # of another number of images than published
def test_real_sets_read_the_originals_and_a_distilled_one_its_own_files(settings, tmp_path):
    published = settings()
    squeezed = settings(protocol="squeezed")
    train_set, val = open_splits(published, progress=False)
    some = train_set.subset([2, 0])
    real = job_of(published, some, val, tmp_path)
    places = (published.data_root, "ade20k")
    assert (real.train_root, real.train_format) == (real.val_root, real.val_format) == places
    assert real.train_ids == some.ids and validation_split(real).read_image(1).shape == (72, 40, 3)
    write_splits(tmp_path / "distilled")
    own = mask2former_folder(tmp_path / "distilled")
    painted = job_of(published, own, val, tmp_path)
    assert (painted.train_root, painted.train_format) == (str(own.root), "folder")
    assert (painted.val_root, painted.val_format) == places
    today = job_of(squeezed, some, val, tmp_path)
    assert (today.train_root, today.val_root) == (str(val.root), str(val.root))
    assert validation_split(today).read_image(1).shape == (SIDE, SIDE, 3)
    assert len({job_key(real), job_key(today)}) == 2


def mask2former_folder(root: Path):
    from d3s2.data.folder import open_folder

    return open_folder(root, "train")


def test_the_table_says_which_protocol_it_is(settings, tmp_path):
    from test_evaluation import result as scores

    rows = evaluation.summarise({"d3s2": [scores("a", 25.0, (25.0,))]})
    said = {}
    for name, values in {
        "published": {},
        "squeezed": {"protocol": "squeezed", "network": "swin-s"},
        "small": {"protocol": "squeezed"},
    }.items():
        facts = protocol_facts(settings(**values))
        evaluation.write_report(tmp_path / name, rows, ["sky"], facts)
        said[name] = (tmp_path / name / "results.md").read_text()
        assert said[name].startswith(evaluation.markdown_table(rows))
    assert "\nProtocol: published: crops of 32x32 of the original images" in said["published"]
    assert "short side of 32, judged at the size of their own masks." in said["published"]
    assert "\nProtocol: squeezed: " in said["squeezed"] and "not the usual" in said["squeezed"]
    assert said["small"] == evaluation.markdown_table(rows)


def test_scenes_have_no_originals():
    from d3s2.core.errors import D3S2Error

    with pytest.raises(D3S2Error, match="protocol is 'published' but scenes"):
        config.resolve({"profile": "scenes", "protocol": "published"}, remember=False)
