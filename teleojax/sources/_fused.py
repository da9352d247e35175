"""Pure planning: where queries, keys and values, gate and up, and single experts lie in one fused tensor.

Only layouts that are known for the model's type, and whose sizes agree with its configuration, are cut; any other
tensor is left whole. Weights are (out, in), so a cut between outputs is one between rows. GPT-2 stores (in, out): there
queries, keys and values are columns, and stay together.

Interleaved layouts repeat (queries, keys, values) for every group of heads that share keys and values: a part is then
one stretch a group. Layouts are those of the models' own code in Hugging Face transformers 5; of Baichuan, InternLM 2
and Qwen 1 in the code of their checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teleojax.sources._index import TensorSpec

MAX_EXPERTS = 1024  # more tensors than that of one would drown the rest

Config = Mapping[str, Any]

INTERLEAVED = {  # model type and module -> whether queries, keys and values lie together group of heads by group
    ("baichuan", "W_pack"): False,
    ("bloom", "query_key_value"): True,
    ("dbrx", "Wqkv"): False,
    ("deberta", "in_proj"): True,
    ("falcon", "query_key_value"): True,
    ("gpt_bigcode", "c_attn"): True,
    ("gpt_neox", "query_key_value"): True,
    ("internlm2", "wqkv"): True,
    ("modernbert", "Wqkv"): False,
    ("mpt", "Wqkv"): False,
    ("persimmon", "query_key_value"): True,
    ("phi3", "qkv_proj"): False,
    ("qwen", "c_attn"): False,
}
THIRDS = frozenset(  # model types whose module `qkv` gives (3, heads, head size)
    {
        "blip", "blip_2", "ernie4_5_vl_moe", "glm4v", "glm4v_moe", "got_ocr2", "hiera", "instructblip",
        "instructblipvideo", "mgp-str", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "sam", "sam2", "sam_hq",
        "seggpt", "timesformer", "vitdet",
    }
)  # fmt: skip
TIMM_THIRDS = ("vit_", "deit", "beit", "swin_")  # architectures of timm with the same layout
GATE_FIRST = frozenset({"glm", "glm4", "glm4v", "glm4v_text", "phi3"})  # of gate_up_proj.weight, all rows of gate first
EXPERT_COLUMNS = frozenset({"aria", "aria_text", "gpt_oss", "llama4", "llama4_text"})  # experts stored as (in, out)

_QKV = re.compile(
    r"(?:.*\.)?(?:(?P<torch>in_proj_)(?:weight|bias)"
    r"|(?P<module>qkv_proj|c_attn|query_key_value|Wqkv|W_pack|wqkv|qkv|in_proj)\.(?:weight|bias))"
)
_EXPERTS = re.compile(r"(?P<before>(?:.*\.)?experts\.)(?P<leaf>(?:mlp\.)?\w+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tensor: `count` stretches of `length` values, every `step` values from value `start` on."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    step: int = 0
    count: int = 1


def parts_of(spec: TensorSpec, config: Config | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Part, ...]:
    """The parts of a fused tensor in the order of their first bytes, none of a tensor that stays whole.

    `shapes` are those of all tensors of the model: a bias is cut as the weight beside it. Without a configuration only
    PyTorch's own `in_proj_weight` is cut, whose layout its class fixes.
    """
    if spec.skip is not None or spec.order != "C" or spec.stored_as is not None or not spec.shape:
        return ()
    mine = _of_tower(spec.name, config or {})
    return _qkv(spec, mine, shapes) or _experts(spec, mine) or _gate_up(spec, mine)


def _of_tower(name: str, config: Config) -> Config:
    """The configuration of the part of a model that a tensor belongs to, with the whole model's behind it."""
    vision = re.search(r"(?:^|[._])(?:vision|visual)", name) is not None
    inner = config.get("vision_config" if vision else "text_config")
    nested: dict[str, Any] = {}
    for key in ("attn_config", "ffn_config"):  # DBRX
        nested |= config[key] if isinstance(config.get(key), dict) else {}
    own = inner if isinstance(inner, dict) else {}
    return {**nested, **config, **own, "model_types": (str(config.get("model_type")), str(own.get("model_type")))}


