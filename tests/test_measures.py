"""What `make measures` writes: closed forms of its measures, and tables that say which runs they lack."""

import json
import math
import os
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

from ltvit_lib import augment, data, jobs, longtail, losses, recipes, runs, train

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow"))
import analyses
import experts
import measure
import measuring
import teachers

TEACHER, STUDENT = "digits_teacher_ldam_drw_sam", "digits_deit_lt"


def made_up(root: Path, name: str, seed: int = 0, place: str = "", teacher: runs.Run | None = None, **changes):
    """The folder of a finished run that never trained: fresh weights, made-up curve; CLS leans to the head classes."""
    recipe = recipes.get(name, **changes)
    split = train.load_split(recipe, seed)
    start = sha256((teacher.path / "last.safetensors").read_bytes()).hexdigest()[:12] if teacher else ""
    path = root / (place or f"{name}{len(changes)}") / f"seed{seed}"
    path.mkdir(parents=True)
    identity = runs.identity(recipe, seed, split.digest, {"init": "", "teacher": start})
    (path / "recipe.json").write_text(json.dumps(identity))
    torch.manual_seed(seed)
    kind = jobs.PretrainJob if recipe.kind == "pretrain" else jobs.FinetuneJob
    weights = kind(recipe, split, torch.device("cpu")).build().state_dict()
    save_file({f"model.{k}": v.contiguous() for k, v in weights.items()}, path / "last.safetensors")
    epochs = torch.arange(recipe.epochs)
    pd.DataFrame({"epoch": epochs, "loss": epochs / 2.0, "accuracy": 0.5}).to_csv(path / "metrics.csv", index=False)
    part = split.val if recipe.evaluate_on == "val" else split.test
    z = 3.0 * torch.nn.functional.one_hot(part.targets, 10) + longtail.prior(split.counts).log()
    heads = {"cls": z} if recipe.kind != "distil" else {"cls": z, "dist": z.roll(1, 0), "avg": (z + z.roll(1, 0)) / 2}
    save_file(
        {k: v.float().contiguous() for k, v in heads.items()} | {"targets": part.targets}, path / "test.safetensors"
    )
    (path / "result.json").write_text("{}")
    return runs.Run(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, its student, both with a validation part held out, three classifiers and a masked autoencoder."""
    root = tmp_path_factory.mktemp("runs")
    for changes in ({}, {"evaluate_on": "val"}):
        made_up(root, STUDENT, teacher=made_up(root, TEACHER, **changes), **changes)
    for name in ("digits_vit_ce", "digits_livt", "digits_mgp_ce", "digits_mgp"):
        made_up(root, name)
    return root


def run_of(folder: Path, name: str) -> runs.Run:
    return next(run for run in measuring.unchanged(measuring.finished(str(folder))) if run.recipe.name == name)


def stored(recipe: recipes.Recipe, **logits) -> SimpleNamespace:
    """What the scripts read of a run whose logits are made up."""
    return SimpleNamespace(recipe=recipe, seed=0, logits=lambda: logits)


def log_prior(split: data.Split) -> torch.Tensor:
    return longtail.prior(split.counts).log()


def clear(targets: torch.Tensor, off: int = 0, size: float = 1.0) -> torch.Tensor:
    """(N, 5) logits that name each image's class or, always wrong, the one `off` classes on."""
    return size * torch.nn.functional.one_hot((targets + off) % 5, 5)


@pytest.fixture
def held_out(tiny_longtail, monkeypatch):
    """A split with a validation part; the logits on its test set, which a run does not store, are the test's to set."""
    split, on_test = replace(tiny_longtail, val=tiny_longtail.test.subset(range(30))), {}
    monkeypatch.setattr(measuring, "load_split", lambda run: split)
    monkeypatch.setattr(train, "build", lambda run, split: (None, split))
    monkeypatch.setattr(train, "predict_logits", lambda model, part, *_: on_test if part is split.test else {})
    return split, on_test


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Reads a table that was written to a figures folder of this test's own."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("LTVIT_FIGURES", str(tmp_path))
    return lambda name: pd.read_csv(tmp_path / "data" / f"{name}.csv")


# --- which runs, which tables ------------------------------------------------------------------------------------


def test_of_two_folders_of_one_run_the_younger_counts(tmp_path, capsys):
    old, new = (made_up(tmp_path, "digits_vit_ce", place=place) for place in ("b", "a"))
    other = made_up(tmp_path, "digits_vit_ce", seed=1)
    changed = made_up(tmp_path, "digits_vit_ce", evaluate_on="val")
    short = made_up(tmp_path, "digits_vit_ce", place="short", epochs=9, warmup_epochs=0.0, evaluate_on="val")
    for age, run in enumerate((new, old)):
        os.utime(run.path / "result.json", (1e9 - age, 1e9 - age))
    found = measuring.finished(str(tmp_path))
    assert set(found) == {new, other, changed, short}
    assert f"{old.path} is passed over" in capsys.readouterr().out
    assert measuring.unchanged(found) == [new, other]
    assert measuring.held_out(found) == [changed]


def test_a_table_names_the_runs_that_it_lost(written, capsys):
    rows = [{"recipe": "a", "seed": seed, "value": seed / 3} for seed in range(3)]
    measuring.save("table", rows, digits=3)
    assert written("table")["value"].tolist() == [0, 0.333, 0.667]
    assert "no more" not in capsys.readouterr().out
    measuring.save("table", rows[:1] + [{"recipe": "b", "seed": 1, "value": 1.0}], digits=3)
    assert "table.csv has no more: recipe a, seed 1, recipe a, seed 2\n" in capsys.readouterr().out
    measuring.save("table", [], digits=3)
    assert list(written("table")) == ["recipe", "seed", "value"] and written("table").empty
    assert "recipe b, seed 1" in capsys.readouterr().out


def test_curves_are_averaged_over_blocks(tmp_path):
    run = made_up(tmp_path, "digits_vit_ce", epochs=7, warmup_epochs=0.0)
    rows = measuring.curve_blocks(run, 3, loss="loss", test="eval_avg")
    assert [(row["epoch"], row["loss"]) for row in rows] == [(2, 0.5), (5, 2.0), (6, 3.0)]
    assert all(math.isnan(row["test"]) and row["recipe"] == "digits_vit_ce" for row in rows)


def test_the_most_accurate_option_and_the_middle_one_of_equals():
    assert measuring.most_accurate("abcde", [0.1, 0.5, 0.5, 0.5, 0.2]) == "c"
    assert measuring.most_accurate((0.0, 1.0), iter((0.9, 0.2))) == 0.0


@pytest.mark.parametrize(
    ("script", "name"),
    [(measure, "digits_vit_ce"), (measure, "digits_mgp"), (teachers, TEACHER), (experts, STUDENT),
     (analyses, "digits_vit_ce")],
)  # fmt: skip
def test_a_run_on_other_images_is_refused(tmp_path, written, script, name):
    run = made_up(tmp_path, name)
    runs.write_json(run.path / "recipe.json", run.identity | {"data": "0123456789ab"})
    with pytest.raises(SystemExit, match=rf"^{run.path} was trained on other images \(0123456789ab, here \w+\): .*$"):
        script.main(str(tmp_path))


def test_measures_of_what_is_there_and_a_word_on_what_is_not(folder, written, monkeypatch, capsys):
    monkeypatch.setattr(measure, "SHIFTS", [0.0, 0.5, 1.0])
    monkeypatch.setattr(measure.error_by_class, "__defaults__", (1,))
    measure.main(str(folder))
    said = capsys.readouterr().out
    assert "left out, since not run: digits_livt_mixup, digits_mgp_balanced" in said
    rules = written("decision_rules").set_index(["recipe", "method", "group"])["accuracy"]
    assert set(rules.index.levels[0]) == {"digits_vit_ce", "digits_livt", "digits_mgp_ce"}
    # the made-up logits are the training posterior of images that all are clear: the rule undoes the prior
    assert rules["digits_vit_ce", "adjusted", "all"] == 1 > rules["digits_vit_ce", "raw argmax", "all"]
    assert rules["digits_vit_ce", "adjusted", "ece"] < rules["digits_vit_ce", "raw argmax", "ece"]
    curve = written("decision_control").query("recipe == 'digits_vit_ce' and group == 'all'").set_index("method")
    assert curve.loc["shift, t best on the test set", "accuracy"] == curve.loc["adjusted", "accuracy"] == 1
    adjusted = written("zoo_post_hoc").query("method == 'post-hoc logit adjustment'").set_index("group")["accuracy"]
    assert adjusted["all"] == adjusted["head"] == adjusted["tail"] == 1
    error = written("mgp_error_by_class")
    assert set(zip(error["scale"], error["trained on"])) == {("digits", "long-tailed")} and len(error) == 10
    assert set(written("ldam_curves")["recipe"]) == {"digits_vit_ce"}
    assert written("one_pixel")[["recipe", "seed"]].to_numpy().tolist() == [["digits_vit_ce", 0]]


def test_answers_to_images_moved_by_a_pixel(folder, monkeypatch):
    run = run_of(folder, "digits_vit_ce")
    model, split = train.build(run)
    moved = split.test.images.roll(1, dims=-1)
    moved[..., 0] = 0
    part = data.Images(moved, split.test.targets)
    z = train.predict_logits(model, part, run.recipe, split.mean, split.std)["cls"]
    for sign, kept in ((1, 1), (-1, 0)):
        monkeypatch.setattr(runs.Run, "logits", lambda _, sign=sign: {"cls": sign * z})
        assert measure.one_pixel(run)["kept"] == kept


def test_the_error_of_a_masked_autoencoder_is_that_of_its_loss_on_hidden_patches(folder):
    run = run_of(folder, "digits_mgp")
    mae, split = train.build(run)
    images = augment.evaluate(split.test.images, run.recipe.image_size, split.mean, split.std)
    generator, found = torch.Generator().manual_seed(0), measure.error_by_class(run, masks=2)
    noise = [torch.rand(len(images), mae.encoder.patch_embed.num_patches, generator=generator) for _ in range(2)]
    for c in (0, 9):
        these = split.test.targets == c
        with torch.no_grad():
            means = [mae(images[these], run.recipe.mask_ratio, n[these])[0].item() for n in noise]
        assert found[c] == pytest.approx(sum(means) / 2, rel=1e-5)


def test_nothing_run_gives_empty_tables(tmp_path, written, capsys):
    measure.save("table", [{"recipe": "a", "seed": 0, "value": 1.0}])
    measure.save("table", [])
    assert written("table").empty and "has no more: recipe a, seed 0" in capsys.readouterr().out


# --- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_vit_ce", "digits_mgp_bal_ce", "digits_livt_tau0.5", "digits_mgp_bce"])
def test_the_decider_undoes_what_training_added(name, rng):
    """A loss's optimum, moved to the training prior itself, is the posterior under it."""
    counts = [50, 30, 15, 5]
    recipe, prior = recipes.get(name, smoothing=0.0), longtail.prior(counts)
    posterior = torch.rand(20, 4, generator=rng).softmax(1)
    binary = "bce" in recipe.loss
    optimum = torch.logit(posterior) if binary else posterior.log()
    if "balanced" in recipe.loss:
        bias = losses.logit_bias_bce(prior) if binary else losses.logit_bias_ce(prior)
        optimum = optimum - recipe.loss_options.get("tau", 1.0) * bias
    run = type("Run", (), {"recipe": recipe})
    scores = measure.decider(run, counts)(optimum, prior)
    torch.testing.assert_close(scores.softmax(1), posterior, atol=1e-5, rtol=1e-4)


def test_a_run_that_sees_nothing_is_right_as_often_as_the_class_that_it_names(tiny_longtail, monkeypatch):
    """Argmax names the head class; the rule names the most frequent class of the test prior that it decides for."""
    monkeypatch.setattr(measuring, "load_split", lambda run: tiny_longtail)
    blank = log_prior(tiny_longtail).expand(30, 5)
    run = stored(recipes.get("digits_vit_ce", smoothing=0.0), cls=blank, targets=tiny_longtail.test.targets)
    found = {(row["method"], row["group"]): row["accuracy"] for row in measure.decisions(run)}
    assert found["raw argmax", "all"] == pytest.approx(1 / 5)
    assert found["raw argmax", "long-tailed"] == pytest.approx(40 / 85)
    assert found["raw argmax", "inverted"] == pytest.approx(4 / 85)
    assert found["adjusted", "long-tailed"] == found["adjusted", "inverted"] == pytest.approx(40 / 85)


def test_a_shift_is_chosen_on_the_validation_part(held_out):
    """There the posterior of the training prior needs t = 1; the test set's clear logits need none, and lose by it."""
    split, on_test = held_out
    recipe = recipes.get("digits_vit_ce", evaluate_on="val")
    y = split.test.targets
    run = stored(recipe, cls=clear(y) + log_prior(split), targets=y)
    on_test["cls"] = clear(y)
    table, curve = measure.leaning(run)
    rows = {(row["method"], row["group"]): row for row in table}
    name = "shift, t chosen on validation"
    assert rows[name, "all"]["t"] == pytest.approx(1, abs=0.05)
    assert (rows[name, "head"]["accuracy"], rows[name, "tail"]["accuracy"]) == (0, 1)
    best = rows["shift, t best on the test set", "all"]
    assert best["accuracy"] == 1 and best["t"] < 0.5
    assert {row["t"]: row["all"] for row in curve}[0.0] == 1


@pytest.mark.parametrize("name", ["digits_mgp_bce", "digits_livt_tau0.5", "digits_livt"])
def test_a_sweep_over_tau_begins_at_the_tau_of_training(name, tiny_longtail, monkeypatch):
    """At the optimum of any tau: without bias the answers lean to the head, with twice the bias to the tail."""
    monkeypatch.setattr(measuring, "load_split", lambda run: tiny_longtail)
    y, bias = tiny_longtail.test.targets, losses.logit_bias_bce(longtail.prior(tiny_longtail.counts))
    trained = {"digits_mgp_bce": 0.0, "digits_livt_tau0.5": 0.5, "digits_livt": 1.0}[name]
    run = stored(recipes.get(name), cls=clear(y) + (1 - trained) * bias, targets=y)
    found = {(row["tau"], row["group"]): row["accuracy"] for row in measure.tau_sweep(run)}
    assert found[1.0, "all"] == 1
    assert (found[0.0, "head"], found[0.0, "tail"]) == (1, 0)
    assert (found[2.0, "head"], found[2.0, "tail"]) == (0, 1)


def test_the_repair_adds_the_bias_of_training(tiny_longtail, monkeypatch):
    """The optimum of Bal-BCE, logit eta - B, of images that speak for their class e times as much as for others."""
    monkeypatch.setattr(measuring, "build", lambda run: (None, tiny_longtail))
    y, prior = tiny_longtail.test.targets, longtail.prior(tiny_longtail.counts)
    eta = (clear(y) + prior.log()).softmax(1)
    run = stored(recipes.get("digits_livt"), cls=torch.logit(eta) - losses.logit_bias_bce(prior), targets=y)
    found = {row["group"]: row["accuracy"] for row in measure.post_hoc(run) if row["method"] == "Bal-BCE, repaired"}
    assert found["all"] == found["head"] == found["tail"] == 1


# --- experts -----------------------------------------------------------------------------------------------------


def test_tables_of_the_experts_agree_with_each_other(folder, written, monkeypatch):
    monkeypatch.setattr(experts, "WEIGHTS", [0.0, 0.5, 1.0])
    monkeypatch.setattr(experts.dist_prior, "__defaults__", (1,))
    experts.main(str(folder))
    heads = written("experts_rules").query("prior == 'as trained'").set_index(["of", "group"])["accuracy"]
    ends = written("experts_weights").query("prior == 'as trained'").set_index("w")
    for w, head in ((1.0, "CLS"), (0.0, "DIST"), (0.5, "average of logits")):
        assert ends.loc[w, "tail"] == pytest.approx(heads[head, "tail"])
    cases = written("experts_agreement").pivot(index="group", columns="right", values="share")
    assert cases.sum(axis=1).tolist() == pytest.approx([1] * 4)
    assert cases.loc["tail", ["both", "only CLS"]].sum() == pytest.approx(heads["CLS", "tail"], abs=1e-5)
    shares = written("experts_shares")
    sums = shares.groupby("head")[["answers", "probability", "prior"]].sum()
    assert sums.to_numpy() == pytest.approx(np.ones((2, 3)), abs=1e-5)
    assert written("experts_chosen")["rule"].nunique() == 9  # four ways to move the experts, w chosen or not; and t


def test_a_student_is_measured_with_its_very_teacher(folder, capsys):
    found = measuring.finished(str(folder))
    student = next(run for run in measuring.unchanged(found) if run.recipe.name == STUDENT)
    split = train.load_split(student.recipe, 0)
    others = [run for run in found if runs.changes(run.recipe)]  # of the same recipe, on fewer images
    assert experts.prior_of_dist(student, split, others) is None
    assert f"no {TEACHER} here has weights" in capsys.readouterr().out
    assert experts.prior_of_dist(student, split, found).sum() == pytest.approx(1)


@pytest.mark.parametrize("drw_epoch", [270, None])
def test_the_prior_of_dist_is_that_of_the_answers_times_the_weights_of_drw(folder, monkeypatch, drw_epoch):
    """Of a teacher that says 2 and 7 in turn, whatever it is shown; a class it never names counts as one answer."""
    monkeypatch.setattr(jobs.DistilJob, "ask", lambda self, images: torch.arange(len(images)) % 2 * 5 + 2)
    teacher = run_of(folder, TEACHER)
    split = train.load_split(teacher.recipe, 0)
    found = experts.dist_prior(stored(recipes.get(STUDENT, drw_epoch=drw_epoch)), split, teacher, images=1)
    mass = torch.ones(10)
    mass[[2, 7]] = len(split.train) // 2
    if drw_epoch:
        mass /= 1 - 0.9999 ** torch.tensor(split.counts)
    torch.testing.assert_close(found, mass / mass.sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, 4), ({"teacher_policy": "weak"}, 6), ({"mixup": 0.8}, 4), ({"mixup": 0.8, "drw_epoch": None}, 8)],
)
def test_the_prior_of_dist_is_asked_of_the_views_of_the_last_epoch(folder, monkeypatch, changes, named):
    """Views are blank but for a class that the teacher reads off: 4 the student's, 6 a padded crop, 8 mixed ones."""
    paint = lambda policy, images, _: images * 0 + (6 if policy.crop == "padded" else 4)  # noqa: E731
    monkeypatch.setattr(augment, "apply", paint)
    monkeypatch.setattr(jobs, "Mixup", lambda *_, **__: lambda images, labels: (images * 0 + 8, labels))
    monkeypatch.setattr(jobs.DistilJob, "ask", lambda self, images: images.flatten(1)[:, 0].long())
    teacher = run_of(folder, TEACHER)
    split = train.load_split(teacher.recipe, 0)
    recipe = recipes.get(STUDENT, **{"mixup": 0.0, "cutmix": 0.0, "policy": "strong", "policy_options": {}} | changes)
    assert experts.dist_prior(stored(recipe), split, teacher, images=1).argmax() == named


