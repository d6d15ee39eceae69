import numpy as np

from cmseg_core.report.classes import LabelledVolume, draw_classes
from cmseg_core.schema import C_MEROLAE, VoxelSize

SIZE = VoxelSize(z=20, y=20, x=20)


def volume(ids: dict[int, int]) -> LabelledVolume:
    """A grey volume in which section `z` shows class `id` on half its area."""
    labels = np.zeros((6, 40, 40), np.uint8)
    for z, class_id in ids.items():
        labels[z, :20] = class_id
    return LabelledVolume("x", np.full(labels.shape, 90, np.uint8), labels, SIZE)


def coloured(picture: np.ndarray) -> np.ndarray:
    """Where a picture is neither grey nor black."""
    return np.ptp(picture.astype(int), axis=-1) > 25


def test_every_class_gets_a_row_with_its_colour() -> None:
    picture = draw_classes([volume({1: 2, 4: 4})], C_MEROLAE, samples=1)
    rows = np.split(picture, 5)
    assert [coloured(row).any() for row in rows] == [False, True, False, True, False]
    plastid = rows[1][..., :][coloured(rows[1])]
    assert (plastid[:, 1] > plastid[:, 0]).all(), "the plastid is green"


def test_the_samples_that_show_most_are_drawn() -> None:
    little = volume({1: 2})
    little.labels[1, 2:20] = 0
    picture = draw_classes([little, volume({2: 2}), little], C_MEROLAE, samples=1)
    side = picture.shape[1] // 2
    green = coloured(np.split(picture, 5)[1][:, side:])
    assert green.mean() > 0.25, "half of the section that shows half"
