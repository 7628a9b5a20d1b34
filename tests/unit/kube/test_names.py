"""Names: always valid, stable, and never shared by two runs."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gripline.kube.names import JOB_LABEL, MAX_LABEL_VALUE, MAX_RAYJOB_NAME, RUN_LABEL, labels, rayjob_name, slug

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
JOBS = st.sampled_from(["sft", "rl", "eval-sft", "eval-rl"])


@given(st.text(), st.text(), JOBS)
def test_a_name_is_always_valid_and_stable(run_dir: str, run_name: str, job: str) -> None:
    """Catches: a run whose name KubeRay refuses, or that a second launch would not find again."""
    name = rayjob_name(run_dir, run_name, job)
    assert DNS_1035.fullmatch(name) and len(name) <= MAX_RAYJOB_NAME
    assert name == rayjob_name(run_dir + "/", run_name, job)
    assert re.search(rf"-{job}-[0-9a-f]{{8}}$", name)


@given(st.text(), st.text(), st.text(), JOBS, JOBS)
def test_other_runs_and_other_jobs_have_other_names(one: str, other: str, run_name: str, job: str, second: str) -> None:
    """Catches: two runs of one name in different stores, or two stages, that adopt each other's RayJob."""
    assume((one.rstrip("/"), job) != (other.rstrip("/"), second))
    assert rayjob_name(one, run_name, job) != rayjob_name(other, run_name, second)


@given(st.text())
def test_a_slug_is_a_name_and_a_label_value(text: str) -> None:
    assert DNS_1035.fullmatch(slug(text)) and LABEL_VALUE.fullmatch(slug(text))
    assert len(slug(text)) <= MAX_LABEL_VALUE
    assert slug(slug(text)) == slug(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("laptop-3", "laptop-3"),
        ("My run (2)", "my-run-2"),
        ("7b", "run-7b"),
        ("", "run"),
        ("Überlauf", "berlauf"),
        ("-a-", "a"),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_names_do_not_change_between_releases() -> None:
    """Catches: a new version that no longer finds the RayJob that an older launcher made."""
    assert rayjob_name("s3://bucket/runs/laptop-3", "laptop-3", "rl") == "laptop-3-rl-e7db4077"
    long = rayjob_name("s3://bucket/runs/x", "a-very-long-name-of-a-run-that-does-not-fit", "eval-sft")
    assert long == "a-very-long-name-of-a-run-tha-eval-sft-d8558a61" and len(long) == MAX_RAYJOB_NAME


def test_labels_name_run_and_job() -> None:
    found = labels("My run", "rl")
    assert (found[RUN_LABEL], found[JOB_LABEL]) == ("my-run", "rl")
