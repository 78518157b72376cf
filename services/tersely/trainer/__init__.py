"""The trainer: issues prompt groups, learns from scored ones, publishes policy versions."""
