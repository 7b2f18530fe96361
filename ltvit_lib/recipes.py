"""Recipes: everything that decides a run, one frozen dataclass instance a row of the papers' tables.

Three scales share one code path: `digits_*` (seconds on a CPU), `laptop_*` (real CIFAR-10-LT, under 20 minutes on two
cores) and `paper_*` (the published schedules). Beside a surprising value stands its source; [P] is a paper's text or
table, [R] its released code.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field, replace

from ltvit_lib import augment

POLICIES = {f.__name__: f for f in (augment.weak, augment.strong, augment.mgp, augment.geometric)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the four kinds of run share."""

    name: str
    reaches: str = ""  # what it should reach, and where that is published or was measured
    # data
    data: str = "cifar10"  # digits, cifar10, cifar100, or the path of your own images
    rho: float | None = 100.0  # imbalance factor; None takes the images as they are
    per_class: int | None = None  # instead of a tail: this many images of every class
    data_seed: int | None = 0  # of the selection; None follows the run's seed. 0 is the published selection
    evaluate_on: str = "test"  # "val" holds out a stratified tenth of the training images: for every choice
    # model
    model: str = "vit_w96d6_patch4_32"
    image_size: int = 32  # what the model sees
    drop_path: float = 0.0
    # length and batch
    epochs: int = 20
    batch_size: int = 128  # effective: over all devices and accumulation steps
    micro_batch: int | None = None  # images a device sees at once; None: its whole share
    repeats: int = 1  # repeated augmentation: draws of one image an epoch, in as many images fewer
    # optimiser
    optimizer: str = "adamw"
    base_lr: float = 1e-3
    lr_batch: int | None = None  # peak lr = base_lr * batch_size / lr_batch; None: base_lr itself
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9  # SGD
    weight_decay: float = 0.05
    layer_decay: float | None = None
    schedule: str = "cosine"  # or "step": x 0.01 at each of lr_steps
    lr_steps: tuple[float, ...] = (0.8, 0.9)  # as shares of the run
    warmup_epochs: float = 1.0
    warmup_lr: float = 0.0
    min_lr: float = 1e-6
    warmup_prefix: bool = True  # MAE, LiVT: the cosine starts after warm-up; DeiT: it is cut by it
    # images
    policy: str = "strong"  # an augmentation of ltvit_lib.augment
    policy_options: dict = field(default_factory=dict)
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

    mask_ratio: float = 0.75
    norm_pix: bool = True  # [R]; Algorithm 1 has a plain squared error
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    policy: str = "mgp"
    betas: tuple[float, float] = (0.9, 0.95)
    base_lr: float = 1.5e-4
    lr_batch: int | None = 256
    min_lr: float = 0.0
    kind: typing.ClassVar[str] = "pretrain"


@dataclass(frozen=True, kw_only=True)
class Finetune(Recipe):
    """Supervised training of a ViT, from scratch or from a masked autoencoder (`init`), with any loss."""

    init: str | None = None  # the recipe whose run gives the starting weights
    loss: str = "balanced_bce"  # a function of ltvit_lib.losses
    loss_options: dict = field(default_factory=dict)
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.0
    drw_epoch: int | None = None  # class weights from this epoch on, where the loss takes them
    kind: typing.ClassVar[str] = "finetune"


@dataclass(frozen=True, kw_only=True)
class Teacher(Finetune):
    """A convolutional teacher: CE or LDAM, deferred re-weighting, SGD or SAM (LDAM-DRW; Saddle-LongTail)."""

    loss: str = "ldam"
    mixup: float = 0.0
    cutmix: float = 0.0
    model: str = "resnet32_cifar"
    width: int = 16
    normed: bool = True  # LDAM's cosine classifier
    sam_rho: float = 0.0  # 0 is the plain optimiser
    optimizer: str = "sgd"
    base_lr: float = 0.1
    weight_decay: float = 2e-4
    schedule: str = "step"
    warmup_epochs: float = 5.0
    policy: str = "weak"
    epochs: int = 200
    drw_epoch: int | None = 160
    kind: typing.ClassVar[str] = "teacher"


@dataclass(frozen=True, kw_only=True)
class Distil(Finetune):
    """DeiT-LT: CLS learns the labels, DIST the teacher's hard answers on the very images the student sees.

    From `drw_epoch` on the DIST term is re-weighted and, unless `drw_mixup`, images are neither mixed nor labels
    smoothed. Plain DeiT is `drw_epoch=None` with a teacher trained on the student's own distribution.
    """

    teacher: str = ""  # the recipe of the teacher
    loss: str = "cross_entropy"  # on CLS
    alpha: float = 0.5  # weight of the DIST term
    beta: float = 0.9999  # effective number of samples
    drw_mixup: bool = False
    model: str = "deit_w96d6_patch4_32_distilled"
    smoothing: float = 0.1
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
DIGITS_MGP = _add(
    Pretrain(
        name="digits_mgp", model="vit_w64d4_patch2_8", epochs=600, decoder_width=32, decoder_depth=1, decoder_heads=2,
        base_lr=1e-3, lr_batch=None, **{k: v for k, v in _digits.items() if k not in ("mixup", "cutmix")},
    )
)  # fmt: skip
DIGITS_LIVT = _add(replace(DIGITS_VIT_BAL_BCE, name="digits_livt", init="digits_mgp", epochs=200, layer_decay=0.75))
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

