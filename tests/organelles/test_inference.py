"""Fusion against the stacked probabilities, and the way of a cell to the cube and back."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.fusion import FusedProbabilities, Weights, equal_weights, fuse, weights_of
from cmseg_core.organelles.inference import axes_of, label_cell, predict_volume, segment_cell
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.preprocess.resample import CubeGrid
from cmseg_core.schema import OrganellesConfig, PreprocessConfig, VoxelSize
from tests.organelles.toy import GREYS, TAXONOMY, VOXEL, toy_cell

PLAIN = PreprocessConfig(bilateral_spatial_sigma=0, interpolation="nearest")
UNFILTERED = OrganellesConfig(filter="none", batch_size=12)


class _Watched:
    """A network that notes the shapes of the batches it is given."""

    def __init__(self, network: keras.Model, seen: list[tuple[int, ...]]) -> None:
        self.network, self.seen, self.input_shape = network, seen, network.input_shape

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch.shape)
        return self.network.predict_on_batch(batch)


@pytest.fixture(scope="module")
def by_grey() -> OrganelleModel:
    """A network that names the class whose grey is nearest, so that every right answer is known."""
    inputs = keras.Input((None, None, 1))
    scores = keras.layers.Conv2D(len(TAXONOMY), 1)(inputs)
    network = keras.Model(inputs, keras.layers.Activation("softmax")(scores))
    greys = np.array(GREYS) / 255
    network.set_weights([(2 * greys * 300)[None, None, None, :], -(greys**2) * 300])
    return OrganelleModel(network, TAXONOMY, 32)


def stacked(rng: np.random.Generator, edge: int, classes: int, directions: int) -> np.ndarray:
    """Probabilities as every direction would have them, on the volume's own axes: (directions, z, y, x, classes)."""
    scores = rng.random((directions, edge, edge, edge, classes)) ** 4
    return (scores / scores.sum(axis=-1, keepdims=True)).astype(np.float32)


def uneven(classes: int) -> Weights:
    """Another share of every direction in every class; one class is left to one direction."""
    weights = np.random.default_rng(5).dirichlet((1, 1, 1), classes).T
    weights[:, 1] = (0, 1, 0)
    return weights


