"""Run folders survive kills and full disks, know whose they are, and their numbers reach the ledger."""

import errno
import json
import math
import os
from dataclasses import replace
from functools import partial

from ltvit_lib import costs, recipes, runs, train

import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from timm.optim import Lamb
from torch import nn

VIT = recipes.get("digits_vit_ce")
START = {"init": "", "teacher": ""}


def wanted(recipe=VIT, seed=0, data="0123456789ab", **start) -> dict:
    return runs.identity(recipe, seed, data, START | start)


def finished(folder, recipe=VIT, seed=0, accuracy=0.5, heads=("cls",), seconds=1.5, curve=None, **start) -> runs.Run:
    """A finished run without any training; `curve`: further columns of its metrics.csv."""
    run = runs.open_run(folder, wanted(recipe, seed, **start), resume=True)
    pd.DataFrame({"epoch": [0, 1, 2], "loss": 1.0} | (curve or {})).to_csv(run.path / "metrics.csv", index=False)
    scores = {"all": accuracy, "head": 0.9, "tail": 0.1, "per_class": [0.5, 0.5]}
    cost = {"final_loss": 1.0, "seconds": seconds, "images_per_second": 100.0, "peak_memory_mib": 300}
    runs.write_json(run.path / "result.json", {"heads": {h: scores for h in heads}} | cost)
    return run


# --- writing ---------------------------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["replace", "open", "fsync"])
def test_a_full_disk_leaves_the_file_before(tmp_path, monkeypatch, fails):
    path = tmp_path / "file"
    runs.write(path, b"before")
    if fails == "open":
        monkeypatch.setattr("builtins.open", full_disk)
    else:
        monkeypatch.setattr(os, fails, full_disk)
    with pytest.raises(OSError, match="cannot write .*No space left.*the last checkpoint is untouched") as caught:
        runs.write(path, b"after")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def trained(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    kinds = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9), "lamb": Lamb}
    return model, kinds[kind](groups, lr=0.1)


def steps(model, optimizer, count: int) -> None:
    for i in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lamb"])
