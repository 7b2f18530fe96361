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
# # 19 · Where the time of a step goes
#
# **Question.** A training step makes a batch, asks a teacher, runs a network forwards and backwards and updates it. Which of these takes
# the time, what do the methods cost beside each other, and what grows when images, classes or batches do?
#
# DeiT-LT Table 1, its column of hours; the rest is this project's own. The recorded figures are those of one machine, named below;
# `make bench` measures yours in five minutes. This page: 30 seconds on two CPU cores.

# %% tags=["parameters"]
repeats: int = 3  # rounds of the live timing
scale: str = "laptop"  # of the recorded shares and ratios: digits or laptop

# %%
import importlib
import sys
from pathlib import Path

from ltvit_lib import costs, models, plots, published, recipes, runs
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

data = Path("../figures/data")
recorded = {
    name: pd.read_csv(data / f"benchmark_{name}.csv")
    for name in ("steps", "ratios", "growth", "losses", "augmentation")
}
kinds = recorded["steps"][recorded["steps"]["scale"] == scale].set_index("what")
ratios = recorded["ratios"][recorded["ratios"]["scale"] == scale].set_index("what")
print("recorded on:", *sorted(set(pd.concat(recorded.values())["device"])), sep="\n  ")

# %% [markdown]
# ## Parts of a step
# $$t = t_\text{data} + t_\text{teacher} + t_\text{forward} + t_\text{backward} + t_\text{optimiser} + t_\text{rest}$$
#
# Data is all that turns pixels in memory into an augmented, mixed batch; the rest is what no other part has, such as SAM's climb to the
# worse point. The benchmark wraps a clock about each call of the real training step (a GPU is waited for at both ends). On the machine that
# runs this page, on digits, in percent:

# %%
sys.path.append("../benchmarks")
steps, stepper = (importlib.import_module(name) for name in ("steps", "stepper"))
parts = list(stepper.PARTS)
live, _ = steps.measure("digits", repeats, ("ViT, CE", "teacher, SAM", "DeiT-LT"))
print(runs.device_name())
live.set_index("what")[parts].mul(100).round(1)

# %% [markdown]
# Three rounds on a machine that may be busy with other work. The recorded shares, medians of more rounds, for every kind of step:

# %%
hues = ["#DDCC77", plots.COLOURS["Teacher CNN"], "#88CCEE", "#332288", "#AA4499", "#BBBBBB"]
fig, ax = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
left = np.zeros(len(kinds))
for part, colour in zip(parts, hues):
    ax.barh(kinds.index, 100 * kinds[part], 0.7, left=left, color=colour, label=part)
    left = left + 100 * kinds[part]
ax.invert_yaxis()
ax.set(xlabel="share of a step's time (%)", xlim=(0, 100))
ax.spines[["top", "right"]].set_visible(False)
fig.legend(frameon=False, loc="outside upper center", ncols=6)
plots.save_figure(fig, "speed_shares", kinds[[*parts, "device"]].reset_index())

# %% [markdown]
# *Medians; each bar is one kind of step.* Look at the light and the dark blue: forward and backward passes are nearly everything. Each
# matrix product has two gradients, one for its input and one for its weights, so the backward should take twice the forward. It does in
# the ViTs at laptop scale (all numbers are below), less on 8-pixel digits, where small operations weigh more; in the CNNs 1.4 times, and in PaCo less than once, for its keys are passed forwards only.
# Images wait in memory and are augmented as one batch, so data is a sliver, largest for PaCo, which makes two views of each.
#
# ## What the methods cost, predicted and measured
# If the time went into matrix products alone, two steps would compare as their counted operations do:
#
# $$\frac{t_a}{t_b} \approx \frac{F_a}{F_b}, \qquad F \approx 3\,F_\text{forward}\,(1 + [\text{SAM}]) + F_\text{teacher}$$
#
# The count needs no clock and no data; it is the same on every machine:

# %%
# NBVAL_CHECK_OUTPUT
counted = {
    kind: costs.estimate(r).flops_per_image / 1e9 for kind, r in steps.chosen("laptop").items()
}
predicted = {
    "SAM / SGD": counted["teacher, SAM"] / counted["teacher, SGD"],
    "Bal-BCE / BCE": counted["ViT, Bal-BCE"] / counted["ViT, BCE"],
    "DeiT-LT / ViT": counted["DeiT-LT"] / counted["ViT, CE"],
    "DeiT-LT / bare passes": 1.0,
}
for kind, gflops in counted.items():
    print(f"{kind:20} {gflops:.3f} GFLOP an image")
