"""What each decoder layer is made of, from the keys of a configuration.

A planner reads the keys of one model variant. Its layers are all that later code goes by: nothing
else asks for the name of a variant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_reader import ConfigReader

GATE_ACTIVATIONS = ("softmax",)
LAYER_KINDS = ("dense", "sparse")  # as transformers 5 spells them
# Another name of a key: of transformers, or of a file by hand.
_OTHER_NAMES = {
    "num_experts": "moe_num_experts",
    "num_experts_per_tok": "moe_k",
    "use_aux_free": "moe_use_aux_free",
}
# Files of the vision models give these by modality; with one entry that is the text's.
_LISTS_OF_ONE = (
    "moe_num_experts",
    "moe_k",
    "moe_intermediate_size",
    "moe_num_shared_experts",
    "moe_layer_start_index",
    "moe_layer_end_index",
)
_LAYER_RULE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one decoder layer is made of; attention is the same in all.

    A ``"moe"`` layer has a router (float32 ``[num_experts, hidden_size]``, and a correction bias
    ``[num_experts]`` that chooses and never weighs), ``num_experts`` SwiGLU experts of which each
    token takes ``top_k``, and one SwiGLU of ``shared_intermediate_size`` that every token takes.

    In a vision-language model there is a second bank, with a router of its own and as many experts,
    of ``vision_intermediate_size``: a token chooses in one bank only.
    """

    mlp: Literal["dense", "moe"]
    intermediate_size: int  # width of the dense MLP, or of one expert
    num_experts: int = 0  # of each bank; 0 in a dense layer
    top_k: int = 0  # experts that a token takes
    shared_intermediate_size: int = 0  # width of all shared experts together; 0: there are none
    vision_intermediate_size: int = 0  # width of one expert of the vision bank; 0: there is none

    @property
    def bank_widths(self) -> tuple[int, ...]:
        """Widths of the experts of each bank, the text's first; none in a dense layer."""
        if self.mlp == "dense":
            return ()
        text, vision = self.intermediate_size, self.vision_intermediate_size
        return (text, vision) if vision else (text,)


@dataclass(frozen=True, slots=True)
class Experts:
    """The expert sizes of a whole model. All zero in a dense one."""

    num_experts: int = 0
    top_k: int = 0
    moe_intermediate_size: int = 0  # width of one expert
    num_shared_experts: int = 0
    norm_min: float = 1e-12  # least sum that the weights of a token's experts are divided by


def dense_layers(reader: ConfigReader) -> tuple[tuple[LayerPlan, ...], Experts]:
    """All layers dense."""
    plan = LayerPlan(mlp="dense", intermediate_size=reader.size("intermediate_size"))
    return (plan,) * reader.size("num_hidden_layers"), Experts()


def moe_layers(reader: ConfigReader) -> tuple[tuple[LayerPlan, ...], Experts]:
    """Layers with experts where the file says so, the others dense.

    Layer ``l`` has experts if ``(l + 1) % moe_layer_interval == 0`` and
    ``moe_layer_start_index <= l <= moe_layer_end_index``, where -1 is the last layer and an end
    beyond it means the same; or if ``mlp_layer_types[l]`` is ``"sparse"``. Both must agree. Where no
    layer has any, the model is a dense one, its expert sizes zero.

    Raises:
        ConfigError: a key is missing, of the wrong type, out of range or contradictory, or asks for
            another routing than softmax, correction bias, and weights renormalised over the chosen.
    """
    reader = _plain(reader)
    experts = _experts(reader)
    dense = LayerPlan(mlp="dense", intermediate_size=reader.size("intermediate_size"))
    moe = LayerPlan(
        mlp="moe",
        intermediate_size=experts.moe_intermediate_size,
        num_experts=experts.num_experts,
        top_k=experts.top_k,
        shared_intermediate_size=experts.num_shared_experts * experts.moe_intermediate_size,
    )
    sparse = _sparse_layers(reader)
    if not any(sparse):  # the first layers of a model, as a rule
        return (dense,) * len(sparse), Experts()
    return tuple(moe if has_experts else dense for has_experts in sparse), experts


def vl_moe_layers(reader: ConfigReader) -> tuple[tuple[LayerPlan, ...], Experts]:
    """Those of a vision-language model, whose layers with experts have two banks of them.

    ``moe_intermediate_size`` is a list of the two widths, text and vision. The other keys of experts
    are one number for both banks, or a list of it twice; but layers have experts from the lower of
    two ``moe_layer_start_index`` to the higher of two ``moe_layer_end_index``.

    Raises:
        ConfigError: as of :func:`moe_layers`.
    """
    values = dict(reader.under_one_name(_OTHER_NAMES).values)
    widths = values.get("moe_intermediate_size")
    if not isinstance(widths, list) or len(widths) != 2:
        raise reader.fail("moe_intermediate_size", "a list of two widths, text and vision", widths)
    for key in ("moe_num_experts", "moe_k", "moe_num_shared_experts"):
        both = _by_bank(reader, key, values.get(key))
        if any(each != both[0] for each in both):
            raise ConfigError(
                f"{reader.file}: {key}: expected the same number for both banks, got "
                f"{' and '.join(map(quoted, both))}"
            )
        if key in values:
            values[key] = both[0]
    start_key, end_key, _ = _LAYER_RULE
    starts, ends = (_bounds(reader, key) for key in (start_key, end_key))
    if starts:
        values[start_key] = min(starts)
    if ends:
        values[end_key] = -1 if -1 in ends else max(ends)  # -1 is the last layer
    text, vision = (
        ConfigReader({"moe_intermediate_size": width}, reader.file).size("moe_intermediate_size")
        for width in widths
    )
    layers, experts = moe_layers(
        ConfigReader({**values, "moe_intermediate_size": text}, reader.file)
    )
    both_banks = (
        replace(plan, vision_intermediate_size=vision) if plan.mlp == "moe" else plan
        for plan in layers
    )
    return tuple(both_banks), experts


