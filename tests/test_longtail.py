"""Class counts, published subsets, priors, groups and weights: numbers known by hand or from the releases."""

import hashlib

from ltvit_lib import longtail

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

modest = settings(max_examples=40, derandomize=True, deadline=None)

CIFAR10_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize(
    ("n_max", "classes", "rho", "total"),
    [
        (5000, 10, 10, 20431),
        (5000, 10, 20, 17023),
        (5000, 10, 50, 13996),
        (5000, 10, 100, 12406),
        (5000, 10, 200, 11203),
        (500, 100, 10, 19573),
        (500, 100, 20, 15907),
        (500, 100, 50, 12608),
        (500, 100, 100, 10847),
        (500, 100, 200, 9502),
        (120, 10, 40, 347),
    ],
)
def test_totals_are_the_published_ones(n_max, classes, rho, total):
    counts = longtail.exponential_counts(n_max, classes, rho)
    assert sum(counts) == total
    assert counts[0] == n_max and counts[-1] == n_max // rho


def test_counts_are_truncated_not_rounded():
    assert longtail.exponential_counts(5000, 10, 100) == CIFAR10_100  # 2997.4, 1796.9, 1077.2, 645.8, ...
    assert longtail.exponential_counts(7, 3, 1) == [7, 7, 7]
    assert longtail.exponential_counts(7, 1, 10) == [7]


@modest
@given(st.integers(1, 5000), st.integers(1, 200), st.floats(1, 500))
def test_counts_never_rise(n_max, classes, rho):
    if rho > n_max:
        with pytest.raises(ValueError, match="rho|n_max"):
            longtail.exponential_counts(n_max, 2, rho)
        return
    counts = longtail.exponential_counts(n_max, classes, rho)
    assert len(counts) == classes and counts == sorted(counts, reverse=True) and counts[0] == n_max


@pytest.mark.parametrize(
    ("classes", "total", "first", "last", "digest"),
    [
        (10, 12406, 3981, 11628, "a82660e2c77dc4de5c038391144dad4ced629f82a006a3ebdf298b411b56d0d1"),
        (100, 10847, 9071, 29928, "77a06d1b6cd13136574dbc1609852c6211fba3347f25553e2a902bef73200225"),
    ],
)
def test_selection_is_the_released_one(classes, total, first, last, digest):
    """The digest was taken from the selection code of LDAM-DRW, LiVT and DeiT-LT on these labels."""
    before = np.random.get_state()[1].copy()
    labels = (7 * np.arange(50_000) + 3) % classes
    indices = longtail.long_tailed_indices(labels, rho=100)
    assert len(indices) == total and (indices[0], indices[-1]) == (first, last)
    assert hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest() == digest
    assert np.array_equal(indices, longtail.long_tailed_indices(torch.from_numpy(labels), rho=100))
    assert np.array_equal(before, np.random.get_state()[1])  # the global generator is left alone


def test_selection_against_the_recipe_in_words():
    labels = np.random.default_rng(0).integers(0, 4, 300)
    np.random.seed(5)
    expected = []
    for c, n in enumerate(longtail.exponential_counts(40, 4, 8)):
        positions = np.where(labels == c)[0]
        np.random.shuffle(positions)
        expected += positions[:n].tolist()
    assert longtail.long_tailed_indices(labels, 8, seed=5, n_max=40).tolist() == expected


def test_the_smallest_class_sets_the_default_size():
    labels = [0] * 9 + [1] * 6 + [2] * 8
    kept = np.array(labels)[longtail.long_tailed_indices(labels, 3)]
    assert np.bincount(kept).tolist() == longtail.exponential_counts(6, 3, 3)
    with pytest.raises(ValueError, match="n_max: class 1 has 6 images, 7"):
        longtail.long_tailed_indices(labels, 1, n_max=7)


def test_balanced_indices():
    labels = np.random.default_rng(1).integers(0, 5, 500)
    kept = longtail.balanced_indices(labels, 12, seed=3)
    assert np.bincount(labels[kept]).tolist() == [12] * 5 and len(set(kept)) == 60
    assert not np.array_equal(kept, longtail.balanced_indices(labels, 12, seed=4))
    with pytest.raises(ValueError, match="per_class: class"):
        longtail.balanced_indices(labels, 400)
    with pytest.raises(ValueError, match="per_class"):
        longtail.balanced_indices(labels, 0)


@modest
@given(st.lists(st.integers(3, 60), min_size=1, max_size=8), st.floats(0.05, 0.5), st.integers(0, 99))
def test_split_is_a_stratified_partition(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, held = longtail.stratified_split(labels, fraction, 2, seed)
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(len(labels)))
    sizes = np.bincount(labels[held], minlength=len(counts))
    for n, size in zip(counts, sizes, strict=True):
        assert size >= 2 and (size == 2 or abs(size - fraction * n) <= 0.5) and size < n
    again = longtail.stratified_split(labels, fraction, 2, seed)
    assert np.array_equal(held, again[1])


