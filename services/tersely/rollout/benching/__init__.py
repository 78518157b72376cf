"""`tersely bench rollout`, `weights` and `link`: engines beside their peers, and what new weights cost on their way."""
