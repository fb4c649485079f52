"""mmsegmentation models as proxies: tiny ones with random weights, saved and loaded by the
tests.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_mmseg import CONFIG

from d3s2.core.errors import D3S2Error
from d3s2.guidance.losses import FeatureTargets, guidance_losses
from d3s2.models.mmseg_proxy import (
    MmsegProxy,
    build,
    find_config,
    load_mmseg_proxy,
    published_weights,
    read_config,
)
from d3s2.statistics.features import ClassMoments
from d3s2.training.registered import MODELS


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return build(str(config))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_the_proxy_says_what_mmsegmentation_says_of_the_same_picture(
    model, config, checkpoint, images
):
    from mmseg.structures import SegDataSample

    proxy = load_mmseg_proxy(str(config), checkpoint, 5)
    pixels = ((images + 1) * 127.5).flip(1)  # mmseg is given BGR in 0 .. 255
    samples = [
        SegDataSample(metainfo={"img_shape": (32, 32), "ori_shape": (32, 32)}) for _ in images
    ]
    batch = model.data_preprocessor({"inputs": list(pixels), "data_samples": samples}, False)
    theirs = torch.stack([answer.seg_logits.data for answer in model(**batch, mode="predict")])
    torch.testing.assert_close(proxy(images).logits, theirs, rtol=1e-4, atol=1e-5)
    for ours, feature in zip(proxy(images).features, model.backbone(batch["inputs"]), strict=True):
        torch.testing.assert_close(ours, feature, rtol=1e-4, atol=1e-5)
    assert proxy.layers == ("backbone[0]", "backbone[1]", "backbone[2]", "backbone[3]")


def test_a_preprocessor_without_channel_conversion_gets_bgr(model, images):
    proxy = MmsegProxy(model)
    swapped = proxy._normalised(images)
    model.data_preprocessor._channel_conversion = False
    plain = proxy._normalised(images.flip(1))
    model.data_preprocessor._channel_conversion = True
    torch.testing.assert_close(plain, swapped)


def test_layers_are_named_modules(config, checkpoint, images):
    proxy = load_mmseg_proxy(str(config), checkpoint, 5, ("backbone[2]", "decode_head.fusion_conv"))
    output = proxy(images)
    assert [tuple(f.shape) for f in output.features] == [(2, 8, 2, 2), (2, 8, 8, 8)]
    assert proxy.layers[1] == "decode_head.fusion_conv"
    for wrong, match in (
        ("backbone.nothing", "no layer 'backbone.nothing'.*backbone"),
        ("backbone[9]", "gives 4 outputs"),
        ("backbone.layers.0.0", "no feature maps|no layer"),
        ("", "no layer"),
    ):
        with pytest.raises(D3S2Error, match=match):
            load_mmseg_proxy(str(config), checkpoint, 5, (wrong, "backbone[0]"))(images)


def test_both_losses_and_their_gradients_go_through_it(config, checkpoint, images):
    proxy = load_mmseg_proxy(str(config), checkpoint, 5)
    coarse = torch.randint(0, 5, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    moments = ClassMoments(5, [f.shape[1] for f in proxy(images).features], proxy.layers)
    moments.update([f.detach() for f in proxy(images).features], labels)
    leaf = (0.9 * images).requires_grad_()
    for name, value in guidance_losses(proxy, labels, FeatureTargets.from_moments(moments))(
        leaf
    ).items():
        gradient = torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0]
        assert torch.isfinite(gradient).all() and gradient.flatten(1).norm(dim=1).min() > 0, name
    assert not any(weight.requires_grad for weight in proxy.parameters())


def test_mask_classification_scores_become_logits(tmp_path):
    """mmsegmentation's own Mask2Former on a small Swin: softmax of the logits = the scores, shares
    of their sum.
    """
    torch.manual_seed(0)
    from d3s2.training.job import TrainingJob
    from d3s2.training.mask2former import build_model

    net = build_model(
        TrainingJob("x", str(tmp_path), str(tmp_path), 4, str(tmp_path), size=(32, 32))
    )
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    proxy = MmsegProxy(net, ("backbone[0]",))
    logits = proxy(images.requires_grad_()).logits
    scores = net.encode_decode(
        proxy._normalised(images), [{"img_shape": (32, 32), "pad_shape": (32, 32)}]
    )
    torch.testing.assert_close(
        logits.softmax(1), scores / scores.sum(1, keepdim=True), rtol=1e-3, atol=1e-4
    )
    assert (
        torch.autograd.grad(logits.logsumexp(1).sum() - logits[:, 0].sum(), images)[0].abs().sum()
        > 0
    )


def test_a_published_checkpoint_is_read_and_a_trainers_own_is_refused(model, config, tmp_path):
    from mmengine.logging import HistoryBuffer

    published = {
        "meta": {"config": "...", "CLASSES": ["a"], "iter": 1},
        "state_dict": model.state_dict(),
    }
    torch.save(published, tmp_path / "published.pth")
    assert load_mmseg_proxy(str(config), tmp_path / "published.pth", 5).layers
    torch.save(
        published | {"message_hub": {"loss": HistoryBuffer([1.0, 0.5], [1, 1])}},
        tmp_path / "iter_1.pth",
    )
    with pytest.raises(D3S2Error, match=r"cannot be read safely.*trainer's log.*safetensors"):
        load_mmseg_proxy(str(config), tmp_path / "iter_1.pth", 5)


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_what_does_not_fit_or_cannot_be_trusted_is_a_sentence(
    model, config, checkpoint, tmp_path, capsys
):
    def expect(
        match: str, weights: Path = checkpoint, classes: int = 5, path: str = str(config)
    ) -> None:
        with pytest.raises(D3S2Error, match=match):
            load_mmseg_proxy(path, weights, classes)

    expect("knows 5 classes, the data has 7", classes=7)
    expect("no mmsegmentation config 'nothing.py'", path="nothing.py")
    expect("no checkpoint", tmp_path / "none.pth")
    state = model.state_dict()
    torch.save(
        {"state_dict": state | {"decode_head.conv_seg.weight": torch.zeros(9, 8, 1, 1)}},
        tmp_path / "other.pth",
    )
    expect(r"conv_seg.weight is \(9, 8, 1, 1\) there and \(5, 8, 1, 1\)", tmp_path / "other.pth")
    torch.save(
        {name: value for name, value in state.items() if "backbone" not in name},
        tmp_path / "half.pth",
    )
    expect("lacks backbone", tmp_path / "half.pth")
    torch.save({"state_dict": state, "extra": Payload()}, tmp_path / "evil.pth")
    expect("cannot be read safely", tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    expect("cannot be read safely", tmp_path / "plain.pth")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:200])
    expect("cannot be read safely", tmp_path / "cut.safetensors")
    torch.save({"state_dict": 3}, tmp_path / "odd.pth")
    expect("holds no state_dict", tmp_path / "odd.pth")
    assert "never be printed" not in capsys.readouterr().out


def test_shipped_configs_are_found_with_the_address_of_their_weights():
    name = "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512"
    assert find_config(name).is_file() and find_config(f"{name}.py") == find_config(name)
    assert published_weights(name).startswith("https://") and published_weights(name).endswith(
        ".pth"
    )
    assert read_config(name).model.decode_head.num_classes == 150
    lraspp = read_config("mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py")
    lraspp.model.decode_head.num_classes = 21  # UniDD's proxy, for VOC
    proxy = MmsegProxy(MODELS.build(lraspp.model).eval())
    logits = proxy(
        torch.zeros(1, 3, 448, 448)
    ).logits  # it pools over 49 cells of 8 pixels, so it needs images of 392
    assert logits.shape == (1, 21, 448, 448) and np.isfinite(logits.detach().numpy()).all()


def test_a_config_without_listing_has_no_address(config):
    assert published_weights(str(config)) == ""
