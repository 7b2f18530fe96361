"""One run on several processes equals one on a single process; a busy folder, a full disk and too small a device.

The processes are two on a CPU with gloo, one thread each. BatchNorm would see half a batch there (on GPUs it is
synchronised), so the CNNs keep the statistics that they begin with, which makes them deterministic functions of an
image.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from ltvit_lib import __main__ as command
from ltvit_lib import data, jobs, models, optim, recipes, runs, train
from ltvit_lib.paco import PaCo

import pytest
import torch
from conftest import TESTS, TWO_PROCESSES, launch, refusal
from safetensors.torch import load_file
from torch import nn

VIT = "vit_w64d4_patch2_8"
PLAIN = dict(epochs=1, warmup_epochs=0.0, optimizer="sgd", base_lr=0.05)
MIXED = dict(mixup=0.8, cutmix=1.0, smoothing=0.1)
CNN = dict(model="resnet8_cifar", width=4, base_lr=0.01, drw_epoch=0)
CASES = {  # recipe, changes, which of init and teacher it starts from
    "weighted, mixed and accumulated": ("digits_vit_ce", dict(epochs=2, drw_epoch=0, micro_batch=16, **MIXED), ""),
    "pre-training": ("digits_mgp", dict(micro_batch=16), ""),
    "distillation": ("digits_deit_lt", dict(drw_epoch=0, drw_mixup=True, micro_batch=16, evaluate_every=1), "teacher"),
    "SAM on a ViT": ("digits_teacher_ce_sam", dict(model=VIT, micro_batch=16), ""),
    "LDAM-DRW-SAM": ("digits_teacher_ldam_drw_sam", CNN | dict(micro_batch=16), ""),
    "PaCo-SAM": ("digits_teacher_paco_sam", CNN | dict(drw_epoch=None, sample_weight=0.05, queue_size=256), ""),
    "LADE": ("digits_vit_ce", dict(loss="lade"), ""),
    "IB": ("digits_vit_ce", dict(loss="influence_balanced", base_lr=1e-3, micro_batch=16), ""),
    "cRT": ("digits_vit_crt", {}, "init"),
    "LWS": ("digits_mgp_lws", dict(layer_decay=None), "init"),
}
RESUMED = "weighted, mixed and accumulated"


class Stopped(Exception):
    """What ends a run in its middle."""


def keep_statistics(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.BatchNorm2d, "train", lambda self, mode=True: nn.Module.train(self, False))


def fit(case: str, out: Path, start: Path, **options) -> runs.Run:
    """Trains a case on digits, evaluated on 37 images: an odd number, so that the last share is a partial one."""
    name, changes, starts_from = CASES[case]
    split = data.load("digits", 40.0)
    split = replace(split, test=split.test.subset(torch.arange(37)))
    options |= {starts_from: start / starts_from} if starts_from else {}
    return train.fit(recipes.get(name, **PLAIN | changes), out, data=split, progress=False, **options)


def fit_half(case: str, out: Path, start: Path) -> None:
    """Stops when the second of two epochs begins."""
    original = jobs.FinetuneJob.start_epoch

    def start_epoch(job, epoch):
        if epoch == 1:
            raise Stopped
        original(job, epoch)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(jobs.FinetuneJob, "start_epoch", start_epoch)
        fit(case, out, start, save_seconds=0)


def two_processes(folder: Path) -> None:
    """What either of two processes runs: every case, the second half of a run, the first half of another, a refusal."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        keep_statistics(patch)
        for case in CASES:
            fit(case, folder / "two" / case, folder)
        fit(RESUMED, folder / "one then two", folder)
        fit_half(RESUMED, folder / "two then one", folder)
        with pytest.raises(ValueError, match="seed is 0 there and 1 here"):  # in both, or one would wait for ever
            fit("LADE", folder / "two" / "LADE", folder, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits) -> Path:
    """Every case in `one` and in `two`, and the runs that some start from in `teacher` and `init`."""
    folder = tmp_path_factory.mktemp("devices")
    begin = dict(data=digits, progress=False)
    short = dict(epochs=1, warmup_epochs=0.0)
    train.fit(recipes.get("digits_teacher_ce", width=4, **short), folder / "teacher", **begin)
    train.fit(recipes.get("digits_vit_ce", **short), folder / "init", **begin)
    with pytest.MonkeyPatch.context() as patch:
        keep_statistics(patch)
        for case in CASES:
            fit(case, folder / "one" / case, folder)
        fit_half(RESUMED, folder / "one then two", folder)
    (folder / "two.py").write_text(
        "import sys, pathlib, test_devices\ntest_devices.two_processes(pathlib.Path(sys.argv[1]))\n"
    )
    launch([*TWO_PROCESSES, folder / "two.py", folder], folder)
    return folder


