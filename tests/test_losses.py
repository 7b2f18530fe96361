"""Every loss against a second implementation in plain Python, its gradient, limits and extremes; every
decision rule against the Bayes rule on problems whose posterior is known."""

import math
from functools import partial

from ltvit_lib import longtail, losses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

modest = settings(max_examples=25, derandomize=True, deadline=None)

COUNTS = [40, 11, 3, 1]
PRIOR = [n / 55 for n in COUNTS]
C = len(COUNTS)
TEST_PRIOR = [0.1, 0.2, 0.3, 0.4]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# --- the second implementation: lists of floats, one formula a function ----------------------------


def log_softmax(z):
    top = max(z)
    total = math.log(sum(math.exp(v - top) for v in z)) + top
    return [v - total for v in z]


def log_sigmoid(v):
    return -math.log1p(math.exp(-v)) if v > 0 else v - math.log1p(math.exp(v))


def onehot(y, classes):
    return [float(c == y) for c in range(classes)]


def rows_of(target, classes):
    return [onehot(t, classes) if isinstance(t, int) else t for t in target]


def slow_ce(z, target, weight=None, smoothing=0.0, mean="weighted"):
    classes = len(z[0])
    weight = weight or [1.0] * classes
    total = norm = 0.0
    for row, t in zip(z, rows_of(target, classes), strict=True):
        logp = log_softmax(row)
        for c in range(classes):
            total -= weight[c] * ((1 - smoothing) * t[c] + smoothing / classes) * logp[c]
            norm += weight[c] * t[c]
    return total / (norm if mean == "weighted" else len(z))


def slow_bce(z, target, lam=1.0):
    total = 0.0
    for row, t in zip(z, rows_of(target, len(z[0])), strict=True):
        for v, y in zip(row, t, strict=True):
            total -= y * log_sigmoid(v) + (1 - y) / lam * log_sigmoid(-lam * v)
    return total / len(z)


def shift(z, bias, tau=1.0):
    return [[v + tau * b for v, b in zip(row, bias, strict=True)] for row in z]


def bias_ce(prior, test=None):
    test = test or [1.0] * len(prior)
    return [math.log(p) - math.log(q) for p, q in zip(prior, test, strict=True)]


def bias_bce(prior, test=None):
    test = test or [0.5] * len(prior)  # log-odds 0
    return [math.log(p / (1 - p)) - math.log(q / (1 - q)) for p, q in zip(prior, test, strict=True)]


def slow_balanced_ce(z, y, prior, tau=1.0, test_prior=None):
    return slow_ce(shift(z, bias_ce(prior, test_prior), tau), y)


def slow_balanced_bce(z, y, prior, tau=1.0, test_prior=None):
    return slow_bce(shift(z, bias_bce(prior, test_prior), tau), y)


def slow_nt_bce(z, y, lam, prior=None):
    return slow_bce(shift(z, bias_bce(prior)) if prior else z, y, lam)


def slow_focal(z, y, gamma):
    logp = [log_softmax(row)[t] for row, t in zip(z, y, strict=True)]
    return sum(-((1 - math.exp(v)) ** gamma) * v for v in logp) / len(z)


def slow_weights(counts, beta):
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    return [w * len(raw) / sum(raw) for w in raw]


def slow_class_balanced(z, y, counts, beta=0.9999, kind="softmax", gamma=1.0):
    weight, total = slow_weights(counts, beta), 0.0
    for row, t in zip(z, y, strict=True):
        if kind == "softmax":
            total -= weight[t] * log_softmax(row)[t]
            continue
        for c, v in enumerate(row):
            right = 1 / (1 + math.exp(-v if c == t else v))
            total -= weight[t] * math.log(right) * ((1 - right) ** gamma if kind == "focal" else 1)
    return total / len(z)


def slow_ldam(z, y, counts, max_margin=0.5, scale=30.0, weight=None):
    raw = [n**-0.25 for n in counts]
    margin = [max_margin * m / max(raw) for m in raw]
    moved = [
        [scale * (v - (margin[c] if c == t else 0)) for c, v in enumerate(row)] for row, t in zip(z, y, strict=True)
    ]
    return slow_ce(moved, y, weight)


