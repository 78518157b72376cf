"""Names of all keys of a run."""

from __future__ import annotations

from dataclasses import dataclass

from tersely.types import NodeId, RunId


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys of one run, e.g. ``RunKeys(RunId("r-5f3a")).prompts == "t:{r-5f3a}:prompts"``."""

    run_id: RunId

    @property
    def prompts(self) -> str:
        """Stream of PromptGroup: trainer to rollout."""
        return self._key("prompts")

    @property
    def evaluation_prompts(self) -> str:
        """Stream of PromptGroup of held-out prompts: trainer to rollout, which has training groups first."""
        return self._key("eval_prompts")

    @property
    def completions(self) -> str:
        """Stream of CompletionGroup: rollout to scorer."""
        return self._key("completions")

    @property
    def scored(self) -> str:
        """Stream of ScoredGroup: scorer to trainer."""
        return self._key("scored")

    @property
    def quarantine(self) -> str:
        """Stream of QuarantinedGroup."""
        return self._key("quarantine")

    @property
    def quarantine_decisions(self) -> str:
        """Hash by group id of what people decided on the groups in the quarantine, and what became of it."""
        return self._key("quarantine_decisions")

    @property
    def nodes(self) -> str:
        """Hash of all nodes that ever joined, by node id."""
        return self._key("nodes")

    @property
    def events(self) -> str:
        """Capped stream of events."""
        return self._key("events")

    def node(self, node_id: NodeId) -> str:
        """Key of a node's last heartbeat; it expires."""
        return self._key(f"node:{node_id}")

    def _key(self, last: str) -> str:
        return f"t:{{{self.run_id}}}:{last}"
