"""The mathematics of group-relative policy optimization: pure functions, no model, no I/O."""
