"""Small tables measured on finished runs, which notebooks draw: `make measures`.

python workflow/measure.py runs
"""

import sys

from ltvit_lib import augment, longtail, losses, metrics, plots, runs, train

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


def decisions(run: runs.Run) -> list[dict]:
    """Accuracies of a Bal-BCE run under each decision rule, from its stored test logits."""
    split, logits = train.load_split(run.recipe, run.seed), run.logits()
    prior = longtail.prior(split.counts)
    bias = run.recipe.loss_options.get("tau", 1.0) * losses.logit_bias_bce(prior)
    scores = {
        "raw argmax": logits["cls"],
        "repaired": losses.decide_bce(logits["cls"], prior, torch.full_like(prior, 1 / len(prior)), bias=bias),
    }
    names = ("all", "head", "mid", "tail")
    rows = []
    for rule, score in scores.items():
        found = metrics.evaluate_logits(score, logits["targets"], split.counts, split.groups)
        rows += [
            {"recipe": run.recipe.name, "seed": run.seed, "method": rule, "group": g, "accuracy": found[g]}
            for g in names
        ]
    return rows


def main(folder: str) -> None:
    finished = [run for run in runs.collect(folder) if not runs.changes(run.recipe)]
    bal_bce = [run for run in finished if getattr(run.recipe, "loss", "") == "balanced_bce"]
    save("decision_rules", pd.DataFrame([row for run in bal_bce for row in decisions(run)]))
    kinds = {
        "digits_mgp": ("digits", "long-tailed"),
        "digits_mgp_balanced": ("digits", "balanced"),
        "laptop_mgp": ("laptop", "long-tailed"),
    }
    rows = [
        (*kinds[run.recipe.name], run.seed, c, error)
        for run in finished
        if run.recipe.name in kinds
        for c, error in enumerate(error_by_class(run))
    ]
    save("mgp_error_by_class", pd.DataFrame(rows, columns=["scale", "trained on", "seed", "class", "error"]))


def save(name: str, table: pd.DataFrame) -> None:
    path = plots.figures() / "data" / f"{name}.csv"
    table.sort_values(list(table.columns[:4])).to_csv(path, index=False, float_format="%.6g")
    print(f"{len(table)} rows in {path.name}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
