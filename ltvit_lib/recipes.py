"""Recipes: everything that decides a run, one frozen dataclass instance a row of the papers' tables.

Three scales share one code path: `digits_*` (seconds on a CPU), `laptop_*` (real CIFAR-10-LT, under 20 minutes on two
cores) and `paper_*` (the published schedules). Beside a surprising value stands its source; [P] is a paper's text or
table, [R] its released code. The kinds of run and their checks are those of `ltvit_lib.kinds`.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ltvit_lib import kinds, published
from ltvit_lib.kinds import LOSSES as LOSSES
from ltvit_lib.kinds import POLICIES as POLICIES
from ltvit_lib.kinds import WEIGHTED as WEIGHTED
from ltvit_lib.kinds import Contrast, Distil, Finetune, Pretrain, Recipe, Teacher, override
from ltvit_lib.kinds import check as check
from ltvit_lib.kinds import loss_arguments as loss_arguments

import pandas as pd


@dataclass(frozen=True)
class Row:
    """A row of a published table that a recipe's runs stand beside, and what a run measures for its columns."""

    paper: str  # LiVT or DeiT-LT
    number: str  # of the table
    row: str
    columns: dict[str, str]  # column -> all, a shot group, ece or mce
    head: str = "cls"  # or, of a distilled model, dist, or avg, the mean of both


_RECIPES: dict[str, Recipe] = {}
_ROWS: dict[str, tuple[Row, ...]] = {}  # of each recipe; no number of a table has two recipes
_GROUPS = {"LiVT": ("all", "many", "medium", "few", "ece", "mce"), "DeiT-LT": ("all", "head", "mid", "tail")}
_table = functools.cache(published.table)


def _row(paper: str, number: str, row: str, column: str | None = None, head: str = "cls") -> Row:
    """A row with a column for each shot group; or, of a table with a column for each data set or method, one number."""
    return Row(paper, number, row, dict.fromkeys([column], "all") if column else {c: c for c in _GROUPS[paper]}, head)


def _values(row: Row) -> dict[str, float]:
    """The numbers that are printed in a row, by column; empty cells are left out."""
    printed = _table(row.paper, row.number).loc[row.row]
    return {c: float(printed[c]) for c in row.columns if c in printed and not math.isnan(printed[c])}


def _add(recipe: Recipe, *rows: Row) -> Recipe:
    """Registers a recipe with the rows that it owns; of the first, `reaches` says the overall accuracy."""
    for row in rows[:1]:
        overall = [f"{v:g} %" for c, v in _values(row).items() if row.columns[c] == "all"]
        where = f" ({row.paper} Table {row.number}, {row.row})"
        recipe = replace(recipe, reaches=overall[0] + where if overall else "")
    _RECIPES[recipe.name], _ROWS[recipe.name] = recipe, rows
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
DIGITS_PACO = _add(
    Contrast(
        name="digits_teacher_paco_sam", model="resnet8_cifar", epochs=120, queue_size=256,
        sam_rho=0.2,  # chosen on a validation part (notebook 09)
        sample_weight=_ten_classes, key_policy="geometric", **_digits | dict(weight_decay=5e-4, warmup_epochs=5.0),
    )
)  # fmt: skip
_add(replace(DIGITS_PACO, name="digits_teacher_paco", sam_rho=0.0))
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_paco", teacher="digits_teacher_paco_sam"))
_add(replace(DIGITS_DEIT_LT, name="digits_deit_lt_paco_sgd", teacher="digits_teacher_paco"))  # Figure S.5
# Each ingredient of the teacher alone (DeiT-LT section 3.2; notebook 09), and VS + SAM of its Table 2.
_ce = dict(loss="cross_entropy", normed=False)
for _name, _changes in {
    "ce": dict(_ce, drw_epoch=None, sam_rho=0.0),
    "ce_sam": dict(_ce, drw_epoch=None),
    "ce_drw": dict(_ce, sam_rho=0.0),
    "ce_drw_sam": dict(_ce),
    "vs": dict(loss="vs", normed=False, drw_epoch=None, sam_rho=0.0),
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
        name="laptop_teacher_paco_sam", model="resnet8_cifar", epochs=50, warmup_epochs=2.0, sample_weight=_ten_classes,
        sam_rho=0.1,  # the best of three on a validation part, in 20 epochs (notebook 09)
    )
)  # fmt: skip
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_paco", teacher="laptop_teacher_paco_sam"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit", teacher="laptop_teacher_in_distribution", drw_epoch=None))
_no_drw = _add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_no_drw", drw_epoch=None))
_unmixed = _add(replace(_no_drw, name="laptop_deit_lt_no_drw_no_mixup", mixup=0.0, cutmix=0.0))  # DeiT-LT Table 1
_add(replace(_unmixed, name="laptop_deit_lt_no_drw_teacher_weak", teacher_policy="weak"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_sgd", teacher="laptop_teacher_ldam_drw"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_sgd_no_drw", teacher="laptop_teacher_ldam_drw", drw_epoch=None))
_from_mgp = dict(init="laptop_mgp", layer_decay=0.75)
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_mgp", **_from_mgp))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_bal_ce", loss="balanced_ce"))
_add(replace(LAPTOP_DEIT_LT, name="laptop_deit_lt_mgp_bal_ce", loss="balanced_ce", **_from_mgp))
_add(replace(LAPTOP_LIVT, name="laptop_mgp_bal_ce", loss="balanced_ce"))

