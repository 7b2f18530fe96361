"""Where the large published sets lie, and what each of their parts lists. Nothing is decoded here.

Below the data folder (`LTVIT_DATA`):

    imagenet/train/n01440764/*.JPEG ...   ImageNet-1K in 1,000 class folders, and imagenet/val/ in the same ones
    imagenet_lt/ImageNet_LT_train.txt     the lists published with ImageNet-LT (OLTR), and ImageNet_LT_test.txt: lines
                                          "train/n01440764/n01440764_190.JPEG 0" below imagenet/
    places_lt/Places_LT_train.txt         the same for Places-LT, and Places_LT_test.txt; images below places/
    inat18/train2018.json, val2018.json   iNaturalist 2018; images below inat18/, as the JSON names them
    inat18/train/0/*.jpg ...              or instead: class folders named by category, and inat18/val/ in the same ones

The test images are those of the papers: ImageNet-LT's test list (ImageNet's 50,000 validation images), Places-LT's test
list, iNaturalist's validation part. The published validation lists are not read: a recipe with evaluate_on="val" holds
out a tenth of its training images instead, so that no image beside the long tail decides anything.

Classes of ImageNet and Places are numbered as in the lists, those of iNaturalist by category id. (LiVT's reader takes
iNaturalist's folders in lexicographic order: 0, 1, 10, 100 ...)
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ltvit_lib.files import IMAGE_SUFFIXES

import numpy as np


@dataclass(frozen=True)
class Published:
    """What a complete copy holds: classes, training images (of all, of the largest, of the smallest class), test."""

    classes: int
    train: int
    most: int
    least: int
    test: int


_IMAGENET = Published(1000, 1_281_167, 1300, 732, 50_000)
PUBLISHED = {
    "imagenet1k": _IMAGENET,
    "imagenet_bal": _IMAGENET,  # from which it is drawn
    "imagenet_lt": Published(1000, 115_846, 1280, 5, 50_000),
    "places_lt": Published(365, 62_500, 4980, 5, 36_500),
    "inat18": Published(8142, 437_513, 1000, 2, 24_426),
}
# LiVT's Table 8 and its script; its text has 116. The script takes the first 160 that the file system lists, which
# differs between machines: `data.load` draws them by its seed.
PER_CLASS = 160


@dataclass(frozen=True)
class Listing:
    """The images of one part: paths (N,) in bytes, relative to `root`, and int64 targets (N,)."""

    root: Path
    names: np.ndarray
    targets: np.ndarray


def read(name: str, folder: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Lists the train and test parts of a set of `PUBLISHED` below the data folder, and names its classes.

    Raises:
        ValueError: a file or folder is missing or damaged, or its counts are not the published ones.
    """
    parts, classes = READERS[name](folder)
    whole, counts = PUBLISHED[name], np.bincount(parts["train"].targets, minlength=len(classes))
    if not counts.all():
        missing = [classes[c] for c in np.flatnonzero(counts == 0)[:5]]
        raise ValueError(f"{name} has no training images of class {', '.join(missing)}: fetch the missing files")
    there = Published(len(classes), int(counts.sum()), int(counts.max()), int(counts.min()), len(parts["test"].targets))
    if there != whole:
        both = " instead of ".join(
            f"{p.train:,} training images of {p.classes:,} classes ({p.most:,} to {p.least:,} each) and {p.test:,} "
            "test images"
            for p in (there, whole)
        )
        raise ValueError(f"{name} under {parts['train'].root} has {both}: fetch the published lists and images again")
    return parts, classes


# --- list files ------------------------------------------------------------------------------------------------


