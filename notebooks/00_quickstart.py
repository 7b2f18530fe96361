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
# # 00 · Quickstart: a Vision Transformer on a long tail
#
# **Question.** Most data sets have a few frequent classes and many rare ones. What happens to a Vision Transformer
# (ViT) trained from scratch on such data, and do the two remedies help?
#
# - **LiVT** ([Xu et al. 2023](https://arxiv.org/abs/2212.02015)): first learn to fill in hidden patches, without
#   labels; then fine-tune with a *balanced* binary cross-entropy.
# - **DeiT-LT** ([Rangwani et al. 2024](https://arxiv.org/abs/2404.02900)): learn from a flat, SAM-trained CNN through a
#   second token, on images far from those the CNN knows.
#
# Everything below is trained here, live, on scikit-learn's 8 x 8 digits: under two minutes on two CPU cores.
# The same code with another recipe name trains on CIFAR-10-LT ([full/](full/)).

# %% tags=["parameters"]
rho: float = 40.0  # imbalance factor: images of the most frequent class over images of the rarest
seed: int = 0  # of everything: which images form the tail, weights, order, augmentation
length: float = 1.0  # share of the full schedule; 0.2 is a quick look

# %%
import tempfile
from pathlib import Path

from ltvit_lib import data, longtail, plots, recipes, runs, train

import pandas as pd

folder = Path(tempfile.mkdtemp(prefix="ltvit-"))

# %% [markdown]
# ## The data
# Class sizes fall exponentially from 120 images to 120 / rho. The test set is balanced: 50 images a digit. We look at
# the classes in three groups, as DeiT-LT does: the first three are the *head*, the last three the *tail*.

# %%
split = data.load("digits", rho=rho, seed=seed)
print("training images of each digit:", split.counts, "=", len(split.train))
print("test images:", len(split.test))

# %%
first = [split.train.images[split.train.targets == c][:6] for c in (0, 4, 9)]
_ = plots.show_images({f"digit {c}: {split.counts[c]} images": f for c, f in zip((0, 4, 9), first)})

# %% [markdown]
# The last row may hold fewer than six pictures: that is all there is of the rarest digit.
#
# ## A plain ViT
# Four blocks of width 64 on patches of 2 x 2 pixels, trained with cross-entropy. A *recipe* holds every number that
# decides a run; `train.fit` turns a recipe into a run folder.


# %%
def quick(name):
    return recipes.shortened(name, length, rho=rho)


vit = train.fit(quick("digits_vit_ce"), folder / "vit", seed)
vit.table()

# %% [markdown]
# (`ece` is the calibration error: how far, on average, the network's confidence is from its accuracy, in points.) It does well on the
# head and much worse on the tail: the few tail images teach it little, and cross-entropy has
# learned that guessing a frequent class pays.
#
# ## LiVT
# Stage one hides three quarters of the patches and learns to paint them in; labels, and so their imbalance, play no
# part. Stage two fine-tunes with Bal-BCE. BCE asks one yes-or-no question a class: the logistic function $\sigma$ makes the
# logit $z_c$ the probability of "yes". Bal-BCE adds the class's log-odds to its logit while training, with $\pi_c$ its share
# of the training images:
#
# $$\mathcal L = \sum_c \mathrm{BCE}\big(\sigma(z_c + \log\pi_c - \log(1-\pi_c)),\; y_c\big) \qquad\text{(LiVT, Theorem 2)}$$

# %%
pretrained = train.fit(quick("digits_mgp"), folder / "mgp", seed)
livt = train.fit(quick("digits_livt"), folder / "livt", seed, init=pretrained)
livt.table()

# %% [markdown]
# ## DeiT-LT
# A small ResNet is trained first, with margins that favour rare classes (LDAM), class weights at the end (DRW) and
# sharpness-aware minimisation (SAM). Then a ViT with **two** tokens learns: CLS from the labels, DIST from what the
# ResNet answers to the same augmented and mixed image. Their average decides.

# %%
teacher = train.fit(quick("digits_teacher_ldam_drw_sam"), folder / "teacher", seed)
deit_lt = train.fit(quick("digits_deit_lt"), folder / "deit_lt", seed, teacher=teacher)
deit_lt.table()

# %% [markdown]
# `dist` knows the tail far better than `cls`, which is ahead nowhere here; over all classes their plain average falls between
# the two. [Notebook 12](12_two_experts.ipynb) asks why.
#
# ## Side by side
# One seed, live:

# %%
live = {
    "ViT": (vit, "cls"),
    "LiVT": (livt, "cls"),
    "DeiT-LT": (deit_lt, "avg"),
    "Teacher CNN": (teacher, "cls"),
}
rows = [
    {"method": method, "group": group, "accuracy": run.result["heads"][head][group], "seed": seed}
    for method, (run, head) in live.items()
    for group in ("all", "head", "mid", "tail")
]
live_table = pd.DataFrame(rows)
ax = plots.plot_shot_accuracy(live_table)
plots.save_figure(ax.figure, "quickstart_live", live_table)

