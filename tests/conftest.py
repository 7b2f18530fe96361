"""Fixtures that every test may ask for: a ViT, a long tail and a generator, all small enough for milliseconds."""

import re

from ltvit_lib import data, longtail

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

torch.set_num_threads(min(2, torch.get_num_threads()))


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


@pytest.fixture
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


def refused(call, *patterns: str) -> None:
    """`call` raises a ValueError of one line that matches every pattern."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message
