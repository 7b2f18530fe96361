"""Every loss of both papers, and the rules that turn their logits into decisions, as plain functions.

Formulae follow LiVT (Xu et al. 2023), DeiT-LT (Rangwani et al. 2024) and the papers they compare with. Losses
return the batch mean of a per-image loss; BCE-type losses sum over classes first. `target` is (B,) int64;
where said, also (B, C) soft, as mixup gives it. Half precision is lifted to float32 first.

Priors, counts and weights are (C,) tensors, best on the logits' device, whose values are trusted: looking
at them would make every step wait for the device. Build them with `longtail`, or pass them through its
`check_prior` and `check_counts` once. Plain lists are checked.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from ltvit_lib.longtail import check_counts, check_prior, effective_weights_unchecked

import torch
import torch.nn.functional as F
from torch import Tensor

Values = Tensor | Sequence[float]


def cross_entropy(logits: Tensor, target: Tensor, weight: Values | None = None, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy.

        L = -sum_i sum_c w_c t'_ic log softmax(z_i)_c / sum_i sum_c w_c t_ic,      t' = (1 - e) t + e / C

    Args:
        logits: (B, C).
        target: (B,) int64 or (B, C) soft.
        weight: (C,) class weights; the sum over images is divided by the summed weights (None: by B).
        smoothing: e.

    Hard targets give what torch gives. With soft ones torch divides by B even when weighted; here one-hot
    targets and the labels they stand for give the same number.
    """
    logits, target = _prepare(logits, target)
    weight = None if weight is None else _per_class(weight, logits, "weight")
    if weight is None or target.ndim == 1:
        return F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    total = F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing, reduction="sum")
    return total / (target * weight).sum()


def logit_bias_ce(prior: Values, test_prior: Values | None = None) -> Tensor:
    """(C,) bias of Bal-CE: log pi_s, or log pi_s - log pi_t for a known test prior (LiVT Theorem 1)."""
    prior = _vector(prior, "prior", check_prior)
    if test_prior is None:
        return prior.log()
    return prior.log() - _per_class(test_prior, prior, "test_prior", check_prior).log()


def logit_bias_bce(prior: Values, test_prior: Values | None = None) -> Tensor:
    """(C,) bias of Bal-BCE: log pi - log(1 - pi) (LiVT Theorem 2).

    With a test prior, the log-odds of the training prior less those of the test prior (Theorem 3); a
    uniform test prior adds log(C - 1) to Theorem 2 (equation 10).
    """
    prior = _vector(prior, "prior", check_prior)
    bias = prior.log() - torch.log1p(-prior)
    if test_prior is None:
        return bias
    test_prior = _per_class(test_prior, prior, "test_prior", check_prior)
    return bias - (test_prior.log() - torch.log1p(-test_prior))


