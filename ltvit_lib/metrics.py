"""What a run is judged by: per-class and per-shot accuracy, calibration, and mean, sd and n over seeds.

Follows LiVT's evaluation. Group accuracies are means of per-class accuracies; LiVT's code rounds each class
to two decimals of a percent first, this does not. Fractions, not percent.
"""

import math
from collections.abc import Mapping, Sequence

from ltvit_lib.longtail import GROUPS, shot_groups

import torch
from scipy.special import stdtrit
from torch import Tensor

INDEX_GROUPS = dict(zip(GROUPS, ("head", "mid", "tail"), strict=True))


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts: row = true class, column = predicted class. predicted and target are (B,) ids."""
    _check_ids(predicted, target, num_classes)
    cells = target.long() * num_classes + predicted.long()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """(C,) float64 accuracies, NaN for a class absent from the targets. predicted and target are (B,) ids."""
    _check_ids(predicted, target, num_classes)
    right = torch.bincount(target[predicted == target], minlength=num_classes)
    return right.cpu().double() / torch.bincount(target, minlength=num_classes).cpu()


def shot_accuracy(
    predicted: Tensor,
    target: Tensor,
    counts: Sequence[int] | Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Mean of per-class accuracies over all classes and over each group.

    Args:
        predicted: (B,) class ids.
        target: (B,) class ids.
        counts: (C,) training counts, for the thresholds of `shot_groups`.
        groups: (C,) masks by name, such as `index_groups` gives; they replace the thresholds.

    Returns:
        `all`, then a key a group (none without counts and groups). An empty group is NaN; a class absent
        from the targets is left out of every mean.
    """
    if groups is None:
        groups = {} if counts is None else shot_groups(counts)
    sizes = {len(mask) for mask in groups.values()} | (set() if counts is None else {len(counts)})
    if len(sizes) > 1:
        raise ValueError(f"counts, groups: lengths differ ({sorted(sizes)}); all need one entry a class")
    num_classes = sizes.pop() if sizes else int(torch.maximum(predicted.max(), target.max())) + 1
    accuracy = per_class_accuracy(predicted, target, num_classes)
    shots = {name: accuracy[mask.cpu()].nanmean().item() for name, mask in groups.items()}
    return {"all": accuracy.nanmean().item(), **shots}


def calibration(probabilities: Tensor, target: Tensor, bins: int = 15) -> tuple[float, float]:
    """Expected and maximum calibration error of the winning class (Guo et al. 2017, eq. 3 and 5).

        ECE = sum_b n_b / B |acc_b - conf_b|,   MCE = max_b |acc_b - conf_b|

    Args:
        probabilities: (B, C) in [0, 1]; LiVT takes the softmax even for BCE-trained models.
        target: (B,) class ids.
        bins: equal bins ((b - 1) / bins, b / bins], closed on the right as in LiVT's code; empty ones count
            0.

    torchmetrics closes its bins on the left and puts a confidence of exactly 1 in a bin of its own.
    """
    if probabilities.ndim != 2 or target.shape != probabilities.shape[:1] or not len(target):
        shapes = f"{tuple(probabilities.shape)} and {tuple(target.shape)}"
        raise ValueError(f"probabilities, target: expected (B, C) and (B,), got {shapes}")
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    probabilities = probabilities.detach().cpu()
    if probabilities.dtype in (torch.float16, torch.bfloat16):
        probabilities = probabilities.float()
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():  # NaN fails both
        raise ValueError("probabilities: expected values in 0..1 without NaN; apply softmax to logits first")
    confidence, predicted = probabilities.max(1)
    edges = (torch.arange(1, bins, dtype=torch.float64) / bins).to(confidence.dtype)
    which = torch.bucketize(confidence, edges)  # (B,), right-closed
    gap = (predicted == target.cpu()).double() - confidence.double()
    per_bin = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, gap).abs()  # n_b |acc_b - conf_b|
    sizes = torch.bincount(which, minlength=bins)
    return (per_bin.sum() / len(target)).item(), (per_bin / sizes.clamp_min(1)).max().item()


