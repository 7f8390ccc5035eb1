"""Visual items: equal to Hugging Face's patches, named by all that decides their features."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ernie_kernels.errors import ArgumentError, ConfigError, InputError
from ernie_kernels.vision import VisionProcessor, VisionSettings, preprocessor_files

from pictures import noise

pytest.importorskip("PIL")


def patches(pixels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """float32 [t*gh*gw, 588]: frame, block row, block column, row and column in the block."""
    frames, rows, columns = pixels.shape[0], pixels.shape[1] // 28, pixels.shape[2] // 28
    values = np.stack([levels[c][pixels[..., c]] for c in range(3)], axis=1)  # [t, 3, H, W]
    blocks = values.reshape(frames, 3, rows, 2, 14, columns, 2, 14)
    return blocks.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 588)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "size", [(1, 1), (30, 50), (200, 9), (9, 200), (333, 500), (640, 480), (57, 1000), (224, 224)]
)
def test_patches_equal_those_of_transformers(size):
    from PIL import Image
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeImageProcessorPil,
    )

    processor = VisionProcessor()
    image = Image.fromarray(noise(*size))
    item = processor.image(image)
    rows, columns = item.pixels.shape[1:3]
    one_call = image.resize((columns, rows), Image.Resampling.BICUBIC)
    # Newer releases of Pillow take the columns first where that is less work.
    may_differ = size[0] - rows > max(0, 2 * (size[1] - columns))
    assert may_differ or (np.asarray(one_call) == item.pixels[0]).all()
    given = Image.fromarray(item.pixels[0]) if may_differ else image
    expected = Ernie4_5_VLMoeImageProcessorPil()(images=[given], return_tensors="np")
    assert [list(item.grid_thw)] == expected["image_grid_thw"].tolist()
    np.testing.assert_array_equal(patches(item.pixels, processor.levels), expected["pixel_values"])


def test_levels_are_those_of_the_formula():
    levels = VisionSettings().levels()
    assert levels.shape == (3, 256)
    assert levels.dtype == np.float32
    exact = (np.arange(256) / 255 - 0.4578275) / 0.26130258
    np.testing.assert_allclose(levels[1], exact, rtol=0, atol=5e-7)


def test_an_image_is_an_item():
    item = VisionProcessor().image(noise(100, 130))
    assert (item.kind, item.grid_thw, item.num_tokens) == ("image", (1, 8, 10), 20)
    assert item.pixels.shape == (1, 112, 140, 3)
    assert item.pixels.flags.c_contiguous
    assert item.patches is None
    assert len(item.key) == 16


def test_patches_become_items():
    processor = VisionProcessor()
    values = np.random.default_rng(0).standard_normal((16 + 8, 588)).astype(np.float32)
    one, two = processor.from_patches("image", values, np.array([[1, 4, 4], [1, 2, 4]]))
    np.testing.assert_array_equal(one.patches, values[:16])
    np.testing.assert_array_equal(two.patches, values[16:])
    assert (one.num_tokens, two.num_tokens, one.pixels) == (4, 2, None)
    assert not np.shares_memory(one.patches, values)
    assert one.key != two.key
    assert processor.from_patches("image", values[:16], np.array([[1, 4, 4]]))[0].key == one.key
    assert processor.from_patches("image", values[:16], np.array([[1, 2, 8]]))[0].key != one.key
    (film,) = processor.from_patches("video", values, np.array([[2, 2, 6]]))
    assert film.num_tokens == 3
    assert processor.from_patches("image", values[:0], np.zeros((0, 3), np.int64)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_44_values_that_are_not_finite(value):
    values = np.zeros((24, 588), np.float32)
    values[17, 5] = values[20, 0] = value
    with pytest.raises(InputError, match=r"image 1: 2 values are not finite, the first in row 1$"):
        VisionProcessor().from_patches("image", values, np.array([[1, 4, 4], [1, 2, 4]]))


@pytest.mark.parametrize(
    ("shape", "dtype", "grid", "error", "words"),
    [
        ((16, 587), np.float32, [[1, 4, 4]], ArgumentError, r"expected float32 \[patches, 588\]"),
        ((16, 588), np.float64, [[1, 4, 4]], ArgumentError, "got float64"),
        ((16 * 588,), np.float32, [[1, 4, 4]], ArgumentError, r"\[9408\]"),
        ((16, 588), np.float32, [1, 4, 4], ArgumentError, r"expected integers \[n, 3\]"),
        ((16, 588), np.float32, [[1.0, 4, 4]], ArgumentError, "got float64"),
        ((16, 588), np.float32, [[1, 4, 6]], InputError, "names 24 patches, pixel_values holds 16"),
        ((15, 588), np.float32, [[1, 3, 5]], InputError, "even rows and columns"),
        ((16, 588), np.float32, [[4, 2, 2]], InputError, "expected 1 frame"),
        ((16, 588), np.float32, [[-1, -4, 4]], InputError, "even rows"),
        ((16, 588), np.float32, [[1, 2**40, 2]], InputError, "even rows"),
    ],
)
def test_row_43_patches_of_another_shape(shape, dtype, grid, error, words):
    with pytest.raises(error, match=words):
        VisionProcessor().from_patches("image", np.zeros(shape, dtype), np.array(grid))


# ------------------------------------------------------------------------------------------ settings


def folder_with(tmp_path, **files):
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def test_no_files_mean_the_defaults(tmp_path):
    assert VisionSettings.from_folder(tmp_path) == VisionSettings()


def test_files_of_transformers(tmp_path):
    image = {
        "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
        "size": {"shortest_edge": 784, "longest_edge": 78400},
        "image_mean": [0.5, 0.5, 0.25],
        "patch_size": 14,
        "resample": 3,
        "do_resize": True,
    }
    video = {
        "size": {"shortest_edge": 1568, "longest_edge": 15680, "height": None},
        "image_mean": [0.5, 0.5, 0.25],
        "do_sample_frames": True,
        "num_frames": None,
        "font": "Roboto-Regular.ttf",
        "fps": 1,
        "draw_on_frames": False,
    }
    video |= {"min_frames": 4, "max_frames": 8, "temporal_patch_size": 2}
    wanted = VisionSettings(
        image_min_pixels=784, image_max_pixels=78400, image_mean=(0.5, 0.5, 0.25),
        video_min_pixels=1568, video_max_pixels=15680, fps=1.0, draw_timestamps=False,
        min_frames=4, max_frames=8,
    )  # fmt: skip
    apart = tmp_path / "apart"
    nested = tmp_path / "nested"
    apart.mkdir()
    nested.mkdir()
    folder_with(apart, preprocessor_config=image, video_preprocessor_config=video)
    folder_with(nested, processor_config={"image_processor": image, "video_processor": video})
    assert VisionSettings.from_folder(apart) == VisionSettings.from_folder(nested) == wanted


def test_files_of_baidu_and_options(tmp_path):
    folder = folder_with(
        tmp_path, preprocessor_config={"min_pixels": 3136, "max_pixels": 99568, "merge_size": 2}
    )
    settings = VisionSettings.from_folder(folder, image_max_pixels=12845056, resize_rule="baidu")
    assert (settings.image_min_pixels, settings.image_max_pixels) == (3136, 12845056)
    assert settings.resize_rule == "baidu"
    assert VisionProcessor.from_folder(folder).settings.image_max_pixels == 99568


def test_the_file_of_images_is_that_of_frames_where_there_is_no_other(tmp_path):
    """As transformers has it; their size stays what Baidu's processor takes."""
    image = {"fps": 4, "min_frames": 2, "max_frames": 32, "draw_on_frames": False}
    image |= {"size": {"shortest_edge": 784, "longest_edge": 7840}, "image_std": [0.5, 0.5, 0.5]}
    settings = VisionSettings.from_folder(folder_with(tmp_path, preprocessor_config=image))
    assert settings == VisionSettings(
        image_min_pixels=784, image_max_pixels=7840, image_std=(0.5, 0.5, 0.5),
        fps=4.0, min_frames=2, max_frames=32, draw_timestamps=False,
    )  # fmt: skip
    video = {"image_std": [0.5, 0.5, 0.5], "fps": 1}
    folder_with(tmp_path, video_preprocessor_config=video)
    settings = VisionSettings.from_folder(tmp_path)
    assert (settings.fps, settings.max_frames, settings.draw_timestamps) == (1.0, 180, True)


