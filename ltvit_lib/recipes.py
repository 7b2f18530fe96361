"""Recipes: everything that decides a run, one frozen dataclass instance a row of the papers' tables.

Three scales share one code path: `digits_*` (seconds on a CPU), `laptop_*` (real CIFAR-10-LT, under 20 minutes on two
cores) and `paper_*` (the published schedules). Beside a surprising value stands its source; [P] is a paper's text or
table, [R] its released code.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from dataclasses import dataclass, field, replace

from ltvit_lib import augment, losses, models, published

import torch
from timm.optim import list_optimizers
from torch import Tensor

POLICIES = {
    f.__name__: f
    for f in (
        augment.weak,
        augment.strong,
        augment.three,
        augment.mgp,
        augment.geometric,
        augment.paco_query,
        augment.paco_key,
    )  # fmt: skip
}
LOSSES = (
    "cross_entropy", "balanced_ce", "bce", "balanced_bce", "nt_bce", "focal", "class_balanced", "ldam", "lade",
    "influence_balanced", "vs", "mislas",
)  # fmt: skip
WEIGHTED = ("cross_entropy", "ldam")  # the losses that take class weights, hence deferred re-weighting


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all kinds of run share."""

    name: str  # in `names()`, on figures and in the ledger
    reaches: str = ""  # what it should reach, and where that is published or was measured; decides nothing
    # data
    data: str = "cifar10"  # digits, cifar10, cifar100, or the path of your own images
    rho: float | None = 100.0  # imbalance factor; None takes the images as they are
    per_class: int | None = None  # instead of a tail: this many images of every class
    data_seed: int | None = 0  # of the selection; None follows the run's seed. 0 is the published selection
    evaluate_on: str = "test"  # "val" holds out a stratified tenth of the training images: for every choice
    # model
    model: str = "vit_w96d6_patch4_32"  # a name that ltvit_lib.models.create knows
    image_size: int = 32  # what the model sees
    pool: str = "avg"  # LiVT: the patches' mean before the classifier; DeiT: the CLS "token"
    layer_scale: float | None = None  # DeiT III: start of a learnt factor on every channel of a residual branch
    drop_path: float = 0.0  # stochastic depth: chance that the last block is skipped; linear from 0 over the blocks
    # length and batch
    epochs: int = 20  # passes over the images, a last partial batch left out
    batch_size: int = 128  # effective: over all devices and accumulation steps
    micro_batch: int | None = None  # images a device sees at once; None: its whole share
    repeats: int = 1  # repeated augmentation: draws of one image an epoch, in as many images fewer
    # optimiser
    optimizer: str = "adamw"  # or "sgd", or another of timm's that takes betas
    base_lr: float = 1e-3  # peak learning rate, or what lr_batch makes of it
    lr_batch: int | None = None  # peak lr = base_lr * batch_size / lr_batch; None: base_lr itself
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's averages of the gradient and its square
    momentum: float = 0.9  # SGD
    weight_decay: float = 0.05  # AdamW: not on vectors, position embeddings and tokens
    layer_decay: float | None = None  # each block learns at this share of the next one's rate
    schedule: str = "cosine"  # or "step": x lr_factor at each of lr_steps
    lr_steps: tuple[float, ...] = (0.8, 0.9)  # as shares of the run
    lr_factor: float = 0.01  # LDAM-DRW's
    warmup_epochs: float = 1.0  # the learning rate rises linearly
    warmup_lr: float = 0.0  # from here
    min_lr: float = 1e-6  # where the cosine ends
    warmup_prefix: bool = True  # MAE, LiVT: the cosine starts after warm-up; DeiT: it is cut by it
    # images
    policy: str = "strong"  # an augmentation of ltvit_lib.augment
    policy_options: dict = field(default_factory=dict)  # fields of its Policy to change
    normalise: str = "data"  # "data": the data set's own statistics; "imagenet"
    eval_crop: float = 1.0  # share of the side kept at test time
    precision: str = "fp32"  # or "bf16"

    kind: typing.ClassVar[str] = ""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, from the effective batch: the same on any number of devices."""
        return self.base_lr * (self.batch_size / self.lr_batch if self.lr_batch else 1.0)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Recipe):
    """Masked generative pre-training (LiVT section 4.1)."""

    mask_ratio: float = 0.75  # share of the patches that are hidden
    norm_pix: bool = True  # [R]; Algorithm 1 has a plain squared error
    decoder_width: int = 512  # [R] one decoder for every encoder size
    decoder_depth: int = 8  # blocks
    decoder_heads: int = 16  # attention heads
    policy: str = "mgp"  # crops of 20 to 100 % and flips only
    betas: tuple[float, float] = (0.9, 0.95)  # MAE's
    base_lr: float = 1.5e-4  # MAE's
    lr_batch: int | None = 256  # MAE's
    min_lr: float = 0.0  # MAE's
    kind: typing.ClassVar[str] = "pretrain"


@dataclass(frozen=True, kw_only=True)
class Finetune(Recipe):
    """Supervised training of a ViT, from scratch or from a masked autoencoder (`init`), with any loss."""

    init: str | None = None  # the recipe whose run gives the starting weights
    trains: str = "all"  # cRT: "classifier", anew on a frozen backbone; LWS: "scale", one factor a class
    sampling: str = "images"  # each image once an epoch; "classes": a class at random, then an image of it
    loss: str = "balanced_bce"  # one of LOSSES, in ltvit_lib.losses
    loss_options: dict = field(default_factory=dict)  # its arguments beside logits, target, prior and counts
    loss_epoch: int = 0  # plain cross-entropy before this epoch (IB: the first half)
    mixup: float = 0.8  # alpha of its Beta distribution; 0 is off
    cutmix: float = 1.0  # likewise; with both, one of the two is drawn for every batch
    smoothing: float = 0.0  # of the labels: 1 - e + e / C on the label, as timm
    drw_epoch: int | None = None  # class weights from this epoch (of 0, 1, ...) on, for the losses in WEIGHTED
    kind: typing.ClassVar[str] = "finetune"


@dataclass(frozen=True, kw_only=True)
class Teacher(Finetune):
    """A convolutional teacher: CE or LDAM, deferred re-weighting, SGD or SAM (LDAM-DRW; Saddle-LongTail)."""

    loss: str = "ldam"  # margins grow with rarity
    mixup: float = 0.0  # off
    cutmix: float = 0.0  # off
    model: str = "resnet32_cifar"  # resnet<depth>_cifar
    width: int = 16  # channels of the first stage of a resnet<depth>_cifar; other models have their own
    normed: bool = True  # LDAM's cosine classifier
    sam_rho: float | tuple[float, ...] = 0.0  # radius of SAM's step; 0 is the plain optimiser
    sam_epochs: tuple[int, ...] = ()  # of several radii, where the second, third ... begins
    sam_statistics: str = "both"  # passes that update BatchNorm's averages: "both" [R], or the "first"
    optimizer: str = "sgd"  # with momentum .9
    base_lr: float = 0.1  # LDAM-DRW's, as the rest below
    weight_decay: float = 2e-4  # on every parameter
    schedule: str = "step"  # x .01 at 80 and at 90 % of the epochs
    warmup_epochs: float = 5.0  # (epoch + 1) / 5 of the rate
    policy: str = "weak"  # crops of the padded image, and flips
    epochs: int = 200  # LDAM-DRW's
    drw_epoch: int | None = 160  # where the learning rate falls
    kind: typing.ClassVar[str] = "teacher"


@dataclass(frozen=True, kw_only=True)
class Contrast(Teacher):
    """A PaCo teacher (Cui et al. 2021): Bal-CE on the classes' centres, and contrast with a second view and a queue.

    Values are those of CIFAR-100-LT, the only CIFAR set that its released code has.
    """

    loss: str = "balanced_ce"  # what remains of PaCo's without samples; `paco.paco_loss` is what runs
    normed: bool = False  # a linear classifier, of which a row is a centre
    drw_epoch: int | None = None  # balanced from the start
    sample_weight: float = 0.01  # alpha: of a sample of the same class among the positives; ImageNet-LT .05
    temperature: float = 0.05  # of the samples; ImageNet-LT .2
    queue_size: int = 1024  # keys to contrast with, a multiple of batch_size
    projection: int = 32  # width of a key
    key_momentum: float = 0.999  # of the encoder that makes the keys
    policy: str = "paco_query"  # AutoAugment and Cutout
    key_policy: str = "paco_key"  # of the second view: SimCLR's
    base_lr: float = 0.05  # as the rest below: PaCo's on CIFAR-100
    weight_decay: float = 5e-4  # on every parameter
    lr_factor: float = 0.1  # x .1 at 80 %, x .01 at 90 % of the epochs
    epochs: int = 400  # PaCo's
    warmup_epochs: float = 10.0  # (epoch + 1) / 10 of the rate
    kind: typing.ClassVar[str] = "contrast"


@dataclass(frozen=True, kw_only=True)
class Distil(Finetune):
    """DeiT-LT: CLS learns the labels, DIST the teacher's hard answers on the very images the student sees.

    From `drw_epoch` on the DIST term is re-weighted and, unless `drw_mixup`, images are neither mixed nor labels
    smoothed. Plain DeiT is `drw_epoch=None` with a teacher trained on the student's own distribution.
    """

    teacher: str = ""  # the recipe of the teacher: of its run, or of what a checkpoint from elsewhere is
    loss: str = "cross_entropy"  # on CLS
    alpha: float = 0.5  # weight of the DIST term
    beta: float = 0.9999  # effective number of samples, for the weights of the DIST term
    drw_mixup: bool = False  # keep mixing and smoothing to the end [R: ImageNet-LT and iNaturalist]
    model: str = "deit_w96d6_patch4_32_distilled"  # one with a DIST token
    smoothing: float = 0.1  # [P]; [R] on CIFAR: none while DRW runs
    kind: typing.ClassVar[str] = "distil"


_RECIPES: dict[str, Recipe] = {}


def _add(recipe: Recipe) -> Recipe:
    _RECIPES[recipe.name] = recipe
    return recipe


# --- digits ----------------------------------------------------------------------------------------------------
# 347 images, rho = 40, five steps an epoch; a new tail for every seed.

_digits = dict(
    data="digits", rho=40.0, data_seed=None, image_size=8, batch_size=64, policy="geometric",
    weight_decay=0.05, warmup_epochs=10.0, mixup=0.0, cutmix=0.0,
)  # fmt: skip
DIGITS_VIT_CE = _add(
    Finetune(name="digits_vit_ce", model="vit_w64d4_patch2_8", loss="cross_entropy", epochs=300, **_digits)
)
DIGITS_VIT_BAL_BCE = _add(replace(DIGITS_VIT_CE, name="digits_vit_bal_bce", loss="balanced_bce"))
# DeiT III: BCE and LayerScale (its three augmentations belong to photographs); Bal-BCE on it is LiVT's Table 11.
DIGITS_DEIT3 = _add(replace(DIGITS_VIT_CE, name="digits_deit3", loss="bce", layer_scale=1e-4))
_add(replace(DIGITS_DEIT3, name="digits_deit3_bal_bce", loss="balanced_bce"))
DIGITS_MGP = _add(
    Pretrain(
        name="digits_mgp", model="vit_w64d4_patch2_8", epochs=600, decoder_width=32, decoder_depth=1, decoder_heads=2,
        base_lr=1e-3, lr_batch=None, **{k: v for k, v in _digits.items() if k not in ("mixup", "cutmix")},
    )
)  # fmt: skip
DIGITS_LIVT = _add(replace(DIGITS_VIT_BAL_BCE, name="digits_livt", init="digits_mgp", epochs=200, layer_decay=0.75))
# LiVT Table 5: as many images, but balanced, for the first stage only.
_add(replace(DIGITS_MGP, name="digits_mgp_balanced", rho=None, per_class=34))
_add(replace(DIGITS_LIVT, name="digits_livt_from_balanced", init="digits_mgp_balanced"))
for _epochs in (150, 300):  # LiVT Figure 7: how long to pre-train
    _add(replace(DIGITS_MGP, name=f"digits_mgp_{_epochs}", epochs=_epochs))
    _add(replace(DIGITS_LIVT, name=f"digits_livt_{_epochs}", init=f"digits_mgp_{_epochs}"))
for _name, _loss in (("ce", "cross_entropy"), ("bce", "bce"), ("bal_ce", "balanced_ce")):
    _add(replace(DIGITS_LIVT, name=f"digits_mgp_{_name}", loss=_loss))  # LiVT Table 6: one encoder, four losses
# The loss zoo (notebook 06; LiVT Tables 6, 7, 11): LiVT's second stage under every other loss.
for _name, _changes in {
    "focal": dict(loss="focal", loss_options={"gamma": 2.0}),
    "cb_softmax": dict(loss="class_balanced"),
    "cb_sigmoid": dict(loss="class_balanced", loss_options={"kind": "sigmoid"}),
    "cb_focal": dict(loss="class_balanced", loss_options={"kind": "focal"}),
    "ldam": dict(loss="ldam"),
    "ldam_drw": dict(loss="ldam", drw_epoch=160),
    "lade": dict(loss="lade"),
    "ib": dict(loss="influence_balanced", loss_epoch=100),
    "vs": dict(loss="vs"),
    "mislas": dict(loss="mislas"),
    "crt": dict(loss="cross_entropy", init="digits_mgp_ce", trains="classifier", sampling="classes", epochs=60),
    "lws": dict(loss="cross_entropy", init="digits_mgp_ce", trains="scale", sampling="classes", epochs=60),
    "bal_ce_mixup": dict(loss="balanced_ce", mixup=0.8, cutmix=1.0),
}.items():
    _add(replace(DIGITS_LIVT, name=f"digits_mgp_{_name}", **_changes))
_add(replace(DIGITS_LIVT, name="digits_livt_mixup", mixup=0.8, cutmix=1.0))
for _tau in (0.5, 1.5, 2.0):  # LiVT Figure 3; 0 is digits_mgp_bce, 1 digits_livt
    _add(replace(DIGITS_LIVT, name=f"digits_livt_tau{_tau:g}", loss_options={"tau": _tau}))
for _lam in (2.0, 5.0, 10.0):  # LiVT Figure 6; 1 is digits_mgp_bce and digits_livt
    _options = {"lam": _lam}
    _add(replace(DIGITS_LIVT, name=f"digits_livt_nt{_lam:g}", loss="nt_bce", loss_options=_options))
    _add(replace(DIGITS_LIVT, name=f"digits_mgp_nt{_lam:g}", loss="nt_bce", loss_options=_options | {"prior": None}))
for _name, _loss in (("bce", "bce"), ("bal_ce", "balanced_ce"), ("ldam", "ldam")):  # DeiT-LT Figure S.1: LDAM
    _add(replace(DIGITS_VIT_CE, name=f"digits_vit_{_name}", loss=_loss))
# LiVT section 4.1 claims that strong augmentation does not help the first stage.
_add(replace(DIGITS_MGP, name="digits_mgp_strong", policy="strong", policy_options=dict(crop="padded", erase=0.0)))
_add(replace(DIGITS_LIVT, name="digits_livt_from_strong", init="digits_mgp_strong"))
DIGITS_TEACHER = _add(
    Teacher(
        name="digits_teacher_ldam_drw_sam", model="resnet8_cifar", epochs=120, drw_epoch=96, sam_rho=0.05,
        **_digits | dict(weight_decay=5e-4, warmup_epochs=5.0),
    )
)  # fmt: skip
DIGITS_DEIT_LT = _add(
    Distil(
        name="digits_deit_lt", model="deit_w64d4_patch2_8_distilled", teacher="digits_teacher_ldam_drw_sam",
        epochs=300, drw_epoch=270, **_digits | dict(mixup=0.8, cutmix=1.0),
    )
)  # fmt: skip

# Tables 1 and 5 at this scale: what each part adds. DeiT's teacher learns from the student's own, mixed images.
_add(replace(DIGITS_TEACHER, name="digits_teacher_ldam_drw", sam_rho=0.0))
# A tenth of CIFAR-100's classes: ten times as many samples of a class in the queue, so a tenth of alpha, which keeps
# their sum against the centre's weight of 1. What the authors used on CIFAR-10 is not published.
_ten_classes = 0.001
_add(
    Contrast(
        name="digits_teacher_paco_sam", model="resnet8_cifar", epochs=120, sam_rho=0.05, queue_size=256,
        sample_weight=_ten_classes, key_policy="geometric", **_digits | dict(weight_decay=5e-4, warmup_epochs=5.0),
    )
)  # fmt: skip
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_paco", teacher="digits_teacher_paco_sam"))
# Each ingredient of the teacher alone (DeiT-LT section 3.2; notebook 09), and VS + SAM of its Table 2.
_ce = dict(loss="cross_entropy", normed=False)
for _name, _changes in {
    "ce": dict(_ce, drw_epoch=None, sam_rho=0.0),
    "ce_sam": dict(_ce, drw_epoch=None),
    "ce_drw": dict(_ce, sam_rho=0.0),
    "ce_drw_sam": dict(_ce),
    "vs_sam": dict(loss="vs", normed=False, drw_epoch=None),
}.items():
    _add(replace(DIGITS_TEACHER, name=f"digits_teacher_{_name}", **_changes))
_in_distribution = dict(loss="cross_entropy", normed=False, sam_rho=0.0, drw_epoch=None, mixup=0.8, cutmix=1.0)
_add(replace(DIGITS_TEACHER, name="digits_teacher_in_distribution", **_in_distribution))
_add(replace(DIGITS_DEIT_LT, name="digits_deit", teacher="digits_teacher_in_distribution", drw_epoch=None))
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_no_drw", drw_epoch=None))
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_sgd", teacher="digits_teacher_ldam_drw"))
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_sgd_no_drw", teacher="digits_teacher_ldam_drw", drw_epoch=None))
_add(
    replace(
        DIGITS_VIT_CE, name="digits_vit_crt", init="digits_vit_ce", trains="classifier", sampling="classes", epochs=60
    )
)
# Beyond the papers: LiVT's first stage under DeiT-LT's student, its CLS token on the test prior, and both.
_from_mgp = dict(init="digits_mgp", layer_decay=0.75)
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_mgp", **_from_mgp))
for _name, _loss in (("bal_ce", "balanced_ce"), ("bal_bce", "balanced_bce")):
    _add(replace(DIGITS_DEIT_LT, name=f"digits_deit_lt_{_name}", loss=_loss))
    _add(replace(DIGITS_DEIT_LT, name=f"digits_deit_lt_mgp_{_name}", loss=_loss, **_from_mgp))

# --- laptop ----------------------------------------------------------------------------------------------------
# Real CIFAR-10-LT, 12,406 images, 96 steps an epoch. The strong policy keeps the frame: a random tenth of a 32 pixel
# image, as the papers crop, is too hard for a run this short.

_laptop = dict(
    epochs=24, batch_size=128, base_lr=1e-3, warmup_epochs=2.0, drop_path=0.0,
    policy_options=dict(crop="padded", erase=0.0),
)  # fmt: skip
LAPTOP_VIT_CE = _add(Finetune(name="laptop_vit_ce", loss="cross_entropy", **_laptop))
LAPTOP_VIT_BAL_BCE = _add(replace(LAPTOP_VIT_CE, name="laptop_vit_bal_bce", loss="balanced_bce"))
LAPTOP_DEIT3 = _add(
    replace(LAPTOP_VIT_CE, name="laptop_deit3", loss="bce", layer_scale=1e-4, policy="three", policy_options={})
)
_add(replace(LAPTOP_DEIT3, name="laptop_deit3_bal_bce", loss="balanced_bce"))
LAPTOP_MGP = _add(
    Pretrain(
        name="laptop_mgp", epochs=60, batch_size=128, base_lr=1e-3, lr_batch=None, warmup_epochs=4.0,
        decoder_width=64, decoder_depth=1, decoder_heads=2,
    )
)  # fmt: skip
LAPTOP_LIVT = _add(replace(LAPTOP_VIT_BAL_BCE, name="laptop_livt", init="laptop_mgp", layer_decay=0.75))
LAPTOP_TEACHER = _add(
    Teacher(
        name="laptop_teacher_ldam_drw_sam", model="resnet8_cifar", epochs=50, drw_epoch=40, sam_rho=0.1,
        warmup_epochs=2.0,
    )
)  # fmt: skip
LAPTOP_DEIT_LT = _add(Distil(name="laptop_deit_lt", teacher="laptop_teacher_ldam_drw_sam", drw_epoch=20, **_laptop))

_add(replace(LAPTOP_TEACHER, name="laptop_teacher_ldam_drw", sam_rho=0.0))
# DeiT's: as the student, on strong and mixed images; wider, as RegNetY-16GF stands to ResNet-32
_add(
    replace(
        LAPTOP_TEACHER, name="laptop_teacher_in_distribution", width=32, epochs=30, policy="strong",
        policy_options=_laptop["policy_options"], **_in_distribution,
    )
)  # fmt: skip
_add(
    Contrast(
        name="laptop_teacher_paco_sam", model="resnet8_cifar", epochs=50, sam_rho=0.1, warmup_epochs=2.0,
        sample_weight=_ten_classes,
    )
)  # fmt: skip
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_paco", teacher="laptop_teacher_paco_sam"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit", teacher="laptop_teacher_in_distribution", drw_epoch=None))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_no_drw", drw_epoch=None))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_sgd", teacher="laptop_teacher_ldam_drw"))
_from_mgp = dict(init="laptop_mgp", layer_decay=0.75)
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_mgp", **_from_mgp))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_bal_ce", loss="balanced_ce"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_mgp_bal_ce", loss="balanced_ce", **_from_mgp))
_add(replace(LAPTOP_LIVT, name="laptop_mgp_bal_ce", loss="balanced_ce"))

# --- the papers ------------------------------------------------------------------------------------------------
# DeiT-LT on CIFAR-10/100-LT: Tables 1, 2, 5 and 6; teachers as LDAM-DRW, Saddle-LongTail and PaCo train them. `c10` is
# rho = 100, `c10_rho50` 50. What is published nowhere is ours, and says so.


def _printed(table: str, row: str, column: str) -> str:
    """What the paper's table has for a row: "87.5 % (DeiT-LT Table 2, DeiT-LT (PaCo+SAM))"; empty without a number."""
    value = published.table("DeiT-LT", table).loc[row].get(column, math.nan)
    return "" if math.isnan(value) else f"{value:g} % (DeiT-LT Table {table}, {row})"


