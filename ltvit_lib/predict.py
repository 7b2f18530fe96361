"""Probabilities for images of your own, under the class frequencies that you expect."""

from collections.abc import Iterator
from pathlib import Path

from ltvit_lib import augment, files, losses
from ltvit_lib.longtail import check_prior
from ltvit_lib.networks import head_logits, logit_scale

import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

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
    return pil_to_tensor(ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB"))[None]
