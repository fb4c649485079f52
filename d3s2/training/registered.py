"""What chapter 04 adds to mmsegmentation: a data set, a head that matches a batch at once, steps in
mixed precision, a metric, a hook.

Everything here is registered in mmsegmentation's registries and named in
`mask2former.build_config`. Importing this module imports mmseg and mmdet (some seconds).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.models.openmmlab import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    BaseSegDataset,
    IoUMetric,
    Mask2FormerHead,
)
from d3s2.training import predictions
from d3s2.training.job import open_split

COSTS = {"ClassificationCost", "CrossEntropyLossCost", "DiceCost"}
"""What Mask2Former's matching adds up."""
KEEP_BYTES = 256 * 2**20
"""A training set up to this size is kept in memory once it has been read."""


@DATASETS.register_module(name="D3S2Folder", force=True)
class FolderDataset(BaseSegDataset):
    """A split as mmsegmentation sees it; the pixels come through d3s2's checked readers.

    To judge, what resizes the image leaves the labels alone: mmsegmentation brings its answer to
    their size.
    """

    def __init__(
        self,
        root: str,
        split: str,
        ids: Sequence[str] | None,
        size: Sequence[int] | None,
        layout: str = "folder",
        **rest: Any,
    ):
        self.source = open_split(root, split, ids, size, layout)
        self.room = KEEP_BYTES
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        names = {"classes": self.source.class_names, "palette": self.source.palette.tolist()}
        super().__init__(metainfo=names, serialize_data=False, **rest)

    def load_data_list(self) -> list[dict]:
        """Nothing to list: `get_data_info` reads by position."""
        return [{"index": index} for index in range(len(self.source))]

    def get_data_info(self, idx: int) -> dict:
        """One image (uint8[H, W, 3], BGR as mmseg has it) and its labels (uint8[H, W])."""
        image, labels = self._pair(idx)
        return {
            "img": image.copy(),
            "gt_seg_map": labels.copy(),
            "img_path": self.source.ids[idx],
            "seg_fields": [] if self.test_mode else ["gt_seg_map"],
            "img_shape": image.shape[:2],
            "ori_shape": image.shape[:2],
            "label_map": None,
            "reduce_zero_label": False,
        }

    def _pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels, kept once read while there is room."""
        if index in self.kept:
            return self.kept[index]
        image = np.ascontiguousarray(self.source.read_image(index)[..., ::-1])
        labels = self.source.read_labels(index)
        self.room -= image.nbytes + labels.nbytes
        if self.room > 0:
            self.kept[index] = (image, labels)
        return image, labels


@MODELS.register_module(name="D3S2Mask2FormerHead", force=True)
class BatchedHead(Mask2FormerHead):
    """mmsegmentation's head; predicted and true masks are matched for a batch at once, not image by
    image.

    whole: of a batch that comes in parts, or is shared by processes, the `divisors` of all that
    this process has of it, and in how many parts it takes them. mmdet divides the losses by those
    of the images at hand, so their mean over the parts would be another objective. None = the
    images at hand are the batch.
    """

    threshold = float("inf")
    """Of data with one class, whose logits mmseg would compare with it: all pixels are class 0."""
    whole: tuple[float, float, int] | None = None

    def divisors(self, labels: Sequence[Tensor]) -> tuple[float, float]:
        """What mmdet divides the losses of images by whose classes are int64[G_b]: the class loss
        by the queries' weights, of which G_b answer for a class and the rest for none; the mask
        losses by the masks.
        """
        weights = torch.tensor(self.class_weight)
        nothing = [self.num_queries - len(each) for each in labels]
        classes = sum(float(weights[each.cpu()].sum()) for each in labels)
        return classes + sum(nothing) * float(weights[-1]), float(sum(map(len, labels)))

    def loss_by_feat(
        self,
        all_cls_scores: list[Tensor],
        all_mask_preds: list[Tensor],
        batch_gt_instances: list,
        batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """mmdet's losses, in float32 whatever the network's precision; those of a part are scaled
        so that their mean over the parts and the processes is the loss of the whole batch.
        """
        scores = [each.float() for each in all_cls_scores]
        logits = [each.float() for each in all_mask_preds]
        with torch.autocast(scores[0].device.type, enabled=False):
            losses = super().loss_by_feat(scores, logits, batch_gt_instances, batch_img_metas)
        if self.whole is None:
            return losses
        here = self.divisors([truth.labels for truth in batch_gt_instances])
        *whole, parts = self.whole
        both = torch.tensor([here, whole], device=scores[0].device)
        all_reduce(both, "mean")  # over the processes; mmdet does so for the masks
        (_, masks_here), (classes, masks) = both.tolist()
        of_masks = parts * max(masks_here, 1) / max(masks, 1)
        shares = {
            "loss_cls": parts * here[0] / classes,
            "loss_mask": of_masks,
            "loss_dice": of_masks,
        }
        return {name: loss * shares[name.rpartition(".")[2]] for name, loss in losses.items()}

    def get_targets(
        self,
        cls_scores_list: list[Tensor],
        mask_preds_list: list[Tensor],
        batch_gt_instances: list,
        batch_img_metas: list[dict],
        return_sampling_results: bool = False,
    ) -> tuple:
        """Which query answers for which class of each image: mmdet's labels, weights and masks, per
        image.
        """
        scores = torch.stack(cls_scores_list)
        logits = torch.stack(mask_preds_list)
        cost = self.matching_cost(scores, logits, batch_gt_instances).cpu().numpy()
        labels, weights, masks = [], [], []
        for index, truth in enumerate(batch_gt_instances):
            rows, columns = linear_sum_assignment(cost[index, :, : len(truth.labels)])
            queries = torch.from_numpy(rows)
            targets = torch.from_numpy(columns)
            label = truth.labels.new_full((self.num_queries,), self.num_classes)
            label[queries] = truth.labels[targets]
            weight = torch.zeros_like(label, dtype=torch.float32)
            weight[queries] = 1.0
            labels.append(label)
            weights.append(weight)
            masks.append(truth.masks[targets])
        label_weights = [torch.ones_like(label) for label in labels]
        return labels, label_weights, masks, weights, sum(map(len, masks))

    @torch.no_grad()
    def matching_cost(self, scores: Tensor, logits: Tensor, truths: list) -> Tensor:
        """What it would cost each query to answer for each true mask: class, cross-entropy and
        dice, with the weights of the configuration's assigner (shipped: 2, 5 and 5).

        Args:
            scores: float[B, Q, C + 1] class logits; logits: float[B, Q, h, w] mask logits.
            truths: per image `labels` int64[G_b] and `masks` int64[G_b, H, W].

        Returns: float[B, Q, max G_b]; columns from G_b on mean nothing. Masks are compared at
        `num_points` random points of the image, the same for all its masks, as in mmdet.
        """
        costs = self._costs()
        most = max(1, *(len(truth.labels) for truth in truths))
        labels = torch.stack([_padded(truth.labels, most) for truth in truths])
        masks = torch.stack([_padded(truth.masks.float(), most) for truth in truths])
        points = 2 * torch.rand(len(truths), self.num_points, 1, 2, device=scores.device) - 1
        predicted = F.grid_sample(logits, points, align_corners=False).squeeze(-1)
        true = F.grid_sample(masks, points, align_corners=False).squeeze(-1)

        answers = labels[:, None].expand(-1, scores.shape[1], -1)
        classes = -scores.softmax(-1).gather(2, answers)
        missed = F.softplus(-predicted) @ true.mT
        false_alarms = F.softplus(predicted) @ (1 - true).mT
        entropy = (missed + false_alarms) / self.num_points
        inside = predicted.sigmoid()
        areas = inside.sum(-1)[:, :, None] + true.sum(-1)[:, None]
        smooth = costs["DiceCost"].eps
        dice = 1 - (2 * inside @ true.mT + smooth) / (areas + smooth)
        weight = {name: cost.weight for name, cost in costs.items()}
        return (
            weight["ClassificationCost"] * classes
            + weight["CrossEntropyLossCost"] * entropy
            + weight["DiceCost"] * dice
        )

    def _costs(self) -> dict[str, Any]:
        """The assigner's costs by kind. Raises D3S2Error for others than the shipped three."""
        costs = {type(cost).__name__: cost for cost in self.assigner.match_costs}
        dice = costs.get("DiceCost")
        is_known = costs.keys() == COSTS and len(costs) == len(self.assigner.match_costs)
        if not is_known or not (dice.pred_act and dice.naive_dice):
            raise D3S2Error(
                f"the assigner's match_costs are {', '.join(costs)}: this head knows one each of "
                f"{', '.join(sorted(COSTS))} (naive, of activated masks); use mmseg's own "
                "Mask2FormerHead for others."
            )
        return costs