_student = dict(
    epochs=1200, batch_size=1024, micro_batch=128, repeats=3, image_size=224,
    base_lr=5e-4,  # [P]; [R] scales with the number of GPUs and gives 2.5e-4 on the authors' two
    warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=False, drop_path=0.1, smoothing=0.1,
    normalise="imagenet", eval_crop=224 / 256, precision="bf16",
)  # fmt: skip
# [P] says which losses and augmentations; schedules of these baselines are not published: DeiT-LT's own, and for
# DeiT III what its ImageNet-1K recipe has.
_deit3 = _student | dict(
    model="deit3_base_patch16_224", loss="bce", policy="three", optimizer="lamb", base_lr=3e-3, weight_decay=0.02,
    smoothing=0.0, repeats=1,
)  # fmt: skip


def _add_cifar(name: str, data: str, rho: float) -> None:
    """Teachers, students and baselines of one data set."""
    column = f"{data.replace('cifar', 'CIFAR-')}-LT rho {rho:g}"
    images, paper, two = dict(data=data, rho=rho), f"paper_{name}_", lambda row: _printed("2", row, column)
    ldam = dict(images, policy="weak", precision="bf16")
    _add(Teacher(name=paper + "teacher_ldam_drw", reaches=two("LDAM+DRW"), **ldam))
    _add(Teacher(name=paper + "teacher_ldam_drw_sam", sam_rho=0.8, reaches=two("L-D-SAM teacher"), **ldam))
    vs = dict(ldam, loss="vs", normed=False, drw_epoch=None)
    _add(Teacher(name=paper + "teacher_vs_sam", sam_rho=0.8, reaches=two("VS+SAM"), **vs))  # radius: LDAM's
    # alpha and SAM's radius are published nowhere, nor is the training code: to be chosen on a validation split
    weight = _ten_classes if data == "cifar10" else 0.01
    paco = Contrast(name=paper + "teacher_paco", sample_weight=weight, precision="bf16", **images)
    _add(paco)
    _add(replace(paco, name=paper + "teacher_paco_sam", sam_rho=0.5, reaches=two("PaCo+SAM teacher")))
    _add(
        Teacher(
            name=paper + "teacher_regnety", model="regnety_160", image_size=224, policy="strong",
            **images | _in_distribution | dict(normalise="imagenet", precision="bf16"),
        )
    )  # fmt: skip
    vit = Finetune(
        name=paper + "vit_b", model="deit_base_patch16_224", loss="cross_entropy", pool="token", reaches=two("ViT"),
        **images, **_student,
    )  # fmt: skip
    crt = dict(init=vit.name, trains="classifier", sampling="classes", repeats=1, epochs=100, smoothing=0.0)
    _add(vit)
    _add(replace(vit, name=paper + "vit_b_ldam", loss="ldam", smoothing=0.0, mixup=0.0, cutmix=0.0, reaches=""))
    _add(replace(vit, name=paper + "vit_b_crt", reaches=two("ViT (cRT)"), **crt))
    _add(Finetune(name=paper + "deit3_b", pool="token", reaches=two("DeiT-III"), **images, **_deit3))
    student = Distil(
        name=paper + "deit_lt_b", model="deit_base_distilled_patch16_224", teacher=paper + "teacher_paco_sam",
        drw_epoch=1100, reaches=two("DeiT-LT (PaCo+SAM)"), **images, **_student,
    )  # fmt: skip
    regnety, flat = dict(teacher=paper + "teacher_regnety"), dict(teacher=paper + "teacher_ldam_drw_sam")
    _add(student)
    _add(replace(student, name=paper + "deit_lt_b_ldam", reaches=two("DeiT-LT (L-D-SAM)"), **flat))
    _add(replace(student, name=paper + "deit_b", drw_epoch=None, reaches=two("DeiT"), **regnety))
    for size, letter in (("tiny", "ti"), ("small", "s")):
        row = f"DeiT-LT {letter.title()}" + ("" if data == "cifar10" else f", {column}")
        reaches = _printed("6", row, "all") if rho == 100 else ""
        model = f"deit_{size}_distilled_patch16_224"
        _add(replace(student, name=f"{paper}deit_lt_{letter}", model=model, reaches=reaches))
    for ending, row, changes in (
        ("ood", "OOD distillation", dict(drw_epoch=None)),
        ("ood_drw", "OOD distillation, DRW", {}),
    ):
        changes = changes | dict(teacher=paper + "teacher_paco", reaches=_printed("5", row, column))
        _add(replace(student, name=f"{paper}deit_lt_b_{ending}", **changes))


