"""The papers' tables: complete, and as consistent or inconsistent as they are printed.

A printed accuracy is within 0.05 of the computed one, and so is a weighted mean of printed group accuracies: the two
may differ by 0.1 through rounding. Where they differ by more, the table itself is wrong, and the row stands here.
"""

import re

from ltvit_lib import longtail, published

import numpy as np
import pandas as pd
import pytest

LIVT_GROUPS, DEIT_GROUPS = ["many", "medium", "few"], ["head", "mid", "tail"]
ROUNDING = 0.1 + 1e-6
COUNTS = {
    name: group["count"].tolist()
    for name, group in pd.read_csv(published.PATH.with_name("class_counts.csv")).groupby("dataset")
}
COUNTS |= {f"CIFAR-10-LT rho {r}": longtail.exponential_counts(5000, 10, r) for r in (10, 50, 100)}
COUNTS |= {f"CIFAR-100-LT rho {r}": longtail.exponential_counts(500, 100, r) for r in (10, 50, 100)}
BOUNDARIES = {"CIFAR-10-LT": (3, 7), "CIFAR-100-LT": (36, 71), "ImageNet-LT": (390, 835), "iNat18": (842, 4543)}

SIZES = {  # table: rows, numbers
    ("LiVT", "1"): (2, 9),
    ("LiVT", "2"): (25, 100),
    ("LiVT", "3"): (27, 102),
    ("LiVT", "4"): (23, 86),
    ("LiVT", "5"): (4, 24),
    ("LiVT", "6"): (16, 160),
    ("LiVT", "7"): (7, 28),
    ("LiVT", "8"): (5, 40),
    ("LiVT", "9"): (5, 5),
    ("LiVT", "10"): (22, 66),
    ("LiVT", "11"): (2, 12),
    ("DeiT-LT", "1"): (4, 12),
    ("DeiT-LT", "2"): (22, 77),
    ("DeiT-LT", "3"): (20, 80),
    ("DeiT-LT", "4"): (15, 60),
    ("DeiT-LT", "5"): (4, 8),
    ("DeiT-LT", "6"): (6, 24),
    ("DeiT-LT", "S.1"): (8, 32),
    ("DeiT-LT", "S.2"): (4, 5),
    ("DeiT-LT", "S.3"): (12, 96),
    ("DeiT-LT", "S.4"): (6, 24),
}


def threshold_sizes(dataset: str) -> list[int]:
    """Classes with more than 100, 20 to 100 and fewer than 20 training images."""
    return [int(m.sum()) for m in longtail.shot_groups(COUNTS[dataset]).values()]


def code_sizes(dataset: str) -> list[int]:
    """The same three groups as DeiT-LT's code cuts them."""
    groups = longtail.index_groups(len(COUNTS[dataset]), BOUNDARIES[dataset.split(" rho")[0]])
    return [int(m.sum()) for m in groups.values()]


def overall(table: pd.DataFrame, columns: list[str], sizes: list[int]) -> pd.Series:
    """The accuracy over all classes that the printed group accuracies imply, row by row."""
    return (table[columns] * sizes).sum(axis=1, skipna=False) / sum(sizes)


def fits(table: pd.DataFrame, columns: list[str], sizes: list[int]) -> set[str]:
    """Rows whose printed overall accuracy follows from their groups, up to rounding."""
    return set(table.index[(table["all"] - overall(table, columns, sizes)).abs() <= ROUNDING])


def gain(table: pd.DataFrame, row: str, baseline: str, column: str) -> float:
    return round(float(table.loc[row, column] - table.loc[baseline, column]), 2)


# The file


@pytest.mark.parametrize(("paper", "number"), SIZES)
def test_every_table_is_complete(paper, number):
    table = published.table(paper, number)
    assert (len(table), int(table.notna().sum().sum())) == SIZES[paper, number]


def test_file_has_no_other_tables_and_no_number_twice():
    everything = pd.read_csv(published.PATH, dtype={"table": str})
    assert list(everything.columns) == ["paper", "table", "row", "column", "value"]
    assert list(dict.fromkeys(zip(everything["paper"], everything["table"]))) == list(SIZES)  # in reading order
    assert not everything.duplicated(["paper", "table", "row", "column"]).any()
    assert np.isfinite(everything["value"]).all()


