"""Image sets, held in memory once as uint8, and the one door to all of them: `load`.

`load("digits")`, `load("cifar10")`, `load("cifar100")`, or `load("path/to/your/images")`: a folder of class folders,
the same under `train/` and `test/`, or parquet files with an image and a label column. CIFAR is looked for under
`LTVIT_DATA` as the official python archive or as Hugging Face parquet, and downloaded by torchvision if absent.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltvit_lib import longtail

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
# Channel statistics as the papers' code has them (recipes: DeiT-LT and LDAM-DRW; ImageNet for everything at 224).
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Head / mid / tail by index, DeiT-LT's second convention: the first boundary is the first mid class.
BOUNDARIES = {"digits": (3, 7), "cifar10": (3, 7), "cifar100": (36, 71)}


@dataclass(frozen=True)
class Images:
    """uint8 images (N, channels, height, width) with int64 targets (N,)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices) -> "Images":
        indices = torch.as_tensor(np.asarray(indices), dtype=torch.long)
        return Images(self.images[indices], self.targets[indices])

    def to(self, device) -> "Images":
        return Images(self.images.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Split:
    """A long-tailed training set and a test set (and, where asked for, a validation set cut from the former).

    `mean` and `std` are per channel, in 0..1; `boundaries` cut the classes into head, mid and tail by index.
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
    def digest(self) -> str:
        """Twelve hex digits of the training set's content, in order: two runs with one digest saw the same data."""
        content = hashlib.sha256(self.train.images.numpy().tobytes())
        content.update(self.train.targets.numpy().tobytes())
        return content.hexdigest()[:12]

    def with_validation(self, seed: int = 0) -> "Split":
        """Moves a stratified tenth of the training images, at least two a class, to `val`."""
        train, val = longtail.stratified_split(self.train.targets.numpy(), seed=seed)
        return replace(self, train=self.train.subset(train), val=self.train.subset(val))


def root() -> Path:
    """The data folder: `LTVIT_DATA`, or ~/.cache/ltvit. A folder that was named but is not there is an error."""
    named = os.environ.get("LTVIT_DATA")
    path = Path(named or Path.home() / ".cache" / "ltvit").expanduser()
    if named and not path.is_dir():
        raise ValueError(f"LTVIT_DATA names {path}, which is not a folder: create it, or unset LTVIT_DATA")
    return path


def load(
    name: str,
    rho: float | None = None,
    seed: int = 0,
    per_class: int | None = None,
    n_max: int | None = None,
    image_size: int | None = None,
) -> Split:
    """Loads a data set and cuts its training images to a long tail or to a balanced subset.

    Args:
        name: digits, cifar10, cifar100, or the path of a folder or of parquet files with your own images.
        rho: imbalance factor n_max / n_min of the exponential profile; None keeps the images as they are
            (digits: 40).
        seed: of the selection. The published CIFAR selections have seed 0.
        per_class: instead of a tail, this many images of every class.
        n_max: images of the first class; None is the size of the smallest complete class.
        image_size: your own images only: shorter side after resizing, then the centre square (default 224).

    Raises:
        ValueError: an unknown name or path, a damaged file, rho < 1, a class without images.
    """
    if per_class is not None and rho is not None:
        raise ValueError("rho and per_class exclude each other: give one of them")
    if name == "digits":
        split, rho, n_max = _digits(), (40 if rho is None and per_class is None else rho), n_max or 120
        select = _selector(rho, seed, per_class, n_max)
        return replace(split, train=split.train.subset(select(split.train.targets.numpy())))
    select = _selector(rho, seed, per_class, n_max)
    if name in ("cifar10", "cifar100"):
        return _cifar(name, select)
    if Path(name).expanduser().exists():
        split = _own(Path(name).expanduser(), image_size or 224)
        return replace(split, train=split.train.subset(select(split.train.targets.numpy())))
    raise ValueError(f"no data set and no path {name!r}; known: digits, cifar10, cifar100, or a path that exists")


def _selector(rho, seed, per_class, n_max) -> Callable[[np.ndarray], np.ndarray]:
    if per_class is not None:
        return lambda targets: longtail.balanced_indices(targets, per_class, seed=seed)
    if rho is not None:
        return lambda targets: longtail.long_tailed_indices(targets, rho, seed=seed, n_max=n_max)
    return lambda targets: np.arange(len(targets))


def _digits() -> Split:
    """scikit-learn's 1,797 digits: 50 a class for the test, drawn once for all seeds; the rest to select from."""
    raw = load_digits()
    images = torch.from_numpy((raw.images * 255 / 16).round().astype(np.uint8))[:, None]  # (N, 1, 8, 8)
    whole = Images(images, torch.from_numpy(raw.target.astype(np.int64)))
    test = longtail.balanced_indices(raw.target, 50, seed=0)
    pool = np.setdiff1d(np.arange(len(whole)), test)
    mean, std = _statistics(images)
    classes = tuple(str(c) for c in range(10))
    return Split("digits", whole.subset(pool), whole.subset(test), classes, mean, std, BOUNDARIES["digits"])


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in 0..1, a block of images at a time."""
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for block in images.split(1024):
        pixels = block.double() / 255
        total += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = total / (images.numel() / images.shape[1])
    std = (square - mean**2).clamp_min(1e-6).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


# --- CIFAR -----------------------------------------------------------------------------------------------------


def _cifar(name: str, select) -> Split:
    folder = root()
    train_files, test_files = (_find_parquet(folder, name, part) for part in ("train", "test"))
    if bool(train_files) != bool(test_files):
        raise ValueError(f"{folder} holds only one of the train and test parquet files of {name}: fetch the other")
    if train_files:
        label = "label" if name == "cifar10" else "fine_label"
        parts = [_decode_parquet(f, "img", label, s) for f, s in ((train_files, select), (test_files, None))]
    else:
        parts = _cifar_archive(folder, name, select)
    (train, train_total), (test, test_total) = parts
    if (train_total, test_total) != (50_000, 10_000):
        raise ValueError(
            f"{name} under {folder} has {train_total:,} + {test_total:,} images instead of 50,000 + 10,000: "
            "a file is missing; remove the folder and fetch it again"
        )
    mean, std = STATISTICS[name]
    classes = _cifar_classes(name, len(train.targets.unique()))
    return Split(name, train, test, classes, mean, std, BOUNDARIES[name])


def _cifar_classes(name: str, count: int) -> tuple[str, ...]:
    if name == "cifar10":
        return tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    return tuple(str(c) for c in range(max(count, 100)))


def _find_parquet(folder: Path, name: str, part: str) -> list[Path]:
    """Parquet files of one part, in Hugging Face's naming, anywhere under <root>/<name>."""
    return sorted((folder / name).rglob(f"{part}-*.parquet"))


def _cifar_archive(folder: Path, name: str, select):
    """The official archive, read by torchvision after its md5 check; downloaded where nothing is there."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    place = folder / name if (folder / name / kind.base_folder).is_dir() else folder
    try:
        whole = [kind(str(place), train=train, download=True) for train in (True, False)]
    except Exception as error:  # network, md5 and file errors alike: torchvision raises many kinds
        raise ValueError(
            f"{name} is neither complete under {folder} nor could it be downloaded ({_first_line(error)}): put "
            f"{kind.base_folder}/ or the train-*.parquet and test-*.parquet files under {folder / name}, "
            "or name the folder that holds them in LTVIT_DATA"
        ) from error
    parts = []
    for part, chosen in zip(whole, (select, None), strict=True):
        targets = np.asarray(part.targets, dtype=np.int64)
        keep = np.arange(len(targets)) if chosen is None else chosen(targets)
        images = torch.from_numpy(part.data[keep]).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
        parts.append((Images(images, torch.from_numpy(targets[keep])), len(targets)))
    return parts


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- parquet and folders ---------------------------------------------------------------------------------------


def _decode_parquet(files: Sequence[Path], image_column: str, label_column: str, select, size: int | None = None):
    """Reads labels first and decodes only the chosen rows. Returns the images and how many rows there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tables = [pq.read_table(f, columns=[image_column, label_column]) for f in files]
    except (OSError, pa.ArrowInvalid) as error:
        names = ", ".join(f.name for f in files)
        raise ValueError(f"cannot read {names} ({_first_line(error)}): fetch it again") from error
    table = pa.concat_tables(tables)
    targets = table.column(label_column).to_numpy().astype(np.int64)
    keep = np.arange(len(targets)) if select is None else select(targets)
    column = table.column(image_column).take(pa.array(keep))
    images = [_decode(_bytes(cell), f"row {row} of {files[0].parent}", size) for row, cell in zip(keep, column)]  # noqa: B905
    return Images(_stack(images), torch.from_numpy(targets[keep])), len(targets)


def _bytes(cell) -> bytes:
    value = cell.as_py()
    return value["bytes"] if isinstance(value, dict) else value


def _decode(source: bytes | Path, where: str, size: int | None) -> np.ndarray:
    """RGB pixels (H, W, 3); with `size`, the centre square at that resolution."""
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
        image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode the image at {where} ({_first_line(error)}): mend or remove it") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _stack(images: list[np.ndarray]) -> Tensor:
    if len({i.shape for i in images}) != 1:
        raise ValueError("images of several sizes: give image_size to bring them to one")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)


