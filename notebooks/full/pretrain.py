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
# Batch use, from the project's root:
#
# ```
# papermill notebooks/full/pretrain.ipynb runs/pretrain.ipynb -p recipe laptop_mgp -p seed 0
# ```
#
# The same command continues a run that was interrupted, and does nothing for one that has finished.
# `-y "overrides: {epochs: 8}"` changes fields of the recipe.

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
from ltvit_lib import plots, train

run = train.fit(chosen, out or runs.folder(chosen, seed), seed)
print(run.path)

# %% [markdown]
# ## The run

# %%
ax = plots.plot_curves(run.curve, "loss")
_ = ax.set_title(f"{chosen.name}, seed {seed}")

# %%
result = run.result
print(
    f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s, final loss {result['final_loss']:.4f}"
)
