"""One training step of a recipe, to be timed: whole, in parts, or its bare passes."""

from collections import defaultdict
from collections.abc import Callable

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
        self.pixels, self.count = split.train.to(self.device), 0
        self.pieces = jobs.parts(recipe.batch_size, recipe.batch_size // (recipe.micro_batch or recipe.batch_size))
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

    def batches(self) -> list[jobs.Batch]:
        """The micro-batches of the next step, from images drawn at random."""
        self.count += 1
        index = torch.randint(len(self.pixels), (self.recipe.batch_size,))
        return jobs.make_batches(self.job, self.pixels, index, (0, 0, self.count), self.pieces)

    def use(self, batches: list[jobs.Batch]) -> None:
        """The step on batches that are ready."""
        train._step(self.job, self.model, self.optimizer, batches, self.accelerator)

    def step(self) -> None:
        self.use(self.batches())

    def shares(self) -> dict[str, float]:
        """Of one step's time; `rest` is what no other part has, such as SAM's ascent."""
        self.seconds = defaultdict(float)
        began = timing.now()
        batches = self.batches()
        made = timing.now()
        self.use(batches)
        whole = timing.now() - began
        taken, self.seconds = self.seconds, None
        taken["data"] = made - began - taken["teacher"]
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
