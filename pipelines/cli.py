"""The command line. It checks first and imports afterwards: a wrong argument is answered at once, without torch."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from gripline import __version__
from gripline.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from gripline.config import Profile

WRONG_INPUT = 2
INTERRUPTED = 130
NEEDED = {"kfp": "pipelines", "ray": "rl", "mlflow": "tracking", "mujoco": "sim"}
"""What a local run imports -> the extra that brings it."""


class _Parser(argparse.ArgumentParser):
    """Mistakes become a UserError: one line instead of usage and message."""

    def error(self, message: str) -> NoReturn:
        raise UserError(self.prog, "", message, f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one line for the user's mistakes and exit code 2; 130 after Ctrl-C."""
    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            known = re.findall(r"--[a-z-]+", options.parser.format_usage())
            raise UserError(options.parser.prog, unknown[0], "unknown option", did_you_mean(unknown[0], known))
        command: Callable[[argparse.Namespace], int] = options.command
        status = command(options)
    except UserError as error:
        print(error.line if error.where.startswith("gripline") else f"gripline: {error.line}", file=sys.stderr)
        status = WRONG_INPUT
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gripline", description="Staged post-training of robot policies: SFT, RL, evaluation.")
    parser.add_argument("-V", "--version", action="version", version=f"gripline {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, function: Callable[[argparse.Namespace], int], description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=description, description=function.__doc__, allow_abbrev=False)
        command.set_defaults(command=function, parser=command)
        return command

    run = add("run", _run, "run a profile on this machine")
    _add_inputs(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="where the run is kept; default: runs/PROFILE-<n>")

    add("profiles", _profiles, "list the shipped profiles")

    compile_ = add("compile", _compile, "compile the pipeline to YAML")
    compile_.add_argument(
        "--out", type=Path, metavar="FILE", help="default: the committed pipelines/post_training.yaml"
    )

    _add_submit(add("submit", _submit, "submit a profile to a Kubeflow Pipelines server"))
    _add_preflight(add("preflight", _preflight, "check what a run would need on a cluster"))
    _add_render(add("render", _render, "print the RayJob that a stage would run as on a cluster"))

    reap = add("reap", _reap, "list RayJobs that nobody waits for any more, and delete them if told to")
    reap.add_argument("--namespace", default="", help="default: that of the kubeconfig's context")
    reap.add_argument("--yes", action="store_true", help="delete them; without it nothing is changed")

    _add_compare(add("compare", _compare, "compare runs on the episodes that they share"))

    trace = add("trace", _trace, "draw the timeline of an RL iteration: simulators and policy")
    trace.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/laptop-1")
    trace.add_argument("--iteration", type=int, metavar="N", help="default: the newest one recorded")
    trace.add_argument("--out", type=Path, metavar="DIR", help="default: beside the recording, RUN/rl/trace")

    import_ = add("import", _import, "make a checkpoint from a published OpenVLA-OFT one")
    import_.add_argument("source", type=Path, metavar="DIR", help="with config.json, weights, statistics, tokenizer")
    import_.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="directory to write")
    import_.add_argument("--dataset", required=True, metavar="NAME", help="whose statistics to use, such as libero_10")
    import_.add_argument("--suite", required=True, metavar="NAME", help="environment that it acts in")
    import_.add_argument("--camera", action="append", required=True, metavar="NAME", help="repeatable, in order")
    import_.add_argument("--bounds", choices=("q01_q99", "min_max"), default="q01_q99", help="which statistics")
    import_.add_argument("--proprio", action="store_true", help="with the proprioception projector")
    import_.add_argument("--chunk", type=_positive, default=8, metavar="K", help="actions in a chunk; default: 8")
    import_.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")

    doctor = add("doctor", _doctor, "say what of this machine, or of a cluster, is usable")
    doctor.add_argument(
        "--kube", nargs="*", metavar="FILE", help="the cluster's pools, and the placements that fit: shipped, FILE…"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _add_submit(submit: argparse.ArgumentParser) -> None:
    _add_inputs(submit)
    submit.add_argument("--host", required=True, metavar="URL", help="address of the Kubeflow Pipelines API")
    submit.add_argument("--store", required=True, metavar="URI", help="where runs are kept, such as s3://bucket/runs")
    submit.add_argument("--experiment", metavar="NAME", help="default: the profile's")
    submit.add_argument("--image", metavar="IMAGE", help="container image of every step")
    submit.add_argument("--tracking", metavar="URI", help="MLflow server; default: the profile's")
    submit.add_argument("--namespace", default="", help="yours, on a multi-user installation")
    submit.add_argument("--run-name", metavar="NAME", help="folder below --store; one that exists is continued")
    submit.add_argument("--no-preflight", action="store_true", help="do not look at the cluster that KUBECONFIG names")


def _add_preflight(preflight: argparse.ArgumentParser) -> None:
    _add_inputs(preflight)
    preflight.add_argument("--store", required=True, metavar="URI", help="where runs are kept")
    preflight.add_argument("--image", metavar="IMAGE", help="container image of every step")
    preflight.add_argument("--tracking", metavar="URI", help="MLflow server; default: the profile's")
    preflight.add_argument("--namespace", default="", help="yours, on a multi-user installation")
    preflight.add_argument(
        "--account", default="", metavar="NAMESPACE/NAME", help="ServiceAccount of the steps; default: Kubeflow's"
    )


def _add_render(render: argparse.ArgumentParser) -> None:
    _add_profile(render)
    render.add_argument("--job", choices=("sft", "rl", "eval-sft", "eval-rl"), default="rl", help="default: rl")
    render.add_argument("--run-name", default="", metavar="NAME", help="default: the profile's")
    render.add_argument("--store", default="s3://bucket/runs", metavar="URI", help="where runs are kept")
    render.add_argument("--image", default="", metavar="IMAGE", help="of pods for which the profile names none")
    render.add_argument("--tracking", default="", metavar="URI", help="MLflow server; default: the profile's")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("baseline", metavar="RUN_A", help="folder or URI of a run, MLflow run id, or KFP run id")
    compare.add_argument("others", nargs="+", metavar="RUN_B", help="each is compared with RUN_A")
    compare.add_argument("--policy", choices=("rl", "sft"), default="rl", help="whose evaluation; default: rl")
    compare.add_argument(
        "--tracking", default="", metavar="URI", help="MLflow; default: MLFLOW_TRACKING_URI, or a run's"
    )
    compare.add_argument(
        "--out", action="append", default=[], type=Path, metavar="FILE", help=".html or .png; repeatable"
    )
    compare.add_argument("--json", type=Path, metavar="FILE", help="the same for programs")


def _add_inputs(command: argparse.ArgumentParser) -> None:
    _add_profile(command)
    command.add_argument("--from", dest="checkpoint", default="", metavar="CHECKPOINT", help="start from it, skip SFT")
    command.add_argument("--seed", type=int, metavar="N", help="instead of the profile's own")


def _add_profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("profile", metavar="PROFILE", help="name of a shipped profile, or path of a .yaml file")
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as rl.lr=1e-4; repeatable",
    )


