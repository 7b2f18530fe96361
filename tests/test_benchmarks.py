"""The benchmark script runs, and its table has what the README promises."""

import runpy
from pathlib import Path

from ltvit_lib import recipes

import pandas as pd

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "steps.py"))


def test_a_row_a_step_kind_and_the_two_ratios():
    table = pd.DataFrame(SCRIPT["measure"]("digits", 2)).set_index("what")
    assert set(table.index) == set(SCRIPT["KINDS"]) | set(SCRIPT["RATIOS"])
    kinds = table.loc[list(SCRIPT["KINDS"])]
    assert (kinds["images_per_second"] > 0).all() and kinds["data_share"].between(0, 1).all()
    assert table.loc["SAM / SGD", "ratio"] > 1.2, "two passes cost more than one"


def test_every_loss_is_timed_against_its_plain_counterpart():
    script = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "loss_cost.py"))
    table = script["measure"](8, 5, 3).set_index("loss")
    assert {name.split(",")[0] for name in table.index} == set(recipes.LOSSES)
    assert (table["ms"] > 0).all()
    assert (table.loc[["cross_entropy", "bce"], "ratio"] == 1).all()
