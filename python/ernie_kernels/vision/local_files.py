"""Files of this machine that a request names: which may be read, and why none of them can hang."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ArgumentError, InputError, LimitError

# Without waiting: a pipe that takes the name of a file would otherwise hold the caller for good.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_URL = "file://"
ALLOWED = "allowed_local_media_path"
INSTEAD = "pass a data: URL or the bytes"


def checked_folder(folder: Any) -> str | None:
    """``allowed_local_media_path``: the folder without symbolic links, "" for no file, None for any.

    Raises:
        TypeError: not a path.
        ArgumentError: no such folder.
    """
    if folder is None or folder == "":
        return folder
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"{ALLOWED}: expected a path or None, got {type(folder).__name__}")
    try:
        found = os.path.realpath(os.fsdecode(folder), strict=True)
        is_folder = Path(found).is_dir()
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        raise ArgumentError(
            f"{ALLOWED}: {quoted(Path(os.fsdecode(folder)).name)} is not a folder; pass one, None for "
            "all files, or '' for none"
        )
    return found


def path_of(source: str | os.PathLike[str], where: str) -> str:
    """What a path or a ``file://`` URL names.

    Raises:
        InputError: a URL of another host, or with a query or fragment.
    """
    path = os.fsdecode(source)
    if not isinstance(source, str) or source[: len(FILE_URL)].lower() != FILE_URL:
        return path
    host, slash, rest = path[len(FILE_URL) :].partition("/")
    if not slash or host.lower() not in ("", "localhost"):
        raise InputError(f"{where}: expected a file URL of the form file:///folder/image.png")
    if "?" in rest or "#" in rest:
        raise InputError(f"{where}: a file URL with ? or #; in a name write %3F or %23")
    return slash + os.fsdecode(unquote_to_bytes(rest))


@contextmanager
def open_file(
    source: str | os.PathLike[str],
    where: str,
    allowed: str | os.PathLike[str] | None,
    max_bytes: int,
) -> Iterator[BinaryIO]:
    """A regular file of at most ``max_bytes``, open at its beginning.

    Args:
        source: a path, or a ``file://`` URL, which holds an absolute one.
        allowed: from :func:`checked_folder`. What ``source`` leads to, through ``..`` and symbolic
            links, must be in there.

    Raises:
        InputError: missing, not regular, unreadable, or not allowed, whether it is there or not.
        LimitError: larger; not a byte of it has been read.
    """
    try:
        path = path_of(source, where)
        name = quoted(Path(path).name)
    except UnicodeError:  # a character that no name of a file has
        raise InputError(f"{where}: not a path that can be followed") from None
    try:
        descriptor = _open_regular(path) if allowed is None else _open_inside(allowed, path, where)
    except InputError:
        raise
    except OSError as error:
        raise _cannot_read(where, name, error) from None
    except (ValueError, RecursionError):  # a null character, thousands of links
        raise InputError(f"{where}: {name} is not a path that can be followed") from None
    if descriptor is None:
        raise InputError(f"{where}: {name} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        try:
            size = os.fstat(descriptor).st_size
            if size > max_bytes:
                raise LimitError(
                    f"{where}: {name} has {size} bytes, the limit is {max_bytes}; send a smaller file"
                )
            yield file
        except OSError as error:
            raise _cannot_read(where, name, error) from None


def _open_inside(allowed: str | os.PathLike[str], path: str, where: str) -> int | None:
    """Folder by folder and through no link, so that what is exchanged meanwhile leads nowhere else."""
    folder = os.fspath(allowed)
    if not folder:
        raise InputError(f"{where}: files are not read here ({ALLOWED}); {INSTEAD}")
    found = os.path.realpath(path)
    if os.path.commonpath([folder, found]) != folder:
        raise InputError(
            f"{where}: {quoted(Path(path).name)} is not in the folder that files may be read from "
            f"({ALLOWED}); {INSTEAD}"
        )
    *folders, name = Path(found).relative_to(folder).parts or (".",)
    inner = os.open(folder, ENTER)
    try:
        for part in folders:
            outer, inner = inner, os.open(part, ENTER, dir_fd=inner)
            os.close(outer)
        return _open_regular(name, dir_fd=inner, follow_symlinks=False)
    finally:
        os.close(inner)


def _open_regular(
    path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> int | None:
    """A descriptor; None: something else than a regular file, which to open may already do harm."""
    if not stat.S_ISREG(os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks).st_mode):
        return None
    descriptor = os.open(path, READ | (0 if follow_symlinks else os.O_NOFOLLOW), dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged meanwhile
        os.close(descriptor)
        return None
    return descriptor


def _cannot_read(where: str, name: str, error: OSError) -> InputError:
    reason = errno.errorcode.get(error.errno or 0, "unknown error")
    return InputError(f"{where}: {name} cannot be read ({reason})")
