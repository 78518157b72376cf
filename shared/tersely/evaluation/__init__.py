"""Statistics for comparing policies on the same held-out prompts."""
