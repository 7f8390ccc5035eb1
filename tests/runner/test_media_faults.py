"""What goes wrong in the vision tower: whose call ends, and what is left."""

from __future__ import annotations

import gc
import random
import weakref

import numpy as np
import pytest
from test_interrupts import Interrupter
from test_media_generation import (
    CONFIG,
    FILM,
    IMAGE,
    PICTURES,
    PROMPTS,
    VIDEO,
    load,
    prompt_of,
    text,
)

import ernie_kernels as ek
from ernie_kernels.media_prompts import place_function
from ernie_kernels.models.media_positions import BANK_RULES
from ernie_kernels.runner.requests import Request, make_requests
from vl_checkpoint import write_vl_checkpoint

PARAMS = ek.SamplingParams(max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vl")
    write_vl_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def expected(folder):
    with load(folder) as llm:
        return [run(llm, index) for index in range(3)]


def run(llm, index: int) -> list[int]:
    ids, media = PROMPTS[index]
    (output,) = llm.generate(prompt_token_ids=[ids], multi_modal_data=[media], params=PARAMS)
    return output.outputs[0].token_ids


def request_of(llm, index: int) -> Request:
    ids, media = PROMPTS[index]
    place = place_function(llm._media, None, [ids], [media])
    (request,) = make_requests(None, [ids], PARAMS, None, llm._limits, place)
    return request


def forget_blocks(llm) -> None:
    llm._engine._block_manager._hashes = [None] * llm.stats()["num_blocks"]
    llm._engine._block_manager.rebuild([])
    llm._engine._features.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ek.OutOfMemoryError])
def test_an_error_in_the_tower_leaves_the_engine_usable(folder, expected, monkeypatch, error):
    with load(folder) as llm:
        visual = llm.model.visual
        slices = visual.resampler.slices
        for failing in (1, 2, 3):
            calls = iter(range(1, 100))

            def fail(*arguments, calls=calls, failing=failing, **named):
                if next(calls) == failing:
                    raise error("here")
                return slices(*arguments, **named)

            llm._engine._scheduler._max_tokens_per_step = 20  # the pictures in steps of their own
            monkeypatch.setattr(visual.resampler, "slices", fail)
            with pytest.raises(error, match="here"):
                run(llm, 0)
            monkeypatch.setattr(visual.resampler, "slices", slices)
            llm._engine.check()
            assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
            assert [run(llm, index) for index in range(3)] == expected
            forget_blocks(llm)


def test_only_the_call_whose_picture_fails_ends(folder, expected, monkeypatch):
    with load(folder) as llm:
        encode = llm.model.visual_slices

        def fail(items):
            if any(item.key == bad.items[0].key for item in items):
                raise ek.OutOfMemoryError("too large")
            return encode(items)

        monkeypatch.setattr(llm.model, "visual_slices", fail)
        requests = [request_of(llm, index) for index in (0, 1, 2)]
        bad = requests[2].media
        tickets = [llm._engine.add_requests([request]) for request in requests]
        with pytest.raises(ek.OutOfMemoryError, match="too large"):
            for _ in llm._engine.outputs(tickets[2]):
                pass
        for index in (0, 1):
            tokens = [p.token_id for taken in llm._engine.outputs(tickets[index]) for _, p in taken]
            assert tokens == expected[index]
        llm._engine.check()


def test_interrupts_anywhere(folder, expected):
    with load(folder) as llm:
        with Interrupter(at=0) as tracer:
            assert run(llm, 0) == expected[0]
        chooser = random.Random(3)
        for _ in range(8):
            forget_blocks(llm)
            with pytest.raises(KeyboardInterrupt), Interrupter(chooser.randint(1, tracer.count)):
                run(llm, 0)
            assert [run(llm, index) for index in range(2)] == expected[:2]
            llm._engine.check()


