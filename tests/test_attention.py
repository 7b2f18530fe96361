"""Attention maps by recomputing the model from them; distance, special mass and rollout in closed form."""

import subprocess
import sys
import textwrap

from ltvit_lib import attention, models

import pytest
import torch
from conftest import refused
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor

SHAPE = dict(img_size=16, patch_size=4, embed_dim=48, depth=3, num_heads=3, num_classes=5)


@pytest.fixture
def distilled() -> VisionTransformerDistilled:
    torch.manual_seed(0)
    return _sharpened(VisionTransformerDistilled(**SHAPE)).eval()


@pytest.fixture
def images(rng) -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=rng)


def _sharpened(model):
    """Fresh ViTs attend almost uniformly, which would hide a mistake: larger queries and keys make them choose."""
    for block in model.blocks:
        block.attn.qkv.weight.data *= 20
    return model


def _maps(rng, layers=3, batch=4, heads=2, tokens=11) -> Tensor:
    return torch.randn(layers, batch, heads, tokens, tokens, generator=rng).softmax(-1)


def _uniform(tokens: int) -> Tensor:
    return torch.full((1, 1, 1, tokens, tokens), 1 / tokens)


def _forward_with(model, maps: Tensor, images: Tensor) -> Tensor:
    """The ViT with its attention maps given: only the values are computed from the tokens."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block, attended in zip(model.blocks, maps):
        values = block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)[2]
        values = values.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
        x = x + block.ls1(block.attn.proj((attended @ values).transpose(1, 2).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "kind, more",
    [
        (VisionTransformer, {}),
        (VisionTransformer, dict(qk_norm=True, init_values=0.3, reg_tokens=2)),
        (VisionTransformer, dict(class_token=False, global_pool="avg")),
        (VisionTransformerDistilled, {}),
    ],
)
def test_the_models_output_follows_from_its_captured_attention(kind, more, fused, images):
    torch.manual_seed(0)
    model = _sharpened(kind(**SHAPE, **more)).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    maps = attention.capture(model, images)
    assert maps.shape == (3, 5, 3, *[16 + model.num_prefix_tokens] * 2)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    with torch.no_grad():
        torch.testing.assert_close(_forward_with(model, maps, images), model(images), atol=1e-4, rtol=1e-4)
        wrong = _forward_with(model, maps.flip(0), images)
        assert not torch.allclose(wrong, model(images), atol=1e-2)  # so the comparison can fail


@pytest.mark.parametrize("name", models.compact_names())
def test_the_compact_vits_are_read(name):
    model = models.create(name, num_classes=10)
    size, depth, heads = model.patch_embed.img_size, len(model.blocks), model.blocks[0].attn.num_heads
    maps = attention.capture(model, torch.zeros(1, 3, *size))
    assert maps.shape[:3] == (depth, 1, heads) and maps.shape[-1] == model.pos_embed.shape[1]


def test_the_model_is_left_as_it_was(distilled, images):
    distilled.train()
    distilled.blocks[1].eval()  # frozen in part: each module gets its own mode back
    distilled.blocks[0].attn.fused_attn = False
    modes = [m.training for m in distilled.modules()]
    attention.capture(distilled, images)
    with pytest.raises(AssertionError):
        attention.capture(distilled, images[..., :12])  # timm refuses the size; hooks and modes must go all the same
    assert [m.training for m in distilled.modules()] == modes
    assert [b.attn.fused_attn for b in distilled.blocks] == [False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in distilled.modules())


def test_capture_runs_in_eval_mode(images):
    torch.manual_seed(0)
    model = VisionTransformer(**SHAPE, pos_drop_rate=0.5, drop_path_rate=0.5).train()
    assert torch.equal(attention.capture(model, images), attention.capture(model.eval(), images))


def test_low_precision_models_give_float32_maps(distilled, images):
    low = attention.capture(distilled.bfloat16(), images.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.sum(-1), torch.ones(low.shape[:-1]))


def test_models_without_such_blocks_are_refused(images):
    parallel = VisionTransformer(**SHAPE, block_fn=ParallelScalingBlock)
    for model in (models.resnet_cifar(8, 5), torch.nn.Linear(3, 5), parallel):
        refused(lambda model=model: attention.capture(model, images), "model", "timm ViT")
    refused(lambda: attention.over_batches(torch.nn.Linear(3, 5), images), "model", "timm ViT")


def test_a_rewritten_forward_is_refused_rather_than_half_captured(distilled, images):
    distilled.blocks[1].attn.forward = lambda x, **_: x
    refused(lambda: attention.capture(distilled, images), "only 2 of 3 blocks")


# --- distance and special mass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_uniform_attention_on_a_2x2_grid(prefix):
    found = attention.mean_distance(_uniform(4 + prefix), (2, 2), 16, prefix)
    assert found.item() == pytest.approx(16 * (2 + 2**0.5) / 4 * 4 / (4 + prefix), rel=1e-6)
    assert attention.special_mass(_uniform(4 + prefix), prefix).item() == pytest.approx(prefix / (4 + prefix))


@pytest.mark.parametrize("prefix, pixels", [(1, 115.90), (2, 115.32)])
def test_uniform_attention_of_vit_b_16_at_224(prefix, pixels):
    found = attention.mean_distance(_uniform(196 + prefix), (14, 14), 16, prefix)
    assert found.item() == pytest.approx(pixels, abs=0.005)


def test_identity_attention_goes_nowhere():
    assert attention.mean_distance(torch.eye(11).expand(2, 3, 4, 11, 11), (3, 3), 4, 2).tolist() == [[0] * 4] * 2


def test_attention_to_one_patch_of_a_wide_grid():
    """2 rows of 3 patches, 8 high and 6 wide, all looking at the last: it is 12, 6, 0 to the right and 8 or 0 down."""
    maps = torch.zeros(1, 2, 1, 7, 7)
    maps[..., -1] = 1
    steps = [(8**2 + x**2) ** 0.5 for x in (12, 6, 0)] + [12, 6, 0]
    assert attention.mean_distance(maps, (2, 3), (8, 6), 1).item() == pytest.approx(sum(steps) / 6)


def test_distance_and_special_mass_against_loops(rng):
    maps, (rows, columns), prefix, patch = _maps(rng), (3, 3), 2, 4
    distance, special = torch.zeros(3, 2), torch.zeros(3, 2)
    for layer, image, head in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(2)):
        a = maps[layer, image, head]
        for i in range(9):
            special[layer, head] += a[prefix + i, :prefix].sum() / 36
            for j in range(9):
                step = ((i // columns - j // columns) ** 2 + (i % columns - j % columns) ** 2) ** 0.5 * patch
                distance[layer, head] += a[prefix + i, prefix + j] * step / 36
    torch.testing.assert_close(attention.mean_distance(maps, (rows, columns), patch, prefix), distance)
    torch.testing.assert_close(attention.special_mass(maps, prefix), special)


def test_mass_moved_to_a_special_token_shortens_the_distance(rng):
    """Nothing is renormalised: with half of each patch's attention on CLS, the distance halves."""
    maps = _maps(rng, tokens=10)
    maps[..., 1:, 0] = 0
    moved = maps.clone()
    moved[..., 1:, :] /= 2
    moved[..., 1:, 0] = maps[..., 1:, :].sum(-1) / 2
    far, near = (attention.mean_distance(m, (3, 3), 4, 1) for m in (maps, moved))
    torch.testing.assert_close(near, far / 2)
    assert (attention.special_mass(moved, 1) > attention.special_mass(maps, 1)).all()


