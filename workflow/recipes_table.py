"""Writes notebooks/full/RECIPES.md, the table of all recipes with what they cost: `make recipes`."""

from pathlib import Path

from ltvit_lib import costs, recipes

PAGE = Path(__file__).resolve().parents[1] / "notebooks" / "full" / "RECIPES.md"
HEAD = (
    "Recipe", "Kind", "Data", "Model", "Epochs", "Batch", "Should reach", "GFLOP an image", "PFLOP", "GiB", "Disk GiB",
    "H100 hours",
)  # fmt: skip
TEXT = f"""# All recipes

Written by `make recipes` from `ltvit_lib/recipes.py` and `ltvit_lib/costs.py`; do not edit. `recipes.get(name)` shows
every value, `recipes.needs(name)` the runs that must come first (their cost is not in the row).

Batch: effective, over all devices and accumulation steps. Should reach: accuracy over all classes, of a distilled model
by the mean of both heads. The costs are estimates, not measurements: operations of training (two for a multiplication
and an addition), memory of a device that takes the recipe's micro-batches, disk of the run folder, and hours on one
H100, for recipes in bf16, that does its {costs.H100 / 1e12:.0f} TFLOP/s times an assumed utilisation:
{{utilisation}}.
"""


def data_set(recipe: recipes.Recipe) -> str:
    """The images, and how they are cut."""
    cut = f", {recipe.per_class} a class" if recipe.per_class else f", rho {recipe.rho:g}" if recipe.rho else ""
    return recipe.data + cut


def described(recipe: recipes.Recipe) -> str:
    """The first half of a row: what is trained, and what it should reach."""
    cells = (
        f"`{recipe.name}`", recipe.kind, data_set(recipe), recipe.model, recipe.epochs, recipe.batch_size,
        recipe.reaches or "–",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def priced(recipe: recipes.Recipe) -> str:
    """The second half: what it costs. Hours only for what is meant for a GPU."""
    cost = costs.estimate(recipe)
    numbers = [cost.flops_per_image / 1e9, cost.flops / 1e15, cost.memory_gib, cost.disk_gib]
    numbers += [cost.hours] if recipe.precision == "bf16" else []
    cells = [f"{float(f'{n:.3g}'):,g}" for n in numbers] + ["–"] * (5 - len(numbers))
    return " " + " | ".join(cells) + " |"


def page() -> str:
    """The whole page."""
    shares = [f"{name.strip('_') or 'other'} {share:.0%}" for name, share in costs.UTILISATION.items()]
    rows = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    rows += [described(r) + priced(r) for r in map(recipes.get, recipes.names())]
    return TEXT.format(utilisation=", ".join(shares)) + "\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{len(recipes.names())} recipes in {PAGE}")
