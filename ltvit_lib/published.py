"""The papers' tables as data: figures/data/published.csv, one number a row, with paper, table, row and column."""

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
    everything = pd.read_csv(PATH, dtype={"table": str})
    chosen = everything[(everything["paper"] == paper) & (everything["table"] == number)]
    if chosen.empty:
        known = sorted({f"{p} {t}" for p, t in zip(everything["paper"], everything["table"], strict=True)})
        raise ValueError(f"no table {number!r} of {paper!r}; known: {', '.join(known)}")
    return chosen.pivot_table(index="row", columns="column", values="value", sort=False)
