"""Data sets: the published selections, every layout of files, and what is wrong with some of them."""

import hashlib
import io
import json
import os
import pickle
import re
import time
import warnings
from pathlib import Path
from urllib.error import URLError

from ltvit_lib import data, files, longtail

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.datasets.cifar
from conftest import refused
from PIL import Image, features
from torchvision.datasets import CIFAR10

SIZE = 8


def picture(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE), mode: str = "RGB") -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def folders(root: Path, counts: dict[str, int], **options) -> Path:
    """Class folders of PNG files; picture i of a class has seed i."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(i, **options).save(root / name / f"{i:03}.png")
    return root


def parquet(
    path: Path, labels: list, label: str = "label", image: str = "image", names=None, cells=None, **more
) -> Path:
    """A parquet file of PNG images, row i with seed i, in Hugging Face's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = cells or [{"bytes": encoded(picture(i)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({image: cells, label: labels} | more)
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7)
    return path


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture(seed)).transpose(2, 0, 1).copy())


# --- digits ----------------------------------------------------------------------------------------------------


def test_digits_have_the_long_tail_of_the_recipes():
    split = data.load("digits", rho=40)
    assert split.counts == longtail.exponential_counts(120, 10, 40)
    assert (len(split.train), len(split.test), split.counts[0], split.counts[-1]) == (347, 500, 120, 3)
    assert split.train.images.shape == (347, 1, 8, 8) and split.train.images.dtype == torch.uint8
    assert split.train.targets.dtype == torch.int64
    assert torch.bincount(split.test.targets).tolist() == [50] * 10
    assert data.load("digits").digest == split.digest  # rho = 40 is the default


def test_digits_differ_by_seed_in_training_only():
    first, second = (data.load("digits", seed=s) for s in (0, 1))
    assert first.digest == data.load("digits", seed=0).digest != second.digest
    assert torch.equal(first.test.images, second.test.images)
    assert first.counts == second.counts and first.mean == second.mean


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_digits_test_images_are_never_trained_on(seed):
    rows = lambda images: {hashlib.sha256(i.numpy()).digest() for i in images}  # noqa: E731
    split = data.load("digits", per_class=120, seed=seed)
    assert len(rows(split.train.images)) == 1200
    assert not rows(split.train.images) & rows(split.test.images)


def test_balanced_subset_of_digits():
    assert data.load("digits", per_class=7).counts == [7] * 10


def test_rho_1_is_balanced():
    assert data.load("digits", rho=1, n_max=20).counts == [20] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rho=0.5), "rho"),
        (dict(rho=40, per_class=3), "exclude each other"),
        (dict(n_max=0), "n_max"),
        (dict(n_max=1000), "n_max"),
        (dict(per_class=1000), "per_class"),
        (dict(rho=1000), "rho"),
    ],
)
def test_impossible_selections_are_refused(options, message):
    refused(lambda: data.load("digits", **options), message)


def test_unknown_name_says_what_is_known():
    refused(lambda: data.load("cifar11"), "'cifar11': give digits, cifar10, cifar100 or a path")


# --- Split -----------------------------------------------------------------------------------------------------


def test_validation_is_a_stratified_tenth_of_at_least_two(tiny_longtail):
    split = tiny_longtail.with_validation(seed=3)
    assert torch.bincount(split.val.targets).tolist() == [4, 2, 2, 2, 2]
    assert split.counts == [36, 20, 10, 5, 2]
    assert torch.equal(split.test.images, tiny_longtail.test.images)
    assert split.digest == tiny_longtail.with_validation(seed=3).digest != tiny_longtail.digest


def test_digest_follows_content_and_order(tiny_longtail):
    train = tiny_longtail.train
    assert re.fullmatch("[0-9a-f]{12}", tiny_longtail.digest)
    digest = hashlib.sha256(train.images.numpy().tobytes() + train.targets.numpy().tobytes()).hexdigest()
    assert tiny_longtail.digest == digest[:12]


