"""The papers' tables as data: figures/data/published.csv, one number a row, with paper, table, row and column.

Every number of LiVT's Tables 1 to 11 and DeiT-LT's Tables 1 to 6 and S.1 to S.4, in reading order, as printed, errors
included (tests/test_published.py lists them). Ticks, words and empty cells are left out: a missing number is NaN.

- Accuracy, ECE and MCE in percent. `all` with the paper's own groups: many, medium, few in LiVT, head, mid, tail in
  DeiT-LT. `x_delta` is the printed difference of column x, `x_se` its printed standard error.
- In LiVT "*" marks fine-tuning at 384 pixels and "†" ResNeXt-50; its "DeiT" is DeiT III, as printed.
- DeiT-LT's Tables 6 and S.3: rows without a data set are CIFAR-10-LT, rho 100; the others end in ", data set". The
  superscripts 1 and 2 are written out: L-D-SAM and PaCo+SAM, the teacher or the student it taught.
- DeiT-LT's Table 1: what the teacher sees, then what the student sees; hours of training.
"""

from pathlib import Path

import pandas as pd

PATH = Path(__file__).resolve().parents[1] / "figures" / "data" / "published.csv"


def table(paper: str, number: str) -> pd.DataFrame:
    """One published table, rows and columns as printed there; percent, hours or as the paper's header says.

    Args:
        paper: "LiVT" or "DeiT-LT".
        number: the table's number, such as "6" or "S.3".

    Raises:
        ValueError: a table that is not in the file.
    """
    whole = everything()
    chosen = whole[(whole["paper"] == paper) & (whole["table"] == number)]
    if chosen.empty:
        known = sorted({f"{p} {t}" for p, t in zip(whole["paper"], whole["table"], strict=True)})
        raise ValueError(f"no table {number!r} of {paper!r}; known: {', '.join(known)}")
    return chosen.pivot_table(index="row", columns="column", values="value", sort=False)


def everything() -> pd.DataFrame:
    """All tables, a row a number: paper, table, row, column, value."""
    return pd.read_csv(PATH, dtype={"table": str})
