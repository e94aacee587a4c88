"""Keeps the files that languages need in the page cache, charged to the launcher.

Page cache is charged to whoever reads a file first: a cold interpreter inside a small memory limit thrashes for
seconds.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

_CHUNK = 1 << 20


def files(patterns: Iterable[str]) -> list[str]:
    """Regular files below /usr that the globs match, each once, links followed."""
    found = {os.path.realpath(path) for pattern in patterns for path in glob.iglob(pattern, recursive=True)}
    return sorted(path for path in found if path.startswith("/usr/") and os.path.isfile(path))


def read(paths: Iterable[str]) -> Iterator[None]:
    """Reads the files into the cache, a chunk at each step. One that cannot be read now is passed over."""
    buffer = bytearray(_CHUNK)
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    yield
        except OSError:
            continue
