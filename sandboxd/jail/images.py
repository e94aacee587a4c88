"""The `host` image: the machine's own /usr, and a small base layer made once per launcher start.

The base holds folders, the links of a merged /usr, and an /etc that is generated but for an allowlist of files that
packages own. Nothing of the host is bind-mounted into a job: layers are overlaid, so that locks and notifications stay
inside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sandboxd.errors import HostError
from sandboxd.jail.plan import HOLD_ID, HOSTNAME, PAYLOAD_ID
from sandboxd.jail.rootfs import Image
from sandboxd.spec import Struct

HOST = "host"
_FOLDERS = ("usr", "etc", "proc", "dev", "run", "var", "root", "home", "opt", "srv", "mnt", "media")
_USR_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC_FROM_HOST = ("alternatives", "ld.so.cache", "ssl/certs")
_DPKG_STATUS = Path("/var/lib/dpkg/status")
_ETC = {
    "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:{PAYLOAD_ID}:{PAYLOAD_ID}::/box:/bin/sh\n"
    f"init:x:{HOLD_ID}:{HOLD_ID}::/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nsandbox:x:{PAYLOAD_ID}:\ninit:x:{HOLD_ID}:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    "hostname": f"{HOSTNAME}\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
}


class _CachedDigest(Struct, frozen=True, kw_only=True):
    key: str
    digest: str


def make_host_image(run_dir: Path, cache_dir: Path, etc: Iterable[str]) -> Image:
    """Builds the base layer below `run_dir`, which must have none, and takes the image's digest.

    `etc`: paths below /etc that languages need (`java-17-openjdk`). Raises HostError where /usr is not merged.
    """
    base = run_dir / "base"
    for folder in _FOLDERS:
        (base / folder).mkdir(0o755, parents=True, exist_ok=True)
    base.chmod(0o755)
    for folder in ("empty", "stage"):
        (run_dir / folder).mkdir(0o755, exist_ok=True)
    for name in _USR_LINKS:
        host = Path("/") / name
        if host.is_symlink():
            (base / name).symlink_to(os.readlink(host))
        elif host.is_dir():
            raise HostError("merged /usr", f"/{name} is a folder, not a link into /usr", "apt-get install usrmerge")
    _make_etc(base / "etc", etc)
    return Image(name=HOST, digest=_digest(base / "etc", cache_dir), base="base", usr="/usr")


def _make_etc(target: Path, etc: Iterable[str]) -> None:
    for name, content in _ETC.items():
        (target / name).write_text(content)
        (target / name).chmod(0o644)
    zone = Path("/usr/share/zoneinfo/UTC")
    if zone.exists():
        (target / "localtime").symlink_to(zone)
    for name in (*_ETC_FROM_HOST, *etc):
        source = Path("/etc") / name
        if source.exists() or source.is_symlink():
            _copy(source, target / name)


def _copy(source: Path, target: Path) -> None:
    """Copies folders, regular files and links; world-readable files alone, so that no secret can slip in."""
    mode = source.lstat().st_mode
    if stat.S_ISDIR(mode):
        target.mkdir(0o755, parents=True, exist_ok=True)
        for child in sorted(source.iterdir()):
            _copy(child, target / child.name)
        return
    target.parent.mkdir(0o755, parents=True, exist_ok=True)
    if stat.S_ISLNK(mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISREG(mode) and mode & stat.S_IROTH:
        shutil.copyfile(source, target)
        target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def packages_key() -> str:
    """Changes whenever a package is installed, upgraded or removed; what is cached about /usr hangs on it."""
    try:
        return hashlib.sha256(_DPKG_STATUS.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise HostError("dpkg", f"{_DPKG_STATUS} not found: the host image needs a Debian-like host") from None


def _digest(etc: Path, cache_dir: Path) -> str:
    """`host-stat:` and a sha256 over path, mode, size and mtime of /usr, path and content of the generated /etc.

    The content of /usr would be gigabytes; the walk alone takes seconds, so it is kept until a package changes.
    """
    contents = hashlib.sha256()
    for path in sorted(etc.rglob("*")):
        entry = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        contents.update(f"{path.relative_to(etc)}\0{entry}\0".encode())
    key = hashlib.sha256(f"{packages_key()} {contents.hexdigest()}".encode()).hexdigest()
    cached = cache_dir / "image-host.json"
    try:
        known = msgspec.json.decode(cached.read_bytes(), type=_CachedDigest)
        if known.key == key:
            return known.digest
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # first start, or a cache of another version: taken anew below
    contents.update(_stat_digest("/usr").encode())
    digest = f"host-stat:{contents.hexdigest()}"
    write_cache(cached, msgspec.json.encode(_CachedDigest(key=key, digest=digest)))
    return digest


def _stat_digest(root: str) -> str:
    total = hashlib.sha256()
    pending = [root]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                info = entry.stat(follow_symlinks=False)
                total.update(
                    f"{entry.path}\0{info.st_mode:o}\0{info.st_size}\0{info.st_mtime_ns}\0".encode(
                        "utf-8", "surrogateescape"
                    )
                )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total.hexdigest()


def write_cache(path: Path, content: bytes) -> None:
    """Replaces a cache file in one step; readable by root alone."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.touch(0o600)
    fresh.write_bytes(content)
    fresh.rename(path)
