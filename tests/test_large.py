"""Sets that stay in their files: the published layouts, what is wrong with some, decoding ahead, and whole runs."""

import json
import os
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

from ltvit_lib import augment, data, files, jobs, large, longtail, published, recipes, runs, train

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

COUNTS = [7, 4, 3, 2]  # training images of four classes
WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
SMALL = large.Published(4, 16, 7, 2, 8)
BICUBIC = vision.InterpolationMode.BICUBIC
SIZE = 16
quiet = partial(train.fit, progress=False)


def picture(path: Path, seed: int, width: int = 24, height: int = 18) -> None:
    """A smooth little photograph: noise enlarged, so that JPEG keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def class_folders(root: Path, names: tuple[str, ...], counts: list[int], test: int = 2) -> Path:
    for c, (name, count) in enumerate(zip(names, counts, strict=True)):
        for i in range(count):
            picture(root / "train" / name / f"{name}_{i}.JPEG", 100 * c + i, 20 + 4 * i, 18 + c)
        for i in range(test):
            picture(root / "val" / name / f"val_{c}_{i}.JPEG", 1000 + 100 * c + i, 18, 26)
    return root


def lists(folder: Path, stem: str, images: Path, places: dict[str, str]) -> None:
    """OLTR's lists of all images below train/ and val/, in alphabetical order, renamed by `places`."""
    folder.mkdir(parents=True)
    for part, place in places.items():
        rows = sorted(images.glob(f"{place}/**/*.JPEG"))
        lines = (f"{f.relative_to(images)} {WNIDS.index(f.parent.name)}\n" for f in rows)
        (folder / f"{stem}_{part}.txt").write_text("".join(lines))