def test_nothing_is_left_of_what_ended(folder):
    with load(folder) as llm:
        for index in (0, 4):
            run(llm, index)
        store = llm._engine._features
        store.clear()
        gc.collect()
        assert len(store._held) == 0
        ids, media = PROMPTS[0]
        stream = llm.generate(
            prompt_token_ids=[ids], multi_modal_data=[media], params=PARAMS, stream=True
        )
        next(stream)
        del stream  # given up
        llm._engine.step()
        store.clear()
        gc.collect()
        assert len(store._held) == 0
        llm._engine.check()


def test_who_keeps_an_answer_keeps_no_pictures(folder):
    with load(folder) as llm:
        ticket = llm._engine.add_requests([request_of(llm, 0)])
        (sequence,) = llm._engine._arrived[0].sequences
        media = weakref.ref(sequence.media)
        taken = list(llm._engine.outputs(ticket))
        gc.collect()
        assert {each for each, _ in taken[-1]} == {sequence}
        assert media() is None


def test_same_placeholders_with_other_pictures_share_nothing_of_them(folder):
    """The block with the picture's first tokens is the first that is not found."""
    ids = prompt_of(*text(0, 33), IMAGE, *text(1, 60))
    with load(folder) as llm:

        def num_found(media):
            before = llm.stats()["prefix_hit_tokens"]
            llm.generate(prompt_token_ids=[ids], multi_modal_data=media, params=PARAMS)
            return llm.stats()["prefix_hit_tokens"] - before

        assert num_found({"image": PICTURES[0]}) == 0
        assert num_found({"image": PICTURES[0]}) == (len(ids) + 11 - 1) // 32 * 32
        assert num_found({"image": PICTURES[0][::-1]}) == 32
        # Text alone that begins alike shares what is before the picture.
        before = llm.stats()["prefix_hit_tokens"]
        llm.generate(prompt_token_ids=[[*ids[:33], 7]], params=PARAMS)
        assert llm.stats()["prefix_hit_tokens"] - before == 32


@pytest.mark.parametrize("rule", BANK_RULES)
def test_banks_of_generated_tokens(folder, rule):
    """Ids from the image placeholder on: of text by their role, of vision by their number."""
    late = CONFIG["video_end_token_id"] + 2
    ids = [5, 6, late, 7]
    with load(folder, mm_processor_kwargs={"bank_rule": rule}) as llm:
        seen = []
        moe_route = ek.ops.moe_route

        def spy(*arguments, banks=None, **named):
            seen.append(None if banks is None else banks.numpy().tolist())
            return moe_route(*arguments, banks=banks, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ek.ops, "moe_route", spy)
            llm.generate(prompt_token_ids=[ids], params=PARAMS)
        first = seen[0]
    assert first == ([0, 0, 1, 0] if rule == "fastdeploy" else None)


def test_position_rules_of_generation(folder):
    ids = prompt_of(VIDEO, *text(1, 4))
    media = {"video": np.repeat(FILM[:, :, :28], 4, axis=0)}
    logits = {}
    for rule in ("baidu", "transformers"):
        with load(folder, mm_processor_kwargs={"position_rule": rule}) as llm:
            params = ek.SamplingParams(max_tokens=2, logprobs=1, ignore_eos=True)
            (output,) = llm.generate(prompt_token_ids=[ids], multi_modal_data=media, params=params)
            logits[rule] = [
                max(p.values(), key=lambda e: e.logprob).logprob for p in output.outputs[0].logprobs
            ]
    assert logits["baidu"] != logits["transformers"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"position_rule": "other"}, ek.ArgumentError, "mm_processor_kwargs: position_rule"),
        ({"bank_rule": "other"}, ek.ArgumentError, "mm_processor_kwargs: bank_rule"),
        ({"nothing": 1}, ek.ArgumentError, "no option 'nothing'"),
        ([1], TypeError, "mm_processor_kwargs: expected a dict"),
    ],
)
def test_options_are_checked(folder, options, error, match):
    with pytest.raises(error, match=match):
        ek.LLM.from_pretrained(folder, device="cpu", mm_processor_kwargs=options)
