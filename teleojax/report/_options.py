"""How tensors are fitted: the choices of `fit`, kept with its report so that groups are fitted in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from teleojax._errors import UsageError

METHODS = ("mle", "interval", "histogram", "probability-plot")
DEFAULT_FAMILIES = ("lognormal", "halfnormal")
PUBLISHED = {"histogram": "lognormal", "probability-plot": "weibull"}  # the one family that each of them fits


@dataclass(frozen=True, slots=True)
class FitOptions:
    """`families` in order, the lognormal first; `method`; `bins` of the linear histogram of method "histogram";
    `grid` of method "probability-plot"; `xmin` where tails begin (None: searched for); `bootstrap` replicates for a
    calibrated p of every family; `vuong` tests against the lognormal; `level` of confidence intervals.
    """

    families: tuple[str, ...] = DEFAULT_FAMILIES
    method: str = "mle"
    bins: int = 100
    grid: str | None = None
    xmin: float | None = None
    bootstrap: int = 0
    vuong: bool = False
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse what no fit can do. Raises UsageError."""
        if self.method not in METHODS:
            raise UsageError(
                "method", found=repr(self.method), needed=f"one of {', '.join(METHODS)}", remedy="Choose one of them."
            )
        if not 0 < self.level < 1:
            raise UsageError(
                "level", found=f"{self.level!r}", needed="a number between 0 and 1", remedy="Use 0.95, say."
            )
        if self.bootstrap < 0:
            raise UsageError(
                "bootstrap", found=f"{self.bootstrap}", needed="0 or more replicates", remedy="Use 99, say."
            )
        if self.xmin is not None and not self.xmin > 0:
            raise UsageError("xmin", found=f"{self.xmin}", needed="a number above 0", remedy="Correct it.")
