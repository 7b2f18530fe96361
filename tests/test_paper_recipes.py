"""The papers' recipes: each stands beside the numbers that it should reach, and none is dead code."""

import dataclasses
import json

from ltvit_lib import data, published, recipes, train

import pytest
import torch

PAPER = [recipes.get(name) for name in recipes.names() if name.startswith("paper_")]
GROUPS = {"LiVT": {"all", "many", "medium", "few", "ece", "mce"}, "DeiT-LT": {"all", "head", "mid", "tail"}}


# --- the tables ------------------------------------------------------------------------------------------------


def all_cells() -> list[tuple[str, str, dict]]:
    return [(p, n, cell) for p, n in recipes.tables() for cell in recipes.cells(p, n).to_dict("records")]


def test_every_cell_is_a_published_number():
    tables = {table: published.table(*table) for table in recipes.tables()}
    for paper, number, cell in all_cells():
        assert cell["value"] == tables[paper, number].loc[cell["row"], cell["column"]]
        assert cell["metric"] in GROUPS[paper]
        distilled = isinstance(recipes.get(cell["recipe"]), recipes.Distil)
        assert cell["head"] in (("avg", "cls", "dist") if distilled else ("cls",))


def test_no_number_has_two_recipes():
    places = [(paper, number, cell["row"], cell["column"]) for paper, number, cell in all_cells()]
    assert len(places) == len(set(places))


def test_reaches_is_the_first_overall_accuracy_that_a_recipe_owns():
    overall = {}
    for paper, number, cell in all_cells():
        if cell["metric"] == "all" and cell["head"] in ("cls", "avg"):
            said = f"{cell['value']:g} % ({paper} Table {number}, {cell['row']})"
            overall.setdefault(cell["recipe"], []).append(said)
    for name, said in overall.items():
        assert recipes.get(name).reaches in said
    printed = {said for several in overall.values() for said in several}
    assert {r.reaches for r in PAPER} - {""} <= printed  # another reading of a row names it too


@pytest.mark.parametrize(("paper", "number"), [("LiVT", "1"), ("LiVT", "5"), ("LiVT", "6"), ("LiVT", "7"),
                                               ("LiVT", "11"), ("DeiT-LT", "5"), ("DeiT-LT", "6"), ("DeiT-LT", "S.3"),
                                               ("DeiT-LT", "S.4")])  # fmt: skip
def test_own_tables_are_whole(paper, number):
    """Tables without rows from elsewhere: every accuracy and calibration error has its recipe."""
    table = published.table(paper, number)
    derived = [c for c in table if c.endswith(("_delta", "_se")) or c == "parameters_millions"]
    assert len(recipes.cells(paper, number)) == table.drop(columns=derived).notna().to_numpy().sum()


@pytest.mark.parametrize(
    ("paper", "number", "rows"),
    [
        ("LiVT", "2", ["ViT", "MAE", "DeiT", "LiVT", "LiVT *"]),
        ("LiVT", "3", ["ViT", "MAE", "DeiT", "LiVT", "LiVT *"]),
        ("LiVT", "4", ["MAE", "DeiT", "LiVT", "LiVT *"]),
        ("DeiT-LT", "3", ["L-D-SAM teacher", "PaCo+SAM teacher", "ViT", "DeiT-III", "DeiT-LT (L-D-SAM)",
                          "DeiT-LT (PaCo+SAM)"]),
        ("DeiT-LT", "4", ["L-D-SAM teacher", "PaCo+SAM teacher", "ViT", "DeiT-III", "DeiT-LT (L-D-SAM)",
                          "DeiT-LT (PaCo+SAM)"]),
    ],
)  # fmt: skip
def test_rows_among_others(paper, number, rows):
    cells = recipes.cells(paper, number)
    assert list(dict.fromkeys(cells["row"])) == rows
    assert len(cells) == 4 * len(rows)