def _run(options: argparse.Namespace) -> int:
    """Run a profile on this machine.

    A finished run is never touched. An unfinished one in DIR is continued if it has the same profile and checkpoint.
    Without --out, the newest run of the profile is continued if it is unfinished and the same; otherwise a new folder
    is made.
    """
    from gripline import profiles

    profile = profiles.load(options.profile, options.overrides, options.seed)
    from gripline import preflight
    from gripline.inputs import RunInputs
    from gripline.store import is_local, local_path

    checkpoint: str = options.checkpoint
    if checkpoint and is_local(checkpoint):
        checkpoint = str(local_path(checkpoint).absolute())
    preflight.check(profile, checkpoint)
    for package, extra in NEEDED.items():
        if find_spec(package) is None:
            raise UserError("", "", f"the package {package!r} is not installed", f"pip install -e '.[{extra}]'")
    from pipelines.local import run_local

    return run_local(RunInputs(profile, checkpoint), options.out)


def _profiles(options: argparse.Namespace) -> int:
    """List the shipped profiles."""
    from gripline import profiles

    for name in profiles.names():
        print(f"{name:<12} {profiles.load(name).description}")
    return 0


def _compile(options: argparse.Namespace) -> int:
    """Compile the pipeline to the YAML that a Kubeflow Pipelines server takes."""
    from pipelines.compile import COMPILED, compile_pipeline

    out = options.out if options.out is not None else COMPILED
    compile_pipeline(out)
    print(out)
    return 0


def _submit(options: argparse.Namespace) -> int:
    """Submit a profile to a Kubeflow Pipelines server; prints the address of the run.

    A bearer token is read from the environment variable GRIPLINE_KFP_TOKEN.
    """
    from gripline import profiles

    profile = profiles.load(options.profile, options.overrides, options.seed)
    from gripline import credentials, preflight
    from gripline.store import is_local

    credentials.refuse(options.tracking or "", "--tracking")
    if options.checkpoint and is_local(options.checkpoint):
        next_step = "copy the checkpoint to a store and give its address, such as s3://bucket/checkpoint"
        raise UserError(options.checkpoint, "--from", "is no address that a pod can read", next_step)
    preflight.check(profile, options.checkpoint)
    if profile.cluster.stages and _failures(profile, options, "", not options.no_preflight, sys.stderr):
        raise UserError("gripline submit", "", "the cluster is not ready for this run", "mend what is marked with ✗")
    from pipelines.submit import TOKEN_VARIABLE, Server, submit

    arguments = {
        "profile": profiles.dump(profile),
        "store_uri": options.store,
        "checkpoint_uri": options.checkpoint,
        "image": options.image,
        "tracking_uri": options.tracking,
        "run_name": options.run_name,
    }
    server = Server(options.host, options.namespace, os.environ.get(TOKEN_VARIABLE, ""))
    address = submit(
        server,
        experiment=options.experiment or profile.tracking.experiment,
        name=profile.name,
        arguments={name: value for name, value in arguments.items() if value},
    )
    print(address)
    return 0


