"""Feature rank on matrices whose spectrum is known, its centring conventions, and features block by block."""

from ltvit_lib import attention, models, rank

import pytest
import torch
from conftest import refused
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor


def _with_spectrum(rng, values: list[float], rows: int = 40) -> Tensor:
    """A (rows, len(values)) float64 matrix with these singular values and columns that sum to zero."""
    noise = torch.randn(rows, len(values), generator=rng, dtype=torch.float64)
    left = torch.linalg.qr(noise - noise.mean(0))[0]
    right = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def test_spectrum_is_the_one_put_in_and_ignores_the_mean(rng):
    values = [9.0, 5.0, 2.0, 0.5]
    features = _with_spectrum(rng, values)
    assert rank.spectrum(features).tolist() == pytest.approx(values)
    assert rank.spectrum(features + 7).tolist() == pytest.approx(values)
    assert len(rank.spectrum(features[:3])) == 3


@pytest.mark.parametrize("centre", rank.CENTRES)
def test_rank_of_a_known_spectrum(rng, centre):
    """Squares 90, 9, .9, .1: what is left after 0, 1, 2, 3, 4 directions is 1, .1, .01, .001 and nothing."""
    features = _with_spectrum(rng, [90**0.5, 3, 0.9**0.5, 0.1**0.5])
    error = rank.reconstruction_error(features, features, centre)
    assert error.tolist() == pytest.approx([1, 0.1, 0.01, 0.001, 0], abs=1e-12)
    for tolerance, k in ((0.11, 1), (0.09, 2), (0.0101, 2), (0.0099, 3), (0.0009, 4)):
        assert rank.feature_rank(features, features, tolerance, centre) == k


def test_exact_low_rank_and_white_features(rng):
    low = torch.randn(200, 3, generator=rng) @ torch.randn(3, 32, generator=rng)
    assert rank.feature_rank(low, low[:20], tolerance=1e-9) == 3
    white = torch.linalg.qr(torch.randn(200, 32, generator=rng))[0]
    assert rank.feature_rank(white, white, centre="none") == 32  # 31 leave 1 / 32, more than 1 %


def test_the_tail_counts_in_the_directions_of_all_classes():
    """The tail lives in the 3rd strongest direction of all features, so it needs 3 of them, though it is of rank 1."""
    every = torch.diag(torch.tensor([9.0, 5.0, 2.0, 1.0])).repeat(2, 1)
    every[4:] *= -1
    tail = torch.tensor([[0, 0, 1.0, 0], [0, 0, -3.0, 0]])
    for centre in rank.CENTRES:
        assert rank.feature_rank(every, tail, centre=centre) == 3
        assert rank.feature_rank(tail, tail, centre=centre) == 1


def test_the_centring_conventions_differ_as_they_should():
    """All features vary along x, then y, and sit at z = 10. The tail sits at x = 5 and varies along y only."""
    y = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    tail = torch.stack([torch.full((4,), 5.0), 0.2 * y, torch.full((4,), 10.0)], 1)
    head = torch.stack([torch.full((4,), -5.0), 2 * y, torch.full((4,), 10.0)], 1)
    every = torch.cat([head, tail])
    ranks = {centre: rank.feature_rank(every, tail, centre=centre) for centre in ("all", "own", "none")}
    assert ranks == {"all": 1, "own": 2, "none": 2}  # x alone; y behind x; z, then x
    with pytest.raises(ValueError, match="miss 80.0% of it"):  # z, where the tail sits, is no direction: 100 of 125
        rank.feature_rank(every, tail, centre="literal")
    tilted = every + 0.1 * torch.tensor([[0, 0, 1.0], [0, 0, 1], [0, 0, -1], [0, 0, -1]]).repeat(2, 1)
    assert rank.feature_rank(tilted, tilted[4:], centre="literal") == 3, "x, y and then z"
    shifted = every + 3, tail + 3
    assert rank.feature_rank(*shifted, centre="all") == 1 and rank.feature_rank(*shifted, centre="own") == 2


@pytest.mark.parametrize("centre", rank.CENTRES)
def test_against_the_papers_formula_step_by_step(rng, centre):
    """Suppl. G as written: project, reconstruct, compare; k by k."""
    every = torch.randn(60, 12, generator=rng) @ torch.randn(12, 12, generator=rng) + 2
    tail = every[40:] * 0.7 + 1
    f_all = every - (every.mean(0) if centre != "none" else 0)
    f_min = tail - {"literal": 0, "all": every.mean(0), "own": tail.mean(0), "none": 0}[centre]
    right = torch.linalg.svd(f_all)[2].T
    left = [((f_min - f_min @ right[:, :k] @ right[:, :k].T).norm() ** 2 / f_min.norm() ** 2) for k in range(13)]
    torch.testing.assert_close(
        rank.reconstruction_error(every, tail, centre).float(), torch.stack(left), atol=1e-5, rtol=0
    )
    assert rank.feature_rank(every, tail, centre=centre) == next(k for k in range(13) if left[k] <= 0.01)