def inat_json(root: Path, part: str, rows: list[tuple[str, int]]) -> None:
    """The published structure: images and annotations by their own ids, not in one order."""
    content = {
        "images": [{"id": 50 + i, "file_name": name} for i, (name, _) in enumerate(rows)],
        "annotations": [{"id": i, "image_id": 50 + i, "category_id": c} for i, (_, c) in enumerate(rows)][::-1],
        "categories": [{"id": c, "name": f"species {c}"} for c in (3, 1, 0, 2)],
    }
    (root / f"{part}2018.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A data folder; whatever is expected of the published sets is expected of four classes."""
    monkeypatch.setenv("LTVIT_DATA", str(tmp_path))
    monkeypatch.setenv("LTVIT_WORKERS", "0")
    monkeypatch.setattr(large, "PUBLISHED", dict.fromkeys(large.PUBLISHED, SMALL))
    monkeypatch.setattr(large, "PER_CLASS", 2)
    monkeypatch.setattr(data, "BOUNDARIES", data.BOUNDARIES | {"imagenet_lt": (1, 3), "inat18": (1, 3)})
    return tmp_path


@pytest.fixture
def imagenet_lt(root) -> Path:
    images = class_folders(root / "imagenet", WNIDS, COUNTS)
    lists(root / "imagenet_lt", "ImageNet_LT", images, {"train": "train", "test": "val"})
    return root


@pytest.fixture
def split(imagenet_lt) -> data.Split:
    return data.load("imagenet_lt", image_size=SIZE)


# --- the published layouts -------------------------------------------------------------------------------------


def test_imagenet_lt(split):
    assert (split.name, split.counts, split.classes) == ("imagenet_lt", COUNTS, WNIDS)
    assert torch.bincount(split.test.targets).tolist() == [2] * 4
    assert split.mean == (0.479672, 0.457713, 0.407721) and split.boundaries == (1, 3)
    assert isinstance(split.train.images, files.Files) and split.train.images.shape == (16, 3, SIZE, SIZE)
    assert split.train.images[3].shape == (3, SIZE, SIZE)
    assert split.test.images.names[0] == b"val/n01440764/val_0_0.JPEG"


def test_imagenet_1k_and_the_balanced_subset_drawn_from_it(root):
    class_folders(root / "imagenet", WNIDS, COUNTS)
    whole = data.load("imagenet1k", image_size=SIZE)
    assert (whole.counts, whole.classes, whole.mean) == (COUNTS, WNIDS, data.STATISTICS["imagenet"][0])
    balanced, other = (data.load("imagenet_bal", seed=s, image_size=SIZE) for s in (0, 1))
    assert balanced.counts == [2] * 4 and balanced.mean == (0.480767, 0.457071, 0.407718)
    rows = longtail.balanced_indices(whole.train.targets, 2, seed=0)
    assert balanced.train.images.names.tolist() == whole.train.images.names[rows].tolist()
    assert balanced.digest != other.digest
    assert data.load("imagenet1k", per_class=1, image_size=SIZE).counts == [1] * 4


def test_places_lt(root):
    images = root / "places"
    for c, count in enumerate(COUNTS):
        for i in range(count):
            picture(images / "data_256" / WNIDS[c][0] / WNIDS[c] / f"{i:08}.JPEG", 10 * c + i)
        for i in range(2):
            picture(images / "val_256" / WNIDS[c] / f"Places365_val_{c}{i}.JPEG", 500 + 10 * c + i)
    lists(root / "places_lt", "Places_LT", images, {"train": "data_256", "test": "val_256"})
    split = data.load("places_lt", image_size=SIZE)
    assert split.counts == COUNTS and split.boundaries == (0, 0), "by thresholds: all are few"
    assert split.classes == tuple(f"n/{w}" for w in WNIDS)


def test_inaturalist_takes_the_category_ids_of_its_json(root):
    base, rows = root / "inat18", []
    for c, count in enumerate(COUNTS):
        for i in range(count):
            rows.append((f"train_val2018/Aves/{c}/{i}.jpg", c))
            picture(base / rows[-1][0], i)
    order = np.random.default_rng(0).permutation(len(rows))
    inat_json(base, "train", [rows[i] for i in order])
    inat_json(base, "val", [row for row in rows if row[0].endswith(("/0.jpg", "/1.jpg"))])
    split = data.load("inat18", image_size=SIZE)
    assert split.train.targets.tolist() == [rows[i][1] for i in order]
    assert split.classes == tuple(f"species {c}" for c in range(4))
    assert (split.counts, split.boundaries, split.mean) == (COUNTS, (1, 3), (0.466, 0.471, 0.380))
    for name, target in zip(split.train.images.names, split.train.targets.tolist()):
        assert name.split(b"/")[2] == str(target).encode()


def test_inaturalist_folders_are_sorted_by_number(root):
    class_folders(root / "inat18", ("0", "2", "10", "100"), COUNTS)
    split = data.load("inat18", image_size=SIZE)
    assert split.classes == ("0", "2", "10", "100") and split.counts == COUNTS, "not 0, 10, 100, 2"


def test_the_published_totals():
    """Against the class counts that LiVT's logs and LADE's lists hold."""
    counts = pd.read_csv(published.PATH.with_name("class_counts.csv")).groupby("dataset")["count"]
    for name, title in {"imagenet_lt": "ImageNet-LT", "inat18": "iNat18", "places_lt": "Places-LT"}.items():
        known, ours = counts.get_group(title), large.PUBLISHED[name]
        assert (ours.classes, ours.train) == (len(known), known.sum())
        assert (ours.most, ours.least) == (known.max(), known.min())
    inat = counts.get_group("iNat18")
    assert data.BOUNDARIES["inat18"] == ((inat > 100).sum(), (inat > 20).sum())
    assert data.BOUNDARIES["imagenet_lt"] == (390, 835), "by no threshold: 100 | 100 and 23 | 23 images there"


# --- what cannot be trained on ---------------------------------------------------------------------------------


def no_list(root):
    (root / "imagenet_lt" / "ImageNet_LT_test.txt").unlink()


def no_images(root):
    (root / "imagenet").rename(root / "elsewhere")


def missing_image(root):
    (root / "imagenet" / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG").unlink()


def empty_image(root):
    (root / "imagenet" / "val" / WNIDS[3] / "val_3_1.JPEG").write_bytes(b"")


def changed(root, change):
    path = root / "imagenet_lt" / "ImageNet_LT_train.txt"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


LISTS = {
    no_list: ("imagenet_lt needs .*ImageNet_LT_test.txt .No such file", "large.py"),
    no_images: ("imagenet_lt needs the folder .*imagenet:", "LTVIT_DATA"),
    missing_image: ("1 of 16 images under .*imagenet are missing, first train/n01443537/n01443537_2.JPEG",),
    empty_image: ("1 of 8 images under .*imagenet are empty, first val/n01491361/val_3_1.JPEG",),
    partial(changed, change=lambda lines: lines[:-1]): (
        r"has 15 training images of 4 classes \(7 to 1 each\) and 8 test images instead of 16 .*\(7 to 2 each\)",
    ),
    partial(changed, change=lambda lines: [x for x in lines if WNIDS[2] not in x]): (
        "imagenet_lt has no training images of class 2: fetch",
    ),
    partial(changed, change=lambda lines: [*lines[:4], "train/n01440764/x.JPEG 4\n"]): (
        "line 5 of .*train.txt",
        "0..3",
    ),
    partial(changed, change=lambda lines: ["n01440764.JPEG\n"]): ("line 1 of .*a relative path and a label in 0..3",),
}


@pytest.mark.parametrize("damage", LISTS, ids=range(len(LISTS)))
def test_lists_that_cannot_be_trained_on(imagenet_lt, damage):
    damage(imagenet_lt)
    refused(lambda: data.load("imagenet_lt"), *LISTS[damage])


def test_a_class_folder_without_images_or_without_its_like(root):
    class_folders(root / "imagenet", WNIDS, COUNTS)
    for file in (root / "imagenet" / "train" / WNIDS[3]).iterdir():
        file.unlink()
    refused(lambda: data.load("imagenet1k"), "imagenet1k has no training images of class n01491361")
    (root / "imagenet" / "val" / WNIDS[3]).rename(root / "imagenet" / "val" / "cats")
    refused(lambda: data.load("imagenet1k"), r"val and .*train differ in class folders \(cats, n01491361\)")


def test_a_damaged_inaturalist_json(root):
    (root / "inat18").mkdir()
    refused(lambda: data.load("inat18"), "inat18 needs .*train2018.json")
    for content in ("{", '{"images": [{"id": 1, "file_name": "x"}], "annotations": []}', "[]"):
        (root / "inat18" / "train2018.json").write_text(content)
        refused(lambda: data.load("inat18"), "train2018.json is no complete iNaturalist list")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("imagenet_lt", dict(rho=100), "imagenet_lt is long-tailed as it was published: leave rho and per_class"),
        ("inat18", dict(per_class=3), "inat18 is long-tailed as it was published"),
        ("imagenet_bal", dict(rho=10), "imagenet_bal is balanced: leave rho"),
        ("imagenet_lt", dict(image_size=0), "image_size must be a positive"),
    ],
)
def test_selections_that_a_set_does_not_have(root, name, options, says):
    refused(lambda: data.load(name, **options), says)