# --- the papers: DeiT-LT on CIFAR --------------------------------------------------------------------------------
# Tables 1, 2, 5, 6 and S.3; teachers as LDAM-DRW, Saddle-LongTail and PaCo train them. `c10` is rho = 100, `c10_rho50`
# 50. What is published nowhere is ours, and says so. Where text and code differ, the other reading is a recipe of its
# own, `..._as_released` or `..._as_written`. Of Table 1, a teacher that sees the student's images before they are
# strongly augmented has no recipe.

_deit_lt = functools.partial(_row, "DeiT-LT")
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


def _experts(number: str, ending: str) -> Iterable[Row]:
    """The rows of one data set in Tables S.3 and S.4: both experts and their mean."""
    return (_deit_lt(number, f"{head}{ending}", head=head) for head in ("avg", "cls", "dist"))


def _add_cifar_teachers(paper: str, images: dict, two) -> None:
    """The CNNs of one data set; `two` gives a row of Table 2."""
    ldam = dict(images, policy="weak", precision="bf16")
    _add(Teacher(name=paper + "teacher_ldam_drw", **ldam), two("LDAM+DRW"))
    _add(Teacher(name=paper + "teacher_ldam_drw_sam", sam_rho=0.8, **ldam), two("L-D-SAM teacher"))
    vs = dict(ldam, loss="vs", normed=False, drw_epoch=None)
    _add(Teacher(name=paper + "teacher_vs", **vs))
    _add(Teacher(name=paper + "teacher_vs_sam", sam_rho=0.8, **vs), two("VS+SAM"))  # radius: LDAM's
    # alpha and SAM's radius are published nowhere, nor is the training code: to be chosen on a validation split
    weight = _ten_classes if images["data"] == "cifar10" else 0.01
    paco = _add(Contrast(name=paper + "teacher_paco", sample_weight=weight, precision="bf16", **images))
    _add(replace(paco, name=paper + "teacher_paco_sam", sam_rho=0.5), two("PaCo+SAM teacher"))
    _add(
        Teacher(
            name=paper + "teacher_regnety", model="regnety_160", image_size=224, policy="strong",
            **images | _in_distribution | dict(normalise="imagenet", precision="bf16"),
        )
    )  # fmt: skip


def _add_cifar_vits(paper: str, images: dict, two) -> None:
    """The ViTs without a teacher."""
    vit = Finetune(
        name=paper + "vit_b", model="deit_base_patch16_224", loss="cross_entropy", pool="token", **images, **_student
    )
    crt = dict(init=vit.name, trains="classifier", sampling="classes", repeats=1, epochs=100, smoothing=0.0)
    _add(vit, two("ViT"))
    _add(replace(vit, name=paper + "vit_b_ldam", loss="ldam", smoothing=0.0, mixup=0.0, cutmix=0.0))
    _add(replace(vit, name=paper + "vit_b_crt", **crt), two("ViT (cRT)"))
    _add(Finetune(name=paper + "deit3_b", pool="token", **images, **_deit3), two("DeiT-III"))


