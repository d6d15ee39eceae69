import numpy as np
import pytest

from cmseg_core.errors import InputError
from cmseg_core.organelles.dataset import LabelledCell
from cmseg_core.organelles.labels import check_learnable, count_labels, is_one_cell
from cmseg_core.schema import C_MEROLAE, VoxelSize


def ball(centre: tuple[float, float, float], radius: float = 6) -> np.ndarray:
    z, y, x = np.mgrid[:20, :20, :20]
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def test_voxels_are_counted_by_class() -> None:
    labels = np.array([[[0, 0, 2], [5, 2, 2]]], dtype=np.uint8)
    assert count_labels(labels, C_MEROLAE, "x") == {"background": 2, "plastid": 3, "nucleus": 1}


def test_unknown_ids_are_named_with_the_file() -> None:
    labels = np.arange(14, dtype=np.uint8).reshape(1, 2, 7)
    with pytest.raises(InputError, match=r"mine\.tif: holds the class ids 6, 7, 8, 9, 10, \.\.\., unknown"):
        count_labels(labels, C_MEROLAE, "mine.tif")
    with pytest.raises(InputError, match="class id 6, unknown"):
        count_labels(labels[..., :7].clip(max=6), C_MEROLAE, "mine.tif")


def test_nothing_labelled_is_refused() -> None:
    with pytest.raises(InputError, match="nothing but background"):
        count_labels(np.zeros((2, 2, 2), np.uint8), C_MEROLAE, "x")


def test_a_cell_is_one_piece_with_free_borders() -> None:
    cell = ball((10, 10, 10)).astype(np.uint8)
    assert is_one_cell(cell)
    speck = cell.copy()
    speck[1, 1, 1] = 3
    assert is_one_cell(speck), "specks are not another cell"
    assert is_one_cell(ball((3, 10, 10)).astype(np.uint8)), "cut by one face of its field"
    assert not is_one_cell((ball((5, 5, 5), 4) | ball((14, 14, 14), 4)).astype(np.uint8)), "two pieces"
    assert not is_one_cell(np.ones((8, 8, 8), np.uint8)), "fills the crop"
    assert not is_one_cell(np.zeros((8, 8, 8), np.uint8)), "empty"


def test_one_cell_or_an_unseen_class_teaches_nothing() -> None:
    def cell(*classes: int, field: bool = False) -> LabelledCell:
        labels = np.zeros((1, 2, 8), np.uint8)
        labels[0, 0, : len(classes)] = classes
        return LabelledCell(labels, labels, VoxelSize(z=1, y=1, x=1), field=field)

    check_learnable([cell(1, 2, 3), cell(4, 5)], C_MEROLAE, "mine@2")
    check_learnable([cell(1, 2, 3, 4, 5, field=True)], C_MEROLAE, "mine@2")
    with pytest.raises(InputError, match="mine@2: holds one cell only"):
        check_learnable([cell(1, 2, 3, 4, 5)], C_MEROLAE, "mine@2")
    with pytest.raises(InputError, match="mine@2: shows no mitochondrion, no nucleus"):
        check_learnable([cell(1, 2), cell(1, 4)], C_MEROLAE, "mine@2")