@pytest.mark.parametrize("named", ["two", "-1", "1.5"])
def test_a_bad_number_of_processes(split, monkeypatch, named):
    monkeypatch.setenv("LTVIT_WORKERS", named)
    refused(lambda: split.train.images[:2], "LTVIT_WORKERS is .*give the number of decoding processes")


# --- the evaluation view and the digest ------------------------------------------------------------------------


def test_the_digest_follows_paths_sizes_and_labels(split, imagenet_lt):
    again = data.load("imagenet_lt", image_size=2 * SIZE)
    assert again.digest == split.digest, "whatever the resolution"
    assert replace(split, train=split.train.subset(range(15))).digest != split.digest
    moved = replace(split, train=data.Images(split.train.images, split.train.targets.flip(0)))
    assert moved.digest != split.digest
    picture(imagenet_lt / "imagenet" / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG", 0, 40, 40)
    assert data.load("imagenet_lt", image_size=SIZE).digest != split.digest


@pytest.mark.parametrize("shape", [(31, 17), (17, 31), (16, 16), (9, 12), (40, 16)])
def test_a_square_is_torchvisions(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    theirs = v2.Compose([v2.Resize(SIZE, BICUBIC), v2.CenterCrop(SIZE)])(image)
    assert np.array_equal(np.asarray(files.square(image, SIZE)), np.asarray(theirs))


def test_files_index_as_a_tensor_does(split):
    lazily = split.train.images
    whole = lazily[:]
    assert whole.shape == lazily.shape and whole.dtype == torch.uint8
    rows = torch.tensor([5, 0, 5, 15])
    for index in (3, -1, slice(2, 9, 3), rows, rows.numpy(), rows.tolist(), split.train.targets == 1, rows[:0]):
        assert torch.equal(lazily[index], whole[index])
    assert torch.equal(split.train.subset(rows).images[1:3], whole[rows[1:3]])


def test_a_folder_beyond_the_memory_bound_is_the_same_in_its_files(imagenet_lt, monkeypatch):
    own = imagenet_lt / "imagenet"
    held = data.load(own, image_size=SIZE)
    monkeypatch.setattr(data, "MEMORY_BOUND", 8 * 3 * SIZE**2)  # of which the test part takes all
    lazy = data.load(own, image_size=SIZE)
    assert isinstance(lazy.train.images, files.Files) and isinstance(lazy.test.images, torch.Tensor)
    assert torch.equal(lazy.train.images[:], held.train.images) and lazy.counts == held.counts == COUNTS
    assert (lazy.mean, lazy.std) == (held.mean, held.std)
    assert data.load(own, per_class=2, image_size=SIZE).train.images.shape == (8, 3, SIZE, SIZE)
    monkeypatch.setattr(data, "MEMORY_BOUND", 0)
    rows = torch.tensor([1, 0, 7])
    for evaluated in (lazy.train, held.train):
        ((index, pixels),) = files.evaluation_batches(evaluated.images, rows, SIZE)
        assert torch.equal(index, rows) and torch.equal(pixels, held.train.images[rows])


def test_evaluation_resizes_to_more_and_takes_the_centre(split):
    """DeiT's and LiVT's: the shorter side to size / crop, then the centre."""
    spy = Spy()
    recipe = recipes.Finetune(name="x", image_size=SIZE, eval_crop=0.8)  # 20 of which 16 stay
    logits = train.predict_logits(spy, split.test, recipe, split.mean, split.std)
    assert logits["cls"].shape == (8, 4)
    theirs = v2.Compose([v2.Resize(20, BICUBIC), v2.CenterCrop(SIZE), v2.PILToTensor()])
    raw = [Image.open(split.test.images.root / n.decode()) for n in split.test.images.names]
    expected = augment.evaluate(torch.stack([theirs(image) for image in raw]), SIZE, split.mean, split.std)
    assert torch.equal(spy.seen, expected)


class Spy(torch.nn.Linear):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__(3 * SIZE * SIZE, 4)

    def forward(self, images):
        self.seen = images
        return super().forward(images.flatten(1))


# --- training crops --------------------------------------------------------------------------------------------

POLICY = augment.strong(SIZE, (0.5,) * 3, (0.25,) * 3)


def boxes(policy: augment.Policy, width: int, height: int, n: int) -> np.ndarray:
    drawn = files.draw_crops(policy, n, torch.Generator().manual_seed(0)).tolist()
    return np.array([files.crop_box(policy, width, height, row) for row in drawn])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (100, 100), (500, 60)])
