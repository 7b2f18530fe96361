"""Probabilities for images of your own, under the class frequencies that you expect.

    python -m ltvit_lib.predict EXPORTED_MODEL FOLDER --out labels.csv --test-prior uniform

labels every picture in a folder.
"""

import argparse
import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ltvit_lib import augment, data, files, losses
from ltvit_lib.longtail import check_prior
from ltvit_lib.networks import head_logits, logit_scale

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

DECIDE = {"ce": losses.decide_ce, "bce": losses.decide_bce}
PATH = str | os.PathLike
KNOWN = "a folder, or a list of paths, PIL images or uint8 arrays"


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
            (N, channels, H, W); any iterable of paths, PIL images and uint8 arrays, (H, W), (H, W, 3) or (3, H, W), of
            any size; or a folder: all pictures in it and below, sorted, without those that cannot be decoded, which a
            warning names.
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
            classifier, no picture, a given one that cannot be decoded, or raw ones for a model not from `load`.
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
    if not scores:
        raise ValueError(f"images: none found, give at least one ({', '.join(sorted(files.IMAGE_SUFFIXES))})")
    return torch.cat(scores).softmax(-1)


def label(model: nn.Module, pictures, test_prior=None) -> pd.DataFrame:
    """`label` and `probability` of each picture's likeliest class, in the order given; as `predict`, with names.

    Of files, `path` comes first, as given or relative to the folder: `label(model, "photos").to_csv("labels.csv")`.

    Args:
        model: from `load`.
    """
    if not hasattr(model, "config"):
        raise ValueError("model: its class names are unknown; give one that models.load returned")
    paths: list[str] = []
    pictures = pictures if isinstance(pictures, Tensor | files.Files) else _read(pictures, paths)
    probability, best = predict(model, pictures, test_prior=test_prior).max(1)
    names = model.config["label_names"]
    table = pd.DataFrame({"label": [names[c] for c in best], "probability": probability.tolist()})
    if len(paths) == len(table):
        table.insert(0, "path", paths)
    return table


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
    if isinstance(images, Tensor) and images.is_floating_point():
        yield from images.split(size) if len(images) else ()
        return
    if not hasattr(model, "config"):
        raise ValueError(
            "images: raw pictures need the scale of the training images; give a model that models.load returned, or "
            "normalise them with augment.evaluate"
        )
    how = model.config["pretrained_cfg"]
    channels, settings = how["input_size"][0], (how["input_size"][1], how["mean"], how["std"], how["crop_pct"])
    if isinstance(images, Tensor | files.Files):
        for first in range(0, len(images), size):
            yield augment.evaluate(images[first : first + size], *settings)
        return
    pixels = (pil_to_tensor(picture.convert("L") if channels == 1 else picture)[None] for picture in _read(images, []))
    prepared = (augment.evaluate(picture, *settings) for picture in pixels)  # one at a time: photographs are large
    while part := list(islice(prepared, size)):
        yield torch.cat(part)


def _read(pictures, paths: list[str]) -> Iterator[Image.Image]:
    """Upright RGB pictures, one after the other; adds the path of each that is a file to `paths`.

    A picture that cannot be decoded ends a list; of a folder, it is left out.
    """
    folder = Path(pictures) if isinstance(pictures, PATH) and Path(pictures).is_dir() else None
    if folder is not None:
        pictures = data.pictures(folder)
    elif isinstance(pictures, PATH | Image.Image):
        pictures = [pictures]
    elif not isinstance(pictures, Iterable) or (isinstance(pictures, np.ndarray) and pictures.ndim in (2, 3)):
        raise ValueError(f"images: cannot tell the pictures of this {type(pictures).__name__} apart: give {KNOWN}")
    unreadable = []
    for i, picture in enumerate(pictures):
        name = str(picture if folder is None else picture.relative_to(folder)) if isinstance(picture, PATH) else None
        try:
            image = _image(picture, f"images[{i}]" if name is None else str(picture))
        except ValueError:
            if folder is None:
                raise
            unreadable.append(name)
            continue
        paths += [] if name is None else [name]
        yield image
    if unreadable:
        what = f"{len(unreadable)} of {len(pictures)} pictures in {folder} cannot be decoded and are left out"
        warnings.warn(f"{what}: {', '.join(unreadable)}", stacklevel=2)


def _image(picture, where: str) -> Image.Image:
    if isinstance(picture, PATH | Image.Image):
        return files.upright(Path(picture) if isinstance(picture, PATH) else picture, where)
    if not isinstance(picture, np.ndarray | Tensor):
        raise ValueError(f"{where} is of type {type(picture).__name__}: give {KNOWN}")
    array = np.asarray(picture)
    array = array[None] if array.ndim == 2 else array
    if array.ndim == 3 and len(array) in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        what = f"{picture.dtype} {tuple(picture.shape)}"
        raise ValueError(f"{where} is {what}: make it uint8 and (H, W), (H, W, 3) or (3, H, W)")
    return Image.fromarray(array.repeat(3 // array.shape[2], 2))


def main() -> None:
    from ltvit_lib import models, runs  # they import this module

    parser = argparse.ArgumentParser("ltvit_lib.predict", description="Labels pictures, a row of a CSV file for each.")
    parser.add_argument("model", help="a folder that runs.export wrote")
    parser.add_argument("pictures", help="a folder, with all folders below it, or one picture")
    parser.add_argument("--out", default="labels.csv", help="path, label and probability; default: labels.csv")
    parser.add_argument("--test-prior", help='"uniform": classes are equally frequent; default: as trained')
    given = parser.parse_args()
    try:
        runs.make_folder(Path(given.out).parent)
        table = label(models.load(given.model), given.pictures, given.test_prior)
        runs.write(Path(given.out), table.to_csv(index=False).encode())
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"{given.out}: {len(table):,} pictures")


if __name__ == "__main__":
    main()
