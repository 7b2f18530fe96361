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
# # 14 · Feature rank: is the DIST token low-rank?
#
# **Question.** DeiT-LT says that a teacher trained with SAM makes DIST's features of the tail low-rank, hence general,
# while CLS stays high-rank. How is that rank counted, does it depend on a choice the paper leaves open, and do our runs
# show it?
#
# DeiT-LT section 3.2 and Suppl. G; **Figures 1b, 4c and S.4** on digits-LT (three seeds) and CIFAR-10-LT at laptop scale
# (three seeds). Cost: 10 seconds on two CPU cores; the tables are measured on finished runs by `workflow/analyses.py`.

# %% tags=["parameters"]
seed: int = 0  # of the weights of the untrained network
tolerance: float = 0.01  # share of the tail features that may be missed; the paper's is 1 %
images: str = "test"  # the images of the figures: test or train

# %%
from pathlib import Path

from ltvit_lib import augment, models, plots, rank
from ltvit_lib import data as datasets
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

folder = Path("../figures/data")

# %% [markdown]
# ## How many directions does the tail need?
# Take the leading right singular vectors $V_k$ of the column-centred features of *all* classes, project the *tail's*
# features on them, and count the directions until at most 1 % is missed:
#
# $$e_k = \frac{\lVert F_{\text{tail}} - F_{\text{tail}} V_k V_k^\top \rVert^2}{\lVert F_{\text{tail}} \rVert^2},
# \qquad \text{rank} = \min\{k : e_k \le 0.01\}$$
#
# Four directions whose energies are 90, 8, 1.5 and 0.5 % need three of them:

# %%
# NBVAL_CHECK_OUTPUT
energies = torch.tensor([0.90, 0.08, 0.015, 0.005], dtype=torch.float64)
generator = torch.Generator().manual_seed(0)
noise = torch.randn(100, 5, generator=generator, dtype=torch.float64)
noise[:, 0] = 1.0  # the others become orthogonal to a constant column: already centred
left = torch.linalg.qr(noise)[0][:, 1:]  # (100, 4)
right = torch.linalg.qr(torch.randn(10, 4, generator=generator, dtype=torch.float64))[0]  # (10, 4)
features = left * energies.sqrt() @ right.T


def error_by_hand(every, tail, k):
    _, _, directions = torch.linalg.svd(every - every.mean(0))
    v = directions[:k].T
    return ((tail - tail @ v @ v.T) ** 2).sum() / (tail**2).sum()


print("by hand:", [round(error_by_hand(features, features, k).item(), 4) for k in range(5)])
print("library:", [round(e, 4) for e in rank.reconstruction_error(features, features).tolist()])
print("rank:", rank.feature_rank(features, features, 0.01))

# %% [markdown]
# ## What is subtracted from the tail?
# "Upon centering the columns of $F_{\text{all}}$", says the paper, it projects $F_{\text{tail}}$; no code was released. Four readings:
# *literal*, the mean of all images from $F_{\text{all}}$ alone, as it is worded; that mean from both (*all*), as one centres new data; from each
# its *own* mean; *none* from either. Tail features that sit apart from the others show why it matters:

# %%
# NBVAL_CHECK_OUTPUT
every = torch.randn(400, 20, generator=generator, dtype=torch.float64)
every[:40, 0] += 12.0  # 40 tail images, displaced along one axis
for offset in (0.0, 30.0):
    moved = every + offset * torch.nn.functional.one_hot(torch.tensor(1), 20)  # all images alike
    found = {c: rank.feature_rank(moved, moved[:40], 0.05, c) for c in rank.CENTRES}
    print(f"common offset {offset:4.0f}: rank at 5 %", found)

# %% [markdown]
# With `all`, the displacement of the tail counts as tail energy, and the first direction explains most of it. With `own`
# only the variation within the tail counts. With `none` and `literal` any offset shared by all images counts too, although it says
# nothing about any of them; under `none` it is the first direction, under `literal` no direction is left to hold it. So the same network
# has four ranks.
#
# ## Random weights
# Before any training: a DeiT of the digits' size on the digits' test images. The features are those that each block puts
# out, before the final norm.

