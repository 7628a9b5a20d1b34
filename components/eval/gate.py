"""The gate before RL: a broken SFT policy, or one that leaves nothing to learn, stops the run before it costs GPUs.

Four checks, from causes to symptoms: weights and outputs (`head`), log-probs as served and as learned from
(`logprobs`), closed-loop success against the fit to the demonstrations (`fit`), and success itself (`success`). All of
them are made, logged and shown; then the first one that stops the run is told. Here are the rules; what they are
applied to is measured in `components.eval.probe`.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from gripline import progress, threads
from gripline.atomic import write_whole
from gripline.checkpoint import Manifest, manifest_at
from gripline.config import GateAction, PromoteConfig
from gripline.demos.dataset import FILE_NAME, DemoSet
from gripline.envs.suites import shared_scene_tasks
from gripline.errors import UserError
from gripline.metrics import read_metrics
from gripline.results import read_results
from gripline.stages import PromoteStage, RlStage, RunContext
from gripline.store import RunStore, fetch
from gripline.summary import PolicySummary, summarise_policy
from gripline.types import EpisodeRecord

if TYPE_CHECKING:
    from components.eval.probe import Fit, Weights
    from gripline.rollout.messages import ServedPolicy

Check = Literal["head", "logprobs", "fit", "success"]
UNIFORM = 0.99
"""Entropy of a policy's answers, as a share of a uniform distribution's, from which on it has not learned anything."""
REPLAY_TOLERANCE = 0.05
"""Nats, a mean over tokens. Not 0, because another renderer draws other pixels: the gate's machine may not be that of
the evaluation."""
OWN_FIT_FACTOR, OWN_FIT_SLACK = 1.5, 0.02
"""The served policy's error on held-out demonstrations may be so many times SFT's own, and a share of the range more:
it is measured on fewer frames, and in actions instead of tokens."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: Check
    found: str
    """One sentence; what was measured, or why nothing was."""
    problem: str = ""
    """Empty: passed. Otherwise what is wrong, with `where`, `about` (a field) and `next_step` as in `UserError`."""
    where: str = ""
    about: str = ""
    next_step: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def action(self, limits: PromoteConfig) -> GateAction:
        """What the configuration says of this check."""
        actions: dict[Check, GateAction] = {
            "head": limits.gate_head,
            "logprobs": limits.gate_logprobs,
            "fit": limits.gate_fit,
            "success": limits.gate_success,
        }
        return actions[self.check]

    @property
    def error(self) -> UserError:
        """The line that stops the run."""
        return UserError(self.where, self.about, self.problem, self.next_step)


@dataclass(frozen=True)
class _Subject:
    """What is looked at."""

    policy_uri: str
    results: str
    """Of its evaluation, as the user knows the file."""
    records: list[EpisodeRecord]

    @functools.cached_property
    def manifest(self) -> Manifest:
        return manifest_at(self.policy_uri)

    @functools.cached_property
    def served(self) -> "ServedPolicy":
        """As a policy server has it."""
        threads.set_defaults()
        from gripline.rollout import standard

        return standard.make_served_policy(self.policy_uri)


def run(
    *,
    context: str,
    config: str,
    rl_config: str,
    policy_uri: str,
    demos_path: str,
    results_path: str,
    table_path: str,
) -> dict[str, float]:
    """Write the findings as Markdown to `table_path`; returns them as numbers.

    demos_path: a folder, without demonstrations where a checkpoint was given. Raises UserError with the first finding
    that stops the run.
    """
    started = time.perf_counter()
    run_context = RunContext.model_validate_json(context)
    stage, learning = PromoteStage.model_validate_json(config), RlStage.model_validate_json(rl_config)
    limits = stage.promote
    results = f"{run_context.run_dir}/eval-sft/results.jsonl"
    subject = _Subject(policy_uri, results, read_results(Path(results_path)))
    from gripline.tracking import stage_run

    with stage_run(run_context, "gate") as tracker:
        findings = _findings(subject, stage, learning, run_context, Path(demos_path))
        numbers = {name: value for finding in findings for name, value in finding.metrics.items()}
        numbers |= {f"{finding.check}/passed": float(not finding.problem) for finding in findings}
        numbers["seconds"] = time.perf_counter() - started
        tracker.log_metrics({f"gate/{name}": value for name, value in numbers.items()})
        table = markdown(findings, limits)
        tracker.log_note(table)
        write_whole(Path(table_path), table)
        for finding in findings:
            text = finding.error.line if finding.problem else finding.found
            progress.emit("gate", "warn" if finding.problem else "note", text=f"{finding.check}: {text}")
        for finding in findings:
            if finding.problem and finding.action(limits) == "stop":
                raise finding.error
    return {name.replace("/", "_"): value for name, value in numbers.items()}


