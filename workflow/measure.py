"""Small tables measured on finished runs, which notebooks draw: `make measures`.

python workflow/measure.py runs
"""

import sys

from ltvit_lib import augment, runs, train

import pandas as pd
import torch


def error_by_class(run: runs.Run, masks: int = 10) -> list[float]:
    """Mean reconstruction error on hidden patches of each class's test images, over several random masks."""
    mae, split = train.build(run)
    recipe, generator = run.recipe, torch.Generator().manual_seed(0)
    totals = torch.zeros(len(split.test))
    for index in torch.arange(len(split.test)).split(1000):
        images = augment.evaluate(split.test.images[index], recipe.image_size, split.mean, split.std)
        for _ in range(masks):
            noise = torch.rand(len(images), mae.encoder.patch_embed.num_patches, generator=generator)
            with torch.no_grad():
                _, prediction, mask = mae(images, recipe.mask_ratio, noise)
            error = (prediction - mae.target(images)).square().mean(-1)  # (b, N)
            totals[index] += (error * mask).sum(1) / mask.sum(1) / masks
    return [totals[split.test.targets == c].mean().item() for c in range(len(split.classes))]


def main(folder: str) -> None:
    kinds = {
        "digits_mgp": ("digits", "long-tailed"),
        "digits_mgp_balanced": ("digits", "balanced"),
        "laptop_mgp": ("laptop", "long-tailed"),
    }
    rows = [
        (*kinds[run.recipe.name], run.seed, c, error)
        for run in runs.collect(folder)
        if run.recipe.name in kinds and not runs.changes(run.recipe)
        for c, error in enumerate(error_by_class(run))
    ]
    table = pd.DataFrame(rows, columns=["scale", "trained on", "seed", "class", "error"])
    path = runs.LEDGER.parent / "mgp_error_by_class.csv"
    table.sort_values(list(table.columns[:4])).to_csv(path, index=False, float_format="%.6g")
    print(f"{len(table)} rows in {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
