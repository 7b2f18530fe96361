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
# # 12 · Two experts: who knows what, and on which prior?
#
# **Question.** DeiT-LT decides by the plain average of two heads, one good on frequent classes and one on rare ones. What does each
# of them know, and is the plain average the right way to ask both?
#
# DeiT-LT section 3.1 and supplements B and E: **Tables S.3 and S.4**. Then a question of this project's own: the same experts on
# *one* prior. Cost: 15 seconds; the students behind the tables took about a minute (digits) or 16 to 58 minutes (CIFAR-10-LT)
# each on shared CPU cores, and `python workflow/experts.py runs` measures the tables on them.

# %% tags=["parameters"]
rho: float = 100.0  # imbalance of the small world in which every posterior is known
noise: float = 2.0  # sd of each expert's own error in it, in logits

# %%
from ltvit_lib import longtail, losses, metrics, plots, published, runs
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

read = lambda name: pd.read_csv(f"../figures/data/experts_{name}.csv")
GROUPS = ["all", "head", "mid", "tail"]


def with_error(tidy, index, groups=GROUPS):
    """Mean ± standard error over seeds in percent, as the paper's Table S.3; a single run has none."""
    cells = (100 * tidy.set_index([*index, "group"])["accuracy"]).groupby(level=[*index, "group"])
    text = cells.agg(lambda v: "{mean:.1f} ± {se:.1f}".format(**metrics.summarise(v)))
    return text.str.removesuffix(" ± nan").unstack("group").reindex(columns=groups).fillna("–")


def panels(ylabel, height=3.5, **options):
    """Two axes side by side."""
    fig, axes = plt.subplots(1, 2, figsize=(8.8, height), layout="constrained", **options)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return fig, axes


def legend(fig, axes, columns):
    """One legend for both, above them."""
    items = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(items.values(), items, ncols=columns, frameon=False, loc="outside upper center")


# %% [markdown]
# ## Who knows what (Tables S.3 and S.4)
# The CLS head learns the labels by cross-entropy; the DIST head learns the answers of a teacher, re-weighted towards rare
# classes in the last part of training. Accuracy of each, and of the average of their logits, ours above and the paper's below:

# %%
rules, order = read("rules"), ["CLS", "DIST", "average of logits"]
names = {"digits_deit_lt": "digits-LT, ours", "laptop_deit_lt": "CIFAR-10-LT, ours"}
names = {recipe: name for recipe, name in names.items() if recipe in set(rules["recipe"])}
chosen = rules[rules["recipe"].isin(names) & (rules["prior"] == "as trained")]
ours = with_error(chosen[chosen["of"].isin(order)].replace({"recipe": names}), ["recipe", "of"])
heads = {"cls": "CLS", "dist": "DIST", "avg": "average of logits"}
rows = {}
for number in ("S.3", "S.4"):
    for row, values in published.table("DeiT-LT", number).iterrows():
        head, data = row.split(", ") if ", " in row else (row, "CIFAR-10-LT rho 100")
        errors = {g: f" ± {values[g + '_se']:.1f}" if number == "S.3" else "" for g in GROUPS}
        rows[data + ", paper", heads[head]] = {g: f"{values[g]:.1f}{errors[g]}" for g in GROUPS}
pd.concat([ours, pd.DataFrame(rows).T]).reindex(order, level=1)

# %% [markdown]
# *Percent; mean ± standard error over three seeds, ours and in S.3 (Table S.4 has none). Ours on CIFAR-10-LT: 24 epochs instead of
# 1,200; three seeds of the student under one teacher. Groups by position: head, mid, tail.*
# Look at head against tail: in every data set CLS is ahead on the head and DIST on the tail, except where the head is
# saturated (digits). But the average is well above both experts only in the paper's runs. Ours is below DIST alone
# on digits, and less than a point above it on CIFAR-10-LT (40.9 and 40.1).
#
# ## Where they disagree, who is right?

