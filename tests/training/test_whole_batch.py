"""The head's objective: that of the whole batch however it is taken, with the configuration's
matching.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from training_jobs import CLASSES, make_job

from d3s2.core.errors import D3S2Error
from d3s2.training import loop, mask2former, registered
from d3s2.training.loop import TrainLoop, announce

SIZE = (32, 48)


@pytest.fixture
def without_chance(monkeypatch):
    """No layer is dropped, and all masks are compared at the same points, whatever is drawn."""
    monkeypatch.setattr(mask2former, "SIZES", replace(mask2former.SIZES, drop_path=0.0))
    points = torch.rand(512, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        registered.torch,
        "rand",
        lambda count, *_, **__: points[None, :, None].expand(count, -1, -1, -1),
    )
    monkeypatch.setattr(
        sys.modules["mmdet.models.dense_heads.mask2former_head"],
        "get_uncertain_point_coords_with_randomness",
        lambda masks, *_: points.expand(len(masks), -1, -1),
    )


def batch() -> dict[str, list]:
    """Six images with 4, 1, 2, 0, 1 and 3 classes: no two halves or thirds have as many."""
    rng = np.random.default_rng(0)
    samples, images = [], []
    for count in (4, 1, 2, 0, 1, 3):
        labels = torch.full((1, *SIZE), 255)
        for name in range(count):
            labels[:, 8 * name : 8 * name + 8] = name
        sample = SegDataSample(metainfo={"img_shape": SIZE, "ori_shape": SIZE})
        samples.append(sample.set_data({"gt_sem_seg": PixelData(data=labels)}) or sample)
        images.append(torch.from_numpy(rng.integers(0, 255, (3, *SIZE), dtype=np.uint8)))
    return {"inputs": images, "data_samples": samples}


def step(tmp_path, parts: int) -> tuple[torch.Tensor, dict]:
    """All weights' gradients in one step of the real loop, by a step of length one; and losses."""
    torch.manual_seed(0)
    model = mask2former.build_model(make_job(tmp_path, tmp_path)).train()
    before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 1.0), accumulative_counts=parts)
    heard = {}
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        call_hook=lambda name, outputs=None, **_: heard.update(outputs or {}),
    )
    loop = object.__new__(TrainLoop)
    loop._runner, loop._iter, loop.parts = runner, 0, parts
    loop.run_iter(batch())
    after = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return before - after, {name: float(value.detach()) for name, value in heard.items()}


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, without_chance, parts):
    whole, losses = step(tmp_path, 1)
    in_parts, their_losses = step(tmp_path, parts)
    length = whole.norm()
    assert length > 0.1 and (in_parts - whole).norm() < 1e-4 * length
    assert their_losses == pytest.approx(losses, rel=1e-4)


def test_what_a_batch_is_divided_by_follows_its_masks(tmp_path):
    head = mask2former.build_model(make_job(tmp_path, tmp_path)).decode_head
    present = [torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64)]
    queries = head.num_queries
    assert head.divisors(present) == (pytest.approx(2 + 0.1 * (2 * queries - 2)), 2.0)


def test_a_batch_that_is_taken_at_once_is_left_to_mmdet(tmp_path):
    model = mask2former.build_model(make_job(tmp_path, tmp_path))
    announce(model, batch()["data_samples"], 1)
    assert model.decode_head.whole is None
    announce(model, batch()["data_samples"], 3)
    assert model.decode_head.whole[1:] == (11.0, 3)
    announce(torch.nn.Linear(1, 1), [], 3)  # another kind of model


def test_a_batch_that_processes_share_is_announced_by_each(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "get_dist_info", lambda: (0, 2))
    model = mask2former.build_model(make_job(tmp_path, tmp_path))
    samples = batch()["data_samples"]
    announce(model, samples, 1)
    present = [torch.arange(count) for count in (4, 1, 2, 0, 1, 3)]  # the ignored pixels left out
    assert model.decode_head.whole == (*model.decode_head.divisors(present), 1)
    monkeypatch.setattr(loop, "is_model_wrapper", lambda model: hasattr(model, "module"))
    wrapped = mask2former.build_model(make_job(tmp_path, tmp_path))
    announce(SimpleNamespace(module=wrapped), samples, 1)
    assert wrapped.decode_head.whole == model.decode_head.whole