def test_baidus_processor_goes_before_its_image_processor(tmp_path):
    processor = {
        "processor_class": "Ernie4_5_VLProcessor", "image_min_pixels": 3136, "image_max_pixels": 12845056,
        "video_min_pixels": 784, "video_max_pixels": 78400, "video_fps": 1, "video_min_frames": 4,
        "video_max_frames": 64, "video_target_frames": -1, "video_frames_sample": "leading",
        "spatial_conv_size": 2, "temporal_conv_size": 2,
    }  # fmt: skip
    folder_with(tmp_path, processor_config=processor, preprocessor_config={"max_pixels": 99568})
    assert VisionSettings.from_folder(tmp_path) == VisionSettings(
        image_min_pixels=3136, image_max_pixels=12845056, video_min_pixels=784,
        video_max_pixels=78400, fps=1.0, min_frames=4, max_frames=64,
    )  # fmt: skip


def test_options_decide_what_files_leave_open(tmp_path):
    image = {"size": {"longest_edge": 7840}, "max_pixels": 78400, "image_mean": [0.5, 0.5, 0.5]}
    folder_with(tmp_path, preprocessor_config=image, video_preprocessor_config={"fps": 1})
    options = {"image_max_pixels": 784000, "image_mean": (0.25, 0.25, 0.25)}
    wanted = VisionSettings(fps=1.0, **options)
    assert VisionSettings.from_folder(tmp_path, **options) == wanted


