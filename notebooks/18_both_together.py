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
# # 18 · Both methods together
#
# **Question.** LiVT learns the images before the labels; DeiT-LT learns from a network that has what a ViT lacks. The two remedies do
# not touch each other. Do they add up, and does it hold on real images, over seeds?
#
# This page is this project's own: no figure of either paper. It joins LiVT section 4.1 (masked pre-training), DeiT-LT section 3
# (distillation into a second token) and the priors of notebook [12](12_two_experts.ipynb). Live part: 40 seconds on two CPU cores;
# full run: [full/pretrain](full/pretrain.ipynb), [full/teacher](full/teacher.ipynb), [full/distil](full/distil.ipynb).

# %% tags=["parameters"]
seed: int = 0  # of the tail, the weights and the mixing of the live runs
length: float = 0.2  # share of the full schedules, for the live runs

# %%
import tempfile
from pathlib import Path

from ltvit_lib import longtail, losses, metrics, models, plots, recipes, runs, train
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import pandas as pd
import torch

folder = Path(tempfile.mkdtemp(prefix="ltvit-"))
data = Path("../figures/data")
GROUPS = ["all", "head", "mid", "tail"]

# %% [markdown]
# ## Three parts, each with one job
# 1. **Where the encoder starts.** Masked pre-training on the long-tailed images alone: no label, so no label's prior. The student's DIST
#    token, which a masked autoencoder lacks, begins as a copy of its CLS token.
# 2. **What the tokens learn.** DIST learns a flat CNN's hard answers on strongly augmented, mixed images, re-weighted at the end; CLS learns
#    the labels, by plain cross-entropy or by Bal-CE, whose raw logits are already on a uniform prior
#    (notebook [04](04_the_bias_derived.ipynb)).
# 3. **How the two decide.** The average of two logits is a posterior under the geometric mean of their two priors, so both go to the test prior
#    $\pi^*$ first. DIST's own prior $m$ is counted, not tuned: the teacher's answers times the weights of DRW.
#
# $$\hat y = \arg\max_c\; \tfrac12\Big(z^{\mathrm{CLS}}_c - \log\pi_c + b_c\Big) + \tfrac12\Big(z^{\mathrm{DIST}}_c - \log m_c\Big) + \log\pi^*_c$$
#
# with $b = \log\pi$ where CLS was trained by Bal-CE and $b = 0$ where by plain cross-entropy. Each part is a field of a recipe:

# %%
# NBVAL_CHECK_OUTPUT
parent, joined = recipes.get("digits_deit_lt"), recipes.get("digits_deit_lt_mgp_bal_ce")
for name in ("init", "layer_decay", "loss"):
    print(f"{name:12} {getattr(parent, name)!s:14} -> {getattr(joined, name)}")

# %% [markdown]
# ## Live: four students of one tail
# A short schedule, on digits: LiVT, DeiT-LT, and DeiT-LT from LiVT's first stage with plain cross-entropy and with Bal-CE on CLS.


# %%
def short(name, **start):
    return train.fit(recipes.shortened(name, length), folder / name, seed, **start)


stage_one = short("digits_mgp")
teacher = short("digits_teacher_ldam_drw_sam")
live = {
    "LiVT": short("digits_livt", init=stage_one),
    "DeiT-LT": short("digits_deit_lt", teacher=teacher),
    "both": short("digits_deit_lt_mgp", teacher=teacher, init=stage_one),
    "both, Bal-CE": short("digits_deit_lt_mgp_bal_ce", teacher=teacher, init=stage_one),
}
tables = {name: run.table((*GROUPS, "ece")) for name, run in live.items()}
pd.concat(tables, names=["student", "head"])

# %% [markdown]
# A fifth of the schedules is too little for DeiT-LT from scratch: it knows the head and nothing else. From the masked encoder (with its
# layer decay, which no student from scratch had) the same student is nearly where LiVT is, and ahead of it with Bal-CE on CLS (48.0
# against 46.4, one seed).
#
# Now half of part 3, CLS's, by hand, for the student called *both*: it learned under the training prior, so $\log\pi$ comes off.

