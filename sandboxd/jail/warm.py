"""Keeps the files that languages need in the page cache, charged to the launcher.

Page cache is charged to whoever reads a file first: a cold interpreter inside a small memory limit thrashes for
seconds.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

_CHUNK = 1 << 20


def files(patterns: Iterable[str]) -> list[str]:
    """Regular files below /usr that the globs match, each once, links followed."""
    found = {os.path.realpath(path) for pattern in patterns for path in glob.iglob(pattern, recursive=True)}
    return sorted(path for path in found if path.startswith("/usr/") and os.path.isfile(path))


def read(path: str) -> int:
    """Reads a file through, into the cache; returns its size. One that cannot be read now is passed over."""
    total = 0
    buffer = bytearray(_CHUNK)
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    except OSError:
        return 0
    return total