def test_a_checkpoint_restores_weights_buffers_and_optimiser(tmp_path, kind):
    run, (model, optimizer) = runs.Run(tmp_path), trained(kind)
    steps(model, optimizer, 3)
    runs.save_checkpoint(run, model.state_dict(), optimizer, 7, 1.25)
    other, its_optimizer = trained(kind)
    assert runs.load_checkpoint(run, other, its_optimizer) == (7, 1.25)
    for one, two in ((model, optimizer), (other, its_optimizer)):
        steps(one, two, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_a_run_starts_from_runs_on_its_own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    assert runs.start(recipes.get("laptop_livt"), 1) == {"teacher": None, "init": tmp_path / "laptop_mgp" / "seed1"}
    assert runs.start(recipes.get("laptop_livt", epochs=9), 1)["init"] == tmp_path / "laptop_mgp" / "seed1"
    both = recipes.get("laptop_deit_lt_mgp", data="birds", batch_size=8)
    expected = {k: recipes.get(name, data="birds") for k, name in (("teacher", both.teacher), ("init", both.init))}
    assert runs.start(both) == {k: runs.folder(recipe) for k, recipe in expected.items()}
    assert runs.start(both, teacher="there")["teacher"] == "there"


def test_a_held_out_part_stays_unseen_by_what_a_run_starts_from(tmp_path, monkeypatch):
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    held = recipes.get("digits_livt", evaluate_on="val")
    assert runs.start(held)["init"] == runs.folder(recipes.get("digits_mgp", evaluate_on="val"))
    seen = finished(tmp_path / "seen", recipes.get("digits_mgp"), heads=())
    with pytest.raises(ValueError, match="saw the images that digits_livt holds out: train one with evaluate_on='val'"):
        train.fit(held, tmp_path / "run", init=seen, progress=False)


def test_a_row_names_every_commit_that_its_run_passed_through(tmp_path, monkeypatch):
    places = [
        {"torch": "1", "timm": "2", "device": d, "commit": c}
        for d, c in (("x", "a"), ("x", "a"), ("y", "b"), ("y", "c"))
    ]
    monkeypatch.setattr(runs, "environment", lambda: places[0])
    for _ in range(4):
        run = runs.open_run(tmp_path, wanted(), resume=True)
        places.pop(0)
        places.append(places[-1])
    assert runs.environments(run) == {"torch": "1", "timm": "2", "device": "y", "commit": "a b c"}
    assert len(json.loads((tmp_path / "env.json").read_text())["later"]) == 2, "the first is noted once"
    (row,) = runs.ledger_rows(finished(tmp_path))
    assert (row["commit"], row["device"]) == ("a b c", "y")


def test_no_checkpoint_and_a_damaged_one(tmp_path):
    run, (model, optimizer) = runs.Run(tmp_path), trained("adamw")
    assert runs.load_checkpoint(run, model, optimizer) == (0, 0.0)
    runs.save_checkpoint(run, model.state_dict(), optimizer, 1, 1.0)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged .* remove it to start this run again"):
        runs.load_checkpoint(run, model, optimizer)


def test_epochs_done_again_replace_their_rows_exactly(tmp_path):
    run = runs.Run(tmp_path)
    rows = [{"epoch": e, "loss": 1 / 3 + e, "accuracy": float("nan"), "lr": 0.1 / 3} for e in range(4)]
    runs.append_metrics(run, rows[:3])
    runs.append_metrics(run, [rows[2] | {"loss": 7.0}])
    runs.append_metrics(run, rows[2:])
    assert run.curve["epoch"].tolist() == [0, 1, 2, 3]
    assert (tmp_path / "metrics.csv").read_text() == pd.DataFrame(rows).to_csv(index=False), "to the last digit"


def test_a_column_that_only_one_session_wrote_is_empty_in_the_other(tmp_path):
    run, looked = runs.Run(tmp_path), {"loss": 1 / 3, "eval_cls": 2 / 3}
    runs.append_metrics(run, [{"epoch": 0, "loss": 1 / 3}])
    runs.append_metrics(run, [{"epoch": 1} | looked])
    runs.append_metrics(run, [{"epoch": 2, "loss": 1 / 3}])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["epoch,loss,eval_cls", f"0,{1 / 3},", f"1,{1 / 3},{2 / 3}", f"2,{1 / 3},"]


# --- folders ---------------------------------------------------------------------------------------------------


def snapshot(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (wanted(VIT, seed=1), "seed is 1 there and 0 here"),
        (wanted(replace(VIT, epochs=7)), "epochs is 7 there and 300 here"),
        (wanted(recipes.get("digits_mgp")), "kind is 'pretrain' there"),
        (wanted(data="ba9876543210"), "data is 'ba9876543210' there"),
        (wanted(teacher="abc"), "teacher is 'abc' there"),
    ],
    ids=["seed", "recipe", "kind", "data", "teacher"],
)
def test_another_run_is_left_alone(tmp_path, there, says):
    runs.open_run(tmp_path / "run", there, resume=True)
    before = snapshot(tmp_path / "run")
    with pytest.raises(ValueError, match=f"holds another run .*{says}"):
        runs.open_run(tmp_path / "run", wanted(), resume=True)
    assert snapshot(tmp_path / "run") == before


def test_the_same_run_is_resumed_unless_told_not_to(tmp_path):
    first = runs.open_run(tmp_path / "run", wanted(), resume=True)
    assert runs.open_run(str(tmp_path / "run"), wanted(), resume=True) == first
    with pytest.raises(ValueError, match="holds this run already"):
        runs.open_run(tmp_path / "run", wanted(), resume=False)