def test_rows_and_columns_keep_the_printed_order():
    table = published.table("LiVT", "2")
    assert list(table.columns) == [*LIVT_GROUPS, "all"]
    assert (table.index[0], table.index[-1]) == ("CE", "LiVT *")
    assert list(published.table("DeiT-LT", "4").columns) == ["all", *DEIT_GROUPS]


def test_empty_cells_are_nan():
    assert published.table("LiVT", "3").loc["ACE(4E)", LIVT_GROUPS].isna().all()
    assert pd.isna(published.table("DeiT-LT", "2").loc["VS", "CIFAR-10-LT rho 50"])


@pytest.mark.parametrize(("paper", "number"), [("LiVT", "12"), ("LiVT", "S.1"), ("DeiT-LT", "S.5"), ("DeiT", "1")])
def test_unknown_table_is_refused(paper, number):
    message = re.escape(f"no table {number!r} of {paper!r}") + ".*known: DeiT-LT 1, .*LiVT 11"
    with pytest.raises(ValueError, match=message):
        published.table(paper, number)


def test_percentages_and_errors_are_in_range():
    for paper, number in SIZES:
        table = published.table(paper, number)
        accuracies = (
            table[table.columns.intersection([*LIVT_GROUPS, *DEIT_GROUPS, "all", "ece", "mce"])].stack().dropna()
        )
        assert accuracies.between(0, 100).all(), (paper, number)
        assert table.filter(like="_se").stack().dropna().between(0, 2).all(), (paper, number)


# LiVT


def test_livt_table_8_describes_the_data_sets():
    table = published.table("LiVT", "8")
    for name, counts in COUNTS.items():
        if name in table.columns:  # rho 50 is DeiT-LT's
            facts = [sum(counts), len(counts), max(counts), min(counts), round(max(counts) / min(counts))]
            assert table[name].tolist() == facts, name
    balanced = table["ImageNet-BAL"]
    assert balanced["training images"] == balanced["classes"] * balanced["max images"] == 160_000
    assert balanced["max images"] != 116  # which section 5.1 says


@pytest.mark.parametrize(
    ("number", "dataset", "wrong"),
    [
        ("2", "ImageNet-LT", {"MiSLAS": 53.17, "ACE †": 56.95, "TLC": 58.76}),  # all three copied from other papers
        ("3", "iNat18", {"BBN": 69.73, "PaCo": 72.87, "DOC": 71.14}),  # copied
        ("4", "Places-LT", {"OLTR": 37.49, "FSA": 36.52, "RSG": 39.75}),  # copied
        ("5", "iNat18", {}),
        (
            "6",
            "ImageNet-LT",
            {
                "ViT-Base Bal-CE": 60.29,
                "ViT-Base BCE": 52.77,
                "ViT-Base Bal-BCE": 60.64,
                "ViT-Large Bal-CE": 62.48,
                "ViT-Large Bal-BCE": 62.26,
            },
        ),
        ("11", "ImageNet-LT", {}),
    ],
)
def test_livt_overall_accuracy_follows_from_the_groups_except_where_it_does_not(number, dataset, wrong):
    table = published.table("LiVT", number).dropna(subset=LIVT_GROUPS)
    sizes = threshold_sizes(dataset)
    assert set(table.index) - fits(table, LIVT_GROUPS, sizes) == set(wrong)
    assert overall(table, LIVT_GROUPS, sizes).loc[list(wrong)].round(2).tolist() == list(wrong.values())


def test_livt_groups_would_put_bal_ce_first_on_vit_large():
    table = published.table("LiVT", "6")
    implied = overall(table, LIVT_GROUPS, threshold_sizes("ImageNet-LT"))
    assert table.loc["ViT-Large Bal-BCE", "all"] > table.loc["ViT-Large Bal-CE", "all"]
    assert implied["ViT-Large Bal-BCE"] < implied["ViT-Large Bal-CE"]