def _render(options: argparse.Namespace) -> int:
    """Print the RayJob that a stage of a profile would run as on a cluster, or say why it would be refused.

    Nothing is sent anywhere; the store and the tracking server are only named.
    """
    from gripline import profiles

    profile = profiles.load(options.profile, options.overrides)
    from gripline.stages import STEP_IMAGE
    from pipelines.render import render

    print(
        render(
            profile,
            job=options.job,
            run_name=options.run_name,
            store_uri=options.store,
            image=options.image or STEP_IMAGE,
            tracking_uri=options.tracking,
        ),
        end="",
    )
    return 0


def _reap(options: argparse.Namespace) -> int:
    """List gripline's RayJobs and those RayClusters that have no RayJob, and say which of them nobody waits for.

    One is left over if its launcher's heartbeat in the store has stopped, its pipeline run has ended, or its deadline
    is past. Exit code 1 if something is left over in the end.
    """
    from gripline.kube.api import connect
    from gripline.kube.reap import reap

    return reap(connect(options.namespace), delete=options.yes)


def _preflight(options: argparse.Namespace) -> int:
    """Check what a run of the profile would need on a cluster, one line each, with the command that mends it.

    The cluster is the one that KUBECONFIG names. Exit code 2 if something is wrong; what cannot be checked from here
    (marked –) is not.
    """
    from gripline import credentials, preflight, profiles

    profile = profiles.load(options.profile, options.overrides, options.seed)
    credentials.refuse(options.tracking or "", "--tracking")
    preflight.check(profile, options.checkpoint)
    return WRONG_INPUT if _failures(profile, options, options.account, True, sys.stdout) else 0


def _failures(profile: "Profile", options: argparse.Namespace, account: str, with_cluster: bool, sink: TextIO) -> int:
    """Print what preflight finds; returns how much of it is wrong."""
    from gripline.kube import preflight
    from gripline.kube.findings import WRONG
    from gripline.stages import STEP_IMAGE

    found = preflight.everything(
        profile.cluster,
        store_uri=options.store,
        tracking_uri=options.tracking or profile.tracking.uri,
        image=options.image or STEP_IMAGE,
        namespace=options.namespace or preflight.SINGLE_USER_NAMESPACE,
        account=account or preflight.account_of_steps(options.namespace),
        with_cluster=with_cluster,
    )
    wrong = 0
    for finding in found:
        print(finding.line, file=sink, flush=True)
        wrong += finding.mark == WRONG
    return wrong


def _compare(options: argparse.Namespace) -> int:
    """Compare the policies of several runs: success of each, paired differences from the first where their episodes
    coincide, and the interquartile mean of runs that differ in their training seed only.

    What cannot be read or paired is told in one line each (exit code 2); the rest is shown and written all the same.
    """
    from gripline import credentials

    credentials.refuse(options.tracking, "--tracking")
    from pipelines.compare import compare

    return compare([options.baseline, *options.others], options.policy, options.tracking, options.out, options.json)


def _trace(options: argparse.Namespace) -> int:
    """Draw what every simulator slot and policy server did in a recorded RL iteration, as a PNG and an HTML page."""
    from pipelines.trace import show

    for name, path in show(options.run, options.iteration, options.out):
        print(f"{name}: {path}")
    return 0


def _import(options: argparse.Namespace) -> int:
    """Make a checkpoint that `--from` takes of a published OpenVLA-OFT one, whose discrete token head was trained.

    Cameras, chunk length and environment are not in the published files; they must be those of its training.
    """
    from gripline.policies.importing import Purpose, import_openvla

    purpose = Purpose(
        dataset=options.dataset,
        suite=options.suite,
        cameras=options.camera,
        bounds=options.bounds,
        use_proprio=options.proprio,
        num_actions=options.chunk,
        dtype=options.dtype,
    )
    print(f"{options.out}  {import_openvla(options.source, options.out, purpose)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Say what of this machine is usable, or with --kube which pools a cluster has, one line each."""
    files: list[str] | None = options.kube
    if files is not None:
        from gripline import profiles

        own = [profiles.load_placement(path) for path in files]
        from pipelines.doctor import examine_cluster

        for name, usable, text in examine_cluster(own):
            print(f"{'✓' if usable else '✗'} {name:<22} {text}", flush=True)
        return 0
    from pipelines.doctor import examine

    for name, usable, text in examine():
        print(f"{'✓' if usable else '✗'} {name:<10} {text}", flush=True)
    return 0


if __name__ == "__main__":
    main()