# %%
split = train.load_split(joined, seed)
prior, uniform = longtail.prior(split.counts), torch.full((10,), 0.1)
stored = live["both"].logits()
moved = losses.decide_ce(stored["cls"], prior, uniform)
rows = {}
for rule, scores in {
    "average as published": (stored["cls"] + stored["dist"]) / 2,
    "CLS moved, then the average": (moved + stored["dist"]) / 2,
}.items():
    found = metrics.shot_accuracy(scores.argmax(1), stored["targets"], groups=split.groups)
    rows[rule] = {metrics.INDEX_GROUPS.get(g, g): 100 * v for g, v in found.items()}
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# ## Over seeds, at both scales
# Digits with full schedules (three seeds, each a tail of its own), and the real CIFAR-10-LT (rho = 100, a ViT of width 96 and depth 6, 24
# epochs; the published selection, so that seeds change weights, order, augmentation and mixing; one teacher for all of them).
# Both parents stand first, each as published and then by the rule that takes its priors off: *repaired*, *both moved*.

# %%
rules, decided = pd.read_csv(data / "experts_rules.csv"), pd.read_csv(data / "decision_rules.csv")
average = rules[rules["of"] == "average of logits"]
entries = {
    "DeiT-LT": ("deit_lt", "as trained"),
    "DeiT-LT, both moved": ("deit_lt", "both moved"),
    "from MGP": ("deit_lt_mgp", "as trained"),
    "from MGP, both moved": ("deit_lt_mgp", "both moved"),
    "from MGP, Bal-CE": ("deit_lt_mgp_bal_ce", "as trained"),
    "from MGP, Bal-CE, both moved": ("deit_lt_mgp_bal_ce", "both moved"),
}
scales = {"digits": "digits-LT", "laptop": "CIFAR-10-LT"}
parts = []
for scale, title in scales.items():
    chosen = decided[(decided["recipe"] == f"{scale}_livt") & (decided["method"] == "repaired")]
    parts.append(chosen.assign(data=title, method="LiVT, repaired"))
    for name, (recipe, on) in entries.items():
        chosen = average[(average["recipe"] == f"{scale}_{recipe}") & (average["prior"] == on)]
        parts.append(chosen.assign(data=title, method=name))
    alone = {"LiVT": "livt", "their teacher, a CNN": "teacher_ldam_drw_sam"}
    chosen = runs.shots({name: (f"{scale}_{recipe}", "cls") for name, recipe in alone.items()})
    parts.append(chosen.assign(data=title))
everything = pd.concat(parts)[["data", "method", "seed", "group", "accuracy"]]
order = ["LiVT", "LiVT, repaired", *entries, "their teacher, a CNN"]
table = runs.mean_sd(everything, ["data", "method"], (*GROUPS, "ece"))
table["n"] = everything[everything["group"] == "all"].groupby(["data", "method"]).size().map(str)
table.reindex([(t, m) for t in scales.values() for m in order]).fillna("not run")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
colours = (
    [plots.COLOURS["LiVT"]] * 2
    + [plots.COLOURS["DeiT-LT"]] * 2
    + ["#882255"] * 4
    + [plots.COLOURS["Teacher CNN"]]
)
for ax, title in zip(axes, scales.values()):
    for row, (name, colour) in enumerate(zip(reversed(order), reversed(colours))):
        chosen = everything[(everything["data"] == title) & (everything["method"] == name)]
        for group, marker, size in (("all", "o", 6), ("tail", "|", 12)):
            one = 100 * chosen.loc[chosen["group"] == group, "accuracy"]
            ax.plot(one, [row] * len(one), marker, ms=size, mew=1.6, color=colour, alpha=0.75)
    ax.set(title=title, xlabel="accuracy (%)", yticks=range(len(order)))
    ax.set_yticklabels(list(reversed(order)))
    ax.grid(axis="x", color="#eeeeee")
    ax.spines[["top", "right"]].set_visible(False)
