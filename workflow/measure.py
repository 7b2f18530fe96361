"""Small tables measured on finished runs, which notebooks draw: `make measures`.

python workflow/measure.py runs
"""

import sys
from dataclasses import replace

from ltvit_lib import augment, export, jobs, longtail, losses, metrics, models, predict, runs, train

import measuring
import pandas as pd
import torch


def error_by_class(run: runs.Run, masks: int = 10) -> list[float]:
    """Mean reconstruction error on hidden patches of each class's test images, over several random masks."""
    mae, split = measuring.build(run)
    recipe, generator = run.recipe, torch.Generator().manual_seed(0)
    totals = torch.zeros(len(split.test))
    for index in torch.arange(len(split.test)).split(1000):
        images = augment.evaluate(split.test.images[index], recipe.image_size, *jobs.statistics(recipe, split))
        for _ in range(masks):
            noise = torch.rand(len(images), mae.encoder.patch_embed.num_patches, generator=generator)
            with torch.no_grad():
                _, prediction, mask = mae(images, recipe.mask_ratio, noise)
            error = (prediction - mae.target(images)).square().mean(-1)  # (b, N)
            totals[index] += (error * mask).sum(1) / mask.sum(1) / masks
    return [totals[split.test.targets == c].mean().item() for c in range(len(split.classes))]


SHIFTS = [t / 50 for t in range(-10, 126)]  # t of the control z - t log pi
CURVES = ("digits_livt", "digits_livt_mixup", "laptop_livt", "laptop_vit_bal_bce")  # drawn against t


def decider(run: runs.Run, counts: list[int]):
    """(logits, test prior) -> scores of CLS: the Bayes rule, if this run's logits were its loss's optimum.

    A third argument stands for the label smoothing of the run's last epoch.
    """
    rule = export.head_rules(run.recipe, counts)["cls"]
    decide, prior, bias = predict.DECIDE[rule["family"]], rule["prior"], rule["bias"]
    return lambda logits, test, smoothing=rule["smoothing"]: decide(logits, prior, test, bias, smoothing)


NAMES = {"balanced_bce": "repaired", "balanced_ce": "decide_ce", "cross_entropy": "adjusted", "bce": "adjusted"}


def decisions(run: runs.Run) -> list[dict]:
    """Accuracies of a run by the argmax of its stored test logits, and by the Bayes rule read from them.

    Groups are of a balanced test, and so is `ece`, the calibration error of the softmax of logits or scores.
    `long-tailed` and `inverted` are other test priors, for which the second rule decides anew; the accuracy is then the
    classes' weighted by that prior.
    """
    split, logits, rows = measuring.load_split(run), run.logits(), []
    prior = longtail.prior(split.counts)
    decide = decider(run, split.counts)
    tests = {"uniform": torch.full_like(prior, 1 / len(prior)), "long-tailed": prior, "inverted": prior.flip(0)}
    for method in ("raw argmax", NAMES[run.recipe.loss]):
        found = {}
        for name, test in tests.items():
            scores = logits["cls"] if method == "raw argmax" else decide(logits["cls"], test)
            right = metrics.per_class_accuracy(scores.argmax(1), logits["targets"], len(prior))
            if name == "uniform":
                ece, _ = metrics.calibration(scores.softmax(1), logits["targets"])
                found |= measuring.group_means(right, split) | {"ece": ece}
            else:
                found[name] = (right * test).sum().item()
        common = {"recipe": run.recipe.name, "seed": run.seed, "method": method}
        rows += [common | {"group": group, "accuracy": value} for group, value in found.items()]
    return rows


