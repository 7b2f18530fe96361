"""An exported run is the run: same outputs up to bfloat16 through every door, and a card whose code runs."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import ltvit_lib
from ltvit_lib import augment, data, export, longtail, losses, models, predict, recipes, runs, train

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import refused
from PIL import Image
from safetensors.torch import load_file
from torch import nn

SHORT = dict(epochs=2, warmup_epochs=0.0)
CLASSIFIERS = ("vit", "livt", "teacher", "deit_lt", "paco")
VITS = ("vit", "livt", "deit_lt", "mgp")


@pytest.fixture(scope="module")
def digits() -> data.Split:
    return data.load("digits", 40.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(folder, digits) -> dict[str, runs.Run]:
    """One short run of every kind, exported into <run>/export."""
    fit = partial(train.fit, progress=False, data=digits)
    names = {
        "mgp": ("digits_mgp", {}),
        "vit": ("digits_vit_ce", dict(pool="token", layer_scale=0.1)),
        "livt": ("digits_livt", {}),
        "teacher": ("digits_teacher_ldam_drw_sam", dict(drw_epoch=1, width=4)),
        "paco": ("digits_teacher_paco_sam", dict(width=4)),
        "deit_lt": ("digits_deit_lt", dict(drw_epoch=1)),
    }
    found: dict[str, runs.Run] = {}
    for key, (name, changes) in names.items():
        start = {"livt": {"init": found.get("mgp")}, "deit_lt": {"teacher": found.get("teacher")}}.get(key, {})
        found[key] = fit(recipes.get(name, **SHORT | changes), folder / key, **start)
        assert runs.export(found[key], split=digits) == folder / key / "export"
    return found


def rounded(run: runs.Run, split: data.Split) -> nn.Module:
    """The run's network with weights rounded to bfloat16, computing in float32."""
    model = train.build(run, split)[0]
    return getattr(model, "encoder", model).bfloat16().float()


def config(run: runs.Run) -> dict:
    return json.loads((run.path / "export" / "config.json").read_text())


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [z for z in models.head_logits(model.eval(), images) if z is not None]


@pytest.fixture
def images(rng) -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=rng)


# --- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", (*CLASSIFIERS, "mgp"))
def test_every_door_gives_the_run_rounded_to_bfloat16(kind, trained, digits, images):
    run, path = trained[kind], trained[kind].path / "export"
    wanted, described = outputs(rounded(run, digits), images), config(run)
    name, arguments = described["architecture"], described["model_args"]
    doors = [models.load(path), models.create(name, path, **arguments)]
    doors += [models.create(name, path / "model.safetensors", **arguments)]
    if kind in VITS:
        doors += [timm.create_model(name, checkpoint_path=path / "model.safetensors", **arguments)]
        doors += [timm.create_model(f"local-dir:{path}", pretrained=True)]
    for model in doors:
        found = outputs(model, images)
        assert len(found) == (2 if kind == "deit_lt" else 1)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", (*CLASSIFIERS, "mgp"))
def test_only_the_networks_weights_are_written_and_in_bfloat16(kind, trained, digits):
    written = load_file(trained[kind].path / "export" / "model.safetensors")
    model = train.build(trained[kind], digits)[0]
    own = getattr(model, "encoder", model).state_dict()
    assert set(written) == set(own)
    for name, value in written.items():
        assert value.dtype == (torch.bfloat16 if own[name].is_floating_point() else own[name].dtype)
        assert torch.allclose(value.float(), own[name].float(), rtol=2**-8, atol=1e-30)


def test_predictions_are_those_of_the_run(trained, digits):
    for kind in CLASSIFIERS:
        run = trained[kind]
        logits = run.logits()["avg" if kind == "deit_lt" else "cls"]
        ours = models.predict(models.load(run.path / "export"), digits.test.images)
        assert (ours - logits.softmax(1)).abs().max() < 0.05, kind  # eight bits of logits up to 25
        assert (ours.argmax(1) == logits.argmax(1)).double().mean() > 0.98, kind


def test_learnt_factors_become_part_of_the_classifier(images):
    model = models.create("vit_w64d4_patch2_8", in_chans=1, num_classes=3, depth=1).eval()
    model.head = models.ScaledLinear(64, 3)
    model.head.scale.data = torch.tensor([0.5, 1.0, 3.0])
    before = model(images)
    plain = export._plain(model)
    assert type(plain.head) is nn.Linear
    torch.testing.assert_close(plain(images), before)


