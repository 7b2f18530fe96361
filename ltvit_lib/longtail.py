"""Long tails: class counts, the published subsets, priors, shot groups and class weights.

Follows LDAM-DRW (Cao et al. 2019, imbalance_cifar.py), whose selection LiVT and DeiT-LT reuse index for
index, and the class-balanced loss (Cui et al. 2019) for the weights. We differ in two places: the random
stream belongs to the call (the numbers of `np.random.seed`, without touching the global generator), and
wrong counts, priors or labels are refused here, once, so that the losses need not look at values at every
step.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

GROUPS = ("many", "medium", "few")


def check_counts(counts: ArrayLike | Tensor, name: str = "counts") -> Tensor:
    """Returns counts as a (C,) float64 tensor on the CPU; ValueError unless positive whole numbers."""
    values = torch.as_tensor(counts, device="cpu").double()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: expected shape (C,), one number a class, got {tuple(values.shape)}")
    bad = ~(values.isfinite() & (values > 0) & (values == values.round()))
    if bad.any():
        c = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: class {c} has {values[c].item():g}; every class needs a positive whole number "
            "of images (drop the empty classes and renumber the labels)"
        )
    return values


def check_prior(prior: ArrayLike | Tensor, name: str = "prior", zero_allowed: bool = False) -> Tensor:
    """Returns the prior as a (C,) floating tensor; ValueError unless it is positive and sums to 1.

    Call it once, where a prior enters a run. A tensor comes back as it is, anything else in the default
    dtype. `zero_allowed` is for test priors that rule a class out (the decision rules take those).
    """
    values = prior if isinstance(prior, Tensor) else torch.as_tensor(prior, dtype=torch.get_default_dtype())
    if values.ndim != 1 or not len(values) or not values.is_floating_point():
        raise ValueError(
            f"{name}: expected a floating (C,) tensor, got {values.dtype} {tuple(values.shape)}; "
            "make one from class counts with longtail.prior(counts)"
        )
    low = values < 0 if zero_allowed else values <= 0
    total = values.float().sum().item()
    if (low | ~values.isfinite()).any() or abs(total - 1) > 1e-3:
        raise ValueError(
            f"{name}: frequencies must be finite, positive and sum to 1 (sum {total:g}, least "
            f"{values.min().item():g}); make one from class counts with longtail.prior(counts)"
        )
    return values


def exponential_counts(n_max: float, num_classes: int, rho: float) -> list[int]:
    """Class sizes that fall exponentially from n_max to n_max / rho.

        n_i = int(n_max * (1 / rho) ** (i / (C - 1)))            LDAM-DRW's code, LiVT's and DeiT-LT's

    Args:
        n_max: images of class 0.
        num_classes: C.
        rho: imbalance factor, largest over smallest class; 1 is balanced.

    Truncated, not rounded, in float64: the published totals depend on it.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if not 1 <= rho < math.inf:
        raise ValueError(f"rho: expected a finite imbalance factor of at least 1 (n_max / n_min), got {rho}")
    if not 1 <= n_max < math.inf:
        raise ValueError(f"n_max: expected at least 1 image in the first class, got {n_max}")
    counts = [int(n_max * (1 / rho) ** (i / max(num_classes - 1, 1))) for i in range(num_classes)]
    if min(counts) < 1:
        raise ValueError(f"rho: {rho} leaves the last class empty; keep it to n_max = {n_max} or below")
    return counts


def long_tailed_indices(targets: ArrayLike | Tensor, rho: float, seed: int = 0, n_max: int | None = None) -> np.ndarray:
    """The published long-tailed subset of a balanced set: which images are kept, class by class.

    `RandomState(seed)` shuffles the positions of class 0, then of class 1, and so on; the first n_i stay.

    Args:
        targets: (N,) labels 0..C-1, in the order of the data set.
        rho: imbalance factor.
        seed: of the legacy generator; the papers' subsets are seed 0.
        n_max: images of class 0 (None: the size of the smallest class, 5,000 for CIFAR-10).

    Returns:
        (sum n_i,) int64 positions, concatenated in class order as published, so not sorted.
    """
    positions = _positions(targets)
    smallest = min(len(p) for p in positions)
    counts = exponential_counts(smallest if n_max is None else n_max, len(positions), rho)
    return _draw(positions, counts, seed, "n_max")


def balanced_indices(targets: ArrayLike | Tensor, per_class: int, seed: int = 0) -> np.ndarray:
    """`per_class` images of every class, drawn as in `long_tailed_indices`. Returns (C * per_class,)."""
    if per_class < 1:
        raise ValueError(f"per_class: expected at least 1, got {per_class}")
    positions = _positions(targets)
    return _draw(positions, [per_class] * len(positions), seed, "per_class")


