"""Where a ViT looks: attention maps, mean attention distance, mass on special tokens, rollout.

DeiT-LT Fig. 1a, 4b, 5, S.2 and S.3. The distance is that of Raghu et al. 2021 as the probing-vits notebooks compute it:
special tokens are dropped and the rest is not renormalised, so mass on CLS and DIST shortens it; report `special_mass`
beside it. The rollout is Abnar and Zuidema 2020. Attention is (L, B, H, N, N), rows are queries, and the first
`num_prefix` of the N tokens are the special ones (CLS, DIST).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn


@torch.no_grad()
def capture(model: nn.Module, images: Tensor) -> Tensor:
    """Softmax attention of every block, (L, B, H, N, N), from the queries and keys of a timm ViT in eval mode.

    The result takes L B H N^2 numbers; `over_batches` keeps one batch at a time. Fused attention never forms these maps
    (timm's AttentionExtract then answers with an empty dict), so they are computed here from q and k as they pass; the
    model's own computation, its fused_attn flags and its train or eval mode stay as they are.

    Args:
        model: a timm VisionTransformer, with or without a DIST token.
        images: (B, 3, height, width), normalised, on the model's device.

    Raises:
        ValueError: no images, or a model whose blocks hold no timm `Attention`.
    """
    _check_images(images)
    blocks = getattr(model, "blocks", None) or [None]
    layers = [getattr(block, "attn", None) for block in blocks]
    if not all(isinstance(layer, Attention) for layer in layers):
        raise ValueError(f"model: {type(model).__name__} has no blocks of timm's Attention; give a timm ViT")
    queries, maps = [], []

    def on_key(scale: float, _, __, keys: Tensor) -> None:
        scores = (queries.pop() * scale) @ keys.transpose(-2, -1)
        maps.append(scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1))

    hooks = [(layer.q_norm, lambda _, __, q: queries.append(q)) for layer in layers]
    hooks += [(layer.k_norm, partial(on_key, layer.scale)) for layer in layers]
    with watched(model, hooks):
        model(images)
    if len(maps) != len(layers):
        raise ValueError(f"model: only {len(maps)} of {len(layers)} blocks called their q_norm and k_norm; "
                         "give the plain timm model, not a compiled or rewritten one")  # fmt: skip
    return torch.stack(maps)


def mean_distance(
    attention: Tensor, grid: tuple[int, int], patch_size: int | tuple[int, int], num_prefix: int
) -> Tensor:
    """Mean attention distance in pixels, (L, H): how far from its own patch a head looks (DeiT-LT Fig. 4b, S.3).

        d_lh = mean over images b and patches i of  sum over patches j of  A_lbhij |x_i - x_j|

    Args:
        attention: (L, B, H, N, N).
        grid: (rows, columns) of patches; rows * columns + num_prefix = N.
        patch_size: pixels, or (height, width).
        num_prefix: special tokens, dropped from rows and columns without renormalising: 2 for DeiT-LT.

    Raises:
        ValueError: the grid does not match the tokens, or the attention is empty or holds NaN.
    """
    _check_attention(attention, num_prefix)
    rows, columns = grid
    tokens = attention.shape[-1]
    if rows * columns + num_prefix != tokens:
        raise ValueError(f"grid: {rows} x {columns} patches and {num_prefix} special tokens do not make the "
                         f"attention's {tokens} tokens; give the model's own grid and num_prefix")  # fmt: skip
    pixels = torch.as_tensor(patch_size, dtype=attention.dtype, device=attention.device)
    where = torch.cartesian_prod(*(torch.arange(n, device=attention.device) for n in grid)) * pixels  # (N, 2)
    apart = (where[:, None] - where).norm(dim=-1)  # exact, where cdist rounds
    among_patches = attention[..., num_prefix:, num_prefix:]
    total = torch.einsum("lbhij,ij->lh", among_patches, apart)
    return total / (attention.shape[1] * rows * columns)


def special_mass(attention: Tensor, num_prefix: int) -> Tensor:
    """Share of their attention, in 0..1, that patches put on special tokens; (L, H), mean over patches and images."""
    _check_attention(attention, num_prefix)
    return attention[..., num_prefix:, :num_prefix].sum(-1).mean((1, -1))


def rollout(attention: Tensor) -> Tensor:
    """Attention rollout (B, N, N): how much of each input token reaches each output token (Abnar and Zuidema 2020).

        R = A'_L ... A'_2 A'_1,   A'_l = (mean over heads of A_l + I), each row divided by its sum

    `rollout(a)[:, 0, num_prefix:]` is CLS's map over the patches and `[:, 1, num_prefix:]` DIST's (DeiT-LT Fig. 5,
    S.2). Rows sum to 1 over all tokens.
    """
    _check_attention(attention, 0)
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    product = identity
    for layer in attention:
        mixed = layer.mean(1) + identity  # (B, N, N): heads, and the residual connection
        product = mixed / mixed.sum(-1, keepdim=True) @ product
    return product


class Survey(NamedTuple):
    """What `over_batches` returns, on the CPU: P special tokens, N patches."""

    distance: Tensor  # (L, H) pixels
    special: Tensor  # (L, H) in 0..1
    rollout: Tensor  # (B, P + 1, N): the special tokens' rows over the patches, then the mean of the patches' own


def over_batches(model: nn.Module, images: Tensor | Iterable[Tensor], batch: int = 32) -> Survey:
    """Mean distance, special mass and rollout over a whole set, one batch in memory at a time.

    A classifier reads special tokens, or the patches' mean: hence the last row of a rollout. Grid, patch size and
    number of special tokens are the model's. A batch needs about three times its attention: L batch H N^2 numbers,
    20 MB for 12 blocks of 3 heads at 66 tokens, 0.7 GB for ViT-B/16 at 224 pixels.

    Args:
        model: a timm VisionTransformer; batches move to its device.
        images: (B, 3, height, width) normalised, or an iterable of such batches for a set that does not fit in memory.
        batch: images at a time where `images` is one tensor.

    Raises:
        ValueError: no images, or a model that `capture` refuses.
    """
    distance, special, rows = 0, 0, Rows()
    for part in batches(model, images, batch):
        attention = capture(model, part)
        prefix, patches = model.num_prefix_tokens, model.patch_embed
        grid, pixels = patches.dynamic_feat_size(part.shape[-2:]), patches.feat_ratio(as_scalar=False)
        distance += mean_distance(attention, grid, pixels, prefix).double().cpu() * len(part)
        special += special_mass(attention, prefix).double().cpu() * len(part)
        maps = rollout(attention)[:, :, prefix:]  # (b, P + N, N)
        rows.append(torch.cat([maps[:, :prefix], maps[:, prefix:].mean(1, keepdim=True)], 1))
    return Survey(distance / rows.count, special / rows.count, rows.joined())


# --- shared with ltvit_lib.rank --------------------------------------------------------------------------------


@contextmanager
def watched(model: nn.Module, hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Puts the model in eval mode with forward hooks on some modules; both are undone at the end, also on an error."""
    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(setattr, module, "training", module.training)
        model.eval()
        for module, hook in hooks:
            undo.enter_context(module.register_forward_hook(hook))
        yield


def batches(model: nn.Module, images: Tensor | Iterable[Tensor], batch: int) -> Iterator[Tensor]:
    """The images in batches on the model's device, at least one."""
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 image, got {batch}")
    device, empty = next(model.parameters()).device, True
    for part in images.split(batch) if isinstance(images, Tensor) else images:
        _check_images(part)
        empty = False
        yield part.to(device)
    if empty:
        raise ValueError("images: the set is empty; give at least one batch")


class Rows:
    """torch.cat of a stream along the first axis, on the CPU, in one buffer that doubles.

    A list of small results between large temporaries would fragment the heap, which then grows with the set.
    """

    def __init__(self):
        self.buffer, self.count = None, 0

    def append(self, part: Tensor) -> None:
        if self.buffer is None:
            self.buffer = torch.empty(part.shape, dtype=part.dtype)
        end = self.count + len(part)
        if end > len(self.buffer):
            larger = self.buffer.new_empty((max(end, 2 * len(self.buffer)), *part.shape[1:]))
            larger[: self.count] = self.buffer[: self.count]
            self.buffer = larger
        self.buffer[self.count : end] = part
        self.count = end

    def joined(self) -> Tensor:
        return self.buffer[: self.count].clone()


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images) or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected normalised (B, 3, height, width) with at least one image, got {got}")


def _check_attention(attention: Tensor, num_prefix: int) -> None:
    shape = tuple(attention.shape)
    if len(shape) != 5 or shape[-1] != shape[-2] or not math.prod(shape):
        raise ValueError(f"attention: expected (L, B, H, N, N) with at least one image, got {shape}")
    if not 0 <= num_prefix < shape[-1]:
        raise ValueError(f"num_prefix: expected 0 to {shape[-1] - 1} of the {shape[-1]} tokens, got {num_prefix}")
    if not attention.sum(dtype=torch.float32).isfinite():
        raise ValueError("attention: it holds NaN or infinity; check the model's weights and the images")