# %%
torch.manual_seed(seed)
split = datasets.load("digits", 40.0, seed)
untrained = models.create("deit_w64d4_patch2_8_distilled", num_classes=10, in_chans=1, img_size=8)
pixels = augment.evaluate(split.test.images, 8, split.mean, split.std)
features = rank.block_features(untrained, pixels)  # (L, B, P, D)
tail = split.test.targets >= 7
pd.DataFrame(
    {
        (token, centre): [
            rank.feature_rank(f[:, t], f[tail, t], tolerance, centre) for f in features
        ]
        for t, token in enumerate(("CLS", "DIST"))
        for centre in rank.CENTRES
    },
    index=pd.RangeIndex(1, 1 + len(features), name="block"),
)

# %% [markdown]
# About the mean of all, random weights have a lower rank than any trained network below: five directions hold 99 % of what a random CLS
# token knows of a tail image. So a low rank alone is no merit. Uncentred, one direction is nearly enough: the token's own starting value,
# the same for every image. Literally the same value makes the rank one of the highest: it counts as the tail's energy, but lies along none
# of the directions in which images differ, so that nearly all of them are needed to patch it together.
#
# ## Finished runs, block by block (Fig. 4c, S.4)
# The tail is classes 7, 8 and 9. ViT and LiVT classify by the mean over patches, so their line is that of the pooled patch
# features; a DIST token exists only in the students.

# %%
lines = {
    "ViT, pooled": ("vit_ce", "pooled", "#999999", "-"),
    "LiVT, pooled": ("livt", "pooled", plots.COLOURS["LiVT"], "-"),
    "DeiT, CLS": ("deit", "CLS", "#117733", "--"),
    "DeiT, DIST": ("deit", "DIST", plots.COLOURS["DeiT"], "--"),
    "DeiT-LT, CLS": ("deit_lt", "CLS", plots.COLOURS["DeiT-LT, CLS"], "-"),
    "DeiT-LT, DIST": ("deit_lt", "DIST", plots.COLOURS["DeiT-LT, DIST"], "-"),
}
scales = {"digits": "digits-LT", "laptop": "CIFAR-10-LT"}
centres = {
    "literal": "literal",
    "all": "mean of all",
    "own": "each its own mean",
    "none": "not centred",
}
table = pd.read_csv(folder / "feature_rank.csv")
table[["scale", "method"]] = table["recipe"].str.split("_", n=1, expand=True)
names = {(method, token): name for name, (method, token, *_) in lines.items()}
keys = list(zip(table["method"], table["token"]))
table["line"] = [names.get(key) for key in keys]
shown = table[table["line"].notna() & (table["images"] == images)]
n = shown.groupby(["scale", "line"])["seed"].nunique()
titles = {s: f"{scales[s]}, n = " + " or ".join(map(str, sorted(set(n[s])))) for s in scales}
n.unstack("scale").loc[list(lines)]

# %%
fig, axes = plt.subplots(2, 4, figsize=(11.5, 5.4), sharey="row", layout="constrained")
for (row, column), ax in np.ndenumerate(axes):
    scale, centre = list(scales)[row], list(centres)[column]
    here = shown[(shown["scale"] == scale) & (shown["centre"] == centre)]
    for i, (name, (*_, colour, style)) in enumerate(lines.items()):
        one = here[here["line"] == name].groupby("block")["rank"].agg(["mean", "std"])
        ax.errorbar(one.index + 0.07 * (i - 2.5), one["mean"], one["std"], color=colour, ls=style,
                    lw=1.2, marker="o", ms=3, capsize=2, label=name)  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(title=centres[centre] if row == 0 else "", xlabel="block", yscale="log")
    ax.set_yticks([10, 20, 40], [10, 20, 40])
    ax.minorticks_off()
    ax.set(ylabel=f"{titles[scale]}\nrank at 1 % error" if column == 0 else "")
    ax.set_xticks(sorted(here["block"].unique()))
handles = dict(h[::-1] for ax in axes.flat for h in zip(*ax.get_legend_handles_labels()))
_ = fig.legend(handles.values(), handles, frameon=False, ncols=3, loc="outside upper center")
plots.save_figure(fig, "feature_rank_blocks", shown)