def test_livt_prints_one_model_twice_with_different_medium_accuracies():
    ablation, main = published.table("LiVT", "6").loc["ViT-Base Bal-BCE"], published.table("LiVT", "2").loc["LiVT"]
    differs = [c for c in [*LIVT_GROUPS, "all"] if ablation[c] != main[c]]
    assert differs == ["medium"]
    assert (ablation["medium"], main["medium"]) == (55.8, 56.4)
    mean = overall(pd.DataFrame([main]), LIVT_GROUPS, threshold_sizes("ImageNet-LT")).item()
    assert round(mean, 1) == main["all"] == 60.9


def test_livt_bal_bce_is_not_better_in_all_aspects():
    table = published.table("LiVT", "6")
    assert table.loc["ViT-Tiny Bal-BCE", "ece"] > table.loc["ViT-Tiny BCE", "ece"]
    assert table.loc["ViT-Base Bal-BCE", "many"] < table.loc["ViT-Base BCE", "many"]
    for size in ("ViT-Tiny", "ViT-Small", "ViT-Large"):
        for error in ("ece", "mce"):
            assert table.loc[f"{size} Bal-BCE", error] > table.loc[f"{size} Bal-CE", error]


TABLE_6_SLIPS = {
    ("ViT-Tiny Bal-CE", "mce"): (-1.6, -1.5),
    ("ViT-Tiny Bal-BCE", "many"): (8.4, 8.5),
    ("ViT-Tiny Bal-BCE", "ece"): (0.1, 0.2),
    ("ViT-Small Bal-BCE", "few"): (24.6, 24.5),
    ("ViT-Small Bal-BCE", "all"): (14.2, 14.3),
    ("ViT-Small Bal-BCE", "mce"): (-2.2, -2.1),
    ("ViT-Base Bal-CE", "many"): (-4.3, -4.2),
    ("ViT-Base Bal-BCE", "all"): (8.6, 8.5),
    ("ViT-Base Bal-BCE", "ece"): (-3.1, -3.2),
    ("ViT-Large Bal-CE", "many"): (-4.5, -4.6),
    ("ViT-Large Bal-CE", "few"): (20.3, 20.2),
    ("ViT-Large Bal-CE", "all"): (4.8, 4.7),
}


@pytest.mark.parametrize(
    ("number", "pairs", "slips"),
    [
        ("1", {"ImageNet-LT": "ImageNet-BAL"}, {("ImageNet-LT", "ViT"): (-7.0, -7.1)}),
        (
            "11",
            {"BCE with bias": "BCE without bias"},
            {
                ("BCE with bias", "many"): (-4.0, -3.9),
                ("BCE with bias", "medium"): (8.7, 8.6),
                ("BCE with bias", "few"): (14.7, 14.8),
            },
        ),
        (
            "6",
            {
                f"ViT-{s} Bal-{loss}": f"ViT-{s} {loss}"
                for s in "Tiny Small Base Large".split()
                for loss in ("CE", "BCE")
            },
            TABLE_6_SLIPS,
        ),
    ],
)
def test_livt_printed_differences_and_their_rounding_slips(number, pairs, slips):
    """Differences of the unrounded numbers, presumably: none is more than 0.1 off."""
    table = published.table("LiVT", number)
    found, compared = {}, 0
    for row, baseline in pairs.items():
        for column in [c.removesuffix("_delta") for c in table.columns if c.endswith("_delta")]:
            printed, calculated = table.loc[row, f"{column}_delta"], gain(table, row, baseline, column)
            compared += 1
            if printed != calculated:
                found[row, column] = (printed, calculated)
    assert found == slips
    assert compared == int(table.filter(like="_delta").notna().sum().sum())
    assert all(abs(printed - calculated) < ROUNDING for printed, calculated in found.values())


def test_livt_gains_on_inat18_over_ncl():
    table = published.table("LiVT", "3")
    assert (gain(table, "LiVT", "NCL", "all"), gain(table, "LiVT *", "NCL", "all")) == (1.9, 6.8)


def test_livt_settings_contradict_the_text():
    settings = published.table("LiVT", "10")
    assert settings.loc["BFT AdamW beta2"].eq(0.99).all()  # 0.95 in section 5.2
    assert settings.loc["BFT tau", "Places-LT"] == 1.05  # 1 in section 5.2, "for all experiments"


# DeiT-LT

CIFAR_ROWS = re.compile(r"(?:, (CIFAR-100?-LT rho \d+))?$")


