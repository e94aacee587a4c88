"""Fixtures of all tests: real launchers, each an instance of its own, and the proof that nothing is left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

from sandboxd.audit.corpus import ATTEMPTS, PROGRAMS


@pytest.fixture(scope="session")
def state_root() -> Iterator[Path]:
    """State of every instance of this run; digests and compiled filters are cached in it across tests."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-tests-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="session")
def _launcher(state_root: Path) -> Iterator[LauncherUnderTest]:
    under_test = LauncherUnderTest(state_root, f"test-{os.getpid()}")
    yield under_test
    assert under_test.stop() == 0, under_test.log.read_text()
    under_test.await_all_gone()


@pytest.fixture
def launcher(_launcher: LauncherUnderTest) -> Iterator[LauncherUnderTest]:
    """The run's launcher, all walls on. After the test no process, cgroup, slot or descriptor of it is left."""
    _launcher.await_nothing_left()
    fds = _launcher.open_fds()
    yield _launcher
    _launcher.await_nothing_left()
    assert _launcher.process.poll() is None, f"the launcher died:\n{_launcher.log.read_text()}"
    _launcher.await_fds(fds)


@pytest.fixture(scope="session")
def control(state_root: Path) -> Iterator[Callable[..., LauncherUnderTest]]:
    """Launchers without the given layers, to show that an attack works when that one wall is taken away."""
    made: dict[tuple[str, ...], LauncherUnderTest] = {}

    def get(*without: str) -> LauncherUnderTest:
        if without not in made:
            made[without] = LauncherUnderTest(state_root, f"control-{os.getpid()}-{len(made)}", without)
        return made[without]

    yield get
    statuses = {under_test: under_test.stop() for under_test in made.values()}
    for under_test, status in statuses.items():
        assert status == 0, f"{under_test.instance.name} {under_test.without}:\n{under_test.log.read_text()}"
        under_test.await_all_gone()


@pytest.fixture(scope="session")
def attempts() -> bytes:
    """The audit's hostile program, linked statically."""
    return (PROGRAMS / ATTEMPTS).read_bytes()


@pytest.fixture
def own_launcher(state_root: Path) -> Iterator[LauncherUnderTest]:
    """A launcher that the test may kill."""
    under_test = LauncherUnderTest(state_root, f"own-{os.getpid()}")
    yield under_test
    if under_test.process.poll() is None:
        under_test.stop()
    under_test.await_all_gone()