def slow_lade(z, y, prior, weight=0.1, lam=0.1):
    regulariser = 0.0
    for c, p in enumerate(prior):
        own = [row[c] for row, t in zip(z, y, strict=True) if t == c]
        first = sum(own) / len(own) if own else 0.0
        s = math.log(sum(math.exp(row[c]) / p / len(prior) for row in z) / len(z))
        regulariser -= p * (first - s - lam * s**2)
    return slow_balanced_ce(z, y, prior) + weight * regulariser


def slow_influence_balanced(z, y, features, counts=None, alpha=1000.0):
    total, inverse = 0.0, [1.0] * len(z[0]) if counts is None else [1 / n for n in counts]
    for row, t, h in zip(z, y, features, strict=True):
        logp = log_softmax(row)
        error = sum(abs(math.exp(v) - (c == t)) for c, v in enumerate(logp))
        weight = inverse[t] * len(inverse) / sum(inverse)
        total -= weight * logp[t] * alpha / (error * sum(map(abs, h)) + 1e-3)
    return total / len(z)


def slow_vs(z, y, counts, gamma=0.3, tau=1.0):
    scaled = [[v / (max(counts) / n) ** gamma for v, n in zip(row, counts, strict=True)] for row in z]
    return slow_ce(shift(scaled, [math.log(n / sum(counts)) for n in counts], tau), y)


# --- the cases: name -> (loss, slow, arguments, takes soft targets) --------------------------------

FEATURES = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
WEIGHT = [0.2, 0.5, 1.3, 2.0]

CASES = {
    "ce": (losses.cross_entropy, slow_ce, {}, True),
    "ce_weighted": (losses.cross_entropy, slow_ce, {"weight": WEIGHT}, True),
    "ce_smoothed": (losses.cross_entropy, slow_ce, {"smoothing": 0.1}, True),
    "ce_both": (losses.cross_entropy, slow_ce, {"weight": WEIGHT, "smoothing": 0.2}, True),
    "balanced_ce": (losses.balanced_ce, slow_balanced_ce, {"prior": PRIOR}, True),
    "balanced_ce_tau": (losses.balanced_ce, slow_balanced_ce, {"prior": PRIOR, "tau": 0.7}, True),
    "balanced_ce_test": (
        losses.balanced_ce,
        slow_balanced_ce,
        {"prior": PRIOR, "tau": 1.3, "test_prior": TEST_PRIOR},
        True,
    ),
    "bce": (losses.bce, slow_bce, {}, True),
    "balanced_bce": (losses.balanced_bce, slow_balanced_bce, {"prior": PRIOR}, True),
    "balanced_bce_test": (
        losses.balanced_bce,
        slow_balanced_bce,
        {"prior": PRIOR, "tau": 0.8, "test_prior": TEST_PRIOR},
        True,
    ),
    "nt_bce": (losses.nt_bce, slow_nt_bce, {"lam": 3.0}, True),
    "nt_bce_biased": (losses.nt_bce, slow_nt_bce, {"lam": 0.5, "prior": PRIOR}, True),
    "focal": (losses.focal, slow_focal, {"gamma": 2.0}, False),
    "focal_half": (losses.focal, slow_focal, {"gamma": 0.5}, False),
    "cb_softmax": (losses.class_balanced, slow_class_balanced, {"counts": COUNTS}, False),
    "cb_sigmoid": (
        losses.class_balanced,
        slow_class_balanced,
        {"counts": COUNTS, "kind": "sigmoid", "beta": 0.9},
        False,
    ),
    "cb_focal": (
        losses.class_balanced,
        slow_class_balanced,
        {"counts": COUNTS, "kind": "focal", "gamma": 0.5},
        False,
    ),
    "ldam": (losses.ldam, slow_ldam, {"counts": COUNTS, "scale": 5.0}, False),
    "ldam_drw": (losses.ldam, slow_ldam, {"counts": COUNTS, "max_margin": 0.3, "weight": WEIGHT}, False),
    "lade": (losses.lade, slow_lade, {"prior": PRIOR}, False),
    "lade_inat": (losses.lade, slow_lade, {"prior": PRIOR, "weight": 0.05, "lam": 0.5}, False),
    "ib": (losses.influence_balanced, slow_influence_balanced, {"features": FEATURES}, False),
    "ib_weighted": (
        losses.influence_balanced,
        slow_influence_balanced,
        {"features": FEATURES, "counts": COUNTS},
        False,
    ),
    "vs": (losses.vs, slow_vs, {"counts": COUNTS}, False),
    "vs_cdt": (losses.vs, slow_vs, {"counts": COUNTS, "gamma": 0.2, "tau": 0.0}, False),
}
SOFT = [name for name, case in CASES.items() if case[3]]
HARD = [name for name, case in CASES.items() if not case[3]]
every_case = pytest.mark.parametrize("name", CASES)


