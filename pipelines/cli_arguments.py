"""The command line's arguments, one function per command that has several. Importing this imports nothing else."""

import argparse
from pathlib import Path


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def add_submit(submit: argparse.ArgumentParser) -> None:
    add_inputs(submit)
    submit.add_argument("--host", required=True, metavar="URL", help="address of the Kubeflow Pipelines API")
    submit.add_argument("--store", required=True, metavar="URI", help="where runs are kept, such as s3://bucket/runs")
    submit.add_argument("--experiment", metavar="NAME", help="default: the profile's")
    submit.add_argument("--image", metavar="IMAGE", help="container image of every step")
    submit.add_argument("--tracking", metavar="URI", help="MLflow server; default: the profile's")
    submit.add_argument("--namespace", default="", help="yours, on a multi-user installation")
    submit.add_argument("--run-name", metavar="NAME", help="folder below --store; one that exists is continued")
    submit.add_argument("--no-preflight", action="store_true", help="do not look at the cluster that KUBECONFIG names")


def add_preflight(preflight: argparse.ArgumentParser) -> None:
    add_inputs(preflight)
    preflight.add_argument("--store", required=True, metavar="URI", help="where runs are kept")
    preflight.add_argument("--image", metavar="IMAGE", help="container image of every step")
    preflight.add_argument("--tracking", metavar="URI", help="MLflow server; default: the profile's")
    preflight.add_argument("--namespace", default="", help="yours, on a multi-user installation")
    preflight.add_argument(
        "--account", default="", metavar="NAMESPACE/NAME", help="ServiceAccount of the steps; default: Kubeflow's"
    )


def add_render(render: argparse.ArgumentParser) -> None:
    add_profile(render)
    render.add_argument("--job", choices=("sft", "rl", "eval-sft", "eval-rl"), default="rl", help="default: rl")
    render.add_argument("--run-name", default="", metavar="NAME", help="default: the profile's")
    render.add_argument("--store", default="s3://bucket/runs", metavar="URI", help="where runs are kept")
    render.add_argument("--image", default="", metavar="IMAGE", help="of pods for which the profile names none")
    render.add_argument("--tracking", default="", metavar="URI", help="MLflow server; default: the profile's")


def add_compare(compare: argparse.ArgumentParser) -> None:
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


def add_reap(reap: argparse.ArgumentParser) -> None:
    reap.add_argument("--namespace", default="", help="default: that of the kubeconfig's context")
    reap.add_argument("--yes", action="store_true", help="delete them; without it nothing is changed")


def add_trace(trace: argparse.ArgumentParser) -> None:
    trace.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/laptop-1")
    trace.add_argument("--iteration", type=int, metavar="N", help="default: the newest one recorded")
    trace.add_argument("--out", type=Path, metavar="DIR", help="default: beside the recording, RUN/rl/trace")


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument(
        "--kube", nargs="*", metavar="FILE", help="the cluster's pools, and the placements that fit: shipped, FILE…"
    )


def add_splits(splits: argparse.ArgumentParser) -> None:
    add_profile(splits, optional=True)
    splits.add_argument("--seed", type=int, metavar="N", help="instead of the profile's own")
    splits.add_argument("--out", type=Path, metavar="FILE", help="write the lists as JSON")
    splits.add_argument("--check", type=Path, metavar="FILE", help="verify a file of lists, instead of drawing any")


def add_axes(axes: argparse.ArgumentParser) -> None:
    axes.add_argument("suite", metavar="SUITE", help="such as metaworld")
    axes.add_argument("--task", default="", metavar="TASK", help="default: the suite's first")
    axes.add_argument("--out", type=Path, metavar="FILE.png", help="default: axes-SUITE.png")


def add_inputs(command: argparse.ArgumentParser) -> None:
    add_profile(command)
    command.add_argument("--from", dest="checkpoint", default="", metavar="CHECKPOINT", help="start from it, skip SFT")
    command.add_argument("--seed", type=int, metavar="N", help="instead of the profile's own")


def add_profile(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    told = "name of a shipped profile, or path of a .yaml file"
    command.add_argument("profile", nargs="?" if optional else None, metavar="PROFILE", help=told)
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as rl.lr=1e-4; repeatable",
    )


def add_import(import_: argparse.ArgumentParser) -> None:
    import_.add_argument("source", type=Path, metavar="DIR", help="with config.json, weights, statistics, tokenizer")
    import_.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="directory to write")
    import_.add_argument("--dataset", required=True, metavar="NAME", help="whose statistics to use, such as libero_10")
    import_.add_argument("--suite", required=True, metavar="NAME", help="environment that it acts in")
    import_.add_argument("--camera", action="append", required=True, metavar="NAME", help="repeatable, in order")
    import_.add_argument("--bounds", choices=("q01_q99", "min_max"), default="q01_q99", help="which statistics")
    import_.add_argument("--proprio", action="store_true", help="with the proprioception projector")
    import_.add_argument("--chunk", type=positive, default=8, metavar="K", help="actions in a chunk; default: 8")
    import_.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")


def add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    add_profile(evaluate, optional=True)
    evaluate.add_argument("--from", dest="checkpoint", default="", metavar="CHECKPOINT", help="the policy")
    evaluate.add_argument(
        "--out", default="", metavar="DIR", help="folder or URI; default: runs/PROFILE-eval-…, named by its content"
    )
    evaluate.add_argument("--shard", default="", metavar="I/N", help="run every N-th episode, beginning with the I-th")
    evaluate.add_argument(
        "--merge", nargs="+", default=[], metavar="DIR", help="make finished shards in these folders one evaluation"
    )


def add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("run", metavar="RUN", help="folder or URI of a run, or of an evaluation")
    replay.add_argument("episode", nargs="?", default="", metavar="EPISODE", help="its number in the list, or its key")
    replay.add_argument("--policy", choices=("rl", "sft"), help="whose evaluation; default: rl where there is one")
    replay.add_argument("--out", type=Path, metavar="FILE", help="the video, .gif; default: replay-KEY.gif")
    replay.add_argument("--act", action="store_true", help="let the policy act too: are its actions the recorded ones?")
    replay.add_argument("--from", dest="checkpoint", default="", metavar="CHECKPOINT", help="of --act; default: RUN's")
    replay.add_argument("--list", action="store_true", help="list the episodes instead")
    replay.add_argument("--axis", default="", metavar="NAME", help="of --list: iid, an OOD axis or an ablation")
    replay.add_argument("--task", default="", metavar="NAME", help="of --list")
    replay.add_argument("--failed", action="store_true", help="of --list: without success")
