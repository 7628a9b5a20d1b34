"""The command line: every mistake is one line and exit code 2, found before anything heavy is imported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gripline import profiles
from gripline.checkpoint import MANIFEST_FILE, Contract, Manifest, Provenance, new_checkpoint
from gripline.envs.suites import env_spec
from pipelines.cli import main

IMPORT = ("import", "--out", "here", "--dataset", "libero_10", "--suite", "libero", "--camera", "front")
HEAVY = ("torch", "ray", "mujoco", "mlflow", "kfp", "transformers", "kubernetes", "scipy", "rich")
MAIN = f"""
import json, sys
from pipelines.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([ended.code, heavy]))
"""


def run_cli(arguments: Sequence[str], cwd: Path) -> tuple[int, list[str], str]:
    """(exit code, heavy modules that were imported, standard error) of a fresh process."""
    command = [sys.executable, "-c", MAIN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    return code, heavy, done.stderr


def make_checkpoint(folder: Path, **changes: object) -> Path:
    """A checkpoint that fits profile laptop but for `changes` of its contract; its weights are no weights."""
    env = profiles.load("laptop").env
    spec = env_spec(env)
    contract = Contract(
        suite=spec.suite,
        cameras=spec.cameras,
        image_size_px=spec.image_size_px,
        proprio_dim=0,
        action_dim=spec.action_dim,
        action_low_A=spec.action_low_A,
        action_high_A=spec.action_high_A,
        num_actions=1,
        hold_steps=env.hold_steps,
        num_bins=256,
    ).model_copy(update=changes)
    manifest = Manifest(policy="tiny", contract=contract, heads_trained=("token",), provenance=Provenance(stage="sft"))
    with new_checkpoint(folder, manifest) as inside:
        (inside / "model.safetensors").write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nosuch"], "PROFILE: no profile is called 'nosuch'; known: "),
        (["run", "labtop"], "did you mean 'laptop'?"),
        (["run", "./mine.yaml"], "./mine.yaml: cannot be read: No such file or directory"),
        (["run", "laptop", "--set", "rl.lrr=1"], "--set: rl.lrr: unknown key; did you mean 'lr'?"),
        (["run", "laptop", "--set", "rl.lr=0"], "--set: rl.lr: must be greater than 0, got 0"),
        (["run", "laptop", "--set", "env.tasks=[faucet-opn-v3]"], "did you mean 'faucet-open-v3'?"),
        (["run", "laptop", "--set", "env.suite=metawold"], "did you mean 'metaworld'?"),
        (["run", "laptop", "--set", "env.tasks=[drawer-open-v3]"], "a swapped instruction needs a second task"),
        (["run", "laptop", "--seed", "-3"], "--set: seed: must be greater than or equal to 0, got -3"),
        (["run", "laptop", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["run", "laptop", "--from", "no/such/checkpoint"], "no/such/checkpoint: does not exist"),
        (["run", "laptop", "--form", "x"], "--form: unknown option; did you mean '--from'?"),
        (["run"], "the following arguments are required: PROFILE"),
        (["rum"], "invalid choice: 'rum'"),
        (["submit", "laptop", "--host", "http://x"], "the following arguments are required: --store"),
        (["submit", "nosuch", "--host", "http://x", "--store", "s3://b"], "no profile is called 'nosuch'"),
        (
            ["submit", "laptop", "--host", "http://x", "--store", "s3://b", "--from", "runs/a"],
            "runs/a: --from: is no addr",
        ),
        (
            ["submit", "laptop", "--host", "http://x", "--store", "s3://b", "--from", "file:///a"],
            "is no address that a",
        ),
        (
            ["submit", "laptop", "--host", "http://x", "--store", "s3://b", "--from", "models:/p/1"],
            "is no address that",
        ),
        (
            ["submit", "laptop", "--host", "http://x", "--store", "s3://b", "--tracking", "http://me:pw@x"],
            "gripline: http://x: --tracking: holds a password",
        ),
        (
            ["run", "laptop", "--set", "tracking.uri=http://me:pw@host/x"],
            "http://host/x: tracking.uri: holds a password",
        ),
        ([*IMPORT, "nosuch"], "nosuch: config.json: is missing"),
        ([*IMPORT, "nosuch", "--chunk", "0"], "argument --chunk: must be 1 or more, got 0"),
        (["compile", "--out", "graph.json"], "graph.json: --out: is no .yaml file"),
        (["evaluate", "laptop"], "gripline evaluate: needs PROFILE and --from CHECKPOINT, or --merge DIR"),
        (["evaluate", "laptop", "--from", "no/such"], "no/such: does not exist"),
        (["evaluate", "laptop", "--from", "x", "--shard", "3/2"], "3/2: --shard: is no shard; write I/N"),
        (["evaluate", "laptop", "--from", "x", "--set", "eval.samples=2"], "greedy episodes do not differ"),
        (["evaluate", "--merge", "runs/a", "--shard", "1/2"], "--merge: takes folders only"),
        (["replay", "runs/a"], "EPISODE: is needed, or --list, and not both"),
        (["replay", "runs/a", "1"], "runs/a/eval-rl/results.jsonl: no such results file"),
        (["replay", "runs/a", "1", "--out", "it.mp4"], "it.mp4: --out: is no .gif file"),
        (["compare", "runs/a"], "the following arguments are required: RUN_B"),
        (["compare", "runs/a", "runs/b", "--out", "a.pdf"], "a.pdf: --out: is neither a page nor a picture"),
        (["compare", "runs/a", "runs/b", "--tracking", "http://me:pw@x"], "http://x: --tracking: holds a password"),
    ],
)
def test_mistakes_are_one_line_without_heavy_imports(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Catches: tracebacks, other exit codes, ten seconds of imports before an answer, files left by a refusal."""
    code, heavy, errors = run_cli(arguments, tmp_path)
    assert code == 2
    assert told in errors and "pw" not in errors and errors.startswith("gripline") and errors.count("\n") == 1
    assert heavy == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["submit", "--help"], ["compare", "--help"], ["evaluate", "--help"], ["profiles"]],
)
def test_help_and_profiles_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code, heavy, errors = run_cli(arguments, tmp_path)
    assert (code, heavy, errors) == (0, [], "")


