"""What timm lacks: compact ViTs for 8 and 32 pixel images, CIFAR ResNets, two classifiers, and both heads' logits.

The ViTs are registered under timm names, plain and distilled; the ResNets serve as teachers.
"""

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# --- compact ViTs ----------------------------------------------------------------------------------------------

# name: width, depth, heads, patch, image side. Plain as vit_<name>, with a DIST token as deit_<name>_distilled.
COMPACT = {
    "w64d4_patch2_8": dict(embed_dim=64, depth=4, num_heads=4, patch_size=2, img_size=8),
    "w96d6_patch4_32": dict(embed_dim=96, depth=6, num_heads=3, patch_size=4, img_size=32),
    "w128d6_patch4_32": dict(embed_dim=128, depth=6, num_heads=4, patch_size=4, img_size=32),
}


def _register_vit(name: str, kind: type, shape: dict) -> None:
    side, heads = shape["img_size"], ["head", "head_dist"] if kind is VisionTransformerDistilled else "head"
    card = dict(architecture=name, input_size=(3, side, side), fixed_input_size=True, crop_pct=1.0, classifier=heads,
                first_conv="patch_embed.proj")  # fmt: skip

    def build(pretrained: bool = False, pretrained_cfg: dict | None = None, **kwargs):
        if pretrained and not pretrained_cfg:  # an exported folder brings its own: "local-dir:...", "hf-hub:..."
            raise ValueError(f"{name} has no published weights: train it, or give checkpoint=")
        return build_model_with_cfg(kind, name, pretrained, pretrained_cfg=pretrained_cfg or card, **(shape | kwargs))

    build.__name__, build.__module__ = name, __name__
    register_model(build)


for _name, _shape in COMPACT.items():
    _register_vit(f"vit_{_name}", VisionTransformer, _shape)
    _register_vit(f"deit_{_name}_distilled", VisionTransformerDistilled, _shape)


def compact_names() -> list[str]:
    """The ViTs that are added to timm's."""
    return [f for n in COMPACT for f in (f"vit_{n}", f"deit_{n}_distilled")]


# --- CIFAR ResNets ---------------------------------------------------------------------------------------------

LDAM_SCALE = 30.0  # s of `losses.ldam`


class NormedLinear(nn.Module):
    """Cosine classifier of LDAM: both sides L2-normalised, no bias. Its output is a cosine in [-1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # unit rows, as LDAM's: the longer a row, the smaller the gradient's turn of it
        self.weight = nn.Parameter(F.normalize(torch.empty(out_features, in_features).uniform_(-1, 1), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class ScaledLinear(nn.Linear):
    """LWS: a classifier whose answers are multiplied by one learnt factor a class (Kang et al. 2020)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.scale = nn.Parameter(torch.ones(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut subsamples and pads with zeros (option A)."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - in_width) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1 or self.padding:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for small images (He et al. 2016, section 4.2), with LDAM-DRW's option to normalise the classifier."""

    def __init__(self, depth: int, num_classes: int, normed: bool, width: int = 16, in_chans: int = 3):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6 k + 2 (8, 20, 32, 44, 56), got {depth}")
        blocks, self.num_classes, self.num_features = (depth - 2) // 6, num_classes, 4 * width
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width] + [w for w in (width, 2 * width, 4 * width) for _ in range(blocks)]
        strides = [2 if stage and not i else 1 for stage in range(3) for i in range(blocks)]
        self.blocks = nn.Sequential(
            *(BasicBlock(*shape) for shape in zip(widths[:-1], widths[1:], strides, strict=True))
        )
        self.head = (NormedLinear if normed else nn.Linear)(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.bn1(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


def resnet_cifar(depth: int = 32, num_classes: int = 10, normed: bool = False, **kwargs) -> CifarResNet:
    """The teachers of the CIFAR experiments: ResNet-8, 20, 32 ... with 16, 32 and 64 channels.

    `normed` puts LDAM's cosine classifier on top. ResNet-32 for ten classes has 464,154 parameters, 464,144 normed.
    """
    return CifarResNet(depth, num_classes, normed, **kwargs)


# --- heads ---------------------------------------------------------------------------------------------------------


def head_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B, C) of the CLS head and of the DIST head; the second is None for a model without a DIST token.

    timm averages the two in eval mode; DeiT-LT's experts are looked at one by one.
    """
    if not isinstance(model, VisionTransformerDistilled):
        return model(images), None
    tokens = model.forward_features(images)  # (B, 2 + N, D)
    return model.head(model.head_drop(tokens[:, 0])), model.head_dist(model.head_drop(tokens[:, 1]))


def logit_scale(trained) -> float:
    """What a classifier's output is multiplied by to become logits: LDAM's s, and 1 after any other loss.

    Args:
        trained: the recipe, whose loss and `loss_options` decide; or, where there is none, the model: a cosine
            classifier is LDAM's, at its default.
    """
    if isinstance(trained, nn.Module):
        head = trained.get_classifier() if hasattr(trained, "get_classifier") else None
        return LDAM_SCALE if isinstance(head, NormedLinear) else 1.0
    return trained.loss_options.get("scale", LDAM_SCALE) if getattr(trained, "loss", "") == "ldam" else 1.0


@torch.no_grad()
def tau_normalise(model: nn.Module, tau: float = 1.0) -> None:
    """Divides each class's weights by their norm to the power tau and drops the bias, in place (Kang et al. 2020)."""
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"tau_normalise needs one linear classifier, got {type(head).__name__}")
    head.weight.div_(head.weight.norm(dim=1, keepdim=True).clamp_min(1e-12) ** tau)
    if head.bias is not None:
        head.bias.zero_()
