"""What a batch is and what is learnt from it: DeiT-LT's stages, the teacher's view, accumulation, every loss."""

import dataclasses
import itertools

from ltvit_lib import augment, data, jobs, longtail, losses, models, recipes, train

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

CPU = torch.device("cpu")
REQUIRED = {"nt_bce": {"lam": 5.0}, "focal": {"gamma": 2.0}}
SHORT = dict(epochs=2, warmup_epochs=0.0)
# a small image is a small teacher's, a larger one the student's; other statistics for each
TEACHER = recipes.get(
    "digits_teacher_ldam_drw_sam", epochs=1, warmup_epochs=0.0, drw_epoch=0, batch_size=16, width=4, sam_rho=0.0
)
STUDENT = recipes.get(
    "digits_deit_lt", image_size=16, normalise="imagenet", batch_size=16, drw_epoch=2, epochs=4, warmup_epochs=0.0
)


@pytest.fixture(scope="module")
def teacher(tiny_longtail, tmp_path_factory):
    return train.fit(TEACHER, tmp_path_factory.mktemp("teacher"), data=tiny_longtail, progress=False)


class Spy(nn.Module):
    """A teacher that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1)[:, :5]


def one_batch(job: jobs.Job, step: int = 0, pieces: int = 1) -> list[jobs.Batch]:
    cut = jobs.parts(job.recipe.batch_size, pieces)
    return jobs.make_batches(job, job.split.train, some(job, step), (0, 0, step), cut)


def some(job: jobs.Job, step: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randperm(len(job.split.train), generator=generator)[: job.recipe.batch_size]


# --- batches ---------------------------------------------------------------------------------------------------


KINDS = {
    "mixed": ("digits_vit_ce", dict(mixup=0.8, cutmix=1.0)),
    "smoothed": ("laptop_vit_ce", dict(mixup=0.0, cutmix=0.0, smoothing=0.1, image_size=8, model="resnet8_cifar")),
    "masked": ("digits_mgp", {}),
    "two views": ("digits_teacher_paco_sam", {}),
    "taught": ("digits_deit_lt", {}),
}


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_augmented_together_are_those_made_one_by_one(tiny_longtail, teacher, monkeypatch, kind, pieces):
    name, changes = KINDS[kind]
    recipe = recipes.get(name, batch_size=8, **changes)
    job = jobs.JOBS[recipe.kind](recipe, tiny_longtail, CPU, teacher)
    job.start_epoch(0)
    order, train_ = jobs.epoch_order(tiny_longtail.train.targets, recipe, 0, 0), tiny_longtail.train
    steps, cut = [(chosen, (0, 0, step)) for step, chosen in enumerate(order)], jobs.parts(8, pieces)
    sizes, plain = [], augment.apply
    monkeypatch.setattr(augment, "apply", lambda p, x, d: sizes.append(len(x)) or plain(p, x, d))
    together = list(jobs.step_batches(job, train_, steps, cut, itertools.repeat(None)))
    views = len(job.policies)
    assert len(steps) % 4 and sizes == [32] * (len(steps) // 4) * views + [8 * (len(steps) % 4)] * views
    for made, (chosen, seeds) in zip(together, steps, strict=True):
        for one, other in zip(made, jobs.make_batches(job, train_, chosen, seeds, cut), strict=True):
            for name in ("images", "labels", "target", "noise", "answers", "second_view"):
                a, b = getattr(one, name), getattr(other, name)
                assert a is b is None or torch.equal(a, b), name


def test_large_images_are_augmented_a_micro_batch_at_a_time(tiny_longtail, monkeypatch):
    recipe = recipes.get("digits_vit_ce", batch_size=8)
    job, sizes, plain = jobs.FinetuneJob(recipe, tiny_longtail, CPU), [], augment.apply
    job.start_epoch(0)
    monkeypatch.setattr(jobs, "AHEAD", 4 * 8 * 8)
    monkeypatch.setattr(augment, "apply", lambda p, x, d: sizes.append(len(x)) or plain(p, x, d))
    steps = [(torch.arange(8), (0, 0, step)) for step in range(3)]
    list(jobs.step_batches(job, tiny_longtail.train, steps, jobs.parts(8, 2), itertools.repeat(None)))
    assert sizes == [4] * 6


# --- DeiT-LT ---------------------------------------------------------------------------------------------------


def test_the_teacher_sees_the_students_images_in_its_own_scale(tiny_longtail, teacher):
    job = jobs.DistilJob(STUDENT, tiny_longtail, CPU, teacher)
    job.teacher = spy = Spy()
    job.start_epoch(0)
    (batch,) = one_batch(job)
    assert batch.images.shape == (16, 3, 16, 16)
    (seen,) = spy.seen
    assert seen.shape == (16, 3, 8, 8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in data.STATISTICS["imagenet"])
    pixels = batch.images * std + mean  # 0..1, mixed and all
    small = nn.functional.interpolate(pixels, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen, (small - 0.5) / 0.25, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch.answers, seen.flatten(1)[:, :5].argmax(1))


def test_a_teacher_of_your_own_images_may_have_seen_them_at_another_resolution(tmp_path):
    """It is asked at that resolution, in the scale that it was trained in."""
    make = np.random.default_rng(0)
    for name, count in (("ant", 12), ("bee", 9)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = make.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    own = dict(data=str(tmp_path / "photos"), rho=None, batch_size=8)
    run = train.fit(dataclasses.replace(TEACHER, **own), tmp_path / "teacher", progress=False)
    recipe = dataclasses.replace(STUDENT, **own, normalise="data")
    split = data.load(recipe.data, image_size=16)
    job = jobs.DistilJob(recipe, split, CPU, run)
    job.teacher = spy = Spy()
    job.start_epoch(0)
    (batch,) = one_batch(job)
    (mean, std), (theirs, their_std) = (
        [torch.tensor(v).view(1, 3, 1, 1) for v in (at.mean, at.std)]
        for at in (split, data.load(recipe.data, image_size=8))
    )
    assert (their_std < 0.9 * std).all(), "noise is smoothed at the smaller size"
    small = nn.functional.interpolate(batch.images * std + mean, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(spy.seen[0], (small - theirs) / their_std, atol=1e-4, rtol=1e-4)


def test_a_teacher_of_the_students_size_sees_the_very_tensor(tiny_longtail, teacher):
    recipe = dataclasses.replace(STUDENT, image_size=8, normalise="data")
    job = jobs.DistilJob(recipe, tiny_longtail, CPU, teacher)
    job.teacher = spy = Spy()
    job.start_epoch(0)
    (batch,) = one_batch(job)
    torch.testing.assert_close(spy.seen[0], batch.images, atol=1e-6, rtol=1e-6)


def test_stages_of_deit_lt(tiny_longtail, teacher):
    job = jobs.DistilJob(STUDENT, tiny_longtail, CPU, teacher)
    model = job.build()
    for epoch in range(4):
        job.start_epoch(epoch)
        (batch,) = one_batch(job)
        deferred = epoch >= 2
        assert (job.mix is None) == deferred
        weight = longtail.drw_weights(job.counts, epoch, 2) if deferred else None
        if deferred:
            assert torch.equal(batch.target, batch.labels), "hard and not smoothed"
            assert torch.equal(job.weight, weight)
            assert not torch.equal(weight, torch.ones(5))
        else:
            assert batch.target.shape == (16, 5)
            assert batch.target.min() >= 0.1 / 5 - 1e-6, "smoothed"
            assert job.weight is None
        terms, _ = job.terms(model.train(), batch)
        cls, dist = model(batch.images)
        answers = nn.functional.one_hot(batch.answers, 5).float()
        expected = losses.distillation(cls, dist, batch.target, answers, weight)["loss"]
        torch.testing.assert_close(sum(terms.values()), expected)


def test_mixing_to_the_end_and_plain_deit(tiny_longtail, teacher):
    for change in (dict(drw_mixup=True), dict(drw_epoch=None)):
        job = jobs.DistilJob(dataclasses.replace(STUDENT, **change), tiny_longtail, CPU, teacher)
        job.start_epoch(3)
        assert job.mix is not None
        assert job.smoothing == 0.1
        assert (job.weight is None) == (change == dict(drw_epoch=None))


def test_unmixed_images_are_what_the_policy_gives(tiny_longtail, teacher):
    job = jobs.DistilJob(STUDENT, tiny_longtail, CPU, teacher)
    job.start_epoch(3)
    (batch,) = one_batch(job)
    draws = augment.draw(job.policy, 16, jobs.stream(0, 0, 0))
    assert torch.equal(batch.images, augment.apply(job.policy, tiny_longtail.train.images[some(job)], draws))


def test_a_teacher_may_answer_for_a_view_of_its_own(tiny_longtail, teacher):
    """Table 1: the student sees strong images, the teacher the same ones as they are."""
    alone = dataclasses.replace(STUDENT, mixup=0.0, cutmix=0.0, policy="geometric")
    shared = jobs.DistilJob(alone, tiny_longtail, CPU, teacher)
    own = jobs.DistilJob(dataclasses.replace(alone, teacher_policy="weak"), tiny_longtail, CPU, teacher)
    own.policies[1] = dataclasses.replace(own.policies[1], crop="none", flip=0.0)
    (theirs,), (batch,) = one_batch(shared), one_batch(own)
    assert torch.equal(batch.images, theirs.images)  # the student's view does not change
    nothing = augment.draw(own.policies[1], 16, torch.Generator())  # is left to chance
    plain = augment.apply(own.policies[1], tiny_longtail.train.images[some(own)], nothing)
    assert torch.equal(batch.second_view, plain)
    assert torch.equal(batch.answers, own.ask(plain))
    with pytest.raises(ValueError, match="a teacher with a view of its own sees whole images: set mixup and cutmix"):
        recipes.get("digits_deit_lt", teacher_policy="weak")
    with pytest.raises(ValueError, match="no teacher_policy 'weka' .did you mean 'weak'"):
        recipes.get("digits_deit_lt", teacher_policy="weka", mixup=0.0, cutmix=0.0)


def test_a_teacher_from_elsewhere_answers_as_its_run_did(tiny_longtail, tmp_path):
    """As safetensors and as a .pth of weights only; refused with other classes, or with the same in another order."""
    recipe = dataclasses.replace(TEACHER, epochs=10, base_lr=0.05, drw_epoch=None)
    run = train.fit(recipe, tmp_path / "run", data=tiny_longtail, progress=False)
    weights = models.read_weights(run.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes._RECIPES, "mine", recipe)
        student = dataclasses.replace(STUDENT, teacher="mine")
        images = torch.randn(5, 3, 8, 8)
        expected = jobs.DistilJob(student, tiny_longtail, CPU, run).teacher(images)
        for name, content in (("a.pth", {"state_dict": weights}), ("shuffled.pth", None), ("other.pth", None)):
            if content is None:
                head = weights["head.weight"]
                content = weights | {"head.weight": head.roll(1, 0) if name == "shuffled.pth" else head[:2]}
            torch.save(content, tmp_path / name)
        foreign = jobs.DistilJob(student, tiny_longtail, CPU, tmp_path / "a.pth").teacher
        torch.testing.assert_close(foreign(images), expected)
        with pytest.raises(ValueError, match="its classes may be in another order"):
            jobs.DistilJob(student, tiny_longtail, CPU, tmp_path / "shuffled.pth")
        with pytest.raises(ValueError, match="head.weight: .5, 16. here, .2, 16. there"):
            jobs.DistilJob(student, tiny_longtail, CPU, tmp_path / "other.pth")
        done = train.fit(student, tmp_path / "student", data=tiny_longtail, teacher=tmp_path / "a.pth", progress=False)
    assert set(done.result["heads"]) == {"cls", "dist", "avg"}


def test_the_teacher_is_frozen(tiny_longtail, teacher, tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(jobs.JOBS, "distil", lambda *a: made.append(jobs.DistilJob(*a)) or made[-1])
    train.fit(STUDENT, tmp_path, data=tiny_longtail, teacher=teacher, progress=False)
    assert not any(m.training for m in made[0].teacher.modules())
    assert not any(p.requires_grad for p in made[0].teacher.parameters())
    trained, _ = train.build(teacher, tiny_longtail)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, made[0].teacher.state_dict()[name]), name


def test_a_student_needs_a_dist_token(tiny_longtail, teacher):
    job = jobs.DistilJob(dataclasses.replace(STUDENT, model="vit_w64d4_patch2_8"), tiny_longtail, CPU, teacher)
    with pytest.raises(ValueError, match="no DIST token"):
        job.build()


# --- batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "pieces"), [(16, 1), (16, 2), (16, 8), (12, 3), (9, 3), (6, 6)])
def test_parts_cover_the_batch_and_keep_mixups_pairs(size, pieces):
    cut = jobs.parts(size, pieces)
    assert len(cut) == pieces
    assert sorted(torch.cat(cut).tolist()) == list(range(size))
    if size // pieces % 2 == 0:
        assert all(torch.equal(piece + piece.flip(0), torch.full_like(piece, size - 1)) for piece in cut)


def test_an_epoch_draws_each_image_once_or_a_few_often():
    recipe = recipes.get("digits_vit_ce", batch_size=10)
    targets = torch.zeros(47, dtype=torch.long)
    order = jobs.epoch_order(targets, recipe, 0, 0)
    assert order.shape == (4, 10)
    assert len(order.unique()) == 40
    assert torch.equal(order, jobs.epoch_order(targets, recipe, 0, 0))
    assert not torch.equal(order, jobs.epoch_order(targets, recipe, 0, 1))
    repeated = jobs.epoch_order(targets, dataclasses.replace(recipe, repeats=3), 0, 0)
    assert repeated.shape == (4, 10)
    assert repeated.flatten().bincount().max() == 3


def test_sampled_classes_come_equally_often():
    """10,000 draws from classes of 900, 90 and 10 images: a third each, within 5 standard deviations (of 47)."""
    targets = torch.arange(3).repeat_interleave(torch.tensor([900, 90, 10])).repeat(10)
    order = jobs.epoch_order(targets, recipes.get("digits_mgp_crt"), 0, 0).flatten()
    seen = targets[order].bincount(minlength=3).double() / len(order)
    assert (seen - 1 / 3).abs().max() < 5 * 47 / 10_000
    assert len(order[targets[order] == 2].unique()) == 100  # all its images


@pytest.mark.parametrize("name", ["digits_vit_ce", "digits_mgp"])
def test_pieces_are_the_whole_batch_cut(digits, name):
    """Augmentation, mixing (both kinds) and masks do not depend on how a batch is cut."""
    mixing = dict(mixup=0.8, cutmix=1.0, smoothing=0.1) if name == "digits_vit_ce" else {}
    recipe = recipes.get(name, batch_size=32, **mixing)
    job = jobs.JOBS[recipe.kind](recipe, digits, CPU)
    job.start_epoch(0)
    for step in range(4):
        (whole,) = one_batch(job, step)
        for batch, piece in zip(one_batch(job, step, 4), jobs.parts(32, 4), strict=True):
            for key in ("images", "labels", "target", "noise"):
                a, b = getattr(batch, key), getattr(whole, key)
                assert (a is None and b is None) or torch.equal(a, b[piece]), key


def test_mixing_leaves_numpys_generator_alone(digits):
    import numpy as np

    recipe = recipes.get("digits_vit_ce", batch_size=32, mixup=0.8)
    job = jobs.FinetuneJob(recipe, digits, CPU)
    job.start_epoch(0)
    np.random.seed(5)
    expected = np.random.RandomState(5).rand(3)
    one_batch(job)
    assert np.array_equal(np.random.rand(3), expected)


# --- losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", recipes.LOSSES)
def test_every_loss_is_wired(digits, tmp_path, loss):
    """One step of each: the loss that training reports is the function on the model's own logits."""
    recipe = recipes.get(
        "digits_vit_ce", loss=loss, loss_options=REQUIRED.get(loss, {}), batch_size=320, epochs=1, warmup_epochs=0.0
    )
    run = train.fit(recipe, tmp_path, data=digits, progress=False)
    torch.manual_seed(jobs.random_seed(0, "weights"))
    job = jobs.FinetuneJob(recipe, digits, CPU)
    model = job.build().train()
    job.start_epoch(0)
    order = jobs.epoch_order(digits.train.targets, recipe, 0, 0)[0]
    (batch,) = jobs.make_batches(job, digits.train, order, (0, 0, 0), jobs.parts(320, 1))
    tokens = model.forward_head(model.forward_features(batch.images), pre_logits=True)
    given = {"prior": longtail.prior(digits.counts), "counts": torch.tensor(digits.counts).float(), "features": tokens}
    asked = {k: v for k, v in given.items() if k in losses.__dict__[loss].__code__.co_varnames}
    expected = getattr(losses, loss)(model.head(tokens), batch.labels, **asked, **REQUIRED.get(loss, {}))
    assert run.curve["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert set(run.result["heads"]) == {"cls"}


def test_sams_radius_follows_its_steps(digits):
    recipe = recipes.override(TEACHER, sam_rho=(0.05, 0.1, 0.5), sam_epochs=(2, 3), epochs=5)
    job = jobs.FinetuneJob(recipe, digits, CPU)
    radii = []
    for epoch in range(5):
        job.start_epoch(epoch)
        radii.append(job.sam_rho)
    assert radii == [0.05, 0.05, 0.1, 0.5, 0.5]
    for wrong in ((2,), (3, 2)):
        with pytest.raises(ValueError, match="sam_epochs must ascend, one fewer"):
            recipes.override(recipe, sam_epochs=wrong)


@pytest.mark.parametrize("statistics", ["both", "first"])
def test_which_passes_update_batchnorm(digits, tmp_path, statistics):
    """Two passes a step: the counter that BatchNorm keeps tells them."""
    recipe = recipes.override(TEACHER, sam_rho=0.1, sam_statistics=statistics, batch_size=320)
    run = train.fit(recipe, tmp_path, data=digits, progress=False)
    assert models.read_weights(run.path)["bn1.num_batches_tracked"] == {"both": 2, "first": 1}[statistics]


def test_layer_scale_starts_every_branch_small(digits):
    model = jobs.FinetuneJob(recipes.get("digits_vit_ce", layer_scale=1e-4), digits, CPU).build()
    assert all((block.ls1.gamma == 1e-4).all() and (block.ls2.gamma == 1e-4).all() for block in model.blocks)
    with pytest.raises(ValueError, match="layer_scale belongs to a ViT"):
        jobs.FinetuneJob(recipes.override(TEACHER, layer_scale=1e-4), digits, CPU)


def test_a_student_reports_how_far_its_experts_are_apart(tiny_longtail, teacher, tmp_path):
    run = train.fit(STUDENT, tmp_path, data=tiny_longtail, teacher=teacher, progress=False)
    model, _ = train.build(run, tiny_longtail)
    images = augment.evaluate(tiny_longtail.train.images, 16, *data.STATISTICS["imagenet"])
    cls, dist = model.forward_features(images)[:, :2].unbind(1)
    cosine = torch.nn.functional.cosine_similarity(cls, dist).mean().item()
    assert run.curve["cosine_distance"].iloc[-1] == pytest.approx(1 - cosine, abs=1e-4)


@pytest.fixture(scope="module")
def classifier(digits, tmp_path_factory):
    recipe = recipes.get("digits_vit_ce", epochs=2, warmup_epochs=0.0)
    return train.fit(recipe, tmp_path_factory.mktemp("ce"), data=digits, progress=False)


@pytest.mark.parametrize(("name", "moves"), [("crt", {"head.weight", "head.bias"}), ("lws", {"head.scale"})])
def test_a_second_stage_moves_its_part_of_the_classifier_and_nothing_else(digits, classifier, tmp_path, name, moves):
    recipe = recipes.get(f"digits_mgp_{name}", init="digits_vit_ce", drop_path=0.5, **SHORT)
    run = train.fit(recipe, tmp_path, data=digits, init=classifier, progress=False)
    before, after = models.read_weights(classifier.path), models.read_weights(run.path)
    assert {k for k, v in after.items() if k not in before or not torch.equal(v, before[k])} == moves
    if name == "lws":
        model, _ = train.build(run, digits)
        plain, _ = train.build(classifier, digits)
        images = torch.randn(3, 1, 8, 8)
        torch.testing.assert_close(model(images), plain(images) * after["head.scale"])


def test_a_second_stage_asks_for_what_it_needs(digits, classifier, tmp_path):
    with pytest.raises(ValueError, match="name its recipe as init"):
        recipes.get("digits_mgp_crt", init=None)
    with pytest.raises(ValueError, match="a distil run learns as a whole"):
        recipes.get("digits_deit_lt", trains="classifier", init="digits_vit_ce")
    with pytest.raises(ValueError, match="needs a linear classifier"):
        jobs.FinetuneJob(dataclasses.replace(TEACHER, trains="scale"), digits, CPU).build()
    encoder = train.fit(recipes.get("digits_mgp", **SHORT), tmp_path / "mgp", data=digits, progress=False)
    with pytest.raises(ValueError, match="keeps a trained backbone"):
        train.fit(recipes.get("digits_mgp_crt", **SHORT), tmp_path / "crt", data=digits, init=encoder)


def test_cross_entropy_warms_up_another_loss(digits):
    job = jobs.FinetuneJob(recipes.get("digits_mgp_ib", loss_epoch=1, **SHORT), digits, CPU)
    model = job.build()
    (batch,) = one_batch(job)
    values = []
    for epoch in (0, 1):
        job.start_epoch(epoch)
        values.append(job.terms(model, batch)[0]["loss"])
    torch.testing.assert_close(values[0], losses.cross_entropy(model(batch.images), batch.labels))
    assert values[1] != values[0]


def test_class_weights_reach_the_losses_that_take_them(digits):
    for loss in recipes.WEIGHTED:
        recipe = recipes.get("digits_vit_ce", loss=loss, drw_epoch=1, epochs=2, warmup_epochs=0.0)
        job, model = jobs.FinetuneJob(recipe, digits, CPU), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        terms = []
        for epoch in (0, 1):
            job.start_epoch(epoch)
            (batch,) = one_batch(job)
            terms.append(job.terms(model, batch)[0]["loss"])
            weight = None if epoch == 0 else longtail.effective_number_weights(job.counts)
            more = {"counts": job.counts} if loss == "ldam" else {}
            expected = getattr(losses, loss)(model(batch.images), batch.labels, weight=weight, **more)
            torch.testing.assert_close(terms[-1], expected)
        assert terms[0] != terms[1]


def test_statistics_must_fit_the_images(digits):
    with pytest.raises(ValueError, match="normalise='imagenet' has 3 channels, the images 1"):
        jobs.FinetuneJob(recipes.get("digits_vit_ce", normalise="imagenet"), digits, CPU)


# --- PaCo ------------------------------------------------------------------------------------------------------

CONTRAST = recipes.get(
    "digits_teacher_paco_sam", model="resnet8_cifar", width=4, batch_size=16, queue_size=32, epochs=2, warmup_epochs=0.0
)


def test_keys_and_queue_move_once_a_step_whatever_the_passes(tiny_longtail):
    """SAM runs the forward pass twice: the keys are made in the first, the queue takes them after the step."""
    job = jobs.ContrastJob(CONTRAST, tiny_longtail, CPU)
    model = job.build().train()
    (batch,) = one_batch(job)
    assert batch.second_view.shape == batch.images.shape
    assert not torch.equal(batch.second_view, batch.images)
    queue, key_encoder = model.queue.clone(), model.key_encoder.conv1.weight.clone()
    job.terms(model, batch)[0]["loss"].backward()
    keys = batch.keys.clone()
    job.terms(model, batch)
    assert torch.equal(batch.keys, keys)
    assert torch.equal(model.queue, queue)
    job.finish_step(model, [batch])
    assert torch.equal(model.queue[:16], keys)
    assert torch.equal(model.queue[16:], queue[16:])
    assert torch.equal(model.queue_labels[:16], batch.labels)
    torch.testing.assert_close(model.key_encoder.conv1.weight, key_encoder)  # the query encoder has not moved


def test_a_paco_teacher_trains_resumes_and_teaches(tiny_longtail, tmp_path):
    """One run in two parts equals one in a piece; the student's teacher is the plain CNN of it."""
    whole = train.fit(CONTRAST, tmp_path / "whole", data=tiny_longtail, progress=False, save_seconds=0)
    longer = dataclasses.replace(CONTRAST, name="half")

    class Stop(Exception):
        pass

    def stop(job, epoch, original=jobs.ContrastJob.start_epoch):
        if epoch == 1:
            raise Stop
        original(job, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.ContrastJob, "start_epoch", stop)
        with pytest.raises(Stop):
            train.fit(longer, tmp_path / "parts", data=tiny_longtail, progress=False, save_seconds=0)
    parts = train.fit(longer, tmp_path / "parts", data=tiny_longtail, progress=False)
    a, b = (models.read_weights(run.path) for run in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (a["queue_labels"] >= 0).all()
    plain, _ = train.build(whole, tiny_longtail)
    assert isinstance(plain, models.CifarResNet)
    student = jobs.DistilJob(STUDENT, tiny_longtail, CPU, whole)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(student.teacher(images), plain(images))
    torch.testing.assert_close(whole.logits()["cls"].argmax(1), _evaluated(plain, tiny_longtail).argmax(1))


def _evaluated(model: nn.Module, split: data.Split) -> torch.Tensor:
    return train.predict_logits(model, split.test, CONTRAST, split.mean, split.std)["cls"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(queue_size=100), "queue_size must be a multiple of batch_size"),
        (dict(mixup=0.8), "PaCo takes hard labels"),
        (dict(micro_batch=8), "PaCo compares the images of a whole batch"),
        (dict(key_policy="week"), "no key_policy 'week' .did you mean 'weak'"),
        (dict(trains="classifier", init="digits_vit_ce"), "a contrast run learns as a whole"),
    ],
)
def test_a_contrast_recipe_that_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.override(CONTRAST, **changes)
