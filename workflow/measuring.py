"""What the scripts that measure share: which runs count, on which data, and how a table in figures/data is written."""

from collections.abc import Iterable, Sequence

from ltvit_lib import metrics, plots, runs, train
from ltvit_lib.data import Split

import pandas as pd
from torch import Tensor, nn


def finished(folder: str) -> list[runs.Run]:
    """All finished runs by recipe and seed; of two folders with one recipe, overrides and seed the younger counts."""
    found = sorted(runs.collect(folder), key=lambda run: (run.path / "result.json").stat().st_mtime)
    youngest = {(run.recipe.name, str(runs.changes(run.recipe)), run.seed): run for run in found}
    for run in set(found) - set(youngest.values()):
        print(f"{run.path} is passed over: there is a younger run of its recipe and seed")
    return [youngest[key] for key in sorted(youngest)]


def unchanged(found: Iterable[runs.Run]) -> list[runs.Run]:
    """Those of recipes as they are registered."""
    return [run for run in found if not runs.changes(run.recipe)]


def held_out(found: Iterable[runs.Run]) -> list[runs.Run]:
    """Those that differ from their registered recipe only in holding out a validation part."""
    return [run for run in found if set(runs.changes(run.recipe)) == {"evaluate_on"}]


def name_missing(wanted: Iterable[str], found: Iterable[runs.Run]) -> None:
    """Says which recipes have no run, and so no rows."""
    if missing := sorted(set(wanted) - {run.recipe.name for run in found}):
        print(f"left out, since not run: {', '.join(missing)}")


def load_split(run: runs.Run) -> Split:
    """The data that a run was trained on.

    Raises:
        SystemExit: the data here are others, in one sentence.
    """
    split, there = train.load_split(run.recipe, run.seed), run.identity["data"]
    if split.digest != there:
        raise SystemExit(
            f"{run.path} was trained on other images ({there}, here {split.digest}): point LTVIT_DATA at those, or "
            "move the run elsewhere"
        )
    return split


def build(run: runs.Run) -> tuple[nn.Module, Split]:
    """`train.build` with the data that the run was trained on."""
    return train.build(run, load_split(run))


def by_group(scores: Tensor, targets: Tensor, split: Split) -> dict[str, float]:
    """Accuracies of the largest score (N, C): all, head, mid, tail."""
    return group_means(metrics.per_class_accuracy(scores.argmax(1), targets, len(split.counts)), split)


def group_means(right: Tensor, split: Split) -> dict[str, float]:
    """Means of (C,) accuracies: all, head, mid, tail."""
    names = {metrics.INDEX_GROUPS[name]: right[mask].mean().item() for name, mask in split.groups.items()}
    return {"all": right.mean().item()} | names


def most_accurate(options: Sequence, accuracies: Iterable[float]):
    """The option of the highest accuracy, among equals the middle one."""
    accuracies = list(accuracies)
    best = [option for option, a in zip(options, accuracies, strict=True) if a > max(accuracies) - 1e-9]
    return best[len(best) // 2]


def curve_blocks(run: runs.Run, every: int, **columns: str) -> list[dict]:
    """metrics.csv averaged over blocks of epochs: rows of recipe, seed, epoch (the last of the block) and `columns`.

    Args:
        every: epochs in a block.
        columns: our names for columns of metrics.csv; NaN where a run has not such a column.
    """
    curve = run.curve.reindex(columns=["epoch", *columns.values()])
    means = {ours: (column, "mean") for ours, column in columns.items()}
    blocks = curve.groupby(curve["epoch"] // every).agg(epoch=("epoch", "max"), **means)
    return [{"recipe": run.recipe.name, "seed": run.seed} | row for row in blocks.to_dict("records")]


def save(name: str, rows: pd.DataFrame | list[dict], digits: int) -> None:
    """Writes figures/data/<name>.csv in `digits` significant digits, and says which runs it had before and has no more.

    Without rows a table keeps the columns that it had, and none is begun.
    """
    path, table = plots.figures() / "data" / f"{name}.csv", pd.DataFrame(rows)
    before = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    table = before.iloc[:0] if table.empty else table
    if len(table.columns):
        table.to_csv(path, index=False, float_format=f"%.{digits}g")
    print(f"{len(table)} rows in {path.name}")
    if lost := sorted(_sources(before) - _sources(table)):
        print(f"{path.name} has no more: {', '.join(lost)}")


def _sources(table: pd.DataFrame) -> set[str]:
    """Every run behind a table, as its columns name it."""
    known = [column for column in ("scale", "recipe", "trained on", "seed") if column in table]
    rows = table[known].drop_duplicates().to_dict("records") if known else []
    return {", ".join(f"{column} {value}" for column, value in row.items()) for row in rows}
