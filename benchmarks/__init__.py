"""Measurements of Weft beside its peers: `python -m benchmarks`.

OpenMP's threads spin while they wait for each other, which on a machine with other work takes the
core from the very thread they wait for: a step of many small operations then runs several times
slower. `passive` lets them sleep. It must be set before PyTorch is loaded, and holds for everyone.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
