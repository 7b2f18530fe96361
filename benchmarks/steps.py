"""Where a training step's time goes, for each kind of step, and what the methods cost beside each other. One command:

    python benchmarks/steps.py [--scales digits laptop] [--repeats 15]

Writes figures/data/benchmark_steps.csv (images a second, shares of a step, model-FLOP utilisation) and
benchmark_ratios.csv. Absolute figures belong to the machine that is named beside them; ratios are medians over rounds
in which the kinds take turns. Images are digits, or random pixels in CIFAR's shape: no data set is needed. The scale
`paper` has the papers' models at 224 pixels in bf16, for a GPU. LTVIT_COMPILE compiles the steps, as in training.
"""

import argparse
import tempfile
from pathlib import Path

from ltvit_lib import costs, data, plots, recipes, runs, train

import pandas as pd
import timing
from stepper import BARE, Stepper, random_split

# kind -> (recipe without its scale, overrides)
KINDS = {
    "ViT, CE": ("vit_ce", {}),
    "ViT, BCE": ("vit_bal_bce", {"loss": "bce"}),
    "ViT, Bal-BCE": ("vit_bal_bce", {}),
    "masked pre-training": ("mgp", {}),
    "teacher, SGD": ("teacher_ldam_drw", {}),
    "teacher, SAM": ("teacher_ldam_drw_sam", {}),
    "teacher, PaCo-SAM": ("teacher_paco_sam", {}),
    "DeiT-LT": ("deit_lt", {}),
}
_flat = {"teacher": "paper_c10_teacher_ldam_drw_sam"}
PAPER = {
    "ViT, CE": ("c10_vit_b", {}),
    "ViT, BCE": ("c10_vit_b", {"loss": "bce"}),
    "ViT, Bal-BCE": ("c10_vit_b", {"loss": "balanced_bce"}),
    "masked pre-training": ("imagenet_lt_mgp_b", {}),
    "teacher, SGD": ("c10_teacher_ldam_drw", {}),
    "teacher, SAM": ("c10_teacher_ldam_drw_sam", {}),
    "teacher, PaCo-SAM": ("c10_teacher_paco_sam", {}),
    "DeiT-LT": ("c10_deit_lt_b", _flat),
    "DeiT-LT, S": ("c10_deit_lt_s", _flat),
    "DeiT-LT, Ti": ("c10_deit_lt_ti", _flat),
}
# ratio -> (above, what is below, added up)
RATIOS = {
    "SAM / SGD": ("teacher, SAM", ("teacher, SGD",)),
    "Bal-BCE / BCE": ("ViT, Bal-BCE", ("ViT, BCE",)),
    "DeiT-LT / ViT": ("DeiT-LT", ("ViT, CE",)),
    "DeiT-LT / bare passes": ("DeiT-LT", BARE),
}


def chosen(scale: str, kinds: tuple[str, ...] = (), **overrides) -> dict[str, recipes.Recipe]:
    """kind -> recipe of a scale; of all kinds or of these."""
    every = PAPER if scale == "paper" else KINDS
    return {kind: recipes.get(f"{scale}_{every[kind][0]}", **every[kind][1] | overrides) for kind in kinds or every}


def train_teacher(student: recipes.Recipe, split: data.Split, folder: str, **overrides) -> runs.Run:
    """A run of one epoch of the student's teacher: its answers are wrong and take as long as right ones."""
    short = recipes.shortened(student.teacher, 1 / recipes.get(student.teacher).epochs, **overrides)
    return train.fit(short, Path(folder) / "teacher", data=split, progress=False)


def steppers_for(scale: str, kinds: tuple[str, ...], images: int, **overrides) -> dict[str, Stepper]:
    """kind -> its step, on digits or on so many random images."""
    split = data.load("digits", rho=40) if scale == "digits" else random_split(images)
    wanted, teacher = chosen(scale, kinds, **overrides), None
    students = [recipe for recipe in wanted.values() if recipe.kind == "distil"]
    with tempfile.TemporaryDirectory() as folder:
        if students:
            teacher = train_teacher(students[0], split, folder, **overrides)
        return {k: Stepper(r, split, teacher if r in students else None) for k, r in wanted.items()}


def kind_rows(steppers: dict[str, Stepper], times: pd.DataFrame, repeats: int, peak, label: str) -> pd.DataFrame:
    """A row a kind: images a second, shares of a step, and the counted operations a second as a share of `peak`."""
    rows = []
    for kind, stepper in steppers.items():
        shares = pd.DataFrame([stepper.shares() for _ in range(repeats)]).median()
        images, flops = stepper.recipe.batch_size, costs.estimate(stepper.recipe).flops_per_image
        row = {"what": kind, "images_per_second": (images / times[kind]).median()} | (shares / shares.sum()).to_dict()
        row |= {"gflops_per_image": flops / 1e9, "utilisation": (images * flops / times[kind] / peak).median()}
        rows.append(row | {"peak": label})
    return pd.DataFrame(rows)


def ratio_rows(times: pd.DataFrame) -> pd.DataFrame:
    """A row a ratio of which everything was timed."""
    known = {name: parts for name, parts in RATIOS.items() if {parts[0], *parts[1]} <= set(times)}
    rows = [
        {"what": name} | timing.ratio(times[above], times[list(below)].sum(axis=1))
        for name, (above, below) in known.items()
    ]
    return pd.DataFrame(rows)


def measure(
    scale: str, repeats: int, kinds: tuple[str, ...] = (), images: int = 2560, **overrides
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`kind_rows` and `ratio_rows` of a scale, for all kinds or these, with recipe fields replaced."""
    steppers, product = steppers_for(scale, kinds, images, **overrides), timing.Product()
    turns = {"product": product} | {kind: stepper.step for kind, stepper in steppers.items()}
    if "DeiT-LT" in steppers:
        turns |= steppers["DeiT-LT"].bare()
    times = timing.rounds(turns, repeats)
    common = {"scale": scale, "repeats": repeats, "device": runs.device_name()}
    kinds_table = kind_rows(steppers, times, repeats, *product.peak(times["product"]))
    return kinds_table.assign(**common), ratio_rows(times).assign(**common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", nargs="+", default=["digits", "laptop"], choices=["digits", "laptop", "paper"])
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    tables = zip(*(measure(scale, given.repeats) for scale in given.scales), strict=True)
    for name, parts in zip(("benchmark_steps", "benchmark_ratios"), tables, strict=True):
        table = pd.concat(parts)
        table.to_csv(plots.figures() / "data" / f"{name}.csv", index=False, float_format="%.4g")
        print(table.drop(columns=["device"]).to_string(index=False, float_format="%.3f"), end="\n\n")
    print(runs.device_name())


if __name__ == "__main__":
    main()
