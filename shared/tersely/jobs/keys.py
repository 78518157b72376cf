"""Names and times that clients and workers of job queues agree on."""

from __future__ import annotations

LEASE_SECONDS = 15
"""A worker that has not renewed its hold on a job for so long has lost it."""
REAP_SECONDS = 5.0
"""How often workers and clients look for lost jobs."""
TASK_TTL_SECONDS = 3600
"""Life of what a client that vanished left behind."""
JOB_SECONDS = 120
"""Longest a batch may take; a batch that takes longer is tried again."""
MOST_TRIES = 3
"""How often a batch is begun before it is given up."""
QUEUES = ("score", "judge")


def open_key(task: str) -> str:
    """Set of the task's job ids without a result."""
    return f"tj:{{{task}}}:open"


def done_key(task: str) -> str:
    """List of the task's finished batches."""
    return f"tj:{{{task}}}:done"


def job_id(task: str, batch: int) -> str:
    """Id of a batch's job; RQ allows letters, digits, `-` and `_`."""
    return f"{task}-{batch}"


def executions_key(job: str) -> str:
    """RQ's list of a job's executions.

    RQ 3.0 keeps the execution of a worker that died in it for a minute longer than the execution itself, and then can
    neither finish nor delete the job ("Execution ... not found in Redis"): whoever does either removes the list first.
    """
    return f"rq:executions:{job}"


def results_key(job: str) -> str:
    """RQ's record of how a job failed."""
    return f"rq:results:{job}"