for _data in ("cifar10", "cifar100"):
    for _rho in (100.0, 50.0):
        _add_cifar(_data.replace("ifar", "") + ("" if _rho == 100 else f"_rho{_rho:g}"), _data, _rho)


def names() -> list[str]:
    """Names of all recipes."""
    return list(_RECIPES)


def get(name: str, /, **overrides) -> Recipe:
    """A recipe by name, with fields replaced.

    Raises:
        ValueError: an unknown recipe, an unknown field or a value of the wrong type or range.
    """
    if name not in _RECIPES:
        raise ValueError(f"no recipe {name!r}{_closest(name, names())}; known: {', '.join(names())}")
    return override(_RECIPES[name], **overrides)


def override(recipe: Recipe, /, **overrides) -> Recipe:
    """`dataclasses.replace`, after checking names, types and ranges."""
    hints = typing.get_type_hints(type(recipe))
    fields = [f.name for f in dataclasses.fields(recipe)]
    changed = {}
    for key, value in overrides.items():
        if key not in fields:
            raise ValueError(f"{recipe.name} has no field {key!r}{_closest(key, fields)}; fields: {', '.join(fields)}")
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[key]):
            raise ValueError(f"{recipe.name}: {key} must be {_readable(hints[key])}, got {value!r}")
        changed[key] = float(value) if _is_whole(value) and not _fits(value, hints[key], exact=True) else value
    changed = replace(recipe, **changed)
    check(changed)
    return changed


