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
# # 02 · A Vision Transformer by hand, then timm's
#
# **Question.** What exactly happens between an image and its logits, what does each part cost, and what does DeiT-LT's second
# token change?
#
# The backbone of both papers (LiVT section 5.2, DeiT-LT section 3 and Figure 2) in under a hundred lines, on real digits; its
# weights and logits agree with timm's, which the other pages use. Half a minute on two CPU cores, most of it in the short
# training at the end.

# %% tags=["parameters"]
seed: int = 0  # of the tail, the weights and the order
length: float = 0.3  # of the full schedule, for the training in the last section

# %%
import copy
import tempfile
from pathlib import Path

from ltvit_lib import augment, data, models, plots, recipes, train
from ltvit_lib.exercises import check

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

split = data.load("digits", rho=40, seed=seed)
images = augment.evaluate(split.test.images, 8, split.mean, split.std)
print("images", tuple(images.shape), " training images a class:", split.counts)

# %% [markdown]
# ## Patches
# A ViT cuts an image into $N = HW/P^2$ patches that do not overlap, and maps each one, as a flat vector
# $p_i \in \mathbb{R}^{cP^2}$, to $D$ numbers with one shared matrix:
#
# $$x_i = W_E\,p_i + b_E$$
#
# A convolution whose stride is its kernel size does the same, and is how everyone writes it:


# %%
class PatchEmbed(nn.Module):
    def __init__(self, patch, channels, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D)


embed = PatchEmbed(patch=2, channels=1, width=64)
patches = F.unfold(images, kernel_size=2, stride=2).transpose(1, 2)  # (B, N, c P P)
by_matmul = patches @ embed.proj.weight.flatten(1).T + embed.proj.bias
assert torch.allclose(embed(images), by_matmul, atol=1e-5)
print("patches", tuple(patches.shape), "-> tokens", tuple(by_matmul.shape))

chosen = int((split.test.targets == 3).nonzero()[0])
fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.4), layout="constrained", width_ratios=[2, 1])
axes[0].imshow(images[chosen, 0], cmap="gray", extent=(0, 8, 8, 0))
axes[0].set(xticks=range(0, 9, 2), yticks=range(0, 9, 2), xlabel="column (px)", ylabel="row (px)")
axes[0].grid(color="#E69F00", lw=1.5)
for i in range(16):
    axes[0].text(i % 4 * 2 + 0.1, i // 4 * 2 + 0.1, i, color="#D55E00", va="top", weight="bold")
axes[1].imshow(patches[chosen], cmap="gray", aspect="auto")
axes[1].set(xticks=range(4), yticks=range(16), xlabel="pixel of the patch", ylabel="patch")
table = pd.DataFrame(patches[chosen].numpy(), columns=[f"pixel {i}" for i in range(4)])
plots.save_figure(fig, "vit_patches", table.rename_axis("patch").reset_index())

# %% [markdown]
# Left, a test image and its 16 patches in reading order; right, the same numbers as the matrix that is multiplied by $W_E$.
# From here on the network no longer knows which patch lay beside which.
#
# ## A token to read from, and positions
# A learned vector, the *class token*, is put in front of the patches, and a learned vector for each place is added:
#
# $$X^{(0)} = [x_{\mathrm{CLS}};\, x_1;\, \dots;\, x_N] + E_{\mathrm{pos}}, \qquad T = N + 1 \text{ tokens}$$
#
# ## Attention
# Each of $H$ heads looks for the tokens that matter to a token (queries against keys, in $d = D/H$ dimensions), and brings
# back a weighted mean of their values:
#
# $$A = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt d}\right), \qquad \mathrm{head} = A V$$
#
# The heads' results are put side by side and mixed by one more matrix, $[\mathrm{head}_1, \dots, \mathrm{head}_H]\,W_O$ (`proj`).
# The division keeps the scores at unit size: the inner product of two random vectors of $d$ unit normals has a standard
# deviation of $\sqrt d$. Nothing in attention depends on where a token stands: shuffle the tokens, and the outputs are
# shuffled alike. Positions have to come from $E_{\mathrm{pos}}$:


# %%
# NBVAL_CHECK_OUTPUT
class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):  # (B, T, D)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, T, T)
        mixed = scores.softmax(-1) @ v  # (B, H, T, d)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


