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
# # Masked generative pre-training, full size
#
# LiVT's first stage (section 4.1): a ViT learns to fill in hidden patches of the long-tailed images, without labels.
#
# Batch use, from the project's root: on two CPU cores, and at the paper's size on a GPU.
#
# ```
# papermill notebooks/full/pretrain.ipynb runs/pretrain.ipynb -p recipe laptop_mgp -p seed 0
# papermill notebooks/full/pretrain.ipynb runs/pretrain.ipynb -p recipe paper_imagenet_lt_mgp_b -p seed 0
# ```
#
# The same command continues a run that was interrupted, and says so and does nothing for one that has finished.
# `-y "overrides: {epochs: 8}"` changes fields of the recipe.
#
# papermill trains in one process, on one GPU if there is one. Several GPUs for one run, or many runs over several GPUs:
# [README](../../README.md), "Full-size runs". All recipes with their costs: [RECIPES.md](RECIPES.md).

# %% tags=["parameters"]
recipe: str = "laptop_mgp"  # a name from ltvit_lib.recipes
seed: int = 0  # seeds weights, order, augmentation and mixing
overrides: dict = {}  # fields of the recipe to change, such as {"epochs": 8}
out: str = ""  # run folder; empty: runs/<recipe>/seed<seed>

# %%
from ltvit_lib import runs

chosen = runs.from_parameters(globals(), ("recipe", "seed", "overrides", "out"))
chosen

# %%
from pathlib import Path

from ltvit_lib import plots, train

import pandas as pd

folder = out or runs.folder(chosen, seed)
print(runs.Run(Path(folder)).status)
run = train.fit(chosen, folder, seed)

# %% [markdown]
# ## The run

# %%
ax = plots.plot_curves(run.curve, "loss")
_ = ax.set_title(f"{chosen.name}, seed {seed}")

# %% [markdown]
# A masked autoencoder knows no classes, so no number of a published table is its own: rows belong to what is fine-tuned from
# it. Its last loss:

# %%
print(f"final loss {run.result['final_loss']:.4f}; should reach: {chosen.reaches or 'not stated'}")

# %% [markdown]
# ## What it cost
# Seconds of training, images/s, achieved 10¹² floating-point operations a second and their share of the device's dense bf16
# peak (for a GPU that is known), peak memory; as the ledger has them.

# %%
rows = pd.DataFrame(runs.ledger_rows(run))
spent = ["seconds", "images_per_second", "devices", "teraflops", "utilisation", "peak_memory_mib"]
rows[["device", *spent]].head(1).dropna(axis=1)
