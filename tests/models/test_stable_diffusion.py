"""The whole Stable Diffusion + ControlNet path on tiny random weights, saved and loaded in
diffusers' own format.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from tiny_diffusion import ROOM, save_tiny

from d3s2.core.errors import D3S2Error
from d3s2.data import scenes
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.scenes import scenes_classes
from d3s2.data.tensors import class_sets
from d3s2.guidance.losses import FeatureTargets, guidance_losses
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.sampler import (
    Denoiser,
    Guidance,
    NoiseStream,
    finish,
    initial_noise,
    predict,
    sample,
)
from d3s2.models.generator import Timestep
from d3s2.models.prompts import spoken
from d3s2.models.proxy import ProxySegmenter
from d3s2.models.stable_diffusion import (
    DiffusionOptions,
    StableDiffusion,
    load_stable_diffusion,
)
from d3s2.statistics.features import feature_statistics

NAMES = ("sky", "road", "person", "car")
COLORS = np.array(
    [[6, 230, 230], [140, 140, 140], [150, 5, 61], [140, 140, 140]], dtype=np.uint8
)  # road and car share one


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> DiffusionOptions:
    model, control = save_tiny(tmp_path_factory.mktemp("tiny"))
    return DiffusionOptions(model, control, precision="float32", negative_prompt="a ghost")


@pytest.fixture(scope="module")
def tiny(options) -> StableDiffusion:
    return load_stable_diffusion(options, NAMES, COLORS)


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    labels = torch.randint(0, 4, (3, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[0, :4] = 255
    return labels


@pytest.fixture(scope="module")
def start(tiny, masks) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return initial_noise([5, 6, 7], tiny.noise_shape(32, 32)), masks, class_sets(masks, 4)


def alpha_bar(model: StableDiffusion, t: int) -> float:
    return model.schedule.alpha_bars[t].item()


def redness(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"red": (images[:, 0] - 1).square().flatten(1).mean(1)}


def as_double(model: StableDiffusion) -> StableDiffusion:
    model.unet.double(), model.vae.double()
    model.unet.prompts._kept.clear()
    return model


def pipeline_images(model: StableDiffusion, start: tuple, steps: int) -> torch.Tensor:
    """What diffusers' own pipeline makes of these masks with guidance 3."""
    noise, layout, classes = start
    pipeline = StableDiffusionControlNetPipeline(
        vae=model.vae,
        unet=model.unet.unet,
        controlnet=model.unet.controlnet,
        scheduler=DDIMScheduler.from_config(model.scheduler.config),
        text_encoder=model.unet.prompts.encoder,
        tokenizer=model.unet.prompts.tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = [model.unet.prompts.prompt(classes[k], layout[k]) for k in range(3)]
    return pipeline(
        prompts,
        image=model.unet.control_image(layout),
        negative_prompt=["a ghost"] * 3,
        latents=noise,
        guidance_scale=3.0,
        num_inference_steps=steps,
        output_type="pt",
    ).images


def test_unguided_equals_diffusers_own_pipeline(tiny, start):
    ours = finish(sample(tiny, *start, 5, Guidance(cfg_scale=3.0))).image
    theirs = pipeline_images(tiny, start, 5)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=1e-3, atol=1e-4)
    plain = finish(sample(tiny, *start, 5)).image
    assert (plain - ours).abs().max() > 1e-2  # otherwise the comparison above would say little


SD_15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""Stable Diffusion 1.5's own scheduler_config.json."""


