"""Bugs of requests with images and videos."""

from __future__ import annotations

from bug import Bug

FEATURES = ["tests/runner/test_visual_features.py"]
FAULTS = ["tests/runner/test_media_faults.py"]
CHAT = ["tests/test_media_chat.py"]
FILES = ["tests/vision/test_local_files.py"]
VIDEOS = ["tests/vision/test_videos.py"]
IMAGE_LIMITS = ["tests/vision/test_image_limits.py"]
SETTINGS = ["tests/vision/test_processor.py"]
REFUSED = ["tests/vision/test_refused_requests.py"]

MEDIA = "python/ernie_kernels/runner/media.py"
STORE = "python/ernie_kernels/runner/visual_features.py"
STEP = "python/ernie_kernels/runner/step_media.py"
PROMPTS = "python/ernie_kernels/media_prompts.py"
REASONING = "python/ernie_kernels/runner/reasoning.py"
TEMPLATE = "python/ernie_kernels/chat_template.py"
LOCAL_FILES = "python/ernie_kernels/vision/local_files.py"
HEADER = "python/ernie_kernels/vision/image_header.py"
PREPROCESSOR = "python/ernie_kernels/vision/preprocessor_files.py"

BUGS = [
    Bug(
        "media: all pairs of frames have the key of the first",
        MEDIA,
        'item.key + frame.to_bytes(4, "little")',
        "item.key + bytes(4)",
        FEATURES,
    ),
    Bug(
        "media: a picture's name does not say which of its features",
        MEDIA,
        '            digest.update((first - begin).to_bytes(8, "little"))\n',
        "",
        FEATURES,
    ),
    Bug(
        "media: positions are not in the name of a block",
        MEDIA,
        "        digest.update(positions.tobytes())\n",
        "",
        FEATURES,
    ),
    Bug(
        "media: banks are not in the name of a block",
        MEDIA,
        "        digest.update(banks.tobytes())\n",
        "",
        FEATURES,
    ),
    Bug(
        "media: text behind a picture is named as in text alone",
        MEDIA,
        "if is_text and (positions == np.arange(start, stop)).all():",
        "if is_text:",
        FEATURES,
    ),
    Bug(
        "media: generated tokens go on from their number",
        MEDIA,
        "np.broadcast_to(later + self.position_delta, (3, len(later)))",
        "np.broadcast_to(later, (3, len(later)))",
        ["tests/runner/test_media_generation_oracle.py"],
    ),
    Bug(
        "media: features of a part that is not read to its end are let go",
        MEDIA,
        "            if part.stop > done:\n",
        "            if part.first > done:\n",
        FEATURES,
    ),
    Bug(
        "media: the part before the first token is encoded too",
        MEDIA,
        "return range(int(ends[0]) - 1, int(ends[1]))",
        "return range(max(0, int(ends[0]) - 2), int(ends[1]))",
        FEATURES,
    ),
    Bug(
        "media: a chunk that begins within a part gets its first rows",
        STEP,
        "begin = max(wanted.start, part.first) - part.first",
        "begin = 0",
        FEATURES,
    ),
    Bug(
        "features: two of a kind are encoded twice",
        STORE,
        "                missing[part.key] = part.item\n",
        "                missing[part.key + bytes([index % 256])] = part.item\n",
        FEATURES,
    ),
    Bug(
        "features: the first to come is the first to go",
        STORE,
        "                    self._recent.move_to_end(part.key)\n",
        "                    pass\n",
        FEATURES,
    ),
    Bug(
        "features: nothing is ever forgotten",
        STORE,
        "or self.nbytes > self._max_bytes",
        "or self.nbytes < 0",
        FEATURES,
    ),
    Bug(
        "features: all of a step share one memory",
        STORE,
        "rows[first : first + item.num_tokens], own",
        "rows[: item.num_tokens], own",
        FEATURES,
    ),
    Bug(
        "engine: whoever was in the step ends with a picture",
        "python/ernie_kernels/runner/engine.py",
        "                        involved = {sequence}\n",
        "                        involved = {s for s, _ in scheduled}\n",
        FAULTS,
    ),
    Bug(
        "scheduler: pictures of what has ended stay",
        "python/ernie_kernels/runner/scheduler.py",
        "        sequence.media = None\n",
        "        pass\n",
        FAULTS,
    ),
    Bug(
        "prompts: a video behind its own start is an image",
        PROMPTS,
        "is_video = token_id != tokens.image or last_start == tokens.video_start",
        "is_video = token_id != tokens.image",
        CHAT,
    ),
    Bug(
        "prompts: media are loaded before they are counted",
        PROMPTS,
        "if count < len(own) or (count > 0 and not own):",
        "if count > 0 and not own:",
        REFUSED,
    ),
    Bug(
        "sources: a data URL is decoded before its head is looked at",
        "python/ernie_kernels/vision/sources.py",
        "    inspect(_decoded(url[begin : begin + HEAD_BYTES // 3 * 4], where))\n",
        "",
        REFUSED,
    ),
    Bug(
        "chat: Baidu's placeholders may be typed",
        TEMPLATE,
        "guard = TextGuard(self._matcher, outside)",
        "guard = TextGuard(self._tokenizer.matcher, outside)",
        CHAT,
    ),
    Bug(
        "reasoning: ended twice",
        REASONING,
        "        if THINK_END in self._tokenizer.decode(",
        "        if False and THINK_END in self._tokenizer.decode(",
        CHAT,
    ),
    Bug(
        "reasoning: one token too many",
        REASONING,
        "place = len(output_ids) - self._max_tokens",
        "place = len(output_ids) - self._max_tokens - 1",
        CHAT,
    ),
    Bug(
        "reasoning: a thought of an earlier turn is still open",
        REASONING,
        "return end.rstrip().endswith(THINK_START)",
        "return any(s.text == THINK_START for s in segments)",
        ["tests/test_chat_template.py"],
    ),
    Bug(
        "files: a folder is allowed whose name begins alike",
        LOCAL_FILES,
        "if os.path.commonpath([folder, found]) != folder:",
        "if not found.startswith(folder):",
        FILES,
    ),
    Bug(
        "files: links are followed after the path was looked at",
        LOCAL_FILES,
        "    found = os.path.realpath(path)\n",
        "    found = os.path.abspath(path)\n",
        FILES,
    ),
    Bug(
        "files: a folder that became a link is entered",
        LOCAL_FILES,
        "os.O_DIRECTORY | os.O_NOFOLLOW",
        "os.O_DIRECTORY",
        FILES,
    ),
    Bug(
        "files: a file that became a link is read",
        LOCAL_FILES,
        "return _open_regular(name, dir_fd=inner, follow_symlinks=False)",
        "return _open_regular(name, dir_fd=inner)",
        FILES,
    ),
    Bug(
        "files: devices and pipes are opened to look at them",
        LOCAL_FILES,
        "    if not stat.S_ISREG(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks).st_mode):\n"
        "        return None\n",
        "",
        FILES,
    ),
    Bug(
        "files: no folder is any folder",
        "python/ernie_kernels/vision/sources.py",
        "limits.allowed_local_media_path, max_bytes",
        "limits.allowed_local_media_path or None, max_bytes",
        FILES,
    ),
    Bug(
        "files: frames of a list may be any",
        "python/ernie_kernels/vision/video.py",
        'f"{self._where}: frame {index}", self._limits)',
        'f"{self._where}: frame {index}", VisionLimits())',
        FILES,
    ),
    Bug(
        "gif: frames between those that are kept cost nothing",
        "python/ernie_kernels/vision/video.py",
        "count = int(indices[-1]) + 1",
        "count = len(indices)",
        VIDEOS,
    ),
    Bug(
        "gif: every frame has all of the time",
        "python/ernie_kernels/vision/gif.py",
        "seconds += time.thread_time() - begin",
        "seconds = time.thread_time() - begin",
        VIDEOS,
    ),
    Bug(
        "jpeg: scans behind the image count",
        HEADER,
        'if marker is None or marker[1] == b"\\xd9":',
        "if marker is None:",
        IMAGE_LIMITS,
    ),
    Bug(
        "jpeg: what is in a segment ends the image",
        HEADER,
        '        at += max(2, int.from_bytes(data[at : at + 2], "big"))\n',
        "",
        IMAGE_LIMITS,
    ),
    Bug(
        "settings: frames are normalised as images whatever their file says",
        PREPROCESSOR,
        "    if video.values is not None:\n        _check_same",
        "    if False:\n        _check_same",
        SETTINGS,
    ),
    Bug(
        "settings: of two limits of pixels the first is taken",
        PREPROCESSOR,
        "if len(set(given.values())) > 1:",
        "if False:",
        SETTINGS,
    ),
]
