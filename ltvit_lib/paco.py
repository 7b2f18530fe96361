"""Parametric contrastive learning (PaCo, Cui et al. 2021), DeiT-LT's second teacher: loss, two encoders, a queue.

A query image is drawn to the centre of its class (a row of the linear classifier) and to samples of its class: the
batch's other queries, its keys (a second view, by an encoder that follows the first slowly) and a queue of past keys.
Follows the released code in what enters the sums; a difference is named where it is made. One step:

    keys = model.encode_keys(key_images)  # once, so that both passes of SAM see the same keys
    logits, query = model(query_images)  # in each pass, and then
    contrast, contrast_labels = model.contrast(keys, labels)
    paco_loss(logits, query, contrast, labels, contrast_labels, prior).backward()
    optimizer.step()
    model.update(keys, labels)  # once: only here do the key encoder and the queue change

Shapes: B queries, C classes, K queued keys, D features, d the projection's width.
"""

import copy
import math

from ltvit_lib.losses import logit_bias_ce

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def paco_loss(
    class_logits: Tensor,
    query: Tensor,
    contrast: Tensor,
    target: Tensor,
    contrast_target: Tensor,
    prior: Tensor,
    alpha: float = 0.01,
    gamma: float = 1.0,
    temperature: float = 0.05,
) -> Tensor:
    """Cross-entropy over centres and samples together, averaged over a query's positives (Cui et al. 2021).

        a_ic = z_ic + log pi_c,    s_ij = q_i . x_j / T,    x = [query; contrast] without i itself
        S_i  = log(sum_c e^a_ic + gamma * sum_j e^s_ij)
        L    = mean_i S_i - (a_iy + alpha * sum_j [y_j = y_i] s_ij) / (1 + alpha * sum_j [y_j = y_i])

    With alpha = gamma = 0 this is Bal-CE. Defaults are those of CIFAR-100-LT.

    Args:
        class_logits: (B, C) of the queries.
        query: (B, d) unit rows; the gradient flows through both sides of q_i . q_j.
        contrast: (M, d) unit rows without gradient: keys and queue; M may be 0.
        target: (B,) int64.
        contrast_target: (M,) int64; a row labelled -1 attracts nobody and repels everybody.
        prior: (C,) training frequencies, all positive.
        alpha: weight of a sample among the positives; the own centre's is 1.
        gamma: weight of the samples in the denominator.
        temperature: T of the samples; centres have none of it.

    The released code adds 1e-9 to pi and 1e-12 to the sum. Its factors beta (the centre's weight), 1 / supt (on a) and
    T / T_base are 1 unless told otherwise, and 1 here.

    Raises:
        ValueError: shapes that do not fit, or a weight out of range.
    """
    _check(class_logits, query, contrast, target, contrast_target, prior)
    if not (alpha >= 0 and gamma >= 0 and temperature > 0):
        raise ValueError(
            f"alpha {alpha}, gamma {gamma}, temperature {temperature}: give alpha, gamma >= 0 and temperature > 0"
        )
    class_logits, query = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (class_logits, query))
    centres = class_logits + logit_bias_ce(prior).to(class_logits)  # (B, C)
    samples = query @ torch.cat([query, contrast.to(query)]).T / temperature  # (B, B + M)
    itself = torch.eye(*samples.shape, dtype=torch.bool, device=query.device)
    same = ((target[:, None] == torch.cat([target, contrast_target])) & ~itself).to(samples)  # 1 where positive
    others = (samples + (math.log(gamma) if gamma else -math.inf)).masked_fill(itself, -math.inf)
    total = torch.cat([centres, others], 1).logsumexp(1)  # (B,)
    attraction = centres.gather(1, target[:, None])[:, 0] + alpha * (samples * same).sum(1)
    return (total - attraction / (1 + alpha * same.sum(1))).mean()


def _check(class_logits, query, contrast, target, contrast_target, prior) -> None:
    b = len(class_logits)
    wanted = {
        "class_logits: give (B, C), B at least 1": class_logits.ndim == 2 and b > 0,
        f"query: give ({b}, d), a row for each of class_logits": query.ndim == 2 and len(query) == b,
        "contrast: give (M, d) of the queries' width": contrast.ndim == 2 and contrast.shape[1:] == query.shape[1:],
        f"target: give ({b},) int64 labels, none of them soft": target.shape == (b,) and target.dtype == torch.int64,
        "prior: give one frequency for each column of class_logits": prior.shape == class_logits.shape[1:],
        "contrast_target: give one label for each row of contrast": contrast_target.shape == contrast.shape[:1],
    }
    for message, holds in wanted.items():
        if not holds:
            raise ValueError(message)


