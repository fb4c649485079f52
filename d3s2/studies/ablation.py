"""What does each part of the method add? Many small trainings, and paired differences with their
uncertainty.

    python -m d3s2.studies.ablation --arms random balanced unguided d3s2 --seeds 5

Every *arm* is a method (see `methods.method`), a way to a training set. Each is trained once for
each training seed with chapter 04's recipe, on a set of its own: seed s paints with noise of number
s, and what draws masks draws with number s. Arms of one seed therefore share their masks (those
that draw, and those that select), the noise of each mask, the starting weights, and the order of
the batches: ids are always handed over sorted. With `--distillations 2` seed s takes set s mod 2,
which is cheaper, and says less: the unit of an interval is a set (see `methods.intervals`). Sets
and trainings of a `d3s2 compare` in the same `--work` are not made twice.

    python -m d3s2.studies.ablation --confirm balanced unguided --seeds 8 --split test

trains these arms and the default once more, with seeds that nobody has seen, into a file of its
own, whose questions are these alone. `--show` measures nothing and prints the table of what is
there. An interrupted call goes on where it was. The numbers of several arms are committed in
`reference/ablation.csv`, and appendix A1 reads them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from d3s2.core import machine
from d3s2.core.errors import exit_code
from d3s2.guidance.losses import LossOptions
from d3s2.guidance.painting import Recipe
from d3s2.methods.comparison import Command, Contest, Series, measure
from d3s2.methods.intervals import Measurement, read_measurement, table
from d3s2.methods.method import Method
from d3s2.methods.painted import Painted, Rank, greedy_masks
from d3s2.methods.photographs import random_masks
from d3s2.methods.table import D3S2, METHODS
from d3s2.runs import config
from d3s2.runs.contest import open_contest
from d3s2.selection import budget_size

REFERENCE = Path(__file__).parent / "reference" / "ablation.csv"
COMMAND = "python -m d3s2.studies.ablation"
DEFAULT = "d3s2"
FREEMASK = 1.25
"""FreeMask's margin: times a class's mean loss on real images."""


def _painted(
    name: str,
    says: str,
    scales: Mapping[str, float] = D3S2.scales,
    *,
    masks: Rank = greedy_masks,
    steps: int = 50,
    candidates: int = 1,
    losses: LossOptions | None = None,
    ignore_margin: float = 0.0,
    images: int = 1,
    **guidance: object,
) -> Painted:
    recipe = Recipe(
        steps=steps,
        guidance=replace(D3S2, scales=scales, **guidance),
        candidates=candidates,
        losses=losses or LossOptions(),
        ignore_margin=ignore_margin,
        images_per_mask=images,
    )
    return Painted(name, says, recipe, masks)


def _of_table(name: str, says: str) -> Method:
    """A row of the table of methods: the same sets, in the words of this study."""
    return replace(METHODS[name], says=says)


ARMS: dict[str, Method] = {
    arm.name: arm
    for arm in [
        _of_table("random", "real images, drawn at random"),
        _of_table("balanced", "the real images of the selected masks"),
        _of_table("unguided", "generated without guidance"),
        _painted("segmentation", "segmentation consistency alone", {"segmentation": 0.1}),
        _painted("feature", "class-wise feature matching alone", {"feature": 0.1}),
        _of_table("d3s2", "both losses (the default)"),
        _painted("set", "both, statistics of the whole set", losses=LossOptions(scope="set")),
        _painted(
            "class balance",
            "both, segmentation loss averaged over classes",
            losses=LossOptions(balance=True),
        ),
        _painted("half strength", "both, scales halved", {"segmentation": 0.05, "feature": 0.05}),
        _painted("double strength", "both, scales doubled", {"segmentation": 0.2, "feature": 0.2}),
        _painted("cfg 2", "both, with classifier-free guidance of scale 2", cfg_scale=2.0),
        _painted("full jacobian", "both, gradient through the generator", jacobian="full"),
        _painted("early", "both, guided in the first third", window=(0.0, 1 / 3)),
        _painted("middle", "both, guided in the second third", window=(1 / 3, 2 / 3)),
        _painted("late", "both, guided in the last third", window=(2 / 3, 1.0)),
        _painted("every step", "both, gradient taken anew at every guided step", every=1),
        _painted("25 steps", "both, 25 steps", steps=25),
        _painted("100 steps", "both, 100 steps", steps=100),
        _painted("eta 1", "both, with fresh noise at every step (eta 1)", eta=1.0),
        _painted("eta 1 unguided", "without guidance, with fresh noise at every step", {}, eta=1.0),
        _painted(
            "FreeMask filter",
            "both, pixels of high proxy loss ignored in training",
            ignore_margin=FREEMASK,
        ),
        _painted(
            "unguided filter",
            "without guidance, pixels of high proxy loss ignored",
            {},
            ignore_margin=FREEMASK,
        ),
        _painted("best of 4", "both, the best of four tries a mask", candidates=4),
        _painted("d3s2 x 4", "both, four images of each mask: a set four times as large", images=4),
        _painted("unguided x 4", "without guidance, four images of each mask", {}, images=4),
        _painted("random masks", "both, for randomly drawn masks", masks=random_masks),
    ]
}


def paints_selected(name: str) -> bool:
    """Whether an arm paints the selected masks: what differs between such arms is the painting."""
    arm = ARMS[name]
    return isinstance(arm, Painted) and arm.rank is greedy_masks


def open_arms(settings: config.Settings, work: Path, split: str = "val") -> Contest:
    """What all arms are compared under, with these arms in the place of the table's methods."""
    return replace(open_contest(settings, work, split), known=ARMS)


