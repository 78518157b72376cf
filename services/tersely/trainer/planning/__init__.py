"""What a run will cost in memory and time, and whether it can work, before anything is loaded or written."""
