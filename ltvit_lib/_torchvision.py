"""Let `import torchvision` (hence timm) work beside a CPU-only torch.

The torchvision wheels on PyPI are built for CUDA. Beside a CPU-only torch their compiled operators do not load,
and the import stops at the first shape function that is registered for an operator which nobody declared
(`operator torchvision::nms does not exist`). This library uses none of these operators, so it declares what is
missing, without an implementation, and imports again. Calling such an operator still raises; a matching pair
of builds never gets here.
"""

import re
import sys

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library withdraws its operators when it is garbage-collected


def repair() -> list[str]:
    """Import torchvision, declaring operators it lacks. Returns their names; none for a matching pair."""
    names: list[str] = []
    while True:
        try:
            import torchvision  # noqa: F401

            return names
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _SCHEMAS or missing[1] in names:
                raise
            names.append(missing[1])
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(_SCHEMAS[missing[1]])
            _declared.append(library)
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]  # half-imported
