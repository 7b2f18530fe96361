"""Every fast path equals its plain counterpart, and no step makes the host wait for the device.

No GPU is needed: on the `meta` device tensors have shapes and no values, so that whatever looks at a value, for which
a GPU's host would have to wait, raises.
"""

import copy
from types import SimpleNamespace

from ltvit_lib import jobs, models, optim, recipes, runs, train
from ltvit_lib.mae import MaskedAutoencoder

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, META = torch.device("cpu"), torch.device("meta")
SAM = "digits_teacher_ldam_drw_sam"


@pytest.fixture(scope="module")
def teacher(tiny_longtail, tmp_path_factory) -> runs.Run:
    recipe = recipes.get(SAM, epochs=2, drw_epoch=1, sam_rho=0.0, warmup_epochs=0.0, batch_size=16, width=4)
    return train.fit(recipe, tmp_path_factory.mktemp("teacher"), data=tiny_longtail, progress=False)


def prepared(split, teacher, name: str, device: torch.device = CPU, **changes):
    """A job in its first epoch, its model and optimiser."""
    recipe = recipes.get(name, **dict(batch_size=16, warmup_epochs=0.0) | changes)
    torch.manual_seed(0)
    job = jobs.JOBS[recipe.kind](recipe, split, device, teacher)
    model = job.build().to(device).train()
    job.start_epoch(0)
    return job, model, optim.create_optimizer(model, recipe)


def make(job, pieces: int = 1, number: int = 0) -> list[jobs.Batch]:
    pixels, whole = job.split.train.to(job.device), job.recipe.batch_size
    chosen = torch.arange(whole) + whole * number
    return jobs.make_batches(job, pixels, chosen, (0, 0, number), jobs.parts(whole, pieces))


def step(job, model, optimizer, pieces: int = 1, number: int = 0) -> Tensor:
    return train._step(job, model, optimizer, make(job, pieces, number), Accelerator(cpu=True))


# --- nothing waits ---------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """For every copy from the host to the device, whether it lets the host go on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].is_cpu and out.is_meta:
            self.seen.append((kwargs or {}).get("non_blocking", False))
        if function is torch.ops.aten.copy_.default and out.is_meta and args[1].is_cpu:
            self.seen.append(len(args) > 2 and args[2])
        return out