# --- rollout ---------------------------------------------------------------------------------------------------


def test_rollout_of_identity_is_identity():
    assert torch.equal(attention.rollout(torch.eye(6).expand(4, 2, 3, 6, 6)), torch.eye(6).expand(2, 6, 6))


def test_rollout_of_uniform_attention():
    """(I + U) / 2 squared is I / 4 + 3 U / 4, for U U = U."""
    expected = torch.eye(5) / 4 + 3 / 4 * torch.full((5, 5), 0.2)
    torch.testing.assert_close(attention.rollout(_uniform(5).expand(2, 1, 3, 5, 5))[0], expected)


def test_in_rollout_the_later_block_stands_on_the_left():
    """Block 1 copies token 0 to 1, block 2 token 1 to 2, so a quarter of 0 arrives at 2; nothing the other way."""
    first, second = torch.eye(3), torch.eye(3)
    first[1], second[2] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    two = torch.stack([first, second])[:, None, None]
    assert attention.rollout(two)[0].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]]
    assert attention.rollout(two.flip(0))[0, 2, 0] == 0


def test_rollout_rows_sum_to_one_and_heads_may_change_places(rng):
    maps = _maps(rng)
    found = attention.rollout(maps)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 11))
    torch.testing.assert_close(attention.rollout(maps.flip(2)), found)


