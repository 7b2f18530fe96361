"""Parameter groups and schedules, against the closed forms of MAE, LiVT, DeiT and LDAM-DRW."""

import math
from types import SimpleNamespace

from ltvit_lib import models, optim
from ltvit_lib.recipes import Recipe, Teacher

import pytest
import torch
from torch import nn

STEPS = 7  # an epoch


def rates(optimizer) -> dict[int, float]:
    """Learning rate by parameter identity."""
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def schedule(recipe: Recipe, steps: int = STEPS, scale: float | None = None):
    """(scheduler, function that gives the learning rate at a step) for one parameter."""
    group = {"params": [nn.Parameter(torch.ones(1))]} | ({} if scale is None else {"lr_scale": scale})
    optimizer = torch.optim.SGD([group], lr=recipe.learning_rate)
    scheduler = optim.create_schedule(optimizer, recipe, steps)

    def at(step: int) -> float:
        scheduler.step(step // steps)
        scheduler.step_update(step)
        return optimizer.param_groups[0]["lr"]

    return at


LIVT = Recipe(name="livt", epochs=100, batch_size=1024, base_lr=1e-3, lr_batch=256, warmup_epochs=10.0, min_lr=1e-6)
DEIT = Recipe(
    name="deit", epochs=1200, base_lr=5e-4, warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=False
)


# --- parameter groups ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_base():
    with torch.device("meta"):
        return models.create("vit_base_patch16_224", global_pool="avg", num_classes=1000)


def grouped(model: nn.Module, **changes) -> dict[str, SimpleNamespace]:
    """Rate scale and weight decay of every parameter, by name."""
    optimizer = optim.create_optimizer(model, Recipe(name="x", base_lr=1.0, weight_decay=0.05, **changes))
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: SimpleNamespace(scale=group.get("lr_scale", 1.0), decay=group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_layer_decay_of_vit_base_is_maes(vit_base):
    groups = grouped(vit_base, layer_decay=0.75)
    assert set(groups) == {name for name, _ in vit_base.named_parameters()}
    for name, group in groups.items():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else 13
        assert group.scale == pytest.approx(0.75 ** (13 - layer)), name
    assert groups["pos_embed"].scale == pytest.approx(0.023757264)
    assert groups["blocks.0.mlp.fc1.weight"].scale == pytest.approx(0.03167635)
    assert groups["fc_norm.weight"].scale == groups["head.weight"].scale == 1.0


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_no_weight_decay_on_vectors_tokens_and_positions(layer_decay):
    model = models.create("deit_w64d4_patch2_8_distilled", num_classes=10)
    for name, group in grouped(model, layer_decay=layer_decay).items():
        spared = model.get_parameter(name).ndim == 1 or name in ("pos_embed", "cls_token", "dist_token")
        assert group.decay == (0.0 if spared else 0.05), name


def test_adamw_takes_betas_and_rate_from_the_recipe(tiny_vit):
    optimizer = optim.create_optimizer(tiny_vit, Recipe(name="x", betas=(0.9, 0.95), base_lr=1e-3, lr_batch=64))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert set(rates(optimizer).values()) == {2e-3}  # batch 128


def test_a_teacher_decays_every_parameter_as_its_released_code():
    teacher = models.resnet_cifar(8)
    (group,) = optim.create_optimizer(teacher, Teacher(name="t")).param_groups
    assert len(group["params"]) == len(list(teacher.parameters()))
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 2e-4)


# --- schedules -------------------------------------------------------------------------------------------------


def mae_rate(epoch: float, peak: float, epochs: int, warmup: float, low: float) -> float:
    """adjust_learning_rate of MAE, as its paper's appendix describes it."""
    if epoch < warmup:
        return peak * epoch / warmup
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.0), (0.5, 2e-4), (5, 2e-3), (10, 4e-3), (25, 0.0037321177948669857), (50, 0.0023477095312450275),
     (75, 0.0007152461744317646)],
)  # fmt: skip
def test_balanced_fine_tuning_follows_livts_curve(epoch, expected):
    assert schedule(LIVT, steps=10)(round(epoch * 10)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [None, 0.75**5])
def test_cosine_is_maes_at_every_step_layer_scale_included(scale):
    at = schedule(LIVT, scale=scale)
    for step in range(0, 100 * STEPS, 13):
        expected = mae_rate(step / STEPS, 4e-3, 100, 10, 1e-6) * (scale or 1.0)
        assert at(step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_layer_scale_reaches_the_schedule_through_create_optimizer(tiny_vit):
    recipe = Recipe(name="x", layer_decay=0.5, epochs=10, warmup_epochs=2.0, base_lr=1e-2)
    optimizer = optim.create_optimizer(tiny_vit, recipe)
    optim.create_schedule(optimizer, recipe, STEPS).step_update(2 * STEPS)  # the peak
    found = rates(optimizer)
    assert found[id(tiny_vit.head.weight)] == pytest.approx(1e-2)
    assert found[id(tiny_vit.blocks[0].attn.qkv.weight)] == pytest.approx(1e-2 * 0.5**2)
    assert found[id(tiny_vit.pos_embed)] == pytest.approx(1e-2 * 0.5**3)


@pytest.mark.parametrize("epoch", [0, 1, 3, 5, 100, 600, 1100, 1199])
def test_deit_counts_the_cosine_from_epoch_0(epoch):
    if epoch < 5:
        expected = 1e-6 + (5e-4 - 1e-6) * epoch / 5
    else:
        expected = 1e-5 + (5e-4 - 1e-5) * 0.5 * (1 + math.cos(math.pi * epoch / 1200))
    assert schedule(DEIT)(epoch * STEPS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.02), (1, 0.04), (3, 0.08), (4, 0.1), (5, 0.1), (100, 0.1), (159, 0.1), (160, 1e-3), (179, 1e-3),
     (180, 1e-5), (199, 1e-5)],
)  # fmt: skip
def test_cifar_teachers_step_as_saddle_longtail(epoch, expected):
    at = schedule(Teacher(name="t"))
    assert at(epoch * STEPS) == pytest.approx(expected, rel=1e-9)
    assert at(epoch * STEPS + STEPS - 1) == pytest.approx(expected, rel=1e-9)  # the same within an epoch


@pytest.mark.parametrize("recipe", [LIVT, DEIT, Teacher(name="t")], ids=lambda r: r.name)
def test_a_resumed_schedule_equals_the_uninterrupted_one(recipe):
    whole = schedule(recipe)
    for step in range(30 * STEPS):
        last = whole(step)
    assert schedule(recipe)(30 * STEPS - 1) == last


def test_no_warm_up_starts_at_the_peak():
    assert schedule(Recipe(name="x", warmup_epochs=0.0))(0) == pytest.approx(1e-3)
    assert schedule(Teacher(name="t", warmup_epochs=0.0))(0) == pytest.approx(0.1)
