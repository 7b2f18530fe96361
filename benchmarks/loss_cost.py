"""Milliseconds of each loss, forward and backward, and its ratio to plain CE or BCE. One command:

    python benchmarks/loss_cost.py [--batch 1024] [--classes 1000] [--repeats 41]

Writes figures/data/benchmark_losses.csv. A ratio is the median over rounds of the loss's time over that of its plain
counterpart in the same round.
"""

import argparse

from ltvit_lib import longtail, losses, plots, runs

import pandas as pd
import timing
import torch

BASE = {"softmax": "cross_entropy", "sigmoid": "bce"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cases(batch: int, classes: int) -> dict:
    """name -> (softmax or sigmoid, a function of the logits)."""
    counts = torch.tensor(longtail.exponential_counts(1280, classes, 256), device=DEVICE).float()
    prior = counts / counts.sum()
    target = torch.multinomial(prior, batch, replacement=True)
    features = torch.randn(batch, 768, device=DEVICE)
    soft, sig = "softmax", "sigmoid"
    return {
        "cross_entropy": (soft, lambda z: losses.cross_entropy(z, target)),
        "balanced_ce": (soft, lambda z: losses.balanced_ce(z, target, prior)),
        "bce": (sig, lambda z: losses.bce(z, target)),
        "balanced_bce": (sig, lambda z: losses.balanced_bce(z, target, prior)),
        "nt_bce": (sig, lambda z: losses.nt_bce(z, target, 5.0, prior)),
        "focal": (soft, lambda z: losses.focal(z, target, 2.0)),
        "class_balanced": (soft, lambda z: losses.class_balanced(z, target, counts)),
        "class_balanced, sigmoid": (sig, lambda z: losses.class_balanced(z, target, counts, kind="sigmoid")),
        "class_balanced, focal": (sig, lambda z: losses.class_balanced(z, target, counts, kind="focal")),
        "ldam": (soft, lambda z: losses.ldam(z, target, counts)),
        "lade": (soft, lambda z: losses.lade(z, target, prior)),
        "influence_balanced": (soft, lambda z: losses.influence_balanced(z, target, features)),
        "vs": (soft, lambda z: losses.vs(z, target, counts)),
        "mislas": (soft, lambda z: losses.mislas(z, target, counts)),
    }


def measure(batch: int, classes: int, repeats: int) -> pd.DataFrame:
    """A row a loss: milliseconds (median), and the ratio to its plain counterpart."""
    logits = torch.randn(batch, classes, device=DEVICE, requires_grad=True)
    named = cases(batch, classes)
    calls = {name: lambda f=loss: torch.autograd.grad(f(logits), logits) for name, (_, loss) in named.items()}
    times = timing.rounds(calls, repeats)
    rows = []
    for name, (family, _) in named.items():
        ratio = timing.ratio(times[name], times[BASE[family]])["ratio"]
        rows.append({"loss": name, "plain": BASE[family], "ms": 1000 * times[name].median(), "ratio": ratio})
    return pd.DataFrame(rows).assign(batch=batch, classes=classes, repeats=repeats, device=runs.device_name())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=41)
    given = parser.parse_args()
    torch.manual_seed(0)
    table = measure(given.batch, given.classes, given.repeats)
    table.to_csv(plots.figures() / "data" / "benchmark_losses.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
