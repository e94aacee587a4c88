"""Whether what the image shows of the host is as before: every file by its inode, a sample by its content.

A change through the file system shows in a file's times (ctime cannot be set); one that goes around it, into the page
cache, shows in the content alone (CVE-2016-5195, CVE-2022-0847). So the sample is read twice: through the cache, as
every program sees it, and past it (O_DIRECT, open(2)), as the disk has it.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import zlib
from collections.abc import Iterator

from sandboxd.spec import MIB

ROOT = "/usr"
_SAMPLE = 50
"""One file of so many, chosen by its name, so the same each time."""
_ALWAYS = re.compile(r"(libc\.so\.6|ld-linux.*|python3[.\d]*|bash|dash|env|su|sudo|passwd|gcc-\d+)$")
"""What most programs run, or run with rights."""
_BLOCK = 1 * MIB


def tree_digest() -> str:
    """sha256 over name, type, mode, owner, size, inode, times of every file."""
    found = hashlib.sha256()
    for path in _files():
        status = os.lstat(path)
        fields = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_ino)
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found.update(os.fsencode(path) + repr((*fields, *times)).encode())
    return found.hexdigest()


def content_digest(*, direct: bool = False) -> str:
    """sha256 over the sample's names and contents. `direct`: past the page cache, where the file system can."""
    found = hashlib.sha256()
    with mmap.mmap(-1, _BLOCK) as room:  # aligned, as O_DIRECT wants it
        for path in _files():
            chosen = _ALWAYS.search(path) or zlib.crc32(os.fsencode(path)) % _SAMPLE == 0
            if chosen and os.path.isfile(path) and not os.path.islink(path):
                found.update(os.fsencode(path))
                for part in _parts(path, room, direct=direct):
                    found.update(part)
    return found.hexdigest()


def reads_past_the_cache() -> bool:
    """Whether the file system of the image knows O_DIRECT."""
    try:
        os.close(os.open(os.path.realpath("/usr/bin/env"), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _parts(path: str, room: mmap.mmap, *, direct: bool) -> Iterator[memoryview]:
    flags = os.O_DIRECT if direct and reads_past_the_cache() else 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        offset = 0
        count = _BLOCK
        while count == _BLOCK:
            count = os.preadv(fd, [room], offset)
            with memoryview(room) as whole, whole[:count] as part:
                yield part
            offset += count
    finally:
        os.close(fd)


def _files() -> Iterator[str]:
    for folder, names, files in os.walk(ROOT):
        names.sort()
        yield folder
        for name in sorted(files):
            yield os.path.join(folder, name)