def _add_cifar_students(paper: str, images: dict, two, column: str) -> None:
    """DeiT, DeiT-LT in three sizes, and the ablation of Table 5."""
    ending = "" if column == "CIFAR-10-LT rho 100" else f", {column}"  # in Tables 6 and S.3
    paco, plain = dict(teacher=paper + "teacher_paco"), dict(drw_epoch=None)
    regnety, flat = dict(teacher=paper + "teacher_regnety"), dict(teacher=paper + "teacher_ldam_drw_sam")
    student = Distil(
        name=paper + "deit_lt_b", model="deit_base_distilled_patch16_224", teacher=paper + "teacher_paco_sam",
        drw_epoch=1100, **images, **_student,
    )  # fmt: skip
    capacity = [_deit_lt("6", f"DeiT-LT B{ending}", head="avg")] if images["rho"] == 100 else []
    five = functools.partial(_deit_lt, "5", column=column, head="avg")
    all_three = five("OOD distillation, DRW, SAM")
    best = _add(student, two("DeiT-LT (PaCo+SAM)", head="avg"), all_three, *capacity, *_experts("S.3", ending))
    _add(replace(student, name=paper + "deit_lt_b_ldam", **flat), two("DeiT-LT (L-D-SAM)", head="avg"))
    none, first = five("none of the three"), "RegNetY strong mixup, student strong mixup"
    images_seen = [_one_number(first)] if ending == "" else []
    _add(replace(student, name=paper + "deit_b", **plain, **regnety), two("DeiT", head="avg"), none, *images_seen)
    for size, letter in (("tiny", "ti"), ("small", "s")):
        rows = [_deit_lt("6", f"DeiT-LT {letter.title()}{ending}", head="avg")] if images["rho"] == 100 else []
        model = f"deit_{size}_distilled_patch16_224"
        _add(replace(student, name=f"{paper}deit_lt_{letter}", model=model), *rows)
    _add(replace(student, name=paper + "deit_lt_b_ood", **plain, **paco), five("OOD distillation"))
    _add(replace(student, name=paper + "deit_lt_b_ood_drw", **paco), five("OOD distillation, DRW"))
    _add(replace(best, name=paper + "deit_lt_b_as_released", base_lr=2.5e-4))  # [R] on two GPUs
    if ending == "":  # Table 1: what the flat teacher's answers are worth on mixed images and on plain ones, before DRW
        seen = "ResNet-32 strong{0}, student strong{0}"
        mixed = replace(student, name=paper + "deit_lt_b_ldam_no_drw", **plain, **flat)
        unmixed = replace(mixed, name=paper + "deit_lt_b_ldam_no_mixup", mixup=0.0, cutmix=0.0)
        _add(mixed, _one_number(seen.format(" mixup")))
        weakly = replace(unmixed, name=paper + "deit_lt_b_ldam_teacher_weak", teacher_policy="weak")
        _add(unmixed, _one_number(seen.format("")))
        _add(weakly, _one_number("ResNet-32 weak, student strong"))


def _one_number(row: str) -> Row:
    """Of DeiT-LT's Table 1: the student's accuracy. The teacher's is that on the student's training images."""
    return Row("DeiT-LT", "1", row, {"student": "all"}, "avg")


for _data in ("cifar10", "cifar100"):
    for _rho in (100.0, 50.0):
        _column = f"{_data.replace('cifar', 'CIFAR-')}-LT rho {_rho:g}"
        _paper = f"paper_{_data.replace('ifar', '')}{'' if _rho == 100 else f'_rho{_rho:g}'}_"
        _images, _two = dict(data=_data, rho=_rho), functools.partial(_deit_lt, "2", column=_column)
        _add_cifar_teachers(_paper, _images, _two)
        _add_cifar_vits(_paper, _images, _two)
        _add_cifar_students(_paper, _images, _two, _column)

# --- the papers: DeiT-LT on ImageNet-LT and iNaturalist 2018 ------------------------------------------------------
# Tables 3, 4 and S.4; the teachers are ResNet-50. DeiT-III's rows belong to LiVT's recipe, from which they are copied.