def leaning(run: runs.Run) -> tuple[list[dict], list[dict]]:
    """The control: a plain shift z - t log pi of the logits towards the tail. Rows of rules, and of the curve over t.

    A run evaluated on a validation part chooses t there, and is then measured on the test set. Two bounds stand beside
    it: the t with which as many test images are called tail classes as by the repaired rule (looking at no label), and
    the t that is best on the test set itself.
    """
    split, recipe, part = measuring.load_split(run), run.recipe, run.logits()
    prior = longtail.prior(split.counts)

    def by_group(scores: torch.Tensor) -> dict[str, float]:
        return measuring.by_group(scores, part["targets"], split)

    chosen = {"raw argmax": 0.0}
    if recipe.evaluate_on == "val":
        found = (by_group(part["cls"] - t * prior.log())["all"] for t in SHIFTS)
        chosen["shift, t chosen on validation"] = measuring.most_accurate(SHIFTS, found)
        model, _ = train.build(run, split)
        part = train.predict_logits(model, split.test, recipe, *jobs.statistics(recipe, split))
        part["targets"] = split.test.targets
    logits, repaired = part["cls"], {}
    if recipe.loss != "balanced_ce":  # whose rule, with tau = 1, is its argmax
        scores = decider(run, split.counts)(logits, torch.full_like(prior, 1 / len(prior)))
        repaired = {NAMES[recipe.loss]: by_group(scores)}
    if recipe.loss == "balanced_bce":
        tail, finer = split.groups["few"], [t / 100 for t in range(301)]
        answers = torch.stack([tail[s.argmax(1)].sum() for s in (scores, *(logits - t * prior.log() for t in finer))])
        chosen["shift, as many tail answers"] = finer[(answers[1:] - answers[0]).abs().argmin()]
    curve = [{"t": t} | by_group(logits - t * prior.log()) for t in SHIFTS]
    chosen["shift, t best on the test set"] = max(curve, key=lambda row: row["all"])["t"]
    trained_on = "all" if recipe.evaluate_on == "test" else "nine tenths"
    common = {"recipe": recipe.name, "seed": run.seed, "trained on": trained_on}
    found = repaired | {name: by_group(logits - t * prior.log()) for name, t in chosen.items()}
    table = [
        common | {"method": name, "t": chosen.get(name), "group": group, "accuracy": value}
        for name, by in found.items()
        for group, value in by.items()
    ]
    return table, [common | row for row in curve]


def decision_study(found: list[runs.Run]) -> None:
    """The three tables of notebook 05: rules, the control and its curves, for every run whose loss has a rule."""
    known = ("balanced_bce", "balanced_ce", "cross_entropy", "bce")
    found = [r for r in found if r.recipe.kind == "finetune" and r.recipe.loss in known and r.recipe.trains == "all"]
    whole = measuring.unchanged(found)
    save("decision_rules", [row for run in whole for row in decisions(run)])
    controls = [leaning(run) for run in whole + measuring.held_out(found)]
    save("decision_control", [row for control, _ in controls for row in control])
    drawn = [row for _, curve in controls for row in curve]
    save("decision_curve", [row for row in drawn if row["recipe"] in CURVES and row["trained on"] == "all"])


def post_hoc(run: runs.Run) -> list[dict]:
    """What a finished network of the zoo gives under rules that need no training of their own (notebook 06)."""
    model, split = measuring.build(run)
    name, z, prior = run.recipe.name, run.logits()["cls"], longtail.prior(split.counts)
    if name == "digits_mgp_ce":
        models.tau_normalise(model, 1.0)
        normalised = train.predict_logits(model, split.test, run.recipe, *jobs.statistics(run.recipe, split))["cls"]
        rules = {"post-hoc logit adjustment": z - losses.logit_bias_ce(prior), "tau-norm": normalised}
    else:
        uniform, bias = torch.full_like(prior, 1 / len(prior)), losses.logit_bias_bce(prior)
        rules = {"Bal-BCE, repaired": losses.decide_bce(z, prior, uniform, bias=bias)}
    return [row for rule, scores in rules.items() for row in _scored(run, split, "method", rule, scores)]


def tau_sweep(run: runs.Run) -> list[dict]:
    """A Bal-BCE or BCE run's test logits moved from its own tau to others: z + (tau_trained - tau) B."""
    split, z = measuring.load_split(run), run.logits()["cls"]
    bias = losses.logit_bias_bce(longtail.prior(split.counts))
    trained = run.recipe.loss_options.get("tau", 1.0) if run.recipe.loss == "balanced_bce" else 0.0
    grid = [i / 10 for i in range(21)]
    return [row for tau in grid for row in _scored(run, split, "tau", tau, z + (trained - tau) * bias)]