def tensors(arguments, dtype=torch.float64):
    return {k: torch.tensor(v, dtype=dtype) if isinstance(v, list) else v for k, v in arguments.items()}


def fast(name, dtype=torch.float64):
    return partial(CASES[name][0], **tensors(CASES[name][2], dtype))


def problem(seed=0, dtype=torch.float64):
    """(6, C) logits, labels with a class missing, soft targets."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(6, C, generator=generator, dtype=torch.float64)
    soft = torch.rand(6, C, generator=generator, dtype=torch.float64).softmax(1)
    return z.to(dtype), torch.tensor([0, 1, 0, 2, 1, 0]), soft.to(dtype)


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_formula(name, seed):
    z, hard, soft = problem(seed)
    loss, slow, arguments, takes_soft = CASES[name]
    assert fast(name)(z, hard).item() == pytest.approx(slow(z.tolist(), hard.tolist(), **arguments), rel=1e-10)
    if takes_soft:
        assert fast(name)(z, soft).item() == pytest.approx(slow(z.tolist(), soft.tolist(), **arguments), rel=1e-10)
        assert torch.allclose(fast(name)(z, F.one_hot(hard, C).double()), fast(name)(z, hard), rtol=1e-12)
    if "features" not in arguments:  # plain lists work too, to single precision
        assert loss(z, hard, **arguments).item() == pytest.approx(fast(name)(z, hard).item(), rel=1e-5)


@modest
@given(st.sampled_from(list(CASES)), st.integers(1, 9), st.integers(2, 12), st.integers(0, 10**6), st.booleans())
def test_agrees_on_any_shape(name, batch, classes, seed, single):
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    hard = torch.randint(classes, (batch,), generator=generator)
    counts = torch.randint(1, 2000, (classes,), generator=generator).tolist()
    prior = [n / sum(counts) for n in counts]
    loss, slow, arguments, _ = CASES[name]
    drawn = {
        "counts": counts,
        "prior": prior,
        "test_prior": list(reversed(prior)),
        "weight": slow_weights(counts, 0.99),
        "features": torch.randn(batch, 3, generator=generator, dtype=torch.float64).tolist(),
    }
    arguments = {k: drawn[k] if isinstance(v, list) else v for k, v in arguments.items()}
    expected = slow(z.tolist(), hard.tolist(), **arguments)
    dtype, tolerance = (torch.float32, 1e-3) if single else (torch.float64, 1e-9)
    value = loss(z.to(dtype), hard, **tensors(arguments, dtype))
    assert value.dtype == dtype and value.shape == ()
    assert value.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@every_case
def test_gradient(name):
    z, hard, soft = problem()
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: fast(name)(v, hard), z)
    if CASES[name][3]:
        assert torch.autograd.gradcheck(lambda v: fast(name)(v, soft), z)


def test_gradient_of_influence_through_the_features():
    z, hard, _ = problem()
    h = double(FEATURES).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: losses.influence_balanced(z, hard, v), h)


@every_case
def test_classes_have_no_order(name):
    z, hard, soft = problem()
    order = torch.tensor([2, 0, 3, 1])
    loss, _, arguments, takes_soft = CASES[name]
    given_ = tensors(arguments)
    moved = {k: v[order] if torch.is_tensor(v) and v.ndim == 1 else v for k, v in given_.items()}
    relabelled = order.argsort()[hard]
    assert torch.allclose(loss(z[:, order], relabelled, **moved), loss(z, hard, **given_), rtol=1e-12)
    if takes_soft:
        assert torch.allclose(loss(z[:, order], soft[:, order], **moved), loss(z, soft, **given_), rtol=1e-12)


@pytest.mark.parametrize("name", ["ce", "ce_both", "balanced_ce_test", "focal", "cb_softmax", "ldam", "ib"])
def test_softmax_losses_ignore_a_shift(name):
    z, hard, _ = problem()
    assert torch.allclose(fast(name)(z + 7.5, hard), fast(name)(z, hard), rtol=1e-10)


def test_limits():
    z, y, soft = problem()
    prior, counts, uniform = double(PRIOR), double(COUNTS), torch.full((C,), 1 / C, dtype=torch.float64)
    same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    ce, bce = losses.cross_entropy(z, soft), losses.bce(z, soft)
    same(losses.balanced_ce(z, soft, prior, tau=0), ce)
    same(losses.balanced_ce(z, soft, uniform), ce)
    same(losses.balanced_ce(z, soft, prior, test_prior=prior), ce)
    same(losses.balanced_ce(z, soft, prior, test_prior=uniform), losses.balanced_ce(z, soft, prior))
    same(losses.balanced_bce(z, soft, prior, tau=0), bce)
    same(losses.balanced_bce(z, soft, prior, test_prior=prior), bce)
    same(losses.balanced_bce(z, soft, uniform, test_prior=uniform), bce)
    same(losses.nt_bce(z, soft, lam=1), bce)
    same(losses.nt_bce(z, soft, lam=1, prior=prior), losses.balanced_bce(z, soft, prior))
    ce, bce = losses.cross_entropy(z, y), losses.bce(z, y)
    same(losses.cross_entropy(z, y, weight=torch.ones(C)), ce)
    same(losses.focal(z, y, gamma=0), ce)
    same(losses.class_balanced(z, y, counts, beta=0), ce)
    same(losses.class_balanced(z, y, torch.full((C,), 9)), ce)
    same(losses.class_balanced(z, y, counts, beta=0, kind="sigmoid"), bce)
    focal, sigmoid = (losses.class_balanced(z, y, counts, kind=k, gamma=0) for k in ("focal", "sigmoid"))
    same(focal, sigmoid)
    same(losses.ldam(z, y, counts, max_margin=0, scale=1), ce)
    same(losses.lade(z, y, prior, weight=0), losses.balanced_ce(z, y, prior))
    same(losses.vs(z, y, counts, gamma=0), losses.balanced_ce(z, y, prior))
    same(losses.vs(z, y, counts, gamma=0, tau=0), ce)


def test_equation_10():
    """A uniform test prior adds log(C - 1) to Theorem 2, and nothing that softmax sees to Theorem 1."""
    prior, uniform = double(PRIOR), torch.full((C,), 1 / C, dtype=torch.float64)
    extra = losses.logit_bias_bce(prior, uniform) - losses.logit_bias_bce(prior)
    assert torch.allclose(extra, torch.full_like(extra, math.log(C - 1)))
    assert torch.allclose(losses.logit_bias_bce(prior), torch.logit(prior))
    assert torch.allclose(losses.logit_bias_ce(prior, uniform) - losses.logit_bias_ce(prior), double([math.log(C)] * C))


@pytest.mark.parametrize("classes", [10, 1000])
def test_loss_of_a_zero_head(classes):
    """Without log(C - 1) a zero head predicts each class's prior; with it, 1/2 for a balanced class."""
    prior = torch.full((classes,), 1 / classes, dtype=torch.float64)
    z, y = torch.zeros(2, classes, dtype=torch.float64), torch.tensor([0, 1])
    entropy = -math.log(1 / classes) - (classes - 1) * math.log(1 - 1 / classes)
    assert losses.balanced_bce(z, y, prior).item() == pytest.approx(entropy)
    assert losses.balanced_bce(z, y, prior, test_prior=prior).item() == pytest.approx(classes * math.log(2))


