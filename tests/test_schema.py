"""Taxonomies, voxel sizes and settings."""

import json

import pytest
from pydantic import ValidationError

from cmseg_core.errors import InputError
from cmseg_core.schema import C_MEROLAE, PipelineConfig, Taxonomy, VoxelSize


def test_the_default_taxonomy_is_the_papers():
    assert C_MEROLAE.names == ("background", "cytoplasm", "plastid", "mitochondrion", "peroxisome", "nucleus")
    assert C_MEROLAE.id_of("nucleus") == 5
    assert C_MEROLAE.palette().shape == (6, 3)


def test_a_taxonomy_file_is_read(tmp_path):
    path = tmp_path / "taxonomy.json"
    path.write_text(json.dumps({"classes": [{"id": 0, "name": "outside"}, {"id": 1, "name": "mitochondrion"}]}))
    assert Taxonomy.from_file(path).names == ("outside", "mitochondrion")


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        "{classes: [{id: 0, name: a}]}",
        "{classes: [{id: 0, name: a}, {id: 2, name: b}]}",
        "{classes: [{id: 0, name: a}, {id: 1, name: a}]}",
        "{classes: [{id: 0, name: a}, {id: 1, name: b, colour: red}]}",
        "{",
    ],
)
def test_a_bad_taxonomy_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "taxonomy.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        Taxonomy.from_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zyx", [(0, 1, 1), (1, -1, 1), (1, 1, float("inf")), (1, 1, float("nan"))])
def test_a_voxel_has_a_positive_size(zyx):
    with pytest.raises(ValidationError):
        VoxelSize.from_zyx(zyx)


def test_the_preset_paper_sets_what_the_paper_states_wherever_it_is_named(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text("{preset: paper, foreground: {directions: 3}}")
    from_file = PipelineConfig.from_file(path)
    assert from_file.preprocess.interpolation == "nearest"
    assert from_file.foreground.pred_iou_thresh == 0.88
    assert from_file.foreground.directions == 3
    monkeypatch.setenv("CMSEG_PRESET", "paper")
    assert PipelineConfig.from_file(None).foreground.points_per_side == 32


def test_settings_come_from_the_environment_and_the_file_is_stronger(tmp_path, monkeypatch):
    monkeypatch.setenv("CMSEG_FOREGROUND__METHOD", "threshold")
    monkeypatch.setenv("CMSEG_INSTANCES__H_NM", "77")
    path = tmp_path / "config.yaml"
    path.write_text("{foreground: {method: sam}}")
    config = PipelineConfig.from_file(path)
    assert (config.foreground.method, config.instances.h_nm) == ("sam", 77)


@pytest.mark.parametrize("content", ["{foregound: {}}", "{foreground: {method: magic}}", "{instances: {h_nm: -1}}"])
def test_a_bad_setting_is_one_clear_line(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        PipelineConfig.from_file(path)
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("CMSEG_INSTANCES__H_NM", "deep")
    with pytest.raises(InputError, match="h_nm"):
        PipelineConfig.from_file(None)