def balanced_ce(
    logits: Tensor, target: Tensor, prior: Values, tau: float = 1.0, test_prior: Values | None = None
) -> Tensor:
    """Bal-CE (balanced softmax, logit adjustment): CE(z + tau * bias) (LiVT eq. 2, Theorem 1).

    Args:
        logits: (B, C).
        target: (B,) int64 or (B, C) soft.
        prior: (C,) training frequencies.
        tau: strength of the whole bias; 0 is plain CE.
        test_prior: (C,) frequencies to be optimal for; None and uniform give the same loss.
    """
    return cross_entropy(_shifted(logits, logit_bias_ce(prior, test_prior), tau), target)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy: one yes-or-no question a class.

        L = mean_i sum_c -t_ic log sigma(z_ic) - (1 - t_ic) log(1 - sigma(z_ic))               LiVT, eq. 5

    Args:
        logits: (B, C).
        target: (B,) int64 or (B, C) soft.

    The released code writes the sum as C * mean (LiVT util/loss.py).
    """
    logits, target = _prepare(logits, target)
    return F.binary_cross_entropy_with_logits(logits, _dense(target, logits), reduction="sum") / len(logits)


def balanced_bce(
    logits: Tensor, target: Tensor, prior: Values, tau: float = 1.0, test_prior: Values | None = None
) -> Tensor:
    """Bal-BCE: binary cross-entropy with each class's prior log-odds added to its logit.

        L = BCE(z + tau * B),   B_c = log pi_c - log(1 - pi_c)                               LiVT, Theorem 2

    Args:
        logits: (B, C); raw ones are used at test time.
        target: (B,) int64 or (B, C) soft.
        prior: (C,) training frequencies.
        tau: strength of the whole bias (Alg. 1, line 16); 0 is plain BCE.
        test_prior: (C,) or None; uniform gives equation 10, that is B + log(C - 1).

    The released code and logs leave log(C - 1) out and fix tau to 1. The argmax of raw logits is not the
    balanced Bayes rule when C > 2: see `decide_bce`.
    """
    return bce(_shifted(logits, logit_bias_bce(prior, test_prior), tau), target)


def nt_bce(logits: Tensor, target: Tensor, lam: float, prior: Values | None = None) -> Tensor:
    """Negative-tolerant BCE, after distribution-balanced loss (Wu et al. 2020).

        L = mean_i sum_c -t_ic log sigma(v_ic) - (1 - t_ic) / lam * log(1 - sigma(lam v_ic)),     v = z + B

    Args:
        logits: (B, C).
        target: (B,) int64 or (B, C) soft.
        lam: how much negatives are sharpened; 1 is BCE.
        prior: (C,) for the bias B of Bal-BCE; None: no bias.

    This is LiVT's App. E.2; its released code scales the logit and not the bias, lam z + B, in a call that is
    commented out.
    """
    if not lam > 0:
        raise ValueError(f"lam: expected a positive number, got {lam}")
    if prior is not None:
        logits = _shifted(logits, logit_bias_bce(prior))
    logits, target = _prepare(logits, target)
    target = _dense(target, logits)
    positive, negative = F.logsigmoid(logits), F.logsigmoid(-lam * logits)
    return -(target * positive + (1 - target) * negative / lam).sum() / len(logits)


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Softmax focal loss: mean_i (1 - p_i,y)^gamma CE_i (Lin et al. 2017). logits (B, C), target (B,)."""
    logits, target = _prepare(logits, target, "focal")
    if not gamma >= 0:
        raise ValueError(f"gamma: expected 0 or more, got {gamma}")
    ce = F.cross_entropy(logits, target, reduction="none")  # (B,)
    # 1 - p without cancellation; the floor keeps the gradient finite where p is 1 and gamma < 1
    wrong = -torch.expm1(-ce)
    return (wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** gamma * ce).mean()


def class_balanced(
    logits: Tensor,
    target: Tensor,
    counts: Values,
    beta: float = 0.9999,
    kind: str = "softmax",
    gamma: float = 1.0,
) -> Tensor:
    """Class-balanced loss: a base loss, each image weighted by the effective number of its label's images.

        L = mean_i w_{y_i} base(z_i, y_i),   w = longtail.effective_number_weights(counts)     Cui et al. 2019

    Args:
        logits: (B, C).
        target: (B,) int64.
        counts: (C,) training images a class.
        beta: in [0, 1); 0 weighs all classes alike.
        kind: softmax (CE), sigmoid (BCE summed over classes) or focal (sigmoid focal, summed over classes).
        gamma: of the focal kind; 0 makes it the sigmoid kind.

    Divided by B, as in the official code; torch's `weight=` (LDAM-DRW, LiVT) divides by the summed weights
    instead, which `cross_entropy(..., weight=)` gives.
    """
    logits, target = _prepare(logits, target, "class_balanced")
    counts = _per_class(counts, logits, "counts", check_counts)
    weights = effective_weights_unchecked(counts, beta)[target]  # (B,)
    if kind == "softmax":
        return (weights * F.cross_entropy(logits, target, reduction="none")).mean()
    if kind not in ("sigmoid", "focal"):
        raise ValueError(f"kind: expected softmax, sigmoid or focal, got {kind!r}")
    signed = logits * (2 * _dense(target, logits) - 1)  # sigma(signed): chance given to the right answer
    loss = -F.logsigmoid(signed)  # (B, C)
    if kind == "focal":
        loss = loss * (gamma * F.logsigmoid(-signed)).exp()
    return (weights * loss.sum(1)).mean()