def _scored(run: runs.Run, split, column: str, value, scores: torch.Tensor) -> list[dict]:
    """Tidy rows: recipe, seed, `column`, group, and accuracy or calibration error as a fraction."""
    found = metrics.evaluate_logits(scores, run.logits()["targets"], split.counts, split.groups)
    return [{"recipe": run.recipe.name, "seed": run.seed, column: value, "group": g, "accuracy": v}
            for g, v in found.items() if g != "top1"]  # fmt: skip


def one_pixel(run: runs.Run) -> dict:
    """Answers kept when the test images move a pixel to the right; accuracies on the training images (notebook 03)."""
    model, split = measuring.build(run)

    def scores(part):
        return train.predict_logits(model, part, run.recipe, *jobs.statistics(run.recipe, split))["cls"]

    moved = torch.nn.functional.pad(split.test.images, (1, 0))[..., :-1]  # the left column becomes black
    same = scores(replace(split.test, images=moved)).argmax(1) == run.logits()["cls"].argmax(1)
    learnt = measuring.by_group(scores(split.train), split.train.targets, split)
    found = {"kept": same.double().mean().item()} | {f"training, {group}": a for group, a in learnt.items()}
    return {"recipe": run.recipe.name, "seed": run.seed} | found


ZOO = {"zoo_post_hoc": ("digits_mgp_ce", "digits_livt"), "tau_post_hoc": ("digits_mgp_bce", "digits_livt"),
       "ldam_curves": ("digits_vit_ce", "digits_vit_ldam")}  # fmt: skip
RECONSTRUCTED = {  # recipe: scale, trained on
    "digits_mgp": ("digits", "long-tailed"),
    "digits_mgp_balanced": ("digits", "balanced"),
    "laptop_mgp": ("laptop", "long-tailed"),
}


def zoo(found: list[runs.Run]) -> None:
    """The three tables of notebook 06."""
    adjusted, swept, drawn = ([run for run in found if run.recipe.name in wanted] for wanted in ZOO.values())
    save("zoo_post_hoc", [row for run in adjusted for row in post_hoc(run)])
    save("tau_post_hoc", [row for run in swept for row in tau_sweep(run)])
    curves = [measuring.curve_blocks(run, 5, loss="loss", accuracy="accuracy") for run in drawn]
    save("ldam_curves", sum(curves, []))


FOUR = ("digits_vit_ce", "digits_vit_bal_ce", "digits_vit_bce", "digits_vit_bal_bce",
        "digits_mgp_ce", "digits_mgp_bal_ce", "digits_mgp_bce", "digits_livt")  # fmt: skip


def convergence(found: list[runs.Run]) -> None:
    """Training curves of CE and BCE with and without the bias, from scratch and after MGP (notebook 08)."""
    chosen = [run for run in found if run.recipe.name in FOUR]
    curves = [measuring.curve_blocks(run, 5, loss="loss", accuracy="accuracy") for run in chosen]
    save("loss_curves", sum(curves, []))


def main(folder: str) -> None:
    found = measuring.finished(folder)
    unchanged = measuring.unchanged(found)
    measuring.name_missing({*CURVES, *RECONSTRUCTED, *sum(ZOO.values(), ())}, unchanged)
    zoo(unchanged)
    convergence(unchanged)
    decision_study(found)
    save("one_pixel", [one_pixel(r) for r in unchanged if r.recipe.name in ("digits_vit_ce", "digits_teacher_ce")])
    rows = [
        dict(zip(("scale", "trained on"), RECONSTRUCTED[run.recipe.name], strict=True))
        | {"seed": run.seed, "class": c, "error": error}
        for run in unchanged
        if run.recipe.name in RECONSTRUCTED
        for c, error in enumerate(error_by_class(run))
    ]
    save("mgp_error_by_class", rows)


def save(name: str, rows: list[dict]) -> None:
    """`measuring.save`, sorted."""
    table = pd.DataFrame(rows)
    measuring.save(name, table.sort_values(list(table.columns[:4])), digits=6)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
