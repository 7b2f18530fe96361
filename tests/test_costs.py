"""Costs: counted operations against closed forms, and a page that is up to date."""

import dataclasses
import runpy
from pathlib import Path

from ltvit_lib import costs, data, models, recipes

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]


def per_image(name: str, **overrides) -> float:
    return costs.estimate(recipes.get(name, **overrides)).flops_per_image


def vit_forward(width: int, depth: int, tokens: int, patches: int, pixels: int, classes: int) -> float:
    """Operations of a ViT: 12 D^2 weights a block and token, two N x N products, embedding and classifier."""
    blocks = depth * (2 * 12 * width**2 * tokens + 2 * 2 * tokens**2 * width)
    return blocks + 2 * patches * pixels * width + 2 * width * classes


def test_vit_b_has_the_published_operations():
    """17.6 billion multiply-adds at 224 pixels with ImageNet's classifier (DeiT's and timm's tables)."""
    forward = vit_forward(768, 12, 197, 196, 3 * 16 * 16, 1000)
    assert forward / 2 == pytest.approx(17.6e9, rel=0.005)
    trained = per_image("paper_imagenet_lt_vit_b_livt")
    first = 2 * 196 * 768 * 768  # images need no gradient: the patch embedding's is that of its weights alone
    assert trained == pytest.approx(3 * forward - first, rel=1e-3)


def test_six_operations_a_parameter_and_token():
    """The rule of thumb leaves attention out: 4 N D a token and block, of 24 D^2 + 4 N D."""
    with torch.device("meta"):
        vit = models.create("vit_base_patch16_224")
    rule = 6 * sum(p.numel() for p in vit.blocks.parameters()) * 197
    attention = 4 * 197 / (24 * 768 + 4 * 197)
    assert per_image("paper_imagenet_lt_vit_b_livt") == pytest.approx(rule / (1 - attention), rel=0.03)


def test_masking_saves_the_hidden_patches():
    """MAE: 50 of 197 tokens through the encoder, all through a decoder of 8 blocks."""
    encoder = vit_forward(768, 12, 50, 196, 768, 0)
    decoder = vit_forward(512, 8, 197, 0, 0, 0) + 2 * 50 * 768 * 512 + 2 * 197 * 512 * 768
    first = 2 * 196 * 768 * 768
    assert per_image("paper_imagenet_lt_mgp_b") == pytest.approx(3 * (encoder + decoder) - first, rel=1e-3)
    assert per_image("paper_imagenet_lt_mgp_b", mask_ratio=0.5) > per_image("paper_imagenet_lt_mgp_b")


def test_a_frozen_backbone_needs_no_backward_pass():
    assert per_image("paper_c10_vit_b_crt") == pytest.approx(vit_forward(768, 12, 197, 196, 768, 10), rel=1e-3)


def test_grouped_convolutions_cost_their_groups_backwards_too():
    """Each gradient of a convolution costs what its forward pass does, and a RegNetY is little else."""
    with torch.device("meta"):
        net, images = models.create("regnety_160", num_classes=10), torch.empty(2, 3, 224, 224)
    with FlopCounterMode(display=False) as forward:
        net(images)
    first = 2 * 2 * 112 * 112 * 32 * 27  # images need no gradient
    whole = 3 * forward.get_total_flops() - first
    assert per_image("paper_c10_teacher_regnety") == pytest.approx(whole / 2, rel=0.01)


def test_sam_takes_two_passes():
    assert per_image("paper_c10_teacher_ldam_drw_sam") == 2 * per_image("paper_c10_teacher_ldam_drw")
    keys = 2 * per_image("paper_c10_teacher_paco") - per_image("paper_c10_teacher_paco_sam")
    assert 0 < keys < per_image("paper_c10_teacher_paco") / 3  # made once a step; a forward pass is a third of two


def test_a_student_pays_for_its_teachers_answers():
    """ResNet-32 has 69 million multiply-adds at 32 pixels; ResNet-50 4.1 billion at 224."""
    student = 3 * vit_forward(768, 12, 198, 196, 768, 2 * 10) - 2 * 196 * 768 * 768
    assert per_image("paper_c10_deit_lt_b") - student == pytest.approx(2 * 69e6, rel=0.05)
    student = 3 * vit_forward(768, 12, 198, 196, 768, 2 * 1000) - 2 * 196 * 768 * 768
    assert per_image("paper_imagenet_lt_deit_lt_b") - student == pytest.approx(2 * 4.1e9, rel=0.02)


def test_a_run_is_its_whole_batches():
    """DeiT-LT on CIFAR-10-LT: 12 steps of 1,024 images an epoch, 1,200 epochs; about an hour on one H100."""
    cost = costs.estimate(recipes.get("paper_c10_deit_lt_b"))
    assert cost.flops == pytest.approx(cost.flops_per_image * 12 * 1024 * 1200)
    assert cost.hours == pytest.approx(cost.flops / (0.45 * costs.H100) / 3600)
    assert 1 < cost.hours < 1.5


@pytest.mark.parametrize("name", ["digits_vit_ce", "digits_mgp_balanced"])
def test_images_are_those_that_load_gives(name):
    recipe = recipes.get(name)
    rho = None if recipe.per_class else recipe.rho
    images = len(data.load("digits", rho, 0, recipe.per_class).train)
    cost = costs.estimate(recipe)
    steps = images // recipe.batch_size
    assert cost.flops == pytest.approx(cost.flops_per_image * steps * recipe.batch_size * recipe.epochs)


def test_memory_grows_with_the_micro_batch_and_disk_does_not():
    small, large = (costs.estimate(recipes.get("paper_c10_deit_lt_b", micro_batch=m)) for m in (64, 128))
    rest = 2 * small.memory_gib - large.memory_gib  # what no image adds to
    parameters = 86e6 * 4 * 4 / costs.GIB  # weights, gradients and two averages, in four bytes
    assert rest == pytest.approx(parameters, rel=0.02)
    assert small.disk_gib == large.disk_gib
    assert small.disk_gib == pytest.approx(2 * 3 / 4 * parameters, rel=0.02)  # two checkpoints without gradients
    single = dataclasses.replace(recipes.get("paper_c10_deit_lt_b"), precision="fp32", micro_batch=64)
    assert costs.estimate(single).memory_gib - rest == pytest.approx(2 * (small.memory_gib - rest))


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA GeForce RTX 3090", 71), ("NVIDIA L4", 121), ("NVIDIA L40S", 362),
    ],
)  # fmt: skip
def test_peaks_by_name(device, teraflops):
    assert costs.peak_flops(device) == teraflops * 1e12


@pytest.mark.parametrize("device", ["cpu", "Quadro P400", "NVIDIA A1000", "Apple M2", ""])
def test_an_unknown_device_has_no_peak(device):
    assert costs.peak_flops(device) is None


def test_a_student_needs_a_teachers_recipe():
    with pytest.raises(ValueError, match="no recipe"):
        costs.estimate(dataclasses.replace(recipes.get("digits_deit_lt"), teacher=""))


def test_the_page_of_recipes_is_up_to_date():
    script = runpy.run_path(str(ROOT / "workflow" / "recipes_table.py"))
    rows = [r for r in script["PAGE"].read_text().splitlines() if r.startswith("| `")]
    every = [recipes.get(name) for name in recipes.names()]
    assert len(rows) == len(every), "run `make recipes`"
    for row, recipe in zip(rows, every):
        assert row.startswith(script["described"](recipe)), "run `make recipes`"
    for row, recipe in [*zip(rows, every)][::15]:  # counting operations takes its time
        assert row.endswith(script["priced"](recipe)), "run `make recipes`"