def test_an_exported_encoder_starts_fine_tuning_and_predicts_nothing(trained, digits):
    run = trained["mgp"]
    fresh = partial(models.create, "vit_w64d4_patch2_8", in_chans=1, num_classes=10, global_pool="avg")
    ours, theirs = fresh(), fresh()
    models.load_encoder(ours, run.path / "export")
    models.load_encoder(theirs, run.path)
    assert torch.equal(ours.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight.bfloat16().float())
    assert config(run)["num_classes"] == 0 and config(run)["ltvit"]["heads"] == {}
    assert "without a classifier" in (run.path / "export" / "README.md").read_text()
    refused(lambda: models.predict(models.load(run.path / "export"), digits.test.images), "an encoder without a class")


# --- from logits to another prior --------------------------------------------------------------------------------

COUNTS = [80, 15, 5]
PRIOR = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)


def rules(name: str, **changes) -> dict:
    return export.head_rules(recipes.get(name, **changes), COUNTS)


def test_the_rule_holds_what_training_added():
    assert rules("digits_vit_ce")["cls"]["bias"] is None
    torch.testing.assert_close(torch.tensor(rules("digits_vit_ce")["cls"]["prior"]).double(), PRIOR)
    odds = PRIOR.log() - (1 - PRIOR).log()
    half = rules("digits_livt", loss_options={"tau": 0.5})["cls"]
    torch.testing.assert_close(torch.tensor(half["bias"], dtype=torch.float64), 0.5 * odds)
    eq10 = rules("digits_livt", loss_options={"test_prior": "uniform"})["cls"]["bias"]
    torch.testing.assert_close(torch.tensor(eq10, dtype=torch.float64), odds + np.log(2))  # + log(C - 1)
    for name in ("digits_mgp_bal_ce", "digits_teacher_paco_sam", "digits_mgp_lade"):
        torch.testing.assert_close(torch.tensor(rules(name)["cls"]["bias"], dtype=torch.float64), PRIOR.log())
    assert rules("digits_mgp_ldam")["cls"] | {"prior": 0} == dict(
        family="ce", scale=30.0, bias=None, smoothing=0.0, prior=0
    )
    assert rules("digits_mgp_ldam")["cls"]["prior"] is None


def test_the_rule_follows_sampling_weights_and_smoothing():
    assert rules("digits_mgp_crt")["cls"]["prior"] == pytest.approx([1 / 3] * 3)
    weights = longtail.effective_number_weights(COUNTS).double()
    weighted = (PRIOR * weights / (PRIOR * weights).sum()).tolist()
    assert rules("digits_teacher_ce_drw")["cls"]["prior"] == pytest.approx(weighted)
    student = rules("digits_deit_lt", smoothing=0.1)
    assert student["dist"]["prior"] == pytest.approx(weighted)
    assert student["cls"]["prior"] == pytest.approx(PRIOR.tolist())  # DRW weighs the teacher's answers alone
    assert student["cls"]["smoothing"] == 0  # none while DRW runs
    assert rules("digits_deit_lt", smoothing=0.1, drw_mixup=True)["cls"]["smoothing"] == 0.1
    assert rules("digits_deit_lt_no_drw")["dist"]["prior"] == pytest.approx(PRIOR.tolist())


def test_a_loaded_model_moves_each_head_by_its_own_rule(trained, digits):
    model, test = models.load(trained["deit_lt"].path / "export"), digits.test.images[:7]
    rule, uniform = model.config["ltvit"]["heads"], torch.full((10,), 0.1)
    raw = outputs(model, augment.evaluate(test, 8, digits.mean, digits.std))
    moved = [losses.decide_ce(z, rule[h]["prior"], uniform) for z, h in zip(raw, ("cls", "dist"))]
    ours = models.predict(model, test, test_prior="uniform")
    torch.testing.assert_close(ours, (sum(moved) / 2).softmax(1))
    torch.testing.assert_close(ours, models.predict(model, test, test_prior=dict.fromkeys("0123456789", 7)))
    only = models.predict(model, test, test_prior={"3": 1, "8": 3})
    assert not only[:, [0, 1, 2, 4, 5, 6, 7, 9]].any() and only[:, [3, 8]].all()