def test_each_expert_is_moved_from_its_own_prior():
    """Posteriors under two priors, of images of equal evidence, become one and the same under a uniform test."""
    counts, of_dist = [50, 30, 15, 5], torch.tensor([0.1, 0.2, 0.3, 0.4])
    evidence = torch.eye(4)
    part = {"cls": evidence + longtail.prior(counts).log(), "dist": evidence + of_dist.log()}
    found = experts.experts(stored(recipes.get(STUDENT, smoothing=0.0)), counts, of_dist, part)
    for scores in found["both moved"]:
        torch.testing.assert_close(scores.softmax(1), evidence.softmax(1))
    torch.testing.assert_close(found["CLS moved"][1], part["dist"])
    assert "both moved" not in experts.experts(stored(recipes.get(STUDENT)), counts, None, part)


def test_who_is_right_is_counted_within_a_group(tiny_longtail):
    """Of six images a class both experts get three right, only CLS two, only DIST one; the average all of the tail."""
    y, nth = tiny_longtail.test.targets, torch.arange(30) % 6
    right = {"cls": nth < 5, "dist": (nth < 3) | (nth == 5), "avg": y >= 3}
    part = {head: clear(y + ~chosen) for head, chosen in right.items()} | {"targets": y}
    rows = {(row["group"], row["right"]): row for row in experts.agreement(tiny_longtail, part)}
    for group, average in {"all": 0.4, "head": 0, "mid": 0, "tail": 1}.items():
        assert rows[group, "neither"]["share"] == 0
        for case, share in {"both": 1 / 2, "only CLS": 1 / 3, "only DIST": 1 / 6}.items():
            assert rows[group, case]["share"] == pytest.approx(share)
            assert rows[group, case]["average"] == pytest.approx(average)


