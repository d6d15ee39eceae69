"""How much memory a training needs, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import psutil

from cmseg_core.errors import InputError
from cmseg_core.organelles.dataset import LabelledCell, field_shape

if TYPE_CHECKING:
    from cmseg_core.organelles.training import TrainingConfig

VALUE_BYTES = {"float32": 80.0, "mixed_bfloat16": 56.0, "mixed_float16": 56.0}
"""Of the network's inner maps in a step, all levels together, for each voxel of the batch, channel of the first level,
and level of half the size of the one before. Measured with TensorFlow on a processor."""
WEIGHT_BYTES = 40.0
"""Of a weight, its gradient, two variables of the optimiser, and the copies to go back to."""
LIBRARIES_BYTES = 0.3e9
"""What TensorFlow takes for itself as it compiles a step. Measured."""


def training_bytes(
    cells: Sequence[LabelledCell], config: TrainingConfig, section_size: int, architecture: dict[str, Any]
) -> float:
    """Estimate the memory that a training takes besides its cells.

    Parameters
    ----------
    cells : sequence of LabelledCell
        Those of the validation too: each becomes a cube of image and labels.
    config : TrainingConfig
    section_size : int
    architecture : dict
        Arguments of :func:`cmseg_core.organelles.network.build_unet`.

    Returns
    -------
    float
        Bytes of the process; what a network needs on a GPU is not in it.
    """
    cubes = sum(2.0 * math.prod(field_shape(cell) if cell.field else (section_size,) * 3) for cell in cells)
    width, depth = architecture["width"], architecture["depth"]
    # Of 3 x 3 kernels a level has 1.5 times its channels squared going down and 5 times going up, the last only down.
    weights = sum(60.0 * (width * 2**level) ** 2 for level in range(depth)) + 14.0 * (width * 2**depth) ** 2
    voxels = config.batch_size * section_size**2
    batches = 4.0 * voxels * (architecture["channels_in"] + 1) * (config.validation_batches + 3)
    maps = VALUE_BYTES[config.precision] * voxels * width * (2 - 0.5**depth)
    if any(not device.startswith("cpu") for device in keras.distribution.list_devices()):
        maps = 0.0
    return cubes + WEIGHT_BYTES * weights + batches + maps + LIBRARIES_BYTES


def check_memory(
    cells: Sequence[LabelledCell],
    validation: Sequence[LabelledCell],
    config: TrainingConfig,
    section_size: int,
    architecture: dict[str, Any],
    max_memory_gb: float | None,
) -> None:
    """Refuse a training that needs more memory than it may use, or than the machine has free.

    Raises
    ------
    InputError
    """
    need = training_bytes([*cells, *validation], config, section_size, architecture) / 1e9
    held, free = psutil.Process().memory_info().rss / 1e9, psutil.virtual_memory().available / 1e9
    mend = "set a smaller batch_size, section_size or width"
    if max_memory_gb is not None and held + need > max_memory_gb:
        reason = f"needs about {held + need:.1f} GB of memory, the limit is {max_memory_gb:g} GB"
        raise InputError("training", reason, f"raise CMSEG_MAX_MEMORY_GB, or {mend}")
    if need > free:
        raise InputError("training", f"needs about {need:.1f} GB of memory more, {free:.1f} GB are free", mend)
