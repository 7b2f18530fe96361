"""Fills the results in README.md from the ledger and the published tables: `make readme`."""

import re
from pathlib import Path

from ltvit_lib import metrics, published, runs

import pandas as pd

README = Path(__file__).resolve().parents[1] / "README.md"
MARKED = re.compile(r"(<!-- results: make readme -->\n)(.*)(<!-- /results -->)", re.DOTALL)
GROUPS = ("all", "head_classes", "mid", "tail", "ece")
# label, recipe, head, and the nearest published row: paper, table, row
LAPTOP = [
    ("ViT, CE", "laptop_vit_ce", "cls", ("DeiT-LT", "2", "ViT")),
    ("ViT, Bal-BCE", "laptop_vit_bal_bce", "cls", None),
    ("LiVT", "laptop_livt", "cls", ("LiVT", "7", "Bal-BCE")),
    ("Teacher: ResNet, LDAM-DRW", "laptop_teacher_ldam_drw", "cls", ("DeiT-LT", "2", "LDAM+DRW")),
    ("Teacher: ResNet, LDAM-DRW-SAM", "laptop_teacher_ldam_drw_sam", "cls", ("DeiT-LT", "2", "L-D-SAM teacher")),
    ("Teacher: ResNet, PaCo-SAM", "laptop_teacher_paco_sam", "cls", ("DeiT-LT", "2", "PaCo+SAM teacher")),
    ("Teacher: wider ResNet, in distribution", "laptop_teacher_in_distribution", "cls", None),
    ("DeiT, average", "laptop_deit", "avg", ("DeiT-LT", "2", "DeiT")),
    ("DeiT-LT, average", "laptop_deit_lt", "avg", ("DeiT-LT", "2", "DeiT-LT (L-D-SAM)")),
    ("DeiT-LT, CLS", "laptop_deit_lt", "cls", ("DeiT-LT", "S.3", "cls")),
    ("DeiT-LT, DIST", "laptop_deit_lt", "dist", ("DeiT-LT", "S.3", "dist")),
    ("DeiT-LT (PaCo-SAM), average", "laptop_deit_lt_paco", "avg", ("DeiT-LT", "2", "DeiT-LT (PaCo+SAM)")),
    ("DeiT-LT (teacher without SAM), average", "laptop_deit_lt_sgd", "avg", None),
    ("DeiT-LT (no DRW), average", "laptop_deit_lt_no_drw", "avg",
     ("DeiT-LT", "1", "ResNet-32 strong mixup, student strong mixup")),
    ("DeiT-LT (no DRW, teacher without SAM), average", "laptop_deit_lt_sgd_no_drw", "avg", None),
    ("DeiT-LT (no DRW, no mixing), average", "laptop_deit_lt_no_drw_no_mixup", "avg",
     ("DeiT-LT", "1", "ResNet-32 strong, student strong")),
    ("DeiT-LT (no DRW, no mixing, teacher sees weak views), average", "laptop_deit_lt_no_drw_teacher_weak", "avg",
     ("DeiT-LT", "1", "ResNet-32 weak, student strong")),
    ("DeiT-LT from MGP, average", "laptop_deit_lt_mgp", "avg", None),
    ("DeiT-LT from MGP, CLS with Bal-CE, average", "laptop_deit_lt_mgp_bal_ce", "avg", None),
]  # fmt: skip
DIGITS = [
    ("ViT, CE", "digits_vit_ce", "cls", None),
    ("ViT (cRT)", "digits_vit_crt", "cls", None),
    ("ViT, Bal-BCE", "digits_vit_bal_bce", "cls", None),
    ("ViT, Bal-CE", "digits_vit_bal_ce", "cls", None),
    ("LiVT", "digits_livt", "cls", None),
    ("LiVT with Bal-CE", "digits_mgp_bal_ce", "cls", None),
    ("Teacher: ResNet-8, LDAM-DRW", "digits_teacher_ldam_drw", "cls", None),
    ("Teacher: ResNet-8, LDAM-DRW-SAM", "digits_teacher_ldam_drw_sam", "cls", None),
    ("Teacher: ResNet-8, PaCo-SAM", "digits_teacher_paco_sam", "cls", None),
    ("DeiT, average", "digits_deit", "avg", None),
    ("DeiT-LT, average", "digits_deit_lt", "avg", None),
    ("DeiT-LT, CLS", "digits_deit_lt", "cls", None),
    ("DeiT-LT, DIST", "digits_deit_lt", "dist", None),
    ("DeiT-LT (PaCo-SAM), average", "digits_deit_lt_paco", "avg", None),
    ("DeiT-LT from MGP, average", "digits_deit_lt_mgp", "avg", None),
    ("DeiT-LT, CLS with Bal-CE, average", "digits_deit_lt_bal_ce", "avg", None),
    ("DeiT-LT from MGP, CLS with Bal-CE, average", "digits_deit_lt_mgp_bal_ce", "avg", None),
]


