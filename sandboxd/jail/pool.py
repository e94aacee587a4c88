"""Sandboxes that are built before their jobs come, by policy. Each is used once, and is as strong as any other.

How many are kept follows demand: a job that found none doubles its policy's share, at the cost of the others where all
places are taken, and what lay unused for a while is halved. Building waits until the job that took one has had a head
start, and goes one by one, so that it takes no core from who runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from sandboxd.errors import InternalError
from sandboxd.jail.sandbox import Sandbox, State
from sandboxd.result import Ending

log = structlog.get_logger()

PREPARED_BYTES = 2 << 20
"""What one that waits takes of the host's memory, at most (measured: docs/performance.md)."""
REFILL_DELAY_S = 0.003
"""A short job that took one is over by then."""
RETRY_S = 1.0
REVIEW_S = 30.0


class Shares:
    """How many sandboxes of each policy to keep, at most `bound` together. Pure: `Pool` says what happened."""

    def __init__(self, policies: Iterable[str], bound: int) -> None:
        self._bound = bound
        self.targets = dict.fromkeys(policies, 0)
        self._give_first_places()
        self._spare = dict(self.targets)
        """How many of each were not needed since the last review."""

    def missed(self, policy: str) -> None:
        """A job found none. Where no place is free, one is taken from who did not need it, or has far more."""
        more = min(max(1, self.targets[policy]), self._bound - sum(self.targets.values()))
        if more == 0 and (giver := self._giver(policy)) is not None:
            self.targets[giver] -= 1
            self._spare[giver] = max(0, self._spare[giver] - 1)
            more = 1
        self.targets[policy] += more

    def _giver(self, policy: str) -> str | None:
        others = [name for name, target in self.targets.items() if target and name != policy]
        if spare := [name for name in others if self._spare[name]]:
            return max(spare, key=self._spare.__getitem__)
        richer = [name for name in others if self.targets[name] > self.targets[policy] + 1]
        return max(richer, key=self.targets.__getitem__, default=None)

    def taken(self, policy: str, left: int) -> None:
        """A job took one, and `left` stayed."""
        self._spare[policy] = min(self._spare[policy], left)

    def review(self) -> None:
        """After a while: half of what was never needed is given back, but not a policy's last one."""
        for name, target in self.targets.items():
            self.targets[name] = max(min(1, target), target - (self._spare[name] + 1) // 2)
        self._give_first_places()
        self._spare = dict(self.targets)

    def _give_first_places(self) -> None:
        """One to each policy, as far as there is room."""
        room = self._bound - sum(self.targets.values())
        for name in [name for name, target in self.targets.items() if target == 0][:room]:
            self.targets[name] = 1

    def wanted(self, kept: Mapping[str, int]) -> str | None:
        """The policy whose share is the emptiest, of `kept` sandboxes; None when all are full."""
        lacking = [name for name, target in self.targets.items() if kept[name] < target]
        return min(lacking, key=lambda name: (kept[name] / self.targets[name], -self.targets[name]), default=None)


class Pool:
    """Prepared sandboxes of one launcher, at most `bound`: one of each policy, and more where jobs ask for more."""

    def __init__(self, policies: Iterable[str], bound: int, make: Callable[[str, Callable[[], None]], Sandbox]) -> None:
        """`make` claims what one of a policy needs, and calls back when it is built; `discard` is for when it is
        gone."""
        self._make = make
        self._shares = Shares(policies, bound)
        self._prepared: dict[str, list[Sandbox]] = {name: [] for name in self._shares.targets}
        self._under_construction: Sandbox | None = None
        self._closed = bound == 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._review_timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins to build."""
        if not self._closed:
            self._refill_after(0)
            self._review_timer = self._loop.call_later(REVIEW_S, self._review)

    def take(self, policy: str) -> Sandbox | None:
        """One that is built, else one that is being built; None: there is neither."""
        if self._closed:
            return None
        self._forget_those_that_end()
        prepared = self._prepared[policy]
        sandbox = next((one for one in prepared if one.state is State.READY), None)
        if sandbox is None:
            self._shares.missed(policy)
            self._shrink()
            sandbox = next((one for one in prepared if one.state is State.BUILDING), None)
        if sandbox is not None:
            prepared.remove(sandbox)
        self._shares.taken(policy, len(prepared))
        self._refill_after(REFILL_DELAY_S)
        return sandbox

    def give_way(self) -> None:
        """A job waits for what a prepared sandbox holds: one of them goes."""
        fullest = max(self._prepared.values(), key=len)
        if fullest:
            self._end_oldest(fullest)

    def discard(self, sandbox: Sandbox) -> None:
        """It is gone. One that died while it waited is replaced, not at once: what ended it may end the next."""
        was_ours = sandbox is self._under_construction
        if was_ours:
            self._under_construction = None
        for prepared in self._prepared.values():
            if sandbox in prepared:
                prepared.remove(sandbox)
                was_ours = True
        if was_ours:
            self._refill_after(RETRY_S)

    def close(self) -> None:
        """Ends all that wait, builds no more."""
        self._closed = True
        for timer in (self._timer, self._review_timer):
            if timer is not None:
                timer.cancel()
        for prepared in self._prepared.values():
            while prepared:
                self._end_oldest(prepared)

    def _shrink(self) -> None:
        """Ends those whose place another policy has now, or nobody."""
        for name, prepared in self._prepared.items():
            while len(prepared) > self._shares.targets[name]:
                self._end_oldest(prepared)

    def _forget_those_that_end(self) -> None:
        """One whose cgroup the kernel keeps may never be gone: it takes nobody's place."""
        for prepared in self._prepared.values():
            prepared[:] = [one for one in prepared if one.state < State.ENDING]
        if self._under_construction is not None and self._under_construction.state >= State.ENDING:
            self._under_construction = None

    def _end_oldest(self, prepared: list[Sandbox]) -> None:
        sandbox = prepared.pop(0)
        if sandbox is self._under_construction:
            self._under_construction = None  # it is no failure: the next may be begun at once
        sandbox.end(Ending.CANCELLED)

    def _refill_after(self, delay_s: float) -> None:
        """Or sooner, where that was asked for already."""
        if self._under_construction is not None or self._closed:
            return
        due_s = self._loop.time() + delay_s
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._refill)

    def _refill(self) -> None:
        self._timer = None
        policy = self._shares.wanted({name: len(prepared) for name, prepared in self._prepared.items()})
        if policy is None:
            return
        try:
            sandbox = self._make(policy, self._on_built)
        except InternalError as error:
            log.warning("no sandbox could be prepared", policy=policy, error=str(error))
            self._refill_after(RETRY_S)
            return
        self._under_construction = sandbox
        self._prepared[policy].append(sandbox)
        sandbox.build()

    def _on_built(self) -> None:
        self._under_construction = None
        self._refill_after(0)

    def _review(self) -> None:
        self._shares.review()
        self._shrink()
        self._refill_after(0)
        self._review_timer = self._loop.call_later(REVIEW_S, self._review)
