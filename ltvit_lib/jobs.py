"""What is learnt from a batch: the five kinds of run, and the batches that they are given.

A `Job` builds its model and gives the terms of its loss; `make_batches` augments and mixes. An *effective* batch is
cut into micro-batches, over devices and accumulation steps: its random numbers are drawn for the whole, each piece
takes its share, and a weighted mean divides by the sum of weights over the whole batch (`Batch.mass`). Only stochastic
depth and BatchNorm see micro-batches.
"""

import contextlib
import hashlib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ltvit_lib import augment, losses, metrics, models, recipes
from ltvit_lib.augment import sent
from ltvit_lib.data import STATISTICS, Images, Split
from ltvit_lib.files import CHUNK, Files, draw_crops, prefetched
from ltvit_lib.longtail import effective_number_weights, prior
from ltvit_lib.mae import MaskedAutoencoder
from ltvit_lib.paco import PaCo, gathered, paco_loss, plain_weights
from ltvit_lib.recipes import Contrast, Distil, Finetune, Pretrain, Recipe, Teacher
from ltvit_lib.runs import Run

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F


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


def placed(model: nn.Module, name: str, device: torch.device) -> nn.Module:
    """A model on its device; on a GPU, a CNN with channels last, the layout of its convolution kernels.

    Names and values stay. On a CPU the layout stays too: recorded runs repeat bit for bit.
    """
    convolutional = device.type == "cuda" and models.patch_size(name) is None
    return model.to(device, memory_format=torch.channels_last) if convolutional else model.to(device)


