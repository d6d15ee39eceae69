import cv2
import numpy as np
import pytest

from cmseg_core.acquisition.measures import compare, measure_section
from cmseg_core.acquisition.quality import QualityReport, assess
from cmseg_core.acquisition.reader import open_source
from cmseg_core.acquisition.source import ArraySections, SectionSource
from cmseg_core.schema import QualityConfig, VoxelSize

LIMITS = QualityConfig()
SIZE = VoxelSize(z=10, y=5, x=5)


def source_of(volume, **metadata) -> SectionSource:
    return SectionSource(ArraySections(volume), SIZE, metadata)


def tissue(depth=24, height=96, width=128, noise=10.0, seed=0) -> np.ndarray:
    """Blobs that change slowly from section to section, with noise."""
    rng = np.random.default_rng(seed)
    texture = rng.normal(size=(depth, height, width)).astype(np.float32)
    texture = np.stack([cv2.GaussianBlur(s, (0, 0), 5) for s in texture])
    for z in range(1, depth):
        texture[z] = 0.97 * texture[z - 1] + 0.24 * texture[z]
    image = 120 + 30 * texture / texture.std() + noise * rng.normal(size=texture.shape)
    return np.clip(image, 1, 254).astype(np.uint8)


def failed(report: QualityReport) -> set[str]:
    return {c.name for c in report.checks if not c.passed}


def test_good_stack_passes():
    report = assess(source_of(tissue()), LIMITS)
    assert failed(report) == set() and report.passed and report.fatal is None
    assert report.sections == 24 and len(report.profile.mean) == 24


@pytest.mark.parametrize(
    "name", ["flyem_medulla/ts1_raw.tif", "epfl_6class/block_z000-019_raw.tif", "gala_mini/test_raw.tif"]
)
def test_real_stacks_pass(real_data, name):
    report = assess(open_source(real_data(name), SIZE), LIMITS)
    assert failed(report) == set(), report.checks


def test_slabs_do_not_matter(monkeypatch):
    volume = tissue()
    whole = assess(source_of(volume), LIMITS)
    monkeypatch.setattr(SectionSource.slabs, "__defaults__", (3 * volume[0].nbytes,))
    assert assess(source_of(volume), LIMITS) == whole


def test_report_survives_json():
    volume = tissue()
    volume[4] = 0
    report = assess(source_of(volume), LIMITS)
    content = report.model_dump(mode="json")
    assert content.pop("passed") is report.passed
    assert QualityReport.model_validate(content) == report


def test_blank_sections_are_named_and_do_not_disturb_the_rest():
    volume = tissue()
    volume[[3, 4, 17]] = 0
    report = assess(source_of(volume), LIMITS)
    assert failed(report) == {"blank"}
    assert report.check("blank").sections == (3, 4, 17)
    assert report.check("saturation").figure == 0
    assert report.fatal is None


def test_all_blank_is_fatal():
    for dtype in (np.uint8, np.uint16, np.float32):
        assert assess(source_of(np.full((12, 40, 40), 7, dtype)), LIMITS).fatal == "every section is blank"


def test_too_few_sections_is_fatal():
    report = assess(source_of(tissue(depth=7)), LIMITS)
    assert "at least 8" in report.fatal


def test_noise_alone_is_fatal():
    noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96), dtype=np.uint8)
    report = assess(source_of(noise), LIMITS)
    assert "noise" in failed(report) and "structure over noise" in report.fatal


def test_saturation_in_8_bit_and_in_12_of_16():
    volume = tissue().astype(np.uint16) * 16
    volume[:, :, :20] = 4095
    report = assess(source_of(volume), LIMITS)
    assert report.check("saturation").figure == pytest.approx(20 / 128, rel=0.02)
    volume = tissue()
    volume[5, :48] = 255
    report = assess(source_of(volume), QualityConfig(max_saturated_fraction=0.01))
    assert report.check("saturation").sections == (5,)


def test_repeated_section():
    volume = tissue()
    volume[9] = volume[8]
    report = assess(source_of(volume), LIMITS)
    assert failed(report) == {"duplicates"} and report.check("duplicates").sections == (9,)


