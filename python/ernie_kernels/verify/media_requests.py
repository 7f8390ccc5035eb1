"""The prompts of a verification in the words of the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels.errors import LimitError
from ernie_kernels.llm import LLM
from ernie_kernels.load_arguments import MediaOptions
from ernie_kernels.media_arguments import MediaArguments
from ernie_kernels.models.media_positions import BANKS_BY_ID
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.verify import media
from ernie_kernels.verify.architecture import Architecture
from ernie_kernels.verify.engine_trace import EngineTrace
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.judge import Judge
from ernie_kernels.verify.media import Layout, Picture, Prompt, media_prompt
from ernie_kernels.verify.prompts import make_prompts
from ernie_kernels.verify.stored_weights import StoredWeights
from ernie_kernels.verify.twin import Twin
from ernie_kernels.verify.vision_comparison import VisionComparison, levels
from ernie_kernels.verify.vision_trace import VisionTrace
from ernie_kernels.vision.item import VisualItem
from ernie_kernels.vision.processor import VisionProcessor
from ernie_kernels.vision.settings import VisionSettings

NAMES = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}


@dataclass(frozen=True, slots=True)
class MediaRequests:
    """Prompts, and how their images and videos are to be prepared.

    Attributes:
        first_vision_id: ids from this one on ask the vision experts; None: by their place.
    """

    layout: Layout
    settings: VisionSettings
    position_rule: str
    first_vision_id: int | None

    @classmethod
    def make(
        cls,
        llm: LLM,
        shape: Architecture,
        reference: Path,
        options: MediaOptions,
        tokens: int,
    ) -> MediaRequests:
        """Some of text, and for a vision-language model one with an image and a video.

        Raises:
            ConfigError: the reference's preprocessor files cannot be used.
            LimitError: that one is longer than the model allows.
        """
        ids = shape.media_ids
        if ids is not None and llm.config.media_tokens is not None:
            ids = replace(ids, video=llm.config.media_tokens.video)  # the one that may differ
        texts = make_prompts(
            llm.tokenizer,
            llm.config.vocab_size,
            llm.max_model_len,
            tokens,
            without=frozenset() if ids is None else ids.all,
        )
        prompts = [Prompt(text) for text in texts]
        if ids is None:
            return cls(Layout.of(prompts), VisionSettings(), options.position_rule, None)
        shown = media_prompt(np.resize(texts[-1], 64), ids)
        if len(shown.ids) > llm.max_model_len:
            raise LimitError(
                f"verify: the prompt with an image and a video has {len(shown.ids)} tokens, more "
                f"than max_model_len={llm.max_model_len}; allow more"
            )
        first_vision_id = ids.image if options.bank_rule == BANKS_BY_ID else None
        return cls(
            Layout.of([*prompts, shown], options.position_rule, first_vision_id),
            VisionSettings.from_folder(reference, **options.settings),
            options.position_rule,
            first_vision_id,
        )

    def forward(self, llm: LLM) -> list[np.ndarray]:
        """Logits of every prompt; images and videos are patches, as transformers makes them."""
        every_id = [prompt.ids.tolist() for prompt in self.layout.prompts]
        return llm.forward(every_id, position_rule=self.position_rule, **self._arguments())

    def trace(self, llm: LLM) -> EngineTrace:
        """The decoder's; images and videos are pixels, as in a conversation."""
        prompts = self.layout.prompts
        every_id = [prompt.ids for prompt in prompts]
        given = MediaArguments(
            llm.config, VisionProcessor(), self.position_rule, **self._arguments()
        )
        return EngineTrace(
            llm.model,
            llm.config,
            every_id,
            device=llm.device,
            dtype=llm.dtype,
            media=[
                None
                if plan is None
                else PromptMedia(replace(plan, items=items_of(prompt.pictures)))
                for plan, prompt in zip(given.plans(every_id), prompts, strict=True)
            ],
            first_vision_id=self.first_vision_id,
        )

    def vision(self, llm: LLM, weights: StoredWeights, judge: Judge) -> VisionComparison | None:
        """Of all images and videos; None in a model of text alone."""
        encoder, vision, shape = llm.model.visual, llm.config.vision, weights.architecture.vision
        if encoder is None or vision is None or shape is None:
            return None
        pictures = self.layout.pictures
        trace = VisionTrace(
            llm.model, encoder, vision, items_of(pictures), device=llm.device, dtype=llm.dtype
        )
        twin = Twin(exists=llm.dtype == "bfloat16")
        return VisionComparison(weights, shape, trace, judge, self.settings, pictures, twin)

    def _arguments(self) -> dict[str, Any]:
        """Of :meth:`LLM.forward`, beside the ids."""
        arguments: dict[str, Any] = {}
        of_level: Array = levels(self.settings).value
        for kind, (patches, grids) in NAMES.items():
            pictures = [each for each in self.layout.pictures if each.kind == kind]
            if pictures:
                cut = np.concatenate([media.patches(each, of_level) for each in pictures])
                arguments[patches] = cut.astype(np.float32)
                arguments[grids] = np.array([each.grid for each in pictures])
        return arguments


def items_of(pictures: tuple[Picture, ...] | list[Picture]) -> list[VisualItem]:
    return [
        VisualItem(each.kind, each.grid, each.frames, None, index.to_bytes(16, "little"))
        for index, each in enumerate(pictures)
    ]