def assert_same(two: runs.Run, one: runs.Run) -> None:
    """Learning rates, losses, weights and every image's logits agree within what the order of sums explains."""
    assert two.curve["lr"].tolist() == one.curve["lr"].tolist()
    assert two.curve["loss"].tolist() == pytest.approx(one.curve["loss"].tolist(), rel=1e-4)
    assert two.curve["accuracy"].tolist() == pytest.approx(one.curve["accuracy"].tolist(), abs=0.01, nan_ok=True)
    there, here = (load_file(r.path / "last.safetensors") for r in (two, one))
    assert there.keys() == here.keys()
    for key, value in here.items():
        if "queue" not in key:
            close = dict(atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
            torch.testing.assert_close(there[key], value, **close)
    for head, logits in one.logits().items() if one.result["heads"] else ():
        assert len(logits) == 37
        torch.testing.assert_close(two.logits()[head], logits, atol=1e-3, rtol=1e-3)


# --- one run, several processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(folder, case):
    one, two = (runs.Run(folder / where / case) for where in ("one", "two"))
    assert (one.result["devices"], two.result["devices"]) == (1, 2)
    assert_same(two, one)


def test_two_processes_look_at_every_image_once_while_they_train(folder):
    two = runs.Run(folder / "two" / "distillation")
    for head in ("cls", "dist", "avg"):
        assert two.curve[f"eval_{head}"].tolist() == [two.result["heads"][head]["all"]]


def test_both_processes_queue_the_same_keys(folder):
    """The queue holds four steps of 64 keys: in the same slots of a step, in an order that the ranks decide."""
    one, two = (load_file(folder / where / "PaCo-SAM" / "last.safetensors") for where in ("one", "two"))
    for step in torch.arange(256).split(64):
        (a, b), (labels, others) = ([w[f"model.queue{n}"][step] for w in (one, two)] for n in ("", "_labels"))
        partner = torch.cdist(a, b).argmin(1)
        torch.testing.assert_close(b[partner], a, atol=1e-4, rtol=1e-4)
        assert labels.bincount().equal(others.bincount())
        assert others[partner].equal(labels)
    moved = [k for k in one if k.startswith("model.key_encoder") and not one[k].equal(one[k.replace("key_", "", 1)])]
    assert moved, "a key encoder that follows slowly is not the encoder"


def test_a_run_goes_on_with_another_number_of_processes(folder):
    whole = runs.Run(folder / "one" / RESUMED)
    assert_same(runs.Run(folder / "one then two"), whole)
    stopped = runs.Run(folder / "two then one")
    assert not stopped.finished and len(stopped.curve) == 1
    fit(RESUMED, stopped.path, folder)
    assert_same(stopped, whole)


def test_a_notebook_launches_two_processes(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "cell.py").write_text(
        "import sys, pathlib, test_devices\n"
        "from accelerate import notebook_launcher\n"
        "folder, out = map(pathlib.Path, sys.argv[1:])\n"
        "def cell():\n"
        "    test_devices.fit('LADE', out, folder)\n"
        f"notebook_launcher(cell, num_processes=2, use_port='{port}')\n"
    )
    launch([sys.executable, tmp_path / "cell.py", folder, tmp_path / "run"], tmp_path)
    run = runs.Run(tmp_path / "run")
    assert run.result["devices"] == 2
    assert_same(run, runs.Run(folder / "one" / "LADE"))


LAUNCHERS = {
    "torchrun": TWO_PROCESSES,
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_command_trains_on_two_processes(launcher, tmp_path, monkeypatch):
    """--multi_gpu starts a process a device; without a GPU they are two on the CPU."""
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    overrides = {"epochs": 1, "warmup_epochs": 0}
    given = ["digits_vit_ce", "--overrides", json.dumps(overrides)]
    launch([*LAUNCHERS[launcher], "-m", "ltvit_lib", *given], tmp_path)
    run = runs.Run(runs.folder(recipes.get("digits_vit_ce", **overrides)))
    assert run.result["devices"] == 2
    assert (tmp_path / "log.txt").read_text().count(f"{run.path} has finished\n") == 1, "one process speaks for both"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits_vitce"], "digits_vitce, seed 0: no recipe 'digits_vitce' (did you mean 'digits_vit_ce'?)"),
        (["digits_deit_lt", "--seed", "1"], "digits_deit_lt, seed 1: no run in {}/digits_teacher_ldam_drw_sam/seed1"),
        (["digits_vit_ce", "--teacher", "x"], "digits_vit_ce, seed 0: digits_vit_ce takes no teacher"),
    ],
)
def test_a_command_says_in_a_sentence_what_is_wrong(arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["ltvit_lib", *arguments])
    assert refusal(SystemExit, command.main).startswith(says.format(tmp_path))


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    monkeypatch.setattr(sys, "argv", ["ltvit_lib", "digits_vit_ce", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="interrupted; the same command continues"):
        command.main()


def test_documented_commands_name_recipes():
    named = re.findall(r"-m ltvit_lib (\w+)", command.__doc__ + (TESTS.parent / "README.md").read_text())
    assert len(named) == 4 and set(named) <= set(recipes.names())


def test_a_command_takes_its_teacher_from_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path))
    for name in ("digits_teacher_ldam_drw_sam", "digits_deit_lt"):
        short = json.dumps({"epochs": 1, "warmup_epochs": 0, "drw_epoch": 0})
        out = ["--out", str(tmp_path / name / "seed0")]  # where the student looks for a teacher of its recipe's name
        monkeypatch.setattr(sys, "argv", ["ltvit_lib", name, "--overrides", short, *out])
        command.main()
    assert (tmp_path / "digits_deit_lt" / "seed0" / "result.json").is_file()
    said = capsys.readouterr().out
    assert "avg" in said and "nothing to do" not in said
    command.main()
    assert "deit_lt/seed0 has finished: nothing to do" in capsys.readouterr().out


