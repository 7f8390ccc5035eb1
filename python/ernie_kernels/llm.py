"""``LLM``: a checkpoint, loaded and ready to answer."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np

from ernie_kernels import _core, calls
from ernie_kernels.chat_prompts import ChatPrompts
from ernie_kernels.chat_template import load_chat_template
from ernie_kernels.errors import ConfigError, UnsupportedError
from ernie_kernels.load_arguments import (
    MediaOptions,
    check_counts,
    check_device,
    check_folder,
    check_mm_processor_kwargs,
    check_one_of,
    check_one_of_type,
    check_quantization,
    check_quantization_of,
    check_speculative_config,
    check_speculative_of,
    dtypes_of,
)
from ernie_kernels.load_report import log_loaded
from ernie_kernels.media_arguments import MediaArguments
from ernie_kernels.media_prompts import MediaPrompts, check_media_tokens, place_function
from ernie_kernels.media_sources import TEXT_ALONE
from ernie_kernels.models.config import load_config
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.loader import open_checkpoint
from ernie_kernels.models.media_positions import BAIDU, BANKS_BY_ID, POSITION_RULES
from ernie_kernels.models.memory_plan import loaded_weight_nbytes
from ernie_kernels.models.mtp import SpeculativeConfig
from ernie_kernels.models.quantization import Quantization
from ernie_kernels.models.weight_specs import HEAD
from ernie_kernels.outputs import GenerationChunk, RequestOutput
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.capacity import available_memory_for_cache, plan_cache
from ernie_kernels.runner.collector import Collector
from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.model_runner import ModelRunner, kv_cache_bytes_per_block
from ernie_kernels.runner.requests import NO_TOKENIZER, ModelLimits, make_requests
from ernie_kernels.runner.sampler import Sampler
from ernie_kernels.runner.sampling import SamplingParams
from ernie_kernels.runner.transfers import Transfers
from ernie_kernels.tokenizer import load_tokenizer
from ernie_kernels.vision.processor import VisionProcessor

DEMO_FOLDER = Path(__file__).parent / "demo"
DTYPES = ("float32", "bfloat16")
KV_CACHE_DTYPES = ("bfloat16", "float32", "int8", "fp8", "fp8_e4m3", "int4")
BLOCK_SIZE = 32
# Long enough that a weight read once from memory serves many rows, short enough that a decoding
# sequence beside it does not wait long for its next token.
MAX_TOKENS_PER_STEP = 512


class LLM:
    """A loaded model. Made by :meth:`from_pretrained`; a context manager.

    May be used from several threads: what they ask for at the same time runs together.

    Attributes:
        config: the checkpoint's :class:`~.models.config.ModelConfig`.
        tokenizer: its :class:`~.tokenizer.Tokenizer`, or None if it has none.
        device: ``"cpu"`` or ``"cuda:N"``.
        dtype: of activations and cache, ``"float32"`` or ``"bfloat16"``.
        weight_dtype: of matrices that are not quantised, ``"float32"`` or ``"bfloat16"``.
        max_model_len: tokens that a prompt and its answer may have together.
        num_speculative_tokens: guessed ahead in a step; 0 without ``speculative_config``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        dtype: str,
        quantization: Quantization,
        kv_cache_dtype: str,
        max_model_len: int | None,
        max_num_seqs: int,
        kv_cache_memory: int | None,
        speculative: SpeculativeConfig | None,
        media: MediaOptions,
    ) -> None:
        """Use :meth:`from_pretrained`, which checks the arguments."""
        self.device = device
        self.config = load_config(folder)
        check_quantization_of(self.config, quantization)
        check_speculative_of(self.config, speculative)
        tokens = self.config.media_tokens
        self._processor = VisionProcessor()
        if tokens is None and media != MediaOptions():
            raise UnsupportedError(f"mm_processor_kwargs: {TEXT_ALONE}")
        if tokens is not None:
            self._processor = VisionProcessor.from_folder(folder, **media.settings)
        self.tokenizer = load_tokenizer(
            folder, self.config.vocab_size, () if tokens is None else tokens.all
        )
        template = None
        if self.tokenizer is not None:
            template = load_chat_template(folder, self.tokenizer, accepts_media=tokens is not None)
            if tokens is not None:
                check_media_tokens(self.tokenizer, tokens)
        with open_checkpoint(folder) as checkpoint:
            self.dtype, self.weight_dtype = dtypes_of(checkpoint.dtype, dtype, kv_cache_dtype)
            num_drafts = 0 if speculative is None else speculative.num_speculative_tokens
            with_mtp = num_drafts > 0
            bytes_per_block = kv_cache_bytes_per_block(
                self.config, BLOCK_SIZE, self.dtype, with_mtp=with_mtp
            )
            # What the weights are about to take is not for the cache.
            weights = loaded_weight_nbytes(
                self.config,
                quantization=quantization,
                weight_dtype=self.weight_dtype,
                dtype=self.dtype,
                device=device,
                has_head=HEAD in checkpoint,
                with_mtp=with_mtp,
            )
            available, share = available_memory_for_cache(device, weights)
            plan = plan_cache(
                bytes_per_block=bytes_per_block,
                block_size=BLOCK_SIZE,
                max_position_embeddings=self.config.max_position_embeddings,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                kv_cache_memory=kv_cache_memory,
                available_memory=available,
                share=share,
            )
            model = ErnieForCausalLM(
                self.config,
                checkpoint,
                device=device,
                dtype=self.dtype,
                weight_dtype=self.weight_dtype,
                quantization=quantization,
                with_mtp=with_mtp,
                levels=self._processor.levels,
            )
        self.max_model_len = plan.max_model_len
        self.num_speculative_tokens = num_drafts
        self._limits = ModelLimits(self.config.vocab_size, plan.max_model_len)
        self._media = None
        if tokens is not None:
            self._media = MediaPrompts(
                tokens, self._processor, plan.max_model_len, media.position_rule
            )
        self._chat_prompts = None
        if self.tokenizer is not None and template is not None:
            self._chat_prompts = ChatPrompts(self.tokenizer, template, self._limits, self._media)
        self._num_blocks = plan.num_blocks
        self._cache_bytes = plan.num_blocks * bytes_per_block
        self._weight_bytes = model.nbytes
        transfers = Transfers(device)
        runner = ModelRunner(
            model,
            self.config,
            transfers=transfers,
            dtype=self.dtype,
            num_blocks=plan.num_blocks,
            block_size=BLOCK_SIZE,
            # Room for prompts in any case: else one is read by a token a step beside all others,
            # and their drafts.
            max_tokens_per_step=max(MAX_TOKENS_PER_STEP, (2 + num_drafts) * max_num_seqs),
            max_num_seqs=max_num_seqs,
            max_model_len=plan.max_model_len,
            speculative=speculative,
            first_vision_id=(
                tokens.image if tokens is not None and media.bank_rule == BANKS_BY_ID else None
            ),
        )
        vocab_limit = self.config.vocab_size
        if self.tokenizer is not None:
            vocab_limit = min(vocab_limit, self.tokenizer.vocab_size)
        self._engine = Engine(
            runner,
            BlockManager(plan.num_blocks, BLOCK_SIZE),
            Sampler(vocab_limit, transfers),
            eos_token_ids=self.config.eos_token_ids,
            tokenizer=self.tokenizer,
            max_num_seqs=max_num_seqs,
        )
        log_loaded(self, folder, quantization)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | Mapping[str, str | None] | None = None,
        kv_cache_dtype: str = "auto",
        batch_invariant: bool | Literal["auto"] = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 32,
        kv_cache_memory: int | None = None,
        num_threads: int | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> LLM:
        """Load a checkpoint.

        Args:
            path: a folder in the Hugging Face or Paddle layout. None: the demo model that comes
                with this package.
            device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
            dtype: of activations: ``"auto"`` (the checkpoint's; float32 for a float16 one),
                ``"float32"`` or ``"bfloat16"``. A bfloat16 checkpoint keeps bfloat16 weights even
                with float32 activations.
            quantization: round the projections and the head as they are read. ``"wint8"``: weights
                to int8, one scale per output channel, in half the memory of bfloat16. ``"w8a8"``:
                activations before them too, with a scale for every 64 values; faster for many
                tokens, less accurate; CPU only. ``"wint4"``: experts to 4 bits, the rest to int8;
                for models with experts. ``{"dense_quant_type": "wint4", "moe_quant_type":
                "wint4"}``: 4 bits everywhere, head included. Each of the two may be any of the
                words, or None or left out: as stored; the second is for models with experts.
                4 bits have a scale per output channel like int8, and cost more: the mean KL of the
                demo model is 0.13 nats and 79 % of its first choices stay, with ``"wint8"`` 0.0006
                and 99.7 % (``ernie-kernels verify``). None: nothing. Routers stay float32.
            kv_cache_dtype: ``"auto"`` or the dtype of the activations.
            batch_invariant: on the CPU a result never depends on what else is in the batch. On a GPU
                it may in its last bits, as the number of rows decides the order of summation.
            max_model_len: tokens of prompt and answer together. None: the model's own limit, or
                what the cache can hold.
            max_num_seqs: sequences that run at the same time, 1..1024.
            kv_cache_memory: bytes for the cache. None: on the CPU a tenth of the available memory,
                whose pages are taken from the system when they are first used; on a GPU nine
                tenths of what the weights and 256 MiB leave of its free memory.
            num_threads: of the process, 1..1024. None: leave as it is.
            speculative_config: ``{"method": "mtp", "num_speculative_tokens": 1}`` guesses one token
                (up to 8) ahead with the checkpoint's multi-token prediction module and checks it in
                the next step: the same tokens in fewer steps. Worth it where reading weights bounds
                a step (few requests at a time) and ``stats()["acceptance_rate"]`` is well above what
                the module costs, about one layer and the head a step. ``"hidden_state"``: the module
                reads that of the model ``"before_norm"`` (default), as in training, or
                ``"after_norm"``: whichever is accepted more often. None: the module is not loaded.
            mm_processor_kwargs: of images and videos: attributes of :class:`~.vision.VisionSettings`,
                which go before the checkpoint's files, such as ``fps``, ``max_frames`` and
                ``draw_timestamps``; ``"position_rule"``, as in :meth:`forward`; and ``"bank_rule"``:
                ``"transformers"`` gives all that is generated to the text experts, ``"fastdeploy"``
                every token from the placeholder of images on to those of vision, in text too.

        Raises:
            ArgumentError, TypeError: an argument is out of range or of the wrong type.
            UnsupportedError: right, but not in this version or build.
            DeviceError: no such GPU, or a build that cannot use it.
            ConfigError, FormatError, WeightError: a file of the checkpoint cannot be used.
            CapacityError: ``kv_cache_memory`` cannot hold one sequence of ``max_model_len``.
            OutOfMemoryError: not enough memory.
        """
        folder = check_folder(path, DEMO_FOLDER)
        check_one_of("dtype", dtype, ("auto", *DTYPES))
        check_one_of("kv_cache_dtype", kv_cache_dtype, ("auto", *KV_CACHE_DTYPES))
        resolved = check_device(device)
        kinds = check_quantization(quantization, resolved)
        if not isinstance(batch_invariant, bool):
            check_one_of("batch_invariant", batch_invariant, ("auto",))
        if batch_invariant is True and resolved != "cpu":
            raise UnsupportedError(
                f"batch_invariant: True is not in this version for {resolved}; on the CPU it "
                "always holds"
            )
        check_counts(max_num_seqs, max_model_len, kv_cache_memory, num_threads)
        if num_threads is not None:
            _core.set_num_threads(num_threads)
        speculative = check_speculative_config(speculative_config)
        media = check_mm_processor_kwargs(mm_processor_kwargs)
        try:
            return cls(
                folder,
                device=resolved,
                dtype=dtype,
                quantization=kinds,
                kv_cache_dtype=kv_cache_dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                kv_cache_memory=kv_cache_memory,
                speculative=speculative,
                media=media,
            )
        except MemoryError as error:
            raise calls.out_of_memory(error, "loading the model") from None

    # -------------------------------------------------------------------------------------- calls

    def forward(
        self,
        prompt_token_ids: Sequence[Sequence[int]],
        *,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
        mm_token_type_ids: Any = None,
        moe_mm_token_type_ids: Any = None,
        position_rule: str = BAIDU,
    ) -> list[np.ndarray]:
        """Logits of every token of every sequence.

        Images and videos are as Hugging Face's processor makes them; a quarter as many tokens as an
        image has patches, an eighth as many as a video, are their placeholders.

        Args:
            prompt_token_ids: one list of ids per sequence.
            pixel_values: float32 ``[num_patches, 588]``, the patches of all images, in the order of
                their tokens in the sequences.
            image_grid_thw: integers ``[num_images, 3]``: 1, rows and columns of patches.
            pixel_values_videos, video_grid_thw: the same of videos, whose frames are even.
            mm_token_type_ids: of each sequence an integer per token, for its position: 0 text, 1
                image, 2 video. None: by the ids of placeholders.
            moe_mm_token_type_ids: the same for the choice of experts, where the tokens before and
                behind media are not text. None: by the ids, in sequences with media.
            position_rule: where text goes on behind a video: ``"baidu"``, or ``"transformers"``, which
                ignores the number of its frames.

        Returns:
            A float32 array ``[len(ids), vocab_size]`` per sequence.

        Raises:
            InputError, LimitError, TypeError: a sequence is empty, too long, or not of token ids; or
                images and videos do not fit the tokens.
            ArgumentError: an array of the wrong shape or dtype, or for a model of text alone.
            OutOfMemoryError: the logits do not fit in memory.
            DeviceError: as in :meth:`generate`.
        """
        self._check_open()
        check_one_of("position_rule", position_rule, POSITION_RULES)
        media = MediaArguments(
            self.config, self._processor, position_rule, pixel_values, image_grid_thw,
            pixel_values_videos, video_grid_thw, mm_token_type_ids, moe_mm_token_type_ids,
        )  # fmt: skip
        return calls.forward(self._engine, prompt_token_ids, self._limits, media)

    @overload
    def generate(
        self,
        prompts: str | Sequence[str] | None = ...,
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        prompt_token_ids: Sequence[Sequence[int]] | None = ...,
        multi_modal_data: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None = ...,
        stream: Literal[False] = ...,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: str | Sequence[str] | None = ...,
        params: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        prompt_token_ids: Sequence[Sequence[int]] | None = ...,
        multi_modal_data: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None = ...,
        stream: Literal[True],
    ) -> Generator[GenerationChunk, None, None]: ...

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[Sequence[int]] | None = None,
        multi_modal_data: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> list[RequestOutput] | Generator[GenerationChunk, None, None]:
        """Continue raw text or token ids.

        Args:
            prompts: a text or several; None if ``prompt_token_ids`` are given.
            params: for all prompts, or one for each. None: the defaults.
            prompt_token_ids: one list of ids per prompt, taken as they are.
            multi_modal_data: of each prompt of ids None, or a dict with what it shows: ``"image"`` and
                ``"video"``, each one or a list, in the order of the placeholders. There is one
                placeholder for each, or as many as it has features. Images and videos are as in
                :meth:`chat`.
            stream: return an iterator of :class:`~.outputs.GenerationChunk`, one for each new
                token, as they come; the last chunk of a request holds its whole output. Errors of
                the arguments are raised by the call, before the first chunk.

        Returns:
            One :class:`~.outputs.RequestOutput` per prompt, in order.

        Raises:
            InputError, LimitError, TypeError: a prompt or parameter is wrong; nothing has run.
            ConfigError: text or stop strings, but the checkpoint has no tokenizer.
            NumericError: logits of a request are not finite. The others have run to their ends:
                see its ``outputs``.
            DeviceError, OutOfMemoryError: a step needs more memory than there is, or a call of the
                CUDA runtime failed. The model stays usable, unless the message says that the GPU's
                context is lost.
        """
        self._check_open()
        check_one_of_type("stream", stream, bool)
        requests = make_requests(
            prompts,
            prompt_token_ids,
            params,
            self.tokenizer,
            self._limits,
            place_function(self._media, prompts, prompt_token_ids, multi_modal_data),
        )
        collector = Collector(requests, has_text=self.tokenizer is not None)
        call = calls.stream if stream else calls.finish
        return call(self._engine, requests, collector)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = ...,
        *,
        stream: Literal[False] = ...,
        enable_thinking: bool = ...,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = ...,
        *,
        stream: Literal[True],
        enable_thinking: bool = ...,
        tools: Sequence[Mapping[str, Any]] | None = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
    ) -> Generator[GenerationChunk, None, None]: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        enable_thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> RequestOutput | Generator[GenerationChunk, None, None]:
        """Answer a conversation, rendered by the checkpoint's chat template.

        Args:
            messages: dicts with ``role`` and ``content``, as OpenAI's interface has them. For a
                vision-language model content may be a list of parts::

                    {"type": "text", "text": "..."}
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
                    {"type": "image", "image": path, bytes, Pillow image or uint8 [H, W, 3]}
                    {"type": "video", "video": path, bytes, or frames, "fps": of frames}

                URLs of the network are not fetched; a path is one of this machine.
            params: None: the defaults.
            stream: as in :meth:`generate`.
            enable_thinking: let the template open the model's reasoning, which is then told apart
                from the answer in ``reasoning``.
            tools: descriptions of tools, for templates that list them.
            chat_template_kwargs: further variables of the template.

        Returns:
            One :class:`~.outputs.RequestOutput`.

        Raises:
            InputError, LimitError, TypeError: a message or parameter is wrong; nothing has run.
            ConfigError: no tokenizer, or the template cannot be used.
            NumericError, DeviceError, OutOfMemoryError: as in :meth:`generate`.
        """
        self._check_open()
        if self._chat_prompts is None:
            raise ConfigError(f"chat: {NO_TOKENIZER} to generate instead")
        check_one_of_type("stream", stream, bool)
        check_one_of_type("enable_thinking", enable_thinking, bool)
        requests = [
            self._chat_prompts.request(
                messages,
                params,
                enable_thinking=enable_thinking,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
        ]
        collector = Collector(requests, has_text=True)
        if stream:
            return calls.stream(self._engine, requests, collector)
        return calls.finish(self._engine, requests, collector)[0]

    # -------------------------------------------------------------------------------------- state

    @property
    def model(self) -> ErnieForCausalLM:
        """The layers and their weights, to be looked at. Raises ArgumentError after ``close``."""
        return self._engine.model

    def stats(self) -> dict[str, Any]:
        """How much the model holds and has done.

        Returns:
            ``weight_bytes``, ``kv_cache_bytes``, ``block_size`` (tokens), ``num_blocks``,
            ``max_model_len`` (tokens), ``cpu_tier``, ``num_threads``. Blocks of the cache that can be
            had: ``num_free_blocks``; those of them that still hold what a prompt may begin with:
            ``num_cached_blocks``. Answers that are ``running`` and ``waiting``. Since loading:
            ``prompt_tokens`` (computed), ``prefix_hit_tokens`` (found in the cache instead),
            ``generated_tokens``, ``preemptions`` (answers that had to give their blocks to others for
            a while). With ``speculative_config``: ``drafted_tokens``, ``accepted_tokens`` (those of
            them that proved right), ``acceptance_rate`` (None before the first).
        """
        return {
            "weight_bytes": self._weight_bytes,
            "kv_cache_bytes": self._cache_bytes,
            "block_size": BLOCK_SIZE,
            "num_blocks": self._num_blocks,
            "max_model_len": self.max_model_len,
            "cpu_tier": _core.cpu_tier(),
            "num_threads": _core.num_threads(),
            **self._engine.stats(),
        }

    def close(self) -> None:
        """Release weights and cache. Later calls raise ArgumentError; a second close does not."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        self._engine.check_open()
