"""Figures as functions of tidy tables: they read no files, train nothing and set no global style.

One colour a method everywhere; groups always from frequent to rare. `save_figure` writes the picture and, beside it,
the CSV that it was drawn from.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ltvit_lib import metrics

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "ViT": "#999999",
    "ViT + Bal-BCE": "#56B4E9",
    "LiVT": "#0072B2",
    "DeiT": "#661100",
    "DeiT-LT": "#D55E00",
    "DeiT-LT, CLS": "#E69F00",
    "DeiT-LT, DIST": "#CC79A7",
    "Teacher CNN": "#009E73",
    "CNN": "#000000",  # without a remedy for the tail
    "CNN, CE": "#000000",
    "CE": "#999999",
    "Bal-CE": "#E69F00",
    "BCE": "#56B4E9",
    "Bal-BCE": "#0072B2",
}
GROUPS = {"all": "All", "head": "Head", "mid": "Mid", "tail": "Tail", "many": "Many", "medium": "Medium", "few": "Few"}


def _axes(ax: Axes | None, width: float = 6.4, height: float = 3.6) -> Axes:
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _colour(method: str, index: int = 0) -> str:
    spare = ["#332288", "#882255", "#117733", "#AA4499", "#88CCEE"]
    return COLOURS.get(method, spare[index % len(spare)])


def plot_counts(counts: dict[str, Sequence[int]], ax: Axes | None = None) -> Axes:
    """Training images of each class, one line a data set; classes in order of frequency."""
    ax = _axes(ax)
    for name, values in counts.items():
        ordered = sorted(values, reverse=True)
        ax.plot(np.linspace(0, 1, len(ordered)), ordered, marker="o" if len(ordered) <= 20 else None, ms=4, label=name)
    ax.set(xlabel="class, from most to least frequent (as a share of all classes)", ylabel="training images")
    ax.set_yscale("log")
    ax.legend(frameon=False)
    return ax


def plot_shot_accuracy(
    table: pd.DataFrame, ax: Axes | None = None, groups: Sequence[str] = ("all", "head", "mid", "tail")
) -> Axes:
    """Bars of accuracy: one cluster a group, one colour a method; whiskers are the sample sd over seeds.

    Args:
        table: tidy, columns `method`, `group`, `accuracy` (a fraction) and `seed`; methods in order of appearance.
    """
    ax = _axes(ax, 7.6, 3.8)
    methods = list(dict.fromkeys(table["method"]))
    width = 0.84 / len(methods)
    for i, method in enumerate(methods):
        chosen = table[table["method"] == method].groupby("group")["accuracy"].agg(["mean", "std", "count"])
        chosen = chosen.reindex(groups) * [100, 100, 1]
        x = np.arange(len(groups)) + (i - (len(methods) - 1) / 2) * width
        sd = chosen["std"] if (chosen["count"] > 1).any() else None
        ax.bar(x, chosen["mean"], width * 0.92, color=_colour(method, i), label=method, yerr=sd,
               error_kw=dict(lw=1, capsize=2, ecolor="#333333"))  # fmt: skip
        for a, mean, spread in zip(x, chosen["mean"], chosen["std"].fillna(0), strict=True):
            if np.isfinite(mean):
                ax.text(a, mean + spread + 1.2, f"{mean:.0f}", ha="center", va="bottom", fontsize=8, color="#333333")
    ax.set_xticks(range(len(groups)), [GROUPS.get(g, g) for g in groups])
    ax.set(ylabel="accuracy (%)", ylim=(0, 112), yticks=range(0, 101, 20))
    ax.legend(frameon=False, ncols=min(len(methods), 5), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return ax


def plot_curves(table: pd.DataFrame, column: str = "loss", ax: Axes | None = None, label: str | None = None) -> Axes:
    """A column of metrics.csv over epochs; with a `method` column one line each, and a band of one sd over seeds."""
    ax = _axes(ax)
    table = table if "method" in table else table.assign(method="")
    for i, method in enumerate(dict.fromkeys(table["method"])):
        chosen = table[table["method"] == method].groupby("epoch")[column].agg(["mean", "std"])
        (line,) = ax.plot(chosen.index + 1, chosen["mean"], color=_colour(method, i), label=method)
        if chosen["std"].notna().any():
            low, high = chosen["mean"] - chosen["std"], chosen["mean"] + chosen["std"]
            ax.fill_between(chosen.index + 1, low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel="epoch", ylabel=label or column.replace("_", " "))
    if table["method"].nunique() > 1:
        ax.legend(frameon=False)
    return ax


def plot_confusion(confusion, classes: Sequence[str], ax: Axes | None = None) -> Axes:
    """Confusion matrix, each row (true class) as shares that sum to 1."""
    shares = np.asarray(confusion, dtype=float)
    shares = shares / shares.sum(1, keepdims=True).clip(1)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 4.0), layout="constrained")
    picture = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.figure.colorbar(picture, ax=ax, label="share of the true class", shrink=0.8)
    step = max(1, len(classes) // 10)
    ticks = range(0, len(classes), step)
    ax.set_xticks(ticks, [classes[i] for i in ticks], rotation=90)
    ax.set_yticks(ticks, [classes[i] for i in ticks])
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def plot_training(curve: pd.DataFrame, accuracies: pd.DataFrame, title: str = "") -> Figure:
    """A run's loss and accuracies over epochs, from `Run.curve` and `Run.accuracies`."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    plot_curves(curve, "loss", left).set_title(title)
    plot_curves(accuracies, "accuracy", right, "accuracy (%)")
    evaluated = accuracies["method"].nunique() > 1
    right.set_title("training batches" + (" and evaluation part" if evaluated else ""))
    return fig


def plot_result(shots: pd.DataFrame, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> Figure:
    """Accuracies by group, and the confusion matrix of `answers` (N,); without it above 100 classes, too many to read.

    Args:
        shots: as for `plot_shot_accuracy`.
        answers, targets: (N,) class ids.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    plot_shot_accuracy(shots, left)
    if len(classes) > 100:
        right.remove()
    else:
        plot_confusion(metrics.confusion(answers, targets, len(classes)), classes, right)
    return fig


def show_images(rows: dict[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """A grid of images, one labelled row an entry; each (n, channels, H, W), in 0..1 or uint8."""
    count = max(len(images) for images in rows.values())
    inches = (0.9 * count + 1.1, 0.9 * len(rows) + 0.2)
    fig, axes = plt.subplots(len(rows), count, figsize=inches, squeeze=False, layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, image in zip(line, images, strict=False):
            pixels = (image.float() / 255 if not image.is_floating_point() else image).clamp(0, 1).permute(1, 2, 0)
            ax.imshow(pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=9)
    return fig


def figures() -> Path:
    """Where figures go: `figures` beside the package in a checkout, or where LTVIT_FIGURES says."""
    return Path(os.environ.get("LTVIT_FIGURES") or Path(__file__).resolve().parents[1] / "figures")


def save_figure(fig: Figure, name: str, table: pd.DataFrame) -> None:
    """Writes <figures>/<name>.svg and the table it was drawn from, <figures>/data/<name>.csv."""
    folder = figures()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # fixed ids and no date: the same figure is the same file
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
    table.to_csv(folder / "data" / f"{name}.csv", index=False, float_format="%.6g")
