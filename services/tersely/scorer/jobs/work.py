"""What a scorer does with a `score` job."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from tersely.errors import ConfigValue
from tersely.scorer.rows import RowScorer

QUEUE = "score"
MOST_SCORERS_KEPT = 4


class ScoreHandler:
    """Answers {"rows", "rewards", "options"} with {"rows"}; sets of rewards that were set up lately are kept.

    A reward that can't be set up, or a row that is none, refuses the batch for good. A reward that raises while it
    scores loses its own values only (`score_batch`).
    """

    def __init__(self) -> None:
        self._scorers: OrderedDict[str, RowScorer] = OrderedDict()

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Scores the rows of a job; raises as `RowScorer`."""
        try:
            rows, rewards, options = payload["rows"], payload["rewards"], payload.get("options") or {}
            scorer = self._scorer([str(name) for name in rewards], {str(k): dict(v) for k, v in options.items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigValue(f"A score job is malformed: {error!r}.", "Use the same version everywhere.") from None
        return {"rows": scorer.score(rows)}

    def _scorer(self, rewards: list[str], options: dict[str, dict[str, object]]) -> RowScorer:
        key = json.dumps([rewards, options], sort_keys=True)
        if key not in self._scorers:
            self._scorers[key] = RowScorer(rewards, options)
            if len(self._scorers) > MOST_SCORERS_KEPT:
                self._scorers.popitem(last=False)
        self._scorers.move_to_end(key)
        return self._scorers[key]