def test_with_stable_diffusions_own_scheduler_too(tiny, options, start, tmp_path):
    shutil.copytree(options.model, tmp_path / "model")
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_15))
    model = load_stable_diffusion(replace(options, model=str(tmp_path / "model")), NAMES, COLORS)
    steps = list(sample(model, *start, 5, Guidance(cfg_scale=3.0)))
    assert [step.t for step in steps] == [801, 601, 401, 201, 1]
    ours = (steps[-1].image / 2 + 0.5).clamp(0, 1)
    theirs = pipeline_images(model, start, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    other = finish(sample(tiny, *start, 5, Guidance(cfg_scale=3.0))).image
    assert (other - steps[-1].image).abs().max() > 1e-3  # the schedule is seen in the image


@pytest.mark.parametrize(
    "guidance", [Guidance({"red": 0.0}), Guidance({"red": 1.0}, window=(0.5, 0.5)), Guidance()]
)
def test_no_scale_or_no_window_is_bit_identical_to_unguided(tiny, start, guidance):
    plain = finish(sample(tiny, *start, steps=4)).x
    assert torch.equal(
        finish(sample(tiny, *start, steps=4, guidance=guidance, losses=redness)).x, plain
    )


def test_cfg_scale_1_is_the_conditional_prediction_and_0_the_free_one(tiny, start):
    noise, layout, classes = start
    t = torch.tensor(500)
    conditional, free = tiny.unet(noise, t, layout, classes), tiny.unet(noise, t, layout, None)
    a = alpha_bar(tiny, 500)
    for scale, v in ((1.0, conditional), (0.0, free), (3.0, free + 3 * (conditional - free))):
        denoiser = Denoiser(tiny, layout, classes, scale)
        eps = predict(denoiser, noise, Timestep(0, 500, a, 1.0)).eps
        torch.testing.assert_close(eps, a**0.5 * v + (1 - a) ** 0.5 * noise, rtol=1e-5, atol=1e-5)
    assert (conditional - free).abs().max() > 1e-3
    assert (
        tiny.unet(noise, t, None, classes) - conditional
    ).abs().max() > 1e-2  # the layout matters


def test_both_halves_of_classifier_free_guidance_are_one_batch(tiny, start):
    noise, layout, classes = start
    asked = []
    hook = tiny.unet.unet.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    for given in (layout, None):
        t = torch.tensor(500)
        conditioned = tiny.unet(noise, t, given, classes)
        free = tiny.unet(noise, t, given, None)
        asked.clear()
        v = Denoiser(tiny, given, classes, 3.0).v(noise, 500)
        assert asked == [6]
        expected = free + 3 * (conditioned - free)
        torch.testing.assert_close(v, expected, rtol=1e-4, atol=1e-4)
    assert Denoiser(tiny, layout, None, 3.0).v(noise, 500).shape == noise.shape
    asked.clear()
    assert torch.equal(Denoiser(tiny, layout, classes).v(noise, 500), conditioned) is False
    assert asked == [3]  # a scale of 1 asks for one half
    hook.remove()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_finished_image_is_decoded_in_float32_and_what_guides_is_not(
    options, tiny, start, precision
):
    half = load_stable_diffusion(replace(options, precision=precision), NAMES, COLORS)
    assert tiny.exact is None and half.exact.dtype == torch.float32 != half.vae.dtype
    z = 0.2 * start[0]
    exact = tiny.decode(z)
    assert torch.equal(tiny.render(z), exact) and torch.equal(half.render(z), exact)
    rounding = (half.decode(z) - exact).abs().max().item()
    assert (0.002 if precision == "bfloat16" else 0.0002) < rounding < 0.1
    step = finish(sample(half, *start, steps=2))
    assert torch.equal(step.image, tiny.decode(step.x))
    assert torch.equal(step.x0, half.decode(step.clean).clamp(-1, 1))
    for mode, slicing, tiling in (("whole", False, False), ("tiling", True, True)):
        other = load_stable_diffusion(
            replace(options, precision=precision, vae=mode), NAMES, COLORS
        )
        assert (other.exact.use_slicing, other.exact.use_tiling) == (slicing, tiling)


def test_a_v_prediction_model_is_asked_for_v(tmp_path, options, start):
    folder = tmp_path / "model"
    shutil.copytree(options.model, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"})
    )
    other, t = (
        load_stable_diffusion(replace(options, model=str(folder)), NAMES, COLORS),
        torch.tensor(300),
    )
    eps_model = load_stable_diffusion(options, NAMES, COLORS)
    raw, a = other.unet(start[0], t, *start[1:]), alpha_bar(other, 300)
    torch.testing.assert_close(
        eps_model.unet(start[0], t, *start[1:]), (raw - (1 - a) ** 0.5 * start[0]) / a**0.5
    )


def test_neither_order_nor_company_changes_an_image_but_for_rounding(tiny, start):
    """Kernels sum in another order for another batch size: the last bits may differ, and a PNG's
    byte seldom by one.
    """
    _, layout, classes = start
    guidance = Guidance({"red": 0.2}, window=(0, 1), eta=0.5)

    def images(seeds: list[int], rows: list[int]) -> torch.Tensor:
        stream = NoiseStream(seeds, tiny.noise_shape(32, 32))
        return finish(
            sample(tiny, stream(), layout[rows], classes[rows], 4, guidance, redness, fresh=stream)
        ).image

    together = images([5, 6, 7], [0, 1, 2])
    torch.testing.assert_close(
        images([7, 5, 6], [2, 0, 1]), together[[2, 0, 1]], rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(images([6], [1]), together[[1]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("jacobian", ["detach", "full"])
@pytest.mark.parametrize("sign", [1, -1])
def test_guidance_through_the_decoder_descends_and_the_wrong_sign_ascends(
    tiny, start, jacobian, sign
):
    plain = redness(finish(sample(tiny, *start, steps=5)).image)["red"]
    guidance = Guidance({"red": sign * 0.3}, window=(0, 1), jacobian=jacobian)
    steered = redness(
        finish(sample(tiny, *start, steps=5, guidance=guidance, losses=redness)).image
    )["red"]
    assert (sign * (steered - plain) < 0).all()


@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_gradient_is_that_of_finite_differences_in_float64(options, start, jacobian):
    model = as_double(load_stable_diffusion(options, NAMES, COLORS))
    x, layout, classes = start[0][:1].double(), start[1][:1], start[2][:1]
    a = alpha_bar(model, 400)
    fixed = model.unet(x, torch.tensor(400), layout, classes)
    eps = a**0.5 * fixed + (1 - a) ** 0.5 * x

    def smooth(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"red": images[:, 0].sin().flatten(1).mean(1)}

    def loss(z: torch.Tensor) -> torch.Tensor:
        noise = eps
        if jacobian == "full":
            v = model.unet(z, torch.tensor(400), layout, classes)
            noise = a**0.5 * v + (1 - a) ** 0.5 * z
        return smooth(model.decode((z - (1 - a) ** 0.5 * noise) / a**0.5).clamp(-1, 1))["red"].sum()

    guidance = Guidance({"red": 1.0}, jacobian=jacobian)
    at = Timestep(0, 400, a, 1.0)
    found = predict(Denoiser(model, layout, classes), x, at, guidance, smooth)
    gradient = found.gradients["red"]
    for seed in range(3):
        direction = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        slope = (loss(x + 1e-5 * direction) - loss(x - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("jacobian", ["detach", "full"])
def test_losses_and_gradients_are_float32_with_networks_in_half_precision(
    options, tiny, start, precision, jacobian
):
    half, seen = load_stable_diffusion(replace(options, precision=precision), NAMES, COLORS), []

    def faint(
        images: torch.Tensor,
    ) -> dict[str, torch.Tensor]:  # gradients as faint as those of a mean over 512 x 512 pixels
        seen.append(images.dtype)
        return {"red": 1e-4 * redness(images)["red"]}

    guidance, a = Guidance({"red": 1.0}, jacobian=jacobian), alpha_bar(tiny, 300)
    at = Timestep(0, 300, a, 1.0)
    found = [
        predict(Denoiser(model, *start[1:]), start[0], at, guidance, faint).gradients["red"]
        for model in (half, tiny)
    ]
    assert (
        next(half.vae.parameters()).dtype
        == next(half.unet.unet.parameters()).dtype
        == getattr(torch, precision)
    )
    assert set(seen) == {torch.float32} and found[0].dtype == torch.float32
    assert torch.cosine_similarity(found[0].flatten(1), found[1].flatten(1)).min() > 0.95
    step = finish(sample(half, *start, steps=2, guidance=Guidance({"red": 0.2}), losses=redness))
    assert step.x.dtype == step.image.dtype == torch.float32 and torch.isfinite(step.image).all()


def test_saving_memory_changes_no_gradient(options, tiny, start):
    plain = load_stable_diffusion(replace(options, checkpointing=False, vae="whole"), NAMES, COLORS)
    assert not plain.vae.decoder.gradient_checkpointing and tiny.vae.decoder.gradient_checkpointing
    guidance = Guidance({"red": 1.0}, jacobian="full")
    at = Timestep(0, 300, 0.5, 1.0)
    found = [
        predict(Denoiser(model, *start[1:]), start[0], at, guidance, redness).gradients["red"]
        for model in (tiny, plain)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)
    assert load_stable_diffusion(replace(options, vae="tiling"), NAMES, COLORS).vae.use_tiling


def test_layouts_stay_ids_and_are_painted_in_the_protocols_colours(tiny):
    labels = torch.tensor([[[0, 1], [3, 255]]])
    image = (255 * tiny.unet.control_image(labels)).round().byte()[0].permute(1, 2, 0)
    assert image.tolist() == [[[6, 230, 230], [140, 140, 140]], [[140, 140, 140], [0, 0, 0]]]
    assert tiny.unet.prompts.prompt(class_sets(torch.tensor([[[1]]]), 4)[0]) == "a photo of road"
    assert tiny.unet.prompts.prompt(class_sets(torch.tensor([[[3]]]), 4)[0]) == "a photo of car"


def test_prompts_name_the_largest_classes_first_and_only_whole_ones(tiny):
    labels = torch.tensor([[1, 1, 1, 0, 255, 255, 255, 255]])
    assert (
        tiny.unet.prompts.prompt(class_sets(labels[None], 4)[0], labels) == "a photo of road, sky"
    )
    crowd = torch.tensor([[2, 2, 2, 3, 3, 1]])
    said = tiny.unet.prompts.prompt(class_sets(crowd[None], 4)[0], crowd)
    assert said == "a photo of person"  # 'car' would need more than the room there is
    assert len(tiny.unet.prompts.tokenizer(said).input_ids) <= ROOM
    assert tiny.unet.prompts.prompt(torch.zeros(4)) == "a photo of a scene"
    names = ("wall-other-merged", "door-stuff", "background", "floor-wood")
    assert [spoken(name) for name in names] == ["wall", "door", "", "floor wood"]


def test_sizes_that_do_not_fit_are_a_sentence(tiny):
    assert tiny.noise_shape(32, 64) == (4, 16, 32)
    with pytest.raises(D3S2Error, match=r"30x32 do not fit .* multiples of 4.* 28x32"):
        tiny.noise_shape(30, 32)


# ---------------------------------------------------------------------------------- a distilled set
@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SegmentationDataset:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_split(folder, "train", 4)
    write_classes(folder / "classes.csv", scenes_classes())
    return open_dataset("folder", folder, "train")


def test_a_distilled_set_is_made_and_resumed(dataset, options, tmp_path):
    torch.manual_seed(0)
    generator = load_stable_diffusion(options, dataset.class_names, dataset.palette)
    proxy = ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    recipe = Recipe(
        steps=2,
        guidance=Guidance({"segmentation": 0.1, "feature": 0.1}, window=(0, 1), cfg_scale=2.0),
        group=2,
    )
    painter = Painter(generator, proxy, targets)
    made = synthesise(painter, dataset, [2, 0, 3], tmp_path, recipe)
    assert sorted(made.ids) == sorted(dataset.ids[i] for i in (2, 0, 3)) and made.read_image(
        0
    ).shape == (64, 64, 3)
    lost = [
        tmp_path / "records" / f"{dataset.ids[3]}.json",
        tmp_path / "train" / "images" / f"{dataset.ids[3]}.png",
    ]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    synthesise(painter, dataset, [2, 0, 3], tmp_path, recipe)
    assert [path.read_bytes() for path in lost] == before
    losses = guidance_losses(proxy, torch.zeros(1, 64, 64, dtype=torch.long), targets)
    assert losses(torch.zeros(1, 3, 64, 64))["segmentation"].dtype == torch.float32


def test_a_generator_for_other_classes_is_a_sentence(dataset, tiny, tmp_path):
    with pytest.raises(D3S2Error, match="knows 4 classes"):
        synthesise(Painter(tiny, None, None), dataset, [0], tmp_path, Recipe())


# ------------------------------------------------------------------------------------ what is amiss
def broken(options: DiffusionOptions, tmp_path: Path) -> tuple[DiffusionOptions, Path]:
    shutil.copytree(options.model, tmp_path / "model")
    return replace(options, model=str(tmp_path / "model")), tmp_path / "model"


def expect(options: DiffusionOptions, match: str) -> None:
    with pytest.raises(D3S2Error, match=match):
        load_stable_diffusion(options, NAMES, COLORS)


def test_a_missing_folder_and_a_missing_part_are_named_with_the_command(options, tmp_path):
    expect(
        replace(options, model=str(tmp_path / "nowhere")), "No model in .*nowhere: .*hf download"
    )
    copy, folder = broken(options, tmp_path)
    shutil.rmtree(folder / "vae")
    expect(copy, "vae lacks config.json: .* half downloaded.*hf download")


def test_what_is_not_in_the_cache_is_named_with_the_command(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    expect(
        replace(options, controlnet="nobody/nothing", controlnet_revision="abc"),
        "nobody/nothing is not on this machine .*hf download nobody/nothing --revision abc "
        "--include 'config.json'",
    )


def test_a_broken_off_file_a_pickle_and_a_damaged_one_are_sentences(options, tmp_path):
    copy, folder = broken(options, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-100], whole[:50], b"", whole + b"more"):
        weights.write_bytes(content)
        expect(copy, "is damaged, or only its beginning")
    weights.rename(weights.with_suffix(".bin"))
    expect(copy, "as a pickle.*safetensors only")
    weights.write_bytes(whole)
    (folder / "vae" / "config.json").write_text("{")
    expect(copy, "vae cannot be loaded as AutoencoderKL")


def test_a_controlnet_of_another_model_and_wrong_options_are_sentences(options, tmp_path):
    shutil.copytree(options.controlnet, tmp_path / "control")
    config = json.loads((tmp_path / "control" / "config.json").read_text())
    (tmp_path / "control" / "config.json").write_text(
        json.dumps(config | {"cross_attention_dim": 24})
    )
    expect(replace(options, controlnet=str(tmp_path / "control")), "ControlNet")
    with pytest.raises(D3S2Error, match="precision is 'half'"):
        DiffusionOptions("a", "b", precision="half")
    with pytest.raises(D3S2Error, match="vae is 'none'"):
        DiffusionOptions("a", "b", vae="none")
