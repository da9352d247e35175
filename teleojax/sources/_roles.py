"""Tensor name -> role in its network and depth of its block, by one table of rules.

A name is lower-cased and cut at `.`, `/`, `[` and `]`; rules match whole segments at its end, never parts of words. The
first rule that matches decides; a name that no rule knows has role None, and so does a tensor that is no parameter
(masks, running statistics, scales of a quantised weight, optimizer state).

A bias is "bias" whatever it is added to (`q_proj.bias` is no q), except that weight and bias of a normalization are
both "norm". The factors of a low-rank adapter are "lora_a" and "lora_b", not the matrix that they adapt: they are
drawn and trained in another way. Experts keep "gate", "up" and "down". A part that was cut from a fused tensor and is
named after it ("qkv_proj.weight.q") has the role of that part.

Depth counts the repeated blocks from 0: `layers.3`, `h.3`, `blocks.3`, `block_3`, `encoderblock_3`, `features.3`. It is
None outside such a block, and where the name holds only an index that starts again in every stage, so that it gives no
order over the network (`layer1.0`, `stages.2.blocks.5`, `down_blocks.0`). The number of an expert is no depth.
In Keras names it is the number of the convolution (`conv2d` 0, `conv2d_14` 14): layers of one class are numbered in the
order they were made, so it orders tensors within one role and is not comparable between conv and depthwise_conv.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

ROLES = {
    "q": "attention queries, low-rank halves (q_a, q_b) included",
    "k": "attention keys",
    "v": "attention values",
    "o": "attention output projection",
    "qkv": "queries, keys and values in one tensor",
    "kv": "keys and values in one tensor, or their shared low-rank halves",
    "gate": "feed-forward gate (the factor that goes through the activation)",
    "up": "feed-forward expansion",
    "down": "feed-forward contraction",
    "gate_up": "gate and up in one tensor",
    "router": "what chooses or weighs experts",
    "conv": "convolution kernel",
    "depthwise_conv": "convolution kernel with one filter a channel",
    "ssm": "projections and states of a state-space layer",
    "embed": "token, type and patch embeddings, learned tokens",
    "position_embed": "position embeddings and tables of relative position biases",
    "head": "last projection, to the vocabulary or the classes",
    "pooler": "projection of the pooled token",
    "dense": "a dense layer whose place is not known",
    "norm": "weights and biases of normalizations",
    "bias": "every other bias",
    "lora_a": "low-rank adapter, first factor",
    "lora_b": "low-rank adapter, second factor",
    "lora_product": "low-rank adapter, the product of its factors",
}


class RoleDepth(NamedTuple):
    """What a name says about a tensor: a key of ROLES and the index of its block, None where it says nothing."""

    role: str | None
    depth: int | None


class _Rule(NamedTuple):
    role: str | None
    pattern: re.Pattern[str]
    ndim: int | None


# Placeholders of the patterns below.
_PARTS = {
    "<att>": r"(?:\w*attention\w*|(?:\w+_)?attn\d*(?:_\w+)?|att)(?:/self)?",
    "<mlp>": r"(?:mlp\d*|mlpblock_\d+|ff|ffn|feed_?forward\w*|densereludense|moe|\w*moeblock_\d+|experts?(?:[/_]\d+)?"
    r"|shared_experts?(?:/\d+)?)",
    "<block>": r"(?:layers?|blocks?|resblocks|h|blk|\w+_layers?)[/_]\d+",
    "<norm>": r"(?:(?:\w+_)?(?:layer|rms|batch|group|instance)?_?norm(?:alization)?\d*(?:_\w+)?"
    r"|(?:\w+_)?(?:ln|bn)\d*(?:_\w+)?)",
    "<ssm>": r"(?:mixer|mamba\w*|ssm)",
}
_ROOT = r"(?:(?:params|model|module|_orig_mod|state|target|backbone|transformer)/)*"  # what "^" lets pass
_LEAF = r"(?:/(?:weight|weights|kernel|w|embedding|qweight|weight_v))?"  # what may follow every pattern


def _rule(role: str | None, patterns: str, *, ndim: int | None = None) -> _Rule:
    """One row. `patterns` are alternatives between spaces; `^` ties one to the start of the name. A row with `ndim`
    holds only for a shape that is known and has that many axes."""
    ends, wholes = [], []
    for pattern in patterns.split():
        for part, text in _PARTS.items():
            pattern = pattern.replace(part, text)
        (wholes if pattern.startswith("^") else ends).append(pattern.removeprefix("^"))
    either = [rf"(?:.*/)?(?:{'|'.join(ends)})"] if ends else []
    either += [rf"{_ROOT}(?:{'|'.join(wholes)})"] if wholes else []
    return _Rule(role, re.compile(rf"(?:{'|'.join(either)}){_LEAF}", re.ASCII), ndim)


_RULES = (
    # No parameters that other rules would take for some. Most buffers need no row: no rule knows them.
    _rule(None, r"masked_bias (opt_state|optimizer|optimizer_state|param_states|exp_avg|exp_avg_sq)(/.+)?"),
    # Normalizations, biases and all. ResNet has one at downsample.1, CLIP a misspelt one.
    _rule("norm", r"<norm>(/(bias|beta|b|scale|gamma|g|offset))?"),
    _rule("norm", r"layer\d/\d+/downsample/1(/bias)? pre_layrnorm(/bias)?"),
    _rule("lora_a", r"lora_(embedding_)?a(/\w+)? lora/a"),
    _rule("lora_b", r"lora_(embedding_)?b(/\w+)? lora/b"),
    _rule("lora_product", r"lora_product(/\w+)?"),
    _rule("position_embed", r"position_embeddings? pos(ition)?_embd? pos_embed(ding)? positional_embedding wpe w_pos"),
    _rule("position_embed", r"embed_positions positions_embed position_embedder position_embedding_table"),
    _rule("position_embed", r"relative_attention_bias relative_position_bias_table relpos_bias\w*/rel_embedding"),
    _rule("position_embed", r"absolute_pos_embed distance_embedding rel_pos_[hw] rel_embeddings"),
    # State-space layers (Mamba, Jamba, GGUF ssm_*), before biases: "b" and "d" are states here.
    _rule("depthwise_conv", r"<ssm>/conv1d(_\w+)? ssm_conv1d"),
    _rule("ssm", r"<ssm>/(in_proj|x_proj|dt_proj|out_proj|a_log|a|b|c|d) ssm_(a|d|in|out|x|dt) a_log"),
    # Biases. GPT-2 and GPT-NeoX store the causal mask as attn.bias, with two or four axes.
    _rule("bias", r"<att>/bias", ndim=1),
    _rule(None, r"<att>/bias"),
    _rule("bias", r"bias b \w+_bias bias_[kv] b_([qkvoeu]|in|out|pos)"),
    # Embeddings. A patch embedding is one whether it is written as a convolution or not.
    _rule("embed", r"word_embeddings? embed_tokens(_\w+)? tokens_embed tok_embeddings token_embd wte"),
    _rule("embed", r"token_embeddings? token_types? token_type_embeddings embed_in emb"),
    _rule("embed", r"input_embedding(_table)? embeddings? embed w_e ^(encoder/|decoder/)?shared query_embed"),
    _rule("embed", r"patch_embed(ding)?s?(/proj(ection)?)? patch_embd ^conv_proj"),
    _rule("embed", r"cls_token class_token class_embedding class_embd"),
    _rule("embed", r"mask_token dist(illation)?_token reg(ister)?_tokens?"),
    _rule("embed", r"cls", ndim=3),
    # Mixtures of experts.
    _rule("router", r"(mlp|moe|ffn|feed_forward|block_sparse_moe|\w*moeblock_\d+)/gate shared_expert_gate"),
    _rule("router", r"(\w+_)?router(/(layer|classifier|gate|linear|proj|router_weights/w))? ffn_gate_inp(_shexp)?"),
    # Attention. c_attn of a GPT-2 cross-attention holds keys and values only.
    _rule("kv", r"crossattention/c_attn kv_proj wkv to_kv kv_einsum <att>/kv attn_kv_a_mqa attn_kv_b"),
    _rule("kv", r"kv_a_proj(_with_mqa)? kv_b_proj wkv_[ab]"),
    _rule("qkv", r"<att>/(qkv|in_proj|attn) qkv_proj w_?qkv w_pack c_attn query_key_value to_qkv qkv_einsum"),
    _rule("qkv", r"in_proj_weight attn_qkv linear_qkv att_proj"),
    _rule("q", r"<att>/(q|query) (add_)?q_proj q_(lin|einsum|attn|a_proj|b_proj) query_proj to_q linear_q"),
    _rule("q", r"wq(_[ab])? w_q attn_q(_[ab])?"),
    _rule("k", r"<att>/(k|key) (add_)?k_proj k_lin key_proj to_k linear_k wk w_k attn_k(_b)?"),
    _rule("v", r"<att>/(v|value) (add_)?v_proj v_lin value_proj to_v linear_v wv w_v attn_v(_b)?"),
    _rule("o", r"<att>/(o|out|wo|proj|dense|c_proj|out_proj|out_lin|linear_(proj|out)|output_proj|output(/dense)?)"),
    _rule("o", r"o_proj attention_output to_out(/0)? to_add_out w_o attn_out(put)? attn_vec_einsum"),
    # Feed-forward. First the models that use w1, w2, w3 in another sense than Llama: Qwen 1 and DINOv2's SwiGLU.
    _rule("up", r"h/\d+/mlp/w1"),
    _rule("gate", r"h/\d+/mlp/w2"),
    _rule("down", r"blocks/\d+/mlp/w3"),
    _rule("gate_up", r"gate_up_proj(_blocks)? gate_and_up_projs? gating_einsum <mlp>/w(12|13)"),
    _rule("gate_up", r"ffn_gate_up_exps ff_proj mlp1_weight layers/\d+/mlp/wi"),
    # U-Nets of diffusion gate their feed-forward; later transformers of the same library, of that name, do not.
    _rule("gate_up", r"(attentions|\w+_blocks?(/\d+)?)/\d+/transformer_blocks/\d+/ff/net/0/proj"),
    _rule("up", r"ff(_context)?/net/0/proj"),
    _rule("down", r"ff(_context)?/net/2"),
    _rule("gate", r"gate_proj <mlp>/(w1|wi_0|receptance) ffn_gate(_exps|_shexp|/\d+)?"),
    _rule("up", r"up_proj <mlp>/(w3|v1|wi|wi_1|w_1|fc|lin1|dense_0|w_in|linear_fc1|key) (<mlp>|<block>)/(fc1|linear1)"),
    _rule("up", r"c_fc fc_in dense_h_to_4h intermediate/dense (\w+_)?intermediate_dense ffn_up(_exps|_shexp|/\d+)?"),
    _rule("up", r"<block>/ffn pwconv1 <block>/mlp/0"),
    _rule("down", r"down_proj(_blocks)? <mlp>/(w2|wo|w_2|proj|c_proj|lin2|dense_1|w_out|linear_fc2|value)"),
    _rule("down", r"(<mlp>|<block>)/(fc2|linear2) fc_out dense_4h_to_h output/dense (\w+_)?output_dense mlp2_weight"),
    _rule("down", r"ffn_down(_exps|_shexp|/\d+)? pwconv2 <block>/(ffn_output|ff_out|mlp/[23]) layer_\d+/mlp/linear"),
    # Convolutions.
    _rule("depthwise_conv", r"conv_dw(_\d+)? dwconv (\w+_)?depthwise(_\w+)?"),
    _rule("conv", r"(\w+_)?conv([123]d)?\d*(_\w+)? convolution pointwise_kernel block_\d+_(expand|project)"),
    _rule("conv", r"downsample/\d+ features(/\w+)+", ndim=4),
    _rule("conv", r"downsample/0"),
    _rule("conv", r"(in|out)_layers/\d+ skip_connection op proj_(in|out) (input_blocks/\d+|out)/\d+", ndim=4),
    _rule("conv", r"squeeze_excite/(reduce|expand)", ndim=4),
    _rule("norm", r"(in|out)_layers/\d+ out/0", ndim=1),
    # The end of the network, and what is left.
    _rule("dense", r"pre_classifier vocab_transform (text|visual)_projection"),
    _rule("head", r"lm_head(/(decoder|linear))? (\w+_)?classifier(/out_proj)? embed_out head(/fc)? head_dist"),
    _rule("head", r"predictions(/decoder)? cls/seq_relationship vocab_projector score logits(_dense)? output_layer"),
    _rule("head", r"^decoder", ndim=2),
    _rule("head", r"qa_outputs unembedding w_u ^output ^fc ^proj_out ^ff_out"),
    _rule("pooler", r"pooler(/dense)?"),
    _rule("dense", r"time_emb_proj emb_layers/\d+ (time|label)_emb(ed)?/(\d/)?\d proj_(in|out)", ndim=2),
    _rule("dense", r"(\w+_)?dense(_?\d+)? linear(_?\d+)? fc_?\d+ lin\d+ classifier/\d+"),
)

MAX_NAME = 4096  # longer names, and names with longer segments, are no layer's: they would only cost time
MAX_SEGMENT = 64

_PARTS_OF = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}  # as sources name what they cut
_CUT = re.compile(r"[./\[\]]+|_\._")  # TensorFlow writes layer_._3
_WRAPPERS = frozenset({"~", "base_layer", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_VALUE_OF = frozenset({"weight", "kernel", "w", "bias", "b", "scale", "embedding"})  # nnx adds .value to these
_INDEX = re.compile(r"[0-9]{1,6}")
_BLOCKS = re.compile(
    r"(?:\w+_)?(?:layers?|blocks?)|resblocks?|(?:\w*coder|mixer|transformer)block|(?:en|de)coders|h|blk|features",
    re.ASCII,
)
_NUMBERED = re.compile(rf"(?:{_BLOCKS.pattern})_([0-9]{{1,6}})|(?:layer|block)([0-9]{{1,6}})", re.ASCII)
_KERAS_BLOCK = re.compile(r"block_([0-9]{1,6})_(?:expand|depthwise|project)(?:_bn)?", re.ASCII)
# Their numbers start again: in every stage, or (MaxText's dense_layers_0, moe_layers_0) in each kind of layer.
_RELATIVE = re.compile(
    r"stages?_?[0-9]*|(?:down|mid|middle|up|dense)_?blocks?_?[0-9]*|block_group_[0-9]+|(?:dense|moe|downsample)_layers(?:_[0-9]+)?",
    re.ASCII,
)
_KERAS_CONV = re.compile(r"(?:depthwise_)?conv[123]d(?:_([0-9]{1,6}))?", re.ASCII)
_KERAS_LEAVES = frozenset({"kernel", "bias", "depthwise_kernel"})

# A TFLite constant is named by the graph operations that were folded into it, between semicolons.
_OPERATION = re.compile(
    r"(?P<path>.+)/"
    r"(?P<op>Conv2D|depthwise|DepthwiseConv2dNative|MatMul|BiasAdd|FusedBatchNorm(?:V[23])?)"
    r"(?:/ReadVariableOp)?(?:/resource)?"
)


def classify(name: str, shape: tuple[int, ...] | None = None) -> RoleDepth:
    """Role and depth of a tensor from its name; the shape decides where a name alone cannot. Never raises."""
    if len(name) > MAX_NAME:
        return RoleDepth(None, None)
    operations = [match for part in name.split(";") if (match := _OPERATION.fullmatch(part))]
    if operations:
        return _from_operations(operations, shape)
    segments = _segments(name)
    depth = _depth(segments)
    if depth is None and len(segments) > 1 and segments[-1] in _KERAS_LEAVES:
        depth = _keras_number(segments[-2])
    return RoleDepth(_role(segments, shape) or _part(segments, shape), depth)


def _part(segments: list[str], shape: tuple[int, ...] | None) -> str | None:
    """The role of a part that was cut from a fused tensor and is named after it."""
    if len(segments) < 2 or segments[-1] not in _PARTS_OF:
        return None
    whole = _role(segments[:-1], shape)
    return segments[-1] if whole == _PARTS_OF[segments[-1]] else whole if whole == "bias" else None


def _segments(name: str) -> list[str]:
    """Lower-case segments without quotes, wrappers, TensorFlow's ":0" and nnx's ".value"."""
    cut = (segment.strip(" '\"") for segment in _CUT.split(re.sub(r":[0-9]+$", "", name).lower()))
    segments = [segment for segment in cut if segment and segment not in _WRAPPERS]
    if len(segments) > 1 and segments[-1] == "value" and segments[-2] in _VALUE_OF:
        segments.pop()
    return segments


def _role(segments: list[str], shape: tuple[int, ...] | None) -> str | None:
    if any(len(segment) > MAX_SEGMENT for segment in segments):
        return None
    path = "/".join(segments)
    for rule in _RULES:
        if rule.ndim is not None and (shape is None or len(shape) != rule.ndim):
            continue
        if rule.pattern.fullmatch(path):
            return rule.role
    return None


def _depth(segments: list[str]) -> int | None:
    """The index of the repeated block, None if there is none or if it is relative to a stage."""
    found: list[tuple[str, int]] = []
    for i, segment in enumerate(segments):
        if _RELATIVE.fullmatch(segment):
            return None
        if _BLOCKS.fullmatch(segment) and i + 1 < len(segments) and _INDEX.fullmatch(segments[i + 1]):
            kind, index, after = segment, segments[i + 1], i + 2
        elif number := _NUMBERED.fullmatch(segment) or _KERAS_BLOCK.fullmatch(segment):
            kind, index, after = segment, number[number.lastindex or 0], i + 1
        else:
            continue
        if after < len(segments) and _INDEX.fullmatch(segments[after]):
            return None  # layer1.0 and features.2.1: a stage and a block in it
        found.append((kind, int(index)))
    # The layers of a T5 block (block.3.layer.0 is its attention) are parts of it; other nesting is a stage.
    if len(found) == 1 or [kind for kind, _ in found] == ["block", "layer"]:
        return found[0][1]
    return None


def _keras_number(layer: str) -> int | None:
    match = _KERAS_CONV.fullmatch(layer)
    return None if match is None else int(match[1] or 0)


def _from_operations(operations: list[re.Match[str]], shape: tuple[int, ...] | None) -> RoleDepth:
    """Role and depth of a TFLite constant.

    The name of one constant may list other layers too. In a kernel's name its own layer is the first of its kind; in
    a bias's it is that of BiasAdd, or else the last kernel (so it is wired in BlazePose; a test holds it to that). A
    lone FusedBatchNorm with one axis is the shift of a folded normalization, which the convolution adds as its bias.
    """
    convs = [match for match in operations if match["op"] == "Conv2D"]
    depthwise = [match for match in operations if match["op"] in ("depthwise", "DepthwiseConv2dNative")]
    dense = [match for match in operations if match["op"] == "MatMul"]
    bias_adds = [match for match in operations if match["op"] == "BiasAdd"]
    kernels = [match for match in operations if match in convs + depthwise + dense]
    ndim = None if shape is None else len(shape)
    role, owners = None, []
    if ndim == 1 or (ndim is None and bias_adds == operations):
        role, owners = "bias", bias_adds or kernels[-1:]
    elif ndim == 4 or (ndim is None and kernels == operations and len(kernels) == 1):
        if depthwise and (shape is None or shape[0] == 1 or not convs):
            role, owners = "depthwise_conv", depthwise
        elif convs:
            role, owners = "conv", convs
    elif ndim == 2 and dense:
        role, owners = "dense", dense
    if not owners:
        return RoleDepth(role, None)
    segments = _segments(owners[0]["path"])
    if role == "dense":
        role = _role(segments, shape) or role
    depth = _depth(segments)
    return RoleDepth(role, _keras_number(segments[-1]) if depth is None and segments else depth)


def fan_in(shape: tuple[int, ...], role: str | None, name: str) -> int | None:
    """Inputs of each output: of (out, in, …) as PyTorch and TensorFlow Lite store weights, of (…, in, out) where the
    name ends in `kernel`, as Flax and Keras do. A depthwise filter has those of one channel. None for vectors and
    embeddings.
    """
    size = math.prod(shape)
    if len(shape) < 2 or not size or role in ("embed", "position_embed", "norm", "bias"):
        return None
    last = re.split(r"[./\[\]]", name.rstrip("]'"))[-1].strip("'\"")
    outputs_last = last == "kernel" or (role == "depthwise_conv" and shape[0] == 1)
    return size // (shape[-1] if outputs_last else shape[0])
