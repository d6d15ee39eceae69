"""What goes into a page when there is not room for everything."""

import base64
import gzip

import numpy as np

from cmseg_core.report import render_report
from cmseg_core.report.embed import EMBEDDED_BYTES, pack, pack_models


def test_packing_is_lossless_and_carries_no_time():
    data = bytes(range(256)) * 9
    text = pack(data)
    assert gzip.decompress(base64.b64decode(text)) == data
    assert base64.b64decode(text)[4:8] == bytes(4)


def test_cells_most_in_need_of_a_look_come_first_when_room_is_short(build_context):
    rows = [{"cell_id": i, "review_score": s} for i, s in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, 0.2))]
    context = build_context(cells=rows)
    size = max(len(pack(model)) for model in context.models.values())
    packed = pack_models(context, limit=len(pack(context.crowd)) + 2 * size)
    assert packed.crowd is not None
    assert list(packed.cells) == [2, 4]
    assert packed.left_out == (1, 3, 5)


def test_a_page_names_what_it_left_out(build_context):
    packed = pack_models(build_context(), limit=10)
    assert packed.crowd is None and not packed.cells
    assert packed.left_out == (0, 1, 2, 3, 4, 5)


def test_a_page_tells_its_reader_what_it_left_out(build_context):
    noise = np.random.default_rng(0).bytes(EMBEDDED_BYTES)  # cannot be packed into the room there is
    context = build_context(crowd=noise)
    assert "leaves out the view of all cells. The model" in render_report(context)
    context = build_context(models={**context.models, 2: noise})
    assert "leaves out the models of 1 cell. The model" in render_report(context)
