"""``LLM``: a checkpoint, loaded and ready to answer."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np

from ernie_kernels import _core, calls
from ernie_kernels.errors import ConfigError
from ernie_kernels.load_arguments import (
    LoadOptions,
    check_folder,
    check_load_options,
    check_one_of,
    check_one_of_type,
)
from ernie_kernels.load_model import LoadedModel, load_model
from ernie_kernels.load_report import log_loaded
from ernie_kernels.media_arguments import MediaArguments
from ernie_kernels.media_prompts import place_function
from ernie_kernels.memory_errors import out_of_memory, reporting_memory
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.media_positions import BAIDU, POSITION_RULES
from ernie_kernels.outputs import GenerationChunk, RequestOutput
from ernie_kernels.runner.collector import Collector
from ernie_kernels.runner.requests import NO_TOKENIZER, make_requests
from ernie_kernels.runner.sampling import SamplingParams

DEMO_FOLDER = Path(__file__).parent / "demo"


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

    def __init__(self, loaded: LoadedModel, options: LoadOptions) -> None:
        """Use :meth:`from_pretrained`, which checks the arguments."""
        self.config = loaded.config
        self.tokenizer = loaded.tokenizer
        self.device = options.device
        self.dtype = loaded.dtype
        self.weight_dtype = loaded.weight_dtype
        self.max_model_len = loaded.limits.max_model_len
        self.num_speculative_tokens = options.num_drafts
        self._limits = loaded.limits
        self._processor = loaded.processor
        self._media = loaded.media
        self._chat_prompts = loaded.chat_prompts
        self._engine = loaded.engine
        self._sizes = loaded.sizes

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
        allowed_local_media_path: str | os.PathLike[str] | None = None,
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
                tenths of what the weights, 256 MiB and the largest image leave of its free memory.
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
            allowed_local_media_path: which files of this machine prompts may name, by a path or a
                ``file://`` URL. None: all that this process may read. A folder: those in it, after
                symbolic links and ``..`` are followed. ``""``: none. Pass one of the latter two where
                messages come from others.

        Raises:
            ArgumentError, TypeError: an argument is out of range or of the wrong type.
            UnsupportedError: right, but not in this version or build.
            DeviceError: no such GPU, or a build that cannot use it.
            ConfigError, FormatError, WeightError: a file of the checkpoint cannot be used.
            CapacityError: ``kv_cache_memory`` cannot hold one sequence of ``max_model_len``.
            OutOfMemoryError: not enough memory.
        """
        folder = check_folder(path, DEMO_FOLDER)
        options = check_load_options(
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            batch_invariant=batch_invariant,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            kv_cache_memory=kv_cache_memory,
            num_threads=num_threads,
            speculative_config=speculative_config,
            mm_processor_kwargs=mm_processor_kwargs,
            allowed_local_media_path=allowed_local_media_path,
        )
        if num_threads is not None:
            _core.set_num_threads(num_threads)
        try:
            llm = cls(load_model(folder, options), options)
            log_loaded(llm, folder, options.quantization)
        except MemoryError as error:
            raise out_of_memory(error, "loading the model") from None
        return llm

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
            OutOfMemoryError: the logits, or what images take, do not fit in memory.
            DeviceError: as in :meth:`generate`.
        """
        self._check_open()
        check_one_of("position_rule", position_rule, POSITION_RULES)
        media = MediaArguments(
            self.config, self._processor, position_rule, pixel_values, image_grid_thw,
            pixel_values_videos, video_grid_thw, mm_token_type_ids, moe_mm_token_type_ids,
        )  # fmt: skip
        with reporting_memory("forward"):
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
        with reporting_memory("generate"):
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
                    {"type": "video_url", "video_url": {"url": "file:///folder/film.mp4"}}
                    {"type": "image", "image": url, path, bytes, Pillow image or uint8 [H, W, 3]}
                    {"type": "video", "video": url, path, bytes, or frames, "fps": of frames}

                A URL is ``data:`` or ``file://``, or stands for the path it is; those of the network
                are not fetched. Which files may be named ``allowed_local_media_path`` says, whatever
                the part.
            params: None: the defaults.
            stream: as in :meth:`generate`.
            enable_thinking: let the template open the model's reasoning, which is then told apart
                from the answer in ``reasoning``.
            tools: descriptions of tools, for templates that list them.
            chat_template_kwargs: further variables of the template.

        Returns:
            One :class:`~.outputs.RequestOutput`.

        Raises:
            InputError, LimitError, ArgumentError, TypeError: a message or parameter is wrong; nothing
                has run.
            ConfigError: no tokenizer, or the template cannot be used.
            NumericError, DeviceError, OutOfMemoryError: as in :meth:`generate`.
        """
        self._check_open()
        if self._chat_prompts is None:
            raise ConfigError(f"chat: {NO_TOKENIZER} to generate instead")
        check_one_of_type("stream", stream, bool)
        check_one_of_type("enable_thinking", enable_thinking, bool)
        with reporting_memory("chat"):
            request = self._chat_prompts.request(
                messages,
                params,
                enable_thinking=enable_thinking,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
            collector = Collector([request], has_text=True)
            if stream:
                return calls.stream(self._engine, [request], collector)
            return calls.finish(self._engine, [request], collector)[0]

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
            them that proved right), ``acceptance_rate`` (None before the first). Of images and
            videos, these counted by pairs of frames: ``encoded_images`` (by the vision tower),
            ``image_hits`` (whose features were kept of an earlier prompt, or are another's), and
            ``feature_bytes``, which are held now.
        """
        return {
            **self._sizes,
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
