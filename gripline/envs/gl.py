"""Which software or hardware renderer MuJoCo draws with. MuJoCo reads `MUJOCO_GL` once, when it is imported."""

import os
import subprocess
import sys
from typing import NoReturn

from gripline.errors import UserError

RENDERERS = ("egl", "osmesa")
"""In the order in which they are tried."""
VARIABLE = "MUJOCO_GL"
PACKAGES = "libegl1 libgl1-mesa-dri libopengl0"
_PROBE = "import mujoco; c = mujoco.GLContext(16, 16); c.make_current(); c.free()"
_PROBE_TIMEOUT_S = 60.0


def probe_renderers() -> dict[str, str]:
    """'ok' or the reason for each renderer. Probed in processes of their own: a broken driver may crash its process."""
    return {name: _probe(name) for name in RENDERERS}


def choose_renderer(wanted: str) -> str:
    """Settle on a renderer and set `MUJOCO_GL`, before MuJoCo is imported; processes started later inherit the choice.

    wanted: 'egl', 'osmesa' or 'auto', the first that works. What the variable already says is taken as tried.
    Raises UserError when none works.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")  # the software rasteriser's threads only get in each other's way
    candidates = RENDERERS if wanted == "auto" else (wanted,)
    inherited = os.environ.get(VARIABLE)
    if inherited is not None and inherited in candidates:
        return inherited
    reasons = []
    for name in candidates:
        answer = _probe(name)
        if answer == "ok":
            os.environ[VARIABLE] = name
            return name
        reasons.append(f"{name}: {answer}")
    raise UserError("env", "renderer", "none works here: " + "; ".join(reasons), f"run: apt-get install -y {PACKAGES}")


def _probe(name: str) -> str:
    environment = os.environ | {VARIABLE: name}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return "ok"
    lines = [line for line in done.stderr.strip().splitlines() if line]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def main() -> NoReturn:
    """For the Makefile: exit code 0 if pictures can be drawn here, else 2 and the next step."""
    try:
        print(f"renderer: {choose_renderer('auto')}")
    except UserError as error:
        print(f"gripline: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
