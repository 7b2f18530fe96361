"""One `fit` for the four kinds of run: masked pre-training, fine-tuning, CNN teacher, distillation.

A step works on an *effective* batch, whatever the number of devices and accumulation steps: its random numbers are
drawn for the whole batch, each device takes its share, and weighted means divide by the sum of weights over the whole
batch. Random streams derive from (seed, epoch, step), so a resumed run equals the uninterrupted one.
"""

import contextlib
import hashlib
import inspect
import resource
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ltvit_lib import augment, losses, metrics, models, optim, recipes, runs
from ltvit_lib.data import STATISTICS, Images, Split, load
from ltvit_lib.longtail import drw_weights, index_groups, prior
from ltvit_lib.mae import MaskedAutoencoder
from ltvit_lib.recipes import Distil, Finetune, Pretrain, Recipe, Teacher
from ltvit_lib.runs import Run
from ltvit_lib.sam import ascended

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


def random_seed(*where) -> int:
    """A seed for one place in a run, such as (seed, epoch, step): any two places are independent."""
    digest = hashlib.blake2b("/".join(map(str, where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63


def stream(*where) -> torch.Generator:
    """A generator that starts at `random_seed(*where)`."""
    return torch.Generator().manual_seed(random_seed(*where))


@contextlib.contextmanager
def _numpy_seed(seed: int):
    """timm's Mixup draws from numpy's global state: seed it, and give it back as it was."""
    saved = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(saved)


@dataclass
class Batch:
    """A micro-batch on its device: b images, labels, training targets, and what the kind of run adds."""

    images: Tensor  # (b, channels, S, S) normalised
    labels: Tensor  # (b,)
    target: Tensor  # (b,) hard or (b, C) soft
    noise: Tensor | None = None  # (b, N) of the mask
    teacher: Tensor | None = None  # (b, C) the teacher's logits
    mass: dict[str, Tensor] = field(default_factory=dict)  # summed weights of each term of the loss


# --- the four kinds --------------------------------------------------------------------------------------------


class Job:
    """One kind of run: how its model is built and what its loss is on a micro-batch."""

    def __init__(self, recipe: Recipe, split: Split, device: torch.device, teacher: Run | None = None):
        self.recipe, self.split, self.device = recipe, split, device
        self.num_classes = len(split.classes)
        self.counts = torch.tensor(split.counts, dtype=torch.float32, device=device)
        self.prior = prior(split.counts).float().to(device)
        self.weight: Tensor | None = None  # (C,) class weights of this epoch
        self.mix: Mixup | None = None
        self.mean, self.std = STATISTICS["imagenet"] if recipe.normalise == "imagenet" else (split.mean, split.std)

    def build(self) -> nn.Module:
        recipe = self.recipe
        shape = dict(num_classes=self.num_classes, in_chans=self.split.train.images.shape[1])
        if recipe.model.startswith("resnet") and recipe.model.endswith("_cifar"):
            return models.create(recipe.model, normed=recipe.normed, width=recipe.width, **shape)
        if "vit" in recipe.model or "deit" in recipe.model:
            shape["img_size"] = recipe.image_size
            if "distilled" not in recipe.model:
                # LiVT: average pooling with its own norm; while pre-training the norm belongs to the encoder
                shape["global_pool"] = "token" if isinstance(recipe, Pretrain) else "avg"
        return models.create(recipe.model, drop_path_rate=recipe.drop_path, **shape)

    def start_epoch(self, epoch: int) -> None:
        """Sets class weights and mixing for this epoch."""

    def prepare(self, batch: Batch) -> None:
        """Fills in what the loss needs beside the images, and `mass`."""
        batch.mass = {"loss": torch.tensor(float(len(batch.images)), device=self.device)}

    def loss(self, model: nn.Module, batch: Batch, total: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the effective batch's loss, and the number of right answers."""
        raise NotImplementedError  # every kind defines it


class PretrainJob(Job):
    def build(self) -> nn.Module:
        r = self.recipe
        return MaskedAutoencoder(super().build(), r.decoder_width, r.decoder_depth, r.decoder_heads, r.norm_pix)

    def loss(self, model, batch, total):
        loss, _, _ = model(batch.images, self.recipe.mask_ratio, batch.noise)
        return loss * batch.mass["loss"] / total["loss"], torch.full((), float("nan"))


class FinetuneJob(Job):
    """Any loss of `ltvit_lib.losses`; the prior, counts, weights or features that it asks for are passed to it."""

    def __init__(self, recipe: Finetune, split: Split, device: torch.device, teacher: Run | None = None):
        super().__init__(recipe, split, device, teacher)
        function = getattr(losses, recipe.loss)
        asks = inspect.signature(function).parameters
        options = dict(recipe.loss_options)
        if options.get("test_prior") == "uniform":
            options["test_prior"] = torch.full_like(self.prior, 1 / self.num_classes)
        given = {"prior": self.prior, "counts": self.counts}
        self.function, self.asks = function, set(asks)
        self.options = {k: v for k, v in given.items() if k in asks} | options

    def start_epoch(self, epoch: int) -> None:
        recipe = self.recipe
        deferred = recipe.drw_epoch is not None and epoch >= recipe.drw_epoch
        beta = getattr(recipe, "beta", 0.9999)
        self.weight = drw_weights(self.counts, epoch, recipe.drw_epoch, beta).float() if deferred else None
        plain = deferred and isinstance(recipe, Distil) and not recipe.drw_mixup
        mixes = (recipe.mixup > 0 or recipe.cutmix > 0) and not plain
        self.smoothing = 0.0 if plain else recipe.smoothing
        self.mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=self.smoothing, num_classes=self.num_classes)
        self.mix = self.mix if mixes else None

    def smoothed(self, labels: Tensor) -> Tensor:
        """Targets of images that are not mixed: labels, or (b, C) with 1 - e + e / C on the label, as timm."""
        if not self.smoothing:
            return labels
        return F.one_hot(labels, self.num_classes) * (1 - self.smoothing) + self.smoothing / self.num_classes

    def prepare(self, batch: Batch) -> None:
        super().prepare(batch)
        if self.weight is not None and "weight" in self.asks:
            batch.mass["loss"] = self.weight[batch.labels].sum()

    def loss(self, model, batch, total):
        options = dict(self.options)
        if self.weight is not None and "weight" in self.asks:
            options["weight"] = self.weight
        if "features" in self.asks:
            logits, options["features"] = _with_features(model, batch.images)
        else:
            logits = model(batch.images)
        loss = self.function(logits, batch.target, **options)
        right = (logits.detach().argmax(1) == batch.labels).sum()
        return loss * batch.mass["loss"] / total["loss"], right


class DistilJob(FinetuneJob):
    """DeiT-LT: the teacher answers for the student's own images, at its resolution and with its normalisation."""

    def __init__(self, recipe: Distil, split: Split, device: torch.device, teacher: Run | None = None):
        super().__init__(recipe, split, device)
        self.teacher_recipe = teacher.recipe
        maker = FinetuneJob(self.teacher_recipe, split, device)
        self.teacher = maker.build().to(device).eval().requires_grad_(False)
        models.load_weights(self.teacher, teacher.path)
        to_teacher = [
            torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.mean, self.std, maker.mean, maker.std)
        ]
        self.unscale = lambda x: (x * to_teacher[1] + to_teacher[0] - to_teacher[2]) / to_teacher[3]

    def build(self) -> nn.Module:
        model = super().build()
        if not hasattr(model, "set_distilled_training"):
            raise ValueError(f"{self.recipe.model} has no DIST token: use a distilled ViT")
        model.set_distilled_training(True)
        return model

    @torch.inference_mode()
    def answers(self, images: Tensor) -> Tensor:
        """Teacher logits (b, C) for images normalised for the student."""
        size = self.teacher_recipe.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
        return self.teacher(self.unscale(images)).float()

    def prepare(self, batch: Batch) -> None:
        super().prepare(batch)
        batch.teacher = self.answers(batch.images).clone()
        batch.mass["dist"] = batch.mass["loss"]
        if self.weight is not None:
            batch.mass["dist"] = self.weight[batch.teacher.argmax(1)].sum()
            batch.mass["loss"] = torch.tensor(float(len(batch.labels)), device=self.device)

    def loss(self, model, batch, total):
        cls, dist = model(batch.images)
        teacher = batch.teacher
        terms = losses.distillation(cls, dist, batch.target, teacher, self.weight, self.recipe.alpha)
        on_cls = (
            self.function(cls, batch.target, **self.options) if self.recipe.loss != "cross_entropy" else terms["cls"]
        )
        share = {k: batch.mass[k] / total[k] for k in total}
        loss = (1 - self.recipe.alpha) * on_cls * share["loss"] + self.recipe.alpha * terms["dist"] * share["dist"]
        return loss, ((cls + dist).detach().argmax(1) == batch.labels).sum()


JOBS = {Pretrain.kind: PretrainJob, Finetune.kind: FinetuneJob, Teacher.kind: FinetuneJob, Distil.kind: DistilJob}


def _with_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and what the classifier saw, (b, D)."""
    seen = []
    head = (model.module if hasattr(model, "module") else model).get_classifier()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return model(images), seen[0]
    finally:
        hook.remove()


# --- batches ---------------------------------------------------------------------------------------------------


def epoch_order(count: int, recipe: Recipe, seed: int, epoch: int) -> Tensor:
    """Image indices of an epoch, (steps * batch_size,); the rest of a last partial batch is left out.

    Repeated augmentation draws each image `repeats` times in a row, and as many images fewer.
    """
    order = torch.randperm(count, generator=stream(seed, epoch, "order"))
    order = order.repeat_interleave(recipe.repeats)[:count]
    return order[: count // recipe.batch_size * recipe.batch_size]


def parts(batch_size: int, pieces: int) -> list[Tensor]:
    """Cuts positions 0..B-1 into equal pieces that mixup treats as it would the whole.

    timm mixes image i with image B-1-i, so a piece takes as many from the front as, mirrored, from the back.
    """
    size = batch_size // pieces
    if size % 2:
        return list(torch.arange(batch_size).split(size))
    front = torch.arange(batch_size // 2).split(size // 2)
    return [torch.cat([f, (batch_size - 1 - f).flip(0)]) for f in front]


def make_batches(job: Job, pixels: Images, chosen: Tensor, policy, seeds: tuple, pieces: list[Tensor]) -> list[Batch]:
    """This device's micro-batches of one effective batch: augmented, mixed, with all that the loss needs."""
    generator = stream(*seeds)
    draws = augment.draw(policy, len(chosen), generator)
    noise = None
    if isinstance(job, PretrainJob):
        patches = (job.recipe.image_size // models.patch_size(job.recipe.model)) ** 2
        noise = torch.rand(len(chosen), patches, generator=generator)
    batches = []
    for piece in pieces:
        index = chosen[piece].to(job.device)
        images = augment.apply(policy, pixels.images[index], {k: v[piece] for k, v in draws.items()})
        labels = target = pixels.targets[index]
        if job.mix is not None:
            with _numpy_seed(random_seed(*seeds, "mix")):  # the same draw for every piece
                images, target = job.mix(images, labels)
        elif isinstance(job, FinetuneJob):
            target = job.smoothed(labels)
        batch = Batch(images, labels, target, None if noise is None else noise[piece].to(job.device))
        job.prepare(batch)
        batches.append(batch)
    return batches


# --- the loop --------------------------------------------------------------------------------------------------


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
) -> Run:
    """Trains a recipe into a run folder, or continues where an interrupted run stopped; a finished one is returned.

    Args:
        recipe: a name of `recipes.names()` or a Recipe.
        out: the run folder.
        seed: of weights, order, augmentation and mixing (and, for recipes with `data_seed=None`, of the selection).
        data: a Split to train on instead of the recipe's.
        init: the pre-training run (or weights) that a recipe with `init` starts from.
        teacher: the teacher's run, for distillation.
        resume: False refuses to continue a run that is there.
        progress: a tqdm bar with loss, accuracy, images/s and time left.
        save_seconds: a checkpoint is written after an epoch, unless the last one is younger than this.

    Raises:
        ValueError: anything wrong with recipe, data, checkpoints or folder: in one sentence, before training.
        TrainingDiverged: the loss became NaN or infinite.
        OSError: the folder cannot be written; the last checkpoint survives.
    """
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    recipes.check(recipe)
    init, teacher = _starts(recipe, init, teacher)
    split = data if data is not None else load_split(recipe, seed)
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(recipe.precision, recipe.precision))
    pieces = _pieces(recipe, accelerator, len(split.train))
    torch.manual_seed(random_seed(seed, "weights"))
    job = _job(recipe, split, accelerator.device, teacher)
    model = job.build()
    if init is not None:
        models.load_encoder(model, init.path if isinstance(init, Run) else init)
    wanted = runs.identity(recipe, seed, split.digest, {"init": _digest(init), "teacher": _digest(teacher)})
    run = runs.open_run(out, wanted, resume) if accelerator.is_main_process else Run(Path(out))
    accelerator.wait_for_everyone()
    if run.finished:
        return run
    _train(run, recipe, job, model.to(accelerator.device), accelerator, pieces, seed, progress, save_seconds)
    return run


def load_split(recipe: Recipe, seed: int) -> Split:
    """The recipe's data: its selection follows the run's seed where `data_seed` is None."""
    data_seed = seed if recipe.data_seed is None else recipe.data_seed
    rho = None if recipe.per_class else recipe.rho
    split = load(recipe.data, rho, data_seed, recipe.per_class, image_size=recipe.image_size)
    return split.with_validation(data_seed) if recipe.evaluate_on == "val" else split


def _job(recipe: Recipe, split: Split, device: torch.device, teacher: Run | None) -> Job:
    if isinstance(recipe, Distil):
        theirs, ours = teacher.identity["data"], split.digest
        if theirs != ours and split.val is None:
            raise ValueError(
                f"the teacher in {teacher.path} saw other images ({theirs}, here {ours}): train it on these"
            )
    return JOBS[recipe.kind](recipe, split, device, teacher)


def _starts(recipe: Recipe, init, teacher):
    """Checks that the run has what its recipe starts from."""
    init, teacher = (Run(Path(r)) if isinstance(r, str | Path) and Path(r).is_dir() else r for r in (init, teacher))
    if getattr(recipe, "init", None) and init is None:
        raise ValueError(f"{recipe.name} starts from {recipe.init}: give init=, the folder of such a run")
    if isinstance(recipe, Distil):
        if not isinstance(teacher, Run):
            raise ValueError(f"{recipe.name} needs teacher=, the folder of a {recipe.teacher or 'teacher'} run")
    for start in (init, teacher):
        if isinstance(start, Run) and not start.finished:
            raise ValueError(f"the run in {start.path} has not finished: give its command again first")
    return init, teacher


def _digest(start: Run | str | Path | None) -> str:
    """Which weights a run began from."""
    if start is None:
        return ""
    path = start.path / "last.safetensors" if isinstance(start, Run) else Path(start)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _pieces(recipe: Recipe, accelerator: Accelerator, images: int) -> list[Tensor]:
    """This device's positions in an effective batch, a tensor a micro-batch."""
    world = accelerator.num_processes
    share = recipe.batch_size // world
    micro = min(recipe.micro_batch or share, share)
    if images < recipe.batch_size:
        raise ValueError(
            f"{images} training images do not fill a batch of {recipe.batch_size}: give a smaller batch_size"
        )
    if share * world != recipe.batch_size or share % micro:
        raise ValueError(f"batch_size {recipe.batch_size} is not a multiple of {world} devices x micro_batch {micro}")
    mixes = getattr(recipe, "mixup", 0) > 0 or getattr(recipe, "cutmix", 0) > 0
    if mixes and micro % 2:
        raise ValueError(f"mixup pairs images, but a micro-batch has {micro}: make it even")
    every = parts(recipe.batch_size, recipe.batch_size // micro)
    mine = share // micro
    return every[accelerator.process_index * mine : (accelerator.process_index + 1) * mine]


def _train(run, recipe, job, model, accelerator, pieces, seed, progress, save_seconds) -> None:
    optimizer = optim.create_optimizer(model, recipe)
    done, seconds = runs.load_checkpoint(run, model, optimizer)
    wrapped = accelerator.prepare(model)
    pixels = job.split.train.to(accelerator.device)
    steps = len(pixels) // recipe.batch_size
    schedule = optim.create_schedule(optimizer, recipe, steps)
    policy = recipes.POLICIES[recipe.policy](recipe.image_size, job.mean, job.std, **recipe.policy_options)
    bar = tqdm(
        total=recipe.epochs * steps * recipe.batch_size, initial=done * steps * recipe.batch_size, unit=" images",
        unit_scale=True, desc=recipe.name, disable=not (progress and accelerator.is_main_process), mininterval=0.5,
    )  # fmt: skip
    rows, saved = [], time.monotonic()
    with bar:
        for epoch in range(done, recipe.epochs):
            began = time.monotonic()
            torch.manual_seed(random_seed(seed, epoch, "drop", accelerator.process_index))
            schedule.step(epoch)
            job.start_epoch(epoch)
            order = epoch_order(len(pixels), recipe, seed, epoch)
            meter = _Meter(bar, epoch, accelerator.device)
            wrapped.train()
            for step in range(steps):
                schedule.step_update(epoch * steps + step)
                chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                batches = make_batches(job, pixels, chosen, policy, (seed, epoch, step), pieces)
                loss, right = _step(recipe, job, wrapped, optimizer, batches, accelerator)
                meter.update(loss, right, recipe.batch_size, step, optimizer.param_groups[-1]["lr"])
            row = meter.finish(accelerator, steps, recipe.batch_size, time.monotonic() - began)
            seconds += row["seconds"]
            rows.append(row)
            if accelerator.is_main_process and (time.monotonic() - saved > save_seconds or epoch + 1 == recipe.epochs):
                runs.save_checkpoint(run, model.state_dict(), optimizer, epoch + 1, seconds)
                runs.append_metrics(run, rows)
                rows, saved = [], time.monotonic()
    _finish(run, recipe, job, model, accelerator, seconds)


def _step(recipe, job, model, optimizer, batches: list[Batch], accelerator) -> tuple[Tensor, Tensor]:
    """One optimiser step over an effective batch; with SAM, two passes. Returns its loss and right answers here."""
    total = {k: sum(b.mass[k] for b in batches) for k in batches[0].mass}
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, reduction="sum")

    def passes() -> tuple[Tensor, Tensor]:
        loss, right = 0.0, 0.0
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                value, hits = job.loss(model, batch, total)
                accelerator.backward(value * accelerator.num_processes)  # DDP averages over devices; we sum
            loss, right = loss + value.detach(), right + hits
        return loss, right

    optimizer.zero_grad()
    loss, right = passes()
    if getattr(recipe, "sam_rho", 0) > 0:
        with ascended(model.parameters(), recipe.sam_rho):
            optimizer.zero_grad()
            passes()
    optimizer.step()
    return loss, right


class _Meter:
    """Loss and accuracy of an epoch, summed on the device; a bad loss is noticed one step later, without waiting."""

    def __init__(self, bar, epoch: int, device):
        self.bar, self.epoch = bar, epoch
        self.loss, self.right = torch.zeros((), device=device), torch.zeros((), device=device)
        self.before: tuple | None = None

    def update(self, loss: Tensor, right: Tensor, images: int, step: int, lr: float) -> None:
        self.check()
        self.before = (loss, step, lr)
        self.loss += loss
        self.right += right
        self.bar.update(images)

    def check(self) -> None:
        if self.before is None:
            return
        loss, step, lr = self.before
        if not np.isfinite(value := loss.item()):
            raise TrainingDiverged(
                f"the loss is {value} at epoch {self.epoch}, step {step}, learning rate {lr:.3g}: lower base_lr or "
                "lengthen warmup_epochs; the last good checkpoint is kept"
            )

    def finish(self, accelerator, steps: int, batch_size: int, seconds: float) -> dict:
        self.check()
        images = steps * batch_size
        loss, right = accelerator.reduce(torch.stack([self.loss, self.right]), reduction="sum").tolist()
        row = {
            "epoch": self.epoch, "loss": loss / steps, "accuracy": right / images, "lr": self.before[2],
            "seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1),
        }  # fmt: skip
        shown = {"epoch": self.epoch + 1, "loss": f"{row['loss']:.3f}"}
        self.bar.set_postfix(shown | ({} if np.isnan(row["accuracy"]) else {"acc": f"{row['accuracy']:.3f}"}))
        return row


def _finish(run, recipe, job, model, accelerator, seconds: float) -> None:
    """Evaluates the last epoch's weights and writes result.json and test.safetensors."""
    from safetensors.torch import save

    heads, logits = {}, {}
    part = job.split.val if recipe.evaluate_on == "val" else job.split.test
    if not isinstance(recipe, Pretrain):
        logits = predict_logits(model, part, recipe, job.mean, job.std, accelerator)
        heads = {h: evaluate(z, part.targets, job.split) for h, z in logits.items()}
    if accelerator.is_main_process:
        curve = run.curve
        if logits:
            tensors = {h: z.contiguous() for h, z in logits.items()} | {"targets": part.targets.contiguous()}
            runs.write(run.path / "test.safetensors", save(tensors))
        runs.write_json(
            run.path / "result.json",
            {
                "heads": heads,
                "final_loss": float(curve["loss"].iloc[-1]),
                "seconds": round(seconds, 1),
                "images_per_second": float(curve["images_per_second"].median()),
                "peak_memory_mib": _peak_memory(accelerator.device),
            },
        )
    accelerator.wait_for_everyone()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


# --- evaluation ------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_logits(model: nn.Module, part: Images, recipe: Recipe, mean, std, accelerator=None) -> dict[str, Tensor]:
    """Logits (N, C) of every head for a set of images: `cls`; with a DIST token also `dist` and their average `avg`.

    Cosine classifiers are scaled by LDAM's s. With several processes each takes every n-th image.
    """
    model.eval()
    device = next(model.parameters()).device
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    rows = []
    for index in torch.arange(rank, len(part), world).split(512):
        images = augment.evaluate(part.images[index].to(device), recipe.image_size, mean, std, recipe.eval_crop)
        with accelerator.autocast() if accelerator else contextlib.nullcontext():
            cls, dist = models.head_logits(model, images)
        cls = cls.float() * models.logit_scale(model)
        rows.append((index, cls.cpu(), None if dist is None else dist.float().cpu()))
    rows = gather_object(rows) if world > 1 else rows
    index = torch.cat([r[0] for r in rows]).argsort()
    cls = torch.cat([r[1] for r in rows])[index]
    if rows[0][2] is None:
        return {"cls": cls}
    dist = torch.cat([r[2] for r in rows])[index]
    return {"cls": cls, "dist": dist, "avg": (cls + dist) / 2}


def evaluate(logits: Tensor, targets: Tensor, split: Split) -> dict:
    """Accuracies by both group conventions, calibration, per-class accuracy and confusion matrix."""
    groups = index_groups(len(split.classes), split.boundaries)
    row = metrics.evaluate_logits(logits, targets, split.counts, groups)
    predicted, classes = logits.argmax(1), len(split.classes)
    return row | {
        "per_class": metrics.per_class_accuracy(predicted, targets, classes).tolist(),
        "confusion": metrics.confusion(predicted, targets, classes).tolist(),
    }


def build(run: Run, split: Split | None = None) -> tuple[nn.Module, Split]:
    """The trained model of a run, in eval mode on the CPU, and its data."""
    recipe = run.recipe
    split = split if split is not None else load_split(recipe, run.seed)
    job = FinetuneJob if isinstance(recipe, Finetune) else PretrainJob
    model = job(replace(recipe), split, torch.device("cpu")).build()
    models.load_weights(model, run.path)
    return model.eval(), split
