"""The kinds of Stable Diffusion XL and 3, of tiny random weights, against diffusers' pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from tiny_diffusion import save_tiny_flow, save_tiny_xl

from d3s2.core.errors import D3S2Error
from d3s2.data.tensors import class_sets
from d3s2.guidance.sampler import Denoiser, Guidance, finish, initial_noise, predict, sample
from d3s2.models import flow, stable_diffusion_xl
from d3s2.models.custom import open_custom
from d3s2.models.generator import Timestep
from d3s2.models.stable_diffusion import DiffusionOptions, StableDiffusion

NAMES = ("sky", "road", "person", "car")
COLORS = np.array([[6, 230, 230], [140, 140, 140], [150, 5, 61], [0, 102, 200]], dtype=np.uint8)
SAVED = {"xl": save_tiny_xl, "flow": save_tiny_flow}
MODULES = {"xl": stable_diffusion_xl, "flow": flow}
T = {"xl": 500, "flow": 500.0}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, DiffusionOptions]:
    made = {kind: save(tmp_path_factory.mktemp(kind)) for kind, save in SAVED.items()}
    return {
        kind: DiffusionOptions(*places, precision="float32", negative_prompt="a ghost")
        for kind, places in made.items()
    }


@pytest.fixture(scope="module")
def models(options) -> dict[str, StableDiffusion]:
    return {kind: MODULES[kind].load(one, NAMES, COLORS) for kind, one in options.items()}


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    labels = torch.randint(0, 4, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    return labels.repeat_interleave(8, 1).repeat_interleave(8, 2)


def start(model: StableDiffusion, masks: torch.Tensor) -> tuple:
    return initial_noise([5, 6], model.noise_shape(32, 32)), masks, class_sets(masks, 4)


def parts(model: StableDiffusion) -> dict:
    prompts = model.unet.prompts
    return {
        "vae": model.vae,
        "controlnet": model.unet.controlnet,
        "text_encoder": prompts.encoders[0],
        "text_encoder_2": prompts.encoders[1],
        "tokenizer": prompts.tokenizers[0],
        "tokenizer_2": prompts.tokenizers[1],
    }


def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=1e-3, atol=1e-4)


def test_xl_equals_diffusers_own_pipeline(models, masks):
    model = models["xl"]
    noise, layout, classes = start(model, masks)
    pipeline = StableDiffusionXLControlNetPipeline(
        unet=model.unet.unet,
        scheduler=DDIMScheduler.from_config(model.scheduler.config),
        add_watermarker=False,
        **parts(model),
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        model.unet.prompts.texts(classes, layout),
        image=model.unet.control_image(layout),
        negative_prompt=["a ghost"] * 2,
        latents=noise,
        guidance_scale=3.0,
        controlnet_conditioning_scale=1.0,
        num_inference_steps=4,
        output_type="pt",
    ).images
    ours = finish(sample(model, noise, layout, classes, 4, Guidance(cfg_scale=3.0))).image
    compare(ours, theirs)
    plain = finish(sample(model, noise, layout, classes, 4)).image
    assert (plain - ours).abs().max() > 1e-2  # otherwise the comparison would say little


class Mode(StableDiffusion3ControlNetPipeline):
    """The pipeline, of which the control image's latents are the most likely ones too."""

    def prepare_image(self, image, **more):
        found = super().prepare_image(image, **more)
        drawn = self.vae.encode

        def encode(pixels):
            answer = drawn(pixels)
            answer.latent_dist.sample = answer.latent_dist.mode
            return answer

        self.vae.encode = encode
        return found


