"""The third door of `score_batch`: files of rows, as RQ jobs named `score`, and `tersely score`."""