_large = dict(
    rho=None, model="resnet50", image_size=224, schedule="cosine", min_lr=0.0, eval_crop=224 / 256, precision="bf16",
)  # fmt: skip
_ldam_large = _large | dict(
    epochs=90, batch_size=256, warmup_epochs=0.0, drw_epoch=60, loss_options={"max_margin": 0.3},
    sam_rho=(0.05, 0.1, 0.5), sam_epochs=(5, 60),  # [R] the radius grows when DRW begins
    # [R] has a colour jitter of .4 that leaves the hue; ours also turns it by up to a tenth
    policy="mgp", policy_options=dict(scale=[0.08, 1.0], jitter=1.0, interpolation="bilinear"),
)  # fmt: skip
_paco_large = _large | dict(
    epochs=400, batch_size=128, base_lr=0.02, warmup_epochs=10.0,
    sample_weight=0.05, temperature=0.2, queue_size=8192, projection=128,
    policy="strong", policy_options=dict(magnitude=10.0, erase=0.0, jitter=1.0),
)  # fmt: skip


def _add_large(data: str, number: str, ending: str, teacher: dict, paco: dict, student: dict) -> None:
    """Teachers, students and the ViT of one data set, with the rows of a table (`number`, and S.4's at `ending`)."""
    paper, rows = f"paper_{data}_", functools.partial(_deit_lt, number)
    _add(Teacher(name=paper + "teacher_ldam_drw_sam", data=data, **_ldam_large | teacher), rows("L-D-SAM teacher"))
    plain = _add(Contrast(name=paper + "teacher_paco", data=data, **_paco_large | paco))
    # published nowhere: L-D-SAM's radii, at the same shares of the epochs
    sam = dict(sam_rho=(0.05, 0.1, 0.5), sam_epochs=(22, 267))
    _add(replace(plain, name=paper + "teacher_paco_sam", **sam), rows("PaCo+SAM teacher"))
    # [R] the scripts' augmentations are CIFAR's; [P] Table S.1 has three others instead, and draws an image once
    shared = _student | dict(data=data, rho=None, batch_size=2048) | student
    drw_epoch = shared.pop("drw_epoch")
    vit = dict(model="deit_base_patch16_224", loss="cross_entropy", pool="token")
    _add(Finetune(name=paper + "vit_b", **vit, **shared), rows("ViT"))
    deit_lt = Distil(
        name=paper + "deit_lt_b", model="deit_base_distilled_patch16_224", teacher=paper + "teacher_paco_sam",
        drw_epoch=drw_epoch, drw_mixup=True, **shared,
    )  # fmt: skip
    best = _add(deit_lt, rows("DeiT-LT (PaCo+SAM)", head="avg"), *_experts("S.4", ending))
    _add(replace(best, name=paper + "deit_lt_b_as_written", policy="three", repeats=1))
    flat = dict(teacher=paper + "teacher_ldam_drw_sam")
    _add(replace(deit_lt, name=paper + "deit_lt_b_ldam", **flat), rows("DeiT-LT (L-D-SAM)", head="avg"))


_add_large(
    "imagenet_lt", "3", ", ImageNet-LT", student=dict(epochs=1400, drw_epoch=1200),
    teacher=dict(base_lr=0.2, normalise="imagenet"), paco=dict(normalise="imagenet"),
)  # fmt: skip
_add_large(
    "inat18", "4", ", iNat18", student=dict(epochs=1000, drw_epoch=900),
    teacher=dict(base_lr=0.1, weight_decay=1e-4), paco=dict(weight_decay=1e-4),
)  # fmt: skip

# --- the papers: LiVT ----------------------------------------------------------------------------------------------
# Tables 1 to 7 and 11, Figures 2, 3, 6 and 7. Values are those of the released logs where these differ from Table 10;
# `..._as_written` has the table's. A log's learning rate gives its effective batch.

_livt = functools.partial(_row, "LiVT")
_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
_MICRO = {"ti": 512, "s": 256, "b": 128, "l": 64}  # images that a device sees at once, at 224 pixels


