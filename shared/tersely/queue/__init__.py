"""Work queues on Redis streams: keys, connections, leases, quarantine, and a server for one machine.

Delivery guarantee: **at least once; a group may be delivered, generated, scored or forwarded more than once.**
Nothing is dropped silently: an entry leaves a stream only in the MULTI that puts it (or its successor) somewhere else,
or after `WorkStream.ack`. Copies have the same group_id and come from two places:

* redis-py sends a command again when its reply was lost, so one `add`, `forward`, `give_back` or `fail` can leave two
  entries;
* a lease that expired is worked on by two consumers. `forward` refuses with `LeaseLost` when the entry has gone to
  another. Only if it goes in the round trip between that check and the MULTI, and the other one makes its own check
  before that MULTI ends, are both copies sent on.

Copies are harmless because work is idempotent (a group's seed fixes its samples) and because the trainer alone
decides: the first copy of a group_id wins, later ones are counted. Whoever reads a stream must therefore tell copies by
group_id, never by entry id. A strike reported on a copy counts on that copy only.

Key space (Redis >= 7.0, Valkey >= 7.2; the braces are literal, a hash tag that keeps a run on one cluster slot):

    key                    type                    written by   holds
    t:{run}:prompts        stream, group rollout   trainer      PromptGroup
    t:{run}:eval_prompts   stream, group rollout   trainer      PromptGroup of held-out prompts
    t:{run}:completions    stream, group scorer    rollout      CompletionGroup
    t:{run}:scored         stream, group trainer   scorer       ScoredGroup
    t:{run}:quarantine     stream                  any          QuarantinedGroup
    t:{run}:nodes          hash                    each node    what a node is, by node id
    t:{run}:node:<id>      string with expiry      each node    its last heartbeat
    t:{run}:events         capped stream           trainer      what status and page show

Fields of an entry in a work stream: `g` group_id, `p` payload (one protobuf message), `s` strikes, `x` leases that
expired before the entry was last added again. In the quarantine: `g` and `p`. Work streams are never trimmed (MAXLEN
drops unread work). The server syncs its append-only file every second, so a power cut may lose the last second; like a
wiped server it costs only what was in flight, which the trainer issues again from its own log.
"""

from tersely.queue.connect import connect, password_from, redis_errors, without_password
from tersely.queue.entries import Lease, StreamDepth
from tersely.queue.keeper import LeaseKeeper
from tersely.queue.keys import RunKeys
from tersely.queue.quarantine import QuarantineReader
from tersely.queue.stream import WorkStream

__all__ = [
    "Lease",
    "LeaseKeeper",
    "QuarantineReader",
    "RunKeys",
    "StreamDepth",
    "WorkStream",
    "connect",
    "password_from",
    "redis_errors",
    "without_password",
]
