"""Takes files out of a dead sandbox: regular files alone, bounded in size, count and depth. A thread does it, since it
takes as long as a payload likes; what is taken travels as a stage's inputs do, in a sealed descriptor.

The folder is a clone of the write layer's mount, read-only and without symlink following, and out of everybody's reach
but ours. Nothing is opened by a path that a payload made: each name is opened below its folder's descriptor, under
openat2's strictest rules (CVE-2024-28189, CVE-2018-15664).
"""

from __future__ import annotations

import errno
import fnmatch
import heapq
import os
import stat
from collections.abc import Iterator

from sandboxd.bounds import check_path
from sandboxd.errors import InputError
from sandboxd.jail import abi, syscalls
from sandboxd.spec import PATH_MAX_LEVELS, InputFile

_NO_FILE = frozenset({errno.ELOOP, errno.EXDEV, errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.ENOTDIR, errno.EACCES})
"""Why a name cannot be opened as a file; anything else is a failure of ours."""
_NAME_WORK = 10
_FILE_WORK = 50
"""What reading a name and opening a file cost, in comparisons."""
_CHARACTERS = 2048
"""Of a pattern, times those of a name, that cost as much as one comparison at the worst."""
_SORTED_AT_ONCE = 1024
"""Sorting is one call of the interpreter's, which lets nobody else go on: the launcher's loop waits so long for it."""
_RESOLVE = abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS | abi.RESOLVE_NO_XDEV
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
WORK_MAX = 200_000
"""In comparisons of one component with one pattern's: a fraction of a second. What is left then counts as omitted."""


class Collected:
    """What a stage leaves: `files` without their contents, which `fd` holds one after the other, `sizes` bytes each
    (-1: all are empty), and how many that matched were left out. Whoever gets it closes it."""

    def __init__(
        self, files: tuple[InputFile, ...] = (), sizes: tuple[int, ...] = (), omitted: int = 0, fd: int = -1
    ) -> None:
        """Takes `fd`."""
        self.files = files
        self.sizes = sizes
        self.omitted = omitted
        self.fd = fd

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def collect(tree_fd: int, folder: str, patterns: tuple[str, ...], files_max: int, bytes_max: int) -> Collected:
    """Walks `folder` below `tree_fd`, in the order of names; takes at most `files_max` files of together `bytes_max`.
    Raises OSError.

    Precondition: nobody changes anything there any more.
    """
    walk = _Walk(patterns, files_max, bytes_max)
    try:
        box = syscalls.openat2(tree_fd, folder, _FOLDER, _RESOLVE)
        try:
            walk.into(box, ())
        finally:
            os.close(box)
        return walk.collected()
    finally:
        walk.close()


class _Walk:
    def __init__(self, patterns: tuple[str, ...], files_max: int, bytes_max: int) -> None:
        self._patterns = [tuple(pattern.split("/")) for pattern in patterns]
        self._files_max = files_max
        self._bytes_left = bytes_max
        self._work_left = WORK_MAX
        self._files: list[InputFile] = []
        self._sizes: list[int] = []
        self._omitted = 0
        self._memfd = syscalls.new_memfd("sandboxd-results")

    def collected(self) -> Collected:
        syscalls.seal(self._memfd)
        fd = os.dup(self._memfd) if any(self._sizes) else -1
        return Collected(tuple(self._files), tuple(self._sizes), self._omitted, fd)

    def close(self) -> None:
        os.close(self._memfd)

    def into(self, folder: int, parents: tuple[str, ...]) -> None:
        for name, is_folder in self._names(folder):
            if self._work_left < 0:
                self._omitted += 1
                return
            path = (*parents, name)
            if is_folder:
                if len(path) < PATH_MAX_LEVELS and self._matches(path, as_folder=True):
                    child = syscalls.openat2(folder, name, _FOLDER, _RESOLVE)
                    try:
                        self.into(child, path)
                    finally:
                        os.close(child)
            elif self._matches(path):
                self._take_file(folder, name, "/".join(path))

    def _names(self, folder: int) -> Iterator[tuple[str, bool]]:
        """In their order, each with whether it is a folder's; of very many only some."""
        names: list[tuple[str, bool]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._work_left -= _NAME_WORK
                if self._work_left < 0:
                    break
                names.append((entry.name, entry.is_dir(follow_symlinks=False)))
        parts = range(0, len(names), _SORTED_AT_ONCE)
        return heapq.merge(*(sorted(names[part : part + _SORTED_AT_ONCE]) for part in parts))

    def _matches(self, path: tuple[str, ...], *, as_folder: bool = False) -> bool:
        """Whether a pattern matches the path; `as_folder`: whether one could match something below it."""
        for pattern in self._patterns:
            self._work_left -= len(pattern) * len(path) + (_length(pattern) * _length(path)) // _CHARACTERS
            reached = _reachable(pattern, path)
            if (any(state < len(pattern) for state in reached)) if as_folder else len(pattern) in reached:
                return True
        return False

    def _take_file(self, folder: int, name: str, path: str) -> None:
        taken = self._copy(folder, name, path) if len(self._files) < self._files_max else None
        if taken is None:
            self._omitted += 1
        else:
            self._files.append(taken)

    def _copy(self, folder: int, name: str, path: str) -> InputFile | None:
        """None: a link, a fifo, a device, a hard link, too big, or a name that could not be given back as it is."""
        self._work_left -= _FILE_WORK
        try:
            check_path(path, "collect")
            fd = syscalls.openat2(folder, name, _FILE, _RESOLVE)
        except InputError:
            return None
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return None
        try:
            info = os.fstat(fd)
            size = info.st_size
            if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or size > self._bytes_left:
                return None
            syscalls.copy(fd, self._memfd, 0, size)
        finally:
            os.close(fd)
        self._bytes_left -= size
        self._sizes.append(size)
        return InputFile(path=path, content=b"", executable=bool(info.st_mode & 0o111))


def _length(parts: tuple[str, ...]) -> int:
    return sum(map(len, parts))


def _reachable(pattern: tuple[str, ...], path: tuple[str, ...]) -> set[int]:
    """How many components of the pattern can be used up by the path: the states of its automaton, all at once, so that
    the cost is the product of the lengths. `*` matches within one component, `**` any number of components."""
    states = _skip(pattern, {0})
    for component in path:
        following = set()
        for state in states:
            if state < len(pattern):
                if pattern[state] == "**":
                    following.add(state)
                elif fnmatch.fnmatchcase(component, pattern[state]):
                    following.add(state + 1)
        states = _skip(pattern, following)
    return states


def _skip(pattern: tuple[str, ...], states: set[int]) -> set[int]:
    """`**` also matches no component."""
    reached = set(states)
    for state in sorted(states):
        while state < len(pattern) and pattern[state] == "**":
            state += 1
            reached.add(state)
    return reached
