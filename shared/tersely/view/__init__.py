"""A run as seen from a terminal: everything comes from the files of its run directory.

status.py merges them into one picture, follow.py reads new events, plain.py prints one line per event,
live.py draws the picture that stays in place.
"""