class PaCo(nn.Module):
    """A CNN classifier with a projection for contrast, its slow copy, and a queue of the copy's past projections.

    Training mode returns `(logits, query)`; eval mode the plain logits, which are prior-balanced because the log-prior
    is the loss's. All state is in `state_dict()`; the CNN alone is `plain_weights` of it.

    Args:
        backbone: a CNN with `forward_features` -> (B, D, h, w), `num_features` and a linear `get_classifier()`; used
            as it is, not copied.
        dim: d; the projection is a 2-layer MLP D -> D -> d (MoCo v2's; released versions differ in a BatchNorm).
        queue_size: K, a multiple of the batch.
        momentum: m of the key encoder, k <- m k + (1 - m) q.

    An empty slot of the queue holds a random unit row labelled -1. It counts in the denominator, as in the released
    code, which normalises along dim 0 (so that its first rows are short) and gives slots random labels.

    Raises:
        ValueError: the classifier is not linear, or momentum is not in 0..1.
    """

    def __init__(self, backbone: nn.Module, dim: int = 32, queue_size: int = 1024, momentum: float = 0.999):
        super().__init__()
        if not isinstance(backbone.get_classifier(), nn.Linear):
            raise ValueError(
                f"backbone: PaCo needs a linear classifier, not {type(backbone.get_classifier()).__name__}"
            )
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}: give a number in 0..1")
        features, self.momentum = backbone.num_features, momentum
        self.encoder = backbone
        self.projector = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))
        # with a copy of the classifier that nothing reads (the released code keeps one too)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, dim), dim=1))
        self.register_buffer("queue_labels", torch.full((queue_size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def get_classifier(self) -> nn.Linear:
        return self.encoder.get_classifier()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C) logits in eval mode; in training mode also the queries, (B, d) unit rows."""
        if not self.training:
            return self.encoder(images)
        features = self.encoder.forward_features(images).mean((2, 3))  # (B, D)
        return self.get_classifier()(features), F.normalize(self.projector(features), dim=1)

    @torch.no_grad()
    def encode_keys(self, images: Tensor) -> Tensor:
        """(B, d) unit rows. BatchNorm keeps its own running statistics here: call once a step, not once a pass."""
        return F.normalize(self.key_projector(self.key_encoder.forward_features(images).mean((2, 3))), dim=1)

    def contrast(self, keys: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What queries are compared with beside each other: (B + K, d) keys and queue, and their labels.

        With several processes, B counts the keys of all of them.
        """
        return torch.cat([gathered(keys), self.queue]), torch.cat([gathered(labels), self.queue_labels])

    @torch.no_grad()
    def update(self, keys: Tensor, labels: Tensor) -> None:
        """After the optimiser's step: the key encoder follows, and the step's keys replace the oldest of the queue.

        With several processes each gives its own share, of one size; all queues receive every share in rank order.

        Args:
            keys: (B, d) of all micro-batches of the step, from `encode_keys`.
            labels: (B,).

        Raises:
            ValueError: the whole batch does not divide the queue.
        """
        keys, labels = gathered(keys), gathered(labels)
        if len(self.queue) % len(keys):
            raise ValueError(
                f"queue_size {len(self.queue)} is not a multiple of the batch of {len(keys)}: change either"
            )
        slow = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        torch._foreach_mul_(slow, self.momentum)
        fast = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_add_(slow, fast, alpha=1 - self.momentum)
        slots = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[slots], self.queue_labels[slots] = keys.to(self.queue.dtype), labels
        self.pointer.add_(len(keys)).remainder_(len(self.queue))


def gathered(share: Tensor) -> Tensor:
    """The shares of all processes, of one size, in rank order: for a loss that compares the images of a whole batch.

    Differentiable, for the sum of what the processes compute from it: a share's gradient comes from all of them.
    """
    return _Gather.apply(share) if dist.is_available() and dist.is_initialized() else share


class _Gather(torch.autograd.Function):
    """torch.distributed.nn.functional.all_gather, which torch 2.13 calls deprecated and has no public heir of."""

    @staticmethod
    def forward(ctx, share: Tensor) -> Tensor:
        share = share.contiguous()
        shares = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, share)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def plain_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The CNN of a PaCo state_dict, backbone and classifier, by the CNN's own names: a teacher needs no more.

    Raises:
        ValueError: the weights are not PaCo's.
    """
    if "queue_labels" not in weights:
        raise ValueError("weights: no queue_labels among them, so not PaCo's; load them into the CNN as they are")
    return {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
