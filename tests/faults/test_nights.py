"""Nights whose services fail, and whose process is killed, publish the bytes of an undisturbed one.

``python -m benchmarks.faults`` harms every single call in its turn; docs/reliability.md has its figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.nights import Ending, Nights, changes, nights, published, tiny_acquisition, tiny_unet
from tests.faults.proxy import Call, Harm, at, first, some

PASSING = (Harm.BUSY, Harm.BROKEN, Harm.RESET, Harm.LOST, Harm.TRUNCATED, Harm.SLOW)


@dataclass(frozen=True)
class Site:
    """Where nights are run, with what an undisturbed one publishes and the calls that it makes."""

    nights: Nights
    whole: dict[str, str]
    calls: list[Call]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Services behind a proxy, and one undisturbed night."""
    folder = tmp_path_factory.mktemp("nights")
    acquisition, unet = tiny_acquisition(folder / "tiny"), tiny_unet(folder / "tiny.keras")
    with nights(folder / "site", acquisition, unet) as here:
        store = here.submit("undisturbed")
        assert here.run("undisturbed") == 0, here.log.read_text()
        whole = published(store)
        assert len(whole) > 20
        yield Site(here, whole, list(here.proxy.calls))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("night", "pattern", "harm"),
    [
        ("fetch", "GET /nights/.*/incoming/tiny/data-.*/stack.tif", Harm.REFUSED),
        ("claim", "PUT .*/claims/tiny/", Harm.LOST),
        ("cell", "PUT .*/organelles/.*/zarr.json", Harm.REFUSED),
        ("run", "POST /api/task_runs/", Harm.REFUSED),
        ("models", "GET /api/2.0/mlflow/", Harm.RESET),
    ],
)
def test_a_call_that_fails_once_holds_nothing_up(site: Site, night: str, pattern: str, harm: Harm) -> None:
    ending = site.nights.endure(night, first(pattern, harm))
    assert len(ending.harmed) == 1
    assert ending.statuses == [0], site.nights.log.read_text()
    assert ending.published == site.whole
    assert ending.repeated == [] and ending.left == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("night", "pattern", "harm"),
    [
        ("claimed", "PUT .*/claims/tiny/", Harm.KILLED_AFTER),
        ("separated", "PUT .*/instances/.*/_complete.json", Harm.KILLED_BEFORE),
        ("published", "PUT /nights/.*/acquisitions/tiny/manifest.json", Harm.KILLED_BEFORE),
    ],
)
def test_a_night_that_is_killed_goes_on(site: Site, night: str, pattern: str, harm: Harm) -> None:
    ending = site.nights.endure(night, first(pattern, harm))
    assert ending.statuses == [-9, 0], site.nights.log.read_text()
    assert ending.published == site.whole
    assert ending.repeated == [] and ending.left == []


def _bereaved(site: Site, moment: str, service: str, pattern: str) -> Ending:
    """What becomes of a night of which a service is killed before the first call that the pattern matches."""
    night = f"{service}-{moment}".replace(" ", "-")
    before = site.nights.services()[service].restarts
    ending = site.nights.endure(night, first(pattern, act=lambda: site.nights.kill(service)))
    assert site.nights.services()[service].restarts == before + 1
    return ending


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("moment", "service", "pattern"),
    [
        ("labels", "object store", "PUT .*/organelles/.*/zarr.json"),
        ("labels", "Prefect", "PUT .*/organelles/.*/zarr.json"),
        ("labels", "PostgreSQL", "PUT .*/organelles/.*/zarr.json"),
        ("models", "MLflow", "GET /api/2.0/mlflow/"),
    ],
)
def test_a_night_outlives_a_service(site: Site, moment: str, service: str, pattern: str) -> None:
    ending = _bereaved(site, moment, service, pattern)
    assert ending.statuses == [0], site.nights.log.read_text()
    assert ending.published == site.whole
    assert ending.repeated == [] and ending.left == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("moment", "service", "pattern"),
    [
        ("claim", "object store", "PUT .*/claims/tiny/"),
        ("publish", "object store", "PUT /nights/.*/acquisitions/tiny/manifest.json"),
        ("let go", "object store", "POST /nights.delete"),
        ("acquisition", "Prefect", "POST /api/task_runs/"),
        ("end", "Prefect", "PUT .*/work/figures/"),
        ("beginning", "PostgreSQL", "POST /api/flow_runs/.*/set_state"),
        ("acquisition", "PostgreSQL", "POST /api/task_runs/"),
        ("end", "PostgreSQL", "PUT .*/work/figures/"),
    ],
)
def test_a_service_dies_at_the_worst_moment(site: Site, moment: str, service: str, pattern: str) -> None:
    ending = _bereaved(site, moment, service, pattern)
    assert ending.statuses == [0], site.nights.log.read_text()
    assert ending.published == site.whole
    assert ending.repeated == [] and ending.left == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_boundary_of_a_stage(site: Site) -> None:
    written = [call.target for call in site.calls if call.method == "PUT"]
    marks = [target.split("/work/")[1] for target in written if target.endswith("/_complete.json")]
    assert len(marks) >= 12
    for number, mark in enumerate(marks):
        for harm in (Harm.KILLED_BEFORE, Harm.KILLED_AFTER):
            ending = site.nights.endure(f"boundary-{harm.name.lower()}-{number}", first(f"PUT .*/{mark}", harm))
            assert ending.statuses == [-9, 0]
            assert ending.published == site.whole
            assert ending.repeated == [] and ending.left == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_fifty_random_moments(site: Site) -> None:
    rng = random.Random(5)
    moments = rng.sample([call.number for call in site.calls if changes(call)], 50)
    for number in moments:
        harm = rng.choice((Harm.KILLED_BEFORE, Harm.KILLED_AFTER))
        ending = site.nights.endure(f"moment-{number}", at(number, harm))
        assert ending.statuses[0] == -9, (number, harm, ending)
        assert ending.statuses[-1] == 0, (number, harm, ending)
        assert ending.published == site.whole, (number, harm)
        assert ending.repeated == [] and ending.left == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_store_that_fails_one_call_in_twenty(site: Site, seed: int) -> None:
    site.nights.proxy.ahead = 3600.0
    try:
        ending = site.nights.endure(f"storm-{seed}", some(0.05, PASSING, seed))
    finally:
        site.nights.proxy.ahead = 0.0
    assert len(ending.harmed) >= 10
    assert ending.statuses[-1] == 0, site.nights.log.read_text()
    assert ending.published == site.whole
    assert ending.left == []