def markdown(findings: Sequence[Finding], limits: PromoteConfig) -> str:
    """One row per check, for the pipeline's page and MLflow's note."""
    lines = ["| gate | outcome | found |", "|---|---|---|"]
    for finding in findings:
        outcome = "passed" if not finding.problem else {"stop": "**stops**"}.get(finding.action(limits), "warning")
        told = f"{finding.problem}; {finding.next_step}" if finding.problem else finding.found
        lines.append(f"| {finding.check} | {outcome} | {' '.join(told.split())} |")
    return "\n".join(lines) + "\n"


def _findings(
    subject: _Subject, stage: PromoteStage, learning: RlStage, context: RunContext, demos_path: Path
) -> list[Finding]:
    """One for each check that is not off, causes before symptoms."""
    limits = stage.promote
    policy = summarise_policy(subject.records, shared_scene_tasks(stage.env.suite, stage.env.tasks))
    findings: list[Finding] = []
    if limits.gate_head != "off" or limits.gate_logprobs != "off":
        both = _of_the_network(subject, stage, learning)
        findings += [finding for finding in both if finding.action(limits) != "off"]
    if limits.gate_fit != "off":
        findings.append(_of_the_fit(subject, policy, limits, RunStore(context.run_dir), demos_path))
    if limits.gate_success != "off":
        findings.append(success_finding(policy, limits, subject.results))
    return findings


def _of_the_network(subject: _Subject, stage: PromoteStage, learning: RlStage) -> list[Finding]:
    served, rl = subject.served, learning.rl
    from components.eval import probe
    from gripline.policies import load_policy

    iid = [record for record in subject.records if record.spec.axis == "iid"]
    seen = probe.recorded_chunks(stage.env, iid)
    if not seen.observations:
        told = "not checked: no IID episode recorded its actions"
        return [Finding("head", told), Finding("logprobs", told)]
    vla = load_policy(fetch(subject.policy_uri))
    weights = probe.weights_of(vla, subject.manifest)
    learner = probe.as_learned(vla, rl, seed=learning.seed)
    logits_BKAV = probe.logits_of(learner, seen.observations)
    gap = probe.logprob_gap(served, logits_BKAV, seen.observations, rl.temperature)
    greedy = stage.eval.decoding == "greedy"
    replay_gap = probe.replay_gap(learner, logits_BKAV, seen.actions_BKA) if greedy else None
    return [
        head_finding(weights, probe.entropy_share(logits_BKAV), subject.records, subject.policy_uri),
        logprobs_finding(gap, replay_gap, rl.logprob_tolerance, subject.policy_uri, subject.results),
    ]


def _of_the_fit(
    subject: _Subject, policy: PolicySummary, limits: PromoteConfig, store: RunStore, demos_path: Path
) -> Finding:
    if not (demos_path / FILE_NAME).exists():
        return Finding("fit", "not checked: the run starts from a checkpoint and has no demonstrations")
    demos, manifest = DemoSet.load(demos_path), subject.manifest
    if manifest.provenance.data_hash != demos.content_hash:
        return Finding("fit", "not checked: the policy was trained on other demonstrations than this run's")
    served = subject.served
    from components.eval import probe

    curve = read_metrics(store.pull("sft/metrics.jsonl"))
    errors_bins = [row["held_out/error_bins"] for row in curve if "held_out/error_bins" in row]
    own_error = errors_bins[-1] / (manifest.contract.num_bins - 1) if errors_bins else None
    shown = int(demos.facts["demonstrations"]) + int(demos.facts["held_out"])
    expert = shown / (shown + int(demos.facts["failed_attempts"]))
    fit = probe.fit_of(served, demos)
    return fit_finding(fit, own_error, expert, policy, limits, subject.policy_uri, subject.results)


def head_finding(
    weights: "Weights", entropy_share: float, records: Sequence[EpisodeRecord], policy_uri: str
) -> Finding:
    """A head that was never trained, or that training destroyed: from its weights, its answers and its actions."""
    chunks = [chunk for record in records if record.spec.axis != "no_image" for chunk in record.actions_TKA]
    constant = len(chunks) > 1 and not bool(np.ptp(np.array(chunks), axis=0).any())
    metrics = {
        "head/entropy_share": entropy_share,
        "head/untouched_weights": float(len(weights.untouched)),
        "head/not_finite": float(len(weights.not_finite)),
    }
    problem, next_step = "", ""
    if weights.not_finite:
        problem = f"{_some(weights.not_finite)} not finite"
        next_step = "train again with a lower sft.lr, or start from an earlier checkpoint"
    elif weights.untouched:
        problem = f"{_some(weights.untouched)} still as initialised: training never reached that, or it was lost since"
        next_step = "compare the names in model.safetensors with those that training wrote"
    elif not entropy_share < UNIFORM:
        problem = f"its answers are spread over the action bins like chance: {entropy_share:.1%} of the largest entropy"
        next_step = "was the action head trained? see heads_trained in manifest.json and the curve of SFT's loss"
    elif constant:
        problem = f"all {len(chunks)} recorded action chunks are the same, whatever the policy sees"
        next_step = "look at the images and instructions that it was trained on, and at a video"
    found = f"weights are finite and trained, entropy {entropy_share:.1%} of a uniform distribution's, actions vary"
    return Finding("head", found, problem, policy_uri, "promote.gate_head", next_step, metrics)