def test_gap_in_numbers_and_sudden_change():
    report = assess(source_of(tissue(), missing_sections=[5, 6]), LIMITS)
    assert failed(report) == {"continuity"} and "(5, 6)" in report.check("continuity").detail
    volume = np.concatenate([tissue(seed=0), tissue(seed=1)])
    assert assess(source_of(volume), LIMITS).check("continuity").sections == (24,)


@pytest.mark.parametrize("shift", [(7, 0), (0, -6), (5, 5)])
def test_jitter(shift):
    volume = tissue(noise=4)
    volume[1::2] = np.roll(volume[1::2], shift, axis=(1, 2))
    report = assess(source_of(volume), LIMITS)
    assert "jitter" in failed(report)
    assert report.check("jitter").figure == pytest.approx(np.hypot(*shift), abs=0.7)


def test_drift():
    volume = np.clip(tissue().astype(int) + np.linspace(-45, 45, 24).astype(int)[:, None, None], 1, 254)
    report = assess(source_of(volume.astype(np.uint8)), LIMITS)
    assert failed(report) == {"drift"}
    assert report.check("drift").figure == pytest.approx(90 * 15 / 23, rel=0.15)


def test_more_and_more_cells_are_no_drift():
    """A grey that fills more of every section moves the mean, not the brightness of what is there."""
    volume = tissue()
    for z in range(24):
        volume[z, :, : 2 * z] = 240
    assert np.ptp(volume.mean(axis=(1, 2))) > 40
    assert assess(source_of(volume), LIMITS).check("drift").figure < 10


@pytest.mark.parametrize(("axis", "name"), [(1, "along y"), (0, "along x")])
def test_curtaining(axis, name):
    volume = tissue(height=128)
    stripes = cv2.GaussianBlur(np.random.default_rng(3).normal(size=(1, 128)), (0, 0), 1.2)[0]
    stripes = np.expand_dims(20 * stripes / stripes.std(), 0 if axis == 1 else 1)
    volume = np.clip(volume + stripes, 1, 254).astype(np.uint8)
    report = assess(source_of(volume), LIMITS)
    assert failed(report) == {"curtaining"} and name in report.check("curtaining").detail


def test_samples_that_are_no_number():
    volume = tissue().astype(np.float32) / 255
    volume[6, 0, 0] = np.nan
    report = assess(source_of(volume), LIMITS)
    assert failed(report) == {"finite"} and report.check("finite").sections == (6,)


@pytest.mark.parametrize("shape", [(256, 300), (300, 256), (128, 512)])
def test_no_direction_is_preferred_in_white_noise(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert measure_section(noise).stripes == pytest.approx((1, 1), abs=0.3)


def test_small_sections_have_no_stripes():
    assert measure_section(np.random.default_rng(0).integers(0, 256, (20, 90), dtype=np.uint8)).stripes == (1, 1)


@pytest.mark.parametrize(("shape", "tolerance"), [((384, 512), 0.35), ((1000, 1536), 1.05), ((96, 101), 1.5)])
@pytest.mark.parametrize("shift", [(0, 0), (8, -4), (-12, 20)])
def test_known_shift_is_found(shape, tolerance, shift):
    rng = np.random.default_rng(0)
    large = cv2.GaussianBlur(rng.normal(size=(shape[0] + 40, shape[1] + 40)), (0, 0), 6)
    large = 128 + 30 * large / large.std()
    views = [large[20 : 20 + shape[0], 20 : 20 + shape[1]], np.roll(large, shift, (0, 1))[20:-20, 20:-20]]
    first, second = (measure_section((v + rng.normal(0, 15, shape)).clip(0, 255).astype(np.uint8)) for v in views)
    *found, change, _ = compare(first, second)
    assert found == pytest.approx(shift, abs=tolerance)
    assert change < 0.35


def test_equal_and_unrelated_sections():
    a, b = (measure_section(tissue(2, 384, 512, seed=seed)[0]) for seed in (0, 1))
    assert compare(a, a) == pytest.approx((0, 0, 0, 0), abs=1e-3)
    assert compare(a, b).change > 0.5
