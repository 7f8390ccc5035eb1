"""A large picture goes through the vision tower slice by slice: others go on, and who gives up is heard."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from test_media_generation import (
    IMAGE,
    PICTURES,
    PROMPTS,
    load,
    picture,
    prompt_of,
    text,
)

import ernie_kernels as ek
from ernie_kernels.models.slices import slices_of
from ernie_kernels.runner.media import parts_of
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.requests import make_requests
from media_prompt import visual_item
from vl_checkpoint import write_vl_checkpoint

# Of the tiny tower: a few rows, or one head of a picture of 140 x 140.
FEW_PRODUCTS = 40_000
PARAMS = ek.SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vl")
    write_vl_checkpoint(path)
    return path


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(
        "ernie_kernels.models.ernie_vl.products_per_slice", lambda device: FEW_PRODUCTS
    )


def request_of(llm: ek.LLM, ids: list[int], media=None, params=PARAMS):
    place = ek.llm.place_function(llm._media, None, [ids], [media])
    (request,) = make_requests(None, [ids], params, None, llm._limits, place)
    return request


def tokens_of(llm: ek.LLM, ids: list[int], media=None) -> list[int]:
    (output,) = llm.generate(prompt_token_ids=[ids], multi_modal_data=[media], params=PARAMS)
    return output.outputs[0].token_ids


LARGE = {"image": picture(7, 196, 196)}  # 196 patches
WITH_LARGE = prompt_of(*text(8, 5), IMAGE, *text(9, 3))
OTHER = text(10, 20)


class Slices:
    """Counts the slices that an engine does, and acts behind one of them."""

    def __init__(self, llm: ek.LLM, monkeypatch, *, at: int = 0, act=lambda: None) -> None:
        self.count = 0
        self.largest = 0
        original = llm.model.visual_slices

        def counted(items):
            work = original(items)
            while True:
                try:
                    products = next(work)
                except StopIteration as end:
                    return end.value
                self.count += 1
                self.largest = max(self.largest, products)
                if self.count == at:
                    act()
                yield products

        monkeypatch.setattr(llm.model, "visual_slices", counted)


@pytest.mark.parametrize(
    ("count", "of_one", "products", "sizes"),
    [
        (10, 5, 20, [4, 4, 2]),
        (10, 5, 4, [1] * 10),
        (10, 5, 50, [10]),
        (9, 5, 40, [5, 4]),
        (0, 5, 40, []),
    ],
)
def test_slices_are_of_about_equal_size(count, of_one, products, sizes):
    found = list(slices_of(count, of_one, products))
    assert [s.stop - s.start for s in found] == sizes
    assert [s.start for s in found] == np.cumsum([0, *sizes])[:-1].tolist()[: len(found)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["28b", "real_heads"])
def test_bits_do_not_depend_on_the_slices(tmp_path, rng, monkeypatch, dtype, shape):
    write_vl_checkpoint(tmp_path, dtype=dtype, shape=shape)
    items = [
        visual_item(rng, "image", (1, 8, 6)),
        visual_item(rng, "video", (4, 6, 4)),
        visual_item(rng, "image", (1, 2, 10)),
    ]
    with load(tmp_path) as llm:
        whole = llm.model.visual_features(items).numpy()
        parts = [part.item for part in parts_of(items)]
        assert np.array_equal(llm.model.visual_features(parts).numpy(), whole)
        numbers = []
        for products, mlp_rows in ((1, 1024), (400_000, 5), (1 << 40, 7)):
            monkeypatch.setattr("ernie_kernels.models.vision_tower.MLP_ROWS", mlp_rows)
            monkeypatch.setattr(
                "ernie_kernels.models.ernie_vl.products_per_slice", lambda _, p=products: p
            )
            assert np.array_equal(llm.model.visual_features(items).numpy(), whole)
            numbers.append(sum(1 for _ in llm.model.visual_slices(items)))
    assert numbers[0] > numbers[1] > numbers[2]


def test_no_slice_is_larger_than_a_row_or_a_head(folder, monkeypatch, small_slices):
    with load(folder) as llm:
        seen = Slices(llm, monkeypatch)
        tokens_of(llm, WITH_LARGE, LARGE)
        head = 2 * 196**2 * 16
        assert head > FEW_PRODUCTS
        assert seen.largest == head
        assert seen.count > 100


def test_others_generate_while_a_large_image_is_encoded(folder, monkeypatch, small_slices):
    with load(folder) as llm:
        expected = [tokens_of(llm, OTHER), tokens_of(llm, WITH_LARGE, LARGE)]
    with load(folder) as llm:
        seen = Slices(llm, monkeypatch)
        engine = llm._engine
        engine._runner.products_per_step = 20 * FEW_PRODUCTS
        first = engine.add_request(request_of(llm, OTHER))
        engine.step()
        large = engine.add_request(request_of(llm, WITH_LARGE, LARGE))
        before = []
        (mine,), (theirs,) = (ticket._call.sequences for ticket in (large, first))
        while not mine.progress:
            num_slices, num_tokens = seen.count, theirs.num_output_tokens
            engine.step()
            engine.check()
            assert seen.count - num_slices <= 60  # such as have fewer products among them
            if num_tokens < PARAMS.max_tokens:
                before.append(theirs.num_output_tokens - num_tokens)
        assert seen.count > 100
        assert before == [1] * (PARAMS.max_tokens - 1)
        while engine.has_unfinished:
            engine.step()
        assert [theirs.output_token_ids, mine.output_token_ids] == expected


def test_text_that_comes_with_a_large_image_is_read_in_the_same_step(
    folder, monkeypatch, small_slices
):
    with load(folder) as llm:
        engine = llm._engine
        engine._runner.products_per_step = 1
        large = engine.add_request(request_of(llm, WITH_LARGE, LARGE))
        late = engine.add_request(request_of(llm, OTHER))
        engine.step()
        engine.check()
        assert late._call.sequences[0].num_output_tokens == 1
        assert large._call.sequences[0].num_blocks > 0


def test_later_text_is_read_while_a_large_image_is_encoded(folder, monkeypatch, small_slices):
    with load(folder) as llm:
        engine = llm._engine
        engine._runner.products_per_step = 1
        seen = Slices(llm, monkeypatch)
        large = engine.add_request(request_of(llm, WITH_LARGE, LARGE))
        engine.step()
        late = engine.add_request(request_of(llm, OTHER))
        for _ in engine.outputs(late):
            engine.check()
        assert 0 < seen.count < 20
        assert not large._call.sequences[0].progress


@pytest.mark.parametrize("how", ["abort", "close", "forget", "another comes"])
def test_who_gives_up_waits_for_one_slice(folder, monkeypatch, small_slices, how):
    with load(folder) as llm:
        expected = tokens_of(llm, WITH_LARGE, LARGE)
    with load(folder) as llm:
        engine = llm._engine
        tickets = [engine.add_request(request_of(llm, WITH_LARGE, LARGE))]

        def act() -> None:
            if how == "abort":
                engine.abort(tickets[0].request_ids[0])
            elif how == "close":
                tickets[0].close()
            elif how == "forget":
                tickets.clear()
            else:
                tickets.append(engine.add_request(request_of(llm, OTHER)))

        seen = Slices(llm, monkeypatch, at=7, act=act)
        engine.step()
        assert seen.count == 7
        if how == "another comes":
            engine.step()
            assert tickets[1]._call.sequences[0].num_output_tokens == 1
            return
        assert not engine.has_unfinished
        engine.check()
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
        gc.collect()
        assert len(engine._features._jobs) == 0
        assert llm.stats()["feature_bytes"] == 0
        assert tokens_of(llm, WITH_LARGE, LARGE) == expected


def test_an_interrupt_between_slices(folder, monkeypatch, small_slices):
    """Python hears of Ctrl-C between two calls: one of them is a slice or less. Others lose nothing."""
    with load(folder) as llm:
        expected = [tokens_of(llm, OTHER), tokens_of(llm, WITH_LARGE, LARGE)]
    with load(folder) as llm:
        engine = llm._engine
        other = engine.add_request(request_of(llm, OTHER))
        engine.step()

        def interrupt() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            seen = Slices(llm, patch, at=9, act=interrupt)
            with pytest.raises(KeyboardInterrupt):
                tokens_of(llm, WITH_LARGE, LARGE)
            assert seen.count == 9
        for _ in engine.outputs(other):
            engine.check()
        assert other._call.sequences[0].output_token_ids == expected[0]
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
        assert tokens_of(llm, WITH_LARGE, LARGE) == expected[1]


def test_work_for_who_has_gone_is_given_up(folder, monkeypatch, small_slices):
    """Though an error that somebody keeps, as a notebook does, still refers to the prompt."""
    small = {"image": picture(8, 56, 56)}
    with load(folder) as llm:
        expected = [tokens_of(llm, OTHER), tokens_of(llm, WITH_LARGE, small)]
    with load(folder) as llm:
        llm._engine._runner.products_per_step = 20 * FEW_PRODUCTS
        run = ModelRunner.run

        def interrupted(self, spans):
            if llm._engine._features._jobs:
                raise KeyboardInterrupt
            return run(self, spans)

        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", interrupted)
            with pytest.raises(KeyboardInterrupt) as kept:
                llm.generate(
                    prompt_token_ids=[OTHER, WITH_LARGE],
                    multi_modal_data=[None, LARGE],
                    params=PARAMS,
                )
        asked = []
        encode = llm.model.visual_slices
        monkeypatch.setattr(
            llm.model, "visual_slices", lambda items: asked.append(len(items)) or encode(items)
        )
        assert tokens_of(llm, OTHER) == expected[0]
        assert not llm._engine._features._jobs
        assert tokens_of(llm, WITH_LARGE, small) == expected[1]
        assert asked == [1]
        assert kept.value is not None


def test_one_whose_picture_is_encoded_keeps_its_place_when_another_is_interrupted(
    folder, monkeypatch, small_slices
):
    """Who came later and runs is not read again."""
    with load(folder) as llm:
        expected = tokens_of(llm, OTHER)
        engine = llm._engine
        engine._runner.products_per_step = 1
        large = engine.add_request(request_of(llm, prompt_of(IMAGE, *text(9, 3)), LARGE))
        late = engine.add_request(request_of(llm, OTHER))
        for _ in range(4):
            engine.step()
        before = llm.stats()

        def interrupt(*_) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine._scheduler, "advance", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        engine.check()
        after = llm.stats()
        assert (after["running"], after["waiting"]) == (2, 0)
        for _ in engine.outputs(late):
            engine.check()
        assert late._call.sequences[0].output_token_ids == expected
        assert llm.stats()["prompt_tokens"] == before["prompt_tokens"]
        assert not large._call.sequences[0].progress


def test_one_that_loses_its_place_does_not_lose_the_work(folder, monkeypatch, small_slices):
    """An older sequence takes its blocks in the middle of the tower."""
    with load(folder) as llm:
        expected = [tokens_of(llm, OTHER), tokens_of(llm, WITH_LARGE, LARGE)]
        per_block = llm.stats()["kv_cache_bytes"] // llm.stats()["num_blocks"]
    with load(folder, max_model_len=96, kv_cache_memory=4 * per_block) as llm:
        engine = llm._engine
        engine._runner.products_per_step = 1
        seen = Slices(llm, monkeypatch)
        first = engine.add_request(request_of(llm, OTHER, params=ek.SamplingParams(max_tokens=50, ignore_eos=True)))  # fmt: skip
        engine.step()
        large = engine.add_request(request_of(llm, WITH_LARGE, LARGE))
        while engine.has_unfinished:
            engine.step()
            engine.check()
        assert llm.stats()["preemptions"] > 0
        assert first._call.sequences[0].output_token_ids[: PARAMS.max_tokens] == expected[0]
        assert large._call.sequences[0].output_token_ids == expected[1]
        once = seen.count
        engine._features.clear()
        seen.count = 0
        list(llm.model.visual_slices(request_of(llm, WITH_LARGE, LARGE).media.items))
        assert once == seen.count
        assert llm.stats()["encoded_images"] == 1


def test_features_that_wait_to_be_read_are_bounded(folder, monkeypatch):
    """Behind prompts that hold many already the tower waits until some are read."""
    with load(folder) as llm:
        engine = llm._engine
        store = engine._features
        store._max_bytes = 1
        engine._scheduler._max_tokens_per_step = 8
        requests = [
            request_of(llm, WITH_LARGE, {"image": picture(seed, 84, 112)}) for seed in range(4)
        ]
        ticket = engine.add_requests(requests)
        most = 0
        while engine.has_unfinished:
            engine.step()
            engine.check()
            gc.collect()
            most = max(most, len(store._held))
        assert store.num_encoded == 4
        assert most <= 2
        assert {s.num_output_tokens for s in ticket._call.sequences} == {PARAMS.max_tokens}


def test_hits_are_counted(folder):
    ids = prompt_of(*text(0, 9), IMAGE, *text(1, 4))
    with load(folder) as llm:
        assert llm.stats()["encoded_images"] == llm.stats()["image_hits"] == 0
        tokens_of(llm, ids, {"image": PICTURES[0]})
        assert (llm.stats()["encoded_images"], llm.stats()["image_hits"]) == (1, 0)
        rows = 12 * 64 * 4
        assert rows < llm.stats()["feature_bytes"] < rows + 2000
        tokens_of(llm, [7, *ids], {"image": PICTURES[0]})
        assert (llm.stats()["encoded_images"], llm.stats()["image_hits"]) == (1, 1)
        tokens_of(llm, PROMPTS[3][0])
        assert llm.stats()["encoded_images"] == 1


def test_pictures_of_an_answer_go_with_its_end(folder):
    """While others of its call go on."""
    with load(folder) as llm:
        once = ek.SamplingParams(max_tokens=1, ignore_eos=True)
        requests = [request_of(llm, WITH_LARGE, LARGE, once), request_of(llm, OTHER)]
        ticket = llm._engine.add_requests(requests)
        first, second = ticket._call.sequences
        shown = weakref.ref(first.media)
        while not first.is_finished:
            llm._engine.step()
        assert not second.is_finished
        gc.collect()
        assert shown() is None