def ldam(
    cosines: Tensor,
    target: Tensor,
    counts: Values,
    max_margin: float = 0.5,
    scale: float = 30.0,
    weight: Values | None = None,
) -> Tensor:
    """Label-distribution-aware margins: rarer classes must win by more (Cao et al. 2019).

        L = CE(s (z - m_y e_y), y),   m_c = max_margin * (n_min / n_c)^(1/4)

    Args:
        cosines: (B, C) from a normed classifier; LiVT's Table 7 passes a plain linear head's logits.
        target: (B,) int64.
        counts: (C,).
        max_margin: of the rarest class; .5 on CIFAR, .3 on ImageNet-LT and iNaturalist.
        scale: s.
        weight: (C,) DRW weights; divides by the summed weights.
    """
    cosines, target = _prepare(cosines, target, "ldam")
    counts = _per_class(counts, cosines, "counts", check_counts)
    margins = max_margin * (counts.min() / counts) ** 0.25
    return cross_entropy(scale * (cosines - margins * _dense(target, cosines)), target, weight)


def lade(logits: Tensor, target: Tensor, prior: Values, weight: float = 0.1, lam: float = 0.1) -> Tensor:
    """LADE: CE under the prior, plus a regulariser that pulls the logits to the balanced log-density ratio.

        L = CE(z + log pi) - weight * sum_c pi_c (mean_{i: y_i = c} z_ic - S_c - lam S_c^2)
        S_c = log mean_i exp(z_ic - log pi_c - log C)                                      Hong et al. 2021

    Args:
        logits: (B, C).
        target: (B,) int64.
        prior: (C,).
        weight: of the regulariser; 0 is Bal-CE. LADE: .1 (iNaturalist .05).
        lam: of the squared term. LADE: .1 (iNaturalist .5).

    Classes absent from the batch still contribute S_c. LiVT's code keeps the regulariser alone (no prior CE).
    """
    logits, target = _prepare(logits, target, "lade")
    prior = _per_class(prior, logits, "prior", check_prior)
    ce = F.cross_entropy(logits + prior.log(), target)
    images = _dense(target, logits).sum(0)  # (C,) in this batch
    share = (prior / images)[target]  # (B,); classes absent from the batch are never looked up
    first = (share * logits.gather(1, target[:, None])[:, 0]).sum()
    spread = logits.logsumexp(0) - prior.log() - math.log(logits.numel())  # S, (C,); numel is B C
    return ce - weight * (first - (prior * (spread + lam * spread**2)).sum())


def influence_balanced(
    logits: Tensor, target: Tensor, features: Tensor, counts: Values | None = None, alpha: float = 1000.0
) -> Tensor:
    """IB: images with a large influence on the decision boundary count less (Park et al. 2021).

        L = mean_i w_{y_i} CE_i * alpha / (|p_i - y_i|_1 |h_i|_1 + 0.001),   w_c ~ 1 / n_c with mean 1 over classes

    Args:
        logits: (B, C).
        target: (B,) int64.
        features: (B, D), what the last linear layer sees.
        counts: (C,); None: without class weights.
        alpha: overall scale.

    As in the official code the factor is part of the graph; that code trains with CE for the first half.
    """
    logits, target = _prepare(logits, target, "influence_balanced")
    if features.ndim != 2 or len(features) != len(logits):
        raise ValueError(f"features: expected ({len(logits)}, D), got {tuple(features.shape)}")
    features = features.to(logits.dtype)
    error = (logits.softmax(1) - _dense(target, logits)).abs().sum(1)  # (B,)
    weight = None
    if counts is not None:
        weight = 1 / _per_class(counts, logits, "counts", check_counts)
        weight = weight / weight.mean()
    ce = F.cross_entropy(logits, target, weight=weight, reduction="none")
    return (ce * alpha / (error * features.abs().sum(1) + 1e-3)).mean()


def vs(logits: Tensor, target: Tensor, counts: Values, gamma: float = 0.3, tau: float = 1.0) -> Tensor:
    """Vector scaling: CE(z_c (n_c / n_max)^gamma + tau log pi_c) (Kini et al. 2021).

    Args:
        logits: (B, C).
        target: (B,) int64.
        counts: (C,).
        gamma: multiplicative part; 0 leaves logit adjustment.
        tau: additive part; 0 leaves class-dependent temperatures.
    """
    logits, target = _prepare(logits, target, "vs")
    counts = _per_class(counts, logits, "counts", check_counts)
    scaled = logits * (counts / counts.max()) ** gamma
    return F.cross_entropy(scaled + tau * (counts / counts.sum()).log(), target)


