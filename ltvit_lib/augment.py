"""Per-image augmentation of uint8 batches, on the device that holds them.

Flip, crop, RandAugment, AutoAugment, 3-Augment, colour jitter, erasing, cutout.

`draw` makes every random number for n images on the CPU; `apply` draws none. All that `draw` returns has
leading dimension n, so slices (micro-batches, devices) give bit-identical images. Here C counts channels, and s
is a level divided by 10, negative where timm would negate the operation's argument.

Operations, levels and erasing follow timm 1.0.31 (`rand-m9-mstd0.5-inc1`), whose pixels are Pillow's; crops,
AutoAugment and colour jitter follow torchvision; the policies are LiVT's, DeiT-LT's and PaCo's. Two differences,
for speed:

1. Photometric operations come first, at source resolution; timm and torchvision crop and resize before any.
2. Rotation, shear, translation and crop compose into one affine map, sampled once; they resample at each.
   What an operation moves in from outside the crop is the dataset mean, as in timm.

`Policy.order = "drawn"` switches both off. On a CPU, outputs of at least four times the source's side enlarge the
crop first, and maps then sample it linearly: within a few grey levels of the one sampling, .1 on average.

Sampling does not antialias, so keep sources within about 1.5 times the model's size (crops smaller than the
model's input, as CIFAR's always are, need none). Bicubic has torch's a = -.75; Pillow and `evaluate` have -.5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

Stats = Sequence[float]  # one entry per channel
ATTEMPTS = 10  # proposals per box, as in timm and torchvision
ERASE_AREA, ERASE_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm RandomErasing
CHUNK = 2**20  # output elements that a CPU makes at a time: what is made on the way then stays in its cache


@dataclass(frozen=True)
class Policy:
    """What may happen to an image, and how it is normalised.

    Args:
        size: output height and width in pixels.
        mean, std: one entry per channel, for pixels scaled to 0..1.
        crop: "none" stretches the source to `size`; "resized" is RandomResizedCrop by `scale` and `ratio`;
            "padded" shifts by up to `pad` source pixels, black coming in (as torchvision's RandomCrop with
            fill 0, before normalisation), and stretches to `size` if the source has another.
        scale, ratio: range of the crop's area and aspect ratio, as fractions of the source's own.
        flip: probability of a horizontal flip.
        ops: RandAugment's operations by timm's names; `num_ops` are drawn with replacement, each is applied
            with `op_prob`. A repeated name is drawn more often.
        magnitude, magnitude_std: mean and sd of the level, which is clipped to 0..10.
        auto: whether one of AutoAugment's 25 sub-policies for CIFAR-10 is applied, after `ops`.
        jitter: probability of SimCLR's colour jitter: brightness, contrast and saturation by a factor of .6 to
            1.4 and hue by up to a tenth of the circle, in random order.
        grey: probability of losing all colour, after the jitter.
        three: whether one of DeiT III's three (grey, solarised, blurred) is applied, and then a jitter of .3.
        erase: probability of filling one box with normal noise after normalisation (timm's "pixel" mode).
        cutout: side in pixels of a black square about a uniform pixel, cut off at the border; 0 for none.
        interpolation: "bilinear" or "bicubic", wherever a pixel is resampled.
        order: "fast" as above; "drawn" is timm's, and slow: crops and resizes each image first, then applies what was
            drawn in its order, at the output's resolution, resampling and rounding to whole levels at each.
    """

    size: int
    mean: Stats
    std: Stats
    crop: str = "none"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    flip: float = 0.5
    ops: tuple[str, ...] = ()
    num_ops: int = 2
    op_prob: float = 0.5
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    auto: bool = False
    jitter: float = 0.0
    grey: float = 0.0
    three: bool = False
    erase: float = 0.0
    cutout: int = 0
    interpolation: str = "bilinear"
    order: str = "fast"

    def __post_init__(self):
        unknown = [name for name in self.ops if name not in OPS]
        checks = {
            f"size is {self.size}: give the output's pixels, at least 1": self.size >= 1,
            "mean and std need one entry per channel each": len(self.mean) == len(self.std) > 0,
            f"std is {self.std}: make every entry positive": min(self.std, default=1) > 0,
            f"no crop {self.crop!r}; known: none, resized, padded": self.crop in ("none", "resized", "padded"),
            f"scale is {self.scale}: give 0 < low <= high <= 1": 0 < self.scale[0] <= self.scale[1] <= 1,
            f"ratio is {self.ratio}: give 0 < low <= high": 0 < self.ratio[0] <= self.ratio[1],
            f"pad is {self.pad}: give 0 or more pixels": self.pad >= 0,
            f"cutout is {self.cutout}: give 0 or more pixels": self.cutout >= 0,
            f"no operation {', '.join(unknown)}; known: {', '.join(OPS)}": not unknown,
            f"num_ops is {self.num_ops}: give 0 or more": self.num_ops >= 0,
            f"magnitude is {self.magnitude}: give a level in 0..10": 0 <= self.magnitude <= 10,
            f"magnitude_std is {self.magnitude_std}: give a finite sd": 0 <= self.magnitude_std < math.inf,
            "interpolation: use bilinear or bicubic": self.interpolation in ("bilinear", "bicubic"),
            f"no order {self.order!r}; known: fast, drawn": self.order in ("fast", "drawn"),
        }
        for name in ("flip", "op_prob", "jitter", "grey", "erase"):
            checks[f"{name} is {getattr(self, name)}: give a probability"] = 0 <= getattr(self, name) <= 1
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


def weak(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """The CNN teacher's: RandomCrop with 4 black pixels of padding, and flip (LDAM-DRW on CIFAR)."""
    return replace(Policy(size, mean, std, crop="padded"), **overrides)


def strong(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """The student's: RandomResizedCrop, flip, RandAugment m9 mstd.5 inc1, erasing .25 (LiVT BFT, DeiT-LT)."""
    policy = Policy(size, mean, std, crop="resized", ops=RAND_AUGMENT, erase=0.25, interpolation="bicubic")
    return replace(policy, **overrides)


def three(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """DeiT III's: padded crop, flip, 3-Augment (DeiT-LT's CIFAR branch reflects the border; here it is black)."""
    return replace(Policy(size, mean, std, crop="padded", three=True, interpolation="bicubic"), **overrides)


def mgp(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """Masked pre-training's: RandomResizedCrop of 20 to 100 % of the area, and flip (LiVT, MAE)."""
    policy = Policy(size, mean, std, crop="resized", scale=(0.2, 1.0), interpolation="bicubic")
    return replace(policy, **overrides)


def geometric(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """For digits, which a flip would change: about 9 degrees, a shear of .09, a shift of 13.5 %."""
    policy = Policy(size, mean, std, flip=0.0, ops=GEOMETRIC, magnitude=3.0, magnitude_std=1.0)
    return replace(policy, **overrides)


def paco_query(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """PaCo's query on CIFAR: padded crop, flip, AutoAugment for CIFAR-10, black 16 pixel cutout (Cui et al. 2021)."""
    policy = Policy(size, mean, std, crop="padded", auto=True, cutout=16, interpolation="bicubic")
    return replace(policy, **overrides)


def paco_key(size: int, mean: Stats, std: Stats, **overrides) -> Policy:
    """PaCo's key, in SimCLR's style: RandomResizedCrop of 20 to 100 %, flip, colour jitter, grey.

    Without blur, as SimCLR on CIFAR; PaCo's released code blurs half of the keys there too.
    """
    return replace(Policy(size, mean, std, crop="resized", scale=(0.2, 1.0), jitter=0.8, grey=0.2), **overrides)


def draw(policy: Policy, n: int, generator: Generator) -> dict[str, Tensor]:
    """All random numbers for n images, on the CPU; keys that the policy does not need are absent.

    Returns:
        flip: (n,) bool.
        box: (n, 4) height and width as fractions, then y and x, uniform: where in the room that they leave.
        op, level: (n, K) index into OPS, -1 where not applied; level 0..10, signed. RandAugment's slots come
            first, then two of AutoAugment, four of the jitter, one of grey, four of 3-Augment.
        affine: (n, K, 2, 3) from output to input, in coordinates -1..1 of the cropped image.
        erase, seed: (n, 4) top, left, height, width in output pixels, 0 high for none; (n,) of the noise.
        cutout: (n, 4), a box as in `erase`.
    """
    uniform = partial(torch.rand, generator=generator)
    params = {}
    if policy.flip > 0:
        params["flip"] = uniform(n) < policy.flip
    if policy.crop != "none":
        shape, _ = _propose(n, policy.scale, policy.ratio, 1.0, generator)
        params["box"] = torch.cat([shape.clamp(max=1), uniform(n, 2)], 1)
    slots = []
    if policy.ops and policy.num_ops:
        slots.append(_rand_augment(policy, n, generator))
    if policy.auto:
        slots.append(_auto_augment(n, generator))
    if policy.jitter > 0:
        slots.append(_jitter(JITTER, policy.jitter, n, generator))
    if policy.grey > 0:
        slots.append((torch.where(uniform(n, 1) < policy.grey, OPS.index("Grey"), -1), torch.zeros(n, 1)))
    if policy.three:
        one = torch.randint(len(THREE), (n, 1), generator=generator)
        slots.append((torch.tensor([OPS.index(name) for name in THREE])[one], 10 * uniform(n, 1)))
        slots.append(_jitter(THREE_JITTER, 1.0, n, generator))
    if slots:
        params["op"], params["level"] = (torch.cat(columns, 1) for columns in zip(*slots, strict=True))
        if policy.auto or not set(GEOMETRIC).isdisjoint(policy.ops):
            params["affine"] = _affine(params["op"], params["level"] / 10)
    if policy.erase > 0:
        shape, fits = _propose(n, ERASE_AREA, ERASE_RATIO, 1 - 0.5 / policy.size, generator)
        side = (shape * policy.size).round().long() * (fits & (uniform(n) < policy.erase))[:, None]
        params["erase"] = torch.cat([_place(policy.size - side, uniform(n, 2)), side], 1)
        params["seed"] = torch.randint(2**32, (n,), generator=generator)
    if policy.cutout > 0:
        centre = torch.randint(policy.size, (n, 2), generator=generator)
        first = (centre - policy.cutout // 2).clamp(min=0)
        last = (centre - policy.cutout // 2 + policy.cutout).clamp(max=policy.size)
        params["cutout"] = torch.cat([first, last - first], 1)
    return params


def apply(policy: Policy, images: Tensor, params: dict[str, Tensor]) -> Tensor:
    """Augment and normalise: uint8 (B, C, H, W), on any device, to float32 (B, C, size, size).

    Args:
        images: left unchanged. Grey is Pillow's L for C = 3 and the mean over channels otherwise, so that
            ColorIncreasing does nothing to a single channel.
        params: from `draw` with this policy (on the CPU), or the same slice of each.
    """
    _check(images, policy.mean)
    if any(len(value) != len(images) for value in params.values()):
        raise ValueError(f"params must describe {len(images)} images: slice every tensor as the images are")
    plan = _plan(policy, images.shape, params)
    there = plan if images.device.type == "cpu" else _send(plan, images.device)
    if "flip" in there:  # first, for boxes and signs are symmetric: the distribution is the same
        some = there["flip"]
        images = images.index_copy(0, some, images.index_select(0, some).flip(-1))
    operations, drawn = PHOTOMETRIC, policy.order == "drawn"
    if drawn:
        images = _resized(policy, images, plan["box"])
        operations = PHOTOMETRIC | {name: partial(_move, policy, code) for code, name in enumerate(GEOMETRIC)}
    if "op" in params:
        images = _operate(images, operations, params["op"], there)
    out = _normalise(images, policy) if drawn else _geometric(policy, images, there)
    if "erase" in there:
        _erase(out, there, plan["erase"])
    if "cutout" in there:
        image, row, column = _pixels(there["cutout"], plan["cutout"])
        out[image, :, row.long(), column.long()] = _normalise(torch.zeros_like(out[:1, :, :1, :1]), policy).flatten()
    return out


def evaluate(
    images: Tensor, size: int, mean: Stats, std: Stats, crop: float = 1.0, interpolation: str = "bicubic"
) -> Tensor:
    """Test-time images: shorter side to round(size / crop), antialiased; centre crop; normalise.

    uint8 (B, C, H, W) to float32 (B, C, size, size); `crop` is timm's crop_pct (.875: 224 of 256).
    """
    _check(images, mean)
    if not 0 < crop <= 1:
        raise ValueError(f"crop is {crop}: give the fraction of the side to keep, above 0 and up to 1")
    out, short, target = images, min(images.shape[2:]), round(size / crop)
    if short != target:
        shape = [int(side * target / short) for side in images.shape[2:]]  # as torchvision's Resize
        out = F.interpolate(out.float(), shape, mode=interpolation, antialias=True).clamp_(0, 255)
    top, left = (round((side - size) / 2) for side in out.shape[2:])
    return _normalise(out[:, :, top : top + size, left : left + size], Policy(size, mean, std))


def _check(images: Tensor, mean: Stats) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (B, C, H, W), not {images.dtype} {tuple(images.shape)}")
    if images.shape[1] != len(mean):
        raise ValueError(f"images have {images.shape[1]} channels: give mean and std as many entries")


def _normalise(pixels: Tensor, policy: Policy) -> Tensor:
    mean, std = (_constant(tuple(v), pixels.device)[:, None, None] for v in (policy.mean, policy.std))
    return (pixels / 255).sub_(mean).div_(std)


@lru_cache
def _constant(values: tuple, device: torch.device) -> Tensor:
    """On the device once and for all: a copy from the CPU would wait for all that the device has still to do."""
    return torch.tensor(values, dtype=torch.float32, device=device)


# What the device needs to know, in one copy: it is never asked, so that the CPU can run ahead of a GPU.


def _plan(policy: Policy, shape: torch.Size, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Small tensors, on the CPU, for images (B, C, H, W) of this shape.

    box, window: as `_window` gives them.
    flip: the images to flip; cutout: as drawn.
    order, s, back: (K, B) for each slot, images sorted by operation, their s, and the way back to their order.
    rows0, rows1, ...: the images with so many maps; affine1, ...: (n, maps, 2, 3) those, in order.
    erased, erase, seed: the images with a box, their boxes and seeds; the seeds' 32 bits as int32.
    """
    plan, maps = _window(policy, shape, params), torch.zeros(shape[0], dtype=torch.long)
    if "flip" in params:
        plan["flip"] = params["flip"].nonzero()[:, 0]
    if "op" in params:
        plan["order"] = params["op"].t().argsort(stable=True)
        plan["s"] = (params["level"] / 10).t().gather(1, plan["order"])
        plan["back"] = plan["order"].argsort()
    if "affine" in params:
        moves = (params["op"] >= 0) & (params["op"] < len(GEOMETRIC))  # (B, K); other slots' maps are the identity
        maps = moves.sum(1)
    for count in maps.unique().tolist():
        plan[f"rows{count}"] = rows = (maps == count).nonzero()[:, 0]
        if count:
            plan[f"affine{count}"] = params["affine"][rows][moves[rows]].view(-1, count, 2, 3)
    if "erase" in params:
        plan["erased"] = rows = (params["erase"][:, 2] * params["erase"][:, 3]).nonzero()[:, 0]
        seed = params["seed"][rows]
        plan["erase"], plan["seed"] = params["erase"][rows], torch.where(seed < 2**31, seed, seed - 2**32).int()
    if "cutout" in params:
        plan["cutout"] = params["cutout"]
    return plan


def _window(policy: Policy, shape: torch.Size, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the (padded) image: (B, 4) top, left, height, width of the crop as `box`, in whole pixels.

    `window`, absent where nothing is cut: (B, 4) its scale and centre, height before width, in coordinates -1..1.
    """
    whole = side = torch.tensor(shape[2:]).expand(shape[0], 2)
    if policy.crop == "none":
        return {"box": torch.cat([torch.zeros_like(side), side], 1)}
    if policy.crop == "resized":
        side = (params["box"][:, :2] * whole).round().long().clamp(min=1)
    else:
        whole = side + 2 * policy.pad
    corner = _place(whole - side, params["box"][:, 2:])
    window = torch.cat([side / whole, (2 * corner + side) / whole - 1], 1)
    return {"box": torch.cat([corner, side], 1), "window": window}


def _send(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same on the device, by one copy of 32 bit words: float32, or whole numbers of no more bits."""
    words = [t.view(torch.int32) if t.dtype == torch.float32 else t.int() for t in tensors.values()]
    parts = sent(torch.cat([word.flatten() for word in words]), device).split([word.numel() for word in words])
    return {
        name: (part.view(torch.float32) if t.dtype == torch.float32 else part.to(t.dtype)).view(t.shape)
        for (name, t), part in zip(tensors.items(), parts, strict=True)
    }


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on its way to the device: on a GPU from pinned memory, so that nobody waits for the copy."""
    pinned = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


def _chunks(n: int, out: Tensor) -> list[slice]:
    """Slices of range(n): on a CPU, of CHUNK elements of `out`, counted in its images; elsewhere, one for all."""
    step = max(1, CHUNK // out.stride(0) if out.device.type == "cpu" else n)
    return [slice(first, first + step) for first in range(0, n, step)]


# What is drawn for the operations: (n, K) codes, -1 where not applied, and signed levels.


def _rand_augment(policy: Policy, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """`num_ops` of `ops` with replacement, as timm draws them."""
    uniform, drawn = partial(torch.rand, generator=generator), (n, policy.num_ops)
    codes = torch.tensor([OPS.index(name) for name in policy.ops])
    codes = codes[torch.randint(len(codes), drawn, generator=generator)]
    op = torch.where(uniform(drawn) < policy.op_prob, codes, -1)
    level = policy.magnitude + policy.magnitude_std * torch.randn(drawn, generator=generator)
    return op, level.clamp(0, 10) * torch.where(uniform(drawn) < 0.5, 1, -1)


def _auto_augment(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """One of AUTO_AUGMENT's pairs an image; either half with its own probability, and either sign."""
    uniform, pairs = partial(torch.rand, generator=generator), AUTO_AUGMENT
    code = torch.tensor([[OPS.index(name) for name, _, _ in pair] for pair in pairs])  # (25, 2)
    prob, magnitude = (torch.tensor([[half[i] for half in pair] for pair in pairs]) for i in (1, 2))
    pick = torch.randint(len(pairs), (n,), generator=generator)
    op = torch.where(uniform(n, 2) < prob[pick], code[pick], -1)
    return op, magnitude[pick] * 10 / 9 * torch.where(uniform(n, 2) < 0.5, 1, -1)


def _jitter(ops: dict[str, float], prob: float, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """All operations in random order, or none; `ops` has the largest level of each."""
    uniform = partial(torch.rand, generator=generator)
    order = uniform(n, len(ops)).argsort(1)
    code, most = torch.tensor([OPS.index(name) for name in ops]), torch.tensor(list(ops.values()))
    op = torch.where(uniform(n, 1) < prob, code[order], -1)
    return op, most[order] * (2 * uniform(n, len(ops)) - 1)


def _propose(n: int, area: tuple, ratio: tuple, limit: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """First of ATTEMPTS boxes with both sides <= limit: (n, 2) height and width, (n,) whether one fits."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    areas = torch.empty(n, ATTEMPTS).uniform_(*area, generator=generator)
    ratios = torch.empty(n, ATTEMPTS).uniform_(low, high, generator=generator).exp()
    shapes = torch.stack([areas / ratios, areas * ratios], 2).sqrt()  # (n, ATTEMPTS, 2)
    fits = shapes.amax(2) <= limit
    return shapes[torch.arange(n), fits.int().argmax(1)], fits.any(1)


def _place(room: Tensor, where: Tensor) -> Tensor:
    """Uniform integers in 0..room from uniform reals in 0..1."""
    return torch.minimum((where * (room + 1)).long(), room)


# Photometric operations: uint8 (n, C, H, W) and s (n, 1, 1, 1) to uint8, as Pillow computes them.


def _operate(images: Tensor, operations: dict[str, Callable], op: Tensor, there: dict[str, Tensor]) -> Tensor:
    """Slot after slot, each operation that is in `operations` on the images that drew it; `op` (B, K) on the CPU."""
    names = ("", *OPS)  # -1, for none, comes first
    for codes, order, s, back in zip(op.t(), there["order"], there["s"], there["back"], strict=True):
        sizes = torch.bincount(codes + 1, minlength=len(names)).tolist()
        if not any(size and name in operations for size, name in zip(sizes, names, strict=True)):
            continue
        groups = images.index_select(0, order).split(sizes), s[:, None, None, None].split(sizes)
        done = [
            operations[name](x, argument) if name in operations and len(x) else x
            for name, x, argument in zip(names, *groups, strict=True)
        ]
        images = torch.cat(done).index_select(0, back)
    return images


def _autocontrast(x: Tensor, s: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)  # (n, C, 1, 1)
    stretched = ((x - low).float() * 255 / (high - low).clamp(min=1)).clamp_(0, 255)
    return stretched.add_(low * (high == low)).to(torch.uint8)  # truncates


def _equalize(x: Tensor, s: Tensor) -> Tensor:
    n, c, h, w = x.shape
    values = x.reshape(n * c, h * w).long()
    histogram = torch.zeros(n * c, 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    step = (h * w - histogram.gather(1, values.amax(1, keepdim=True))) // 255  # the brightest level left out
    table = ((step // 2 + histogram.cumsum(1) - histogram) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.to(torch.uint8).gather(1, values).view_as(x)


def _posterize(x: Tensor, dropped: Tensor) -> Tensor:
    """Without the lowest bits, as an integer tensor says how many; without all 8, black."""
    return x & (256 - 2**dropped).to(torch.uint8)


def _solarize(x: Tensor, threshold: Tensor | int) -> Tensor:
    return x ^ 255 * (x >= threshold).view(torch.uint8)


def _blend(degenerate: Tensor | int, x: Tensor, s: Tensor) -> Tensor:
    """Pillow's enhancers: the degenerate image at factor 0, the image at 1, beyond it above."""
    factor = (1 + 0.9 * s).clamp(min=0.1)
    return (degenerate + (x - degenerate) * factor).clamp_(0, 255).to(torch.uint8)  # truncates


def _grey(x: Tensor) -> Tensor:
    """(n, 1, H, W) float: Pillow's L, or for other than three channels their rounded mean."""
    if x.shape[1] != 3:
        return (x.sum(1, keepdim=True) / x.shape[1] + 0.5).floor()
    red, green, blue = x.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).float()


def _flat(x: Tensor) -> Tensor:
    """(n, 1, 1, 1) float: the rounded mean of the grey image."""
    total = _grey(x).sum((1, 2, 3), keepdim=True, dtype=torch.long)  # in integers, whatever the batch
    return (total / x[0, 0].numel() + 0.5).floor()


def _smooth(x: Tensor) -> Tensor:
    """Pillow's SMOOTH: a 3 x 3 mean that counts the centre five times; the border stays."""
    out = x.float()
    if min(x.shape[2:]) > 2:
        x = x.short()
        sums = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
        sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
        out[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).floor_()
    return out


def _hue(x: Tensor, s: Tensor) -> Tensor:
    """Turn the hue by s of a tenth of the circle, keeping saturation and value (HSV); three channels only."""
    if x.shape[1] != 3:
        return x
    pixels = x.float()
    value, low = pixels.amax(1), pixels.amin(1)  # (n, H, W)
    spread = value - low
    red, green, blue = (pixels / spread.clamp(min=1)[:, None]).unbind(1)
    hue = torch.where(value == pixels[:, 1], 2 + blue - red, 4 + red - green)
    hue = torch.where(value == pixels[:, 0], green - blue, hue) + 0.6 * s[:, 0]  # in sixths of the circle
    phase = (_constant((5.0, 3.0, 1.0), x.device)[:, None, None] + hue[:, None]) % 6  # (n, 3, H, W)
    fall = torch.minimum(phase, 4 - phase).clamp(0, 1)
    return (value[:, None] - spread[:, None] * fall + 0.5).clamp_(0, 255).to(torch.uint8)


def _blur(x: Tensor, s: Tensor) -> Tensor:
    """Gaussian of .1 to 2 pixels; the border repeats. Pillow's blur approximates it by boxes."""
    n, c, h, w = x.shape
    sigma, reach = 0.1 + 1.9 * s.abs().flatten(), 6
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None]  # (n C, 1, 13)
    out = F.pad(x.float().view(1, n * c, h, w), [reach] * 4, mode="replicate")
    out = F.conv2d(out, kernel[:, :, None], groups=n * c)
    out = F.conv2d(out, kernel[:, :, :, None], groups=n * c)
    return (out.view_as(x) + 0.5).to(torch.uint8)


PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda x, s: 255 - x,
    "PosterizeIncreasing": lambda x, s: _posterize(x, 4 + (s.abs() * 4).int()),  # keeps 4 to 0 bits
    "SolarizeIncreasing": lambda x, s: _solarize(x, 256 - (s.abs() * 256).to(torch.int16)),
    "SolarizeAdd": lambda x, s: x + (x < 128).view(torch.uint8) * (s.abs() * 110).to(torch.uint8),
    "ColorIncreasing": lambda x, s: _blend(_grey(x), x, s),
    "ContrastIncreasing": lambda x, s: _blend(_flat(x), x, s),
    "BrightnessIncreasing": lambda x, s: _blend(0, x, s),
    "SharpnessIncreasing": lambda x, s: _blend(_smooth(x), x, s),
    "Posterize": lambda x, s: _posterize(x, (s.abs() * 4).round().int()),  # AutoAugment's, keeps 8 to 4 bits
    "Hue": _hue,
    "Grey": lambda x, s: _grey(x).to(torch.uint8).expand_as(x),
    "Solarize128": lambda x, s: _solarize(x, 128),
    "Blur": _blur,
}
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
OPS = GEOMETRIC + tuple(PHOTOMETRIC)  # `op` counts along this
RAND_AUGMENT = OPS[:15]  # timm's


def _of_ops(name: str) -> str:
    """torchvision's name of an operation, as OPS has it."""
    return next(name + ending for ending in ("", "Rel", "Increasing") if name + ending in OPS)


JITTER = {"BrightnessIncreasing": 4 / 0.9, "ContrastIncreasing": 4 / 0.9, "ColorIncreasing": 4 / 0.9, "Hue": 10.0}
THREE = ("Grey", "Solarize128", "Blur")
THREE_JITTER = dict.fromkeys(("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing"), 3 / 0.9)
AUTO_AUGMENT = tuple(  # torchvision's for CIFAR-10, 25 pairs: name, probability, magnitude 0..9 (Cubuk et al. 2019)
    tuple((_of_ops(name), prob, magnitude or 0) for name, prob, magnitude in pair)
    for pair in AutoAugment(AutoAugmentPolicy.CIFAR10).policies
)


def _affine(op: Tensor, s: Tensor) -> Tensor:
    """(n, K) to (n, K, 2, 3): where each output point comes from, in coordinates -1..1 of the cropped image.

    timm's: up to 30 degrees about the centre, shear up to .3 about the top left corner, shift up to 45 %.
    """
    turn, shear_x, shear_y, shift_x, shift_y = (
        torch.where(op == code, s * most, 0) for code, most in enumerate((math.pi / 6, 0.3, 0.3, 0.9, 0.9))
    )
    x = torch.stack([turn.cos(), shear_x - turn.sin(), shear_x + shift_x], -1)
    y = torch.stack([shear_y + turn.sin(), turn.cos(), shear_y + shift_y], -1)
    return torch.stack([x, y], -2)


def _geometric(policy: Policy, images: Tensor, there: dict[str, Tensor]) -> Tensor:
    """Crop, sample what must be sampled, normalise: uint8 (B, C, H, W) to float32 (B, C, size, size)."""
    shape, size, window, mode = images.shape, policy.size, there.get("window"), policy.interpolation
    straight = policy.crop != "resized" and tuple(shape[2:]) == (size, size)
    separable = policy.crop == "resized" and mode == "bicubic" and images.device.type == "cpu"
    large = separable and size >= 4 * max(shape[2:])
    if policy.crop == "padded":
        images = F.pad(images, [policy.pad] * 4)
    out = torch.empty(*shape[:2], size, size, device=images.device)
    if large:  # maps then sample the enlarged crops
        for part in _chunks(len(out), out):
            out[part] = _enlarge(policy, images[part], window[part])
        images, window, mode = out, None, "bilinear"
    for name in [name for name in there if name.startswith("rows")]:
        maps = there.get(name.replace("rows", "affine"))
        for part in _chunks(0 if large and maps is None else len(there[name]), out):
            rows, affine, outside = there[name][part], None if maps is None else maps[part], None
            some, view = images.index_select(0, rows), None if window is None else window[rows]
            if straight and affine is None:  # whole shifts are copied, not sampled
                made = _normalise(some if view is None else _shift(some, there["box"][rows], size), policy)
            elif separable and affine is None and policy.ops:  # without operations `_sample` is fast enough
                made = _enlarge(policy, some, view)
            else:
                made, outside = _sample(some, size, affine, view, mode)
                made = made if large else _normalise(made.clamp_(0, 255), policy)
            if outside is not None:
                made.mul_(~outside)  # 0 is the mean; masked_fill_ takes 6 times as long
            out.index_copy_(0, rows, made)
    return out


def _shift(images: Tensor, box: Tensor, size: int) -> Tensor:
    """The window of `size` at each box's top and left pixel."""
    top, left = box[:, :2].unbind(1)
    return images.unfold(2, size, 1).unfold(3, size, 1)[torch.arange(len(images), device=images.device), :, top, left]


def _centres(size: int, device: torch.device) -> Tensor:
    """(size,) pixel centres in coordinates -1..1."""
    return (2 * torch.arange(size, device=device) + 1) / size - 1


def _sample(
    images: Tensor, size: int, affine: Tensor | None, window: Tensor | None, mode: str
) -> tuple[Tensor, Tensor | None]:
    """One resampling through all maps and the crop: (B, C, size, size), and (B, 1, size, size) what left the crop.

    Sums and products element by element: a matrix product may round differently in a smaller batch.
    """
    line = _centres(size, images.device)
    x, y, outside = line[None, None, :], line[None, :, None], None
    for slot in () if affine is None else reversed(affine.unbind(1)):  # from the output back: the last one first
        (a, b, c), (d, e, f) = (row[:, :, None, None].unbind(1) for row in slot.unbind(1))
        x, y = a * x + b * y + c, d * x + e * y + f  # (B, size, size)
        left = (torch.maximum(x.abs(), y.abs()) > 1)[:, None]
        outside = left if outside is None else outside | left
    if window is not None:
        height, width, down, across = window[:, :, None, None].unbind(1)
        x, y = width * x + across, height * y + down
    grid = torch.view_as_real(torch.complex(x, y)).expand(len(images), -1, -1, -1)  # torch.stack takes 8 times as long
    return F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False), outside


def _enlarge(policy: Policy, images: Tensor, window: Tensor) -> Tensor:
    """uint8 (n, C, H, W) to the crop, normalised (n, C, size, size); equal to `_sample` but for rounding.

    For bicubic crops on a CPU, where 16 scattered reads a pixel take most of the time: columns, then rows, four each.
    """
    (n, c, h, w), size = images.shape, policy.size
    centres = window[:, :2, None] * _centres(size, images.device) + window[:, 2:, None]  # (n, 2, size)
    (row, down), (column, across) = (_taps(centres[:, i], side) for i, side in enumerate((h, w)))
    pixels = _normalise(images, policy).permute(0, 3, 1, 2).reshape(n * w, c * h)
    pixels = _weighted(pixels, column + w * torch.arange(n)[:, None, None], across).view(n, size, c * h)
    row = row[:, None] + h * torch.arange(n * c).view(n, c, 1, 1)  # (n, C, size, 4)
    pixels = _weighted(pixels.transpose(1, 2).reshape(-1, size), row, down[:, None].expand_as(row))
    pixels = pixels.view(n, c, size, size)
    for channel, mean, std in zip(pixels.unbind(1), policy.mean, policy.std, strict=True):
        channel.clamp_(-mean / std, (1 - mean) / std)
    return pixels


def _weighted(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums of four rows each; contiguous, for other strides take a path that rounds otherwise."""
    index, weight = index.reshape(-1, 4), weight.reshape(-1, 4)
    return F.embedding_bag(index, rows.contiguous(), per_sample_weights=weight, mode="sum")


def _taps(centres: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(n, size) in coordinates -1..1 to the (n, size, 4) nearest of `length` pixels, and torch's bicubic weights."""
    place = ((centres[..., None] + 1) * length - 1) / 2
    near = place.floor() + torch.arange(-1, 3)
    away = (place - near).abs()  # up to 2
    inner, outer = (1.25 * away - 2.25) * away**2 + 1, ((3.75 - 0.75 * away) * away - 6) * away + 3
    return near.long().clamp(0, length - 1), torch.where(away <= 1, inner, outer)


# timm's order: crop and resize, then slot after slot.


def _resized(policy: Policy, images: Tensor, box: Tensor) -> Tensor:
    """The crops, antialiased, in whole levels: uint8 (B, C, H, W) to (B, C, size, size); `box` on the CPU."""
    if policy.crop == "padded":
        images = F.pad(images, [policy.pad] * 4)
    windows = zip(images.split(1), box.tolist(), strict=True)
    crops = [image[:, :, top : top + height, left : left + width] for image, (top, left, height, width) in windows]
    resize = partial(F.interpolate, size=(policy.size,) * 2, mode=policy.interpolation, antialias=True)
    return (torch.cat([resize(crop.float()) for crop in crops]) + 0.5).clamp_(0, 255).to(torch.uint8)


def _move(policy: Policy, code: int, images: Tensor, s: Tensor) -> Tensor:
    """One geometric operation; timm fills with the mean's whole level, and Pillow truncates."""
    affine = _affine(torch.full_like(s[:, :, 0, 0], code), s[:, :, 0, 0])
    pixels, outside = _sample(images, policy.size, affine, None, policy.interpolation)
    pixels = pixels.clamp_(0, 255)
    fill = _constant(tuple(float(round(255 * mean)) for mean in policy.mean), images.device)
    return torch.where(outside, fill[:, None, None], pixels).to(torch.uint8)


def _erase(out: Tensor, there: dict[str, Tensor], box: Tensor) -> None:
    """Overwrite the boxes of some images with standard normal noise of each one's own seed, in place."""
    channel = out.stride(1) * torch.arange(out.shape[1], dtype=torch.int32, device=out.device)[:, None]
    for part in _chunks(len(box), out):
        image, row, column = _pixels(there["erase"][part], box[part])
        position = channel + row * out.shape[3] + column  # (C, pixels), in an image
        noise = _noise(there["seed"][part][image], position)
        out.view(-1).scatter_(0, (position + there["erased"][part][image] * out.stride(0)).flatten(), noise)


def _pixels(box: Tensor, on_cpu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pixels of (n, 4) boxes: (N,) box, row and column. The CPU's copy says how many, so no device is asked."""
    count, box = int((on_cpu[:, 2] * on_cpu[:, 3]).sum()), box.int()  # int64 divides slowly
    area = box[:, 2] * box[:, 3]
    which = torch.arange(len(box), device=box.device).repeat_interleave(area, output_size=count)
    first = area.cumsum(0, dtype=torch.int32) - area
    place = torch.arange(count, dtype=torch.int32, device=box.device) - first.index_select(0, which)
    top, left, _, width = (edge.index_select(0, which) for edge in box.unbind(1))
    return which, top + place // width, left + place % width


def _noise(seed: Tensor, position: Tensor) -> Tensor:
    """Standard normal from int32 seeds and positions alone, flattened: the same in any batch, on any device."""
    quantile = _hash(_hash(position) ^ seed) >> 20 & 0xFFF
    return _normal_table(seed.device).index_select(0, quantile.flatten())


def _hash(x: Tensor) -> Tensor:
    """Mix the bits of an int32 (Wellons' lowbias32): products wrap, and what a shift brings in is masked away."""
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


@lru_cache
def _normal_table(device: torch.device) -> Tensor:
    """4096 equally likely normal quantiles: a look-up gives the same everywhere, a logarithm need not."""
    return torch.special.ndtri((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096).float().to(device)