def test_split_by_hand_and_refusal():
    labels = np.repeat([0, 1, 2], [120, 25, 3])
    train, held = longtail.stratified_split(labels)
    assert np.bincount(labels[held]).tolist() == [12, 3, 2]
    assert np.bincount(labels[train]).tolist() == [108, 22, 1]
    with pytest.raises(ValueError, match="class 1 has 2 image"):
        longtail.stratified_split(np.repeat([0, 1], [50, 2]))
    for wrong in ({"fraction": 0.0}, {"fraction": 1.0}, {"at_least": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            longtail.stratified_split(labels, **wrong)


def test_prior():
    assert torch.equal(longtail.prior([6, 3, 1]), torch.tensor([0.6, 0.3, 0.1]))
    assert longtail.prior(torch.tensor([6, 3, 1])).dtype == torch.float32
    assert longtail.check_prior([0.5, 0.5]).tolist() == [0.5, 0.5]
    assert longtail.check_prior([1.0, 0.0], zero_allowed=True).tolist() == [1, 0]
    assert longtail.check_prior(longtail.prior(range(1, 8143))).shape == (8142,)


@pytest.mark.parametrize("counts", [[], [3, 0], [3, -1], [2.5, 1], [[3, 1]], [float("nan"), 1], [0.6, 0.4]])
def test_wrong_counts_are_refused(counts):
    for function in (longtail.prior, longtail.shot_groups, longtail.effective_number_weights):
        with pytest.raises(ValueError, match="counts"):
            function(counts)


@pytest.mark.parametrize("prior", [[], [0.5, 0.6], [1.0, 0.0], [1.2, -0.2], [float("nan"), 1], [[0.5, 0.5]]])
def test_wrong_priors_are_refused(prior):
    with pytest.raises(ValueError, match="prior"):
        longtail.check_prior(prior)
    with pytest.raises(ValueError, match="test_prior: .*longtail.prior"):
        longtail.check_prior(torch.tensor([3, 4]), "test_prior")  # counts in place of frequencies


@pytest.mark.parametrize("labels", [[], [0, 2], [-1, 0], [0.0, 1.0], [[0, 1]], [float("nan")]])
def test_wrong_labels_are_refused(labels):
    for function in (
        lambda t: longtail.long_tailed_indices(t, 2),
        lambda t: longtail.balanced_indices(t, 1),
        longtail.stratified_split,
    ):
        with pytest.raises(ValueError, match="targets"):
            function(labels)


@pytest.mark.parametrize("rho", [0.5, 0, -3, float("nan"), float("inf")])
def test_wrong_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        longtail.exponential_counts(100, 10, rho)
    with pytest.raises(ValueError, match="rho"):
        longtail.long_tailed_indices([0, 1], rho)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        longtail.exponential_counts(100, 0, 10)
    with pytest.raises(ValueError, match="n_max"):
        longtail.exponential_counts(0, 10, 1)
    with pytest.raises(ValueError, match="rho: 11"):
        longtail.exponential_counts(10, 3, 11)


def sizes(groups):
    return [int(mask.sum()) for mask in groups.values()]


@pytest.mark.parametrize(
    ("n_max", "classes", "rho", "expected"),
    [(500, 100, 100, [35, 35, 30]), (500, 100, 50, [41, 41, 18]), (5000, 10, 100, [8, 2, 0])],
)
def test_shot_groups_of_cifar(n_max, classes, rho, expected):
    groups = longtail.shot_groups(longtail.exponential_counts(n_max, classes, rho))
    assert list(groups) == ["many", "medium", "few"] and sizes(groups) == expected


def test_thresholds_belong_to_medium():
    groups = longtail.shot_groups([101, 100, 20, 19])
    assert [g.tolist() for g in groups.values()] == [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, False, True],
    ]
    with pytest.raises(ValueError, match="few"):
        longtail.shot_groups([1, 2], many=5, few=10)


def test_index_groups_of_deit_lt():
    assert sizes(longtail.index_groups(10, (3, 7))) == [3, 4, 3]
    assert sizes(longtail.index_groups(100, (36, 71))) == [36, 35, 29]
    assert sizes(longtail.index_groups(1000, (390, 835))) == [390, 445, 165]
    assert sizes(longtail.index_groups(8142, (842, 4543))) == [842, 3701, 3599]
    groups = longtail.index_groups(3, (1, 2))
    assert torch.stack(list(groups.values())).equal(torch.eye(3, dtype=torch.bool))
    for wrong in ((7, 3), (3, 11), (3,), (-1, 2)):
        with pytest.raises(ValueError, match="boundaries"):
            longtail.index_groups(10, wrong)


def test_drw_weights_of_the_release():
    released = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    weights = longtail.drw_weights(CIFAR10_100, epoch=1100, start=1100)
    assert weights.tolist() == pytest.approx(released, abs=6e-5)
    assert longtail.drw_weights(CIFAR10_100, epoch=1099, start=1100).tolist() == [1.0] * 10


@modest
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.sampled_from([0.0, 0.9, 0.99, 0.9999]))
def test_effective_number_weights_by_hand(counts, beta):
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = [w * len(counts) / sum(raw) for w in raw]
    assert longtail.effective_number_weights(counts, beta).tolist() == pytest.approx(expected, rel=1e-5)
    single = longtail.effective_weights_unchecked(torch.tensor(counts).float(), beta)  # as the losses do
    assert single.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_wrong_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        longtail.effective_number_weights([3, 1], beta)