handles = [
    plt.Line2D([], [], color="#444444", marker=m, ls="", ms=s, mew=1.6, label=n)
    for n, m, s in (("all classes", "o", 6), ("tail classes", "|", 12))
]
fig.legend(handles=handles, frameon=False, loc="outside upper center", ncols=2)
plots.save_figure(fig, "both_together", everything)

# %% [markdown]
# *Mean ± sample sd over n seeds, percent; a dot or stroke a seed.* On digits every rule with both parts
# is level with the better parent or ahead of it, and seeds scatter less. On CIFAR-10-LT the joined student's plain average leans to the head
# with plain cross-entropy (76.3 against 36.2 on the tail) and to the tail with Bal-CE (45.3 against 73.4): CLS is on a uniform prior there,
# DIST on an inverted one. Moving both gives 65.1, 51.5, 59.6 and 68.6, 52.7, 51.8 on head, mid, tail, from parents at 64.8, 49.1, 47.6 (LiVT,
# repaired) and 55.2, 45.4, 44.6 (DeiT-LT, both moved). It is no calibration: the ECE rises, to 10 % for the
# joined student on CIFAR-10-LT, and to 18 for LiVT's repaired rule.
#
# ## Paired by seed
# Seeds move all rules together, so the fair comparison is within a seed. Points gained over both parents, mean ± standard error, and on
# how many seeds the gain is positive:

# %%
wide = everything[everything["group"] == "all"].pivot_table("accuracy", ["data", "seed"], "method")


def paired(pairs):
    """Points from one method to the other within a seed: mean ± standard error (seeds with a gain)."""
    rows = {}
    for label, (before, after) in pairs.items():
        for title, one in (100 * (wide[after] - wide[before]).dropna()).groupby(level="data"):
            rows.setdefault(title, {})[label] = (
                f"{metrics.gain(one)} ({(one > 0).sum()} of {len(one)})"
            )
    return pd.DataFrame(rows)[list(scales.values())]


parents = ["LiVT", "LiVT, repaired", "DeiT-LT", "DeiT-LT, both moved"]
finals = ["from MGP, both moved", "from MGP, Bal-CE, both moved"]
pd.concat({final: paired({f"over {b}": (b, final) for b in parents}) for final in finals})

# %% [markdown]
# Both are ahead of both parents, moved or not, on every seed at either scale: over the moved ones by 2.1 to 9.9 points with plain cross-entropy
# on CLS, by 1.5 to 9.1 with Bal-CE. Bal-CE was this page's choice before the plain student had three seeds; that the plain one is better was
# seen on the test set.
#
# ## What each part adds
# The same numbers as steps within a seed, on all classes: from DeiT-LT as published, one part more at a time.

# %%
steps = ["DeiT-LT", "DeiT-LT, both moved", "from MGP, both moved", "from MGP, Bal-CE, both moved"]
added = ["both experts moved", "from the masked encoder", "Bal-CE in place of moving CLS"]
paired(dict(zip(added, zip(steps, steps[1:]))))

# %% [markdown]
# On digits moving the experts is worth more than the encoder, on CIFAR-10-LT the encoder more (its step also brings its layer decay). Bal-CE in
# place of moving CLS costs 0.6 points there; on CIFAR-10-LT 0.8, on every seed, but within Student's 95 % for three. In theory both put CLS
# on the same prior: nothing speaks for the extra change.
#
# ## What it costs
# Pre-training and the teacher run once, the student as long as before. Seconds of training on this project's machine, from the ledger:

# %%
ledger = runs.ledger()
ledger = ledger[ledger["overrides"].isna() & (ledger["evaluated_on"] == "test")]
wanted = ["mgp", "livt", "teacher_ldam_drw_sam", "deit_lt", "deit_lt_mgp"]
cost = {
    title: {w: ledger.loc[ledger["recipe"] == f"{scale}_{w}", "seconds"].median() for w in wanted}
    for scale, title in scales.items()
}
cost = pd.DataFrame(cost).rename_axis("seconds a run")
parts = {
    "LiVT": ["mgp", "livt"],
    "DeiT-LT": ["teacher_ldam_drw_sam", "deit_lt"],
    "joined": ["mgp", "teacher_ldam_drw_sam", "deit_lt_mgp"],
}
sums = pd.DataFrame({f"{name}, all its parts": cost.loc[of].sum() for name, of in parts.items()})
pd.concat([cost, sums.T]).round(0)

