"""A finished run as a folder that others can use: weights, config.json and a model card.

    model.safetensors   bfloat16, by timm's names; of a PaCo run the CNN, of a pre-training run the encoder
    config.json         timm's own format, read by `timm.create_model("local-dir:...")` and `hf-hub:`; what timm has no
                        field for (training prior, loss, bias, recipe) stands under "ltvit"
    README.md           the card: recipe, data, metrics, how to load it, limits, licence, citations

`ltvit_lib.runs.export` is the door; `models.load` and `models.predict` read what it writes.
"""

import json
from pathlib import Path

from ltvit_lib import longtail, losses, recipes, runs, train
from ltvit_lib.data import STATISTICS, Split
from ltvit_lib.networks import ScaledLinear, logit_scale
from ltvit_lib.recipes import Distil, Finetune, Pretrain, Recipe
from ltvit_lib.runs import Run

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn

GROUPS = {
    "top1": "top-1", "all": "all", "head": "head", "mid": "mid", "tail": "tail", "many": "many", "medium": "medium",
    "few": "few", "ece": "ECE", "mce": "MCE",
}  # fmt: skip
FAMILY = {"bce": "bce", "balanced_bce": "bce", "cross_entropy": "ce", "balanced_ce": "ce", "lade": "ce"}
LICENCE = (
    "MIT for the weights and the code. The training images keep their own terms, which may restrict what models "
    "trained on them may be used for."
)
CLASSIFY = """\
```python
from ltvit_lib import models

from PIL import Image

model = models.load(".")  # this folder
pictures = [Image.new("RGB", ({side}, {side}))]  # yours: a folder, or paths, PIL images, uint8 arrays
{answer}
```"""
ENCODE = """\
```python
from ltvit_lib import models

model = models.load(".")  # this folder
# model.forward_features(images): (N, 1 + patches, width), for normalised images
```"""
WITH_TIMM = """

With timm alone, for normalised images:

```python
import ltvit_lib  # before timm; it registers the compact ViTs

import timm

model = timm.create_model("{name}"{arguments}, checkpoint_path="model.safetensors")
```"""
CITATIONS = """\
```bibtex
@inproceedings{xu2023livt,
  title={Learning Imbalanced Data with Vision Transformers},
  author={Xu, Zhengzhuo and Liu, Ruikang and Yang, Shuo and Chai, Zenghao and Yuan, Chun},
  booktitle={CVPR}, year={2023}
}
@inproceedings{rangwani2024deitlt,
  title={{DeiT-LT}: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets},
  author={Rangwani, Harsh and Mondal, Pradipto and Mishra, Mayank and Asokan, Ashish Ramayee and Babu, R. Venkatesh},
  booktitle={CVPR}, year={2024}
}
```"""


def write(run: Run, out: str | Path | None = None, split: Split | None = None) -> Path:
    """Writes the folder; see `runs.export`."""
    result = run.result  # of a finished run only
    folder = run.path / "export" if out is None else Path(out)
    _refuse_others(folder)
    model, split = train.build(run, split)
    if split.digest != run.identity["data"]:
        raise ValueError(
            f"{run.path} was trained on other images ({run.identity['data']}, here {split.digest}): give split=, the "
            "data it was trained on"
        )
    model = _plain(model.encoder if isinstance(run.recipe, Pretrain) else model)
    runs.make_folder(folder)
    described = config(run, model, split)
    runs.write_json(folder / "config.json", described)  # first: by it, a broken export is known and may be repeated
    runs.write(folder / "model.safetensors", save(_weights(model), {"format": "pt"}))
    runs.write(folder / "README.md", card(run, described, result, split.groups).encode())
    return folder


def _refuse_others(folder: Path) -> None:
    """Raises ValueError for a folder with files in it, unless they are an earlier export's."""
    try:
        free = "ltvit" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        free = not folder.is_dir() or not any(folder.iterdir())
    if not free:
        raise ValueError(f"{folder} holds files that no earlier export wrote: give a new or an empty folder")


def _plain(model: nn.Module) -> nn.Module:
    """LWS's learnt factors, multiplied into the linear classifier that timm knows."""
    if isinstance(getattr(model, "head", None), ScaledLinear):
        scaled, head = model.head, nn.Linear(model.head.in_features, model.head.out_features)
        head.weight.data = scaled.weight.data * scaled.scale.data[:, None]
        head.bias.data = scaled.bias.data * scaled.scale.data
        model.head = head
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}


# --- config.json -----------------------------------------------------------------------------------------------


