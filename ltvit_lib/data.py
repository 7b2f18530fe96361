"""Image sets, and the one door to all of them: `load`.

`load("digits")`, `load("cifar10")`, `load("cifar100")`, or `load("path/to/your/images")`: a folder of class folders,
the same under `train/` and `test/` (or another of `PART_FOLDERS`), or parquet files with an image and a label column.
What begins with a dot, and folders that begin with @ or __, are no data. CIFAR is looked for under `LTVIT_DATA` as the
official python archive or as Hugging Face parquet, and downloaded by torchvision if absent. `load("imagenet1k")`,
`imagenet_bal`, `imagenet_lt`, `places_lt` and `inat18` read the published lists and folders under `LTVIT_DATA`; what to
place where stands in `ltvit_lib/large.py`.

Labels are read first and cut to the wanted selection. Small sets are decoded once and held in memory as uint8. The
large ones, and image folders that would take more than `MEMORY_BOUND`, stay in their files (`ltvit_lib.files`) and are
decoded for each batch; of these, training crops are cut from the whole image instead of its centre square.
"""

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ltvit_lib import large, longtail
from ltvit_lib.files import IMAGE_SUFFIXES, Files, evaluation_batches, first_line, refuse, square, upright

import numpy as np
import torch
from torch import Tensor

