"""What mmsegmentation ships is read; what could run anything is refused before it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_mmseg import CONFIG

from d3s2.core.errors import D3S2Error
from d3s2.models.mmseg_proxy import build, read_config
from d3s2.models.openmmlab import CONFIGS
from d3s2.models.plain_config import require_plain
from d3s2.runs.profiles import PROFILES


def test_every_shipped_config_is_plain() -> None:
    paths = sorted(CONFIGS.rglob("*.py"))
    assert len(paths) > 700
    for path in paths:
        require_plain(path)


@pytest.mark.parametrize(
    "config", sorted({values["proxy_config"] for values in PROFILES.values()} - {""})
)
def test_the_profiles_configs_are_read(config: str) -> None:
    assert read_config(config).model.type == "EncoderDecoder"


TRAP = "open({mark!r}, 'w')"
CODE = [
    "{trap}",
    "x = {trap}",
    "import trap",
    "from trap import x",
    "def f(): pass\n",
    "x = [{trap} for i in range(1)]",
    "x = (lambda: 1)()",
    "x = dict(type={trap})",
    "x = f'{{{trap}}}'",
    "x = eval",
    "x = dict(a=exec)",
    "x = ().__class__",
    "x = dict().__class__",
    '__builtins__.update(len=eval)\nx = len("{trap}")',
    "len = dict\nx = len(a=1)",
    "x = dict\ny = x(a=1)",
    "x = [dict][0](a=1)",
    "x = dict(a=1)\ny = x.get('a')",
    "x = 10 ** 10 ** 10",
    "x = '{{{{ $HOME:{trap} }}}}'",
    "x = {{{{ $HOME:{trap} }}}}",
    "_base_ = ['other.py']",
    "_base_ = 'other.py'",
    "_base_ = [name for name in ['other.py']]",
    "_base_ = 'plain.py' + ''",
    "_base_ = 'mmpretrain::_base_/default_runtime.py'",
    "_base_ = 'plain.py'\n_base_ = 'other.py'",
    "x = _base_ = 'plain.py'",
    "if True:\n    x = 1",
    "while True: pass",
    "x = (yield)",
    "del x",
    "x: int = 1",
    "x = 1 if True else 2",
    "@dict\nclass A: pass",
    "x = 'unfinished",
    "\0",
]


@pytest.mark.parametrize("code", CODE)
def test_a_config_that_holds_more_than_values_is_refused_before_it_runs(
    tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "caught"
    trap = TRAP.format(mark=str(mark))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap.py").write_text(trap)
    (tmp_path / "plain.py").write_text("y = 1")
    (tmp_path / "other.py").write_text(f"import trap\n{trap}")
    path = tmp_path / "config.py"
    path.write_text(f"{CONFIG}\n{code.format(trap=trap)}\n")
    with pytest.raises(D3S2Error) as caught:
        read_config(str(path))
    assert str(tmp_path) in str(caught.value) and not mark.exists()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_another_kind_of_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """mmengine reads YAML with objects."""
    mark = tmp_path / "caught"
    path = tmp_path / f"config.{suffix}"
    path.write_text(f"model: !!python/object/apply:os.mknod [{mark}]\n")
    with pytest.raises(D3S2Error, match=r"config\."):
        read_config(str(path))
    path.write_text("{}")
    with pytest.raises(D3S2Error, match=r"config\."):
        read_config(str(path))
    assert not mark.exists()


def test_custom_imports_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trapped.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'w')")
    path = tmp_path / "config.py"
    path.write_text(f"{CONFIG}\ncustom_imports = dict(imports=['trapped'])\n")
    read_config(str(path))
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize(
    "kind", ["os.mknod", "mmengine.dump", "mmseg.apis.init_model", "mmdet.a.b"]
)
def test_a_type_is_a_part_of_a_network(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.py"
    part = f"dict(type={kind!r}, path={str(tmp_path / 'caught')!r})"
    path.write_text(f"{CONFIG}\nmodel.update(neck=[[{part}]])\n")
    with pytest.raises(D3S2Error, match=f"a part of type '{kind}'"):
        build(str(path))
    assert not (tmp_path / "caught").exists()


def test_what_a_config_may_hold(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("size = (4, 4)\nother = 3\n")
    (tmp_path / "config.py").write_text(
        "_base_ = './plain.py'\n"
        f"{CONFIG}\n"
        "keys = {f'stage{i}': [dict(a=-i * 2)] for i in range(3)}\n"
        "keys.update(dict(more={{_base_.other}}))\n"
        "last = _base_.size[0]\n"
    )
    found = read_config(str(tmp_path / "config.py"))
    assert found["keys"]["stage2"][0]["a"] == -4 and found["keys"]["more"] == 3
    assert found["size"] == (4, 4) and found["last"] == 4
