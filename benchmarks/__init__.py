"""Measurements of Weft beside its peers: `python -m benchmarks`."""

from weft.core.threads import wait_politely

wait_politely()  # for everyone who takes part
