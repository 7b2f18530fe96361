"""Run folders and the ledger.

A run folder holds recipe.json (recipe, seed, overrides, data digest), env.json (versions, device, commit),
metrics.csv (a row an epoch), last.safetensors (weights, optimiser state, epoch) and, once finished, result.json and
test.safetensors (logits of every head on the evaluation set). Every file is written under a temporary name and
renamed, so a full disk or a killed process leaves the one before.
"""

import ast
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltvit_lib import costs, models, recipes
from ltvit_lib.recipes import Recipe

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

REMARKS = ("reaches", "evaluate_every")  # fields that decide no weight: runs that differ only in these are one run
LEDGER = Path(__file__).resolve().parents[1] / "figures" / "data" / "runs.csv"


def folder(recipe: Recipe | str, seed: int = 0) -> Path:
    """Where a run goes unless told otherwise: runs/<recipe>/seed<seed>, runs/<recipe>-<hash>/... with overrides.

    `runs` lies beside the package in a checkout, or where LTVIT_RUNS says.
    """
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    name = recipe.name
    if changed := changes(recipe):
        name += "-" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    return Path(os.environ.get("LTVIT_RUNS") or Path(__file__).resolve().parents[1] / "runs") / name / f"seed{seed}"


SELECTION = ("data", "rho", "per_class", "evaluate_on")  # which images a run sees


def start(recipe: Recipe, seed: int = 0, **given: str) -> dict[str, str | Path | None]:
    """For `train.fit`: the folders of `teacher` and `init`, as given, or else where their recipes go.

    With other data than the registered recipe's they are looked for on the same data.
    """
    standard = recipes.get(recipe.name)
    other = {k: getattr(recipe, k) for k in SELECTION if getattr(recipe, k) != getattr(standard, k)}
    named = {what: getattr(recipe, what, None) for what in ("teacher", "init")}
    return {
        what: given.get(what) or (name and folder(recipes.get(name, **other), seed)) for what, name in named.items()
    }


def changes(recipe: Recipe) -> dict:
    """In which fields a recipe differs from the one registered under its name, but for `remarks`."""
    if recipe.name not in recipes.names():
        return {}
    standard = fields_of(recipes.get(recipe.name))
    return {k: v for k, v in fields_of(recipe).items() if k not in remarks(recipe.model) and standard.get(k) != v}


def remarks(model: str) -> tuple[str, ...]:
    """Fields of a recipe that make no other run: REMARKS; and in a ViT, without BatchNorm, the size of a micro-batch.

    So a run that did not fit a device goes on in smaller pieces of the same effective batch.
    """
    return REMARKS if models.patch_size(model) is None else (*REMARKS, "micro_batch")


def fields_of(recipe: Recipe) -> dict:
    """A recipe as its JSON has it: its kind, then its fields, tuples as lists."""
    return {"kind": recipe.kind} | json.loads(json.dumps(dataclasses.asdict(recipe)))


def from_parameters(names: dict, allowed: tuple[str, ...]) -> Recipe:
    """The recipe that a papermill notebook's parameters ask for; refuses parameters it does not have.

    papermill only warns of a mistyped parameter and trains the default. Called with `globals()`, this reads the cell
    that papermill put in, so it may be run again later in a live session.
    From here on the notebook shows what this library refuses as one sentence (`_say_plainly`).

    Raises:
        ValueError: a parameter that is not in `allowed`, an unknown recipe or override, overrides that are no mapping.
    """
    _say_plainly()
    for cell in names.get("In", ()):
        for node in ast.walk(ast.parse(cell)) if cell.startswith("# Parameters") else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id not in allowed:
                raise ValueError(f"unknown parameter {node.id!r}; this notebook takes {', '.join(allowed)}")
    changed = names["overrides"] or {}
    if isinstance(changed, str):
        try:
            changed = json.loads(changed)
        except json.JSONDecodeError as error:
            raise ValueError(f'overrides are not JSON ({error}): such as {{"epochs": 2}}') from None
    if not isinstance(changed, dict):
        raise ValueError(f"overrides must map fields to values, such as epochs: 2, got {changed!r}")
    return recipes.get(names["recipe"], **changed)