def _by_bank(reader: ConfigReader, key: str, value: Any) -> list[Any]:
    """One value, or the entries of a list of two, text and vision."""
    if not isinstance(value, list):
        return [value]
    if len(value) not in (1, 2):
        raise reader.fail(key, "an integer, or a list of two, text and vision", value)
    return value


def _bounds(reader: ConfigReader, key: str) -> list[int]:
    """Of the layers with experts, what is there of text and vision."""
    given = [value for value in _by_bank(reader, key, reader.values.get(key)) if value is not None]
    return [ConfigReader({key: value}, reader.file).size(key) for value in given]


def num_mtp_layers(reader: ConfigReader) -> int:
    """Multi-token prediction modules in the checkpoint; generating without them is exact."""
    keys = ("num_nextn_predict_layers", "multi_token_pred_depth")
    given = {key: reader.size(key) for key in keys if reader.values.get(key) is not None}
    if len(set(given.values())) > 1:
        raise ConfigError(f"{reader.file}: {' and '.join(keys)} differ; remove one of them")
    return next(iter(given.values()), 0)


def _plain(reader: ConfigReader) -> ConfigReader:
    """The keys under one name each, and lists of one entry as that entry."""
    values = dict(reader.under_one_name(_OTHER_NAMES).values)
    for key in _LISTS_OF_ONE:
        value = values.get(key)
        if isinstance(value, list) and len(value) == 1:
            values[key] = value[0]
    return ConfigReader(values, reader.file)


def _experts(reader: ConfigReader) -> Experts:
    experts = Experts(
        num_experts=reader.size("moe_num_experts"),
        top_k=reader.size("moe_k"),
        moe_intermediate_size=reader.size("moe_intermediate_size"),
        num_shared_experts=reader.size("moe_num_shared_experts", default=0),
        norm_min=reader.positive("moe_norm_min", 1e-12),
    )
    if experts.top_k > experts.num_experts:
        raise ConfigError(
            f"{reader.file}: moe_k={experts.top_k} is more than "
            f"moe_num_experts={experts.num_experts}; a token takes each expert once at most"
        )
    reader.choice("moe_gate_act", GATE_ACTIVATIONS, GATE_ACTIVATIONS[0])
    if not reader.boolean("moe_use_aux_free", True):
        raise reader.fail("moe_use_aux_free", "true (routing with a correction bias)", False)
    if reader.boolean("use_bias", False):
        raise reader.fail("use_bias", "false in a model with experts", True)
    return experts


def _sparse_layers(reader: ConfigReader) -> list[bool]:
    """Whether each layer has experts."""
    num_layers = reader.size("num_hidden_layers")
    by_type = None
    kinds = reader.values.get("mlp_layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            got = f"{len(kinds)} entries" if isinstance(kinds, list) else quoted(kinds)
            raise ConfigError(
                f"{reader.file}: mlp_layer_types: expected a list of num_hidden_layers={num_layers} "
                f"entries, got {got}"
            )
        for kind in kinds:
            if kind not in LAYER_KINDS:
                raise reader.fail("mlp_layer_types", "one of " + ", ".join(LAYER_KINDS), kind)
        by_type = [kind == "sparse" for kind in kinds]
        if all(reader.values.get(key) is None for key in _LAYER_RULE):
            return by_type
    start = reader.size("moe_layer_start_index")
    end = reader.size("moe_layer_end_index", default=-1)
    interval = reader.size("moe_layer_interval", default=1)
    if 0 <= end < start:
        raise ConfigError(
            f"{reader.file}: moe_layer_end_index={end} is before moe_layer_start_index={start}; "
            "-1 is the last layer"
        )
    last = num_layers - 1 if end == -1 else end
    by_rule = [
        (layer + 1) % interval == 0 and start <= layer <= last for layer in range(num_layers)
    ]
    if by_type is not None and by_type != by_rule:
        layer = next(layer for layer in range(num_layers) if by_type[layer] != by_rule[layer])
        raise ConfigError(
            f"{reader.file}: layer {layer} is {LAYER_KINDS[by_type[layer]]} by mlp_layer_types but "
            f"{LAYER_KINDS[by_rule[layer]]} by {', '.join(_LAYER_RULE)}; remove one or the other"
        )
    return by_rule
