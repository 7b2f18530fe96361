"""The augmentation policies, against Pillow, timm and torchvision, and against numbers known by hand."""

import itertools
import math
from dataclasses import replace

from ltvit_lib import augment

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
import torch
import torchvision
import torchvision.transforms.functional as vision
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import to_pil_image as to_pil

GREY = (128 / 255,) * 3  # a whole grey level, so that Pillow's fill equals the mean
PLAIN = ((0.0,) * 3, (1.0,) * 3)  # normalisation that leaves pixels / 255


def pictures(n: int, size: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth noise, a disc and a bar: (n, channels, size, size) uint8 with smooth areas and edges."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator) * 300 - 20
    out = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    out += 4 * torch.randn(out.shape, generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for i, (row, column) in enumerate(torch.randint(size, (n, 2), generator=generator).tolist()):
        out[i, :, (y - row) ** 2 + (x - column) ** 2 < (size / 5) ** 2] -= 60
        out[i, 0, :, column // 2 : column // 2 + 2] += 50
    return out.clamp(0, 255).to(torch.uint8)


def levels(images: Tensor) -> Tensor:
    """Grey levels 0..255 of images normalised by PLAIN."""
    return images * 255


def asked(names: tuple[str, ...], signed: tuple[float, ...], n: int) -> dict[str, Tensor]:
    """What `draw` returns for n images that all drew these operations at these levels."""
    op = torch.tensor([[augment.OPS.index(name) for name in names]]).expand(n, -1)
    level = torch.tensor([signed]).expand(n, -1)
    return {"op": op, "level": level, "affine": augment._affine(op, level / 10)}


def by_timm(image: Tensor, name: str, signed: float, monkeypatch, resample=Image.Resampling.BILINEAR) -> Tensor:
    """The same operation by timm, with its sign fixed; float grey levels (C, H, W)."""
    monkeypatch.setattr(timm_augment, "_randomly_negate", lambda v: math.copysign(v, signed))
    to_argument = timm_augment.LEVEL_TO_ARG[name]
    arguments = to_argument(abs(signed), {}) if to_argument else ()
    fill = (128,) * 3 if len(image) == 3 else 128
    out = timm_augment.NAME_TO_OP[name](to_pil(image), *arguments, fillcolor=fill, resample=resample)
    return vision.pil_to_tensor(out).float()


def run(policy: augment.Policy, images: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    params = augment.draw(policy, len(images), torch.Generator().manual_seed(seed))
    return augment.apply(policy, images, params), params


# Operations against timm and Pillow


def test_the_fifteen_operations_are_timms():
    assert set(augment.RAND_AUGMENT) == set(timm_augment._RAND_INCREASING_TRANSFORMS)
    assert len(augment.RAND_AUGMENT) == 15


@pytest.mark.parametrize("name", sorted(set(augment.RAND_AUGMENT) - set(augment.GEOMETRIC)))
@pytest.mark.parametrize("channels", [3, 1])
def test_photometric_operations_are_pillows(name, channels, monkeypatch):
    """Equal, but for a truncation that falls on a whole number: at most one grey level, in 1 % of pixels."""
    images = torch.cat([pictures(6, channels=channels), pictures(2, channels=channels) // 3 + 60])
    images = torch.cat([images, torch.full_like(images[:1], 77)])  # a constant image has nothing to stretch
    policy = augment.Policy(32, (0.0,) * channels, (1.0,) * channels, flip=0.0, ops=(name,), num_ops=1)
    for signed in (-10.0, -9.3, -8.6, -4.2, 0.3, 4.2, 8.6, 9.3, 10.0):
        out = levels(augment.apply(policy, images, asked((name,), (signed,), len(images))))
        theirs = torch.stack([by_timm(image, name, signed, monkeypatch) for image in images])
        gap = (out - theirs).abs()
        assert gap.max() < 1.01 and (gap > 0.01).float().mean() < 0.01, (name, signed, gap.max())


@pytest.mark.parametrize("name", augment.GEOMETRIC)
def test_geometric_operations_are_pillows(name, monkeypatch):
    """Bilinear: equal once truncated as Pillow does, fill and borders included. Bicubic: another kernel."""
    images, modes = pictures(6), (("bilinear", 0.01), ("bicubic", 1.5))
    for signed, (mode, mean_gap) in itertools.product((-9.3, -3.0, 4.1, 8.8), modes):
        policy = augment.Policy(32, GREY, (1.0,) * 3, flip=0.0, ops=(name,), num_ops=1, interpolation=mode)
        out = levels(augment.apply(policy, images, asked((name,), (signed,), len(images)))) + 128
        resample = Image.Resampling[mode.upper()]
        theirs = torch.stack([by_timm(image, name, signed, monkeypatch, resample) for image in images])
        out = (out + 1e-3).floor() if mode == "bilinear" else out
        gap = (out - theirs).abs()
        assert gap.mean() < mean_gap, (name, signed, mode, gap.mean())
        assert mode == "bicubic" or gap.max() < 1.01, (name, signed, gap.max())


def test_autoaugment_is_torchvisions():
    """The 25 pairs, their probabilities and their magnitudes: pixel by pixel, but that it shifts by whole pixels."""
    theirs = torchvision.transforms.AutoAugment(torchvision.transforms.AutoAugmentPolicy.CIFAR10)
    space = theirs._augmentation_space(10, (32, 32))
    images, halves = pictures(3), itertools.chain(*augment.AUTO_AUGMENT)
    assert len(augment.AUTO_AUGMENT) == len(theirs.policies) == 25
    for (name, prob, magnitude), (other, other_prob, index) in zip(
        halves, itertools.chain(*theirs.policies), strict=True
    ):
        assert name.startswith(other) and prob == other_prob and magnitude == (index or 0)
        argument = float(space[other][0][magnitude]) if index is not None else 0.0
        if other.startswith("Translate"):
            shift = augment._affine(torch.tensor([[augment.OPS.index(name)]]), torch.tensor([[magnitude / 9]]))
            assert shift[0, 0, :, 2].max() * 16 == pytest.approx(argument, rel=0.01)  # .45 here, 150 / 331 there
            continue
        policy = augment.Policy(32, GREY, (1.0,) * 3, flip=0.0, ops=(name,), num_ops=1)
        out = levels(augment.apply(policy, images, asked((name,), (magnitude * 10 / 9,), 3))) + 128
        pillow = [_apply_op(to_pil(image), other, argument, Image.Resampling.BILINEAR, [128] * 3) for image in images]
        gap = (out - torch.stack([vision.pil_to_tensor(image) for image in pillow])).abs()
        assert (gap > 1.01).float().mean() < (0.01 if other == "Solarize" else 1e-9), (name, magnitude)  # 256 for 255


def test_hue_is_torchvisions():
    images = torch.cat([pictures(8), torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)])
    policy = augment.Policy(32, *PLAIN, flip=0.0, ops=("Hue",), num_ops=1)
    for signed in (-10.0, -3.3, 0.0, 6.1, 10.0):
        out = levels(augment.apply(policy, images, asked(("Hue",), (signed,), 9)))
        assert (out - vision.adjust_hue(images, signed / 100)).abs().max() < 1.01
    grey = augment.Policy(32, *PLAIN, flip=0.0, ops=("Grey",), num_ops=1)
    out = levels(augment.apply(grey, images, asked(("Grey",), (0.0,), 9)))
    theirs = torch.stack([vision.pil_to_tensor(to_pil(image).convert("L")).expand(3, -1, -1) for image in images])
    assert torch.allclose(out, theirs.float(), atol=1e-3)


def test_two_maps_compose_in_timms_order(monkeypatch):
    """One resampling instead of two: the same pixels are filled, and smooth images stay within 2 levels."""
    smooth = torch.nn.functional.interpolate(pictures(4, 8).float(), (64, 64), mode="bilinear").to(torch.uint8)
    for (first, a), (second, b) in [
        (("ShearX", 9.0), ("Rotate", 9.0)),
        (("Rotate", -6.0), ("TranslateYRel", 5.0)),
        (("TranslateXRel", 9.0), ("TranslateXRel", -9.0)),  # what left the crop does not come back
    ]:
        policy = augment.Policy(64, GREY, (1.0,) * 3, flip=0.0, ops=(first, second))
        out = levels(augment.apply(policy, smooth, asked((first, second), (a, b), 4))) + 128
        for mine, image in zip(out, smooth, strict=True):
            theirs = by_timm(image, first, a, monkeypatch).to(torch.uint8)
            theirs = by_timm(theirs, second, b, monkeypatch)
            gap = (mine - theirs).abs()
            assert gap.median() < 1 and (gap > 4).float().mean() < 0.04, (first, second)


def test_slots_are_applied_in_the_order_drawn(monkeypatch):
    images = pictures(3)
    policy = augment.Policy(32, *PLAIN, flip=0.0, ops=("Invert", "SolarizeAdd"))
    out = levels(augment.apply(policy, images, asked(("SolarizeAdd", "Invert"), (9.0, 9.0), 3)))
    theirs = [by_timm(by_timm(i, "SolarizeAdd", 9.0, monkeypatch).byte(), "Invert", 9.0, monkeypatch) for i in images]
    assert torch.allclose(out, torch.stack(theirs), atol=0.01)


def test_resized_crop_is_torchvisions():
    """The same window by torchvision: within rounding but at its rim, where we read beyond it."""
    images, (top, left, height, width) = pictures(4), (5, 9, 17, 13)
    policy = augment.Policy(32, *PLAIN, crop="resized", flip=0.0)
    box = torch.tensor([[height / 32, width / 32, (top + 0.5) / (33 - height), (left + 0.5) / (33 - width)]])
    out = levels(augment.apply(policy, images, {"box": box.expand(4, -1)}))
    for mine, image in zip(out, images, strict=True):
        theirs = vision.resized_crop(to_pil(image), top, left, height, width, [32, 32])
        gap = (mine - vision.pil_to_tensor(theirs)).abs()
        assert gap[:, 2:-2, 2:-2].max() < 1.1 and gap.mean() < 1.5


# timm's order


def photographs(size: int) -> Tensor:
    """Eight uint8 squares of scikit-learn's two photographs, (8, 3, size, size)."""
    whole = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images]).permute(0, 3, 1, 2)
    tiles = torch.cat([whole[:, :, 60:360, left : left + 300] for left in (0, 110, 220, 330)])
    return torch.stack([vision.pil_to_tensor(to_pil(tile).resize((size, size))) for tile in tiles])


def timm_pipeline(policy: augment.Policy, image: Tensor, drawn: dict[str, Tensor], monkeypatch) -> Tensor:
    """timm's steps by Pillow with what was drawn for one image; uint8 levels (C, size, size)."""
    image = image.flip(-1) if drawn["flip"] else image
    (top, left, height, width), size = drawn["window"].tolist(), policy.size
    image = vision.resized_crop(
        to_pil(image), top, left, height, width, [size] * 2, vision.InterpolationMode(policy.interpolation)
    )
    image = vision.pil_to_tensor(image)
    for op, level in zip(drawn["op"].tolist(), drawn["level"].tolist(), strict=True):
        if op >= 0:
            resample = Image.Resampling[policy.interpolation.upper()]
            image = by_timm(image, augment.OPS[op], level, monkeypatch, resample).to(torch.uint8)
    return image


@pytest.mark.parametrize("mode, tolerance", [("bilinear", 0.6), ("bicubic", 2.0)])
def test_the_drawn_order_is_timms_pipeline(mode, tolerance, monkeypatch):
    """Mean gap in grey levels over photographs, fast and drawn order; the latter differs by the bicubic kernel."""
    images = photographs(48).repeat(3, 1, 1, 1)
    policy = augment.strong(64, GREY, (1.0,) * 3, op_prob=1.0, erase=0.0, interpolation=mode, order="drawn")
    out, params = run(policy, images, seed=3)
    fast = augment.apply(replace(policy, order="fast"), images, params)
    drawn = params | {"window": augment._window(policy, images.shape, params)["box"]}
    each = [{key: value[i] for key, value in drawn.items()} for i in range(len(images))]
    theirs = [timm_pipeline(policy, image, d, monkeypatch) for image, d in zip(images, each, strict=True)]
    gap, fast_gap = ((levels(o) + 128 - torch.stack(theirs)).abs().flatten(1).mean(1) for o in (out, fast))
    assert gap.median() < tolerance / 2 and gap.mean() < tolerance, (gap.median(), gap.mean())
    assert gap.mean() < fast_gap.mean() / 2


# What is drawn


def test_operations_and_levels_are_drawn_as_timm_draws_them():
    n = 30_000
    params = augment.draw(augment.strong(32, *PLAIN), n, torch.Generator().manual_seed(1))
    op, level = params["op"], params["level"]
    applied = op >= 0
    assert (applied.float().mean(0) - 0.5).abs().max() < 0.012  # in either slot; 4 sd is .0116
    assert abs((op[:, 0] > op[:, 1]).float().mean() - (op[:, 0] < op[:, 1]).float().mean()) < 0.03
    counts = torch.bincount(op[applied], minlength=15).double()
    expected = counts.sum() / 15
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-square, 14 degrees of freedom, p = .001
    assert abs((level > 0).float().mean() - 0.5) < 0.01
    size = level.abs()
    assert size.max() == 10 and abs((size == 10).float().mean() - 0.0228) < 0.003  # P(N(9, .5) > 10)
    assert abs(size.mean() - 9) < 0.01 and abs(size.std() - 0.5) < 0.02
    both = applied.all(1)
    assert abs((op[both][:, 0] == op[both][:, 1]).float().mean() - 1 / 15) < 0.012  # with replacement


def test_autoaugments_halves_are_drawn_with_their_own_probability():
    n, codes = 50_000, [[augment.OPS.index(half[0]) for half in pair] for pair in augment.AUTO_AUGMENT]
    policy = augment.Policy(32, *PLAIN, auto=True)
    params = augment.draw(policy, n, torch.Generator().manual_seed(5))
    op, level = params["op"], params["level"]
    for slot in (0, 1):
        expected = torch.zeros(len(augment.OPS))
        for pair, code in zip(augment.AUTO_AUGMENT, codes, strict=True):
            expected[code[slot]] += pair[slot][1] / 25
        drawn = torch.bincount(op[:, slot][op[:, slot] >= 0], minlength=len(augment.OPS)) / n
        assert (drawn - expected).abs().max() < 4.5 * math.sqrt(expected.max() / n)
    possible = set(itertools.chain(*(itertools.product((a, -1), (b, -1)) for a, b in codes)))
    assert {tuple(row) for row in op.tolist()} <= possible  # never halves of two pairs
    assert abs((level > 0).float().mean() / (level != 0).float().mean() - 0.5) < 0.01


def test_the_keys_colours_are_simclrs():
    """Factors of .6 to 1.4 and a tenth of the circle, in any order, for 80 %; then 20 % grey."""
    n, policy = 20_000, augment.paco_key(32, *PLAIN)
    params = augment.draw(policy, n, torch.Generator().manual_seed(6))
    op, level = params["op"], params["level"]
    jittered, first = (op[:, :4] >= 0).all(1), augment.OPS.index("BrightnessIncreasing")
    assert torch.equal(jittered, (op[:, :4] >= 0).any(1)) and abs(jittered.float().mean() - 0.8) < 0.012
    assert abs((op[:, 4] == augment.OPS.index("Grey")).float().mean() - 0.2) < 0.012
    assert (op[jittered, :4].sort(1).values == op[jittered][0, :4].sort().values).all()  # each once
    for place in range(4):
        assert abs((op[jittered, place] == first).float().mean() - 0.25) < 0.015
    for name, most in (("ColorIncreasing", 0.4), ("Hue", 1.0)):
        drawn = level[op == augment.OPS.index(name)] / 10 * (1 if name == "Hue" else 0.9)
        assert abs(drawn.abs().max() - most) < 1e-3 and abs(drawn.mean()) < 0.02 * most
        assert abs(drawn.std() - most / math.sqrt(3)) < 0.02 * most


def test_three_augments_operations_are_pillows_and_torchvisions():
    images = pictures(8)
    policy = augment.Policy(32, *PLAIN, flip=0.0, ops=("Solarize128",), num_ops=1)
    out = levels(augment.apply(policy, images, asked(("Solarize128",), (7.0,), 8)))
    pillow = torch.stack([vision.pil_to_tensor(ImageOps.solarize(to_pil(image), 128)) for image in images])
    assert torch.allclose(out, pillow.float(), atol=1e-3)
    policy = augment.Policy(32, *PLAIN, flip=0.0, ops=("Blur",), num_ops=1)
    for level in (0.0, 2.0, 10.0):
        out = levels(augment.apply(policy, images, asked(("Blur",), (level,), 8)))
        theirs = vision.gaussian_blur(images, 13, 0.1 + 0.19 * level).float()
        assert (out - theirs)[:, :, 6:-6, 6:-6].abs().max() < 1.01  # they mirror the border


def test_one_of_three_then_a_jitter_of_three_tenths():
    n, policy = 20_000, augment.three(32, *PLAIN)
    params = augment.draw(policy, n, torch.Generator().manual_seed(6))
    op, level = params["op"], params["level"]
    for name in augment.THREE:
        assert abs((op[:, 0] == augment.OPS.index(name)).float().mean() - 1 / 3) < 0.015
    assert level[:, 0].min() >= 0 and abs(level[:, 0].mean() - 5) < 0.1
    names = {augment.OPS.index(name) for name in ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")}
    assert all(set(row) == names for row in op[:100, 1:].tolist())
    assert abs(level[:, 1:].abs().max() * 0.09 - 0.3) < 1e-3


def test_crops_have_torchvisions_scale_and_ratio():
    n, policy = 20_000, augment.Policy(32, *PLAIN, crop="resized")
    box = augment.draw(policy, n, torch.Generator().manual_seed(2))["box"]
    mine = augment._window(policy, (n, 3, 32, 32), {"box": box})["box"].double()
    crop, image = RandomResizedCropAndInterpolation(32), Image.new("RGB", (32, 32))
    theirs = torch.tensor([crop.get_params(image, crop.scale, crop.ratio) for _ in range(4_000)]).double()
    assert (mine[:, :2] >= 0).all() and (mine[:, :2] + mine[:, 2:] <= 32).all()
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / 1024,
        lambda b: (b[:, 3] / b[:, 2]).log(),
        lambda b: b[:, 0] / 32,
        lambda b: b[:, 1] / 32,
    ):
        a, b = statistic(mine), statistic(theirs)
        spread = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 5 * spread + 0.005  # we test the fit before rounding to pixels
        assert abs(a.std() / b.std() - 1) < 0.06
    box = augment.draw(augment.mgp(32, *PLAIN), n, torch.Generator().manual_seed(2))["box"]
    area = box[:, 0] * box[:, 1]
    assert area.min() >= 0.2 - 1e-6 and area.max() <= 1


def test_drawing_is_the_generators_and_leaves_the_global_state_alone():
    policy, before = augment.strong(32, *PLAIN), torch.get_rng_state()
    a, b, c = (augment.draw(policy, 64, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(not torch.equal(a[key], c[key]) for key in a)
    assert all(len(value) == 64 for value in a.values())
    assert not augment.draw(augment.Policy(8, *PLAIN, flip=0.0), 4, torch.Generator())


# What apply leaves alone, and what it must do exactly


@pytest.mark.parametrize("source, size, channels", [(32, 32, 3), (29, 23, 3), (8, 8, 1), (32, 40, 3)])
@pytest.mark.parametrize("make", ["strong", "weak", "three", "mgp", "geometric", "paco_query", "paco_key"])
def test_slices_give_the_same_bits(make, source, size, channels):
    images = pictures(37, source, channels)
    policy = getattr(augment, make)(size, (0.4,) * channels, (0.2,) * channels)
    whole, params = run(policy, images)
    for step in (1, 5, 16):
        parts = [
            augment.apply(policy, images[i : i + step], {k: v[i : i + step] for k, v in params.items()})
            for i in range(0, 37, step)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (37, channels, size, size) and whole.dtype == torch.float32 and whole.isfinite().all()


def test_apply_does_not_write_to_its_input():
    images = pictures(64)
    copy = images.clone()
    for make in (augment.strong, augment.weak):
        run(make(32, *PLAIN, flip=0.0), images)
        run(make(32, *PLAIN, flip=0.0, crop="none"), images)
    assert torch.equal(images, copy)


def test_nothing_asked_is_plain_normalisation():
    images, mean, std = pictures(40), (0.48, 0.45, 0.40), (0.22, 0.21, 0.23)
    plain = vision.normalize(images.float() / 255, mean, std)
    out, _ = run(augment.Policy(32, mean, std, flip=0.0), images)
    assert torch.allclose(out, plain, atol=1e-5)
    out, params = run(augment.geometric(32, mean, std), images)
    untouched = (params["op"] < 0).all(1)
    assert 4 <= untouched.sum() <= 18 and torch.allclose(out[untouched], plain[untouched], atol=1e-5)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(out[~untouched], plain[~untouched], strict=True))


def test_a_flip_is_exact():
    images = pictures(200)
    out, params = run(augment.Policy(32, *PLAIN), images)
    mirrored = torch.where(params["flip"][:, None, None, None], images.flip(-1), images)
    assert torch.allclose(levels(out), mirrored.float(), atol=1e-3)
    assert 70 <= params["flip"].sum() <= 130


def test_a_padded_crop_is_an_exact_shift_over_black():
    images = pictures(300)
    out, params = run(augment.weak(32, GREY, (0.5,) * 3, flip=0.0), images)
    padded = vision.normalize(vision.pad(images, [4]).float() / 255, GREY, (0.5,) * 3)
    shifts = (params["box"][:, 2:] * 9).long()
    for mine, whole, (top, left) in zip(out, padded, shifts.tolist(), strict=True):
        assert torch.allclose(mine, whole[:, top : top + 32, left : left + 32], atol=1e-5)
    counts = torch.bincount(shifts.flatten(), minlength=9)
    assert len(counts) == 9 and counts.min() > 35  # 66.7 expected of each shift


def test_padded_crops_with_geometric_operations_agree_with_the_exact_path():
    """A shear of level 0 forces sampling; the shift must be what copying gives."""
    images, box = pictures(8), torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    policy = augment.weak(32, *PLAIN, flip=0.0, ops=("ShearX",), num_ops=1)
    exact = augment.apply(policy, images, {"box": box})
    sampled = augment.apply(policy, images, {"box": box} | asked(("ShearX",), (0.0,), 8))
    assert torch.allclose(exact, sampled, atol=1e-4)


def test_resampling_upscales_without_a_shift():
    """A ramp stays a ramp, up to the .19 by which bicubic with a = -.75 bends one of 4 levels a pixel."""
    ramp = (4 * torch.arange(32) + 2).to(torch.uint8).expand(2, 3, 32, 32)
    for mode, tolerance in (("bilinear", 0.01), ("bicubic", 0.2)):
        out, _ = run(augment.Policy(64, *PLAIN, flip=0.0, interpolation=mode), ramp)
        expected = 2 * torch.arange(64) + 1.0
        assert torch.allclose(levels(out)[0, 0, 30, 4:-4], expected[4:-4], atol=tolerance)


def test_one_channel_works_and_colour_leaves_it():
    images = pictures(50, 28, channels=1)
    out, _ = run(augment.strong(32, (0.5,), (0.5,)), images)
    assert out.shape == (50, 1, 32, 32) and out.isfinite().all()
    policy = augment.Policy(28, (0.0,), (1.0,), flip=0.0, ops=("ColorIncreasing",), num_ops=1)
    same = levels(augment.apply(policy, images, asked(("ColorIncreasing",), (9.0,), 50)))
    assert torch.allclose(same, images.float(), atol=0.01)


def test_tiny_and_odd_images_work():
    for source, size, channels in itertools.product((1, 2, 7), (1, 5), (2, 5)):
        out, _ = run(augment.strong(size, (0.5,) * channels, (0.5,) * channels), pictures(32, source, channels))
        assert out.shape == (32, channels, size, size) and out.isfinite().all()
    out, _ = run(augment.strong(16, *PLAIN), pictures(4, 32)[:, :, :20])  # not square
    assert out.shape == (4, 3, 16, 16)


# Fast paths and their plain counterparts


@pytest.mark.parametrize("source, size", [(32, 224), (9, 36)])
def test_crops_enlarged_on_a_cpu_are_grid_samples(source, size):
    """Without maps but for rounding; with maps, which then sample linearly, .1 grey levels on average."""
    images, policy = pictures(24, source), augment.strong(size, *PLAIN, erase=0.0, flip=0.0)
    params = augment.draw(policy, 24, torch.Generator().manual_seed(1))
    params["op"] = params["op"].where(params["op"] < len(augment.GEOMETRIC), -1)
    plan = augment._plan(policy, images.shape, params)
    out = levels(augment.apply(policy, images, params))
    pixels, outside = augment._sample(images, size, params["affine"], plan["window"], "bicubic")
    gap = (out - pixels.clamp(0, 255).masked_fill(outside, 0)).abs()
    assert len(plan["rows0"]) < 24 and gap[plan["rows0"]].max() < 1e-3
    assert gap.mean() < 0.1 and gap.max() < 12


def test_crops_of_strong_at_the_sources_size_are_grid_samples():
    images, policy = pictures(24), augment.strong(32, *PLAIN, erase=0.0, flip=0.0, op_prob=0.0)
    params = augment.draw(policy, 24, torch.Generator().manual_seed(1))
    window = augment._window(policy, images.shape, params)["window"]
    pixels, _ = augment._sample(images, 32, None, window, "bicubic")
    assert torch.allclose(levels(augment.apply(policy, images, params)), pixels.clamp(0, 255), atol=1e-3)


def test_a_hash_is_the_same_in_whole_numbers():
    def mixed(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    values = [0, 1, 77, 2**31 - 1, 2**31, 2**32 - 1, 3_000_000_019]
    signed = torch.tensor([v - 2**32 if v >= 2**31 else v for v in values], dtype=torch.int32)
    assert [v % 2**32 for v in augment._hash(signed).tolist()] == [mixed(v) for v in values]


class Transfers(TorchDispatchMode):
    """Counts copies from the CPU to the meta device, which stands for a GPU: reading what it holds raises."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        self.count += copies and out.is_meta and any(not t.is_meta for t in tensors)
        return out


@pytest.mark.parametrize(
    "make, changes",
    [(make, {}) for make in ("strong", "weak", "three", "mgp", "geometric", "paco_query", "paco_key")]
    + [("strong", {"order": "drawn"}), ("strong", {"crop": "padded", "jitter": 1.0, "erase": 1.0})],
)
def test_the_device_is_never_asked_and_told_once(make, changes):
    images = pictures(8).to("meta")
    for values in (*PLAIN, (5.0, 3.0, 1.0)):
        augment._constant(values, images.device)  # these go there once for all steps
    augment._normal_table(images.device)
    policy = getattr(augment, make)(32, *PLAIN, **changes)
    params = augment.draw(policy, 8, torch.Generator().manual_seed(1))
    with Transfers() as transfers:
        out = augment.apply(policy, images, params)
    assert out.is_meta and out.shape == (8, 3, 32, 32) and out.dtype == torch.float32
    assert transfers.count == 1


@pytest.mark.parametrize("name", augment.PHOTOMETRIC)
def test_no_operation_asks_the_device(name):
    images, level = pictures(2).to("meta"), torch.ones(2, 1, 1, 1, device="meta")
    with Transfers() as transfers:
        assert augment.PHOTOMETRIC[name](images, level).shape == images.shape
    assert transfers.count == 0


def test_what_is_sent_arrives_unchanged():
    """In 32 bit words; `apply` itself sends nothing to a CPU."""
    policy = augment.strong(32, *PLAIN, erase=1.0)
    params = augment.draw(policy, 9, torch.Generator().manual_seed(2))
    plan = augment._plan(policy, (9, 3, 32, 32), params)
    back = augment._send(plan, torch.device("cpu"))
    assert back.keys() == plan.keys()
    assert all(torch.equal(plan[key], back[key]) and plan[key].dtype == back[key].dtype for key in plan)


# Erasing


def test_erased_boxes_have_timms_area_and_normal_noise():
    images = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    out, params = run(augment.Policy(32, *PLAIN, flip=0.0, erase=0.25), images)
    erased = out != 1  # the plain image is 1 everywhere
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.04
    top, left, height, width = params["erase"][hit].unbind(1)
    area = erased[hit].float().mean((1, 2, 3))
    assert torch.allclose(area, height * width / 1024, atol=1e-3)  # one rectangle, all of it
    assert 0.015 < area.min() and area.max() < 0.36 and abs(area.mean() - 0.175) < 0.015
    assert (height < 32).all() and (width < 32).all() and (top + height <= 32).all() and (left + width <= 32).all()
    noise = out[erased]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise.abs() > 1.96).float().mean() - 0.05) < 0.003
    assert abs((noise**4).mean() - 3) < 0.1


def test_noise_has_no_pattern():
    """Neighbours, channels and consecutive seeds are uncorrelated: 4 sd of a correlation of 15,000 is .03."""
    seed, position = torch.arange(100, 105, dtype=torch.int32), torch.arange(3 * 32 * 32, dtype=torch.int32)
    noise = augment._noise(seed[:, None], position).view(5, 3, 32, 32)
    for a, b in (
        (noise[..., 1:], noise[..., :-1]),
        (noise[..., 1:, :], noise[..., :-1, :]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[1:], noise[:-1]),
    ):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.035


def test_cutout_is_black_before_normalisation_and_cut_off_at_the_border():
    images, mean, std = torch.full((3000, 3, 32, 32), 255, dtype=torch.uint8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    out, params = run(augment.Policy(32, mean, std, flip=0.0, cutout=16), images)
    black = torch.isclose(out, -torch.tensor(mean)[:, None, None] / torch.tensor(std)[:, None, None])
    top, left, height, width = params["cutout"].unbind(1)
    assert torch.equal(black.sum((2, 3)), (height * width)[:, None].expand(-1, 3))
    assert 8 == height.min() and height.max() == 16 and (top + height <= 32).all() and (left + width <= 32).all()
    inside = (height == 16) & (width == 16)  # centres 8 to 24 of 0 to 31, both ways
    assert abs(inside.float().mean() - (17 / 32) ** 2) < 0.04
    assert abs(black.float().mean() - (14 / 32) ** 2) < 0.01  # a side keeps (2 x (8 + ... + 15) - 8 + ...) / 32 = 14


# Evaluation, policies, errors


def test_evaluation_is_pillows_resize_and_centre_crop():
    images = pictures(3, 48)
    out = levels(augment.evaluate(images, 28, *PLAIN, crop=0.875))
    for mine, image in zip(out, images, strict=True):
        theirs = to_pil(image).resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30))
        assert (mine - vision.pil_to_tensor(theirs)).abs().max() < 1.6
    same = levels(augment.evaluate(images, 48, *PLAIN))
    assert torch.allclose(same, images.float(), atol=1e-3)


@pytest.mark.parametrize("shape", [(41, 57), (57, 41), (33, 100), (64, 63)])
def test_evaluation_cuts_where_torchvision_does(shape):
    images = pictures(2, 100)[:, :, : shape[0], : shape[1]]
    out = levels(augment.evaluate(images, 16, *PLAIN, crop=0.8))
    for mine, image in zip(out, images, strict=True):
        theirs = vision.center_crop(vision.resize(to_pil(image), 20, vision.InterpolationMode.BICUBIC), 16)
        assert (mine - vision.pil_to_tensor(theirs)).abs().max() < 3  # a pixel beside it: over 50


def test_the_papers_policies():
    strong = augment.strong(224, *PLAIN, erase=0.0)
    assert (strong.crop, strong.scale, strong.erase, strong.interpolation) == ("resized", (0.08, 1.0), 0, "bicubic")
    assert (strong.magnitude, strong.magnitude_std, strong.num_ops, strong.op_prob) == (9, 0.5, 2, 0.5)
    assert augment.weak(32, *PLAIN).crop == "padded" and augment.weak(32, *PLAIN).pad == 4
    assert augment.mgp(224, *PLAIN).scale == (0.2, 1.0) and not augment.mgp(224, *PLAIN).ops
    assert augment.geometric(8, (0.3,), (0.3,)).flip == 0
    query, key = augment.paco_query(32, *PLAIN), augment.paco_key(32, *PLAIN)
    assert (query.crop, query.auto, query.cutout) == ("padded", True, 16)
    assert (query.ops, query.jitter, query.erase) == ((), 0, 0)
    assert (key.crop, key.scale, key.jitter, key.grey) == ("resized", (0.2, 1.0), 0.8, 0.2)
    assert (key.auto, key.cutout) == (False, 0)
    with pytest.raises(TypeError):
        augment.weak(32, *PLAIN, padding=2)


@pytest.mark.parametrize(
    "wrong, fix",
    [
        ({"size": 0}, "at least 1"),
        ({"std": (1.0, 1.0)}, "one entry per channel"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"crop": "centre"}, "known: none"),
        ({"scale": (0.5, 0.1)}, "low <= high"),
        ({"ratio": (0.0, 1.0)}, "low <= high"),
        ({"pad": -1}, "0 or more"),
        ({"ops": ("Rotate", "Smear")}, "no operation Smear; known: Rotate"),
        ({"num_ops": -1}, "0 or more"),
        ({"magnitude": 11}, "0..10"),
        ({"magnitude_std": math.inf}, "finite"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"erase": -0.1}, "probability"),
        ({"jitter": 2.0}, "jitter is 2.0"),
        ({"cutout": -16}, "0 or more pixels"),
        ({"order": "random"}, "no order 'random'; known: fast, drawn"),
    ],
)
def test_a_wrong_policy_names_the_fix(wrong, fix):
    with pytest.raises(ValueError, match=fix):
        augment.Policy(**({"size": 32, "mean": PLAIN[0], "std": PLAIN[1]} | wrong))


def test_wrong_images_and_params_name_the_fix():
    policy, images = augment.weak(32, *PLAIN), pictures(4)
    params = augment.draw(policy, 5, torch.Generator())
    with pytest.raises(ValueError, match="slice every tensor"):
        augment.apply(policy, images, params)
    with pytest.raises(ValueError, match="uint8"):
        augment.evaluate(images.float(), 32, *PLAIN)
    with pytest.raises(ValueError, match="1 channels"):
        augment.evaluate(images[:, :1], 32, *PLAIN)
    with pytest.raises(ValueError, match="fraction"):
        augment.evaluate(images, 32, *PLAIN, crop=1.2)
