"""How many directions a token's features need: the feature rank of DeiT-LT (section 3.2, Suppl. G; Fig. 1b, 4c, S.4).

No code of it was released. By its words the paper centres the columns of the features of all classes, and not the
tail's. What is subtracted matters, so the convention is an argument (`centre`).
"""

from collections.abc import Iterable

from ltvit_lib.attention import Rows, batches, watched

import torch
from torch import Tensor, nn

CENTRES = ("literal", "all", "own", "none")


def spectrum(features: Tensor) -> Tensor:
    """Singular values of the column-centred features (B, D), in float64, largest first: (min(B, D),)."""
    _check_features("features", features)
    return torch.linalg.svdvals(features.double() - features.double().mean(0))


def reconstruction_error(all_features: Tensor, tail_features: Tensor, centre: str = "all") -> Tensor:
    """Share of the tail features that the k leading directions of all features miss, for k = 0, 1, ...

        e_k = |F_tail - F_tail V_k V_k^T|^2 / |F_tail|^2   (Frobenius; V_k: top-k right singular vectors of F_all)

    Args:
        all_features: (B, D), images of all classes.
        tail_features: (T, D), images of the tail classes.
        centre: what is subtracted first. "literal", as Suppl. G is worded: the mean of all_features from these alone;
            "all": from both; "own": from each its own mean; "none": nothing.

    Returns:
        (R + 1,) float64, falling from 1; R is the numerical rank of all_features.

    Raises:
        ValueError: no images, NaN, shapes that differ, or tail features that do not vary after centring.
    """
    _check_features("all_features", all_features)
    _check_features("tail_features", tail_features)
    if all_features.shape[1] != tail_features.shape[1]:
        widths = f"{all_features.shape[1]} and {tail_features.shape[1]}"
        raise ValueError(f"all_features, tail_features: widths differ ({widths}); take both from one model and block")
    if centre not in CENTRES:
        raise ValueError(f"centre: expected one of {', '.join(CENTRES)}, got {centre!r}")
    every, tail = all_features.double(), tail_features.double()
    size = tail.square().sum()
    if centre in ("all", "own"):
        tail = tail - (every if centre == "all" else tail).mean(0)
    if centre != "none":
        every = every - every.mean(0)
    energy = tail.square().sum()
    if energy <= 1e-20 * size:
        raise ValueError(f"tail_features: all zero after centring (centre={centre!r}), so there is nothing to "
                         "reconstruct; give more than one image, from a block that does not collapse")  # fmt: skip
    _, values, directions = torch.linalg.svd(every, full_matrices=False)
    kept = values > values[0] * max(every.shape) * torch.finfo(torch.float64).eps  # the others point anywhere
    along = (tail @ directions[kept].T).square().sum(0)  # (R,)
    outside = (energy - along.sum()).clamp_min(0)
    missed = along.flip(0).cumsum(0).flip(0) + outside  # before the 1st, 2nd, ... direction
    return torch.cat([missed, outside[None]]) / energy


def feature_rank(all_features: Tensor, tail_features: Tensor, tolerance: float = 0.01, centre: str = "all") -> int:
    """Least number of directions of all features that rebuild the tail features up to `tolerance` (DeiT-LT, Suppl. G).

    Args:
        all_features, tail_features, centre: as in `reconstruction_error`.
        tolerance: squared error over squared size, above 0 and below 1; the paper's is 1 %.

    Raises:
        ValueError: bad input, or tail features outside the span of all_features, which no k rebuilds.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: expected a share above 0 and below 1, got {tolerance}")
    error = reconstruction_error(all_features, tail_features, centre)
    if error[-1] > tolerance:
        raise ValueError(f"tail_features: all {len(error) - 1} directions of all_features miss {error[-1]:.1%} of it; "
                         "all_features must contain the tail images and more of the others")  # fmt: skip
    return int((error > tolerance).sum())


@torch.no_grad()
def block_features(model: nn.Module, images: Tensor | Iterable[Tensor], batch: int = 64) -> Tensor:
    """Special tokens (CLS, then DIST) as each block puts them out, before the final norm: (L, B, P, D) on the CPU.

    The residual stream itself, so that all blocks are alike; the final norm would rescale each image's token and change
    the rank. Beside the result, one batch is in memory at a time.

    Args:
        model: a timm VisionTransformer; it is run in eval mode and left as it was.
        images: (B, 3, height, width) normalised, or an iterable of such batches.
        batch: images at a time where `images` is one tensor.

    Raises:
        ValueError: no images, or a model without blocks or special tokens.
    """
    blocks, prefix = getattr(model, "blocks", None), getattr(model, "num_prefix_tokens", 0)
    if not blocks or not prefix:
        raise ValueError(f"model: {type(model).__name__} has no blocks or no special tokens; give a timm ViT with CLS")
    tokens, rows = [], Rows()
    with watched(model, [(block, lambda _, __, x: tokens.append(x[:, :prefix].clone())) for block in blocks]):
        for part in batches(model, images, batch):
            tokens.clear()
            model(part)
            rows.append(torch.stack(tokens, dim=1))  # (B, L, P, D)
    return rows.joined().transpose(0, 1)


def _check_features(name: str, features: Tensor) -> None:
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"{name}: expected (images, D) with at least one image, got {tuple(features.shape)}")
    if not features.is_floating_point() or not features.isfinite().all():
        raise ValueError(f"{name}: expected finite floating-point numbers; check the model that made them")
