"""Optimiser and learning-rate schedule of a recipe, thin over timm."""

from ltvit_lib.recipes import Recipe

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import nn

FUSED = ("adam", "adamw")  # those of timm's names that torch has fused kernels for, beside sgd


def create_optimizer(model: nn.Module, recipe: Recipe, fused: bool | None = None) -> torch.optim.Optimizer:
    """AdamW, SGD or another of timm's; no weight decay on vectors, and in ViTs on position embeddings and tokens.

    (A masked autoencoder's two tokens do decay, as MAE's.)

    With `layer_decay` d, block i of L learns at d^(L - i) of the rate and the embeddings at d^(L + 1) (LiVT Table 9;
    equal to MAE's groups for average pooling). The CIFAR teachers decay every parameter, as their released code.

    Args:
        fused: one kernel for all parameters; None: on a GPU. On a CPU its last bits differ from the plain loop's, with
            which recorded runs were trained.
    """
    fused = next(model.parameters()).is_cuda if fused is None else fused
    if recipe.optimizer == "sgd":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(
            trained, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
            fused=fused or None,
        )  # fmt: skip
    kernel = {"fused": True} if fused and recipe.optimizer in FUSED else {}
    return create_optimizer_v2(
        model,
        recipe.optimizer,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        betas=recipe.betas,
        **kernel,
    )


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Lays a checkpoint's state out as this optimiser's kernels want it, whichever kernels wrote it.

    A fused one has its step count on the device, and needs every buffer in its parameter's memory format.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if name == "step" and group.get("fused"):
                    optimizer.state[parameter][name] = value.to(parameter.device)
                elif value.shape == parameter.shape and value.stride() != parameter.stride():
                    laid = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                    optimizer.state[parameter][name] = laid.copy_(value)


def create_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int):
    """A timm scheduler: call `step(epoch)` at the start of an epoch and `step_update(step)` before each step.

    cosine: by step; linear warm-up, then half a cosine to `min_lr`, both scaled by the layer decay. `warmup_prefix`
    lets the cosine start after the warm-up (MAE, LiVT), otherwise it starts at step 0 (DeiT).
    step: by epoch; lr (e + 1) / w while warming up, then x `lr_factor` at each of `lr_steps` (LDAM-DRW).
    """
    if recipe.schedule == "cosine":
        total, warmup = recipe.epochs * steps_per_epoch, round(recipe.warmup_epochs * steps_per_epoch)
        return CosineLRScheduler(
            optimizer,
            t_initial=total - warmup if recipe.warmup_prefix else total,
            lr_min=recipe.min_lr,
            warmup_t=warmup,
            warmup_lr_init=recipe.warmup_lr,
            warmup_prefix=recipe.warmup_prefix,
            t_in_epochs=False,
        )
    warmup = max(round(recipe.warmup_epochs), 1)
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[round(share * recipe.epochs) + 1 for share in recipe.lr_steps],  # timm applies m at epoch m - 1
        decay_rate=recipe.lr_factor,
        warmup_t=warmup - 1,
        warmup_lr_init=recipe.learning_rate / warmup,
        warmup_prefix=False,
    )
