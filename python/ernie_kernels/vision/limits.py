"""What an image or video may be at most, told from headers, before anything is decoded; and from where."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.vision.local_files import ALLOWED, checked_folder


@dataclass(frozen=True, slots=True)
class VisionLimits:
    """Inclusive upper limits.

    Attributes:
        image_bytes, video_bytes: of the file, encoded.
        side: pixels of a side, of images and of frames.
        image_pixels: of one image or frame.
        images_per_request: counted by who takes requests.
        request_pixels: of all images and all frames that are kept, of a request, before they are
            resized; counted by who takes requests.
        call_pixels: of those of all requests that come together, after they are resized.
        frames: of a video, that are kept. The others are decoded on the way, within ``decode_seconds``
            and ``stored_frames``: half a minute at 60 a second has more than 1024. Of a GIF every one
            counts.
        stored_frames: of a video, that its file holds.
        video_pixels: of all the frames that are kept, before they are resized; of a GIF, of all.
        video_seconds: how long a video may play.
        decode_seconds: time that the decoding of a video may take.
        decode_bytes: memory of the process that decodes a video.
        allowed_local_media_path: the folder that files named by a path or a ``file://`` URL must be
            in, after symbolic links and ``..`` are followed; None: any file, ``""``: none.
    """

    image_bytes: int = 32 << 20
    video_bytes: int = 512 << 20
    side: int = 16384
    image_pixels: int = 1 << 25
    images_per_request: int = 64
    request_pixels: int = 1 << 30
    call_pixels: int = 1 << 30
    frames: int = 1024
    stored_frames: int = 1 << 20
    video_pixels: int = 1 << 30
    video_seconds: float = 36000.0
    decode_seconds: float = 60.0
    decode_bytes: int = 2 << 30
    allowed_local_media_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        folder = checked_folder(self.allowed_local_media_path)
        object.__setattr__(self, ALLOWED, folder)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == ALLOWED:
                continue
            if type(value) not in (int, float) or not 0 < value < 2**53:
                raise ArgumentError(f"VisionLimits: {field.name}: expected a number > 0")

    def check_bytes(self, where: str, size: int, limit: int) -> None:
        if size > limit:
            raise LimitError(f"{where}: {size} bytes, the limit is {limit}; send a smaller file")

    def check_size(self, where: str, width: int, height: int) -> None:
        """Of one image or frame.

        Raises:
            InputError: a side is 0.
            LimitError: a side or the number of pixels is above its limit.
        """
        if width < 1 or height < 1:
            raise InputError(f"{where}: expected sides of at least 1 pixel, got {width} x {height}")
        if max(width, height) > self.side:
            raise LimitError(
                f"{where}: {width} x {height} pixels, the limit of a side is {self.side}; scale it down"
            )
        if width * height > self.image_pixels:
            raise LimitError(
                f"{where}: {width} x {height} pixels, the limit is {self.image_pixels} in all; scale it "
                f"down"
            )
