"""What of a model fits a machine: the ways to load it, beside the memory that is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ernie_kernels import _core
from ernie_kernels.models.config import LayerPlan, ModelConfig
from ernie_kernels.models.memory_plan import MemoryPlan, plan_memory
from ernie_kernels.models.model_weights import ParameterCount, count_parameters
from ernie_kernels.models.quantization import (
    DENSE_KEY,
    EXPERTS_KEY,
    QUANTIZATIONS,
    WINT4,
    Quantization,
)
from ernie_kernels.runner.capacity import (
    DEFAULT_MIN_TOKENS,
    DEVICE_RESERVE,
    DEVICE_SHARE,
    available_host_memory,
)

if TYPE_CHECKING:
    from ernie_kernels.vision.settings import VisionSettings

HOST = "host"
ALL_WINT4 = "wint4-all"  # 4 bits in every matrix, which no single word says
# What Python, the tokenizer and requests take beside the model.
HOST_RESERVE = 256 << 20  # bytes
CACHE_BLOCK = 32  # tokens


@dataclass(frozen=True, slots=True)
class Place:
    """Memory that a model can be in."""

    name: str  # HOST or "cuda:N"
    memory: int  # bytes that are free

    @property
    def device(self) -> str:
        return "cpu" if self.name == HOST else "cuda"


def this_machine() -> list[Place]:
    """The host, and each GPU that this build can use."""
    gpus = [f"cuda:{index}" for index in range(_core.device_count())]
    host = Place(HOST, available_host_memory())
    return [host, *(Place(name, _core.device_memory(name)[0]) for name in gpus)]


def other_machine(host: int | None, gpu: int | None) -> list[Place]:
    """One that has so many bytes of memory, and of GPU memory. None: not asked about."""
    places = [(HOST, host), ("cuda:0", gpu)]
    return [Place(name, memory) for name, memory in places if memory is not None]


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model, loaded in one way, fits a place.

    Attributes:
        needed: bytes of the place's memory for loading, and for the weights with one block of cache.
        host_needed: bytes of host memory for loading to a GPU; 0 in the host itself.
        tokens: of context that the cache can hold, of all sequences together. 0: it does not fit.
    """

    place: str
    needed: int
    host_needed: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Way:
    """One way to load a model."""

    name: str
    quantization: Quantization
    options: tuple[str, ...]  # what the commands take for it
    on_host: MemoryPlan
    on_gpu: MemoryPlan | None  # None where it is not for a GPU
    fits: tuple[Fit, ...]

    def fit(self, place: str) -> Fit | None:
        """None where this way is not for that place."""
        return next((fit for fit in self.fits if fit.place == place), None)


@dataclass(frozen=True, slots=True)
class FitReport:
    name: str
    config: ModelConfig
    places: list[Place]
    bandwidth: float | None  # bytes per second
    parameters: ParameterCount
    speculative_config: Mapping[str, Any] | None
    ways: list[Way] = field(default_factory=list)

    @property
    def enough(self) -> int:
        """Tokens that are enough for a conversation."""
        return min(DEFAULT_MIN_TOKENS, self.config.max_position_embeddings)

    @property
    def options(self) -> list[str]:
        """What the commands take besides those of a way."""
        if self.speculative_config is None:
            return []
        return ["--speculative-config", json.dumps(self.speculative_config)]

    def best(self, place: str) -> Way | None:
        """The most exact way with enough tokens, or the one with most; None where nothing fits.

        Rounding activations too saves no memory: it is never needed.
        """
        tokens = {
            way.name: fit.tokens
            for way in self.ways
            if not way.quantization.rounds_activations and (fit := way.fit(place)) and fit.tokens
        }
        ways = [way for way in self.ways if way.name in tokens]
        for way in ways:
            if tokens[way.name] >= self.enough:
                return way
        return max(ways, key=lambda way: tokens[way.name], default=None)

    def smallest(self, place: str) -> Way:
        """Of the ways that are for this place, the one with the fewest bytes."""
        return [
            way for way in self.ways if way.fit(place) and not way.quantization.rounds_activations
        ][-1]

    @property
    def something_fits(self) -> bool:
        return any(self.best(place.name) for place in self.places)

    def rate(self, way: Way) -> float | None:
        """Tokens per second that one sequence cannot get beyond, as its weights must be read."""
        return self.bandwidth and self.bandwidth / way.on_host.read_bytes_per_token

    def as_dict(self) -> dict[str, Any]:
        config = self.config
        return {
            "model": self.name,
            "architecture": config.architecture,
            "parameters": asdict(self.parameters),
            "stored_dtype": config.dtype,
            "max_position_embeddings": config.max_position_embeddings,
            "num_nextn_predict_layers": config.num_nextn_predict_layers,
            "speculative_config": self.speculative_config,
            "layers": [asdict(plan) for plan in config.layers],
            "places": [asdict(place) for place in self.places],
            "bandwidth_bytes_per_second": self.bandwidth,
            "ways": [self._way_as_dict(way) for way in self.ways],
            "best": {
                place.name: best.name if (best := self.best(place.name)) else None
                for place in self.places
            },
        }

    def _way_as_dict(self, way: Way) -> dict[str, Any]:
        return {
            "name": way.name,
            "options": [*way.options, *self.options],
            "host": asdict(way.on_host),
            "gpu": way.on_gpu and asdict(way.on_gpu),
            "tokens_per_second_at_most": self.rate(way),
            "fits": {
                fit.place: {key: value for key, value in asdict(fit).items() if key != "place"}
                for fit in way.fits
            },
        }


