"""Pictures of sections: proportions, colours and scale."""

import cv2
import numpy as np
import pytest

from cmseg_core.morphology.colours import cell_colours
from cmseg_core.report import SectionView, middle_sections
from cmseg_core.report.figures import draw_cells, draw_organelles, draw_raw, encode_webp, picture_shape, scale_bar
from cmseg_core.schema import C_MEROLAE, VoxelSize


def view_of(labels: np.ndarray, **changes) -> SectionView:
    values = {"direction": "z", "position": 0, "raw": np.full(labels.shape, 100, np.uint8), "pixel_nm": (10.0, 10.0)}
    return SectionView(**{**values, **changes})


def test_middle_sections_keep_the_axes_and_pixel_sizes_together():
    image = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)
    z, y, x = middle_sections(VoxelSize(z=30, y=10, x=5), image, cells=image.astype(np.uint32))
    np.testing.assert_array_equal(z.raw, image[2])
    np.testing.assert_array_equal(y.raw, image[:, 3])
    np.testing.assert_array_equal(x.raw, image[:, :, 4])
    np.testing.assert_array_equal(x.cells, image[:, :, 4])
    assert [v.pixel_nm for v in (z, y, x)] == [(10, 5), (30, 5), (30, 10)]
    assert [v.position for v in (z, y, x)] == [2, 3, 4]


def test_a_section_must_be_8_bit_and_its_labels_must_fit():
    with pytest.raises(ValueError, match="2D uint8"):
        view_of(np.zeros((4, 4)), raw=np.zeros((4, 4), np.uint16))
    with pytest.raises(ValueError, match="cells has shape"):
        view_of(np.zeros((4, 4)), cells=np.zeros((4, 5), np.uint32))


@pytest.mark.parametrize(
    ("shape", "pixel_nm", "expected"),
    [((100, 200), (10, 10), (200, 400)), ((50, 200), (40, 10), (400, 400)), ((30, 10), (10, 10), (400, 133))],
)
def test_pictures_have_physical_proportions(shape, pixel_nm, expected):
    view = view_of(np.zeros(shape), pixel_nm=pixel_nm)
    assert picture_shape(view, 400) == expected
    assert draw_raw(view, 400).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("width_nm", "label", "length_nm"),
    [(1000, "200 nm", 200), (3800, "1 µm", 1000), (6700, "2 µm", 2000), (100_000, "20 µm", 20_000), (30, "5 nm", 5)],
)
def test_scale_bar_has_a_round_length(width_nm, label, length_nm):
    bar = scale_bar(width_nm)
    assert bar.label == label
    assert bar.fraction * width_nm == pytest.approx(length_nm)


def test_cells_are_outlined_in_their_own_colours():
    cells = np.zeros((80, 80), np.uint32)
    cells[10:70, 10:40] = 2
    cells[10:70, 40:70] = 70_001  # more than 16 bits
    picture = draw_cells(view_of(cells, cells=cells), 400)
    palette = cell_colours(70_001)
    np.testing.assert_array_equal(picture[200, 199], palette[1])
    np.testing.assert_array_equal(picture[200, 200], palette[70_000])
    np.testing.assert_array_equal(picture[10, 10], (100, 100, 100))
    tint = np.rint(100 * 0.84 + 0.16 * palette[1].astype(float))
    np.testing.assert_allclose(picture[200, 120], tint, atol=1)


def test_foreground_that_no_cell_claims_is_white():
    cells = np.zeros((40, 40), np.uint32)
    cells[:, :20] = 1
    picture = draw_cells(view_of(cells, cells=cells, foreground=np.ones((40, 40), bool)), 400)
    np.testing.assert_array_equal(picture[200, 300], np.full(3, round(100 * 0.45 + 255 * 0.55)))


def test_organelles_have_the_taxonomys_colours_and_a_white_class_stays_clear():
    labels = np.full((40, 40), 1, np.uint8)
    labels[:, 20:] = 2
    picture = draw_organelles(view_of(labels, organelles=labels), C_MEROLAE, 400)
    plastid = np.array(C_MEROLAE.classes[2].rgb)
    np.testing.assert_allclose(picture[200, 350], 100 * 0.58 + plastid * 0.42, atol=1)
    np.testing.assert_allclose(picture[200, 50], 100 * 0.9 + 25.5, atol=1)


def test_labels_keep_their_place_when_a_section_is_enlarged():
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 2] = 2
    picture = draw_organelles(view_of(labels, organelles=labels), C_MEROLAE, 400)
    coloured = np.argwhere(picture[..., 0] != picture[..., 1])
    np.testing.assert_array_equal(coloured.min(axis=0), (100, 200))
    np.testing.assert_array_equal(coloured.max(axis=0), (199, 299))


def test_encoding_keeps_the_order_of_colours():
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 0] = 200
    decoded = cv2.imdecode(np.frombuffer(encode_webp(picture), np.uint8), cv2.IMREAD_COLOR)
    assert decoded[16, 16, 2] > 190 and decoded[16, 16, 0] < 10
