from dataclasses import replace

import numpy as np

from cmseg_core.organelles.inference import label_cell
from cmseg_core.organelles.model import OrganelleModel
from cmseg_core.organelles.network import build_unet
from cmseg_core.organelles.trial import try_cell
from cmseg_core.schema import OrganellesConfig, PreprocessConfig
from tests.organelles.toy import TAXONOMY, toy_cell


def test_every_way_is_what_the_pipeline_would_give() -> None:
    cell, config, preprocess = toy_cell(0), OrganellesConfig(), PreprocessConfig()
    model = OrganelleModel(build_unet(len(TAXONOMY), 32, width=4, depth=2), TAXONOMY, 32, temperature=0.5)
    trial = try_cell(cell, model, config, preprocess)
    fused = label_cell(cell, model, config, preprocess)
    np.testing.assert_array_equal(trial.fused.labels, fused.labels)
    np.testing.assert_array_equal(trial.fused.confidence, fused.confidence)
    along_z = label_cell(cell, model, config.model_copy(update={"directions": 1}), preprocess)
    np.testing.assert_array_equal(trial.single[0].confidence, along_z.confidence)
    raw = label_cell(cell, replace(model, temperature=1.0), config, preprocess)
    np.testing.assert_array_equal(trial.uncalibrated.confidence, raw.confidence)
    assert (raw.confidence != fused.confidence).any()
    assert len({way.confidence.tobytes() for way in trial.single}) == 3