def test_gradient_of_balanced_losses_in_closed_form():
    """(sigma(z + B) - t) / B images, and softmax - 1 for the true class (LiVT App. B prints no - 1)."""
    z, y, soft = problem()
    z.requires_grad_()
    (grad,) = torch.autograd.grad(losses.balanced_bce(z, soft, double(PRIOR)), z)
    assert torch.allclose(grad, (torch.sigmoid(z + torch.logit(double(PRIOR))) - soft) / 6)
    (grad,) = torch.autograd.grad(losses.balanced_ce(z, y, double(PRIOR)), z)
    assert torch.allclose(grad, ((z + double(PRIOR).log()).softmax(1) - F.one_hot(y, C)) / 6)


# --- extremes, precision, errors -------------------------------------------------------------------

TINY_PRIOR = [0.9, 0.1 - 2e-6, 1e-6, 1e-6]
TINY_COUNTS = [900_000, 99_998, 1, 1]


def extreme_logits(dtype):
    rows = [[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, -1e4], [0, 0, 0, 0], [-1e4] * 4, [1e4] * 4, [-1e4, 0, 1e4, 1]]
    return torch.tensor(rows, dtype=dtype, requires_grad=True)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extremes_stay_finite(name, dtype):
    loss, _, arguments, takes_soft = CASES[name]
    swapped = dict(arguments)
    for key, value in (("prior", TINY_PRIOR), ("counts", TINY_COUNTS), ("features", [[0.0] * 5] * 6)):
        swapped.update({key: value} if key in arguments else {})
    targets = [torch.tensor([0, 1, 2, 3, 0, 3]), torch.tensor([1, 0, 3, 2, 1, 0])]
    if takes_soft:
        targets.append(torch.full((6, C), 1 / C, dtype=dtype))
    for target in targets:
        z = extreme_logits(dtype)
        value = loss(z, target, **tensors(swapped, torch.float32))
        (grad,) = torch.autograd.grad(value, z)
        assert value.isfinite() and grad.isfinite().all()


