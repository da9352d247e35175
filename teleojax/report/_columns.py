"""What the columns of a result are: kind, unit and meaning, for tables that can carry them."""

from __future__ import annotations

from typing import NamedTuple

LOG, NATS, LAYER = "ln|w|", "nats", "nats per connection"


class Column(NamedTuple):
    """`kind` is "text", "count" or "number"; `unit` is "1" for pure numbers and "" for text."""

    kind: str
    unit: str
    meaning: str


COLUMNS = {
    "step": Column("count", "1", "training step"),
    "checkpoint": Column("text", "", "the checkpoint of that step"),
    "name": Column("text", "", "tensor, or group of tensors"),
    "role": Column("text", "", "role in the network, by the name"),
    "depth": Column("count", "1", "index of the repeated block, from 0"),
    "shape": Column("text", "", "axes, as 120x90"),
    "dtype": Column("text", "", "how values are stored"),
    "size": Column("count", "1", "number of values"),
    "tensors": Column("count", "1", "tensors of the group"),
    "n": Column("count", "1", "finite non-zero values"),
    "n_zero": Column("count", "1", "zeros"),
    "n_nonfinite": Column("count", "1", "infinities and NaN"),
    "n_negative": Column("count", "1", "negative values"),
    "min": Column("number", "|w|", "smallest |w| that is not zero"),
    "max": Column("number", "|w|", "largest |w|"),
    "rms": Column("number", "|w|", "root mean square"),
    "mu": Column("number", LOG, "mean of ln|w|: location of the maximum-likelihood lognormal"),
    "sigma": Column("number", LOG, "standard deviation of ln|w|: its width"),
    "mu_se": Column("number", LOG, "standard error of mu"),
    "sigma_se": Column("number", LOG, "standard error of sigma"),
    "skew": Column("number", "1", "skewness of ln|w|"),
    "excess_kurtosis": Column("number", "1", "excess kurtosis of ln|w|"),
    "alpha": Column("number", f"{NATS}/{LOG}", "benefit, in the measure dx"),
    "beta": Column("number", f"{NATS}/({LOG})²", "cost"),
    "h_star": Column("number", NATS, "effective utility at equilibrium"),
    "kl_nats": Column("number", LAYER, "distance from arbitrage equilibrium"),
    "kl_se": Column("number", LAYER, "standard error of kl_nats"),
    "dispersion": Column("number", NATS, "standard deviation of effective utility over connections"),
    "fisher": Column("number", f"1/({LOG})²", "mean square of the utility gradient"),
    "ks": Column("number", "1", "largest gap between the distribution functions"),
    "w1_log": Column("number", LOG, "Wasserstein-1 distance in ln|w|"),
    "r2": Column("number", "1", "squared correlation of the probability plot"),
    "best_family": Column("text", "", "family of highest likelihood"),
    "delta_nats": Column("number", "nats per value", "gain of best_family over the lognormal"),
    "best_bic": Column("text", "", "family of lowest BIC"),
    "status": Column("text", "", "ok, degenerate, skipped or failed"),
    "reason": Column("text", "", "why not ok"),
}
OF_FAMILY = {
    "n": Column("count", "1", "values that the family describes"),
    "loglik_per_value": Column("number", "nats per value", "mean log-likelihood, density in x"),
    "aic": Column("number", "1", "Akaike's criterion, 2k − 2 ln L"),
    "bic": Column("number", "1", "Bayesian criterion, k ln n − 2 ln L"),
    "kl_nats": Column("number", "nats per value", "divergence of the values' density from the family"),
    "ks": Column("number", "1", "largest gap between the distribution functions"),
    "ad": Column("number", "1", "Anderson–Darling's A²"),
    "cvm": Column("number", "1", "Cramér–von Mises' W²"),
    "w1_log": Column("number", LOG, "Wasserstein-1 distance in ln|w|"),
    "r2": Column("number", "1", "squared correlation of the probability plot"),
    "p_value": Column("number", "1", "bootstrap p of ks, parameters estimated"),
    "replicates": Column("count", "1", "bootstrap replicates"),
    "vuong_z": Column("number", "1", "Vuong's z against the lognormal"),
    "vuong_p": Column("number", "1", "p of Vuong's test against the lognormal"),
    "status": Column("text", "", "of the fit"),
    "limit": Column("text", "", "simpler law that the parameters have all but reached"),
    "bins": Column("count", "1", "bins of the linear histogram"),
    "n_outside": Column("count", "1", "values outside the grid"),
}
UNITS = {"scale": "|w|", "scales": "|w|", "xmin": "|w|", "mu": LOG, "sigma": LOG, "mus": LOG, "sigmas": LOG}


def column(key: str) -> Column:
    """What a column of `report.csv()` is; `key` of a family is "family.key"."""
    family, _, name = key.rpartition(".")
    if not family:
        return COLUMNS.get(name, Column("number", "1", name))
    if name in OF_FAMILY:
        kind, unit, meaning = OF_FAMILY[name]
        return Column(kind, unit, f"{family}: {meaning}")
    parameter, error = name, ""
    for ending, words in (("_jackknife_se", "jackknife standard error of "), ("_se", "standard error of ")):
        if name.endswith(ending):
            parameter, error = name.removesuffix(ending), words
            break
    unit = "1" if family == "invgauss" and parameter == "mu" else UNITS.get(parameter, "1")
    return Column("number", unit, f"{family}: {error}{parameter}")