def test_boxes_are_distributed_as_torchvisions(width, height):
    ours = boxes(POLICY, width, height, 4000)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(8, POLICY.scale, POLICY.ratio), torch.empty(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]] for p in theirs])
    for mine, other in zip(ours.T, theirs.T):
        shares = np.linspace(0.02, 0.98, 13)
        gap = np.abs(np.quantile(mine, shares) - np.quantile(other, shares)).max()
        assert gap < 0.05 * max(width, height)


def test_a_crop_covers_the_whole_of_a_wide_image_now_and_then():
    """Its aspect ratio is the photograph's, of which squares know nothing."""
    whole = replace(POLICY, scale=(1.0, 1.0))
    ours = boxes(whole, 400, 300, 200)
    assert (ours == [0, 0, 400, 300]).all(1).mean() > 0.5, "torchvision's last resort"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_torchvisions_of_the_same_box(split, interpolation):
    policy = replace(POLICY, interpolation=interpolation)
    drawn = files.draw_crops(policy, 5, torch.Generator().manual_seed(1))
    rows = torch.tensor([6, 2, 6, 11, 0])
    (pixels,) = split.train.images.crops(rows, [(policy, drawn)])
    assert pixels.shape == (5, 3, SIZE, SIZE) and pixels.dtype == torch.uint8
    for row, numbers, mine in zip(rows.tolist(), drawn.tolist(), pixels):
        image = split.train.images.image(row)
        left, top, right, bottom = files.crop_box(policy, *image.size, numbers)
        mode = vision.InterpolationMode(interpolation)
        theirs = vision.resized_crop(image, top, left, bottom - top, right - left, [SIZE, SIZE], mode)
        assert torch.equal(mine, vision.pil_to_tensor(theirs))