def logprobs_finding(gap: float, replay_gap: float | None, tolerance: float, policy_uri: str, results: str) -> Finding:
    """The policy as it is served must be the one that the learner computes.

    gap: on sampled tokens, largest; replay_gap: on the evaluation's greedy actions, mean; None where it sampled.
    """
    metrics = {"logprobs/gap": gap} | ({} if replay_gap is None else {"logprobs/replay_gap": replay_gap})
    found = f"served and recomputed log-probs differ by at most {gap:.1e}"
    found += "" if replay_gap is None else f"; the evaluation's actions are this policy's ({replay_gap:.1e} nats)"
    problem, where, about, next_step = "", policy_uri, "rl.logprob_tolerance", ""
    if not gap <= tolerance:  # NaN too
        problem = f"served log-probs differ from the learner's own by {gap:.2e}, more than {tolerance:.0e}"
        next_step = "do both load the same weights, in the same precision, with the same text and temperature?"
    elif replay_gap is not None and not replay_gap <= REPLAY_TOLERANCE:
        where, about = results, "promote.gate_logprobs"
        problem = f"the recorded actions are {replay_gap:.2f} nats less likely to the checkpoint than its own choice"
        next_step = (
            "was another checkpoint evaluated, or does the evaluation's simulator draw other images or decode actions "
            "by other statistics than this machine's?"
        )
    return Finding("logprobs", found, problem, where, about, next_step, metrics)


def fit_finding(
    fit: "Fit",
    own_error: float | None,
    expert: float,
    policy: PolicySummary,
    limits: PromoteConfig,
    policy_uri: str,
    results: str,
) -> Finding:
    """A policy that fits its demonstrations and yet fails has a mistake between its answer and the simulator.

    First the served policy must reproduce the fit that SFT measured (own_error, as a share of the range of actions).
    Then its success must not lie surely below `gate_fit_share` × skill × the expert's success. That is a rule of thumb:
    errors add up in closed loop, so that a fair fit may well mean a small success, but not none.
    """
    iid = policy.iid
    least = limits.gate_fit_share * max(fit.skill, 0.0) * expert
    metrics = {
        "fit/error": fit.error,
        "fit/constant_error": fit.constant_error,
        "fit/skill": fit.skill,
        "fit/expert_success": expert,
        "fit/least_success": least,
    } | ({} if own_error is None else {"fit/sft_error": own_error})
    found = (
        f"on held-out demonstrations actions err by {fit.error:.1%} of their range, a constant one by "
        f"{fit.constant_error:.1%}; IID success {iid.success:.3f} may be as low as {least:.3f} with that"
    )
    problem, where, next_step = "", results, ""
    if own_error is not None and not fit.error <= OWN_FIT_FACTOR * own_error + OWN_FIT_SLACK:  # NaN too
        where = policy_uri
        problem = (
            f"as served, it errs by {fit.error:.1%} of the actions' range on held-out demonstrations, "
            f"at the end of SFT by {own_error:.1%}"
        )
        next_step = (
            "look at its statistics.json (action un-normalisation), tokenizer.json, and tensors that were lost since"
        )
    elif iid.ci95[1] < least:
        problem = (
            f"IID success {iid.success:.3f} (at most {iid.ci95[1]:.3f}) is far below the fit: on held-out "
            f"demonstrations actions err by {fit.error:.1%} of their range, a constant one by {fit.constant_error:.1%}"
        )
        next_step = (
            "look at a video, and at action un-normalisation, camera or image flip, chunk length (policy.num_actions, "
            "env.hold_steps), statistics and tokenizer: the demonstrations' and the simulator's must be the same"
        )
    return Finding("fit", found, problem, where, "promote.gate_fit", next_step, metrics)


def success_finding(policy: PolicySummary, limits: PromoteConfig, results: str) -> Finding:
    """From a success of nearly 0 or 1 a 0/1 reward teaches nothing."""
    success = policy.iid.success
    metrics = {"success/iid": success}
    none = [task for task, rates in policy.per_task.items() if rates.iid is not None and rates.iid.success == 0]
    found = f"IID success {success:.3f} lies within {limits.gate_min_success}…{limits.gate_max_success}"
    found += f"; not once in {', '.join(none)}" if none else ""
    problem, about, next_step = "", "promote.gate_min_success", ""
    if success < limits.gate_min_success:
        problem = (
            f"IID success {success:.3f} is below {limits.gate_min_success}: a sparse reward would hardly ever be seen"
        )
        next_step = "give more demonstrations (demos.per_task) or SFT steps, or check the camera with a video"
    elif success > limits.gate_max_success:
        about = "promote.gate_max_success"
        problem = f"IID success {success:.3f} is above {limits.gate_max_success}: RL has nothing to improve"
        next_step = "choose harder tasks, or promote this checkpoint as it is"
    return Finding("success", found, problem, results, about, next_step, metrics)


def _some(names: Sequence[str]) -> str:
    """'a, b and 3 more are', 'a is'."""
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