def evaluate_logits(
    logits: Tensor,
    target: Tensor,
    counts: Sequence[int] | Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """One row of a table from a test set's logits, or from the scores of `decide_ce` and `decide_bce`.

    Args:
        logits: (B, C).
        target: (B,) class ids.
        counts: (C,) training counts: adds many, medium, few (thresholds 100 and 20).
        groups: masks from `index_groups`: adds head, mid, tail (DeiT-LT's convention).

    Returns:
        `all` (mean of per-class accuracies), `top1` (share of images), the groups, `ece` and `mce` of the
        softmax.
    """
    if logits.ndim != 2 or not logits.is_floating_point() or logits.isnan().any():
        raise ValueError(f"logits: expected floating (B, C) without NaN, got {logits.dtype} {tuple(logits.shape)}")
    predicted, target = logits.argmax(1), target.to(logits.device)
    masks = {"all": torch.ones(logits.shape[1], dtype=torch.bool)}
    if counts is not None:
        masks |= shot_groups(counts)
    if groups is not None:
        masks |= {INDEX_GROUPS.get(name, name): mask for name, mask in groups.items()}
    row = shot_accuracy(predicted, target, groups=masks)
    row["top1"] = (predicted == target).double().mean().item()
    row["ece"], row["mce"] = calibration(logits.detach().cpu().double().softmax(1), target)
    return row


def entropy(logits: Tensor, scale: float = 1.0) -> float:
    """Mean entropy of softmax(scale * logits), in nats: 0 is certain, log C is uniform (DeiT-LT Fig. 3).

    Args:
        logits: (B, C); minus infinity rules a class out.
        scale: state it with the number. A cosine classifier's outputs at scale 1 are nearly uniform whatever the
            teacher knows (2.27 to 2.30 of log 10 = 2.303 in Fig. 3); LDAM trains them at 30.

    Raises:
        ValueError: no images, NaN, or a scale that is negative or not finite.
    """
    if logits.ndim != 2 or not logits.is_floating_point() or not len(logits):
        raise ValueError(
            f"logits: expected floating (B, C) with B at least 1, got {logits.dtype} {tuple(logits.shape)}"
        )
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a finite number above 0, got {scale}")
    value = torch.special.entr((scale * logits.detach().double()).softmax(1)).sum(1).mean().item()
    if math.isnan(value):
        raise ValueError("logits: a row holds NaN, plus infinity or no finite number; check the model's output")
    return value


def cosine_distance(a: Tensor, b: Tensor) -> float:
    """Mean of 1 - cos(a_i, b_i) over rows, in 0..2: diversity of the CLS and DIST tokens (DeiT-LT Fig. 4a).

    Args:
        a, b: (B, D) features of the same images, such as both tokens after the final norm.

    Raises:
        ValueError: shapes differ, no images, NaN, or a row of zeros.
    """
    if a.shape != b.shape or a.ndim != 2 or not a.numel():
        raise ValueError(f"a, b: expected two (B, D) tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.detach().double(), b.detach().double()
    norms = a.norm(dim=1) * b.norm(dim=1)
    if not (norms.isfinite() & (norms > 0)).all():
        raise ValueError("a, b: a row is all zero or not finite, so it has no direction; check the features")
    return (1 - (a * b).sum(1) / norms).mean().item()


def summarise(values: Sequence[float] | Tensor) -> dict[str, float]:
    """Mean, sample sd, standard error and n over seeds; sd and se are NaN for a single run."""
    numbers = [float(v) for v in values]
    n = len(numbers)
    if n == 0:
        raise ValueError("values: expected at least one run")
    mean = math.fsum(numbers) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in numbers) / (n - 1)) if n > 1 else math.nan
    return {"mean": mean, "sd": sd, "se": sd / math.sqrt(n), "n": n}


def gain(differences: Sequence[float], decimals: int = 1) -> str:
    """Differences paired by seed as text, mean ± standard error: "+1.2 ± 0.3", "+1.2" for one, "not run" for none."""
    if len(differences) == 0:
        return "not run"
    found = summarise(differences)
    return f"{found['mean']:+.{decimals}f} ± {found['se']:.{decimals}f}".removesuffix(" ± nan")


def verdict(differences: Sequence[float], errors: float | None = None) -> str:
    """Whether differences paired by seed are above 0: supported, contradicted or undecided; below three seeds the sign.

    Args:
        errors: how many standard errors the mean must exceed; None: Student's 95 % for so many seeds, 4.3 for three.

    Returns:
        one of those words; "for, n = 2" or "against, n = 2", with one or two seeds; "not run".
    """
    if len(differences) == 0:
        return "not run"
    found = summarise(differences)
    mean, n = found["mean"], found["n"]
    if n < 3:
        return f"{'for' if mean > 0 else 'against'}, n = {n}"
    if abs(mean) <= (stdtrit(n - 1, 0.975) if errors is None else errors) * found["se"]:
        return "undecided"
    return "supported" if mean > 0 else "contradicted"


def _check_ids(predicted: Tensor, target: Tensor, num_classes: int) -> None:
    if predicted.shape != target.shape or target.ndim != 1 or not len(target):
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predicted, target: expected two (B,) tensors of class ids, got {shapes}")
    for name, ids in (("predicted", predicted), ("target", target)):
        if ids.is_floating_point() or ids.min() < 0 or ids.max() >= num_classes:
            raise ValueError(f"{name}: expected whole-number class ids in 0..{num_classes - 1}")
