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
# # 08 · Balanced fine-tuning: four losses on one encoder
#
# **Question.** LiVT's second stage fine-tunes with binary cross-entropy plus a bias for each class. How much does the bias do,
# is BCE better than CE, and does it learn faster?
#
# LiVT section 4.2, Theorem 2; **Table 6** (CE, Bal-CE, BCE, Bal-BCE) and **Figure 2** at the scale of digits, beside **Tables 2
# to 4**. Live part: 30 seconds on two CPU cores; full run: [full/finetune](full/finetune.ipynb).

# %% tags=["parameters"]
seed: int = 0  # of the tail, the weights and the order
length: float = 0.5  # share of the full schedules, for the live runs
tau: float = 1.0  # times the bias, in the live Bal-BCE run

# %%
import tempfile
from pathlib import Path

from ltvit_lib import longtail, losses, plots, published, recipes, runs, train
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

folder = Path(tempfile.mkdtemp(prefix="ltvit-"))

# %% [markdown]
# ## One yes-or-no question a class
# BCE asks of each class separately: is it this one? Averaged over a long tail, the answer for a rare class is nearly always
# *no*, and that is what its output learns first. Bal-BCE adds the log-odds of "yes" to the logit while training:
#
# $$\hat z_c = z_c + \log \pi_c - \log(1 - \pi_c) \qquad\text{(Theorem 2)}$$
#
# so the raw logit $z_c$, which is used at test time, only has to learn what the image adds to that. Where both start: with all
# logits zero BCE gives every class 1/2, so it expects $C/2$ classes in an image that shows one; Bal-BCE gives the prior: one class.


# %%
# NBVAL_CHECK_OUTPUT
def balanced_by_hand(logits, target, prior):
    p = torch.sigmoid(logits + (prior / (1 - prior)).log())
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()


counts = longtail.exponential_counts(120, 10, 40)
prior = longtail.prior(counts)
z = torch.randn(5, 10, dtype=torch.float64)
y = torch.nn.functional.one_hot(torch.arange(5), 10).double()
assert torch.allclose(balanced_by_hand(z, y, prior), losses.balanced_bce(z, y, prior))
bias = losses.logit_bias_bce(prior)
print("bias:", [round(b, 2) for b in bias.tolist()])
print(f"yes at the start: {torch.zeros(10).sigmoid().sum():.1f}, {bias.sigmoid().sum():.1f}")

# %% [markdown]
# (Equation 10 adds $\log(C-1)$ to every logit, which starts it all at 1/2 again: [04](04_the_bias_derived.ipynb). The published
# logs do not contain it: [16](16_the_audit.ipynb).)
#
# ## Fine-tune, live
# One pre-trained encoder, then CE and Bal-BCE with layer-wise learning rates (0.75 from block to block: the pre-trained
# layers move least).

# %%
pretrained = train.fit(recipes.shortened("digits_mgp", length), folder / "mgp", seed)
ce = train.fit(recipes.shortened("digits_mgp_ce", length), folder / "ce", seed, init=pretrained)
balanced = recipes.shortened("digits_livt", length, loss_options={"tau": tau})
livt = train.fit(balanced, folder / "livt", seed, init=pretrained)
names = {"CE": ce, "Bal-BCE": livt}
columns = ["all", "head", "mid", "tail", "ece"]
pd.concat({n: r.table(columns) for n, r in names.items()})

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for i, (name, r) in enumerate(names.items()):
    share = np.bincount(r.logits()["cls"].argmax(1), minlength=10) / 5  # % of 500
    ax.bar(np.arange(10) + (i - 0.5) * 0.4, share, 0.38, color=plots.COLOURS[name], label=name)
ax.axhline(10, color="#333333", lw=1, ls="--", label="true share")
ax.spines[["top", "right"]].set_visible(False)
ax.set(xlabel="digit, from most to least frequent in training", xticks=range(10))
ax.set_ylabel("predicted (% of test images)")
_ = ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

