"""Which role may call what. A method that is not named here is refused to everybody."""

from __future__ import annotations

from collections.abc import Mapping

_ANY = frozenset({"trainer", "rollout", "scorer", "judge", "client"})
_IN_RUN = frozenset({"trainer", "rollout", "scorer", "judge"})
_FETCHES = frozenset({"trainer", "rollout"})
_ASKS_JUDGE = frozenset({"trainer", "scorer", "client"})
_ASKS_SCORER = frozenset({"trainer", "client"})

MAY_CALL: Mapping[str, frozenset[str]] = {
    "/tersely.v1.NodeService/Join": frozenset({"rollout", "scorer", "judge"}),
    "/tersely.v1.CheckpointService/WatchVersions": _FETCHES,
    "/tersely.v1.CheckpointService/FetchWeights": _FETCHES,
    "/tersely.v1.CheckpointService/FetchModelFile": _FETCHES,
    "/tersely.v1.RunService/GetStatus": _IN_RUN,
    # Ends a run: only from the machine that it belongs to.
    "/tersely.v1.RunService/Drain": frozenset({"trainer"}),
    "/tersely.v1.ScoringService/Score": _ASKS_SCORER,
    "/tersely.v1.ScoringService/ScoreStream": _ASKS_SCORER,
    "/tersely.v1.JudgeService/Judge": _ASKS_JUDGE,
    "/tersely.v1.JudgeService/JudgeBatch": _ASKS_JUDGE,
    "/tersely.v1.CertificateService/Renew": _ANY,
    "/tersely.v1.CertificateService/GetRevocations": _ANY,
    # Of nobody with a certificate: they are served on the port for joining, where nobody has one yet.
    "/tersely.v1.JoinService/GetAuthority": frozenset(),
    "/tersely.v1.JoinService/Enroll": frozenset(),
    "/grpc.health.v1.Health/Check": _ANY,
    "/grpc.health.v1.Health/List": _ANY,
    "/grpc.health.v1.Health/Watch": _ANY,
}
"""Full name of a method: the roles that may call it over mTLS."""

OPEN_METHODS = frozenset({"/tersely.v1.JoinService/GetAuthority", "/tersely.v1.JoinService/Enroll"})
"""What can be called without a certificate, and only at the port for joining."""
