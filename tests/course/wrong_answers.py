"""Five typical wrong answers for each assignment, as students write them.

Each replaces one answer of a solved notebook, and must fail by the test named for it and by no
other. docs/teaching.md lists them, so that a teacher knows what to say.
"""

from __future__ import annotations

from textwrap import dedent
from typing import NamedTuple


class Wrong(NamedTuple):
    """assignment; what the mistake is; the answer's cell, whose test is called `<cell>-test`; what
    the test says of it (a part); the code.
    """

    assignment: str
    mistake: str
    cell: str
    said: str
    code: str

    @property
    def test(self) -> str:
        """The name of the test that catches it."""
        return f"{self.cell}-test"


def wrong(assignment: str, mistake: str, cell: str, said: str, code: str) -> Wrong:
    """With the code's indentation taken away."""
    return Wrong(assignment, mistake, cell, said, dedent(code).strip())


WRONG = (
    # ----------------------------------------------------------------------------- 01 statistics
    wrong(
        "statistics",
        "ignored pixels are counted as a class, the last one",
        "pixel-counts",
        "one of class 2",
        """
        def pixel_counts(masks, num_classes):
            return np.array([
                np.bincount(np.minimum(mask.ravel(), num_classes - 1), minlength=num_classes)
                for mask in masks
            ])
        """,
    ),
    wrong(
        "statistics",
        "divides by all pixels, the ignored ones included",
        "shares",
        "ignored pixels are not in the denominator",
        """
        def class_shares(masks, num_classes):
            return np.array([(masks == c).mean() for c in range(num_classes)])
        """,
    ),
    wrong(
        "statistics",
        "multiplies pixel counts instead of presences",
        "company",
        "masks are counted, not pixels",
        """
        def company(counts):
            return counts.T @ counts
        """,
    ),
    wrong(
        "statistics",
        "draws with replacement: (1 - f)^k",
        "chance",
        "without replacement",
        """
        def chance_missed(total, holding, drawn):
            return (1 - holding / total) ** drawn
        """,
    ),
    wrong(
        "statistics",
        "the variance of both is the mean of the variances",
        "merging",
        "means that differ add",
        """
        def merged(n_a, mean_a, var_a, n_b, mean_b, var_b):
            n = n_a + n_b
            return n, (n_a * mean_a + n_b * mean_b) / n, (n_a * var_a + n_b * var_b) / n
        """,
    ),
    # ------------------------------------------------------------------------------ 02 selection
    wrong(
        "selection",
        "divides by the size of the image, not by the valid pixels",
        "presence",
        "a share of 1 %",
        """
        def presence(counts, tau=0.02):
            return np.minimum(1, counts / (64 * 64) / tau)
        """,
    ),
    wrong(
        "selection",
        "weights that do not sum to the number of classes",
        "class-weights",
        "sum to the number of classes",
        """
        def class_weights(image_counts, beta=0.5):
            raw = np.where(image_counts > 0, np.maximum(image_counts, 1.0) ** -beta, 0)
            return raw / raw.sum()
        """,
    ),
    wrong(
        "selection",
        "no logarithm: what is there already does not count enough",
        "gains",
        "log 2",
        """
        def gains(a, weights, totals, delta=1.0):
            return (a / (delta + totals)) @ weights
        """,
    ),
    wrong(
        "selection",
        "one pick more than the budget",
        "greedy",
        "as many masks as the budget says",
        """
        def greedy(a, weights, budget, delta=1.0):
            totals, picked = np.zeros(a.shape[1]), []
            while len(picked) <= min(budget, len(a) - 1):
                gain = np.log1p(a / (delta + totals)) @ weights
                gain[picked] = -np.inf
                picked.append(int(np.argmax(gain)))
                totals = totals + a[picked[-1]]
            return picked
        """,
    ),
    wrong(
        "selection",
        "takes the largest old bound without computing it anew",
        "lazy",
        "those of greedy",
        """
        def lazy_greedy(a, weights, budget, delta=1.0):
            order = np.argsort(-(np.log1p(a / delta) @ weights), kind="stable")
            return order[:budget].tolist(), len(a)
        """,
    ),
    # ------------------------------------------------------------------------------- 03 guidance
    wrong(
        "guidance",
        "the two square roots are swapped",
        "clean",
        "without noise the image is x itself",
        """
        def clean_from_v(x, v, a):
            return math.sqrt(1 - a) * x - math.sqrt(a) * v
        """,
    ),
    wrong(
        "guidance",
        "the mean over all pixels, ignored ones included",
        "loss",
        "valid pixels of this image",
        """
        def consistency(logits, labels):
            pixels = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
            return pixels.flatten(1).mean(1)
        """,
    ),
    wrong(
        "guidance",
        "the sign: away from the mask",
        "guided",
        "added, not taken away",
        """
        def guided_noise(eps, gradient, a, scale):
            lengths = [part.flatten(1).norm(dim=1)[:, None, None, None] for part in (eps, gradient)]
            unit = gradient / lengths[1].clamp(min=1e-12)
            return eps - scale * math.sqrt(1 - a) * unit * lengths[0]
        """,
    ),
    wrong(
        "guidance",
        "the noise goes in at the old level",
        "step",
        "the last step ends at the clean image",
        """
        def step(x, eps, a, a_next):
            clean = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
            return math.sqrt(a_next) * clean + math.sqrt(1 - a) * eps
        """,
    ),
    wrong(
        "guidance",
        "the window's end is guided too",
        "window",
        "the last step of the window",
        """
        def is_guided(index, steps, window):
            return round(window[0] * steps) <= index <= round(window[1] * steps)
        """,
    ),
    # ----------------------------------------------------------------------------- 04 evaluation
    wrong(
        "evaluation",
        "rows and columns swapped",
        "confusion",
        "row 0, column 1",
        """
        def confusion(predicted, labels, num_classes):
            valid = labels != 255
            cells = num_classes * predicted[valid].astype(np.int64) + labels[valid]
            return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
        """,
    ),
    wrong(
        "evaluation",
        "the intersection counts twice in the union",
        "iou",
        "100 % each",
        """
        def class_iou(matrix):
            union = matrix.sum(0) + matrix.sum(1)
            return np.where(union > 0, 100 * np.diag(matrix) / np.maximum(union, 1), np.nan)
        """,
    ),
    wrong(
        "evaluation",
        "absent classes count as 0",
        "mean",
        "over the classes that have one",
        """
        def mean_iou(values):
            if np.isnan(values).all():
                return float("nan")
            return float(np.nan_to_num(values).mean())
        """,
    ),
    wrong(
        "evaluation",
        "the mean of the images' mIoU",
        "dataset",
        "counted together",
        """
        def dataset_miou(predicted, labels, num_classes):
            scores = []
            for said, mask in zip(predicted, labels):
                valid, ious = mask != 255, []
                for c in range(num_classes):
                    either = ((mask == c) | (said == c)) & valid
                    if either.any():
                        ious.append(((mask == c) & (said == c) & valid).sum() / either.sum())
                scores.append(100 * np.mean(ious))
            return float(np.mean(scores))
        """,
    ),
    wrong(
        "evaluation",
        "the interval counts trainings, not distillations",
        "interval",
        "distillation",
        """
        def interval(scores, distillations):
            from scipy import stats

            error = np.std(scores, ddof=1) / np.sqrt(len(scores))
            return float(np.mean(scores)), float(stats.t.ppf(0.975, len(scores) - 1) * error)
        """,
    ),
    # ----------------------------------------------------------------------------- 05 comparison
    wrong(
        "comparison",
        "farthest from the last pick only",
        "k-center",
        "farthest from all",
        """
        def k_center(points, count):
            picked = [int(np.argmin(((points - points.mean(0)) ** 2).sum(1)))]
            while len(picked) < count:
                distance = ((points - points[picked[-1]]) ** 2).sum(1)
                distance[picked] = -1
                picked.append(int(np.argmax(distance)))
            return picked
        """,
    ),
    wrong(
        "comparison",
        "herding without the update: the most typical points",
        "herding",
        "what it lacks",
        """
        def herding(points, count):
            return np.argsort(-(points @ points.mean(0)), kind="stable")[:count].tolist()
        """,
    ),
    wrong(
        "comparison",
        "what is paid once is left out",
        "bill",
        "one image pays for everything",
        """
        def seconds_an_image(once, each, count):
            return sum(each.values())
        """,
    ),
    wrong(
        "comparison",
        "the difference of the means over all seeds, not paired",
        "paired",
        "seed by seed",
        """
        def paired_difference(a, b):
            common = set(a) & set(b)
            return np.mean(list(a.values())) - np.mean(list(b.values())), len(common)
        """,
    ),
    wrong(
        "comparison",
        "Holm without the running maximum",
        "holm",
        "none is smaller than the one before it",
        """
        def holm(p):
            order = np.argsort(p)
            corrected = np.empty(len(p))
            corrected[order] = np.minimum(1, p[order] * np.arange(len(p), 0, -1))
            return corrected
        """,
    ),
)
