"""The benchmark script runs, and its table has what the README promises."""

import runpy
from pathlib import Path

import pandas as pd

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "steps.py"))


def test_a_row_a_step_kind_and_the_two_ratios():
    table = pd.DataFrame(SCRIPT["measure"]("digits", 2)).set_index("what")
    assert set(table.index) == set(SCRIPT["KINDS"]) | set(SCRIPT["RATIOS"])
    kinds = table.loc[list(SCRIPT["KINDS"])]
    assert (kinds["images_per_second"] > 0).all() and kinds["data_share"].between(0, 1).all()
    assert table.loc["SAM / SGD", "ratio"] > 1.2, "two passes cost more than one"