def test_a_weight_is_chosen_on_the_validation_part(held_out):
    """There CLS is right and DIST wrong, on the test set the other way round: the weight is CLS's, and always wrong."""
    split, on_test = held_out
    y = split.test.targets
    right, wrong = clear(y, size=9.0), clear(y, off=1, size=9.0)
    on_test |= {"cls": wrong, "dist": right}
    run = stored(recipes.get(STUDENT, evaluate_on="val"), cls=right, dist=wrong, targets=y)
    rows = [row for row in experts.chosen(run, split, torch.full((5,), 0.2)) if row["group"] == "all"]
    rows = {row["rule"]: row for row in rows if row["rule"].startswith("w chosen")}
    assert "w chosen, both moved" in rows and "w chosen, as trained" in rows
    assert all(row["w"] > 0.5 and row["accuracy"] == 0 for row in rows.values())


def test_a_shift_of_the_average_is_chosen_on_the_validation_part(held_out):
    """As of CLS alone, above: t = 1 on the validation part, where the test set needs none."""
    split, on_test = held_out
    y = split.test.targets
    on_test |= {"cls": clear(y), "dist": clear(y)}
    z = clear(y) + log_prior(split)
    run = stored(recipes.get(STUDENT, evaluate_on="val"), cls=z, dist=z, targets=y)
    rows = {(row["rule"], row["group"]): row for row in experts.chosen(run, split, None)}
    name = "w = 0.5, t chosen"
    assert rows[name, "all"]["t"] == pytest.approx(1, abs=0.05)
    assert (rows[name, "head"]["accuracy"], rows[name, "tail"]["accuracy"]) == (0, 1)
    assert (rows["w = 0.5, as trained", "all"]["t"], rows["w = 0.5, as trained", "all"]["accuracy"]) == (0, 1)