print({name: round(value, 3) for name, value in predicted.items()})

# %%
fig, ax = plt.subplots(figsize=(7.6, 2.9), layout="constrained")
methods = ["Teacher CNN", "Bal-BCE", "DeiT-LT", "DeiT-LT"]
for row, ((name, one), method) in enumerate(zip(ratios.iterrows(), methods)):
    colour = plots.COLOURS[method]
    ax.plot([one["low"], one["high"]], [row, row], color=colour, lw=6, alpha=0.35)
    ax.plot(one["ratio"], row, "o", color=colour, ms=8)
    ax.plot(predicted[name], row, "|", color="#333333", ms=22, mew=1.6)
ax.plot([1.15], [list(ratios.index).index("DeiT-LT / bare passes")], "<", color="#882255", ms=8)
ax.set(xlabel="time of the first over time of the second", yticks=range(len(ratios)))
ax.set_yticklabels(ratios.index)
ax.set_ylim(len(ratios) - 0.5, -0.5)
ax.grid(axis="x", color="#eeeeee")
ax.spines[["top", "right"]].set_visible(False)
looks = {
    "measured": ("o", "#777777"),
    "counted operations": ("|", "#333333"),
    "aim": ("<", "#882255"),
}
handles = [
    plt.Line2D([], [], ls="", marker=m, color=c, ms=8, label=n) for n, (m, c) in looks.items()
]
fig.legend(handles=handles, frameon=False, loc="outside upper center", ncols=3)
table = ratios[["ratio", "low", "high", "device"]].assign(predicted=predicted)
plots.save_figure(fig, "speed_ratios", table.reset_index())

# %% [markdown]
# *Medians and quartiles over rounds in which the kinds take turns, whole steps with their data.* SAM costs a second pass, Bal-BCE what
# BCE costs. DeiT-LT pays for a teacher, a token and a second head; the last row asks whether its step is more than the two networks it
# runs, on tensors that lie ready: at most 1.15 (triangle) is the aim.
#
# The paper's own clock is Table 1: hours with a RegNetY-16GF for a teacher and with a ResNet-32, the student and its epochs the same.

# %%
# NBVAL_CHECK_OUTPUT
hours = published.table("DeiT-LT", "1")["hours"].filter(like="student strong mixup")
work = [
    costs.estimate(recipes.get(name)).flops_per_image
    for name in ("paper_c10_deit_b", "paper_c10_deit_lt_b_ldam_no_drw")
]
print(f"RegNetY over ResNet-32: {hours.iloc[0] / hours.iloc[-1]:.2f} times the hours,")
print(f"{work[0] / work[1]:.2f} times the counted operations")

# %% [markdown]
# The two need not agree. Table 1's hours may include the teacher's own training (section 3.1 speaks of overall time; supplement H gives
# about 15 hours for the student, Table 1 at least 17.8), which the count leaves out; nor do all operations take the same time.
#
# ## How busy is the machine?
# Model-FLOP utilisation is the share of the machine's best that the step's *necessary* operations reach:
#
# $$\text{MFU} = \frac{\text{images a second} \times F}{P}$$
#
# with the data sheet's dense bf16 peak for $P$ on a GPU; for a CPU $P$ is what a large matrix product
# reaches in the same round.

# %%
columns = {
    "images_per_second": "images/s", "gflops_per_image": "GFLOP/image", "utilisation": "MFU (%)", "peak": "against"
}  # fmt: skip
shown = kinds.assign(utilisation=100 * kinds["utilisation"])[list(columns)].rename(columns=columns)
shown.round({"images/s": 0, "GFLOP/image": 3, "MFU (%)": 0})

# %% [markdown]
# What is missing is what moves memory and counts as no operation here: normalisations, activations, the optimiser, augmentation; and
# products too small to fill the machine.
#
# ## What grows
# A step's cost over one size at a time, everything else fixed, as $t \sim s^k$ with $k$ fitted over the larger half of the sizes. A block
# has $24 D^2$ operations a token for its weights and $4 N D$ for attention, so over tokens $1 < k < 2$; over the batch $k = 1$; over
# classes $k = 1$ once the classifier outweighs what every step costs; and over the number of images $k = 0$, or large data sets would
# train more slowly, image for image.