def test_a_repeated_image_is_decoded_once(split, monkeypatch):
    opened = []
    upright = files.upright
    monkeypatch.setattr(files, "upright", lambda source, where: opened.append(where) or upright(source, where))
    policy, key = POLICY, augment.paco_key(8, (0.5,) * 3, (0.25,) * 3)
    draws = [files.draw_crops(p, 6, torch.Generator().manual_seed(1)) for p in (policy, key)]
    query, second = split.train.images.crops(torch.tensor([4, 4, 4, 1, 1, 1]), list(zip((policy, key), draws)))
    assert len(opened) == 2
    assert query.shape[-1] == SIZE and second.shape[-1] == 8
    assert not torch.equal(query[0], query[1]), "each with a crop of its own"


def test_other_policies_see_squares(split):
    """`weak` and 3-Augment shift what `square` gives; DeiT III takes it from anywhere along the longer side."""
    padded, plain = augment.weak(SIZE, (0.5,) * 3, (0.25,) * 3), augment.geometric(SIZE, (0.5,) * 3, (0.25,) * 3)
    drawn = files.draw_crops(padded, 2, torch.Generator())
    drawn[:, 0] = torch.tensor([0.0, 0.9999])
    row = int(split.train.images.sizes.argmax())
    image = split.train.images.image(row)
    first, last = split.train.images.crops(torch.tensor([row, row]), [(padded, drawn)])[0]
    wide = np.asarray(image.resize((int(SIZE * image.width / image.height), SIZE), Image.Resampling.BICUBIC))
    assert np.array_equal(first.permute(1, 2, 0), wide[:, :SIZE])
    assert np.array_equal(last.permute(1, 2, 0), wide[:, -SIZE:])
    (centred,) = split.train.images.crops(torch.tensor([row]), [(plain, drawn[:1])])
    assert torch.equal(centred[0], split.train.images[row])


# --- batches and runs ------------------------------------------------------------------------------------------

SHORT = dict(
    data="imagenet_lt", rho=None, image_size=8, model="vit_w64d4_patch2_8", epochs=3, batch_size=6,
    warmup_epochs=0.0, micro_batch=2, policy="strong", repeats=3, eval_crop=0.8,
)  # fmt: skip
RECIPE = recipes.Finetune(name="lazy", drop_path=0.2, **SHORT)
TEACHER = recipes.Teacher(
    name="lazy_teacher", **SHORT | dict(model="resnet8_cifar", policy="weak", drw_epoch=1, width=4)
)  # fmt: skip
STUDENT = recipes.Distil(
    name="lazy_student", teacher="lazy_teacher", drw_epoch=2,
    **SHORT | dict(model="deit_w64d4_patch2_8_distilled", batch_size=8),
)  # fmt: skip
PACO = recipes.Contrast(
    name="lazy_paco", queue_size=8, projection=8, policy="strong",
    **{k: v for k, v in SHORT.items() if k not in ("policy", "micro_batch")} | dict(model="resnet8_cifar", width=4),
)  # fmt: skip


def job_for(split: data.Split, recipe: recipes.Recipe) -> jobs.Job:
    job = jobs.JOBS[recipe.kind](recipe, split, torch.device("cpu"))
    job.start_epoch(0)
    return job


def all_batches(split: data.Split, recipe: recipes.Recipe, pieces: list[torch.Tensor], first: int = 0) -> list:
    """Micro-batches of two epochs from step `first` on, decoded ahead."""
    job, steps = job_for(split, recipe), len(split.train) // recipe.batch_size
    order = torch.cat([jobs.epoch_order(split.train.targets, recipe, 0, epoch) for epoch in range(2)])
    made = []
    for step, decoded in enumerate(jobs.decoded_steps(job, 0, pieces, range(first, 2 * steps)), first):
        made += jobs.make_batches(job, split.train, order[step], (0, *divmod(step, steps)), pieces, decoded)
    return made


def same(one: list[jobs.Batch], other: list[jobs.Batch]) -> bool:
    assert len(one) == len(other) > 0
    fields = ("images", "labels", "target", "second_view")
    pairs = [(getattr(a, f), getattr(b, f)) for a, b in zip(one, other) for f in fields]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b is None for a, b in pairs)