def test_foreign_files_are_respected(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        runs.open_run(tmp_path, wanted(), resume=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]
    with pytest.raises(OSError, match="cannot make .*choose a folder"):
        runs.open_run(tmp_path / "thesis.tex", wanted(), resume=True)


def test_a_start_that_was_killed_does_not_block_the_folder(tmp_path):
    (tmp_path / "env.json").write_text("{}")
    (tmp_path / "recipe.json.partial").write_text("{")
    assert runs.open_run(tmp_path, wanted(), resume=True).recipe == VIT


def test_remarks_and_younger_fields_do_not_make_another_run(tmp_path):
    run = runs.open_run(tmp_path, wanted(), resume=True)
    identity = run.identity
    identity["recipe"]["reaches"] = "what we thought then"
    del identity["recipe"]["eval_crop"]  # as if the field had been added since
    runs.write_json(run.path / "recipe.json", identity)
    assert run.recipe.eval_crop == 1.0
    runs.open_run(tmp_path, wanted(), resume=True)
    identity["recipe"]["from_the_future"] = 1
    runs.write_json(run.path / "recipe.json", identity)
    with pytest.raises(ValueError, match="another version of this library"):
        _ = run.recipe


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_survives_its_json(name, tmp_path):
    recipe = replace(recipes.get(name), policy_options={"scale": (0.3, 1.0)})
    again = runs.open_run(tmp_path, wanted(recipe), resume=True).recipe
    assert runs.changes(again) == {"policy_options": {"scale": [0.3, 1.0]}}
    assert replace(again, policy_options=recipe.policy_options) == recipe


def test_where_a_run_goes(monkeypatch, tmp_path):
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    assert runs.folder("digits_vit_ce", 3) == tmp_path / "digits_vit_ce" / "seed3"
    changed = runs.folder(recipes.get("digits_vit_ce", rho=10))
    assert changed.parent.name.startswith("digits_vit_ce-")
    assert changed == runs.folder(recipes.get("digits_vit_ce", rho=10.0)) != runs.folder("digits_vit_ce")
    assert runs.folder(replace(VIT, reaches="a remark", evaluate_every=5)) == runs.folder(VIT)


def test_how_often_it_is_looked_at_makes_no_other_run(tmp_path):
    """What is not looked at is the same bit for bit (test_train): one folder, one row of the ledger."""
    seen = replace(VIT, evaluate_every=5)
    assert runs.changes(seen) == {} and runs.difference(wanted(VIT), wanted(seen)) == ""
    assert runs.changes(replace(seen, epochs=7)) == {"epochs": 7}
    run = runs.open_run(tmp_path / "a", wanted(VIT), resume=True)
    assert runs.open_run(tmp_path / "a", wanted(seen), resume=True) == run
    path = tmp_path / "ledger.csv"
    runs.record([finished(tmp_path / "b", VIT)], path)
    assert len(runs.record([finished(tmp_path / "c", seen)], path)) == 1


def test_status_says_what_the_command_would_do(tmp_path):
    run, (model, optimizer) = runs.open_run(tmp_path, wanted(), resume=True), trained("sgd")
    assert run.status == f"{tmp_path} starts with its first epoch"
    for done, says in ((7, "continues with epoch 8 of 300"), (300, "has only its evaluation left")):
        runs.save_checkpoint(run, model.state_dict(), optimizer, done, 1.0)
        assert run.status == f"{tmp_path} {says}"
    assert finished(tmp_path).status == f"{tmp_path} has finished: nothing to do"


def test_an_unfinished_run_has_no_result(tmp_path):
    run = runs.open_run(tmp_path, wanted(), resume=True)
    assert not run.finished
    with pytest.raises(ValueError, match="has not finished"):
        _ = run.result
    assert run.seed == 0


# --- papermill's parameters ------------------------------------------------------------------------------------

ALLOWED = ("recipe", "seed", "overrides", "out")


def parameters(injected: str = "", **values) -> dict:
    return {
        "In": ["", "recipe = 'x'", f"# Parameters\n{injected}"],
        "recipe": "digits_vit_ce",
        "overrides": {},
    } | values


def test_parameters_make_a_recipe():
    assert runs.from_parameters(parameters("recipe = 'digits_vit_ce'\n"), ALLOWED) == VIT
    for changed in ({"epochs": 20}, '{"epochs": 20}'):
        assert runs.from_parameters(parameters(overrides=changed), ALLOWED).epochs == 20
    assert runs.from_parameters(parameters(result={}, chosen=VIT, run=None), ALLOWED) == VIT, "a cell run again"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (parameters("recipee = 'digits_mgp'\n"), "unknown parameter 'recipee'; this notebook takes recipe, seed"),
        (parameters(recipe="digits_mpg"), "did you mean 'digits_mgp'"),
        (parameters(overrides={"epoch": 1}), "did you mean 'epochs'"),
        (parameters(overrides="epochs=1"), "overrides are not JSON"),
        (parameters(overrides="[1]"), "overrides must map fields to values"),
    ],
)
def test_mistyped_parameters_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        runs.from_parameters(given, ALLOWED)


