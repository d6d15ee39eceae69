"""Cubes of labelled cells and the sections drawn from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.augmentation import AugmentationConfig, cut_window, random_greys
from cmseg_core.organelles.dataset import LabelledCell, SectionSampler, cube_of, section_axes, section_stack
from cmseg_core.organelles.isolation import isolate_cell, resin_grey
from cmseg_core.schema import PreprocessConfig, VoxelSize
from tests.organelles.toy import GREYS, TAXONOMY, VOXEL, toy_cell

PLAIN = PreprocessConfig(bilateral_spatial_sigma=0)
STILL = AugmentationConfig.model_validate(dict.fromkeys(AugmentationConfig.model_fields, 0))


def sampler(*cells: LabelledCell, **options) -> SectionSampler:
    cubes = [cube_of(cell, 32, PLAIN) for cell in cells or [toy_cell(0)]]
    return SectionSampler(cubes, TAXONOMY, 32, **{"batch_size": 16, "seed": 1, **options})


def test_a_cube_of_its_own_size_is_the_cell_itself() -> None:
    cell = toy_cell(0)
    cube = cube_of(cell, 32, PLAIN)
    assert np.array_equal(cube.image, cell.image)
    assert np.array_equal(cube.labels, cell.labels)


def test_a_flat_crop_is_padded_with_resin_and_the_class_shares_stay() -> None:
    cell = toy_cell(0, noise=0)
    thin = LabelledCell(cell.image[:, 8:24], cell.labels[:, 8:24], VoxelSize(z=20, y=40, x=20))
    cube = cube_of(replace(thin, voxel_size=VOXEL), 64, PLAIN)
    assert cube.image.shape == cube.labels.shape == (64, 64, 64)
    assert (cube.image[:, :15] == GREYS[0]).all()
    assert not cube.labels[:, :15].any()
    shares = [np.bincount(labels.ravel(), minlength=4)[1:] for labels in (thin.labels, cube.labels)]
    np.testing.assert_allclose(shares[1], 8 * shares[0], rtol=0.02)
    # With voxels twice as tall in y the same crop fills the cube.
    assert (cube_of(thin, 32, PLAIN).labels > 0).any(axis=(0, 2)).all()


def test_neighbours_become_resin_but_not_next_to_the_cell() -> None:
    cell = toy_cell(0, noise=0)
    others = np.zeros(cell.labels.shape, bool)
    others[:, :, 24:] = cell.labels[:, :, 24:] == 0
    image = cell.image.copy()
    image[others] = 10
    isolated = isolate_cell(image, cell.labels > 0, others)
    assert isolated[0, 0, 31] == GREYS[0] == resin_grey(image, cell.labels > 0, others)
    kept = others & (isolated == 10)
    z, y, x = np.argwhere(kept).T
    assert len(z) and all(
        (cell.labels[a - 2 : a + 3, b - 2 : b + 3, c - 2 : c + 3] > 0).any() for a, b, c in zip(z, y, x, strict=True)
    )
    assert np.array_equal(isolated[~others], image[~others])
    assert isolate_cell(image, cell.labels > 0, None) is image
    assert resin_grey(image, np.ones_like(others)) == 0


def test_batches_depend_on_seed_and_number_alone() -> None:
    one, two = sampler(augmentation=AugmentationConfig()), sampler(augmentation=AugmentationConfig())
    third = one.batch(3)
    threaded = list(two.batches(0, 5))
    assert len(threaded) == 5
    for a, b in zip(third, threaded[3], strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(third[0], one.batch(4)[0])
    assert not np.array_equal(third[0], sampler(augmentation=AugmentationConfig(), seed=2).batch(3)[0])


def test_batches_have_the_promised_form() -> None:
    images, labels = sampler(augmentation=AugmentationConfig(), channels=3).batch(0)
    assert images.shape == (16, 32, 32, 3) and images.dtype == np.float32
    assert labels.shape == (16, 32, 32) and labels.dtype == np.int32
    assert 0 <= images.min() < images.max() <= 1


def test_sections_come_from_all_axes_and_match_their_labels() -> None:
    cell = toy_cell(0, noise=0)
    images, labels = sampler(cell, batch_size=64).batch(0)
    assert np.array_equal(np.rint(images[..., 0] * 255), np.array(GREYS)[labels])
    seen = [any(np.array_equal(s, cell.labels.take(i, axis=a)) for s in labels for i in range(32)) for a in range(3)]
    assert all(seen)


def test_geometry_moves_image_and_labels_alike() -> None:
    geometry = STILL.model_copy(
        update={"orientations": True, "warped": 1, "rotation_degrees": 20, "scale": 0.2, "shift": 0.1, "elastic": 0.5}
    )
    images, labels = sampler(toy_cell(0, noise=0), augmentation=geometry, batch_size=48).batch(0)
    off = np.abs(images[..., 0] * 255 - np.array(GREYS)[labels]) > 45  # only at outlines, where greys blend
    assert 0 < off.mean() < 0.06


@pytest.mark.parametrize("channels", [1, 5])
def test_greys_stay_where_nothing_is_switched_on_and_every_change_changes_something(channels: int) -> None:
    image = np.moveaxis(toy_cell(0).image[16 : 16 + channels], 0, -1)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(random_greys(rng, image, STILL), image / 255, atol=1e-6)
    for name in ("gamma", "contrast", "brightness", "noise"):
        assert np.abs(random_greys(rng, image, STILL.model_copy(update={name: 0.2})) - image / 255).max() > 0.01, name
    for name in ("blur", "coarse", "stripes", "inversion"):
        assert np.abs(random_greys(rng, image, STILL.model_copy(update={name: 1.0})) - image / 255).max() > 0.01, name


def test_small_classes_are_seen_often_and_empty_sections_seldom() -> None:
    _, labels = sampler(batch_size=400).batch(0)
    shown = [(labels == c).any(axis=(1, 2)).mean() for c in range(4)]
    cell = toy_cell(0).labels
    usual = (cell == 3).any(axis=(1, 2)).mean()
    assert shown[3] > usual + 0.1
    assert shown[1] > 0.9


def test_windows_are_cut_from_larger_sections_and_smaller_ones_are_mirrored() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50).astype(np.uint8)
    image, cut = cut_window(rng, labels[..., None], labels, 32, None)
    assert image.shape == (32, 32, 1)
    assert any(np.array_equal(cut, labels[y : y + 32, x : x + 32]) for y in range(29) for x in range(19))
    assert np.array_equal(image[..., 0], cut)
    _, grown = cut_window(rng, labels[..., None], labels, 64, None)
    assert np.array_equal(grown[2:62, 7:57], labels)


def test_a_field_keeps_its_scale_and_gets_cubic_voxels() -> None:
    cell = toy_cell(0)
    field = LabelledCell(cell.image[::2], cell.labels[::2], VoxelSize(z=40, y=20, x=20), field=True)
    assert cube_of(field, 16, PLAIN).labels.shape == (32, 32, 32)


def test_a_section_alone_stays_one_whatever_its_thickness() -> None:
    cell = toy_cell(0)
    alone = LabelledCell(cell.image[16:17], cell.labels[16:17], VoxelSize(z=90, y=20, x=20), field=True)
    assert cube_of(alone, 32, PLAIN).labels.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((64, 64, 64), (0, 1, 2)),
        ((20, 300, 400), (0,)),
        ((1, 64, 64), (0,)),
        ((300, 20, 400), (1,)),
        ((40, 300, 400), (0, 1, 2)),
        ((20, 45, 9), (2,)),
        ((8, 8, 8), (0, 1, 2)),
    ],
)
def test_a_thin_volume_is_cut_across_its_thin_axis_alone(shape: tuple[int, int, int], axes: tuple[int, ...]) -> None:
    assert section_axes(shape, 64) == axes


def test_a_thin_field_gives_no_mirrored_sections() -> None:
    cell = toy_cell(0, edge=64, noise=0)
    thin = replace(cell, image=cell.image[30:34], labels=cell.labels[30:34], field=True)
    _, labels = sampler(thin, batch_size=64).batch(0)
    windows = np.lib.stride_tricks.sliding_window_view(thin.labels, (32, 32), axis=(1, 2)).reshape(-1, 32 * 32)
    known = {window.tobytes() for window in windows}
    assert all(one.astype(np.uint8).tobytes() in known for one in labels)


def test_windows_of_a_large_section_show_the_class_they_are_drawn_for() -> None:
    rng = np.random.default_rng(0)
    labels = np.ones((2, 256, 256), np.uint8)
    labels[:, 3:6, 200:203] = 2  # at a border
    labels[:, 120:123, 40:43] = 3
    field = LabelledCell(rng.integers(0, 255, labels.shape).astype(np.uint8), labels, VOXEL, field=True)
    for augmentation in (None, STILL):
        _, seen = sampler(field, batch_size=300, augmentation=augmentation).batch(0)
        shown = [(seen == c).any(axis=(1, 2)).mean() for c in (2, 3)]
        # A sixth of the windows is drawn for each of the three classes; any other shows one of these in 2 of 100 cases.
        assert min(shown) > 0.12


def test_sections_that_are_not_warped_keep_their_voxels() -> None:
    rng = np.random.default_rng(0)
    section = (np.arange(50 * 61) % 251).astype(np.uint8).reshape(50, 61)
    small = section[:32, :32]
    ways = {np.ascontiguousarray(np.rot90(m, k)).tobytes() for m in (small, small.T) for k in range(4)}
    windows = np.lib.stride_tricks.sliding_window_view(section, (32, 32)).reshape(-1, 32, 32)
    known = {window.tobytes() for window in windows}

    def cut(image: np.ndarray, warped: float) -> np.ndarray:
        config = AugmentationConfig(warped=warped, shift=0.0)
        grey, labels = cut_window(rng, image[..., None], image, 32, config)
        if not warped:
            assert np.array_equal(grey[..., 0], labels)
        return labels

    assert {cut(small, 0.0).tobytes() for _ in range(80)} == ways
    for _ in range(20):
        one = cut(section, 0.0)
        turned = [np.ascontiguousarray(np.rot90(m, k)) for m in (one, one.T) for k in range(4)]
        assert any(way.tobytes() in known for way in turned)
    assert 20 < sum(cut(small, 0.5).tobytes() in ways for _ in range(80)) < 60


def test_neighbouring_sections_are_channels() -> None:
    volume = toy_cell(0).image
    assert np.array_equal(section_stack(volume, 1, 5, 3)[..., 0], volume[:, 4])
    assert np.array_equal(section_stack(volume, 0, 0, 3)[..., 0], volume[0])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"labels": np.zeros((4, 4, 4), np.uint8)}, "shapes"),
        ({"image": np.zeros((32, 32, 32), np.uint16)}, "8 bit"),
    ],
)
def test_cells_that_cannot_be_used_are_refused(change: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        replace(toy_cell(0), **change)


def test_training_sets_that_cannot_be_used_are_refused() -> None:
    cell = toy_cell(0)
    with pytest.raises(InputError, match="no cell"):
        SectionSampler([], TAXONOMY, 32, batch_size=1, seed=0)
    with pytest.raises(InputError, match="no labelled voxel"):
        sampler(replace(cell, labels=np.zeros_like(cell.labels)))
    with pytest.raises(InputError, match="class id 9"):
        sampler(replace(cell, labels=np.where(cell.labels == 3, 9, cell.labels).astype(np.uint8)))
