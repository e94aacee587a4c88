"""Fixtures of the tests that look into a launcher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultrig import FailingWorkshop

from sandboxd.instance import RUN_ROOT, Instance
from sandboxd.jail import slots, sweeper
from sandboxd.jail.cgroup_host import open_cgroups
from sandboxd.jail.cgroups import Cgroups
from sandboxd.jail.images import make_host_image
from sandboxd.jail.slots import Slots
from sandboxd.jail.workshop import remove_tree
from sandboxd.policy.load import load_policies, policy_folder


@pytest.fixture
def policies() -> Path:
    """The folder that `workshop` takes its policies from."""
    return policy_folder()


@pytest.fixture
def workshop(tmp_path: Path, policies: Path) -> Iterator[FailingWorkshop]:
    """An instance's own things, which a launcher would hold. Whatever of them was made is taken away again."""
    instance = Instance(name=FailingWorkshop.name, state_root=str(tmp_path))
    RUN_ROOT.mkdir(0o755, exist_ok=True)
    with contextlib.ExitStack() as stack:
        instance.run_dir.mkdir(0o755)
        stack.callback(remove_tree, instance.run_dir)
        # Or the next launcher that starts on this host takes its slots for abandoned.
        stack.callback(os.close, sweeper.take_lock(instance))
        cgroups: Cgroups = open_cgroups(instance.name)
        stack.callback(cgroups.close)
        sweeper.record(instance, cgroups.parents())
        made_slots = Slots(instance.name)
        stack.callback(made_slots.close)
        made = FailingWorkshop(
            cgroups=cgroups,
            slots=made_slots,
            policies=load_policies(policies),
            image=make_host_image(instance.run_dir, instance.cache_dir, []),
            policy_folder=policies,
            cache_dir=instance.cache_dir,
            run_dir=instance.run_dir,
            without=frozenset(),
        )
        stack.callback(made.close)
        yield made
    assert not any(parent.exists() for parent in cgroups.parents()), "cgroups are left"
    assert instance.name not in slots.claimed().values(), "slots are left"
