"""Fixtures that every test may ask for: a ViT, two long tails and a generator, all small enough for milliseconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ltvit_lib import data, longtail

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

torch.set_num_threads(min(2, torch.get_num_threads()))

TESTS = Path(__file__).resolve().parent
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def rng() -> torch.Generator:
    """A generator that starts at 0 in every test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_vit() -> VisionTransformer:
    """16 pixel images in 16 patches, width 48, 2 blocks of 3 heads, 5 classes, in eval mode."""
    torch.manual_seed(0)
    shape = dict(img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=5)
    return VisionTransformer(**shape).eval()


@pytest.fixture(scope="session")
def tiny_longtail() -> data.Split:
    """5 classes of 40, 22, 12, 7 and 4 training images and 6 test images: 3 x 8 x 8, a noisy pattern a class."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(40, 215, (5, 3, 8, 8), generator=generator)

    def part(counts: list[int]) -> data.Images:
        targets: Tensor = torch.arange(5).repeat_interleave(torch.tensor(counts))
        noise = torch.randint(-40, 40, (len(targets), 3, 8, 8), generator=generator)
        return data.Images((patterns[targets] + noise).to(torch.uint8), targets)

    train, test = part(longtail.exponential_counts(40, 5, 10)), part([6] * 5)
    return data.Split("tiny", train, test, tuple("abcde"), (0.5,) * 3, (0.25,) * 3, (1, 3))


@pytest.fixture(scope="session")
def digits() -> data.Split:
    return data.load("digits", 40.0)


def refusal(error: type[Exception], call, *arguments, **options) -> str:
    """What the call says, in one line, when it raises."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(call, *patterns: str) -> None:
    """`call` raises a ValueError of one line that matches every pattern."""
    message = refusal(ValueError, call)
    for pattern in patterns:
        assert re.search(pattern, message), message


def launch(command: list, folder: Path, seconds: float = 180) -> None:
    """Runs a launcher, which takes its workers along when it is told to end; it may import tests."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    log = folder / "log.txt"
    with (
        open(log, "w") as file,
        subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT) as child,
    ):
        try:
            code = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.terminate()
            raise
    assert code == 0, log.read_text()[-3000:]
