"""One `fit` for all kinds of run: masked pre-training, fine-tuning, CNN teachers (LDAM, PaCo), distillation.

A step works on an *effective* batch, whatever the number of devices and accumulation steps (`ltvit_lib.jobs`). Random
streams derive from (seed, epoch, step), so a resumed run equals the uninterrupted one.
"""

import contextlib
import hashlib
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from ltvit_lib import augment, jobs, kinds, metrics, models, optim, recipes, runs
from ltvit_lib.data import Images, Split, load
from ltvit_lib.files import Files, damaged, evaluation_batches, refuse
from ltvit_lib.recipes import Contrast, Finetune, Pretrain, Recipe
from ltvit_lib.runs import Run
from ltvit_lib.sam import ascended, still_statistics

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from safetensors.torch import save
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from tqdm.auto import tqdm

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
GRAPHS = ("reduce-overhead", "max-autotune", "cudagraphs")  # with CUDA graphs


class TrainingDiverged(RuntimeError):
    """The loss or the weights became NaN or infinite; the last good checkpoint is kept."""


def fit(
    recipe: str | Recipe,
    out: str | Path,
    seed: int = 0,
    data: Split | None = None,
    init: Run | str | Path | None = None,
    teacher: Run | str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    save_seconds: float = 10.0,
    compile: str | None = None,
) -> Run:
    """Trains a recipe into a run folder, or continues where an interrupted run stopped; a finished one is returned.

    Args:
        recipe: a name of `recipes.names()` or a Recipe.
        out: the run folder.
        seed: of weights, order, augmentation and mixing (and, for recipes with `data_seed=None`, of the selection).
        data: a Split to train on instead of the recipe's.
        init: the pre-training run (or weights) that a recipe with `init` starts from.
        teacher: the teacher's run, for distillation; or a checkpoint from elsewhere, of the model that the recipe's
            `teacher` describes.
        resume: False refuses to continue a run that is there.
        progress: a tqdm bar with loss, accuracy, images/s and time left.
        save_seconds: a checkpoint is written after an epoch, unless the last one is younger than this.
        compile: a mode of torch.compile ("default", "reduce-overhead" for CUDA graphs, "max-autotune") or one of its
            backends, for what a step runs; evaluation stays plain. None: the environment's LTVIT_COMPILE. "": nothing
            is compiled. No part of a run's identity: a run may go on with another. Numbers then agree within rounding,
            and stochastic depth draws others. Off until asked for, also on a GPU, where its gain is not measured yet.

    On a GPU optimisers are fused and CNNs have channels last; float32 convolutions use TF32 and matrix products do
    not, as is torch's default.

    Raises:
        ValueError: anything wrong with recipe, data, checkpoints or folder: in one sentence, before training.
        TrainingDiverged: the loss became NaN or infinite.
        OSError: the folder cannot be written, or has no room for checkpoints; the last one survives.
        torch.OutOfMemoryError: with the size of a micro-batch to try; the last checkpoint survives.
    """
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    recipes.check(recipe)
    init, teacher = _start(recipe, "init", init), _start(recipe, "teacher", teacher)
    split = load_split(recipe, seed, data)
    accelerator = accelerator_for(recipe)
    pieces = _pieces(recipe, accelerator, len(split.train))
    how = compiler(compile, len(pieces) > 1)
    torch.manual_seed(jobs.random_seed(seed, "weights"))
    job = jobs.JOBS[recipe.kind](recipe, split, accelerator.device, teacher)
    model = _synchronised(job.build(), accelerator)
    if init is not None:
        job.start_from(model, init.path if isinstance(init, Run) else init)
    wanted = runs.identity(recipe, seed, split.digest, {"init": _digest(init), "teacher": _digest(teacher)})
    with _opened(out, wanted, resume, accelerator) as run:
        if not run.finished:
            model = jobs.placed(model, recipe.model, accelerator.device)
            if how is not None:
                job.compile(model, **how)
            seconds = _train(run, job, model, accelerator, pieces, seed, progress, save_seconds)
            _finish(run, job, model, accelerator, seconds)
    return run


