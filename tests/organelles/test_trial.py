from dataclasses import replace

import numpy as np

from cmseg_core.organelles.dataset import cube_of
from cmseg_core.organelles.inference import label_cell
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.network import build_unet
from cmseg_core.organelles.tiling import predict_sections
from cmseg_core.organelles.trial import delivered_on, directions_on, try_cell
from cmseg_core.schema import OrganellesConfig, PreprocessConfig
from tests.organelles.toy import TAXONOMY, toy_cell


def test_every_way_is_what_the_pipeline_would_give() -> None:
    cell, config, preprocess = toy_cell(0), OrganellesConfig(), PreprocessConfig()
    network = build_unet(len(TAXONOMY), 32, width=4, depth=2)
    weights = np.random.default_rng(0).dirichlet((1, 1, 1), len(TAXONOMY)).T
    model = OrganelleModel(network, TAXONOMY, 32, temperature=0.5, fusion=weights)
    trial = try_cell(cell, model, config, preprocess)
    fused = label_cell(cell, model, config, preprocess)
    np.testing.assert_array_equal(trial.fused.labels, fused.labels)
    np.testing.assert_array_equal(trial.fused.confidence, fused.confidence)
    along_z = label_cell(cell, model, config.model_copy(update={"directions": 1}), preprocess)
    np.testing.assert_array_equal(trial.single[0].confidence, along_z.confidence)
    raw = label_cell(cell, replace(model, temperature=1.0), config, preprocess)
    np.testing.assert_array_equal(trial.uncalibrated.confidence, raw.confidence)
    assert (raw.confidence != fused.confidence).any()
    assert len({way.confidence.tobytes() for way in trial.single}) == 3


def test_a_thin_field_has_one_direction_and_it_is_what_the_pipeline_gives() -> None:
    cell = toy_cell(0, edge=44)
    thin = replace(cell, image=cell.image[20:23], labels=cell.labels[20:23], field=True)
    config, preprocess = OrganellesConfig(flips=4), PreprocessConfig()
    model = OrganelleModel(build_unet(len(TAXONOMY), 32, width=4, depth=2), TAXONOMY, 32, temperature=0.5)
    trial = try_cell(thin, model, config, preprocess)
    assert trial.single[1:] == (None, None)
    for way in (trial.fused, trial.single[0]):
        assert way is not None
        np.testing.assert_array_equal(way.confidence, label_cell(thin, model, config, preprocess).confidence)
    said, *_ = directions_on(model, [cube_of(thin, 32, preprocess)])
    np.testing.assert_array_equal(said[:, 1], said[:, 0])
    np.testing.assert_allclose(said.sum(axis=-1), 1, atol=1e-4)


def test_voxels_are_told_with_what_each_direction_says_of_them() -> None:
    model = OrganelleModel(build_unet(len(TAXONOMY), 32, width=4, depth=2), TAXONOMY, 32, temperature=0.5)
    cubes = [cube_of(toy_cell(seed), 32, PreprocessConfig()) for seed in range(2)]
    said, truth, cell = directions_on(model, cubes, voxels=4000)
    assert said.shape == (4000, 3, len(TAXONOMY))
    np.testing.assert_allclose(said.sum(axis=-1), 1, atol=1e-4)
    assert set(np.unique(truth)) >= {1, 2}
    assert np.bincount(cell).tolist() == [2000, 2000]
    raw = replace(model, temperature=1.0)
    along_z = np.concatenate([predict_sections(cube.image[..., None], raw, 32).reshape(-1, 4) for cube in cubes])
    nearest = [np.abs(along_z - row).max(axis=1).min() for row in said[:50, 0]]
    assert max(nearest) < 1e-5, "the first direction is the one across z"


def test_delivered_voxels_are_those_of_the_result() -> None:
    """What is said at the corners makes up the confidence that the pipeline gives, for cells and for fields."""
    model = OrganelleModel(build_unet(len(TAXONOMY), 32, width=4, depth=2), TAXONOMY, 32)
    preprocess = PreprocessConfig()
    cell = toy_cell(0, edge=44)
    field = replace(toy_cell(1, edge=32), field=True)
    for one, corners in ((cell, 8), (field, 1)):
        voxels = delivered_on(model, [one], preprocess, voxels=500)
        assert voxels.said.shape == (500, corners, 3, len(TAXONOMY))
        np.testing.assert_allclose(voxels.shares.sum(axis=1), 1, atol=1e-5)
        fused = np.einsum("vkdc,vk->vc", voxels.said, voxels.shares) / 3
        stated = np.rint(255 * fused.max(axis=1)).astype(int)
        result = label_cell(one, model, OrganellesConfig(), preprocess)
        assert set(stated) <= {n + d for n in np.unique(result.confidence).astype(int) for d in (-1, 0, 1)}
    both = delivered_on(model, [cell, field], preprocess, voxels=500)
    assert both.said.shape[:2] == (500, 8)
    assert set(np.unique(both.truth)) >= {1, 2}