# %%
agree = read("agreement")
cases = {"both": "#009E73", "only CLS": "#E69F00", "only DIST": "#CC79A7", "neither": "#999999"}
drawn = agree[agree["recipe"].isin(names)].replace({"recipe": names})
fig, axes = panels("test images (%)")
for ax, title in zip(axes, names.values()):
    part = drawn[drawn["recipe"] == title].groupby(["group", "right"])["share"].mean().mul(100)
    bottom = np.zeros(len(GROUPS))
    for case, colour in cases.items():
        height = part.unstack("right").loc[GROUPS, case].to_numpy()
        ax.bar(GROUPS, height, 0.7, bottom, color=colour, label=f"right: {case}")
        bottom += height
    ax.set(title=title, xlabel="group of classes", ylim=(0, 100))
legend(fig, axes, 4)
plots.save_figure(fig, "experts_who_is_right", drawn)
alone = drawn[drawn["right"].str.startswith("only")]
alone = alone.groupby(["recipe", "right", "group"], sort=False)["average"].mean().mul(100).round(0)
alone.unstack("group").reindex(columns=GROUPS)

# %% [markdown]
# *Table: of the images on which one expert alone is right, how many the average gets right (percent; NaN: no such image).*
# On the tail it is DIST that is right, never CLS alone; on the head of CIFAR-10-LT it is CLS. There the average follows CLS on the head in
# 85 % of the cases, and DIST on the tail in 20 %: it does not side with who knows more, it leans to frequent classes.
#
# ## Two priors
# Write $g_c = \log p(x \mid c)$ for what the image says and $\pi$ for the training prior.
#
# 1. CE on labels is least at $z^{\mathrm{CLS}}_c = \log p(c \mid x) = g_c + \log \pi_c + \text{const}$: the posterior under the **training** prior.
# 2. CE on the teacher's answers, weighted by $w$, is least at $z^{\mathrm{DIST}}_c = \log w_c\, p(t{=}c \mid x) = \log p(x \mid t{=}c) + \log w_c m_c
#    + \text{const}$, where $m_c$ training images are called $c$. A teacher that repeats the labels has $m_c = n_c$, and DRW's $w_c$ is nearly
#    proportional to $1/n_c$: the posterior under a **uniform** prior.
# 3. So $v z^{\mathrm{CLS}} + (1-v) z^{\mathrm{DIST}} = g_c + v \log \pi_c + \text{const}$: the posterior under a prior proportional to $\pi^v$.
#
# The published average, $v = 1/2$, decides under the *square root* of the training prior. In a world of ten Gaussians,
# where every posterior is known:

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
prior = torch.tensor([rho ** (-c / 9) for c in range(10)], dtype=torch.float64)
prior = prior / prior.sum()
angle = torch.arange(10) * 0.2 * torch.pi
centres = 2.5 * torch.stack([angle.cos(), angle.sin()], 1).double()[torch.randperm(10, generator=generator)]  # fmt: skip
y = torch.arange(10).repeat_interleave(2000)  # a balanced test set
x = centres[y] + torch.randn(len(y), 2, generator=generator, dtype=torch.float64)
g = -0.5 * torch.cdist(x, centres).square()  # log p(x | c), up to a constant
cls, dist = (g + prior.log()).log_softmax(1), g.log_softmax(1)
for v in (0.0, 0.25, 0.5, 1.0):
    effective = prior**v / (prior**v).sum()
    posterior = (g + effective.log()).softmax(1)
    assert torch.allclose((v * cls + (1 - v) * dist).softmax(1), posterior)
    print(
        f"v = {v:4}: decides as if the largest class were {effective[0] / effective[-1]:5.1f} times the smallest"
    )

# %% [markdown]
# And correcting CLS first is one shift of the average: $\tfrac12(z^{\mathrm{CLS}} - \log\pi + z^{\mathrm{DIST}}) =
# \tfrac12(z^{\mathrm{CLS}} + z^{\mathrm{DIST}}) - \tfrac12\log\pi$, logit adjustment with strength one half. Why then average at all?
# Because the experts err apart. Give each its own error and sweep $v$, once as published and once on one prior:

# %%
a, b = noise * torch.randn(2, *g.shape, generator=generator, dtype=torch.float64)
right = lambda scores: 100 * (scores.argmax(1) == y).double().mean().item()
fig, axes = panels("balanced accuracy (%)", sharey=True)
rows = []
for ax, size in zip(axes, (0.0, 1.0)):
    for name, shift in (("CLS as trained", 1.0), ("CLS moved to the test prior", 0.0)):
        first, second = g + size * a + shift * prior.log(), g + size * b
        values = [right(i / 20 * first + (1 - i / 20) * second) for i in range(21)]
        ax.plot(np.arange(21) / 20, values, color="#D55E00" if shift else "#0072B2", label=name)
        rows += [(size * noise, name, i / 20, found) for i, found in enumerate(values)]
    ax.set(title=f"each expert's own error: sd {size * noise:g}", xlabel="weight v of CLS")
legend(fig, axes, 2)
table = pd.DataFrame(rows, columns=["noise", "cls", "v", "accuracy"])
plots.save_figure(fig, "experts_square_root", table)

# %% [markdown]
# Left, where both know everything: on one prior any weight is right, as published every bit of CLS costs. Right: averaging
# removes error, so the published curve still rises at first, and its best $v$ is a compromise between less error and a
# wrong prior; on one prior there is nothing to trade, and equal experts get equal weights. Do the trained heads have these two priors?

# %%
leaning = read("shares")
leaning = leaning[leaning["recipe"].isin(names)].replace({"recipe": names})
fig, axes = panels("share of the class (%)")
for ax, title in zip(axes, names.values()):
    ax.axhline(10, color="#333333", lw=1, ls="--", label="uniform")
    part = leaning[leaning["recipe"] == title].groupby(["head", "class"])
    for head, method in (("cls", "DeiT-LT, CLS"), ("dist", "DeiT-LT, DIST")):
        mean, colour = 100 * part[["probability", "prior"]].mean().loc[head], plots.COLOURS[method]
        ax.plot(mean["probability"], marker="o", ms=4, color=colour, label=f"{head.upper()}: mean probability")  # fmt: skip
        ax.plot(mean["prior"], color=colour, lw=2.2, ls=":", label=f"{head.upper()}: prior it learned from")  # fmt: skip
    ax.set(title=title, xlabel="class, from most to least frequent", xticks=range(10))
legend(fig, axes, 3)
plots.save_figure(fig, "experts_leaning", leaning)
tail = leaning[leaning["class"] >= 7].groupby(["recipe", "head", "seed"], sort=False)[["prior", "probability"]].sum()  # fmt: skip
tail = tail.groupby(level=[0, 1], sort=False).mean().mul(100).round(1)
tail.rename(columns={"prior": "tail's share of the prior (%)", "probability": "of the probability on the test set (%)"})  # fmt: skip

# %% [markdown]
# *DIST's prior is $w_c m_c$, counted with the student's own teacher and augmentation.* The test set is balanced: 30 % of it is tail.
# CLS gives the tail far less, as its prior does. On digits the teacher repeats the labels, and DIST's prior is uniform, as
# step 2 says. On CIFAR-10-LT it is *inverted*: the teacher, itself re-balanced, calls many augmented images of frequent classes
# a rare one, and DRW multiplies those answers once more. DIST's probabilities lean to the tail accordingly (not all the way:
# the weights rule in the last four epochs only). There the published average adds two opposite errors.
#
# ## Correct after training
# (a) CLS is *moved*: its scores become $z_c - \log\pi_c$ (`losses.decide_ce`); then logits or probabilities are averaged. CLS is no
# clean posterior, though. It was trained on mixed images, which nothing undoes, and on smoothed labels until DRW began. Undoing
# the smoothing takes the floor $\varepsilon/C$ off each probability, so a class to which CLS gives less than 1 % is all but ruled
# out. And with DIST's prior counted, both can be moved. None of these rules has a number to tune:

# %%
parts = rules[rules["recipe"].isin(names)].replace({"recipe": names})
post_hoc = with_error(parts, ["recipe", "prior", "of"], [*GROUPS, "ece"])
priors = ["as trained", "CLS moved", "CLS moved, smoothing undone", "both moved"]
kinds = ["CLS", "DIST", "average of logits", "average of probabilities"]
wanted = [(n, p, k) for n in names.values() for p in priors for k in kinds]
wanted = [w for w in wanted if w[2] != "DIST" or w[1] in ("as trained", "both moved")]
post_hoc.reindex([w for w in wanted if w in post_hoc.index])

