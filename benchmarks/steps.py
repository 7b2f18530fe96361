"""Images per second of each kind of training step, the share of it spent on data, and two ratios. One command:

    python benchmarks/steps.py [--scale digits laptop] [--repeats 5]

Writes figures/data/benchmark_steps.csv. Absolute figures belong to the machine that is named beside them; the ratios
are taken in one run, alternating the two steps, and are what to compare.
"""

import argparse
import statistics
import time

from ltvit_lib import augment, data, optim, recipes, runs, train

import pandas as pd
import torch
from accelerate import Accelerator

KINDS = {
    "plain ViT, CE": "{}_vit_ce",
    "plain ViT, BCE": "{}_vit_bce",
    "plain ViT, Bal-BCE": "{}_vit_bal_bce",
    "masked pre-training": "{}_mgp",
    "teacher, SGD": "{}_teacher_sgd",
    "teacher, SAM": "{}_teacher_ldam_drw_sam",
    "DeiT-LT": "{}_deit_lt",
}


def recipe_of(name: str, scale: str) -> recipes.Recipe:
    """A registered recipe, or the BCE or SGD twin that only serves a ratio."""
    if name.endswith("_vit_bce"):
        return recipes.get(f"{scale}_vit_bal_bce", loss="bce")
    if name.endswith("_teacher_sgd"):
        return recipes.get(f"{scale}_teacher_ldam_drw_sam", sam_rho=0.0)
    return recipes.get(name)


class Stepper:
    """A training step of a recipe, timed in its two parts: making the batch, and using it."""

    def __init__(self, recipe: recipes.Recipe, split: data.Split):
        self.recipe, self.split = recipe, split
        self.accelerator = Accelerator()
        device = self.accelerator.device
        torch.manual_seed(0)
        self.job = train.JOBS[recipe.kind](recipe, split, device, **self._teacher(device))
        self.model = self.accelerator.prepare(self.job.build().to(device)).train()
        self.optimizer = optim.create_optimizer(self.model, recipe)
        self.policy = recipes.POLICIES[recipe.policy](recipe.image_size, split.mean, split.std, **recipe.policy_options)
        self.job.start_epoch(0)
        self.pixels, self.step = split.train.to(device), 0

    def _teacher(self, device) -> dict:
        return {}

    def __call__(self) -> tuple[float, float]:
        """Seconds for the batch and for the rest of one step."""
        self.step += 1
        chosen = torch.randint(len(self.pixels), (self.recipe.batch_size,))
        pieces = [torch.arange(self.recipe.batch_size)]
        start = time.perf_counter()
        batches = train.make_batches(self.job, self.pixels, chosen, self.policy, (0, 0, self.step), pieces)
        made = time.perf_counter()
        train._step(self.recipe, self.job, self.model, self.optimizer, batches, self.accelerator)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return made - start, time.perf_counter() - made