def test_a_notebook_shows_what_is_refused_as_a_sentence(capsys):
    """And all of what was raised elsewhere."""
    shell = InteractiveShell.instance(colors="nocolor")
    try:
        shell.run_cell("from ltvit_lib import runs")
        shell.run_cell("chosen = runs.from_parameters({'recipe': 'digits_mpg', 'overrides': {}}, ())")
        said = capsys.readouterr().out
        assert "no recipe 'digits_mpg' (did you mean 'digits_mgp'?)" in said
        assert len(said.split("\n")) < 6 and "from_parameters" not in said
        shell.run_cell("int('seven')")
        assert "----> 1 int('seven')" in capsys.readouterr().out
    finally:
        InteractiveShell.clear_instance()


# --- the ledger ------------------------------------------------------------------------------------------------


def test_the_ledger_has_a_row_a_run_and_head(tmp_path):
    path = tmp_path / "ledger.csv"
    one = finished(tmp_path / "a", heads=("cls", "dist", "avg"))
    two = finished(tmp_path / "b", recipes.get("digits_mgp"), heads=())
    three = finished(tmp_path / "c", recipes.get("digits_vit_ce", epochs=20), seed=1)
    unfinished = runs.open_run(tmp_path / "d", wanted(seed=5), resume=True)
    table = runs.record([one, two, three, unfinished], path)
    assert set(zip(table["recipe"], table["seed"], table["head"].fillna(""))) == {
        ("digits_vit_ce", 0, "cls"), ("digits_vit_ce", 0, "dist"), ("digits_vit_ce", 0, "avg"),
        ("digits_vit_ce", 1, "cls"), ("digits_mgp", 0, ""),
    }  # fmt: skip
    columns = (
        "recipe overrides seed data start epochs evaluated_on head all head_classes tail best_over_epochs best_epoch "
        "final_loss seconds images_per_second peak_memory_mib devices teraflops utilisation device torch timm commit"
    )
    assert set(table) == set(columns.split())
    changed = table[table["seed"] == 1].iloc[0]
    assert json.loads(changed["overrides"]) == {"epochs": 20}
    assert changed["epochs"] == 20
    assert changed["data"] == "0123456789ab", "a digest of digits alone stays text"


def test_recording_again_changes_nothing_and_a_new_result_replaces_the_old(tmp_path):
    path = tmp_path / "ledger.csv"
    run, other = finished(tmp_path / "a", accuracy=1 / 3), finished(tmp_path / "b", seed=1)
    runs.record([run], path)
    table = runs.record([other], path)
    once = path.read_bytes()
    pd.testing.assert_frame_equal(runs.record([run, other], path), table)
    assert path.read_bytes() == once
    again = finished(tmp_path / "again", accuracy=0.75)
    assert sorted(runs.record([again], path)["all"]) == [0.5, 0.75]


def test_a_recipe_that_changed_leaves_no_run_twice(tmp_path, monkeypatch):
    """What was an override is the recipe by now, and what was the recipe overrides it."""
    path, longer = tmp_path / "ledger.csv", recipes.get("digits_vit_ce", epochs=20)
    both = [finished(tmp_path / "a"), finished(tmp_path / "b", longer)]
    assert json.loads(runs.record(both, path)["overrides"].dropna().item()) == {"epochs": 20}
    monkeypatch.setitem(recipes._RECIPES, "digits_vit_ce", longer)
    after = runs.record(both, path)
    assert after["epochs"].sort_values().tolist() == [20, VIT.epochs]
    assert json.loads(after["overrides"].dropna().item()) == {"epochs": VIT.epochs}