def fit_report(
    name: str,
    config: ModelConfig,
    places: list[Place],
    bandwidth: float | None,
    *,
    speculative_config: Mapping[str, Any] | None = None,
    settings: VisionSettings | None = None,
) -> FitReport:
    """With ``speculative_config``, the prediction module and its part of the cache count. Images are as
    large as ``settings`` let them be; None: as of the released models."""
    ways = list(_ways(config, places, settings, with_mtp=speculative_config is not None))
    parameters = count_parameters(config)
    return FitReport(name, config, places, bandwidth, parameters, speculative_config, ways)


def _ways(
    config: ModelConfig, places: list[Place], settings: VisionSettings | None, *, with_mtp: bool
) -> Iterator[Way]:
    # As LLM chooses: float16 is computed in float32, and bfloat16 weights stay what they are.
    stored = "bfloat16" if config.dtype in (None, "bfloat16") else "float32"
    ways: list[tuple[str, str | dict[str, str] | None, str, tuple[str, ...]]] = [
        (stored, None, stored, ())
    ]
    if stored == "float32":
        ways.append(("bfloat16", None, "bfloat16", ("--dtype", "bfloat16")))
    for word in QUANTIZATIONS:  # from the most exact to the smallest
        if word != WINT4 or config.num_experts:
            ways.append((word, word, stored, ("--quantization", word)))
    everything = {key: WINT4 for key in (DENSE_KEY, *([EXPERTS_KEY] * bool(config.num_experts)))}
    ways.append((ALL_WINT4, everything, stored, ("--quantization", json.dumps(everything))))
    for name, asked, dtype, options in ways:
        quantization = Quantization.of(asked)
        is_for_gpu = not quantization.rounds_activations
        on_host, on_gpu = (
            plan_memory(
                config,
                quantization=quantization,
                weight_dtype=dtype,
                dtype=dtype,
                device=device,
                with_mtp=with_mtp,
                settings=settings,
            )
            for device in ("cpu", "cuda")
        )
        fits = tuple(
            _fit(place, on_host if place.device == "cpu" else on_gpu, places)
            for place in places
            if place.device == "cpu" or is_for_gpu
        )
        yield Way(name, quantization, options, on_host, on_gpu if is_for_gpu else None, fits)


def _fit(place: Place, plan: MemoryPlan, places: list[Place]) -> Fit:
    # As in runner/capacity.py for a GPU; the host's default share for the cache is no limit.
    activations = plan.workspace_bytes + plan.visual_bytes
    reserve, share = (
        (HOST_RESERVE + activations, 1.0)
        if place.device == "cpu"
        else (DEVICE_RESERVE + activations, DEVICE_SHARE)
    )
    left = place.memory - plan.weight_bytes - reserve
    block = CACHE_BLOCK * plan.kv_bytes_per_token
    tokens = max(0, int(left * share) // block * CACHE_BLOCK)
    needed = plan.weight_bytes + reserve + int(block / share)
    host_needed = plan.host_peak_bytes + HOST_RESERVE
    if place.device == "cpu":
        needed, host_needed = max(needed, host_needed), 0
    host = next((each.memory for each in places if each.name == HOST), None)
    if needed > place.memory or (host is not None and host_needed > host):
        tokens = 0
    return Fit(place.name, needed, host_needed, tokens)


def layer_ranges(config: ModelConfig) -> list[tuple[LayerPlan, str]]:
    """Each kind of layer and which layers are of it: ``0``, ``1-27``, ``1, 3, 5, ...``."""
    runs: dict[LayerPlan, list[list[int]]] = {}
    for index, plan in enumerate(config.layers):
        found = runs.setdefault(plan, [])
        if found and found[-1][-1] == index - 1:
            found[-1][-1] = index
        else:
            found.append([index, index])
    return [(plan, _listed(found)) for plan, found in runs.items()]


def _listed(runs: list[list[int]]) -> str:
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in runs[:4]]
    return ", ".join([*shown, "..."] if len(runs) > 4 else shown)
