"""The one thing that a worker does: run a job through the launcher. `queue.ALLOWED_FUNCTION` names it, and no other
is ever called.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from sandboxd import execution
from sandboxd.errors import InputError, InternalError
from sandboxd.execution import Ended, no_result
from sandboxd.store import Claim
from workers.launcher import Launcher

log = structlog.get_logger()


def run_job(
    job_id: str,
    claim: Claim,
    launcher: Launcher,
    *,
    cancel_fd: int,
    on_idle: Callable[[], None],
) -> Ended:
    """Run every stage of the job. A failure of ours is an ending too (`internal_error`), with what a client may know
    of it.
    """
    if claim.request is None:
        return no_result(claim.policy, claim.image, "the job's input is gone")
    try:
        client, catalogue = launcher.connect()
        return execution.run_job(claim.request, catalogue, client, cancel_fd=cancel_fd, on_idle=on_idle)
    except InputError as error:
        # The API accepted it: the launcher of this host offers less, or its policies differ.
        log.error("the launcher refuses an accepted job", job=job_id, error=str(error))
        return no_result(claim.policy, claim.image, f"the launcher refused the job: {error}")
    except InternalError as error:
        launcher.close()
        log.error("the launcher failed", job=job_id, error=str(error))
        return no_result(claim.policy, claim.image, "the launcher failed or went away while the job ran")