# --- laptop ----------------------------------------------------------------------------------------------------
# Real CIFAR-10-LT, 12,406 images, 96 steps an epoch. The strong policy keeps the frame: a random tenth of a 32 pixel
# image, as the papers crop, is too hard for a run this short.

_laptop = dict(
    epochs=24, batch_size=128, base_lr=1e-3, warmup_epochs=2.0, drop_path=0.0,
    policy_options=dict(crop="padded", erase=0.0),
)  # fmt: skip
LAPTOP_VIT_CE = _add(Finetune(name="laptop_vit_ce", loss="cross_entropy", **_laptop))
LAPTOP_VIT_BAL_BCE = _add(replace(LAPTOP_VIT_CE, name="laptop_vit_bal_bce", loss="balanced_bce"))
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

# --- the papers ------------------------------------------------------------------------------------------------

PAPER_C10_TEACHER = _add(
    Teacher(
        name="paper_c10_teacher_ldam_drw_sam", sam_rho=0.8,
        reaches="81.9 % (DeiT-LT Table 2, L-D-SAM)",
    )
)  # fmt: skip
PAPER_C10_DEIT_LT_B = _add(
    Distil(
        name="paper_c10_deit_lt_b", model="deit_base_distilled_patch16_224", image_size=224,
        teacher="paper_c10_teacher_ldam_drw_sam", epochs=1200, drw_epoch=1100, batch_size=1024, micro_batch=128,
        repeats=3,
        base_lr=5e-4,  # [P]; [R] scales with the number of GPUs and gives 2.5e-4 on the authors' two
        warmup_epochs=5.0, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=False, drop_path=0.1,
        normalise="imagenet", eval_crop=224 / 256, precision="bf16",
        reaches="84.8 % (DeiT-LT Table 2, with L-D-SAM as teacher)",
    )
)  # fmt: skip
PAPER_IN_LT_MGP_B = _add(
    Pretrain(
        name="paper_in_lt_mgp_b", data="imagenet-lt", rho=None, model="vit_base_patch16_224", image_size=224,
        epochs=800, batch_size=4096, warmup_epochs=40.0, normalise="imagenet", eval_crop=0.875, precision="bf16",
    )
)  # fmt: skip


def names() -> list[str]:
    """Names of all recipes."""
    return list(_RECIPES)


def get(name: str, **overrides) -> Recipe:
    """A recipe by name, with fields replaced.

    Raises:
        ValueError: an unknown recipe, an unknown field or a value of the wrong type or range.
    """
    if name not in _RECIPES:
        raise ValueError(f"no recipe {name!r}{_closest(name, names())}; known: {', '.join(names())}")
    return override(_RECIPES[name], **overrides)


def override(recipe: Recipe, **overrides) -> Recipe:
    """`dataclasses.replace`, after checking names, types and ranges."""
    hints = typing.get_type_hints(type(recipe))
    fields = [f.name for f in dataclasses.fields(recipe)]
    for key, value in overrides.items():
        if key not in fields:
            raise ValueError(f"{recipe.name} has no field {key!r}{_closest(key, fields)}; fields: {', '.join(fields)}")
        if isinstance(value, list):
            overrides[key] = value = tuple(value)
        if not _fits(value, hints[key]):
            raise ValueError(f"{key} must be {_readable(hints[key])}, got {value!r}")
    changed = replace(recipe, **overrides)
    check(changed)
    return changed


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _fits(value, hint) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if isinstance(value, bool):
            if origin is bool:
                return True
        elif isinstance(value, origin) or (origin is float and isinstance(value, int)):
            return True
    return False


def _readable(hint) -> str:
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint).replace("NoneType", "None")


def check(recipe: Recipe) -> None:
    """Refuses what could only fail later, in one sentence."""
    problems = {
        "epochs must be at least 1": recipe.epochs < 1,
        "batch_size must be at least 1": recipe.batch_size < 1,
        "micro_batch must divide batch_size": recipe.micro_batch and recipe.batch_size % recipe.micro_batch,
        "repeats must be at least 1": recipe.repeats < 1,
        "base_lr must be positive": recipe.base_lr <= 0,
        "rho must be at least 1 (n_max / n_min); None keeps the images as they are": (
            recipe.rho is not None and not recipe.rho >= 1
        ),
        "evaluate_on must be 'test' or 'val'": recipe.evaluate_on not in ("test", "val"),
        "precision must be 'fp32' or 'bf16'": recipe.precision not in ("fp32", "bf16"),
        "schedule must be 'cosine' or 'step'": recipe.schedule not in ("cosine", "step"),
        "normalise must be 'data' or 'imagenet'": recipe.normalise not in ("data", "imagenet"),
        f"policy must be one of {', '.join(POLICIES)}": recipe.policy not in POLICIES,
        "warmup_epochs must be shorter than the run": recipe.warmup_epochs >= recipe.epochs,
    }
    if isinstance(recipe, Finetune):
        mixes = recipe.mixup > 0 or recipe.cutmix > 0
        odd = recipe.batch_size % 2 or (recipe.micro_batch or 0) % 2
        problems["mixup and cutmix pair images: batch_size and micro_batch must be even"] = mixes and odd
        problems["smoothing must lie in 0..1"] = not 0 <= recipe.smoothing < 1
        problems["drw_epoch must come before the last epoch"] = (recipe.drw_epoch or 0) >= recipe.epochs
    for problem, found in problems.items():
        if found:
            raise ValueError(f"{recipe.name}: {problem}")
