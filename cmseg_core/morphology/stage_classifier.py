"""A trained classifier of the cell-cycle stage, and its file.

The file is JSON: ``format`` (1), the ``taxonomy`` of the cells it was trained on, the names of its ``features``
(:mod:`cmseg_core.morphology.stage_features`), the ``stages`` it knows, and the numbers of a multinomial logistic
regression: ``centre`` and ``scale`` of each feature, an ``offset`` and ``weights`` (one a feature) for each stage. With
x the features less their centre, over their scale, and no farther than 4 from 0, the score of a stage is its offset
plus the weighted sum of x, and the probabilities of the stages are the softmax of their scores. A feature that is not
known has x = 0. ``metadata`` says how it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from scipy.special import softmax

from cmseg_core.errors import InputError
from cmseg_core.morphology.review import has_single_copies
from cmseg_core.morphology.stage import SINGLE_COPY
from cmseg_core.morphology.stage_features import FEATURES, stage_features
from cmseg_core.schema import Frozen, Stage, Taxonomy, VoxelSize, first_problem

FORMAT = 1
SUFFIX = ".json"
_FARTHEST = 4.0
"""In units of the scale: a feature beyond, which no cell of the training had, counts no more than this."""
_MEND = "give a .json file that cmseg wrote (cmseg train --model stage)"

Number = Annotated[float, Field(allow_inf_nan=False)]


class StageClassifier(Frozen):
    """A multinomial logistic regression over the features of a cell.

    Attributes
    ----------
    format : 1
    taxonomy : Taxonomy
        Classes of the labels it was trained on; it judges cells of any taxonomy that has the organelles of
        :data:`~cmseg_core.morphology.stage.SINGLE_COPY`.
    features : tuple of str
        Among :data:`~cmseg_core.morphology.stage_features.FEATURES`.
    stages : tuple of int
        Stages that it can name, ascending.
    centre, scale : tuple of float
        For each feature.
    offset : tuple of float
        For each stage.
    weights : tuple of tuple of float
        For each stage, one weight a feature.
    metadata : dict
        JSON values: what it was trained on and how well it did.
    """

    format: Literal[1] = FORMAT
    taxonomy: Taxonomy
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    stages: Annotated[tuple[Stage, ...], Field(min_length=2)]
    centre: tuple[Number, ...]
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    offset: tuple[Number, ...]
    weights: tuple[tuple[Number, ...], ...]
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := sorted(set(self.features) - set(FEATURES)):
            raise ValueError(f"unknown features {', '.join(unknown)}")
        if not has_single_copies(self.taxonomy):
            raise ValueError(f"the taxonomy lacks one of {', '.join(SINGLE_COPY)}")
        if list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages must ascend, not {self.stages}")
        rows, columns = len(self.stages), len(self.features)
        lengths = [len(self.centre), len(self.scale), *(len(row) for row in self.weights)]
        if lengths != [columns] * (rows + 2) or len(self.offset) != rows:
            raise ValueError(f"centre, scale, offset and weights do not fit {rows} stages and {columns} features")
        return self

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probability of each stage.

        Parameters
        ----------
        features : ndarray of float, shape (cells, features)
            In the order of `features`. What is NaN, such as the shape of an organelle that was not found, says nothing:
            it counts as the centre.

        Returns
        -------
        ndarray of float, shape (cells, stages)
        """
        standard = standardised(np.asarray(features, float), np.array(self.centre), np.array(self.scale))
        return softmax(standard @ np.array(self.weights).T + np.array(self.offset), axis=1)

    def classify(self, features: Mapping[str, float]) -> tuple[Stage | None, float]:
        """The likeliest stage of a cell and its probability; None and 0.0 where no organelle was found."""
        values = np.array([[features[name] for name in self.features]])
        if all(np.isnan(features[f"{name}_reach"]) for name in SINGLE_COPY):
            return None, 0.0
        (chances,) = self.probabilities(values)
        best = int(np.argmax(chances))
        return self.stages[best], float(chances[best])

    def judges(self, taxonomy: Taxonomy) -> bool:
        """Whether cells of this taxonomy can be classified: whether it has the organelles, under any id."""
        return has_single_copies(taxonomy)

    def stage_of(self, labels: np.ndarray, taxonomy: Taxonomy, voxel_size: VoxelSize) -> tuple[Stage | None, float]:
        """Stage and confidence from the labels of one cell, uint8 of shape (z, y, x), 0 outside."""
        return self.classify(stage_features(labels, taxonomy, voxel_size))


def standardised(features: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features less their centre, over their scale; NaN becomes 0, and what lies far out comes in."""
    return np.nan_to_num(np.clip((features - centre) / scale, -_FARTHEST, _FARTHEST), nan=0.0)


def save_classifier(classifier: StageClassifier, path: str | Path) -> Path:
    """Write a classifier as one JSON file that ends in ``.json``; it is whole or absent."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(path, "is not a name for a stage classifier", f"let it end in {SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.partial")
    staged.write_text(
        json.dumps(classifier.model_dump(mode="json"), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    staged.replace(path)
    return path


def load_classifier(path: str | Path) -> StageClassifier:
    """Read a classifier that :func:`save_classifier` wrote.

    Raises
    ------
    InputError
        Where the file is absent, no JSON (a pickle, say), of another format, or not consistent.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path of the model") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise InputError(path, "is not JSON, or is damaged", _MEND) from error
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(path, "is not a stage classifier", _MEND)
    if content["format"] != FORMAT:
        raise InputError(path, f"is not of format {FORMAT}", "update cmseg, or train the classifier again")
    try:
        return StageClassifier.model_validate(content)
    except ValidationError as error:
        raise InputError(path, f"is not a stage classifier ({first_problem(error)})", _MEND) from error