def test_a_recipe_that_changed_leaves_no_old_row_as_its_own(tmp_path, monkeypatch):
    path, run = tmp_path / "ledger.csv", finished(tmp_path / "a")
    runs.record([run], path)
    monkeypatch.setitem(recipes._RECIPES, "digits_vit_ce", recipes.get("digits_vit_ce", epochs=VIT.epochs + 5))
    (row,) = runs.record([run], path).to_dict("records")
    assert json.loads(row["overrides"]) == {"epochs": VIT.epochs} and len(runs.counted(runs.ledger(path))) == 0


def test_best_over_epochs_stands_beside_the_last(tmp_path):
    nan, path = float("nan"), tmp_path / "ledger.csv"
    runs.record([finished(tmp_path / "a", seed=1)], path)
    older = pd.read_csv(path).drop(columns=["best_over_epochs", "best_epoch", "devices", "teraflops", "utilisation"])
    older.to_csv(path, index=False)  # as it was before these columns
    curve = {"eval_cls": [nan, 0.75, 0.5], "eval_avg": [0.25, nan, 0.125]}
    table = runs.record([finished(tmp_path / "b", heads=("cls", "avg"), curve=curve)], path)
    best = table.set_index(["seed", "head"])[["all", "best_over_epochs", "best_epoch"]]
    assert best.loc[(0, "cls")].tolist() == [0.5, 0.75, 1]
    assert best.loc[(0, "avg")].tolist() == [0.5, 0.25, 0]
    assert best.loc[(1, "cls")].isna().tolist() == [False, True, True], "the old row stays valid"


def test_accuracies_of_a_curve_are_tidy(tmp_path):
    curve = {"accuracy": [0.25, 0.5, 0.75], "eval_cls": [float("nan"), 0.5, 0.25]}
    tidy = finished(tmp_path, curve=curve).accuracies
    assert list(tidy.itertuples(index=False, name=None)) == [
        (0, "training batches", 25.0), (1, "training batches", 50.0), (2, "training batches", 75.0),
        (1, "evaluation, CLS", 50.0), (2, "evaluation, CLS", 25.0),
    ]  # fmt: skip


def test_utilisation_is_of_all_devices(tmp_path):
    run = finished(tmp_path)  # 100 images/s
    work = costs.estimate(VIT).flops_per_image * 100
    gpu = "NVIDIA H100 80GB HBM3"
    for devices in (1, 4):
        speed = runs._speed(VIT, run.result | {"devices": devices}, gpu)
        assert speed["teraflops"] == pytest.approx(work / 1e12)
        assert speed["utilisation"] == pytest.approx(work / costs.peak_flops(gpu) / devices)
    (row,) = runs.ledger_rows(run)
    assert row["teraflops"] > 0 and row["devices"] == 1
    assert math.isnan(runs._speed(VIT, run.result, "a processor, 2 threads")["utilisation"])
    gone = runs._speed(replace(VIT, data="a/folder/that/has/gone"), run.result, gpu)
    assert math.isnan(gone["teraflops"]) and math.isnan(gone["utilisation"]) and gone["devices"] == 1


def test_ours_beside_the_published(tmp_path):
    """The mean over seeds, its difference and sample sd in percent; overrides and validation runs are no attempt."""
    cells = recipes.cells("DeiT-LT", "2")
    cell = cells[cells["head"] == "avg"].iloc[0]
    recipe = recipes.get(cell["recipe"])
    made = [
        finished(tmp_path / "a", recipe, seed=0, accuracy=0.75, heads=("cls", "avg")),
        finished(tmp_path / "b", recipe, seed=1, accuracy=0.5, heads=("cls", "avg")),
        finished(tmp_path / "c", replace(recipe, epochs=7), seed=2, accuracy=0.1, heads=("cls", "avg")),
        finished(tmp_path / "d", replace(recipe, evaluate_on="val"), seed=3, accuracy=0.1, heads=("cls", "avg")),
    ]
    runs.record(made, tmp_path / "ledger.csv")
    beside = runs.against_paper(runs.ledger(tmp_path / "ledger.csv"))
    ours = beside[(beside["recipe"] == recipe.name) & (beside["metric"] == "all") & (beside["head"] == "avg")]
    there = ours[(ours["table"] == "2") & (ours["column"] == cell["column"])].iloc[0]
    assert there[["published", "ours", "n"]].tolist() == [cell["value"], 62.5, 2]
    assert there["difference"] == pytest.approx(62.5 - cell["value"])
    assert there["sd"] == pytest.approx(25 / math.sqrt(2))
    others = beside[beside["recipe"] != recipe.name]
    assert (others["n"] == 0).all() and others["ours"].isna().all()
    assert len(beside) == sum(len(recipes.cells(*table)) for table in recipes.tables()), "empty cells stay"
    one = runs.against_paper(pd.DataFrame(runs.ledger_rows(made[0]))).query("n > 0")
    assert (
        set(one["recipe"]) == {recipe.name} and (one["difference"] + one["published"] - one["ours"]).abs().max() < 1e-9
    )