# %% [markdown]
# *Log scale; lines side by side so that none hides another. Bars: ± sample sd over three seeds; on
# CIFAR-10-LT all seeds of a student share one teacher. Width 64 and 96, where the paper has 768.*
# Look at the two DeiT-LT lines on digits: literally, at the left, DIST drops below CLS in the last block; in the other three columns they
# have nearly the same rank in every block, and so have DeiT's. LiVT stands out, with up to three times the rank of the others, and in the
# last block on CIFAR-10-LT with more than three times the ViT's (literally more than twice). DeiT and DeiT-LT lie between them there.


# %%
def last_block(kind):
    """Ranks of the last block: mean ± sample sd over seeds; all features' own rank beside the tail's."""
    here = table[table["line"].notna() & (table["images"] == kind)]
    here = here[here["block"] == here.groupby("scale")["block"].transform("max")]
    keys = ["scale", "line"]
    wide = here.pivot_table(index=[*keys, "seed"], columns="centre", values="rank")[list(centres)]
    wide["all images' rank"] = here.groupby([*keys, "seed"])["of_all"].mean()
    cells = wide.groupby(keys).agg(["mean", "std"]).stack(0, future_stack=True)
    spread = cells["std"].map(lambda s: "" if pd.isna(s) else f" ± {s:.1f}")
    text = (cells["mean"].map("{:.1f}".format) + spread).unstack()[wide.columns]
    text.insert(0, "n", wide.groupby(keys).size())
    text["width"] = here.groupby(keys)["width"].first()
    return text.reindex(list(lines), level="line")


pd.concat({kind: last_block(kind) for kind in ("test", "train")}, names=["images"])

# %% [markdown]
# *Rank at 1 % of the last block; "all images' rank" is the same count with every image in the tail's place, centred.* Two
# readings of the paper can make or unmake a gap: on the digits' training images LiVT's tail needs 20 directions about the
# mean of all, where the others need 16 to 18, and 35 about its own, where they need 19 or 20. Its 13 tail images lie far
# from the others, and a displacement takes few directions to rebuild.
#
# ## The spectrum behind the count
# One threshold hides how the error falls. Last block, seed 0, test images:

# %%
spectrum = pd.read_csv(folder / "feature_spectrum.csv")
spectrum[["scale", "method"]] = spectrum["recipe"].str.split("_", n=1, expand=True)
spectrum["line"] = [names.get(key) for key in zip(spectrum["method"], spectrum["token"])]
drawn = spectrum[spectrum["line"].notna() & (spectrum["images"] == images)]
fig, axes = plt.subplots(2, 4, figsize=(11.5, 5.4), sharey=True, layout="constrained")
for (row, column), ax in np.ndenumerate(axes):
    scale, centre = list(scales)[row], list(centres)[column]
    here = drawn[(drawn["scale"] == scale) & (drawn["centre"] == centre)]
    for name in [n for n in lines if n in set(here["line"])]:
        one, (*_, colour, style) = here[here["line"] == name], lines[name]
        ax.plot(one["kept"], 100 * one["error"], color=colour, ls=style, label=name)
    ax.axhline(100 * tolerance, color="#333333", lw=1, ls=":")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xscale="log", yscale="log", ylim=(0.05, 120), title=centres[centre] if row == 0 else "")
    ax.set(
        xlabel="directions kept",
        ylabel=f"{scales[scale]}, seed 0\ntail missed (%)" if column == 0 else "",
    )
handles = dict(h[::-1] for ax in axes.flat for h in zip(*ax.get_legend_handles_labels()))
_ = fig.legend(handles.values(), handles, frameon=False, ncols=3, loc="outside upper center")
plots.save_figure(fig, "feature_rank_spectrum", drawn)

# %% [markdown]
# *The dotted line is the paper's threshold; where curves cross it is the rank.* In the three columns at the right the
# curves of DeiT-LT's CLS and DIST lie together down to a tenth of a percent on both sets, and literally DIST's is the lower one on digits
# from ten directions on: the answer does not hang on the 1 %.
#
# ## Which teacher? (Fig. 4c, S.4)
# The paper's comparison is between teachers: with and without SAM, LDAM-DRW and PaCo, and DeiT's. A line for each (PaCo without
# SAM on digits only), on the seeds that all have, by the literal reading:

