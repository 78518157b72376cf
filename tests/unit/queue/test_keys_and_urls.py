from __future__ import annotations

import pytest

from tersely.config.schema import QueueSection
from tersely.queue import RunKeys, password_from, without_password
from tersely.types import NodeId, RunId


def test_keys_share_the_hash_tag_of_their_run():
    keys = RunKeys(RunId("r-1"))
    assert [keys.prompts, keys.completions, keys.scored, keys.quarantine, keys.nodes, keys.events] == [
        f"t:{{r-1}}:{name}" for name in ("prompts", "completions", "scored", "quarantine", "nodes", "events")
    ]
    assert keys.node(NodeId("rollout-x-1")) == "t:{r-1}:node:rollout-x-1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
        ("redis://:secret@h:1/2", "redis://h:1/2"),
        ("rediss://user:se%40cret@h:1", "rediss://user@h:1"),
        ("redis://user@h", "redis://user@h"),
        ("redis://user:p@ss@h", "redis://user@h"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1"),
    ],
)
def test_shown_url_has_no_password(url: str, shown: str):
    assert without_password(url) == shown


def test_password_comes_from_the_named_variable():
    queue = QueueSection(password_env="MY_VARIABLE")
    assert password_from(queue, {"MY_VARIABLE": "x", "TERSELY_REDIS_PASSWORD": "y"}) == "x"
    assert password_from(queue, {"MY_VARIABLE": ""}) is None
    assert password_from(QueueSection(), {}) is None
