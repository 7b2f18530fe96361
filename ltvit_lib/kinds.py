"""The kinds of run: one frozen dataclass each, and the checks that refuse what could only fail later.

A recipe (`ltvit_lib.recipes`) is an instance of one of them. Beside a surprising value stands its source; [P] is a
paper's text or table, [R] its released code.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ltvit_lib import augment, large, losses, models

import torch
from timm.optim import list_optimizers
from torch import Tensor

POLICIES = {
    name: getattr(augment, name) for name in ("weak", "strong", "three", "mgp", "geometric", "paco_query", "paco_key")
}
LOSSES = (
    "cross_entropy", "balanced_ce", "bce", "balanced_bce", "nt_bce", "focal", "class_balanced", "ldam", "lade",
    "influence_balanced", "vs", "mislas",
)  # fmt: skip
NAMED = ("digits", "cifar10", "cifar100", *large.PUBLISHED)  # data sets; any other `data` is a path
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
    evaluate_every: int = 0  # epochs between evaluations for the curve; 0: only after the last. Decides no weight
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

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return getattr(self, "mixup", 0.0) > 0 or getattr(self, "cutmix", 0.0) > 0


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
    teacher_policy: str | None = None  # of a view that only the teacher sees; None: the student's images (Table 1)
    alpha: float = 0.5  # weight of the DIST term
    beta: float = 0.9999  # effective number of samples, for the weights of the DIST term
    drw_mixup: bool = False  # keep mixing and smoothing to the end [R: ImageNet-LT and iNaturalist]
    model: str = "deit_w96d6_patch4_32_distilled"  # one with a DIST token
    smoothing: float = 0.1  # [P]; [R] on CIFAR: none while DRW runs
    kind: typing.ClassVar[str] = "distil"


def override(recipe: Recipe, /, **overrides) -> Recipe:
    """`dataclasses.replace`, after checking names, types and ranges.

    Images of your own (`data` a path, kept absolute) come as they are: `rho` is then None unless it is given too.
    """
    hints = typing.get_type_hints(type(recipe))
    fields = [f.name for f in dataclasses.fields(recipe)]
    changed = {}
    for key, value in overrides.items():
        if key not in fields:
            raise ValueError(f"{recipe.name} has no field {key!r}{closest(key, fields)}; fields: {', '.join(fields)}")
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[key]):
            raise ValueError(f"{recipe.name}: {key} must be {_readable(hints[key])}, got {value!r}")
        changed[key] = float(value) if isinstance(value, int) and not _fits(value, hints[key], exact=True) else value
    if "data" in changed and changed["data"] not in NAMED:
        changed = {"rho": None} | changed | {"data": str(Path(changed["data"]).expanduser().resolve())}
    changed = replace(recipe, **changed)
    check(changed)
    return changed


def check_images(recipe: Recipe, images: int) -> None:
    """Refuses a training set that does not fill a batch."""
    if images < recipe.batch_size:
        raise ValueError(
            f"{recipe.name}: {images} training images do not fill a batch of {recipe.batch_size}: give a smaller "
            "batch_size"
        )


def closest(name: str, known: list[str]) -> str:
    close = [] if name in known else difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
    return isinstance(value, hint) or (hint is float and isinstance(value, int) and not exact)


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
        "evaluate_every must not be negative; 0 evaluates after the last epoch only": r.evaluate_every < 0,
        f"micro_batch must be at least 1 and divide batch_size ({r.batch_size}), not {r.micro_batch}": (
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
    if getattr(r, "teacher_policy", None) is not None:
        known["teacher_policy"] = tuple(POLICIES)
    for key, values in known.items():
        value, some = getattr(r, key, values[0]), values if len(values) < 9 else ("adamw", "sgd")
        problems[f"no {key} {value!r}{closest(value, values)}; known: {', '.join(some)}"] = value not in values
    if isinstance(r, Pretrain):
        patches = (r.image_size // (models.patch_size(r.model) or r.image_size)) ** 2
        problems["mask_ratio must leave a patch visible and one hidden"] = (
            not 0 < r.mask_ratio < 1 or not 0 < int(patches * (1 - r.mask_ratio)) < patches
        )
        problems["a pretrain run learns no classes: leave evaluate_every at 0"] = r.evaluate_every > 0
    return problems | (_label_problems(r) if isinstance(r, Finetune) else {})


def _label_problems(r: Finetune) -> dict[str, bool]:
    """The same, of what only runs with labels have."""
    last = r.epochs - 1
    problems = {
        "mixup and cutmix must not be negative": not (r.mixup >= 0 and r.cutmix >= 0),
        "mixup and cutmix pair images: batch_size and micro_batch must be even": (
            r.mixes and (r.batch_size % 2 or (r.micro_batch or 0) % 2)
        ),
        "smoothing must lie in 0..1": not 0 <= r.smoothing < 1,
        f"drw_epoch must lie in 0..{last}, the last epoch; None turns it off": (
            r.drw_epoch is not None and not 0 <= r.drw_epoch <= last
        ),
        f"{r.loss} takes no class weights: set drw_epoch to None, or choose {' or '.join(WEIGHTED)}": (
            r.drw_epoch is not None and not isinstance(r, Distil) and r.loss not in WEIGHTED
        ),
        f"loss_epoch must lie in 0..{last}": not 0 <= r.loss_epoch <= last,
        "plain cross-entropy comes before class weights: let loss_epoch be at most drw_epoch": (
            r.drw_epoch is not None and not isinstance(r, Distil) and r.loss_epoch > r.drw_epoch
        ),
        f"trains={r.trains!r} starts from a trained classifier: name its recipe as init": (
            r.trains != "all" and r.init is None
        ),
        "classes are sampled with replacement: leave repeats at 1": r.sampling == "classes" and r.repeats != 1,
        "lade compares the images of a whole batch: leave micro_batch at None": (
            r.loss == "lade" and r.micro_batch not in (None, r.batch_size)
        ),
        f"no loss {r.loss!r}{closest(r.loss, LOSSES)}; known: {', '.join(LOSSES)}": r.loss not in LOSSES,
    }
    return problems | _kind_problems(r)


def _kind_problems(r: Finetune) -> dict[str, bool]:
    """The same, of what only teachers and students have."""
    problems = {}
    if isinstance(r, Teacher):
        rhos = r.sam_rho if isinstance(r.sam_rho, tuple) else (r.sam_rho,)
        problems |= {
            "sam_rho must not be negative": not all(0 <= rho < math.inf for rho in rhos),
            f"sam_epochs must ascend, one fewer than sam_rho has values, up to {r.epochs - 1}, the last epoch": (
                len(r.sam_epochs) + 1 != len(rhos)
                or sorted(r.sam_epochs) != list(r.sam_epochs)
                or max(r.sam_epochs, default=0) >= r.epochs
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
                r.mixes or r.smoothing > 0 or r.drw_epoch is not None
            ),
            "PaCo compares the images of a whole batch: leave micro_batch at None": (
                r.micro_batch not in (None, r.batch_size)
            ),
        }
    if isinstance(r, Distil | Contrast):
        problems[f"a {r.kind} run learns as a whole: leave trains at all"] = r.trains != "all"
    if isinstance(r, Distil):
        problems["alpha and beta must lie in 0..1"] = not (0 <= r.alpha <= 1 and 0 <= r.beta < 1)
        problems["a teacher with a view of its own sees whole images: set mixup and cutmix to 0"] = (
            r.teacher_policy is not None and r.mixes
        )
    return problems


def _try_loss(recipe: Finetune) -> None:
    """Calls the loss on two images, with soft targets where training has them: only then do all options fit."""
    name, options = recipe.loss, recipe.loss_options
    asks = list(inspect.signature(getattr(losses, name)).parameters)[2:]  # after logits and target
    known = [a for a in asks if a not in ("prior", "counts", "features") and not (a == "weight" and name in WEIGHTED)]
    for key in options:
        if key not in known and not (key == "prior" and "prior" in asks and options[key] is None):
            takes = ", ".join(known) or "none"
            raise ValueError(f"{recipe.name}: {name} has no option {key!r}{closest(key, known)}; it takes {takes}")
    classes = max([2] + [len(v) for v in options.values() if isinstance(v, list | tuple)])
    arguments = loss_arguments(recipe, torch.full((classes,), 1 / classes), torch.ones(classes))
    if "features" in asks and not isinstance(recipe, Distil):
        arguments["features"] = torch.zeros(2, 1)
    target = torch.eye(2, classes) if recipe.mixes or recipe.smoothing > 0 else torch.tensor([0, 1])
    _try(f"loss {name}", getattr(losses, name), recipe, torch.zeros(2, classes), target, **arguments)
