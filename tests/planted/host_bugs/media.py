"""Bugs of requests with images and videos."""

from __future__ import annotations

from bug import FIT, MEMORY_PLAN, Bug

FEATURES = ["tests/runner/test_visual_features.py"]
FAULTS = ["tests/runner/test_media_faults.py"]
SLICES = ["tests/runner/test_tower_slices.py"]
PIXELS = ["tests/vision/test_pixel_budgets.py"]
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
ENGINE = "python/ernie_kernels/runner/engine.py"
SCHEDULER = "python/ernie_kernels/runner/scheduler.py"
PROCESSOR = "python/ernie_kernels/vision/processor.py"
SOURCES = "python/ernie_kernels/media_sources.py"
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
        "                items[part.key] = part.item\n",
        "                items[part.key + bytes([index % 256])] = part.item\n",
        FEATURES,
    ),
    Bug(
        "features: the first to come is the first to go",
        STORE,
        "                    self._recent.move_to_end(key)\n",
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
        "own, rows[first : first + count]",
        "own, rows[:count]",
        FEATURES,
    ),
    Bug(
        "engine: whoever was in the step ends with a picture",
        ENGINE,
        "if s.media is reading.media)",
        "if s.media is not None)",
        FAULTS,
    ),
    Bug(
        "engine: who gives up waits for all slices of a step",
        ENGINE,
        "while products > 0 and not (num_slices and self._has_news):",
        "while products > 0:",
        SLICES,
    ),
    Bug(
        "engine: a step waits for all of a large picture",
        ENGINE,
        "products -= self._features.advance(",
        "_ = self._features.advance(",
        SLICES,
    ),
    Bug(
        "features: the tower waits for nobody to read",
        STORE,
        "return None if held > self._max_bytes else reading",
        "return reading",
        SLICES,
    ),
    Bug(
        "features: what is found is not counted",
        STORE,
        "self.num_hits += media.features[index] is not None",
        "self.num_hits += 0",
        SLICES,
    ),
    Bug(
        "slices: more in one than it may have",
        "python/ernie_kernels/models/slices.py",
        "size = -(-count // max(1, -(-count // most)))",
        "size = -(-count // max(1, count // most))",
        SLICES,
    ),
    Bug(
        "scheduler: who waits for the tower goes behind those that came later",
        SCHEDULER,
        "least = min(1, sequence.num_blocks) if sequence in ran else 0",
        "least = 0",
        SLICES,
    ),
    Bug(
        "scheduler: who waits for the tower keeps others out of the step",
        SCHEDULER,
        "            if is_ready:\n                step.add(sequence, self._span(sequence, count))\n",
        "            if not is_ready:\n                return\n"
        "            step.add(sequence, self._span(sequence, count))\n",
        SLICES,
    ),
    Bug(
        "scheduler: pictures of what has ended stay",
        SCHEDULER,
        "        sequence.media = None\n",
        "        pass\n",
        SLICES,
    ),
    Bug(
        "budget: pixels of a video are those of a frame",
        PROCESSOR,
        "budget.spend(where, len(indices) * video.width * video.height)",
        "budget.spend(where, video.width * video.height)",
        PIXELS,
    ),
    Bug(
        "budget: an image of a size that its beginning does not tell is free",
        SOURCES,
        "        if stored is not None:\n",
        "        if stored is not None and self.kind != 'image':\n",
        PIXELS,
    ),
    Bug(
        "budget: only the images of the first request count in a call",
        SOURCES,
        "                kept.spend(source.where, rows * columns)\n",
        "                kept.spend(source.where, rows * columns if len(budgets) == 1 else 0)\n",
        PIXELS,
    ),
    Bug(
        "budget: spent on the size before the resize alone",
        SOURCES,
        "kept.spend(source.where, rows * columns)",
        "kept.spend(source.where, math.prod(size))",
        PIXELS,
    ),
    Bug(
        "memory: what numpy raises is passed on",
        "python/ernie_kernels/memory_errors.py",
        "    except MemoryError as error:\n",
        "    except OutOfMemoryError as error:\n",
        ["tests/runner/test_media_memory.py"],
    ),
    Bug(
        "memory plan: the buffers of the tower's MLP hold all rows",
        "python/ernie_kernels/models/vision_memory.py",
        "mlp = min(num_patches, MLP_ROWS) *",
        "mlp = num_patches *",
        MEMORY_PLAN,
    ),
    Bug(
        "memory plan: the cache takes the memory of images",
        "python/ernie_kernels/load_model.py",
        "plan = _plan_cache(config, options, weights + images, bytes_per_block)",
        "plan = _plan_cache(config, options, weights, bytes_per_block)",
        MEMORY_PLAN,
    ),
    Bug(
        "fit: images take nothing",
        "python/ernie_kernels/cli/fit_report.py",
        "activations = plan.workspace_bytes + plan.visual_bytes",
        "activations = plan.workspace_bytes",
        FIT,
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
        "features: work for who has gone goes on",
        STORE,
        "            self._jobs.pop(media, None)\n",
        "            pass\n",
        ("tests/runner/test_tower_slices.py",),
    ),
    Bug(
        "sources: a data URL is decoded before its head is looked at",
        "python/ernie_kernels/vision/sources.py",
        "    inspect(read)\n    return _decoded(url[begin:], where)\n",
        "    data = _decoded(url[begin:], where)\n    inspect(read)\n    return data\n",
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
