"""Recipes: every one is whole and documented, and what could only fail later is refused in one sentence."""

import dataclasses
import inspect
import re

from ltvit_lib import large, losses, published, recipes

import pytest
import torch

KINDS = (
    recipes.Recipe, recipes.Pretrain, recipes.Finetune, recipes.Teacher, recipes.Contrast, recipes.Distil,
)  # fmt: skip
REQUIRED = {"nt_bce": {"lam": 5.0}, "focal": {"gamma": 2.0}}
SOFT = ("cross_entropy", "balanced_ce", "bce", "balanced_bce", "nt_bce")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_whole(name):
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipe.data in ("digits", "cifar10", "cifar100", *large.PUBLISHED), "only what data.load knows"
    if recipe.data in large.PUBLISHED:
        assert (recipe.rho, recipe.per_class) == (None, None), "as published"
    if getattr(recipe, "init", None):
        stage = recipes.Pretrain if recipe.trains == "all" else recipes.Finetune
        assert type(recipes.get(recipe.init)) is stage
    if isinstance(recipe, recipes.Distil):
        teacher = recipes.get(recipe.teacher)
        assert isinstance(teacher, recipes.Finetune)
        assert (teacher.data, teacher.rho, teacher.data_seed) == (recipe.data, recipe.rho, recipe.data_seed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_comment(kind):
    lines = inspect.getsource(kind).splitlines()
    own = [f.name for f in dataclasses.fields(kind) if f.name in kind.__annotations__]
    for name in own:
        line = next(line for line in lines if line.startswith(f"    {name}: "))
        assert re.search(r"  # \S+", line), f"{kind.__name__}.{name} does not say what it is"


def test_the_rows_of_deit_lts_cifar_tables_are_recipes():
    """Every own number of Tables 2, 5 and 6, by the recipe that should reach it."""
    reached = {recipes.get(name).reaches.split(" %")[0] for name in recipes.names() if name.startswith("paper_")}
    two, five, six = (published.table("DeiT-LT", n) for n in ("2", "5", "6"))
    own = ["L-D-SAM teacher", "PaCo+SAM teacher", "ViT", "ViT (cRT)", "DeiT", "DeiT-III"]
    own += ["DeiT-LT (L-D-SAM)", "DeiT-LT (PaCo+SAM)"]
    wanted = [*two.loc[own].stack(), *five.iloc[1:].stack(), *six["all"]]
    assert len(wanted) == 32 + 6 + 6
    assert {f"{value:g}" for value in wanted} <= reached


def test_what_a_recipe_needs_comes_in_an_order_to_run():
    assert recipes.needs("digits_vit_ce") == ()
    assert recipes.needs("digits_mgp_crt") == ("digits_mgp", "digits_mgp_ce")
    assert set(recipes.needs("digits_deit_lt_mgp")) == {"digits_mgp", "digits_teacher_ldam_drw_sam"}
    for name in recipes.names():
        before = []
        for needed in recipes.needs(name):
            assert set(recipes.needs(needed)) <= set(before), f"{name}: {needed} comes too early"
            before.append(needed)
        assert name not in before
    with pytest.raises(ValueError, match="did you mean"):
        recipes.needs("digits_vit_cee")


def test_learning_rate_follows_the_effective_batch():
    recipe = recipes.get("paper_c10_deit_lt_b", base_lr=5e-4, lr_batch=512)
    assert recipe.learning_rate == pytest.approx(1e-3)
    assert dataclasses.replace(recipe, micro_batch=32).learning_rate == recipe.learning_rate
    assert dataclasses.replace(recipe, lr_batch=None).learning_rate == recipe.base_lr


def test_lists_and_whole_numbers_become_what_the_field_holds():
    recipe = recipes.get("digits_vit_ce", betas=[0.8, 0.9], rho=10)
    assert recipe.betas == (0.8, 0.9)
    assert recipe.rho == 10.0
    assert isinstance(recipe.rho, float)


def test_shortened_scales_the_whole_schedule():
    recipe = recipes.shortened("digits_deit_lt", 0.1, rho=10)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.drw_epoch, recipe.rho) == (30, 1.0, 27, 10.0)
    assert recipes.shortened("digits_deit_lt", 1.0) == recipes.get("digits_deit_lt")
    assert recipes.shortened("digits_teacher_ldam_drw_sam", 0.001).epochs == 1
    large = [recipes.shortened("paper_imagenet_lt_teacher_ldam_drw_sam", length) for length in (1, 1 / 3, 0.001)]
    assert [(r.epochs, r.drw_epoch, r.sam_epochs) for r in large] == [
        (90, 60, (5, 60)),
        (30, 20, (2, 20)),
        (1, 0, (0, 0)),
    ]
    with pytest.raises(ValueError, match="length must be positive"):
        recipes.shortened("digits_vit_ce", 0)


