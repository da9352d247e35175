"""The columns of a page's table: what of a row they show, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shown:
    """`key` of a row under a `label`; `kind` is "text", "count" or "number", shown to so many `digits`.

    `se` is the key of its standard error, `sign` that of a change's sign; `wide` columns are left out on phones.
    """

    key: str
    label: str
    meaning: str
    kind: str = "text"
    digits: int = 4
    se: str | None = None
    sign: str | None = None
    wide: bool = True


OF_REPORT = (
    Shown("name", "tensor", "tensor, or group of tensors", wide=False),
    Shown("role", "role", "role in the network, by the name"),
    Shown("depth", "depth", "index of the repeated block, from 0", "count"),
    Shown("n", "values", "finite non-zero values", "count"),
    Shown("mu", "μ", "mean of ln|w|: location of the lognormal", "number"),
    Shown("sigma", "σ", "standard deviation of ln|w|: width of the lognormal", "number"),
    Shown("kl_nats", "distance", "distance from arbitrage equilibrium, nats per connection", "number", se="kl_se",
          wide=False),
    Shown("best_bic", "best", "family of lowest BIC", wide=False),
    Shown("gain", "gain", "what that family gains over the lognormal, nats per value", "number"),
)  # fmt: skip
OF_COMPARISON = (
    Shown("name", "tensor", "tensor, by its name before", wide=False),
    Shown("role", "role", "role in the network, by the name"),
    Shown("depth", "depth", "index of the repeated block, from 0", "count"),
    Shown("d_mu", "Δμ", "change of the mean of ln|w|", "number", sign="mu_sign"),
    Shown("d_sigma", "Δσ", "change of the standard deviation of ln|w|", "number", sign="sigma_sign"),
    Shown("d_kl_nats", "Δ distance", "change of the distance from arbitrage equilibrium, nats per connection", "number",
          se="d_kl_nats_se", sign="kl_nats_sign", wide=False),
    Shown("w1_log", "W₁", "Wasserstein-1 distance between the two laws of ln|w|", "number", 5, wide=False),
    Shown("best", "best", "family of lowest BIC, before → after"),
)  # fmt: skip


def as_data(columns: tuple[Shown, ...]) -> list[dict[str, Any]]:
    """The columns as JSON takes them."""
    return [asdict(column) for column in columns]