def _own(path: Path, size: int) -> Split:
    """Your own images. Without a test part, a stratified tenth, at least two a class, becomes the test set."""
    if path.is_file() or any(path.rglob("*.parquet")):
        parts, classes = _own_parquet(path, size)
    else:
        parts, classes = _own_folders(path, size)
    train, test = parts.get("train"), parts.get("test")
    if test is None:
        keep, held_out = longtail.stratified_split(train.targets.numpy(), seed=0)
        train, test = train.subset(keep), train.subset(held_out)
    missing = [c for i, c in enumerate(classes) if not (train.targets == i).any()]
    if missing:
        raise ValueError(f"no training images of {', '.join(missing[:5])} under {path}: add some or drop the class")
    mean, std = _statistics(train.images)
    many, few = (sum(n > bound for n in torch.bincount(train.targets).tolist()) for bound in (100, 19))
    return Split(path.name, train, test, tuple(classes), mean, std, (many, few))


def _own_folders(path: Path, size: int) -> tuple[dict[str, Images], list[str]]:
    named = {"train": "train", "test": "test", "val": "test", "validation": "test"}
    folders = {named[d.name]: d for d in sorted(path.iterdir(), reverse=True) if d.is_dir() and d.name in named}
    folders = folders if "train" in folders else {"train": path}
    classes = sorted(d.name for d in folders["train"].iterdir() if d.is_dir() and not d.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"{path} needs at least two class folders with images, or parquet files")
    parts = {}
    for part, folder in folders.items():
        unknown = sorted({d.name for d in folder.iterdir() if d.is_dir()} - set(classes))
        if unknown:
            raise ValueError(f"{folder} has class folders that {folders['train']} lacks: {', '.join(unknown[:5])}")
        files = [(f, i) for i, c in enumerate(classes) for f in _image_files(folder / c)]
        for index, name in enumerate(classes):
            if part == "train" and not any(i == index for _, i in files):
                raise ValueError(f"class folder {folder / name} has no images: add some or remove the folder")
        images = _stack([_decode(f, str(f), size) for f, _ in files])
        parts[part] = Images(images, torch.tensor([i for _, i in files]))
    return parts, classes


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)


