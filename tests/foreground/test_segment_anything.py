"""Checkpoints, the mask generator beside the official one, rules, training and the classical baseline."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from cmseg_core.errors import InputError
from cmseg_core.foreground import encoder
from cmseg_core.foreground.decoder import PromptDecoder
from cmseg_core.foreground.evidence import find_cells, flatten, make_finder
from cmseg_core.foreground.generator import MaskGenerator, Prompts, point_grid
from cmseg_core.foreground.holes import close_holes
from cmseg_core.foreground.masks import Masks, distinct_boxes
from cmseg_core.foreground.reading import HeadReader
from cmseg_core.foreground.rules import cell_masks
from cmseg_core.foreground.sam import SamArchitecture, SamModel, as_colours, build_small, load_sam, save_sam
from cmseg_core.foreground.threshold import threshold_foreground
from cmseg_core.foreground.tiles import tile_starts
from cmseg_core.foreground.training import LabelledField, Retina, SamTrainingConfig, draw_example, train_sam
from cmseg_core.foreground.walk import Walk
from cmseg_core.schema import ForegroundConfig
from cmseg_core.tracking.registry import packaged_model

TINY = SamArchitecture(
    image_size=64, patch_size=8, width=32, depth=2, heads=2, window=4, global_layers=(1,), prompt_width=32
)
PIXEL_NM = 36.0


def discs(shape, circles, inside=90, outside=170):
    z, y, x = np.indices(shape)
    image, cells = np.full(shape, outside, np.uint8), np.zeros(shape, np.uint16)
    for i, (cz, cy, cx, r) in enumerate(circles, 1):
        ball = (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < r * r
        image[ball], cells[ball] = inside, i
    noise = np.random.default_rng(0).normal(0, 4, shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), cells


def masks_of(*areas):
    logits = np.stack([np.where(area, 5.0, -5.0) for area in areas]).astype(np.float32)
    return Masks.of(logits, np.full(len(areas), 0.9, np.float32))


def masks_at_a_grid(sam, picture, config):
    """Cells of one section from the whole grid."""
    generator = MaskGenerator(sam, config)
    (section,) = generator.look([picture])
    points = point_grid(section.shape, generator.edge / config.points_per_side)
    return cell_masks(generator.ask(section, Prompts.at(points)), config)


def disc(cy, cx, r, n=120):
    y, x = np.indices((n, n))
    return (y - cy) ** 2 + (x - cx) ** 2 < r * r


# ------------------------------------------------------------------------------------------- checkpoints


def test_a_small_model_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    network = build_small(TINY).eval()
    path = save_sam(network, TINY, tmp_path / "sam.pt", {"note": "untrained"})
    loaded = load_sam(path)
    assert (loaded.name, loaded.context, loaded.image_size) == ("small", "neighbours", 64)
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = network.image_encoder(picture), loaded.network.image_encoder(picture)
    assert torch.allclose(expected, found, atol=0.05), "half-precision weights answer nearly the same"


def test_an_official_checkpoint_is_told_by_its_shapes(tmp_path):
    load_sam(packaged_model("sam"))  # makes segment_anything importable, and proves the packaged file
    from segment_anything import build_sam_vit_b

    torch.save(build_sam_vit_b().state_dict(), tmp_path / "sam_vit_b.pth")
    sam = load_sam(tmp_path / "sam_vit_b.pth")
    assert (sam.name, sam.context, sam.image_size) == ("vit_b", "grey", 1024)


def test_an_official_model_trained_further_keeps_its_architecture(tmp_path):
    load_sam(packaged_model("sam"))
    from segment_anything import build_sam_vit_b

    sam = load_sam(save_sam(build_sam_vit_b(), "vit_b", tmp_path / "mine.pt", {"fields": 3}))
    assert (sam.name, sam.architecture, sam.context, sam.image_size) == ("vit_b", "vit_b", "grey", 1024)
    assert sam.whole_cells
    assert sam.facts == {"fields": 3}


class Evil:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"format": "cmseg-sam-1", "weights": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(InputError, match=name):
            load_sam(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_bad_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "sam.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_sam(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_or_foreign_checkpoint_is_refused(tmp_path):
    whole = save_sam(build_small(TINY), TINY, tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "foreign.pt")
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    content["architecture"]["width"] = 64
    torch.save(content, tmp_path / "misfit.pt")
    for name in ("cut.pt", "foreign.pt", "misfit.pt"):
        with pytest.raises(InputError, match=name):
            load_sam(tmp_path / name)


# --------------------------------------------------------------------------------------------- generator


@pytest.fixture(scope="module")
def packaged() -> SamModel:
    return load_sam(packaged_model("sam"))


def plain_nms(boxes, scores, _categories, iou_threshold):
    """Stands in for torchvision's compiled operator, which does not load beside a CPU build of PyTorch."""
    corners = boxes.cpu().numpy()
    sized = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return torch.from_numpy(distinct_boxes(sized, scores.cpu().numpy(), iou_threshold))


