"""The RL stage: draw groups → select mixed ones → update → publish weights → validate → checkpoint, until done."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.rl.sampler import Sampled, Sampler
from components.rl.state import ExperienceGroup, RlState
from gripline import __version__, progress
from gripline.atomic import whole
from gripline.checkpoint import checkpoint_hash
from gripline.errors import UserError
from gripline.metrics import MetricsLog
from gripline.splits import Splits
from gripline.stages import RlStage, RunContext
from gripline.store import RunStore, StageResult, digest, fetch

STARVING_LIMIT = 3


def run(*, context: str, config: str, policy_uri: str, splits_path: str) -> dict[str, Any]:
    """Improve the policy at `policy_uri`; returns {"uri", "hash", metrics…}. A finished stage is not run again."""
    run_context = RunContext.model_validate_json(context)
    stage = RlStage.model_validate_json(config)
    store = RunStore(run_context.run_dir)
    fingerprint = digest(config, checkpoint_hash(fetch(policy_uri)), *Splits.read(splits_path).hashes.values())
    finished = StageResult.find(store, "rl", fingerprint)
    if finished is not None:
        progress.emit("rl", "note", text="already finished, kept")
        return finished.outputs
    from gripline.tracking import stage_run

    with stage_run(run_context, "rl") as tracker:
        tracker.log_params({"rl": stage.rl.model_dump()})
        log = MetricsLog(store.local / "rl" / "metrics.jsonl", tracker.log_metrics)
        policy_dir = str(fetch(policy_uri))
        trainer = Trainer(stage, run_context, store, policy_dir, Splits.read(splits_path), fingerprint, log)
        with _actors(stage, policy_dir) as (engine, learner):
            outputs = trainer.train(engine, learner)
        for path in trainer.timeline():
            tracker.log_artifact(path)
        tracker.log_metrics({"best_validation_success": outputs["validation_success"]}, stage.rl.iterations)
    return StageResult(fingerprint=fingerprint, outputs=outputs).write(store, "rl")


@contextmanager
def _actors(stage: RlStage, policy_dir: str) -> Iterator[tuple[Any, Any]]:
    """(rollout engine, learner) on a Ray cluster; all gone again at the end, whatever happens."""
    import ray

    from components.rl.actors import LearnerActor
    from gripline.rollout.cluster import ray_cluster
    from gripline.rollout.engine import standard_engine

    progress.emit("rl", "note", text="starting Ray actors")
    with ray_cluster(stage.rollout, learners=1):
        learner = ray.remote(num_cpus=0, resources={"learner": 1})(LearnerActor).remote(
            policy_dir, stage.rl, stage.seed
        )
        try:
            with standard_engine(stage.env, policy_dir, stage.rollout) as engine:
                yield engine, learner
        finally:
            ray.kill(learner)


class Trainer:
    """The outer loop. Owns the resumable state; Ray actors do the work."""

    def __init__(
        self,
        stage: RlStage,
        context: RunContext,
        store: RunStore,
        policy_dir: str,
        splits: Splits,
        fingerprint: str,
        log: MetricsLog,
    ) -> None:
        self._config, self._seed, self._env, self._rollout = stage.rl, stage.seed, stage.env, stage.rollout
        self._context, self._store, self._policy_dir = context, store, policy_dir
        self._log = log
        self._folder: Path = store.local / "rl" / "state"
        self.trace_folder: Path = store.local / "rl" / "trace"
        self._train = {task: [spec for spec in splits.lists["train"] if spec.task == task] for task in stage.env.tasks}
        self._val = splits.lists["val"]
        tasks = stage.env.tasks
        self.state = RlState(
            fingerprint=fingerprint, drawn=dict.fromkeys(tasks, 0), mixed_share=dict.fromkeys(tasks, 1.0)
        )

    def train(self, engine: Any, learner: Any) -> dict[str, Any]:
        """Run the remaining iterations on a rollout engine and a learner actor, then hand on the best weights."""
        self._engine, self._learner = engine, learner
        config = self._config
        kept = self._resume()
        state = self.state
        self._sampler = Sampler(engine, self._train, config, state, kept=kept, seed=self._seed)
        if state.iteration == 0:
            progress.emit("rl", "note", text=f"validation success before RL: {self._validate():.3f}")
        ahead: Sampled | None = None
        while state.iteration < config.iterations and state.starving < STARVING_LIMIT:
            started = time.perf_counter()
            iteration = state.iteration
            sampled = ahead or self._sample(iteration, learner_version=state.version)
            metrics = sampled.metrics(version=state.version)
            update = self._start_update(sampled, iteration)
            overlaps = config.overlap and update is not None and not self._pauses_after(iteration)
            ahead = self._sample(iteration + 1, learner_version=state.version + 1) if overlaps else None
            metrics |= self._finish_update(update)
            state.iteration += 1
            if state.iteration == config.iterations or state.iteration % config.validate_every == 0:
                metrics["val/success"] = self._validate()
            state.seconds += time.perf_counter() - started
            metrics["seconds"] = state.seconds
            self._log.log(iteration, metrics)
            self._show(metrics)
            if state.iteration == config.iterations or state.iteration % config.checkpoint_every == 0:
                self._checkpoint()
        if state.iteration < config.iterations:
            self._stop_early(sampled)
        hash_ = self._hand_on()
        return {
            "uri": f"{self._context.run_dir.rstrip('/')}/rl/checkpoint",
            "hash": hash_,
            "validation_success": state.best_success,
            "best_iteration": state.best_iteration,
            "iterations": state.iteration,
            "env_steps": state.env_steps,
            "seconds": state.seconds,
        }

    def timeline(self) -> list[Path]:
        """The newest recorded iteration: its trace file, a picture and a page; nothing where none was recorded."""
        from gripline.rollout import trace

        recorded = sorted(self.trace_folder.glob("iteration-*.json"))
        if not recorded:
            return []
        drawn = trace.draw(recorded[-1], self.trace_folder)
        self._store.push("rl/trace")
        return [recorded[-1], *drawn]

    def _stop_early(self, sampled: Sampled) -> None:
        """Say why there is nothing left to learn from, and give the present weights their chance to be the best."""
        outcome = "all episodes succeed" if sampled.successes else "all episodes fail"
        note = f"stopped: in {STARVING_LIMIT} iterations no group with mixed outcomes; lately {outcome}"
        progress.emit("rl", "warn", text=note)
        self._validate()
        self._checkpoint()

    def _sample(self, iteration: int, *, learner_version: int) -> Sampled:
        """Experience for one iteration, and now and then a record of how it was rolled out."""
        from gripline.rollout import trace

        every = self._rollout.trace_every
        self._engine.record_trace = every > 0 and iteration % every == 0
        sampled = self._sampler.sample(learner_version=learner_version)
        if self._engine.record_trace and sampled.rounds:
            trace.save(self.trace_folder, iteration, self._engine.trace)
        return sampled

    def _pauses_after(self, iteration: int) -> bool:
        """Whether a validation or a checkpoint follows: both need the engine idle and the newest weights."""
        done, config = iteration + 1, self._config
        return done == config.iterations or not (done % config.validate_every and done % config.checkpoint_every)

    def _start_update(self, sampled: Sampled, iteration: int) -> tuple[Any, float] | None:
        """Begin to learn: (reference to the metrics, when it began), or None where there is nothing to learn from."""
        if not sampled.groups:
            return None
        trajectories = [trajectory for group in sampled.groups for trajectory in group.trajectories]
        advantages = [advantage for group in sampled.groups for advantage in group.advantages]
        num_old = sum(len(group.trajectories) for group in sampled.groups if group.version < self.state.version)
        update = self._learner.update.remote(trajectories, advantages, iteration, num_old=num_old)
        return update, time.perf_counter()

    def _finish_update(self, update: tuple[Any, float] | None) -> dict[str, float]:
        """Wait for the update and let the policy servers act with its weights."""
        import ray

        if update is None:
            return {}
        reference, started = update
        metrics: dict[str, float] = ray.get(reference)
        if "refused" in metrics:
            raise UserError(
                "rl",
                "rl.logprob_tolerance",
                f"behaviour and learner log-probs differ by {metrics['refused']:.2e} before the first update",
                "the checkpoint does not behave as the learner computes it; evaluate it alone first",
            )
        metrics["seconds"] = time.perf_counter() - started
        self.state.version += 1
        self._engine.set_weights(self._learner.weights.remote())
        return {f"learn/{name}": value for name, value in metrics.items()}

    def _validate(self) -> float:
        """Greedy success on the validation list; the best weights so far are kept on disk at once."""
        from gripline.rollout.actors import Decoding

        records = [episode.record for episode in self._engine.run(self._val, Decoding(greedy=True))]
        if all(record.error for record in records):
            raise RuntimeError(f"every simulator failed during validation: {records[0].error}")
        success = float(sum(record.success for record in records)) / len(records)
        if success >= self.state.best_success:
            self._keep_best()
            self.state.best_success, self.state.best_iteration = success, self.state.iteration
        return success

    def _show(self, metrics: dict[str, float]) -> None:
        shown = {name.split("/")[-1]: metrics[name] for name in ("train/success", "train/mixed_groups")}
        shown |= {"val": self.state.best_success, "steps_per_s": metrics["rollout/useful_steps_per_s"]}
        progress.emit("rl", "advance", done=self.state.iteration, total=self._config.iterations, metrics=shown)

    def _checkpoint(self) -> None:
        import ray

        from components.rl import state as state_files

        def save_tensors(path: str) -> None:
            ray.get(self._learner.save_state.remote(path))
            state_files.write_groups(Path(path).parent, self._sampler.kept, ray.get)

        new = state_files.write(self._folder, self.state, save_tensors, keep=self._config.keep_checkpoints)
        self._store.push("rl/metrics.jsonl")
        self._store.push(f"rl/state/{new.name}")
        self._store.keep_only("rl/state", [path.name for path in self._folder.iterdir()])
        # Those that were outdone go only now: the former state would still have named the best of them.
        self._store.keep_only("rl/best", [self._best_dir(self.state.best_iteration).name])

    def _resume(self) -> list[ExperienceGroup]:
        """Continue from the newest state, if there is one; returns the groups that were kept for later."""
        import ray

        from components.rl import state as state_files

        for name in ("rl/metrics.jsonl", "rl/state"):
            self._store.pull(name)
        path = state_files.latest(self._folder)
        if path is None:
            self._log.rewind(0)
            return []
        self.state = state_files.read(path, self.state.fingerprint)
        ray.get(self._learner.load_state.remote(str(path / "learner.pt")))
        self._engine.set_weights(self._learner.weights.remote())
        self._log.rewind(self.state.iteration)
        progress.emit("rl", "note", text=f"resumed at iteration {self.state.iteration}")
        return state_files.read_groups(path, ray.put)

    def _keep_best(self) -> None:
        """Write the present weights under the iteration's name, then drop the former best."""
        import ray

        provenance = {
            "stage": "rl",
            "parent": checkpoint_hash(Path(self._policy_dir)),
            "split_hashes": self._context.split_hashes,
            "config": json.loads(self._config.model_dump_json()),
            "code_version": __version__,
            "mlflow_run_id": self._context.parent_run_id,
        }
        new = self._best_dir(self.state.iteration)
        shutil.rmtree(new, ignore_errors=True)  # from an attempt that died after this and before its next state
        ray.get(self._learner.save_policy.remote(str(new), self._env, provenance))
        self._store.push(f"rl/best/{new.name}")

    def _best_dir(self, iteration: int) -> Path:
        return self._store.local / "rl" / "best" / f"iteration-{iteration:06d}"

    def _hand_on(self) -> str:
        """The best validated policy becomes the stage's checkpoint."""
        final = self._store.local / "rl" / "checkpoint"
        best = self._best_dir(self.state.best_iteration)
        self._store.pull(f"rl/best/{best.name}")
        with whole(final) as temporary:
            shutil.copytree(best, temporary)
        self._store.push("rl/metrics.jsonl")
        self._store.push("rl/checkpoint")
        return checkpoint_hash(final)