# %% [markdown]
# *Medians over runs that shared two cores with others, so upper bounds.* On CIFAR-10-LT the joined training takes about twice LiVT's
# (4,677 s against 2,500) and a third more than DeiT-LT's, and neither parent was given that time.
#
# ## Verdict
# Joined, they are ahead of either method on every seed. What speaks against "they add up": the joined run takes about twice LiVT's training,
# and no parent was given that time. The rule "both moved" has nothing to tune, but it was preferred after seeing test results; on CIFAR-10-LT
# a validation part was held out for DeiT-LT alone (one seed, notebook [12](12_two_experts.ipynb)). One teacher (seed 0) and one long-tailed
# selection, a compact ViT, 24 epochs, and a CNN teacher that is still 13 points ahead (71.2 ± 0.5). Whether the first stage keeps its value after 1,200
# epochs is not known.
#
# ## Takeaways
# - LiVT's first stage under DeiT-LT's student, both experts on the test prior: 58.0 ± 0.8 % on CIFAR-10-LT (three seeds; with Bal-CE on CLS 57.2 ±
#   0.7), against 53.4 ± 0.7 for LiVT with its repaired rule and 48.1 ± 0.8 for DeiT-LT with both experts moved; ahead on each seed.
# - On digits 94.8 ± 0.2 % (with Bal-CE 94.2) against 92.3 and 92.7, ahead on three seeds of three.
# - The joined student's plain average leans on CIFAR-10-LT (76.3 % on the head, 36.2 on the tail): taking both priors off is worth 4.4 points,
#   without a number to tune.
#
# ## Exercises
# 1. The student's start: what stands before the patches has one place more than in the masked encoder. 2. A gain within seeds, with its
# error. 3. DIST's own prior from the teacher's answers and the weights of DRW.


# %%
def second_token(position):
    """Position embeddings (1 + N, D) of an encoder, CLS first -> (2 + N, D), CLS, DIST as a copy of CLS, patches."""
    return None  # your code


encoder = models.create("vit_w64d4_patch2_8", num_classes=0, in_chans=1, img_size=8)
position = encoder.pos_embed.detach()[0]  # (17, 64)
check(
    second_token,
    lambda p: p[[0, 0, *range(1, len(p))]],
    (position,),
    (torch.arange(8.0).view(4, 2),),
)


# %%
def paired_gain(before, after):
    """(2,): mean gain over seeds and its standard error, from accuracies (n,) of the same seeds before and after."""
    return None  # your code


def reference(before, after):
    found = metrics.summarise((after - before).tolist())
    return torch.tensor([found["mean"], found["se"]])


first, second = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
check(paired_gain, reference, (first, second), (first, 2 * first), (second, first))


# %%
def taught_prior(answers, weights):
    """(C,) class frequencies that DIST learns from: answers (n,) class ids of the teacher, weights (C,) of DRW."""
    return None  # your code


def counted(answers, weights):
    mass = torch.tensor([(answers == c).sum() * w for c, w in enumerate(weights)])
    return mass / mass.sum()


check(
    taught_prior,
    counted,
    (torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0.1, 0.6, 2.3])),
    (torch.arange(30) % 3, torch.ones(3)),
    (torch.tensor([0, 0, 1]), torch.tensor([0.1, 0.6, 2.3])),
)

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def second_token(position):
#     return torch.cat([position[:1], position])
#
# def paired_gain(before, after):
#     gain = after - before
#     return torch.stack([gain.mean(), gain.std() / len(gain) ** 0.5])
#
# def taught_prior(answers, weights):
#     mass = torch.bincount(answers, minlength=len(weights)) * weights
#     return mass / mass.sum()
# ```
# </details>
#
# **Next:** your own images, [17](17_your_own_images.ipynb), what all this costs, [19 · speed](19_speed.ipynb), or how each expert was measured: [12 · two experts](12_two_experts.ipynb).
