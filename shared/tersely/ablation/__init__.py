"""`tersely ablate`: the same budget with different rewards, on several seeds, and one report about all of it.

plan.py reads the file and lays out the cells, a cell is one run; run.py works them off as processes of `tersely up`,
however often it is interrupted; measure.py gets the held-out completions of each cell, figures.py puts them and their
tests together, page.py and markdown.py write them down.
"""
