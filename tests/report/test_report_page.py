"""The page as a whole: what it holds, what it must not hold, and that it is the same every time."""

import base64
import gzip
import hashlib
import re
from html.parser import HTMLParser

import pytest

from cmseg_core.report import render_report
from cmseg_core.schema import OrganelleClass, Taxonomy

ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "img", "input", "br", "line"}


class Page(HTMLParser):
    """Elements of a page with their attributes, the text outside scripts and styles, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif inside != "style":
            self.text += data

    @property
    def ids(self) -> set[str]:
        return {value for _, attributes in self.elements if (value := attributes.get("id"))}

    def unpacked(self, element_id: str) -> bytes:
        text = next(text for attributes, text in self.scripts if attributes.get("id") == element_id)
        return gzip.decompress(base64.b64decode(text, validate=True))


@pytest.fixture(scope="module")
def html(build_context):
    return render_report(build_context())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_part_of_a_scored_acquisition_is_there(page):
    parts = {"summary", "quality", "sections", "three", "cells", "scores", "quarantine", "provenance"}
    assert parts <= page.ids
    for text in ("merolae-2025-11-03", "largest at section 17", "0.933", "0.741", "the crop is empty after resampling"):
        assert text in page.text
    assert sum(tag == "img" for tag, _ in page.elements) == 9 + 5 * 3


def test_links_inside_the_page_lead_somewhere(page):
    targets = {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"}
    assert targets <= page.ids
    assert {f"view-{i}" for i in range(1, 6)} <= targets


def test_a_score_that_is_undefined_reads_as_a_dash(html):
    row = re.search(r"</i>peroxisome</td><td class=\"metered\">(.*?)</tr>", html, re.DOTALL).group(1)
    assert row.count("–") == 2 and 'meter"' not in row


def test_without_truth_there_are_no_scores(build_context):
    page = Page(render_report(build_context(evaluation=None)))
    assert "scores" not in page.ids
    assert "AP50" not in page.text and "Mean IoU" not in page.text


@pytest.mark.parametrize(("ap75", "advice"), [(0.7, "It does no better here."), (0.9, "set foreground.method")])
def test_the_classical_method_stands_beside_the_scores(build_context, ap75, advice):
    cells = {"ap50": 0.91, "ap75": 0.8, "pq": 0.87}
    page = Page(render_report(build_context(evaluation={"cells": cells, "baseline": cells | {"ap75": ap75}})))
    assert advice in page.text and "Threshold" in page.text
    alone = Page(render_report(build_context(evaluation={"cells": cells})))
    assert advice not in alone.text and "Threshold" not in alone.text


def test_an_acquisition_in_which_nothing_was_found(build_context):
    empty = build_context(
        cells=(),
        previews={},
        models={},
        crowd=None,
        evaluation={"cells": {"ap50": None}},
        quarantined_cells={},
        warnings=(),
        sections=(),
        quality=(),
        provenance={},
    )
    page = Page(render_report(empty))
    assert "No cell was found" in page.text
    assert "viewer" not in page.ids
    assert len(page.scripts) == 1


def test_the_page_refers_to_nothing_outside_itself(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/webp;base64,")), (tag, name, value[:80])
    assert not re.search(r"https?://", page.text)
    style_and_scripts = "".join(text for attributes, text in page.scripts if "type" not in attributes)
    assert set(re.findall(r"https?://[\w./-]+", style_and_scripts)) <= {"http://www.w3.org/1999/xhtml"}


def test_style_loads_nothing(html):
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "@import" not in style and "url(" not in style


def test_policy_admits_exactly_the_scripts_of_the_page(page):
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    hashes = {
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for attributes, text in page.scripts
        if "type" not in attributes
    }
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert len(hashes) == 2


def test_no_element_has_an_inline_handler(page):
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_same_context_gives_the_same_bytes(html, build_context):
    provenance = build_context().provenance
    reordered = {key: dict(reversed(value.items())) for key, value in reversed(provenance.items())}
    assert render_report(build_context(provenance=reordered)) == html


def test_text_from_users_is_escaped_everywhere(page, build_context):
    context = build_context(
        name=ATTACK,
        source=ATTACK,
        sha256=ATTACK,
        dtype=ATTACK,
        quality=[{"name": ATTACK, "figure": ATTACK, "limit": None, "passed": False, "detail": ATTACK}],
        cells=[{"cell_id": 1, "flags": ATTACK}],
        evaluation={"organelles": {"iou": {ATTACK: 0.5}, "dice": {}}},
        provenance={
            "versions": {ATTACK: ATTACK},
            "keys": {ATTACK: ATTACK},
            "config": {ATTACK: ATTACK},
            "models": {ATTACK: {"reference": ATTACK, "version": ATTACK, "sha256": ATTACK}},
        },
        quarantined_cells={ATTACK: ATTACK},
        warnings=[ATTACK],
    )
    html = render_report(context)
    attacked = Page(html)
    assert ATTACK not in html
    assert len(attacked.scripts) == len(page.scripts)
    assert attacked.text.count(ATTACK) >= 20


def test_models_are_embedded_unchanged(page, build_context):
    context = build_context()
    assert page.unpacked("glb-crowd") == context.crowd
    for cell_id, model in context.models.items():
        assert page.unpacked(f"glb-cell-{cell_id}") == model


def test_classes_and_colours_come_from_the_taxonomy(build_context):
    taxonomy = Taxonomy(
        classes=(OrganelleClass(id=0, name="outside"), OrganelleClass(id=1, name="vesicle", colour="#123abc"))
    )
    page = Page(render_report(build_context(taxonomy=taxonomy, sections=(), previews={}, evaluation=None)))
    toggles = [a["data-class"] for tag, a in page.elements if tag == "input" and "data-class" in a]
    assert toggles == ["vesicle"]
    assert '"colour": "#123abc"' in next(text for a, text in page.scripts if a.get("id") == "viewer-data")
    assert "plastid" not in page.text


def test_only_the_neediest_cells_are_previewed_when_there_are_many(build_context):
    view = build_context().previews[1][:1]
    rows = [{"cell_id": i, "review_score": i / 100} for i in range(1, 71)]
    html = render_report(build_context(cells=rows, previews=dict.fromkeys(range(1, 71), view), models={}))
    shown = {int(name[5:]) for name in Page(html).ids if name.startswith("cell-")}
    assert shown == set(range(11, 71))
    assert "the 60 of 70 cells most in need of a look" in html


def test_quarantined_cells_are_listed_by_number(build_context):
    page = Page(render_report(build_context(quarantined_cells={"10": "reason-b", "9": "reason-a"})))
    assert page.text.index("reason-a") < page.text.index("reason-b")