def accelerator_for(recipe: Recipe) -> Accelerator:
    """The devices, in the recipe's precision. Any earlier one is no longer valid."""
    AcceleratorState._reset_state()  # shared by the whole process, and it refuses a second run's other precision
    return Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16"}[recipe.precision],
        cpu=not torch.accelerator.is_available(),  # or the processes that torchrun starts would not know each other
    )


def load_split(recipe: Recipe, seed: int, data: Split | None = None) -> Split:
    """The recipe's data, or yours, with a validation part where the recipe is evaluated on one.

    The selection follows the run's seed where the recipe's `data_seed` is None.
    """
    data_seed = seed if recipe.data_seed is None else recipe.data_seed
    if data is None:
        rho = None if recipe.per_class else recipe.rho
        # your own images are kept as large as a test-time crop is cut from, as those that stay in their files
        size = recipe.image_size if recipe.data in kinds.NAMED else round(recipe.image_size / recipe.eval_crop)
        data = load(recipe.data, rho, data_seed, recipe.per_class, image_size=size)
    if len(data.classes) < 2:
        raise ValueError(f"{data.name} has one class, {data.classes[0]}: bring images of at least two")
    return data.with_validation(data_seed) if recipe.evaluate_on == "val" and data.val is None else data


def compiler(named: str | None = None, accumulates: bool = False) -> dict[str, str] | None:
    """Arguments for torch.compile from a mode's or a backend's name (None: LTVIT_COMPILE's); None where there is none.

    Raises:
        ValueError: no such mode or backend; or CUDA graphs where gradients are summed over micro-batches, for a graph
            keeps them in memory of its own, which its next run overwrites (pytorch/pytorch issue 169545).
    """
    named = os.environ.get("LTVIT_COMPILE", "") if named is None else named
    if not named:
        return None
    if accumulates and named in GRAPHS:
        raise ValueError(
            f"compile={named!r} uses CUDA graphs, which cannot sum gradients over micro-batches: give 'default', or a "
            "micro_batch that makes one of a device's share"
        )
    if named in MODES:
        return {"mode": named}
    backends = torch.compiler.list_backends(exclude_tags=())
    if named not in backends:
        known = ", ".join([*MODES, *backends])
        raise ValueError(
            f"compile (or the environment's LTVIT_COMPILE) is {named!r}: leave it empty, or give one of {known}"
        )
    return {"backend": named}


def _start(recipe: Recipe, what: str, given: Run | str | Path | None) -> Run | Path | None:
    """The run (or, for init, the weights) that a recipe starts from, checked; `what` is init or teacher."""
    asked = getattr(recipe, what, None)  # the name of such a run's recipe
    if given is None and asked is None:
        return None
    if given is None:
        raise ValueError(f"{recipe.name} starts from {asked or f'a {what}'}: give {what}=, the folder of such a run")
    if asked is None:
        raise ValueError(f"{recipe.name} takes no {what}: leave {what}= out, or override the recipe's {what}")
    run = given if isinstance(given, Run) else Run(Path(given))
    if run.path.is_file() or (what == "init" and not run.path.is_dir()):
        return run.path
    if not (run.path / "recipe.json").is_file():
        raise ValueError(f"no run in {run.path}: train {asked or f'a {what}'} into it first")
    if not run.finished:
        raise ValueError(f"the run in {run.path} has not finished: give its command again first")
    if what == "teacher" and not isinstance(run.recipe, Finetune):
        raise ValueError(f"the run in {run.path} has learnt no classes ({run.recipe.kind}): it cannot teach")
    if what == "init" and recipe.evaluate_on == "val" and run.recipe.data == recipe.data:
        if run.recipe.evaluate_on != "val":
            raise ValueError(
                f"the run in {run.path} saw the images that {recipe.name} holds out: train one with evaluate_on='val'"
            )
    if what == "init" and recipe.trains != "all" and not isinstance(run.recipe, Finetune):
        raise ValueError(
            f"trains={recipe.trains!r} keeps a trained backbone: give init=, the folder of a classifier's run"
        )
    return run