@pytest.mark.parametrize("number", ["6", "S.3"])
def test_deit_lt_cifar_rows_use_the_groups_of_its_code(number):
    table = published.table("DeiT-LT", number)
    for row in table.index:
        dataset = CIFAR_ROWS.search(row)[1] or "CIFAR-10-LT rho 100"
        assert fits(table.loc[[row]], DEIT_GROUPS, code_sizes(dataset)) == {row}
    assert code_sizes("CIFAR-100-LT rho 100") == code_sizes("CIFAR-100-LT rho 50") == [36, 35, 29]
    assert threshold_sizes("CIFAR-100-LT rho 100") == [35, 35, 30]
    assert threshold_sizes("CIFAR-100-LT rho 50") == [41, 41, 18]


def test_deit_lt_largest_student_averages_as_printed():
    table = published.table("DeiT-LT", "6").loc[["DeiT-LT B, CIFAR-100-LT rho 100"]]
    assert overall(table, DEIT_GROUPS, [36, 35, 29]).round(2).tolist() == [55.54]  # its README's groups give 54.70


def test_deit_lt_imagenet_rows_mix_two_definitions_of_groups():
    table = published.table("DeiT-LT", "3")
    code, thresholds = code_sizes("ImageNet-LT"), threshold_sizes("ImageNet-LT")
    assert (code, thresholds) == ([390, 445, 165], [385, 479, 136])
    by_code, by_threshold = fits(table, DEIT_GROUPS, code), fits(table, DEIT_GROUPS, thresholds)
    assert by_code == {"ViT", "DeiT-LT (L-D-SAM)", "MiSLAS"}  # MiSLAS is copied, and fits by chance
    assert set(table.index) - by_code - by_threshold == {"L-D-SAM teacher"}
    assert not by_code & by_threshold
    by_code, by_threshold = overall(table, DEIT_GROUPS, code), overall(table, DEIT_GROUPS, thresholds)
    assert by_code[["ViT", "DeiT-LT (L-D-SAM)", "L-D-SAM teacher"]].round(2).tolist() == [37.42, 55.58, 52.78]
    paco = ["DeiT-LT (PaCo+SAM)", "PaCo+SAM teacher", "L-D-SAM teacher"]
    assert by_threshold[paco].round(2).tolist() == [59.01, 57.42, 53.29]


def test_deit_lt_inat_rows_by_threshold_except_imbsam():
    table = published.table("DeiT-LT", "4")
    code, thresholds = code_sizes("iNat18"), threshold_sizes("iNat18")
    assert (code, thresholds) == ([842, 3701, 3599], [842, 4076, 3224])
    assert set(table.index) - fits(table, DEIT_GROUPS, thresholds) == {"ImbSAM"}
    assert "PaCo+SAM teacher" not in fits(table, DEIT_GROUPS, code)
    assert overall(table, DEIT_GROUPS, thresholds)["ImbSAM"].round(1) == 72.2  # printed: 71.1


def test_deit_lt_experts_by_threshold_except_cls_on_imagenet():
    table = published.table("DeiT-LT", "S.4")
    outside = set()
    for dataset in ("ImageNet-LT", "iNat18"):
        part = table[table.index.str.endswith(dataset)]
        outside |= set(part.index) - fits(part, DEIT_GROUPS, threshold_sizes(dataset))
    assert outside == {"cls, ImageNet-LT"}
    cls = table.loc[["cls, ImageNet-LT"]]
    implied = [overall(cls, DEIT_GROUPS, s("ImageNet-LT")).round(2).item() for s in (threshold_sizes, code_sizes)]
    assert (cls["all"].item(), implied) == (47.5, [47.29, 46.66])


@pytest.mark.parametrize(("number", "dataset"), [("3", "ImageNet-LT"), ("4", "iNat18")])
def test_deit_lt_average_of_experts_is_the_main_row_up_to_one_head_accuracy(number, dataset):
    main = published.table("DeiT-LT", number).loc["DeiT-LT (PaCo+SAM)"]
    average = published.table("DeiT-LT", "S.4").loc[f"avg, {dataset}"]
    differs = {c: (main[c], average[c]) for c in ["all", *DEIT_GROUPS] if main[c] != average[c]}
    assert differs == ({"head": (66.6, 66.7)} if dataset == "ImageNet-LT" else {})