def test_the_generator_agrees_with_the_official_one(packaged, monkeypatch):
    from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator

    monkeypatch.setattr(automatic_mask_generator, "batched_nms", plain_nms)

    edge = packaged.image_size
    circles = [(5, 40, 45, 22), (5, 45, 100, 26), (5, 105, 60, 28), (5, 110, 120, 20)]
    image, cells = discs((11, edge, edge), circles)
    picture = as_colours(image, 5, packaged.context)
    config = ForegroundConfig()
    ours = masks_at_a_grid(packaged, picture, config)
    official = SamAutomaticMaskGenerator(
        packaged.network,
        points_per_side=config.points_per_side,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        box_nms_thresh=config.box_nms_thresh,
    ).generate(picture)
    a = ours.covered()
    b = np.any([m["segmentation"] for m in official], axis=0)
    truth = cells[5] > 0
    assert (a & b).sum() / (a | b).sum() > 0.95
    assert (a & truth).sum() / (a | truth).sum() > 0.85


@pytest.mark.parametrize("at_once", [1, 2**14, 2**23])
def test_the_encoder_gives_the_embedding_of_the_official_one(packaged, monkeypatch, at_once):
    monkeypatch.setattr(encoder, "_SCORES_AT_ONCE", at_once)
    images = torch.randn((2, 3, 160, 160), generator=torch.manual_seed(0))
    with torch.inference_mode():
        official = packaged.network.image_encoder(images)
        ours = encoder.embed_images(packaged.network.image_encoder, images)
    assert torch.allclose(ours, official, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2**9, 2**23])
def test_windows_that_do_not_fit_are_padded_like_those_of_the_official_encoder(monkeypatch, at_once):
    monkeypatch.setattr(encoder, "_SCORES_AT_ONCE", at_once)
    torch.manual_seed(0)
    network = build_small(SamArchitecture(image_size=96, patch_size=8, width=32, depth=3, heads=2, window=5)).eval()
    for tensor in network.parameters():  # biases and embeddings of positions begin as zeros
        torch.nn.init.normal_(tensor, std=0.2)
    images = torch.randn((2, 3, 96, 96))
    with torch.inference_mode():
        official = network.image_encoder(images)
        ours = encoder.embed_images(network.image_encoder, images)
    assert torch.allclose(ours, official, atol=1e-4)


@pytest.mark.parametrize("boxes", [False, True])
def test_the_decoder_gives_the_masks_of_the_official_one(packaged, boxes):
    network, edge = packaged.network, packaged.image_size
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, edge, (6, 2, 2)), axis=1).reshape(6, 4)
    with torch.inference_mode():
        embedding = torch.randn((1, 128, 20, 20), generator=torch.manual_seed(0))
        asked = torch.from_numpy(corners).float()
        points = (asked[:, None, :2], torch.ones(6, 1, dtype=torch.int))
        prompted = {"points": None, "boxes": asked} if boxes else {"points": points, "boxes": None}
        sparse, dense = network.prompt_encoder(**prompted, masks=None)
        position = network.prompt_encoder.get_dense_pe()
        logits, quality = network.mask_decoder.predict_masks(embedding, position, sparse, dense)
        decoder = PromptDecoder(packaged, torch.float32)
        prompts = decoder.embed(None, asked) if boxes else decoder.embed(asked[:, :2], None)
        ours, draw = decoder.decode(decoder.see(embedding), prompts)
        # The first mask, for many prompts together, is not among those of the official generator either.
        assert torch.allclose(ours, quality[:, 1:], atol=1e-4)
        wanted, which = torch.tensor([5, 0, 3]), torch.tensor([0, 2, 1])
        expected = logits[wanted, 1 + which]
        assert torch.allclose(draw(wanted, which), expected, atol=1e-3)
        rough = PromptDecoder(packaged, torch.bfloat16)
        drawn = rough.decode(rough.see(embedding), prompts)[1](wanted, which)
        assert ((drawn > 0) == (expected > 0)).float().mean() > 0.99


