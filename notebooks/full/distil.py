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
# CLS learns the labels, DIST the teacher's answers on out-of-distribution images (DeiT-LT section 4).
#
# Batch use, from the project's root:
#
# ```
# papermill notebooks/full/distil.ipynb runs/distil.ipynb -p recipe laptop_deit_lt -p seed 0
# ```
#
# The same command continues a run that was interrupted, and does nothing for one that has finished.
# `-y "overrides: {epochs: 4, drw_epoch: 3}"` changes fields of the recipe.

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
from ltvit_lib import plots, train

start = dict(teacher=teacher or runs.folder(chosen.teacher, seed))
start["init"] = init or (runs.folder(chosen.init, seed) if chosen.init else None)
run = train.fit(chosen, out or runs.folder(chosen, seed), seed, **start)
print(run.path)

# %% [markdown]
# ## The run
# Accuracy and calibration error in percent, by both group conventions.

# %%
result = run.result
print(
    f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s; should reach: {chosen.reaches or 'not stated'}"
)
run.table(("all", "head", "mid", "tail", "many", "medium", "few", "ece", "mce"))

# %%
classes = train.load_split(chosen, seed).classes
_ = plots.plot_run(run.curve, result, classes, f"{chosen.name}, seed {seed}")