def mislas_targets(target: Tensor, counts: Values, shape: str = "concave") -> Tensor:
    """Label-aware smoothing: frequent classes are smoothed more (Zhong et al. 2021).

        t_ic = (1 - e_y) [c = y] + e_y / C,    e_c = 0.3 f((n_c - n_min) / (n_max - n_min))
        f(x) = sin(pi x / 2) concave,  x linear,  1 - cos(pi x / 2) convex

    Args:
        target: (B,) int64.
        counts: (C,).
        shape: concave, linear or convex.

    Returns:
        (B, C) soft targets for `cross_entropy`. Equal counts: no smoothing.
    """
    curves = {
        "concave": lambda x: torch.sin(x * (math.pi / 2)),
        "linear": lambda x: x,
        "convex": lambda x: 1 - torch.cos(x * (math.pi / 2)),
    }
    if shape not in curves:
        raise ValueError(f"shape: expected one of {', '.join(curves)}, got {shape!r}")
    _check_hard(target, target.shape, "mislas_targets")
    counts = _vector(counts, "counts", check_counts).to(torch.get_default_dtype()).to(target.device)
    excess = counts - counts.min()
    smoothing = 0.3 * curves[shape](excess / excess.max().clamp_min(1))[target, None]  # (B, 1)
    return (1 - smoothing) * F.one_hot(target, len(counts)) + smoothing / len(counts)


def mislas(logits: Tensor, target: Tensor, counts: Values, shape: str = "concave") -> Tensor:
    """Cross-entropy on the targets of `mislas_targets`. logits (B, C), target (B,) int64, counts (C,)."""
    return cross_entropy(logits, mislas_targets(target, counts, shape))


def distillation(
    cls_logits: Tensor,
    dist_logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor,
    weight: Values | None = None,
    alpha: float = 0.5,
) -> dict[str, Tensor]:
    """DeiT-LT: the CLS head learns the labels, the DIST head the teacher's hard answers.

        L = (1 - alpha) CE(cls, y) + alpha sum_i w_{t_i} CE(dist_i, t_i) / sum_i w_{t_i},   t = argmax teacher

    Args:
        cls_logits, dist_logits, teacher_logits: (B, C); the teacher's are for the same (mixed) image.
        target: (B,) int64 or (B, C) soft; smoothing and mixup live here.
        weight: (C,) DRW weights of the DIST term; None before DRW starts.
        alpha: share of the DIST term.

    Returns:
        `loss`, and its parts `cls` and `dist`. DeiT-LT eq. 1 and L_DRW of its method section; the weighted
        mean is its code's. The text's unnormalised weights with a batch mean would switch DIST off.
    """
    if teacher_logits.shape != dist_logits.shape:
        shapes = f"{tuple(teacher_logits.shape)} and {tuple(dist_logits.shape)}"
        raise ValueError(f"teacher_logits: expected the shape of dist_logits, got {shapes}")
    cls = cross_entropy(cls_logits, target)
    dist = cross_entropy(dist_logits, teacher_logits.argmax(1), weight)
    return {"loss": (1 - alpha) * cls + alpha * dist, "cls": cls, "dist": dist}