# %% [markdown]
# One seed is one draw of three to six images a tail class: its bars may well be lucky or unlucky. So the same recipes over
# three seeds, each with its own tail, kept in `figures/data`:

# %%
stored = runs.shots(
    {
        "ViT": ("digits_vit_ce", "cls"),
        "ViT + Bal-BCE": ("digits_vit_bal_bce", "cls"),
        "LiVT": ("digits_livt", "cls"),
        "DeiT-LT": ("digits_deit_lt", "avg"),
        "Teacher CNN": ("digits_teacher_ldam_drw_sam", "cls"),
    }
)
ax = plots.plot_shot_accuracy(stored)
plots.save_figure(ax.figure, "quickstart", stored)

# %% [markdown]
# *Digits-LT, rho = 40, mean of three seeds, whiskers one sample standard deviation (new tail, new weights for each).* Read
# the **tail** cluster first. LiVT lifts it by 21 to 35 points over the plain ViT on each seed, DeiT-LT by
# 5 to 30: always up, too uneven over three seeds to put a size on. The balanced loss alone does as much as DeiT-LT
# here, and part of what LiVT does. The CNN teacher stays ahead of every ViT: eight-pixel digits suit a convolution, and the
# papers' result that students overtake their teachers needs their full schedules.
#
# ## Real images
# The same comparison on CIFAR-10-LT (12,406 real images, rho = 100) with a compact ViT and runs of ten to forty minutes
# on one or two CPU cores:

# %%
laptop = runs.shots(
    {
        "ViT": ("laptop_vit_ce", "cls"),
        "ViT + Bal-BCE": ("laptop_vit_bal_bce", "cls"),
        "LiVT": ("laptop_livt", "cls"),
        "DeiT-LT": ("laptop_deit_lt", "avg"),
        "Teacher CNN": ("laptop_teacher_ldam_drw_sam", "cls"),
    }
)
ax = plots.plot_shot_accuracy(laptop)
plots.save_figure(ax.figure, "cifar10_lt_laptop", laptop)
mean = laptop.groupby(["method", "group"])["accuracy"].mean().mul(100).round(1)
for method in dict.fromkeys(laptop["method"]):
    print(f"{method:14} all {mean[method, 'all']:5} %   tail {mean[method, 'tail']:5} %")

# %% [markdown]
# *CIFAR-10-LT, 24 epochs (teacher 50): far from converged. Mean and sample sd over three seeds; the teacher of seed 0
# taught all three DeiT-LT students.* The plain ViT never once finds a tail class, on any seed;
# both methods do (22 and 15 %). The CNN is far ahead of DeiT-LT; in the paper 1,200 epochs reverse that.
#
# ## Takeaways
# - A plain ViT on a long tail learns the head: on CIFAR-10-LT its tail accuracy is zero after 24 epochs (three seeds).
# - Both remedies use the long-tailed images alone, and both lift the tail. They start from different ends: LiVT from better
#   features and a balanced loss, DeiT-LT from a CNN that knows the tail.
# - At these scales a small CNN is still the better classifier. That is the case for distilling from one.
#
# ## Exercises
# 1. Set `rho = 1` in the parameters cell and run again. Which parts of LiVT and DeiT-LT does that switch off, and which stay?
# 2. Write the class sizes of an exponential tail yourself: $n_i = \lfloor n_{\max}\, \rho^{-i/(C-1)} \rfloor$.

# %%
from ltvit_lib.exercises import check


def class_sizes(n_max, num_classes, rho):
    """n_i for i = 0 .. num_classes - 1, as a list of ints."""
    return None  # your code


check(class_sizes, longtail.exponential_counts, (5000, 10, 100), (500, 100, 50), (120, 10, 40))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# 1. Off is all that knows of class sizes: every $\pi_c$ is 1/10, so Bal-BCE adds the same $-\log 9$ to every logit, a constant
#    that the head's own bias can take up; LDAM's margins are equal, and DRW's weights all 1. What stays is masked pre-training
#    in LiVT and the CNN's answers in DeiT-LT: what can help against *few* images, the other half of a ViT's trouble
#    ([notebook 03](03_a_plain_vit_on_a_tail.ipynb)).
#
# ```python
# def class_sizes(n_max, num_classes, rho):
#     return [int(n_max * (1 / rho) ** (i / (num_classes - 1))) for i in range(num_classes)]
# ```
# </details>
#
# **Next:** [01 · long-tailed data](01_long_tailed_data.ipynb); or jump to [07 · masked pre-training](07_masked_pretraining.ipynb),
# [08 · balanced fine-tuning](08_balanced_finetuning.ipynb), [11 · DeiT-LT](11_deit_lt.ipynb).

# %% tags=["result"]
table = live_table.pivot(index="method", columns="group", values="accuracy").loc[
    list(live), ["all", "head", "mid", "tail"]
]
print(f"Digits-LT, rho = {rho:g}, seed {seed}, accuracy in percent\n")
print(table.mul(100).round(1).to_string())