# %%
growth = recorded["growth"]
panels = {
    "tokens": "tokens",
    "batch": "images in a batch",
    "classes": "classes",
    "images": "images in memory",
}
lines = {"relative": ("time", "#0072B2", "o-"), "mib": ("memory", "#D55E00", "s-"), "flops": ("operations", "#333333", "--")}  # fmt: skip
fig, axes = plt.subplots(1, 4, figsize=(11.5, 3.3), layout="constrained")
for ax, (what, label) in zip(axes, panels.items()):
    one = growth[growth["what"] == what]
    for column, (name, colour, style) in lines.items():
        ax.loglog(
            one["size"], one[column] / one[column].iloc[0], style, color=colour, ms=4, label=name
        )
    first = one.iloc[0]
    time, memory = first["exponent"], abs(first["mib_exponent"])
    ax.set_title(f"time $s^{{{time:.2f}}}$, memory $s^{{{memory:.2f}}}$", fontsize=10)
    ax.set(xlabel=label)
    ax.spines[["top", "right"]].set_visible(False)
axes[3].set_ylim(0.2, 20)
axes[0].set_ylabel("relative to the smallest size")
fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3)
plots.save_figure(fig, "speed_growth", growth)

# %% [markdown]
# *Above each panel the fitted exponents. ViT of width 96 and depth 6 with its optimiser; of classes, a ViT-B's classifier with Bal-BCE,
# forwards and backwards, up to iNaturalist 2018's 8,142; of images, time and working memory of making a batch of 128.* Look at the memory over tokens: it grows as the
# tokens, although attention compares every pair of them. Fused attention never holds the $N \times N$ maps. Time does feel the pairs.
#
# ## When does attention matter?
# Of a block's operations its share is
#
# $$\frac{4 N^2 D}{24 N D^2 + 4 N^2 D} = \frac{N}{6 D + N}$$
#
# The formula against the counter, for ViT-B with its 197 tokens, and where attention would be half of the work:

# %%
# NBVAL_CHECK_OUTPUT
count = torch.utils.flop_counter.FlopCounterMode(display=False)
with torch.device("meta"):
    block = models.create("vit_base_patch16_224").blocks[0]
    block.attn.fused_attn = False  # so that the counter sees its two products
    with count:
        block(torch.empty(1, 197, 768))
weights = 2 * 197 * 12 * 768**2
print(f"counted {1 - weights / count.get_total_flops():.4f}, formula {197 / (6 * 768 + 197):.4f}")
print(f"half of the work at {6 * 768} tokens: an image of {16 * round((6 * 768) ** 0.5)} pixels")

# %% [markdown]
# ## Losses and augmentation
# Each loss beside plain CE or BCE, forwards and backwards, on (1,024, 1,000) logits; and our augmentation,
# all images of a batch at once, beside the PIL pipelines that it stands for, which see one image at a time:

# %%
loss = recorded["losses"].set_index("loss")["ratio"].sort_values()
pil = recorded["augmentation"].sort_values("ratio")
names = pil["policy"] + ", " + pil["size"].astype(str) + " px, batch " + pil["images"].astype(str)
fig, (ax, right) = plt.subplots(
    1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=(1.2, 1)
)
ax.barh(
    loss.index,
    loss,
    color=[plots.COLOURS["Bal-BCE"] if n == "balanced_bce" else "#BBBBBB" for n in loss.index],
)
right.barh(names, pil["ratio"], color="#88CCEE")
for one, label in (
    (ax, "time over plain CE's or BCE's"),
    (right, "images/s over PIL's, one thread"),
):
    one.axvline(1, color="#333333", lw=1, ls="--")
    one.set(xlabel=label)
    one.spines[["top", "right"]].set_visible(False)
plots.save_figure(fig, "speed_losses", recorded["losses"])

# %% [markdown]
# *Dashed: no difference.* The bias of Bal-BCE, in blue, is as good as free. Losses that sort, weigh or normalise twice cost several
# times plain cross-entropy, still little beside a network's passes.
#
# ## In numbers

