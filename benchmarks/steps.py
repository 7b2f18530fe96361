"""Images per second of each kind of training step, the share of it spent on data, and two ratios. One command:

    python benchmarks/steps.py [--scales digits laptop] [--repeats 15]

Writes figures/data/benchmark_steps.csv. Absolute figures belong to the machine that is named beside them. The ratios
are medians over pairs of steps taken one right after the other, so that a drift of the machine's speed cancels.
`laptop` uses random pixels in the shape of CIFAR-10-LT: no data set is needed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from ltvit_lib import data, jobs, longtail, optim, plots, recipes, runs, train

import pandas as pd
import torch
from accelerate import Accelerator

# name -> (recipe without its scale, overrides)
KINDS = {
    "ViT, CE": ("vit_ce", {}),
    "ViT, BCE": ("vit_bal_bce", {"loss": "bce"}),
    "ViT, Bal-BCE": ("vit_bal_bce", {}),
    "masked pre-training": ("mgp", {}),
    "teacher, SGD": ("teacher_ldam_drw_sam", {"sam_rho": 0.0}),
    "teacher, SAM": ("teacher_ldam_drw_sam", {}),
    "DeiT-LT": ("deit_lt", {}),
}
RATIOS = {"Bal-BCE / BCE": ("ViT, Bal-BCE", "ViT, BCE"), "SAM / SGD": ("teacher, SAM", "teacher, SGD")}


def split_for(scale: str) -> data.Split:
    """digits-LT itself; for the laptop scale, random pixels with CIFAR-10-LT's counts."""
    if scale == "digits":
        return data.load("digits", rho=40)
    counts = longtail.exponential_counts(5000, 10, 100)
    targets = torch.arange(10).repeat_interleave(torch.tensor(counts))
    pixels = torch.randint(256, (len(targets), 3, 32, 32), dtype=torch.uint8)
    images = data.Images(pixels, targets)
    mean, std = data.STATISTICS["cifar10"]
    return data.Split("random", images, images.subset(range(0, 12_000, 100)), tuple("0123456789"), mean, std, (3, 7))


class Stepper:
    """A recipe's training step, timed in two parts: making the batch, and using it."""

    def __init__(self, recipe: recipes.Recipe, split: data.Split, teacher: runs.Run | None):
        torch.manual_seed(0)
        self.recipe, self.accelerator = recipe, Accelerator()
        self.job = jobs.JOBS[recipe.kind](recipe, split, self.accelerator.device, teacher)
        self.model = self.accelerator.prepare(self.job.build().to(self.accelerator.device)).train()
        self.optimizer = optim.create_optimizer(self.model, recipe)
        self.job.start_epoch(0)
        self.pixels, self.count = split.train.to(self.accelerator.device), 0
        self.prepare, self.job.prepare = self.job.prepare, self.timed_prepare

    def timed_prepare(self, batch: jobs.Batch) -> None:
        """The job's own preparation; a teacher's forward pass is work on the batch, not waiting for it."""
        self.wait()
        start = time.perf_counter()
        self.prepare(batch)
        self.wait()
        self.preparing += time.perf_counter() - start

    def step(self) -> tuple[float, float]:
        """Seconds for the batch, and for all that is done with it: teacher, forward, backward and update."""
        self.count += 1
        self.preparing = 0.0
        chosen = torch.randint(len(self.pixels), (self.recipe.batch_size,))
        pieces = [torch.arange(self.recipe.batch_size)]
        start = time.perf_counter()
        batches = jobs.make_batches(self.job, self.pixels, chosen, (0, 0, self.count), pieces)
        self.wait()
        made = time.perf_counter()
        train._step(self.job, self.model, self.optimizer, batches, self.accelerator)
        self.wait()
        return made - start - self.preparing, time.perf_counter() - made + self.preparing

    def wait(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()


def measure(scale: str, repeats: int) -> list[dict]:
    """Rows of the table for one scale; the kinds take turns."""
    split = split_for(scale)
    with tempfile.TemporaryDirectory() as folder:
        short = recipes.get(f"{scale}_teacher_ldam_drw_sam", epochs=2, drw_epoch=1, warmup_epochs=1.0)
        teacher = train.fit(short, Path(folder) / "teacher", data=split, progress=False)
        steppers = {
            kind: Stepper(recipes.get(f"{scale}_{name}", **changes), split, teacher if name == "deit_lt" else None)
            for kind, (name, changes) in KINDS.items()
        }
    times: dict[str, list] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 2):  # the first two warm up
        for kind, stepper in steppers.items():
            taken = stepper.step()
            if repeat >= 2:
                times[kind].append(taken)
    common = {"scale": scale, "device": runs.device_name(), "repeats": repeats}
    rows = []
    for kind, taken in times.items():
        batch = steppers[kind].recipe.batch_size
        whole = statistics.median(sum(t) for t in taken)
        share = statistics.median(t[0] / sum(t) for t in taken)
        rows.append(common | {"what": kind, "images_per_second": batch / whole, "data_share": share})
    for name, (above, below) in RATIOS.items():
        pairs = zip(times[above], times[below], strict=True)
        rows.append(common | {"what": name, "ratio": statistics.median(a[1] / b[1] for a, b in pairs)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", nargs="+", default=["digits", "laptop"], choices=["digits", "laptop"])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    table = pd.DataFrame([row for scale in arguments.scales for row in measure(scale, arguments.repeats)])
    print(table.drop(columns=["device"]).round(3).to_string(index=False, na_rep=""))
    print(table["device"][0])
    table.to_csv(plots.figures() / "data" / "benchmark_steps.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