def _say_plainly() -> None:
    """In a notebook, an error that this library raised shows as its message alone; `%tb` has the traceback."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None

    def show(shell, kind, error, trace, tb_offset=None) -> None:
        *_, (innermost, _) = traceback.walk_tb(trace)
        ours = innermost.f_globals.get("__name__", "").startswith("ltvit_lib")
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset, exception_only=ours)

    if shell:
        shell.set_custom_exc((ValueError, OSError), show)


def write(path: Path, content: bytes) -> None:
    """Writes through a temporary file and a rename.

    Raises:
        OSError: in one sentence, saying that what was there before is untouched.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): free some space or choose another folder, then give "
            "the same command again; the last checkpoint is untouched"
        ) from None


def write_json(path: Path, content: dict) -> None:
    write(path, (json.dumps(content, indent=1) + "\n").encode())


def make_folder(path: Path) -> None:
    """Makes a folder that may be there; OSError in one sentence."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make {path} ({error.strerror}): choose a folder that can be written") from None


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not."""

    path: Path

    @property
    def identity(self) -> dict:
        return json.loads((self.path / "recipe.json").read_text())

    @property
    def seed(self) -> int:
        return self.identity["seed"]

    @property
    def recipe(self) -> Recipe:
        try:
            return recipe_from(self.identity["recipe"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path} was written by another version of this library ({error})") from None

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").is_file()

    @property
    def result(self) -> dict:
        """Seconds, images/s and, for each head, accuracies and calibration (fractions)."""
        if not self.finished:
            raise ValueError(f"{self.path} has not finished: give its command again to continue it")
        return json.loads((self.path / "result.json").read_text())

    @property
    def curve(self) -> pd.DataFrame:
        """metrics.csv: epoch, loss, accuracy on the training batches, lr, seconds, images_per_second.

        With `evaluate_every` also eval_<head>: accuracy on the evaluation part, NaN in the epochs between.
        """
        return pd.read_csv(self.path / "metrics.csv")

    @property
    def accuracies(self) -> pd.DataFrame:
        """The curve's accuracies in percent, tidy for `plots.plot_curves`: epoch, method, accuracy."""
        curve = self.curve
        names = {"accuracy": "training batches"}
        names |= {c: f"evaluation, {c.removeprefix('eval_').upper()}" for c in curve if c.startswith("eval_")}
        tidy = curve.rename(columns=names).melt("epoch", list(names.values()), "method", "accuracy").dropna()
        return tidy.assign(accuracy=100 * tidy["accuracy"]).reset_index(drop=True)

    @property
    def status(self) -> str:
        """What giving the run's command again would do, in words."""
        if self.finished:
            return f"{self.path} has finished: nothing to do"
        if not (self.path / "last.safetensors").is_file():
            return f"{self.path} starts with its first epoch"
        with _checkpoint(self.path / "last.safetensors") as file:
            done, epochs = int(file.metadata()["epoch"]), self.recipe.epochs
        what = f"continues with epoch {done + 1} of {epochs}" if done < epochs else "has only its evaluation left"
        return f"{self.path} {what}"

    def table(self, groups: tuple[str, ...] = ("all", "head", "mid", "tail", "ece")) -> pd.DataFrame:
        """A row a head, in percent: accuracies by group (head, mid, tail; many, medium, few) and calibration."""
        rows = pd.DataFrame.from_dict(self.result["heads"], orient="index")
        return rows[list(groups)].astype(float).mul(100).round(1)

    def logits(self) -> dict[str, torch.Tensor]:
        """Evaluation logits of each head (N, C), and `targets` (N,)."""
        return load_file(self.path / "test.safetensors")


def recipe_from(fields: dict) -> Recipe:
    """Rebuilds a recipe from its JSON; fields that it lacks, being younger than it, get their defaults."""
    kinds = {k.kind: k for k in (recipes.Pretrain, recipes.Finetune, recipes.Teacher, recipes.Contrast, recipes.Distil)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "kind"}
    return kinds[fields["kind"]](**values)


def identity(recipe: Recipe, seed: int, digest: str, start: dict) -> dict:
    """What makes two runs the same run. `start` names the runs it began from: init, teacher."""
    return {"recipe": fields_of(recipe), "seed": seed, "data": digest, "start": start}


def difference(there: dict, here: dict) -> str:
    """The first thing in which two identities differ, in words; empty if they are one run.

    `data` is compared by content: images may move to another folder. A run may be looked at more often from here on
    (`evaluate_every`), described otherwise (`reaches`), or continued on a device of another size: see `remarks`.
    """
    a, b = ({"seed": d["seed"]} | d["recipe"] | d["start"] | {"data": d["data"]} for d in (there, here))
    ignored = remarks(here["recipe"]["model"])
    different = [key for key in a | b if key not in ignored and a.get(key) != b.get(key)]
    return f"{different[0]} is {a.get(different[0])!r} there and {b.get(different[0])!r} here" if different else ""


def open_run(out: str | Path, wanted: dict, resume: bool) -> Run:
    """Makes or re-opens a run folder.

    Raises:
        ValueError: the folder holds another run, or holds one and `resume` is off, or another process trains into it.
        OSError: the folder cannot be written.
    """
    run = Run(Path(out))
    if (run.path / "recipe.json").is_file():
        other = difference(run.identity | {"recipe": fields_of(run.recipe)}, wanted)
        if other:
            raise ValueError(f"{run.path} holds another run ({other}): choose another folder, or remove it")
        if not resume:
            raise ValueError(f"{run.path} holds this run already: resume it, or remove the folder")
        if not run.finished:
            _note_environment(run)
        return run
    started = {"lock", "env.json", "env.json.partial", "recipe.json.partial"}  # what a killed start leaves
    if run.path.is_dir() and {f.name for f in run.path.iterdir()} - started:
        raise ValueError(f"{run.path} is not empty and holds no run: choose another folder")
    make_folder(run.path)
    with lock(run):  # two processes may be here at once
        if not (run.path / "recipe.json").is_file():
            write_json(run.path / "env.json", environment())
            write_json(run.path / "recipe.json", wanted)
            return run
    return open_run(out, wanted, resume)


@contextlib.contextmanager
def lock(run: Run) -> Iterator[None]:
    """Keeps other processes out of a run folder; the system releases it when this process dies, however it dies.

    Raises:
        ValueError: another process holds it.
        OSError: the folder cannot be written.
    """
    path = run.path / "lock"
    try:
        file = open(path, "a")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): choose a folder that can be written") from None
    os.register_at_fork(after_in_child=file.close)  # data loaders that outlive this process would hold on to it
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise ValueError(
                    f"another process is training into {run.path}: wait for it, or choose another folder"
                ) from None  # any other error: a file system without locks, where two such processes are not noticed
        yield


