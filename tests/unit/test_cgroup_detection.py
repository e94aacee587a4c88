"""Where this process is in the cgroup tree, from the kernel's own texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.errors import HostError
from sandboxd.jail.cgroup_host import detect

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"""
V1 = "\n".join(HYBRID.splitlines()[:-1])


def test_pure_v2_has_one_tree() -> None:
    found = detect("0::/user.slice/session-3.scope\n", V2)
    assert not found.hybrid
    assert found.v2 == Path("/sys/fs/cgroup/user.slice/session-3.scope")


def test_hybrid_has_its_limits_in_v1() -> None:
    found = detect("8:pids:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n", HYBRID)
    assert found.hybrid
    assert found.v2 == Path("/sys/fs/cgroup/unified/c")
    assert found.v1 == {"memory": Path("/sys/fs/cgroup/memory/a/b"), "pids": Path("/sys/fs/cgroup/pids")}


def test_v1_alone_is_refused_with_a_remedy() -> None:
    with pytest.raises(HostError, match="no cgroup2 filesystem is mounted") as caught:
        detect("8:pids:/\n4:memory:/\n", V1)
    assert caught.value.remedy


def test_in_a_container_paths_begin_at_the_mounts_root() -> None:
    mounted = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw"
    assert detect("0::/docker/abc/inner\n", mounted).v2 == Path("/sys/fs/cgroup/inner")
    assert detect("0::/\n", mounted.replace("/docker/abc", "/")).v2 == Path("/sys/fs/cgroup")


def test_optional_mount_fields_do_not_confuse_it() -> None:
    line = "30 23 0:26 / /sys/fs/cgroup rw shared:4 master:1 propagate_from:2 - cgroup2 cgroup2 rw"
    assert detect("0::/x\n", line).v2 == Path("/sys/fs/cgroup/x")