@pytest.mark.parametrize("zeros", [True, False])
def test_flow_equals_diffusers_own_pipeline(tmp_path, masks, zeros):
    places = save_tiny_flow(tmp_path, force_zeros_for_pooled_projection=zeros)
    options = DiffusionOptions(*places, precision="float32", negative_prompt="a ghost")
    model = flow.load(options, NAMES, COLORS)
    noise, layout, classes = start(model, masks)
    ours = finish(sample(model, noise, layout, classes, 4, Guidance(cfg_scale=3.0))).image
    plain = finish(sample(model, noise, layout, classes, 4)).image
    assert (plain - ours).abs().max() > 1e-3
    pipeline = Mode(
        transformer=model.unet.unet,
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(model.scheduler.config),
        text_encoder_3=None,
        tokenizer_3=None,
        **parts(model),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.tokenizer_max_length = model.unet.prompts.room
    theirs = pipeline(
        model.unet.prompts.texts(classes, layout),
        control_image=2 * model.unet.control_image(layout) - 1,  # tensors are taken as they are
        negative_prompt=["a ghost"] * 2,
        latents=noise,
        guidance_scale=3.0,
        controlnet_conditioning_scale=1.0,
        num_inference_steps=4,
        height=32,
        width=32,
        output_type="pt",
    ).images
    compare(ours, theirs)


@pytest.mark.parametrize("kind", SAVED)
def test_every_condition_is_heard_and_a_guided_run_descends(models, masks, kind):
    model = models[kind]
    noise, layout, classes = start(model, masks)
    t = torch.tensor(T[kind])
    said = model.unet(noise, t, layout, classes)
    for other in (
        model.unet(noise, t, layout.flip(2), classes),
        model.unet(noise, t, None, classes),
        model.unet(noise, t, layout, classes.flip(1)),
        model.unet(noise, t, layout, None),
        model.unet(noise, t + 200, layout, classes),
    ):
        assert (said - other).abs().max() > 1e-4

    def redness(images):
        return {"red": (images[:, 0] - 1).square().flatten(1).mean(1)}

    plain = finish(sample(model, noise, layout, classes, 4)).image
    guidance = Guidance({"red": 0.3}, window=(0.25, 1), jacobian="full")
    guided = finish(sample(model, noise, layout, classes, 4, guidance, redness)).image
    assert (redness(guided)["red"] < redness(plain)["red"]).all()


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_losses_and_gradients_in_float32(
    options, models, masks, kind, precision
):
    half = MODULES[kind].load(replace(options[kind], precision=precision), NAMES, COLORS)
    at, guidance = Timestep(0, T[kind], 0.5, 1.0), Guidance({"red": 1.0}, jacobian="full")

    def faint(images):
        return {"red": 1e-4 * (images[:, 0] - 1).square().flatten(1).mean(1)}

    noise, layout, classes = start(half, masks)
    found = [
        predict(Denoiser(model, layout, classes), noise, at, guidance, faint).gradients["red"]
        for model in (half, models[kind])
    ]
    assert found[0].dtype == torch.float32
    assert torch.cosine_similarity(found[0].flatten(1), found[1].flatten(1)).min() > 0.9
    assert torch.equal(half.render(0.2 * noise), models[kind].render(0.2 * noise))


def test_a_decoder_that_overflows_in_float16_is_used_in_float32(options):
    for precision, kept in (("bfloat16", torch.bfloat16), ("float16", torch.float32)):
        model = stable_diffusion_xl.load(replace(options["xl"], precision=precision), NAMES, COLORS)
        assert model.vae.config.force_upcast and model.vae.dtype == kept


@pytest.mark.parametrize("kind", SAVED)
def test_the_setting_opens_it_and_what_it_reads_is_known(options, kind):
    module = MODULES[kind].__name__
    model = open_custom(f"{module}:load", options[kind], NAMES, COLORS, "cpu")
    assert model.noise_shape(32, 64) == (4, 16, 32)
    with pytest.raises(D3S2Error, match=r"30x32 do not fit .* multiples of 4"):
        model.noise_shape(30, 32)
    read = {path.relative_to(Path(options[kind].model).parent) for path in files(kind, options)}
    names = {path.as_posix() for path in read}
    assert "model/text_encoder_2/model.safetensors" in names and "control/config.json" in names
    broken = replace(options[kind], controlnet="/nowhere")
    with pytest.raises(D3S2Error, match="No model in /nowhere"):
        MODULES[kind].load(broken, NAMES, COLORS)


def files(kind: str, options: dict[str, DiffusionOptions]) -> list[Path]:
    return MODULES[kind].files(options[kind])


def test_attention_keeps_to_the_layout_in_xl_and_is_refused_in_flow(options, masks):
    model = stable_diffusion_xl.load(
        replace(options["xl"], layout_control="attention"), NAMES, COLORS
    )
    noise, layout, classes = start(model, masks)
    t = torch.tensor(500)
    one = torch.ones_like(layout)
    told = class_sets(one, 4)
    torch.testing.assert_close(
        model.unet(noise, t, one, told), model.unet(noise, t, None, told), rtol=1e-4, atol=1e-5
    )
    turned = model.unet(noise, t, layout.flip(1), classes) - model.unet(noise, t, layout, classes)
    assert turned.abs().max() > 1e-4
    with pytest.raises(D3S2Error, match="layout_control is 'both'"):
        flow.load(replace(options["flow"], layout_control="both"), NAMES, COLORS)
