"""Sharpness-aware ascent: exact on a quadratic, and it leaves no trace on the weights."""

from ltvit_lib.sam import ascended, sharpness, still_statistics, top_eigenvalue

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from torch import nn
from torch.func import functional_call, hessian

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]])


def quadratic(w: torch.Tensor) -> torch.Tensor:
    return 0.5 * w @ A @ w


def test_gradient_on_a_quadratic_is_that_of_the_risen_point():
    w = nn.Parameter(torch.tensor([0.7, -1.3]))
    quadratic(w).backward()
    start, g = w.detach().clone(), w.grad.clone()
    torch.testing.assert_close(g, A @ start)
    with ascended([w], rho=0.3) as norm:
        w.grad = None
        quadratic(w).backward()
    torch.testing.assert_close(norm, g.norm())
    torch.testing.assert_close(w.grad, A @ (start + 0.3 * g / g.norm()))
    assert torch.equal(w, start)


def test_one_norm_over_all_parameters_and_none_for_those_without_a_gradient():
    a, b, idle = (nn.Parameter(torch.tensor([x])) for x in (1.0, 2.0, 5.0))
    (3 * a + 4 * b).sum().backward()  # |g| = 5
    with ascended([a, b, idle], rho=1.0):
        assert [round(p.item(), 5) for p in (a, b, idle)] == [1.6, 2.8, 5.0]
    assert [p.item() for p in (a, b, idle)] == [1.0, 2.0, 5.0]


def test_weights_come_back_bit_for_bit_also_when_the_block_raises(rng):
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 1))
    model(torch.randn(8, 40, generator=rng)).square().sum().backward()
    start = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        with ascended(model.parameters(), rho=1e-3):
            assert not any(torch.equal(p, s) for p, s in zip(model.parameters(), start))
            raise KeyboardInterrupt
    assert all(torch.equal(p, s) for p, s in zip(model.parameters(), start))


def test_rho_zero_is_the_plain_gradient():
    w = nn.Parameter(torch.tensor([0.7, -1.3]))
    quadratic(w).backward()
    plain = w.grad.clone()
    with ascended([w], rho=0.0):
        w.grad = None
        quadratic(w).backward()
    assert torch.equal(w.grad, plain)


def test_a_zero_gradient_moves_nothing():
    w = nn.Parameter(torch.zeros(2))
    quadratic(w).backward()
    with ascended([w], rho=0.5):
        assert torch.equal(w, torch.zeros(2))


def test_keeps_one_copy_of_the_parameters_and_no_more():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model(torch.ones(1, 64)).sum().backward()
    wanted = sum(p.nbytes for p in model.parameters())
    with torch.profiler.profile(profile_memory=True) as profile, ascended(model.parameters(), rho=0.1):
        pass
    allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
    assert wanted <= allocated < 1.1 * wanted  # the copy, and a few scalars


def test_with_a_real_optimiser_the_step_is_taken_from_the_original_weights():
    w = nn.Parameter(torch.tensor([0.7, -1.3]))
    start = w.detach().clone()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01)
    quadratic(w).backward()
    g = A @ start
    with ascended([w], rho=0.5):
        optimizer.zero_grad()
        quadratic(w).backward()
    optimizer.step()
    risen = A @ (start + 0.5 * g / g.norm())
    torch.testing.assert_close(w.detach(), start - 0.1 * (risen + 0.01 * start))  # weight decay outside g


def test_sharpness_of_a_quadratic_in_closed_form():
    w = nn.Parameter(torch.tensor([0.7, -1.3]))
    g = A @ w.detach()
    unit = g / g.norm()
    expected = 0.3 * g.norm() + 0.5 * 0.3**2 * unit @ A @ unit
    assert sharpness(lambda: quadratic(w), [w], rho=0.3) == pytest.approx(expected.item(), rel=1e-5)
    assert w.grad is None


@pytest.mark.parametrize("rho", [-0.1, float("nan")])
def test_a_bad_rho_is_refused(rho):
    w = nn.Parameter(torch.ones(2))
    quadratic(w).backward()
    with pytest.raises(ValueError, match="rho must be 0 or more"), ascended([w], rho):
        pass


def test_without_gradients_it_says_to_call_backward():
    with pytest.raises(ValueError, match="call backward"), ascended([nn.Parameter(torch.ones(2))], 0.1):
        pass


