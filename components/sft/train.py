"""The SFT stage: a policy from demonstrations, or a given checkpoint checked and handed on."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from gripline import __version__, progress, stopping, threads
from gripline.atomic import whole
from gripline.checkpoint import TOKEN_HEAD, check_fits, checkpoint_hash, read_manifest
from gripline.demos.dataset import DemoSet
from gripline.envs.suites import env_spec
from gripline.metrics import MetricsLog
from gripline.stages import RunContext, SftStage
from gripline.store import RunStore, StageResult, digest, fetch

STATE_EVERY_S = 60.0
"""Between two resumable states: rare enough to cost nothing, often enough that little is lost."""


def run(
    *, context: str, config: str, demos_path: str, checkpoint_uri: str, state_every_s: float = STATE_EVERY_S
) -> dict[str, Any]:
    """Train, or hand on `checkpoint_uri`; returns {"uri", "hash", metrics…}. A finished stage is not run again."""
    run_context = RunContext.model_validate_json(context)
    stage = SftStage.model_validate_json(config)
    if checkpoint_uri:
        return _hand_on(checkpoint_uri, stage)
    store = RunStore(run_context.run_dir)
    demos = DemoSet.load(Path(demos_path))
    data_hash = demos.content_hash
    fingerprint = digest(config, data_hash)
    finished = StageResult.find(store, "sft", fingerprint)
    if finished is not None:
        progress.emit("sft", "note", text="already finished, kept")
        return dict(finished.outputs)
    from gripline.tracking import stage_run

    with stage_run(run_context, "sft") as tracker:
        tracker.log_params({"sft": stage.sft.model_dump(), "policy": stage.policy.model_dump()})
        log = MetricsLog(store.pull("sft") / "metrics.jsonl", tracker.log_metrics)
        outputs = _train(stage, run_context, store, demos, data_hash, log, state_every_s)
        tracker.set_tags({"gripline.checkpoint_hash": str(outputs["hash"]), "gripline.data_hash": data_hash})
    return dict(StageResult(fingerprint=fingerprint, outputs=outputs).write(store, "sft"))


def _hand_on(checkpoint_uri: str, stage: SftStage) -> dict[str, Any]:
    """SFT is skipped: the given checkpoint must be whole and must fit the environment."""
    directory = fetch(checkpoint_uri)
    check_fits(read_manifest(directory), env_spec(stage.env), stage.env, where=checkpoint_uri)
    progress.emit("sft", "note", text=f"skipped: starting from {checkpoint_uri}")
    return {"uri": checkpoint_uri, "hash": checkpoint_hash(directory), "seconds": 0.0}


def _train(
    stage: SftStage,
    context: RunContext,
    store: RunStore,
    demos: DemoSet,
    data_hash: str,
    log: MetricsLog,
    state_every_s: float,
) -> dict[str, Any]:
    threads.set_defaults()
    import torch

    from components.sft.learning import SupervisedLearner
    from gripline.policies import save_policy

    torch.set_num_threads(stage.sft.threads)
    started = time.perf_counter()
    train, held_out = demos.split(np.unique(demos.episode_F[demos.episode_F < 0]))
    vla = _fresh_policy(stage, train).to("cuda" if torch.cuda.is_available() else "cpu")
    learner = SupervisedLearner(vla, train, held_out, stage.sft, stage.seed)
    state_path = store.local / "sft" / "state.pt"
    first = _resume(learner, state_path)
    log.rewind(first)
    saved_at = time.perf_counter()
    metrics = learner.held_out_metrics() if first == stage.sft.steps else {}  # killed between the last step and the end
    for step, metrics in learner.steps(first):
        log.log(step, metrics)
        shown = {name: value for name, value in metrics.items() if name.endswith("loss")}
        progress.emit("sft", "advance", done=step + 1, total=stage.sft.steps, metrics=shown)
        if stopping.requested() or time.perf_counter() - saved_at >= state_every_s:
            _save_state(learner, state_path, step + 1)
            store.push("sft")
            saved_at = time.perf_counter()
            stopping.check()
    vla.heads_trained = (TOKEN_HEAD,)
    directory = store.local / "sft" / "checkpoint"
    shutil.rmtree(directory, ignore_errors=True)  # of a stage that died between this and the mark that it is finished
    hash_ = save_policy(
        directory,
        vla,
        env=stage.env,
        stage="sft",
        data_hash=data_hash,
        split_hashes=context.split_hashes,
        seen_states=demos.seen_states,
        config=json.loads(stage.model_dump_json()),
        code_version=__version__,
        mlflow_run_id=context.parent_run_id,
    )
    state_path.unlink(missing_ok=True)
    store.push("sft")
    return {
        "uri": f"{context.run_dir.rstrip('/')}/sft/checkpoint",
        "hash": hash_,
        "held_out_loss": metrics["held_out/loss"],
        "demonstrations": demos.facts["demonstrations"],
        "demos_seconds": demos.facts["seconds"],
        "frames": len(train),
        "seconds": time.perf_counter() - started,
    }


def _fresh_policy(stage: SftStage, train: DemoSet) -> Any:
    """Random weights that know the demonstrations' statistics, with adapters where LoRA is asked for."""
    from gripline.policies import ActionStatistics, build_policy
    from gripline.policies.lora import apply_lora

    vla = build_policy(stage.policy, env_spec(stage.env), instructions=train.instructions, seed=stage.seed)
    vla.set_action_statistics(ActionStatistics.of(train.actions_FKA))
    vla.set_image_mean(train.images_FNHWC)
    if stage.policy.use_proprio:
        vla.set_proprio_statistics(ActionStatistics.of(train.proprio_FP))
    return apply_lora(vla, stage.sft.lora, seed=stage.seed) if stage.sft.method == "lora" else vla


def _save_state(learner: Any, path: Path, step: int) -> None:
    import torch

    with whole(path) as temporary:
        torch.save(learner.state(step), temporary)


def _resume(learner: Any, path: Path) -> int:
    """Continue from a saved state; returns the first step to run."""
    import torch

    if not path.exists():
        return 0
    first: int = learner.load_state(torch.load(path, weights_only=True, map_location="cpu"))
    progress.emit("sft", "note", text=f"resumed at step {first}")
    return first
