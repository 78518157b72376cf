"""Child processes of one machine: started, watched, restarted within a limit, and never outliving their supervisor.

lifeline.py is the pipe whose end tells a child that its supervisor is gone, supervisor.py keeps the children,
failures.py hands an error from a child to its supervisor, local_run.py is the whole of `tersely up`.
"""
