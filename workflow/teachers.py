"""What DeiT-LT's teachers are like, measured on finished runs into small tables, for notebooks 09 and 10.

python workflow/teachers.py runs

Takes the teachers and students of `digits` and `laptop` that are there, and leaves out what was not run. Two minutes
for digits, two more a teacher on CIFAR-10-LT.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ltvit_lib import augment, jobs, metrics, models, plots, recipes, runs, sam

import measuring
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

STUDENTS = {"digits": "digits_deit_lt", "laptop": "laptop_deit_lt"}  # of each scale: whose images are shown
RADII = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
CPU = torch.device("cpu")


# --- flatness (notebook 09) ------------------------------------------------------------------------------------


def flatness(run: runs.Run, most: int = 100) -> tuple[list[dict], list[dict]]:
    """Rise of the loss along its ascent direction, a row a radius; and both ends of the Hessian's spectrum.

    On up to `most` training images as they are, at random and of the tail classes. The loss is the teacher's own,
    without class weights; BatchNorm uses its running averages.
    """
    model, split = measuring.build(run)
    job, weights = jobs.FinetuneJob(run.recipe, split, CPU), list(model.parameters())
    norm = torch.stack([p.detach().norm() for p in weights]).norm().item()
    common, rises, curvature = {"recipe": run.recipe.name, "seed": run.seed}, [], []
    for name, index in samples(split, most).items():
        images = augment.evaluate(split.train.images[index], run.recipe.image_size, job.mean, job.std)
        labels = split.train.targets[index]

        def loss(images=images, labels=labels) -> Tensor:
            return job.function(model(images), labels, **job.options)

        rows = common | {"images": name}
        rises += [rows | {"radius": r, "rise": sam.sharpness(loss, weights, r)} for r in RADII]
        largest, smallest = ends_of_spectrum(loss, weights)
        with torch.no_grad():
            found = {"loss": loss().item(), "accuracy": (model(images).argmax(1) == labels).double().mean().item()}
        ends = {"largest": largest, "smallest": smallest, "weight_norm": norm}
        curvature.append(rows | {"count": len(index)} | found | ends)
    return rises, curvature


def samples(split, most: int) -> dict[str, Tensor]:
    """Indices of training images, shuffled: of all, and of the tail classes."""
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(0))
    tail = split.groups["few"][split.train.targets[order]]
    return {"all": order[:most], "tail": order[tail][:most]}


def ends_of_spectrum(loss: Callable[[], Tensor], weights: list, steps: int = 25) -> tuple[float, float]:
    """Largest and smallest eigenvalue of the Hessian, by Lanczos' method on Hessian-vector products.

    `sam.top_eigenvalue` gives only the end of larger magnitude; power iteration hardly moves towards a small negative
    eigenvalue, which Lanczos' finds with the same products. Neither end is ever overstated.
    """
    gradient = _flat(torch.autograd.grad(loss(), weights, create_graph=True))
    vector = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0))
    basis, diagonal, beside = [vector / vector.norm()], [], []
    for _ in range(steps):
        image = _flat(torch.autograd.grad(gradient, weights, basis[-1], retain_graph=True)).detach()
        diagonal.append((image @ basis[-1]).item())
        for _ in range(2):  # orthogonal to all that came before, in floating point too
            image -= torch.stack(basis).T @ (torch.stack(basis) @ image)
        beside.append(image.norm().item())
        if beside[-1] < 1e-6 * max(map(abs, diagonal)):
            break
        basis.append(image / beside[-1])
    off = np.array(beside[: len(diagonal) - 1])
    values = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return float(values[-1]), float(values[0])


def _flat(parts) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


# --- what the teacher is shown (notebook 10) -------------------------------------------------------------------


def views(scale: str) -> dict[str, recipes.Recipe]:
    """The student's recipe, and what is left of it without mixing, with the weak policy, with none.

    On digits teacher and student share one policy, so that `strong` is what the teacher trained on.
    """
    mixed = recipes.get(STUDENTS[scale])
    strong = replace(mixed, mixup=0.0, cutmix=0.0)
    weak = {"weak": replace(strong, policy="weak", policy_options={})} if scale == "laptop" else {}
    plain = replace(strong, policy="weak", policy_options=dict(crop="none", flip=0.0))
    return {"plain": plain, **weak, "strong": strong, "mixed": mixed}


def shown(split, recipe: recipes.Recipe, seed: int, batches: int):
    """Batches of an epoch's first images as the student sees them; the same images, drawn alike, in every view."""
    job = jobs.FinetuneJob(recipe, split, CPU)
    job.start_epoch(0)
    pieces = jobs.parts(recipe.batch_size, 1)
    for step, chosen in enumerate(jobs.epoch_order(split.train.targets, recipe, seed, 0)[:batches]):
        yield jobs.make_batches(job, split.train, chosen, (seed, 0, step), pieces)[0]


