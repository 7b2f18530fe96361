"""Figures draw what their table says, and are saved with it."""

from ltvit_lib import plots

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture
def shots() -> pd.DataFrame:
    rows = [
        ("ViT", g, a + s / 100, s)
        for s in (0, 2)
        for g, a in (("all", 0.5), ("head", 0.9), ("mid", 0.4), ("tail", 0.1))
    ]
    return pd.DataFrame(rows, columns=["method", "group", "accuracy", "seed"])


def test_bars_are_means_in_percent_and_whiskers_sample_sd(shots):
    ax = plots.plot_shot_accuracy(shots)
    assert [round(p.get_height(), 6) for p in ax.patches] == [51, 91, 41, 11]
    whisker = ax.collections[0].get_segments()[0]
    assert np.ptp(whisker[:, 1]) / 2 == pytest.approx(np.sqrt(2))


def test_empty_group_leaves_a_gap(shots):
    shots = shots[shots["group"] != "tail"]
    heights = [p.get_height() for p in plots.plot_shot_accuracy(shots).patches]
    assert np.isnan(heights[-1]) and np.isfinite(heights[:-1]).all()


def test_confusion_rows_are_shares():
    picture = plots.plot_confusion([[3, 1], [0, 0]], ["a", "b"]).images[0].get_array()
    assert picture.tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_curves_count_epochs_from_one():
    ax = plots.plot_curves(pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0]}))
    assert ax.lines[0].get_xdata().tolist() == [1, 2]


def test_counts_are_sorted():
    assert plots.plot_counts({"a": [1, 5, 3]}).lines[0].get_ydata().tolist() == [5, 3, 1]


def test_images_keep_their_pixels():
    images = torch.rand(2, 1, 3, 3)
    shown = plots.show_images({"row": images}).axes[1].images[0].get_array()
    assert np.allclose(shown[..., 0], images[1, 0].numpy())


def test_saved_with_its_table_and_the_same_every_time(shots, tmp_path, monkeypatch):
    monkeypatch.setenv("LTVIT_FIGURES", str(tmp_path))
    pictures = []
    for _ in range(2):
        plots.save_figure(plots.plot_shot_accuracy(shots).figure, "bars", shots)
        pictures.append((tmp_path / "bars.svg").read_bytes())
    assert pictures[0] == pictures[1]
    assert pd.read_csv(tmp_path / "data" / "bars.csv").shape == shots.shape


@pytest.mark.parametrize("classes, panels", [(2, 3), (101, 1)])
def test_result_shows_what_was_answered_unless_there_are_too_many_classes(shots, classes, panels):
    fig = plots.plot_result(shots, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), [str(c) for c in range(classes)])
    assert len(fig.axes) == panels
    if panels > 1:  # the third is the colour bar
        assert fig.axes[1].images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]
