"""Settings: types and ranges, profiles, what a run folder remembers, and where things lie."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3s2.core import places
from d3s2.core.errors import D3S2Error
from d3s2.data.opening import OPENERS
from d3s2.models import control_colors
from d3s2.runs import config
from d3s2.runs.config import resolve
from d3s2.runs.parameters import DATA_FORMATS, FIELDS, PALETTES, Settings, parse
from d3s2.runs.profiles import PROFILES


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    return tmp_path


def test_every_profile_is_complete_and_passes_its_own_checks(own_home: Path) -> None:
    for name, values in PROFILES.items():
        assert set(values) == set(FIELDS) - {"profile"}
        settings = resolve({"profile": name})
        assert settings.run_dir == str(own_home / "runs" / name)
        assert asdict(settings) | {"run_dir": ""} == values | {"profile": name}


def test_choices_are_those_of_the_modules_that_define_them() -> None:
    assert set(DATA_FORMATS) == {"scenes", *OPENERS}
    assert control_colors.PALETTES == PALETTES


def test_every_field_says_what_it_is() -> None:
    for name, entry in FIELDS.items():
        assert entry.metadata["help"], name
        assert entry.type == entry.metadata["type"].__name__


def test_resolve_picks_declared_names_from_a_notebooks_globals() -> None:
    names = {
        "profile": "scenes",
        "seed": 3,
        "budget": 1,
        "steps": None,
        "pathlib": Path,
        "In": [],
        "_": True,
    }
    settings = resolve(names)
    assert (settings.seed, settings.budget, settings.steps) == (3, 1.0, PROFILES["scenes"]["steps"])
    assert isinstance(settings.budget, float)


def test_numpy_numbers_are_numbers() -> None:
    assert resolve({"seed": np.int64(4), "budget": np.float32(0.5)}).seed == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.0),
        ("seed", "1"),
        ("seed", True),
        ("seed", -1),
        ("budget", "1"),
        ("budget", 0),
        ("budget", -0.1),
        ("budget", float("nan")),
        ("budget", float("inf")),
        ("budget", [0.1]),
        ("device", "gpu"),
        ("device", 0),
        ("jacobian", "none"),
        ("window_end", 1.5),
        ("window_end", 0.05),
        ("data_format", "voc"),
        ("profile", "nothing"),
        ("profile", 1),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(name: str, value: object) -> None:
    with pytest.raises(D3S2Error) as caught:
        resolve({name: value})
    assert name in str(caught.value) and str(value) in str(caught.value)


@given(
    st.sampled_from(sorted(set(FIELDS) - {"profile", "run_dir"})),
    st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.booleans()
    | st.lists(st.integers(), max_size=2),
)
def test_any_value_is_either_taken_as_its_type_or_a_sentence(name: str, value: object) -> None:
    try:
        settings = resolve({name: value})
    except D3S2Error as error:
        assert name in str(error)
    else:
        assert type(getattr(settings, name)) is FIELDS[name].metadata["type"]


@given(st.integers(0, 1000), st.floats(0, 1))
def test_text_from_the_command_line_keeps_its_value(seed: int, beta: float) -> None:
    assert parse("seed", str(seed)) == seed
    assert parse("beta", repr(beta)) == beta


@pytest.mark.parametrize(
    ("name", "text"), [("seed", "x"), ("seed", "1.5"), ("seed", ""), ("budget", "1%")]
)
def test_text_of_the_wrong_type_is_named(name: str, text: str) -> None:
    with pytest.raises(D3S2Error, match=f"{name} is '{text}'"):
        parse(name, text)


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(D3S2Error, match="no parameter 'bugdet': did you mean 'budget'"):
        parse("bugdet", "1")
    with pytest.raises(D3S2Error, match=r"there are .*budget"):
        parse("qqqqqqqq", "1")


def test_what_is_none_comes_from_the_run_folder() -> None:
    first = resolve({"train_images": 100, "seed": 5})
    config.note(first, {"versions": {"python": "3.11"}})
    later = resolve({"seed": 6, "train_images": None})
    assert (later.train_images, later.seed) == (100, 6)
    assert resolve({}, remember=False).train_images == PROFILES["scenes"]["train_images"]
    assert resolve({"run_dir": "elsewhere"}).seed == 0


def test_a_note_keeps_facts_and_is_written_only_when_it_changes() -> None:
    path = config.note(resolve({"seed": 5}), {"versions": {"python": "3.11"}})
    stamp = path.stat().st_mtime_ns
    assert config.note(resolve({})).stat().st_mtime_ns == stamp
    noted = json.loads(config.note(resolve({"seed": 6})).read_text())
    assert noted["settings"]["seed"] == 6 and noted["versions"] == {"python": "3.11"}


def test_the_profile_comes_from_the_run_folder_too(own_home: Path) -> None:
    config.note(resolve({"profile": "smoke", "run_dir": str(own_home / "mine")}))
    later = resolve({"profile": None, "run_dir": str(own_home / "mine")})
    assert later.profile == "smoke" and later.train_images == PROFILES["smoke"]["train_images"]


def test_a_run_folder_of_another_profile_is_an_error(own_home: Path) -> None:
    config.note(resolve({"profile": "smoke"}), {})
    names = {"profile": "scenes", "run_dir": str(own_home / "runs" / "smoke")}
    with pytest.raises(D3S2Error, match="'smoke', not 'scenes'"):
        resolve(names)
    config.note(resolve(names, remember=False), {})
    assert resolve(names).profile == "scenes"


def test_a_note_with_bad_values_is_an_error(own_home: Path) -> None:
    path = config.note(resolve({}), {})
    noted = json.loads(path.read_text())
    noted["settings"] |= {"seed": "x", "a_parameter_of_long_ago": 1}
    path.write_text(json.dumps(noted))
    with pytest.raises(D3S2Error, match="seed is 'x'"):
        resolve({})
    assert resolve({"seed": 1}, remember=False).seed == 1


def test_paths_are_absolute_and_may_be_anything(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_home)
    settings = resolve({"run_dir": "Läufe und mehr", "data_root": "my data"})
    assert settings.run_dir == str(own_home / "Läufe und mehr")
    assert settings.data_root == str(own_home / "my data")


def test_home_is_the_variable_then_the_checkout(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.home() == own_home
    monkeypatch.delenv("D3S2_HOME")
    assert places.home() == Path(__file__).resolve().parents[2]


def test_weights_of_scenes_are_in_the_package_and_others_in_the_run(own_home: Path) -> None:
    assert resolve({}).weights_folder.parts[-3:] == ("d3s2", "weights", "scenes")
    camvid = resolve({"profile": "camvid"})
    assert camvid.weights_folder == own_home / "runs" / "camvid" / "weights"


def test_subset() -> None:
    assert resolve({"seed": 2}).subset("seed", "device") == {"seed": 2, "device": "auto"}
    assert isinstance(resolve({}), Settings)
