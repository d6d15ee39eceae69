"""What quality control finds: checks, figures along the stack, and the verdict."""

from __future__ import annotations

from pydantic import computed_field

from cmseg_core.schema import Frozen


class QualityCheck(Frozen):
    """One check: passed where the figure keeps its limit.

    Attributes
    ----------
    name : str
    figure, limit : float
    passed : bool
    detail : str
        One sentence for people.
    sections : tuple of int
        The first sections at fault, counted from 0.
    """

    name: str
    figure: float
    limit: float
    passed: bool
    detail: str
    sections: tuple[int, ...] = ()


class SectionProfile(Frozen):
    """Figures along the stack, one a section; None where a figure is undefined."""

    mean: tuple[float, ...]
    """8-bit grey levels."""
    deviation: tuple[float, ...]
    """8-bit grey levels."""
    snr: tuple[float | None, ...]
    shift_px: tuple[float | None, ...]
    """Against the last section that is not blank."""
    change: tuple[float | None, ...]
    """1 minus the correlation with it."""


class QualityReport(Frozen):
    """All checks of one acquisition.

    Attributes
    ----------
    checks : tuple of QualityCheck
    sections : int
    profile : SectionProfile
    fatal : str, optional
        Why the acquisition must not be processed; None where it may be, even with failed checks.
    """

    checks: tuple[QualityCheck, ...]
    sections: int
    profile: SectionProfile
    fatal: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Every check passed."""
        return all(check.passed for check in self.checks)

    def check(self, name: str) -> QualityCheck:
        """The check called `name`; KeyError where there is none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)
