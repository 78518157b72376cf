"""The judge's process: it is healthy, and says that it has no endpoint to judge with."""