# --- whole sets ------------------------------------------------------------------------------------------------


def test_over_batches_agrees_with_the_whole_set_at_once(distilled, images):
    maps = attention.capture(distilled, images)
    for found in (
        attention.over_batches(distilled, images, batch=2),  # 2, 2, 1: the last batch weighs less
        attention.over_batches(distilled, (part for part in images.split([1, 3, 1]))),
    ):
        torch.testing.assert_close(found.distance.float(), attention.mean_distance(maps, (4, 4), 4, 2))
        torch.testing.assert_close(found.special.float(), attention.special_mass(maps, 2))
        whole = attention.rollout(maps)[:, :, 2:]
        torch.testing.assert_close(found.rollout[:, :2], whole[:, :2])
        torch.testing.assert_close(found.rollout[:, 2], whole[:, 2:].mean(1))


def test_memory_is_bounded_by_a_batch():
    """10,000 images of 32 pixels within 2 GiB, Python and all; their attention is 2.1 GB, beside Python's 0.4."""
    pytest.importorskip("resource")
    code = """
        import resource, sys
        from ltvit_lib import attention, rank
        import torch
        from timm.models.deit import VisionTransformerDistilled
        torch.set_num_threads(1)
        shape = dict(img_size=32, patch_size=4, embed_dim=12, depth=2, num_heads=6, mlp_ratio=1, num_classes=2)
        images = torch.zeros(1, 3, 32, 32).expand(10_000, -1, -1, -1)
        model = VisionTransformerDistilled(**shape)
        assert attention.over_batches(model, images).rollout.shape == (10_000, 3, 64)
        assert rank.block_features(model, images).shape == (2, 10_000, 2, 12)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(peak)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 2**30


def test_bad_input_is_one_clear_sentence(rng, distilled, images):
    maps = _maps(rng)
    refused(lambda: attention.mean_distance(maps, (4, 4), 4, 2), "grid: 4 x 4 patches and 2 special", "11 tokens")
    refused(lambda: attention.mean_distance(maps, (3, 3), 4, 1), "grid")
    for prefix in (11, 12, -1):
        refused(lambda prefix=prefix: attention.mean_distance(maps, (3, 3), 4, prefix), "num_prefix: expected 0 to 10")
        refused(lambda prefix=prefix: attention.special_mass(maps, prefix), "num_prefix")
    for wrong in (maps[:, :0], maps[0], maps[..., :5], maps * torch.nan):
        refused(lambda wrong=wrong: attention.mean_distance(wrong, (3, 3), 4, 2), "^attention: ")
        refused(lambda wrong=wrong: attention.special_mass(wrong, 2), "^attention: ")
        refused(lambda wrong=wrong: attention.rollout(wrong), "^attention: ")
    for wrong in (images[:0], images[0], images.to(torch.uint8)):
        refused(lambda wrong=wrong: attention.capture(distilled, wrong), "^images: expected")
    for wrong in (images[:0], [], [images[:0]], [(images, torch.zeros(5))]):
        refused(lambda wrong=wrong: attention.over_batches(distilled, wrong), "^images: ")
    refused(lambda: attention.over_batches(distilled, images, batch=0), "^batch: ")
