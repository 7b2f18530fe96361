"""How the cost of a step grows with tokens, batch, classes and the number of images. One command:

    python benchmarks/growth.py [--repeats 9]

Writes figures/data/benchmark_growth.csv: for each size the seconds, how often they are the smallest size's, the memory
at its fullest and the counted operations. Exponents are fitted over the larger half of the sizes, where what every step
costs anyway has faded. Expected are

    tokens       a ViT's step, the patch fixed                                  1 (weights) to 2 (attention)
    batch        a ViT's step                                                   1
    classes      classifier and Bal-BCE, forward and backward                   1, once they outweigh the rest
    images       making one batch out of so many images in memory               0
    epoch order  drawing the order of all images, once an epoch                 1: of a step the same share
"""

import argparse
from collections.abc import Callable

from ltvit_lib import costs, data, jobs, losses, plots, recipes, runs

import numpy as np
import pandas as pd
import timing
import torch
from stepper import Stepper, random_split
from torch import nn

RECIPE = "laptop_vit_bal_bce"


def exponent(table: pd.DataFrame, column: str) -> float:
    """k of column ~ size^k, by least squares on the logarithms of the larger half of the sizes, at least two.

    NaN where the column has a zero or nothing.
    """
    larger = table.iloc[min(len(table) // 2, len(table) - 2) :]
    if not (larger[column] > 0).all():
        return np.nan
    return np.polyfit(np.log(larger["size"]), np.log(larger[column]), 1)[0]


def grow(what: str, calls: dict[int, Callable], repeats: int, flops: dict[int, float] | None = None) -> pd.DataFrame:
    """A row a size, from the smallest; the sizes take turns, and `relative` to the first is the median over rounds."""
    named = {str(size): call for size, call in calls.items()}
    times, held = timing.rounds(named, repeats), timing.peak_memory(named)
    relative = times.div(times.iloc[:, 0], axis=0).median()
    table = pd.DataFrame({"size": list(calls), "seconds": times.median().tolist(), "relative": relative.tolist()})
    table["mib"] = [held[name] for name in named]
    table["flops"] = [flops[size] for size in calls] if flops else np.nan
    fitted = {"exponent": "relative", "mib_exponent": "mib", "flops_exponent": "flops"}
    fitted = {name: exponent(table, column) for name, column in fitted.items()}
    return table.assign(what=what, **fitted, repeats=repeats, device=runs.device_name())


def vit_steps(what: str, changes: dict[int, dict], repeats: int) -> pd.DataFrame:
    """Whole training steps of a ViT: by size, the fields of its recipe."""
    wanted, split = {size: recipes.get(RECIPE, **fields) for size, fields in changes.items()}, random_split(256)
    flops = {size: r.batch_size * costs.estimate(r).flops_per_image for size, r in wanted.items()}
    return grow(what, {size: Stepper(r, split).step for size, r in wanted.items()}, repeats, flops)


def tokens(repeats: int, pixels: tuple[int, ...] = (16, 32, 48, 64, 96, 128)) -> pd.DataFrame:
    """Four images of growing size, in patches of 4 pixels and the CLS token."""
    return vit_steps("tokens", {(p // 4) ** 2 + 1: dict(image_size=p, batch_size=4) for p in pixels}, repeats)


def batch(repeats: int, sizes: tuple[int, ...] = (8, 16, 32, 64, 128)) -> pd.DataFrame:
    return vit_steps("batch", {size: dict(batch_size=size) for size in sizes}, repeats)


def classes(repeats: int, sizes: tuple[int, ...] = (10, 100, 1000, 8142), images: int = 128) -> pd.DataFrame:
    """A ViT-B's classifier and Bal-BCE on features (B, 768), up to iNaturalist 2018's classes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features = torch.randn(images, 768, device=device, requires_grad=True)

    def head(count: int) -> Callable:
        layer, prior = nn.Linear(768, count, device=device), torch.full((count,), 1 / count, device=device)
        target = torch.arange(images, device=device) % count
        return lambda: losses.balanced_bce(layer(features), target, prior).backward()

    flops = {count: 3 * 2 * images * 768 * count for count in sizes}
    return grow("classes", {count: head(count) for count in sizes}, repeats, flops)


def images(repeats: int, sizes: tuple[int, ...] = (1000, 2000, 5000, 10_000, 20_000, 50_000)) -> pd.DataFrame:
    """One batch of 128 out of so many, and the order of so many."""
    recipe = recipes.get(RECIPE)
    splits = {size: random_split(size) for size in sizes}

    def making(split: data.Split) -> Callable:
        job, chosen = Stepper(recipe, split).job, torch.randint(len(split.train), (128,))
        pixels, whole = split.train.to(job.device), jobs.parts(128, 1)
        return lambda: jobs.make_batches(job, pixels, chosen, (0, 0, 0), whole)

    made = {size: making(split) for size, split in splits.items()}
    ordering = {n: lambda t=s.train.targets: jobs.epoch_order(t, recipe, 0, 0) for n, s in splits.items()}
    return pd.concat([grow("images", made, repeats), grow("epoch order", ordering, repeats)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    table = pd.concat([part(given.repeats) for part in (tokens, batch, classes, images)])
    table.to_csv(plots.figures() / "data" / "benchmark_growth.csv", index=False, float_format="%.4g")
    print(table.drop(columns=["device"]).set_index("what").to_string(float_format="%.4g", na_rep=""))
    print(table["device"].iloc[0])


if __name__ == "__main__":
    main()
