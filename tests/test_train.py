"""One fit for four kinds of run: it learns, resumes bit for bit, refuses bad input early and survives failures."""

import contextlib
import errno
import functools
import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from ltvit_lib import data, losses, models, recipes, runs, train

import numpy as np
import pytest
import torch
from conftest import refusal
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
FULL = ROOT / "notebooks" / "full"
TEACHER = "digits_teacher_ldam_drw_sam"
SHORT = dict(epochs=2, warmup_epochs=0.0)
SHORT_DRW = SHORT | dict(drw_epoch=1)
quiet = functools.partial(train.fit, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def mgp(folder) -> runs.Run:
    return quiet(recipes.get("digits_mgp", **SHORT), folder / "mgp")


@pytest.fixture(scope="module")
def teacher(folder) -> runs.Run:
    return quiet(recipes.get(TEACHER, **SHORT_DRW, width=4), folder / "teacher")


def weights(run: runs.Run) -> dict[str, torch.Tensor]:
    return {k: v for k, v in load_file(run.path / "last.safetensors").items() if k.startswith("model.")}


def same(one: runs.Run, other: runs.Run) -> bool:
    """Whether two runs end with the same bits, those of the optimiser included."""
    here, there = (load_file(run.path / "last.safetensors") for run in (one, other))
    return here.keys() == there.keys() and all(torch.equal(value, there[key]) for key, value in here.items())


def without_times(run: runs.Run):
    return run.curve.drop(columns=["seconds", "images_per_second"])


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# --- it learns -------------------------------------------------------------------------------------------------

LEARNS = {
    "digits_mgp": dict(base_lr=1e-3),
    "digits_vit_ce": dict(base_lr=1e-3),
    "digits_livt": dict(base_lr=2e-3, epochs=12),
    TEACHER: dict(drw_epoch=None, base_lr=0.02, width=8),
    "digits_deit_lt": dict(drw_epoch=None, mixup=0.0, cutmix=0.0),
}


@pytest.mark.parametrize("name", LEARNS)
def test_the_loss_falls(name, tmp_path, mgp, teacher):
    start = {"digits_livt": {"init": mgp}, "digits_deit_lt": {"teacher": teacher}}.get(name, {})
    run = quiet(recipes.get(name, **dict(epochs=5, warmup_epochs=0.0) | LEARNS[name]), tmp_path, **start)
    curve = run.curve
    assert curve["loss"].iloc[-1] < 0.95 * curve["loss"].iloc[0]
    assert curve["epoch"].tolist() == list(range(run.recipe.epochs))
    assert run.finished
    names = {"digits_mgp": set(), "digits_deit_lt": {"cls", "dist", "avg"}}.get(name, {"cls"})
    assert set(run.result["heads"]) == names
    if names:
        logits = run.logits()
        assert set(logits) == names | {"targets"}
        assert all(len(z) == 500 for z in logits.values())
        assert curve["accuracy"].between(0, 1).all()
    if names and name != "digits_livt":
        assert curve["accuracy"].iloc[-1] > curve["accuracy"].iloc[0]


def test_the_trained_model_comes_back(digits, teacher, tmp_path):
    run = quiet(recipes.get("digits_deit_lt", **SHORT_DRW), tmp_path, teacher=teacher)
    model, split = train.build(run)
    assert split.digest == run.identity["data"]
    again = train.predict_logits(model, split.test, run.recipe, split.mean, split.std)
    for head, logits in again.items():
        torch.testing.assert_close(logits, run.logits()[head], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again["avg"], (again["cls"] + again["dist"]) / 2)


def test_every_image_is_evaluated_once_and_in_order(digits):
    torch.manual_seed(0)
    model = models.create("resnet8_cifar", num_classes=10, in_chans=1, width=4)
    odd = data.Images(torch.cat([digits.test.images] * 2 + [digits.test.images[:37]]), digits.test.targets.repeat(3))
    odd = data.Images(odd.images, odd.targets[: len(odd.images)])
    recipe = recipes.get("digits_vit_ce")
    (logits,) = train.predict_logits(model, odd, recipe, digits.mean, digits.std).values()
    assert logits.shape == (1037, 10)
    torch.testing.assert_close(logits[500:1000], logits[:500])
    pixels = (odd.images.float() / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(pixels), atol=1e-4, rtol=1e-4)


class Forbidden:
    def __getattr__(self, name):
        raise AssertionError(f"the test set's {name} was looked at")


def test_validation_never_looks_at_the_test_set(digits, tmp_path):
    recipe = recipes.get("digits_vit_ce", evaluate_on="val", **SHORT)
    run = quiet(recipe, tmp_path, data=replace(digits, test=Forbidden()))
    held_out = train.load_split(recipe, 0)
    assert len(run.logits()["targets"]) == len(held_out.val) >= 20
    assert run.identity["data"] == held_out.digest != digits.digest


def test_a_plain_cnn_takes_any_loss(tmp_path):
    recipe = recipes.get("digits_vit_bal_bce", model="resnet8_cifar", optimizer="sgd", **SHORT)
    assert quiet(recipe, tmp_path).finished


# --- one step, whatever the accumulation -----------------------------------------------------------------------

PLAIN = dict(epochs=1, warmup_epochs=0.0, optimizer="sgd", base_lr=0.05)
ACCUMULATED = {
    "weighted CE": ("digits_vit_ce", dict(drw_epoch=0)),
    "weighted CE, mixed and smoothed": ("digits_vit_ce", dict(drw_epoch=0, mixup=0.8, cutmix=1.0, smoothing=0.1)),
    "Bal-BCE, mixed": ("digits_vit_bal_bce", dict(mixup=0.8, cutmix=1.0, base_lr=0.005)),
    "distillation": ("digits_deit_lt", dict(drw_epoch=None)),
    "distillation under DRW": ("digits_deit_lt", dict(drw_epoch=0)),
    "distillation, mixed under DRW": ("digits_deit_lt", dict(drw_epoch=0, drw_mixup=True)),
    "pre-training": ("digits_mgp", {}),
}


@pytest.mark.parametrize("case", ACCUMULATED)
def test_accumulation_changes_nothing(case, tmp_path, teacher):
    name, changes = ACCUMULATED[case]
    start = {"teacher": teacher} if name == "digits_deit_lt" else {}
    recipe = recipes.get(name, **PLAIN | changes)
    whole = quiet(recipe, tmp_path / "whole", **start)
    half = quiet(replace(recipe, micro_batch=32), tmp_path / "half", **start)
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(half)[key], value, atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    assert half.curve["loss"].tolist() == pytest.approx(whole.curve["loss"].tolist(), rel=1e-4)
    if start or "vit" in name:
        assert half.curve["accuracy"].tolist() == pytest.approx(whole.curve["accuracy"].tolist(), abs=0.01)


# --- evaluated while training ----------------------------------------------------------------------------------

LOOKED_AT = {
    "dropped and mixed": ("digits_vit_ce", dict(drop_path=0.2, mixup=0.8, cutmix=1.0)),
    "bf16": ("digits_vit_bal_bce", dict(precision="bf16")),
    "batch statistics and SAM": (TEACHER, dict(width=4, drw_epoch=1)),
    "queue": ("digits_teacher_paco_sam", dict(width=4)),
    "frozen backbone": ("digits_vit_crt", {}),
    "two heads": ("digits_deit_lt", dict(drw_epoch=2)),
}


def state(model: nn.Module) -> tuple:
    """What an evaluation must leave alone: both random streams and each module's mode."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), [m.training for m in model.modules()]


@pytest.mark.parametrize("case", LOOKED_AT)
def test_evaluating_while_training_changes_nothing(case, tmp_path, teacher, monkeypatch):
    name, changes = LOOKED_AT[case]
    start = {"teacher": teacher} if name == "digits_deit_lt" else {}
    if name == "digits_vit_crt":
        start = {"init": quiet(recipes.get("digits_vit_ce", **SHORT), tmp_path / "start")}
    recipe = recipes.get(name, **dict(epochs=3, warmup_epochs=0.0) | changes)
    unseen = quiet(recipe, tmp_path / "unseen", **start)
    points, real = [], train._curve_point

    def watched(job, model, *rest):
        before = state(model)
        points.append(real(job, model, *rest))
        assert state(model) == before
        return points[-1]

    monkeypatch.setattr(train, "_curve_point", watched)
    seen = quiet(replace(recipe, evaluate_every=2), tmp_path / "seen", **start)
    assert same(unseen, seen)
    heads = list(seen.result["heads"])
    assert all(list(point) == [f"eval_{head}" for head in heads] for point in points)
    assert without_times(seen)[list(without_times(unseen))].equals(without_times(unseen))
    for head in heads:
        curve = seen.curve[f"eval_{head}"]
        assert curve.isna().tolist() == [True, False, False], "every second epoch, and the last"
        assert curve.iloc[-1] == pytest.approx(seen.result["heads"][head]["all"])


def test_a_run_may_be_looked_at_more_often_from_here_on(tmp_path, monkeypatch):
    recipe = recipes.get("digits_vit_ce", epochs=4, warmup_epochs=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_curve_point", lambda job, model, epoch, _: {} if epoch < 2 else 1 / 0)
        refusal(ZeroDivisionError, quiet, recipe, tmp_path / "run", save_seconds=0)
    assert runs.Run(tmp_path / "run").status.endswith("continues with epoch 3 of 4")
    run = quiet(replace(recipe, evaluate_every=1), tmp_path / "run")
    assert run.curve["eval_cls"].isna().tolist() == [True, True, False, False]
    whole = quiet(recipe, tmp_path / "whole")
    assert run.curve["loss"].tolist() == whole.curve["loss"].tolist()
    assert same(run, whole)


def test_how_often_to_look_is_checked():
    with pytest.raises(ValueError, match="evaluate_every must not be negative"):
        recipes.get("digits_vit_ce", evaluate_every=-1)
    with pytest.raises(ValueError, match="learns no classes: leave evaluate_every at 0"):
        recipes.get("digits_mgp", evaluate_every=5)


# --- resumption ------------------------------------------------------------------------------------------------

CHILD = """
import json, sys
from ltvit_lib import recipes, train
import torch
out, threads, name, changes = sys.argv[1:]
torch.set_num_threads(int(threads))
train.fit(recipes.get(name, **json.loads(changes)), out, progress=False, save_seconds=0)
"""
KILLED = {
    "digits_vit_ce": dict(epochs=12, warmup_epochs=1.0, mixup=0.8, cutmix=1.0, smoothing=0.1, drop_path=0.2),
    TEACHER: dict(epochs=12, warmup_epochs=1.0, drw_epoch=8),
}


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_continues_bit_for_bit(name, tmp_path):
    changes, out = KILLED[name], tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, out, str(torch.get_num_threads()), name, json.dumps(changes)]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not (out / "last.safetensors").is_file() and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "killed in the middle"
    recipe = recipes.get(name, **changes)
    killed = runs.Run(out)
    assert not killed.finished
    assert 1 <= len(killed.curve) < 12
    resumed, whole = quiet(recipe, out), quiet(recipe, tmp_path / "whole")
    assert same(resumed, whole)
    assert without_times(resumed).equals(without_times(whole))
    assert resumed.result["seconds"] == pytest.approx(resumed.curve["seconds"].sum(), abs=0.2), "both sessions"
    assert {k: resumed.result["heads"]["cls"][k] for k in ("all", "ece")} == {
        k: whole.result["heads"]["cls"][k] for k in ("all", "ece")
    }


def test_a_finished_run_is_returned_at_once(mgp, monkeypatch):
    before = snapshot(mgp.path)
    monkeypatch.setattr(train, "_train", None)
    assert quiet(mgp.recipe, mgp.path) == mgp
    assert snapshot(mgp.path) == before


def test_seeds_differ_and_repeat(tmp_path):
    recipe = recipes.get("digits_vit_ce", data_seed=0, **SHORT)
    one, again, other = (quiet(recipe, tmp_path / n, seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert same(one, again)
    assert not torch.equal(weights(one)["model.head.weight"], weights(other)["model.head.weight"])
    assert one.identity["data"] == other.identity["data"]


# --- refused before training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "options", "says"),
    [
        ("digits_vit_c", {}, "did you mean 'digits_vit_ce'"),
        (replace(recipes.get("digits_vit_ce"), rho=0.5), {}, "rho must be at least 1"),
        (replace(recipes.get("digits_vit_ce"), batch_size=31, mixup=1.0), {}, "even"),
        (replace(recipes.get("digits_vit_ce"), image_size=9), {}, "does not divide image size 9"),
        (replace(recipes.get("digits_vit_ce"), model="vit_tiny"), {}, "no model 'vit_tiny'"),
        (recipes.get("digits_vit_ce", batch_size=512), {}, "347 training images do not fill a batch of 512"),
        (recipes.get("digits_vit_ce", data="no/such/folder"), {}, "no/such/folder': give digits, cifar10"),
        (recipes.get("digits_vit_ce", normalise="imagenet"), {}, "3 channels"),
        ("digits_livt", {}, "digits_livt starts from digits_mgp: give init="),
        ("digits_livt", {"init": "nowhere"}, "no checkpoint at nowhere"),
        ("digits_vit_ce", {"init": "nowhere"}, "takes no init"),
        ("digits_mgp", {"teacher": "nowhere"}, "takes no teacher"),
        ("digits_deit_lt", {}, f"starts from {TEACHER}: give teacher="),
        ("digits_deit_lt", {"teacher": "nowhere"}, f"no run in nowhere: train {TEACHER} into it first"),
    ],
)
def test_bad_input_leaves_no_folder(tmp_path, recipe, options, says):
    assert says in refusal(ValueError, quiet, recipe, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_bad_starts_leave_no_folder(tmp_path, mgp, teacher, digits):
    student, out = recipes.get("digits_deit_lt", **SHORT_DRW), tmp_path / "run"
    assert "saw other images" in refusal(ValueError, quiet, student, out, seed=1, teacher=teacher)
    assert "saw other images" in refusal(ValueError, quiet, replace(student, evaluate_on="val"), out, teacher=teacher)
    fewer = digits.train.subset((digits.train.targets < 5).nonzero()[:, 0])
    five = replace(digits, train=fewer, classes=digits.classes[:5], boundaries=(1, 3))
    assert "saw other images" in refusal(ValueError, quiet, student, out, data=five, teacher=teacher)
    assert "learnt no classes" in refusal(ValueError, quiet, student, out, teacher=mgp)
    unfinished = runs.open_run(tmp_path / "unfinished", teacher.identity, resume=True)
    assert "has not finished" in refusal(ValueError, quiet, student, out, teacher=unfinished)
    livt = recipes.get("digits_livt", **SHORT)
    assert "no masked autoencoder" in refusal(ValueError, quiet, livt, out, init=teacher)
    wide = dict(model="vit_w96d6_patch4_32", image_size=32, policy_options={})
    assert "another architecture" in refusal(ValueError, quiet, replace(livt, **wide), out, init=mgp)
    assert not out.exists()


def test_another_run_and_foreign_files_stay_as_they_are(tmp_path, mgp):
    before = snapshot(mgp.path)
    assert "epochs is 2 there and 3 here" in refusal(ValueError, quiet, replace(mgp.recipe, epochs=3), mgp.path)
    assert "seed is 0 there and 1 here" in refusal(ValueError, quiet, mgp.recipe, mgp.path, seed=1)
    assert "data is" in refusal(ValueError, quiet, mgp.recipe, mgp.path, data=data.load("digits", 40.0, seed=3))
    assert "holds this run already" in refusal(ValueError, quiet, mgp.recipe, mgp.path, resume=False)
    assert snapshot(mgp.path) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in refusal(ValueError, quiet, mgp.recipe, tmp_path)
    assert snapshot(tmp_path) == {str(tmp_path / "notes.txt"): b"mine"}


# --- failures while training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, call):
    recipe = recipes.get("digits_vit_ce", epochs=4, warmup_epochs=0.0)
    calls, real = [], getattr(os, call)

    def filling(*arguments):
        calls.append(arguments)
        if len(calls) > 8:  # env, recipe, and two files an epoch: while the third epoch's checkpoint is saved
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, filling)
        message = refusal(OSError, quiet, recipe, tmp_path / "run", save_seconds=0)
    assert "No space left" in message
    assert "last checkpoint is untouched" in message
    assert not list(tmp_path.rglob("*.partial"))
    run, model = runs.Run(tmp_path / "run"), nn.Linear(1, 1)
    with contextlib.suppress(RuntimeError):  # another model: only the file is of interest
        runs.load_checkpoint(run, model, torch.optim.SGD(model.parameters()))
    assert weights(run)
    resumed, whole = quiet(recipe, tmp_path / "run"), quiet(recipe, tmp_path / "whole")
    assert without_times(resumed).equals(without_times(whole))
    assert same(resumed, whole)


def test_a_bad_loss_names_its_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    recipe = recipes.get("digits_vit_ce", epochs=3, warmup_epochs=0.0, schedule="step", lr_steps=[0.9])
    calls, real = [], losses.cross_entropy

    @functools.wraps(real)
    def breaking(logits, *arguments, **options):
        calls.append(len(logits) > 2)  # not recipes.check's own call
        return real(logits, *arguments, **options) * (float("nan") if sum(calls) == 8 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "cross_entropy", breaking)
        message = refusal(train.TrainingDiverged, quiet, recipe, tmp_path / "run", save_seconds=0)
    assert "the loss is nan at epoch 1, step 2, learning rate 0.001" in message
    assert "last good checkpoint is kept" in message
    run = runs.Run(tmp_path / "run")
    assert len(run.curve) == 1
    assert all(v.isfinite().all() for v in weights(run).values())
    resumed, whole = quiet(recipe, tmp_path / "run"), quiet(recipe, tmp_path / "whole")
    assert same(resumed, whole)


def test_broken_weights_are_never_saved(tmp_path, monkeypatch):
    """The last step before a checkpoint breaks the weights while its loss is still finite."""
    recipe = recipes.get("digits_vit_ce", epochs=3, warmup_epochs=0.0)
    calls, real = [], losses.cross_entropy

    @functools.wraps(real)
    def breaking(logits, *arguments, **options):
        calls.append(len(logits) > 2)
        loss = real(logits, *arguments, **options)
        return loss + (0 * logits.sum()).abs().sqrt() if sum(calls) == 10 else loss  # zero, with a NaN gradient

    with monkeypatch.context() as patch:
        patch.setattr(losses, "cross_entropy", breaking)
        message = refusal(train.TrainingDiverged, quiet, recipe, tmp_path, save_seconds=0)
    assert "a weight is NaN or infinite at epoch 1, step 4" in message
    assert len(runs.Run(tmp_path).curve) == 1
    assert all(v.isfinite().all() for v in weights(runs.Run(tmp_path)).values())


def test_one_class_is_refused_before_it_trains(tiny_longtail, tmp_path):
    alone = replace(tiny_longtail, train=tiny_longtail.train.subset(range(40)), classes=("a",))
    with pytest.raises(ValueError, match="tiny has one class, a: bring images of at least two"):
        quiet(recipes.get("digits_vit_bal_bce", epochs=1, warmup_epochs=0.0), tmp_path, data=alone)


def test_an_absurd_learning_rate_diverges(tmp_path):
    recipe = recipes.get("digits_vit_ce", **SHORT, base_lr=1e30)
    assert "lower base_lr" in refusal(train.TrainingDiverged, quiet, recipe, tmp_path)


# --- precision, progress ---------------------------------------------------------------------------------------


def test_precisions_may_follow_each_other_in_one_process(tmp_path):
    recipe = recipes.get("digits_vit_ce", **SHORT)
    full, half, again = (
        quiet(replace(recipe, precision=p), tmp_path / str(i)) for i, p in enumerate(("fp32", "bf16", "fp32"))
    )
    assert same(full, again)
    assert all(v.dtype == torch.float32 for v in weights(half).values())
    assert not torch.equal(weights(full)["model.head.weight"], weights(half)["model.head.weight"])
    assert half.curve["loss"].tolist() == pytest.approx(full.curve["loss"].tolist(), rel=0.05)
    model, split = train.build(half)  # evaluated in float32 all the same: bfloat16 logits would tie
    exact = train.predict_logits(model, split.test, half.recipe, split.mean, split.std)
    torch.testing.assert_close(half.logits()["cls"], exact["cls"], rtol=1e-5, atol=1e-5)


def shows_progress(text: str) -> bool:
    text = html.unescape(text).replace("\u2007", " ")  # a notebook's bar is HTML
    return all(part in text for part in ("digits_vit_ce", "epoch=2/2", "loss=", "acc=", " images/s", "<", "100%"))


def test_progress_in_a_terminal(tmp_path, capsys):
    train.fit(recipes.get("digits_vit_ce", **SHORT), tmp_path)
    assert shows_progress(capsys.readouterr().err)


def test_progress_in_a_notebook(tmp_path, monkeypatch, capsys):
    notebook = pytest.importorskip("tqdm.notebook")
    made = []

    class Bar(notebook.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(train, "tqdm", Bar)
    train.fit(recipes.get("digits_vit_ce", **SHORT), tmp_path)
    before, bar, after = made[0].container.children
    assert shows_progress(before.value + after.value)
    assert bar.value == bar.max == 2 * 5 * 64


def test_no_progress_when_told(tmp_path, capsys):
    quiet(recipes.get("digits_vit_ce", **SHORT), tmp_path)
    assert capsys.readouterr().err == ""


# --- papermill -------------------------------------------------------------------------------------------------


def papermill(page: str, out: Path, *parameters: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "papermill", FULL / f"{page}.ipynb", out, "--no-progress-bar", *parameters]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "LTVIT_RUNS": str(out.parent / "runs")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_runners_train_and_refuse_mistyped_parameters(tmp_path):
    overrides = ["-y", "overrides: {epochs: 1, warmup_epochs: 0}"]
    good = papermill("finetune", tmp_path / "good.ipynb", "-p", "recipe", "digits_vit_ce", *overrides)
    bad = papermill("finetune", tmp_path / "bad.ipynb", "-p", "recipee", "digits_vit_ce", *overrides)
    output, refused = good.communicate(timeout=120)[0], bad.communicate(timeout=120)[0]
    assert good.returncode == 0, output[-2000:]
    assert bad.returncode != 0
    assert "unknown parameter 'recipee'; this notebook takes recipe, seed, overrides, out, init" in refused
    (run,) = runs.collect(tmp_path)
    assert run.recipe.epochs == 1
    assert " images/s" in (tmp_path / "good.ipynb").read_text(), "the bar is kept with the page"
