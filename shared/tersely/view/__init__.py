"""A run as seen from a terminal: everything comes from the files of its run directory.

status.py merges them into one picture, follow.py reads new lines and events, long_work.py finds in the
trainer's log what takes long before there is a status, plain.py prints one line per event, live.py draws the picture
that stays in place.
"""
