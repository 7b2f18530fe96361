# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DeiT-LT, full size
#
# CLS learns the labels, DIST the teacher's answers on out-of-distribution images (DeiT-LT section 3).
#
# Batch use, from the project's root, after its teacher of the same seed ([teacher](teacher.ipynb)): on two CPU cores, and at the
# paper's size on a GPU (its teacher: `paper_c10_teacher_paco_sam`).
#
# ```
# papermill notebooks/full/distil.ipynb runs/distil.ipynb -p recipe laptop_deit_lt -p seed 0
# papermill notebooks/full/distil.ipynb runs/distil.ipynb -p recipe paper_c10_deit_lt_b -p seed 0
# ```
#
# The same command continues a run that was interrupted, and says so and does nothing for one that has finished.
# `-y "overrides: {epochs: 4, drw_epoch: 3}"` changes fields of the recipe.
#
# papermill trains in one process, on one GPU if there is one. Several GPUs for one run, or many runs over several GPUs:
# [README](../../README.md), "Full-size runs". All recipes with their costs: [RECIPES.md](RECIPES.md).

# %% tags=["parameters"]
recipe: str = "laptop_deit_lt"  # a name from ltvit_lib.recipes
seed: int = 0  # seeds weights, order, augmentation and mixing
overrides: dict = {}  # fields of the recipe to change, such as {"epochs": 4, "drw_epoch": 3}
out: str = ""  # run folder; empty: runs/<recipe>/seed<seed>
teacher: str = (
    ""  # folder of the teacher's run, or a checkpoint; empty: runs/<its recipe>/seed<seed>
)
init: str = ""  # folder of the pre-training run, for a recipe that starts from one; empty: runs/<its recipe>/seed<seed>

# %%
from ltvit_lib import runs

chosen = runs.from_parameters(globals(), ("recipe", "seed", "overrides", "out", "teacher", "init"))
chosen

# %%
from pathlib import Path

from ltvit_lib import plots, train

import pandas as pd

start = runs.start(chosen, seed, teacher=teacher, init=init)
folder = out or runs.folder(chosen, seed)
print(runs.Run(Path(folder)).status)
run = train.fit(chosen, folder, seed, **start)

# %% [markdown]
# ## What it cost
# Seconds of training, images/s, achieved 10¹² floating-point operations a second and their share of the device's dense bf16
# peak (for a GPU that is known), peak memory; as the ledger has them.

# %%
rows = pd.DataFrame(runs.ledger_rows(run))
spent = ["seconds", "images_per_second", "devices", "teraflops", "utilisation", "peak_memory_mib"]
rows[["device", *spent]].head(1).dropna(axis=1)

# %% [markdown]
# ## The run
# Training accuracy is that of augmented, mixed batches, measured while they are learnt. Accuracy on the evaluation part
# comes with `-y "overrides: {evaluate_every: 5}"`, which changes no weight.

# %%
_ = plots.plot_training(run.curve, run.accuracies, f"{chosen.name}, seed {seed}")

# %% [markdown]
# Accuracy and calibration error of the last epoch in percent, by both group conventions.

# %%
run.table(("all", "head", "mid", "tail", "many", "medium", "few", "ece", "mce"))

# %%
classes, logits = train.load_split(chosen, seed).classes, run.logits()
heads = {head.upper(): (chosen.name, head) for head in run.result["heads"]}
answers = logits[list(run.result["heads"])[-1]].argmax(
    1
)  # of the last head: what the model decides by
_ = plots.plot_result(runs.shots(heads, rows), answers, logits["targets"], classes)

# %% [markdown]
# ## Beside the paper
# Published numbers that this recipe owns, ours and the difference, in percent; a recipe with overrides owns none.

# %%
beside = runs.against_paper(rows).query("n > 0").drop(columns=["recipe", "sd", "n"]).round(2)
name = chosen.name + (" with overrides" if runs.changes(chosen) else "")
beside if len(beside) else print(
    f"{name} is no row of a table; should reach: {chosen.reaches or 'not stated'}"
)
