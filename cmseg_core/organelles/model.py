"""A trained network with what is needed to use it, in one file."""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.organelles.fusion import AXES, Weights
from cmseg_core.organelles.metadata import FORMAT, MEMBER, MEND, read_metadata
from cmseg_core.organelles.network import Precision, build_unet, precision
from cmseg_core.schema import Taxonomy, first_problem

_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True, eq=False)
class OrganelleModel:
    """A network and how to use it.

    Attributes
    ----------
    network : keras.Model
        Maps float32 (batch, y, x, channels) in 0..1 to class probabilities.
    taxonomy : Taxonomy
    section_size : int
        Edge of the sections, and of the cube that a cell is resampled to.
    temperature : float
        Divides the logarithms of the probabilities; 1 leaves them as they are.
    metadata : dict
        ``architecture`` (arguments of :func:`build_unet`), and whatever the training recorded. JSON values only.
    fusion : ndarray of float64, shape (3, classes), or None
        What the sections across z, y and x count for in each class when the directions are fused, of sum 1 over the
        directions. None, as in files of earlier versions: all count alike.
    """

    network: keras.Model
    taxonomy: Taxonomy
    section_size: int
    temperature: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)
    fusion: Weights | None = None

    @property
    def channels(self) -> int:
        """Neighbouring sections that the network sees at once."""
        return int(self.network.input_shape[-1])


def save_model(model: OrganelleModel, path: str | Path, *, half: bool = False) -> Path:
    """Write a model and its metadata as one `.keras` file.

    Parameters
    ----------
    model : OrganelleModel
    path : str or Path
        Ends in ``.keras``. Replaced as a whole once everything is written.
    half : bool
        Store the kernels as float16, which halves the file; normalisation and biases stay float32.

    Returns
    -------
    Path
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(path, "is not a name for a model", "let it end in .keras")
    content = {
        "format": FORMAT,
        "taxonomy": model.taxonomy.model_dump(mode="json"),
        "section_size": model.section_size,
        "temperature": model.temperature,
        "metadata": model.metadata,
        "fusion": None if model.fusion is None else _by_class(model.fusion, model.taxonomy),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, packed = Path(folder) / "plain.keras", Path(folder) / "packed.keras"
        model.network.save(plain)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                data = source.read(name)
                target.writestr(name, _halved(data, Path(folder)) if half and name == _WEIGHTS else data)
            target.writestr(MEMBER, json.dumps(content, indent=1, allow_nan=False))
        packed.replace(path)
    return path


def load_model(path: str | Path, *, policy: Precision | None = None) -> OrganelleModel:
    """Read a model that :func:`save_model` wrote. Nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
    policy : str, optional
        Rebuild the network with this precision, for example ``mixed_bfloat16`` for speed on recent processors.

    Returns
    -------
    OrganelleModel

    Raises
    ------
    InputError
        Where the file is absent, not a `.keras` archive (a pickle, say), damaged, or not written by cmseg.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "there is no such file", "check the path of the model")
    content = read_metadata(path)
    try:
        taxonomy = Taxonomy.model_validate(content["taxonomy"])
        section_size, temperature = int(content["section_size"]), float(content["temperature"])
        metadata = dict(content["metadata"])
        fusion = None if content.get("fusion") is None else _weights(content["fusion"], taxonomy)
    except ValidationError as error:
        raise InputError(path, f"has damaged metadata ({first_problem(error)})", MEND) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, f"has damaged metadata ({error})", MEND) from error
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras and h5py raise many kinds for a damaged or unsafe archive
        reason = (
            f"cannot be read as a Keras model ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
        raise InputError(path, reason, MEND) from error
    if network.output_shape[-1] != len(taxonomy):
        reason = f"has {network.output_shape[-1]} output channels for {len(taxonomy)} classes"
        raise InputError(path, reason, MEND)
    model = OrganelleModel(network, taxonomy, section_size, temperature, metadata, fusion)
    return model if policy is None else with_precision(model, policy)


def with_precision(model: OrganelleModel, policy: Precision) -> OrganelleModel:
    """The same model computed with another precision; needs the architecture in its metadata.

    Raises
    ------
    InputError
        Where the metadata does not say how the network was built.
    """
    try:
        architecture = dict(model.metadata["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("model", "does not state its architecture", "load it without a precision") from error
    with precision(policy):
        network = build_unet(**architecture)
    network.set_weights(model.network.get_weights())
    return replace(model, network=network)


def _by_class(fusion: Weights, taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """Weights as they stand in the file: class name to direction to weight."""
    shares = fusion.T.tolist()
    return {name: dict(zip(AXES, share, strict=True)) for name, share in zip(taxonomy.names, shares, strict=True)}


def _weights(content: dict[str, dict[str, float]], taxonomy: Taxonomy) -> Weights:
    """The inverse of :func:`_by_class`; raises ValueError or KeyError where the content is no such thing."""
    weights = np.array([[float(content[name][axis]) for name in taxonomy.names] for axis in AXES])
    if not ((weights >= 0).all() and np.allclose(weights.sum(axis=0), 1)):
        raise ValueError("weights of the directions that are no shares of 1")
    return weights


def _halved(weights: bytes, folder: Path) -> bytes:
    """An HDF5 file of weights with every kernel as float16. Keras casts back to float32 as it assigns them."""
    before, after = folder / "before.h5", folder / "after.h5"
    before.write_bytes(weights)

    with h5py.File(before, "r") as source, h5py.File(after, "w") as target:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                made: h5py.Group | h5py.Dataset = target.require_group(name)
            else:
                kernel = item.ndim > 1 and item.dtype == np.float32
                made = target.create_dataset(name, data=item[()].astype(np.float16) if kernel else item[()])
            made.attrs.update(dict(item.attrs))

        target.attrs.update(dict(source.attrs))
        source.visititems(copy)
    return after.read_bytes()