@every_case
def test_under_bf16_autocast(name):
    """A head's bfloat16 logits give a float32 loss, that of the same numbers in float32."""
    z, hard, soft = problem(dtype=torch.float32)
    low = z.bfloat16()
    for target in (hard, soft) if CASES[name][3] else (hard,):
        reference = fast(name, torch.float32)(low.float(), target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = fast(name, torch.float32)(low, target)
        assert value.dtype == torch.float32
        assert torch.allclose(value, reference, rtol=1e-5)
        halves = fast(name, torch.float32)(z.half(), target)
        assert halves.dtype == torch.float32 and torch.allclose(halves, reference, rtol=0.05)


@every_case
def test_never_looks_at_values(name):
    """Meta tensors have no values: reading one, which on a GPU would wait for it, raises here."""
    z, hard, soft = (t.to("meta") for t in problem())
    for target in (hard, soft) if CASES[name][3] else (hard,):
        arguments = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in tensors(CASES[name][2]).items()}
        value = CASES[name][0](z, target, **arguments)
        assert value.device.type == "meta" and value.shape == ()


def test_the_rest_never_looks_at_values_either():
    z, hard, _ = (t.to("meta") for t in problem())
    prior, test, counts = (double(v).to("meta") for v in (PRIOR, TEST_PRIOR, COUNTS))
    assert losses.mislas_targets(hard, counts).is_meta
    assert losses.distillation(z, z, hard, z, prior)["loss"].is_meta
    for decide in (losses.decide_ce, losses.decide_bce):
        assert decide(z, prior, test, prior, 0.1).is_meta


@pytest.mark.parametrize("name", HARD)
def test_soft_targets_are_refused(name):
    z, _, soft = problem()
    with pytest.raises(ValueError, match="target: .* labels"):
        fast(name)(z, soft)


