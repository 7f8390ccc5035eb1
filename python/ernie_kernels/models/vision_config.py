"""What a configuration says of pictures and video: the vision tower, and the tokens in their place.

Baidu's own files have the keys of the text model at the top; transformers nests them under
``text_config``. Both nest those of the vision tower under ``vision_config``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_keys import HARMLESS_KEYS, TOWER_KEYS, check_other_keys
from ernie_kernels.models.config_reader import ConfigReader
from ernie_kernels.models.rope_config import rope_theta

# What every released model has, and the preprocessing and the resampler are written for.
IN_CHANNELS = 3
PATCH_SIZE = 14  # pixels, each way
SPATIAL_MERGE_SIZE = 2  # patches each way that become one row of the resampler
TEMPORAL_MERGE_SIZE = 2  # frames of a video that become one

TOWER_ACTIVATIONS = ("quick_gelu", "gelu")
MAX_TOWER_HEAD_DIM = 256

_OTHER_NAMES = {
    "embed_dim": "hidden_size",
    "in_chans": "in_channels",
    "layer_norm_eps": "rms_norm_eps",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "depth",
}
# What may differ between the whole and its text_config: what names each, and the tie of the head,
# which the whole decides.
_OF_EACH = frozenset({"model_type", "architectures", "tie_word_embeddings"}) | HARMLESS_KEYS


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower. Field names are those of ``vision_config`` where it has them."""

    depth: int  # blocks
    hidden_size: int
    num_heads: int
    intermediate_size: int
    hidden_act: str  # one of TOWER_ACTIVATIONS
    layer_norm_eps: float  # of the resampler's LayerNorms too
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels, rows and columns of pixels."""
        return IN_CHANNELS * PATCH_SIZE**2

    @property
    def merged_size(self) -> int:
        """Width of the resampler: a block of patches side by side."""
        return self.hidden_size * SPATIAL_MERGE_SIZE**2


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Token ids that stand for media, or around them."""

    image: int
    video: int  # may be that of images, as in Baidu's prompts
    image_start: int
    image_end: int
    video_start: int
    video_end: int

    @property
    def all(self) -> frozenset[int]:
        return self.placeholders | self.around

    @property
    def placeholders(self) -> frozenset[int]:
        """Ids whose embedding is a feature of an image or video."""
        return frozenset({self.image, self.video})

    @property
    def around(self) -> frozenset[int]:
        """Ids that stand before and behind media: text by their positions, vision by their experts."""
        return frozenset({self.image_start, self.image_end, self.video_start, self.video_end})


def with_text_config(reader: ConfigReader) -> ConfigReader:
    """The keys of ``text_config`` beside those of the whole.

    Raises:
        ConfigError: a key is in both, with values that differ.
    """
    text = reader.values.get("text_config")
    if text is None:
        return ConfigReader(
            {key: value for key, value in reader.values.items() if key != "text_config"},
            reader.file,
        )
    if not isinstance(text, dict):
        raise reader.fail("text_config", "an object or null", text)
    values = dict(text)
    for key, value in reader.values.items():
        if key == "text_config" or (value is None and key in text):
            continue
        inner = text.get(key)
        if inner is not None and inner != value and key not in _OF_EACH:
            raise ConfigError(
                f"{reader.file}: {quoted(key)} is {quoted(value)} but {quoted(inner)} in "
                "text_config; remove one of them"
            )
        values[key] = value
    return ConfigReader(values, reader.file)


