"""Documents and reference summaries: reading them, turning them into prompts, and the order they are trained in."""
