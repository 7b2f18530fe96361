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
# # 17 · Your own images
#
# **Question.** You have a folder of labelled pictures, many of some classes and few of others. What does its tail look like,
# which method should learn it, and how do you use the result where classes are as frequent as *you* expect?
#
# LiVT section 4.2 and DeiT-LT section 3, as in **LiVT Table 2** and **DeiT-LT Table 2**, on data that no paper has. Under a
# minute on two CPU cores as shown; the last section says what to change for photographs and a GPU.

# %% tags=["parameters"]
path: str = (
    ""  # a folder of class folders, or parquet; empty: a demo made from scikit-learn's digits
)
scale: str = "digits"  # recipes to use: digits (8 pixels, demo), laptop (32 pixels)
length: float = 0.25  # share of their full schedules; for your own data 1
seed: int = 0  # of the weights, the order and the augmentation

# %%
import tempfile
from pathlib import Path

from ltvit_lib import longtail, metrics, plots, recipes, runs, train
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(tempfile.mkdtemp(prefix="ltvit-"))

# %% [markdown]
# ## Point at a folder
# One folder a class, its name the class's name: that is all. With `train/` and `test/` above them the parts are yours; without,
# a stratified tenth, at least two pictures a class, is held out for the test. Parquet needs an image and a label column.
# The demo writes real scanned digits in that form, as unequally as a collection that grew by itself:


# %%
def write_demo(place):
    names = "zero one two three four five six seven eight nine".split()
    sizes = [
        110,
        130,
        30,
        70,
        8,
        5,
        22,
        120,
        45,
        12,
    ]  # training pictures of each; 40 more for the test
    digits = load_digits()
    for c, (name, size) in enumerate(zip(names, sizes)):
        for i, pixels in enumerate(digits.images[digits.target == c][: size + 40]):
            target = place / ("test" if i < 40 else "train") / name
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(target / f"{i:03}.png")
    return str(place)


path = path or write_demo(folder / "pictures")


def recipe(name):
    return recipes.shortened(f"{scale}_{name}", length, data=path, rho=None)


# %%
# NBVAL_CHECK_OUTPUT
split = train.load_split(recipe("vit_ce"), seed)
prior = longtail.prior(split.counts).double()
order = sorted(range(len(prior)), key=lambda c: -split.counts[c])  # from frequent to rare
print({split.classes[c]: split.counts[c] for c in order})
print(f"{len(split.train)} training and {len(split.test)} test pictures")
print(f"rho = {max(split.counts) / min(split.counts):g}")

