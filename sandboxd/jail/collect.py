"""Takes files out of a dead sandbox: regular files alone, bounded in size, count and depth.

The folder is a detached clone of the write layer, read-only and without symlink following. Nothing is opened by a
path that a
payload made: each name is opened below its folder's descriptor, under openat2's strictest rules (CVE-2024-28189,
CVE-2018-15664).
"""

from __future__ import annotations

import fnmatch
import os
import stat

from sandboxd.bounds import check_path
from sandboxd.errors import InputError
from sandboxd.jail import abi, syscalls
from sandboxd.spec import PATH_MAX_LEVELS, InputFile

_RESOLVE = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS | abi.RESOLVE_NO_XDEV
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
ENTRIES_MAX = 65_536


class Collection:
    """What was found: `files`, and how many that matched were left out."""

    def __init__(self, patterns: tuple[str, ...], files_max: int, bytes_max: int) -> None:
        self._patterns = [tuple(pattern.split("/")) for pattern in patterns]
        self._files_max = files_max
        self._bytes_left = bytes_max
        self._entries_left = ENTRIES_MAX
        self.files: list[InputFile] = []
        self.omitted = 0

    def take(self, tree_fd: int, folder: str) -> None:
        """Walks `folder` below `tree_fd`, in the order of names."""
        box = syscalls.openat2(tree_fd, folder, _FOLDER, _RESOLVE)
        try:
            self._walk(box, ())
        finally:
            os.close(box)

    def _walk(self, folder: int, parents: tuple[str, ...]) -> None:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        for name, is_folder in names:
            self._entries_left -= 1
            if self._entries_left < 0:
                return
            path = (*parents, name)
            if is_folder:
                if len(path) < PATH_MAX_LEVELS and any(_may_contain(pattern, path) for pattern in self._patterns):
                    child = syscalls.openat2(folder, name, _FOLDER, _RESOLVE)
                    try:
                        self._walk(child, path)
                    finally:
                        os.close(child)
            elif any(_matches(pattern, path) for pattern in self._patterns):
                self._take_file(folder, name, "/".join(path))

    def _take_file(self, folder: int, name: str, path: str) -> None:
        taken = self._read(folder, name, path) if len(self.files) < self._files_max else None
        if taken is None:
            self.omitted += 1
        else:
            self.files.append(taken)

    def _read(self, folder: int, name: str, path: str) -> InputFile | None:
        """None: a link, a fifo, a device, a hard link, too big, or a name that could not be given back as it is."""
        try:
            check_path(path, "collect")
            fd = syscalls.openat2(folder, name, _FILE, _RESOLVE)
        except (InputError, OSError):
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size > self._bytes_left:
                return None
            content = b"".join(iter(lambda: os.read(fd, min(1 << 20, info.st_size + 1)), b""))
        finally:
            os.close(fd)
        self._bytes_left -= len(content)
        return InputFile(path=path, content=content, executable=bool(info.st_mode & 0o111))


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """`*` matches within one component, `**` any number of components."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(pattern[1:], path[skip:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(pattern[1:], path[1:])


def _may_contain(pattern: tuple[str, ...], folder: tuple[str, ...]) -> bool:
    """Whether a file below `folder` could match."""
    if not folder:
        return bool(pattern)
    if not pattern:
        return False
    return pattern[0] == "**" or (fnmatch.fnmatchcase(folder[0], pattern[0]) and _may_contain(pattern[1:], folder[1:]))
