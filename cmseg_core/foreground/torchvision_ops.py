"""Lets torchvision from PyPI import beside a CPU build of PyTorch.

torchvision's wheel is compiled against the CUDA build. Beside a CPU build its extension does not load, and its Python
part then fails to import because the operators it describes do not exist. segment_anything needs only pure Python
parts of torchvision, so declaring the operators is enough.
"""

from __future__ import annotations

import importlib
import sys

import torch


def declare_missing() -> None:
    """Make ``import torchvision`` work; does nothing where it already does."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        importlib.import_module("torchvision")


_DECLARED: list[torch.library.Library] = []  # a library's definitions vanish with the object
