"""What a table needs: its runs in an order in which they can be run, which of them are finished, what the rest costs.

workflow/Snakefile orders, starts and repeats what is planned here. A run is named as its folder: recipe/seed0.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ltvit_lib import costs, kinds, recipes, runs
from ltvit_lib.recipes import Recipe

import pandas as pd

OWN = ("laptop", "digits")  # this project's own tables: every recipe whose name begins so
RUNNERS = Path(__file__).resolve().parents[1] / "notebooks" / "full"


@dataclass(frozen=True)
class Planned:
    """A run that a table needs."""

    recipe: Recipe
    seed: int
    needs: tuple["Planned", ...] = ()  # what must have run before, needs of needs included

    @property
    def folder(self) -> Path:
        return runs.folder(self.recipe, self.seed)

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        return runs.Run(self.folder).finished

    @property
    def left(self) -> float:
        """The share of the epochs that remains."""
        run = runs.Run(self.folder)
        done = run.curve["epoch"].max() + 1 if (run.path / "metrics.csv").is_file() else 0
        return 0.0 if self.finished else 1 - done / self.recipe.epochs

    @property
    def runner(self) -> Path:
        """The notebook in notebooks/full; PaCo's teachers have the same as the others."""
        kind = "teacher" if self.recipe.kind == "contrast" else self.recipe.kind
        return RUNNERS / f"{kind}.ipynb"

    @property
    def parameters(self) -> dict:
        """What papermill gives the runner."""
        chosen = {"recipe": self.recipe.name, "seed": self.seed, "out": str(self.folder)}
        folders = {run.recipe.name: str(run.folder) for run in self.needs}
        start = {what: getattr(self.recipe, what, None) for what in ("init", "teacher")}
        chosen |= {what: folders[name] for what, name in start.items() if name}
        standard = runs.fields_of(recipes.get(self.recipe.name))  # also in what makes no other run, a micro-batch
        changed = {k: v for k, v in runs.fields_of(self.recipe).items() if standard[k] != v}
        return chosen | ({"overrides": json.dumps(changed)} if changed else {})


def tables() -> dict[str, tuple[str, str]]:
    """The published tables in which we have a row, by the name that `make table` takes: deit_lt_s3, livt_6."""
    both = {f"{paper}_{number}".lower(): (paper, number) for paper, number in recipes.tables()}
    return {name.replace("-", "_").replace(".", ""): table for name, table in both.items()}


def targets(wanted: str) -> list[str]:
    """The recipes of a table (deit_lt_2), of this project's own (laptop, digits), or one by its name.

    Args:
        wanted: one, or several with commas between.

    Raises:
        ValueError: no such table or recipe.
    """
    published, names, found = tables(), recipes.names(), []
    for one in wanted.split(","):
        if one in published:
            found += recipes.cells(*published[one])["recipe"].unique().tolist()
        elif one in OWN:
            found += [name for name in names if name.startswith(one + "_")]
        elif one in names:
            found.append(one)
        else:
            tables_here = [*published, *OWN]
            close = kinds.closest(one, [*tables_here, *names])
            raise ValueError(f"no table or recipe {one!r}{close}; tables: {', '.join(tables_here)}")
    return list(dict.fromkeys(found))


def closure(names: Iterable[str]) -> list[str]:
    """Recipes and all that they start from, each once, and after all that it needs."""
    return list(dict.fromkeys(needed for name in names for needed in (*recipes.needs(name), name)))