def stratified_split(
    targets: ArrayLike | Tensor, fraction: float = 0.1, at_least: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a fraction of every class, at least `at_least` images, for the choices a run makes.

    Args:
        targets: (N,) labels 0..C-1 of the (long-tailed) training images.
        fraction: share of each class to hold out, rounded to the nearest image.
        at_least: images held out of the smallest classes.
        seed: of the draw.

    Returns:
        Sorted int64 positions: (train, validation). Every class keeps at least one training image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected between 0 and 1, got {fraction}")
    if at_least < 0:
        raise ValueError(f"at_least: expected 0 or more, got {at_least}")
    positions = _positions(targets)
    held = [max(at_least, math.floor(fraction * len(p) + 0.5)) for p in positions]
    for c, (p, n) in enumerate(zip(positions, held, strict=True)):
        if n >= len(p):
            raise ValueError(
                f"targets: class {c} has {len(p)} image(s) and {n} would be held out, leaving none to train "
                "on; lower at_least or fraction"
            )
    validation = np.sort(_draw(positions, held, seed, "at_least"))
    return np.setdiff1d(np.concatenate(positions), validation), validation


def prior(counts: ArrayLike | Tensor) -> Tensor:
    """Class frequencies pi_c = n_c / sum n. Returns (C,) in the default dtype, on the counts' device."""
    values = check_counts(counts)
    return _like_counts(values / values.sum(), counts)


def shot_groups(counts: ArrayLike | Tensor, many: float = 100, few: float = 20) -> dict[str, Tensor]:
    """(C,) masks by training count: many > 100, medium 20..100, few < 20 (LiVT section 5.1)."""
    if not few <= many:
        raise ValueError(f"few: expected at most many ({many}), got {few}")
    n = check_counts(counts)
    return {"many": n > many, "medium": (n >= few) & (n <= many), "few": n < few}


def index_groups(num_classes: int, boundaries: Sequence[int]) -> dict[str, Tensor]:
    """Groups by position, as DeiT-LT's code cuts them after sorting classes by frequency.

    Args:
        num_classes: C.
        boundaries: first class of `medium` and first class of `few`: (3, 7) for CIFAR-10-LT and digits,
            (36, 71) CIFAR-100-LT, (390, 835) ImageNet-LT, (842, 4543) iNaturalist 2018.
    """
    if len(boundaries) != 2 or not 0 <= boundaries[0] <= boundaries[1] <= num_classes:
        raise ValueError(f"boundaries: expected two rising positions in 0..{num_classes}, got {boundaries}")
    group = torch.bucketize(torch.arange(num_classes), torch.tensor(list(boundaries)), right=True)  # (C,)
    return {name: group == i for i, name in enumerate(GROUPS)}


def effective_number_weights(counts: ArrayLike | Tensor, beta: float = 0.9999) -> Tensor:
    """Weights by the effective number of samples, rescaled to sum to C (Cui et al. 2019).

        w_c = (1 - beta) / (1 - beta^n_c),   then   w_c * C / sum_c w_c

    DeiT-LT's text leaves the rescaling out, its code has it. Returns (C,) in the default dtype.
    """
    return _like_counts(effective_weights_unchecked(check_counts(counts), beta), counts)


def effective_weights_unchecked(counts: Tensor, beta: float) -> Tensor:
    """`effective_number_weights` for losses, which must not wait for the device: (C,) floats, trusted."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta: expected 0 <= beta < 1, got {beta}")
    if beta == 0:
        return torch.ones_like(counts)
    weights = -1 / torch.expm1(counts * math.log(beta))  # expm1: 1 - beta^n cancels in float32 for small n
    return weights * (len(counts) / weights.sum())


def drw_weights(counts: ArrayLike | Tensor, epoch: int, start: int, beta: float = 0.9999) -> Tensor:
    """Deferred re-weighting (Cao et al. 2019): ones before epoch `start` (from 0), then effective-number."""
    weights = effective_number_weights(counts, beta)
    return weights if epoch >= start else torch.ones_like(weights)


def _positions(targets: ArrayLike | Tensor) -> list[np.ndarray]:
    """Where each class 0..C-1 occurs in targets, in ascending order."""
    labels = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else np.asarray(targets)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(f"targets: expected (N,) whole-number labels, got {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"targets: labels must lie in 0..C-1, found {labels.min()}; renumber them from 0")
    counts = np.bincount(labels)
    if not counts.all():
        missing = np.flatnonzero(counts == 0)
        raise ValueError(
            f"targets: {len(missing)} of the classes 0..{len(counts) - 1} have no images, class {missing[0]} "
            "first; renumber the labels without gaps"
        )
    order = np.argsort(labels, kind="stable").astype(np.int64)  # positions by class, ascending within one
    return np.split(order, np.cumsum(counts)[:-1])


def _draw(positions: list[np.ndarray], counts: Sequence[int], seed: int, argument: str) -> np.ndarray:
    """The first counts[c] positions of each class after the published shuffles, which are in place."""
    generator = np.random.RandomState(seed)
    kept = []
    for c, (p, n) in enumerate(zip(positions, counts, strict=True)):
        if n > len(p):
            raise ValueError(f"{argument}: class {c} has {len(p)} images, {n} are asked for; lower {argument}")
        generator.shuffle(p)
        kept.append(p[:n])
    return np.concatenate(kept)


def _like_counts(values: Tensor, counts: ArrayLike | Tensor) -> Tensor:
    """Values computed in float64 on the CPU, brought to the default dtype and to where the counts were."""
    device = counts.device if isinstance(counts, Tensor) else "cpu"
    return values.to(dtype=torch.get_default_dtype()).to(device)
