"""How a benchmark tells the stub engine of workers that it starts how fast to pretend to be."""

from __future__ import annotations

STEP_SECONDS_ENV = "TERSELY_STUB_STEP_SECONDS"
"""Environment variable: seconds that each step sleeps, as if it computed; 0 where it is not set."""

STEP_TOKENS_ENV = "TERSELY_STUB_STEP_TOKENS"
"""Environment variable: tokens of each sequence per step; 4 where it is not set."""
