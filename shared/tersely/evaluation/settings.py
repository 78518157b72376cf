"""What an evaluation asks for: from the command line, else an earlier evaluation, else the policy's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tersely.config import Recipe
from tersely.config.schema import DataSection, LengthSection
from tersely.data.records import Record, load_records
from tersely.data.targets import draw_target
from tersely.errors import ConfigValue


@dataclass(frozen=True, slots=True)
class Settings:
    """One evaluation, but for the model.

    Attributes:
        data: Source, fields and prompt.
        split: Which part of it.
        limit: The first so many records; None: all.
        seed: Of the sampling, and of the targets where they are drawn.
        length: The target, or the range from which each prompt's is drawn.
        max_completion_tokens: Most sampled tokens.
        samples: Sampled completions per prompt.
        temperature: Of the sampling.
    """

    data: DataSection
    split: str
    limit: int | None
    seed: int
    length: LengthSection
    max_completion_tokens: int
    samples: int
    temperature: float

    def records(self) -> list[Record]:
        """The records of the split; raises as `load_records` does."""
        # max_records is for training: it would cut the split where that is evaluated.
        return load_records(self.data.model_copy(update={"max_records": None}), self.split)[: self.limit]

    def targets(self, records: Sequence[Record]) -> list[int]:
        """The length to ask for, per record; as in the evaluations of a run."""
        return [draw_target(self.length.targets, self.seed, index, record.id) for index, record in enumerate(records)]

    def head(self) -> dict[str, Any]:
        """The settings as an evaluation file keeps them."""
        least, most = self.length.targets
        return {
            "data": self.data.source,
            "split": self.split,
            "limit": self.limit,
            "seed": self.seed,
            "target_tokens": least if least == most else None,
            "target_range": None if least == most else [least, most],
            "max_completion_tokens": self.max_completion_tokens,
            "samples": self.samples,
            "temperature": self.temperature,
            "prompt": self.data.prompt,
            "system_prompt": self.data.system_prompt,
            "max_document_tokens": self.data.max_document_tokens,
            "document_field": self.data.document_field,
            "summary_field": self.data.summary_field,
        }


def resolve_settings(recipe: Recipe | None, like: Mapping[str, Any] | None, given: Mapping[str, Any]) -> Settings:
    """Settings, each from the first of: `given`, `like`, the recipe, its defaults.

    Args:
        recipe: That the policy was trained with; None if tersely did not train it.
        like: An earlier evaluation.
        given: `data`, `split`, `limit` (0: all), `seed`, `target_tokens`, `samples`, `temperature`,
            `max_document_tokens`; None is not given.

    Raises:
        ConfigValue: A value out of range, here or in `like`.
    """
    own = recipe or Recipe()
    from_recipe: dict[str, Any] = {
        "data": own.data.source,
        "split": own.data.eval_split,
        "limit": own.evaluation.prompts or None,
        "seed": own.evaluation.seed,
        "target_tokens": own.length.target_tokens,
        "target_range": own.length.target_range,
        "max_completion_tokens": own.length.max_completion_tokens,
        "samples": own.evaluation.samples,
        "temperature": own.sampling.temperature,
        **own.data.model_dump(
            include={"prompt", "system_prompt", "max_document_tokens", "document_field", "summary_field"}
        ),
    }
    merged = from_recipe | {key: like[key] for key in from_recipe if like is not None and key in like}
    for key, value in given.items():
        if value is not None:
            merged[key] = value
    if given.get("limit") == 0:
        merged["limit"] = None
    if given.get("target_tokens") is not None:
        merged |= {"target_range": None, "max_completion_tokens": None}
    try:
        data = DataSection(
            source=merged["data"],
            train_split=own.data.train_split,
            eval_split=merged["split"],
            **{
                key: merged[key]
                for key in ("prompt", "system_prompt", "max_document_tokens", "document_field", "summary_field")
            },
        )
        span = merged["target_range"]
        length = LengthSection(
            # A range has no single target; the section wants one.
            target_tokens=merged["target_tokens"] or (span[1] if span else 64),
            target_range=None if span is None else (span[0], span[1]),
            max_completion_tokens=merged["max_completion_tokens"],
        )
    except (ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigValue(f"The evaluation's settings can't be used: {reason}", "Correct the option.") from None
    longest = length.longest_target
    return Settings(
        data=data,
        split=str(merged["split"]),
        limit=merged["limit"],
        seed=int(merged["seed"]),
        length=length,
        max_completion_tokens=length.max_completion_tokens or max(2 * longest, longest + 32),
        samples=int(merged["samples"]),
        temperature=float(merged["temperature"]),
    )