def config(run: Run, model: nn.Module, split: Split) -> dict:
    """timm's fields; under "ltvit", what predictions under another prior need and where the weights come from.

    Where the recipe's data is a path of this machine, the data's name stands in its place.
    """
    recipe, changes = run.recipe, runs.changes(run.recipe)
    changes |= {"data": split.name} if "data" in changes else {}
    classes = 0 if isinstance(recipe, Pretrain) else len(split.classes)
    arguments = {k: v for k, v in model.created.items() if k not in ("name", "drop_path_rate")}
    arguments["num_classes"] = classes
    mean, std = STATISTICS["imagenet"] if recipe.normalise == "imagenet" else (split.mean, split.std)
    known = getattr(model, "pretrained_cfg", {})
    prepared = {
        "input_size": [len(mean), recipe.image_size, recipe.image_size], "fixed_input_size": "img_size" in arguments,
        "mean": mean, "std": std, "crop_pct": recipe.eval_crop, "interpolation": "bicubic", "num_classes": classes,
        "first_conv": known.get("first_conv"), "classifier": known.get("classifier"), "license": "mit",
    }  # fmt: skip
    ours = {
        "recipe": runs.fields_of(recipe) | {"data": split.name}, "changes": changes, "seed": run.seed,
        "data": split.name, "digest": run.identity["data"], "start": run.identity["start"], "counts": split.counts,
        "loss": getattr(recipe, "loss", "mean squared error on hidden patches"),
        "heads": head_rules(recipe, split.counts) if classes else {},
    }  # fmt: skip
    return {
        "architecture": model.created["name"].split(".")[0], "num_classes": classes,
        "num_features": model.num_features, "label_names": list(split.classes) if classes else [],
        "model_args": arguments, "pretrained_cfg": prepared, "ltvit": ours,
    }  # fmt: skip


def head_rules(recipe: Finetune, counts: list[int]) -> dict[str, dict]:
    """What leads from each head's raw logits to a posterior, hence to any test prior (`losses.decide_ce`).

    Returns:
        for "cls" (and "dist"): `family` ce or bce, `scale` of the logits, `bias` (C,) that training added, label
        `smoothing` in the last epoch, and the `prior` (C,) that the posterior belongs to. The prior is that of the
        images times DRW's weights, uniform where classes were sampled, and None for losses whose minimum is no
        posterior (LDAM, focal, VS ...). DIST's takes the teacher to repeat the labels (notebook 12 measures when it
        does not). Mixup bends every posterior, and nothing undoes that.
    """
    images = longtail.prior(counts).double()
    options = recipes.loss_arguments(recipe, images, torch.tensor(counts))
    balanced = {"balanced_ce": losses.logit_bias_ce, "balanced_bce": losses.logit_bias_bce}.get(recipe.loss)
    bias = options.get("tau", 1.0) * balanced(images, options.get("test_prior")) if balanced else None
    bias = losses.logit_bias_ce(images) if recipe.loss == "lade" else bias
    prior = torch.full_like(images, 1 / len(images)) if recipe.sampling == "classes" else images
    weighted = prior
    if recipe.drw_epoch is not None:
        beta = getattr(recipe, "beta", 0.9999)
        weighted = prior * longtail.drw_weights(counts, recipe.epochs, recipe.drw_epoch, beta)
        weighted = weighted / weighted.sum()
    student = isinstance(recipe, Distil)
    unsmoothed = student and recipe.drw_epoch is not None and not recipe.drw_mixup
    family = FAMILY.get(recipe.loss)
    cls = {
        "family": family or "ce",
        "scale": logit_scale(recipe),
        "bias": None if bias is None else bias.tolist(),
        "smoothing": 0.0 if unsmoothed else recipe.smoothing,
        "prior": (prior if student else weighted).tolist() if family else None,
    }
    dist = {"family": "ce", "scale": 1.0, "bias": None, "smoothing": 0.0, "prior": weighted.tolist()}
    return {"cls": cls, "dist": dist} if student else {"cls": cls}


# --- the card --------------------------------------------------------------------------------------------------


def card(run: Run, described: dict, result: dict, groups: dict[str, Tensor]) -> str:
    """README.md, with the front matter that the Hugging Face hub reads."""
    sections = {
        "Load": _loading(described),
        "Recipe": _recipe(run, described["ltvit"]),
        "Data": _data(described),
        "Metrics": _metrics(run.recipe, result, groups),
        "Intended use and limits": _limits(run.recipe, described),
        "Licence": LICENCE,
        "Citation": CITATIONS,
    }
    task = "image-feature-extraction" if isinstance(run.recipe, Pretrain) else "image-classification"
    front = f"---\nlicense: mit\nlibrary_name: timm\npipeline_tag: {task}\ntags: [timm, long-tailed-recognition]\n---\n"
    title = f"# {run.recipe.name}\n\n{_summary(run.recipe, described)}\n"
    return front + "\n" + title + "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())