# %%
teachers = {
    "deit": ("DeiT's, in distribution", plots.COLOURS["DeiT"], "--"),
    "deit_lt_sgd": ("LDAM-DRW", "#332288", "-"),
    "deit_lt": ("LDAM-DRW + SAM", plots.COLOURS["DeiT-LT"], "-"),
    "deit_lt_paco_sgd": ("PaCo", "#56B4E9", "-"),
    "deit_lt_paco": ("PaCo + SAM", "#009E73", "-"),
    "deit_lt_no_drw": ("LDAM-DRW + SAM, student without DRW", "#E69F00", ":"),
}
taught = table[(table["images"] == images) & table["method"].isin(list(teachers))]
taught = taught[(taught["centre"] == "literal") & taught["token"].isin(["CLS", "DIST"])]
there, of_seed = (
    taught.groupby(key)["method"].transform("nunique") for key in ("scale", ["scale", "seed"])
)
taught = taught[of_seed == there]  # seeds that every one of them has
fig, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharey="row", layout="constrained")
for (row, column), ax in np.ndenumerate(axes):
    scale, token = list(scales)[row], ["CLS", "DIST"][column]
    here = taught[(taught["scale"] == scale) & (taught["token"] == token)]
    for i, (method, (name, colour, style)) in enumerate(teachers.items()):
        one = here[here["method"] == method].groupby("block")["rank"].agg(["mean", "std"])
        ax.errorbar(one.index + 0.07 * (i - 2), one["mean"], one["std"], color=colour, ls=style,
                    lw=1.2, marker="o", ms=3, capsize=2, label=name)  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    seeds = f"{scales[scale]}, n = {here['seed'].nunique()}"
    ax.set(ylabel=f"{seeds}\nrank at 1 % error" if column == 0 else "", xlabel="block")
    ax.set(title=token if row == 0 else "", xticks=sorted(here["block"].unique()))
_ = fig.legend(
    *axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center"
)
plots.save_figure(fig, "feature_rank_teachers", taught)

# %% [markdown]
# *Bars: ± sample sd over seeds; lines side by side.* By this reading seeds differ by more than teachers do in the early blocks. In the last
# one DeiT's DIST lies above the students' of CNNs that were trained on weak crops, as the paper draws it, but on CIFAR-10-LT below the one
# without DRW; SAM's lies above its partner's on digits and below it on CIFAR-10-LT. Whether SAM made these teachers flatter at all is the question of
# [notebook 09](09_sam_and_the_flat_teacher.ipynb).
#
# ## In numbers


# %%
def change(scale, one, other):
    """Rank of one (recipe, token) less another's, last block: seeds of both, mean ± sample sd of paired differences."""
    here = table[(table["scale"] == scale) & (table["images"] == images)]
    here = here[here["block"] == here["block"].max()]
    if not {one[0], other[0]} <= set(here["method"]):
        return None
    by = here.pivot_table(index=["method", "token", "seed"], columns="centre", values="rank")
    found = (by.loc[one] - by.loc[other]).dropna()[list(centres)]
    spread = found.std().map(lambda s: "" if pd.isna(s) else f" ± {s:.1f}")
    return {"n": len(found), **(found.mean().map("{:+.1f}".format) + spread)}


claims = {
    "DeiT-LT: DIST - CLS": (("deit_lt", "DIST"), ("deit_lt", "CLS")),
    "DeiT: DIST - CLS": (("deit", "DIST"), ("deit", "CLS")),
    "DIST: DeiT-LT - DeiT": (("deit_lt", "DIST"), ("deit", "DIST")),
    "DIST: SAM - SGD teacher": (("deit_lt", "DIST"), ("deit_lt_sgd", "DIST")),
    "DIST: PaCo-SAM - PaCo teacher": (("deit_lt_paco", "DIST"), ("deit_lt_paco_sgd", "DIST")),
    "DIST: PaCo - LDAM teacher": (("deit_lt_paco", "DIST"), ("deit_lt", "DIST")),
    "DIST: DRW - no DRW": (("deit_lt", "DIST"), ("deit_lt_no_drw", "DIST")),
    "CLS: DeiT-LT - DeiT": (("deit_lt", "CLS"), ("deit", "CLS")),
}
rows = {(s, name): change(s, *pair) for s in scales for name, pair in claims.items()}
pd.DataFrame({name: row for name, row in rows.items() if row}).T