# --- teachers ----------------------------------------------------------------------------------------------------


def test_both_ends_of_a_known_spectrum(rng):
    basis = torch.linalg.qr(torch.randn(12, 12, generator=rng))[0]
    hessian = basis @ torch.diag(torch.linspace(-0.5, 7.0, 12)) @ basis.T
    parts = [torch.randn(5, generator=rng, requires_grad=True), torch.randn(7, generator=rng, requires_grad=True)]

    def loss():
        w = torch.cat(parts)
        return w @ hessian @ w / 2

    assert teachers.ends_of_spectrum(loss, parts) == pytest.approx((7.0, -0.5), abs=1e-3)


def test_flatness_is_measured_on_training_images(tiny_longtail, monkeypatch):
    """A network that names the brightest of the first five pixels: the label's, on a test image the next one's."""
    labels = tiny_longtail.train.targets
    lit = [torch.nn.functional.one_hot((labels + off) % 5, 192).view(-1, 3, 8, 8).byte() * 255 for off in (0, 1)]
    split = replace(tiny_longtail, train=data.Images(lit[0], labels), test=data.Images(lit[1], labels))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5, bias=False))
    model[1].weight.data = torch.eye(5, 192)
    monkeypatch.setattr(measuring, "build", lambda run: (model, split))
    monkeypatch.setattr(teachers.ends_of_spectrum, "__defaults__", (1,))
    rises, curvature = teachers.flatness(stored(recipes.get(TEACHER)), most=50)
    assert [(row["images"], row["count"], row["accuracy"]) for row in curvature] == [("all", 50, 1), ("tail", 11, 1)]
    assert {(row["images"], row["radius"]) for row in rises} == {
        (i, r) for i in ("all", "tail") for r in teachers.RADII
    }