def _digest(start: Run | Path | None) -> str:
    """Which weights a run began from."""
    if start is None:
        return ""
    path = start.path / "last.safetensors" if isinstance(start, Run) else start
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _pieces(recipe: Recipe, accelerator: Accelerator, images: int) -> list[Tensor]:
    """This device's positions in an effective batch, a tensor a micro-batch."""
    world, whole = accelerator.num_processes, recipe.batch_size
    micro = min(recipe.micro_batch or whole, whole // world)
    kinds.check_images(recipe, images)
    if micro < 1 or whole % (world * micro):
        raise ValueError(f"batch_size {whole} is not a multiple of {world} devices x micro_batch {micro}")
    if micro % 2 and recipe.mixes:
        raise ValueError(f"mixup pairs images, but a micro-batch has {micro}: make it even")
    every = jobs.parts(whole, whole // micro)
    share = len(every) // world
    return every[accelerator.process_index * share :][:share]


def _synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """BatchNorm over the images of all GPUs, names in a checkpoint unchanged. On CPUs each process has its own."""
    several = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    return convert_sync_batchnorm(model) if several else model


@contextlib.contextmanager
def _opened(out: str | Path, wanted: dict, resume: bool, accelerator: Accelerator) -> Iterator[Run]:
    """The run folder, which the first process opens and, unless it is finished, holds for all of them.

    Where it is refused, every process says so: none waits for the others.
    """
    run, problem = Run(Path(out)), None
    with contextlib.ExitStack() as held:
        if accelerator.is_main_process:
            try:
                runs.open_run(out, wanted, resume)
                if not run.finished:
                    held.enter_context(runs.lock(run))
            except (ValueError, OSError) as error:
                problem = error
        (problem,) = broadcast_object_list([problem])
        if problem is not None:
            raise problem
        if not all(gather_object([(run.path / "recipe.json").is_file()])):
            raise ValueError(f"{run.path} is not on every node: choose a folder that all of them share")
        yield run


def _train(run, job, model, accelerator, pieces, seed, progress, save_seconds) -> float:
    """All epochs that are left; returns seconds spent training, interrupted sessions included."""
    recipe = job.recipe
    optimizer = optim.create_optimizer(model, recipe)
    done, seconds = runs.load_checkpoint(run, model, optimizer)
    optim.settle(optimizer)
    runs.check_space(run, model.state_dict(), optimizer)
    if not done:
        _check_evaluated(job, accelerator)
    wrapped = accelerator.prepare(model)
    pixels = job.split.train.to(accelerator.device)
    steps = len(pixels) // recipe.batch_size
    schedule = optim.create_schedule(optimizer, recipe, steps)
    rows, saved = [], time.monotonic()
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    decoding = contextlib.closing(jobs.decoded_steps(job, seed, pieces, range(done * steps, recipe.epochs * steps)))
    with decoding as decoded, _bar(recipe, steps, done, progress and accelerator.is_main_process) as bar:
        for epoch in range(done, recipe.epochs):
            torch.manual_seed(jobs.random_seed(seed, epoch, "drop", accelerator.process_index))
            schedule.step(epoch)
            job.start_epoch(epoch)
            meter = _Meter(bar, recipe, epoch, accelerator)
            wrapped.train(getattr(recipe, "trains", "all") == "all")  # a frozen backbone also keeps its statistics
            order = jobs.epoch_order(pixels.targets, recipe, seed, epoch)
            wanted = ((chosen, (seed, epoch, step)) for step, chosen in enumerate(order))
            batches = jobs.step_batches(job, pixels, wanted, pieces, decoded)
            for step in range(steps):
                schedule.step_update(epoch * steps + step)
                try:
                    values = _step(job, wrapped, optimizer, next(batches), accelerator)
                except torch.OutOfMemoryError:
                    raise torch.OutOfMemoryError(out_of_memory(recipe, accelerator.num_processes)) from None
                meter.update(values, max(group["lr"] for group in optimizer.param_groups))
            broadcast(list(model.buffers()))  # every process evaluates with the BatchNorm averages that are saved
            rows.append(meter.finish() | job.end_epoch(model) | _curve_point(job, model, epoch, accelerator))
            seconds += rows[-1]["seconds"]
            if accelerator.is_main_process and (time.monotonic() - saved > save_seconds or epoch + 1 == recipe.epochs):
                if not all(t.isfinite().all() for t in model.state_dict().values()):
                    raise _diverged("a weight is NaN or infinite", epoch, steps - 1, rows[-1]["lr"])
                runs.append_metrics(run, rows)  # before the checkpoint: an epoch done twice replaces its row
                runs.save_checkpoint(run, model.state_dict(), optimizer, epoch + 1, seconds)
                rows, saved = [], time.monotonic()
    return seconds


def _step(job: jobs.Job, model, optimizer, batches: list[jobs.Batch], accelerator) -> Tensor:
    """One optimiser step over an effective batch; with SAM, two passes.

    Returns:
        (2,) this device's share of the loss and its number of right answers.
    """
    total = {k: sum(b.mass[k] for b in batches) for k in batches[0].mass}
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, reduction="sum")

    def passes() -> Tensor:
        optimizer.zero_grad()
        values = 0.0
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                terms, right = job.terms(model, batch)
                loss = sum(value * (batch.mass[k] / total[k]) for k, value in terms.items())
                accelerator.backward(loss * accelerator.num_processes)  # DDP averages over devices; we sum
            values = values + torch.stack([loss.detach(), right])
        return values

    values = passes()
    if job.sam_rho > 0:
        both = job.recipe.sam_statistics == "both"
        with ascended(model.parameters(), job.sam_rho), contextlib.nullcontext() if both else still_statistics(model):
            passes()
    optimizer.step()
    job.finish_step(model, batches)
    return values


def out_of_memory(recipe: Recipe, devices: int) -> str:
    """Which pieces of the same effective batch to try after those that did not fit: at most half as large."""
    whole, share = recipe.batch_size, recipe.batch_size // devices
    micro = min(recipe.micro_batch or share, share)
    fitting = [n for n in range(micro // 2, 0, -1) if share % n == 0 and not (recipe.mixes and n % 2)]
    normalised = models.patch_size(recipe.model) is None  # by BatchNorm
    folder = "another folder (BatchNorm sees micro-batches)" if normalised else "the same folder (the results stay)"
    what = f"out of memory with micro_batch={micro} of an effective batch of {whole} on {devices} device(s): "
    if isinstance(recipe, Contrast) or getattr(recipe, "loss", "") == "lade":
        advice = "use more devices or a smaller batch_size, for the loss compares the images of a whole batch"
    elif not fitting:
        advice = "use more or larger devices, or a smaller model"
    else:
        advice = f"try micro_batch={fitting[0]}, {share // fitting[0]} accumulation steps on each device, in {folder}"
    return f"{what}{advice}; the last checkpoint is kept"


def _bar(recipe: Recipe, steps: int, done: int, shown: bool) -> tqdm:
    """Epoch, loss, accuracy, images/s and time left, in a terminal or a notebook."""
    images = steps * recipe.batch_size
    hidden = {} if shown else {"disable": True}  # shown: tqdm's own TQDM_DISABLE decides
    return tqdm(
        total=recipe.epochs * images, initial=done * images, unit=" images", unit_scale=True, desc=recipe.name,
        mininterval=0.5, **hidden,
    )  # fmt: skip


def _fetched(values: Tensor) -> Callable[[], list[float]]:
    """Starts a copy of a step's numbers to the host; calling the result waits for that step, and for none after it."""
    if values.device.type != "cuda":
        return values.tolist
    arriving, done = values.to("cpu", non_blocking=True), torch.cuda.Event()  # into pinned memory
    done.record()

    def read() -> list[float]:
        done.synchronize()
        return arriving.tolist()

    return read


class _Meter:
    """Loss and accuracy of an epoch. A step's numbers are read when the next two are queued: the device never waits."""

    AHEAD = 2  # steps whose numbers are still on their way

    def __init__(self, bar, recipe: Recipe, epoch: int, accelerator: Accelerator):
        self.bar, self.recipe, self.epoch, self.accelerator = bar, recipe, epoch, accelerator
        self.began, self.steps, self.loss, self.right, self.lr = time.monotonic(), 0, 0.0, 0.0, 0.0
        self.unread: deque[tuple[Callable[[], list[float]], float]] = deque()

    def update(self, values: Tensor, lr: float) -> None:
        self.unread.append((_fetched(values), lr))
        if len(self.unread) > self.AHEAD:
            self.read()

    def read(self) -> None:
        """Waits for the oldest step that is unread, adds it up and shows it."""
        fetched, self.lr = self.unread.popleft()
        loss, right = fetched()
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss}", self.epoch, self.steps, self.lr)
        self.steps, self.loss, self.right = self.steps + 1, self.loss + loss, self.right + right
        row = self.row(self.loss * self.accelerator.num_processes, self.right * self.accelerator.num_processes)
        shown = {"epoch": f"{self.epoch + 1}/{self.recipe.epochs}", "loss": f"{row['loss']:.3f}"}
        shown |= {} if math.isnan(right) else {"acc": f"{row['accuracy']:.3f}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(self.recipe.batch_size)

    def row(self, loss: float, right: float) -> dict:
        """The epoch so far, as a row of metrics.csv."""
        images, seconds = self.steps * self.recipe.batch_size, time.monotonic() - self.began
        return {
            "epoch": self.epoch, "loss": loss / self.steps, "accuracy": right / images, "lr": self.lr,
            "seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1),
        }  # fmt: skip

    def finish(self) -> dict:
        """Reads the last steps and sums over devices."""
        while self.unread:
            self.read()
        own = torch.tensor([self.loss, self.right], device=self.accelerator.device)
        return self.row(*self.accelerator.reduce(own, reduction="sum").tolist())


def _diverged(what: str, epoch: int, step: int, lr: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"{what} at epoch {epoch}, step {step}, learning rate {lr:.3g}: lower base_lr or lengthen warmup_epochs; the "
        "last good checkpoint is kept"
    )


def _evaluation_part(job: jobs.Job) -> Images:
    return job.split.val if job.recipe.evaluate_on == "val" else job.split.test


def _check_evaluated(job: jobs.Job, accelerator: Accelerator) -> None:
    """Decodes what the run is evaluated on, where it stays in files: or damage would show after the last epoch only."""
    images = _evaluation_part(job).images
    if isinstance(images, Files) and not isinstance(job.recipe, Pretrain):
        share = images.subset(range(accelerator.process_index, len(images), accelerator.num_processes))
        found = gather_object([damaged(share)])  # every process says so, and none waits for the others
        refuse({where: message for part in found for where, message in part.items()})


def _evaluated(job: jobs.Job, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, Tensor], Tensor]:
    """Every head's logits for the part that the recipe is evaluated on, and its labels."""
    part = _evaluation_part(job)
    return predict_logits(model, part, job.recipe, job.mean, job.std, accelerator), part.targets


def _curve_point(job: jobs.Job, model: nn.Module, epoch: int, accelerator: Accelerator) -> dict[str, float]:
    """Columns of metrics.csv: each head's accuracy on the evaluation part, NaN in epochs that are not evaluated.

    Training goes on as if nobody had looked: every module keeps its mode, nothing is drawn at random.
    """
    recipe = job.recipe
    if not recipe.evaluate_every:
        return {}
    if (epoch + 1) % recipe.evaluate_every and epoch + 1 < recipe.epochs:
        heads = ("cls", "dist", "avg") if hasattr(model, "head_dist") else ("cls",)
        return {f"eval_{head}": math.nan for head in heads}  # every row has the same columns
    modes = {module: module.training for module in model.modules()}
    logits, labels = _evaluated(job, model, accelerator)
    for module, mode in modes.items():
        module.training = mode
    return {f"eval_{head}": metrics.shot_accuracy(z.argmax(1), labels)["all"] for head, z in logits.items()}


def _finish(run: Run, job: jobs.Job, model: nn.Module, accelerator: Accelerator, seconds: float) -> None:
    """Evaluates the last epoch's weights and writes test.safetensors and result.json."""
    heads = {}
    if not isinstance(job.recipe, Pretrain):
        logits, labels = _evaluated(job, model, accelerator)
        heads = {head: evaluate(z, labels, job.split) for head, z in logits.items()}
        if accelerator.is_main_process:
            runs.write(run.path / "test.safetensors", save(logits | {"targets": labels.contiguous()}))
    if accelerator.is_main_process:
        curve = run.curve
        result = {
            "heads": heads,
            "final_loss": float(curve["loss"].iloc[-1]),
            "seconds": round(seconds, 1),
            "images_per_second": float(curve["images_per_second"].median()),
            "peak_memory_mib": _peak_memory(accelerator.device),
            "devices": accelerator.num_processes,
            "mean": job.mean,
            "std": job.std,
        }
        runs.write_json(run.path / "result.json", result)
    accelerator.wait_for_everyone()


def _peak_memory(device: torch.device) -> int:
    """Of the device, in MiB; on a CPU, of the process since it began."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


# --- evaluation ------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_logits(model: nn.Module, part: Images, recipe: Recipe, mean, std, accelerator=None) -> dict[str, Tensor]:
    """Logits (N, C) of every head for a set of images: `cls`; with a DIST token also `dist` and their average `avg`.

    Logits that LDAM trained, cosines or not, are multiplied by its scale: their softmax is the loss's. With several
    processes each takes every n-th image. They stay on the device until all batches are queued. In float32, however
    the model was trained: bfloat16 logits tie, and argmax gives a tie to the first class, which is the most frequent.
    """
    model.eval()
    scale = models.logit_scale(recipe)
    device = next(model.parameters()).device
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows, side = [], round(recipe.image_size / recipe.eval_crop)
    with _plain(model):
        for index, pixels in evaluation_batches(part.images, torch.arange(rank, len(part), world), side):
            images = augment.evaluate(augment.sent(pixels, device), recipe.image_size, mean, std, recipe.eval_crop)
            cls, dist = models.head_logits(model, images)
            heads = [cls.float() * scale] + ([] if dist is None else [dist.float()])
            rows.append((index, *heads))
    rows = [tuple(column.cpu() for column in row) for row in rows]
    rows = gather_object(rows) if world > 1 else rows
    index, *heads = (torch.cat(column) for column in zip(*rows, strict=True))
    cls, *dist = (head[index.argsort()] for head in heads)
    return {"cls": cls} | ({"dist": dist[0], "avg": (cls + dist[0]) / 2} if dist else {})


@contextlib.contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """While the block runs, the model is neither compiled, for batches of other sizes, nor autocast by accelerate."""
    autocast = model.__dict__.pop("forward", None)
    compiled = any(module._compiled_call_impl for module in model.modules())
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        if autocast is not None:
            model.forward = autocast


def evaluate(logits: Tensor, targets: Tensor, split: Split) -> dict:
    """Accuracies by both group conventions, calibration and per-class accuracy."""
    row = metrics.evaluate_logits(logits, targets, split.counts, split.groups)
    right = metrics.per_class_accuracy(logits.argmax(1), targets, len(split.classes))
    return row | {"per_class": right.tolist()}


def build(run: Run, split: Split | None = None) -> tuple[nn.Module, Split]:
    """The trained model of a run, in eval mode on the CPU, and its data (or `split`, which spares loading it)."""
    recipe, split = run.recipe, load_split(run.recipe, run.seed, split)
    job = jobs.PretrainJob if isinstance(recipe, Pretrain) else jobs.FinetuneJob  # a student needs no teacher any more
    return jobs.trained(run, job(recipe, split, torch.device("cpu"))).eval(), split
