"""Files that a request names: which are read, which are not, and that none holds the caller."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.vision import VisionLimits, VisionProcessor, VisionSettings, local_files

from pictures import encoded, gif, noise

pytest.importorskip("PIL.Image")

PICTURE = noise(28, 28)


@pytest.fixture
def places(tmp_path):
    """A folder that may be read, with a picture and a film; beside it one that may not."""
    for name in ("open", "secret"):
        (tmp_path / name / "deep er").mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(encoded(PICTURE))
        (tmp_path / name / "deep er" / "b#%.png").write_bytes(encoded(PICTURE))
        (tmp_path / name / "c.gif").write_bytes(gif(2))
    (tmp_path / "openly").mkdir()
    (tmp_path / "openly" / "a.png").write_bytes(encoded(PICTURE))
    return tmp_path


def processor(folder=None, **limits) -> VisionProcessor:
    settings = VisionSettings(image_min_pixels=784, video_min_pixels=784, draw_timestamps=False)
    return VisionProcessor(settings, VisionLimits(allowed_local_media_path=folder, **limits))


def pixels(source, folder=None) -> np.ndarray:
    return processor(folder).image(source).pixels[0]


def url(path: Path) -> str:
    return path.as_uri()


def test_paths_and_file_urls_are_the_same(places):
    sources = [
        places / "open" / "a.png",
        str(places / "open" / "a.png"),
        url(places / "open" / "a.png"),
        "FILE://localhost" + str(places / "open" / "a.png"),
        str(places / "open" / "deep er" / "b#%.png"),
        url(places / "open" / "deep er" / "b#%.png"),
        f"file://{places}/open/deep%20er/b%23%25.png",
        f"file://{places}/open/deep er/%2e%2e/a.png",
    ]
    for folder in (None, places / "open", str(places / "open")):
        for source in sources:
            np.testing.assert_array_equal(pixels(source, folder), PICTURE)
        for source in (places / "open" / "c.gif", url(places / "open" / "c.gif")):
            assert processor(folder).video(source).grid_thw[0] == 2
        assert processor(folder).video([sources[0], sources[2]]).grid_thw[0] == 2


def test_a_relative_path_is_one_of_the_working_folder(places, monkeypatch):
    monkeypatch.chdir(places / "open")
    np.testing.assert_array_equal(pixels("a.png", places / "open"), PICTURE)
    monkeypatch.chdir(places / "secret")
    with pytest.raises(InputError, match=r"'a\.png' is not in the folder"):
        pixels("a.png", places / "open")


@pytest.mark.parametrize(
    "name",
    [
        "secret/a.png",
        "secret/missing.png",  # says no more than of one that is there
        "openly/a.png",  # begins alike
        "open/../secret/a.png",
        "open/deep er/../../secret/a.png",
        "open/missing/../../secret/a.png",
        "open/link/a.png",
        "open/link.png",
        "open/chain.png",
        "open/link/../secret/a.png",  # by the link's target, not by its name
        "../../../../../../../../etc/passwd",
        "..",
        "",
    ],
)
def test_what_leads_out_of_the_folder_is_refused(places, name):
    (places / "open" / "link").symlink_to(places / "secret")
    (places / "open" / "link.png").symlink_to("../secret/a.png")
    (places / "open" / "chain.png").symlink_to("link.png")
    quoted = str(places).replace("/", "%2F") + "%2f" + name.replace("..", "%2E%2e")
    for source in (
        places / name,
        f"{places}/{name}",
        f"file://{places}/{name}",
        f"file:///{quoted}",
    ):
        for call in (processor(places / "open").image, processor(places / "open").video):
            with pytest.raises(InputError, match="is not in the folder that files may") as caught:
                call(source)
            assert str(places) not in str(caught.value)
        with pytest.raises(InputError, match="is not in the folder that files may"):
            processor(places / "open").video([source])


def test_links_inside_the_folder_are_followed(places):
    (places / "open" / "inside.png").symlink_to("deep er/../a.png")
    (places / "entrance").symlink_to(places / "open")
    for folder in (places / "open", places / "entrance"):
        for name in ("open/inside.png", "entrance/a.png", "entrance/inside.png"):
            np.testing.assert_array_equal(pixels(places / name, folder), PICTURE)


def test_no_folder_means_no_file(places):
    for source in (places / "open" / "a.png", url(places / "open" / "a.png"), "", "missing"):
        for call in (processor("").image, processor("").video):
            with pytest.raises(InputError, match=r"files are not read here \(allowed_local_media"):
                call(source)
    assert processor("").image(encoded(PICTURE)).num_tokens == 1
    assert processor("").image(PICTURE).num_tokens == 1


@pytest.mark.parametrize("exchanged", ["deep er", "deep er/b#%.png"])
def test_what_is_exchanged_for_a_link_after_it_was_looked_at(places, monkeypatch, exchanged):
    wanted = places / "open" / "deep er" / "b#%.png"
    realpath = os.path.realpath

    def exchange(path, **options):
        found = realpath(path, **options)
        (places / "open" / exchanged).rename(places / "away")
        (places / "open" / exchanged).symlink_to(places / "secret" / exchanged)
        return found

    allowed = processor(places / "open")
    monkeypatch.setattr(local_files.os.path, "realpath", exchange)
    with pytest.raises(InputError, match=r"cannot be read \((ELOOP|ENOTDIR)\)|not a regular file"):
        allowed.image(wanted)


def special_files(folder: Path) -> list[str]:
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))
    return [str(folder), str(folder / "fifo"), str(folder / "socket"), str(folder / "fifo" / "x")]


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_at_once(places, monkeypatch):
    names = special_files(places / "open")
    opened = []
    os_open = os.open

    def noted(path, *arguments, **named):
        descriptor = os_open(path, *arguments, **named)
        opened.append(Path(path).name)
        return descriptor

    monkeypatch.setattr(local_files.os, "open", noted)
    for folder in (None, places / "open"):
        for name in names:
            for source in (name, "file://" + name):
                for call in (processor(folder).image, processor(folder).video):
                    with pytest.raises(InputError, match=r"not a regular file|ENOTDIR"):
                        call(source)
    for name in (
        "/dev/zero",
        "/dev/tty",
        "/dev",
        "/proc/self/fd",
        "file:///dev/zero",
    ):
        for call in (processor().image, processor().video):
            with pytest.raises(InputError, match=r"not a regular file|cannot be read"):
                call(name)
    # A pipe or device was not even opened: that may already do something.
    assert set(opened) <= {"open"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("file://", "expected a file URL of the form file:///folder/image.png"),
        ("file://host", "expected a file URL of the form"),
        ("file://host/a.png", "expected a file URL of the form"),
        ("file://..//a.png", "expected a file URL of the form"),
        ("file:///a.png?x=1", r"a file URL with \? or #; in a name write %3F or %23"),
        ("file:///a.png#x", r"a file URL with \? or #"),
        ("file:///", "'' is not a regular file"),
        ("file:///a%00.png", r"'a\\x00.png' is not a path that can be followed"),
        ("/a\0.png", "is not a path that can be followed"),
        ("a\ud800.png", "is not a path that can be followed"),
        ("file:///a\ud800.png", "not a path that can be followed"),
        ("file:///missing%ff%zz.png", r"cannot be read \(ENOENT\)"),
        ("x" * 5000, r"cannot be read \(ENAMETOOLONG\)"),
        ("/x" * 5000, r"cannot be read \(ENAMETOOLONG\)"),
        ("http://a/b.png", "'http' addresses are not fetched; download it first, and pass the bytes"),
        ("HTTPS://a/b.png", "'HTTPS' addresses are not fetched"),
        ("ftp://a/b.png", "'ftp' addresses are not fetched"),
        ("filex://a/b.png", "'filex' addresses are not fetched"),
    ],
)  # fmt: skip
def test_names_that_are_none(tmp_path, source, words):
    for call in (processor().image, processor().video):
        with pytest.raises(InputError, match=words) as caught:
            call(source)
        assert len(str(caught.value).encode()) <= 512
    for call in (processor(tmp_path).image, processor(tmp_path).video):
        with pytest.raises(InputError):
            call(source)


def test_links_without_end(places):
    (places / "open" / "loop").symlink_to("loop")
    before = "a.png"
    for number in range(1500):
        (places / "open" / f"l{number}").symlink_to(before)
        before = f"l{number}"
    for folder in (None, places / "open"):
        for name in ("loop", "loop/x", "l1499"):
            with pytest.raises(InputError, match=r"ELOOP|ENOTDIR|can be followed|not a regular"):
                pixels(places / "open" / name, folder)


@pytest.mark.parametrize(
    ("folder", "error", "words"),
    [
        (3, TypeError, "allowed_local_media_path: expected a path or None, got int"),
        (b"/tmp", TypeError, "got bytes"),
        ("/nonexistent", ArgumentError, "'nonexistent' is not a folder; pass one"),
        ("/dev/null", ArgumentError, "'null' is not a folder"),
        ("a\0b", ArgumentError, "is not a folder"),
    ],
)
def test_folders_that_are_none(folder, error, words):
    with pytest.raises(error, match=words):
        VisionLimits(allowed_local_media_path=folder)


def test_limits_of_bytes_hold_inside_a_folder(places):
    with (places / "open" / "big").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitError, match="'big' has 1099511627776 bytes, the limit is 100"):
        processor(places / "open", image_bytes=100).image(places / "open" / "big")


def test_no_descriptor_stays_open(places):
    os.mkfifo(places / "open" / "deep er" / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in (
        "a.png",
        "deep er/b#%.png",
        "deep er/x",
        "no/x",
        "deep er/fifo",
        "../secret/a.png",
    ):
        for folder in (None, places / "open"):
            try:
                pixels(places / "open" / name, folder)
            except InputError:
                continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
