"""The masked autoencoder against timm's ViT, a naive loss, and MAE's position embedding written out."""

import math

from ltvit_lib import models
from ltvit_lib.mae import MaskedAutoencoder, sincos_position

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def autoencoder(tiny_vit) -> MaskedAutoencoder:
    return MaskedAutoencoder(tiny_vit, decoder_width=32, decoder_depth=1, decoder_heads=2).eval()


@pytest.fixture
def images(rng) -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=rng)


@pytest.fixture
def noise(rng) -> Tensor:
    return torch.rand(3, 16, generator=rng)


# --- the encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distilled", [False, True])
def test_nothing_masked_is_the_vit(tiny_vit, images, noise, distilled):
    if distilled:
        tiny_vit = models.create(
            "deit_w64d4_patch2_8_distilled", img_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=3
        ).eval()
    mae = MaskedAutoencoder(tiny_vit, 32, 1, 2).eval()
    prefix = 2 if distilled else 1
    latent, order = mae.encode(images, mask_ratio=0.0, noise=noise)
    expected = tiny_vit.forward_features(images)
    back = order.argsort(1)[..., None].expand(-1, -1, 48)
    torch.testing.assert_close(latent[:, prefix:].gather(1, back), expected[:, prefix:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(latent[:, :prefix], expected[:, :prefix], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.75, 0.9])
def test_the_patches_with_least_noise_are_kept(autoencoder, images, noise, ratio):
    latent, order = autoencoder.encode(images, ratio, noise)
    keep = int(16 * (1 - ratio))
    assert latent.shape == (3, 1 + keep, 48)
    assert torch.equal(order[:, :keep], noise.argsort(1)[:, :keep])
    _, _, mask = autoencoder(images, ratio, noise)
    assert torch.equal(mask, (noise.argsort(1).argsort(1) >= keep).float())


def test_the_encoder_sees_nothing_of_hidden_patches(autoencoder, images, noise):
    _, before, mask = autoencoder(images, 0.75, noise)
    hidden = autoencoder.unpatchify(mask[..., None].expand(-1, -1, 48))  # (B, 3, H, W)
    _, after, _ = autoencoder(torch.where(hidden.bool(), 7.0, images), 0.75, noise)
    assert torch.equal(before, after)


def test_decoding_puts_every_patch_in_its_place(autoencoder, images, noise):
    latent, order = autoencoder.encode(images, 0.75, noise)
    visible, position = autoencoder.decoder_embed(latent), autoencoder.decoder_position[0]
    for b in range(3):
        tokens = [visible[b, 0] + position[0]] + [autoencoder.mask_token[0, 0] + position[1 + n] for n in range(16)]
        for i, n in enumerate(order[b, :4].tolist()):
            tokens[1 + n] = visible[b, 1 + i] + position[1 + n]
        x = autoencoder.decoder_norm(autoencoder.decoder_blocks(torch.stack(tokens)[None]))
        expected = autoencoder.decoder_head(x)[0, 1:]
        torch.testing.assert_close(autoencoder.decode(latent, order)[b], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(position, sincos_position((4, 4), 32, 1)[0])


# --- patches and the loss --------------------------------------------------------------------------------------


def test_unpatchify_inverts_patchify(autoencoder, images):
    patches = autoencoder.patchify(images)
    assert patches.shape == (3, 16, 4 * 4 * 3)
    assert torch.equal(autoencoder.unpatchify(patches), images)
    assert torch.equal(patches[0, 5].view(4, 4, 3), images[0, :, 4:8, 4:8].permute(1, 2, 0))  # row 1, column 1


def test_normalised_target_has_zero_mean_and_unit_variance(autoencoder, images):
    target = autoencoder.target(5 + 3 * images)
    torch.testing.assert_close(target.mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(-1), torch.ones(3, 16), atol=1e-4, rtol=0)  # unbiased, as MAE's


def test_a_flat_patch_has_a_finite_target(autoencoder):
    assert torch.equal(autoencoder.target(torch.ones(1, 3, 16, 16)), torch.zeros(1, 16, 48))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_equals_a_naive_loop(autoencoder, images, noise, norm_pix):
    autoencoder.norm_pix = norm_pix
    loss, prediction, _ = autoencoder(images, 0.75, noise)
    total, hidden = 0.0, 0
    for b in range(3):
        kept = np.argsort(noise[b].numpy())[:4]
        for n in set(range(16)) - set(kept.tolist()):
            row, column = divmod(n, 4)
            patch = images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten().numpy()
            if norm_pix:
                patch = (patch - patch.mean()) / math.sqrt(patch.var(ddof=1) + 1e-6)
            total += float(((prediction[b, n].detach().numpy() - patch) ** 2).mean())
            hidden += 1
    assert loss.item() == pytest.approx(total / hidden, rel=1e-5)


def test_the_loss_ignores_predictions_of_visible_patches(autoencoder, images, noise, monkeypatch):
    loss, prediction, mask = autoencoder(images, 0.75, noise)

    def with_error(where: Tensor) -> Tensor:
        monkeypatch.setattr(autoencoder, "decode", lambda *_: prediction + 10 * where[..., None])
        return autoencoder(images, 0.75, noise)[0]

    assert with_error(1 - mask) == loss
    assert with_error(mask) > loss + 50


def test_deterministic_given_the_noise(autoencoder, images, noise):
    first, second = (autoencoder(images, 0.75, noise)[0] for _ in range(2))
    assert first == second
    assert first != autoencoder(images, 0.75, noise.flip(1))[0]


def test_bfloat16_autocast_keeps_the_loss_in_float32(autoencoder, images, noise):
    loss = autoencoder(images, 0.75, noise)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = autoencoder(images, 0.75, noise)[0]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(loss.item(), rel=0.02)


# --- training --------------------------------------------------------------------------------------------------


def test_every_trained_parameter_gets_a_gradient_and_positions_none(autoencoder, images, noise):
    autoencoder(images, 0.75, noise)[0].backward()
    without = [n for n, p in autoencoder.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DDP stops at an unused parameter
    assert not autoencoder.encoder.pos_embed.requires_grad and autoencoder.encoder.pos_embed.grad is None
    assert "decoder_position" not in dict(autoencoder.named_parameters())


def test_a_distilled_encoder_leaves_no_parameter_unused(images, noise):
    shape = dict(img_size=16, patch_size=4, embed_dim=48, depth=1, num_heads=3)
    mae = MaskedAutoencoder(models.create("deit_w64d4_patch2_8_distilled", **shape), 32, 1, 2)
    mae(images, 0.75, noise)[0].backward()
    assert all(p.grad is not None for p in mae.parameters() if p.requires_grad)


def test_the_loss_falls_on_one_batch(autoencoder, images, noise):
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = autoencoder(images, 0.75, noise)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_weights_start_as_maes(tiny_vit):
    mae = MaskedAutoencoder(tiny_vit)  # the decoder of the paper, 512 x 8
    assert len(mae.decoder_blocks) == 8 and mae.decoder_embed.out_features == 512
    assert mae.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert tiny_vit.cls_token.std().item() == pytest.approx(0.02, rel=0.5)
    bound = math.sqrt(6 / (48 + 3 * 4 * 4))  # xavier, the patch embedding taken as a linear layer
    assert 0.9 * bound < tiny_vit.patch_embed.proj.weight.abs().max() <= bound
    assert mae.decoder_blocks[0].norm1.eps == tiny_vit.blocks[0].norm1.eps == 1e-6
    assert isinstance(tiny_vit.head, torch.nn.Identity)


# --- positions -------------------------------------------------------------------------------------------------


def maes_position(grid: tuple[int, int], width: int) -> np.ndarray:
    """MAE's get_2d_sincos_pos_embed, one number at a time: the column's sines and cosines, then the row's."""
    rows, columns = grid
    out = np.zeros((rows * columns, width))
    for n in range(rows * columns):
        row, column = divmod(n, columns)
        for half, place in enumerate((column, row)):
            for k in range(width // 4):
                angle = place / 10000 ** (k / (width / 4))
                out[n, half * width // 2 + k] = math.sin(angle)
                out[n, half * width // 2 + width // 4 + k] = math.cos(angle)
    return out


@pytest.mark.parametrize(("grid", "width"), [((4, 4), 48), ((14, 14), 16), ((3, 5), 8)])
def test_position_is_maes_up_to_the_order_of_columns(grid, width):
    """timm stacks (row sines, column sines, row cosines, column cosines); a linear layer does not see the order."""
    ours = sincos_position(grid, width, prefix=1)[0, 1:].double().numpy()
    row_sin, column_sin, row_cos, column_cos = np.split(ours, 4, axis=1)
    reordered = np.concatenate([column_sin, column_cos, row_sin, row_cos], axis=1)
    np.testing.assert_allclose(reordered, maes_position(grid, width), atol=2e-6)


@pytest.mark.parametrize("prefix", [1, 2])
def test_rows_of_prefix_tokens_are_zero(prefix):
    position = sincos_position((4, 4), 48, prefix)
    assert position.shape == (1, prefix + 16, 48)
    assert not position[:, :prefix].any() and position[:, prefix:].any(-1).all()


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.95, 1.0, 1.5])
def test_a_ratio_that_hides_all_or_nothing_is_refused(autoencoder, images, ratio):
    with pytest.raises(ValueError, match="visible, or none hidden"):
        autoencoder(images, ratio)


def test_noise_of_another_shape_is_refused(autoencoder, images):
    with pytest.raises(ValueError, match=r"noise must be one number a patch, \(3, 16\)"):
        autoencoder(images, 0.75, torch.rand(3, 17))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(global_pool="avg"), "global_pool='token'"),
        (dict(reg_tokens=2), "register"),
        (dict(no_embed_class=True), "position rows"),
        (dict(class_token=False, global_pool="avg"), "global_pool='token'"),
        (dict(patch_size=(2, 4)), "square patches"),
        (dict(embed_dim=30, num_heads=3), "multiples of 4"),
    ],
)
def test_an_encoder_that_cannot_be_masked_is_refused(options, message):
    encoder = models.create("vit_w64d4_patch2_8", **options)
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(encoder, 32, 1, 2)


def test_only_timm_vits_are_wrapped():
    with pytest.raises(ValueError, match="timm VisionTransformer, got CifarResNet"):
        MaskedAutoencoder(models.resnet_cifar(8))