def decide_ce(
    logits: Tensor,
    train_prior: Values,
    test_prior: Values,
    bias: Values | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Scores whose argmax is the Bayes rule under the test prior, for a softmax-trained head.

        s_c = log eta_c - log pi_s,c + log pi_t,c,   eta = softmax(z + bias), smoothing undone

    Args:
        logits: (B, C), raw.
        train_prior: (C,).
        test_prior: (C,); zeros rule classes out.
        bias: exactly what was added to the logits in training (Bal-CE: tau * logit_bias_ce(...)); None:
            nothing.
        smoothing: label smoothing e of the training targets; its floor e / C, divided by a small prior,
            would win.

    Returns:
        (B, C) scores, log-probabilities up to a constant of each row.
    """
    log_q = F.log_softmax(_shifted(logits, bias, name="bias"), 1)
    return _to_test_prior(log_q, train_prior, test_prior, smoothing)


def decide_bce(
    logits: Tensor,
    train_prior: Values,
    test_prior: Values,
    bias: Values | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """`decide_ce` for a head trained with binary cross-entropy: eta = sigma(z + bias), smoothing undone.

    The optimum of Bal-BCE is logit(eta_c) - B_c, so raw logits rank classes by eta (1 - pi) / ((1 - eta) pi),
    the balanced Bayes rule by eta / pi: for C > 2 not always the same order. Adding the training bias B
    back gives eta, hence the rule for any test prior, without retraining.
    """
    log_q = F.logsigmoid(_shifted(logits, bias, name="bias"))
    return _to_test_prior(log_q, train_prior, test_prior, smoothing)


def _to_test_prior(log_q: Tensor, train_prior: Values, test_prior: Values, smoothing: float) -> Tensor:
    """log q of a head trained on smoothed targets -> (B, C) scores under the test prior."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected 0 <= smoothing < 1, got {smoothing}")
    log_train = _per_class(train_prior, log_q, "train_prior", check_prior).log()
    log_test = _per_class(test_prior, log_q, "test_prior", partial(check_prior, zero_allowed=True)).log()
    if smoothing > 0:
        eta = (log_q.exp() - smoothing / log_q.shape[1]) / (1 - smoothing)
        # Below the floor no evidence is left: such classes come last, by q alone, not divided by the prior
        spent = log_q + log_train - 69.0  # e^-69 = 1e-30
        log_q = torch.where(eta > 0, eta.clamp_min(torch.finfo(eta.dtype).tiny).log(), spent)
    return log_q - log_train + log_test


def _check_logits(logits: Tensor) -> Tensor:
    """(B, C) floating logits, in float32 at least."""
    if logits.ndim != 2 or not logits.is_floating_point() or not logits.numel():
        raise ValueError(f"logits: expected floating (B, C), got {logits.dtype} {tuple(logits.shape)}")
    return _lifted(logits)


def _check_hard(target: Tensor, shape: torch.Size, loss: str) -> None:
    if target.is_floating_point():
        raise ValueError(f"target: {loss} takes (B,) int64 labels, no soft ones; turn mixup and smoothing off")
    if target.dtype != torch.int64 or target.shape != shape or target.ndim != 1:
        wanted = f"int64 of shape {tuple(shape[:1])}"
        raise ValueError(f"target: expected {wanted}, got {target.dtype} {tuple(target.shape)}")


def _prepare(logits: Tensor, target: Tensor, hard: str = "") -> tuple[Tensor, Tensor]:
    """Checks shapes and dtypes, never values; lifts half precision; soft targets take the logits' dtype.

    `hard` names a loss that refuses soft targets.
    """
    logits = _check_logits(logits)
    if hard or not target.is_floating_point():
        _check_hard(target, logits.shape[:1], hard)
        return logits, target
    if target.shape != logits.shape:
        wanted, got = tuple(logits.shape), tuple(target.shape)
        raise ValueError(f"target: floating targets are soft and need shape {wanted}, got {got}")
    return logits, target.to(logits.dtype)


def _dense(target: Tensor, logits: Tensor) -> Tensor:
    """Hard labels as one-hot rows in the logits' dtype; soft targets as they are."""
    return target if target.ndim == 2 else torch.zeros_like(logits).scatter_(1, target[:, None], 1.0)


def _shifted(logits: Tensor, bias: Values | None, tau: float = 1.0, name: str = "prior") -> Tensor:
    """logits + tau * bias, in float32 at least; `name` is the argument that the bias came from."""
    logits = _check_logits(logits)
    return logits if bias is None else logits + tau * _per_class(bias, logits, name)


def _per_class(values: Values, like: Tensor, name: str, check: Callable | None = None) -> Tensor:
    """`values` as (C,) in the dtype and on the device of `like` (..., C)."""
    values = _vector(values, name, check)
    if len(values) != like.shape[-1]:
        raise ValueError(f"{name}: expected {like.shape[-1]} values, one a class, got {len(values)}")
    return values.to(like.dtype).to(like.device)


def _vector(values: Values, name: str, check: Callable | None = None) -> Tensor:
    """A tensor as it is, a list through `check`: its values are on the host, so looking costs no waiting."""
    if not isinstance(values, Tensor):
        values = check(values, name) if check else torch.tensor(values, dtype=torch.get_default_dtype())
    if values.ndim != 1:
        raise ValueError(f"{name}: expected shape (C,), got {tuple(values.shape)}")
    return _lifted(values)


def _lifted(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