def plan(
    wanted: str, seeds: int = 1, length: float = 1.0, data: str = "", overrides: dict | None = None
) -> list[Planned]:
    """All runs of a table, for seeds 0, 1, ..., each after what it needs.

    Args:
        wanted: as for `targets`.
        seeds: how many.
        length: of every schedule, as for `recipes.shortened`; such runs get folders of their own.
        data: the path of images of your own, as they are, instead of the recipes' data; again in folders of their own.
        overrides: fields to change in every recipe, such as {"batch_size": 64}.

    Raises:
        ValueError: no such table, path or field, or a number that is out of range.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    place = Path(data).expanduser().resolve()
    if not place.exists():
        raise ValueError(f"data: there is no {place}; give a folder with a folder a class, or parquet")
    changed = ({"data": str(place), "rho": None} if data else {}) | (overrides or {})
    planned: dict[tuple[str, int], Planned] = {}
    for seed in range(seeds):
        for name in closure(targets(wanted)):
            recipe = recipes.get(name, **changed) if length == 1 else recipes.shortened(name, length, **changed)
            needs = tuple(planned[need, seed] for need in recipes.needs(name))
            planned[name, seed] = Planned(recipe, seed, needs)
    return list(planned.values())


def estimates(planned: list[Planned]) -> pd.DataFrame:
    """A row a run: its state, hours that are left on one H100, disk in GiB (0 for a finished run)."""
    rows = []
    for run in planned:
        cost, state = costs.estimate(run.recipe), runs.Run(run.folder).status
        hours, disk = cost.hours * run.left, 0.0 if run.finished else cost.disk_gib
        rows.append((run.name, hours, disk, state.removeprefix(str(run.folder)).strip()))
    return pd.DataFrame(rows, columns=["run", "GPU-hours", "disk, GiB", "state"])


def summary(planned: list[Planned]) -> str:
    """The estimates as a table to read, and their sums."""
    table, todo = estimates(planned), sum(not run.finished for run in planned)
    hours, disk = map(_short, table[["GPU-hours", "disk, GiB"]].sum())
    root = planned[0].folder.parents[1]
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.is_dir())).free / 2**30
    return (
        f"{table.to_string(index=False, float_format=_short)}\n"
        f"Runs: {len(planned)}; finished: {len(planned) - todo}; to do: {todo}, for about {hours} GPU-hours on an H100 "
        f"and {disk} GiB of disk ({_short(free)} GiB are free)"
    )


def _short(number: float) -> str:
    if 0 < number < 0.01:
        return "<0.01"
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


CONFIG = {  # what --config may hold beside `table`: its type, and how to give it
    "seeds": (int, "how many: 3"),
    "length": (int | float, "a share of every schedule: 0.01"),
    "data": (str | int, "a path"),
    "overrides": (dict, 'fields of the recipes: {"batch_size": 64}'),
}


def from_config(config: dict) -> list[Planned]:
    """The plan that Snakemake's --config asks for; what is left empty has its default.

    Raises:
        ValueError: no table, an unknown key, a value of the wrong type, or what `plan` refuses.
    """
    given = {key: value for key, value in config.items() if value not in (None, "")}
    if "table" not in given:
        raise ValueError("which table? Give one, such as: make table T=deit_lt_2, or --config table=deit_lt_2")
    table = str(given.pop("table"))
    for key, value in given.items():
        if key not in CONFIG:
            raise ValueError(f"no setting {key!r}{kinds.closest(key, [*CONFIG])}; there are table, {', '.join(CONFIG)}")
        kind, how = CONFIG[key]
        if not isinstance(value, kind):
            raise ValueError(f"{key} must be {how}, not {value!r}")
    given |= {"data": str(given.get("data", "")), "overrides": typed(given.get("overrides", {}))}
    planned = plan(table, **given)
    if given["data"] or given["overrides"]:
        for run in planned:
            costs.estimate(run.recipe)  # refuses now what would fail when its turn comes
    return planned


def typed(text):
    """What Snakemake's --config left as text in a mapping, as JSON has it: {"tau": "0.5"} becomes {"tau": 0.5}."""
    if isinstance(text, dict):
        return {key: typed(value) for key, value in text.items()}
    if isinstance(text, list):
        return [typed(value) for value in text]
    try:
        return json.loads(text) if isinstance(text, str) else text  # a configuration file's values have types
    except json.JSONDecodeError:
        return text


def results(planned: list[Planned]) -> str:
    """What the runs reached, a row a recipe and head, in percent: mean ± sample sd over seeds (none for one)."""
    learnt = [runs.Run(run.folder) for run in planned if run.recipe.kind != "pretrain"]
    if not learnt:
        return "Pre-training learns no classes: there are no accuracies."
    rows = pd.DataFrame([row for run in learnt for row in runs.ledger_rows(run)])
    groups = ["all", "many", "medium", "few", "ece"]
    tidy = rows.melt(["recipe", "head", "seed"], groups, "group", "accuracy")
    table = runs.mean_sd(tidy, ["recipe", "head"], tuple(groups)).replace("nan", "–")
    table["n"] = rows.groupby(["recipe", "head"])["seed"].nunique()
    return table.rename_axis(columns=None).to_string(sparsify=False)


def minutes(run: Planned) -> int:
    """What to ask a cluster for: twice the estimate, since other GPUs are slower, and half an hour."""
    return 30 + round(120 * costs.estimate(run.recipe).hours)