# %%
bare = ratios.loc["DeiT-LT / bare passes", "ratio"]
fixed = growth.drop_duplicates("what").set_index("what")
most, *others = kinds["data"].mul(100).sort_values(ascending=False).items()
print(f"data: {most[0]} {most[1]:.1f} % of a step, others at most {others[0][1]:.1f} (aim: 5)")
back = (kinds["backward"] / kinds["forward"]).round(2)
print("backward / forward:", *(f"\n  {kind:20} {ratio}" for kind, ratio in back.items()))
print(f"SAM: {ratios.loc['SAM / SGD', 'ratio']:.2f} times SGD")
print(f"Bal-BCE: {ratios.loc['Bal-BCE / BCE', 'ratio']:.2f} times BCE")
print(
    f"DeiT-LT: {ratios.loc['DeiT-LT / ViT', 'ratio']:.2f} times a ViT, {bare:.2f} times its bare passes (aim: 1.15)"
)
print(
    f"tokens: time ~ {fixed.loc['tokens', 'exponent']:.2f}, memory ~ {fixed.loc['tokens', 'mib_exponent']:.2f}"
)
for _, row in pil.iterrows():
    named = f"{row['policy']}, {row['size']} px, batch {row['images']}"
    print(f"augmentation, {named}: {row['ratio']:.1f} times PIL")

# %% [markdown]
# *Every kind of step keeps its aim, at laptop scale; on 8-pixel digits small steps do not (the teachers', up to a tenth). At 32 pixels
# training augments 512 images at once, four steps of 128.*
#
# ## Takeaways
# - A step is its forward and backward passes. By counted operations SAM doubles a teacher's step, Bal-BCE adds nothing, and DeiT-LT costs
#   1.10 ViTs at laptop scale; measured here: 1.98, 0.99 and 1.09.
# - The number of images does not slow a step: a batch out of 50,000 is made as fast as one out of 1,000, in the same memory beside the
#   images themselves (3 KB each).
# - Attention is 4 % of a ViT-B's work at 197 tokens and half of it at 4,608; its memory grows with the tokens, not with their pairs.
#
# ## Exercises
# 1. How busy is a machine?


# %%
def utilisation(images_per_second, gflops_per_image, peak_tflops):
    """Model-FLOP utilisation, a share in 0..1."""
    return None  # your code


check(
    utilisation,
    lambda speed, work, peak: speed * work * 1e9 / (peak * 1e12),
    (3400.0, 105.0, 798.0),
    (25000.0, 7.6, 989.0),
)

# %% [markdown]
# 2. How long a sequence makes attention costly?


# %%
def attention_share(tokens, width):
    """Share of a ViT block's operations in its two products of N x N: query with key, and weights with value."""
    return None  # your code


def reference(n, d):
    pairs, weights = 2 * 2 * n * n * d, 2 * n * (3 * d * d + d * d + 2 * 4 * d * d)
    return pairs / (pairs + weights)


check(attention_share, reference, (197, 768), (4608, 768), (65, 96))

# %% [markdown]
# 3. What will SAM cost, before you try it?


# %%
def sam_over_sgd(data, forward, backward, optimiser):
    """Time of a step with SAM over one without, from the seconds of SGD's parts; the climb itself is free."""
    return None  # your code


def twice(data, forward, backward, optimiser):
    plain = data + forward + backward + optimiser
    return (plain + forward + backward) / plain


check(sam_over_sgd, twice, (0.0, 1.0, 2.0, 0.0), (1.0, 1.0, 2.0, 0.5), (5.0, 1.0, 2.0, 0.0))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def utilisation(images_per_second, gflops_per_image, peak_tflops):
#     return images_per_second * gflops_per_image / (1000 * peak_tflops)
#
# def attention_share(tokens, width):
#     return tokens / (6 * width + tokens)
#
# def sam_over_sgd(data, forward, backward, optimiser):
#     passes = forward + backward
#     return 1 + passes / (data + passes + optimiser)  # data and optimiser are paid once
# ```
# </details>
#
# **Next:** the two networks whose passes these are, [11 · DeiT-LT](11_deit_lt.ipynb), and what they reach, [15 · the report](15_the_report.ipynb).