def vision_config(reader: ConfigReader) -> VisionConfig:
    """The vision tower. ``depth``, ``hidden_size`` and ``num_heads`` must be in the file; the rest may
    be absent, with the values of every released model.

    Raises:
        ConfigError: a key is missing, of the wrong type, out of range or contradictory.
    """
    values = reader.values.get("vision_config")
    if not isinstance(values, dict):
        raise reader.fail("vision_config", "an object", values)
    given = ConfigReader(values, f"{reader.file}: vision_config").under_one_name(_OTHER_NAMES)
    check_other_keys(given, "ERNIE-4.5-VL", TOWER_KEYS)
    _check_merging(reader, given)
    hidden_size, num_heads = given.size("hidden_size"), given.size("num_heads")
    head_dim, rest = divmod(hidden_size, num_heads)
    # A quarter of a head turns with the row of a patch, as two halves of pairs; so with the column.
    if rest or head_dim % 4 or head_dim > MAX_TOWER_HEAD_DIM:
        raise ConfigError(
            f"{given.file}: hidden_size={hidden_size} with num_heads={num_heads}: expected heads of "
            f"a multiple of 4 up to {MAX_TOWER_HEAD_DIM}, for positions of row and column"
        )
    pixel_hidden_size = reader.values.get("pixel_hidden_size")
    if pixel_hidden_size not in (None, hidden_size):
        raise ConfigError(
            f"{reader.file}: pixel_hidden_size is {quoted(pixel_hidden_size)} but hidden_size of "
            f"vision_config is {hidden_size}; the resampler reads the tower's rows"
        )
    return VisionConfig(
        depth=given.size("depth"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=_intermediate_size(given, hidden_size),
        hidden_act=given.choice("hidden_act", TOWER_ACTIVATIONS, TOWER_ACTIVATIONS[0]),
        layer_norm_eps=given.positive("rms_norm_eps", 1e-6),
        rope_theta=rope_theta(given, default=10000.0, rope_types=("axial", "default")),
    )


def _check_merging(reader: ConfigReader, given: ConfigReader) -> None:
    """Sizes that only one value is supported of."""
    sizes = (
        (given, "in_channels", IN_CHANNELS),
        (given, "patch_size", PATCH_SIZE),
        (given, "spatial_merge_size", SPATIAL_MERGE_SIZE),
        (given, "temporal_merge_size", TEMPORAL_MERGE_SIZE),
        (reader, "spatial_conv_size", SPATIAL_MERGE_SIZE),
        (reader, "temporal_conv_size", TEMPORAL_MERGE_SIZE),
    )
    for source, key, size in sizes:
        value = source.values.get(key)
        shown = value[0] if key == "patch_size" and value == [size, size] else value
        if shown is not None and (type(shown) is not int or shown != size):
            raise source.fail(key, f"{size} (no other value is supported)", value)


def _intermediate_size(given: ConfigReader, hidden_size: int) -> int:
    ratio = given.positive("mlp_ratio", 4)
    if given.values.get("intermediate_size") is None:
        # As a size of its own, so that it is held against the range of one.
        width = hidden_size * ratio
        known = int(width) if width == int(min(width, 1 << 62)) else width
        return ConfigReader({"intermediate_size": known}, given.file).size("intermediate_size")
    size = given.size("intermediate_size")
    if given.values.get("mlp_ratio") is not None and size != hidden_size * ratio:
        raise ConfigError(
            f"{given.file}: intermediate_size={size} is not hidden_size={hidden_size} times "
            f"mlp_ratio={ratio!r}; remove one of them"
        )
    return size


def media_tokens(reader: ConfigReader, vocab_size: int) -> MediaTokens:
    """The ids of ``image_token_id`` (Baidu: ``im_patch_id``) and the others; absent, those of every
    released model. Without a ``video_token_id`` videos have the placeholder of images.

    Raises:
        ConfigError: an id is of the wrong type or out of range, or two that must differ are one.
    """
    reader = reader.under_one_name({"im_patch_id": "image_token_id"})

    def token(key: str, default: int) -> int:
        given = reader.token_id(key, vocab_size)
        if given is None and default >= vocab_size:
            raise ConfigError(
                f"{reader.file}: {key}: missing; expected a token id below vocab_size={vocab_size}"
            )
        return default if given is None else given

    image = token("image_token_id", 100295)
    tokens = MediaTokens(
        image=image,
        video=token("video_token_id", image),
        image_start=token("image_start_token_id", 101304),
        image_end=token("image_end_token_id", 101305),
        video_start=token("video_start_token_id", 101306),
        video_end=token("video_end_token_id", 101307),
    )
    if tokens.around & tokens.placeholders or len(tokens.around) < 4:
        raise ConfigError(
            f"{reader.file}: image_token_id, video_token_id and the start and end ids of both: "
            "expected ids that differ, but for the first two; two of them are the same"
        )
    return tokens
