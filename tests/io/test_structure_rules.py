"""Fused, tied and low-rank tensors, and the user's rules: real files, and slices made by NumPy as the oracle."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import teleojax as tj
from teleojax.cli import run
from teleojax.sources import PytreeSource, Source, open_source
from teleojax.sources._compressed import open_stream
from teleojax.sources._derived import DerivedSource
from teleojax.sources._fused import MAX_EXPERTS
from teleojax.sources._lora import BLOCK_BYTES
from teleojax.sources._roles import classify
from teleojax.sources._rules import Rules
from teleojax.sources._structure import once, split_fused, structured
from tests.io.twin import read_all

RNG = np.random.default_rng(7)
HIDDEN, HEADS, SIZE = 24, 6, 4


def values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def written(tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    save_file(tensors, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path / "model.safetensors"


def assert_holds(source: Source, arrays: dict[str, np.ndarray]) -> None:
    """The names, shapes, bytes and statistics of these arrays, and nothing else that can be measured."""
    assert {s.name: s.shape for s in source.specs if s.skip is None} == {n: a.shape for n, a in arrays.items()}
    assert read_all(source) == {n: a.tobytes() for n, a in arrays.items()}
    measured = tj.measure(source, split=False)
    assert measured.failed == {}
    for name, expected in tj.measure(arrays).items():  # what begins elsewhere in a file is summed in another order
        assert measured[name].histogram == expected.histogram
        assert measured[name].moments.n == expected.moments.n
        np.testing.assert_allclose(measured[name].moments.mean, expected.moments.mean, rtol=1e-9)


def by_group(w: np.ndarray, groups: int, heads: int) -> dict[str, np.ndarray]:
    """Queries, keys and values of a weight or bias in which each group has its own side by side."""
    apart = w.reshape(groups, heads // groups + 2, SIZE, *w.shape[1:])
    q, k, v = apart[:, :-2], apart[:, -2], apart[:, -1]
    return {name: a.reshape(-1, *w.shape[1:]) for name, a in zip("qkv", (q, k, v), strict=True)}


def one_after_another(w: np.ndarray, keys: int) -> dict[str, np.ndarray]:
    q, k, v = np.split(w, [HEADS * SIZE, (HEADS + keys) * SIZE])
    return {"q": q, "k": k, "v": v}


COMMON = {"hidden_size": HIDDEN, "num_attention_heads": HEADS}
FUSED = {  # model type: module, configuration, heads of keys, groups
    "phi3": ("model.layers.0.self_attn.qkv_proj", COMMON | {"num_key_value_heads": 2}, 2, 1),
    "mpt": ("transformer.blocks.0.attn.Wqkv", {"d_model": HIDDEN, "n_heads": HEADS}, HEADS, 1),
    "dbrx": ("a.Wqkv", {"d_model": HIDDEN, "n_heads": HEADS, "attn_config": {"kv_n_heads": 3}}, 3, 1),
    "modernbert": ("layers.0.attn.Wqkv", COMMON, HEADS, 1),
    "baichuan": ("layers.0.self_attn.W_pack", COMMON, HEADS, 1),
    "qwen": ("h.0.attn.c_attn", COMMON, HEADS, 1),
    "bloom": ("h.0.self_attention.query_key_value", {"n_embed": HIDDEN, "n_head": HEADS}, HEADS, HEADS),
    "gpt_neox": ("layers.0.attention.query_key_value", COMMON, HEADS, HEADS),
    "persimmon": ("layers.0.self_attn.query_key_value", COMMON, HEADS, HEADS),
    "deberta": ("encoder.layer.0.attention.self.in_proj", COMMON, HEADS, HEADS),
    "internlm2": ("layers.0.attention.wqkv", COMMON | {"num_key_value_heads": 2}, 2, 2),
    "falcon": ("h.0.self_attention.query_key_value", COMMON | {"multi_query": True, "num_kv_heads": HEADS}, 1, 1),
    "falcon new": (
        "h.0.self_attention.query_key_value",
        COMMON | {"new_decoder_architecture": True, "num_kv_heads": 3, "multi_query": True},
        3,
        3,
    ),
    "falcon rw": ("h.0.self_attention.query_key_value", COMMON | {"multi_query": False}, HEADS, HEADS),
    "gpt_bigcode": ("transformer.h.0.attn.c_attn", {"n_embd": HIDDEN, "n_head": HEADS, "multi_query": True}, 1, 1),
    "gpt_bigcode many": ("h.0.attn.c_attn", {"n_embd": HIDDEN, "n_head": HEADS, "multi_query": False}, HEADS, HEADS),
    "qwen2_5_vl": ("visual.blocks.0.attn.qkv", {"vision_config": {"hidden_size": HIDDEN}}, HEADS, 1),
}


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_queries_keys_and_values_are_cut_as_the_model_cuts_them(tmp_path: Path, kind: str, dtype: Any) -> None:
    module, config, keys, groups = FUSED[kind]
    rows = (HEADS + 2 * keys) * SIZE
    w, b, other = values(rows, HIDDEN, dtype=dtype), values(rows, dtype=dtype), values(5, 3, dtype=dtype)
    path = written(
        tmp_path, {f"{module}.weight": w, f"{module}.bias": b, "other": other}, config | {"model_type": kind.split()[0]}
    )
    expected = {"other": other}
    for leaf, whole in (("weight", w), ("bias", b)):
        parts = one_after_another(whole, keys) if groups == 1 else by_group(whole, groups, HEADS)
        expected |= {f"{module}.{leaf}.{name}": a for name, a in parts.items()}
    source = structured(open_source(path))
    assert_holds(source, expected)
    assert {classify(s.name, s.shape).role for s in source.specs if ".weight." in s.name} == {"q", "k", "v"}
    assert structured(open_source(path), split=False).specs == open_source(path).specs
    assert source.files == (path,)


def test_interleaved_parts_longer_than_a_window_are_gathered(tmp_path: Path) -> None:
    heads, size, width = 64, 64, 1280
    w = values(3 * heads * size, width)
    path = written(
        tmp_path,
        {"query_key_value.weight": w},
        {"model_type": "bloom", "hidden_size": width, "n_head": heads, "head_dim": size},
    )
    source = structured(open_source(path))
    measured = tj.measure(source, budget_bytes=64 << 20)
    for i, name in enumerate("qkv"):
        part = np.ascontiguousarray(w.reshape(heads, 3, size * width)[:, i])
        assert measured[f"query_key_value.weight.{name}"] == tj.measure({"w": part})["w"]


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (None, (72, 24)),
        ({"model_type": "unheard-of", **COMMON}, (72, 24)),
        ({"model_type": "phi3", **COMMON, "num_key_value_heads": 2}, (72, 24)),  # 40 rows by the configuration
        ({"model_type": "phi3", **COMMON, "num_attention_heads": "6"}, (72, 24)),
        ({"model_type": "phi3", **COMMON, "num_attention_heads": 0}, (72, 24)),
        ({"model_type": "phi3", **COMMON, "num_key_value_heads": 4}, (56, 24)),
        ({"model_type": ["phi3"], **COMMON}, (72, 24)),
        ({"model_type": "gpt2", "n_embd": 24, "n_head": 6}, (24, 72)),
        ([1, 2], (72, 24)),
        ("{", (72, 24)),
    ],
)
def test_what_is_not_known_for_certain_stays_whole(tmp_path: Path, config: Any, shape: tuple[int, int]) -> None:
    name = "h.0.attn.c_attn.weight" if shape == (24, 72) else "h.0.attn.qkv_proj.weight"
    path = written(tmp_path, {name: values(*shape)})
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert [s.name for s in structured(open_source(path)).specs] == [name]
    assert classify(name, shape).role == "qkv"


def test_the_in_proj_of_torch_needs_no_configuration(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(24, 6)
    tensors = {name: t.numpy().copy() for name, t in attention.state_dict().items()}
    path = written(tmp_path, tensors)
    x = torch.randn(5, 1, 24)
    source = structured(open_source(path))
    found = {s.name: np.frombuffer(read_all(source)[s.name], np.float32).reshape(s.shape) for s in source.specs}
    q, k, v = (
        x.numpy()[:, 0] @ found[f"in_proj_weight.{n}"].T + found[f"in_proj_bias.{n}"] for n in "qkv"
    )  # and attention from its definition gives what PyTorch's module gives
    heads = [a.reshape(5, 6, 4).transpose(1, 0, 2) for a in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(0, 2, 1) / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True) @ heads[2]).transpose(1, 0, 2).reshape(5, 24)
    out = mixed @ found["out_proj.weight"].T + found["out_proj.bias"]
    np.testing.assert_allclose(out, attention(x, x, x)[0].detach().numpy()[:, 0], atol=1e-5)


def test_a_stream_is_cut_where_parts_are_contiguous(tmp_path: Path) -> None:
    w = values(72, 24)
    path = written(tmp_path, {"attn.in_proj_weight": w, "z.query_key_value.weight": values(72, 24)})
    config = {"model_type": "bloom", **COMMON}
    with path.open("rb") as f:
        stream = open_stream(f, "stream")
        assert structured(stream) is stream
        source = split_fused(stream, config)
        parts = dict(zip("qkv", np.split(w, 3), strict=True))
        assert {s.name for s in source.specs} == {f"attn.in_proj_weight.{n}" for n in "qkv"} | {
            "z.query_key_value.weight"
        }
        measured = tj.measure(source, split=False)
    for name, part in parts.items():
        assert measured[f"attn.in_proj_weight.{name}"].histogram == tj.measure({"w": part})["w"].histogram


@pytest.mark.parametrize("kind", ["phi3", "glm4"])
def test_gate_and_up_are_halves(tmp_path: Path, kind: str) -> None:
    w = values(20, 8)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    path = written(tmp_path, {name: w}, {"model_type": kind, "hidden_size": 8, "intermediate_size": 10})
    assert_holds(structured(open_source(path)), {f"{name}.gate": w[:10], f"{name}.up": w[10:]})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unknown", "intermediate_size": 10}))
    assert_holds(structured(open_source(path)), {name: w})


def test_experts_in_one_tensor_become_experts_of_their_own(tmp_path: Path) -> None:
    gate_up, down, bias = values(4, 12, 5), values(4, 5, 6), values(4, 12)
    prefix = "model.layers.3.mlp.experts"
    tensors = {f"{prefix}.gate_up_proj": gate_up, f"{prefix}.down_proj": down, f"{prefix}.gate_up_proj_bias": bias}
    config = {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 6, "hidden_size": 5}
    source = structured(open_source(written(tmp_path, tensors, config)))
    expected: dict[str, np.ndarray] = {}
    for e in range(4):
        expected[f"{prefix}.{e}.gate_up_proj.gate"] = gate_up[e, :6]
        expected[f"{prefix}.{e}.gate_up_proj.up"] = gate_up[e, 6:]
        expected[f"{prefix}.{e}.down_proj"] = down[e]
        expected[f"{prefix}.{e}.gate_up_proj_bias"] = bias[e]
    assert_holds(source, expected)
    report = tj.fit(source)
    assert {(report[n].role, report[n].depth) for n in expected} == {("gate", 3), ("up", 3), ("down", 3), ("bias", 3)}
    pooled = report.group_by("role")["down"]
    assert pooled.stats.moments.n == down.size


@pytest.mark.parametrize(
    ("config", "halves"),
    [
        ({"model_type": "gpt_oss", "num_local_experts": 2, "intermediate_size": 3, "hidden_size": 6}, False),
        ({"model_type": "mixtral", "num_local_experts": 2, "intermediate_size": 3, "hidden_size": 6}, True),
        ({"text_config": {"model_type": "llama4_text", "num_local_experts": 2, "intermediate_size": 3}}, False),
    ],
)
def test_experts_stored_by_columns_are_not_halved(tmp_path: Path, config: dict[str, Any], halves: bool) -> None:
    w = values(2, 6, 6)
    source = structured(open_source(written(tmp_path, {"mlp.experts.gate_up_proj": w}, config)))
    names = [s.name for s in source.specs]
    assert len(names) == (4 if halves else 2)
    assert names[0] == "mlp.experts.0.gate_up_proj" + (".gate" if halves else "")


def test_the_experts_of_dbrx_are_rows_and_too_many_stay_together(tmp_path: Path) -> None:
    w = values(6, 5)
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3, "ffn_hidden_size": 2}}
    source = structured(open_source(written(tmp_path, {"ffn.experts.mlp.w1": w}, config)))
    assert_holds(source, {f"ffn.experts.{e}.mlp.w1": w[2 * e : 2 * e + 2] for e in range(3)})
    many = {"mlp.experts.down_proj": values(MAX_EXPERTS + 1, 2, 2)}
    source = structured(open_source(written(tmp_path, many, {"num_experts": MAX_EXPERTS + 1})))
    assert_holds(source, many)


def test_parts_that_would_take_the_name_of_a_tensor_are_not_cut(tmp_path: Path) -> None:
    tensors = {"in_proj_weight": values(6, 2), "in_proj_weight.k": values(3)}
    assert_holds(structured(open_source(written(tmp_path, tensors))), tensors)


def test_tied_tensors_of_a_checkpoint_are_counted_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    embed = torch.randn(12, 4)
    torch.save({"embed.weight": embed, "lm_head.weight": embed, "part": embed[:6]}, tmp_path / "model.pt")
    source = structured(open_source(tmp_path / "model.pt"))
    assert {s.name: s.skip for s in source.specs} == {
        "embed.weight": None,
        "lm_head.weight": "tied to embed.weight",
        "part": None,
    }
    assert tj.measure(source, split=False).skipped == {"lm_head.weight": "tied to embed.weight"}
    alone = open_source(written(tmp_path, {"a": values(3), "empty": np.empty((0, 2), np.float32)}))
    assert once(alone) is alone


def adapter(tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Source:
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return structured(open_source(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 16}, 4.0),
        ({"r": 4, "lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"0.q_proj": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"1.q_proj": 2}}, 4.0),
        ({"r": 4, "lora_alpha": 16, "alpha_pattern": {"(0|1).q_proj": 2}}, None),
        ({"r": 4}, None),
        ({"r": 4, "lora_alpha": "16"}, None),
    ],
)
def test_the_product_of_low_rank_factors(tmp_path: Path, config: dict[str, Any], scale: float | None) -> None:
    module = "base_model.model.layers.0.q_proj"
    a, b = values(4, 300, dtype=ml_dtypes.bfloat16), values(500, 4, dtype=ml_dtypes.bfloat16)
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    source = adapter(tmp_path, factors, config)
    # each product of two bfloat16 values is exact in float64, and so is its scale, a power of two
    product = (np.einsum("or,ri->oi", b.astype(np.float64), a.astype(np.float64)) * (scale or 0)).astype(np.float32)
    name = f"{module}.lora_product"
    assert_holds(source, factors | ({name: product} if scale else {}))
    assert classify(name).role == "lora_product"


def test_products_of_embeddings_of_named_adapters_and_of_transposed_layers(tmp_path: Path) -> None:
    a, b = values(2, 30), values(7, 2)
    exact = (b.astype(np.float64) @ a.astype(np.float64)).astype(np.float32)
    tensors = {
        "embed.lora_embedding_A": a,
        "embed.lora_embedding_B": b,
        "q.lora_A.default.weight": a,
        "q.lora_B.default.weight": b,
        "v.lora_A.other.weight": a,
        "v.lora_B.other.weight": b,
        "conv.lora_A.weight": values(2, 3, 3, 3),
        "conv.lora_B.weight": values(4, 2, 1, 1),
        "alone.lora_A.weight": a,
        "wrong.lora_A.weight": a,
        "wrong.lora_B.weight": values(7, 3),
    }
    config = {"lora_alpha": 2}
    products = {"embed.lora_product": exact.T.copy(), "q.lora_product": exact, "v.lora_product.other": exact}
    source = adapter(tmp_path, tensors, config)
    found = read_all(source)
    assert {s.name for s in source.specs} == {*tensors, *products}
    for name, want in products.items():
        np.testing.assert_allclose(
            np.frombuffer(found[name], np.float32).reshape(want.shape), want, rtol=1e-6, atol=1e-7
        )
    (transposed,) = (
        s.shape
        for s in adapter(tmp_path, tensors, config | {"fan_in_fan_out": True}).specs
        if s.name == "q.lora_product"
    )
    assert transposed == (30, 7)


def test_a_product_is_the_same_wherever_windows_begin_and_takes_little_memory(tmp_path: Path) -> None:
    rows, columns = 5000, 1500
    a, b = values(3, columns), values(rows, 3)
    source = adapter(tmp_path, {"q.lora_A.weight": a, "q.lora_B.weight": b}, {"lora_alpha": 3})
    spec = source.specs[-1]
    assert spec.nbytes > 20 * BLOCK_BYTES
    buffer = np.empty(spec.nbytes, np.uint8)
    tracemalloc.start()
    with source.open(spec.storage) as storage:
        whole = storage.window(0, spec.nbytes, buffer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * BLOCK_BYTES  # the product has 28: a block in float64 twice and in float32, and the factors
        for start, stop in ((0, 4), (BLOCK_BYTES - 100, BLOCK_BYTES + 1000), (7_000_004, 9_999_996)):
            assert np.array_equal(storage.window(start, stop, np.empty(stop - start, np.uint8)), whole[start:stop])
    exact = b.astype(np.float64) @ a.astype(np.float64)
    np.testing.assert_allclose(whole.view(np.float32).reshape(rows, columns), exact, rtol=1e-6, atol=1e-9)
    measured = tj.measure(source, split=False)["q.lora_product"]
    assert measured.moments.n == rows * columns
    np.testing.assert_allclose(measured.moments.mean, np.log(np.abs(exact)).mean(), rtol=1e-6)


RULES = r"""
[[rule]]
match = '\.b(?P<depth>\d+)\.mix$'
role = "qkv"
split = { q = 4, k = 1, v = 1 }

