"""What is skipped and what is filtered: sections beyond a cell's reach, and confidence after the filter."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.organelles.fusion import FusedProbabilities
from cmseg_core.organelles.inference import predict_volume, segment_cell
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.schema import OrganelleClass, OrganellesConfig, PreprocessConfig, Taxonomy, VoxelSize

SIDE, CLASSES = 32, 3
TAXONOMY = Taxonomy(classes=tuple(OrganelleClass(id=i, name=f"class{i}") for i in range(CLASSES)))
PLAIN = PreprocessConfig(interpolation="nearest", bilateral_spatial_sigma=0)
VOXEL = VoxelSize(z=45, y=20, x=20)
SMALL_CELL = (slice(6, 9), slice(9, 15), slice(14, 20))


class Noise:
    """Stands in for a network: probabilities that depend on the grey levels of the section alone."""

    input_shape = (None, SIDE, SIDE, 1)

    def __init__(self) -> None:
        self.seen = 0

    def predict_on_batch(self, images: np.ndarray) -> np.ndarray:
        self.seen += int(np.count_nonzero(images.any(axis=(1, 2, 3))))
        phase = images * np.float32(255.0)
        raw = np.concatenate([np.sin(phase * k) ** 2 + 0.01 for k in (1.3, 2.1, 3.7)], axis=-1)
        return (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def crop() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(4).integers(1, 255, (14, 32, 30)).astype(np.uint8)
    own = np.zeros(image.shape, np.bool_)
    own[SMALL_CELL] = True
    return image, own


@pytest.mark.parametrize("filter_", ["median", "majority", "none"])
@pytest.mark.parametrize("fusion", ["maximum", "mean", "model"])
def test_skipped_sections_change_nothing_where_the_cell_can_be(crop, monkeypatch, fusion, filter_) -> None:
    image, own = crop
    config = OrganellesConfig(fusion=fusion, filter=filter_, batch_size=8)
    weights = np.array([[0.5, 0.1, 1.0], [0.5, 0.2, 0.0], [0.0, 0.7, 0.0]])
    model = OrganelleModel(Noise(), TAXONOMY, SIDE, fusion=weights)
    found = segment_cell(image, own, None, VOXEL, model, config, PLAIN)
    skipping, model.network.seen = model.network.seen, 0

    def all_sections(volume, model, config, reach):
        return predict_volume(volume, model, config)

    monkeypatch.setattr("cmseg_core.organelles.inference.predict_volume", all_sections)
    whole = segment_cell(image, own, None, VOXEL, model, config, PLAIN)
    assert skipping < model.network.seen == 3 * SIDE
    np.testing.assert_array_equal(found.labels, whole.labels)
    assert found.labels[own].any()
    near = found.labels > 0
    np.testing.assert_array_equal(found.confidence[near], whole.confidence[near])


def test_a_mask_without_a_voxel_costs_nothing_and_finds_nothing(crop) -> None:
    image, own = crop
    model = OrganelleModel(Noise(), TAXONOMY, SIDE)
    found = segment_cell(image, np.zeros_like(own), None, VOXEL, model, OrganellesConfig(), PLAIN)
    assert not found.labels.any() and model.network.seen == 0
    assert found.disagreement == 0


def test_confidence_is_that_of_the_class_the_filter_left() -> None:
    fused = FusedProbabilities((2, 2, 2), CLASSES, None)
    probabilities = np.full((2, 2, 2, CLASSES), (0.1, 0.7, 0.2), np.float32)
    fused.add(0, 0, probabilities)
    labels = fused.labels()
    labels[0, 0, 0] = 2
    confidence = fused.confidence(labels)
    assert confidence[0, 0, 0] == round(0.2 * 255)
    assert set(np.unique(confidence)) == {51, round(0.7 * 255)}
    np.testing.assert_array_equal(fused.confidence(fused.labels()), fused.confidence())
