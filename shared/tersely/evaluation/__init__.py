"""How policies are measured: what counts as the right length, and paired statistics on the same held-out prompts."""

WITHIN_TOKENS = 5
"""A completion is "within" when it stopped by itself at most so many tokens from its target."""