def _own_parquet(path: Path, size: int) -> tuple[dict[str, Images], list[str]]:
    import pyarrow.parquet as pq

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    test_files = [f for f in files if f.name.startswith(("test", "val"))]
    by_part = {"train": [f for f in files if f not in test_files], "test": test_files}
    try:
        schema = pq.read_schema(files[0])
    except Exception as error:  # pyarrow raises its own kinds, OSError and ValueError
        raise ValueError(f"cannot read {files[0]} ({_first_line(error)}): fetch it again") from error
    image_column = next((c for c in ("image", "img", "bytes") if c in schema.names), None)
    label_column = next((c for c in ("label", "fine_label", "target", "class") if c in schema.names), None)
    if image_column is None or label_column is None:
        raise ValueError(f"{files[0].name} has columns {schema.names}; an image and a label column are needed")
    parts = {
        part: _decode_parquet(chosen, image_column, label_column, None, size)[0]
        for part, chosen in by_part.items()
        if chosen
    }
    if "train" not in parts:
        raise ValueError(f"{path} has only test files: add train-*.parquet")
    names = _class_names(schema, label_column)
    count = len(names) if names else int(parts["train"].targets.max()) + 1
    for part, images in parts.items():
        if images.targets.min() < 0 or images.targets.max() >= count:
            raise ValueError(f"labels of {part} must lie in 0..{count - 1}: mend the {label_column} column")
    return parts, names or [str(c) for c in range(count)]


def _class_names(schema, label_column: str) -> list[str] | None:
    """The names that Hugging Face datasets keep in the parquet schema, where they did."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get(label_column, {}).get("names")
