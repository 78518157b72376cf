"""What every service does the same way: joining a run, heartbeats, draining on a signal."""
