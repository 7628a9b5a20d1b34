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
from pipelines import cli_arguments
from pipelines.surroundings import reader_has_left

if TYPE_CHECKING:
    from gripline.config import Profile

WRONG_INPUT = 2
INTERRUPTED, READER_LEFT = 130, 141
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
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_has_left():
            raise
        status = READER_LEFT
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
    cli_arguments.add_inputs(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="where the run is kept; default: runs/PROFILE-<n>")

    cli_arguments.add_evaluate(add("evaluate", _evaluate, "evaluate a checkpoint on a profile's lists"))
    cli_arguments.add_replay(add("replay", _replay, "run a recorded episode again, and make a video of it"))

    add("profiles", _profiles, "list the shipped profiles")
    cli_arguments.add_splits(add("splits", _splits, "show, write or check the episode lists of a profile"))
    cli_arguments.add_axes(add("axes", _axes, "draw what each OOD axis changes, on one sheet"))

    compile_ = add("compile", _compile, "compile the pipeline to YAML")
    compile_.add_argument(
        "--out", type=Path, metavar="FILE", help="default: the committed pipelines/post_training.yaml"
    )

    cli_arguments.add_submit(add("submit", _submit, "submit a profile to a Kubeflow Pipelines server"))
    cli_arguments.add_preflight(add("preflight", _preflight, "check what a run would need on a cluster"))
    cli_arguments.add_render(add("render", _render, "print the RayJob that a stage would run as on a cluster"))

    cli_arguments.add_reap(
        add("reap", _reap, "list RayJobs that nobody waits for any more, and delete them if told to")
    )
    cli_arguments.add_compare(add("compare", _compare, "compare runs on the episodes that they share"))

    cli_arguments.add_trace(add("trace", _trace, "draw the timeline of an RL iteration: simulators and policy"))
    cli_arguments.add_import(add("import", _import, "make a checkpoint from a published OpenVLA-OFT one"))

    cli_arguments.add_doctor(add("doctor", _doctor, "say what of this machine, or of a cluster, is usable"))
    return parser


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

    checkpoint = _absolute(options.checkpoint)
    preflight.check(profile, checkpoint)
    _check_installed()
    from pipelines.local import run_local

    return run_local(RunInputs(profile, checkpoint), options.out)


def _absolute(uri: str) -> str:
    """A local path in full: work may go on in another folder."""
    from gripline.store import is_local, local_path

    return str(local_path(uri).absolute()) if uri and is_local(uri) else uri


def _check_installed() -> None:
    for package, extra in NEEDED.items():
        if find_spec(package) is None:
            raise UserError("", "", f"the package {package!r} is not installed", f"pip install -e '.[{extra}]'")


def _evaluate(options: argparse.Namespace) -> int:
    """Evaluate a checkpoint on a profile's lists without a pipeline, here or on the cluster that RAY_ADDRESS names.

    The same command continues an evaluation that was interrupted, and shows one that is finished. Shards may run
    anywhere, in one folder or several; the last one in a folder merges them, --merge those of several folders.
    """
    if options.merge:
        if options.profile or options.checkpoint or options.shard or options.overrides:
            problem = "takes folders only: they know profile and checkpoint"
            raise UserError("gripline evaluate", "--merge", problem, "leave the other arguments out, but for --out")
        _check_installed()
        from pipelines.evaluate import merge_folders

        return merge_folders(options.merge, options.out)
    if not options.profile or not options.checkpoint:
        next_step = "such as gripline evaluate laptop --from runs/laptop-1/rl/checkpoint"
        raise UserError("gripline evaluate", "", "needs PROFILE and --from CHECKPOINT, or --merge DIR …", next_step)
    from gripline import profiles
    from gripline.shards import Shard

    shard = Shard.parse(options.shard) if options.shard else None
    profile = profiles.load(options.profile, options.overrides)
    from gripline import preflight
    from gripline.inputs import RunInputs

    checkpoint = _absolute(options.checkpoint)
    splits = preflight.check(profile, checkpoint)
    _check_installed()
    from pipelines.evaluate import run

    return run(RunInputs(profile, checkpoint), splits, options.out, shard)


def _replay(options: argparse.Namespace) -> int:
    """Run a recorded episode again from its recorded actions, check that it is the same, and write a video of it.

    Exit code 1 if it is not the same, with one line that says at which chunk it differs.
    """
    if options.list == bool(options.episode):
        next_step = "gripline replay RUN --list numbers them"
        raise UserError("gripline replay", "EPISODE", "is needed, or --list, and not both", next_step)
    if not options.list and (options.axis or options.task or options.failed):
        raise UserError("gripline replay", "", "--axis, --task and --failed are of --list", "add --list, or leave them")
    if options.out is not None and options.out.suffix != ".gif":
        raise UserError(str(options.out), "--out", "is no .gif file", "end it in .gif; `ffmpeg` makes others of it")
    from pipelines import replay

    if options.list:
        return replay.list_episodes(options.run, options.policy, options.axis, options.task, options.failed)
    return replay.replay_episode(
        options.run, options.episode, options.policy, options.out, options.act, _absolute(options.checkpoint)
    )


def _profiles(options: argparse.Namespace) -> int:
    """List the shipped profiles."""
    from gripline import profiles

    for name in profiles.names():
        print(f"{name:<12} {profiles.load(name).description}")
    return 0


def _splits(options: argparse.Namespace) -> int:
    """Show the episode lists of a profile with their content hashes, and write them if told to.

    --check verifies a file of such lists: its hashes, and that nothing tested is trained on. With PROFILE, the file
    must also be exactly what that profile draws.
    """
    from pipelines.splits import check, show

    if options.check is not None:
        return check(options.check, options.profile, options.overrides, options.seed)
    return show(options.profile, options.overrides, options.seed, options.out)


def _axes(options: argparse.Namespace) -> int:
    """Draw what each OOD axis of a suite changes, as a PNG: one row for each, weak to strong or several draws."""
    from pipelines.axes import draw

    print(draw(options.suite, options.task, options.out))
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
