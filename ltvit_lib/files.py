"""Images that stay in their files until a batch wants them, and the processes that decode them ahead of it.

`Files` stands where a uint8 tensor would in `data.Images`. Training crops are cut from the whole image by Pillow, which
antialiases; flips, colours, erasing and mixing follow on the device (`ltvit_lib.augment`). Which image is cut where is
known from (seed, epoch, step) alone, so the number of processes changes nothing.

`LTVIT_WORKERS` is the number of decoding processes for each training process: by default its share of the machine's
CPUs minus one, at most 16; 0 decodes in the training process itself. They hand over `CHUNK` images at a time through
shared memory, two chunks each in advance: with 16 of them and 224 pixels, 300 MB.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ltvit_lib.augment import ATTEMPTS, Policy

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".tga",
    ".jp2",
    ".avif",
} & set(Image.registered_extensions())  # fmt: skip, not every Pillow has every decoder
CHUNK = 64  # images that a decoding process hands over at once
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# --- one image -------------------------------------------------------------------------------------------------


def upright(source: bytes | Path | Image.Image, where: str) -> Image.Image:
    """A decoded RGB image, turned as its EXIF entry says; ValueError naming `where` if it is damaged."""
    try:
        image = source
        if not isinstance(source, Image.Image):
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        raise ValueError(
            f"cannot decode the image at {where} ({first_line(error)}): replace it, for a data set without it is "
            "another split"
        ) from None


def refuse(damaged: dict[str, str]) -> None:
    """ValueError for damaged images, messages by their place: the message of one, else the number and five places."""
    if len(damaged) == 1:
        raise ValueError(*damaged.values())
    if damaged:
        first = ", ".join([*damaged][:5]) + ", ..." * (len(damaged) > 5)
        raise ValueError(
            f"cannot decode {len(damaged):,} images, at {first}: replace them, for a data set without them is another "
            "split"
        )


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def square(image: Image.Image, side: int, where: float | None = None) -> Image.Image:
    """The shorter side resized to `side` pixels, bicubic, then a square of it: torchvision's Resize and CenterCrop.

    Args:
        where: of the room that the longer side leaves, the share before the square; None: the centre.
    """
    short = min(image.size)
    if short != side:
        shape = tuple(side if length == short else int(side * length / short) for length in image.size)
        image = image.resize(shape, Image.Resampling.BICUBIC)
    room = [length - side for length in image.size]
    left, top = (round(r / 2) if where is None else _place(r, where) for r in room)
    return image.crop((left, top, left + side, top + side))


def draw_crops(policy: Policy, n: int, generator: Generator) -> Tensor:
    """Random numbers for n training crops: (n, 2 + 2 ATTEMPTS), where to, areas, aspect ratios.

    `augment.draw` keeps the first proposal that fits a square; a photograph's own shape decides here (`crop_box`).
    """
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    where = torch.rand(n, 2, generator=generator)
    areas = torch.empty(n, ATTEMPTS).uniform_(*policy.scale, generator=generator)
    ratios = torch.empty(n, ATTEMPTS).uniform_(low, high, generator=generator).exp()
    return torch.cat([where, areas, ratios], 1)


def crop_box(policy: Policy, width: int, height: int, drawn: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of torchvision's RandomResizedCrop: the first of ATTEMPTS proposals that fits.

    Where none does, it is the centre, cut to the nearest allowed aspect ratio (width / height).
    """
    (y, x), areas, ratios = drawn[:2], drawn[2 : 2 + ATTEMPTS], drawn[2 + ATTEMPTS :]
    for area, ratio in zip(areas, ratios, strict=True):
        w, h = (round(math.sqrt(width * height * area * r)) for r in (ratio, 1 / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = _place(width - w, x), _place(height - h, y)
            return left, top, left + w, top + h
    low, high = policy.ratio
    w = round(height * high) if width > height * high else width
    h = round(width / low) if width < height * low else height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _place(room: int, where: float) -> int:
    """A whole number in 0..room from a uniform one in 0..1."""
    return min(int(where * (room + 1)), room)


def training_view(image: Image.Image, policy: Policy, drawn: Sequence[float]) -> Image.Image:
    """The policy's crop, (policy.size, policy.size); of "padded" a square anywhere along the longer side.

    The padding itself, and all that follows a crop, is left to `augment.apply`.
    """
    if policy.crop == "resized":
        part = image.crop(crop_box(policy, *image.size, drawn))  # first, so that nothing outside it is seen
        return part.resize((policy.size, policy.size), RESAMPLING[policy.interpolation])
    return square(image, policy.size, drawn[0] if policy.crop == "padded" else None)


# --- many images -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Files:
    """Image files in the place of a uint8 tensor (N, 3, side, side): indexing decodes.

    What `files[rows]` gives is the evaluation view: the shorter side resized to `side`, the centre square.
    """

    root: Path
    names: np.ndarray  # (N,) bytes, relative to root: one block of memory, which processes share
    sizes: np.ndarray  # (N,) int64, in bytes
    side: int

    @classmethod
    def found(cls, root: Path, names: np.ndarray, side: int) -> "Files":
        """Files whose presence has been checked; ValueError naming the first that is missing or empty."""
        base, count = os.fsencode(root), len(names)
        blocks = np.array_split(names, max(1, count // 1024))
        with ThreadPoolExecutor(16) as pool:  # a network's file system answers many questions at once
            sizes = np.array(sum(pool.map(partial(_sizes, base), blocks), []), dtype=np.int64)
        for what, wrong in (("missing", sizes < 0), ("empty", sizes == 0)):
            if wrong.any():
                first = os.fsdecode(names[wrong.argmax()])
                raise ValueError(f"{wrong.sum():,} of {count:,} images under {root} are {what}, first {first}: add it")
        return cls(Path(root), names, sizes, side)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.side, self.side

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows) -> Tensor:
        """uint8 images for rows of any kind that indexes a tensor's first dimension, decoded by threads."""
        rows = np.arange(len(self))[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        blocks = np.array_split(rows.reshape(-1), max(1, math.ceil(rows.size / 16)))
        with ThreadPoolExecutor(max(1, workers())) as pool:
            return torch.cat(list(pool.map(self.read, blocks))).view(*rows.shape, *self.shape[1:])

    def subset(self, rows) -> "Files":
        rows = np.asarray(rows)
        return replace(self, names=self.names[rows], sizes=self.sizes[rows])

    def sized(self, side: int) -> "Files":
        """The same files, seen at another resolution."""
        return replace(self, side=side)

    def to(self, device) -> "Files":
        """Itself: images go to a device when they have been decoded."""
        return self

    def content(self) -> bytes:
        """What tells one set of files from another without reading them: relative paths and sizes, in order."""
        return b"\0".join(self.names.tolist()) + self.sizes.astype("<i8").tobytes()

    def image(self, row: int) -> Image.Image:
        path = self.root / os.fsdecode(self.names[row])
        return upright(path, str(path))

    def read(self, rows) -> Tensor:
        """Evaluation views (n, 3, side, side) of a sequence of rows, one after the other."""
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for slot, row in enumerate(rows):
            out[slot] = np.asarray(square(self.image(int(row)), self.side)).transpose(2, 0, 1)
        return torch.from_numpy(out)

    def crops(self, rows: Tensor, views: Sequence[tuple[Policy, Tensor]]) -> list[Tensor]:
        """Training crops of a sequence of rows, each image decoded once however often it occurs.

        Args:
            rows: (n,).
            views: a policy and its share (n, ...) of `draw_crops`, once for each crop wanted of an image.

        Returns:
            uint8 (n, 3, size, size) for each view.
        """
        out = [np.empty((len(rows), 3, policy.size, policy.size), dtype=np.uint8) for policy, _ in views]
        drawn = [numbers.tolist() for _, numbers in views]
        for row in rows.unique().tolist():
            image = self.image(row)
            for slot in (rows == row).nonzero()[:, 0].tolist():
                for pixels, (policy, _), numbers in zip(out, views, drawn, strict=True):
                    pixels[slot] = np.asarray(training_view(image, policy, numbers[slot])).transpose(2, 0, 1)
        return [torch.from_numpy(pixels) for pixels in out]


def _sizes(base: bytes, names: np.ndarray) -> list[int]:
    """Sizes in bytes, -1 for what is not there."""
    return [_size(os.path.join(base, name)) for name in names.tolist()]


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


# --- processes that decode -------------------------------------------------------------------------------------


def workers() -> int:
    """How many processes decode for this one: `LTVIT_WORKERS`, or this process's share of the CPUs minus one."""
    named = os.environ.get("LTVIT_WORKERS")
    if named is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(16, max(0, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))
    if not named.isdecimal():
        raise ValueError(f"LTVIT_WORKERS is {named!r}: give the number of decoding processes, 0 for none")
    return int(named)


class _Made(Dataset):
    """What `make` returns for an item; its error as text, for a process would send a traceback of many lines."""

    def __init__(self, make: Callable):
        self.make = make

    def __getitem__(self, item):
        try:
            return self.make(item)
        except ValueError as error:
            return str(error)


def prefetched(make: Callable[[int], Tensor | list[Tensor]], items: range) -> Iterator[Tensor | list[Tensor]]:
    """make(item) for every item in order, made ahead by `workers()` processes and, beside CUDA, in pinned memory.

    Raises:
        ValueError: what `make` raised.
        OSError: a process died, most often because a container's shared memory is too small.
    """
    count = min(workers(), len(items) - 1)  # a single item is not worth a process
    ahead = dict(num_workers=count, prefetch_factor=2) if count > 0 else {}
    # a generator of its own, for the loader would draw a seed from the run's
    loader = DataLoader(
        _Made(make), batch_size=None, sampler=items, generator=Generator(), pin_memory=torch.cuda.is_available(),
        **ahead,
    )  # fmt: skip
    try:
        for made in loader:
            if isinstance(made, str):
                raise ValueError(made)
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a decoding process died ({first_line(error)}): lower LTVIT_WORKERS, or give the machine or container "
            "more memory and more shared memory (/dev/shm)"
        ) from None


def evaluation_batches(images: Tensor | Files, rows: Tensor, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time and their uint8 images: a tensor's as they are, of files the centre square at `side`."""
    if not isinstance(images, Files):
        yield from ((block, images[block]) for block in rows.split(512))
        return
    blocks = rows.split(CHUNK)
    with closing(prefetched(partial(_block, images.sized(side), blocks), range(len(blocks)))) as decoded:
        yield from zip(blocks, decoded, strict=True)


def damaged(files: Files) -> dict[str, str]:
    """What is wrong with each image that cannot be decoded, by its path."""
    with closing(prefetched(partial(_damaged, files), range(math.ceil(len(files) / CHUNK)))) as found:
        return {where: message for block in found for where, message in block.items()}


def _damaged(files: Files, item: int) -> dict[str, str]:
    found = {}
    for row in range(item * CHUNK, min((item + 1) * CHUNK, len(files))):
        try:
            files.image(row)
        except ValueError as error:
            found[str(files.root / os.fsdecode(files.names[row]))] = str(error)
    return found


def _block(files: Files, blocks: Sequence[Tensor], item: int) -> Tensor:
    return files.read(blocks[item])
