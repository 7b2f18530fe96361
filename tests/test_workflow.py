"""A table's runs come in order, each once; what is finished is left alone, what failed is repeated; one run a GPU."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ltvit_lib import recipes, runs, train

import nbformat
import pytest
import yaml
from conftest import refused
from PIL import Image

pytest.importorskip("snakemake", reason="the optional extra `workflow` is not installed")

ROOT = Path(__file__).resolve().parents[1]
SNAKEFILE = ROOT / "workflow" / "Snakefile"
TEACHER, STUDENT = "digits_teacher_ldam_drw_sam", "digits_deit_lt"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """workflow/plan.py, with run folders of its own."""
    monkeypatch.syspath_prepend(ROOT / "workflow")
    monkeypatch.setenv("LTVIT_RUNS", str(tmp_path / "runs"))
    import plan

    return plan


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import gpus

    return gpus


def finish(planned) -> Path:
    """A run folder as a finished run leaves it, for whoever looks no deeper."""
    planned.folder.mkdir(parents=True)
    (planned.folder / "result.json").write_text("{}")
    return planned.folder / "result.json"


# --- the plan --------------------------------------------------------------------------------------------------


def test_every_table_has_a_name_and_recipes(plan):
    assert plan.tables()["deit_lt_2"] == ("DeiT-LT", "2")
    assert sorted(plan.tables().values()) == sorted(recipes.tables())
    for name, table in plan.tables().items():
        assert re.fullmatch(r"(livt|deit_lt)_s?\d+", name)
        assert set(plan.targets(name)) == set(recipes.cells(*table)["recipe"])


def test_own_tables_are_recipes_by_prefix_and_names_may_be_joined(plan):
    assert set(plan.targets("digits")) == {name for name in recipes.names() if name.startswith("digits_")}
    assert plan.targets(f"{STUDENT},{TEACHER},{STUDENT}") == [STUDENT, TEACHER]


def test_a_wrong_table_is_one_sentence(plan):
    with pytest.raises(ValueError, match="no table or recipe 'deit_lt_22' .did you mean 'deit_lt_2'") as caught:
        plan.targets("deit_lt_22")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        plan.plan(STUDENT, seeds=0)


def test_what_a_run_needs_comes_before_it_and_once(plan):
    order = plan.closure(recipes.names())
    assert sorted(order) == sorted(recipes.names())
    for place, name in enumerate(order):
        recipe = recipes.get(name)
        for need in filter(None, (getattr(recipe, "init", None), getattr(recipe, "teacher", None))):
            assert order.index(need) < place, (need, name)


def test_a_run_starts_from_those_of_its_seed_and_length(plan):
    for length in (1.0, 0.1):
        planned = {(run.recipe.name, run.seed): run for run in plan.plan(STUDENT, seeds=2, length=length)}
        assert len(planned) == 4
        for seed in (0, 1):
            given = planned[STUDENT, seed].parameters
            assert given["teacher"] == str(planned[TEACHER, seed].folder)
            assert "init" not in given
    assert planned[TEACHER, 0].recipe.epochs == round(0.1 * recipes.get(TEACHER).epochs)
    assert planned[TEACHER, 0].folder != runs.folder(TEACHER)


@pytest.mark.parametrize(
    ("wanted", "length", "overrides"),
    [
        (",".join(recipes.names()), 1.0, {}),
        ("digits", 0.1, {}),
        ("digits_vit_ce", 1.0, {"micro_batch": 16, "evaluate_every": 5}),  # which make no other run
        ("paper_c10_deit_lt_ti", 1.0, {"micro_batch": None}),
    ],
    ids=["all", "short", "remarks", "none"],
)
def test_runners_rebuild_the_planned_recipe(plan, wanted, length, overrides):
    """Every recipe has a runner that takes its parameters and makes the same recipe, hence the same folder, of them."""
    takes = {
        path.stem: tuple(re.findall(r"^(\w+): ", path.read_text(), re.MULTILINE))
        for path in (ROOT / "notebooks" / "full").glob("*.py")
    }
    for run in plan.plan(wanted, length=length, overrides=overrides):
        given = {"overrides": {}} | run.parameters
        assert set(given) <= set(takes[run.runner.stem]), run.name
        assert runs.from_parameters(given, takes[run.runner.stem]) == run.recipe


def test_own_images_replace_the_data_of_every_recipe(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    standard, own = plan.plan("digits_livt", length=0.1), plan.plan("digits_livt", length=0.1, data="pictures")
    for usual, changed in zip(standard, own, strict=True):
        assert (changed.recipe.data, changed.recipe.rho) == (str(tmp_path / "pictures"), None)
        assert changed.recipe.epochs == usual.recipe.epochs
        assert changed.folder != usual.folder, "as two data sets have two runs"
    assert own[1].parameters["init"] == str(own[0].folder)
    assert plan.plan("digits_livt", data="pictures", overrides={"batch_size": 8})[1].recipe.batch_size == 8
    with pytest.raises(ValueError, match="digits_mgp has no field 'bach_size' .did you mean 'batch_size'"):
        plan.plan("digits_livt", overrides={"bach_size": 8})
    with pytest.raises(ValueError, match="data: there is no .*/picture; give a folder"):
        plan.plan("digits_livt", data="picture")


def test_images_that_fill_no_batch_are_refused_before_anything_runs(plan, tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / c / f"{i}.png")
    with pytest.raises(ValueError, match="digits_vit_ce: 8 training images do not fill a batch of 64"):
        plan.from_config({"table": "digits_vit_ce", "data": str(tmp_path)})
    assert plan.from_config({"table": "digits_vit_ce", "data": str(tmp_path), "overrides": {"batch_size": "8"}})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "which table. Give one"),
        ({"table": "digits_livt", "seed": 3}, "no setting 'seed' .did you mean 'seeds'"),
        ({"table": "digits_livt", "seeds": "x"}, "seeds must be how many: 3, not 'x'"),
        ({"table": "digits_livt", "length": "long"}, "length must be a share of every schedule"),
        ({"table": "digits_livt", "length": -1}, "length must be positive"),
        ({"table": "digits_livt", "overrides": "epochs"}, "overrides must be fields of the recipes"),
        ({"table": "digits_livt", "overrides": {"batch_size": "x"}}, "digits_mgp: batch_size must be int, got 'x'"),
    ],
)
def test_wrong_settings_are_one_sentence(plan, config, says):
    refused(lambda: plan.from_config(config), says)


def test_settings_left_empty_have_their_defaults(plan):
    empty = {"seeds": "", "length": None, "data": "", "overrides": ""}
    assert plan.from_config({"table": "digits_livt"} | empty) == plan.plan("digits_livt")


def test_overrides_keep_their_types_on_the_way_through_snakemake(plan):
    from snakemake.cli import parse_config

    for changes in (
        {"epochs": 3, "base_lr": 0.5, "loss_options": {"tau": 2.0, "nt": None}},
        {"loss": "ldam", "sam": [1]},
    ):
        assert plan.typed(parse_config([f"overrides={json.dumps(changes)}"])["overrides"]) == changes


def test_results_are_means_over_the_seeds(plan, digits):
    planned = plan.plan("digits_vit_ce", seeds=2, length=1 / 300)
    for run in planned:
        train.fit(run.recipe, run.folder, run.seed, data=digits, progress=False)
    reached = [100 * runs.Run(run.folder).result["heads"]["cls"]["all"] for run in planned]
    header, row = plan.results(planned).splitlines()[-2:]
    mean, sd = sum(reached) / 2, abs(reached[0] - reached[1]) / 2**0.5
    assert row.startswith("digits_vit_ce cls") and f" {mean:.1f} ± {sd:.1f} " in row and row.endswith(" 2")
    assert "no accuracies" in plan.results(plan.plan("digits_mgp"))


def test_the_summary_counts_what_is_left(plan):
    planned = plan.plan(STUDENT, seeds=2)
    before = plan.estimates(planned)
    done, half = planned[0], planned[1]
    finish(done)
    half.folder.mkdir(parents=True)
    rows = "".join(f"{epoch},1.0\n" for epoch in range(half.recipe.epochs // 2))
    (half.folder / "metrics.csv").write_text("epoch,loss\n" + rows)
    after = plan.estimates(planned)
    assert before["run"].tolist() == after["run"].tolist() == [run.name for run in planned]
    expected = before["GPU-hours"] * [0, 0.5, 1, 1]
    assert (before["GPU-hours"] > 0).all() and (before["disk, GiB"] > 0).all()
    assert after["GPU-hours"].tolist() == pytest.approx(expected.tolist())
    assert after["disk, GiB"].tolist() == [0, *before["disk, GiB"][1:]]
    assert "Runs: 4; finished: 1; to do: 3, " in plan.summary(planned)


# --- GPUs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "found"), [("", []), ("-1", []), ("3, 5", ["3", "5"]), ("GPU-1a", ["GPU-1a"])])
def test_gpus_that_are_named_already(gpus, monkeypatch, given, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.devices() == found


def test_gpus_are_counted_by_the_driver(gpus, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.devices() == []
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        '#!/bin/sh\necho "GPU 0: A (UUID: GPU-1)"\necho "  MIG 1g Device 0:"\necho "GPU 1: A (UUID: GPU-2)"\n'
    )
    driver.chmod(0o755)
    assert gpus.devices() == ["0", "1"]


def test_a_gpu_has_one_run(gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    got = []

    def third():
        with gpus.held(tmp_path, wait=0.01) as device:
            got.append(device)

    with gpus.held(tmp_path) as first:
        with gpus.held(tmp_path) as second:
            waiting = threading.Thread(target=third)
            waiting.start()
            waiting.join(0.2)
            assert {first, second} == {"3", "5"}
            assert got == []
        waiting.join(5)
        assert got == [second]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpus.held(tmp_path) as device:
        assert device is None


def test_a_killed_process_frees_its_gpu(gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    program = (
        "import gpus, pathlib, sys, time\n"
        "with gpus.held(pathlib.Path(sys.argv[1])) as device:\n"
        "    print(device, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT / "workflow", stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "0\n"
        assert gpus._locked(tmp_path / "-0.lock") is None
        other.send_signal(signal.SIGKILL)
    with gpus.held(tmp_path) as device:
        assert device == "0"


# --- one run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("raise ValueError('no such folder: give another\\nand more')", "no such folder: give another"),
        ("import os; os.kill(os.getpid(), 9)", "the process was killed: is there enough memory?"),
        ("recipe", ""),
    ],
    ids=["error", "killed", "good"],
)
def test_what_went_wrong_is_one_sentence(tmp_path, monkeypatch, capsys, cell, sentence):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    import one_run

    page, log = tmp_path / "executed" / "page.ipynb", tmp_path / "log"
    cells = [nbformat.v4.new_code_cell('recipe = ""\nseed = 0', metadata={"tags": ["parameters"]})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(cell)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "runner.ipynb")
    status = one_run.main(str(tmp_path / "runner.ipynb"), str(page), '{"recipe": "a", "seed": 1}', str(log))
    assert status == (1 if sentence else 0)
    if sentence:
        assert log.read_text() == f"a, seed 1: {sentence} (its page: {page})\n"
        assert log.read_text() in capsys.readouterr().err
    else:
        assert nbformat.read(page, as_version=4).cells[-1].outputs[0].data["text/plain"] == "'a'"


# --- Snakemake -------------------------------------------------------------------------------------------------


def snakemake(tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    """The documented command, with two runs at once on the CPU."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--cores", "2"]
    command += ["--resources", "gpu=2", "--set-threads", "run=1", "--config", *options]
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_profiles_have_only_options_that_snakemake_knows():
    from snakemake.cli import get_argument_parser

    known = {option for action in get_argument_parser()._actions for option in action.option_strings}
    profiles = {path.parent.name: yaml.safe_load(path.read_text()) for path in (ROOT / "workflow").rglob("config.yaml")}
    assert set(profiles) == {"default", "slurm"}
    for profile in profiles.values():
        assert {f"--{key}" for key in profile} <= known
    assert list(profiles["slurm"]["set-threads"]) == re.findall("^rule (run):", SNAKEFILE.read_text(), re.MULTILINE)


