"""Sharpness-aware minimisation as a place the weights visit, around any optimiser.

Foret et al. 2021, equation 2: the gradient is taken at w + rho g / |g| and applied from w. Follows the teachers of
DeiT-LT (Saddle-LongTail): one norm over all parameters, weight decay outside g, and BatchNorm statistics updated by
both forward passes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ascended(parameters: Iterable[nn.Parameter], rho: float) -> Iterator[Tensor]:
    """Moves the weights to w + rho * g / |g| while the block runs, then back, bit for bit.

        loss(model(x), y).backward()
        with ascended(model.parameters(), rho=0.05):
            optimizer.zero_grad()
            loss(model(x), y).backward()  # the gradient felt at the worse point ...
        optimizer.step()  # ... applied from the original one

    Args:
        parameters: those without a gradient stay where they are.
        rho: radius of the step, in the Euclidean norm over all parameters together; 0 stays at w.

    Yields:
        |g|, a scalar tensor.

    Raises:
        ValueError: rho is negative or no parameter has a gradient.
    """
    moved = [p for p in parameters if p.grad is not None]
    if not rho >= 0:
        raise ValueError(f"rho must be 0 or more, got {rho}")
    if not moved:
        raise ValueError("no parameter has a gradient: call backward() before ascended()")
    norm = torch.stack([p.grad.norm() for p in moved]).norm()
    scale = rho / (norm + 1e-12)
    saved = [p.detach().clone() for p in moved]  # the one copy: w + e - e would not be w in floating point
    try:
        with torch.no_grad():
            for p in moved:
                p.addcmul_(p.grad, scale.to(p.dtype))
        yield norm
    finally:
        with torch.no_grad():
            for p, original in zip(moved, saved, strict=True):
                p.copy_(original)


def sharpness(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], rho: float) -> float:
    """How much the loss rises at w + rho * g / |g|: L(w + e) - L(w). Small is flat (Foret et al. 2021, equation 1).

    Clears the gradients. A model with BatchNorm or dropout belongs in eval mode, so that both losses see one network.
    """
    parameters = list(parameters)
    for p in parameters:
        p.grad = None
    here = loss()
    here.backward()
    with ascended(parameters, rho), torch.no_grad():
        rise = loss() - here
    for p in parameters:
        p.grad = None
    return rise.item()
