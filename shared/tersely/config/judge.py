"""The recipe's table [judge]: which language model judges, how hard it may be asked, and what it may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tersely.config.section import Section

OPENAI_HOST = "api.openai.com"
OPENAI_KEY_ENV = "OPENAI_API_KEY"


class JudgeSection(Section):
    """The language model that judges."""

    enabled: bool = Field(False, description="Start a judge process with `tersely up`.")
    endpoint: str | None = Field(
        None, description="Base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."
    )
    model: str | None = Field(
        None, description="Model to ask for, and the judge's name in cache and results; unset: the endpoint's only one."
    )
    api_key_env: str | None = Field(
        None,
        min_length=1,
        description="Environment variable with the key; unset: OPENAI_API_KEY for OpenAI's endpoint, none elsewhere.",
    )
    host: str = Field("127.0.0.1", description="Address the judge listens on; beyond loopback as rpc.host.")
    port: int = Field(0, ge=0, le=65535, description="0: a free port.")
    rounds: int = Field(1, ge=1, le=16, description="Times each axis is asked for; its score is their mean.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Sampling temperature; unset: 0 with one round, 0.7 with several."
    )
    max_answer_tokens: int = Field(400, ge=16, description="Longest answer, in tokens of the judge.")
    concurrency: int = Field(8, ge=1, le=256, description="Calls in flight at a time.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most calls begun per minute; unset: no limit.")
    timeout_seconds: float = Field(60.0, gt=0, description="Longest wait for one answer.")
    attempts: int = Field(6, ge=1, description="Times a call is tried before the judge abstains.")
    backoff_seconds: float = Field(
        0.5, ge=0, description="Wait before the second attempt; it doubles, with jitter, up to backoff_max_seconds."
    )
    backoff_max_seconds: float = Field(
        30.0, ge=0, description="Longest wait between attempts, Retry-After of the endpoint included."
    )
    circuit_failures: int = Field(
        20, ge=1, description="Failed calls in a row after which the endpoint counts as down and is left alone."
    )
    circuit_cooldown_seconds: float = Field(
        30.0, ge=0, description="How long it is left alone before one call tries it again."
    )
    budget_tokens: int | None = Field(
        None, ge=1, description="Most tokens, read and written, that one process may use; unset: no limit."
    )
    budget_cost: float | None = Field(
        None, gt=0, description="Most money that one process may spend, in the unit of the prices; unset: no limit."
    )
    price_read_per_million: float | None = Field(None, ge=0, description="Price of a million prompt tokens.")
    price_written_per_million: float | None = Field(None, ge=0, description="Price of a million answer tokens.")
    cache: Path | None = Field(None, description="Folder of the cache of answers; unset: one for all, in the user's.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.endpoint!r} is no URL: it begins with http:// or https://")
        if self.budget_cost is not None and None in (self.price_read_per_million, self.price_written_per_million):
            raise ValueError("budget_cost needs price_read_per_million and price_written_per_million")
        return self

    @property
    def used_key_env(self) -> str | None:
        """Environment variable of the key that the endpoint gets; a key for OpenAI goes to nobody else unasked."""
        if self.api_key_env is None and self.endpoint is not None and urlsplit(self.endpoint).hostname == OPENAI_HOST:
            return OPENAI_KEY_ENV
        return self.api_key_env

    @property
    def used_temperature(self) -> float:
        """The temperature that calls are made with."""
        if self.temperature is not None:
            return self.temperature
        return 0.7 if self.rounds > 1 else 0.0