def _lists(name: str, stem: str, images: str, folder: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Parts from `stem`_train.txt and `stem`_test.txt; a class is named by its training images' folder."""
    count, image_root = PUBLISHED[name].classes, _folder(name, folder / images)
    rows = {part: _rows(name, folder / f"{stem}_{part}.txt", count) for part in ("train", "test")}
    parts = {part: _listing(image_root, list(found)) for part, found in rows.items()}
    classes = [str(c) for c in range(count)]
    for path, label in zip(parts["train"].names, parts["train"].targets, strict=True):
        classes[label] = re.sub(r"^[^/]*/|/[^/]*$", "", path.decode())
    return parts, tuple(classes)


def _rows(name: str, file: Path, classes: int) -> Iterator[tuple[str, int]]:
    """Path and label of every line."""
    for number, line in enumerate(_text(name, file).splitlines(), 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= classes:
            raise ValueError(
                f"line {number} of {file} is {line[:80]!r}: it needs a relative path and a label in 0..{classes - 1}"
            )
        yield path, int(label)


def _listing(root: Path, rows: list[tuple[str, int]]) -> Listing:
    names = np.array([path.encode() for path, _ in rows], dtype=np.bytes_)
    return Listing(root, names, np.array([label for _, label in rows], dtype=np.int64))


def _text(name: str, file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"{name} needs {file} ({reason}): place it as ltvit_lib/large.py shows") from None


def _folder(name: str, path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{name} needs the folder {path}: place it as ltvit_lib/large.py shows, or set LTVIT_DATA")
    return path


# --- class folders ---------------------------------------------------------------------------------------------


def _class_folders(name: str, subfolder: str, folder: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """Parts from train/ and val/; folders that are named by numbers come in the order of these numbers."""
    root = _folder(name, folder / subfolder)
    parts, classes = {}, None
    for part, place in (("train", "train"), ("test", "val")):
        found = (d for d in os.scandir(_folder(name, root / place)) if d.is_dir() and not d.name.startswith("."))
        names = sorted((d.name for d in found), key=_numerically)
        classes = classes or names
        if names != classes:
            odd = sorted(set(names) ^ set(classes))[:5]
            raise ValueError(
                f"{root / place} and {root / 'train'} differ in class folders ({', '.join(odd)}): mend them"
            )
        rows = [(path, c) for c, label in enumerate(classes) for path in _images(root, f"{place}/{label}")]
        parts[part] = _listing(root, rows)
    return parts, tuple(classes)


def _numerically(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (0, name)


def _images(root: Path, folder: str) -> list[str]:
    found = os.listdir(root / folder)
    return sorted(f"{folder}/{f}" for f in found if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES and f[0] != ".")


# --- iNaturalist -----------------------------------------------------------------------------------------------


def _inat(folder: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    root = _folder("inat18", folder / "inat18")
    if not (root / "train2018.json").is_file() and (root / "train").is_dir():
        return _class_folders("inat18", "inat18", folder)
    (train, named), (test, others) = (_inat_rows(root / f"{part}2018.json") for part in ("train", "val"))
    classes = dict(sorted((named | others).items()))
    if list(classes) != list(range(len(classes))):
        raise ValueError(f"{root / 'train2018.json'} has categories other than 0..{len(classes) - 1}: fetch it again")
    return {"train": _listing(root, train), "test": _listing(root, test)}, tuple(classes.values())


def _inat_rows(file: Path) -> tuple[list[tuple[str, int]], dict[int, str]]:
    """Path and category of every image, and the categories' names."""
    try:
        content = json.loads(_text("inat18", file))
        category = {a["image_id"]: int(a["category_id"]) for a in content["annotations"]}
        rows = [(image["file_name"], category[image["id"]]) for image in content["images"]]
        named = {int(c["id"]): str(c.get("name", c["id"])) for c in content.get("categories", [])}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no complete iNaturalist list ({type(error).__name__}): fetch it again") from None
    return rows, {c: str(c) for c in category.values()} | named


READERS: dict[str, Callable[[Path], tuple[dict[str, Listing], tuple[str, ...]]]] = {
    "imagenet1k": partial(_class_folders, "imagenet1k", "imagenet"),
    "imagenet_bal": partial(_class_folders, "imagenet_bal", "imagenet"),
    "imagenet_lt": partial(_lists, "imagenet_lt", "imagenet_lt/ImageNet_LT", "imagenet"),
    "places_lt": partial(_lists, "places_lt", "places_lt/Places_LT", "places"),
    "inat18": _inat,
}