# ----------------------------------------------------------------------------------------- matching
def matched(tmp_path, costs: list[dict]) -> list:
    """What our head and mmdet's own match, with these costs."""
    config = mask2former.build_config(make_job(tmp_path, tmp_path))
    config.model.decode_head.train_cfg.assigner.match_costs = costs
    mask2former.init_default_scope("mmseg")
    head = mask2former.MODELS.build(config.model).decode_head
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(CLASSES)
    masks = torch.stack([torch.zeros(SIZE, dtype=torch.int64) for _ in labels])
    for name in labels:
        masks[name, 8 * name : 8 * name + 8] = 1
    truth = registered_truth(labels, masks)
    scores = 3 * torch.randn(1, head.num_queries, CLASSES + 1, generator=generator)
    logits = 3 * torch.randn(1, head.num_queries, 16, 24, generator=generator)
    found = []
    for kind in (registered.BatchedHead, registered.Mask2FormerHead):
        torch.manual_seed(0)
        found.append(kind.get_targets(head, list(scores), list(logits), [truth], [{}])[0][0])
    return found


def registered_truth(labels, masks):
    from mmengine.structures import InstanceData

    return InstanceData(labels=labels, masks=masks)


def cost(kind: str, weight: float, **more) -> dict:
    return {"type": f"mmdet.{kind}", "weight": weight, **more}


DICE = {"pred_act": True, "eps": 1.0}
CONFIGURED = {
    "shipped": (2.0, 5.0, 5.0, 1.0),
    "classes alone": (100.0, 0.01, 0.01, 1.0),
    "entropy alone": (0.01, 50.0, 0.01, 1.0),
    "dice alone": (0.01, 0.01, 50.0, 1.0),
    "smoother": (2.0, 0.0, 50.0, 300.0),
}


def test_matching_takes_its_weights_from_the_configuration(tmp_path):
    every = []
    for classes, entropy, dice, smooth in CONFIGURED.values():
        costs = [
            cost("ClassificationCost", classes),
            cost("CrossEntropyLossCost", entropy, use_sigmoid=True),
            cost("DiceCost", dice, pred_act=True, eps=smooth),
        ]
        mine, theirs = matched(tmp_path, costs)
        assert torch.equal(mine, theirs)
        every.append(tuple(mine.tolist()))
    assert len(set(every)) >= 4


def test_a_cost_is_the_sum_of_its_parts_by_their_weights(tmp_path):
    head = mask2former.build_model(make_job(tmp_path, tmp_path)).decode_head
    masks = torch.zeros(CLASSES, *SIZE)
    masks[1:, 4:20, 8:30] = 1
    truth = registered_truth(torch.arange(CLASSES), masks)
    scores = torch.randn(1, head.num_queries, CLASSES + 1)
    logits = torch.randn(1, head.num_queries, 16, 24)

    def at(*weights: float) -> torch.Tensor:
        for part, weight in zip(head.assigner.match_costs, weights, strict=True):
            part.weight = weight
        torch.manual_seed(0)
        return head.matching_cost(scores, logits, [truth])

    parts = [at(1, 0, 0), at(0, 1, 0), at(0, 0, 1)]
    assert all(part.std() > 0.01 for part in parts)
    together = sum(weight * part for weight, part in zip((2, 3, 7), parts, strict=True))
    torch.testing.assert_close(at(2, 3, 7), together)


@pytest.mark.parametrize(
    "costs",
    [
        [cost("ClassificationCost", 2.0)],
        [
            cost("FocalLossCost", 2.0),
            cost("CrossEntropyLossCost", 5.0),
            cost("DiceCost", 5.0, **DICE),
        ],
        [
            cost("ClassificationCost", 2.0),
            cost("CrossEntropyLossCost", 5.0),
            cost("DiceCost", 5.0, naive_dice=False, **DICE),
        ],
        [cost("ClassificationCost", 2.0)] * 2
        + [cost("CrossEntropyLossCost", 5.0), cost("DiceCost", 5.0, **DICE)],
    ],
)
def test_costs_that_the_head_does_not_know_are_a_sentence(tmp_path, costs):
    with pytest.raises(D3S2Error, match=r"match_costs are .*one each of"):
        matched(tmp_path, costs)
