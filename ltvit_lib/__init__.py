"""Long-tailed recognition with Vision Transformers trained from scratch: LiVT and DeiT-LT.

One alphabet throughout: B images, C classes, N tokens, H heads, L blocks, D width. Import this package before
timm or torchvision (see `_torchvision`).
"""

from ltvit_lib import _torchvision

_torchvision.repair()

__version__ = "0.1.0"