def test_tables_of_the_teachers(folder, written, monkeypatch, capsys):
    monkeypatch.setattr(teachers.answers, "__defaults__", (2,))
    monkeypatch.setattr(teachers.flatness, "__defaults__", (20,))
    monkeypatch.setattr(teachers.ends_of_spectrum, "__defaults__", (3,))
    pd.DataFrame({"view": ["weak"]}).to_csv(teachers.picture_file().with_suffix(".csv"), index=False)
    teachers.picture_file().write_bytes(b"of a teacher that is gone")
    teachers.main(str(folder))
    assert written("shown_to_teacher").empty and not teachers.picture_file().exists()
    assert "left out, since not run: digits_deit, " in capsys.readouterr().out
    answers = written("teacher_answers")
    seen = answers.groupby("view")[["images", "answers"]].sum()
    assert set(seen.index) == {"plain", "strong", "mixed"}
    assert (seen["images"] == seen["answers"]).all() and seen["images"].nunique() == 1
    alone = answers.query("view != 'mixed'").dropna()
    assert (alone["own"] == alone["larger"]).all() and (alone["own"] == alone["either"]).all()
    assert (answers.dropna()["entropy"] <= answers.dropna()["entropy_bare"]).all()  # LDAM's scale sharpens
    assert (written("teacher_curvature").eval("largest - smallest") > 0).all()
    assert set(written("teacher_rise")["radius"]) == set(teachers.RADII)
    assert written("student_curves")["recipe"].unique().tolist() == [STUDENT]


