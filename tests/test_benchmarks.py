"""The benchmarks measure what they say: known by hand on a clock that only the timed calls move, and run once small."""

import sys
from pathlib import Path

from ltvit_lib import costs, recipes

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import growth
import loss_cost
import stepper
import steps
import timing


class Clock:
    """Stands still but for `takes`."""

    seconds = 0.0

    def takes(self, seconds: float, result=None):
        """A function of anything that takes so long."""

        def call(*_, **__):
            self.seconds += seconds
            return result

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.seconds)
    return clock


@pytest.fixture
def cold(monkeypatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP", 0)


def test_rounds_and_ratios_by_hand(clock):
    cold = iter([60, 60])
    slow_at_first = {"a": lambda: clock.takes(next(cold, 6))(), "b": clock.takes(2)}
    times = timing.rounds(slow_at_first, 3)
    assert times.to_numpy() == pytest.approx(np.array([[6, 2]] * 3))
    assert timing.ratio(times["a"], times["b"]) == pytest.approx({"ratio": 3, "low": 3, "high": 3})
    drifting = pd.DataFrame({"a": [2.0, 4, 600], "b": [1.0, 2, 300]})  # the machine slows down
    assert timing.ratio(drifting["a"], drifting["b"])["high"] == 2


def test_a_gpu_is_waited_for_at_both_ends_of_a_turn_and_not_within(clock, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    times = timing.rounds({"a": lambda: seen.append("call") or clock.takes(3)()}, 1)
    assert seen == ["wait", *["call"] * 4, "wait"] * (1 + timing.WARM_UP)
    assert times["a"].tolist() == [3]


def test_peak_of_memory():
    def call():
        a = torch.ones(2**18)  # 1 MiB
        b = a + a
        del a
        return b, torch.ones(2**19)

    assert timing.peak_memory({"three": call, "none": lambda: None}) == {"three": 3, "none": 0}


def test_shares_by_hand(clock, monkeypatch):
    """A step of 10 seconds: 1 of data, 2 of the teacher, 3 forward, 2.5 backward, 1 of the optimiser, the rest."""
    step = stepper.Stepper(recipes.get("digits_vit_ce"), steps.data.load("digits", rho=40))
    monkeypatch.setattr(step.job, "prepare", clock.takes(2))
    monkeypatch.setattr(step.job, "terms", clock.takes(3))
    monkeypatch.setattr(step.accelerator, "backward", clock.takes(2.5))
    monkeypatch.setattr(step.optimizer, "step", clock.takes(1))
    step.watch()

    def make():
        while True:
            clock.takes(1)()
            step.job.prepare()
            yield []

    def use(job, model, optimizer, batches, accelerator):
        job.terms(model, batches)
        accelerator.backward(None)
        optimizer.step()
        clock.takes(0.5)()

    step.flow = make()
    monkeypatch.setattr(stepper.train, "_step", use)
    expected = {"data": 0.1, "teacher": 0.2, "forward": 0.3, "backward": 0.25, "optimiser": 0.1, "rest": 0.05}
    assert step.shares() == pytest.approx(expected)
    assert step.seconds is None, "a whole step is not timed in parts"


def test_ratios_add_up_what_is_below():
    times = pd.DataFrame({"DeiT-LT": [11.0, 22], "bare student": [8.0, 16], "bare teacher": [2.0, 4], "ViT, CE": 5.0})
    table = steps.ratio_rows(times).set_index("what")
    assert table.loc["DeiT-LT / bare passes", "ratio"] == pytest.approx(1.1)
    assert set(table.index) == {"DeiT-LT / ViT", "DeiT-LT / bare passes"}


def test_every_kind_of_step_in_every_part(cold):
    kinds, ratios = steps.measure("digits", 1)
    assert set(kinds["what"]) == set(steps.KINDS) and set(ratios["what"]) == set(steps.RATIOS)
    shares = kinds.set_index("what")[list(stepper.PARTS)]
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert (shares[["data", "forward", "backward", "optimiser"]] > 0).all(axis=None)
    assert shares["teacher"].idxmax() == "DeiT-LT"
    assert (kinds[["images_per_second", "utilisation"]] > 0).all(axis=None) and (ratios["ratio"] > 0).all()


def test_utilisation_is_operations_over_time_and_peak(clock):
    step = stepper.Stepper(recipes.get("digits_vit_ce", batch_size=4), steps.data.load("digits", rho=40))
    step.shares = lambda: dict.fromkeys(stepper.PARTS, 1 / 6)
    flops = 4 * costs.estimate(step.recipe).flops_per_image
    times = pd.DataFrame({"ViT, CE": [2.0, 2.0, 4.0]})
    (row,) = steps.kind_rows({"ViT, CE": step}, times, 1, flops, "known").to_dict("records")
    assert row["utilisation"] == pytest.approx(1 / 2) and row["images_per_second"] == pytest.approx(4 / 2)


def test_the_papers_scale_runs():
    """The smallest student, on a CPU in bf16, two images in micro-batches of one."""
    options = dict(batch_size=2, micro_batch=1, mixup=0.0, cutmix=0.0)
    (step,) = steps.steppers_for("paper", ("DeiT-LT, Ti",), 10, **options).values()
    assert [b.images.shape for b in step.batches()] == [(1, 3, 224, 224)] * 2
    shares = step.shares()
    assert min(shares[part] for part in stepper.PARTS[:5]) > 0 and sum(shares.values()) == pytest.approx(1)
    assert {r.precision for r in steps.chosen("paper").values()} == {"bf16"}
    assert steps.chosen("paper")["DeiT-LT"].image_size == 224


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponents_by_hand(clock, power):
    calls = {size: clock.takes(size**power) for size in (1, 2, 4, 8)}
    table = growth.grow("anything", calls, 2, {size: float(size) for size in calls})
    assert table["relative"].tolist() == pytest.approx([size**power for size in calls])
    assert table["exponent"].iloc[0] == pytest.approx(power) and table["flops_exponent"].iloc[0] == pytest.approx(1)


def test_growth_of_every_kind(cold):
    parts = [growth.tokens(1, (8, 16)), growth.batch(1, (2, 4)), growth.classes(1, (10, 20), 4)]
    for part in parts:
        assert (part["seconds"] > 0).all() and part["mib"].is_monotonic_increasing
    first, second = parts[1]["flops"]
    assert second == 2 * first
    made = growth.images(1, (128, 512)).set_index("what").loc["images"]
    assert made["mib"].nunique() == 1, "a batch takes as much memory, however many images there are"


def test_every_loss_is_timed_against_its_plain_counterpart():
    table = loss_cost.measure(8, 5, 1).set_index("loss")
    assert {name.split(",")[0] for name in table.index} == set(recipes.LOSSES)
    assert (table["ms"] > 0).all()
    assert (table.loc[["cross_entropy", "bce"], "ratio"] == 1).all()
