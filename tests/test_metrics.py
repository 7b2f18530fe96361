"""Accuracy by class and group, calibration by hand and against torchmetrics, and statistics over seeds."""

import math
import statistics

from ltvit_lib import longtail, metrics

import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_calibration_error

modest = settings(max_examples=25, derandomize=True, deadline=None)

TARGET = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
PREDICTED = torch.tensor([0, 0, 0, 1, 1, 0, 2, 0, 0, 0])  # .75, .5, 1/3, 0


def test_shot_accuracy_by_hand():
    found = metrics.shot_accuracy(PREDICTED, TARGET, counts=[500, 100, 20, 3])
    assert found == pytest.approx({"all": 19 / 48, "many": 0.75, "medium": 5 / 12, "few": 0.0})
    groups = longtail.index_groups(4, (2, 3))
    found = metrics.shot_accuracy(PREDICTED, TARGET, groups=groups)
    assert found == pytest.approx({"all": 19 / 48, "many": 0.625, "medium": 1 / 3, "few": 0.0})
    assert metrics.shot_accuracy(PREDICTED, TARGET, [500, 100, 20, 3], groups) == found
    assert metrics.shot_accuracy(PREDICTED, TARGET) == pytest.approx({"all": 19 / 48})


def test_empty_group_and_absent_class():
    found = metrics.shot_accuracy(PREDICTED, TARGET, counts=[500, 400, 300, 50])
    assert math.isnan(found["few"]) and found["medium"] == 0
    found = metrics.shot_accuracy(PREDICTED, TARGET, counts=[500, 400, 300, 50, 60, 2])  # 4 and 5 never tested
    assert found["all"] == pytest.approx(19 / 48) and found["medium"] == 0 and math.isnan(found["few"])
    assert metrics.per_class_accuracy(PREDICTED, TARGET, 5)[4].isnan()


def test_confusion_by_hand():
    expected = [[3, 1, 0, 0], [1, 1, 0, 0], [2, 0, 1, 0], [1, 0, 0, 0]]
    assert metrics.confusion(PREDICTED, TARGET, 4).tolist() == expected


@modest
@given(st.integers(1, 60), st.integers(2, 9), st.integers(0, 10**6))
def test_accuracies_agree_with_torchmetrics(batch, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randint(classes, (2, batch), generator=generator)
    table = metrics.confusion(predicted, target, classes)
    assert torch.equal(table, MulticlassConfusionMatrix(classes)(predicted, target))
    ours = metrics.per_class_accuracy(predicted, target, classes)
    theirs = MulticlassAccuracy(classes, average="none")(predicted, target).double()
    assert torch.allclose(ours.nan_to_num(0), theirs, atol=1e-6)  # it says 0 where a class is absent
    present = [ours[c].item() for c in range(classes) if (target == c).any()]
    found = metrics.shot_accuracy(predicted, target, [1] * classes)
    assert found["all"] == found["few"] == pytest.approx(sum(present) / len(present))


def test_calibration_by_hand():
    """Bins of a half: confidence .4 right, .5 wrong (right-closed: same bin), .9 right, 1 wrong."""
    probabilities = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]])
    target = torch.tensor([0, 1, 0, 2])
    ece, mce = metrics.calibration(probabilities, target, bins=2)
    assert (ece, mce) == pytest.approx((0.5 * abs(0.5 - 0.45) + 0.5 * abs(0.5 - 0.95), 0.45))