# %% [markdown]
# *Percent, mean ± standard error.* On digits CLS itself gains ten points once moved: it had seen the tail, and its prior hid it. The
# average gains nearly five, and neither logits against probabilities nor the smoothing matters by more than 0.1. On
# CIFAR-10-LT one step is not enough: with CLS moved and DIST left where it is, the average gives the head away and ends at 41.9, below the
# moved CLS alone (43.9). With its smoothing undone CLS vetoes many of DIST's tail answers, and the average has 45.9. Moving DIST too,
# which by itself goes from 40.1 to 47.1, gives 48.1: seven points above the published average. Averaging probabilities as they are is
# already better there than logits (43.5): no expert can rule a class out. None of it is calibration: with both moved the ECE gets worse, from
# 15.1 to 20.4 on digits and from 3.8 to 10.2 on CIFAR-10-LT.
#
# ## Correct in training
# (b) CLS trained with Bal-CE, whose raw logits are already on the uniform prior, or with Bal-BCE, read by the repaired rule
# (notebook 05). LiVT stands beside them; its first stage under these students is notebook [18](18_both_together.ipynb)'s subject.

# %%
average, raw = "average of logits", "as trained"
entries = {
    "DeiT-LT, average (published)": ("deit_lt", raw, average),
    "DeiT-LT, DIST alone": ("deit_lt", raw, "DIST"),
    "(a) CLS moved": ("deit_lt", "CLS moved", average),
    "(a) both moved": ("deit_lt", "both moved", average),
    "(b) CLS by Bal-CE": ("deit_lt_bal_ce", raw, average),
    "(b) CLS by Bal-BCE, repaired": ("deit_lt_bal_bce", "CLS moved", average),
}
found = {}
decided = pd.read_csv("../figures/data/decision_rules.csv").query("method == 'repaired'")
for title, scale in ((name, recipe.split("_")[0]) for recipe, name in names.items()):
    for label, (recipe, on, of) in entries.items():
        rows = rules["recipe"].eq(f"{scale}_{recipe}") & rules["prior"].eq(on) & rules["of"].eq(of)
        found[title, label] = rules[rows]
    found[title, "LiVT"] = runs.shots({"LiVT": (f"{scale}_livt", "cls")})
    found[title, "LiVT, repaired"] = decided[decided["recipe"] == f"{scale}_livt"]
methods = pd.concat([rows.assign(data=d, method=m) for (d, m), rows in found.items()])
both = with_error(methods, ["data", "method"], [*GROUPS, "ece"])
both.reindex([k for k in found if k in both.index])

# %% [markdown]
# *Percent, mean ± standard error over three seeds (digits: each with a tail of its own; CIFAR-10-LT: one teacher for all, and (b) was not
# run there).*
# Seeds differ more than rules do, so compare within a seed. Difference on all classes, in points, mean ± standard error over the
# seeds that both have, and on how many it is positive:

# %%
wide = methods[methods["group"] == "all"].pivot_table("accuracy", ["data", "seed"], "method") * 100
paired = {}
for base in ("DeiT-LT, average (published)", "DeiT-LT, DIST alone", "LiVT", "LiVT, repaired"):
    for key, gains in (
        wide.sub(wide[base], axis=0).stack().dropna().groupby(level=["data", "method"])
    ):
        if key[1] != base:
            text = f"{metrics.gain(gains)} ({(gains > 0).sum()} of {len(gains)})"
            paired.setdefault(f"against {base}", {})[key] = text
paired = pd.DataFrame(paired).fillna("")
paired.reindex([k for k in found if k in paired.index])

