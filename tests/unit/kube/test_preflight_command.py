"""`gripline preflight`, and what `gripline submit` makes of it."""

from pathlib import Path

import pytest

from gripline.kube import preflight
from gripline.kube.findings import OK, UNKNOWN, WRONG, Finding
from pipelines import submit as submission
from pipelines.cli import main

IMAGE = "registry.example/gripline-step:1.0"
SUBMIT = ("submit", "--host", "http://127.0.0.1:9", "--store", "memory://runs", "--image", IMAGE)


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that a server got."""
    names: list[str] = []

    def take(server: object, *, experiment: str, name: str, arguments: object) -> str:
        names.append(name)
        return "http://kfp/run"

    monkeypatch.setattr(submission, "submit", take)
    return names


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_one_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    status = run("preflight", "cluster", "--store", "memory://runs", "--image", IMAGE)
    lines = {line.split()[1]: line[0] for line in capsys.readouterr().out.splitlines()}
    assert lines == {"images": "✓", "rayjob": "✓", "store": "✓", "mlflow": "–", "cluster": "–"}
    assert status == 0, "what cannot be checked from here is no failure"


def test_what_is_wrong_is_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("preflight", "cluster", "--store", str(tmp_path)) == 2
    assert f"✗ store       {tmp_path} is a folder" in capsys.readouterr().out


def test_a_mistake_in_the_profile_is_told_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preflight", "nosuch", "--store", "memory://runs") == 2
    assert "no profile is called 'nosuch'" in capsys.readouterr().err


def test_submit_sends_nothing_to_a_cluster_that_is_not_ready(
    capsys: pytest.CaptureFixture[str], submitted: list[str], tmp_path: Path
) -> None:
    """Catches: a pipeline that trains for hours and then finds that its store is a folder of this machine."""
    arguments = [str(tmp_path) if word == "memory://runs" else word for word in SUBMIT]
    assert run(*arguments, "cluster") == 2
    told = capsys.readouterr()
    assert submitted == [] and told.out == ""
    assert "✗ store" in told.err and "gripline submit: the cluster is not ready" in told.err


def test_submit_says_what_it_did_not_check(capsys: pytest.CaptureFixture[str], submitted: list[str]) -> None:
    assert run(*SUBMIT, "cluster") == 0
    told = capsys.readouterr()
    assert submitted == ["cluster"] and told.out == "http://kfp/run\n"
    assert "– cluster     not checked: kubernetes: no cluster is known" in told.err


def test_no_preflight_leaves_the_cluster_out(capsys: pytest.CaptureFixture[str], submitted: list[str]) -> None:
    assert run(*SUBMIT, "cluster", "--no-preflight") == 0
    told = capsys.readouterr()
    assert submitted == ["cluster"] and "cluster     not checked" not in told.err and "✓ images" in told.err


def test_a_profile_without_rayjobs_is_submitted_as_before(
    capsys: pytest.CaptureFixture[str], submitted: list[str]
) -> None:
    assert run(*SUBMIT, "smoke") == 0
    assert submitted == ["smoke"] and capsys.readouterr().err == ""


def test_namespace_and_account_are_kubeflows_unless_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def everything(config: object, *, namespace: str, account: str, **_: object) -> list[Finding]:
        asked.append((namespace, account))
        return [Finding("store", OK, "fine"), Finding("mlflow", UNKNOWN, "who knows"), Finding("queue", WRONG, "no")]

    monkeypatch.setattr(preflight, "everything", everything)
    for options in ((), ("--namespace", "team-a"), ("--namespace", "team-a", "--account", "team-a/runner")):
        assert run("preflight", "cluster", "--store", "s3://bucket/runs", *options) == 2
    assert asked == [
        ("kubeflow", "kubeflow/pipeline-runner"),
        ("team-a", "team-a/default-editor"),
        ("team-a", "team-a/runner"),
    ]
