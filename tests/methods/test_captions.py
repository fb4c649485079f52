"""Captions of masks drawn by hand: what is named, in which order, and what goes when room is
short.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.methods.captions import (
    APART,
    ROOM,
    Region,
    TemplateCaptioner,
    captions,
    fitting_names,
    mentions,
    regions,
    relation,
    said,
    shortened,
    size_word,
    tokens,
    units,
    with_names,
)

NAMES = ("sky", "road", "car", "background", "wall-other-merged")
SEEDS = st.integers(0, 100_000)


def street() -> np.ndarray:
    """20 x 20: 200 pixels of sky, 180 of road, a car of 4 on the left, the rest ignored."""
    labels = np.full((20, 20), IGNORE, dtype=np.uint8)
    labels[:10] = 0
    labels[10:19] = 1
    labels[14:16, 2:4] = 2
    return labels


def of(*shares: int) -> np.ndarray:
    """A mask of columns, as many of each class as is said."""
    return np.repeat(np.arange(len(shares), dtype=np.uint8), shares)[None].repeat(4, axis=0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 6)


# ---------------------------------------------------------------------------------------- the parts
def test_regions_come_by_size_with_their_middles() -> None:
    sky, road, car = regions(street())
    assert (sky.train_id, road.train_id, car.train_id) == (0, 1, 2)
    assert sky.share == 200 / 380 and road.share == 176 / 380 and car.share == 4 / 380
    assert (sky.x, sky.y) == pytest.approx((0.5, 0.25))
    assert (car.x, car.y) == pytest.approx((0.15, 0.75))
    assert [region.train_id for region in regions(of(3, 3, 4))] == [2, 0, 1]
    assert regions(np.full((3, 3), IGNORE, dtype=np.uint8)) == []


def test_sizes_have_words() -> None:
    shares = (1.0, 0.2, 0.19, 0.05, 0.049, 0.01, 0.009, 1e-9)
    words = ["large", "large", "medium", "medium", "small", "small", "tiny", "tiny"]
    assert [size_word(share) for share in shares] == words


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (0.2, 0.5, "B left of A"),
        (0.8, 0.5, "B right of A"),
        (0.5, 0.2, "B above A"),
        (0.5, 0.8, "A above B"),
        (0.8, 0.81, "A above B"),
        (0.8, 0.79, "B right of A"),
        (0.75, 0.75, "A above B"),
        (0.5 + 0.9 * APART, 0.5 - 0.9 * APART, None),
        (0.5 + 1.1 * APART, 0.5, "B right of A"),
    ],
)
def test_relations_follow_the_middles(x: float, y: float, found: str | None) -> None:
    larger = Region(0, 0.5, 0.5, 0.5)
    told = relation(larger, Region(1, 0.1, x, y))
    if told is None:
        assert found is None
        return
    who, how, whom = told
    assert f"{'AB'[who.train_id]} {how} {'AB'[whom.train_id]}" == found


# ------------------------------------------------------------------------------------- the template
def test_a_caption_is_read_off_the_mask() -> None:
    assert TemplateCaptioner(NAMES)(None, street()) == (
        "a photo of large sky, large road, small car, sky above road, car left of road"
    )
    assert TemplateCaptioner(NAMES)(None, of(1, 0, 0, 5, 0)) == "a photo of medium sky"
    assert TemplateCaptioner(NAMES)(None, of(0, 0, 0, 0, 1)) == "a photo of large wall"
    assert TemplateCaptioner(NAMES)(None, of(0, 0, 0, 1)) == "a photo of a scene"


def random_mask(seed: int, classes: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (5, 5)).astype(np.uint8)
    labels = blocks.repeat(4, axis=0).repeat(4, axis=1)
    labels[rng.random(labels.shape) < 0.1] = IGNORE
    return labels


LETTERED = [f"thing{letter}" for letter in "abcdefghijkl"]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(30, 120))
def test_captions_fit_name_what_is_required_and_depend_on_the_mask_alone(
    seed: int, room: int
) -> None:
    labels = random_mask(seed)
    present = [region.train_id for region in regions(labels)]
    required = present[-2:]
    captioner = TemplateCaptioner(LETTERED, required, room)
    text = captioner(None, labels)
    assert tokens(text) <= room
    assert all(mentions(text, LETTERED[train_id]) for train_id in required)
    assert text == captioner(np.zeros((20, 20, 3), dtype=np.uint8), labels.copy())
    named = [train_id for train_id in present if mentions(text, LETTERED[train_id])]
    optional = [train_id for train_id in present if train_id not in required]
    assert [t for t in named if t in optional] == optional[: len(named) - len(required)]


def test_relations_go_first_then_sizes_then_names_each_the_smallest_classs_first() -> None:
    captioner = TemplateCaptioner(("a", "b", "c"))
    labels = of(12, 5, 3)
    longest = tokens(captioner(None, labels))
    rooms = range(longest, tokens("a photo of a") - 1, -1)
    told = [TemplateCaptioner(captioner.names, room=room)(None, labels) for room in rooms]
    assert [text.removeprefix("a photo of ") for text, _ in itertools.groupby(told)] == [
        "large a, large b, medium c, b right of a, c right of b",
        "large a, large b, medium c, b right of a",
        "large a, large b, medium c",
        "large a, large b, c",
        "large a, b, c",
        "a, b, c",
        "a, b",
        "a",
    ]
    small = TemplateCaptioner(captioner.names, required=[2], room=tokens("a photo of a, c"))
    assert small(None, labels) == "a photo of a, c"


def test_every_class_is_named_while_there_is_room(scenes: SegmentationDataset) -> None:
    names = [info.name for info in scenes.classes]
    for index, text in enumerate(captions(scenes, TemplateCaptioner(names))):
        assert tokens(text) <= ROOM
        for region in regions(scenes.read_labels(index)):
            assert mentions(text, names[region.train_id])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: TemplateCaptioner(NAMES, (0, 1, 2), room=6)(None, street()),
            "room is 6 tokens, too few for a caption that names what is required (sky, road, car)",
        ),
        (
            lambda: TemplateCaptioner(("sky",))(None, street()),
            "A mask has class 1, but names has 1: give one name for every class.",
        ),
    ],
)
def test_a_mask_that_cannot_be_told_is_a_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(D3S2Error) as raised:
        call()
    assert words in str(raised.value)


# ----------------------------------------------------------------------------- texts of any origin
def test_tokens_are_counted_with_care() -> None:
    assert tokens("") == 2
    assert tokens("sky") == 3
    assert tokens("road") == 4
    assert tokens("a sky, building.") == 2 + 1 + 1 + 1 + 3 + 1


@settings(max_examples=20, deadline=None)
@given(st.text("abc ,.", max_size=80), st.integers(2, 20))
def test_a_shortened_text_fits_and_begins_as_the_text(text: str, room: int) -> None:
    short = shortened(text, room)
    assert tokens(short) <= room
    words = " ".join(text.split())
    assert words.startswith(short)
    assert short == words.rstrip(" ,;:") or tokens(words) > room


def test_names_that_a_text_lacks_come_at_its_end_and_are_never_cut() -> None:
    assert with_names("A Sky over roads", ["sky", "road"]) == "A Sky over roads, road"
    assert with_names("", ["wall-other-merged", "background"]) == "wall"
    assert with_names("the sky.", []) == "the sky."
    long = "word " * 90 + "car"
    text = with_names(long, ["car", "sky"])
    assert text.endswith("word, car, sky") and ROOM - 2 <= tokens(text) <= ROOM
    with pytest.raises(D3S2Error, match="The names sky, car take more than 4 tokens"):
        with_names("nothing", ["sky", "car"], room=4)


def test_as_many_names_as_fit_from_the_first_on() -> None:
    names = ["sky"] * 50
    assert len(fitting_names(names)) == 38 and fitting_names(names, 2) == []
    assert fitting_names(["sky", "car"], 4) == ["sky"]


def test_names_are_found_as_words() -> None:
    assert mentions("a Car, left", "car") and mentions("traffic light on", "traffic light")
    assert not mentions("a cart", "car") and not mentions("scar", "car")
    assert not mentions("traffic, light", "traffic light")


def test_units_are_words_and_phrases() -> None:
    text = "a photo of large sky, small car, sky above car"
    words = ["large", "sky", "small", "car", "above"]
    assert units(text) == [*words, "large sky", "small car", "sky above car"]
    assert units("Two  dogs. A cat") == ["two", "dogs", "a", "cat", "two dogs", "a cat"]
    assert units("sky") == ["sky"] and units(" ,;") == []


# ------------------------------------------------------------------------------------------- hooks
def brightness(image: np.ndarray, labels: np.ndarray) -> str:
    return f"brightness {int(image.mean())} and\n {len(np.unique(labels))} things"


def test_a_captioner_of_the_users_sees_image_and_mask(scenes: SegmentationDataset) -> None:
    found = captions(scenes, brightness, [4, 1])
    for text, index in zip(found, (4, 1), strict=True):
        light = int(scenes.read_image(index).mean())
        things = len(np.unique(scenes.read_labels(index)))
        assert text == f"brightness {light} and {things} things"
    assert tokens(captions(scenes, lambda image, labels: "word " * 99, [0])[0]) <= ROOM
    assert captions(scenes, brightness, [0], room=6) == ["brightness"]
    assert len(captions(scenes, brightness)) == 6


def broken(image: np.ndarray, labels: np.ndarray) -> str:
    raise ValueError("no weights")


@pytest.mark.parametrize(
    ("captioner", "words"),
    [
        (broken, "The captioner at image 00002 failed (ValueError: no weights): mend it"),
        (lambda image, labels: 7, "The captioner at image 00002 gave 7: it must give a text."),
        (lambda image, labels: " ", "gave ' ': it must give a text."),
    ],
)
def test_a_captioner_that_fails_is_a_sentence(
    scenes: SegmentationDataset, captioner: Callable[..., str], words: str
) -> None:
    with pytest.raises(D3S2Error) as raised:
        captions(scenes, captioner, [2])
    assert words.replace("00002", scenes.ids[2]) in str(raised.value)


def test_a_hooks_own_sentence_is_left_as_it_is() -> None:
    def hook() -> str:
        raise D3S2Error("Put the captioner's weights into a folder.")

    with pytest.raises(D3S2Error, match=r"^Put the captioner's weights into a folder\.$"):
        said("The captioner", hook)
