"""Comparison: what changed from one network to another, tensor by tensor and role by role, and its lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teleojax.report._result import TensorFit
from teleojax.report._write import write_atomically, written_or_returned

STATS = ("mu", "sigma", "kl_nats")


@dataclass(frozen=True, slots=True)
class Change:
    """A number before and after. `se` is the standard error of `delta` = b − a, as of independent samples; `sign` is
    that of a delta beyond its interval, 0 within it, None where one of the numbers or errors does not exist (NaN).

    Of weights that share their past (a fine-tuned network and its base, a quantised one and its original) the samples
    are not independent: the true error is smaller, and a sign that is not 0 stands all the more.
    """

    a: float
    b: float
    se: float
    sign: int | None

    @property
    def delta(self) -> float:
        """The number after, less the number before."""
        return self.b - self.a


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor, or the matched tensors of one role, in both networks.

    `matched` says by what the two were paired: "name", "prefix" (the name without model., module., …), "shape" (with
    role and depth), or "role". `w1_log` is the Wasserstein-1 distance in ln|w| between the two, NaN without histograms.
    `reason` says why a number is missing; `tensors` counts those of a role.
    """

    a: TensorFit
    b: TensorFit
    matched: str
    mu: Change
    sigma: Change
    kl_nats: Change
    w1_log: float
    reason: str | None = None
    tensors: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; numbers that do not exist are None."""
        place = self.a if self.a.role is not None else self.b
        line: dict[str, Any] = {
            "kind": "tensor" if self.tensors is None else "role",
            "name_a": self.a.name,
            "name_b": self.b.name,
            "matched": self.matched,
            "role": place.role,
            "depth": place.depth,
            "tensors": self.tensors,
        }
        sides = {"a": self.a, "b": self.b}
        for side, result in sides.items():
            line[f"shape_{side}"] = None if result.shape is None else list(result.shape)
        line |= {f"dtype_{side}": result.dtype for side, result in sides.items()}
        for key in ("n", "n_zero"):
            line |= {f"{key}_{s}": getattr(r.moments, key) if r.moments else None for s, r in sides.items()}
        for stat in STATS:
            change: Change = getattr(self, stat)
            line |= {f"{stat}_{side}": _finite(getattr(change, side)) for side in sides}
            line |= {
                f"d_{stat}": _finite(change.delta),
                f"d_{stat}_se": _finite(change.se),
                f"{stat}_sign": change.sign,
            }
        line |= {f"best_bic_{side}": result.best_bic for side, result in sides.items()}
        return {**line, "w1_log": _finite(self.w1_log), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Comparison(Mapping[str, TensorChange]):
    """Changes by the tensor's name in the first network, `a`; `roles` those of the matched tensors of each role.

    `only_a` and `only_b` are measured tensors without a counterpart; `source_a` and `source_b` what was compared.
    """

    changes: dict[str, TensorChange]
    roles: dict[str, TensorChange]
    only_a: tuple[TensorFit, ...]
    only_b: tuple[TensorFit, ...]
    source_a: str
    source_b: str
    level: float = 0.95

    def __getitem__(self, name: str) -> TensorChange:
        return self.changes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def summary(self) -> dict[str, Any]:
        """Totals: pairs by how they were matched, what only one has, changes beyond their errors."""
        matched = [c.matched for c in self.changes.values()]
        return {
            "a": self.source_a,
            "b": self.source_b,
            "level": self.level,
            "pairs": len(matched),
            **{f"by_{rule}": matched.count(rule) for rule in ("name", "prefix", "shape")},
            "only_a": len(self.only_a),
            "only_b": len(self.only_b),
            **{f"{stat}_changed": sum(bool(getattr(c, stat).sign) for c in self.changes.values()) for stat in STATS},
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict a pair (kind "tensor"), a role ("role"), a tensor without counterpart ("only_a", "only_b")."""
        for change in (*self.changes.values(), *self.roles.values()):
            yield change.to_dict()
        for side, alone in (("a", self.only_a), ("b", self.only_b)):
            for r in alone:
                yield {
                    "kind": f"only_{side}",
                    f"name_{side}": r.name,
                    "role": r.role,
                    "depth": r.depth,
                    f"shape_{side}": None if r.shape is None else list(r.shape),
                    f"dtype_{side}": r.dtype,
                    f"n_{side}": r.moments.n if r.moments else None,
                }

    def jsonl(self) -> str:
        """One JSON object a line, the summary last. Full precision; what does not exist is null."""
        lines = [*self.rows(), {"summary": self.summary}]
        return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)

    def csv(self) -> str:
        """A header and one row for each of `rows()`."""
        rows = list(self.rows())
        out = io.StringIO()
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["kind"]
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "x".join(map(str, v)) if isinstance(v, list) else v for k, v in r.items()} for r in rows)
        return out.getvalue()

    def to_jsonl(self, path: str | Path) -> None:
        """Write the JSON lines to a file that appears whole or not at all."""
        write_atomically(path, self.jsonl())

    def to_csv(self, path: str | Path) -> None:
        """Write the CSV to a file that appears whole or not at all."""
        write_atomically(path, self.csv())

    def html(self) -> str:
        """One self-contained HTML page: every pair with both its histograms, roles; it fetches nothing.

        Raises MissingExtraError without the extra "report".
        """
        from teleojax.report.page import comparison_page

        return comparison_page(self)

    def to_html(self, path: str | Path | None = None) -> str | None:
        """Write the page to a file that appears whole or not at all; without a path, return it."""
        return written_or_returned(path, self.html())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