# %% [markdown]
# On digits moving CLS gains on every seed, over the published average (+4.7), over DIST alone (+2.1); over LiVT (+1.8), and
# over LiVT with its own repaired rule, the lead is within the noise. Training CLS with a balanced loss gains no more than moving it afterwards. On CIFAR-10-LT
# both experts moved bring DeiT-LT level with LiVT's raw argmax (+0.2 ± 0.1), five points behind LiVT's repaired rule.
#
# ## The control: a weight between the experts
# (d) Perhaps the average only needs another weight? The sweep of $v$ on the test set, as published and on one prior. A weight that may be
# *used* comes from a validation split: students and teachers trained again without it, $v$ chosen on it (or $t$ of $-t \log\pi$, at $v = 1/2$), and
# the test set asked once:

# %%
swept, picked = read("weights"), read("chosen")
swept = swept[swept["recipe"].isin(names)].replace({"recipe": names}).rename(columns={"w": "v"})
colours = dict(zip(priors, ("#D55E00", "#0072B2", "#56B4E9", "#009E73")))
fig, axes = panels("accuracy on all classes (%)")
for ax, title in zip(axes, names.values()):
    for on, colour in colours.items():
        part = swept[(swept["recipe"] == title) & (swept["prior"] == on)]
        ax.plot(part.groupby("v")["all"].mean().mul(100), color=colour, label=on)
    ax.axvline(0.5, color="#333333", lw=1, ls=":")
    ax.set(title=title, xlabel="weight v of CLS (0: DIST alone)")
legend(fig, axes, 4)
plots.save_figure(fig, "experts_weight_curves", swept)
held_out = {"DeiT-LT": "", "CLS by Bal-CE": "_bal_ce", "from MGP": "_mgp", "from MGP, CLS by Bal-CE": "_mgp_bal_ce"}  # fmt: skip
renamed = {f"digits_deit_lt{r}": name for name, r in held_out.items()}
picked = picked.replace({"recipe": renamed | {"laptop_deit_lt": "DeiT-LT, CIFAR-10-LT"}})
control = with_error(picked, ["recipe", "rule"], ["all"])["all"].unstack("rule")
columns = {f"w {h}, {on}": (on, f"v {h}") for on in (*priors[:2], priors[3]) for h in ("= 0.5", "chosen")}  # fmt: skip
columns["w = 0.5, t chosen"] = ("shifted by t", "t chosen")
control = control.reindex([*held_out, "DeiT-LT, CIFAR-10-LT"])[list(columns)]
control.columns = pd.MultiIndex.from_tuples(columns.values())
weights = picked[(picked["rule"] == "w chosen, as trained") & (picked["group"] == "all")]
weights = weights.groupby("recipe")["w"].agg(lambda w: ", ".join(map(str, w)))
control["v chosen as trained", "by seed"] = weights
control

# %% [markdown]
# *Mean over seeds; dotted: the published weight. Table: all classes, percent; digits three seeds, last row one.* In the figure no weight of the
# published kind helps on digits: the more CLS, the worse, and every moved curve lies above. On CIFAR-10-LT a good weight does much of what a
# good prior does: $v = 0.35$, picked on the test set, reaches 46.6, because DIST's inverted prior and a smaller dose of CLS's cancel; both moved,
# the untuned 1/2 has 48.1. The green line is nearly flat up to $v = 0.7$, as section *Two priors* predicts: on one prior the weight hardly
# matters, unless it is left to the weaker expert alone.
#
# The table stands lower throughout. On digits the validation part is a tenth, 41 images, but at least two of each class, so the three rarest
# classes train on 4, 2 and 1 images instead of 6, 4 and 3, and the choice itself is noisy ($v$ from 0.15 to 1 for one student). With CLS trained
# by plain cross-entropy a chosen weight gains 1.5 to 2.5 points, and moving CLS, with nothing to choose, 5.2 to 7.6; it leads on each of the
# three seeds. With Bal-CE there is little to choose. A chosen *shift* ends between 0.6 below and 2.2 above the theory's, within the errors; and
# from MGP a weight chosen after the move may add two points more. On CIFAR-10-LT (1,242 images held out, 27 of them tail) a chosen weight is
# worth more, from 39.7 to 44.7, and both moved, with nothing to choose, is one point ahead of it (45.7); a weight chosen after that loses
# 0.8. One seed: a direction, no more.
#
# Is it this one student? Every student of DeiT's and DeiT-LT's kind with plain CE or Bal-CE on CLS (Table 1's two rows without mixing
# apart), by the same rules; the best $v$ is picked on the test set, for each run:

