"""Models by name: building them, and loading weights from files. timm supplies the Vision Transformers.

What timm lacks is in `ltvit_lib.networks`, predictions for images of your own in `ltvit_lib.predict`; both are reached
from here.
"""

import json
import math
import re
from pathlib import Path

from ltvit_lib.networks import CifarResNet, NormedLinear, compact_names, resnet_cifar
from ltvit_lib.networks import ScaledLinear as ScaledLinear
from ltvit_lib.networks import head_logits as head_logits
from ltvit_lib.networks import logit_scale as logit_scale
from ltvit_lib.networks import tau_normalise as tau_normalise
from ltvit_lib.predict import label as label
from ltvit_lib.predict import predict as predict

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def create(name: str, checkpoint: str | Path | None = None, normed: bool = False, **kwargs) -> nn.Module:
    """Builds any timm model, a compact ViT of `networks`, or `resnet<depth>_cifar`.

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
    grid, patches = list(model.patch_embed.grid_size), position.shape[1] - prefix
    if patches != math.prod(grid) and math.isqrt(patches) ** 2 == patches:  # bicubic, as MAE and LiVT
        position = resample_abs_pos_embed(position, grid, num_prefix_tokens=prefix, antialias=False)
    weights["pos_embed"] = position
    load_weights(model, weights, allow_missing=("head", "fc_norm"), where=source)
    for head in (model.head, getattr(model, "head_dist", None)):
        if isinstance(head, nn.Linear):
            nn.init.trunc_normal_(head.weight, std=2e-5)