def test_groups_go_by_frequency_whatever_the_order_of_classes(tiny_longtail):
    groups = tiny_longtail.groups
    assert {k: v.tolist() for k, v in groups.items()} == {
        k: v.tolist() for k, v in longtail.index_groups(5, (1, 3)).items()
    }
    back = data.Images(tiny_longtail.train.images, 4 - tiny_longtail.train.targets)
    reverse = data.replace(tiny_longtail, train=back).groups
    assert all(torch.equal(reverse[k], groups[k].flip(0)) for k in groups)


def test_subset_takes_rows_in_the_order_asked(tiny_longtail):
    part = tiny_longtail.train.subset(np.array([80, 3]))
    assert torch.equal(part.images, tiny_longtail.train.images[[80, 3]]) and len(part) == 2


# --- real CIFAR-10 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_cifar10():
    """CIFAR-10-LT, rho = 100, the processor seconds it took and how many images were decoded."""
    folder = os.environ.get("LTVIT_DATA")
    if not folder or not any(Path(folder, "cifar10").rglob("*.parquet")):
        pytest.skip("real CIFAR-10 needs LTVIT_DATA to name a folder with cifar10/ in parquet files")
    decoded, decode = [], data._decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_decode", lambda *a: decoded.append(1) or decode(*a))
        began = time.process_time()
        split = data.load("cifar10", rho=100)
        return split, time.process_time() - began, len(decoded)


def test_real_cifar10_is_the_published_selection(real_cifar10):
    split, _, _ = real_cifar10
    assert split.counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert torch.bincount(split.test.targets).tolist() == [1000] * 10
    assert split.train.images.shape == (12_406, 3, 32, 32) and split.train.images.dtype == torch.uint8
    assert split.digest == "abd3ec3e82d5"  # of pixels equal to the official archive's
    assert split.classes[0] == "airplane" and split.classes[9] == "truck"


def test_real_cifar10_decodes_the_selected_rows_only_and_in_seconds(real_cifar10):
    _, seconds, decoded = real_cifar10
    assert decoded == 12_406 + 10_000
    assert seconds < 6


# --- CIFAR from the official archive ---------------------------------------------------------------------------