MEMORY_BOUND = 2**31  # bytes of decoded images that a folder of your own may take; a larger part stays in its files
# Channel statistics as the papers' code has them (CIFAR: DeiT-LT and LDAM-DRW; ImageNet-LT, -BAL and iNaturalist:
# LiVT's masked pre-training; ImageNet's for the rest).
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": _IMAGENET,
    "imagenet1k": _IMAGENET,
    "imagenet_lt": ((0.479672, 0.457713, 0.407721), (0.278976, 0.271203, 0.286062)),
    "imagenet_bal": ((0.480767, 0.457071, 0.407718), (0.279940, 0.272481, 0.286038)),
    "places_lt": _IMAGENET,
    "inat18": ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
}
# Head / mid / tail by index, DeiT-LT's second convention: the first boundary is the first mid class. Other sets are cut
# where the thresholds of 100 and 20 images are.
BOUNDARIES = {
    "digits": (3, 7),
    "cifar10": (3, 7),
    "cifar100": (36, 71),
    "imagenet_lt": (390, 835),
    "inat18": (842, 4543),
}
PART_FOLDERS = {  # in small or capital letters; the words are those of Hugging Face's datasets
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
BESIDE_IMAGES = {".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".ini", ".db"}
HIDDEN = (".", "@", "__")  # .ipynb_checkpoints, @eaDir, __MACOSX: copies that programs leave
CIFAR_SIZES = (50_000, 10_000)  # images of the complete train and test parts


@dataclass(frozen=True)
class Images:
    """uint8 images (N, channels, height, width), in memory or in their files, with int64 targets (N,)."""

    images: Tensor | Files
    targets: Tensor
    source: np.ndarray | None = None  # (N,) bytes, what each was decoded from, where pixels depend on a resolution

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices) -> "Images":
        indices = torch.as_tensor(np.asarray(indices), dtype=torch.long)
        images = self.images.subset(indices) if isinstance(self.images, Files) else self.images[indices]
        return Images(images, self.targets[indices], None if self.source is None else self.source[indices.numpy()])

    def to(self, device) -> "Images":
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Split:
    """A long-tailed training set and a test set (and, where asked for, a validation set cut from the former).

    `mean` and `std` are per channel, in 0..1; `boundaries` cut the classes, from the most frequent to the rarest, into
    head, mid and tail.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    boundaries: tuple[int, int]
    val: Images | None = None

    @property
    def counts(self) -> list[int]:
        return torch.bincount(self.train.targets, minlength=len(self.classes)).tolist()

    @property
    def groups(self) -> dict[str, Tensor]:
        """(C,) masks by rank of frequency; `index_groups` where classes come in that order, as in the named sets."""
        rank = np.argsort(np.argsort(-np.asarray(self.counts), kind="stable"))
        return {k: mask[rank] for k, mask in longtail.index_groups(len(self.classes), self.boundaries).items()}

    @property
    def digest(self) -> str:
        """Twelve hex digits of the training set's content, in order: two runs with one digest saw the same data.

        Of your own images and of large sets: relative paths, sizes in bytes and targets, whatever the resolution, for
        a teacher may see them at another one than its student.
        """
        images, source = self.train.images, self.train.source
        if source is not None:
            content = hashlib.sha256(b"\0".join(source.tolist()))
        elif isinstance(images, Files):
            content = hashlib.sha256(images.content())
        else:
            content = hashlib.sha256(images.cpu().contiguous().numpy())
        content.update(self.train.targets.cpu().contiguous().numpy())
        return content.hexdigest()[:12]

    def with_validation(self, seed: int = 0) -> "Split":
        """Moves a stratified tenth of the training images, at least two a class, to `val`."""
        train, val = longtail.stratified_split(self.train.targets.numpy(), seed=seed)
        return replace(self, train=self.train.subset(train), val=self.train.subset(val))


@dataclass(frozen=True)
class _Part:
    """Labels of a part, and how to get at the pixels of some rows: nothing is decoded before the selection."""

    targets: np.ndarray  # (N,) int64
    pixels: Callable[[np.ndarray], Tensor | Files]  # rows (n,) -> uint8 (n, channels, height, width)
    source: np.ndarray | None = None  # (N,) bytes, as in Images

    def only(self, rows: np.ndarray) -> "_Part":
        source = None if self.source is None else self.source[rows]
        return _Part(self.targets[rows], lambda chosen: self.pixels(rows[chosen]), source)

    def images(self, rows: np.ndarray | None = None) -> Images:
        rows = np.arange(len(self.targets)) if rows is None else rows
        source = None if self.source is None else self.source[rows]
        return Images(self.pixels(rows), torch.from_numpy(self.targets[rows]), source)


def root() -> Path:
    """The data folder: `LTVIT_DATA`, or ~/.cache/ltvit. A folder that was named but is not there is an error."""
    named = os.environ.get("LTVIT_DATA")
    path = Path(named or Path.home() / ".cache" / "ltvit").expanduser()
    if named and not path.is_dir():
        raise ValueError(f"LTVIT_DATA names {path}, which is not a folder: create it, or unset LTVIT_DATA")
    return path


def load(
    name: str | Path,
    rho: float | None = None,
    seed: int = 0,
    per_class: int | None = None,
    n_max: int | None = None,
    image_size: int | None = None,
) -> Split:
    """Loads a data set and cuts its training images to a long tail or to a balanced subset.

    Args:
        name: digits, cifar10, cifar100, imagenet1k, imagenet_bal, imagenet_lt, places_lt, inat18, or the path of a
            folder or of a parquet file with your own images. Without a test (or validation) part, a stratified tenth
            of these, at least two a class, becomes the test set.
        rho: imbalance factor n_max / n_min of the exponential profile; None keeps the images as they are
            (digits: 40).
        seed: of the selection. The published CIFAR selections have seed 0.
        per_class: instead of a tail, this many images of every class (imagenet_bal: 160, of ImageNet-1K).
        n_max: images of the first class; None is the size of the smallest complete class (digits: 120).
        image_size: large sets and your own images: shorter side after resizing, then the centre square (default 224).

    Raises:
        ValueError: an unknown name or path, a damaged, missing or empty file, rho < 1, a class without images, counts
            other than the published ones.
    """
    if per_class is not None and rho is not None:
        raise ValueError("rho and per_class exclude each other: give one of them")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be a positive number of pixels, got {image_size}")
    size = 224 if image_size is None else image_size
    name = str(name)
    path = Path(name).expanduser()
    if name == "digits":
        rho = 40 if rho is None and per_class is None else rho
        n_max = 120 if n_max is None else n_max
        train, test, classes = _digits()
    elif name in ("cifar10", "cifar100"):
        train, test, classes = _cifar(name)
    elif name in large.PUBLISHED:
        per_class = _checked_selection(name, rho, per_class)
        train, test, classes = _large(name, size)
    elif path.exists():
        train, test, classes = _own(path, size)
    else:
        raise ValueError(
            f"no data set and no path {name!r}: give digits, cifar10, cifar100 or a path that exists, or one of "
            + ", ".join(large.PUBLISHED)
        )
    rows = None
    if per_class is not None:
        rows = longtail.balanced_indices(train.targets, per_class, seed=seed)
    elif rho is not None:
        rows = longtail.long_tailed_indices(train.targets, rho, seed=seed, n_max=n_max)
    chosen = train.images(rows)
    if name in STATISTICS:
        mean, std = STATISTICS[name]
    else:  # digits: of the whole pool, so that every seed's tail is normalised alike
        mean, std = _statistics(train.images().images if name == "digits" else chosen.images)
    counts = torch.bincount(chosen.targets, minlength=len(classes))
    boundaries = BOUNDARIES.get(name, (int((counts > 100).sum()), int((counts >= 20).sum())))
    return Split(path.stem, chosen, test.images(), classes, mean, std, boundaries)


def _digits() -> tuple[_Part, _Part, tuple[str, ...]]:
    """scikit-learn's 1,797 digits: 50 a class for the test, drawn once for all seeds; the rest to select from."""
    from sklearn.datasets import load_digits  # a quarter of the library's import: only where it is needed

    raw = load_digits()
    images = torch.from_numpy((raw.images * 255 / 16).round().astype(np.uint8))[:, None]  # (N, 1, 8, 8)
    whole = _Part(raw.target.astype(np.int64), lambda rows: images[torch.from_numpy(rows)])
    test = longtail.balanced_indices(raw.target, 50, seed=0)
    return whole.only(np.setdiff1d(np.arange(len(images)), test)), whole.only(test), tuple("0123456789")


def _large(name: str, size: int) -> tuple[_Part, _Part, tuple[str, ...]]:
    """A published set that stays in its files, of which only the selected ones need to be there."""
    parts, classes = large.read(name, root())
    train, test = (
        _Part(part.targets, lambda rows, part=part: Files.found(part.root, part.names[rows], size))
        for part in (parts["train"], parts["test"])
    )
    return train, test, classes


def _checked_selection(name: str, rho: float | None, per_class: int | None) -> int | None:
    """How many images of every class are drawn from a large set; None: all."""
    if name == "imagenet_bal":
        if rho is not None:
            raise ValueError("imagenet_bal is balanced: leave rho at None, or cut a tail from imagenet1k")
        return large.PER_CLASS if per_class is None else per_class
    if name != "imagenet1k" and (rho, per_class) != (None, None):
        raise ValueError(f"{name} is long-tailed as it was published: leave rho and per_class at None")
    return per_class


def _statistics(images: Tensor | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, a block at a time; of files, of 2,048 spread evenly."""
    count, channels, height, width = images.shape
    rows = torch.linspace(0, count - 1, 2048).long().unique() if isinstance(images, Files) else torch.arange(count)
    total = torch.zeros(2, channels, dtype=torch.float64)
    for _, block in evaluation_batches(images, rows, height):
        pixels = block.double() / 255
        total += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, squared = total / (len(rows) * height * width)
    std = (squared - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


# --- CIFAR -----------------------------------------------------------------------------------------------------


def _cifar(name: str) -> tuple[_Part, _Part, tuple[str, ...]]:
    folder = root()
    train_files, test_files = (sorted((folder / name).rglob(f"{part}-*.parquet")) for part in ("train", "test"))
    if bool(train_files) != bool(test_files):
        there, gone = ("train", "test") if train_files else ("test", "train")
        raise ValueError(f"{folder / name} holds the {there} parquet files of {name} but no {gone}-*.parquet: fetch it")
    if train_files:
        parts, classes = _parquet_parts({"train": train_files, "test": test_files})
        train, test = parts["train"], parts["test"]
    else:
        train, test, classes = _cifar_archive(folder, name)
    sizes = len(train.targets), len(test.targets)
    if sizes != CIFAR_SIZES:
        there, whole = (" + ".join(f"{n:,}" for n in pair) for pair in (sizes, CIFAR_SIZES))
        raise ValueError(f"{name} under {folder} has {there} images instead of {whole}: fetch the missing files")
    if name == "cifar10":  # nameless in some parquet copies
        classes = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    return train, test, classes


def _cifar_archive(folder: Path, name: str) -> tuple[_Part, _Part, tuple[str, ...]]:
    """The official archive, read by torchvision after its md5 check; downloaded where nothing is there."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    place = folder / name if (folder / name / kind.base_folder).is_dir() else folder
    try:
        whole = [kind(str(place), train=train, download=True) for train in (True, False)]
    except Exception as error:  # network, md5 and file errors alike: torchvision raises many kinds
        raise ValueError(
            f"{name} is not complete under {folder} and could not be downloaded ({first_line(error)}): put "
            f"{kind.base_folder}/ or the train-*.parquet and test-*.parquet files under {folder / name}, "
            "or name the folder that holds them in LTVIT_DATA"
        ) from None
    train, test = (
        _Part(np.asarray(part.targets, dtype=np.int64), partial(_archive_pixels, part.data)) for part in whole
    )
    return train, test, tuple(whole[0].classes)


def _archive_pixels(data: np.ndarray, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(data[rows]).permute(0, 3, 1, 2).contiguous()  # (n, 3, 32, 32)


# --- decoding --------------------------------------------------------------------------------------------------


def _decode(source: bytes | Path, where: str, size: int | None) -> np.ndarray:
    """Upright RGB pixels (3, H, W); with `size`, the centre square at that resolution."""
    image = upright(source, where)
    return np.asarray(image if size is None else square(image, size)).transpose(2, 0, 1)


def _decode_all(count: int, sources: Iterable[tuple[int, bytes | Path, str]], size: int | None) -> Tensor:
    """uint8 (count, 3, H, W) from (slot, source, where); one copy in memory."""
    out, damaged = None, {}
    for slot, source, where in sources:
        try:
            pixels = _decode(source, where, size)
        except ValueError as error:
            damaged[where] = str(error)
            continue
        if out is None:
            out = np.empty((count, *pixels.shape), dtype=np.uint8)
        if pixels.shape != out.shape[1:]:
            sizes = " instead of ".join(f"{w} x {h}" for _, h, w in (pixels.shape, out.shape[1:]))
            raise ValueError(f"the image at {where} has {sizes} pixels: bring all images to one size")
        out[slot] = pixels
    refuse(damaged)
    return torch.from_numpy(out)


# --- your own images -------------------------------------------------------------------------------------------


def _own(path: Path, size: int) -> tuple[_Part, _Part, tuple[str, ...]]:
    """Your own images. Without a test part, a stratified tenth, at least two a class, becomes the test set."""
    if path.is_file() or any(f.suffix == ".parquet" for f in _below(path)):
        parts, classes = _parquet_parts(_parquet_files(path), size)
    else:
        parts, classes = _folder_parts(path, size)
    train, test = parts["train"], parts.get("test")
    counts = np.bincount(train.targets, minlength=len(classes))
    if not counts.all():
        missing = [classes[c] for c in np.flatnonzero(counts == 0)[:5]]
        raise ValueError(f"no training images of {', '.join(missing)} under {path}: add some or drop the class")
    if test is None:
        if counts.min() < 3:
            raise ValueError(
                f"class {classes[counts.argmin()]} under {path} has {counts.min()} image(s), of which two would be "
                "held out for the test: add images, or give a test part of your own"
            )
        keep, held_out = longtail.stratified_split(train.targets, seed=0)
        train, test = train.only(keep), train.only(held_out)
    return train, test, classes


def _with_one_test(parts: dict) -> dict:
    """A validation part stands in where there is no test part."""
    test = parts.get("test") or parts.get("val")
    return {"train": parts["train"]} | ({"test": test} if test else {})


def _folder_parts(path: Path, size: int) -> tuple[dict[str, _Part], tuple[str, ...]]:
    folders = _part_folders(path)
    classes = tuple(d.name for d in _folders(folders["train"]))
    if len(classes) < 2:
        raise ValueError(f"{path} needs at least two class folders with images, or parquet files")
    parts, others = {}, Counter()
    for part, folder in folders.items():
        unknown = [d.name for d in _folders(folder) if d.name not in classes]
        if unknown:
            raise ValueError(
                f"{folder} has class folders that {folders['train']} lacks ({', '.join(unknown[:5])}): "
                "rename or remove them"
            )
        found = [(f, i) for i, name in enumerate(classes) for f in sorted(_below(folder / name))]
        files = [(f, i) for f, i in found if _is_image(f)]
        others.update(f.suffix.lower() or "none" for f, _ in found if not _is_image(f))
        targets = np.array([i for _, i in files], dtype=np.int64)
        source = np.array([os.fsencode(f.relative_to(path)) + b" %d" % f.stat().st_size for f, _ in files], np.bytes_)
        parts[part] = _Part(targets, partial(_file_pixels, path, [f for f, _ in files], size), source)
        if not files:
            raise ValueError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}): add some or remove it")
    others = {suffix: count for suffix, count in sorted(others.items()) if suffix not in BESIDE_IMAGES}
    if others:
        warnings.warn(
            f"{sum(others.values()):,} files under {path} are left out for their suffix ({', '.join(others)}): convert "
            "what is an image to .png or .jpg",
            stacklevel=4,
        )
    return parts, classes


def _part_folders(path: Path) -> dict[str, Path]:
    """A folder for each part; the whole as training part where none is called train and has class folders."""
    named = [(PART_FOLDERS.get(d.name.lower()), d) for d in _folders(path)]
    if not any(part == "train" and _folders(d) for part, d in named):
        return {"train": path}  # a folder `train` of pictures only is a class: trains
    parts = {}
    for part, folder in named:
        if part is None and any(map(_is_image, _below(folder))):
            raise ValueError(f"{folder} has images beside train, but no part's name: call it test or val, or move it")
        if part in parts:
            raise ValueError(f"{parts[part]} and {folder} are both the {part} part: merge or rename them")
        if part:
            parts[part] = folder
    return _with_one_test(parts)


def _folders(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith(HIDDEN))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def pictures(folder: Path) -> list[Path]:
    """All image files at any depth, sorted."""
    return sorted(filter(_is_image, _below(folder)))


def _below(folder: Path) -> Iterator[Path]:
    """Files at any depth that are data, also of linked folders; each folder once, for links may lead in circles."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(d for d in folders if not d.startswith(HIDDEN))
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
        else:
            seen.add(real)
            yield from (Path(place, name) for name in names if not name.startswith("."))


def _file_pixels(path: Path, files: list[Path], size: int, rows: np.ndarray) -> Tensor | Files:
    """Decoded; above the memory bound, the files themselves."""
    if len(rows) * 3 * size**2 > MEMORY_BOUND:
        names = np.array([os.fsencode(files[row].relative_to(path)) for row in rows], dtype=np.bytes_)
        return Files.found(path, names, size)
    return _decode_all(len(rows), ((i, files[row], str(files[row])) for i, row in enumerate(rows)), size)


# --- parquet ---------------------------------------------------------------------------------------------------

IMAGE_COLUMNS = ("image", "img", "bytes")
LABEL_COLUMNS = ("label", "fine_label", "target", "class")


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    """Files by part, from a word of their own name or their folder's (Hugging Face writes both); of none, to train."""
    if path.is_file():
        return {"train": [path]}
    parts: dict[str | None, list[Path]] = {}
    for file in sorted(f for f in _below(path) if f.suffix == ".parquet"):
        own = re.split(r"[\W\d_]+", file.stem)  # test, test-00000-of-00001, birds_validation_1
        words = [*own, *reversed(file.relative_to(path).parts[:-1])]
        part = next((PART_FOLDERS[w.lower()] for w in words if w.lower() in PART_FOLDERS), None)
        parts.setdefault(part, []).append(file)
    if None in parts and len(parts) > 1:
        raise ValueError(
            f"{parts[None][0]} names no part, as other files under {path} do: begin its name with train, test or val, "
            "or move it"
        )
    if None in parts:
        return {"train": parts[None]}
    if "train" not in parts:
        raise ValueError(f"{path} has only test files: add train-*.parquet")
    return _with_one_test(parts)


def _parquet_parts(files: dict[str, list[Path]], size: int | None = None) -> tuple[dict[str, _Part], tuple[str, ...]]:
    """Labels of every part and the class names: Hugging Face's, or sorted string labels, or 0 .. C-1."""
    import pyarrow.parquet as pq

    first = files["train"][0]
    with _reading(first):
        schema = pq.read_schema(first)
    image, label = (next((c for c in known if c in schema.names), None) for known in (IMAGE_COLUMNS, LABEL_COLUMNS))
    if image is None or label is None:
        raise ValueError(
            f"{first} has columns {', '.join(schema.names)}: call the images {' or '.join(IMAGE_COLUMNS)} and the "
            f"labels {' or '.join(LABEL_COLUMNS)}"
        )
    columns = {part: [_labels(f, label) for f in chosen] for part, chosen in files.items()}
    for part, values in columns.items():
        if not any(map(len, values)):
            raise ValueError(f"{files[part][0]} and its like have no rows: add {part} images or remove them")
    named = {values.dtype.kind == "U" for part in columns.values() for values in part if len(values)}
    if len(named) > 1:
        raise ValueError(f"column {label} has names in some files and numbers in others: use one of them throughout")
    labels = {part: np.concatenate(values) for part, values in columns.items()}
    if named == {True}:
        names = np.unique(labels["train"])
        for part, values in labels.items():
            unknown = np.setdiff1d(values, names)
            if len(unknown):
                raise ValueError(f"labels of {part} that no training image has ({', '.join(unknown[:5])}): mend them")
        labels = {part: np.searchsorted(names, values) for part, values in labels.items()}
        classes = tuple(names.tolist())
    else:
        top = int(labels["train"].max(initial=0))
        classes = tuple(_class_names(schema, label) or map(str, range(min(top + 1, len(labels["train"])))))
    for part, values in labels.items():
        wrong = values[(values < 0) | (values >= len(classes))]
        if len(wrong):
            raise ValueError(
                f"column {label} of {part} has label {wrong[0]} outside 0..{len(classes) - 1}: number classes from 0 "
                "without gaps, or give their names"
            )
    parts = {}
    for part, chosen in files.items():
        rows = {f: len(values) for f, values in zip(chosen, columns[part], strict=True)}
        source = (
            None
            if size is None
            else np.array(  # without a size pixels are what the files hold
                [os.fsencode(f.name) + b" %d %d" % (f.stat().st_size, row) for f in chosen for row in range(rows[f])]
            )
        )
        parts[part] = _Part(labels[part].astype(np.int64), partial(_parquet_pixels, chosen, image, size), source)
    return parts, classes


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Makes any failure of pyarrow one sentence that names the file."""
    try:
        yield
    except Exception as error:  # pyarrow raises its own kinds, OSError and KeyError
        raise ValueError(f"cannot read {file} as parquet ({first_line(error)}): fetch it again") from None


def _labels(file: Path, column: str) -> np.ndarray:
    """(N,) whole numbers or strings."""
    import pyarrow.parquet as pq

    with _reading(file):
        values = pq.read_table(file, columns=[column]).column(column)
    labels = np.array(values.to_pylist()) if len(values) else np.array([], dtype=np.int64)
    if values.null_count or labels.dtype.kind not in "iuU":
        raise ValueError(f"column {column} of {file} must hold a whole number or a name in every row: mend it")
    return labels


def _class_names(schema, column: str) -> list[str] | None:
    """The names that Hugging Face datasets keep in the parquet schema, where they did."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get(column, {}).get("names")


def _parquet_pixels(files: Sequence[Path], column: str, size: int | None, rows: np.ndarray) -> Tensor:
    """Reads the files in blocks and decodes the chosen rows, counted over all files, into the order of `rows`."""
    slots = {row: slot for slot, row in enumerate(rows.tolist())}
    return _decode_all(len(rows), _parquet_cells(files, column, slots), size)


def _parquet_cells(files: Sequence[Path], column: str, slots: dict[int, int]) -> Iterator[tuple[int, bytes, str]]:
    row = 0  # over all files
    for file in files:
        first = row
        for block in _blocks(file, column):
            for cell in block.column(0):
                if row in slots:
                    value = cell.as_py()
                    value = value.get("bytes") if isinstance(value, dict) else value
                    where = f"row {row - first} of {file}"
                    if not isinstance(value, bytes):
                        raise ValueError(f"{where} has no image bytes in column {column}: mend or remove it")
                    yield slots[row], value, where
                row += 1


def _blocks(file: Path, column: str) -> Iterator:
    """A column of a file, 256 rows at a time."""
    import pyarrow.parquet as pq

    with _reading(file):
        yield from pq.ParquetFile(file).iter_batches(256, columns=[column])
