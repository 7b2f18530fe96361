"""Models: timm supplies the Vision Transformers; this module adds what timm lacks.

Added here: compact ViTs for 8 and 32 pixel images (registered under timm names, plain and distilled), the CIFAR
ResNets that serve as teachers, the cosine classifier of LDAM, both heads' logits, and checkpoints from files.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ltvit_lib import augment, files, losses
from ltvit_lib.longtail import check_prior

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# --- compact ViTs ----------------------------------------------------------------------------------------------

# name: width, depth, heads, patch, image side. Plain as vit_<name>, with a DIST token as deit_<name>_distilled.
COMPACT = {
    "w64d4_patch2_8": dict(embed_dim=64, depth=4, num_heads=4, patch_size=2, img_size=8),
    "w96d6_patch4_32": dict(embed_dim=96, depth=6, num_heads=3, patch_size=4, img_size=32),
    "w128d6_patch4_32": dict(embed_dim=128, depth=6, num_heads=4, patch_size=4, img_size=32),
}


def _register_vit(name: str, kind: type, shape: dict) -> None:
    side, heads = shape["img_size"], ["head", "head_dist"] if kind is VisionTransformerDistilled else "head"
    card = dict(architecture=name, input_size=(3, side, side), fixed_input_size=True, crop_pct=1.0, classifier=heads,
                first_conv="patch_embed.proj")  # fmt: skip

    def build(pretrained: bool = False, pretrained_cfg: dict | None = None, **kwargs):
        if pretrained and not pretrained_cfg:  # an exported folder brings its own: "local-dir:...", "hf-hub:..."
            raise ValueError(f"{name} has no published weights: train it, or give checkpoint=")
        return build_model_with_cfg(kind, name, pretrained, pretrained_cfg=pretrained_cfg or card, **(shape | kwargs))

    build.__name__, build.__module__ = name, __name__
    register_model(build)


for _name, _shape in COMPACT.items():
    _register_vit(f"vit_{_name}", VisionTransformer, _shape)
    _register_vit(f"deit_{_name}_distilled", VisionTransformerDistilled, _shape)


# --- CIFAR ResNets ---------------------------------------------------------------------------------------------


class NormedLinear(nn.Module):
    """Cosine classifier of LDAM: both sides L2-normalised, no bias. Its output is a cosine in [-1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # unit rows, as LDAM's: the longer a row, the smaller the gradient's turn of it
        self.weight = nn.Parameter(F.normalize(torch.empty(out_features, in_features).uniform_(-1, 1), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class ScaledLinear(nn.Linear):
    """LWS: a classifier whose answers are multiplied by one learnt factor a class (Kang et al. 2020)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut subsamples and pads with zeros (option A)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - in_width) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1 or self.padding:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for small images (He et al. 2016, section 4.2), with LDAM-DRW's option to normalise the classifier."""

    def __init__(
        self, depth: int = 32, num_classes: int = 10, normed: bool = False, width: int = 16, in_chans: int = 3
    ):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6 k + 2 (8, 20, 32, 44, 56), got {depth}")
        blocks, self.num_classes, self.num_features = (depth - 2) // 6, num_classes, 4 * width
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width] + [w for w in (width, 2 * width, 4 * width) for _ in range(blocks)]
        strides = [2 if stage and not i else 1 for stage in range(3) for i in range(blocks)]
        self.blocks = nn.Sequential(
            *(BasicBlock(*shape) for shape in zip(widths[:-1], widths[1:], strides, strict=True))
        )
        self.head = (NormedLinear if normed else nn.Linear)(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


def resnet_cifar(depth: int = 32, num_classes: int = 10, normed: bool = False, **kwargs) -> CifarResNet:
    """The teachers of the CIFAR experiments: ResNet-8, 20, 32 ... with 16, 32 and 64 channels.

    `normed` puts LDAM's cosine classifier on top. ResNet-32 for ten classes has 464,154 parameters, 464,144 normed.
    """
    return CifarResNet(depth, num_classes, normed, **kwargs)


# --- building, loading -----------------------------------------------------------------------------------------


def create(name: str, checkpoint: str | Path | None = None, normed: bool = False, **kwargs) -> nn.Module:
    """Builds any timm model, a compact ViT of this module, or `resnet<depth>_cifar`.

    Args:
        name: for example vit_w96d6_patch4_32, deit_w96d6_patch4_32_distilled, vit_base_patch16_224, resnet32_cifar.
        checkpoint: a run folder, an exported folder, a .safetensors file, or a .pt/.pth/.bin file of weights only.
        normed: LDAM's cosine classifier in place of the linear one.
        **kwargs: num_classes, img_size, drop_path_rate, ...: passed on.

    Returns:
        the model; its `created` holds these arguments, for `runs.export`.

    Raises:
        ValueError: an unknown name, an image size the patches do not divide, or weights that do not fit.
    """
    cifar = re.fullmatch(r"resnet(\d+)_cifar", name)
    if cifar:
        model = resnet_cifar(int(cifar[1]), normed=normed, **kwargs)
    else:
        if not timm.is_model(name):
            raise ValueError(f"no model {name!r}: give a timm name, {', '.join(compact_names())} or resnet32_cifar")
        check_patches(name, kwargs.get("img_size"), kwargs.get("patch_size"))
        model = timm.create_model(name, **kwargs)
        if normed:
            plain = model.get_classifier()
            path = next(path for path, module in model.named_modules() if module is plain)
            model.set_submodule(path, NormedLinear(plain.in_features, plain.out_features))
    model.created = {"name": name} | kwargs | ({"normed": True} if normed else {})
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def load(folder: str | Path) -> nn.Module:
    """A model that `runs.export` wrote, in eval mode; its `config` is the folder's config.json.

    Raises:
        ValueError: no exported model there, or weights that do not fit.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
        name, arguments = config["architecture"], config["model_args"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no exported model's ({error}): give a folder that runs.export wrote") from None
    model = create(name, folder, **arguments).eval()
    model.config = config
    return model


def compact_names() -> list[str]:
    """The ViTs that this module adds to timm's."""
    return [f for n in COMPACT for f in (f"vit_{n}", f"deit_{n}_distilled")]


def patch_size(name: str) -> int | None:
    """The patch size that a model's name states, in pixels."""
    patch = re.search(r"patch(\d+)", name)
    return int(patch[1]) if patch else None


def check_patches(name: str, image_size: int | tuple[int, int] | None, patch: int | None = None) -> None:
    """Raises ValueError where the patch size (None: read from the name) does not divide the image size."""
    patch = patch_size(name) if patch is None else patch
    sides = image_size if isinstance(image_size, tuple | list) else (image_size,)
    for side in sides:
        if patch and side and side % patch:
            raise ValueError(
                f"patch size {patch} of {name} does not divide image size {side}: "
                f"use {side // patch * patch or patch} pixels or another patch size"
            )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights of a run or export folder, a safetensors file or a foreign checkpoint; no pickled code is ever run.

    Raises:
        ValueError: the file is missing, truncated, or holds more than tensors and plain containers.
    """
    path = Path(path)
    if path.is_dir():
        exported = not (path / "last.safetensors").is_file() and (path / "model.safetensors").is_file()
        path = path / ("model.safetensors" if exported else "last.safetensors")
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: give a finished run's folder, a .safetensors or a .pth file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                tensors = {k: file.get_tensor(k) for k in file.keys() if not k.startswith("optimizer.")}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or no safetensors file ({error}): fetch or train it again") from None
        return {k.removeprefix("model.").removeprefix("module."): v for k, v in tensors.items()}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises almost anything
        raise ValueError(
            f"{path} is truncated or holds more than weights, and was not unpickled: "
            "save its state_dict as safetensors where you trust it"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__} instead of a state_dict: save model.state_dict()")
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _from_released(weights: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Names of LDAM-DRW's and Saddle-LongTail's ResNets -> ours; their cosine classifier stores (in, out)."""
    if "linear.weight" not in weights:
        return weights
    renamed = {}
    for key, value in weights.items():
        if key == "linear.weight" and "linear.bias" not in weights:
            value = value.T
        key = re.sub(r"^layer(\d)\.(\d+)", lambda m: f"blocks.{(int(m[1]) - 1) * blocks + int(m[2])}", key)
        renamed[re.sub(r"^linear\b", "head", key)] = value
    return renamed


def load_weights(
    model: nn.Module, source: str | Path | dict, allow_missing: tuple[str, ...] = (), where: str | Path | None = None
) -> None:
    """Loads weights and insists that they fit; parameters whose names start with `allow_missing` may stay fresh.

    `where` names the weights in the message (None: the source).

    Raises:
        ValueError: names or shapes differ; the message names the first of them.
    """
    weights = source if isinstance(source, dict) else read_weights(source)
    where = where or ("the state_dict" if isinstance(source, dict) else source)
    if isinstance(model, CifarResNet):
        weights = _from_released(weights, len(model.blocks) // 3)
    own = model.state_dict()
    shape = [f"{k}: {tuple(w.shape)} here, {tuple(weights[k].shape)} there" for k, w in own.items()
             if k in weights and weights[k].shape != w.shape]  # fmt: skip
    missing = [k for k in own if k not in weights and not k.startswith(allow_missing)]
    extra = [k for k in weights if k not in own]
    if shape or missing or extra:
        first = (shape + [f"{k} is missing" for k in missing] + [f"{k} is not in the model" for k in extra])[0]
        raise ValueError(f"{where} is of another architecture ({first}): build the model that it was saved from")
    model.load_state_dict(weights, strict=False)


def load_encoder(model: VisionTransformer, source: str | Path) -> None:
    """Starts a ViT from a masked autoencoder's encoder: MGP's weights for balanced fine-tuning (LiVT section 4.3).

    `source` is a pre-training run, or its encoder as `runs.export` writes it.

    The classifier starts anew, near zero as in MAE and LiVT, and so does the norm after pooling; the position embedding
    is resized to the model's grid and, unlike in pre-training, is trained. An encoder without a DIST token starts a
    distilled model, whose DIST token then begins as a copy of its CLS token.

    Raises:
        ValueError: no masked autoencoder, or one of another shape.
    """
    weights = read_weights(source)
    if "norm.weight" not in weights or "head.weight" in weights:  # else an exported encoder
        weights = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    if "pos_embed" not in weights:
        raise ValueError(f"{source} holds no masked autoencoder (no 'encoder.' weights): give a pre-training run")
    own = model.state_dict()
    if "norm.weight" not in own:  # average pooling has its own norm instead, which stays fresh
        weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
    position = weights["pos_embed"]
    prefix = sum(token in weights for token in ("cls_token", "dist_token"))
    if "dist_token" in own and "dist_token" not in weights:
        weights["dist_token"] = weights["cls_token"].clone()
        position, prefix = torch.cat([position[:, :1], position], dim=1), prefix + 1
    if int((position.shape[1] - prefix) ** 0.5) ** 2 == position.shape[1] - prefix:  # bicubic, as MAE and LiVT
        grid = list(model.patch_embed.grid_size)
        position = resample_abs_pos_embed(position, grid, num_prefix_tokens=prefix, antialias=False)
    weights["pos_embed"] = position
    load_weights(model, weights, allow_missing=("head", "fc_norm"), where=source)
    for head in (model.head, getattr(model, "head_dist", None)):
        if isinstance(head, nn.Linear):
            nn.init.trunc_normal_(head.weight, std=2e-5)


# --- using -----------------------------------------------------------------------------------------------------


def head_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B, C) of the CLS head and of the DIST head; the second is None for a model without a DIST token.

    timm averages the two in eval mode; DeiT-LT's experts are looked at one by one.
    """
    if not isinstance(model, VisionTransformerDistilled):
        return model(images), None
    tokens = model.forward_features(images)  # (B, 2 + N, D)
    return model.head(model.head_drop(tokens[:, 0])), model.head_dist(model.head_drop(tokens[:, 1]))


def logit_scale(model: nn.Module) -> float:
    """What a cosine classifier's output is multiplied by to become logits: LDAM's s = 30; 1 for other heads."""
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    return 30.0 if isinstance(head, NormedLinear) else 1.0


DECIDE = {"ce": losses.decide_ce, "bce": losses.decide_bce}


@torch.no_grad()
def predict(
    model: nn.Module,
    images,
    train_prior=None,
    test_prior=None,
    loss: str = "ce",
    bias=None,
    smoothing: float = 0.0,
    batch: int = 256,
) -> Tensor:
    """Probabilities (N, C) under a test prior of your choice; puts the model in eval mode.

    A model from `load` knows its training prior, loss, bias and smoothing, and how pictures are prepared for it. The
    two heads of a distilled model are each moved to the test prior, then averaged as logits, as DeiT-LT averages them.

    Args:
        images: (N, channels, S, S) floating, normalised; for a model from `load` also raw pictures: uint8
            (N, channels, H, W), or paths and PIL images of any size.
        train_prior: (C,), what the logits are moved from. Without one, a model from `load` uses what it knows, and
            `loss`, `bias` and `smoothing` are not read.
        test_prior: (C,), "uniform", or {class name: share}, which rules out the classes it leaves out. None: the
            softmax of the raw logits.
        loss: "ce" or "bce", the family the model was trained with.
        bias: (C,) what was added to the logits in training (Bal-CE, Bal-BCE); None: nothing.
        smoothing: label smoothing of the training targets.
        batch: images at once.

    Raises:
        ValueError: a test prior without the training prior, one that is no prior, another loss, an encoder without a
            classifier, pictures that cannot be decoded, or raw ones for a model that did not come from `load`.
    """
    if loss not in DECIDE:
        raise ValueError(f"loss must be 'ce' or 'bce', got {loss!r}")
    prior = None if train_prior is None else check_prior(train_prior, "train_prior")
    given = {"family": loss, "prior": prior, "bias": bias, "smoothing": smoothing, "scale": logit_scale(model)}
    rules = _rules(model, given, test_prior is not None)
    wanted, parameter, scores = _test_prior(model, test_prior), next(model.eval().parameters()), []
    for part in _batches(model, images, batch):
        heads = [z for z in head_logits(model, part.to(parameter)) if z is not None]
        moved = [_moved(z.float(), rule, wanted) for z, rule in zip(heads, rules, strict=False)]
        scores.append(sum(moved) / len(moved))
    return torch.cat(scores).softmax(-1)


def label(model: nn.Module, pictures, test_prior=None) -> pd.DataFrame:
    """`label` and `probability` of each picture's likeliest class, in the order given; as `predict`, with names.

    Args:
        model: from `load`.
    """
    if not hasattr(model, "config"):
        raise ValueError("model: its class names are unknown; give one that models.load returned")
    probability, best = predict(model, pictures, test_prior=test_prior).max(1)
    names = model.config["label_names"]
    return pd.DataFrame({"label": [names[c] for c in best], "probability": probability.tolist()})


def _rules(model: nn.Module, given: dict, moves: bool) -> list[dict]:
    """How each head's logits lead to probabilities: as given, or as the model's config has it."""
    rules, config = [given, given], getattr(model, "config", None)
    if config is not None:
        rules = list(config["ltvit"]["heads"].values())
        if given["prior"] is not None:
            rules = [given | {"scale": rule["scale"]} for rule in rules]
    if not rules:
        raise ValueError("model: it is an encoder without a classifier; fine-tune it first (init=)")
    if moves and any(rule["prior"] is None for rule in rules):
        why = "" if config is None else f" (no prior is known that the logits of {config['ltvit']['loss']} follow)"
        raise ValueError(f"test_prior needs train_prior{why}: longtail.prior(counts) of the training set")
    return rules


def _moved(logits: Tensor, rule: dict, test_prior: Tensor | None) -> Tensor:
    """A head's logits, or its scores under the test prior."""
    logits = logits * rule["scale"]
    if test_prior is None:
        return logits
    decide = DECIDE[rule["family"]]
    return decide(logits, rule["prior"], test_prior, bias=rule["bias"], smoothing=rule["smoothing"])


def _test_prior(model: nn.Module, wanted) -> Tensor | None:
    """(C,) of "uniform", of shares by class name, or of what was given; checked, since it enters here."""
    if isinstance(wanted, dict):
        names = getattr(model, "config", {}).get("label_names", [])
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"test_prior: no class {unknown[0]!r}; known: {', '.join(names) or 'none'}")
        wanted = torch.tensor([float(wanted.get(name, 0)) for name in names], dtype=torch.float64)
        wanted = wanted / wanted.sum()
    elif isinstance(wanted, str):
        if wanted != "uniform":
            raise ValueError(f"test_prior: give (C,) shares, 'uniform' or a dict by class name, not {wanted!r}")
        wanted = torch.full((model.num_classes,), 1 / model.num_classes, dtype=torch.float64)
    return None if wanted is None else check_prior(wanted, "test_prior", zero_allowed=True)


def _batches(model: nn.Module, images, size: int) -> Iterator[Tensor]:
    """Normalised images as they are; raw pictures as the model's evaluation prepares them."""
    images = [images] if isinstance(images, str | Path | Image.Image) else images
    if not len(images):
        raise ValueError("images: give at least one")
    raw = not (isinstance(images, Tensor) and images.is_floating_point())
    if raw and not hasattr(model, "config"):
        raise ValueError(
            "images: raw pictures need the scale of the training images; give a model that models.load returned, or "
            "normalise them with augment.evaluate"
        )
    for first in range(0, len(images), size):
        part = images[first : first + size]
        yield _prepared(part, model.config["pretrained_cfg"]) if raw else part


def _prepared(pictures, how: dict) -> Tensor:
    """(n, channels, S, S) normalised, of uint8 images, or of paths and PIL images; `how` is timm's pretrained_cfg."""
    settings = how["input_size"][1], how["mean"], how["std"], how["crop_pct"]
    if isinstance(pictures, Tensor):
        return augment.evaluate(pictures, *settings)
    channels = how["input_size"][0]
    return torch.cat([augment.evaluate(_pixels(picture, channels), *settings) for picture in pictures])


def _pixels(picture: str | Path | Image.Image, channels: int) -> Tensor:
    """uint8 (1, channels, H, W), upright."""
    if not isinstance(picture, Image.Image):
        picture = files.upright(Path(picture), str(picture))
    picture = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    values = torch.from_numpy(np.array(picture))
    return values.reshape(1, picture.height, picture.width, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def tau_normalise(model: nn.Module, tau: float = 1.0) -> None:
    """Divides each class's weights by their norm to the power tau and drops the bias, in place (Kang et al. 2020)."""
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"tau_normalise needs one linear classifier, got {type(head).__name__}")
    head.weight.div_(head.weight.norm(dim=1, keepdim=True).clamp_min(1e-12) ** tau)
    if head.bias is not None:
        head.bias.zero_()
