"""One recipe by command; under a launcher, one run on several GPUs or nodes.

    python -m ltvit_lib laptop_vit_ce --seed 0
    torchrun --nproc-per-node 4 -m ltvit_lib paper_c10_deit_lt_b --seed 0
    accelerate launch --num-processes 4 -m ltvit_lib paper_c10_deit_lt_b --seed 0

The parameters are those of the papermill runners in notebooks/full, and so are the run folders: a runner that is given
the same recipe and seed afterwards trains nothing and draws the run's page. The same command continues a run that was
interrupted, also on another number of GPUs.
"""

import argparse
from pathlib import Path

from ltvit_lib import runs, train

import torch
from accelerate import PartialState

PREVIOUS = "folder of the run that it starts from, where it does from one; empty: runs/<its recipe>/seed<seed>"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("ltvit_lib", description="Trains one recipe, on every process of its launcher.")
    parser.add_argument("recipe", help="a name from ltvit_lib.recipes (notebooks/full/RECIPES.md lists them)")
    parser.add_argument("--seed", type=int, default=0, help="seeds weights, order, augmentation and mixing")
    parser.add_argument("--overrides", default="", help='fields of the recipe to change, as JSON: {"epochs": 4}')
    parser.add_argument("--out", default="", help="run folder; empty: runs/<recipe>/seed<seed>")
    parser.add_argument("--teacher", default="", help=PREVIOUS)
    parser.add_argument("--init", default="", help=PREVIOUS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    try:
        chosen = runs.from_parameters(vars(given), ())
        start = runs.start(chosen, given.seed, teacher=given.teacher, init=given.init)
        run = runs.Run(Path(given.out or runs.folder(chosen, given.seed)))
        said = run.status if run.finished else f"{run.path} has finished"
        train.fit(chosen, run.path, given.seed, **start)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command continues from the last epoch that was saved") from None
    except (ValueError, OSError, train.TrainingDiverged, torch.OutOfMemoryError) as error:
        raise SystemExit(f"{given.recipe}, seed {given.seed}: {error}") from None
    if PartialState().is_main_process:
        print(said, *([run.table().to_string()] if run.result["heads"] else []), sep="\n")


if __name__ == "__main__":
    main()