[[rule]]
match = '\.mix\.[kv]$'
role = "kv"
depth = 7

[[rule]]
match = '^other'
skip = true

[[rule]]
match = 'head'
skip = "not ours"
split = ["a", "b"]

[[rule]]
match = 'in_proj_weight$'
split = false

[[rule]]
match = 'halves'
split = ["a", "b"]
"""


def rules_of(tmp_path: Path, text: str = RULES) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return Rules.load(path)


def test_rules_name_cut_and_skip(tmp_path: Path) -> None:
    rules = rules_of(tmp_path)
    mix, fused, halves = values(6, 3), values(6, 2), values(8)
    tensors = {
        "net.b12.mix": mix,
        "attn.in_proj_weight": fused,
        "other.w": values(3),
        "head": values(4),
        "halves": halves,
    }
    source = structured(open_source(written(tmp_path, tensors)), rules=rules)
    assert {s.name: s.skip for s in source.specs if s.skip} == {"other.w": "left out by a rule", "head": "not ours"}
    expected = {
        "net.b12.mix.q": mix[:4],
        "net.b12.mix.k": mix[4:5],
        "net.b12.mix.v": mix[5:],
        "attn.in_proj_weight": fused,
    }
    assert_holds(source, expected | {"halves.a": halves[:4], "halves.b": halves[4:]})
    assert rules.classify("net.b12.mix") == ("qkv", 12)
    assert rules.classify("net.b12.mix.k") == ("kv", 7)
    assert rules.classify("model.layers.3.self_attn.q_proj.weight", (4, 4)) == ("q", 3)  # no rule: the name itself


def test_rules_hold_for_arrays_in_memory_and_keep_them_otherwise() -> None:
    tree = {"in_proj_weight": values(6, 2), "x": values(3)}
    source = open_source(tree)
    assert structured(source) is source
    assert isinstance(source, PytreeSource)
    kept = structured(source, rules=Rules("none", ()))
    assert kept is source


def test_rules_that_do_not_fit_a_tensor_say_which(tmp_path: Path) -> None:
    rules = rules_of(tmp_path)
    source = open_source(written(tmp_path, {"net.b1.mix": values(7, 3)}))
    with pytest.raises(tj.UsageError, match=r"rules\.toml: split of 'net\.b1\.mix'.*4 \+ 1 \+ 1 rows.*add up to 7"):
        structured(source, rules=rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"rules\.toml: found key 'x'; needed tables \[\[rule\]\]"),
        ("rule = 3", r"found rule = 3"),
        ("rule = [3]", r"rule 1: found 3; needed a table"),
        ("[[rule]", r"no TOML"),
        ("[[rule]]\nrole = 'q'", r"rule 1, key 'match': found nothing"),
        ("[[rule]]\nmatch = 'a'\n[[rule]]\nmatch = '('", r"rule 2, key 'match': found '\('.*unterminated"),
        ("[[rule]]\nmatch = 'a'\nrole = 'two words'", r"key 'role'"),
        ("[[rule]]\nmatch = 'a'\nrole = 3", r"key 'role'"),
        ("[[rule]]\nmatch = 'a'\ndepth = -1", r"key 'depth'"),
        ("[[rule]]\nmatch = 'a'\ndepth = true", r"key 'depth'"),
        ("[[rule]]\nmatch = 'a'\nskip = false", r"key 'skip'"),
        ("[[rule]]\nmatch = 'a'\nskip = ''", r"key 'skip'"),
        ("[[rule]]\nmatch = 'a'\nsplit = []", r"key 'split'"),
        ("[[rule]]\nmatch = 'a'\nsplit = true", r"key 'split'"),
        ("[[rule]]\nmatch = 'a'\nsplit = ['q', 'q']", r"key 'split'"),
        ("[[rule]]\nmatch = 'a'\nsplit = { q = 0 }", r"key 'split'"),
        ("[[rule]]\nmatch = 'a'\nsplit = { 'a.b' = 1 }", r"key 'split'"),
        ("[[rule]]\nmatch = 'a'\nrun = 'x'", r"key 'run': found 'x'; needed one of the keys match"),
    ],
)
def test_rules_that_are_none_say_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(tj.UsageError, match=message):
        rules_of(tmp_path, text)


def test_a_file_of_rules_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(tj.InputError, match="No such file"):
        Rules.load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(tj.InputError, match="UTF-8"):
        Rules.load(tmp_path / "bytes.toml")
    (tmp_path / "long.toml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(tj.UsageError, match="more than"):
        Rules.load(tmp_path / "long.toml")


def test_compressed_files_and_shards_are_cut_too(tmp_path: Path) -> None:
    import gzip

    w = values(72, HIDDEN)
    path = written(tmp_path, {"query_key_value.weight": w}, {"model_type": "bloom", **COMMON})
    (tmp_path / "model.safetensors.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    expected = {f"query_key_value.weight.{n}": a for n, a in by_group(w, HEADS, HEADS).items()}
    assert_holds(structured(open_source(tmp_path / "model.safetensors.gz")), expected)
    source = structured(open_source(tmp_path))
    assert isinstance(source, DerivedSource)
    assert_holds(source, expected)


# As measured and fitted


def test_a_fit_splits_what_is_fused_and_follows_the_rules(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    fused = rng.standard_normal((3 * 64, 64)).astype(np.float32)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"h.0.attn.in_proj_weight": fused, "h.0.odd": fused[:5].copy()}, folder / "model.safetensors")
    (tmp_path / "rules.toml").write_text('[[rule]]\nmatch = "odd$"\nrole = "router"\ndepth = 7\n')
    report = tj.fit(folder, rules=tmp_path / "rules.toml")
    split = {name: (fit.role, fit.depth, fit.size) for name, fit in report.results.items() if fit.status == "ok"}
    parts = {f"h.0.attn.in_proj_weight.{part}": (part, 0, 64 * 64) for part in "qkv"}
    assert split == parts | {"h.0.odd": ("router", 7, 5 * 64)}
    assert report["h.0.attn.in_proj_weight.k"].lognormal.mu == pytest.approx(
        np.log(np.abs(fused[64:128])).mean(), abs=1e-6
    )
    whole = tj.fit(folder, split=False)
    assert whole["h.0.attn.in_proj_weight"].size == fused.size
    # kept in a statistics file, and read by the command line
    assert run(["measure", str(folder), "--rules", str(tmp_path / "rules.toml"), "-o", str(tmp_path / "s")]) == 0
    assert tj.fit(tmp_path / "s")["h.0.odd"].role == "router"
    assert run(["fit", str(folder), "--no-split", "-o", str(tmp_path / "out.jsonl")]) == 0
    assert '"h.0.attn.in_proj_weight"' in (tmp_path / "out.jsonl").read_text()
    assert set(tj.write_gradient(folder, tmp_path / "gradient").report.summaries) == {
        "h.0.attn.in_proj_weight",
        "h.0.odd",
    }