def test_edges_belong_to_the_left_bin():
    for k in range(5, 16):  # confidence k / 15 exactly; all right, so the gap says which bin it shares
        p = torch.tensor([k / 15, k / 15 - 0.01])
        probabilities = torch.stack([p, (1 - p) / 9], 1).repeat_interleave(torch.tensor([1, 9]), 1)
        _, mce = metrics.calibration(probabilities, torch.tensor([0, 1]))
        assert mce == pytest.approx(abs(0.5 - (k / 15 - 0.005)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_perfect_confidence(dtype):
    sure = torch.eye(4, dtype=dtype)
    assert metrics.calibration(sure, torch.arange(4)) == (0.0, 0.0)
    assert metrics.calibration(sure, torch.tensor([1, 2, 3, 0])) == (1.0, 1.0)


@modest
@given(st.integers(1, 200), st.integers(2, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_calibration_agrees_with_torchmetrics(batch, classes, bins, seed):
    """Random confidences lie on no edge and below 1, where the two conventions part."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)).softmax(1)
    target = torch.randint(classes, (batch,), generator=generator)
    ece, mce = metrics.calibration(probabilities, target, bins)
    for norm, ours in (("l1", ece), ("max", mce)):
        theirs = multiclass_calibration_error(probabilities, target, classes, n_bins=bins, norm=norm)
        assert ours == pytest.approx(theirs.item(), abs=1e-5)
    assert 0 <= ece <= mce <= 1


def test_evaluate_logits():
    logits = torch.nn.functional.one_hot(PREDICTED, 4).float() * 3
    groups = longtail.index_groups(4, (2, 3))
    row = metrics.evaluate_logits(logits, TARGET, [500, 100, 20, 3], groups)
    by_count = {"many": 0.75, "medium": 5 / 12, "few": 0.0}
    by_index = {"head": 0.625, "mid": 1 / 3, "tail": 0.0}
    confidence = math.exp(3) / (math.exp(3) + 3)
    expected = {"all": 19 / 48, "top1": 0.5, **by_count, **by_index}
    assert row == pytest.approx({**expected, "ece": confidence - 0.5, "mce": confidence - 0.5})
    assert all(type(value) is float for value in row.values())
    assert list(metrics.evaluate_logits(logits, TARGET)) == ["all", "top1", "ece", "mce"]
    low = metrics.evaluate_logits(logits.bfloat16(), TARGET, [500, 100, 20, 3])
    assert low["all"] == row["all"] and "head" not in low


def test_scores_with_a_class_ruled_out_can_be_evaluated():
    logits = torch.tensor([[2.0, 1.0, -math.inf], [0.0, 1.0, -math.inf]])
    row = metrics.evaluate_logits(logits, torch.tensor([0, 2]), [9, 5, 3])
    assert row["top1"] == row["all"] == 0.5 and 0 <= row["ece"] <= 1


@pytest.mark.parametrize("wrong", ["shape", "float", "negative", "large", "empty"])
def test_wrong_ids_are_refused(wrong):
    predicted, target = PREDICTED, TARGET
    if wrong == "shape":
        predicted = predicted[:3]
    elif wrong == "float":
        predicted = predicted.float()
    elif wrong == "negative":
        target = target - 1
    elif wrong == "large":
        target = target + 1
    else:
        predicted, target = predicted[:0], target[:0]
    for function in (metrics.confusion, metrics.per_class_accuracy):
        with pytest.raises(ValueError, match="predicted|target"):
            function(predicted, target, 4)
    with pytest.raises(ValueError, match="predicted|target"):
        metrics.shot_accuracy(predicted, target, [4, 3, 2, 1])


def test_other_mistakes_are_refused():
    p = torch.full((2, 3), 1 / 3)
    for wrong in (p * math.nan, p * 5, p - 1, p[0]):
        with pytest.raises(ValueError, match="probabilities"):
            metrics.calibration(wrong, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="bins"):
        metrics.calibration(p, torch.tensor([0, 1]), bins=0)
    with pytest.raises(ValueError, match="logits"):
        metrics.evaluate_logits(p * math.nan, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="lengths differ"):
        metrics.evaluate_logits(p, torch.tensor([0, 1]), [5, 4, 3, 2])
    with pytest.raises(ValueError, match="lengths differ"):
        metrics.shot_accuracy(PREDICTED, TARGET, [4, 3, 2, 1], longtail.index_groups(5, (1, 2)))
    with pytest.raises(ValueError, match="values"):
        metrics.summarise([])


def test_entropy_by_hand():
    assert metrics.entropy(torch.zeros(3, 10)) == pytest.approx(math.log(10))
    assert metrics.entropy(torch.eye(4), scale=1e4) == 0  # certain
    two = torch.tensor([[5.0, 5.0, -math.inf], [0.0, 0.0, 0.0]])  # log 2 and log 3
    assert metrics.entropy(two) == pytest.approx((math.log(2) + math.log(3)) / 2)
    cosines = torch.tensor([[0.5] + [0.0] * 9])  # a sure teacher looks flat at scale 1: the reading of Fig. 3
    top = math.exp(0.5) / (math.exp(0.5) + 9)
    assert metrics.entropy(cosines) == pytest.approx(-top * math.log(top) - (1 - top) * math.log((1 - top) / 9))
    assert metrics.entropy(cosines) == pytest.approx(2.288, abs=5e-4)
    assert metrics.entropy(cosines, scale=30) < 1e-4


def test_entropy_ignores_a_shift_and_scale_multiplies_the_logits(rng):
    logits = torch.randn(50, 7, generator=rng)
    assert metrics.entropy(logits + 100, 3) == pytest.approx(metrics.entropy(3 * logits), rel=1e-5)
    found = [metrics.entropy(logits, scale) for scale in (0.1, 1, 10)]
    assert math.log(7) > found[0] > found[1] > found[2] > 0


def test_cosine_distance_by_hand():
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 0.1], [0.0, -1.0], [1.0, 0.0]])
    assert metrics.cosine_distance(a, b) == pytest.approx((0 + 1 + 2 + 1 - 0.5**0.5) / 4)
    assert metrics.cosine_distance(a, 9 * a) == pytest.approx(0, abs=1e-12)
    assert metrics.cosine_distance(a, b) == metrics.cosine_distance(b, a)


def test_entropy_and_cosine_distance_refuse_bad_input():
    good = torch.ones(2, 3)
    for wrong in (good * math.nan, good * math.inf, good * -math.inf, good[:0], good[0], good.long()):
        refused(lambda wrong=wrong: metrics.entropy(wrong), "^logits: ")
    for scale in (0, -1, math.nan, math.inf):
        refused(lambda scale=scale: metrics.entropy(good, scale), "^scale: ")
    for wrong in (good * math.nan, good * math.inf, good * 0, good[:, :2], good[:1]):
        refused(lambda wrong=wrong: metrics.cosine_distance(good, wrong), "^a, b: ")
    refused(lambda: metrics.cosine_distance(good[:0], good[:0]), "^a, b: ")


@modest
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_summarise(values):
    found = metrics.summarise(values)
    sd = statistics.stdev(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found["sd"] == pytest.approx(sd, abs=1e-9) and found["n"] == len(values)
    assert found["se"] == pytest.approx(sd / len(values) ** 0.5, abs=1e-9)


def test_summarise_one_run_and_missing_numbers():
    found = metrics.summarise(torch.tensor([0.25]))
    assert found["mean"] == 0.25 and found["n"] == 1
    assert math.isnan(found["sd"]) and math.isnan(found["se"])
    assert math.isnan(metrics.summarise([0.5, math.nan])["mean"])  # an empty group stays visible


# --- differences by seed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "gained", "judged"),
    [
        ([], "not run", "not run"),
        ([1.25], "+1.2", "for, n = 1"),
        ([-1.0, -3.0], "-2.0 ± 1.0", "against, n = 2"),
        ([1.0, 2.0, 3.0], "+2.0 ± 0.6", "undecided"),  # 3.5 standard errors, of the 4.3 that three seeds need
        ([2.0, 2.5, 3.0], "+2.5 ± 0.3", "supported"),
        ([-2.0, -2.5, -3.0], "-2.5 ± 0.3", "contradicted"),
    ],
)
def test_a_gain_and_its_verdict(differences, gained, judged):
    assert metrics.gain(differences) == gained
    assert metrics.verdict(differences) == judged
    assert metrics.verdict(torch.tensor(differences, dtype=torch.float64)) == judged


def test_a_verdict_errs_in_one_of_twenty():
    """Differences without any cause, however many seeds: Student's quantile, not the normal one, for three."""
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n in (3, 5):
        wrong = sum(metrics.verdict(one[:n]) != "undecided" for one in draws) / len(draws)
        assert wrong == pytest.approx(0.05, abs=0.011)  # three standard errors of 4,000 draws
    assert sum(metrics.verdict(one[:3], errors=2) != "undecided" for one in draws) / len(draws) > 0.15