def _add_mgp(data: str, size: str, ending: str = "", **changes) -> None:
    """The first stage; `changes` from ImageNet-LT's."""
    standard = dict(
        rho=None, epochs=800, warmup_epochs=40.0, image_size=224, precision="bf16", micro_batch=2 * _MICRO[size],
        batch_size=1024,  # [R] log of ImageNet-LT; [P] 4096
    )  # fmt: skip
    model = f"vit_{_SIZES[size]}_patch16_224"
    _add(Pretrain(name=f"paper_{data}_mgp_{size}{ending}", data=data, model=model, **standard | changes))


for _size in _SIZES:
    _add_mgp("imagenet_lt", _size)
_add_mgp("imagenet_lt", "b", "_as_written", batch_size=4096)
_add_mgp("imagenet_lt", "b", "_pixels_as_written", norm_pix=False)  # Algorithm 1
_add_mgp("imagenet_bal", "b")
_add_mgp("imagenet1k", "b", batch_size=4096)  # [P] Table 10, Places-LT: no log is published
for _size in ("s", "b"):
    _add_mgp("inat18", _size, batch_size=3072, image_size=128)  # [R] log; [P] 4096
_add_mgp("inat18", "b", "_as_written", batch_size=4096, image_size=128)
for _data, _size, _epochs in (("imagenet_bal", "b", 400), ("imagenet_lt", "b", 400), ("imagenet_lt", "l", 1600)):
    _add_mgp(_data, _size, f"_{_epochs}", epochs=_epochs)  # Figure 7

_bft = dict(
    rho=None, image_size=224, epochs=100, lr_batch=256, base_lr=1e-3, drop_path=0.1, eval_crop=224 / 256,
    precision="bf16",
    warmup_epochs=5.0,  # [R]; [P] 10
    layer_decay=0.75,  # [P]; [R] .65 but for ImageNet-LT at 224 pixels
    betas=(0.9, 0.999),  # [R]; [P] .95 (section 5.2) and .99 (Table 10)
)  # fmt: skip
_BFT = {  # by data set and pixels
    ("imagenet_lt", 224): dict(batch_size=512, base_lr=5e-4, smoothing=0.1),  # [R] log; [P] 1024, 1e-3
    ("imagenet_lt", 384): dict(batch_size=1024, base_lr=5e-4, smoothing=0.1, layer_decay=0.65),  # [R]
    ("inat18", 224): dict(batch_size=2048, layer_decay=0.65),  # [R] log; [P] 1024, and drop path .2
    ("inat18", 384): dict(batch_size=1024, layer_decay=0.65, drop_path=0.2),  # [R]
    ("places_lt", 224): dict(batch_size=1024, epochs=30),  # [P]: no log is published
    ("places_lt", 384): dict(batch_size=1024, epochs=30),
}
_BFT[("imagenet_bal", 224)] = _BFT[("imagenet_lt", 224)]
_FOUR = {"CE": "cross_entropy", "Bal-CE": "balanced_ce", "BCE": "bce", "Bal-BCE": "balanced_bce"}  # Table 6


def _bft_name(data: str, size: str, loss: str) -> str:
    """paper_inat18_livt_b for Bal-BCE, paper_inat18_mgp_b_ce and so on for other losses."""
    return f"paper_{data}_" + (f"livt_{size}" if loss == "Bal-BCE" else f"mgp_{size}_{loss.lower().replace('-', '_')}")


