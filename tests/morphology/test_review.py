import pytest

from cmseg_core.morphology.review import review_score
from cmseg_core.schema import C_MEROLAE, OrganelleClass, Taxonomy

OTHER = Taxonomy(classes=tuple(OrganelleClass(id=i, name=n) for i, n in enumerate(("outside", "cell", "vesicle"))))
ALL = {"cytoplasm": 0.9, "plastid": 0.9, "mitochondrion": 0.6, "peroxisome": 0.5, "nucleus": 0.8}


def test_the_score_is_what_is_missing_of_the_expected_iou() -> None:
    assert review_score(ALL, C_MEROLAE) == pytest.approx(1 - 3.7 / 5)
    assert review_score({"cell": 1.0, "vesicle": 0.5}, OTHER) == pytest.approx(0.25)


def test_only_what_no_cell_lacks_counts_as_missed() -> None:
    assert review_score({**ALL, "peroxisome": None}, C_MEROLAE) == pytest.approx(1 - 3.2 / 5)
    assert review_score({**ALL, "cytoplasm": None}, C_MEROLAE) == pytest.approx(1 - 2.8 / 4)
    assert review_score({"cell": 0.75, "vesicle": None}, OTHER) == pytest.approx(0.25)


def test_nothing_found_needs_a_look() -> None:
    assert review_score(dict.fromkeys(ALL), C_MEROLAE) == 1.0
    assert review_score({"cell": None, "vesicle": None}, OTHER) == 1.0