@every_case
def test_wrong_shapes_are_refused(name):
    z, hard, soft = problem()
    loss = fast(name)
    with pytest.raises(ValueError, match="logits"):
        loss(z[0], hard)
    with pytest.raises(ValueError, match="logits"):
        loss(z[:0], hard[:0])
    with pytest.raises(ValueError, match="logits"):
        loss(z.long(), hard)
    for wrong in (hard[:4], hard[:, None], hard.int(), soft[:, :3]):
        with pytest.raises(ValueError, match="target"):
            loss(z, wrong)
    for key, value in tensors(CASES[name][2]).items():
        if torch.is_tensor(value):
            with pytest.raises(ValueError, match=key):
                CASES[name][0](z, hard, **{**tensors(CASES[name][2]), key: value[:3]})


def test_wrong_values_are_refused():
    z, y, _ = problem()
    for wrong in ([0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, math.nan, 0.1]):
        for call in (losses.balanced_ce, losses.balanced_bce, losses.lade):
            with pytest.raises(ValueError, match="prior"):
                call(z, y, wrong)
    with pytest.raises(ValueError, match="counts: class 1"):
        losses.ldam(z, y, [5, 0, 2, 1])
    with pytest.raises(ValueError, match="kind"):
        losses.class_balanced(z, y, COUNTS, kind="hinge")
    with pytest.raises(ValueError, match="shape"):
        losses.mislas_targets(y, COUNTS, shape="square")
    with pytest.raises(ValueError, match="gamma"):
        losses.focal(z, y, gamma=-1)
    with pytest.raises(ValueError, match="lam"):
        losses.nt_bce(z, y, lam=0)
    with pytest.raises(ValueError, match="smoothing"):
        losses.decide_ce(z, PRIOR, TEST_PRIOR, smoothing=1.0)
    with pytest.raises(ValueError, match="teacher_logits"):
        losses.distillation(z, z, y, z[:, :3])


def test_inputs_are_left_alone():
    z, y, soft = problem()
    for name, case in CASES.items():
        before = z.clone()
        fast(name)(z, soft if case[3] else y)
        assert torch.equal(z, before)


# --- targets and distillation ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["concave", "linear", "convex"])
def test_mislas_targets(shape):
    y = torch.tensor([0, 3, 1, 2])
    soft = losses.mislas_targets(y, COUNTS, shape)
    for row, t in zip(soft.tolist(), y.tolist(), strict=True):
        x = (COUNTS[t] - 1) / 39
        e = 0.3 * {"concave": math.sin(x * math.pi / 2), "linear": x, "convex": 1 - math.cos(x * math.pi / 2)}[shape]
        assert row == pytest.approx([(1 - e) * (c == t) + e / C for c in range(C)], abs=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    assert soft[0].tolist() == pytest.approx([0.775, 0.075, 0.075, 0.075])  # the head: .3
    assert soft[1].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-7)  # the tail: none
    assert torch.equal(losses.mislas_targets(y, [7] * C, shape), F.one_hot(y, C).float())
    with pytest.raises(ValueError, match="target"):
        losses.mislas_targets(soft, COUNTS, shape)


def test_distillation():
    z, y, soft = problem()
    dist_z, _, _ = problem(7)
    teacher, _, _ = problem(8)
    answers = teacher.argmax(1).tolist()
    for target in (y, soft):
        for weight in (None, WEIGHT):
            parts = losses.distillation(z, dist_z, target, teacher, weight and double(weight), alpha=0.3)
            assert parts["cls"].item() == pytest.approx(slow_ce(z.tolist(), target.tolist()))
            assert parts["dist"].item() == pytest.approx(slow_ce(dist_z.tolist(), answers, weight))
            assert parts["loss"].item() == pytest.approx(0.7 * parts["cls"].item() + 0.3 * parts["dist"].item())
    halves = losses.distillation(z, dist_z, y, teacher)
    assert torch.allclose(halves["loss"], (halves["cls"] + halves["dist"]) / 2)
    heads = torch.cat([z, dist_z]).requires_grad_()
    teacher.requires_grad_()
    losses.distillation(heads[:6], heads[6:], y, teacher, double(WEIGHT))["loss"].backward()
    assert teacher.grad is None and heads.grad.abs().sum() > 0