def test_masks_know_what_they_share():
    left, right, apart = disc(40, 30, 20), disc(40, 50, 20), disc(100, 100, 8)
    masks = masks_of(left, right, apart)
    shared = masks.shared(masks)
    assert shared[0, 1] == shared[1, 0] == (left & right).sum()
    assert np.array_equal(np.diag(shared), masks.areas()) and shared[0, 2] == 0
    assert masks.overlap(masks)[0, 1] == pytest.approx((left & right).sum() / (left | right).sum())
    assert np.array_equal(masks.covered(), left | right | apart)
    assert np.array_equal(masks.moved(3, 5, (200, 200)).covered()[3:123, 5:125], masks.covered())
    nothing = masks.take([])
    assert not nothing.covered().any() and nothing.shared(masks).shape == (0, 3) and len(nothing.distinct(0.5)) == 0


def test_cells_are_carried_from_section_to_section(packaged):
    # One cell reaches through, one ends between two key sections, one begins there.
    circles = [(20, 40, 40, 22), (3, 45, 105, 20), (38, 105, 60, 22)]
    image, cells = discs((40, 140, 140), circles)
    generator = MaskGenerator(packaged, ForegroundConfig(prompts="propagated"))
    asked = []
    ask = generator.ask
    generator.ask = lambda section, prompts: asked.append(len(prompts)) or ask(section, prompts)
    carried = np.stack([flatten(masks)[0] >= 128 for masks in Walk(generator, image).masks()])
    everywhere = Walk(MaskGenerator(packaged, ForegroundConfig(prompts="grid")), image)
    grid = np.stack([flatten(masks)[0] >= 128 for masks in everywhere.masks()])
    truth = cells > 0
    for found in (carried, grid):
        assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert (carried & grid).sum() / (carried | grid).sum() > 0.97
    assert sum(asked) < 0.5 * len(image) * len(everywhere.grid)


def test_points_lie_in_the_section():
    grid = point_grid((50, 100), 10)
    assert len(grid) == 50 and grid.min() > 0 and grid[:, 0].max() < 100 and grid[:, 1].max() < 50


@pytest.mark.parametrize("length", [10, 160, 161, 239, 240, 700])
def test_tiles_cover_a_section_and_overlap_by_half(length):
    starts = tile_starts(length, 160)
    assert starts[0] == 0 and starts[-1] + 160 >= length
    assert all(0 < b - a <= 80 for a, b in zip(starts, starts[1:], strict=False))


def test_a_section_larger_than_a_tile_has_no_seams(packaged):
    n = 2 * packaged.image_size
    circles = [(1, y, x, 22) for y in range(30, n - 20, 55) for x in range(30, n - 20, 55)]
    image, cells = discs((3, n, n), circles)
    config = ForegroundConfig()
    found, _ = flatten(masks_at_a_grid(packaged, as_colours(image, 1, packaged.context), config))
    truth = cells[1] > 0
    assert ((found >= 128) & truth).sum() / ((found >= 128) | truth).sum() > 0.85


# ------------------------------------------------------------------------------------------------- rules


def test_rules_drop_debris_background_organelles_and_clumps():
    config = ForegroundConfig(cell_diameter_px=40)
    left, right = disc(40, 30, 20), disc(40, 72, 20)
    clump = left | right | disc(40, 51, 6)
    organelle, debris, everything = disc(40, 25, 8), disc(100, 100, 2), np.ones((120, 120), bool)
    kept = cell_masks(masks_of(left, clump, organelle, debris, everything, right), config)
    assert set(kept.areas()) == {int(left.sum()), int(right.sum())}


def test_rules_may_leave_no_mask():
    speck = masks_of(disc(100, 100, 2))
    assert len(cell_masks(speck, ForegroundConfig())) == 0
    assert len(cell_masks(speck.take(np.zeros(0, int)), ForegroundConfig())) == 0