def _padded(values: Tensor, count: int) -> Tensor:
    """`values` [G, ...] with zeros behind, so that there are `count`."""
    missing = values.new_zeros(count - len(values), *values.shape[1:])
    return torch.cat([values, missing])


@OPTIM_WRAPPERS.register_module(name="D3S2MixedPrecision", force=True)
class MixedPrecision(OptimWrapper):
    """A training step whose products are taken in fewer bits, by PyTorch's autocast; weights,
    optimizer, losses and evaluation stay in float32.

    Like mmengine's AmpOptimWrapper, which refuses to be made on a machine without a GPU. precision:
    "bfloat16", or "float16", whose gradients are scaled so that small ones do not vanish.
    """

    def __init__(self, precision: str, device: str, **rest: Any):
        super().__init__(**rest)
        self.kind = getattr(torch, precision)
        self.device = device
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "float16")

    def backward(self, loss: Tensor, **rest: Any) -> None:
        """Gradients of the scaled loss."""
        self.scaler.scale(loss).backward(**rest)
        self._inner_count += 1

    def step(self, **rest: Any) -> None:
        """A step with gradients scaled back, clipped as always; none where they overflowed."""
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.scaler.step(self.optimizer, **rest)
        self.scaler.update()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The forward pass of a step."""
        with super().optim_context(model), torch.autocast(self.device, self.kind):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer, and the scale."""
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        rest = dict(state_dict)
        self.scaler.load_state_dict(rest.pop("scaler"))
        super().load_state_dict(rest)