@pytest.mark.parametrize(
    ("number", "column", "row", "baseline", "stated"),
    [
        ("2", "CIFAR-10-LT rho 100", "DeiT-LT (PaCo+SAM)", "ViT", 24.9),
        ("2", "CIFAR-10-LT rho 100", "DeiT-LT (PaCo+SAM)", "DeiT-III", 28.4),
        ("2", "CIFAR-100-LT rho 100", "DeiT-LT (PaCo+SAM)", "ViT", 20.6),
        ("2", "CIFAR-100-LT rho 100", "DeiT-LT (PaCo+SAM)", "DeiT-III", 17.5),
        ("3", "all", "DeiT-LT (L-D-SAM)", "L-D-SAM teacher", 2.5),
        ("3", "all", "DeiT-LT (PaCo+SAM)", "PaCo+SAM teacher", 1.6),
        ("3", "all", "DeiT-LT (PaCo+SAM)", "ViT", 21.6),
        ("3", "all", "DeiT-LT (PaCo+SAM)", "DeiT-III", 10.7),
        ("4", "all", "DeiT-LT (L-D-SAM)", "L-D-SAM teacher", 2.8),  # "close to 3"
        ("4", "all", "DeiT-LT (PaCo+SAM)", "PaCo+SAM teacher", 1.7),
        ("5", "CIFAR-10-LT rho 100", "OOD distillation", "none of the three", 14.3),  # "around 14"
        ("5", "CIFAR-100-LT rho 100", "OOD distillation", "none of the three", 17.6),  # "around 18"
        ("5", "CIFAR-10-LT rho 100", "OOD distillation, DRW, SAM", "OOD distillation", 3.0),
        ("5", "CIFAR-100-LT rho 100", "OOD distillation, DRW, SAM", "OOD distillation", 6.7),
        ("S.3", "tail", "dist", "cls", 33.3),  # "almost 33"
        ("S.4", "head", "cls, ImageNet-LT", "dist, ImageNet-LT", 11.1),  # "approximately 11"
    ],
)
def test_deit_lt_stated_gains(number, column, row, baseline, stated):
    assert gain(published.table("DeiT-LT", number), row, baseline, column) == stated


@pytest.mark.parametrize(("data", "stated"), [("CIFAR-10-LT", 1.9), ("CIFAR-100-LT", 4.5)])
def test_deit_lt_average_gain_over_the_teachers(data, stated):
    table = published.table("DeiT-LT", "2")
    gains = [
        gain(table, f"DeiT-LT ({teacher})", f"{teacher} teacher", f"{data} rho {rho}")
        for teacher in ("L-D-SAM", "PaCo+SAM")
        for rho in (50, 100)
    ]
    assert np.mean(gains) == pytest.approx(stated, abs=0.05)


def test_deit_lt_training_time_falls_by_more_than_the_stated_13_hours():
    table = published.table("DeiT-LT", "1")
    regnet, small = "RegNetY strong mixup, student strong mixup", "ResNet-32 strong mixup, student strong mixup"
    assert gain(table, regnet, small, "hours") == 14.3
    assert gain(table, regnet, "ResNet-32 strong, student strong", "hours") == 15.5  # without mixup
    assert table.loc[small, "hours"] == 19.0  # "about 15 hours" in supplement H


def test_deit_lt_repeats_itself_consistently():
    main, parts = published.table("DeiT-LT", "2"), published.table("DeiT-LT", "5")
    sizes, settings = published.table("DeiT-LT", "6"), published.table("DeiT-LT", "S.1")
    for column in parts.columns:
        assert parts.loc["none of the three", column] == main.loc["DeiT", column]
        assert parts.loc["OOD distillation, DRW, SAM", column] == main.loc["DeiT-LT (PaCo+SAM)", column]
    assert sizes.loc["DeiT-LT B", "all"] == main.loc["DeiT-LT (PaCo+SAM)", "CIFAR-10-LT rho 100"]
    assert published.table("DeiT-LT", "1").loc["RegNetY strong mixup, student strong mixup", "student"] == 70.2
    assert (settings.loc["epochs"] - settings.loc["DRW starting epoch"]).tolist() == [100, 100, 200, 100]