def test_processes_change_nothing(split, monkeypatch):
    pieces = jobs.parts(6, 3)
    alone = all_batches(split, RECIPE, pieces)
    state = torch.get_rng_state()
    monkeypatch.setenv("LTVIT_WORKERS", "2")
    monkeypatch.setattr(jobs, "CHUNK", 1)
    assert same(all_batches(split, RECIPE, pieces), alone)
    assert same(all_batches(split, RECIPE, pieces, first=3), alone[9:]), "from the middle of a run"
    assert torch.equal(torch.get_rng_state(), state), "stochastic depth draws from it"
    assert not same(alone[:3], alone[6:9]), "another epoch"
    files_, rows = split.test.images, torch.arange(8)
    monkeypatch.setattr(files, "CHUNK", 3)
    together = torch.cat([pixels for _, pixels in files.evaluation_batches(files_, rows, SIZE)])
    assert torch.equal(together, files_[:])


def test_pieces_share_the_draws_of_the_whole_batch(split):
    """Crops of a micro-batch, or of another device, are those of the effective batch; so are PaCo's two views."""
    for recipe in (replace(RECIPE, mixup=0.0, cutmix=0.0), PACO):
        (whole,) = all_batches(split, recipe, jobs.parts(6, 1))[:1]
        shares = all_batches(split, recipe, jobs.parts(6, 3))[:3]
        places = torch.cat(jobs.parts(6, 3))
        assert torch.equal(torch.cat([b.images for b in shares]), whole.images[places])
        if recipe is PACO:
            assert torch.equal(torch.cat([b.second_view for b in shares]), whole.second_view[places])
            assert not torch.equal(whole.second_view, whole.images)


def test_without_a_decoder_ahead_batches_are_the_same(split):
    job, chosen = job_for(split, RECIPE), jobs.epoch_order(split.train.targets, RECIPE, 0, 0)[0]
    pieces = jobs.parts(6, 3)
    assert same(jobs.make_batches(job, split.train, chosen, (0, 0, 0), pieces), all_batches(split, RECIPE, pieces)[:3])


def test_flip_colours_and_erasing_follow_the_crop(split):
    """On the device, from the batch's own stream, as for images in memory; only the crop is done."""
    plain = replace(RECIPE, mixup=0.0, cutmix=0.0, policy_options=dict(erase=1.0))
    job, chosen = job_for(split, plain), torch.arange(6)
    (batch,) = jobs.make_batches(job, split.train, chosen, (0, 0, 0), [torch.arange(6)])
    drawn = files.draw_crops(job.policy, 6, jobs.stream(0, 0, 0, "crops"))
    (pixels,) = split.train.images.crops(chosen, [(job.policy, drawn)])
    policy = replace(job.policy, crop="none")
    expected = augment.apply(policy, pixels, augment.draw(policy, 6, jobs.stream(0, 0, 0)))
    assert torch.equal(batch.images, expected)


class Stopped(Exception):
    pass


@pytest.fixture
def teacher(split, tmp_path) -> runs.Run:
    return quiet(TEACHER, tmp_path / "teacher", data=split)


@pytest.mark.parametrize("recipe", [RECIPE, STUDENT], ids=lambda r: r.kind)
def test_an_interrupted_run_continues_bit_for_bit(recipe, split, request, tmp_path, monkeypatch):
    start = {"teacher": request.getfixturevalue("teacher")} if recipe is STUDENT else {}
    whole = quiet(recipe, tmp_path / "whole", **start)
    assert whole.finished and set(whole.result["heads"]) == ({"cls", "dist", "avg"} if start else {"cls"})
    monkeypatch.setenv("LTVIT_WORKERS", "2")
    save = runs.save_checkpoint
    with monkeypatch.context() as patch:

        def stop(run, state, optimizer, epoch, seconds):
            save(run, state, optimizer, epoch, seconds)
            raise Stopped

        patch.setattr(runs, "save_checkpoint", stop)
        with pytest.raises(Stopped):
            quiet(recipe, tmp_path / "half", save_seconds=0, **start)
    half = quiet(recipe, tmp_path / "half", **start)
    there, here = (load_file(run.path / "last.safetensors") for run in (half, whole))
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert torch.equal(there[key], value), key
    timing = ["seconds", "images_per_second"]
    assert half.curve.drop(columns=timing).equals(whole.curve.drop(columns=timing))
    for head, logits in whole.logits().items():
        assert torch.equal(half.logits()[head], logits)