def shortened(name: str, /, length: float, **overrides) -> Recipe:
    """A recipe with its whole schedule, warm-up and DRW start included, at `length` times its epochs; then overrides.

    Raises:
        ValueError: as `get`, or a length that is not positive.
    """
    recipe = get(name)
    if not 0 < length < math.inf:
        raise ValueError(f"length must be positive, got {length}")
    shorter = {"epochs": max(1, round(recipe.epochs * length)), "warmup_epochs": recipe.warmup_epochs * length}
    for later in ("drw_epoch", "loss_epoch"):
        if getattr(recipe, later, None) is not None:
            shorter[later] = min(round(getattr(recipe, later) * length), shorter["epochs"] - 1)
    return override(recipe, **shorter | overrides)


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value, hint, exact: bool = False) -> bool:
    """Whether a value is of a field's type; a whole number does for a float unless `exact`."""
    if typing.get_origin(hint) is tuple:
        entries = typing.get_args(hint)
        right_length = entries[-1] is Ellipsis or (isinstance(value, tuple) and len(value) == len(entries))
        return isinstance(value, tuple) and right_length and all(_fits(v, entries[0]) for v in value)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option, exact) for option in typing.get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (hint is float and _is_whole(value) and not exact)


def _readable(hint) -> str:
    if typing.get_origin(hint) is tuple:
        entries = typing.get_args(hint)
        return "a list of numbers" if entries[-1] is Ellipsis else f"a list of {len(entries)} numbers"
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint).replace("NoneType", "None")


