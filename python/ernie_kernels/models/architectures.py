"""Model variants: the names that select one, and how its layers follow from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_keys import DENSE_KEYS, MOE_KEYS, VL_KEYS, KeyRules
from ernie_kernels.models.config_reader import ConfigReader
from ernie_kernels.models.layer_plan import (
    Experts,
    LayerPlan,
    dense_layers,
    moe_layers,
    vl_moe_layers,
)

LayerPlanner = Callable[[ConfigReader], tuple[tuple[LayerPlan, ...], Experts]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model variant. ``has_vision``: a vision tower, a resampler and three-dimensional positions."""

    name: str
    class_names: tuple[str, ...]  # as in "architectures"
    model_types: tuple[str, ...]
    layers: LayerPlanner
    keys: KeyRules = DENSE_KEYS
    has_vision: bool = False


# Each class has two spellings: that of transformers and that of Baidu's own files.
ARCHITECTURES = (
    Architecture(
        "ernie4_5",
        ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        ("ernie4_5",),
        dense_layers,
    ),
    Architecture(
        "ernie4_5_moe",
        ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"),
        ("ernie4_5_moe",),
        moe_layers,
        MOE_KEYS,
    ),
    Architecture(
        "ernie4_5_vl_moe",
        (
            "Ernie4_5_VLMoeForConditionalGeneration",
            "Ernie4_5_VL_MoeForConditionalGeneration",
            "Ernie4_5_VLMoEForConditionalGeneration",
        ),
        ("ernie4_5_vl_moe", "ernie4_5_moe_vl"),
        vl_moe_layers,
        VL_KEYS,
        has_vision=True,
    ),
)


def find_architecture(reader: ConfigReader) -> Architecture:
    """The variant that ``architectures`` and ``model_type`` name.

    Raises:
        ConfigError: they name none, or two.
    """
    by_class = {name: row for row in ARCHITECTURES for name in row.class_names}
    by_type = {name: row for row in ARCHITECTURES for name in row.model_types}
    supported = ", ".join(by_class)

    classes, model_type = reader.values.get("architectures"), reader.values.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise reader.fail("model_type", "a string", model_type)
    if classes is not None:
        if not isinstance(classes, list) or len(classes) != 1 or not isinstance(classes[0], str):
            raise reader.fail("architectures", "a list of one class name", classes)
        if classes[0] not in by_class:
            raise reader.fail("architectures", f"one of {supported}", classes[0])
        found = by_class[classes[0]]
        # A model_type that names no known variant is redundant beside the class; one that names
        # another variant is a contradiction.
        if by_type.get(model_type or "", found) is not found:
            raise ConfigError(
                f"{reader.file}: architectures is {quoted(classes[0])} but model_type is "
                f"{quoted(model_type)}, another model; correct one of them"
            )
        return found
    if model_type is None:
        raise ConfigError(
            f"{reader.file}: architectures: missing, and model_type too; expected one of {supported}"
        )
    if model_type not in by_type:
        raise reader.fail("model_type", f"one of {', '.join(by_type)}", model_type)
    return by_type[model_type]