def measure_arms(
    contest: Contest,
    out: Path,
    arms: Sequence[str],
    budget: float,
    seeds: Sequence[int],
    distillations: int = 0,
) -> None:
    """Distil and train what is missing and write `out`; see `comparison.measure`."""
    size = budget_size(budget, len(contest.shared.train))
    rows = [ARMS[name] for name in arms]
    command = Command(COMMAND, "--arms", says_budgets=False)
    measure(contest, out, Series(rows, [size], list(seeds), distillations), command)


def read_scores(path: Path = REFERENCE) -> Measurement:
    """What was measured. Raises D3S2Error when it is missing."""
    return read_measurement(path, COMMAND)


def confirmation(path: Path = REFERENCE) -> Path:
    """Where the fresh seeds go, beside the measurement whose differences they are to confirm."""
    return path.with_stem(path.stem + "-confirmed")


def _confirm(arms: Sequence[str], options: argparse.Namespace) -> None:
    """Turn the options into those of a confirmation: these arms and the default, on seeds above all
    that the measurement has, into a file of its own. Raises D3S2Error without a measurement.
    """
    seen = {seed for scores in read_scores(options.out).scores.values() for seed in scores}
    options.arms = [DEFAULT, *dict.fromkeys(arms)]
    options.seeds_from = max(options.seeds_from, max(seen) + 1)
    options.out = confirmation(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        if options.confirm:
            _confirm(options.confirm, options)
        if options.show:
            print(table(read_scores(options.out), REFERENCES, options.arms))
        else:
            settings = config.resolve(
                {"profile": "scenes", "jobs": options.parallel, "threads": options.threads},
                remember=False,
            )
            machine.set_threads(settings.threads)
            measure_arms(
                open_arms(settings, options.work, options.split),
                options.out,
                options.arms,
                settings.budget,
                range(options.seeds_from, options.seeds_from + options.seeds),
                options.distillations,
            )
            print(table(read_scores(options.out), REFERENCES))

    return exit_code(work)


REFERENCES = ("random", "balanced", "unguided", DEFAULT)
"""Arms that every other one is compared with."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Measure what each part of D3S2 adds."
    )
    option = parser.add_argument
    known = list(ARMS)
    option("--work", type=Path, default=Path("runs/ablation"), help="folder of sets and trainings")
    option("--out", type=Path, default=REFERENCE, help="the CSV to write")
    option("--arms", nargs="+", default=known, choices=known, metavar="ARM", help=", ".join(known))
    option("--seeds", type=int, default=5, help="trainings of each arm")
    option("--seeds-from", type=int, default=0, help="the first seed")
    option(
        "--distillations",
        type=int,
        default=0,
        help="sets of each arm that its seeds share; 0 = every seed has its own",
    )
    option("--split", choices=("val", "test"), default="val", help="what trainings are judged on")
    option(
        "--confirm",
        nargs="+",
        choices=[name for name in known if name != DEFAULT],
        metavar="ARM",
        help=f"train them and {DEFAULT} on seeds that --out has not seen, into a file beside it",
    )
    option("--show", action="store_true", help="measure nothing, print what --out holds of --arms")
    option("--threads", type=int, default=0, help="CPU threads for sampling, 0 = all cores")
    option("--parallel", type=int, default=0, help="trainings side by side, 0 = one a core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
