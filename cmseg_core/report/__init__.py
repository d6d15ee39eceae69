"""The report of one acquisition: a single HTML file that opens offline."""

from cmseg_core.report.context import ReportContext, SectionView, middle_sections
from cmseg_core.report.report import render_report

__all__ = ["ReportContext", "SectionView", "middle_sections", "render_report"]