# %% [markdown]
# The test set has as many nines as zeros. CE still answers with the frequent digits too often; the bias moves the answers
# towards the dashed line.
#
# ## Four losses, three seeds (LiVT Table 6)

# %%
four = {
    "CE": ("digits_mgp_ce", "cls"),
    "Bal-CE": ("digits_mgp_bal_ce", "cls"),
    "BCE": ("digits_mgp_bce", "cls"),
    "Bal-BCE": ("digits_livt", "cls"),
}
table = runs.shots(four)
fig = plots.plot_shot_accuracy(table).figure
plots.save_figure(fig, "four_losses", table)

# %%
ours = runs.mean_sd(table, groups=tuple(columns))
paper = published.table("LiVT", "6").filter(like="ViT-Tiny", axis=0)
paper = paper.rename(index=lambda row: row.removeprefix("ViT-Tiny "))
paper = paper.rename(columns={"many": "head", "medium": "mid", "few": "tail"})[columns]
pd.concat({"digits-LT, ours (n = 3)": ours, "ImageNet-LT, ViT-Ti, paper": paper}, axis=1)

# %% [markdown]
# *Accuracy and ECE in percent, mean ± sample sd over three seeds. The paper's groups are by thresholds: many,
# medium, few.*
# Look at BCE first: without the bias it gives up the tail, in the paper's table as in ours, far more than CE does. The bias
# brings it back and costs the head next to nothing. Between the two balanced losses there is little: here, as for the
# paper's smallest ViT, Bal-CE is level or slightly ahead; the paper's larger ViTs are said to prefer Bal-BCE, although the
# groups of its own Table 6 do not add up to that for ViT-L.
#
# (For more than two classes the argmax of Bal-BCE's logits is not the best rule: [05](05_fisher_consistency.ipynb) has a repair.)
#
# ## Quick convergence? (LiVT Figure 2)
# The abstract says that Bal-BCE "contributes to the quick convergence of ViTs in just a few epochs"; Figure 2 shows ViT-S
# on iNaturalist. Our stored training curves, after masked pre-training and from scratch; below, the first block of five epochs with
# at least 90 % of the training batches' images right:

# %%
curves = pd.read_csv("../figures/data/loss_curves.csv")
scratch = [f"digits_vit_{name}" for name in ("ce", "bal_ce", "bce", "bal_bce")]
stages = {"after MGP": [r for r, _ in four.values()], "from scratch": scratch}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
parts = []
for ax, (stage, chosen) in zip(axes[1:], stages.items()):
    part = curves[curves["recipe"].isin(chosen)].assign(stage=stage)
    part = part.assign(method=part["recipe"].map(dict(zip(chosen, four))))
    parts.append(part.assign(accuracy=100 * part["accuracy"]))
    plots.plot_curves(parts[-1], "accuracy", ax, "right in training batches (%)").set_title(stage)
plots.plot_curves(parts[0], "loss", axes[0], "training loss (nats)").set_title("after MGP")
axes[0].set_yscale("log")
for ax in axes:
    ax.get_legend().remove()
curves = pd.concat(parts)
fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside upper center")
plots.save_figure(fig, "quick_convergence", curves)
reached = curves[curves["accuracy"] >= 90].groupby(["stage", "method", "seed"])["epoch"].min() + 1
reached.groupby(["stage", "method"]).agg(["min", "max", "count"]).unstack("stage")

# %% [markdown]
# *Three seeds, bands one sd; CE lies under Bal-BCE. Batches of the long tail, so mostly head; raw logits; BCE's losses sum ten
# questions.* Faster than plain BCE, yes: after MGP in a third of its epochs, from scratch in two thirds. Level with CE in both
# settings, and against Bal-CE level after MGP and ahead from scratch; but of those two these curves cannot judge. Raw logits of a
# balanced loss are made for a uniform test set and are counted here on long-tailed batches, where even perfect ones come in the
# order CE, Bal-BCE, Bal-CE. So the bias undoes what was slow about BCE. (Accuracy on test images over epochs was not stored.)
#
# ## On real images
# CIFAR-10-LT at laptop scale:

# %%
laptop = {"ViT": "laptop_vit_ce", "ViT + Bal-BCE": "laptop_vit_bal_bce", "LiVT": "laptop_livt"}
laptop = runs.shots({name: (recipe, "cls") for name, recipe in laptop.items()})
fig = plots.plot_shot_accuracy(laptop).figure
plots.save_figure(fig, "balanced_finetuning_laptop", laptop)

# %% [markdown]
# *CIFAR-10-LT, rho = 100, ViT of width 96 and depth 6, 24 epochs; mean ± sample sd over three seeds.* The balanced
# loss alone finds a little of the tail (4 %) and gives up some of the head (67 to 61 %); after masked pre-training,
# 60 epochs more, every group is above both: perhaps because 24 epochs from scratch teach little of anything.
#
# ## At full size (LiVT Tables 2 to 4)
# The paper's ViT-B after MGP and CE ("MAE") and after MGP and Bal-BCE, beside plain CE and the best other method, both with
# convolutional networks ("*": fine-tuned at 384 pixels):

# %%
own, parts = ["ViT", "MAE", "DeiT", "LiVT", "LiVT *"], {}
for number, data in {"2": "ImageNet-LT", "3": "iNaturalist 2018", "4": "Places-LT"}.items():
    rows = published.table("LiVT", number)[["many", "medium", "few", "all"]]
    best = rows.drop(own, errors="ignore")["all"].idxmax()
    parts[f"Table {number}, {data}"] = rows[rows.index.isin(["CE", best, *own])]
pd.concat(parts)

# %% [markdown]
# From MAE to LiVT the loss changes: 6.4, 6.7 and 10.5 points, most for few-shot classes, while many-shot ones lose about a point.
# On the first two sets LiVT beats every CNN; on Places-LT, at 224 pixels, NCL is ahead of it by 1.0. All are printed without a
# spread.
#
# ## Takeaways
# - BCE asks one question a class, and a rare class's answer is nearly always *no*: without a bias the tail is lost
#   (3.3 % on digits).
# - One line, the prior's log-odds added to the logits while training, repairs it (74.0 %) and costs the head nothing there; on
#   CIFAR-10-LT from scratch the head is 6 points below that of CE (three seeds).
# - Bal-CE does the same for softmax (78.4 %); the two are level at this size.
#
# ## Exercises
# 1. Set `tau` to 0, 0.5 and 2 above. Which group pays for the tail's gain?


# %%
def bal_bce_bias(prior):
    """(C,) bias of Theorem 2."""
    return None  # your code


check(
    bal_bce_bias,
    losses.logit_bias_bce,
    (longtail.prior([120, 30, 3]),),
    (torch.tensor([0.5, 0.3, 0.2]),),
)


# %%
def start_of_bal_bce(prior, tau):
    """What Bal-BCE predicts for each class, (C,), when all logits are zero and the bias is multiplied by tau."""
    return None  # your code


check(
    start_of_bal_bce,
    lambda p, tau: torch.sigmoid(tau * losses.logit_bias_bce(p)),
    (longtail.prior([120, 30, 3]), 1.0),
    (torch.tensor([0.9, 0.1]), 0.5),
)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. Up to 1 none. At 2 the head loses a point or two, and the tail has no more than at 1 (full-length runs, drawn over tau in
# [06](06_the_loss_zoo.ipynb)).
#
# ```python
# def bal_bce_bias(prior):
#     return prior.log() - torch.log1p(-prior)
#
# def start_of_bal_bce(prior, tau):
#     return torch.sigmoid(tau * torch.logit(prior))  # with tau = 1 the prior itself
# ```
# </details>
#
# **Next:** [09 · SAM and the flat teacher](09_sam_and_the_flat_teacher.ipynb).