def test_a_student_of_a_teacher_trained_again_replaces_the_old_one(tmp_path):
    path, student = tmp_path / "ledger.csv", recipes.get("digits_deit_lt")
    old = finished(tmp_path / "old", student, teacher="1a2b")
    new = finished(tmp_path / "new", student, accuracy=0.75, teacher="3c4d")
    runs.record([old], path)
    table = runs.record([new], path)
    assert table[["all", "start"]].values.tolist() == [[0.75, "teacher:3c4d"]]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="old and .*new are one recipe and seed from different starting weights"):
        runs.record([old, new], path)
    assert path.read_bytes() == before
    copy = finished(tmp_path / "copy", student, accuracy=0.75, teacher="3c4d")
    assert len(runs.record([new, copy], path)) == 1, "the same weights twice are one run"


def test_a_full_disk_leaves_the_ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger.csv"
    runs.record([finished(tmp_path / "a")], path)
    before = path.read_bytes()
    other = finished(tmp_path / "b", seed=1)
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        runs.record([other], path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_to_record(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        runs.record([], tmp_path / "ledger.csv")
    with pytest.raises(ValueError, match="no ledger at .*make ledger"):
        runs.ledger(tmp_path / "ledger.csv")


def test_collect_finds_finished_runs_only(tmp_path):
    run = finished(tmp_path / "x" / "seed0")
    runs.open_run(tmp_path / "y", wanted(), resume=True)
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "result.json").write_text("{}")
    assert runs.collect(tmp_path) == [run]


def test_a_run_as_a_table_in_percent(tmp_path):
    table = finished(tmp_path / "a", accuracy=1 / 3, heads=("cls", "avg")).table(("all", "tail"))
    assert table.index.tolist() == ["cls", "avg"]
    assert table.loc["avg"].tolist() == [33.3, 10.0]


def test_shots_are_tidy_and_say_what_is_missing(tmp_path):
    runs_of = [finished(tmp_path / str(seed), seed=seed, accuracy=0.5 + seed / 10) for seed in (0, 1)]
    table = pd.DataFrame([row for run in runs_of for row in runs.ledger_rows(run)])
    table = table.reindex(columns=[*table.columns, "mid", "many", "medium", "few", "ece"])
    tidy = runs.shots({"ViT": ("digits_vit_ce", "cls")}, table)
    overall = tidy[tidy["group"] == "all"]
    assert overall["accuracy"].tolist() == [0.5, 0.6] and overall["seed"].tolist() == [0, 1]
    assert tidy[tidy["group"] == "head"]["accuracy"].tolist() == [0.9, 0.9]
    with pytest.raises(ValueError, match="no row of digits_livt, head cls: run it"):
        runs.shots({"LiVT": ("digits_livt", "cls")}, table)


def test_mean_and_sample_sd_over_seeds():
    rows = [("ViT", "all", 0.5, 0), ("ViT", "all", 0.6, 1), ("CNN", "all", 0.9, 0), ("CNN", "all", 0.9, 1)]
    tidy = pd.DataFrame(rows, columns=["method", "group", "accuracy", "seed"])
    table = runs.mean_sd(tidy, groups=("all",))
    assert table["all"].to_dict() == {"ViT": "55.0 ± 7.1", "CNN": "90.0 ± 0.0"}
    assert runs.mean_sd(tidy[tidy["seed"] == 0], groups=("all",))["all"].to_dict() == {"ViT": "50.0", "CNN": "90.0"}
