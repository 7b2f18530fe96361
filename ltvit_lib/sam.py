"""Sharpness-aware minimisation as a place the weights visit, around any optimiser.

Foret et al. 2021, equation 2: the gradient is taken at w + rho g / |g| and applied from w. Follows the teachers of
DeiT-LT (Saddle-LongTail): one norm over all parameters, weight decay outside g, and BatchNorm statistics updated by
both forward passes.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


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
    norm = torch.stack(torch._foreach_norm([p.grad for p in moved])).norm()
    scale = rho / (norm + 1e-12)
    saved = [torch.empty_like(p, requires_grad=False) for p in moved]  # the one copy: w + e - e would not be w again
    try:
        with torch.no_grad():
            torch._foreach_copy_(saved, moved)  # one launch on a GPU for all the small tensors of a CNN
            for p in moved:
                p.addcmul_(p.grad, scale.to(p.dtype))
        yield norm
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, saved)


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """While the block runs, BatchNorm normalises as before and leaves its running averages alone.

    For SAM's second pass: the averages then describe the weights that are kept, not the worse ones nearby. The
    teachers of DeiT-LT let both passes update them (Saddle-LongTail).
    """
    kinds = nn.modules.batchnorm._BatchNorm
    layers = [m for m in model.modules() if isinstance(m, kinds) and m.track_running_stats]
    for m in layers:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in layers:
            m.track_running_stats = True


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


def top_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> float:
    """Largest eigenvalue of the loss's Hessian, by power iteration on Hessian-vector products (backward twice).

        v <- H v / |H v|,   lambda = v^T H v

    Power iteration finds the eigenvalue of largest *magnitude*, sign kept: where a model has not settled, that may be a
    negative one. |lambda| is never above the true magnitude. Put the model in eval mode (BatchNorm, dropout): every
    product must see one function. Gradients in `.grad` are neither read nor changed. Costs a forward pass, then
    about two backward passes an iteration, with the graph of the gradient in memory: give a sample of images.

    Args:
        loss: computes the scalar loss; called once.
        parameters: the weights of the Hessian.
        iterations: at most so many products; a warning says so when they did not suffice.
        tolerance: relative change of lambda at which to stop.
        seed: of the random start.

    Raises:
        ValueError: the loss depends on none of the parameters, or a value is not finite.
    """
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    parameters = [p for p in parameters if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        value = loss()
    gradients = [None] * len(parameters)
    if parameters and value.requires_grad:
        gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not used:
        raise ValueError("loss: it depends on no parameter with requires_grad; compute it with gradients on")
    curved = [(p, g) for p, g in used if g.requires_grad]
    if not curved:
        return 0.0  # linear in every parameter
    weights, gradients = zip(*curved, strict=True)
    generator = torch.Generator().manual_seed(seed)
    image = [torch.randn(w.shape, generator=generator).to(w) for w in weights]
    eigenvalue = math.inf
    for _ in range(iterations):
        norm = torch.stack([part.norm() for part in image]).norm()
        if norm == 0:
            return 0.0
        vector = [part / norm for part in image]
        image = torch.autograd.grad(gradients, weights, vector, retain_graph=True, materialize_grads=True)
        before, eigenvalue = eigenvalue, sum((v * h).sum() for v, h in zip(vector, image, strict=True)).item()
        if not math.isfinite(eigenvalue):
            raise ValueError("loss: its second derivatives are not finite; check the weights and the images")
        if abs(eigenvalue - before) <= tolerance * abs(eigenvalue):
            return eigenvalue
    warnings.warn(f"top_eigenvalue moved by more than {tolerance:g} at iteration {iterations}: give more", stacklevel=2)
    return eigenvalue