# --- analyses ----------------------------------------------------------------------------------------------------


def test_rollout_numbers_of_maps_known_by_hand():
    brightness, uniform, point = torch.ones(3, 4), torch.full((3, 4), 0.1), torch.tensor([[0.0, 0, 0, 1]] * 3)
    flat = analyses.rollout_numbers(uniform, (2, 2), 4, brightness)
    wanted = {"mass": 0.4, "effective patches": 4, "spread": 8**0.5, "own": 0, "brightness": 1}
    assert flat == pytest.approx(wanted, abs=1e-6)
    brightness[:, 3] = 5
    narrow = analyses.rollout_numbers(point, (2, 2), 4, brightness)
    assert narrow == pytest.approx(wanted | {"mass": 1, "effective patches": 1, "spread": 0, "brightness": 2.5})
    each = analyses.rollout_numbers(torch.eye(4), (2, 2), 4, torch.ones(4, 4))
    assert each["own"] == pytest.approx(0.75)  # half of |1 - 1/4| + 3/4


def test_ranks_of_features_in_few_directions(rng):
    plane, line = torch.randn(60, 2, generator=rng), torch.randn(60, 1, generator=rng)
    every = torch.cat([plane, 100 * line, torch.zeros(60, 5)], 1)[None]  # one block
    tail = torch.arange(60) < 20
    rows = analyses.ranks(every, tail, True)
    assert {(row["rank"], row["of_all"], row["width"]) for row in rows if "rank" in row and row["centre"] == "all"} <= {
        (1, 1, 8)
    }
    left = {(row["centre"], row["kept"]): row["error"] for row in rows if "kept" in row}
    assert left["all", 3] == pytest.approx(0, abs=1e-5) and left["all", 1] > 0