def test_rank_ignores_rotation_scale_and_order(rng):
    every = torch.randn(80, 10, generator=rng) * torch.tensor([2.0**-i for i in range(10)])
    turn = torch.linalg.qr(torch.randn(10, 10, generator=rng))[0]
    k = rank.feature_rank(every, every[:20])
    assert 1 < k < 10
    assert rank.feature_rank(-5 * (every @ turn).flip(0), -5 * every[:20] @ turn) == k


# --- features of a model ---------------------------------------------------------------------------------------


@pytest.fixture
def distilled() -> VisionTransformerDistilled:
    torch.manual_seed(0)
    shape = dict(img_size=16, patch_size=4, embed_dim=48, depth=3, num_heads=3, num_classes=5)
    return VisionTransformerDistilled(**shape, drop_path_rate=0.3)


def test_block_features_are_the_block_outputs(distilled, rng):
    images = torch.randn(5, 3, 16, 16, generator=rng)
    found = rank.block_features(distilled, images, batch=2)
    assert distilled.training and not any(m._forward_hooks for m in distilled.modules())
    distilled.eval()
    with torch.no_grad():
        pairs = distilled.forward_intermediates(images, return_prefix_tokens=True, output_fmt="NLC")[1]
        torch.testing.assert_close(found, torch.stack([prefix for _, prefix in pairs]))
        both = models.head_logits(distilled, images)
    last = distilled.norm(found[-1])  # the last block before the final norm: with it, the heads follow
    torch.testing.assert_close(distilled.head(last[:, 0]), both[0])
    torch.testing.assert_close(distilled.head_dist(last[:, 1]), both[1])
    assert torch.allclose(found, rank.block_features(distilled, iter(images.split(3))), atol=1e-5)


def test_only_special_tokens_are_kept(distilled):
    """Nothing of the patches stays alive in the result: its storage is as large as its numbers."""
    found = rank.block_features(distilled, torch.randn(6, 3, 16, 16), batch=4)
    assert found.shape == (3, 6, 2, 48) and found.untyped_storage().nbytes() == found.numel() * 4


def test_bad_input_is_one_clear_sentence(rng, distilled, tiny_vit):
    every = torch.randn(30, 8, generator=rng)
    tail, bad = every[:5], every.clone()
    bad[0, 0] = torch.nan
    for wrong in (every[:0], every[0], bad, every.long(), every[:, :0]):
        refused(lambda wrong=wrong: rank.feature_rank(wrong, tail), "^all_features: ")
        refused(lambda wrong=wrong: rank.feature_rank(every, wrong), "^tail_features: ")
        refused(lambda wrong=wrong: rank.spectrum(wrong), "^features: ")
    refused(lambda: rank.feature_rank(every, tail[:, :7]), "widths differ")
    refused(lambda: rank.feature_rank(every, tail, centre="both"), "centre: expected one of literal, all, own, none")
    for tolerance in (0, 1, -0.1, float("nan")):
        refused(lambda tolerance=tolerance: rank.feature_rank(every, tail, tolerance), "^tolerance: ")
    refused(lambda: rank.feature_rank(every, every[:1], centre="own"), "^tail_features: all zero after centring")
    refused(lambda: rank.feature_rank(every * 0 + 1, tail * 0 + 1), "^tail_features: all zero after centring")
    flat = every.clone()
    flat[:, 4:] = 0  # rank-deficient, and the tail lies outside
    refused(lambda: rank.feature_rank(flat, tail), "^tail_features: all 4 directions", "must contain the tail")
    refused(lambda: rank.feature_rank(every[:3], tail), "^tail_features: all 2 directions")
    for model in (models.resnet_cifar(8, 5), torch.nn.Linear(3, 5)):
        refused(lambda model=model: rank.block_features(model, torch.zeros(1, 3, 16, 16)), "^model: ")
    refused(lambda: rank.block_features(distilled, torch.zeros(0, 3, 16, 16)), "^images: ")
    assert rank.block_features(tiny_vit, torch.zeros(1, 3, 16, 16)).shape == (2, 1, 1, 48)
    assert attention.capture(tiny_vit, torch.zeros(1, 3, 16, 16)).shape[0] == 2