@torch.no_grad()
def answers(run: runs.Run, batches: int = 48) -> list[dict]:
    """How a teacher answers in every view, a row a class of the image's own label.

    Agreement with that label, with the label of the larger share, with either of the two that were mixed; entropy in
    nats of the softmax at the scale that the loss trains with, and of the bare outputs. `answers` counts the images
    that are given this class; mixing conserves each class's share of the whole, `images`.
    """
    model, split = measuring.build(run)
    scale, rows = models.logit_scale(run.recipe), []
    for view, recipe in views(run.recipe.name.split("_")[0]).items():
        seen = [
            (b.labels, _partners(b, view), b.target.argmax(1), model(b.images))
            for b in shown(split, recipe, run.seed, batches)
        ]
        labels, partners, larger, outputs = (torch.cat(column) for column in zip(*seen, strict=True))
        named = outputs.argmax(1)
        for c in range(len(split.classes)):
            own = labels == c
            rows.append({
                "recipe": run.recipe.name, "seed": run.seed, "view": view, "class": c, "images": int(own.sum()),
                "own": _share(named[own] == c), "larger": _share(named[own] == larger[own]),
                "either": _share((named[own] == c) | (named[own] == partners[own])),
                "entropy": metrics.entropy(outputs[own], scale) if own.any() else float("nan"),
                "entropy_bare": metrics.entropy(outputs[own]) if own.any() else float("nan"),
                "answers": int((named == c).sum()),
            })  # fmt: skip
    return rows


def _partners(batch: jobs.Batch, view: str) -> Tensor:
    """(b,) labels of the images that were mixed in: timm pairs the first with the last."""
    return batch.labels.flip(0) if view == "mixed" else batch.labels


def _share(right: Tensor) -> float:
    return right.double().mean().item()


@torch.no_grad()
def picture(run: runs.Run, columns: int = 8) -> pd.DataFrame:
    """Writes a few images in every view as one small PNG, a row a view; returns the teacher's answers to them."""
    model, split = measuring.build(run)
    rows, lines, columns_chosen = [], [], None
    for view, recipe in views("laptop").items():
        batch = next(shown(split, recipe, run.seed, 1))
        if columns_chosen is None:  # the first images of as many classes
            first = [(batch.labels == c).nonzero()[:1, 0] for c in range(len(split.classes))]
            columns_chosen = torch.cat(first)[:columns]
        probability = (model(batch.images) * models.logit_scale(run.recipe)).softmax(1)
        partners = _partners(batch, view)
        std, mean = (torch.tensor(v).view(-1, 1, 1) for v in (split.std, split.mean))
        lines.append(torch.cat([*((batch.images[columns_chosen] * std + mean).clamp(0, 1))], dim=2))
        for column, i in enumerate(columns_chosen.tolist()):
            rows.append({
                "view": view, "column": column, "label": split.classes[batch.labels[i]],
                "partner": split.classes[partners[i]],
                "answer": split.classes[probability[i].argmax()], "confidence": probability[i].max().item(),
            })  # fmt: skip
    pixels = (torch.cat(lines, dim=1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(picture_file(), optimize=True)
    return pd.DataFrame(rows)


def picture_file() -> Path:
    return plots.figures() / "data" / "shown_to_teacher.png"


# --- all tables ------------------------------------------------------------------------------------------------


def student_curve(run: runs.Run) -> list[dict]:
    """Loss, and accuracy on the mixed training batches, over epochs; averaged over ten at digits scale (notebook 09).

    `test`: of both heads' average on the test set, where the run was evaluated on the way (`evaluate_every`).
    """
    every = 10 if run.recipe.name.startswith("digits") else 1
    return measuring.curve_blocks(run, every, loss="loss", accuracy="accuracy", test="eval_avg")


def main(folder: str) -> None:
    save, small = partial(measuring.save, digits=5), [n for n in recipes.names() if n.split("_")[0] in STUDENTS]
    wanted = [name for name in small if isinstance(recipes.get(name), recipes.Teacher | recipes.Distil)]
    found = [run for run in measuring.unchanged(measuring.finished(folder)) if run.recipe.name in wanted]
    measuring.name_missing(wanted, found)
    teachers = [run for run in found if isinstance(run.recipe, recipes.Teacher)]
    students = [run for run in found if isinstance(run.recipe, recipes.Distil)]
    save("student_curves", [row for run in students for row in student_curve(run)])
    save("teacher_answers", [row for run in teachers for row in answers(run)])
    real = [run for run in teachers if run.recipe.name == recipes.get(STUDENTS["laptop"]).teacher]
    save("shown_to_teacher", picture(real[0]) if real else [])
    if not real:  # the picture goes with its rows
        picture_file().unlink(missing_ok=True)
    clean = [run for run in teachers if not run.recipe.mixup]  # one trained on mixed images is not at a minimum here
    flat = [flatness(run) for run in clean]
    save("teacher_rise", [row for rises, _ in flat for row in rises])
    save("teacher_curvature", [row for _, curvature in flat for row in curvature])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