def test_the_second_token_of_a_plain_vit_is_the_mean_over_patches(tiny_vit, rng):
    images = torch.randn(3, 3, 16, 16, generator=rng)
    found = analyses.token_features(tiny_vit, images, batch=2)
    blocks = tiny_vit.forward_intermediates(
        images, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for ours, (patches, prefix) in zip(found, blocks, strict=True):
        torch.testing.assert_close(ours, torch.stack([prefix[:, 0], patches.mean(1)], 1))


def test_maps_of_the_training_images_are_told_from_those_of_the_test_images(folder, monkeypatch):
    """Of black training images of the tail all maps are one, and none is brighter than its image."""
    run = run_of(folder, "digits_vit_ce")
    model, split = train.build(run)
    tail = split.groups["few"][split.train.targets]
    dark = data.Images(split.train.images * ~tail[:, None, None, None], split.train.targets)
    monkeypatch.setattr(measuring, "build", lambda run: (model, replace(split, train=dark)))
    monkeypatch.setattr(analyses, "ranks", lambda *_: [])
    monkeypatch.setattr(analyses, "pictures", lambda *_: [])
    for row in analyses.survey(run)["rollout"]:
        assert (row["own"] < 1e-6) == (abs(row["brightness"] - 1) < 1e-6) == (row["images"] == "train")


def test_tables_of_the_analyses(folder, written, monkeypatch, capsys):
    monkeypatch.setattr(analyses, "METHODS", ("vit_ce", "deit_lt"))
    analyses.main(str(folder))
    assert "left out, since not run: laptop_deit_lt, laptop_vit_ce\n" in capsys.readouterr().out
    distance = written("attention_distance")
    assert set(distance["recipe"]) == {"digits_vit_ce", STUDENT}
    assert len(distance) == 2 * 2 * 4 * 4  # runs, train and test, blocks, heads
    assert set(written("feature_rank").query("recipe == @STUDENT")["token"]) == {"CLS", "DIST"}