# %%
students = {
    "DeiT-LT without DRW": "deit_lt_no_drw",
    "DeiT-LT": "deit_lt",
    "teacher without SAM": "deit_lt_sgd",
    "teacher without SAM, without DRW": "deit_lt_sgd_no_drw",
    "PaCo teacher without SAM": "deit_lt_paco_sgd",
    "PaCo-SAM teacher": "deit_lt_paco",
    "DeiT (in-distribution teacher)": "deit",
} | {n: f"deit_lt{r}" for n, r in held_out.items()}
scores = rules[(rules["group"] == "all") & (rules["of"] == average)]
scores = 100 * scores.pivot(index=["recipe", "seed"], columns="prior", values="accuracy")
tried = read("weights").query("prior == 'as trained'").groupby(["recipe", "seed"])["all"]
scores["best v"] = 100 * tried.max()
scores["gain"] = scores["both moved"] - scores["as trained"]
parts = {}
for title, scale in zip(names.values(), ("digits", "laptop")):
    for name, recipe in students.items():
        if f"{scale}_{recipe}" in scores.index:
            one = scores.loc[f"{scale}_{recipe}"]
            row = one[["as trained", "best v", "CLS moved", "both moved"]].mean().round(1)
            parts[title, name] = {**row, "both moved gains on": f"{(one['gain'] > 0).sum()} of {len(one)}"}  # fmt: skip
pd.DataFrame(parts).T

# %% [markdown]
# *All classes, percent, mean over the seeds in the last column.* In one line a scale, for plain cross-entropy on CLS; the last difference within a seed:

# %%
for title, scale in zip(names.values(), ("digits", "laptop")):
    plain = {f"{scale}_{r}" for r in students.values() if "bal_" not in r}
    one = scores[scores.index.get_level_values("recipe").isin(plain)]
    mean, gain = one.groupby(level="recipe").mean(), one["gain"]
    better = (mean["best v"] > mean["both moved"]).sum()
    print(f"{title}: moving both gains on {(gain > 0).sum()} of {len(gain)} runs,", end=" ")
    print(f"{mean['gain'].min():.1f} to {mean['gain'].max():.1f} points a student;", end=" ")
    print(f"the best v is ahead for {better} of {len(mean)} students")
    for teacher, name in (("with SAM", "deit_lt"), ("without SAM", "deit_lt_sgd")):
        drw, none = (scores.loc[f"{scale}_{name}{end}"] for end in ("", "_no_drw"))
        for what, change in {
            "DRW against none, both moved": drw["both moved"] - none["both moved"],
            "none, moved, against DRW as trained": none["both moved"] - drw["as trained"],
        }.items():
            change = change.dropna()
            found = f"{metrics.gain(change)} (n = {len(change)}, {metrics.verdict(change)})"
            print(f"  teacher {teacher}: {what}: {found}")

