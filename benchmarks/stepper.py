"""One training step of a recipe, to be timed: whole, in parts, or its bare passes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count, repeat

from ltvit_lib import data, jobs, optim, recipes, runs, train

import timing
import torch
from torch.nn import functional as F

PARTS = ("data", "teacher", "forward", "backward", "optimiser", "rest")
BARE = ("bare student", "bare teacher")


def random_split(images: int) -> data.Split:
    """Random pixels in CIFAR-10's shape, ten classes alike: a step's cost depends on neither."""
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    part = data.Images(pixels, torch.arange(images) % 10)
    mean, std = data.STATISTICS["cifar10"]
    return data.Split("random", part, part.subset(range(min(images, 100))), tuple("0123456789"), mean, std, (3, 7))


class Stepper:
    """A recipe's training step: whole, as `train.fit` does it, or timed in parts, each of which the device finishes."""

    def __init__(self, recipe: recipes.Recipe, split: data.Split, teacher: runs.Run | None = None):
        torch.manual_seed(0)
        self.accelerator = train.accelerator_for(recipe)
        self.recipe, self.device = recipe, self.accelerator.device
        self.job = jobs.JOBS[recipe.kind](recipe, split, self.device, teacher)
        model = jobs.placed(self.job.build(), recipe.model, self.device)
        if how := train.compiler():
            self.job.compile(model, **how)
        self.optimizer = optim.create_optimizer(model, recipe)
        self.model = self.accelerator.prepare(model).train()
        self.job.start_epoch(0)
        pieces = jobs.parts(recipe.batch_size, recipe.batch_size // (recipe.micro_batch or recipe.batch_size))
        self.flow = self.endless(split.train.to(self.device), pieces)
        self.seconds: dict[str, float] | None = None  # by part, while they are timed
        self.watch()

    def watch(self) -> None:
        """Adds the time of four methods to four parts of the step."""
        for thing, method, part in (
            (self.job, "prepare", "teacher"),
            (self.job, "terms", "forward"),
            (self.accelerator, "backward", "backward"),
            (self.optimizer, "step", "optimiser"),
        ):
            setattr(thing, method, self.timed(getattr(thing, method), part))

    def timed(self, plain: Callable, part: str) -> Callable:
        def call(*args, **options):
            if self.seconds is None:
                return plain(*args, **options)
            began = timing.now()
            result = plain(*args, **options)
            self.seconds[part] += timing.now() - began
            return result

        return call

    def endless(self, pixels: data.Images, pieces: list[torch.Tensor]) -> Iterator[list[jobs.Batch]]:
        """The micro-batches of every step, epoch after epoch, as training makes them."""
        for epoch in count():
            order = jobs.epoch_order(pixels.targets, self.recipe, 0, epoch)
            steps = [(chosen, (0, epoch, step)) for step, chosen in enumerate(order)]
            yield from jobs.step_batches(self.job, pixels, steps, pieces, repeat(None))

    def batches(self) -> list[jobs.Batch]:
        """The micro-batches of the next step; of four calls one may augment for all."""
        return next(self.flow)

    def use(self, batches: list[jobs.Batch]) -> None:
        """The step on batches that are ready."""
        train._step(self.job, self.model, self.optimizer, batches, self.accelerator)

    def step(self) -> None:
        self.use(self.batches())

    def shares(self) -> dict[str, float]:
        """Of the time of `timing.CALLS` steps; `rest` is what no other part has, such as SAM's ascent."""
        self.seconds, making, began = defaultdict(float), 0.0, timing.now()
        for _ in range(timing.CALLS):
            asked = timing.now()
            batches = self.batches()
            making += timing.now() - asked
            self.use(batches)
        whole = timing.now() - began
        taken, self.seconds = self.seconds, None
        taken["data"] = making - taken["teacher"]
        taken["rest"] = whole - sum(taken.values())
        return {part: taken[part] / whole for part in PARTS}

    def bare(self) -> dict[str, Callable]:
        """DeiT-LT's passes and no more, on tensors that are ready: student and update; teacher at its own size."""
        size, ready = (self.job.teacher_size,) * 2, self.batches()
        small = [F.interpolate(b.images, size) for b in ready]

        def student() -> None:
            self.optimizer.zero_grad()
            for batch in ready:
                cls, dist = self.model(batch.images)
                self.accelerator.backward(F.cross_entropy(cls, batch.labels) + F.cross_entropy(dist, batch.labels))
            self.optimizer.step()

        @torch.inference_mode()
        def teacher() -> None:
            for images in small:
                self.job.teacher(images)

        return dict(zip(BARE, (student, teacher), strict=True))
