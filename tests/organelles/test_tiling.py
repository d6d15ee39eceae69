"""Tiles: where they lie, what they weigh, how they are gathered in batches; and flips."""

from __future__ import annotations

import numpy as np
import pytest

from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.tiling import (
    predict_flipped,
    predict_sections,
    predict_tiled,
    sections_at_once,
    tile_starts,
    tile_weights,
)
from tests.organelles.toy import TAXONOMY

SIZE = 32
EDGES = [10, 32, 33, 60, 61, 75, 80, 81, 500]


class Network:
    """Stands in for a network of a fixed size; `say` maps grey values (batch, y, x) in 0..1 to those of class 1."""

    input_shape = (None, SIZE, SIZE, 1)

    def __init__(self, say) -> None:
        self.say, self.seen = say, []

    def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch.shape)
        first = self.say(batch[..., 0])
        rest = (1 - first) / (len(TAXONOMY) - 1)
        return np.stack([rest, first, rest, rest], axis=-1)


def model(say, temperature: float = 1.0) -> OrganelleModel:
    return OrganelleModel(Network(say), TAXONOMY, SIZE, temperature)


def sections(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1)).astype(np.uint8)


@pytest.mark.parametrize("length", EDGES)
def test_tiles_cover_an_edge_and_share_a_quarter(length: int) -> None:
    starts = tile_starts(length, SIZE)
    assert starts[0] == 0
    assert starts[-1] + SIZE == max(length, SIZE)
    assert all(before + SIZE - after >= SIZE // 4 for before, after in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("length", EDGES)
def test_weights_sum_to_one_and_fade_towards_the_ends_of_a_tile(length: int) -> None:
    starts = tile_starts(length, SIZE)
    weights = tile_weights(starts, SIZE)
    total = np.zeros(max(length, SIZE))
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + SIZE] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (np.diff(weights[0]) <= 0).all()  # the first tile keeps the border of the section
    if len(starts) > 1:
        assert weights[0, -1] < 0.1
        assert weights[-1, 0] < 0.1
    assert len(starts) < 2 or np.abs(np.diff(weights, axis=1)).max() < 0.15


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 32), (70, 9), (75, 100)])
def test_a_network_without_context_is_not_changed_by_tiles(height: int, width: int) -> None:
    given = sections(3, height, width)
    found = predict_tiled(given, model(lambda grey: grey), 4)
    assert found.shape == (3, height, width, len(TAXONOMY))
    np.testing.assert_allclose(found[..., 1], given[..., 0] / 255, atol=1e-6)


def test_tiles_that_differ_leave_no_seam() -> None:
    """A network whose answer grows across its tile: cut hard, neighbours would differ by more than a third."""
    found = predict_tiled(sections(1, 32, 100), model(lambda grey: np.broadcast_to(np.arange(32) / 32, grey.shape)), 8)
    assert np.abs(np.diff(found[0, 16, :, 1])).max() < 0.15


def test_a_section_s_tiles_share_batches() -> None:
    net = model(lambda grey: grey)
    together, batch = sections_at_once(75, 100, SIZE, 16)
    assert (together, batch) == (1, 12)  # 3 x 4 tiles
    predict_tiled(sections(1, 75, 100), net, batch)
    assert net.network.seen == [(12, SIZE, SIZE, 1)]


@pytest.mark.parametrize(
    ("shape", "expected"), [((32, 32), (16, 16)), ((32, 56), (8, 16)), ((32, 75), (5, 15)), ((100, 125), (1, 10))]
)
def test_batches_are_filled(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert sections_at_once(*shape, SIZE, 16) == expected


def test_the_temperature_acts_on_the_blend() -> None:
    given = sections(1, 32, 50)
    cool, plain = (predict_tiled(given, model(lambda grey: grey, t), 4) for t in (0.5, 1.0))
    np.testing.assert_allclose(cool, plain**2 / (plain**2).sum(axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("flips", [4, 8])
def test_flips_are_the_mean_over_all_ways_to_look(flips: int) -> None:
    slope = np.linspace(0, 1, SIZE)[None, None, :] * np.linspace(1, 0.5, SIZE)[None, :, None]
    given = sections(2, SIZE, SIZE)
    found = predict_flipped(given, model(lambda grey: grey * slope), 2, flips)[..., 1]
    ways = [slope, slope[:, ::-1], slope[:, :, ::-1], slope[:, ::-1, ::-1]]
    ways += [way.swapaxes(1, 2) for way in ways] if flips == 8 else []
    np.testing.assert_allclose(found, given[..., 0] / 255 * np.mean(ways, axis=0), atol=1e-6)


def test_without_flips_a_section_is_seen_once() -> None:
    net = model(lambda grey: grey)
    predict_flipped(sections(2, SIZE, SIZE), net, 2, 1)
    assert len(net.network.seen) == 1


def test_batches_are_filled_up_to_one_size() -> None:
    net = model(lambda grey: grey)
    assert predict_sections(sections(5, SIZE, SIZE), net, 12).shape == (5, SIZE, SIZE, len(TAXONOMY))
    assert net.network.seen == [(12, SIZE, SIZE, 1)]