def _add_bft(data: str, size: str, loss: str, *rows: Row, ending: str = "", pixels: int = 224, **changes) -> Finetune:
    """The second stage with a loss of `_FOUR`; without `init`, from the same images' first stage."""
    smaller = dict(image_size=pixels, eval_crop=1.0, micro_batch=_MICRO[size] // 4) if pixels == 384 else {}
    standard = _bft | dict(micro_batch=_MICRO[size], init=f"paper_{data}_mgp_{size}") | _BFT[data, pixels] | smaller
    name, model = _bft_name(data, size, loss) + ("_384" if pixels == 384 else "") + ending, f"vit_{_SIZES[size]}"
    return _add(
        Finetune(name=name, data=data, model=model + "_patch16_224", loss=_FOUR[loss], **standard | changes), *rows
    )


# Tables 1, 2 and 6
for _size, _word in _SIZES.items():
    _shorter = dict(epochs=50) if _size == "l" else {}
    _also = {"CE": [_livt("2", "MAE"), _livt("1", "ImageNet-LT", "MAE")], "Bal-BCE": [_livt("2", "LiVT")]}
    for _loss in _FOUR:
        _rows = [_livt("6", f"ViT-{_word.title()} {_loss}"), *(_also.get(_loss, []) if _size == "b" else [])]
        _add_bft("imagenet_lt", _size, _loss, *_rows, **_shorter)
_add_bft("imagenet_lt", "b", "Bal-BCE", _livt("2", "LiVT *"), pixels=384)
_add_bft("imagenet_bal", "b", "CE", _livt("1", "ImageNet-BAL", "MAE"))
# What the text has, one at a time and together.
_WRITTEN = {
    "bias": dict(loss_options={"test_prior": "uniform"}),  # equation 10, which adds log(C - 1)
    "warmup": dict(warmup_epochs=10.0),
    "beta2": dict(betas=(0.9, 0.99)),
}
_written = _WRITTEN["bias"] | _WRITTEN["warmup"] | _WRITTEN["beta2"]


def _add_as_written(livt: Finetune) -> None:
    for ending, changes in _WRITTEN.items():
        _add(replace(livt, name=f"{livt.name}_{ending}_as_written", **changes))


_base = _RECIPES["paper_imagenet_lt_livt_b"]
_add_as_written(_base)
_changes = dict(batch_size=1024, base_lr=1e-3, smoothing=0.0, init="paper_imagenet_lt_mgp_b_as_written")
_add(replace(_base, name=f"{_base.name}_as_written", **_written, **_changes))

# Tables 3 and 5, Figure 2
_add_bft("inat18", "b", "CE", _livt("3", "MAE"))
_add_bft("inat18", "b", "Bal-BCE", _livt("3", "LiVT"))
_add_bft("inat18", "b", "Bal-BCE", _livt("3", "LiVT *"), pixels=384)
_base = _RECIPES["paper_inat18_livt_b"]
_changes = dict(batch_size=1024, layer_decay=0.75, drop_path=0.2, init="paper_inat18_mgp_b_as_written")
_add(replace(_base, name=f"{_base.name}_as_written", **_written, **_changes))
for _data, _word in (("imagenet_bal", "BAL"), ("imagenet_lt", "LT")):
    for _loss in ("CE", "Bal-BCE"):
        _from = dict(ending=f"_from_{_data}", init=f"paper_{_data}_mgp_b")
        _add_bft("inat18", "b", _loss, _livt("5", f"{_word} {_loss}"), **_from)
for _loss in _FOUR:
    _add_bft("inat18", "s", _loss, evaluate_every=1)

# Table 4
_from_imagenet = dict(init="paper_imagenet1k_mgp_b")
_add_bft("places_lt", "b", "CE", _livt("4", "MAE"), **_from_imagenet)
_tau = dict(loss_options={"tau": 1.05})  # [P]; [R] has the option, and Bal-BCE does not read it
_places = _add_bft("places_lt", "b", "Bal-BCE", _livt("4", "LiVT"), **_from_imagenet, **_tau)
_add(replace(_places, name=f"{_places.name}_as_released", loss_options={}))
_add_bft("places_lt", "b", "Bal-BCE", _livt("4", "LiVT *"), pixels=384, **_from_imagenet, **_tau)

# ViT and DeiT III from scratch, 800 epochs (Tables 1 to 4; appendix D.2), as MAE's Table 11 and DeiT III's Table 1 have
# them. MAE's average of the weights is left out; timm's LAMB clips gradients at a norm of 1, as DeiT III's does.
_scratch = dict(rho=None, epochs=800, image_size=224, normalise="imagenet", precision="bf16", pool="token")
_vit = _scratch | dict(
    model="vit_base_patch16_224", loss="cross_entropy", batch_size=4096, micro_batch=_MICRO["b"], base_lr=1e-4,
    lr_batch=256, betas=(0.9, 0.95), weight_decay=0.3, warmup_epochs=20.0, smoothing=0.1, drop_path=0.1,
    eval_crop=224 / 256,
)  # fmt: skip
_deit3_livt = _scratch | dict(
    loss="bce", policy="three", policy_options=dict(crop="resized"), optimizer="lamb", base_lr=3e-3, weight_decay=0.02,
    batch_size=2048, repeats=3, warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=False,
)  # fmt: skip
for _data, _rows, _deit_rows in (
    (
        "imagenet_lt", [_livt("2", "ViT"), _livt("1", "ImageNet-LT", "ViT")],
        [_livt("2", "DeiT"), _livt("1", "ImageNet-LT", "DeiT III"), _deit_lt("3", "DeiT-III")],
    ),
    ("imagenet_bal", [_livt("1", "ImageNet-BAL", "ViT")], [_livt("1", "ImageNet-BAL", "DeiT III")]),
    ("inat18", [_livt("3", "ViT")], [_livt("3", "DeiT"), _deit_lt("4", "DeiT-III")]),
    ("places_lt", [], [_livt("4", "DeiT")]),
):  # fmt: skip
    if _rows:  # `vit_b` is DeiT-LT's, which trains it otherwise
        _add(Finetune(name=f"paper_{_data}_vit_b_livt", data=_data, **_vit), *_rows)
    _base_size = dict(model="deit3_base_patch16_224", micro_batch=_MICRO["b"], drop_path=0.2)
    _add(Finetune(name=f"paper_{_data}_deit3_b", data=_data, **_deit3_livt, **_base_size), *_deit_rows)
# Table 11, 400 epochs
_small = _deit3_livt | dict(model="deit3_small_patch16_224", micro_batch=_MICRO["s"], drop_path=0.05, epochs=400)
_deit3_s = Finetune(name="paper_imagenet_lt_deit3_s", data="imagenet_lt", **_small)
_add(_deit3_s, _livt("11", "BCE without bias"))
_add(replace(_deit3_s, name=f"{_deit3_s.name}_bal_bce", loss="balanced_bce"), _livt("11", "BCE with bias"))

# Table 7, Figures 3 and 6: CIFAR from ImageNet-1K's first stage, at 224 pixels. Of the second stage only the name is
# published: the rest is as above, with a batch of 256 that a device holds at once, as LADE asks for. The released code
# mixes images for CE, Bal-CE and Bal-BCE; CB, LDAM, LADE and IB take hard labels here, so that nothing is mixed.
# `_plain` mixes nothing either: "plain augmentations" (section 5.4).
_cifar = _bft | _from_imagenet | dict(model="vit_base_patch16_224", batch_size=256)
_plain = dict(mixup=0.0, cutmix=0.0)
_SEVEN = {
    "CE": dict(loss="cross_entropy"),
    "CB": dict(loss="class_balanced", **_plain),
    "LDAM": dict(loss="ldam", **_plain),
    "LADE": dict(loss="lade", **_plain),  # as its authors have it; the released code leaves the prior out
    "IB": dict(loss="influence_balanced", loss_epoch=50, **_plain),  # not released; its authors' half of the epochs
    "Bal-CE": dict(loss="balanced_ce"),
    "Bal-BCE": dict(loss="balanced_bce"),
}


def _add_cifar_livt(name: str, data: str, rho: float) -> None:
    """One column of Table 7."""
    column = f"{data.replace('cifar', 'CIFAR-')}-LT rho {rho:g}"
    for loss, changes in _SEVEN.items():
        recipe = Finetune(name=_bft_name(name, "b", loss), **_cifar | dict(data=data, rho=rho) | changes)
        recipe = _add(recipe, _livt("7", loss, column))
        if "mixup" not in changes:
            _add(replace(recipe, name=f"{recipe.name}_plain", **_plain))
    _add_as_written(_RECIPES[_bft_name(name, "b", "Bal-BCE")])


for _name, _data, _rho in (
    ("c10", "cifar10", 100.0), ("c10_rho10", "cifar10", 10.0), ("c100", "cifar100", 100.0),
    ("c100_rho10", "cifar100", 10.0),
):  # fmt: skip
    _add_cifar_livt(_name, _data, _rho)
# The figures do not print their values: ours, as for digits. BCE stands for tau = 0, and for lambda = 1 without a bias.
for _value in (0.5, 1.5, 2.0):  # Figure 3
    _base = _RECIPES["paper_c100_livt_b_plain"]
    _add(replace(_base, name=f"paper_c100_livt_b_tau{_value:g}", loss_options={"tau": _value}, reaches=""))
for _data in ("c100", "c100_rho10"):  # Figure 6
    _base = replace(_RECIPES[f"paper_{_data}_livt_b"], reaches="")
    _add(replace(_base, name=f"paper_{_data}_mgp_b_bce", loss="bce"))
    _add(replace(_base, name=f"paper_{_data}_mgp_b_bce_plain", loss="bce", **_plain))
    for _value in (2.0, 5.0, 10.0):
        _nt = dict(loss="nt_bce", loss_options={"lam": _value})
        _add(replace(_base, name=f"paper_{_data}_livt_b_nt{_value:g}", **_nt))
        _nt["loss_options"] = _nt["loss_options"] | {"prior": None}
        _add(replace(_base, name=f"paper_{_data}_mgp_b_nt{_value:g}", **_nt))


def names() -> list[str]:
    """Names of all recipes."""
    return list(_RECIPES)


def get(name: str, /, **overrides) -> Recipe:
    """A recipe by name, with fields replaced.

    Raises:
        ValueError: an unknown recipe, an unknown field or a value of the wrong type or range.
    """
    if name not in _RECIPES:
        where = "recipes.names() lists them, notebooks/full/RECIPES.md says what each is"
        raise ValueError(f"no recipe {name!r}{kinds.closest(name, names())}: of {len(_RECIPES)}, {where}")
    return override(_RECIPES[name], **overrides)


def shortened(name: str, /, length: float, **overrides) -> Recipe:
    """A recipe with its whole schedule, warm-up and DRW start included, at `length` times its epochs; then overrides.

    Raises:
        ValueError: as `get`, or a length that is not positive.
    """
    recipe = get(name)
    if not 0 < length < math.inf:
        raise ValueError(f"length must be positive, got {length}")
    shorter = {"epochs": max(1, round(recipe.epochs * length)), "warmup_epochs": recipe.warmup_epochs * length}

    def sooner(epoch: int) -> int:
        return min(round(epoch * length), shorter["epochs"] - 1)

    for later in ("drw_epoch", "loss_epoch"):
        if getattr(recipe, later, None) is not None:
            shorter[later] = sooner(getattr(recipe, later))
    if getattr(recipe, "sam_epochs", ()):
        shorter["sam_epochs"] = tuple(map(sooner, recipe.sam_epochs))
    return override(recipe, **shorter | overrides)


def needs(name: str) -> tuple[str, ...]:
    """Recipes that must have run before this one: its `init`, its teacher and theirs, each before what needs it.

    Raises:
        ValueError: an unknown recipe.
    """
    recipe, found = get(name), {}
    for other in (getattr(recipe, "init", None), getattr(recipe, "teacher", None)):
        if other:
            found |= dict.fromkeys((*needs(other), other))
    return tuple(found)


def tables() -> list[tuple[str, str]]:
    """(paper, number) of the published tables of which a recipe owns a number."""
    owned = {(row.paper, row.number) for rows in _ROWS.values() for row in rows if _values(row)}
    return sorted(owned, key=lambda table: (table[0] != "LiVT", table[1].startswith("S"), table[1].zfill(3)))


def cells(paper: str, number: str) -> pd.DataFrame:
    """The numbers of a published table that a recipe here should reach, in the table's order.

    Returns:
        One row a number, with columns row and column (as `published.table` has them), recipe, head (cls, dist, or avg:
        the mean of both), metric (all, many, medium, few, head, mid, tail, ece, mce) and value, in percent.

    Raises:
        ValueError: a table that is not published, or of which no recipe owns a number.
    """
    table = _table(paper, number)
    found = [
        dict(row=row.row, column=column, recipe=name, head=row.head, metric=row.columns[column], value=value)
        for name, rows in _ROWS.items()
        for row in rows
        if (row.paper, row.number) == (paper, number)
        for column, value in _values(row).items()
    ]
    if not found:
        known = ", ".join(f"{p} {n}" for p, n in tables())
        raise ValueError(f"no recipe owns a number of {paper}'s Table {number}; there are recipes for {known}")
    rows, columns = list(table.index), list(table.columns)
    return pd.DataFrame(sorted(found, key=lambda cell: (rows.index(cell["row"]), columns.index(cell["column"]))))
