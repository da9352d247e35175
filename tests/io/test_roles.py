"""What the name of a tensor says: names of published checkpoints, two whole networks, and names that say nothing."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teleojax.sources._roles import _RULES, MAX_NAME, ROLES, RoleDepth, classify

NAMES = Path(__file__).parent / "names"


def read_rows(file: str) -> list[list[str]]:
    """The rows of a list of names, split at spaces; section titles and comments left out."""
    lines = (NAMES / file).read_text().splitlines()
    return [line.split(" ") for line in lines if line and not line.startswith("#") and " " in line and line[-1] != "]"]


def read_shape(text: str) -> tuple[int, ...] | None:
    if text == "?":
        return None
    return () if text == "-" else tuple(map(int, text.split("x")))


def classified(file: str) -> list[tuple[str, RoleDepth]]:
    return [(row[0], classify(row[0], read_shape(row[1]))) for row in read_rows(file)]


ARCHITECTURES = read_rows("architectures.txt")


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_published_names(row: list[str]) -> None:
    name, shape, role, depth = row
    expected = RoleDepth(None if role == "-" else role, None if depth == "-" else int(depth))
    assert classify(name, read_shape(shape)) == expected


def test_the_table_of_names_covers_the_rules() -> None:
    assert len(ARCHITECTURES) >= 150
    assert {row[2] for row in ARCHITECTURES} == {*ROLES, "-"}
    assert {rule.role for rule in _RULES} == {*ROLES, None}


def test_every_tensor_of_minilm() -> None:
    found = classified("minilm.txt")
    assert Counter(value.role for _, value in found) == {
        **dict.fromkeys(("q", "k", "v", "o", "up", "down"), 6),
        "bias": 37,
        "norm": 26,
        "embed": 2,
        "position_embed": 1,
        "pooler": 1,
        None: 1,  # position_ids, integers
    }
    for role in ("q", "k", "v", "o", "up", "down"):
        assert [value.depth for _, value in found if value.role == role] == list(range(6))
    assert all((value.depth is None) == ("layer." not in name) for name, value in found)


def test_every_constant_of_blazepose() -> None:
    found = classified("blazepose.txt")
    roles = Counter(value.role for _, value in found)
    assert roles == {"conv": 58, "depthwise_conv": 38, "bias": 96, None: 10}  # None: sizes and paddings, integers
    # Every numbered layer owns exactly one kernel; the five outputs have names and no numbers.
    for role, numbered, named in (("conv", 53, 5), ("depthwise_conv", 38, 0)):
        depths = [value.depth for _, value in found if value.role == role]
        assert Counter(depths) == {**dict.fromkeys(range(numbered), 1), **({None: named} if named else {})}


def test_biases_of_blazepose_belong_to_the_kernels_they_are_wired_to() -> None:
    rows = read_rows("blazepose.txt")
    found = [value for _, value in classified("blazepose.txt")]
    wired = [(value, found[int(row[2])]) for row, value in zip(rows, found, strict=True) if row[2] != "-"]
    assert len(wired) == 96
    assert all(bias.role == "bias" for bias, _ in wired)
    numbered = [(bias, kernel) for bias, kernel in wired if bias.depth is not None]
    assert len(numbered) == 37
    assert all(kernel == ("conv", bias.depth) for bias, kernel in numbered)


@pytest.mark.parametrize(
    "module", ["self_attn.q_proj", "mlp.gate", "attn.c_attn", "mlp.fc1", "lm_head", "conv1", "wte"]
)
@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model.", "params/", "['params']['x']"])
def test_a_bias_is_never_the_role_of_its_matrix(module: str, prefix: str) -> None:
    weight = classify(f"{prefix}layers.3.{module}.weight", (8, 8))
    bias = classify(f"{prefix}layers.3.{module}.bias", (8,))
    assert weight.role not in (None, "bias")
    assert bias == ("bias", 3)
    assert weight.depth == 3


@pytest.mark.parametrize("separator", [".", "/", "]["])
@pytest.mark.parametrize("leaf", ["weight", "kernel", "w"])
def test_separators_and_leaves_do_not_matter(separator: str, leaf: str) -> None:
    assert classify(separator.join(["decoder", "layers", "12", "self_attn", "v_proj", leaf])) == ("v", 12)


WORDS = [
    "q",
    "k",
    "v",
    "o",
    "gate",
    "up",
    "down",
    "norm",
    "bias",
    "conv",
    "embed",
    "head",
    "router",
    "dense",
    "proj",
    "mlp",
]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.sampled_from(["zz", "x9", "ing"]))
def test_words_of_rules_inside_other_words_say_nothing(words: list[str], rest: str) -> None:
    assert classify("".join(words) + rest + ".weight", (8, 8)) == (None, None)
    assert classify(rest + "".join(words) + rest, (8, 8)) == (None, None)


@given(
    st.text() | st.lists(st.text(max_size=8) | st.sampled_from([*WORDS, "layers", "0", "²", "٣"])).map(".".join),
    st.none() | st.lists(st.integers(0, 9), max_size=5).map(tuple),
)
def test_never_raises(name: str, shape: tuple[int, ...] | None) -> None:
    role, depth = classify(name, shape)
    assert role is None or role in ROLES
    assert depth is None or depth >= 0


@given(st.text(alphabet="zyxj_0123456789", min_size=1))
def test_unknown_names_have_no_role(name: str) -> None:
    assert classify(name) == (None, None)


HOSTILE = [
    "a_",
    "attention",
    "attention/",
    "norm/norm_",
    "layers.",
    "layers.1.",
    "features/0",
    "/",
    "norm_",
    "x;",
    "a/Conv2D;",
    "1",
    "_._",
    "[",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_names_take_no_time(piece: str) -> None:
    """The longest name that is looked at costs a fraction of a second, a longer one nothing."""
    name = (piece * MAX_NAME)[:MAX_NAME]
    start = time.process_time()
    classify(name, (3, 3, 8, 8))
    assert time.process_time() - start < 2.0
    assert classify(piece * 10**6, (3, 3, 8, 8)) == (None, None)