def archive(root: Path, monkeypatch, per_batch: int = 20) -> Path:
    """A small archive in the official layout, whose md5 sums torchvision is made to expect."""
    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def written(name: str, content: dict) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        rows = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        return [name, written(name, {"data": rows, "labels": [i % 10 for i in range(per_batch)]})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    names = [f"class {i}" for i in range(10)]
    md5 = written("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    monkeypatch.setattr(data, "CIFAR_SIZES", (5 * per_batch, per_batch))
    return base


def no_network(*_, **__):
    raise URLError("no network here")


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty data folder, and a torchvision that cannot download."""
    monkeypatch.setenv("LTVIT_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    return tmp_path


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_official_archive(offline, monkeypatch, below):
    base = archive(offline / below, monkeypatch)
    split = data.load("cifar10", rho=5)
    assert split.counts == longtail.exponential_counts(10, 10, 5)
    raw = pickle.loads((base / "data_batch_1").read_bytes())["data"][0].reshape(3, 32, 32)
    whole = data.load("cifar10")
    assert torch.equal(whole.train.images[0], torch.from_numpy(raw)) and len(whole.train) == 100
    assert (whole.mean, whole.std) == data.STATISTICS["cifar10"]


def test_an_archive_with_a_wrong_md5_is_not_unpickled(offline, monkeypatch):
    base, trace = archive(offline, monkeypatch), offline / "executed"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    (base / "data_batch_3").write_bytes(pickle.dumps(Malicious()))
    refused(lambda: data.load("cifar10"), "cifar10 is not complete", "no network here", "LTVIT_DATA")
    assert not trace.exists()


def test_no_cifar_and_no_network_is_one_sentence(offline):
    refused(
        lambda: data.load("cifar100"), f"cifar100 is not complete under {offline}", "cifar-100-python/ or the train"
    )


def test_cifar_is_downloaded_where_nothing_is_there(offline, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torchvision.datasets.cifar,
        "download_and_extract_archive",
        lambda url, root, **how: asked.append(how["md5"]) or archive(Path(root), monkeypatch),
    )
    assert len(data.load("cifar10").train) == 100
    assert asked == ["c58f30108f718f92721af3b95e74349a"]  # the official one


def test_a_missing_data_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LTVIT_DATA", str(tmp_path / "nowhere"))
    refused(lambda: data.load("cifar10"), "LTVIT_DATA names .*nowhere, which is not a folder")


# --- CIFAR from parquet ----------------------------------------------------------------------------------------


def cifar100(root: Path, monkeypatch, names=None) -> Path:
    folder = root / "cifar100" / "some_version"
    for part, count in (("train-00000-of-00001", 3), ("test-00000-of-00001", 1)):
        labels = list(range(100)) * count
        coarse = {"coarse_label": [c // 5 for c in labels]}
        parquet(folder / f"{part}.parquet", labels, "fine_label", "img", names, **coarse)
    monkeypatch.setattr(data, "CIFAR_SIZES", (300, 100))
    return folder


def test_cifar100_takes_the_fine_labels(offline, monkeypatch):
    cifar100(offline, monkeypatch, names=[f"thing {i}" for i in range(100)])
    split = data.load("cifar100", rho=3)
    assert split.counts == longtail.exponential_counts(3, 100, 3)
    assert split.classes[99] == "thing 99" and split.boundaries == (36, 71)
    rows = longtail.long_tailed_indices(np.arange(300) % 100, 3)
    assert torch.equal(split.train.images[5], pixels(rows[5]))


def test_only_one_part_of_cifar_is_noticed(offline, monkeypatch):
    (cifar100(offline, monkeypatch) / "test-00000-of-00001.parquet").unlink()
    refused(lambda: data.load("cifar100"), "holds the train parquet files of cifar100 but no test")


def test_a_truncated_parquet_is_named(offline, monkeypatch):
    file = cifar100(offline, monkeypatch) / "train-00000-of-00001.parquet"
    whole = file.read_bytes()
    for share in (0, 0.5, 0.99):
        file.write_bytes(whole[: int(share * len(whole))])
        refused(lambda: data.load("cifar100"), "cannot read .*train-00000-of-00001.parquet", "fetch it again")


def test_damage_inside_a_parquet_is_named(offline, monkeypatch):
    file = cifar100(offline, monkeypatch) / "train-00000-of-00001.parquet"
    whole = bytearray(file.read_bytes())
    whole[100 : len(whole) // 2] = bytes(len(whole) // 2 - 100)
    file.write_bytes(whole)
    refused(lambda: data.load("cifar100"), "train-00000-of-00001.parquet")


def test_a_missing_shard_is_noticed(offline, monkeypatch):
    cifar100(offline, monkeypatch)
    monkeypatch.setattr(data, "CIFAR_SIZES", (600, 100))
    refused(lambda: data.load("cifar100"), r"300 \+ 100 images instead of 600 \+ 100: fetch")


# --- your own: folders -----------------------------------------------------------------------------------------


def test_class_folders_hold_out_a_stratified_tenth(tmp_path):
    split = data.load(str(folders(tmp_path, {"dog": 30, "ant": 4, "cat": 12})), image_size=SIZE)
    assert split.classes == ("ant", "cat", "dog")
    assert split.counts == [2, 10, 27]
    assert torch.bincount(split.test.targets).tolist() == [2, 2, 3]
    assert split.train.images.shape == (39, 3, SIZE, SIZE) and split.train.images.dtype == torch.uint8
    pool = {hashlib.sha256(i.numpy()).digest() for i in split.train.images[split.train.targets == 2]}
    held = {hashlib.sha256(i.numpy()).digest() for i in split.test.images[split.test.targets == 2]}
    assert len(pool) == 27 and not pool & held


@pytest.mark.parametrize(
    ("parts", "used"),
    [
        (("train", "test"), "test"),
        (("train", "val"), "val"),
        (("train", "validation", "test"), "test"),
        (("Train", "Test"), "Test"),
        (("TRAIN", "VAL"), "VAL"),
        (("training", "testing"), "testing"),
        (("train", "Test", "dev"), "Test"),
        (("train", "dev"), "dev"),
        (("train", "val", "Evaluation"), "Evaluation"),
    ],
)
def test_given_parts_are_used(tmp_path, parts, used):
    for i, part in enumerate(parts):
        folders(tmp_path / part, {"a": 3 + i, "b": 2 + i})
    split = data.load(tmp_path, image_size=SIZE)
    assert split.counts == [3, 2]
    assert torch.bincount(split.test.targets).tolist() == [3 + parts.index(used), 2 + parts.index(used)]


def test_a_class_called_train_is_a_class(tmp_path):
    split = data.load(folders(tmp_path, {"bus": 4, "train": 5, "test": 3}), image_size=SIZE)
    assert split.classes == ("bus", "test", "train")


def test_images_beside_train_must_be_a_part(tmp_path):
    folders(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("no image")
    assert data.load(tmp_path, image_size=SIZE).counts == [1, 1]
    folders(tmp_path / "holdout", {"a": 3, "b": 3})
    refused(lambda: data.load(tmp_path), "holdout has images beside train, but no part's name: call it test or val")


def test_two_folders_of_one_part_are_refused(tmp_path):
    for name in ("dev", "train", "Val"):
        folders(tmp_path / name, {"a": 3, "b": 3})
    refused(lambda: data.load(tmp_path), "Val and .*dev are both the val part: merge or rename")


def test_a_long_tail_is_cut_from_your_own_images(tmp_path):
    folders(tmp_path / "train", {"a": 8, "b": 8})
    folders(tmp_path / "test", {"a": 1, "b": 1})
    assert data.load(tmp_path, rho=4, image_size=SIZE).counts == [8, 2]
    assert data.load(tmp_path, per_class=3, image_size=SIZE).counts == [3, 3]


def test_groups_of_your_own_images_follow_the_counts(tmp_path):
    split = data.load(folders(tmp_path, {"a": 5, "b": 140, "c": 30}, size=(2, 2)), image_size=2)
    assert split.boundaries == (1, 2)  # one class above 100, one more from 20 on
    assert {k: v.tolist() for k, v in split.groups.items()} == {
        "many": [False, True, False], "medium": [False, False, True], "few": [True, False, False]
    }  # fmt: skip


def test_only_selected_files_are_decoded(tmp_path):
    folders(tmp_path / "train", {"a": 8, "b": 8})
    folders(tmp_path / "test", {"a": 1, "b": 1})
    kept = longtail.balanced_indices(np.repeat([0, 1], 8), 3)
    spared = next(i for i in range(8) if i not in kept)
    (tmp_path / "train" / "a" / f"{spared:03}.png").write_bytes(b"damaged")
    assert data.load(tmp_path, per_class=3, image_size=SIZE).counts == [3, 3]
    refused(lambda: data.load(tmp_path, image_size=SIZE), rf"{spared:03}.png")


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".cache", "@eaDir", "__MACOSX"])
def test_hidden_files_and_folders_are_no_data(tmp_path, hidden):
    for part in ("train", "test"):
        folders(tmp_path / part, {"a": 2, "b": 2})
        for place in (tmp_path, tmp_path / part, tmp_path / part / "a" / "more"):
            folders(place, {hidden: 1})
    (tmp_path / "train" / "a" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    parquet(tmp_path / "train" / hidden / "x.parquet", [0, 1])
    with warnings.catch_warnings(action="error"):
        split = data.load(tmp_path, image_size=SIZE)
    assert (split.classes, split.counts, len(split.test)) == (("a", "b"), [2, 2], 4)


def test_every_suffix_that_pillow_decodes_is_read(tmp_path):
    folders(tmp_path, {"a": 3, "b": 3})
    for suffix in files.IMAGE_SUFFIXES:
        picture(size=(16, 16)).save(tmp_path / "a" / f"x{suffix.upper()}")
    assert {".jpg", ".jpe", ".jfif", ".tga", ".pgm"} < files.IMAGE_SUFFIXES
    assert (".jp2" in files.IMAGE_SUFFIXES) == features.check("jpg_2000")
    split = data.load(tmp_path, image_size=SIZE)
    assert len(split.train) + len(split.test) == 6 + len(files.IMAGE_SUFFIXES)


def test_files_left_out_are_counted_in_one_warning(tmp_path):
    for part in ("train", "test"):
        folders(tmp_path / part, {"a": 3, "b": 3})
    for name in ("train/a/0.HEIC", "train/b/1.heic", "test/a/2.mp4", "test/b/bare", "test/b/Thumbs.db"):
        (tmp_path / name).write_bytes(b"other")
    with pytest.warns(UserWarning) as caught:
        data.load(tmp_path, image_size=SIZE)
    (warning,) = caught
    assert warning.filename == __file__
    assert str(warning.message) == (
        f"4 files under {tmp_path} are left out for their suffix (.heic, .mp4, none): convert what is an image to .png "
        "or .jpg"
    )


def test_linked_folders_are_followed_once(tmp_path):
    own = folders(tmp_path / "own", {"a": 3, "b": 3})
    elsewhere = folders(tmp_path / "elsewhere", {"some": 4, "c": 5})
    (own / "a" / "link").symlink_to(elsewhere / "some")
    (own / "a" / "again").symlink_to(elsewhere / "some")
    (own / "a" / "circle").symlink_to(own / "a")
    (own / "c").symlink_to(elsewhere / "c")
    assert data.load(own, image_size=SIZE).counts == [3 + 4 - 2, 3 - 2, 5 - 2]


def test_statistics_are_those_of_the_training_images(tmp_path):
    for part, value in (("train", 51), ("test", 255)):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i, grey in enumerate((value, 0)):
                Image.new("RGB", (4, 4), (grey, 2 * grey % 256, 0)).save(tmp_path / part / name / f"{i}.png")
    split = data.load(tmp_path, image_size=4)
    assert split.mean == (0.1, 0.2, 0.0)
    assert split.std == (0.1, 0.2, 0.001)  # a constant channel keeps a floor to divide by


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 5}, "at least two class folders"),
        ({}, "at least two class folders"),
        ({"a": 5, "b": 0}, "no training images of b .*: add some or drop the class"),
        ({"a": 5, "b": 2}, r"class b .* has 2 image\(s\), of which two would be held out"),
    ],
)
def test_folders_that_cannot_be_trained_on(tmp_path, counts, message):
    refused(lambda: data.load(folders(tmp_path, counts), image_size=SIZE), message)


def test_a_class_that_training_lacks_is_named(tmp_path):
    folders(tmp_path / "train", {"a": 3, "b": 3})
    folders(tmp_path / "test", {"a": 3, "unicorn": 3})
    refused(lambda: data.load(tmp_path, image_size=SIZE), r"test has class folders that .*train lacks \(unicorn\)")


def test_an_empty_test_part_is_named(tmp_path):
    folders(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "test").mkdir()
    refused(lambda: data.load(tmp_path, image_size=SIZE), "test has no images")


def test_a_bad_image_size_is_refused(tmp_path):
    refused(lambda: data.load(folders(tmp_path, {"a": 3, "b": 3}), image_size=0), "image_size must be a positive")


@pytest.mark.parametrize("make", [folders, lambda path, counts: parquet(path / "train.parquet", [0, 1] * 8).parent])
def test_the_digest_of_your_own_images_is_that_of_any_resolution(tmp_path, monkeypatch, make):
    path = make(tmp_path, {"ant": 5, "bee": 9})
    split = data.load(path, image_size=SIZE)
    again = data.load(path, image_size=2 * SIZE)
    assert again.train.images.shape[-1] == 2 * SIZE and again.digest == split.digest
    assert again.with_validation(1).digest == split.with_validation(1).digest != split.digest
    if make is folders:
        monkeypatch.setattr(data, "MEMORY_BOUND", 1)  # images stay in their files
        assert isinstance(data.load(path, image_size=SIZE).train.images, files.Files)
        assert data.load(path, image_size=SIZE).digest == split.digest
        for file in (path / "bee").iterdir():
            picture(99).resize((40, 40)).save(file)
        assert data.load(path, image_size=SIZE).digest != split.digest


# --- your own: parquet -----------------------------------------------------------------------------------------


def test_parquet_with_numbers(tmp_path):
    parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 2] * 5)
    parquet(tmp_path / "train-00001-of-00002.parquet", [2, 1, 0] * 3)
    parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1, 2])
    split = data.load(tmp_path, image_size=SIZE)
    assert split.classes == ("0", "1", "2") and split.counts == [8, 8, 8]
    assert split.train.targets[15:18].tolist() == [2, 1, 0]
    assert torch.equal(split.train.images[14], pixels(14)) and torch.equal(split.train.images[16], pixels(1))


@pytest.mark.parametrize("kind", ["string", "dictionary"])
def test_parquet_with_names(tmp_path, kind):
    labels = pa.array(["owl", "bat", "owl", "cow"] * 4)
    parquet(tmp_path / "train.parquet", labels.dictionary_encode() if kind == "dictionary" else labels, cells=[
        encoded(picture(i)) for i in range(16)])  # fmt: skip
    parquet(tmp_path / "test.parquet", ["cow", "owl"])
    split = data.load(tmp_path, image_size=SIZE)
    assert split.classes == ("bat", "cow", "owl") and split.counts == [4, 4, 8]
    assert split.train.targets[:4].tolist() == [2, 0, 2, 1] and split.test.targets.tolist() == [1, 2]


def test_parquet_with_hugging_face_names(tmp_path):
    parquet(tmp_path / "data.parquet", [1, 0] * 10, names=["zebra", "ape"])
    split = data.load(tmp_path / "data.parquet", image_size=SIZE)
    assert split.classes == ("zebra", "ape") and split.counts == [8, 8] and split.name == "data"
    assert torch.bincount(split.test.targets).tolist() == [2, 2]


@pytest.mark.parametrize("layout", ["{part}/0000.parquet", "data/{part}-00000-of-00001.parquet", "{part}.parquet"])
def test_parquet_parts_are_told_by_file_or_folder(tmp_path, layout):
    for part, count in (("train", 4), ("validation", 3), ("test", 2)):
        parquet(tmp_path / layout.format(part=part), [0, 1] * count)
    split = data.load(tmp_path, image_size=SIZE)
    assert (split.counts, len(split.test)) == ([4, 4], 4)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("train", "eval"),
        ("training", "dev-00000-of-00001"),
        ("train", "birds_test"),
        ("birds_train", "birds_test"),
        ("TRAIN/en/0", "Test/en/0"),
    ],
)
def test_parquet_parts_have_many_names(tmp_path, train, test):
    parquet(tmp_path / f"{train}.parquet", [0, 1] * 4)
    parquet(tmp_path / f"{test}.parquet", [0, 1])
    split = data.load(tmp_path, image_size=SIZE)
    assert (split.counts, len(split.test)) == ([4, 4], 2)


def test_a_parquet_file_of_an_unknown_part_is_refused_beside_known_ones(tmp_path):
    for name in ("data-0", "data-1"):
        parquet(tmp_path / f"{name}.parquet", [0, 1] * 4)
    assert data.load(tmp_path, image_size=SIZE).counts == [6, 6]
    parquet(tmp_path / "test.parquet", [0, 1])
    refused(lambda: data.load(tmp_path), "data-0.parquet names no part, as other files under .*: begin its name with")


def test_a_selection_from_parquet_keeps_its_order(tmp_path):
    labels = [0, 1] * 12
    parquet(tmp_path / "train.parquet", labels)
    parquet(tmp_path / "test.parquet", [0, 1])
    split = data.load(tmp_path, rho=3, seed=5, image_size=SIZE)
    rows = longtail.long_tailed_indices(np.array(labels), 3, seed=5)
    assert torch.equal(split.train.images, torch.stack([pixels(r) for r in rows]))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 3] * 3, {}, "no training images of 2"),
        ([0, 1, -1] * 3, {}, r"label -1 outside 0..1"),
        ([0, 1, 10**9] * 3, {}, "label 1000000000 outside"),
        ([0, 1, 2] * 3, dict(names=["a", "b"]), r"label 2 outside 0..1"),
        ([0, 1] * 3, dict(names=["a", "b", "c"]), "no training images of c"),
        ([0.5, 1.0] * 3, {}, "a whole number or a name in every row"),
        ([0, None] * 3, {}, "a whole number or a name in every row"),
        ([0, 1] * 3, dict(label="colour"), "has columns image, colour: call the images .* and the labels label"),
        ([0, 1] * 3, dict(image="photo"), "has columns photo, label: call the images image"),
        ([0, 1] * 3, dict(cells=[{"bytes": None, "path": "a.png"}] * 6), "row . of .*x.parquet has no image bytes"),
        ([0, 1] * 3, dict(cells=["a.png"] * 6), "row . of .*x.parquet has no image bytes"),
    ],
)
def test_parquet_that_cannot_be_trained_on(tmp_path, labels, options, message):
    file = parquet(tmp_path / "x.parquet", labels, **options)
    refused(lambda: data.load(file, image_size=SIZE), message)


def test_test_labels_must_be_known(tmp_path):
    parquet(tmp_path / "train.parquet", ["a", "b"] * 3)
    parquet(tmp_path / "test.parquet", ["a", "c"])
    refused(lambda: data.load(tmp_path), r"labels of test that no training image has \(c\)")
    parquet(tmp_path / "train.parquet", [0, 1] * 3)
    parquet(tmp_path / "test.parquet", [0, 2])
    refused(lambda: data.load(tmp_path), "column label of test has label 2 outside 0..1")
    parquet(tmp_path / "test.parquet", ["a", "b"])
    refused(lambda: data.load(tmp_path), "names in some files and numbers in others")


def test_a_part_without_rows_is_named_and_a_file_without_rows_is_no_harm(tmp_path):
    for labels in ([0, 1] * 4, ["a", "b"] * 4):
        parquet(tmp_path / "train-0.parquet", labels)
        parquet(tmp_path / "train-1.parquet", pa.array([], type=pa.array(labels).type))
        parquet(tmp_path / "test.parquet", labels[:2])
        assert data.load(tmp_path, image_size=SIZE).counts == [4, 4]
        for part in ("train-0", "test"):
            parquet(tmp_path / f"{part}.parquet", pa.array([], type=pa.array(labels).type))
            refused(lambda: data.load(tmp_path, image_size=SIZE), f"{part}.parquet and its like have no rows")
            parquet(tmp_path / f"{part}.parquet", labels)


def test_only_a_test_file_is_noticed(tmp_path):
    parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1])
    refused(lambda: data.load(tmp_path), "has only test files: add train")


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_text("hello")
    refused(lambda: data.load(tmp_path / "x.parquet"), "cannot read .*x.parquet as parquet")


# --- decoding --------------------------------------------------------------------------------------------------


def decoded(content: bytes, size: int | None = None) -> np.ndarray:
    return data._decode(content, "here", size)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = picture(1, mode=mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    out = decoded(encoded(image, form))
    assert out.shape == (3, SIZE, SIZE) and out.dtype == np.uint8
    assert np.array_equal(out, np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    out = decoded(encoded(Image.fromarray(grey)))
    assert np.array_equal(out, np.broadcast_to((grey // 256).astype(np.uint8), (3, 8, 8)))


def test_pixels_without_a_range_are_refused():
    refused(lambda: decoded(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")), "mode F")


def test_exif_rotation_is_applied():
    image = picture(2, size=(6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    out = decoded(encoded(image, exif=exif))
    assert out.shape == (3, 6, 4)
    assert np.array_equal(out, np.asarray(image.transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1))


def test_the_centre_square_is_taken():
    wide = Image.new("RGB", (24, 8), "red")
    wide.paste("blue", (8, 0, 16, 8))
    out = decoded(encoded(wide), 8)
    assert out.shape == (3, 8, 8) and (out[2] == 255).all() and not out[0].any()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_truncated_images_are_named(form, share):
    whole = encoded(picture(3, size=(40, 40)), form)
    refused(lambda: decoded(whole[: int(share * len(whole))]), "cannot decode the image at here", "replace it, for")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_give_an_image_or_one_sentence(seed):
    rng = np.random.default_rng(seed)
    form = ["PNG", "JPEG", "WEBP", "GIF", "TIFF"][seed % 5]
    content = np.frombuffer(encoded(picture(4, size=(20, 20)), form), np.uint8).copy()
    content[rng.integers(0, len(content), 10)] = rng.integers(0, 256, 10)
    try:
        assert decoded(content.tobytes(), SIZE).shape == (3, SIZE, SIZE)
    except ValueError as error:
        assert str(error).startswith("cannot decode the image at here") and "\n" not in str(error)


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(lambda: decoded(encoded(picture(0, size=(30, 30)))), "exceeds limit", "replace it, for")


def test_a_corrupt_file_is_named(tmp_path):
    folders(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "b" / "002.png").write_bytes(encoded(picture())[:50])
    refused(lambda: data.load(tmp_path, image_size=SIZE), "b/002.png")


def test_all_corrupt_files_are_named_at_once(tmp_path):
    for part in ("train", "test"):
        folders(tmp_path / part, {"a": 8, "b": 4})
    for i in (1, 2):
        (tmp_path / "train" / "b" / f"{i:03}.png").write_bytes(b"damaged")
    says = "cannot decode 2 images, at [^ ]*b/001.png, [^ ]*b/002.png: replace them, for a data set without them"
    refused(lambda: data.load(tmp_path, image_size=SIZE), says)
    for i in range(8):
        (tmp_path / "train" / "a" / f"{i:03}.png").write_bytes(b"damaged")
    refused(lambda: data.load(tmp_path, image_size=SIZE), r"cannot decode 10 images, at [^:]*a/004.png, \.\.\.: ")


def test_a_corrupt_row_is_named(tmp_path):
    cells = [{"bytes": encoded(picture(i)), "path": None} for i in range(12)]
    cells[9]["bytes"] = b"damaged"
    parquet(tmp_path / "train-0.parquet", [0, 1] * 4)
    parquet(tmp_path / "train-1.parquet", [0, 1] * 6, cells=cells)
    parquet(tmp_path / "test.parquet", [0, 1])
    refused(lambda: data.load(tmp_path, image_size=SIZE), "row 9 of .*train-1.parquet")


def test_images_of_several_sizes_need_one(tmp_path):
    sources = [(i, encoded(picture(size=(6 + i, 5))), f"file {i}") for i in range(2)]
    refused(lambda: data._decode_all(2, sources, None), "file 1 has 7 x 5 instead of 6 x 5 pixels")


def test_pixels_are_held_once(tmp_path, monkeypatch):
    """Decoding fills one array; nothing of its size is copied afterwards."""
    sizes, empty = [], np.empty
    monkeypatch.setattr(data.np, "empty", lambda *a, **k: sizes.append(a[0]) or empty(*a, **k))
    folders(tmp_path / "train", {"a": 3, "b": 3})
    folders(tmp_path / "test", {"a": 1, "b": 1})
    split = data.load(tmp_path, image_size=SIZE)
    assert (6, 3, SIZE, SIZE) in sizes
    assert split.train.images.untyped_storage().nbytes() == 6 * 3 * SIZE * SIZE
    assert split.train.images.is_contiguous()