def _note_environment(run: Run) -> None:
    """Adds the place and commit at which a run goes on to env.json, where they differ from the last ones."""
    (first, *later), now = _passed(run), environment()
    if now != [first, *later][-1]:
        write_json(run.path / "env.json", first | {"later": [*later, now]})


def _passed(run: Run) -> list[dict]:
    first = json.loads((run.path / "env.json").read_text())
    later = first.pop("later", [])
    return [first, *later]


def environments(run: Run) -> dict:
    """Versions and device with which a run ended; `commit` names all that it passed through, in their order."""
    passed = _passed(run)
    return passed[-1] | {"commit": " ".join(dict.fromkeys(env["commit"] for env in passed if env.get("commit")))}


def environment() -> dict:
    """Versions, device and commit."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy")
    return {
        "python": platform.python_version(),
        **{p: importlib.metadata.version(p) for p in packages},
        "device": device_name(),
        "commit": _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
    }


def device_name() -> str:
    """The GPU, or the processor and the threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
        model = next(names, model)
    return f"{model}, {torch.get_num_threads()} threads"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def check_space(run: Run, model: dict, optimizer: torch.optim.Optimizer) -> None:
    """Refuses a disk without room for a checkpoint and the next one beside it, which `write` needs.

    Raises:
        OSError: in one sentence.
    """
    path, size = run.path / "last.safetensors", checkpoint_bytes(model, optimizer)
    needed = 2 * size - (path.stat().st_size if path.is_file() else 0)
    free = shutil.disk_usage(run.path).free
    if free < needed:
        raise OSError(
            f"{run.path} has {free / 2**20:,.0f} MiB free, and checkpoints need {needed / 2**20:,.0f} MiB: free some "
            "space or choose another folder, then give the same command again"
        )


def checkpoint_bytes(model: dict, optimizer: torch.optim.Optimizer) -> int:
    """Size of a checkpoint: the weights, and the optimiser's averages of each trained parameter (Adam 2, SGD 1)."""
    averages = (
        p.nbytes * (len(group.get("betas", ())) or bool(group.get("momentum")))
        for group in optimizer.param_groups
        for p in group["params"]
    )
    return sum(value.nbytes for value in model.values()) + sum(averages)


