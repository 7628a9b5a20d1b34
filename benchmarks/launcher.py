"""What the launcher of a stage costs, and whether anything outlives it, against a real API server.

    ../shared/cluster/cluster up --nodes fake    # prints the line that sets KUBECONFIG
    python benchmarks/launcher.py --json build/launcher.json [--kills 200] [--parallel 10] [--seed 1] [--nets NAME …]

Measured: memory and imports of the process that launches; the time from its start to the RayJob; the time from a line
that the driver prints to the same line in the step's log; and what runs on after launchers were killed at random times,
with one safety net at a time and the others off:

clean-up   the step's own handler of SIGTERM; SIGKILL half a second later, as Kubeflow Pipelines does it
heartbeat  SIGKILL; the driver notices that nobody renews the heartbeat
deadline   SIGKILL; KubeRay's activeDeadlineSeconds

The nodes are simulated, the drivers are the real ones as processes, and the operator is the tests' stand-in or, where
KUBERAY_OPERATOR names a binary, KubeRay's own (tests/cluster).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # its stand-ins for what runs in pods; a folder of tests, not a package

from cluster import kube as paths  # noqa: E402
from cluster.kube import Kube, Mirror  # noqa: E402
from cluster.site import Site, World, eventually, nothing, serve  # noqa: E402
from launcher_kills import NETS, Killed, Net, kill_many  # noqa: E402
from verdicts import Verdict, at_most, machine, show_verdicts  # noqa: E402

from gripline.atomic import write_whole  # noqa: E402

REPEATS = 10
IMPORTS = "gripline.kube.stage, gripline.kube.launcher, kubernetes.client, kubernetes.config, fsspec"
STORE_DRIVERS = {"file": "fsspec.implementations.local", "s3": "s3fs", "gs": "gcsfs"}
"""What a launcher needs besides, by the kind of its store."""
HEAVY = ("torch", "ray", "mlflow", "kfp", "transformers")


def main() -> int:
    arguments = parse()
    kubeconfig = Path(os.environ["KUBECONFIG"]) if "KUBECONFIG" in os.environ else None
    if kubeconfig is None:
        raise SystemExit("KUBECONFIG names no cluster: ../shared/cluster/cluster up --nodes fake")
    result: dict[str, Any] = {"machine": machine(), "seed": arguments.seed, "kills": arguments.kills}
    with (
        tempfile.TemporaryDirectory(prefix="gripline-launcher-") as scratch,
        serve(Kube.from_kubeconfig(kubeconfig), kubeconfig, Path(scratch)) as world,
    ):
        folder = Path(scratch)
        result["operator"] = "KubeRay's" if world.operator_is_real else "stand-in"
        result["costs"] = measure_costs(world, folder, arguments.repeats)
        result["nets"] = {}
        for name in arguments.nets:
            site = Site(world, new_folder(folder, name))
            killed = kill_many(site, NETS[name], arguments.kills, arguments.parallel, arguments.seed)
            result["nets"][name] = summary(NETS[name], killed)
            site.close()
            verdicts = judge(result["costs"], result["nets"])
            result["targets"] = [asdict(verdict) for verdict in verdicts]
            write_whole(arguments.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    show_verdicts(Console(), verdicts)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--kills", type=int, default=200, help="of every net")
    parser.add_argument("--parallel", type=int, default=10, help="launchers at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the times at which launchers are killed")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of imports and starts")
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS), metavar="NAME")
    return parser.parse_args()


def new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def measure_costs(world: World, folder: Path, repeats: int) -> dict[str, Any]:
    """Memory, imports, time to the RayJob, log lag; one launcher at a time."""
    site = Site(world, new_folder(folder, "costs"))
    try:
        return {
            "import_s": {store: [import_s(store) for _ in range(repeats)] for store in STORE_DRIVERS},
            "to_rayjob_s": [to_rayjob_s(site, index) for index in range(repeats)],
            **while_it_runs(site),
        }
    finally:
        site.close()


def import_s(store: str) -> float:
    """Seconds of wall clock that a fresh process takes for all that a launcher imports."""
    code = f"import sys, time; t = time.perf_counter(); import {IMPORTS}, {STORE_DRIVERS[store]}\n"
    code += f"print(time.perf_counter() - t); assert not set(sys.modules) & set({HEAVY!r})"
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)


def to_rayjob_s(site: Site, index: int) -> float:
    """From the start of the step's process until the API server tells of its RayJob."""
    mirror = Mirror(site.kube, paths.rayjobs(site.namespace))
    step = site.launch([["wait", 600]], name=f"start-{index}")
    eventually(lambda: mirror.get(site.namespace, step.rayjob_name), "RayJob", every_s=0.005, context=lambda: step.log)
    seconds = time.time() - step.started_s
    mirror.stop()
    step.terminate(then_kill_after_s=20)
    nothing(site.left, "the start")
    return seconds


def while_it_runs(site: Site) -> dict[str, Any]:
    """Of one launcher whose driver prints five lines a second: largest memory, and every line's lag."""
    step = site.launch([["tick", 30]], name="lag")
    process = psutil.Process(step.process.pid)
    pss_mb = 0.0
    while step.process.poll() is None:
        try:
            pss_mb = max(pss_mb, process.memory_full_info().pss / 2**20)
        except psutil.Error:
            break
        time.sleep(0.2)
    if step.wait():
        raise SystemExit(f"the step failed:\n{step.log}")
    ticks = [line for line in step.lines if "tick " in line.text]
    lags_s = [line.time_s - float(line.text.split("tick ")[1]) for line in ticks]
    lag = {"max": max(lags_s), "median": statistics.median(lags_s), "of": f"{len(lags_s)} lines"}
    return {"pss_mb": pss_mb, "log_lag_s": lag}


def summary(net: Net, killed: Sequence[Killed]) -> dict[str, Any]:
    """What the JSON holds of one net."""
    launched = [each for each in killed if each.had_rayjob]
    return {
        "kills": len(killed),
        "with_rayjob": len(launched),
        "with_driver": sum(each.had_driver for each in killed),
        "limit_s": net.limit_s,
        "allowance_s": net.allowance_s,
        "orphans": sum(each.orphan for each in killed),
        "worst_s": max((each.clean_after_s for each in killed), default=0.0),
        "median_s": statistics.median([each.clean_after_s for each in launched]) if launched else 0.0,
        "each": [asdict(each) for each in killed],
    }


def judge(costs: Mapping[str, Any], nets: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """The launcher's targets."""
    imports = {f"worst of {len(each)}, store {store}": max(each) for store, each in costs["import_s"].items()}
    starts = {f"worst of {len(costs['to_rayjob_s'])}": max(costs["to_rayjob_s"])}
    found = [
        at_most("memory (PSS), MB", 150, {"one run": costs["pss_mb"]}),
        at_most("import, s", 1.0, imports),
        at_most("step start to RayJob, s", 3.0, starts),
        at_most("log lag, s", 5.0, {costs["log_lag_s"]["of"]: costs["log_lag_s"]["max"]}),
    ]
    for name, net in nets.items():
        where = f"{net['kills']} kills, {net['with_rayjob']} with a RayJob, worst {net['worst_s']:.1f} s"
        found.append(at_most(f"orphans, {name} alone, after {net['limit_s']:g} s", 0, {where: net["orphans"]}))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
