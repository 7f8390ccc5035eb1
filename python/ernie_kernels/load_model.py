"""A checkpoint's files become what an :class:`~.llm.LLM` answers with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ernie_kernels.chat_prompts import ChatPrompts
from ernie_kernels.chat_template import ChatTemplate, load_chat_template
from ernie_kernels.errors import UnsupportedError
from ernie_kernels.load_arguments import (
    LoadOptions,
    MediaOptions,
    check_quantization_of,
    check_speculative_of,
    dtypes_of,
)
from ernie_kernels.media_prompts import MediaPrompts, check_media_tokens
from ernie_kernels.media_sources import TEXT_ALONE
from ernie_kernels.models.config import ModelConfig, load_config
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.loader import open_checkpoint
from ernie_kernels.models.media_positions import BANKS_BY_ID
from ernie_kernels.models.memory_plan import loaded_weight_nbytes, planned_visual_nbytes
from ernie_kernels.models.weight_specs import HEAD
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.capacity import CachePlan, available_memory_for_cache, plan_cache
from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.model_runner import ModelRunner, kv_cache_bytes_per_block
from ernie_kernels.runner.requests import ModelLimits
from ernie_kernels.runner.sampler import Sampler
from ernie_kernels.runner.transfers import Transfers
from ernie_kernels.tokenizer import Tokenizer, load_tokenizer
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.processor import VisionProcessor

BLOCK_SIZE = 32
# Long enough that a weight read once from memory serves many rows, short enough that a decoding
# sequence beside it does not wait long for its next token.
MAX_TOKENS_PER_STEP = 512


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its cache, and what makes prompts for it."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    dtype: str  # of activations and cache
    weight_dtype: str  # of matrices that are not quantised
    limits: ModelLimits
    processor: VisionProcessor
    media: MediaPrompts | None  # of vision-language models
    chat_prompts: ChatPrompts | None  # where there are tokenizer and template
    engine: Engine
    sizes: dict[str, int]  # see LLM.stats


def load_model(folder: Path, options: LoadOptions) -> LoadedModel:
    """Read the checkpoint of a folder.

    Raises:
        ArgumentError, UnsupportedError: this model cannot be loaded so.
        DeviceError, ConfigError, FormatError, WeightError, CapacityError: as
            :meth:`.llm.LLM.from_pretrained`.
        MemoryError: not enough memory.
    """
    config = load_config(folder)
    check_quantization_of(config, options.quantization)
    check_speculative_of(config, options.speculative)
    processor = _load_processor(folder, config, options.media, options.media_limits)
    tokenizer, template = _load_text(folder, config)
    with open_checkpoint(folder) as checkpoint:
        dtype, weight_dtype = dtypes_of(checkpoint.dtype, options.dtype, options.kv_cache_dtype)
        bytes_per_block = kv_cache_bytes_per_block(
            config, BLOCK_SIZE, dtype, with_mtp=options.num_drafts > 0
        )
        weights = loaded_weight_nbytes(
            config,
            quantization=options.quantization,
            weight_dtype=weight_dtype,
            dtype=dtype,
            device=options.device,
            has_head=HEAD in checkpoint,
            with_mtp=options.num_drafts > 0,
        )
        # What weights and images are about to take is not for the cache.
        images = planned_visual_nbytes(config, processor.settings, dtype, options.device)
        plan = _plan_cache(config, options, weights + images, bytes_per_block)
        model = ErnieForCausalLM(
            config,
            checkpoint,
            device=options.device,
            dtype=dtype,
            weight_dtype=weight_dtype,
            quantization=options.quantization,
            with_mtp=options.num_drafts > 0,
            levels=processor.levels,
        )
    limits = ModelLimits(config.vocab_size, plan.max_model_len)
    media, chat_prompts = None, None
    if config.media_tokens is not None:
        media = MediaPrompts(
            config.media_tokens, processor, plan.max_model_len, options.media.position_rule
        )
    if tokenizer is not None and template is not None:
        chat_prompts = ChatPrompts(tokenizer, template, limits, media)
    return LoadedModel(
        config,
        tokenizer,
        dtype,
        weight_dtype,
        limits,
        processor,
        media,
        chat_prompts,
        engine=_make_engine(model, config, options, dtype, plan, tokenizer),
        sizes={
            "weight_bytes": model.nbytes,
            "kv_cache_bytes": plan.num_blocks * bytes_per_block,
            "block_size": BLOCK_SIZE,
            "num_blocks": plan.num_blocks,
            "max_model_len": plan.max_model_len,
        },
    )


def _load_processor(
    folder: Path, config: ModelConfig, media: MediaOptions, limits: VisionLimits
) -> VisionProcessor:
    if config.media_tokens is not None:
        return VisionProcessor.from_folder(folder, limits, **media.settings)
    if media != MediaOptions():
        raise UnsupportedError(f"mm_processor_kwargs: {TEXT_ALONE}")
    return VisionProcessor()


def _load_text(folder: Path, config: ModelConfig) -> tuple[Tokenizer | None, ChatTemplate | None]:
    tokens = config.media_tokens
    tokenizer = load_tokenizer(folder, config.vocab_size, () if tokens is None else tokens.all)
    if tokenizer is None:
        return None, None
    template = load_chat_template(folder, tokenizer, accepts_media=tokens is not None)
    if tokens is not None:
        check_media_tokens(tokenizer, tokens)
    return tokenizer, template


def _plan_cache(
    config: ModelConfig, options: LoadOptions, other_bytes: int, bytes_per_block: int
) -> CachePlan:
    available, share = available_memory_for_cache(options.device, other_bytes)
    return plan_cache(
        bytes_per_block=bytes_per_block,
        block_size=BLOCK_SIZE,
        max_position_embeddings=config.max_position_embeddings,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_memory=options.kv_cache_memory,
        available_memory=available,
        share=share,
    )


def _make_engine(
    model: ErnieForCausalLM,
    config: ModelConfig,
    options: LoadOptions,
    dtype: str,
    plan: CachePlan,
    tokenizer: Tokenizer | None,
) -> Engine:
    transfers = Transfers(options.device)
    tokens, max_num_seqs = config.media_tokens, options.max_num_seqs
    by_id = tokens is not None and options.media.bank_rule == BANKS_BY_ID
    runner = ModelRunner(
        model,
        config,
        transfers=transfers,
        dtype=dtype,
        num_blocks=plan.num_blocks,
        block_size=BLOCK_SIZE,
        # Room for prompts in any case: else one is read by a token a step beside all others,
        # and their drafts.
        max_tokens_per_step=max(MAX_TOKENS_PER_STEP, (2 + options.num_drafts) * max_num_seqs),
        max_num_seqs=max_num_seqs,
        max_model_len=plan.max_model_len,
        speculative=options.speculative,
        first_vision_id=tokens.image if tokens is not None and by_id else None,
    )
    vocab_limit = config.vocab_size
    if tokenizer is not None:
        vocab_limit = min(vocab_limit, tokenizer.vocab_size)
    return Engine(
        runner,
        BlockManager(plan.num_blocks, BLOCK_SIZE),
        Sampler(vocab_limit, transfers),
        eos_token_ids=config.eos_token_ids,
        tokenizer=tokenizer,
        max_num_seqs=max_num_seqs,
    )