def test_distillation_weights_cancel_their_scale():
    """DeiT-LT's text and code differ by one constant in the DRW weights, which a weighted mean cancels."""
    z, y, _ = problem()
    weight = double(WEIGHT)
    once, scaled = (losses.distillation(z, z, y, z.flip(0), w)["loss"] for w in (weight, weight / 199))
    assert torch.allclose(once, scaled)


# --- decisions -------------------------------------------------------------------------------------


def world(seed, points=40, classes=6):
    """A discrete problem: eta = P(y | x) (points, C) in training, its prior, and the joint P(x, y)."""
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(points, classes, generator=generator, dtype=torch.float64) ** 4
    mass = mass * torch.logspace(0, -2, classes, dtype=torch.float64)
    joint = mass / mass.sum()  # P(x, y)
    return joint / joint.sum(1, keepdim=True), joint.sum(0), joint


def bayes(joint, prior, test):
    """Brute force: the class that maximises P_t(x, y) = P(x | y) pi_t(y), point by point."""
    best = []
    for row in joint.tolist():
        scores = [p / s * t for p, s, t in zip(row, prior.tolist(), test.tolist(), strict=True)]
        best.append(scores.index(max(scores)))
    return torch.tensor(best)


@modest
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([0.0, 0.1, 0.3]), st.booleans(), st.booleans())
def test_decisions_are_bayes(seed, classes, smoothing, biased, uniform):
    """The optima of (Bal-)CE and (Bal-)BCE are known: log eta - B and logit(eta) - B, eta smoothed or not."""
    eta, prior, joint = world(seed, classes=classes)
    generator = torch.Generator().manual_seed(seed + 1)
    test = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.05
    test = torch.full_like(test, 1 / classes) if uniform else test / test.sum()
    q = (1 - smoothing) * eta + smoothing / classes
    expected = bayes(joint, prior, test)
    tau = 0.8
    bias = tau * losses.logit_bias_ce(prior, test) if biased else torch.zeros(classes).double()
    scores = losses.decide_ce(q.log() - bias, prior, test, bias if biased else None, smoothing)
    assert torch.equal(scores.argmax(1), expected)
    assert torch.allclose(scores.softmax(1), F.normalize(joint / prior * test, p=1, dim=1), atol=1e-9)
    bias = tau * losses.logit_bias_bce(prior, test) if biased else torch.zeros(classes).double()
    scores = losses.decide_bce(torch.logit(q) - bias, prior, test, bias if biased else None, smoothing)
    assert torch.equal(scores.argmax(1), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_decisions_from_a_fitted_table(kind, smoothing):
    """The optimum is found by training, not assumed: a row of logits a point, its posterior as target."""
    eta, prior, joint = world(3, points=25, classes=5)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    if kind == "ce":
        loss, bias, decide = losses.balanced_ce, losses.logit_bias_ce(prior), losses.decide_ce
    else:
        loss, bias, decide = losses.balanced_bce, losses.logit_bias_bce(prior), losses.decide_bce
    target = (1 - smoothing) * eta + smoothing / 5
    z = torch.zeros(25, 5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [z],
        max_iter=2000,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        value = loss(z, target, prior)
        value.backward()
        return value

    optimiser.step(closure)
    z = z.detach()
    q = (z + bias).softmax(1) if kind == "ce" else torch.sigmoid(z + bias)
    assert torch.allclose(q, target, atol=1e-5)
    expected = bayes(joint, prior, uniform)
    assert torch.equal(decide(z, prior, uniform, bias, smoothing).argmax(1), expected)
    if kind == "bce":
        assert not torch.equal(z.argmax(1), expected)  # the raw argmax is not Bayes here


def test_raw_balanced_bce_is_not_bayes():
    """pi = (.5, .25, .25), eta = (.60, .31, .09): ratios 1.20, 1.24, .36; odds ratios 1.500, 1.348, .297."""
    prior, eta = double([0.5, 0.25, 0.25]), double([[0.60, 0.31, 0.09]])
    uniform = double([1 / 3] * 3)
    bias = losses.logit_bias_bce(prior)
    z = torch.logit(eta) - bias
    assert z.exp()[0].tolist() == pytest.approx([1.5, 1.348, 0.297], abs=1e-3)
    assert z.argmax() == 0
    scores = losses.decide_bce(z, prior, uniform, bias)
    assert scores.argmax() == 1
    assert (scores - uniform.log()).exp()[0].tolist() == pytest.approx([1.2, 1.24, 0.36])
    assert losses.decide_bce(z, prior, prior, bias).argmax() == 0  # under the training prior, the head class


@modest
@given(st.integers(0, 10**6), st.integers(3, 12))
def test_where_raw_balanced_bce_errs_it_leans_to_the_head(seed, classes):
    eta, prior, joint = world(seed, points=200, classes=classes)
    raw = (torch.logit(eta) - losses.logit_bias_bce(prior)).argmax(1)
    best = bayes(joint, prior, torch.full_like(prior, 1 / classes))
    wrong = raw != best
    assert (prior[raw[wrong]] >= prior[best[wrong]]).all()
    eta, prior, joint = world(seed, points=200, classes=2)  # two classes: the same order
    raw = (torch.logit(eta) - losses.logit_bias_bce(prior)).argmax(1)
    assert torch.equal(raw, bayes(joint, prior, torch.full_like(prior, 0.5)))


def test_smoothing_sends_a_certain_head_image_to_the_tail_unless_undone():
    """It does when rho > 1 + (1 - e) C / e = 91, for e = .1 and ten classes."""
    prior = longtail.prior(longtail.exponential_counts(5000, 10, 100)).double()
    uniform = torch.full((10,), 0.1, dtype=torch.float64)
    q = 0.9 * F.one_hot(torch.tensor([0]), 10).double() + 0.01
    for decide, bias, z in (
        (losses.decide_ce, losses.logit_bias_ce(prior), q.log()),
        (losses.decide_bce, losses.logit_bias_bce(prior), torch.logit(q)),
    ):
        assert decide(z - bias, prior, uniform, bias).argmax() == 9
        assert decide(z - bias, prior, uniform, bias, smoothing=0.1).argmax() == 0
        milder = longtail.prior(longtail.exponential_counts(5000, 10, 90)).double()
        assert decide(z, milder, uniform).argmax() == 0


def test_no_evidence_above_the_floor():
    """Where every class lies below the floor e / C, the least unlikely wins, not the rarest."""
    prior, uniform = longtail.prior([1000, 100, 10, 1]), torch.full((4,), 0.25)
    z = torch.tensor([[-9.0, -8.0, -10.0, -11.0]])
    assert losses.decide_bce(z, prior, uniform, smoothing=0.1).argmax() == 1
    many = longtail.prior(longtail.exponential_counts(1280, 1000, 256))  # as ImageNet-LT's, where e / C is small
    z = torch.logit(torch.linspace(1e-5, 1e-9, 1000, dtype=torch.float64))[None].float()
    order = losses.decide_bce(z, many, torch.full((1000,), 1e-3), smoothing=0.1).argsort(1, descending=True)
    assert torch.equal(order[0], torch.arange(1000))


@pytest.mark.parametrize("decide", [losses.decide_ce, losses.decide_bce])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decisions_stay_finite(decide, smoothing, dtype):
    z = extreme_logits(dtype)
    bias = losses.logit_bias_bce(torch.tensor(TINY_PRIOR))
    scores = decide(z, torch.tensor(TINY_PRIOR), torch.tensor(TEST_PRIOR), bias, smoothing)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (grad,) = torch.autograd.grad(scores.sum(), z)
    assert scores.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("decide", [losses.decide_ce, losses.decide_bce])
def test_a_class_ruled_out_never_wins(decide):
    z, _, _ = problem()
    scores = decide(z, PRIOR, [0.5, 0.0, 0.5, 0.0])
    assert set(scores.argmax(1).tolist()) <= {0, 2} and not scores.isnan().any()
    assert torch.equal(scores.argmax(1), decide(z, double(PRIOR), double([0.5, 0.0, 0.5, 0.0])).argmax(1))
    for wrong in ({"train_prior": PRIOR[:3]}, {"test_prior": [0.5, 0.5]}, {"bias": [0.0]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            decide(z, **{"train_prior": PRIOR, "test_prior": TEST_PRIOR, **wrong})
