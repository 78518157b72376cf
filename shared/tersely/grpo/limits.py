"""Limits of the loss's arithmetic."""

from __future__ import annotations

MAX_LOG_RATIO = 20.0
"""Log-ratios are held within +-20, so that one absurd token gives a large loss and not inf or NaN. Beyond it the
gradient through that ratio is 0."""