def test_a_table_without_recipes_is_refused():
    with pytest.raises(ValueError, match="no recipe owns a number of LiVT's Table 10; there are recipes for LiVT 1, "):
        recipes.cells("LiVT", "10")
    with pytest.raises(ValueError, match="no table '99'"):
        recipes.cells("LiVT", "99")


def test_the_other_reading_differs_where_it_says():
    """Each `_as_written` and `_as_released` recipe is its base but for the values that text and code dispute."""
    others = [r for r in PAPER if r.name.endswith(("_as_written", "_as_released"))]
    assert len(others) > 20
    for other in others:
        stem, _, _ = other.name.rpartition("_as_")
        for change in ("_bias", "_beta2", "_warmup", "_pixels"):
            stem = stem.removesuffix(change)
        assert dataclasses.replace(other, name=stem) != recipes.get(stem)


# --- training --------------------------------------------------------------------------------------------------


def small(recipe: recipes.Recipe) -> recipes.Recipe:
    """Two steps on eight images of 8 pixels, everything else as it is."""
    changes = dict(
        image_size=8, epochs=2, batch_size=8, warmup_epochs=min(recipe.warmup_epochs, 1.0), evaluate_every=0,
        micro_batch=None if recipe.micro_batch is None else 4,
    )  # fmt: skip
    if isinstance(recipe, recipes.Teacher):
        photographs = "_cifar" not in recipe.model
        changes |= dict(model="test_resnet", image_size=32) if photographs else dict(model="resnet8_cifar", width=4)
        changes |= dict(sam_epochs=(1,) * len(recipe.sam_epochs))
    else:
        changes["model"] = "deit_w64d4_patch2_8_distilled" if "distilled" in recipe.model else "vit_w64d4_patch2_8"
    if isinstance(recipe, recipes.Pretrain):
        changes |= dict(decoder_width=16, decoder_depth=1, decoder_heads=2)
    else:
        changes |= dict(drw_epoch=None if recipe.drw_epoch is None else 1, loss_epoch=min(recipe.loss_epoch, 1))
    if isinstance(recipe, recipes.Contrast):
        changes |= dict(queue_size=16, projection=4)
    return recipes.override(recipe, **changes)


def alike(recipe: recipes.Recipe) -> str:
    """What is left when names, data, sizes and plain numbers are taken away: one run a group is enough."""
    kept = (
        "pool", "optimizer", "schedule", "policy", "policy_options", "key_policy", "precision", "trains", "sampling",
        "loss", "loss_options", "drw_epoch", "drw_mixup", "norm_pix",
    )  # fmt: skip
    shrunk = small(recipe)
    on = {k: bool(getattr(recipe, k, 0)) for k in ("mixup", "smoothing", "layer_decay", "sam_rho", "micro_batch")}
    values = {k: getattr(shrunk, k, None) for k in kept} | on | dict(model=shrunk.model, many=recipe.repeats > 1)
    return recipe.kind + json.dumps(values)


SAMPLES = {alike(r): r for r in reversed(PAPER)}


@pytest.fixture(scope="module")
def images() -> data.Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    few = data.Images(pixels[:8], torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]))
    test = data.Images(pixels[8:], torch.tensor([0, 1, 2, 2]))
    return data.Split("noise", few, test, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3, (1, 2))


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Trains a recipe for two steps, after what it needs; each recipe once."""
    done = {}

    def trained(recipe: recipes.Recipe) -> train.Run:
        if recipe.name not in done:
            asked = {what: getattr(recipe, what, None) for what in ("init", "teacher")}
            given = {what: trained(SAMPLES[alike(recipes.get(name))]) for what, name in asked.items() if name}
            folder = tmp_path_factory.mktemp("run")
            done[recipe.name] = train.fit(small(recipe), folder, data=images, progress=False, **given)
        return done[recipe.name]

    return trained


@pytest.mark.parametrize("recipe", SAMPLES.values(), ids=lambda r: r.name)
def test_it_trains(run, recipe):
    finished = run(recipe)
    assert finished.finished
    assert len(finished.curve) == 2
    assert finished.curve["loss"].notna().all()
