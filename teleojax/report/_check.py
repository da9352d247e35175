"""What is said of a family besides its fit: distances from the values, a calibrated p, a test against the lognormal."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from teleojax.diagnose import BootstrapTest, Goodness, VuongTest, bootstrap_test, goodness_of_fit, vuong
from teleojax.families import FAMILIES
from teleojax.fits import FamilyFit
from teleojax.report._options import FitOptions
from teleojax.stats import TensorStats


@dataclass(frozen=True, slots=True)
class FamilyCheck:
    """`kl_nats` is the divergence of the values' density estimate from the family, that of the lognormal less what the
    family gains over it; `goodness` the distances of the distribution functions, None of a fit to rounding cells, which
    stored values need not follow; `bootstrap` and `vuong` (against the
    lognormal) None unless asked for.
    """

    kl_nats: float
    goodness: Goodness | None
    bootstrap: BootstrapTest | None = None
    vuong: VuongTest | None = None


def check_families(
    name: str, stats: TensorStats, fits: Mapping[str, FamilyFit], kl_lognormal: float, options: FitOptions
) -> dict[str, FamilyCheck]:
    """A check of every family at its maximum; none without a histogram. Replicates are drawn from the tensor's name."""
    checks: dict[str, FamilyCheck] = {}
    histogram, reference = stats.histogram, fits.get("lognormal")
    if histogram is None:
        return checks
    seed = zlib.crc32(name.encode())
    for family_name, fit in fits.items():
        if not fit.maximised:
            continue
        family = FAMILIES[family_name]
        compared = reference if reference is not None and reference.params and reference.n == fit.n else None
        kl = kl_lognormal + compared.loglik_per_value - fit.loglik_per_value if compared is not None else math.nan
        test = (
            bootstrap_test(stats, family, fit, replicates=options.bootstrap, seed=seed) if options.bootstrap else None
        )
        versus = None
        if options.vuong and compared is not None and family_name != "lognormal":
            versus = vuong(histogram, (family, fit.params), (FAMILIES["lognormal"], compared.params))
        good = None if options.method == "interval" else goodness_of_fit(histogram, family, fit.params)
        checks[family_name] = FamilyCheck(kl, good, test, versus)
    return checks