def oracle_of(everything: np.ndarray, weights: Weights | None) -> np.ndarray:
    """The fused stack (z, y, x, classes), by plain numpy."""
    if weights is None:
        return everything.max(axis=0)
    return sum(share * part for share, part in zip(weights, everything, strict=True))


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("rule", ["maximum", "mean", "model"])
def test_running_fusion_is_the_fusion_of_the_stack(rule, directions: int) -> None:
    edge, classes = 11, 5
    everything = stacked(np.random.default_rng(0), edge, classes, directions)
    weights = weights_of(rule, uneven(classes), range(directions), classes)
    fused = FusedProbabilities((edge,) * 3, classes, weights)
    for axis in range(directions):
        sections = np.moveaxis(everything[axis], axis, 0)
        for start in range(0, edge, 4):
            fused.add(axis, start, sections[start : start + 4])

    oracle = oracle_of(everything, weights if weights is None else weights[:directions])
    if rule == "mean":
        np.testing.assert_allclose(oracle, everything.mean(axis=0), atol=1e-6)
    if directions == 3:
        at_once = fuse(everything.reshape(3, -1, classes).swapaxes(0, 1), weights)
        np.testing.assert_allclose(at_once, oracle.reshape(-1, classes), atol=1e-6)
    labels = fused.labels()
    chosen = np.take_along_axis(oracle, labels[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, oracle.max(axis=-1), atol=4 / 65535)  # the same class, but for level ones
    assert (labels != oracle.argmax(axis=-1)).mean() < 2e-3
    share = 255 * oracle.max(axis=-1) / oracle.sum(axis=-1)
    np.testing.assert_allclose(fused.confidence(), share, atol=0.51)
    winners = everything.argmax(axis=-1)
    differs = (winners != winners[0]).any(axis=0)[labels > 0].mean()
    assert fused.disagreement(labels) == pytest.approx(differs)
    assert (directions == 1) == (fused.disagreement(labels) == 0)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_weights_are_shared_by_the_directions_there_are(axes: tuple[int, ...]) -> None:
    missing = [axis for axis in range(3) if axis not in axes]
    for rule in ("mean", "model"):
        weights = weights_of(rule, uneven(4), axes, 4)
        np.testing.assert_allclose(weights.sum(axis=0), 1)
        assert not weights[missing].any()
    fitted = weights_of("model", uneven(4), axes, 4)
    assert np.ptp(fitted[axes[0]]) > 0.1 or len(axes) == 1
    if 1 not in axes:
        np.testing.assert_allclose(fitted[list(axes), 1], 1 / len(axes))
    np.testing.assert_array_equal(weights_of("model", None, axes, 4), weights_of("mean", uneven(4), axes, 4))
    assert weights_of("maximum", uneven(4), axes, 4) is None


def test_certainty_in_every_direction_stays_within_16_bits() -> None:
    for weights in (equal_weights(2), *(np.random.default_rng(n).dirichlet((1, 1, 1), 2).T for n in range(50))):
        fused = FusedProbabilities((1, 1, 1), 2, weights)
        for axis in range(3):
            fused.add(axis, 0, np.array([0.0, 1 + 1e-6], np.float32).reshape(1, 1, 1, 2))
        assert fused.labels().item() == 1
        assert fused.confidence().item() == 255


def test_the_weights_of_the_model_are_those_it_is_used_with(by_grey) -> None:
    cell = toy_cell(1)
    weights = np.repeat([[0.0], [0.0], [1.0]], len(TAXONOMY), axis=1)
    found = predict_volume(cell.image, replace(by_grey, fusion=weights), UNFILTERED)
    shifted = replace(by_grey, fusion=np.roll(weights, 1, axis=0))
    mean = predict_volume(cell.image, by_grey, UNFILTERED.model_copy(update={"fusion": "mean"}))
    assert (predict_volume(cell.image, by_grey, UNFILTERED).confidence() == mean.confidence()).all()
    again = predict_volume(cell.image, shifted, UNFILTERED.model_copy(update={"fusion": "mean"}))
    assert (again.confidence() == mean.confidence()).all()
    np.testing.assert_array_equal(found.labels(), predict_volume(cell.image, shifted, UNFILTERED).labels())


@pytest.mark.parametrize("rule", ["maximum", "mean", "model"])
def test_expected_iou_is_the_share_of_what_is_likely(rule) -> None:
    everything = stacked(np.random.default_rng(1), 9, 4, 3)
    weights = weights_of(rule, uneven(4), range(3), 4)
    fused = FusedProbabilities((9,) * 3, 4, weights)
    for axis in range(3):
        fused.add(axis, 0, np.moveaxis(everything[axis], axis, 0))
    labels = fused.labels()
    labels[labels == 3] = 1
    p = oracle_of(everything, weights)
    p /= p.sum(axis=-1, keepdims=True)
    expected = fused.expected_iou(labels)
    for c in range(3):
        own = labels == c
        assert expected[c] == pytest.approx(p[own, c].sum() / (own.sum() + p[~own, c].sum()), abs=1e-3)
    assert np.isnan(expected[3])


def test_expected_iou_is_what_the_iou_comes_to_where_probabilities_are_true() -> None:
    rng = np.random.default_rng(2)
    sure = rng.random((40, 40, 40)).astype(np.float32) ** 3
    fused = FusedProbabilities((40,) * 3, 2, None)
    fused.add(0, 0, np.stack([1 - sure, sure], axis=-1))
    labels, truth = fused.labels(), rng.random(sure.shape) < sure
    iou = ((labels == 1) & truth).sum() / ((labels == 1) | truth).sum()
    assert fused.expected_iou(labels)[1] == pytest.approx(iou, abs=0.02)


def test_the_most_certain_direction_wins() -> None:
    fused = FusedProbabilities((1, 1, 1), 3, None)
    for axis, probabilities in enumerate([(0.5, 0.5, 0.0), (0.45, 0.55, 0.0), (0.1, 0.3, 0.6)]):
        fused.add(axis, 0, np.array(probabilities, np.float32).reshape(1, 1, 1, 3))
    assert fused.labels().item() == 2
    assert fused.confidence().item() == round(255 * 0.6 / (0.5 + 0.55 + 0.6))
    assert fused.disagreement(fused.labels()) == 1.0
    assert fused.disagreement(np.zeros((1, 1, 1), np.uint8)) == 0.0


def test_outlines_run_between_the_voxels_of_the_cube() -> None:
    grid = CubeGrid((40, 40, 40), VoxelSize(z=10, y=10, x=10), 16)
    away = [np.linalg.norm(np.stack(np.indices((n,) * 3)) - (n - 1) / 2, axis=0) * 40 / n for n in (16, 40)]
    inside = (1 / (1 + np.exp((away[0] - 11) / 2))).astype(np.float32)
    fused = FusedProbabilities((16, 16, 16), 2, None)
    fused.add(0, 0, np.stack([1 - inside, inside], axis=-1))
    truth = away[1] < 11

    def iou(labels: np.ndarray) -> float:
        return float(((labels > 0) & truth).sum() / ((labels > 0) | truth).sum())

    labels = fused.labels_on(grid)
    assert iou(labels) > 0.93 > iou(grid.to_native(fused.labels(), "nearest")) + 0.05
    confidence = fused.confidence_on(grid, labels)
    assert confidence.min() >= 127
    assert confidence[20, 20, 20] == pytest.approx(255 * inside.max(), abs=2)


def test_sections_go_back_to_where_they_were_cut(by_grey) -> None:
    cell = toy_cell(1, noise=0)
    for directions in (1, 3):
        fused = predict_volume(cell.image, by_grey, UNFILTERED.model_copy(update={"directions": directions}))
        assert np.array_equal(fused.labels(), cell.labels)
        assert fused.confidence().min() > 200


def test_a_cell_comes_back_on_its_native_grid(by_grey) -> None:
    cell = toy_cell(1, noise=0)
    crop, truth = cell.image[::2, 3:, 2:29], cell.labels[::2, 3:, 2:29]
    found = segment_cell(crop, truth > 0, None, VoxelSize(z=40, y=20, x=20), by_grey, UNFILTERED, PLAIN)
    assert found.labels.shape == found.confidence.shape == crop.shape
    assert found.labels.dtype == found.confidence.dtype == np.uint8
    assert (found.labels == truth).mean() > 0.97
    assert found.disagreement == 0.0
    assert list(found.expected_iou) == ["cell", "big", "small"]
    assert min(value or 0 for value in found.expected_iou.values()) > 0.7


def test_nothing_is_found_in_neighbours_or_far_from_the_cell(by_grey) -> None:
    cell = toy_cell(1, noise=0)
    image, own = cell.image.copy(), cell.labels > 0
    others = np.zeros_like(own)
    image[:6, :6, :6], others[:6, :6, :6] = GREYS[1], True
    image[26:, 26:, 26:] = GREYS[2]  # dirt that belongs to nobody
    own[:, :, 20:] = False
    found = segment_cell(image, own, others, VOXEL, by_grey, UNFILTERED, PLAIN).labels
    assert not found[others].any()
    assert not found[:, :, 24:].any()
    assert np.array_equal(found[:, :, :24], cell.labels[:, :, :24])
    free = segment_cell(image, None, None, VOXEL, by_grey, UNFILTERED, PLAIN).labels
    assert free[:6, :6, :6].all() and free[28:, 28:, 28:].all()


def test_filters_remove_single_voxels(by_grey) -> None:
    cell = toy_cell(1, noise=0)
    image = cell.image.copy()
    image[1, 1, 1] = GREYS[3]
    for name, left in (("none", 3), ("median", 0), ("majority", 0)):
        config = UNFILTERED.model_copy(update={"filter": name})
        assert segment_cell(image, None, None, VOXEL, by_grey, config, PLAIN).labels[1, 1, 1] == left


def test_a_labelled_cell_is_scored_without_help_from_its_labels(by_grey) -> None:
    cell = toy_cell(1, noise=0)
    image = cell.image.copy()
    image[:4, :4, :4] = GREYS[2]
    found = label_cell(replace(cell, image=image), by_grey, UNFILTERED, PLAIN)
    assert found.labels[:4, :4, :4].all()
    assert np.array_equal(found.labels[4:], cell.labels[4:])


def test_fields_are_tiled_and_small_ones_mirrored(by_grey) -> None:
    cell = toy_cell(1, edge=45, noise=0)
    for labels, image in ((cell.labels, cell.image), (cell.labels[:20, :, :9], cell.image[:20, :, :9])):
        field = replace(cell, labels=labels, image=image, field=True)
        assert np.array_equal(label_cell(field, by_grey, UNFILTERED, PLAIN).labels, labels)


def test_a_thin_field_is_cut_in_one_direction(by_grey) -> None:
    cell = toy_cell(1, edge=45, noise=0)
    thin = replace(cell, labels=cell.labels[:5], image=cell.image[:5], field=True)
    assert axes_of(thin.image, by_grey, UNFILTERED) == (0,)
    seen = []
    watched = replace(by_grey, network=_Watched(by_grey.network, seen))
    found = label_cell(thin, watched, UNFILTERED.model_copy(update={"flips": 1}), PLAIN)
    assert np.array_equal(found.labels, thin.labels)
    assert found.disagreement == 0
    # Four tiles cover a section; in batches of twelve the five sections take two.
    assert len(seen) == 2


def test_a_section_alone_is_filtered_in_itself(by_grey) -> None:
    image = np.full((1, 32, 32), GREYS[1], np.uint8)
    image[0, 1, 1] = GREYS[3]
    alone = replace(toy_cell(1), image=image, labels=np.ones_like(image), voxel_size=VoxelSize(z=90, y=20, x=20))
    config = UNFILTERED.model_copy(update={"filter": "median"})
    found = label_cell(replace(alone, field=True), by_grey, config, PLAIN)
    assert found.labels.shape == (1, 32, 32)
    assert (found.labels == 1).all()


@pytest.mark.parametrize(
    "wrong", [{"image": np.zeros((8, 8), np.uint8)}, {"image": np.zeros((8, 8, 8))}, {"own": np.zeros((8, 8, 9), bool)}]
)
def test_crops_that_cannot_be_used_are_refused(by_grey, wrong: dict[str, np.ndarray]) -> None:
    crop = {"image": np.zeros((8, 8, 8), np.uint8), "own": None, "others": None, **wrong}
    with pytest.raises(InputError):
        segment_cell(crop["image"], crop["own"], crop["others"], VOXEL, by_grey, UNFILTERED, PLAIN)


def test_flips_make_up_for_the_directions_that_a_thin_volume_lacks(by_grey: OrganelleModel) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)

    def looks(volume: np.ndarray, config: OrganellesConfig) -> int:
        seen: list[tuple[int, ...]] = []
        predict_volume(volume, replace(by_grey, network=_Watched(by_grey.network, seen)), config)
        return len(seen)

    assert looks(volume, OrganellesConfig(batch_size=32)) == 3
    assert looks(volume[:2], OrganellesConfig(batch_size=32)) == 4
    assert looks(volume[:2], OrganellesConfig(batch_size=32, flips=1)) == 1
    assert looks(volume, OrganellesConfig(batch_size=32, flips=8)) == 24
