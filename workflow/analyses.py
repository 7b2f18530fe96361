"""Where finished ViTs look, and how many directions their tail features need: small tables that notebooks 13, 14 draw.

python workflow/analyses.py runs

Of every finished ViT among METHODS, recipes as registered: attention distance and mass on special tokens by block and
head, rollout, feature rank and its spectrum.
"""

import sys

from ltvit_lib import attention, augment, jobs, plots, rank, runs

import measuring
import torch
from PIL import Image
from torch import Tensor, nn

TABLES = {"distance": "attention_distance", "rollout": "attention_rollout", "maps": "attention_rollout_maps",
          "rank": "feature_rank", "spectrum": "feature_spectrum"}  # fmt: skip
METHODS = (
    "vit_ce", "livt", "deit", "deit_lt", "deit_lt_sgd", "deit_lt_paco", "deit_lt_paco_sgd", "deit_lt_no_drw",
)  # fmt: skip
PICTURED = ("vit_ce", "livt", "_deit", "deit_lt")
SCALES = ("digits", "laptop")
KEPT = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91)  # directions at which the spectrum is written
MOST = 2500  # about as many test images for the rank: every fourth of CIFAR-10's
PICTURES = 2  # rollout maps kept: so many test images of each tail class, the first ones


def token_names(model: nn.Module) -> list[str]:
    """What this project's classifiers read: CLS and DIST, or the mean over patches ("pooled"); CLS is there anyway."""
    return ["CLS", "DIST"] if model.num_prefix_tokens == 2 else ["CLS", "pooled"]


@torch.no_grad()
def token_features(model: nn.Module, images: Tensor, batch: int = 256) -> Tensor:
    """`rank.block_features`, (L, B, 2, D), with the mean over patches as the second token of a model without DIST."""
    if model.num_prefix_tokens == 2:
        return rank.block_features(model, images, batch)
    rows, tokens = [], []
    hook = lambda _, __, x: tokens.append(torch.stack([x[:, 0], x[:, 1:].mean(1)], 1))  # noqa: E731
    with attention.watched(model, [(block, hook) for block in model.blocks]):
        for part in images.split(batch):
            tokens.clear()
            model(part)
            rows.append(torch.stack(tokens))  # (L, b, 2, D)
    return torch.cat(rows, 1)


def rollout_numbers(maps: Tensor, grid: tuple[int, int], patch: int, brightness: Tensor) -> dict[str, float]:
    """Means over images of what a rollout map (B, N) looks like; each map first scaled to sum to 1.

    `effective patches`: exp of the entropy, N for a uniform map. `spread`: root mean squared distance from the map's
    centre, in pixels. `own`: total variation from the mean map of all images, 0 where the map ignores the image.
    `brightness`: mean brightness under the map over that of the image, 1 where the map ignores it.
    """
    p = (maps / maps.sum(-1, keepdim=True)).double()
    where = torch.cartesian_prod(*(torch.arange(n, dtype=p.dtype) for n in grid)) * patch  # (N, 2)
    centre = p @ where
    return {
        "mass": maps.sum(-1).mean().item(),
        "effective patches": (-(p * p.clamp_min(1e-12).log()).sum(-1)).exp().mean().item(),
        "spread": (p @ where.square().sum(-1) - centre.square().sum(-1)).clamp_min(0).sqrt().mean().item(),
        "own": (p - p.mean(0)).abs().sum(-1).mean().item() / 2,
        "brightness": ((p * brightness).sum(-1) / brightness.mean(-1)).mean().item(),
    }