# %% [markdown]
# *Last block, paired by seed; n counts the seeds that both have.*
#
# ## Takeaways
# - The count depends on what is subtracted: one set of features above has rank 20, 12, 19 or 2.
# - Read literally, DIST **is** of lower rank than CLS in DeiT-LT, on every seed: by 13.0 ± 2.0 directions on digits (supported by Student's
#   95 %) and 4.7 ± 3.8 on CIFAR-10-LT (undecided). It is also below DeiT's DIST, by 4.0 ± 2.0 and 3.3 ± 2.5 (both undecided). That is the
#   paper's claim. The other three readings show nothing on digits (0.0, 0.3 ± 0.6, 0.0 ± 1.0) and one direction of 20 to 26 on CIFAR-10-LT,
#   where DeiT has it as well. What the literal count adds to theirs is the tail's distance from the origin, hence its height in an
#   untrained network, which has learnt nothing.
# - That SAM makes DIST low-rank (Figures 1b, 4c and S.4) is **not supported** at these sizes under any of the four: literally +2.3 ± 3.1 on
#   digits and -2.0 ± 3.6 on CIFAR-10-LT, with PaCo +1.7 ± 2.9. Re-weighting lowers it on CIFAR-10-LT under every reading (-5.7 ± 1.5
#   literally, -2.0 ± 0.0 about the mean of all; one teacher).
# - Low rank is not what serves the tail here: LiVT has the highest by every reading. Whether an untrained network has the lowest (5, about
#   the mean of all) or one of the highest (57 to 64 of 64, literally) is a matter of the reading: a rank alone is no merit.
#
# ## Exercises
# 1. The rank from a known spectrum.


# %%
def rank_of_spectrum(values, tolerance):
    """Least k such that the squared singular values after the k-th are at most `tolerance` of all squared values."""
    return None  # your code


def reference(values, tolerance):
    share = values.square().flip(0).cumsum(0).flip(0) / values.square().sum()
    return int((share > tolerance).sum())


case = torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1])
check(rank_of_spectrum, reference, (case, 0.01), (case, 0.1), (torch.ones(7), 0.3))

# %% [markdown]
# 2. How much of the tail's energy under `all` is merely its distance from the mean of all images?


# %%
def displacement_share(every, tail):
    """Share, in 0..1, of the tail's energy about the mean of `every` that its mean alone explains."""
    return None  # your code


def reference(every, tail):
    about = tail - every.mean(0)
    return len(tail) * about.mean(0).square().sum() / about.square().sum()


case = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
check(displacement_share, reference, (case, case[:10] + 1), (case, case[:5]))

# %% [markdown]
# 3. Rank counts directions at one threshold. The participation ratio, $(\sum_i s_i^2)^2 / \sum_i s_i^4$ of the singular
#    values $s_i$, needs none.


# %%
def participation_ratio(features):
    """Effective number of directions of the column-centred features (B, D)."""
    return None  # your code


def reference(features):
    energy = rank.spectrum(features).square()
    return energy.sum() ** 2 / energy.square().sum()


case = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
check(participation_ratio, reference, (case,), (case * torch.tensor([9.0, 1, 1, 1]),))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def rank_of_spectrum(values, tolerance):
#     energy = values**2
#     for k in range(len(values) + 1):
#         if energy[k:].sum() <= tolerance * energy.sum():
#             return k
#
# def displacement_share(every, tail):
#     about = tail - every.mean(0)
#     within = (tail - tail.mean(0)).square().sum()
#     return 1 - within / about.square().sum()
#
# def participation_ratio(features):
#     centred = features - features.mean(0)
#     gram = centred.T @ centred  # its eigenvalues are the squared singular values
#     return gram.trace() ** 2 / gram.square().sum()
# ```
# </details>
#
# **Next:** [16 · the audit](16_the_audit.ipynb): what the papers' own tables and logs add up to.
