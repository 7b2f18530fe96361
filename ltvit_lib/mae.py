"""Masked generative pre-training (LiVT section 4.1, equation 4): a masked autoencoder around a timm ViT.

The encoder sees a quarter of the patches; a small transformer fills in the rest. He et al. 2022 and LiVT train the
same model; the loss is taken on the hidden patches, each normalised by its own mean and deviation (what LiVT ran;
its equation 4 and Algorithm 1 describe a plain squared error over the whole image: `norm_pix=False` and a mean
over all patches come closest).
"""

from functools import partial

import timm.models.vision_transformer as vision_transformer
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn


def sincos_position(grid: tuple[int, int], width: int, prefix: int) -> Tensor:
    """Fixed 2-D sine-cosine position embedding (1, prefix + N, D); the rows of prefix tokens are zero."""
    patches = build_sincos2d_pos_embed(list(grid), dim=width, temperature=10000.0, interleave_sin_cos=False)
    return torch.cat([torch.zeros(prefix, width), patches])[None]


class MaskedAutoencoder(nn.Module):
    """A timm ViT as encoder, with a light decoder that exists for pre-training only.

    `encoder.state_dict()` loads straight into a timm ViT for fine-tuning.

    Args:
        encoder: a timm VisionTransformer with a class token, built with global_pool="token" so that its last norm is
            in use. Its position embedding becomes the fixed sine-cosine one, frozen while pre-training; its
            classifier is removed.
        decoder_width, decoder_depth, decoder_heads: 512, 8, 16 in LiVT for every encoder size.
        norm_pix: compare each patch after normalising it by its own mean and unbiased variance.

    Raises:
        ValueError: an encoder of another kind, or widths that the position embedding cannot fill.
    """

    def __init__(self, encoder, decoder_width=512, decoder_depth=8, decoder_heads=16, norm_pix=True):
        super().__init__()
        if not isinstance(encoder, vision_transformer.VisionTransformer):
            raise ValueError(f"encoder must be a timm VisionTransformer, got {type(encoder).__name__}")
        grid, patch = encoder.patch_embed.grid_size, encoder.patch_embed.patch_size
        channels, prefix = encoder.in_chans, encoder.num_prefix_tokens
        rows = None if encoder.pos_embed is None else encoder.pos_embed.shape[1]
        if encoder.global_pool != "token" or encoder.reg_token is not None or rows != prefix + grid[0] * grid[1]:
            raise ValueError(
                "encoder must be built with global_pool='token', without register tokens, and with position rows for "
                "patches and tokens alike"
            )
        if patch[0] != patch[1]:
            raise ValueError(f"encoder must have square patches, got {patch}")
        if encoder.embed_dim % 4 or decoder_width % 4 or decoder_width % decoder_heads:
            raise ValueError(
                f"widths must be multiples of 4, and the decoder's of its heads, got {encoder.embed_dim} and "
                f"{decoder_width} with {decoder_heads} heads"
            )
        self.encoder, self.norm_pix, self.patch_size = encoder, norm_pix, patch[0]
        encoder.pos_embed = nn.Parameter(sincos_position(grid, encoder.embed_dim, prefix), requires_grad=False)
        encoder.reset_classifier(0)  # pre-training has no labels, and DDP wants every parameter used
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.register_buffer("decoder_position", sincos_position(grid, decoder_width, prefix), persistent=False)
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(vision_transformer.Block, decoder_width, decoder_heads, qkv_bias=True, norm_layer=norm)
        self.decoder_blocks = nn.Sequential(*(block() for _ in range(decoder_depth)))
        self.decoder_norm = norm(decoder_width)
        self.decoder_head = nn.Linear(decoder_width, self.patch_size**2 * channels)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform linear layers, patch embedding included; class and mask tokens N(0, .02) (He et al.)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.encoder.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.data.view(projection.shape[0], -1))
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, N, patch * patch * channels)."""
        b, c, h, w = images.shape
        p = self.patch_size
        x = images.reshape(b, c, h // p, p, w // p, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of `patchify`: (B, N, patch * patch * channels) -> (B, channels, H, W)."""
        b, p = len(patches), self.patch_size
        rows, columns = self.encoder.patch_embed.grid_size
        x = patches.reshape(b, rows, columns, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, rows * p, columns * p)

    def encode(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None):
        """Encodes the visible patches only.

        Args:
            noise: (B, N) one number a patch; the smallest are kept. Drawn here if None.

        Returns:
            tokens (B, prefix + N_keep, D) and the shuffle (B, N), kept patches first.
        """
        vit = self.encoder
        x = vit.patch_embed(images)  # (B, N, D)
        prefix = vit.num_prefix_tokens
        x = x + vit.pos_embed[:, prefix:]
        if noise is None:
            noise = torch.rand(x.shape[:2], device=x.device)
        order = noise.argsort(dim=1)
        keep = order[:, : int(x.shape[1] * (1 - mask_ratio))]
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))  # (B, N_keep, D)
        tokens = [t for t in (vit.cls_token, getattr(vit, "dist_token", None)) if t is not None]
        first = torch.cat(tokens, dim=1) + vit.pos_embed[:, :prefix]
        x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        return vit.norm(vit.blocks(vit.norm_pre(x))), order

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """Tokens of the visible patches -> predicted pixels of every patch (B, N, patch * patch * channels)."""
        prefix = self.encoder.num_prefix_tokens
        x = self.decoder_embed(latent)
        hidden = self.mask_token.expand(len(x), order.shape[1] + prefix - x.shape[1], -1)
        patches = torch.cat([x[:, prefix:], hidden.to(x.dtype)], dim=1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, x.shape[2])
        x = torch.cat([x[:, :prefix], patches.gather(1, back)], dim=1) + self.decoder_position
        x = self.decoder_head(self.decoder_norm(self.decoder_blocks(x)))
        return x[:, prefix:]

    def target(self, images: Tensor) -> Tensor:
        """What the decoder must predict, (B, N, patch * patch * channels)."""
        patches = self.patchify(images)
        if not self.norm_pix:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()

    def forward(self, images: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None):
        """Mean squared error on the hidden patches.

        Returns:
            loss (scalar), prediction (B, N, patch * patch * channels) and mask (B, N), 1 = hidden;
            int(N * (1 - mask_ratio)) patches are kept.

        Raises:
            ValueError: a mask ratio that leaves no patch visible or none hidden, or noise of another shape.
        """
        count = self.encoder.patch_embed.num_patches
        if noise is not None and noise.shape != (len(images), count):
            raise ValueError(f"noise must be one number a patch, ({len(images)}, {count}), got {tuple(noise.shape)}")
        if not 0 < int(count * (1 - mask_ratio)) < count:
            raise ValueError(f"mask_ratio {mask_ratio} leaves no patch of {count} visible, or none hidden: try 0.75")
        latent, order = self.encode(images, mask_ratio, noise)
        prediction = self.decode(latent, order)
        mask = torch.ones(order.shape, device=images.device)
        mask.scatter_(1, order[:, : latent.shape[1] - self.encoder.num_prefix_tokens], 0.0)
        error = (prediction.float() - self.target(images).float()).square().mean(-1)  # (B, N)
        return (error * mask).sum() / mask.sum(), prediction, mask
