"""What a run costs, estimated from its recipe before it is started: operations, memory, disk and hours.

Operations are counted, by torch, on the model that training would build, without memory for it (torch's meta device): a
multiplication and an addition are two. The rest are rules of thumb, stated at `estimate`.
"""

import functools
import math
import re
from dataclasses import dataclass

from ltvit_lib import data, kinds, large, longtail, recipes
from ltvit_lib.recipes import Contrast, Distil, Pretrain, Recipe

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Operations a second that one H100 reaches on large dense bf16 matrix products (measured; its data sheet says 989e12).
# A utilisation is a share of this.
H100 = 798e12
# By part of the model's name, the first that fits. Base, small and tiny are this project's aims for one H100, from data
# to optimiser, not measurements; so is large, by analogy. The rest are cautious guesses: small kernels wait for memory.
UTILISATION = {
    "_large_": 0.45, "_base_": 0.45, "_small_": 0.35, "_tiny_": 0.24, "regnety": 0.2, "resnet50": 0.2, "": 0.05,
}  # fmt: skip
# Dense bf16 operations a second from the makers' data sheets (half of those with sparsity), the first name that fits.
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12,
    "A100": 312e12, "A40": 150e12, "L40S": 362e12, "L4": 121e12, "RTX A6000": 155e12, "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12,
}  # fmt: skip
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one run costs, without the runs that it starts from."""

    flops_per_image: float  # of training on one image, forward, backward and teacher
    flops: float  # of the whole run
    memory_gib: float  # on each device
    disk_gib: float  # the most that the run folder takes
    hours: float  # on one H100 at this utilisation
    utilisation: float  # assumed, as a share of `H100`


@dataclass(frozen=True)
class _Counts:
    """Of a model: operations on one image, parameters, and elements of activations kept for the backward pass."""

    forward: float
    backward: float
    keys: float  # PaCo's slow encoder, forward only
    parameters: int
    trained: int
    kept: float


@dataclass(frozen=True)
class _Size:
    classes: int
    channels: int
    train: int
    test: int


_counted: dict[tuple, _Counts] = {}  # a catalogue has few models


def estimate(recipe: Recipe) -> Cost:
    """What a recipe's run costs.

    - Operations: forward and backward of a training image, twice with SAM, plus PaCo's keys and the teacher's forward
      pass. Augmentation, optimiser, loss and evaluation are left out (of a ViT's, less than a hundredth).
    - Memory: weights, gradients and optimiser state in four bytes a number (SAM one copy of the weights more), and for
      each image of a micro-batch the outputs of the model's layers, two bytes a number in bf16. Attention maps are not
      kept (fused attention), nor are the images counted, which a small data set holds on the device.
    - Images: all that there are to train on; a recipe that holds a tenth out (`evaluate_on` "val") trains on that less.
    - Disk: two checkpoints, since the old one stays until the new one is written, and the test images' logits.
    - Hours: operations over utilisation x `H100`.

    Raises:
        ValueError: a model or data set that does not exist, a student without a teacher's recipe, images that do not
            fill a batch.
    """
    size, counts = _size(recipe), _count(recipe)
    kinds.check_images(recipe, size.train)
    per_image, extra = counts.forward + counts.backward, counts.keys
    rho = getattr(recipe, "sam_rho", 0.0)
    sam = max(rho) > 0 if isinstance(rho, tuple) else rho > 0
    teacher = None
    if isinstance(recipe, Distil):
        teacher = _count(recipes.get(recipe.teacher), size)
        extra += teacher.forward
    flops_per_image = per_image * (2 if sam else 1) + extra
    images = size.train // recipe.batch_size * recipe.batch_size * recipe.epochs
    state = counts.trained * (1 if recipe.optimizer == "sgd" else 2)
    numbers = counts.parameters + counts.trained * (2 if sam else 1) + state + (teacher.parameters if teacher else 0)
    activations = counts.kept * (recipe.micro_batch or recipe.batch_size) * (2 if recipe.precision == "bf16" else 4)
    heads = 0 if isinstance(recipe, Pretrain) else 3 if isinstance(recipe, Distil) else 1
    disk = 2 * 4 * (counts.parameters + state) + 4 * heads * size.test * size.classes
    share = next(v for k, v in UTILISATION.items() if k in recipe.model)
    flops = flops_per_image * images
    return Cost(
        flops_per_image, flops, (4 * numbers + activations) / GIB, disk / GIB, flops / (share * H100) / 3600, share
    )


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by its name, as `torch.cuda.get_device_name` gives it; None: unknown."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name, re.IGNORECASE)), None)


# --- data ------------------------------------------------------------------------------------------------------


def _size(recipe: Recipe) -> _Size:
    """Classes and images of a recipe's data: published totals, the exponential profile, or your own images'."""
    name = recipe.data
    if name in ("cifar10", "cifar100"):
        classes, (complete, test) = (10 if name == "cifar10" else 100), data.CIFAR_SIZES
        tail = longtail.exponential_counts(complete // classes, classes, recipe.rho or 1.0)
        return _Size(classes, 3, recipe.per_class * classes if recipe.per_class else sum(tail), test)
    if name in large.PUBLISHED:
        whole = large.PUBLISHED[name]
        per_class = recipe.per_class or (large.PER_CLASS if name == "imagenet_bal" else None)
        train = whole.classes * per_class if per_class else whole.train
        if name == "imagenet1k" and recipe.rho and not per_class:
            train = sum(longtail.exponential_counts(whole.least, whole.classes, recipe.rho))
        return _Size(whole.classes, 3, train, whole.test)
    return _loaded(name, None if recipe.per_class else recipe.rho, recipe.per_class, recipe.image_size)


@functools.cache
def _loaded(name: str, rho: float | None, per_class: int | None, image_size: int) -> _Size:
    split = data.load(name, rho, per_class=per_class, image_size=image_size)
    return _Size(len(split.classes), split.train.images.shape[1], len(split.train), len(split.test))


# --- models ----------------------------------------------------------------------------------------------------


def _count(recipe: Recipe, size: _Size | None = None) -> _Counts:
    """Operations and numbers of a recipe's model; `size` where it is that of another recipe's data."""
    size = size or _size(recipe)
    shape = (
        "kind", "model", "image_size", "pool", "layer_scale", "trains", "normed", "width", "mask_ratio",
        "decoder_width", "decoder_depth", "decoder_heads", "projection",
    )  # fmt: skip
    key = (size.classes, size.channels, *(getattr(recipe, field, None) for field in shape))
    if key not in _counted:
        _counted[key] = _measure(recipe, size)
    return _counted[key]


def _convolution_backward(gradient, images, weight, *rest, **_) -> int:
    """From shapes: the gradients of the input and of the weight each cost what the forward pass does.

    torch's own count leaves the groups of a convolution out, four times too much for a RegNetY.
    """
    wanted = rest[-1][:2]  # of images, weight and bias
    return 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight) * sum(wanted)


OWN = {torch.ops.aten.convolution_backward: _convolution_backward}


def _measure(recipe: Recipe, size: _Size) -> _Counts:
    """Counts a training pass over two images (one is too few for BatchNorm), halved."""
    model = _build(recipe, size)
    images = torch.empty(2, size.channels, recipe.image_size, recipe.image_size, device="meta")
    kept: list[int] = []

    def look(module, _, output):
        """Elements of every layer's output that a gradient passes through."""
        if isinstance(output, Tensor) and output.requires_grad and not isinstance(module, nn.Identity | nn.Dropout):
            kept.append(output.numel())

    for module in model.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False  # fused attention is one operator, which the meta device does not count
        if not list(module.children()):
            module.register_forward_hook(look)
    with FlopCounterMode(display=False) as forward:
        output = model(images, recipe.mask_ratio) if isinstance(recipe, Pretrain) else model(images)
    elements = sum(kept)
    keys = FlopCounterMode(display=False)
    if isinstance(recipe, Contrast):
        with keys:
            model.encode_keys(images)
    outputs = output if isinstance(output, tuple) else (output,)
    with FlopCounterMode(display=False, custom_mapping=OWN) as backward:
        sum(part.sum() for part in outputs if part.requires_grad).backward()
    parameters = list(model.parameters())
    return _Counts(
        forward.get_total_flops() / 2, backward.get_total_flops() / 2, keys.get_total_flops() / 2,
        sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad), elements / 2,
    )  # fmt: skip


def _build(recipe: Recipe, size: _Size) -> nn.Module:
    """The model that training builds, on the meta device."""
    from ltvit_lib import jobs  # here, since the ledger needs this module and jobs need runs

    nothing = torch.zeros(size.classes, size.channels, 1, 1, dtype=torch.uint8)
    part = data.Images(nothing, torch.arange(size.classes))
    flat = (0.5,) * size.channels
    split = data.Split(recipe.data, part, part, tuple(map(str, range(size.classes))), flat, flat, (1, 2))
    kind = jobs.FinetuneJob if isinstance(recipe, Distil) else jobs.JOBS[recipe.kind]  # here no teacher is asked
    job = kind(recipe, split, torch.device("cpu"))
    with torch.device("meta"):
        model = job.build()
    if isinstance(recipe, Distil):
        model.set_distilled_training(True)
    return model.train()
