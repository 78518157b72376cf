"""What a run leaves behind for people and programs: logs, events, samples, files that are never half-written."""