def _summary(recipe: Recipe, described: dict) -> str:
    ours, name = described["ltvit"], described["architecture"]
    what = {
        "pretrain": "the encoder of a masked autoencoder, without a classifier",
        "contrast": "a CNN trained with PaCo; contrast's projection and queue are left out",
        "distil": "a distilled ViT with two heads, CLS and DIST (DeiT-LT); its output is their average",
    }.get(recipe.kind, f"a classifier trained with the loss `{ours['loss']}`")
    images, sizes = sum(ours["counts"]), (max(ours["counts"]), min(ours["counts"]))
    return (
        f"`{name}`: {what}. Trained on {images:,} images of the data set {ours['data']}, {sizes[0]:,} of the most "
        f"frequent class and {sizes[1]:,} of the rarest, and on nothing else but what *Recipe* names as its start."
    )


def _loading(described: dict) -> str:
    """Code that runs in the folder."""
    answer = 'print(models.label(model, pictures, test_prior="uniform"))  # or the prior that you expect'
    if any(rule["prior"] is None for rule in described["ltvit"]["heads"].values()):
        answer = "print(models.label(model, pictures))"
    side = described["pretrained_cfg"]["input_size"][1]
    text = (CLASSIFY if described["num_classes"] else ENCODE).format(side=side, answer=answer)
    if not described["architecture"].endswith("_cifar") and "normed" not in described["model_args"]:
        arguments = "".join(f", {k}={v!r}" for k, v in described["model_args"].items())
        text += WITH_TIMM.format(name=described["architecture"], arguments=arguments)
    if not described["num_classes"]:
        text += '\n\nTo fine-tune it: `train.fit(recipe, out, init="model.safetensors")`, for a recipe with `init`.'
    return text


def _recipe(run: Run, ours: dict) -> str:
    recipe, env = run.recipe, runs.environments(run)
    known = recipe.name in recipes.names()
    changed = ", ".join(f"`{k}={v!r}`" for k, v in ours["changes"].items()) or "none"
    files = [
        f"{what}, `{getattr(recipe, what)}`, a checkpoint whose SHA-256 begins {digest}"
        for what, digest in ours["start"].items()
        if digest
    ]
    start = "; ".join(files) or "random weights"
    return (
        f"- recipe: `{recipe.name}`{'' if known else ', not one of the library'}; changed fields: {changed}; every "
        f"field: `config.json`\n- {recipe.epochs} epochs, effective batch {recipe.batch_size}, peak learning rate "
        f"{recipe.learning_rate:g}, seed {run.seed}\n- started from: {start}\n"
        f"- made with commit {env['commit'] or 'unknown'}, torch {env['torch']}, timm {env['timm']}, on {env['device']}"
    )


def _data(described: dict) -> str:
    ours = described["ltvit"]
    counts = ours["counts"]
    return (
        f"{ours['data']}: {len(counts)} classes, {sum(counts):,} training images, imbalance "
        f"{max(counts) / min(counts):.3g}. Digest of the training set: `{ours['digest']}`. Class names and counts, "
        "hence the training prior: `config.json`."
    )


def _metrics(recipe: Recipe, result: dict, groups: dict[str, Tensor]) -> str:
    """Every head's numbers in percent, the last epoch's."""
    if not result["heads"]:
        return f"Last training loss: {result['final_loss']:.4f} (mean squared error on hidden patches)."
    rows = pd.DataFrame.from_dict(result["heads"], orient="index")
    rows = rows[[g for g in GROUPS if g in rows]].astype(float).mul(100)
    lines = [["head", *(GROUPS[g] for g in rows)], ["---"] * (1 + rows.shape[1])]
    lines += [[name, *("–" if pd.isna(v) else f"{v:.1f}" for v in row)] for name, *row in rows.itertuples()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    sizes = ", ".join(f"{int(groups[k].sum())}" for k in groups)
    part = "a validation part held out of the training images" if recipe.evaluate_on == "val" else "the test set"
    return (
        f"Percent, on {part}, last epoch, one run. Accuracies are means over the classes of a group; top-1 is the "
        f"share of images. Head, mid and tail: by rank of frequency ({sizes} classes). Many, medium and few: more than "
        "100, 20 to 100, fewer than 20 training images; – is a group without classes. avg is the mean of both heads' "
        f"logits. ECE and MCE: 15 bins.\n\n{table}"
    )


def _limits(recipe: Recipe, described: dict) -> str:
    use = "A start for fine-tuning on images like those it was trained on. It has no classifier and answers nothing. "
    if described["num_classes"]:
        use = (
            "Research on long-tailed recognition, and classification of pictures like those of the training set into "
            "its classes. "
        )
    rare = (
        "Rare classes were learnt from few images: expect them to be recognised less often, and their measured "
        "accuracies to be uncertain. It has seen no pictures outside its classes and will still answer. Probabilities "
        "are uncalibrated unless the ECE above says otherwise."
    )
    priors = [rule["prior"] for rule in described["ltvit"]["heads"].values()]
    prior = " The test set's class shares are not yours: give `test_prior`, the shares that you expect."
    if None in priors:
        prior = f" What prior the logits of `{described['ltvit']['loss']}` follow is not known: answers are as trained."
    return use + rare + (prior if priors else "")
