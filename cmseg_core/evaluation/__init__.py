"""Scores against ground truth: cells by matching and information, organelles by overlap."""

from cmseg_core.evaluation.instances import CellScores, match_cells, score_cells
from cmseg_core.evaluation.overlap import ClassCounts, StageCounts, mean_and_sd
from cmseg_core.evaluation.tables import cell_table, class_table, format_table

__all__ = [
    "CellScores",
    "ClassCounts",
    "StageCounts",
    "cell_table",
    "class_table",
    "format_table",
    "match_cells",
    "mean_and_sd",
    "score_cells",
]
