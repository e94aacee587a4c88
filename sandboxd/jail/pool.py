"""Sandboxes that are built before their jobs come, by policy. Each is used once, and is as strong as any other.

How many are kept follows demand: a job that found none doubles its policy's share, and what lay unused for a while
halves it. All shares together stay below one bound. Building waits until the job that took one has had a head start,
and goes one by one, so that it takes no core from who runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

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


class Share:
    """How many sandboxes of one policy to keep, at least `floor`. Pure: `Pool` says what happened."""

    def __init__(self, floor: int) -> None:
        self.target = self._floor = floor
        self._spare = 0

    def missed(self, room: int) -> None:
        """A job found none. `room`: what all shares together may still grow by."""
        self.target += min(max(1, self.target), room)

    def taken(self, left: int) -> None:
        """A job took one, and `left` stayed."""
        self._spare = min(self._spare, left)

    def review(self) -> None:
        """After a while: gives half of what was never needed back."""
        self.target = max(self._floor, self.target - (self._spare + 1) // 2)
        self._spare = self.target


class Pool:
    """Prepared sandboxes of one launcher, at most `bound`: one of each policy, the more so where jobs ask for more."""

    def __init__(self, policies: Iterable[str], bound: int, make: Callable[[str, Callable[[], None]], Sandbox]) -> None:
        """`make` claims what one of a policy needs, and calls back when it is built; `discard` is for when it is
        gone."""
        self._make = make
        self._bound = bound
        self._shares = {name: Share(int(number < bound)) for number, name in enumerate(policies)}
        self._prepared: dict[str, list[Sandbox]] = {name: [] for name in self._shares}
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
        prepared, share = self._prepared[policy], self._shares[policy]
        sandbox = next((one for one in prepared if one.state is State.READY), None)
        if sandbox is None:
            share.missed(self._bound - sum(each.target for each in self._shares.values()))
            sandbox = next((one for one in prepared if one.state is State.BUILDING), None)
        if sandbox is not None:
            prepared.remove(sandbox)
        share.taken(len(prepared))
        self._refill_after(REFILL_DELAY_S)
        return sandbox

    def give_way(self) -> None:
        """A job waits for what a prepared sandbox holds: one of them goes."""
        fullest = max(self._prepared.values(), key=len)
        if fullest:
            fullest.pop().end(Ending.CANCELLED)

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
        for name in self._prepared:
            self._shrink(name, 0)

    def _shrink(self, policy: str, target: int) -> None:
        prepared = self._prepared[policy]
        while len(prepared) > target:
            prepared.pop().end(Ending.CANCELLED)

    def _wanted(self) -> str | None:
        """The policy that lacks most."""
        lacking = {name: share.target - len(self._prepared[name]) for name, share in self._shares.items()}
        name = max(lacking, key=lambda each: lacking[each])
        return name if lacking[name] > 0 else None

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
        policy = self._wanted()
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
        for name, share in self._shares.items():
            share.review()
            self._shrink(name, share.target)
        self._review_timer = self._loop.call_later(REVIEW_S, self._review)