def test_images_of_your_own_come_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("birds", "./birds/", str(tmp_path / "birds")):
        recipe = recipes.get("laptop_vit_ce", data=path)
        assert (recipe.data, recipe.rho) == (str(tmp_path / "birds"), None), "one folder, one run"
    assert recipes.get("laptop_vit_ce", data="birds", rho=50).rho == 50
    assert recipes.get("laptop_vit_ce", data="cifar100").rho == 100


def refusal(name="digits_vit_ce", **overrides) -> str:
    with pytest.raises(ValueError) as caught:
        recipes.get(name, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_slip_gets_a_suggestion():
    assert "did you mean 'digits_vit_ce'" in refusal("digits_vit_cee")
    assert "did you mean 'epochs'" in refusal(epoch=3)
    assert "did you mean 'focal'" in refusal(loss="focl")
    assert "did you mean 'strong'" in refusal(policy="stron")
    assert "did you mean 'gamma'" in refusal(loss="focal", loss_options={"gama": 2.0})


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("digits_vit_ce", dict(epochs="3"), "epochs must be int"),
        ("digits_vit_ce", dict(epochs=True), "epochs must be int"),
        ("digits_vit_ce", dict(epochs=2.5), "epochs must be int"),
        ("digits_vit_ce", dict(betas=[0.9]), "betas must be a list of 2 numbers"),
        ("digits_vit_ce", dict(rho="100"), "rho must be float"),
        ("digits_vit_ce", dict(rho=0.5), "rho must be at least 1"),
        ("digits_vit_ce", dict(rho=float("nan")), "rho must be at least 1"),
        ("digits_vit_ce", dict(per_class=0), "per_class must be at least 1"),
        ("digits_vit_ce", dict(base_lr=0.0), "base_lr must be positive"),
        ("digits_vit_ce", dict(base_lr=float("nan")), "base_lr must be positive"),
        ("digits_vit_ce", dict(epochs=1), "warmup_epochs .* shorter than epochs"),
        ("digits_vit_ce", dict(micro_batch=48), "micro_batch .* divide batch_size"),
        ("digits_vit_ce", dict(micro_batch=0), "micro_batch must be at least 1"),
        ("digits_vit_ce", dict(batch_size=63, mixup=0.8), "must be even"),
        ("digits_vit_ce", dict(micro_batch=1, cutmix=1.0), "must be even"),
        ("digits_vit_ce", dict(smoothing=1.0), "smoothing"),
        ("digits_vit_ce", dict(image_size=9), "patch size 2 .* does not divide image size 9"),
        ("digits_vit_ce", dict(policy_options={"crops": "none"}), "policy_options"),
        ("digits_vit_ce", dict(policy_options={"crop": "centre"}), "no crop 'centre'"),
        ("digits_vit_ce", dict(evaluate_on="train"), "no evaluate_on 'train'"),
        ("digits_vit_ce", dict(precision="fp16"), "no precision 'fp16'"),
        ("digits_vit_ce", dict(optimizer="adamv"), "no optimizer 'adamv'"),
        ("digits_vit_ce", dict(optimizer="sgd", layer_decay=0.75), "layer_decay"),
        ("digits_vit_ce", dict(lr_steps=[0.9, 0.8]), "lr_steps"),
        ("digits_vit_ce", dict(drw_epoch=300), "drw_epoch must lie in 0..299"),
        ("digits_vit_bal_bce", dict(drw_epoch=10), "takes no class weights"),
        ("digits_vit_ce", dict(drw_epoch=10, loss_epoch=11), "let loss_epoch be at most drw_epoch"),
        ("digits_teacher_ldam_drw_sam", dict(sam_rho=(0.1, 0.5), sam_epochs=(120,)), "up to 119, the last epoch"),
        ("digits_vit_ce", dict(loss="lade", micro_batch=32), "whole batch"),
        ("digits_vit_ce", dict(loss="focal"), "gamma"),
        ("digits_vit_ce", dict(loss="focal", loss_options={"gamma": -1}), "gamma: expected 0 or more"),
        ("digits_vit_ce", dict(loss_options={"weight": [1.0] * 10}), "no option 'weight'"),
        ("digits_vit_bal_bce", dict(loss_options={"prior": [0.1] * 10}), "no option 'prior'"),
        ("digits_deit_lt", dict(loss="influence_balanced", mixup=0.0, cutmix=0.0, smoothing=0.0), "features"),
        ("digits_deit_lt", dict(alpha=1.5), "alpha"),
        ("digits_mgp", dict(mask_ratio=0.99), "mask_ratio"),
        ("digits_mgp", dict(mixup=0.8), "no field 'mixup'"),
        ("digits_teacher_ldam_drw_sam", dict(loss="cross_entropy"), "normed"),
        ("digits_teacher_ldam_drw_sam", dict(model="resnet50", width=32), "resnet<depth>_cifar"),
        ("digits_teacher_ldam_drw_sam", dict(sam_rho=-1.0), "sam_rho"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(name, overrides, says):
    assert re.search(says, refusal(name, **overrides))


def test_losses_are_all_that_a_recipe_may_name():
    """A public function of (logits or cosines, target, ...) is a loss; what is not listed has its own place."""
    functions = [f for n, f in vars(losses).items() if inspect.isfunction(f) and not n.startswith("_")]
    own = [f for f in functions if f.__module__ == losses.__name__]
    alike = {f.__name__ for f in own if list(inspect.signature(f).parameters)[1:2] == ["target"]}
    assert alike == set(recipes.LOSSES)


@pytest.mark.parametrize("loss", recipes.LOSSES)
@pytest.mark.parametrize("softener", ["mixup", "cutmix", "smoothing"])
def test_soft_targets_only_for_losses_that_take_them(loss, softener):
    options = dict(loss=loss, loss_options=REQUIRED.get(loss, {}))
    assert recipes.get("digits_vit_ce", **options).loss == loss
    softened = options | {softener: 0.1}
    if loss in SOFT:
        recipes.get("digits_vit_ce", **softened)
    else:
        assert "turn mixup and smoothing off" in refusal(**softened)


def test_class_weights_only_for_losses_that_take_them():
    takes = {n for n in recipes.LOSSES if "class weights" in str(inspect.signature(getattr(losses, n)))} | {
        n for n in recipes.LOSSES if re.search(r"weight: \(C,\)", inspect.getdoc(getattr(losses, n)))
    }
    assert takes == set(recipes.WEIGHTED)


def test_loss_arguments():
    prior, counts = torch.tensor([0.75, 0.25]), torch.tensor([3.0, 1.0])
    recipe = recipes.get("digits_vit_bal_bce", loss_options={"test_prior": "uniform", "tau": 0.5})
    given = recipes.loss_arguments(recipe, prior, counts)
    assert set(given) == {"prior", "test_prior", "tau"}
    assert given["prior"] is prior
    assert torch.equal(given["test_prior"], torch.tensor([0.5, 0.5]))
    assert recipes.loss_arguments(recipes.get("digits_vit_ce"), prior, counts) == {}
    no_bias = recipes.get("digits_vit_ce", loss="nt_bce", loss_options={"lam": 5.0, "prior": None})
    assert recipes.loss_arguments(no_bias, prior, counts) == {"prior": None, "lam": 5.0}
    ten = recipes.get("digits_vit_bal_bce", loss_options={"test_prior": [0.1] * 10})
    assert len(recipes.loss_arguments(ten, prior, counts)["test_prior"]) == 10
