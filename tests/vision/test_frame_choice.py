"""Which frames are kept, what is written on them, and that it can be read."""

from __future__ import annotations

import numpy as np
import pytest

from ernie_kernels.vision.frame_choice import FRAME_RULES, chosen_frames
from ernie_kernels.vision.timestamp import draw_timestamp, timestamp_text


def test_baidus_rule_rounds_half_to_even():
    assert chosen_frames(300, 25).tolist()[:4] == [0, 12, 25, 38]  # 12.5 down, 37.5 up
    assert len(chosen_frames(300, 25)) == 24
    assert chosen_frames(300, 30).tolist() == list(range(0, 300, 15))


def test_transformers_rule_rounds_down():
    kept = chosen_frames(300, 25, rule="transformers")
    assert kept.tolist()[:4] == [0, 12, 25, 37]
    every = chosen_frames(100, 25, rule="transformers", fps=None)
    assert every.tolist() == list(range(100))


@pytest.mark.parametrize("rule", ["baidu", "transformers"])
def test_outside_the_limits(rule):
    few = chosen_frames(60, 30, rule=rule)  # two seconds
    assert few.tolist() == [int(n * 60 / 16) for n in range(16)]
    many = chosen_frames(30000, 30, rule=rule)  # a thousand seconds
    assert many.tolist() == [int(n * 30000 / 180) for n in range(180)]
    assert chosen_frames(5, 30, rule=rule).tolist() == [0, 1, 2, 3, 4]
    assert chosen_frames(1, 24, rule=rule).tolist() == [0]


@pytest.mark.parametrize("rule", ["baidu", "transformers"])
def test_indices_are_ascending_and_there(rng, rule):
    for _ in range(500):
        num_frames = int(10 ** rng.uniform(0, 6))
        rate = float(10 ** rng.uniform(-3, 5))
        fps = None if rng.random() < 0.2 else float(10 ** rng.uniform(-3, 3))
        kept = chosen_frames(num_frames, rate, rule=rule, fps=fps)
        assert 1 <= len(kept) <= 180
        assert kept[0] == 0
        assert kept[-1] < num_frames
        assert (np.diff(kept) >= 0).all()


@pytest.mark.oracle
def test_indices_equal_those_of_transformers(rng):
    """The reference in its own words: its class needs torchvision, its formula only torch."""
    import torch

    for _ in range(400):
        num_frames = int(10 ** rng.uniform(0, 4.5))
        rate = float(rng.choice([10, 12.5, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60]))
        fps = None if rng.random() < 0.3 else float(rng.choice([0.5, 1, 2, 3, 4]))
        count = num_frames / rate * fps if fps is not None else num_frames
        count = min(max(count, 16), 180, num_frames)
        expected = torch.arange(0, num_frames, num_frames / count).int().numpy()
        kept = chosen_frames(num_frames, rate, rule="transformers", fps=fps)
        # At times its last number is num_frames: a frame that no video has.
        np.testing.assert_array_equal(kept, expected[expected < num_frames])


def test_times_as_text():
    assert timestamp_text(0) == "time: 00:00:00.00"
    assert timestamp_text(59.999) == "time: 00:00:60.00"
    assert timestamp_text(61.5) == "time: 00:01:01.50"
    assert timestamp_text(3 * 3600 + 2 * 60 + 1.25) == "time: 03:02:01.25"
    assert timestamp_text(100 * 3600) == "time: 100:00:00.00"


def test_the_time_is_at_the_top_left_and_nowhere_else():
    pytest.importorskip("PIL")
    grey = np.full((300, 500, 3), 128, np.uint8)
    stamped = draw_timestamp(grey, 12.5)
    changed = np.argwhere((stamped != grey).any(axis=2))
    assert (grey == 128).all()
    assert changed[:, 0].max() < 50
    assert changed[:, 1].min() < 10
    assert 150 < changed[:, 1].max() < 350
    assert (stamped == 0).all(axis=2).any()
    assert (stamped == 255).all(axis=2).any()
    assert (draw_timestamp(grey, 13.5) != stamped).any()
    np.testing.assert_array_equal(draw_timestamp(grey, 12.5), stamped)


def test_small_frames_have_no_room():
    pytest.importorskip("PIL")
    tiny = np.zeros((9, 500, 3), np.uint8)
    assert draw_timestamp(tiny, 1) is tiny
    assert draw_timestamp(np.zeros((10, 10, 3), np.uint8), 1).shape == (10, 10, 3)


@pytest.mark.parametrize("rule", FRAME_RULES)
def test_frames_without_end_are_not_listed(rule):
    """Arrays of any length cost nothing to make."""
    for fps in (None, 2.0):
        indices = chosen_frames(1 << 50, 24.0, rule=rule, fps=fps)
        assert len(indices) == 180
        assert indices[-1] < 1 << 50