def test_batchnorm_is_synchronised_on_several_gpus_alone():
    torch.manual_seed(0)
    model = PaCo(models.create("resnet8_cifar", num_classes=3, width=4), dim=6, queue_size=8)
    names, parameters = list(model.state_dict()), list(model.parameters())
    for device, processes in (("cpu", 2), ("cuda", 1)):
        where = SimpleNamespace(num_processes=processes, device=torch.device(device))
        assert train._synchronised(model, where) is model
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    where = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    synchronised = train._synchronised(model, where)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in synchronised.modules())
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synchronised.key_encoder.modules())
    assert list(synchronised.state_dict()) == names, "its checkpoints load anywhere"
    assert all(a is b for a, b in zip(synchronised.parameters(), parameters, strict=True))


# --- two runs, one folder --------------------------------------------------------------------------------------

HOLD = """
import sys
from ltvit_lib import recipes, train
train.fit(recipes.get("digits_vit_ce", epochs=10**6, warmup_epochs=0.0), sys.argv[1], progress=False, save_seconds=0)
"""
ENDLESS = recipes.get("digits_vit_ce", epochs=10**6, warmup_epochs=0.0)
SHORT = recipes.get("digits_vit_ce", epochs=2, warmup_epochs=0.0)


def quiet(recipe, out, **options) -> runs.Run:
    return train.fit(recipe, out, progress=False, **options)


