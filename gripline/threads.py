"""One compute thread per process unless a stage asks for more, and threads that spin only briefly before they sleep.

Where several processes share a machine, spinning OpenMP threads take cores from those that have work; those that never
spin wake up too slowly: docs/decisions/0014 has the measurement. Must run before torch is imported.
"""

import os

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",  # Mesa's software renderer
    "GOMP_SPINCOUNT": "20000",  # rounds in which a GNU OpenMP thread waits actively
}


def set_defaults() -> None:
    """For this process's libraries and for every child; what the user has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
