"""The chapters' code with networks and tensors on another device than the data: on a machine with
one device nothing else would tell. `far_device` makes a second one.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import far_device
import numpy as np
import pytest
import torch
from far_device import FarTensor
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from short_run import VALUES
from small_scenes import small_scenes
from smoke_run import SmokeRun
from tiny_diffusion import save_tiny
from tiny_mmseg import CONFIG

from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import class_sets
from d3s2.guidance.losses import FeatureTargets, LossOptions, guidance_losses
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.sampler import Guidance, NoiseStream, finish, sample
from d3s2.models import pretraining
from d3s2.models.fitting import Schedule
from d3s2.models.generator import LayoutGenerator, LayoutUNet, noise_schedule
from d3s2.models.mmseg_proxy import build, load_mmseg_proxy
from d3s2.models.pretraining import train_generator, train_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.models.stable_diffusion import DiffusionOptions, load_stable_diffusion
from d3s2.statistics.features import ClassMoments, feature_statistics

FAR = far_device.NAME
GUIDED = Guidance({"segmentation": 0.1, "feature": 0.1}, window=(0, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 4)


def generator_on(device: str) -> LayoutGenerator:
    torch.manual_seed(0)
    unet = LayoutUNet(20, channels=(32, 32), layers=1).eval().requires_grad_(False)
    return LayoutGenerator(unet.to(device), noise_schedule())


def proxy_on(device: str) -> ProxySegmenter:
    torch.manual_seed(1)
    return ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False).to(device)


def moments_on(device: str, dataset: SegmentationDataset) -> ClassMoments:
    return feature_statistics(dataset, proxy_on(device), batch_size=3, progress=False)


# ------------------------------------------------------------------------ the device of the tests
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(["sum", "sort", "cumsum"])
)
def test_what_is_computed_there_is_what_is_computed_here(shape: list[int], name: str) -> None:
    here = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    there = here.detach().to(FAR).requires_grad_()
    for one in (here, there):
        found = getattr(one * 2, name)(0)
        (found[0] if name == "sort" else found).sum().backward()
    assert isinstance(there.grad, FarTensor) and there.device.type == FAR
    assert torch.equal(there.grad.cpu(), here.grad)


def test_tensors_of_two_devices_do_not_mix_there_and_numpy_takes_none() -> None:
    here = torch.ones(2, 3)
    there = here.to(FAR)
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: there.add_(here),
        lambda: torch.nn.functional.linear(there, here),
    ):
        with pytest.raises(RuntimeError, match="two devices"):
            mixed()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert np.array_equal(there.cpu().numpy(), here) and (there * torch.tensor(2.0)).sum() == 12
    assert there[here[:, 0].long() - 1].shape == (2, 3)
    assert torch.zeros(2, device=FAR).device == torch.arange(2, device=FAR).device == there.device


# ------------------------------------------------------------------------------------- the chapters
def test_statistics_are_the_same_numbers(dataset: SegmentationDataset) -> None:
    found, expected = (moments_on(device, dataset) for device in (FAR, "cpu"))
    for ours, theirs in zip(found.mean + found.m2, expected.mean + expected.m2, strict=True):
        assert not isinstance(ours, FarTensor) and torch.equal(ours, theirs)


@pytest.mark.processes
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=4, guidance=GUIDED),
        Recipe(steps=4, guidance=GUIDED, candidates=2, ignore_margin=0.5),
        Recipe(steps=4, guidance=GUIDED, losses=LossOptions(scope="set", renew=2)),
        Recipe(steps=4, guidance=Guidance(GUIDED.scales, jacobian="full", eta=1.0, recurrence=2)),
        Recipe(steps=4, guidance=Guidance(GUIDED.scales, mode="raw", clip_norm=0.1, cfg_scale=2.0)),
    ],
    ids=["default", "chosen", "set", "stochastic", "raw"],
)
def test_images_are_the_same_bytes(
    dataset: SegmentationDataset, recipe: Recipe, tmp_path: Path
) -> None:
    for device in (FAR, "cpu"):
        proxy = proxy_on(device)
        targets = FeatureTargets.from_moments(moments_on(device, dataset), device)
        painter = Painter(generator_on(device), proxy, targets)
        assert torch.device(painter.device).type == device
        synthesise(painter, dataset, [2, 0, 1], tmp_path / device, recipe)
    files = [path for path in (tmp_path / FAR).rglob("*") if path.is_file()]
    assert len(files) > 9
    for path in files:
        other = tmp_path / "cpu" / path.relative_to(tmp_path / FAR)
        assert path.read_bytes() == other.read_bytes(), path


@pytest.mark.processes
def test_stable_diffusion_and_an_mmsegmentation_proxy_paint_there(tmp_path: Path) -> None:
    model, control = save_tiny(tmp_path)
    (tmp_path / "proxy.py").write_text(CONFIG)
    torch.manual_seed(0)
    save_file(build(str(tmp_path / "proxy.py")).state_dict(), tmp_path / "proxy.safetensors")
    options = DiffusionOptions(model, control, precision="float32", negative_prompt="a ghost")
    colors = np.arange(15, dtype=np.uint8).reshape(5, 3)
    masks = torch.arange(5).repeat(13)[:64].reshape(1, 8, 8).repeat_interleave(4, 1)
    masks = masks.repeat_interleave(4, 2)
    images = {}
    for device in (FAR, "cpu"):
        generator = load_stable_diffusion(options, list("abcde"), colors, device)
        proxy = load_mmseg_proxy(
            str(tmp_path / "proxy.py"), tmp_path / "proxy.safetensors", 5, device=device
        )
        layout = masks.to(device)
        features = proxy(torch.zeros(1, 3, 32, 32, device=device)).features
        moments = ClassMoments(5, [layer.shape[1] for layer in features])
        moments.update(features, layout)
        losses = guidance_losses(proxy, layout, FeatureTargets.from_moments(moments, device))
        noise = NoiseStream([3], generator.noise_shape(32, 32))
        guided = Guidance(GUIDED.scales, window=(0, 1), jacobian="full", cfg_scale=3.0, eta=0.5)
        first = noise().to(device)
        classes = class_sets(layout, 5)
        steps = sample(generator, first, layout, classes, 2, guided, losses, fresh=noise)
        images[device] = finish(steps).image.cpu()
    assert images["cpu"].std() > 0.05  # attention is summed in another order there
    torch.testing.assert_close(images[FAR], images["cpu"], rtol=0, atol=1e-3)


@pytest.mark.processes
def test_generator_and_proxy_are_trained_there(
    dataset: SegmentationDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "_bf16_pays", lambda: False)  # there it changes nothing
    small = {"channels": (32, 32), "layers": 1}
    said: list[str] = []
    for train in (train_proxy, partial(train_generator, **small)):
        kept = {}
        for device in (FAR, "cpu"):
            schedule = Schedule(3, 4, 1e-3, 0, device=device)
            folder = tmp_path / f"{device}-{len(said)}"
            train(dataset, folder, schedule, report=said.append)
            kept[device] = load_file(next(folder.rglob("*.safetensors")))
        assert kept["cpu"] and kept["cpu"].keys() == kept[FAR].keys()
        for name, value in kept["cpu"].items():
            # the optimizer's steps are not fused there
            torch.testing.assert_close(kept[FAR][name], value, rtol=0, atol=2e-3)


# ----------------------------------------------------------------------------------- the notebooks
START = """def begin():
    import os
    from pathlib import Path

    import far_device
    from d3s2.core import machine

    machine.pick_device = lambda choice="auto": far_device.NAME
    folder = Path(os.environ["FAR_LOG"])
    file = folder / str(len(list(folder.iterdir())))

    def note(result=None):
        file.write_text(str(far_device.operations.total()))

    note()
    get_ipython().events.register("post_run_cell", note)


begin()
"""
"""What a kernel does first: the notebooks' names are its own, so that it keeps none. After every
cell it notes its operations, as a kernel that is slow to end is killed.
"""


@pytest.mark.notebooks
def test_notebooks_run_with_all_networks_there(tmp_path: Path) -> None:
    """Every cell of 00 to 03: what they measure, draw and paint."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-far.py").write_text(START)
    (tmp_path / "operations").mkdir()
    run = SmokeRun(tmp_path / "home").given(VALUES)
    run.command += ["--until", "03"]
    run.environment = run.environment | {
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
        "FAR_LOG": str(tmp_path / "operations"),
    }
    run.finish()
    there = [int((tmp_path / "operations" / str(n)).read_text()) for n in range(4)]
    assert len(there) == 4 and there[1] > 100 and there[3] > 10_000
    assert len(list(run.folder.glob("distilled/train/images/*.png"))) == VALUES["budget"]