def _qkv(spec: TensorSpec, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Part, ...]:
    match = _QKV.fullmatch(spec.name)
    weight = shapes.get(re.sub(r"bias$", "weight", spec.name))
    if match is None or weight is None or len(weight) != 2 or weight[0] != spec.shape[0]:
        return ()
    square = weight[0] == 3 * weight[1]
    if match["torch"] or match["module"] == "qkv":
        known = match["torch"] or bool(THIRDS & set(config["model_types"])) or _is_timm(config)
        layout = (1, (weight[1],) * 3) if square and known else None
    else:
        layout = _heads_layout(match["module"], config)
    if layout is None or layout[0] * sum(layout[1]) != spec.shape[0]:
        return ()
    return by_rows(spec, dict(zip("qkv", layout[1], strict=True)), layout[0])


def _is_timm(config: Config) -> bool:
    return str(config.get("architecture")).startswith(TIMM_THIRDS) and "model_type" not in config


def _heads_layout(module: str, config: Config) -> tuple[int, tuple[int, ...]] | None:
    """Groups, and rows of queries, keys and values in each; None where it is not known."""
    kind = next((k for k in config["model_types"] if (k, module) in INTERLEAVED), None)
    heads = _number(config, "num_attention_heads", "n_head", "n_heads")
    width = _number(config, "hidden_size", "n_embed", "n_embd", "d_model")
    if kind is None or heads is None or width is None:
        return None
    keys = _number(config, "num_key_value_heads", "kv_n_heads") or heads
    if kind == "falcon" and config.get("new_decoder_architecture"):
        keys = _number(config, "num_kv_heads", "n_head_kv") or heads
    elif kind in ("falcon", "gpt_bigcode"):
        keys = 1 if config.get("multi_query", True) else heads
    size = _number(config, "head_dim") or width // heads
    groups = keys if INTERLEAVED[kind, module] else 1
    return (groups, tuple(n // groups * size for n in (heads, keys, keys))) if heads % keys == 0 else None


def _gate_up(spec: TensorSpec, config: Config) -> tuple[Part, ...]:
    inner = _number(config, "intermediate_size")
    known = spec.name.endswith(("gate_up_proj.weight", "gate_up_proj.bias")) and GATE_FIRST & set(config["model_types"])
    return by_rows(spec, {"gate": inner, "up": inner}) if known and inner and spec.shape[0] == 2 * inner else ()


def by_rows(spec: TensorSpec, rows: Mapping[str, int], groups: int = 1) -> tuple[Part, ...]:
    """Parts of so many rows of a tensor each, one after the other, in each of the groups."""
    row = math.prod(spec.shape[1:])
    step = sum(rows.values()) * row
    found, start = [], 0
    for name, n in rows.items():
        shape = (groups * n, *spec.shape[1:])
        found.append(Part(f"{spec.name}.{name}", shape, start, n * row, step if groups > 1 else 0, groups))
        start += n * row
    return tuple(found)


def _experts(spec: TensorSpec, config: Config) -> tuple[Part, ...]:
    """Each expert of a tensor that holds all of them, its gate and up apart where they are rows."""
    match = _EXPERTS.fullmatch(spec.name)
    n = _number(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if match is None or n is None or n > MAX_EXPERTS:
        return ()
    if len(spec.shape) >= 2 and spec.shape[0] == n:
        shape = spec.shape[1:]
    elif len(spec.shape) == 2 and spec.shape[0] == n * (_number(config, "ffn_hidden_size") or 0):  # DBRX
        shape = (spec.shape[0] // n, spec.shape[1])
    else:
        return ()
    size = math.prod(shape)
    halves = ("",)
    columns = EXPERT_COLUMNS & set(config["model_types"])
    if match["leaf"] == "gate_up_proj" and not columns and _halves(shape, config):
        halves, shape, size = (".gate", ".up"), (shape[0] // 2, *shape[1:]), size // 2
    return tuple(
        Part(f"{match['before']}{e}.{match['leaf']}{half}", shape, (e * len(halves) + i) * size, size)
        for e in range(n)
        for i, half in enumerate(halves)
    )


def _halves(shape: Sequence[int], config: Config) -> bool:
    """Whether an expert's gate_up_proj is (gate rows and up rows, hidden)."""
    inner = _number(config, "moe_intermediate_size", "intermediate_size")
    return inner is not None and tuple(shape) == (2 * inner, _number(config, "hidden_size"))


def _number(config: Config, *keys: str) -> int | None:
    """The first of these that is a positive whole number."""
    found = (config.get(key) for key in keys)
    return next((n for n in found if type(n) is int and n > 0), None)