@METRICS.register_module(name="D3S2IoU", force=True)
class ClassIoU(IoUMetric):
    """mmsegmentation's IoU metric; also keeps the IoU of each class, and writes each prediction
    down as soon as it is there: of an image, only the areas of its classes stay in memory.

    folder: where the predictions go, one by one (see `predictions.keep`).
    """

    def __init__(self, folder: str, **rest: Any):
        super().__init__(iou_metrics=["mIoU"], ignore_index=IGNORE, **rest)
        self.folder = Path(folder)
        self.per_class: list[float] = []

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Add a batch: mmsegmentation's areas of each image; its prediction uint8[H, W] goes to
        disk under the image's id.
        """
        super().process(data_batch, data_samples)
        for place, sample in enumerate(data_samples, start=-len(data_samples)):
            # Copied: a small tensor that stays, once an image, between large ones that go, keeps
            # freed memory from being used again (1 MB an image).
            self.results[place] = tuple(area.numpy().copy() for area in self.results[place])
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu().numpy()
            predictions.keep(self.folder, sample["img_path"], predicted.astype(np.uint8))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mmsegmentation's numbers, after the IoU of each class has been taken from the same
        areas: NaN where a class is neither there nor predicted.
        """
        areas = [tuple(map(torch.from_numpy, image)) for image in results]
        # In float64: mmsegmentation's float32 loses pixels from 17 million of a class on.
        intersection = sum(area[0].double() for area in areas)
        union = sum(area[1].double() for area in areas)
        self.per_class = (intersection / union).tolist()
        return super().compute_metrics(areas)


@HOOKS.register_module(name="D3S2Progress", force=True)
class Progress(Hook):
    """Record the loss, say where the training is, and stop when the process that started it is
    gone.
    """

    def __init__(self, path: str, every: int = 10):
        self.path = Path(path)
        self.every = every
        self.parent = os.getppid()
        self.curve: list[tuple[int, float]] = []
        self.sum = 0.0

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """mmengine's call after each step; outputs: {"loss": Tensor, ...}."""
        if os.getppid() != self.parent:
            os._exit(1)
        self.sum += float(outputs["loss"].detach())
        done = runner.iter + 1
        latest = (done - 1) % self.every + 1
        if latest == self.every or done == runner.max_iters:
            loss = self.sum / latest
            self.curve.append((done, loss))
            self.sum = 0.0
            if is_main_process():
                self.path.write_text(json.dumps({"iteration": done, "loss": loss}))

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """mmengine's call after each batch that was judged."""
        if os.getppid() != self.parent:
            os._exit(1)
        if batch_idx % self.every == 0 and is_main_process() and self.curve:
            done, loss = self.curve[-1]
            judged = {"judged": batch_idx + 1, "batches": len(runner.val_dataloader)}
            self.path.write_text(json.dumps({"iteration": done, "loss": loss, **judged}))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the loss."""
        return {"curve": self.curve, "sum": self.sum}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.curve = list(state["curve"])
        self.sum = state["sum"]