def loss_arguments(recipe: Finetune, prior: Tensor, counts: Tensor) -> dict:
    """What a recipe's loss gets beside logits, target, features and DRW weights: its options, prior and counts."""
    options = dict(recipe.loss_options)
    if options.get("test_prior") == "uniform":
        options["test_prior"] = torch.full_like(prior, 1 / len(prior))
    asks = inspect.signature(getattr(losses, recipe.loss)).parameters
    return {k: v for k, v in {"prior": prior, "counts": counts}.items() if k in asks} | options


def check(recipe: Recipe) -> None:
    """Refuses what could only fail later.

    Raises:
        ValueError: in one sentence.
    """
    for problem, found in _problems(recipe).items():
        if found:
            raise ValueError(f"{recipe.name}: {problem}")
    _try("model", models.check_patches, recipe, recipe.model, recipe.image_size)
    policy = POLICIES[recipe.policy]
    _try("policy_options", policy, recipe, recipe.image_size, (0.5,), (0.5,), **recipe.policy_options)
    if isinstance(recipe, Finetune):
        _try_loss(recipe)


def _try(what: str, function, recipe: Recipe, /, *arguments, **options) -> None:
    try:
        function(*arguments, **options)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{recipe.name}: {what}: {str(error).splitlines()[0]}") from None