# %%
shown = [order[0], order[len(order) // 2], order[-1]]
first = [split.train.images[split.train.targets == c][:8] for c in shown]
_ = plots.show_images({split.classes[c]: images for c, images in zip(shown, first)})

# %% [markdown]
# ## See its tail
# A class of more than 100 training pictures belongs to *many*, of fewer than 20 to *few*, the rest to *medium* (LiVT). The
# training prior is a class's share of the pictures, $\pi_c = n_c / N$; a network that knew nothing else would answer by it.

# %%
groups = longtail.shot_groups(split.counts)
group = np.array(
    [next(name for name, mask in groups.items() if mask[c]) for c in range(len(prior))]
)
counts = pd.DataFrame({"class": split.classes, "images": split.counts, "group": group}).loc[order]
fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for name, colour in zip(groups, ("#332288", "#88CCEE", "#882255")):
    part = counts[counts["group"] == name]
    ax.bar(part["class"], part["images"], color=colour, label=f"{name}: {len(part)} classes")
ax.set(
    yscale="log",
    ylim=(1, None),
    ylabel="training images",
    xlabel="class, from most to least frequent",
)
ax.spines[["top", "right"]].set_visible(False)
ax.tick_params(axis="x", rotation=0 if len(counts) <= 12 else 90)
ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
plots.save_figure(fig, "own_images_counts", counts)

# %%
# NBVAL_CHECK_OUTPUT
share = counts.groupby("group")["images"].agg(["size", "sum"]).reindex(list(groups)).fillna(0)
share["share of the prior (%)"] = (100 * share["sum"] / share["sum"].sum()).round(1)
print(share.rename(columns={"size": "classes", "sum": "images"}).astype({"images": int}))

# %% [markdown]
# The *few* classes are three in ten and hold a twentieth of the prior: what a test on pictures drawn like the training set would
# hardly notice, a test with equal classes shows.
#
# ## Train three ways
# The recipes are the library's; only where the pictures are has changed. A plain ViT with cross-entropy; LiVT, which
# paints hidden patches before it learns labels with a balanced loss; DeiT-LT, which also asks a small CNN.

# %%
fit = lambda name, **start: train.fit(recipe(name), folder / name, seed, data=split, **start)
vit = fit("vit_ce")
livt = fit("livt", init=fit("mgp"))
deit_lt = fit("deit_lt", teacher=fit("teacher_ldam_drw_sam"))

# %% [markdown]
# Which one will you use? Choosing by the test set and then reporting the same test set flatters the winner. So half of the test
# pictures choose, and the other half report:

# %%
methods = {"ViT": (vit, "cls"), "LiVT": (livt, "cls"), "DeiT-LT": (deit_lt, "avg")}
report, choose = longtail.stratified_split(split.test.targets, 0.5, at_least=1)


def score(run, head, rows):
    logits = run.logits()
    return metrics.evaluate_logits(logits[head][rows], logits["targets"][rows], split.counts)


columns = ["all", "many", "medium", "few", "ece"]
halves = {"chooses": choose, "reports": report}
pd.concat(
    {h: pd.DataFrame({m: score(*r, rows) for m, r in methods.items()}).T[columns] for h, rows in halves.items()}
).mul(100).round(1)  # fmt: skip

# %%
rows = [
    {"method": m, "group": g, "accuracy": score(*r, report)[g], "seed": seed}
    for m, r in methods.items()
    for g in columns[:4]
]
table = pd.DataFrame(rows)
plots.save_figure(plots.plot_shot_accuracy(table, groups=columns[:4]).figure, "own_images", table)
best = max(methods, key=lambda m: score(*methods[m], choose)["all"])
print("chosen:", best)

# %% [markdown]
# *Accuracy in percent, mean over the classes of a group, on the reporting half; one seed, so differences of a few points mean
# nothing.* Look at **Medium** first: classes of 22 to 70 pictures, of which the plain ViT finds 53.8 %, DeiT-LT 62.5 and LiVT 72.5. In a
# quarter of the schedule nobody has learnt the *few*; `length = 1` is where they come. Your pictures may rank the methods
# otherwise, which is why all three are trained.
#
# ## Export, and load in three lines
# `runs.export` writes the weights in bfloat16 by timm's names, a `config.json` that remembers class names, scale, training prior
# and loss, and a model card. Any program can then answer, from files (`models.label(model, "photos")` takes a whole folder; so does
# `python -m ltvit_lib.predict`, which writes a CSV file):

# %%
exported = runs.export(methods[best][0], folder / "exported", split)
pictures = sorted((folder / "pictures" / "test").rglob("000.png")) or split.test.images[:10]
{file.name: f"{file.stat().st_size / 1024:.0f} KiB" for file in sorted(exported.iterdir())}

# %%
from ltvit_lib import models

model = models.load(exported)
named = models.label(model, pictures, test_prior="uniform").round(2)
named.replace(f"{folder}/", "", regex=True)  # shorter paths

# %% [markdown]
# One picture of each class, in the order of their names (eight, five, four, nine and so on): most are named rightly, and the network is
# unsure of all of them, right or wrong, after so short a training.
#
# ## Predict under the prior you expect
# A posterior learnt under one prior is moved to another by Bayes' rule, without training:
#
# $$p_t(c \mid x) \;\propto\; p_s(c \mid x)\,\frac{\pi_{t,c}}{\pi_{s,c}}$$
#
# This holds if only the shares of the classes differ, and the pictures of a class are of the same kind; another camera or season breaks
# it. `predict` first undoes what training did (LiVT adds log-odds to the logits, DRW weighs classes: both are in the config), then
# moves. Three worlds: as in training, all classes alike, and one in which the tail has become the head. The same
# pictures, answered for each:

# %%
shifted = torch.zeros_like(prior)
shifted[order] = prior[order].flip(0)
worlds = {
    "as in training": prior,
    "uniform": torch.full_like(prior, 1 / len(prior)),
    "tail first": shifted,
}
answers = {w: models.predict(model, split.test.images, test_prior=p) for w, p in worlds.items()}
shares = pd.DataFrame({w: a.mean(0).tolist() for w, a in answers.items()}, index=split.classes)
changed = (answers["as in training"].argmax(1) != answers["tail first"].argmax(1)).double().mean()
print(f"{100 * changed:.0f} % of the answers differ between the first world and the last")

# %%
fig, ax = plt.subplots(figsize=(6.8, 3.2), layout="constrained")
for i, (world, colour) in enumerate(zip(worlds, ("#332288", "#88CCEE", "#882255"))):
    ax.bar(np.arange(len(order)) + (i - 1) * 0.27, 100 * shares[world].iloc[order], 0.25, color=colour, label=world)  # fmt: skip
ax.axhline(100 / len(order), color="#333333", lw=1, ls="--")
ax.set_xticks(range(len(order)), [split.classes[c] for c in order], rotation=0 if len(order) <= 12 else 90)  # fmt: skip
ax.set(ylabel="mean probability (%)", xlabel="class, from most to least frequent in training")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
plots.save_figure(fig, "own_images_priors", shares.iloc[order].reset_index(names="class"))

# %% [markdown]
# *Mean probability of each class over the whole test set, in which all classes are alike (dashed).* The prior decides
# where the picture leaves doubt, and after so short a training it mostly does. Does the right prior pay? The share of right answers that each *assumed* prior earns in each *true* world
# is $\sum_c \pi_{t,c}\, a_c$, with $a_c$ the accuracy on class $c$ of the reporting half:

# %%
accuracy = {
    w: metrics.per_class_accuracy(a[report].argmax(1), split.test.targets[report], len(prior)) for w, a in answers.items()
}  # fmt: skip
earned = {w: {t: (100 * (p * accuracy[w]).sum()).item() for t, p in worlds.items()} for w in worlds}
earned = pd.DataFrame(earned).rename_axis(index="true world", columns="assumed").round(1)
earned

# %% [markdown]
# Read a row: what is right there. Where classes are alike, saying so earns 64.5 instead of 58.0 %; where the tail comes first,
# 44.7 instead of 24.0. Only in a world like the training set does it hardly matter (87.8 and 88.3): little evidence is needed for what is
# frequent. A wrong guess is dear: 6.4 % for the tail's prior in the head's world.
#
# Give shares by name where you know only a few: `test_prior={"three": 0.9, "eight": 0.1}` rules out all others.
#
# ## Photographs and a GPU
# This page runs on any folder; `laptop` recipes see 32 pixels:
#
# ```
# papermill notebooks/17_your_own_images.ipynb runs/mine.ipynb --cwd notebooks -p path /data/birds -p scale laptop -p length 1
# ```
#
# Any recipe on your pictures, several seeds, the accuracies by group as mean ± sd at the end: one command from the project's root,
# here with LiVT and DeiT-LT at 224 pixels, their first stage and teacher included (`DRY=1` lists runs and hours).
#
# ```
# make table T=paper_imagenet_lt_livt_s,paper_c10_deit_lt_b_ldam DATA=/data/birds SEEDS=3 \
#     SET='{"batch_size": 256, "micro_batch": 64}'
# ```
#
# Each run's folder is under `runs/`, and `runs.export` makes a model of it. Lower `batch_size` where you have fewer pictures than
# one batch; `micro_batch` fits it into memory without changing the result. Hold out `evaluate_on: val` for every choice you make.

# %% [markdown]
# ## Takeaways
# - Three classes in ten are *few* and hold 4.5 % of the pictures: a test drawn like them would not notice that the plain ViT finds
#   1.7 % of these classes.
# - Chosen on one half of the test pictures, LiVT has 61.0 % on the other, the plain ViT 51.5 and DeiT-LT 55.5, all at a quarter of
#   their schedules.
# - The prior is yours to give, after training: the same weights earn 24.0 or 44.7 % in a world that turns the tail into the head.
#
# ## Exercises
# 1. What a classifier earns in a world with other class shares. 2. Moving probabilities by hand. 3. You do not know the
# prior of a new place, but you have unlabelled pictures of it: the shares of the *answers* there are the true shares, mixed by the
# confusion matrix.


# %%
def earned_in(per_class, test_prior):
    """Share of right answers (a number) of a classifier with these accuracies (C,) where classes have shares (C,)."""
    return None  # your code


check(
    earned_in,
    lambda a, p: (a * p).sum(),
    (torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.7, 0.2, 0.1])),
    (torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.0, 0.0, 1.0])),
)


