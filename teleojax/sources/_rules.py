r"""A user's own rules for tensor names, in a small TOML file.

    [[rule]]
    match = '\.blocks\.(?P<depth>\d+)\.mixer\.fused$'
    role = "qkv"
    split = { q = 4096, k = 1024, v = 1024 }

    [[rule]]
    match = '^optimizer\.'
    skip = "optimizer state"

`match` is a Python regular expression that is searched for in the name, as `--include` is. The other keys say what
holds of the tensors it is found in, and are optional:

    role   a word for `group_by("role")`, one of the library's own or another
    depth  the index of the block; or the pattern holds a group of digits that is named `depth`
    skip   why the tensor is not measured, or true
    split  its parts along the first axis: names and their rows, in order; a list of names for parts of equal rows;
           or false, to leave whole what would be cut by the model's configuration

The first rule that is found in a name and has a key decides that key. A part is found under its own name,
"<name>.<part>", so that roles can be given to parts. What no rule decides stays as it is.

Caution: a pattern such as '(a+)+$' can take time exponential in the length of a name. Nothing guards against that:
take rules only from where you would take a program's options. Names longer than MAX_NAME are not looked at.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teleojax._errors import InputError, UsageError
from teleojax.sources._fused import Part, by_rows
from teleojax.sources._index import TensorSpec
from teleojax.sources._roles import MAX_NAME, RoleDepth, classify

KEYS = ("match", "role", "depth", "skip", "split")
MAX_FILE_BYTES = 1 << 20

_WORD = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)

Split = tuple[tuple[str, int | None], ...]  # parts and their rows, None where all are equal; empty: stay whole


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; what is None it does not decide."""

    match: re.Pattern[str]
    role: str | None = None
    depth: int | None = None
    skip: str | None = None
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in the order of their file, which is `path`."""

    path: str
    rules: tuple[Rule, ...]

    @classmethod
    def load(cls, path: str | Path) -> Rules:
        """Read a file of rules.

        Raises InputError when it cannot be read, UsageError when it is no TOML or no rules, naming the rule and key.
        """
        try:
            if Path(path).stat().st_size > MAX_FILE_BYTES:
                raise UsageError(
                    path, found=f"more than {MAX_FILE_BYTES} bytes", needed="a few rules", remedy="Name another file."
                )
            text = Path(path).read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            found = e.strerror or str(e) if isinstance(e, OSError) else "bytes that are not UTF-8"
            raise InputError(path, found=found, needed="a TOML file of rules", remedy="Check the path.") from e
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as e:
            raise UsageError(path, found=f"no TOML ({e})", needed="a TOML file of rules", remedy="Correct it.") from e
        unknown = sorted(set(table) - {"rule"})
        entries = table.get("rule", [])
        if unknown or not isinstance(entries, list):
            found = f"key {unknown[0]!r}" if unknown else f"rule = {entries!r}"
            raise UsageError(path, found=found, needed="tables [[rule]] alone", remedy="Write each rule as [[rule]].")
        return cls(str(path), tuple(_rule(f"{path}: rule {n}", entry) for n, entry in enumerate(entries, 1)))

    def classify(self, name: str, shape: tuple[int, ...] | None = None) -> RoleDepth:
        """Role and depth by the rules, and where they do not decide by the name itself."""
        known = classify(name, shape)
        found = [(rule, match) for rule in self.rules if len(name) <= MAX_NAME and (match := rule.match.search(name))]
        role = next((rule.role for rule, _ in found if rule.role is not None), known.role)
        depths = (_depth(rule, match) for rule, match in found)
        return RoleDepth(role, next((depth for depth in depths if depth is not None), known.depth))

    def placed(self, spec: TensorSpec) -> TensorSpec:
        """The tensor with the role and depth that the rules give it."""
        by_rules, by_name = self.classify(spec.name, spec.shape), classify(spec.name, spec.shape)
        return spec if by_rules == by_name else replace(spec, role=by_rules.role, depth=by_rules.depth)

    def skipped(self, spec: TensorSpec) -> TensorSpec:
        """The tensor, skipped if a rule says so and it is not already."""
        reason = self._first(spec.name, "skip") if spec.skip is None else None
        return spec if reason is None else replace(spec, skip=reason)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...] | None:
        """The parts of a tensor, none if it stays whole; None where no rule decides.

        Raises UsageError when the rows do not add up to those of the tensor.
        """
        split: Split | None = self._first(spec.name, "split")
        if split is None or spec.skip is not None:
            return None
        rows = spec.shape[0] if spec.shape else 0
        counts = {name: n or rows // len(split) for name, n in split}
        if split and (sum(counts.values()) != rows or spec.order != "C" or spec.stored_as is not None):
            raise UsageError(
                f"{self.path}: split of {spec.name!r}",
                found=f"parts of {' + '.join(map(str, counts.values()))} rows, shape {spec.shape}, order {spec.order}",
                needed=f"parts that add up to {rows} rows of a tensor in C order",
                remedy="Correct the rows, or narrow the pattern.",
            )
        return by_rows(spec, counts) if split else ()

    def _first(self, name: str, key: str) -> Any:
        for rule in self.rules:
            if getattr(rule, key) is not None and len(name) <= MAX_NAME and rule.match.search(name):
                return getattr(rule, key)
        return None


def _depth(rule: Rule, match: re.Match[str]) -> int | None:
    text = match.groupdict().get("depth")
    return int(text) if rule.depth is None and text is not None and re.fullmatch(r"[0-9]{1,6}", text) else rule.depth


def _rule(where: str, entry: Any) -> Rule:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    if not isinstance(entry, dict):
        raise UsageError(where, found=repr(entry), needed="a table", remedy="Write it as [[rule]].")
    if unknown := [key for key in fields if key not in KEYS]:
        raise _wrong(where, unknown[0], fields[unknown[0]], f"one of the keys {', '.join(KEYS)}")
    match, role, depth, skip = (fields.get(key) for key in ("match", "role", "depth", "skip"))
    if not isinstance(match, str):
        raise _wrong(where, "match", match, "a regular expression in quotes")
    if role is not None and not (isinstance(role, str) and _WORD.fullmatch(role)):
        raise _wrong(where, "role", role, "a word of letters, digits and _")
    if depth is not None and not (type(depth) is int and 0 <= depth < 10**6):
        raise _wrong(where, "depth", depth, "a whole number from 0 to 999999")
    if skip is not None and not (skip is True or (isinstance(skip, str) and skip)):
        raise _wrong(where, "skip", skip, "a reason, or true")
    try:
        pattern = re.compile(match)
    except (re.error, RecursionError, OverflowError) as e:
        raise _wrong(where, "match", match, f"a Python regular expression ({e})") from e
    reason = "left out by a rule" if skip is True else skip
    return Rule(pattern, role, depth, reason, _split(where, fields.get("split")))


def _split(where: str, split: Any) -> Split | None:
    if split is None or split is False:
        return None if split is None else ()
    parts = tuple(split.items()) if isinstance(split, dict) else ()
    if isinstance(split, list):
        parts = tuple((name, None) for name in split)
    names = [name for name, _ in parts]
    named = all(isinstance(name, str) and _WORD.fullmatch(name) for name in names)
    counted = all(n is None or (type(n) is int and n > 0) for _, n in parts)
    if not (parts and named and counted and len(set(names)) == len(names)):
        raise _wrong(where, "split", split, "different names with their rows, a list of different names, or false")
    return parts


def _wrong(where: str, key: str, value: object, needed: str) -> UsageError:
    found = "nothing" if value is None else repr(value)[:200]
    return UsageError(f"{where}, key {key!r}", found=found, needed=needed, remedy="Correct the rule.")