def survey(run: runs.Run) -> dict[str, list[dict]]:
    """Rows of each table for one run."""
    model, split = measuring.build(run)
    common, tail = {"recipe": run.recipe.name, "seed": run.seed}, split.groups["few"].nonzero().flatten()
    grid, patch = model.patch_embed.grid_size, model.patch_embed.patch_size[0]
    tokens, measured = token_names(model), {name: [] for name in TABLES}
    for name, part in (("train", split.train), ("test", split.test)):
        is_tail = torch.isin(part.targets, tail)
        images = augment.evaluate(part.images, run.recipe.image_size, *jobs.statistics(run.recipe, split))
        found = attention.over_batches(model, images[is_tail])
        maps = found.rollout[:, :2]  # CLS and DIST, or CLS and the mean over patches
        heads = torch.cartesian_prod(*(torch.arange(n) for n in found.distance.shape)).tolist()
        measured["distance"] += [
            common | {"images": name, "block": block + 1, "head": head + 1, "grid": grid[0], "patch": patch,
                      "distance": found.distance[block, head].item(), "special": found.special[block, head].item()}
            for block, head in heads
        ]  # fmt: skip
        grey = nn.functional.avg_pool2d(part.images[is_tail].float().mean(1, keepdim=True), patch).flatten(1)
        between = (maps / maps.sum(-1, keepdim=True)).diff(dim=1).abs().sum(-1).mean().item() / 2
        for i, token in enumerate(tokens):
            row = rollout_numbers(maps[:, i], grid, patch, grey.double() + 1e-9)
            measured["rollout"].append(common | {"images": name, "token": token} | row | {"between": between})
        if name == "test" and run.seed == 0 and run.recipe.name.endswith(PICTURED):
            measured["maps"] += pictures(common, part, is_tail, tail, maps, tokens, grid[0])
        some = slice(None, None, 1 if name == "train" else max(1, len(part) // MOST))
        every, is_tail = token_features(model, images[some]), is_tail[some]  # (L, B, 2, D)
        for i, token in enumerate(tokens):
            for row in ranks(every[:, :, i], is_tail, run.seed == 0):
                kind = "spectrum" if "kept" in row else "rank"
                measured[kind].append(common | {"images": name, "token": token} | row)
    return measured


def ranks(every: Tensor, is_tail: Tensor, spectra: bool) -> list[dict]:
    """Rank of the tail among all features (L, B, D), by block and centring; the last block's error after k directions.

    `of_all` is the rank of all features themselves, centred: the same rule with every image in the tail's place.
    """
    rows = []
    for block, features in enumerate(every, start=1):
        share = rank.spectrum(features).square().cumsum(0)
        of_all = int((share < 0.99 * share[-1]).sum()) + 1
        for centre in rank.CENTRES:
            needed = rank.feature_rank(features, features[is_tail], centre=centre)
            rows.append({"block": block, "centre": centre, "rank": needed, "of_all": of_all, "width": every.shape[2]})
    for centre in rank.CENTRES if spectra else ():
        error = rank.reconstruction_error(every[-1], every[-1][is_tail], centre)
        rows += [{"centre": centre, "kept": k, "error": error[k].item()} for k in KEPT if k < len(error)]
    return rows


def pictures(common, part, is_tail, tail, maps, tokens, side) -> list[dict]:
    """Rollout maps of the first tail images, a row for each row of patches; the images go into one small PNG."""
    order = is_tail.nonzero().flatten()
    chosen = torch.cat([(part.targets[order] == c).nonzero().flatten()[:PICTURES] for c in tail])
    strip = torch.cat(list(part.images[order[chosen]]), dim=-1).permute(1, 2, 0)  # (h, n w, channels)
    scale = common["recipe"].split("_")[0]
    Image.fromarray(strip.squeeze(-1).numpy()).save(plots.figures() / "data" / f"attention_images_{scale}.png")
    drawn = [t for t, token in enumerate(tokens) if not (token == "CLS" and "pooled" in tokens)]
    return [
        common | {"image": n, "token": tokens[t], "row": row} | {f"column {c}": value for c, value in enumerate(values)}
        for n, image in enumerate(chosen) for t in drawn
        for row, values in enumerate(maps[image, t].unflatten(0, (side, side)).tolist())
    ]  # fmt: skip


def main(folder: str) -> None:
    wanted = {f"{scale}_{name}" for scale in SCALES for name in METHODS}
    found = [run for run in measuring.unchanged(measuring.finished(folder)) if run.recipe.name in wanted]
    measuring.name_missing(wanted, found)
    measured: dict[str, list[dict]] = {name: [] for name in TABLES}
    for run in found:
        print(run.path, flush=True)
        for name, rows in survey(run).items():
            measured[name] += rows
    for name, rows in measured.items():
        measuring.save(TABLES[name], rows, digits=4)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs")
