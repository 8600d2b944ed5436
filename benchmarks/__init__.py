"""Measurements of Weft beside its peers: `python -m benchmarks`."""

import os

from weft.core.threads import wait_politely

wait_politely()  # for everyone who takes part
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler says when it begins and ends
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # or the Trainer would divide a batch among all
