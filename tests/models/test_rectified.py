"""Cross-attention that keeps to the layout: what must hold of it whatever the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tiny_diffusion import ROOM, save_tiny

from d3s2.core.errors import D3S2Error
from d3s2.data.tensors import class_sets
from d3s2.guidance.sampler import Denoiser, Guidance, finish, initial_noise, predict, sample
from d3s2.models.generator import Timestep
from d3s2.models.prompts import BETWEEN, PREFIX
from d3s2.models.rectified import RectifiedAttention, layout_masks
from d3s2.models.stable_diffusion import DiffusionOptions, StableDiffusion, load_stable_diffusion

NAMES = ("sky", "road", "of road", "x")  # of one token, one, two, and one
COLORS = np.arange(12, dtype=np.uint8).reshape(4, 3)
TOKENS = 6


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> DiffusionOptions:
    model, control = save_tiny(tmp_path_factory.mktemp("tiny"))
    return DiffusionOptions(model, control, precision="float32", layout_control="attention")


@pytest.fixture(scope="module")
def tiny(options) -> StableDiffusion:
    return load_stable_diffusion(options, NAMES, COLORS)


@pytest.fixture(scope="module")
def layout() -> torch.Tensor:
    """Sky above, road below left, "of road" below right; two pixels are no class."""
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, 16:, :16] = 1
    labels[:, 16:, 16:] = 2
    labels[:, :8, :8] = 255
    return labels


def tokens_of(model: StableDiffusion, text: str) -> list[int]:
    return model.unet.prompts.tokenizer(text).input_ids


# ------------------------------------------------------------------------------------- the tokens
def test_every_token_is_owned_by_the_class_that_it_names(tiny, layout):
    prompts = tiny.unet.prompts
    classes = class_sets(layout, 4)
    named = prompts.named(classes[0], layout[0])
    assert prompts.texts(classes, layout) == ["a photo of sky, road, of road"]
    (owners,) = prompts.owners(classes, layout)
    ids = tokens_of(tiny, prompts.prompt(classes[0], layout[0]))
    words = prompts.tokenizer.convert_ids_to_tokens(ids)
    assert len(owners) == ROOM and (owners[len(ids) :] == -1).all()
    for c in named:
        own = [word for word, owner in zip(words, owners.tolist(), strict=False) if owner == c]
        assert "".join(own).replace("</w>", " ").split() == NAMES[c].split()
    free = [word for word, owner in zip(words, owners.tolist(), strict=False) if owner == -1]
    said = "".join(free[1:-1]).replace("</w>", " ").split()
    assert said == (PREFIX + BETWEEN.strip() * (len(named) - 1)).replace(",", " ,").split()
    assert len([c for c in owners.tolist() if c == 2]) == 2  # a name of several tokens


def test_negative_prompts_and_dropped_rows_own_nothing(tiny, layout):
    classes = torch.cat([class_sets(layout, 4), torch.full((1, 4), -1.0)])
    owners = tiny.unet.prompts.owners(classes, layout.expand(2, -1, -1))
    assert (owners[0] >= 0).any() and (owners[1] == -1).all()
    assert (tiny.unet.prompts.owners(torch.zeros(1, 4), None) == -1).all()


# -------------------------------------------------------------------------------------- the masks
def test_a_pixel_may_see_its_class_and_what_is_nobodys_and_no_more(layout):
    owners = torch.tensor([[-1, 0, 1, 2, 2, -1]])
    layout = layout.clone()
    layout[:, :8, :8] = 2  # in one coarse pixel with class 0: no class is between the two
    layout[:, 16:24, :16] = 255
    masks = layout_masks(layout, owners, (16, 8), 3)
    assert {pixels: mask.shape for pixels, mask in masks.items()} == {
        128: (1, 128, TOKENS),
        32: (1, 32, TOKENS),
        8: (1, 8, TOKENS),
    }
    for (height, width), mask in zip(((16, 8), (8, 4), (4, 2)), masks.values(), strict=True):
        seen = mask.reshape(height, width, TOKENS)
        for y in range(height):
            for x in range(width):
                c = layout[0, y * 32 // height, x * 32 // width]
                assert seen[y, x].tolist() == [True, *(o in (c, -1) for o in owners[0, 1:])]
    everything = layout_masks(torch.full_like(layout, -1), owners, (4, 4), 1)[16]
    assert everything.all()  # a layout that was dropped keeps nobody back


def looking_glass(heads: int = 1) -> Attention:
    """Attention whose values are the tokens' numbers, one-hot: its output is its weights."""
    torch.manual_seed(0)
    attention = Attention(8, cross_attention_dim=TOKENS, heads=heads, dim_head=TOKENS, bias=False)
    with torch.no_grad():
        attention.to_v.weight.copy_(torch.eye(TOKENS).repeat(heads, 1))
        attention.to_out[0] = torch.nn.Identity()
    return attention.requires_grad_(False)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_no_attention_leaves_its_region_and_rows_sum_to_one(layout, kind):
    owners = torch.tensor([[-1, 0, 1, 2, 2, -1]])
    attention = looking_glass().to(kind)
    attention.set_processor(RectifiedAttention())
    masks = layout_masks(layout, owners, (8, 8), 2)
    pixels = 20 * torch.randn(1, 64, 8, dtype=kind)  # far apart: the mask must win all the same
    weights = attention(pixels, torch.eye(TOKENS, dtype=kind)[None], layout_masks=masks)
    assert (weights[~masks[64]] == 0).all() and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1).float(), torch.ones(1, 64), rtol=1e-2, atol=1e-2)
    query = attention.to_q(pixels).double()
    key = attention.to_k(torch.eye(TOKENS, dtype=kind)).double()
    scores = (query @ key.T / TOKENS**0.5).masked_fill(~masks[64], -torch.inf)
    torch.testing.assert_close(weights.double(), scores.softmax(-1), rtol=0.03, atol=0.03)