def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path):
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen([sys.executable, "-c", HOLD, out], env=environment) as child:
        try:
            while not (out / "last.safetensors").is_file() and child.poll() is None:
                time.sleep(0.01)
            message = refusal(ValueError, quiet, ENDLESS, out)
            assert child.poll() is None, "the refused process disturbs nobody"
        finally:
            child.send_signal(signal.SIGKILL)
    assert f"another process is training into {out}: wait for it, or choose another folder" in message
    with runs.lock(runs.Run(out)):
        assert load_file(out / "last.safetensors")


def test_a_lock_ends_with_its_block_though_a_forked_worker_lives_on(tmp_path):
    run = runs.Run(tmp_path)
    with runs.lock(run):
        refusal(ValueError, runs.lock(run).__enter__)
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
    try:
        with runs.lock(run):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_trains_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert quiet(SHORT, tmp_path / "run").finished


def test_of_two_runs_that_begin_at_once_the_second_finds_the_firsts_recipe(tmp_path, monkeypatch):
    real, wanted = runs.lock, runs.identity(SHORT, 0, "d", {})

    @contextlib.contextmanager
    def beaten(run):
        with real(run):
            if not (run.path / "recipe.json").is_file():  # since this process looked, another was here
                runs.write_json(run.path / "recipe.json", wanted | {"seed": 1})
            yield

    monkeypatch.setattr(runs, "lock", beaten)
    assert "seed is 1 there and 0 here" in refusal(ValueError, runs.open_run, tmp_path / "run", wanted, resume=True)


# --- too little space ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, changes", [("digits_vit_ce", {}), ("digits_teacher_paco_sam", dict(width=4))])
def test_the_size_of_a_checkpoint_is_known_before_it_is_written(tmp_path, name, changes):
    run = quiet(recipes.get(name, epochs=1, warmup_epochs=0.0, **changes), tmp_path / "run")
    job = jobs.JOBS[run.recipe.kind](run.recipe, train.load_split(run.recipe, 0), torch.device("cpu"))
    model = job.build()
    estimate = runs.checkpoint_bytes(model.state_dict(), optim.create_optimizer(model, run.recipe))
    with open(run.path / "last.safetensors", "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    written = (run.path / "last.safetensors").stat().st_size - header
    steps = 4 * len(list(model.parameters()))  # AdamW counts its steps once a parameter
    assert estimate <= written <= estimate + steps


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    model = jobs.FinetuneJob(SHORT, train.load_split(SHORT, 0), torch.device("cpu")).build()
    size = runs.checkpoint_bytes(model.state_dict(), optim.create_optimizer(model, SHORT))
    free = [2 * size - 1]
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    message = refusal(OSError, quiet, SHORT, tmp_path / "run")
    assert "MiB free, and checkpoints need" in message
    assert not (tmp_path / "run" / "last.safetensors").exists()
    free[0] += 1
    assert quiet(SHORT, tmp_path / "run").finished
    run, optimizer = runs.Run(tmp_path / "run"), optim.create_optimizer(model, SHORT)
    free[0] = 2 * size - (run.path / "last.safetensors").stat().st_size  # one is there: only the next is missing
    runs.check_space(run, model.state_dict(), optimizer)
    free[0] -= 1
    refusal(OSError, runs.check_space, run, model.state_dict(), optimizer)


# --- too small a device ----------------------------------------------------------------------------------------


def starved(patch: pytest.MonkeyPatch, calls: int) -> None:
    """The device's memory is full after some calls; later, a smaller micro-batch fits."""
    original, seen = jobs.FinetuneJob.terms, []

    def terms(job, model, batch):
        seen.append(batch)
        if len(seen) > calls and len(batch.images) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return original(job, model, batch)

    patch.setattr(jobs.FinetuneJob, "terms", terms)


def test_a_full_device_names_the_micro_batch_that_continues_the_run(tmp_path, monkeypatch):
    recipe = replace(SHORT, optimizer="sgd", base_lr=0.05)
    whole = quiet(recipe, tmp_path / "whole")
    starved(monkeypatch, calls=7)  # in the second epoch of five steps
    message = refusal(torch.OutOfMemoryError, quiet, recipe, tmp_path / "run", save_seconds=0)
    assert "micro_batch=64 of an effective batch of 64 on 1 device(s)" in message
    assert "try micro_batch=32, 2 accumulation steps on each device, in the same folder" in message
    assert len(runs.Run(tmp_path / "run").curve) == 1
    smaller = replace(recipe, micro_batch=32)
    resumed = quiet(smaller, tmp_path / "run")
    here, there = (load_file(r.path / "last.safetensors") for r in (whole, resumed))
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, atol=2e-5, rtol=1e-4)
    assert runs.folder(smaller) == runs.folder(recipe), "the command that goes on finds the run"