def scheduled(output: str) -> list[str]:
    """Names of the runs that a dry run lists, in its order."""
    return re.findall(r"output: \S*?/runs/(\S+)/result\.json", output)


def test_dry_run_lists_what_is_missing_in_order(plan, tmp_path):
    planned = {run.name: run for run in plan.plan(f"{STUDENT},digits_livt", seeds=2)}
    for name in (f"{TEACHER}/seed1", "digits_livt/seed0"):
        finish(planned[name])
    options = [f"table={STUDENT},digits_livt", "seeds=2", "--dry-run"]
    done = snakemake(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    order = scheduled(done.stdout + done.stderr)
    missing = set(planned) - {f"{TEACHER}/seed1", "digits_livt/seed0"}
    assert sorted(order) == sorted(missing)
    assert order.index("digits_mgp/seed1") < order.index("digits_livt/seed1")
    assert order.index(f"{TEACHER}/seed0") < order.index(f"{STUDENT}/seed0")
    assert f"Runs: 8; finished: 2; to do: {len(missing)}, " in done.stderr


def test_a_slurm_job_knows_its_run_also_when_that_has_finished(plan, tmp_path):
    """Slurm may end a job at the minute in which its run finishes, and is then asked for the run again."""
    (run,) = plan.plan("digits_vit_ce")
    finish(run)
    job = ["--target-jobs", f"run:run={run.name}", "--allowed-rules", "run", "--force", "--mode", "remote"]
    done = snakemake(tmp_path, "table=digits_vit_ce", "--dry-run", *job)
    assert done.returncode == 0, done.stderr
    assert scheduled(done.stdout + done.stderr) == [run.name]


def test_a_failure_leaves_the_others_alone_and_is_repeated(plan, tmp_path):
    wanted, length = f"{STUDENT},digits_vit_ce,digits_mgp", 2 / 300
    teacher, student, vit, mgp = plan.plan(wanted, length=length)
    assert [run.recipe.name for run in (teacher, student, vit, mgp)] == [TEACHER, *wanted.split(",")]
    finished = finish(mgp)
    train.fit(vit.recipe, vit.folder, vit.seed, progress=False)
    (vit.folder / "result.json").unlink()  # as if it had been interrupted before its last evaluation
    curve = (vit.folder / "metrics.csv").stat().st_mtime_ns
    teacher.folder.mkdir(parents=True)
    stranger = teacher.folder / "notes.txt"
    stranger.write_text("not a run")

    failed = snakemake(tmp_path, f"table={wanted}", f"length={length}")
    assert failed.returncode != 0
    sentence = f"{TEACHER}, seed 0: .* is not empty and holds no run: choose another folder"
    assert re.search(f"^{sentence}", failed.stderr, re.MULTILINE), failed.stderr
    assert stranger.read_text() == "not a run"
    assert vit.finished
    assert (vit.folder / "metrics.csv").stat().st_mtime_ns == curve, "trained again instead of continued"
    assert not student.folder.exists()

    stranger.unlink()
    results = {run.name: (run.folder / "result.json").stat().st_mtime_ns for run in (mgp, vit)}
    repeated = snakemake(tmp_path, f"table={wanted}", f"length={length}")
    assert repeated.returncode == 0, repeated.stderr
    assert teacher.finished and student.finished
    assert re.search(rf"^{STUDENT} +avg +\d+\.\d ", repeated.stdout, re.MULTILINE), "the table of what was reached"
    again = [run.name for run in (mgp, vit) if (run.folder / "result.json").stat().st_mtime_ns != results[run.name]]
    assert not again and finished.read_text() == "{}", "a finished run was repeated"
    assert runs.Run(student.folder).identity["start"]["teacher"]
    pages = tmp_path / "runs" / "executed"
    found = {str(path.relative_to(pages)) for path in pages.rglob("*.ipynb")}
    assert found == {f"{run.name}.ipynb" for run in (teacher, student, vit)}