def _problems(r: Recipe) -> dict[str, bool]:
    """Sentences, and whether they apply. `not x > 0` also catches NaN."""
    problems = {
        "epochs, batch_size and repeats must be at least 1": min(r.epochs, r.batch_size, r.repeats) < 1,
        "image_size must be at least 1 pixel": r.image_size < 1,
        "micro_batch must be at least 1 and divide batch_size": (
            r.micro_batch is not None and (r.micro_batch < 1 or r.batch_size % r.micro_batch)
        ),
        "base_lr must be positive": not 0 < r.base_lr < math.inf,
        "lr_batch must be at least 1": r.lr_batch is not None and r.lr_batch < 1,
        "warmup_lr, min_lr, momentum and weight_decay must not be negative": (
            not all(0 <= v < math.inf for v in (r.warmup_lr, r.min_lr, r.momentum, r.weight_decay))
        ),
        "betas must lie in 0..1": not all(0 <= b < 1 for b in r.betas),
        "layer_decay must lie in 0..1, and needs another optimizer than sgd": (
            r.layer_decay is not None and not (0 < r.layer_decay <= 1 and r.optimizer != "sgd")
        ),
        "drop_path must lie in 0..1": not 0 <= r.drop_path < 1,
        "lr_factor must lie in 0..1": not 0 < r.lr_factor <= 1,
        "lr_steps must lie in 0..1, in ascending order": (
            not all(0 < s < 1 for s in r.lr_steps) or list(r.lr_steps) != sorted(r.lr_steps)
        ),
        f"warmup_epochs ({r.warmup_epochs:g}) must be shorter than epochs ({r.epochs}): set both": (
            not 0 <= r.warmup_epochs < r.epochs
        ),
        "rho must be at least 1 (n_max / n_min); None keeps the images as they are": (
            r.rho is not None and not 1 <= r.rho < math.inf
        ),
        "per_class must be at least 1": r.per_class is not None and r.per_class < 1,
        "eval_crop must lie in 0..1": not 0 < r.eval_crop <= 1,
    }
    known = {
        "pool": ("avg", "token"), "trains": ("all", "classifier", "scale"), "sampling": ("images", "classes"),
        "sam_statistics": ("both", "first"),
        "evaluate_on": ("test", "val"), "precision": ("fp32", "bf16"), "schedule": ("cosine", "step"),
        "normalise": ("data", "imagenet"), "policy": tuple(POLICIES), "key_policy": tuple(POLICIES),
        "optimizer": ("sgd", *list_optimizers()),
    }  # fmt: skip
    for key, values in known.items():
        value, some = getattr(r, key, values[0]), values if len(values) < 9 else ("adamw", "sgd")
        problems[f"no {key} {value!r}{_closest(value, values)}; known: {', '.join(some)}"] = value not in values
    if isinstance(r, Pretrain):
        patches = (r.image_size // (models.patch_size(r.model) or r.image_size)) ** 2
        problems["mask_ratio must leave a patch visible and one hidden"] = (
            not 0 < r.mask_ratio < 1 or not 0 < int(patches * (1 - r.mask_ratio)) < patches
        )
    return problems | (_label_problems(r) if isinstance(r, Finetune) else {})


def _label_problems(r: Finetune) -> dict[str, bool]:
    """The same, of what only runs with labels have."""
    mixes, last = r.mixup > 0 or r.cutmix > 0, r.epochs - 1
    problems = {
        "mixup and cutmix must not be negative": not (r.mixup >= 0 and r.cutmix >= 0),
        "mixup and cutmix pair images: batch_size and micro_batch must be even": (
            mixes and (r.batch_size % 2 or (r.micro_batch or 0) % 2)
        ),
        "smoothing must lie in 0..1": not 0 <= r.smoothing < 1,
        f"drw_epoch must lie in 0..{last}, the last epoch; None turns it off": (
            r.drw_epoch is not None and not 0 <= r.drw_epoch <= last
        ),
        f"{r.loss} takes no class weights: set drw_epoch to None, or choose {' or '.join(WEIGHTED)}": (
            r.drw_epoch is not None and not isinstance(r, Distil) and r.loss not in WEIGHTED
        ),
        f"loss_epoch must lie in 0..{last}": not 0 <= r.loss_epoch <= last,
        f"trains={r.trains!r} starts from a trained classifier: name its recipe as init": (
            r.trains != "all" and r.init is None
        ),
        "classes are sampled with replacement: leave repeats at 1": r.sampling == "classes" and r.repeats != 1,
        "lade compares the images of a whole batch: leave micro_batch at None": (
            r.loss == "lade" and r.micro_batch not in (None, r.batch_size)
        ),
        f"no loss {r.loss!r}{_closest(r.loss, LOSSES)}; known: {', '.join(LOSSES)}": r.loss not in LOSSES,
    }
    return problems | _kind_problems(r)


def _kind_problems(r: Finetune) -> dict[str, bool]:
    """The same, of what only teachers and students have."""
    problems = {}
    if isinstance(r, Teacher):
        rhos = r.sam_rho if isinstance(r.sam_rho, tuple) else (r.sam_rho,)
        problems |= {
            "sam_rho must not be negative": not all(0 <= rho < math.inf for rho in rhos),
            "sam_epochs must ascend, one fewer than sam_rho has values": (
                len(r.sam_epochs) + 1 != len(rhos) or sorted(set(r.sam_epochs)) != list(r.sam_epochs)
            ),
            "width must be at least 1": r.width < 1,
            f"width is an option of resnet<depth>_cifar: leave it at {Teacher.width} with {r.model}": (
                r.width != Teacher.width and not r.model.endswith("_cifar")
            ),
            "normed gives cosines, which only ldam scales: set normed to False with another loss": (
                r.normed and r.loss != "ldam"
            ),
        }
    if isinstance(r, Contrast):
        problems |= {
            f"queue_size must be a multiple of batch_size ({r.batch_size})": (
                r.queue_size < 1 or r.queue_size % r.batch_size > 0
            ),
            "temperature must be positive, sample_weight not negative, projection at least 1": (
                not (r.temperature > 0 and r.sample_weight >= 0 and r.projection >= 1)
            ),
            "key_momentum must lie in 0..1": not 0 <= r.key_momentum <= 1,
            "PaCo takes hard labels, unweighted: leave mixup, cutmix, smoothing at 0 and drw_epoch at None": (
                r.mixup > 0 or r.cutmix > 0 or r.smoothing > 0 or r.drw_epoch is not None
            ),
            "PaCo compares the images of a whole batch: leave micro_batch at None": (
                r.micro_batch not in (None, r.batch_size)
            ),
        }
    if isinstance(r, Distil | Contrast):
        problems[f"a {r.kind} run learns as a whole: leave trains at all"] = r.trains != "all"
    if isinstance(r, Distil):
        problems["alpha and beta must lie in 0..1"] = not (0 <= r.alpha <= 1 and 0 <= r.beta < 1)
    return problems


def _try_loss(recipe: Finetune) -> None:
    """Calls the loss on two images, with soft targets where training has them: only then do all options fit."""
    name, options = recipe.loss, recipe.loss_options
    asks = list(inspect.signature(getattr(losses, name)).parameters)[2:]  # after logits and target
    known = [a for a in asks if a not in ("prior", "counts", "features") and not (a == "weight" and name in WEIGHTED)]
    for key in options:
        if key not in known and not (key == "prior" and "prior" in asks and options[key] is None):
            takes = ", ".join(known) or "none"
            raise ValueError(f"{recipe.name}: {name} has no option {key!r}{_closest(key, known)}; it takes {takes}")
    classes = max([2] + [len(v) for v in options.values() if isinstance(v, list | tuple)])
    arguments = loss_arguments(recipe, torch.full((classes,), 1 / classes), torch.ones(classes))
    if "features" in asks and not isinstance(recipe, Distil):
        arguments["features"] = torch.zeros(2, 1)
    soft = recipe.mixup > 0 or recipe.cutmix > 0 or recipe.smoothing > 0
    target = torch.eye(2, classes) if soft else torch.tensor([0, 1])
    _try(f"loss {name}", getattr(losses, name), recipe, torch.zeros(2, classes), target, **arguments)