# --- the largest Hessian eigenvalue ----------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum, top", [([7.0, 2.0, 0.5, 0.0], 7.0), ([3.0, 1.0, -5.0, 0.2], -5.0)])
def test_top_eigenvalue_of_a_known_spectrum(rng, spectrum, top):
    """In one parameter or cut into two; the largest in magnitude, with its sign."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng))[0]
    matrix = turn @ torch.diag(torch.tensor(spectrum)) @ turn.T
    w = nn.Parameter(torch.randn(4, generator=rng))
    assert top_eigenvalue(lambda: 0.5 * w @ matrix @ w, [w], tolerance=1e-7) == pytest.approx(top, rel=1e-4)
    a, b = (nn.Parameter(part.clone()) for part in w.detach().split((1, 3)))

    def loss():
        joined = torch.cat([a, b])
        return 0.5 * joined @ matrix @ joined

    assert top_eigenvalue(loss, [a, b], tolerance=1e-7) == pytest.approx(top, rel=1e-4)
    assert top_eigenvalue(lambda: 3 * loss() + a.sum(), [a, b], tolerance=1e-7) == pytest.approx(3 * top, rel=1e-4)
    assert a.grad is None and b.grad is None


def _dense_hessian(model, loss, names):
    """The full Hessian over the named parameters, flattened."""
    fixed = {k: v.detach() for k, v in model.named_parameters()}
    shapes = [fixed[n].shape for n in names]
    start = torch.cat([fixed[n].flatten() for n in names])

    def at(flat):
        parts = flat.split([s.numel() for s in shapes])
        moved = {n: p.view(s) for n, p, s in zip(names, parts, shapes)}
        return loss(lambda x: functional_call(model, fixed | moved, (x,)))

    return hessian(at)(start)


def test_top_eigenvalue_of_a_tiny_network_is_that_of_its_full_hessian(rng):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4, generator=rng).double(), torch.randint(3, (20,), generator=rng)
    values = torch.linalg.eigvalsh(
        _dense_hessian(model, lambda f: F.cross_entropy(f(x), y), [n for n, _ in model.named_parameters()])
    )
    expected = values[values.abs().argmax()].item()
    for seed in (0, 1):  # wherever it starts
        found = top_eigenvalue(lambda: F.cross_entropy(model(x), y), model.parameters(), 1000, 1e-9, seed)
        assert found == pytest.approx(expected, rel=1e-5)
    unused = nn.Parameter(torch.ones(2))
    found = top_eigenvalue(lambda: F.cross_entropy(model(x), y), [unused, *model.parameters()], 1000, 1e-9)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_vit_with_fused_attention_can_be_measured(tiny_vit, rng):
    x, y = torch.randn(6, 3, 16, 16, generator=rng), torch.randint(5, (6,), generator=rng)
    assert tiny_vit.blocks[0].attn.fused_attn
    name = "blocks.0.attn.qkv.bias"
    found = top_eigenvalue(lambda: F.cross_entropy(tiny_vit(x), y), [tiny_vit.get_parameter(name)], 500, 1e-6)
    for block in tiny_vit.blocks:
        block.attn.fused_attn = False
    values = torch.linalg.eigvalsh(_dense_hessian(tiny_vit, lambda f: F.cross_entropy(f(x), y), [name]))
    assert found == pytest.approx(values[values.abs().argmax()].item(), rel=1e-3)


def test_flat_losses_and_unfinished_iterations():
    w = nn.Parameter(torch.tensor([0.7, -1.3]))
    assert top_eigenvalue(lambda: (2 * w).sum(), [w]) == 0
    assert top_eigenvalue(lambda: (w - w.detach()).pow(4).sum(), [w]) == 0
    with pytest.warns(UserWarning, match="iteration 2"):
        found = top_eigenvalue(lambda: quadratic(w), [w], iterations=2, tolerance=0)
    assert 0 < found <= torch.linalg.eigvalsh(A)[-1] * (1 + 1e-6)


def test_top_eigenvalue_refuses_what_has_none():
    w, other = nn.Parameter(torch.tensor([0.7, -1.3])), nn.Parameter(torch.ones(1))
    refused(lambda: top_eigenvalue(lambda: quadratic(w.detach()), [w]), "^loss: ", "gradients on")
    refused(lambda: top_eigenvalue(lambda: quadratic(w), [other]), "^loss: ")
    refused(lambda: top_eigenvalue(lambda: quadratic(w), []), "^loss: ")
    refused(lambda: top_eigenvalue(lambda: quadratic(w) * torch.inf, [w]), "^loss: ", "not finite")
    refused(lambda: top_eigenvalue(lambda: quadratic(w), [w], iterations=0), "^iterations: ")


def test_still_statistics_normalise_by_the_batch_and_remember_nothing():
    layer = torch.nn.BatchNorm1d(3).train()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 5
    expected = layer(x)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with still_statistics(torch.nn.Sequential(layer)):
        torch.testing.assert_close(layer(x), expected)
        layer(x + 100)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer(x)
    assert not torch.equal(layer.running_mean, before["running_mean"]), "it learns again afterwards"