def statistics(recipe: Recipe, split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and sd, one entry per channel, by which a recipe normalises."""
    return STATISTICS["imagenet"] if recipe.normalise == "imagenet" else (split.mean, split.std)


@dataclass
class Batch:
    """A micro-batch on its device: b images, labels, training targets, and what the kind of run adds."""

    images: Tensor  # (b, channels, S, S) normalised
    labels: Tensor  # (b,)
    target: Tensor  # (b,) hard or (b, C) soft
    noise: Tensor | None = None  # (b, N) of the mask
    answers: Tensor | None = None  # (b,) the teacher's
    second_view: Tensor | None = None  # (b, channels, S, S) for PaCo's keys, or for a teacher alone
    keys: Tensor | None = None  # (b, d) of the second view, made once a step
    mass: dict[str, Tensor] = field(default_factory=dict)  # what the mean of each term of the loss divided by


# --- the five kinds --------------------------------------------------------------------------------------------


class Job(ABC):
    """One kind of run: how its model is built, and the terms of its loss on a micro-batch."""

    def __init__(self, recipe: Recipe, split: Split, device: torch.device, teacher: Run | None = None):
        self.recipe, self.split, self.device = recipe, split, device
        self.num_classes, self.channels = len(split.classes), split.train.images.shape[1]
        self.mean, self.std = statistics(recipe, split)
        if recipe.layer_scale is not None and not models.patch_size(recipe.model):
            raise ValueError(f"layer_scale belongs to a ViT, not to {recipe.model}: leave it at None")
        if len(self.mean) != self.channels:
            raise ValueError(
                f"normalise={recipe.normalise!r} has {len(self.mean)} channels, the images {self.channels}"
            )
        policy = recipes.POLICIES[recipe.policy]
        self.policy = policy(recipe.image_size, self.mean, self.std, **recipe.policy_options)
        self.policies = [self.policy]  # one for each view of an image that a step needs
        # of this epoch
        self.mix: Mixup | None = None
        self.smoothing = 0.0  # of labels that are not mixed
        self.weight: Tensor | None = None  # (C,) class weights, on the device
        self.sam_rho = 0.0

    def build(self) -> nn.Module:
        """A fresh model."""
        recipe, options = self.recipe, dict(num_classes=self.num_classes, in_chans=self.channels)
        if recipe.model.endswith("_cifar"):
            options |= {k: getattr(recipe, k) for k in ("normed", "width") if hasattr(recipe, k)}
            return models.create(recipe.model, **options)
        if isinstance(recipe, Teacher):
            options["normed"] = recipe.normed
        if models.patch_size(recipe.model):
            options["img_size"] = recipe.image_size
            options |= {} if recipe.layer_scale is None else {"init_values": recipe.layer_scale}
            if "distilled" not in recipe.model:
                # LiVT: average pooling with its own norm; while pre-training the norm belongs to the encoder
                options["global_pool"] = "token" if isinstance(recipe, Pretrain) else recipe.pool
        return models.create(recipe.model, drop_path_rate=recipe.drop_path, **options)

    def compile(self, model: nn.Module, **how) -> None:
        """Compiles, in place, what a step runs; `how` goes to torch.compile. No name in a checkpoint changes."""
        model.compile(**how)

    def start_from(self, model: nn.Module, path: Path) -> None:
        """Loads the weights that the recipe's `init` left: a masked autoencoder's encoder."""
        models.load_encoder(model, path)

    def start_epoch(self, epoch: int) -> None:  # noqa: B027
        """Sets what an epoch has of its own: mixing, smoothing, class weights, SAM's radius; here: nothing."""

    def prepare(self, batch: Batch) -> None:
        """Fills in what the loss needs beside images and targets, and the mass of each of its terms."""
        batch.mass = {"loss": _mass(batch.target, self.weight)}

    def finish_step(self, model: nn.Module, batches: list[Batch]) -> None:  # noqa: B027, a hook that few need
        """What follows the optimiser's step; here: nothing."""

    def end_epoch(self, model: nn.Module) -> dict[str, float]:
        """Further columns of metrics.csv; here: none."""
        return {}

    def sample(self) -> tuple[Tensor, Tensor]:
        """Up to 512 training images as they are, (n, channels, S, S) normalised on the device, and their labels."""
        train = self.split.train
        some = torch.linspace(0, len(train) - 1, 512).long().unique()
        images = augment.evaluate(train.images[some].to(self.device), self.recipe.image_size, self.mean, self.std)
        return images, train.targets[some]

    @abstractmethod
    def terms(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Means over this micro-batch, a term of the loss each, and the number of right answers."""


def _mass(target: Tensor, weight: Tensor | None = None) -> Tensor:
    """What a mean over these hard or soft targets divides by: their number, or the sum of their weights."""
    if weight is None:
        return torch.full((), float(len(target)), device=target.device)
    return (weight[target] if target.ndim == 1 else target @ weight).sum()


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == labels).sum()


class PretrainJob(Job):
    def build(self) -> nn.Module:
        r = self.recipe
        return MaskedAutoencoder(super().build(), r.decoder_width, r.decoder_depth, r.decoder_heads, r.norm_pix)

    def terms(self, model, batch):
        loss, _, _ = model(batch.images, self.recipe.mask_ratio, batch.noise)
        return {"loss": loss}, loss.detach() * float("nan")


class FinetuneJob(Job):
    """Any loss of `recipes.LOSSES`; the prior, counts, weights or features that it asks for are passed to it."""

    def __init__(self, recipe: Finetune, split: Split, device: torch.device, teacher: Run | None = None):
        super().__init__(recipe, split, device, teacher)
        self.counts = torch.tensor(split.counts, dtype=torch.float32, device=device)
        self.function = getattr(losses, recipe.loss)
        self.options = recipes.loss_arguments(recipe, prior(split.counts).float().to(device), self.counts)
        self.needs_features = "features" in inspect.signature(self.function).parameters
        self.features: Tensor | None = None  # (b, D) that the classifier saw last, for a loss that asks for them
        self.listening = False  # whether the classifier leaves them here
        self.warming = False  # plain cross-entropy, this epoch

    def build(self) -> nn.Module:
        model = super().build()
        if self.recipe.trains != "all":
            if type(model.head) is not nn.Linear:
                raise ValueError(f"trains={self.recipe.trains!r} needs a linear classifier, not {self.recipe.model}'s")
            model.requires_grad_(False)
            if self.recipe.trains == "scale":
                model.head = models.ScaledLinear(model.head.in_features, self.num_classes).requires_grad_(False)
                model.head.scale.requires_grad_(True)
            else:
                model.head.requires_grad_(True)
        return model

    def start_from(self, model: nn.Module, path: Path) -> None:
        """An encoder; or a classifier, of which cRT keeps the backbone and LWS all but the factors."""
        if self.recipe.trains == "all":
            return super().start_from(model, path)
        weights = models.read_weights(path)
        if self.recipe.trains == "classifier":
            weights = {k: v for k, v in weights.items() if not k.startswith("head.")}
        models.load_weights(model, weights, allow_missing=("head",), where=path)

    def start_epoch(self, epoch: int) -> None:
        recipe, self.weight = self.recipe, None
        self.warming = epoch < recipe.loss_epoch
        if recipe.drw_epoch is not None and epoch >= recipe.drw_epoch:
            counts = torch.tensor(self.split.counts, dtype=torch.float32)  # on the CPU, where they are checked
            self.weight = sent(effective_number_weights(counts, getattr(recipe, "beta", 0.9999)), self.device)
        self.smoothing = recipe.smoothing
        rho = getattr(recipe, "sam_rho", 0.0)
        self.sam_rho = rho[sum(epoch >= e for e in recipe.sam_epochs)] if isinstance(rho, tuple) else rho
        smoothing = dict(label_smoothing=recipe.smoothing, num_classes=self.num_classes)
        self.mix = Mixup(recipe.mixup, recipe.cutmix, **smoothing) if recipe.mixes else None

    def loss(self, logits: Tensor, batch: Batch, **options) -> Tensor:
        """The recipe's loss, or plain cross-entropy before its `loss_epoch`."""
        if self.warming:
            return losses.cross_entropy(logits, batch.target)
        target = batch.target
        if self.recipe.loss == "lade":  # it compares the images of a whole batch
            logits, target = gathered(logits), gathered(target)
        return self.function(logits, target, **self.options, **options)

    def terms(self, model, batch):
        options = {} if self.weight is None else {"weight": self.weight}
        if self.needs_features:
            logits, options["features"] = self.with_features(model, batch.images)
        else:
            logits = model(batch.images)
        return {"loss": self.loss(logits, batch, **options)}, _right(logits, batch.labels)

    def with_features(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and what the classifier saw, (b, D). One hook for a whole run: a compiled model knows no later one."""
        if not self.listening:
            getattr(model, "module", model).get_classifier().register_forward_pre_hook(self._listen)
            self.listening = True
        logits = model(images)
        features, self.features = self.features, None
        return logits, features

    def _listen(self, classifier: nn.Module, inputs: tuple[Tensor]) -> None:
        self.features = inputs[0]


class ContrastJob(FinetuneJob):
    """PaCo: keys are made once a step, so both passes of SAM see the same; the queue follows after the step.

    Every device takes the loss of the whole batch, so that a query meets the queries and keys of all devices.
    """

    def __init__(self, recipe: Contrast, split: Split, device: torch.device, teacher: Run | None = None):
        super().__init__(recipe, split, device)
        self.policies.append(recipes.POLICIES[recipe.key_policy](recipe.image_size, self.mean, self.std))

    def build(self) -> nn.Module:
        r = self.recipe
        return PaCo(super().build(), r.projection, r.queue_size, r.key_momentum)

    def terms(self, model, batch):
        inner = getattr(model, "module", model)
        if batch.keys is None:
            batch.keys = inner.encode_keys(batch.second_view)
        logits, query = model(batch.images)
        contrast, contrast_labels = inner.contrast(batch.keys, batch.labels)
        loss = paco_loss(
            gathered(logits), gathered(query), contrast, gathered(batch.labels), contrast_labels, self.options["prior"],
            alpha=self.recipe.sample_weight, temperature=self.recipe.temperature,
        )  # fmt: skip
        return {"loss": loss}, _right(logits, batch.labels)

    def finish_step(self, model, batches):
        inner = getattr(model, "module", model)
        inner.update(torch.cat([b.keys for b in batches]), torch.cat([b.labels for b in batches]))


class DistilJob(FinetuneJob):
    """DeiT-LT: the teacher answers for the student's own images, at its resolution and with its normalisation.

    With `teacher_policy` it answers for other views of the same images (second row of Table 1's ResNet-32).
    """

    def __init__(self, recipe: Distil, split: Split, device: torch.device, teacher: Run | Path | None = None):
        super().__init__(recipe, split, device)
        if recipe.teacher_policy is not None:
            self.policies.append(recipes.POLICIES[recipe.teacher_policy](recipe.image_size, self.mean, self.std))
        theirs = teacher.recipe if isinstance(teacher, Run) else recipes.get(recipe.teacher)
        maker = FinetuneJob(theirs, split, device)
        if isinstance(teacher, Run):
            seen = teacher.identity["data"]
            if seen != split.digest:
                raise ValueError(
                    f"the teacher in {teacher.path} saw other images ({seen}, here {split.digest}): train it with the "
                    "same data, seed and evaluate_on"
                )
            self.teacher = trained(teacher, maker)
            # those of your own images depend on the resolution at which the teacher saw them; older runs kept none
            maker.mean, maker.std = (tuple(teacher.result.get(k, getattr(maker, k))) for k in ("mean", "std"))
        else:
            self.teacher = maker.build()
            models.load_weights(self.teacher, teacher)
            _same_classes(self.teacher.to(device), maker, teacher)
        self.teacher = placed(self.teacher, theirs.model, device).eval().requires_grad_(False)
        self.teacher_size = theirs.image_size
        scales = (self.mean, self.std, maker.mean, maker.std)
        self.scales = [torch.tensor(v, device=device).view(1, -1, 1, 1) for v in scales]
        # on a CPU equal statistics are changed all the same: recorded runs repeat bit for bit
        self.same_scale = device.type != "cpu" and (self.mean, self.std) == (maker.mean, maker.std)

    def build(self) -> nn.Module:
        model = super().build()
        if not hasattr(model, "set_distilled_training"):
            raise ValueError(f"{self.recipe.model} has no DIST token: use a distilled ViT")
        model.set_distilled_training(True)
        return model

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        if self.weight is not None and not self.recipe.drw_mixup:
            self.mix, self.smoothing = None, 0.0

    def compile(self, model: nn.Module, **how) -> None:
        super().compile(model, **how)
        self.teacher.compile(**how)

    def ask(self, images: Tensor) -> Tensor:
        """The teacher's answers (b,) to images that are normalised for the student.

        In float32 whatever the student's precision: bfloat16 makes two classes tie now and then, and argmax gives the
        answer to the first, which is the more frequent one.
        """
        with torch.inference_mode():
            if images.shape[-1] != self.teacher_size:
                images = F.interpolate(images, (self.teacher_size, self.teacher_size), mode="bicubic", antialias=True)
            if not self.same_scale:
                mean, std, teacher_mean, teacher_std = self.scales
                images = (images * std + mean - teacher_mean) / teacher_std
            answers = self.teacher(images).argmax(1)
        return answers.clone()  # a tensor born in inference mode takes no part in backward

    @torch.no_grad()
    def end_epoch(self, model: nn.Module) -> dict[str, float]:
        """How far the two experts' last tokens are apart, on up to 512 training images as they are (Fig. 4a).

        The released code logs the cosine on augmented batches instead, while stochastic depth is on.
        """
        training = model.training
        tokens = model.eval().forward_features(self.sample()[0])
        model.train(training)
        return {"cosine_distance": round(metrics.cosine_distance(tokens[:, 0], tokens[:, 1]), 5)}

    def prepare(self, batch: Batch) -> None:
        batch.answers = self.ask(batch.images if batch.second_view is None else batch.second_view)
        batch.mass = {"cls": _mass(batch.target), "dist": _mass(batch.answers, self.weight)}

    def terms(self, model, batch):
        alpha = self.recipe.alpha  # losses.distillation, its parts apart so that each can be divided by its own mass
        cls, dist = model(batch.images)
        on_cls = self.loss(cls, batch)
        on_dist = losses.cross_entropy(dist, batch.answers, self.weight)
        return {"cls": (1 - alpha) * on_cls, "dist": alpha * on_dist}, _right(cls + dist, batch.labels)


@torch.no_grad()
def _same_classes(teacher: nn.Module, job: Job, path: Path) -> None:
    """Refuses a foreign teacher that knows the training images no better than its most frequent answer would."""
    images, labels = job.sample()
    right = (teacher.eval()(images).argmax(1).cpu() == labels).double().mean().item()
    most = labels.bincount().max().item() / len(labels)
    if right <= most:
        raise ValueError(
            f"the teacher in {path} answers {right:.0%} of the training images right, no more than one class alone "
            f"would ({most:.0%}): its classes may be in another order, or its images of another scale"
        )


JOBS = {
    Pretrain.kind: PretrainJob, Finetune.kind: FinetuneJob, Teacher.kind: FinetuneJob, Contrast.kind: ContrastJob,
    Distil.kind: DistilJob,
}  # fmt: skip


def trained(run: Run, job: Job) -> nn.Module:
    """A finished run's network, from a job that builds it; of a PaCo run the CNN alone, which a plain job builds."""
    model, weights = job.build(), models.read_weights(run.path)
    if isinstance(run.recipe, Contrast):
        weights = plain_weights(weights)
    models.load_weights(model, weights, where=run.path)
    return model


# --- batches ---------------------------------------------------------------------------------------------------


def epoch_order(targets: Tensor, recipe: Recipe, seed: int, epoch: int) -> Tensor:
    """Image indices of an epoch, (steps, batch_size); the rest of a last partial batch is left out.

    Repeated augmentation draws each image `repeats` times in a row, and as many images fewer. Where classes are
    sampled, every class is as likely as any other, and so is every image of it.
    """
    generator, count = stream(seed, epoch, "order"), len(targets)
    if getattr(recipe, "sampling", "images") == "classes":
        chance = 1 / torch.bincount(targets.cpu()).double()[targets.cpu()]
        order = torch.multinomial(chance, count, replacement=True, generator=generator)
    else:
        order = torch.randperm(count, generator=generator).repeat_interleave(recipe.repeats)
    return order[: count // recipe.batch_size * recipe.batch_size].view(-1, recipe.batch_size)


def parts(batch_size: int, pieces: int) -> list[Tensor]:
    """Cuts positions 0..B-1 into equal pieces that mixup treats as it would the whole.

    timm mixes image i with image B-1-i, so a piece takes as many from the front as, mirrored, from the back.
    """
    size = batch_size // pieces
    if size % 2:
        return list(torch.arange(batch_size).split(size))
    front = torch.arange(batch_size // 2).split(size // 2)
    return [torch.cat([f, (batch_size - 1 - f).flip(0)]) for f in front]


TOGETHER, AHEAD = 4, 2**22  # steps whose images are augmented at once, while they have no more elements than this


def make_batches(
    job: Job,
    pixels: Images,
    chosen: Tensor,
    seeds: tuple,
    pieces: list[Tensor],
    decoded: list[list[Tensor]] | None = None,
) -> list[Batch]:
    """This device's micro-batches of one effective batch: augmented, mixed, with all that the loss needs.

    Args:
        pixels: the training images, on the job's device or in their files.
        chosen: (B,) image indices of the whole effective batch.
        seeds: (seed, epoch, step).
        pieces: positions in `chosen` of each micro-batch, from `parts`.
        decoded: what `decoded_steps` gives for this step; None: images in files are decoded here.
    """
    return next(step_batches(job, pixels, [(chosen, seeds)], pieces, iter([decoded])))


def step_batches(
    job: Job, pixels: Images, steps: Iterable[tuple[Tensor, tuple]], pieces: list[Tensor], decoded: Iterator
) -> Iterator[list[Batch]]:
    """`make_batches` of every (chosen, seeds), bit for bit, but small images of up to four steps are augmented at once.

    A small batch costs its calls more than its pixels, on a CPU as on a GPU. Each step draws for itself.
    """
    steps, coming = itertools.tee(steps)
    draws = (
        draw
        for (chosen, seeds), crops in zip(coming, decoded)  # noqa: B905, decoded steps go on after an epoch
        for draw in _draws(job, pixels, chosen, seeds, pieces, crops)
    )
    elements = len(pieces[0]) * len(job.policies) * job.channels * job.recipe.image_size**2
    in_files = isinstance(pixels.images, Files)
    together = 1 if in_files else max(1, min(TOGETHER * len(pieces), AHEAD // elements))
    groups = iter(lambda: list(itertools.islice(draws, together)), [])
    made = itertools.chain.from_iterable(_views(job, pixels, group) for group in groups)
    for _, seeds in steps:
        yield [_batch(job, seeds, *views) for views in itertools.islice(made, len(pieces))]


@dataclass
class _Draw:
    """What is drawn for a micro-batch."""

    index: Tensor  # (b,) images
    params: list[dict[str, Tensor]]  # of each view
    noise: Tensor | None  # (b, N) of the mask
    crops: list[Tensor] | None  # decoded, one tensor a view


def _draws(job: Job, pixels: Images, chosen: Tensor, seeds: tuple, pieces: list[Tensor], decoded) -> list[_Draw]:
    """Drawn for the whole effective batch, then cut: a draw a micro-batch."""
    if isinstance(pixels.images, Files):
        decoded = decoded or [_crops(pixels.images, job.policies, chosen, seeds, piece) for piece in pieces]
    generator = stream(*seeds)
    drawn = [augment.draw(policy, len(chosen), generator) for policy in _policies(job, pixels)]
    noise = None
    if isinstance(job, PretrainJob):
        patches = (job.recipe.image_size // models.patch_size(job.recipe.model)) ** 2
        noise = torch.rand(len(chosen), patches, generator=generator)
    return [
        _Draw(
            chosen[piece],
            [{name: value[piece] for name, value in params.items()} for params in drawn],
            None if noise is None else noise[piece],
            None if decoded is None else decoded[number],
        )
        for number, piece in enumerate(pieces)
    ]


def _policies(job: Job, pixels: Images) -> list[augment.Policy]:
    """One a view; crops of images in files are cut when they are decoded."""
    in_files = isinstance(pixels.images, Files)
    return [replace(p, crop="none") if in_files and p.crop == "resized" else p for p in job.policies]


def _views(job: Job, pixels: Images, draws: list[_Draw]) -> Iterator[tuple[Tensor, Tensor | None, list[Tensor]]]:
    """For each of some micro-batches its labels, its mask's noise and its views, all of them augmented at once."""
    sizes = [len(draw.index) for draw in draws]
    index = sent(torch.cat([draw.index for draw in draws]), job.device)
    source = None if draws[0].crops else pixels.images[index]
    views = []
    for view, policy in enumerate(_policies(job, pixels)):
        images = torch.cat([draw.crops[view] for draw in draws]).to(job.device) if source is None else source
        params = [draw.params[view] for draw in draws]
        params = {name: torch.cat([one[name] for one in params]) for name in params[0]}
        views.append(augment.apply(policy, images, params).split(sizes))
    noise = [None if draw.noise is None else sent(draw.noise, job.device) for draw in draws]
    return zip(pixels.targets[index].split(sizes), noise, zip(*views, strict=True), strict=True)


def _batch(job: Job, seeds: tuple, labels: Tensor, noise: Tensor | None, views: list[Tensor]) -> Batch:
    images, *second = views
    target = labels
    if job.mix is not None:
        with _numpy_seed(random_seed(*seeds, "mix")):  # the same draw for every piece
            images, target = job.mix(images, labels)
    elif job.smoothing:  # (b, C), 1 - e + e / C on the label, as timm
        target = F.one_hot(labels, job.num_classes) * (1 - job.smoothing) + job.smoothing / job.num_classes
    batch = Batch(images, labels, target, noise, second_view=second[0] if second else None)
    job.prepare(batch)
    return batch


# --- images in files -------------------------------------------------------------------------------------------


def decoded_steps(job: Job, seed: int, pieces: list[Tensor], steps: range) -> Iterator[list[list[Tensor]] | None]:
    """For each step of a run, counted from its start: the uint8 crops of each micro-batch, one tensor a view.

    Crops are decoded ahead and moved to the job's device. None where the images are in memory. The order of images is
    known in advance, so decoding goes on while an epoch ends and the model is evaluated.
    """
    if not isinstance(job.split.train.images, Files):
        yield from itertools.repeat(None, len(steps))
        return
    chunks = [piece.split(CHUNK) for piece in pieces]
    make = _Decoder(job, seed, [chunk for piece in chunks for chunk in piece])
    items = range(steps.start * len(make.chunks), steps.stop * len(make.chunks))
    with contextlib.closing(prefetched(make, items)) as flow:
        moved = ([view.to(job.device, non_blocking=True) for view in views] for views in flow)
        for _ in steps:
            yield [
                [torch.cat(view) for view in zip(*itertools.islice(moved, len(piece)), strict=True)] for piece in chunks
            ]


class _Decoder:
    """Makes the crops of one chunk of a run's images; chunks are counted from the run's start. Goes to processes."""

    def __init__(self, job: Job, seed: int, chunks: list[Tensor]):
        self.images, self.recipe, self.policies = job.split.train, job.recipe, job.policies
        self.seed, self.chunks, self.steps = seed, chunks, len(self.images) // job.recipe.batch_size
        self.epoch, self.order = -1, None

    def __call__(self, item: int) -> list[Tensor]:
        step, chunk = divmod(item, len(self.chunks))
        epoch, step = divmod(step, self.steps)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.images.targets, self.recipe, self.seed, epoch)
        seeds = (self.seed, epoch, step)
        return _crops(self.images.images, self.policies, self.order[step], seeds, self.chunks[chunk])


def _crops(files: Files, policies: list[augment.Policy], chosen: Tensor, seeds: tuple, piece: Tensor) -> list[Tensor]:
    """The crops of some positions in an effective batch, one tensor a view; drawn for the whole, as all else is."""
    generator = stream(*seeds, "crops")
    drawn = [draw_crops(policy, len(chosen), generator)[piece] for policy in policies]
    return files.crops(chosen[piece], list(zip(policies, drawn, strict=True)))
