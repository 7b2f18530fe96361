"""The tables of notebook 12, measured on the stored logits and curves of finished DeiT-LT runs.

python workflow/experts.py runs
"""

import sys
from hashlib import sha256

from ltvit_lib import augment, jobs, longtail, losses, metrics, runs, train

import measuring
import numpy as np
import torch
from measure import decider, save
from measuring import by_group
from torch import Tensor

WEIGHTS = [i / 20 for i in range(21)]  # w of w CLS + (1 - w) DIST
SHIFTS = [i / 20 for i in range(31)]  # t of (CLS + DIST) / 2 - t log pi


@torch.no_grad()
def dist_prior(run: runs.Run, split, teacher: runs.Run, images: int = 5000) -> Tensor:
    """(C,) class frequencies that DIST learned from at the end: the teacher's answers, times the weights of DRW.

    Counted on at least `images` training images as the teacher saw them in the student's last epoch.
    """
    job = jobs.DistilJob(run.recipe, split, torch.device("cpu"), teacher)
    job.start_epoch(run.recipe.epochs - 1)
    policy = job.policies[-1]  # of the view that the teacher answers for
    generator, answers = torch.Generator().manual_seed(0), torch.zeros(len(split.counts))
    np.random.seed(0)  # timm's Mixup draws from numpy's global state
    for _ in range(-(-images // len(split.train))):
        for index in torch.randperm(len(split.train), generator=generator).split(256):
            index = index[: len(index) // 2 * 2]  # Mixup pairs them
            draws = augment.draw(policy, len(index), generator)
            seen = augment.apply(policy, split.train.images[index], draws)
            if job.mix:
                seen, _ = job.mix(seen, split.train.targets[index])
            answers += torch.bincount(job.ask(seen), minlength=len(answers))
    mass = answers.clamp_min(1) * (1.0 if job.weight is None else job.weight)
    return mass / mass.sum()


def experts(run: runs.Run, counts: list[int], dist: Tensor | None, part: dict) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores (N, C) of CLS and DIST: as trained, and moved to a uniform test prior by the Bayes rule.

    The last epochs of a run with DRW have hard labels, those before them smoothed ones, and nothing undoes mixup: CLS
    is read both without smoothing and with that of the recipe. `both` also moves DIST, from the prior of `dist_prior`.
    """
    uniform, decide = torch.full((len(counts),), 1 / len(counts)), decider(run, counts)
    moved, undone = decide(part["cls"], uniform, 0.0), decide(part["cls"], uniform, run.recipe.smoothing)
    found = {"as trained": part["cls"], "CLS moved": moved, "CLS moved, smoothing undone": undone}
    found = {name: (cls, part["dist"]) for name, cls in found.items()}
    if dist is not None:
        found["both moved"] = (moved, losses.decide_ce(part["dist"], dist, uniform))
    return found


def combined(cls: Tensor, dist: Tensor) -> dict[str, Tensor]:
    """Scores of both experts alone and of their two averages; softmax turns each into probabilities."""
    mean = (cls.softmax(1) + dist.softmax(1)) / 2
    return {"CLS": cls, "DIST": dist, "average of logits": (cls + dist) / 2, "average of probabilities": mean.log()}


def rules(split, heads: dict[str, tuple[Tensor, Tensor]], target: Tensor) -> list[dict]:
    """Accuracy by group and calibration of every expert and average."""
    rows = []
    for name, (cls, dist) in heads.items():
        for of, scores in combined(cls, dist).items():
            probabilities = scores.double().softmax(1)
            found = by_group(scores, target, split) | {"ece": metrics.calibration(probabilities, target)[0]}
            rows += [{"prior": name, "of": of, "group": group, "accuracy": value} for group, value in found.items()]
    return rows


def agreement(split, part: dict[str, Tensor]) -> list[dict]:
    """Who is right, as shares of a group's test images; `average` is the share of those that the average gets right."""
    cls, dist, avg = (part[head].argmax(1) == part["targets"] for head in ("cls", "dist", "avg"))
    cases = {"both": cls & dist, "only CLS": cls & ~dist, "only DIST": ~cls & dist, "neither": ~cls & ~dist}
    masks = {metrics.INDEX_GROUPS[name]: mask for name, mask in split.groups.items()}
    rows = []
    for group, mask in ({"all": torch.ones(len(split.counts), dtype=torch.bool)} | masks).items():
        inside = mask[part["targets"]]
        for case, chosen in cases.items():
            share = (chosen & inside).sum().item() / inside.sum().item()
            right = avg[chosen & inside].double().mean().item()
            rows.append({"group": group, "right": case, "share": share, "average": right})
    return rows


def shares(split, dist: Tensor | None, part: dict[str, Tensor]) -> list[dict]:
    """What each head gives a class on the (balanced) test set, and the prior it was trained under.

    Share of answers, and mean probability.
    """
    prior, rows = longtail.prior(split.counts), []
    for head, under in {"cls": prior, "dist": dist}.items():
        answers = torch.bincount(part[head].argmax(1), minlength=len(prior)) / len(part["targets"])
        mean = part[head].double().softmax(1).mean(0)
        under = torch.full_like(prior, float("nan")) if under is None else under
        for c, (answered, p, pi) in enumerate(zip(answers.tolist(), mean.tolist(), under.tolist(), strict=True)):
            rows.append({"head": head, "class": c, "answers": answered, "probability": p, "prior": pi})
    return rows


def weights(split, heads: dict[str, tuple[Tensor, Tensor]], target: Tensor) -> list[dict]:
    """The control: accuracy for every weight w between the experts."""
    return [
        {"prior": name, "w": w} | by_group(w * cls + (1 - w) * dist, target, split)
        for name, (cls, dist) in heads.items()
        for w in WEIGHTS
    ]


def chosen(run: runs.Run, split, dist: Tensor | None) -> list[dict]:
    """w, or t at w = 1/2, chosen on the validation part of a run that held one out, then measured on the test set.

    The rules without a choice stand beside them, on the same network: it learned from nine tenths of the images.
    """
    model, _ = train.build(run, split)
    prior, val = longtail.prior(split.counts), run.logits()
    test = train.predict_logits(model, split.test, run.recipe, *jobs.statistics(run.recipe, split))
    test["targets"] = split.test.targets
    parts = [(experts(run, split.counts, dist, part), part["targets"]) for part in (val, test)]
    candidates = {f"w chosen, {name}": [(name, w, 0.0) for w in WEIGHTS] for name in parts[0][0]}
    candidates |= {f"w = 0.5, {name}": [(name, 0.5, 0.0)] for name in parts[0][0]}
    candidates["w = 0.5, t chosen"] = [("as trained", 0.5, t) for t in SHIFTS]

    def score(part, name: str, w: float, t: float) -> dict[str, float]:
        (cls, dist), target = part[0][name], part[1]
        return by_group(w * cls + (1 - w) * dist - t * prior.log(), target, split)

    rows = []
    for rule, options in candidates.items():
        name, w, t = measuring.most_accurate(options, (score(parts[0], *option)["all"] for option in options))
        values = score(parts[1], name, w, t)
        rows += [{"rule": rule, "w": w, "t": t, "group": g, "accuracy": a} for g, a in values.items()]
    return rows


def distance(run: runs.Run, points: int = 60) -> list[dict]:
    """Fig. 4a: cosine distance between the tokens, averaged over `points` blocks of epochs (`epoch`: the last)."""
    if "cosine_distance" not in run.curve:
        return []  # a run made before it was recorded
    return measuring.curve_blocks(run, max(1, -(-run.recipe.epochs // points)), cosine_distance="cosine_distance")


def prior_of_dist(run: runs.Run, split, finished: list[runs.Run]) -> Tensor | None:
    """`dist_prior` with the very teacher of this run, told by its weights; None, and a word, where it is not there."""
    same = [t for t in finished if t.recipe.name == run.recipe.teacher and t.identity["data"] == run.identity["data"]]
    wanted = run.identity["start"]["teacher"]
    same = [t for t in same if sha256((t.path / "last.safetensors").read_bytes()).hexdigest().startswith(wanted)]
    if not same:
        print(f"{run.path}: no {run.recipe.teacher} here has weights {wanted}, so DIST is not moved")
        return None
    return dist_prior(run, split, same[0])


def main(folder: str) -> None:
    names = ("rules", "agreement", "shares", "weights", "distance", "chosen")
    measured: dict[str, list[dict]] = {name: [] for name in names}
    finished = measuring.finished(folder)
    students = [run for run in finished if run.recipe.kind == "distil"]
    held_out = measuring.held_out(students)
    for run in measuring.unchanged(students) + held_out:
        split, part = measuring.load_split(run), run.logits()
        dist = prior_of_dist(run, split, finished)
        if run in held_out:
            new = {"chosen": chosen(run, split, dist)}
        else:
            heads = experts(run, split.counts, dist, part)
            new = {
                "rules": rules(split, heads, part["targets"]),
                "agreement": agreement(split, part),
                "shares": shares(split, dist, part),
                "weights": weights(split, heads, part["targets"]),
                "distance": distance(run),
            }
        for name, rows in new.items():
            measured[name] += [{"recipe": run.recipe.name, "seed": run.seed} | row for row in rows]
    for name, rows in measured.items():
        save(f"experts_{name}", rows)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
