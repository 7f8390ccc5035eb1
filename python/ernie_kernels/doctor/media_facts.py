"""What this installation can show a vision-language model, and what to install for the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator

from ernie_kernels.doctor.fact import Fact

SECTION = "images and videos"
# Pillow's names of what it may have been built without, and what is read with each.
CODECS = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP"}


def media_facts() -> Iterator[Fact]:
    """Nothing here is needed for text: what is missing is no problem, what is broken is one."""
    if importlib.util.find_spec("PIL") is None:
        for name in ("images", "GIF, lists of frames"):
            yield Fact(SECTION, name, "no: Pillow is missing; pip install 'ernie-kernels[vision]'")
        yield Fact(
            SECTION, "video files", "no: Pillow is missing; pip install 'ernie-kernels[video]'"
        )
        return
    yield from _images()
    yield _video_files()


def _images() -> Iterator[Fact]:
    try:
        from PIL import __version__, features
    except ImportError as error:
        problem = f"Pillow is installed and cannot be imported ({error}); install it again"
        yield Fact(SECTION, "images", None, problem)
        return
    read = [name for codec, name in CODECS.items() if features.check(codec)]
    lacking = [name for name in CODECS.values() if name not in read]
    without = f"; this build of it cannot read {', '.join(lacking)}" if lacking else ""
    yield Fact(SECTION, "images", f"{', '.join(read)}, by Pillow {__version__}{without}")
    drawn = "timestamps are drawn"
    if not features.check("freetype2"):
        drawn = "this build of Pillow draws no timestamps: pass draw_timestamps=False"
    yield Fact(SECTION, "GIF, lists of frames", f"yes; {drawn}")


def _video_files() -> Fact:
    name = "video files"
    # It is never imported here: a process of its own decodes.
    if importlib.util.find_spec("av") is None:
        return Fact(SECTION, name, "no: PyAV is missing; pip install 'ernie-kernels[video]'")
    return Fact(
        SECTION, name, f"MP4, WebM, Matroska, AVI, by PyAV {importlib.metadata.version('av')}"
    )