def test_touching_masks_have_a_valley_between_them():
    a, b = disc(60, 40, 22), disc(60, 82, 22)
    _, interior = flatten(masks_of(a, b))
    assert interior[60, 61] <= 2 < interior[60, 40] and interior[60, 82] > 15
    assert flatten(masks_of(a).take(np.zeros(0, int)))[0].max() == 0


# ---------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize(
    ("directions", "prompts"), [(1, "none"), (3, "none"), (1, "grid"), pytest.param(3, "grid", marks=pytest.mark.slow)]
)
def test_cells_are_found_in_a_volume(packaged, directions, prompts):
    image, cells = discs((40, 90, 90), [(20, 40, 28, 19), (20, 48, 66, 19)])
    done = []
    config = ForegroundConfig(directions=directions, prompts=prompts)
    evidence = find_cells(image, PIXEL_NM, config, packaged, done.append)
    assert sum(done) == (40 if directions == 1 else 220)
    assert evidence.interior is not None
    found, truth = evidence.foreground >= 128, cells > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    assert evidence.interior[20, 40, 28] > 10 * PIXEL_NM


def test_what_is_asked_follows_the_settings_and_the_model(packaged):
    headless = replace(packaged, head=None)
    assert isinstance(make_finder(packaged, ForegroundConfig()), HeadReader)
    assert isinstance(make_finder(packaged, ForegroundConfig(prompts="grid")), MaskGenerator)
    assert isinstance(make_finder(headless, ForegroundConfig()), MaskGenerator)
    with pytest.raises(InputError, match="has no head"):
        make_finder(headless, ForegroundConfig(prompts="none"))


def test_a_section_read_in_tiles_has_no_seams(packaged):
    n = 2 * packaged.image_size
    circles = [(1, y, x, 22) for y in range(30, n - 20, 55) for x in range(30, n - 20, 55)]
    image, cells = discs((3, n, n), circles)
    ((probability, depth),) = HeadReader(packaged).read([as_colours(image, 1, packaged.context)])
    truth = cells[1] > 0
    assert ((probability >= 128) & truth).sum() / ((probability >= 128) | truth).sum() > 0.85
    assert np.median(depth[60:62, 30:n:55]) < 8 < np.median(depth[30:n:55, 30:n:55])


@pytest.mark.parametrize("grey", [0, 120, 255])
def test_an_empty_field_has_no_cell(packaged, grey):
    volume = np.full((6, 64, 64), grey, np.uint8)
    assert (find_cells(volume, PIXEL_NM, ForegroundConfig(), packaged).foreground >= 128).mean() < 0.02
    assert not threshold_foreground(volume, 48).any()


@pytest.mark.parametrize(("inside", "outside"), [(90, 170), (170, 90)])
def test_the_baseline_finds_cells_darker_or_brighter_than_the_resin(inside, outside):
    image, cells = discs((40, 90, 90), [(20, 40, 28, 19), (20, 48, 66, 17)], inside, outside)
    image[cells > 0] += (np.random.default_rng(1).random((cells > 0).sum()) * 25).astype(np.uint8)
    found, truth = threshold_foreground(image, 40) > 0, cells > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.85


# ---------------------------------------------------------------------------------------------- training