def test_profiles_lists_names_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profiles"])
    listed = capsys.readouterr().out
    assert all(name in listed and profiles.load(name).description in listed for name in profiles.names())


def test_torn_or_unfitting_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a wrong checkpoint that is found out after half an hour, inside of a step."""

    def refusal(checkpoint: Path) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["run", "laptop", "--from", str(checkpoint), "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert not (tmp_path / "out").exists()
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        return errors

    torn = make_checkpoint(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"x" * 50)
    assert f"{torn}/model.safetensors" in refusal(torn)

    halved = make_checkpoint(tmp_path / "halved")
    (halved / MANIFEST_FILE).write_bytes((halved / MANIFEST_FILE).read_bytes()[:200])
    assert f"{halved}/{MANIFEST_FILE}" in refusal(halved)

    (tmp_path / "empty").mkdir()
    assert MANIFEST_FILE in refusal(tmp_path / "empty")

    other = make_checkpoint(tmp_path / "other", action_dim=7)
    assert "contract.action_dim" in refusal(other)


def test_doctor_reports_and_never_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a doctor that dies of the disease."""
    from pipelines import doctor

    def broken() -> tuple[bool, str]:
        raise RuntimeError("driver\nmismatch")

    monkeypatch.setitem(doctor.PROBES, "gpu", broken)
    monkeypatch.setitem(doctor.PROBES, "rendering", lambda: (True, "osmesa ok"))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(doctor.PROBES)
    assert "✗ gpu        RuntimeError: driver mismatch" in lines


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    """Catches the traceback of `gripline … | head`, also where the output is smaller than its buffer."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "profiles"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")


def test_a_broken_connection_is_no_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a fault of ours that passes for `| head`."""
    import pipelines.cli

    def broken(options: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(pipelines.cli, "_profiles", broken)
    with pytest.raises(BrokenPipeError):
        main(["profiles"])
