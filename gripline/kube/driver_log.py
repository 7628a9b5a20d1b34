"""The driver's log as a container's log: copies what Ray writes of the driver to standard output, as it grows.

Ray keeps a driver's output in a file. This process runs in a container of its own beside Ray, with which it shares
that file's folder, so that `pods/log` gives the driver's lines and no others. Why so: docs/decisions/0024.
"""

import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

FOLDER = Path("/tmp/ray")
PATTERN = "session_[0-9]*/logs/job-driver-*.log"
"""Without `session_latest`, a link to one of them. Source: JOB_LOGS_PATH_TEMPLATE in ray/dashboard/modules/job."""
POLL_S = 0.2
CHUNK_BYTES = 1 << 16


def copy_new(folder: Path, positions: dict[Path, int], out: BinaryIO) -> None:
    """Write to `out` what the driver's logs below `folder` hold beyond `positions`, in bytes, and move those on."""
    for path in sorted(folder.glob(PATTERN)):
        with path.open("rb") as log:
            log.seek(positions.setdefault(path, 0))
            while chunk := log.read(CHUNK_BYTES):
                out.write(chunk)
                positions[path] += len(chunk)
    out.flush()


def main(folder: Path = FOLDER) -> None:
    """Until SIGTERM, which a sidecar gets once the pod's other containers have ended: then the rest, and the end."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    positions: dict[Path, int] = {}
    stopping = False
    while not stopping:
        stopping = stop.wait(POLL_S)  # before the copy, so that the last one comes after the signal
        copy_new(folder, positions, sys.stdout.buffer)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
