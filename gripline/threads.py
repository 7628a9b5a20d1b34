"""One compute thread per process unless a stage asks for more, and threads that wait without burning a core.

Where several processes share a machine, spinning OpenMP threads cost more than they bring: with one other busy core,
training with two spinning threads took five times as long as with two waiting ones. Must run before torch is imported.
"""

import os

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",  # Mesa's software renderer
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_defaults() -> None:
    """For this process's libraries and for every child; what the user has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
