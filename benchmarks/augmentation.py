"""Images per second on one thread of our augmentation and of the PIL pipelines that it stands for. One command:

    python benchmarks/augmentation.py [--images 256] [--repeats 11]

Writes figures/data/benchmark_augmentation.csv. Both start from 32 px images in memory (training images of CIFAR-10
where `LTVIT_DATA` has them, else random pixels) and end with one normalised float32 batch; at 32 px also 512 images,
for training at laptop scale augments four steps of 128 at once (`jobs.TOGETHER`). They take turns; the ratio is the
median over rounds of their times in the same round, so that a drift of the machine's speed cancels. Times are the
processor's own, which other programs disturb little.
"""

import argparse
import time
from collections.abc import Callable

from ltvit_lib import augment, data, plots, runs

import numpy as np
import pandas as pd
import torch
import torchvision.transforms as vision
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import auto_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

MEAN, STD = data.STATISTICS["cifar10"]


def timm_student(size: int) -> Callable:
    """timm's own: RandomResizedCrop, flip, RandAugment, tensor, normalisation, erasing (LiVT, DeiT-LT)."""
    options = dict(auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25, re_mode="pixel")
    return create_transform(size, is_training=True, mean=MEAN, std=STD, **options)


def pipeline(crop: Callable, *colours: Callable) -> Callable:
    """Crop, flip, the colours' operations, tensor, normalisation."""
    tensor = (vision.ToTensor(), vision.Normalize(MEAN, STD))
    return vision.Compose([crop, vision.RandomHorizontalFlip(), *colours, *tensor])


def cases(size: int) -> dict[str, tuple[augment.Policy, Callable]]:
    """name -> (our policy, the PIL pipeline) at this output size; padded crops keep the size of their source."""
    resized = RandomResizedCropAndInterpolation(size, scale=(0.2, 1.0), interpolation="bicubic")
    both = {
        "strong": (augment.strong(size, MEAN, STD), timm_student(size)),
        "mgp": (augment.mgp(size, MEAN, STD), pipeline(resized)),
    }
    if size != 32:
        return both
    padded, auto = vision.RandomCrop(32, padding=4), vision.AutoAugment(vision.AutoAugmentPolicy.CIFAR10)
    three = (auto_augment_transform("3a", {}), vision.ColorJitter(0.3, 0.3, 0.3))
    return both | {
        "weak": (augment.weak(size, MEAN, STD), pipeline(padded)),
        "paco_query": (augment.paco_query(size, MEAN, STD, cutout=0), pipeline(padded, auto)),  # PIL has no cutout
        "three": (augment.three(size, MEAN, STD), pipeline(padded, *three)),
    }


def pictures(count: int) -> tuple[Tensor, str]:
    """uint8 (count, 3, 32, 32), and what they show."""
    if any((data.root() / name).exists() for name in ("cifar10", "cifar-10-batches-py")):
        return data.load("cifar10", per_class=-(-count // 10)).train.images[:count], "CIFAR-10"
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator), "random pixels"


def compare(policy: augment.Policy, theirs: Callable, pixels: Tensor, repeats: int) -> dict[str, float]:
    """Images a second of both, their ratio, and how much of our time `draw` takes; medians over rounds."""
    generator, count, rounds = torch.Generator().manual_seed(0), len(pixels), []
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    for _ in range(repeats + 2):
        times = [time.process_time()]
        params = augment.draw(policy, count, generator)
        times.append(time.process_time())
        augment.apply(policy, pixels, params)
        times.append(time.process_time())
        torch.stack([theirs(image) for image in images])
        times.append(time.process_time())
        rounds.append(np.diff(times))
    drawn, applied, pil = np.array(rounds[2:]).T  # the first two warm up
    ours = drawn + applied
    speeds = {"ours": count / np.median(ours), "pil": count / np.median(pil)}
    return speeds | {"ratio": np.median(pil / ours), "draw_share": np.median(drawn / ours)}


def measure(count: int, repeats: int, sizes: tuple[int, ...] = (224, 32)) -> pd.DataFrame:
    """A row a policy and output size, on one thread; `images` says how many made a batch."""
    threads, (pixels, shown) = torch.get_num_threads(), pictures(count)
    torch.set_num_threads(1)
    torch.empty(31 * 2**18).fill_(0)  # 31 MiB, freed: C's allocator then keeps memory, as in a process that trains
    try:
        rows = [
            {"policy": name, "size": size} | compare(*case, pixels, repeats)
            for size in sizes
            for name, case in cases(size).items()
        ]
        common = {"images": count, "pixels": shown, "repeats": repeats, "device": runs.device_name()}
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows).assign(**common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="in a batch; at 32 pixels twice as many, too")
    parser.add_argument("--repeats", type=int, default=11)
    given = parser.parse_args()
    np.random.seed(0)  # timm draws from numpy and from random, torchvision from torch
    table = pd.concat([measure(given.images, given.repeats), measure(2 * given.images, given.repeats, (32,))])
    table.to_csv(plots.figures() / "data" / "benchmark_augmentation.csv", index=False, float_format="%.4g")
    print(table.drop(columns=["device"]).to_string(index=False, float_format="%.2f"))
    print(table["device"].iloc[0])


if __name__ == "__main__":
    main()