def test_masked_pretraining_and_paco_run_on_files(split, tmp_path):
    mgp = recipes.Pretrain(
        name="lazy_mgp", decoder_width=16, decoder_depth=1, decoder_heads=2, **SHORT | dict(policy="mgp")
    )  # fmt: skip
    for recipe in (mgp, replace(PACO, batch_size=8)):
        run = quiet(recipe, tmp_path / recipe.name, data=split)
        assert run.finished and np.isfinite(run.curve["loss"]).all()


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_truncated_image_in_mid_training_is_named(split, imagenet_lt, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("LTVIT_WORKERS", processes)
    broken = imagenet_lt / "imagenet" / "train" / WNIDS[2] / f"{WNIDS[2]}_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:-40])
    refused(
        lambda: quiet(replace(RECIPE, repeats=1), tmp_path / "run", data=split),
        f"cannot decode the image at {broken} .*truncated.*: replace it",
    )


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize("evaluate_on", ["test", "val"])
def test_damage_in_the_evaluation_part_is_named_before_training(split, tmp_path, monkeypatch, processes, evaluate_on):
    monkeypatch.setenv("LTVIT_WORKERS", processes)
    monkeypatch.setattr(files, "CHUNK", 3)
    recipe = replace(RECIPE, epochs=1, evaluate_on=evaluate_on)
    split = replace(split, val=split.test, test=split.train)
    split = split if evaluate_on == "val" else replace(split, test=split.val)
    first, last = (split.val.images.root / split.val.images.names[i].decode() for i in (0, 7))
    whole = last.read_bytes()
    last.write_bytes(whole[:-40])
    with monkeypatch.context() as patch:
        patch.setattr(train, "_step", None)
        refused(lambda: quiet(recipe, tmp_path / "run", data=split), f"cannot decode the image at {last} .*: replace")
        first.write_bytes(b"damaged")
        refused(lambda: quiet(recipe, tmp_path / "run", data=split), f"cannot decode 2 images, at {first}, {last}: ")
    for file in (first, last):
        file.write_bytes(whole)
    assert quiet(recipe, tmp_path / "run", data=split).finished


def test_the_evaluation_part_is_checked_once_and_not_for_pretraining(split, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(train, "damaged", lambda part: checked.append(len(part)) or {})
    monkeypatch.setattr(train, "_finish", lambda *_: None)
    for _ in range(2):
        quiet(RECIPE, tmp_path / "run", data=split)
    assert checked == [8], "not of a run that goes on"
    mgp = recipes.Pretrain(
        name="lazy_mgp", decoder_width=16, decoder_depth=1, decoder_heads=2, **SHORT | dict(policy="mgp", epochs=1)
    )  # fmt: skip
    quiet(mgp, tmp_path / "mgp", data=split)
    assert checked == [8]


def test_a_process_that_dies_is_one_sentence(split, monkeypatch):
    monkeypatch.setenv("LTVIT_WORKERS", "2")
    monkeypatch.setattr(jobs, "CHUNK", 1)
    monkeypatch.setattr(files, "square", lambda *_: os._exit(1))
    monkeypatch.setattr(files, "CHUNK", 1)
    with pytest.raises(OSError, match="a decoding process died .*: lower LTVIT_WORKERS") as caught:
        list(files.evaluation_batches(split.test.images, torch.arange(8), SIZE))
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    """300 images of 128 pixels would be 15 MB decoded; what is held at once is a chunk of 3 MB or two."""
    monkeypatch.setenv("LTVIT_WORKERS", "0")
    monkeypatch.setattr(data, "MEMORY_BOUND", 0)
    for name in "ab":
        picture(tmp_path / "train" / name / "0.JPEG", ord(name))
        for i in range(1, 150):
            os.link(tmp_path / "train" / name / "0.JPEG", tmp_path / "train" / name / f"{i}.JPEG")
    tracemalloc.start()
    split = data.load(tmp_path, image_size=128)
    job = job_for(split, replace(RECIPE, image_size=128, batch_size=16))
    for step in jobs.decoded_steps(job, 0, jobs.parts(16, 4), range(12)):
        assert [images.shape for (images,) in step] == [(4, 3, 128, 128)] * 4
    for _, pixels in files.evaluation_batches(split.train.images, torch.arange(len(split.train)), 128):
        assert len(pixels) <= files.CHUNK
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
