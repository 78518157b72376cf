"""Between processes: the Redis server, gRPC, and jobs on a queue."""

from __future__ import annotations

from tersely.errors.base import TerselyError


class QueueError(TerselyError):
    """The Redis or Valkey server, or an entry in its streams."""


class RedisUnreachable(QueueError):
    """Nothing answers at the Redis URL."""

    kind, exit_code = "redis_unreachable", 40


class RedisAuth(QueueError):
    """The server refused the user or the password, or the user lacks a permission.

    Attributes:
        of_login: Whether user or password was refused.
    """

    kind, exit_code = "redis_auth", 41
    of_login = False


class RedisTooOld(QueueError):
    """The server is older than Redis 7.0 / Valkey 7.2."""

    kind, exit_code = "redis_too_old", 42


class RedisOutOfMemory(QueueError):
    """The server is at `maxmemory` with `noeviction` and refuses writes."""

    kind, exit_code = "redis_out_of_memory", 43


class RedisTls(QueueError):
    """No encrypted connection to the server: a certificate was refused, or one side speaks plain text."""

    kind, exit_code = "redis_tls", 110


class RedisServerMissing(QueueError):
    """No Redis or Valkey server on this machine could listen beyond loopback."""

    kind, exit_code = "redis_server_missing", 111


class LeaseLost(QueueError):
    """The entry is no longer leased to this consumer: its work must not be pushed."""

    kind, exit_code = "lease_lost", 44


class RpcError(TerselyError):
    """gRPC between the nodes."""


class PortBusy(RpcError):
    """The address to listen on is taken."""

    kind, exit_code = "port_busy", 50


class TrainerUnreachable(RpcError):
    """Nothing answers at the trainer's address within the deadline."""

    kind, exit_code = "trainer_unreachable", 51


class PlaintextRefused(RpcError):
    """Listening beyond loopback without TLS was not asked for by name."""

    kind, exit_code = "plaintext_refused", 52


class WeightsMismatch(RpcError):
    """Fetched weights do not have the hash that their manifest states."""

    kind, exit_code = "weights_mismatch", 53


class WeightsUnavailable(RpcError):
    """The trainer no longer holds the version that was asked for."""

    kind, exit_code = "weights_unavailable", 54


class JobError(TerselyError):
    """Files handed to the job queues: `tersely score`, `tersely judge-file`."""


class NoWorkers(JobError):
    """Nobody works on the job queue."""

    kind, exit_code = "no_workers", 94


class JobFailed(JobError):
    """A batch failed, or took its workers down, as often as it is tried."""

    kind, exit_code = "job_failed", 95


class OutputBusy(JobError):
    """Another process is writing the same output file."""

    kind, exit_code = "output_busy", 96