def test_balanced_logits_return_to_the_training_prior(trained, digits):
    """Bal-BCE's raw logits plus its bias are the posterior under the training prior: no shift is left."""
    model, prior = models.load(trained["livt"].path / "export"), longtail.prior(digits.counts).double()
    z = outputs(model, augment.evaluate(digits.test.images, 8, digits.mean, digits.std))[0]
    posterior = torch.sigmoid(z + losses.logit_bias_bce(prior)).double()
    ours = models.predict(model, digits.test.images, test_prior=prior)
    torch.testing.assert_close(ours.double(), posterior / posterior.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_a_prior_of_ones_own_replaces_the_models(trained, digits):
    model, uniform = models.load(trained["teacher"].path / "export"), torch.full((10,), 0.1)
    few, prior = digits.test.images[:3], longtail.prior(digits.counts)
    z = 30 * outputs(model, augment.evaluate(few, 8, digits.mean, digits.std))[0]
    wanted = losses.decide_ce(z, prior, uniform).softmax(1)
    torch.testing.assert_close(models.predict(model, few, prior, uniform), wanted)
    refused(lambda: models.predict(model, few, test_prior=uniform), "needs train_prior .*logits of ldam follow")


# --- pictures --------------------------------------------------------------------------------------------------


def test_paths_pil_images_and_pixels_are_one(tmp_path, trained, digits):
    model, pixels = models.load(trained["vit"].path / "export"), digits.test.images[:4]
    pictures = [Image.fromarray(p[0].numpy()) for p in pixels]
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for picture, file in zip(pictures, files):
        picture.convert("RGB").save(file)
    wanted = models.predict(model, pixels)
    for same in (pictures, files, [str(f) for f in files]):
        torch.testing.assert_close(models.predict(model, same, batch=3), wanted)
    torch.testing.assert_close(models.predict(model, files[2]), wanted[2:3])
    as_torch, as_pillow = list(pixels), [np.asarray(picture) for picture in pictures]
    for same in (as_torch, as_pillow, pixels.numpy(), pixels.movedim(1, 3).numpy(), map(str, files)):
        torch.testing.assert_close(models.predict(model, same, batch=3), wanted)
    named = models.label(model, files)
    assert named["path"].tolist() == [str(f) for f in files]
    assert list(models.label(model, pictures)) == list(models.label(model, pixels)) == ["label", "probability"]
    assert named["label"].tolist() == [digits.classes[c] for c in wanted.argmax(1)]
    assert named["probability"].tolist() == pytest.approx(wanted.max(1).values.tolist())
    larger = [p.resize((24, 16), Image.Resampling.BICUBIC) for p in pictures]  # sides and shapes may differ
    assert models.predict(model, [*pictures[:2], *larger[2:]]).shape == (4, 10)
    files[1].write_bytes(b"no picture")
    refused(lambda: models.predict(model, files), "cannot decode .*1.png")


@pytest.fixture
def photos(tmp_path, digits) -> Path:
    """Three pictures, one of them nested, and no picture."""
    place = tmp_path / "photos"
    (place / "b").mkdir(parents=True)
    for name, pixels in zip(("b/1.png", "c.PNG", "a.png"), digits.test.images):
        Image.fromarray(pixels[0].numpy()).save(place / name)
    (place / "notes.txt").write_text("no picture")
    return place


def test_a_folder_is_labelled_picture_by_picture(trained, photos):
    model, names = models.load(trained["vit"].path / "export"), ["a.png", "b/1.png", "c.PNG"]
    table = models.label(model, str(photos), test_prior="uniform")
    assert table.columns.tolist() == ["path", "label", "probability"] and table["path"].tolist() == names
    listed = models.label(model, (photos / name for name in names), test_prior="uniform")
    assert table.drop(columns="path").equals(listed.drop(columns="path"))
    assert torch.equal(models.predict(model, photos), models.predict(model, [photos / name for name in names]))


def test_an_unreadable_picture_of_a_folder_is_left_out_and_named(trained, photos):
    model = models.load(trained["vit"].path / "export")
    (photos / "b" / "1.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 3 pictures in .*photos cannot .* left out: b/1.png") as caught:
        assert models.label(model, photos)["path"].tolist() == ["a.png", "c.PNG"]
    assert len(caught) == 1
    for name in ("a.png", "c.PNG"):
        (photos / name).unlink()
    with pytest.warns(UserWarning, match="1 of 1 pictures"):
        refused(lambda: models.predict(model, photos), "give at least one")
    (photos / "b" / "1.png").unlink()
    refused(lambda: models.label(model, photos), "none found, give at least one .*.png")


def test_paths_and_opened_images_agree_on_deep_turned_and_transparent_pictures(tmp_path, trained, rng):
    model, (deep, turned, clear) = models.load(trained["vit"].path / "export"), [tmp_path / f"{n}.png" for n in "abc"]
    values = torch.randint(0, 2**16, (8, 8), generator=rng).numpy().astype(np.uint16)
    Image.fromarray(values).save(deep)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray((values >> 8).astype(np.uint8)).save(turned, exif=exif)
    Image.fromarray(np.stack([values >> 8] * 4, 2).astype(np.uint8)).save(clear)
    files = [deep, turned, clear]
    found = models.predict(model, files)
    assert torch.equal(models.predict(model, [Image.open(f) for f in files]), found)
    pixels = torch.from_numpy((values >> 8).astype(np.uint8))[None, None]
    torch.testing.assert_close(models.predict(model, torch.cat([pixels, pixels.rot90(-1, (2, 3)), pixels])), found)
    assert models.label(model, files)["probability"].tolist() == found.max(1).values.tolist()


def test_the_command_writes_a_table(trained, photos, tmp_path, monkeypatch, capsys):
    def command(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["predict", *arguments])
        predict.main()

    model, out = str(trained["vit"].path / "export"), tmp_path / "new" / "labels.csv"
    command(model, str(photos), "--out", str(out), "--test-prior", "uniform")
    table = models.label(models.load(model), photos, test_prior="uniform")
    pd.testing.assert_frame_equal(pd.read_csv(out, dtype={"label": str}), table)
    assert capsys.readouterr().out == f"{out}: 3 pictures\n"
    for wrong, says in ([str(photos), model], "no exported model"), ([model, "nowhere"], "cannot decode .* nowhere"):
        with pytest.raises(SystemExit, match=says):
            command(*wrong, "--out", str(out))


def test_what_cannot_be_predicted_is_refused(trained, digits):
    model, test = models.load(trained["vit"].path / "export"), digits.test.images[:2]
    fresh = models.create("vit_w64d4_patch2_8", in_chans=1, num_classes=10)
    refused(lambda: models.predict(fresh, test), "raw pictures need the scale")
    refused(lambda: models.label(fresh, test), "class names are unknown")
    refused(lambda: models.predict(model, []), "at least one")
    refused(lambda: models.predict(model, None), "this NoneType apart: give a folder, or a list of paths")
    refused(lambda: models.predict(model, test[0].numpy()), "the pictures of this ndarray apart")
    refused(lambda: models.label(model, [7]), r"images\[0\] is of type int: give a folder")
    refused(lambda: models.predict(model, [test[0], test[0] / 255]), r"\[1\] is torch.float32 \(1, 8, 8\): make it")
    refused(lambda: models.predict(model, np.zeros((2, 3), np.uint8)), "ndarray apart")
    refused(lambda: models.predict(model, [np.zeros(3, np.uint8)]), r"is uint8 \(3,\): make it")
    refused(lambda: models.predict(model, test, test_prior={"cat": 1}), "no class 'cat'; known: 0, 1")
    refused(lambda: models.predict(model, test, test_prior="balanced"), "'uniform' or a dict .* not 'balanced'")
    for wrong in ({"3": 0}, {"3": 2, "4": -1}, torch.full((10,), 0.2)):
        refused(lambda: models.predict(model, test, test_prior=wrong), "test_prior: frequencies must be")  # noqa: B023
    refused(lambda: models.predict(model, test, digits.counts, [0.1] * 10), "train_prior: frequencies must be")


# --- the folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", (*CLASSIFIERS, "mgp"))
def test_the_cards_code_runs_in_its_folder(kind, trained, monkeypatch, capsys):
    card = (trained[kind].path / "export" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == (2 if kind in VITS else 1)
    monkeypatch.chdir(trained[kind].path / "export")
    for block in blocks:
        exec(block, {})
    assert ("label" in capsys.readouterr().out) == (kind != "mgp")


def test_the_card_has_the_runs_numbers(trained):
    run = trained["deit_lt"]
    card = (run.path / "export" / "README.md").read_text()
    for head, values in run.result["heads"].items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {head} |"))
        assert row.split("|")[2:4] == [f" {100 * values[g]:.1f} " for g in ("top1", "all")]
    assert "`epochs=2`" in card and run.identity["data"] in card and run.identity["start"]["teacher"] in card
    assert f"`{run.recipe.teacher}`" in card
    assert card.startswith("---\nlicense: mit\n")


def test_the_citation_names_this_version_and_the_cards_papers():
    text = (Path(__file__).resolve().parents[1] / "CITATION.cff").read_text()
    assert f"version: {ltvit_lib.__version__}\n" in text and "license: MIT" in text
    titles = re.findall(r'^    title: "(.*)"', text, re.MULTILINE)
    cited = re.findall(r"^  title={(.*)},", export.CITATIONS, re.MULTILINE)
    assert titles == [title.replace("{", "").replace("}", "") for title in cited]
    assert len(titles) == 2


def test_own_images_keep_their_place_to_themselves(tmp_path, trained, digits):
    place = tmp_path / "private" / "shapes"
    for i, (pixels, target) in enumerate(zip(digits.train.images[:, 0], digits.train.targets)):
        (place / f"class{target}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place / f"class{target}" / f"{i}.png")
    recipe = recipes.get("digits_vit_ce", **SHORT, data=str(place), rho=None, batch_size=16)
    run = train.fit(recipe, tmp_path / "run", progress=False)
    path = runs.export(run, tmp_path / "shared")
    assert not any(b"private" in file.read_bytes() for file in path.iterdir())
    model = models.load(path)
    assert model.config["label_names"] == sorted(d.name for d in place.iterdir())
    files = sorted(place.rglob("*.png"))[:20]
    prepared = train.load_split(recipe, 0)
    found = models.predict(model, files)
    pixels = torch.stack([torch.tensor(data._decode(f, "", None)) for f in files])
    direct = outputs(rounded(run, prepared), augment.evaluate(pixels, 8, prepared.mean, prepared.std))
    torch.testing.assert_close(found, direct[0].softmax(1))


def test_what_cannot_be_exported_is_refused(tmp_path, trained, digits):
    run = trained["vit"]
    refused(lambda: runs.export(run, tmp_path / "x", split=data.load("digits", 10.0)), "was trained on other images")
    unfinished = runs.open_run(tmp_path / "new", run.identity, resume=True)
    refused(lambda: runs.export(unfinished), "has not finished")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot make .*: choose a folder"):
        runs.export(run, tmp_path / "file" / "x", split=digits)


@pytest.mark.parametrize("found", [{"README.md": "My thesis"}, {"config.json": "{}"}, {"config.json": "3"}])
def test_only_an_earlier_export_is_written_over(found, tmp_path, trained, digits):
    run, place = trained["vit"], tmp_path / "thesis"
    place.mkdir()
    assert runs.export(run, place, digits) == runs.export(run, place, digits)  # empty, then its own
    (place / "config.json").unlink()
    for name, text in found.items():
        (place / name).write_text(text)
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    refused(lambda: runs.export(run, place, digits), "thesis holds files that no earlier export wrote: give a new")
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


def test_a_folder_without_a_model_is_refused(tmp_path, trained):
    refused(lambda: models.load(tmp_path), "config.json is no exported model's .* that runs.export wrote")
    described = config(trained["vit"])
    (tmp_path / "config.json").write_text(json.dumps(described))
    refused(lambda: models.load(tmp_path), "no checkpoint at")


def test_an_unregistered_recipe_says_so(tmp_path, trained, digits):
    run = trained["vit"]
    own = replace(run.recipe, name="mine")
    identity = run.identity | {"recipe": runs.fields_of(own)}
    copy = runs.open_run(tmp_path / "mine", identity, resume=True)
    for name in ("last.safetensors", "result.json", "env.json"):
        (copy.path / name).write_bytes((run.path / name).read_bytes())
    assert "`mine`, not one of the library" in (runs.export(copy, split=digits) / "README.md").read_text()


def test_the_pages_command_names_recipes_and_fields_that_all_of_them_have():
    page = (Path(__file__).resolve().parents[1] / "notebooks" / "17_your_own_images.py").read_text()
    table, changes = re.search(r"make table T=(\S+) DATA=\S+ SEEDS=3 \\\n# +SET='(.+)'\n", page).groups()
    named = [name for target in table.split(",") for name in (*recipes.needs(target), target)]
    assert len(named) == 4
    for name in named:
        recipe = recipes.get(name, data="/data/birds", rho=None, **json.loads(changes))
        assert recipe.batch_size == 256