@pytest.mark.oracle
def test_every_key_that_transformers_heeds_is_read_refused_or_known_to_do_nothing():
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeImageProcessorKwargs,
    )
    from transformers.processing_utils import VideosKwargs

    heeded = {
        *Ernie4_5_VLMoeImageProcessorKwargs.__annotations__,
        *VideosKwargs.__annotations__,
        # Those of its video processor alone, which cannot be imported without torchvision.
        *("min_frames", "max_frames", "draw_on_frames", "font"),
    }
    assert {"do_resize", "num_frames", "draw_on_frames", "image_seq_length"} <= heeded
    assert heeded - preprocessor_files.OF_SECTIONS == set()


@pytest.mark.oracle
def test_keys_that_are_said_to_do_nothing_do_nothing_in_transformers():
    from PIL import Image
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeImageProcessorPil,
    )

    image = Image.fromarray(noise(100, 120))
    changes = {
        "do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "do_pad": True,
        "pad_size": {"height": 280, "width": 280}, "image_seq_length": 3, "default_to_square": True,
        "font": "other.ttf", "min_pixels": 784, "max_pixels": 1568,
    }  # fmt: skip
    plain = Ernie4_5_VLMoeImageProcessorPil()(images=[image], return_tensors="np")
    changed = Ernie4_5_VLMoeImageProcessorPil(**changes)(images=[image], return_tensors="np")
    np.testing.assert_array_equal(plain["pixel_values"], changed["pixel_values"])