# %%
def move(probabilities, train_prior, test_prior):
    """(B, C) posteriors under the test prior, from posteriors (B, C) under the training prior."""
    return None  # your code


case = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
check(
    move,
    lambda p, s, t: (p.log() - s.log() + t.log()).softmax(1),
    (case, torch.tensor([0.8, 0.15, 0.05]), torch.tensor([0.2, 0.3, 0.5])),
    (case, torch.tensor([0.8, 0.15, 0.05]), torch.tensor([0.8, 0.15, 0.05])),
)


# %%
def shares_of_the_place(answered, confusion):
    """True shares (C,) from the answers' shares (C,) and confusion[i, j], the share of class i that is called j."""
    return None  # your code


matrix = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
check(
    shares_of_the_place,
    lambda q, m: torch.linalg.solve(m.T, q),
    (torch.tensor([0.6, 0.3, 0.1]) @ matrix, matrix),
    (torch.tensor([0.1, 0.1, 0.8]) @ matrix, matrix),
)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def earned_in(per_class, test_prior):
#     return per_class @ test_prior
#
# def move(probabilities, train_prior, test_prior):
#     moved = probabilities * test_prior / train_prior
#     return moved / moved.sum(1, keepdim=True)
#
# def shares_of_the_place(answered, confusion):
#     return torch.linalg.solve(confusion.T, answered)  # answered_j = sum_i share_i confusion_ij
# ```
# </details>
#
# **Next:** [16 · The audit](16_the_audit.ipynb): what the papers say and what their code does.