def test_training_learns_and_repeats_itself():
    image, cells = discs((32, 64, 64), [(16, 20, 18, 13), (16, 44, 42, 15)])
    config = SamTrainingConfig(
        architecture=TINY,
        steps=60,
        images_per_step=2,
        prompts_per_image=4,
        steps_per_epoch=20,
        learning_rate=2e-3,
        dense_share=0,
    )
    runs = [train_sam([LabelledField(image, cells)], config) for _ in range(2)]
    losses = [record["loss"] for record in runs[0].history]
    assert losses[-1] < 0.85 * losses[0]
    for a, b in zip(runs[0].network.state_dict().values(), runs[1].network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_model_is_trained_further(tmp_path):
    fields = [LabelledField(*discs((32, 64, 64), [(16, 20, 18, 13), (16, 44, 42, 15)]))]
    first = SamTrainingConfig(
        architecture=TINY,
        seed=1,
        steps=240,
        images_per_step=2,
        prompts_per_image=4,
        learning_rate=4e-3,
        dense_share=0.8,
    )
    trained = train_sam(fields, first, validation=fields)
    assert trained.history[-1]["cell_iou"] > 0.5
    initial = load_sam(save_sam(trained.network, trained.architecture, tmp_path / "first.pt", head=trained.head))
    assert initial.head is not None
    before = {name: tensor.clone() for name, tensor in initial.network.state_dict().items()}
    again = SamTrainingConfig(steps=4, images_per_step=2, prompts_per_image=4, learning_rate=1e-4)
    on = train_sam(fields, again, validation=fields, initial=initial)
    assert on.architecture == TINY, "the architecture is that of the model, not of the settings"
    assert on.history[-1]["iou"] == pytest.approx(trained.history[-1]["iou"], abs=0.05)
    assert on.history[-1]["cell_iou"] == pytest.approx(trained.history[-1]["cell_iou"], abs=0.1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in on.network.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in initial.network.state_dict().items())


def test_a_frozen_encoder_stays_as_it_is_while_its_prompts_are_learnt():
    fields = [LabelledField(*discs((32, 64, 64), [(16, 20, 18, 13), (16, 44, 42, 15)]))]
    first = train_sam(fields, SamTrainingConfig(architecture=TINY, steps=2))
    initial = SamModel(first.network, "small", "neighbours", TINY, True, head=first.head)
    on = train_sam(fields, SamTrainingConfig(freeze_encoder=True, steps=3, dense_share=0.5), initial=initial)
    same = {
        name: all(torch.equal(a, b) for a, b in zip(was.parameters(), now.parameters(), strict=True))
        for name, was, now in (
            ("encoder", initial.network.image_encoder, on.network.image_encoder),
            ("head", initial.head, on.head),
            ("decoder", initial.network.mask_decoder, on.network.mask_decoder),
        )
    }
    assert same == {"encoder": True, "head": True, "decoder": False}


def test_prompts_point_at_their_masks():
    image, cells = discs((32, 64, 64), [(16, 20, 18, 13), (16, 44, 42, 15)])
    config = SamTrainingConfig(architecture=TINY, background_share=0.3, prompts_per_image=12)
    rng = np.random.default_rng(0)
    retina = Retina(size=64, grid=8, context="neighbours")
    filled = empty = 0
    for _ in range(12):
        example = draw_example(rng, [LabelledField(image, cells)], config, retina)
        assert len(example.masks) == len(example.points) + len(example.boxes) == 12
        for (left, top, right, bottom), mask in zip(example.boxes, example.masks[len(example.points) :], strict=True):
            rows, columns = np.nonzero(mask)
            off = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 64 / mask.shape[0]
            assert np.abs(off - [left, top, right, bottom]).max() < 0.25 * max(right - left, bottom - top) + 2
        for (x, y), mask in zip(example.points, example.masks, strict=False):
            row, column = int(y * mask.shape[0] / 64), int(x * mask.shape[1] / 64)
            near = mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            filled += bool(mask.any())
            empty += not mask.any()
            assert not mask.any() or near.any()
    assert filled > empty > 0


def test_a_data_set_without_cells_is_refused():
    empty = LabelledField(np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint16))
    with pytest.raises(InputError, match="no labelled cell"):
        train_sam([empty], SamTrainingConfig(architecture=TINY))


# ------------------------------------------------------------------------------------------------- holes


def test_holes_are_closed_and_bays_are_not():
    cell = np.zeros((1, 40, 60), np.uint8)
    cell[0, 5:35, 5:35] = 200
    cell[0, 10:16, 10:16] = 20  # a hole
    cell[0, 20:30, 20:40] = 0  # a bay
    cell[0, 5:35, 40:60] = 200
    cell[0, 10:30, 43:57] = 20  # a hole wider than an organelle
    closed = close_holes(cell, 128, 12)
    assert (closed[0, 10:16, 10:16] == 128).all()
    closed[0, 10:16, 10:16] = 20
    assert np.array_equal(closed, cell)


def test_holes_in_a_part_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    cell = np.where(ndimage.gaussian_filter(rng.normal(size=(2, 70, 80)), (0, 1.5, 1.5)) > -0.1, 200, 10).astype(
        np.uint8
    )
    whole = close_holes(cell, 128, 9)
    assert (whole != cell).any()
    for start in (0, 23, 60):
        first, last = max(0, start - 10), min(80, start + 20 + 10)
        part = close_holes(cell[:, :, first:last], 128, 9)
        assert np.array_equal(part[:, :, start - first : start - first + 20], whole[:, :, start : start + 20])