def test_unknown_keys_are_told_once(tmp_path, caplog):
    folder = folder_with(tmp_path, preprocessor_config={"surprise": 1, "patch_size": 14})
    VisionSettings.from_folder(folder)
    (record,) = caplog.records
    assert "'surprise'" in record.getMessage()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patch_size": 16}, "patch_size: expected 14, got 16"),
        ({"patch_size": True}, "patch_size"),
        ({"merge_size": 1}, "merge_size: expected 2"),
        ({"resample": 2}, "resample: expected 3"),
        ({"do_resize": False}, "do_resize: expected true, got false"),
        ({"do_resize": 1}, "do_resize"),
        ({"temporal_patch_size": 3}, "temporal_patch_size: expected 1 or 2"),
        ({"size": [1, 2]}, "size: expected an object"),
        ({"size": {"shortest_edge": "a"}}, "size: shortest_edge: expected a number of pixels"),
        ({"min_pixels": -5}, "image_min_pixels, image_max_pixels"),
        ({"max_pixels": 1}, "image_min_pixels, image_max_pixels"),
        ({"image_mean": [1, 2]}, "image_mean: expected three finite numbers"),
        ({"image_mean": [1, 2, float("nan")]}, "image_mean"),
        ({"image_mean": [1e39, 0, 0]}, "image_mean: expected three numbers below 1e\\+06 in size"),
        ({"image_std": [1, 0, 1]}, "image_std, rescale_factor"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"do_rescale": False}, "do_rescale: expected true, got false"),
        ({"do_normalize": False}, "do_normalize: expected true"),
        ({"do_convert_rgb": False}, "do_convert_rgb: expected true"),
        ({"do_sample_frames": False}, "do_sample_frames: expected true"),
        ({"num_frames": 8}, "num_frames: expected null"),
        ({"spatial_conv_size": 4}, "spatial_conv_size: expected 2"),
        ({"temporal_conv_size": 1}, "temporal_conv_size: expected 2"),
        ({"size": 0}, "size: expected an object"),
        ({"size": {"height": 224, "width": 224}}, "size: expected shortest_edge and longest_edge"),
        ({"size": {"shortest_edge": 0}}, "image_min_pixels, image_max_pixels"),
        ({"min_pixels": 0}, "image_min_pixels, image_max_pixels"),
        (
            {"size": {"max_pixels": 7840}, "max_pixels": 784},
            "size: max_pixels and max_pixels differ",
        ),
        ({"size": {"shortest_edge": 784, "min_pixels": 1568}}, "and size: min_pixels differ; make"),
        ({"draw_on_frames": 1}, "draw_on_frames: expected true or false"),
        ({"fps": -1}, "fps: expected a finite number > 0"),
        ({"max_frames": 2.0}, "max_frames: expected an integer"),
    ],
)
def test_values_that_no_code_is_for(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        VisionSettings.from_folder(folder_with(tmp_path, preprocessor_config=values))


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean: expected that of images"),
        ({"image_std": [0.5, 0.5, 0.5]}, "image_std: expected that of images"),
        ({"rescale_factor": 0.5}, "rescale_factor: expected that of images"),
        ({"temporal_patch_size": 1}, "temporal_patch_size: expected 2"),
        ({"do_resize": False}, "do_resize: expected true"),
        ({"do_sample_frames": False}, "do_sample_frames: expected true"),
        ({"num_frames": 8}, "num_frames: expected null"),
        (
            {"min_pixels": 784, "size": {"shortest_edge": 1568}},
            "size: shortest_edge and min_pixels differ; make them one, or pass video_min_pixels",
        ),
    ],
)
def test_values_of_videos_that_no_code_is_for(tmp_path, video, words):
    with pytest.raises(ConfigError, match=r"^video_preprocessor_config.json: " + words) as caught:
        VisionSettings.from_folder(folder_with(tmp_path, video_preprocessor_config=video))
    assert len(str(caught.value)) <= 512
    folder_with(tmp_path, video_preprocessor_config={}, processor_config={"video_processor": video})
    with pytest.raises(ConfigError, match=r"^processor_config.json: video_processor: " + words):
        VisionSettings.from_folder(tmp_path)


def test_means_of_images_are_not_taken_for_frames_that_say_nothing(tmp_path):
    image = {"image_mean": [0.5, 0.5, 0.5]}
    folder_with(tmp_path, preprocessor_config=image, video_preprocessor_config={"fps": 2})
    with pytest.raises(ConfigError, match="image_mean: expected that of images"):
        VisionSettings.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_processor": [1]}, "image_processor: expected an object"),
        ({"video_processor": ""}, "video_processor: expected an object"),
        ({"video_target_frames": 8}, "video_target_frames: expected -1"),
        ({"video_frames_sample": "middle"}, "video_frames_sample: expected leading"),
        ({"video_fps": 0}, "video_fps"),
        ({"image_max_pixels": "a"}, "image_max_pixels: expected an integer"),
    ],
)
def test_values_of_processors_that_no_code_is_for(tmp_path, values, words):
    with pytest.raises(ConfigError, match=r"^processor_config.json: " + words):
        VisionSettings.from_folder(folder_with(tmp_path, processor_config=values))


@pytest.mark.parametrize(
    "options",
    [
        {"resize_rule": "other"},
        {"frame_rule": 5},
        {"fps": 0},
        {"fps": float("nan")},
        {"min_frames": 0},
        {"max_frames": 15},
        {"draw_timestamps": 1},
        {"image_mean": [1, 1]},
        {"image_max_pixels": 1 << 40},
        {"nonsense": 1},
    ],
)
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(ArgumentError, match=r"^VisionSettings: "):
        VisionSettings.from_folder(tmp_path, **options)