class Values(TorchFunctionMode):
    """Refuses tensors that are made on the device from the host's numbers: they are copied there, and waited for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device", CPU) not in (CPU, "cpu")
        assert not made, "made from numbers in a step"
        return function(*args, **(kwargs or {}))


CNN = dict(model="resnet8_cifar", optimizer="sgd", policy="weak")
KINDS = {  # recipe, what is changed in it, pieces of a batch, copies that each may cost
    "fine-tuning, mixed and smoothed": ("digits_vit_bal_bce", dict(mixup=0.8, cutmix=1.0, smoothing=0.1), 2, 2),
    "LDAM-DRW with SAM": (SAM, dict(drw_epoch=0, width=4), 2, 2),
    "SAM, averages of the first pass": (SAM, dict(sam_statistics="first", drw_epoch=None, width=4), 1, 2),
    "PaCo with SAM": ("digits_teacher_paco_sam", dict(queue_size=32, width=4), 1, 3),
    "LADE": ("digits_vit_ce", dict(loss="lade", **CNN), 1, 2),
    "influence-balanced": ("digits_vit_ce", dict(loss="influence_balanced", **CNN), 2, 2),
    "masked pre-training": ("digits_mgp", dict(decoder_depth=1), 2, 3),
    "distillation": ("digits_deit_lt", dict(drw_epoch=None), 2, 2),
    "distillation under DRW": ("digits_deit_lt", dict(drw_epoch=0, normalise="imagenet"), 1, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_looks_at_the_device(tiny_longtail, teacher, kind):
    name, changes, pieces, copies = KINDS[kind]
    parts = prepared(tiny_longtail, teacher, name, META, **changes)
    make(parts[0], pieces)  # once: the statistics that images are normalised by stay on the device
    pixels, accelerator = tiny_longtail.train.to(META), Accelerator(cpu=True)
    with Copies() as watched, Values():
        batches = jobs.make_batches(parts[0], pixels, torch.arange(16), (0, 0, 1), jobs.parts(16, pieces))
        values = train._step(*parts, batches, accelerator)
    assert values.is_meta and values.shape == (2,)
    assert 0 < len(watched.seen) <= copies * pieces and all(watched.seen)


def test_what_looks_at_the_device_would_be_found():
    x = torch.zeros(4, device=META)
    for look in (lambda: x.sum().item(), lambda: x.tolist(), lambda: x[x > 0], lambda: x.cpu(), lambda: bool(x[0])):
        with pytest.raises((NotImplementedError, RuntimeError)):
            look()
    with Copies() as watched:
        jobs.sent(torch.zeros(3), META), torch.zeros(3).to(META), x.copy_(torch.zeros(4))
    assert watched.seen == [True, False, False]
    with Values(), pytest.raises(AssertionError):
        torch.tensor([1.0], device=META)


def test_predictions_come_to_the_host_after_the_last_batch(tiny_longtail):
    recipe = recipes.get("digits_vit_ce", **CNN)
    model, seen = models.create("resnet8_cifar", num_classes=5, width=4).to(META), []
    model.register_forward_hook(lambda *_: seen.append(len(_[1][0])))
    many = tiny_longtail.train.subset(torch.arange(85).repeat(13))
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        train.predict_logits(model, many, recipe, tiny_longtail.mean, tiny_longtail.std)
    assert seen == [512, 512, 81]


def test_the_meter_reads_a_step_when_the_next_two_are_queued(monkeypatch):
    read = []
    monkeypatch.setattr(train, "_fetched", lambda number: lambda: read.append(number) or [float(number), 0.0])
    recipe, accelerator = recipes.get("digits_vit_ce"), Accelerator(cpu=True)
    meter = train._Meter(train._bar(recipe, 5, 0, False), recipe, 0, accelerator)
    for number in range(1, 6):
        meter.update(number, lr=0.1 * number)
        assert read == list(range(1, number - 1))
    row = meter.finish()
    assert read == [1, 2, 3, 4, 5] and row["loss"] == 3.0 and row["lr"] == 0.5


def test_reading_waits_for_its_own_step_alone(monkeypatch):
    """The copy starts at once, and its event, not the stream, is waited for."""
    log = []
    event = SimpleNamespace(record=lambda: log.append("recorded"), synchronize=lambda: log.append("waited"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    host = SimpleNamespace(tolist=lambda: log.append("read") or [1.0, 2.0])
    gpu = SimpleNamespace(type="cuda")
    values = SimpleNamespace(device=gpu, to=lambda place, non_blocking: log.append((place, non_blocking)) or host)
    read = train._fetched(values)
    assert log == [("cpu", True), "recorded"]
    assert read() == [1.0, 2.0] and log[2:] == ["waited", "read"]


# --- the same numbers ------------------------------------------------------------------------------------------


def close(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    other = other.state_dict()
    assert list(one.state_dict()) == list(other), "the names in a checkpoint stay"
    for name, value in one.state_dict().items():
        torch.testing.assert_close(
            value, other[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


COMPILED = {
    "distillation": ("digits_deit_lt", dict(drw_epoch=None), 2),
    "influence-balanced with SAM": (SAM, dict(loss="influence_balanced", drw_epoch=None, normed=False, width=4), 1),
}


@pytest.mark.parametrize("case", COMPILED)
def test_a_compiled_step_is_the_plain_one_and_whole(tiny_longtail, teacher, case):
    """`fullgraph`: nothing breaks the graph, so that CUDA graphs can hold all of it. `eager` needs no compiler."""
    name, changes, pieces = COMPILED[case]
    trained = []
    for how in (None, dict(backend="eager", fullgraph=True)):
        job, model, optimizer = prepared(tiny_longtail, teacher, name, **changes)
        if how is not None:
            job.compile(model, **how)
        for number in range(2):
            step(job, model, optimizer, pieces, number)
        trained.append(model)
    close(*trained, tolerance=1e-6)


def test_how_to_compile_comes_from_the_argument_or_the_environment(monkeypatch):
    monkeypatch.delenv("LTVIT_COMPILE", raising=False)
    assert train.compiler() is None and train.compiler("") is None
    assert train.compiler("reduce-overhead") == {"mode": "reduce-overhead"}
    monkeypatch.setenv("LTVIT_COMPILE", "aot_eager")
    assert train.compiler() == {"backend": "aot_eager"} and train.compiler("") is None
    with pytest.raises(ValueError, match="'fast': leave it empty, or give one of default, reduce-overhead"):
        train.compiler("fast")
    with pytest.raises(ValueError, match="cannot sum gradients over micro-batches: give 'default'"):
        train.compiler("reduce-overhead", accumulates=True)
    assert train.compiler("default", accumulates=True) == {"mode": "default"}


@pytest.mark.parametrize("fused_first", [True, False])
@pytest.mark.parametrize("name", ["digits_vit_ce", SAM])
def test_fused_optimisers_equal_plain_ones_and_continue_their_runs(tiny_longtail, teacher, tmp_path, name, fused_first):
    changes = dict(width=4, sam_rho=0.0, drw_epoch=None) if name == SAM else {}
    job, model, plain = prepared(tiny_longtail, teacher, name, **changes)
    other = copy.deepcopy(model)
    fused = optim.create_optimizer(other, job.recipe, fused=True)
    for number in range(2):
        step(job, model, plain, number=number)
        step(job, other, fused, number=number)
    close(model, other, tolerance=1e-5)
    run = runs.Run(tmp_path)
    saved, own, resumed = (other, fused, plain) if fused_first else (model, plain, fused)
    runs.save_checkpoint(run, saved.state_dict(), own, 1, 0.0)
    mine = model if fused_first else other
    runs.load_checkpoint(run, mine, resumed)
    optim.settle(resumed)
    step(job, model, plain, number=2)
    step(job, other, fused, number=2)
    close(model, other, tolerance=1e-5)


def test_channels_last_equals_the_plain_layout_and_continues_its_run(tiny_longtail, teacher, tmp_path):
    job, model, optimizer = prepared(tiny_longtail, teacher, SAM, width=4, drw_epoch=None)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    other = optim.create_optimizer(last, job.recipe)
    step(job, model, optimizer)
    runs.save_checkpoint(runs.Run(tmp_path), model.state_dict(), optimizer, 1, 0.0)
    runs.load_checkpoint(runs.Run(tmp_path), last, other)
    optim.settle(other)
    convolution = last.blocks[0].conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert other.state[convolution]["momentum_buffer"].stride() == convolution.stride()
    for number in (1, 2):
        step(job, model, optimizer, number=number)
        step(job, last, other, number=number)
    close(model, last, tolerance=1e-5)


def test_the_teacher_answers_once_a_batch_and_its_answers_can_be_learnt(tiny_longtail, teacher):
    job, model, optimizer = prepared(tiny_longtail, teacher, "digits_deit_lt", drw_epoch=None)
    asked = []
    job.teacher.register_forward_hook(lambda *given: asked.append(len(given[1][0])))
    (batch,) = make(job)
    assert not batch.answers.is_inference() and not batch.answers.requires_grad
    step(job, model, optimizer, pieces=2)
    assert asked == [16, 8, 8]
    images = torch.rand(85, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    changed, job.same_scale = job.ask(images), True  # the statistics are the same: nothing need be changed
    assert torch.equal(job.ask(images), changed)


class Attention(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function is F.scaled_dot_product_attention
        return function(*args, **(kwargs or {}))


def test_training_attends_by_the_fused_kernel():
    plain = models.create("vit_w64d4_patch2_8", num_classes=5).train()
    student = models.create("deit_w64d4_patch2_8_distilled", num_classes=5).train()
    encoder = models.create("vit_w64d4_patch2_8", num_classes=5, global_pool="token")
    for model, blocks in ((plain, 4), (student, 4), (MaskedAutoencoder(encoder, 16, 2, 2).train(), 6)):
        with Attention() as counted:
            model(torch.zeros(2, 3, 8, 8))
        assert counted.calls == blocks