def save_checkpoint(run: Run, model: dict, optimizer: torch.optim.Optimizer, epoch: int, seconds: float) -> None:
    """One file: weights under `model.`, optimiser state under `optimizer.<group>.<index>.`, epochs done as metadata.

    LAMB counts its steps in the group itself: `optimizer.<group>.step`.
    """
    tensors = {f"model.{name}": value for name, value in model.items()}
    groups = enumerate(optimizer.param_groups)
    tensors |= {f"optimizer.{g}.step": torch.as_tensor(group["step"]) for g, group in groups if "step" in group}
    for prefix, parameter in _slots(optimizer):
        state = optimizer.state.get(parameter, {})
        tensors |= {prefix + name: torch.as_tensor(value) for name, value in state.items() if value is not None}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write(run.path / "last.safetensors", save(tensors, {"epoch": str(epoch), "seconds": repr(seconds)}))


def load_checkpoint(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restores weights and optimiser state; returns epochs done and seconds spent, (0, 0.) without a checkpoint."""
    path = run.path / "last.safetensors"
    if not path.is_file():
        return 0, 0.0
    with _checkpoint(path) as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for g, group in enumerate(optimizer.param_groups):
        if f"optimizer.{g}.step" in tensors:
            group["step"] = tensors[f"optimizer.{g}.step"]
    for prefix, parameter in _slots(optimizer):
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if state:  # AdamW keeps its step count on the CPU, everything else beside the parameter
            optimizer.state[parameter] = {
                k: v if k == "step" else v.to(parameter.device, parameter.dtype) for k, v in state.items()
            }
    return int(metadata["epoch"]), float(metadata["seconds"])


@contextlib.contextmanager
def _checkpoint(path: Path):
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to start this run again") from None


def _slots(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """Every parameter with the prefix of its state's names in a checkpoint."""
    groups = [group["params"] for group in optimizer.param_groups]
    return [(f"optimizer.{g}.{i}.", p) for g, parameters in enumerate(groups) for i, p in enumerate(parameters)]


def append_metrics(run: Run, new: list[dict]) -> None:
    """Adds rows to metrics.csv; those of epochs that were trained again after an interruption are replaced.

    A column that only some sessions wrote (`evaluate_every` may change on the way) is empty in the others' rows.
    """
    path = run.path / "metrics.csv"
    as_text = {"dtype": str, "keep_default_na": False}  # numbers read and written could change their last digit
    rows = pd.read_csv(io.StringIO(pd.DataFrame(new).to_csv(index=False)), **as_text)
    if path.is_file():
        old = pd.read_csv(path, **as_text)
        rows = pd.concat([old[old["epoch"].astype(int) < new[0]["epoch"]], rows])
    write(path, rows.to_csv(index=False).encode())


# --- the ledger ------------------------------------------------------------------------------------------------


def ledger(path: Path = LEDGER) -> pd.DataFrame:
    """figures/data/runs.csv: one row a finished run and head."""
    if not path.is_file():
        raise ValueError(f"no ledger at {path}: record finished runs with `make ledger`")
    return pd.read_csv(path, dtype={"data": str, "commit": str})


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of unchanged recipes, evaluated on the test set: those that tables and figures show."""
    return rows[(rows["overrides"].fillna("") == "") & (rows["evaluated_on"] == "test")]


def shots(methods: dict[str, tuple[str, str]], table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The ledger's accuracies as `plots.plot_shot_accuracy` wants them: method, group, accuracy, seed, recipe, head.

    Args:
        methods: label -> (recipe, head), in the order of the figure.
        table: rows to look in; None: those of the ledger that are `counted`.

    Raises:
        ValueError: a recipe and head without a row.
    """
    table = counted(ledger()) if table is None else table
    parts = []
    for method, (recipe, head) in methods.items():
        rows = table[(table["recipe"] == recipe) & (table["head"] == head)]
        if rows.empty:
            raise ValueError(f"no row of {recipe}, head {head}: run it, then record it with `make ledger`")
        values = ["all", "head_classes", "mid", "tail", "many", "medium", "few", "ece"]
        rows = rows.melt(["recipe", "head", "seed"], values, "group", "accuracy")
        parts.append(rows.assign(method=method, group=rows["group"].replace("head_classes", "head")))
    return pd.concat(parts, ignore_index=True)[["method", "group", "accuracy", "seed", "recipe", "head"]]


def mean_sd(
    tidy: pd.DataFrame, index: str | list[str] = "method", groups: tuple[str, ...] = ("all", "head", "mid", "tail")
) -> pd.DataFrame:
    """A table of `shots` to read: mean ± sample sd over seeds (none for one), in percent; a row an `index`."""
    keys = [index] if isinstance(index, str) else index
    percent = tidy[tidy["group"].isin(groups)].assign(accuracy=lambda t: 100 * t["accuracy"])
    cells = percent.groupby([*keys, "group"], sort=False)["accuracy"].agg(["mean", "std"])
    text = cells["mean"].map("{:.1f}".format) + cells["std"].map(lambda sd: "" if pd.isna(sd) else f" ± {sd:.1f}")
    return text.unstack("group")[list(groups)]


def against_paper(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every published number that a recipe here owns (`recipes.cells`), beside the mean of ours over seeds.

    Args:
        rows: of the ledger, or `pd.DataFrame(ledger_rows(run))`; None: the ledger. See `counted`.

    Returns:
        A row a published number: paper, table, row, column, recipe, head, metric, then in percent published, ours,
        difference (ours - published) and sd (sample sd over seeds; NaN for one), and n; n = 0 where nothing was run.
    """
    rows = counted(ledger() if rows is None else rows)
    metrics = [m for m in ("all", "many", "medium", "few", "head_classes", "mid", "tail", "ece", "mce") if m in rows]
    ours = rows.melt(["recipe", "head"], metrics, "metric", "ours").replace({"metric": {"head_classes": "head"}})
    keys = ["recipe", "head", "metric"]
    ours = ours.assign(ours=100 * ours["ours"]).groupby(keys)["ours"].agg(ours="mean", sd="std", n="count")
    cells = [recipes.cells(p, t).assign(paper=p, table=t) for p, t in recipes.tables()]
    both = pd.concat(cells, ignore_index=True).rename(columns={"value": "published"})
    both = both.join(ours, on=keys).fillna({"n": 0}).astype({"n": int})
    both["difference"] = both["ours"] - both["published"]
    return both[["paper", "table", "row", "column", *keys, "published", "ours", "difference", "sd", "n"]]


def ledger_rows(run: Run) -> list[dict]:
    """One row for each head of a finished run (one without accuracies for a pre-training run).

    `best_over_epochs` and `best_epoch` (0 is the first, as in metrics.csv) stand beside the headline, which is the last
    epoch's; they are empty where nothing was evaluated while training. `start`: digests of the weights that it began
    from, such as `teacher:1a2b3c4d5e6f`. `teraflops` and `utilisation`: see `_speed`.
    """
    recipe, result, env = run.recipe, run.result, environments(run)
    changed, curve = changes(recipe), run.curve
    common = {
        "recipe": recipe.name, "overrides": json.dumps(changed) if changed else "", "seed": run.seed,
        "data": run.identity["data"],
        "start": " ".join(f"{what}:{digest}" for what, digest in run.identity["start"].items() if digest),
        "epochs": recipe.epochs, "evaluated_on": recipe.evaluate_on,
    }  # fmt: skip
    cost = {k: result[k] for k in ("final_loss", "seconds", "images_per_second", "peak_memory_mib")}
    cost |= _speed(recipe, result, env["device"]) | {k: env[k] for k in ("device", "torch", "timm", "commit")}
    rows = []
    for head, values in (result["heads"] or {"": {}}).items():
        single = {k: v for k, v in values.items() if not isinstance(v, list)}
        # the group `head` becomes `head_classes`, since a column `head` names the token
        single = {"head_classes" if k == "head" else k: v for k, v in single.items()}
        rows.append(common | {"head": head} | single | _best(curve, head) | cost)
    return rows


def _best(curve: pd.DataFrame, head: str) -> dict:
    evaluated = curve.set_index("epoch").get(f"eval_{head}", pd.Series(dtype=float)).dropna()
    best_epoch = evaluated.idxmax() if len(evaluated) else math.nan
    return {"best_over_epochs": evaluated.max(), "best_epoch": best_epoch}


def _speed(recipe: Recipe, result: dict, device: str) -> dict:
    """Achieved training FLOP/s in 10^12, and its share of the devices' dense bf16 peak (NaN where that is unknown).

    Both are NaN for a run whose images have gone, or whose teacher has no recipe: its accuracies stand all the same.
    """
    devices, peak, achieved = result.get("devices", 1), costs.peak_flops(device) or math.nan, math.nan
    with contextlib.suppress(ValueError, OSError):
        achieved = costs.estimate(recipe).flops_per_image * result["images_per_second"]
    return {"devices": devices, "teraflops": achieved / 1e12, "utilisation": achieved / (devices * peak)}


def record(folders: list[Run], path: Path = LEDGER) -> pd.DataFrame:
    """Adds finished runs to the ledger; a run of the same recipe, overrides, seed and data replaces its old rows.

    What a run started from (column `start`) is not part of that key: a teacher trained again, on another machine or
    after a repair, has another digest, and its students' old rows would stay beside the new and count as further seeds
    in every mean. The price: of two students of one recipe and seed whose teachers differ in the weights alone, one
    row remains. A student of another *kind* of teacher has another recipe, hence its own rows; and two such runs that
    are given here together are refused, since neither is the newer.

    Raises:
        ValueError: no finished run among them, or two that differ only in the weights that they started from.
    """
    age = lambda run: (run.path / "result.json").stat().st_mtime  # noqa: E731, of two folders of one run the younger counts
    folders = sorted((run for run in folders if run.finished), key=age)
    if not folders:
        raise ValueError("no finished run to record: train one first")
    key = ["recipe", "overrides", "seed", "data", "head"]
    new = pd.concat([pd.DataFrame(ledger_rows(run)).assign(folder=str(run.path)) for run in folders])
    _refuse_ambiguous(new, key)
    new = new.drop(columns="folder")
    if path.is_file():
        old = ledger(path)
        new = pd.concat([old[~_same_runs(old, new)], new])
    new = new.fillna({"overrides": "", "head": "", "start": ""}).drop_duplicates(key, keep="last").sort_values(key)
    write(path, new.to_csv(index=False, float_format="%.6g").encode())
    return ledger(path)


def _same_runs(old: pd.DataFrame, new: pd.DataFrame) -> pd.Series:
    """Old rows whose run has new ones: where a recipe has changed since, they differ in `overrides`, hence in key."""

    def which(rows: pd.DataFrame) -> pd.MultiIndex:
        printed = {c: rows[c].map("{:.6g}".format) for c in ("seconds", "final_loss")}
        return pd.MultiIndex.from_frame(rows[["recipe", "seed", "data", "epochs"]].assign(**printed))

    return pd.Series(which(old).isin(which(new)), old.index)


def _refuse_ambiguous(rows: pd.DataFrame, key: list[str]) -> None:
    starts = rows.groupby(key)["start"].transform("nunique")
    if (starts > 1).any():
        one, two = rows[starts > 1].groupby(key)["folder"].agg(["first", "last"]).iloc[0]
        raise ValueError(
            f"{one} and {two} are one recipe and seed from different starting weights: record one of them, or give "
            "the other recipe a name of its own"
        )


def collect(folder: str | Path = "runs") -> list[Run]:
    """All finished runs below a folder."""
    found = (Run(p.parent) for p in Path(folder).rglob("result.json") if p.with_name("recipe.json").is_file())
    return sorted(found, key=lambda run: run.path)


def export(run: Run, out: str | Path | None = None, split=None) -> Path:
    """A finished run as a folder for others: weights in bfloat16, config.json and a model card; see `ltvit_lib.export`.

    `models.load` reads it, and `models.create` and timm its weights. Of a PaCo run it holds the CNN, of a pre-training
    run the encoder, which has no classifier.

    Args:
        out: the folder, new or empty or an earlier export's; None: `export` in the run's own.
        split: the data the run was trained on, which spares loading it (and is needed where `fit` was given `data`).

    Raises:
        ValueError: an unfinished run, other data than the run's, or a folder with other files in it.
        OSError: the folder cannot be written.
    """
    from ltvit_lib.export import write as export_run  # it builds models, hence imports this module

    return export_run(run, out, split)


if __name__ == "__main__":
    try:
        print(record(collect(sys.argv[1] if len(sys.argv) > 1 else "runs")).to_string(max_colwidth=30))
    except ValueError as error:
        raise SystemExit(str(error)) from None