torch.manual_seed(0)
attention, tokens, order = Attention(64, heads=4), embed(images[:8]), torch.randperm(16)
place = torch.randn(16, 64)
for name, added in (("without positions", 0), ("with positions", place)):
    shuffled_before = attention(tokens[:, order] + added)
    shuffled_after = attention(tokens + added)[:, order]
    print(f"{name}: same up to order?", torch.allclose(shuffled_before, shuffled_after, atol=1e-5))

# %% [markdown]
# ## Blocks
# A block adds two things to each token: what attention brings from other tokens, and what an MLP of four times the width
# makes of the token itself. Both read a *normalised* copy (pre-norm), so the sum itself runs from the first block to the
# last untouched:
#
# $$X \leftarrow X + \mathrm{Attention}(\mathrm{LN}(X)), \qquad X \leftarrow X + W_2\,\mathrm{GELU}(W_1\,\mathrm{LN}(X))$$
#
# LN, layer norm, brings each token to mean 0 and variance 1 over its $D$ numbers, then scales and shifts each of them.


# %%
class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% [markdown]
# ## The whole network
# After the last block the class token is normalised and goes through a linear head. LiVT reads the network in another way
# when it fine-tunes: it *averages the patch tokens*, normalises that mean (`fc_norm`) and leaves the class token unread.


# %%
class ViT(nn.Module):
    def __init__(self, side, patch, width, depth, heads, classes, channels=1, pool="token"):
        super().__init__()
        self.pool = pool
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        norm = nn.LayerNorm(width, eps=1e-6)
        self.norm, self.fc_norm = (
            (norm, nn.Identity()) if pool == "token" else (nn.Identity(), norm)
        )
        self.head = nn.Linear(width, classes)

    def prefix(self):
        return [self.cls_token]

    def features(self, images):
        prefix = [token.expand(len(images), -1, -1) for token in self.prefix()]
        x = torch.cat([*prefix, self.patch_embed(images)], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))  # (B, T, D)

    def forward(self, images):
        x = self.features(images)
        x = x[:, 0] if self.pool == "token" else x[:, 1:].mean(1)
        return self.head(self.fc_norm(x))


shape = dict(side=8, patch=2, width=64, depth=4, heads=4, classes=10)
print("logits", tuple(ViT(**shape)(images).shape))

# %% [markdown]
# ## timm's, with the same weights
# Our parameters bear timm's names, so `load_state_dict` copies them. New networks have zero biases and unit norms, which would
# hide mistakes: first every weight gets a random push. Would we notice a mistake even so? Three that are easy to make, each of
# which loads the same weights without complaint, stand below.


