"""On a GPU only: a step never waits for it, and what runs there gives the CPU's numbers."""

from ltvit_lib import augment, data, jobs, recipes, train

import pytest
import torch
from test_fast import KINDS, close, prepared
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")
WAITS = {"cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
TEACHER = recipes.get(
    "digits_teacher_ldam_drw_sam", epochs=2, drw_epoch=1, warmup_epochs=0.0, batch_size=16, width=4, policy="weak"
)


@pytest.fixture(scope="module")
def teacher(tiny_longtail, tmp_path_factory):
    return train.fit(TEACHER, tmp_path_factory.mktemp("teacher"), data=tiny_longtail, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_profiler_sees_no_wait_in_a_step(tiny_longtail, teacher, kind):
    """Four steps, from drawing images to the optimiser's update, after four that fill caches."""
    name, changes, pieces, _ = KINDS[kind]
    parts = prepared(tiny_longtail, teacher, name, CUDA, **changes)
    accelerator = train.accelerator_for(parts[0].recipe)
    wanted = [(torch.arange(16) + 2 * step, (0, 0, step)) for step in range(8)]
    pixels = tiny_longtail.train.to(CUDA)
    batches = jobs.step_batches(parts[0], pixels, wanted, jobs.parts(16, pieces), iter([None] * 8))
    for _ in range(4):
        train._step(*parts, next(batches), accelerator)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(4):
                train._step(*parts, next(batches), accelerator)
            called = torch.zeros(1, device=CUDA)  # something to find, or the profiler saw nothing
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in seen.events()]
    assert "aten::zeros" in names and called.is_cuda
    # the profiler itself waits once, when it ends
    assert sum(name in WAITS for name in names) <= 1


@pytest.mark.parametrize("name", recipes.POLICIES)
@pytest.mark.parametrize("size", [32, 64])
def test_augmentation_is_the_cpus(name, size):
    mean, std = data.STATISTICS["cifar10"]
    policy = recipes.POLICIES[name](size, mean, std)
    pixels = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    params = augment.draw(policy, 256, torch.Generator().manual_seed(1))
    there = augment.apply(policy, pixels.to(CUDA), params).cpu()
    away = (there - augment.apply(policy, pixels, params)).abs() * torch.tensor(std)[:, None, None] * 255
    # a coordinate that rounds to the other side moves one pixel; photometric operations may differ by a grey level
    assert away.mean() < 0.05 and (away > 1.5).float().mean() < 0.002


@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
@pytest.mark.parametrize("kind", ["LDAM-DRW with SAM", "PaCo with SAM", "distillation"])
def test_compiled_steps_and_cuda_graphs_learn_the_same(tiny_longtail, teacher, kind, how):
    name, changes, *_ = KINDS[kind]
    trained = []
    for compiled in (False, True):
        job, model, optimizer = prepared(tiny_longtail, teacher, name, CUDA, **changes)
        if compiled:
            job.compile(model, mode=how)
        accelerator, pixels = train.accelerator_for(job.recipe), tiny_longtail.train.to(CUDA)
        for step in range(6):
            batches = jobs.make_batches(job, pixels, torch.arange(16) + step, (0, 0, step), jobs.parts(16, 1))
            train._step(job, model, optimizer, batches, accelerator)
        trained.append(model)
    close(*trained, tolerance=2e-3)
