"""Work that people hand in as files (score these, judge these): RQ queues with batches, workers, results.

RQ 3 keeps queues, retries and who works on what; everything that makes RQ run code from Redis is shut:

* the serializer is JSON, and a job names a *handler* of the worker's own table, never something to import (`allowed`);
* callbacks, webhooks and bound instances in a job make it fail before it runs;
* the worker is RQ's SimpleWorker in our own process, without its command channel and its signal handlers (`worker`).

Delivery is at least once: a worker that falls silent loses its batch after `LEASE_SECONDS` (`reaper`), and a batch can
be done twice. The client counts the first result of a batch (`client`). RQ's own result store is not used.

Key space beside RQ's `rq:*`:

    key               type   written by   holds
    tj:{task}:open    set    client       ids of the task's jobs that have no result yet; its absence ends the task
    tj:{task}:done    list   worker       one JSON text per finished batch, taken out by the client

Both expire after an hour without their client, and the client removes them with its last job.
"""

from tersely.jobs.client import BatchClient, BatchResult
from tersely.jobs.worker import Handler, JobWorker

__all__ = ["BatchClient", "BatchResult", "Handler", "JobWorker"]