# %% [markdown]
# Where CLS was trained by plain cross-entropy, moving both gains on every run but one, with DRW or without: under DeiT's teacher on
# CIFAR-10-LT it gains on two seeds of three (28.6 to 29.7 on the mean). Once both experts are moved, DRW has nothing left to
# give: on digits +0.3 ± 0.4 with either teacher, on CIFAR-10-LT -0.4 ± 0.3 with SAM and -1.3 ± 0.3 without (against it on all three seeds,
# just short of Student's 95 %). A student without DRW, moved, stands 7.6 ± 0.3 and 7.4 ± 0.2 points above one with it as published: what DRW
# does for the average can be done after training, and better. (DRW also ends mixing; the two were not told apart.) Moving CLS alone is
# not safe where DIST's prior is inverted: PaCo's student on CIFAR-10-LT falls from 45.4 to 40.5 %. With Bal-CE on CLS nothing is left to move on digits; on CIFAR-10-LT moving DIST still gains, and another weight would gain more.
#
# ## The verdict
# The average of DeiT-LT's logits decides under a prior that nobody chose: **supported**. Where the teacher repeats the labels (digits) that
# prior is the theory's, and moving CLS mends it on every seed, without a validation set and without training again; a weight, chosen or best,
# does less. Where the teacher errs towards the tail (CIFAR-10-LT, 24 epochs) DIST has a prior of its own and both must be moved. There a weight chosen
# on a validation split comes within a point of it (one seed): that counting priors beats choosing a weight is **half supported** on real images. That
# the priors are *all* that is left to gain is **undecided**: with Bal-CE a weight picked on the test set would gain a little more, one chosen
# on a validation part does so within its errors. What speaks against a claim on real
# images: 24 epochs, one data set, one tail, one teacher; and the rule "both moved", though it has nothing to tune, was preferred to the other three after
# seeing test results. Beside a validation split it was tried there for DeiT-LT alone (one seed). Notebook [18](18_both_together.ipynb) takes it further.
#
# ## Takeaways
# - CLS knows the head, DIST the tail: 74.5 against 14.7 % and 0 against 68.0 % on CIFAR-10-LT. Their plain average leans to the head: on digits it is
#   below DIST alone (88.1 against 90.7 %), on CIFAR-10-LT hardly above (40.9 against 40.1 %); in the paper's runs well above both.
# - An average of logits with weight $v$ is the posterior under a prior proportional to $\pi^v$: at one half, an imbalance of 100 still counts as 10.
# - Moving CLS to the test prior takes digits from 88.1 to 92.8 %. On CIFAR-10-LT the tail holds 71.6 % of DIST's own prior instead of 30 %; moving
#   both gives 48.1 % instead of 40.9 % (three seeds each).
#
# ## Exercises
# 1. The prior under which a weighted average decides. 2. Both experts on the test prior, then averaged.
# 3. What a perfect choice between the two heads would reach: how much is left to win?


# %%
def effective_prior(prior, v):
    """(C,) prior whose posterior is v CLS + (1 - v) DIST, for CLS trained under `prior` and DIST under a uniform one."""
    return None  # your code


check(
    effective_prior,
    lambda p, v: (v * p.log()).softmax(0),
    (longtail.prior([120, 30, 3]), 0.5),
    (longtail.prior([5000, 500, 50]), 0.2),
)


# %%
def one_prior(cls_logits, dist_logits, prior, test_prior):
    """Class ids (B,) by the average of logits, CLS (plain CE, `prior`) and DIST (own prior: uniform) both on `test_prior`."""
    return None  # your code


case = 3 * torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
check(
    one_prior,
    lambda c, d, p, t: (losses.decide_ce(c, p, t) + d.log_softmax(1) + t.log()).argmax(1),
    (*case, longtail.prior([120, 30, 3]), torch.full((3,), 1 / 3)),
    (*case, longtail.prior([120, 30, 3]), torch.tensor([0.2, 0.3, 0.5])),
    (*case, longtail.prior([120, 30, 3]), torch.tensor([0.02, 0.08, 0.9])),
)


# %%
def oracle(cls_logits, dist_logits, target):
    """Share of images on which at least one of the two heads is right: what a perfect choice between them would reach."""
    return None  # your code


case = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1))
check(
    oracle,
    lambda c, d, y: ((c.argmax(1) == y) | (d.argmax(1) == y)).double().mean(),
    (*case, torch.arange(40) % 5),
    (case[0], case[0], case[0].argmin(1)),
    (case[0], case[0], case[0].argmax(1)),
)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def effective_prior(prior, v):
#     return prior**v / (prior**v).sum()
#
# def one_prior(cls_logits, dist_logits, prior, test_prior):
#     return ((cls_logits - prior.log() + dist_logits) / 2 + test_prior.log()).argmax(1)
#
# def oracle(cls_logits, dist_logits, target):
#     right = [head.argmax(1) == target for head in (cls_logits, dist_logits)]
#     return (right[0] | right[1]).double().mean().item()
# ```
# </details>
#
# **Next:** [18 · both methods together](18_both_together.ipynb), back to [11 · DeiT-LT](11_deit_lt.ipynb), or the decision rules by themselves: [05 · Fisher consistency](05_fisher_consistency.ipynb).