def test_a_cnn_in_smaller_pieces_is_another_run(tmp_path, monkeypatch):
    teacher = recipes.get("digits_teacher_ce", width=4, epochs=1, warmup_epochs=0.0)
    with monkeypatch.context() as patch:
        starved(patch, calls=2)
        message = refusal(torch.OutOfMemoryError, quiet, teacher, tmp_path / "run")
    assert "try micro_batch=32, 2 accumulation steps on each device, in another folder (BatchNorm" in message
    smaller = replace(teacher, micro_batch=32)
    assert "micro_batch is None there and 32 here" in refusal(ValueError, quiet, smaller, tmp_path / "run")
    assert runs.folder(smaller) != runs.folder(teacher)


@pytest.mark.parametrize(
    ("name", "changes", "devices", "says"),
    [
        ("digits_vit_ce", {}, 8, "micro_batch=8 of an effective batch of 64 on 8 device(s): try micro_batch=4, 2 acc"),
        ("digits_vit_ce", dict(micro_batch=16), 2, "micro_batch=16 of .* try micro_batch=8, 4 accumulation steps"),
        ("digits_vit_ce", dict(batch_size=30), 1, "try micro_batch=15, 2 accumulation steps"),
        ("digits_vit_ce", dict(batch_size=30, mixup=0.8), 1, "try micro_batch=10, 3 accumulation steps"),
        ("digits_vit_ce", dict(mixup=0.8, micro_batch=2), 1, "use more or larger devices, or a smaller model"),
        ("digits_vit_ce", dict(micro_batch=1), 1, "use more or larger devices, or a smaller model"),
        ("digits_vit_ce", dict(loss="lade"), 1, "use more devices or a smaller batch_size, for the loss compares"),
        ("digits_teacher_paco_sam", {}, 1, "use more devices or a smaller batch_size, for the loss compares"),
        ("digits_mgp", {}, 1, "try micro_batch=32"),
    ],
)
def test_what_would_fit(name, changes, devices, says):
    recipe = recipes.get(name, **changes)
    message = train.out_of_memory(recipe, devices)
    assert says in message if ".*" not in says else all(part in message for part in says.split(" .* "))
    assert message.endswith("the last checkpoint is kept")
    if "try" in message:  # the recipe that it asks for is one that runs
        smaller = recipes.override(recipe, micro_batch=int(message.split("try micro_batch=")[1].split(",")[0]))
        where = SimpleNamespace(num_processes=devices, process_index=devices - 1)
        assert len(train._pieces(smaller, where, 347)) == int(message.split(" accumulation steps")[0].split()[-1])