def cell(values: pd.Series) -> str:
    """Mean of percentages, with the sample sd where there are several seeds."""
    s = metrics.summarise((values * 100).tolist())
    return f"{s['mean']:.1f}" + (f" ± {s['sd']:.1f}" if s["n"] > 1 else "")


def nearest(row: tuple[str, str, str] | None) -> str:
    if row is None:
        return "–"
    paper, number, name = row
    values = published.table(paper, number).loc[name]
    value = next(values[c] for c in ("all", "student", "CIFAR-10-LT rho 100") if c in values)
    start = ", MGP on ImageNet-1K" if paper == "LiVT" else ""
    return f"{value:.1f} ({paper} Table {number}{start})"


def seeds(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """How many seeds each line of a table has."""
    return rows.groupby(by)["seed"].nunique()


def table(rows: list) -> str:
    ledger = runs.counted(runs.ledger())
    lines = [
        "| method | all | head | mid | tail | ECE | n | epochs | nearest published row: all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, recipe, head, paper in rows:
        part = ledger[(ledger["recipe"] == recipe) & (ledger["head"] == head)]
        if part.empty:
            lines.append(f"| {label} | not run |" + " |" * 6 + f" {nearest(paper)} |")
            continue
        numbers = " | ".join(cell(part[g]) for g in GROUPS)
        cost = f"{len(part)} | {part['epochs'].iloc[0]}"
        lines.append(f"| {label} | {numbers} | {cost} | {nearest(paper)} |")
    used = ledger[ledger["recipe"].isin([r[1] for r in rows])]
    where = "; ".join(sorted(used["device"].unique()))
    lines.append(f"\nRecipes, in order: {', '.join(dict.fromkeys(r[1] for r in rows))}. Commits: "
                 f"{', '.join(sorted(set(' '.join(used['commit']).split())))}. Machine: {where}.")  # fmt: skip
    return "\n".join(lines)


def experts() -> str:
    """DeiT-LT's two heads averaged as published, and after the logits of one or both were moved to the test prior."""
    table = pd.read_csv(runs.LEDGER.parent / "experts_rules.csv")
    table = table[(table["of"] == "average of logits") & table["prior"].isin(["as trained", "CLS moved", "both moved"])]
    names = {
        "laptop_deit_lt": "CIFAR-10-LT, DeiT-LT", "laptop_deit_lt_mgp": "CIFAR-10-LT, from MGP",
        "laptop_deit_lt_mgp_bal_ce": "CIFAR-10-LT, from MGP, CLS with Bal-CE",
        "digits_deit_lt": "digits, DeiT-LT", "digits_deit_lt_mgp": "digits, from MGP",
        "digits_deit_lt_mgp_bal_ce": "digits, from MGP, CLS with Bal-CE",
    }  # fmt: skip
    balanced = table["recipe"].str.endswith("bal_ce") & (table["prior"] == "CLS moved")  # is on the test prior already
    table = table[table["recipe"].isin(names) & ~balanced]
    text, n = runs.mean_sd(table, ["recipe", "prior"]), seeds(table, ["recipe", "prior"])
    lines = ["| students | average of logits | all | head | mid | tail | n |", "|---|---|---|---|---|---|---|"]
    for recipe, label in names.items():
        for prior in ("as trained", "CLS moved", "both moved"):
            if (recipe, prior) in text.index:
                numbers = " | ".join(text.loc[(recipe, prior)])
                lines.append(f"| {label} | {prior} | {numbers} | {n[recipe, prior]} |")
    return "\n".join(lines)


def decisions() -> str:
    rules = pd.read_csv(runs.LEDGER.parent / "decision_rules.csv")
    text = runs.mean_sd(rules, ["recipe", "method"], ("all", "head", "mid", "tail", "ece"))
    n = seeds(rules, ["recipe", "method"])
    shown = [r for r in ("laptop_vit_bal_bce", "laptop_livt", "digits_vit_bal_bce", "digits_livt") if r in text.index]
    lines = ["| recipe | rule | all | head | mid | tail | ECE | n |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join((*key, *numbers))} | {n[key]} |" for key, numbers in text.loc[shown].iterrows()]
    return "\n".join(lines)


def text() -> str:
    """What README says between its two marks."""
    return f"""**CIFAR-10-LT, rho = 100, laptop scale.** Accuracy in percent on the
balanced test set of 10,000 images; head, mid, tail are
DeiT-LT's index groups (classes 0-2, 3-6, 7-9).

{table(LAPTOP)}

**A repaired decision.** The same Bal-BCE networks, raw argmax against the rule that adds the training bias back
(`losses.decide_bce`; notebook 05); nothing is retrained.

{decisions()}

**Experts on one prior.** DeiT-LT averages a CLS head under the training prior and a DIST head
under another one. Moving the logits of CLS, or of both, to the test prior first needs no training (notebook 12).

{experts()}

**Digits-LT, rho = 40.** A new tail for every seed; mean ± sample standard deviation.

{table(DIGITS)}
"""


def main() -> None:
    README.write_text(MARKED.sub(lambda m: m[1] + text() + m[3], README.read_text()))


if __name__ == "__main__":
    main()