# %%
def pushed(model):
    """The model with random numbers added to all of its parameters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


for pool in ("token", "avg"):
    theirs = models.create("vit_w64d4_patch2_8", num_classes=10, in_chans=1, global_pool=pool)
    ours = ViT(**shape, pool=pool)
    ours.load_state_dict(pushed(theirs).state_dict())
    difference = (ours(images) - theirs(images)).abs().max().item()
    assert difference < 1e-5
    largest = theirs(images).abs().max().item()
    print(f"{pool:5}: logits up to {largest:.1f}, differ by {difference:.0e} at most")

for kind, setting, wrong in (
    (nn.LayerNorm, "eps", 1e-5),  # torch's default; ViTs have 1e-6
    (nn.GELU, "approximate", "tanh"),
    (Attention, "heads", 2),  # of 32 dimensions each, instead of four of 16
):
    mistaken = copy.deepcopy(ours)
    for module in mistaken.modules():
        if isinstance(module, kind):
            setattr(module, setting, wrong)
    off = (mistaken(images) - theirs(images)).abs().max().item()
    print(f"{kind.__name__}.{setting} = {wrong}: logits off by {off:.0e}")

# %% [markdown]
# Equal to within rounding, under both ways of pooling. All three mistakes exceed 1e-5, the first by little: a checkpoint that
# loads proves nothing, a comparison of logits does.
#
# ## Where the parameters and the work are
# A block of width $D$ has $12D^2 + 13D$ parameters, a third of the matrices in attention and two thirds in the MLP. Over $T$
# tokens it needs
#
# $$\underbrace{12\,T D^2}_{\text{linear layers}} + \underbrace{2\,T^2 D}_{QK^\top \text{ and } AV}$$
#
# multiply-adds (two FLOPs each). Counted here part by part. Is the sum right? A second opinion: build the networks without
# memory for their weights (torch's `meta` device), count the tensors, and let torch's own counter watch a forward pass.


# %%
# NBVAL_CHECK_OUTPUT
def costs(side, patch, width, depth, classes, channels=1, **_):
    """Parameters and multiply-adds per image of every part of a ViT with a class token."""
    n, d, pixels = (side // patch) ** 2, width, channels * patch**2
    t = n + 1
    rows = {
        "patches to tokens": (pixels * d + d, n * pixels * d),
        "class token, positions": (d + t * d, 0),
        "attention: linear layers": (depth * (4 * d * d + 4 * d), depth * 4 * t * d * d),
        "attention: QK', AV": (0, depth * 2 * t * t * d),
        "MLP": (depth * (8 * d * d + 5 * d), depth * 8 * t * d * d),
        "norms": ((2 * depth + 1) * 2 * d, 0),
        "head": (d * classes + classes, d * classes),
    }
    return pd.DataFrame(rows, index=["parameters", "multiply-adds"]).T


base = dict(side=224, patch=16, width=768, depth=12, heads=12, classes=1000, channels=3)
compact = dict(side=32, patch=4, width=96, depth=6, heads=3, classes=10, channels=3)
shares = {}
for name, s in (("8 px, 64 x 4", shape), ("32 px, 96 x 6", compact), ("224 px, ViT-B/16", base)):
    parts, total = costs(**s), costs(**s).sum()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = ViT(**s)
        model(torch.empty(1, s.get("channels", 1), s["side"], s["side"]))
    assert total["parameters"] == sum(p.numel() for p in model.parameters())
    assert total["multiply-adds"] == counter.get_total_flops() / 2
    print(f"{name:17} {total.iloc[0]:>10,} parameters {total.iloc[1]:>14,} multiply-adds")
    shares[name] = (100 * parts / total).set_axis(["param. %", "work %"], axis=1)
with torch.device("meta"):
    timms = models.create("vit_base_patch16_224")
print("timm's ViT-B/16  ", f"{sum(p.numel() for p in timms.parameters()):>10,} parameters\n")
print(pd.concat(shares, axis=1).round(1).to_string())

# %% [markdown]
# Both counts agree, and so does timm. The three networks differ more than 400-fold in parameters and hardly in proportions:
# 98 % of the weights are in the blocks, two thirds of them in the MLP; embedding, positions and head share the rest.
#
# ## Attention's price grows with the square of the tokens
# Halving the patch quadruples $T$. The quadratic part overtakes the linear layers when $2T^2D = 12TD^2$, at $T = 6D$.
# For ViT-B, patch 16, from 32 to 2,048 px:

# %%
sides = [32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 1536, 2048]
rows = [costs(**base | {"side": side})["multiply-adds"] for side in sides]
growth = pd.DataFrame(
    {
        "side_px": sides,
        "tokens": [(side // 16) ** 2 + 1 for side in sides],
        "linear_gmac": [(r["attention: linear layers"] + r["MLP"]) / 1e9 for r in rows],
        "quadratic_gmac": [r["attention: QK', AV"] / 1e9 for r in rows],
    }
)
fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.spines[["top", "right"]].set_visible(False)
ax.loglog(growth["tokens"], growth["linear_gmac"], color="#0072B2", label="linear layers and MLP")
ax.loglog(growth["tokens"], growth["quadratic_gmac"], color="#D55E00", label="attention: QK', AV")
marked = growth[growth["side_px"].isin((224, 384))]
ax.plot(marked["tokens"], marked["quadratic_gmac"], "o", color="#D55E00", ms=5)
for _, row in marked.iterrows():
    ax.annotate(f"{row['side_px']:.0f} px", (row["tokens"], row["quadratic_gmac"]), (8, -8),
                textcoords="offset points")  # fmt: skip
ax.axvline(6 * 768, color="#333333", lw=1, ls="--", label="T = 6 D = 4,608")
ax.set(xlabel="tokens T", ylabel="work (10⁹ multiply-adds an image)")
ax.legend(frameon=False, loc="upper left")
plots.save_figure(fig, "attention_cost", growth)
growth["quadratic_percent"] = 100 * growth["quadratic_gmac"] / growth.iloc[:, 2:].sum(axis=1)
growth.set_index("side_px").loc[[32, 224, 384, 1024]].round(1)

# %% [markdown]
# At the papers' resolutions, 224 and 384 px, the quadratic term is small beside the linear layers: what costs is the *number*
# of tokens. DeiT-LT enlarges CIFAR's 32 px images to 224, where patches of 16 px make 196 of them; the compact ViTs here cut
# 32 px into patches of 4 and have 64. It is also why LiVT's pre-training is cheap: its encoder sees a quarter of the tokens.
#
# ## A second token: distillation
# DeiT (Touvron et al. 2021), and DeiT-LT after it, add a DIST token beside CLS, with a head of its own. It passes through the
# same blocks; only its start, its position vector and its teacher differ. Added to our network:


# %%
class TwoTokenViT(ViT):
    def __init__(self, width, classes, **rest):
        super().__init__(width=width, classes=classes, **rest)
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.pos_embed.shape[1] + 1, width))
        self.head_dist = nn.Linear(width, classes)

    def prefix(self):
        return [self.cls_token, self.dist_token]

    def forward(self, images):
        x = self.features(images)
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


student = models.create("deit_w64d4_patch2_8_distilled", num_classes=10, in_chans=1)
ours = TwoTokenViT(**shape)
ours.load_state_dict(pushed(student).state_dict())
for name, a, b in zip(("CLS", "DIST"), ours(images), models.head_logits(student, images)):
    assert torch.allclose(a, b, atol=1e-5)
    print(f"{name:4} head: differs from timm's by {(a - b).abs().max():.0e} at most")
more = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in ViT(**shape).parameters())
print(f"{more} more parameters: two vectors of 64 and a head of 64 x 10 + 10")

# %% [markdown]
# ## timm's habit
# Calling timm's model gives the two heads apart only if it was told so *and* is in training mode. In every other case it
# answers with their average:

# %%
# NBVAL_CHECK_OUTPUT
cls, dist = models.head_logits(student, images)
for told in (False, True):
    student.set_distilled_training(told)
    for training in (True, False):
        out = student.train(training)(images)
        pair = isinstance(out, tuple)
        wanted = torch.stack((cls, dist) if pair else ((cls + dist) / 2,))
        assert torch.allclose(torch.stack(out if pair else (out,)), wanted, atol=1e-5)
        answer = "a pair (CLS, DIST)" if pair else "the average (CLS + DIST) / 2"
        mode = "train" if training else "eval"
        print(f"set_distilled_training({told!s:5}), {mode:5}: {answer}")

# %% [markdown]
# A loss on the first case would train the *average* and silently make no experts; and in eval mode the model never shows what
# each expert thinks, which is the point of DeiT-LT.
# `models.head_logits` gives both heads in any mode, and this project uses nothing else.
#
# ## Another grid
# Position vectors belong to a grid: 4 x 4 here. For larger images, keep the prefix tokens' vectors and enlarge the grid of
# the others like a picture of $D$ channels (bicubic, as MAE and LiVT do before fine-tuning).
#
# Does it help? timm's ViT, pooled by averaging, learns the tail of 120 to 3 images a class by plain cross-entropy for 90 epochs.
# Then it is shown digits enlarged to 12 and 16 px, with patches of 2 px as before, without any further training. Beside the
# interpolated vectors: the same ones shuffled, and their mean in every place.


# %%
def regrid(pos_embed, grid, prefix=1):
    """(1, prefix + n n, D) -> (1, prefix + grid grid, D)."""
    kept, places = pos_embed[:, :prefix], pos_embed[:, prefix:]
    side = int(places.shape[1] ** 0.5)
    picture = places.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    picture = F.interpolate(picture, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([kept, picture.flatten(2).transpose(1, 2)], dim=1)


recipe = recipes.shortened("digits_vit_ce", length)
run = train.fit(recipe, Path(tempfile.mkdtemp(prefix="ltvit-")), seed, progress=False)
weights = train.build(run, split)[0].state_dict()
position = weights["pos_embed"]
theirs = resample_abs_pos_embed(position, [6, 6], num_prefix_tokens=1, antialias=False)
assert torch.allclose(regrid(position, 6), theirs, atol=1e-6)  # timm's does the same

torch.manual_seed(0)
rows = {}
for side in (8, 12, 16):
    larger = augment.evaluate(split.test.images, side, split.mean, split.std)
    vit = ViT(**shape | {"side": side}, pool="avg")
    cls, places = regrid(position, side // 2).tensor_split([1], dim=1)
    kinds = {
        "interpolated": places,
        "shuffled": places[:, torch.randperm(places.shape[1])],
        "mean everywhere": places.mean(1, keepdim=True).expand_as(places),
    }
    for name, moved in kinds.items():
        vit.load_state_dict(weights | {"pos_embed": torch.cat([cls, moved], dim=1)})
        hits = vit(larger).argmax(1) == split.test.targets
        rows.setdefault(f"{side} px", {})[name] = 100 * hits.double().mean().item()
pd.DataFrame(rows).T.round(1).rename_axis("accuracy (%)")

# %% [markdown]
# *500 test images, one seed.* Interpolated vectors keep twice as many images right at 12 px as shuffled or averaged ones. But
# accuracy falls all the same, and at 16 px to chance: a patch of 2 px now holds a quarter of what it held, strokes that the
# blocks have never seen.
# Interpolation settles *where* a patch is, not *what* it shows; LiVT therefore fine-tunes at the larger size (pre-training at
# 128 or 224 px, fine-tuning at 224 or 384).
#
# ## Takeaways
# - A ViT is under a hundred lines: with copied weights its logits are timm's to 1e-5, and even the mildest mistake, an epsilon
#   in a norm, shows as 5e-5. Loading without complaint proves nothing.
# - The MLP has two thirds of a block's weights. The quadratic part of attention is 4 % of ViT-B's work at 224 px and 11 % at 384;
#   it overtakes the rest at $T = 6D$, 4,608 tokens. DeiT-LT's second token costs 778 parameters beside 202,186.
# - Interpolating the position vectors settles where a patch is, not what it shows: at 12 px 29 % right instead of 15 % with
#   shuffled vectors, at 16 px chance either way (one seed, no further training).
#
# ## Exercises


# %%
def to_patches(images, patch):
    """(B, c, H, W) -> (B, N, c P P), patches in reading order, by reshape and permute alone."""
    return None  # your code


check(
    to_patches,
    lambda images, patch: F.unfold(images, patch, stride=patch).transpose(1, 2),
    (torch.arange(64.0).reshape(1, 1, 8, 8), 2),
    (torch.arange(96.0).reshape(2, 3, 4, 4), 2),
    (torch.arange(48.0).reshape(1, 2, 4, 6), 2),
)


# %%
def attend(q, k, v):
    """What one head brings back, (T, d), from queries, keys and values (T, d)."""
    return None  # your code


check(
    attend,
    lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None])[0],
    (torch.eye(4), torch.eye(4), torch.arange(16.0).reshape(4, 4)),
    tuple(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))),
)


# %%
def break_even(width, hidden=4):
    """Tokens at which QK' and AV cost as much as a block's linear layers; the MLP is hidden * width wide."""
    return None  # your code


def slowly(width, hidden):
    linear = lambda t: t * width * (3 * width + width + 2 * hidden * width)
    return next(t for t in range(1, 100_000) if 2 * t * t * width >= linear(t))


check(break_even, slowly, (64, 4), (192, 4), (768, 4), (96, 2))

# %% [markdown]
# <details><summary>Solutions</summary>
#
# ```python
# def to_patches(images, patch):
#     b, c, h, w = images.shape
#     cut = images.reshape(b, c, h // patch, patch, w // patch, patch)
#     return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)
#
# def attend(q, k, v):
#     return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
#
# def break_even(width, hidden=4):
#     return (2 + hidden) * width  # 2 T T D = T D D (4 + 2 hidden)
# ```
# </details>
#
# **Next:** [03 · a plain ViT on a tail](03_a_plain_vit_on_a_tail.ipynb).
