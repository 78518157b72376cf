"""What a run comes to, for people: report.html and the held-out table, made from report.json.

Everything here but `write_report` is a pure function of data.
"""