def test_where_all_is_allowed_it_is_vanilla_attention_and_every_image_has_its_own_mask():
    pixels, text = torch.randn(2, 16, 8), torch.randn(2, TOKENS, TOKENS)
    plain, ours = looking_glass(2), looking_glass(2)
    plain.set_processor(AttnProcessor2_0())
    ours.set_processor(RectifiedAttention())
    expected = plain(pixels, text)
    everything = {16: torch.ones(2, 16, TOKENS, dtype=torch.bool)}
    torch.testing.assert_close(ours(pixels, text, layout_masks=everything), expected)
    assert torch.equal(ours(pixels, text), expected)
    second = {16: torch.ones(2, 16, TOKENS, dtype=torch.bool)}
    second[16][1, :, 3] = False
    found = ours(pixels, text, layout_masks=second)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() > 1e-3


# -------------------------------------------------------------------------------------- the model
def test_a_layout_of_one_class_is_the_model_without_a_layout(tiny):
    one = torch.ones(1, 32, 32, dtype=torch.long)
    z, classes = initial_noise([5], (4, 16, 16)), class_sets(one, 4)
    for t in (100, 800):
        found = tiny.unet(z, torch.tensor(t), one, classes)
        plain = tiny.unet(z, torch.tensor(t), None, classes)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_the_layout_decides_and_no_controlnet_is_asked_for(tiny, options, layout):
    assert len(options.sources()) == 1 and tiny.unet.controlnet is None
    z, classes = initial_noise([5], (4, 16, 16)), class_sets(layout, 4)
    found = tiny.unet(z, torch.tensor(500), layout, classes)
    turned = tiny.unet(z, torch.tensor(500), layout.flip(1), classes)
    assert (found - turned).abs().max() > 1e-3
    nowhere = replace(options, controlnet="/nowhere")
    again = load_stable_diffusion(nowhere, NAMES, COLORS)
    assert torch.equal(again.unet(z, torch.tensor(500), layout, classes), found)


def test_both_ways_of_a_layout_are_heard(options, tiny, layout):
    z, classes = initial_noise([5], (4, 16, 16)), class_sets(layout, 4)
    found = {}
    for way in ("controlnet", "attention", "both"):
        model = load_stable_diffusion(replace(options, layout_control=way), NAMES, COLORS)
        found[way] = model.unet(z, torch.tensor(500), layout, classes)
    assert len(replace(options, layout_control="both").sources()) == 2
    for one, other in (("controlnet", "attention"), ("controlnet", "both"), ("attention", "both")):
        assert (found[one] - found[other]).abs().max() > 1e-3, (one, other)
    with pytest.raises(D3S2Error, match="layout_control is 'words'"):
        replace(options, layout_control="words")


def redness(images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"red": images[:, 0].sin().flatten(1).mean(1)}


def test_gradients_go_through_it_checkpointed_or_not(options, layout):
    z, classes = initial_noise([5], (4, 16, 16)), class_sets(layout, 4)
    guidance, at = Guidance({"red": 1.0}, jacobian="full"), Timestep(0, 400, 0.5, 1.0)
    found = []
    for kept in (True, False):
        model = load_stable_diffusion(replace(options, checkpointing=kept), NAMES, COLORS)
        denoiser = Denoiser(model, layout, classes, cfg_scale=2.0)
        found.append(predict(denoiser, z, at, guidance, redness).gradients["red"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)
    assert found[0].abs().max() > 0


def test_a_finite_difference_agrees_with_the_gradient(options, layout):
    model = load_stable_diffusion(options, NAMES, COLORS)
    model.unet.double(), model.vae.double()
    z, classes = initial_noise([5], (4, 16, 16)).double(), class_sets(layout, 4)
    guidance, at = Guidance({"red": 1.0}, jacobian="full"), Timestep(0, 400, 0.5, 1.0)
    denoiser = Denoiser(model, layout, classes)
    gradient = predict(denoiser, z, at, guidance, redness).gradients["red"]
    step = 1e-5 * torch.randn(z.shape, dtype=torch.float64)
    ends = [predict(denoiser, z + k * step, at, losses=redness).losses["red"] for k in (1, -1)]
    slope = (ends[0] - ends[1]) / 2
    torch.testing.assert_close((gradient * step).sum()[None], slope, rtol=1e-4, atol=1e-12)


def test_a_whole_guided_run_in_half_precision_is_finite(options, layout):
    model = load_stable_diffusion(replace(options, precision="bfloat16"), NAMES, COLORS)
    guidance = Guidance({"red": 0.2}, jacobian="full", cfg_scale=3.0)
    noise, classes = initial_noise([5], (4, 16, 16)), class_sets(layout, 4)
    last = finish(sample(model, noise, layout, classes, 2, guidance, redness))
    assert torch.isfinite(last.image).all()
