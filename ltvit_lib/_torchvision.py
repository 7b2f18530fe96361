"""Let `import torchvision` (hence timm) work beside a CPU-only torch.

The torchvision wheels on PyPI are built for CUDA. Beside a CPU-only torch their compiled operators do not load,
and the import stops at the first shape function that is registered for an operator which nobody declared
(`operator torchvision::nms does not exist`). This library uses none of these operators, so it declares what is
missing, without an implementation, and imports again. Calling such an operator still raises; a matching pair
of builds never gets here.
"""

import sys

import torch

OPERATORS = ("nms", "qnms")  # that shape functions are registered for
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library withdraws its operators when it is garbage-collected


def repair() -> None:
    """Imports torchvision, declaring operators it lacks; none for a matching pair."""
    lacking = list(OPERATORS)
    while True:
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as error:
            missing = next((name for name in lacking if f"torchvision::{name} does not exist" in str(error)), None)
            if missing is None:
                raise
            lacking.remove(missing)
            _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
            _declared[-1].define(missing + SCHEMA)
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]  # half-imported
