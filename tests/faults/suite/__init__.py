"""The fault suite of `weft diff`: pairs of runs whose difference is known to the suite alone.

A case is two directories. What is wrong with the second one, and where, stands in this package
only; the diagnosed command is given two paths. `python -m tests.faults.suite --help` runs it.
"""
