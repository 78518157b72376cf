"""The command `tersely`: one module per family of commands.

Modules import what is heavy inside the commands, so that `tersely --help` answers at once.
"""
