"""The command line. It checks first and imports afterwards: a wrong argument is answered at once, without torch."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from gripline import profiles
from gripline.errors import UserError

WRONG_INPUT = 2
INTERRUPTED = 130
_NEEDED = {"kfp": "pipelines", "ray": "rl", "mlflow": "tracking", "mujoco": "sim"}
"""What a local run imports -> the extra that brings it."""

app = typer.Typer(
    help="Staged post-training of robot policies: demonstrations, SFT, RL in simulation, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ProfileArgument = Annotated[str, typer.Argument(help="Name of a shipped profile, or path of a .yaml file.")]
FromOption = Annotated[str, typer.Option("--from", metavar="CHECKPOINT", help="Start from it; SFT is skipped.")]
SetOption = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, such as rl.lr=1e-4.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Instead of the profile's own.")]


@app.command()
def run(
    profile: ProfileArgument,
    checkpoint: FromOption = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: runs/PROFILE-<n>.")] = None,
    seed: SeedOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
) -> int:
    """Run a profile on this machine.

    An unfinished run in DIR is continued if profile and checkpoint are the same; a finished one is never touched. Without
    --out, the newest run of the profile is continued if it is unfinished, else a new folder is made.
    """
    from gripline import preflight
    from gripline.inputs import RunInputs
    from gripline.store import is_local

    wanted = profiles.load(profile, overrides, seed)
    checkpoint_uri = str(Path(checkpoint).absolute()) if checkpoint and is_local(checkpoint) else checkpoint
    preflight.check(wanted, checkpoint_uri)
    for package, extra in _NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise UserError("", "", f"the package {package!r} is not installed", f"pip install -e '.[{extra}]'")
    from pipelines.local import run_local

    return run_local(RunInputs(wanted, checkpoint_uri), out)


@app.command(name="profiles")
def list_profiles() -> None:
    """List the shipped profiles."""
    for name in profiles.names():
        print(f"{name:<12} {profiles.load(name).description}")


@app.command(name="compile")
def compile_(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: the committed file.")] = None,
) -> None:
    """Compile the pipeline to YAML."""
    from pipelines.compile import COMPILED, compile_pipeline

    compile_pipeline(out or COMPILED)
    print(out or COMPILED)


@app.command()
def submit(
    profile: ProfileArgument,
    host: Annotated[str, typer.Option(help="Address of the Kubeflow Pipelines API.")],
    store: Annotated[str, typer.Option(metavar="URI", help="Where run folders are made, such as s3://bucket/runs.")],
    checkpoint: FromOption = "",
    seed: SeedOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    experiment: Annotated[str, typer.Option(help="Default: the profile's.")] = "",
    image: Annotated[str, typer.Option(help="Container image of every step.")] = "",
    tracking: Annotated[str, typer.Option(metavar="URI", help="MLflow server; default: the profile's.")] = "",
    namespace: Annotated[str, typer.Option(help="Yours, on a multi-user installation.")] = "",
) -> None:
    """Submit a profile to a Kubeflow Pipelines server. A bearer token is read from GRIPLINE_KFP_TOKEN."""
    from gripline import preflight
    from gripline.store import is_local

    wanted = profiles.load(profile, overrides, seed)
    preflight.check(wanted, "" if is_local(checkpoint) else checkpoint)
    from pipelines.submit import TOKEN_VARIABLE, Server, submit

    arguments: dict[str, str | int] = {"profile": profiles.dump(wanted), "store_uri": store}
    given = {"checkpoint_uri": checkpoint, "image": image, "tracking_uri": tracking}
    arguments |= {name: value for name, value in given.items() if value}
    server = Server(host, namespace, os.environ.get(TOKEN_VARIABLE, ""))
    experiment = experiment or wanted.tracking.experiment
    print(submit(server, experiment=experiment, name=wanted.name, arguments=arguments))


@app.command()
def doctor() -> None:
    """Say what of this machine is usable."""
    from pipelines.doctor import examine

    for name, usable, text in examine():
        print(f"{'✓' if usable else '✗'} {name:<10} {text}", flush=True)


def main() -> None:
    """Entry point: one line for the user's mistakes, exit code 2; 130 after Ctrl-C."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        sys.exit(_refuse(error.line))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(WRONG_INPUT)
    except click.ClickException as error:
        sys.exit(_refuse(f"{' '.join(error.format_message().split())} See `gripline --help`."))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(status)


def _refuse(line: str) -> int:
    print(f"gripline: {line}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    main()
