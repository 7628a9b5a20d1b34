"""The RL stage: draw groups → select mixed ones → update → publish weights → validate → checkpoint, until done."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from components.rl.guard import Guard
from components.rl.sampler import Sampled, Sampler
from components.rl.state import ExperienceGroup, RlState
from gripline import __version__, progress, stopping
from gripline.checkpoint import MANIFEST_FILE, file_hash, hash_at, manifest_at
from gripline.errors import UserError
from gripline.metrics import MetricsLog
from gripline.seen_states import seen_in, united
from gripline.splits import Splits
from gripline.stages import RlStage, RunContext
from gripline.store import RunStore, StageResult, digest, read_once

STARVING_LIMIT = 3
MAX_LOSSES = 3
"""Of the learner's machine, without an iteration in between; one more ends the stage."""
STATES, BEST = "rl/state", "rl/best"
"""Folders of the run."""


def run(*, context: str, config: str, policy_uri: str, splits_path: str) -> dict[str, Any]:
    """Improve the policy at `policy_uri`; returns {"uri", "hash", metrics…}. A finished stage is not run again."""
    run_context = RunContext.model_validate_json(context)
    stage = RlStage.model_validate_json(config)
    store = RunStore(run_context.run_dir)
    splits = Splits.read(splits_path)
    watched = set() if stage.rl.guard.decides else {"guard"}  # nor does a guard that only watches
    decides = stage.model_dump_json(exclude={"rollout": True, "rl": watched})  # how episodes are run changes none
    fingerprint = digest(decides, hash_at(policy_uri), *splits.hashes.values())
    finished = StageResult.find(store, "rl", fingerprint)
    if finished is not None:
        progress.emit("rl", "note", text="already finished, kept")
        return finished.outputs
    from gripline.tracking import stage_run

    with stage_run(run_context, "rl") as tracker:
        tracker.log_params({"rl": stage.rl.model_dump()})
        log = MetricsLog(store.local / "rl" / "metrics.jsonl", tracker.log_metrics)
        make_trainer = partial(Trainer, stage, run_context, store, policy_uri, splits, fingerprint, log)
        trainer, outputs = _train(make_trainer, stage)
        for path in trainer.timeline():
            tracker.log_artifact(path)
        tracker.log_metrics({"best_validation_success": outputs["validation_success"]}, stage.rl.iterations)
    return StageResult(fingerprint=fingerprint, outputs=outputs).write(store, "rl")


def _train(make_trainer: Callable[[], "Trainer"], stage: RlStage) -> tuple["Trainer", dict[str, Any]]:
    """Train, from the last state again when the learner or what it needs is lost with its machine."""
    import ray

    losses, reached = 0, -1
    while True:
        trainer = make_trainer()
        try:
            with _actors(stage, trainer.policy_uri) as (engine, learner):
                return trainer, trainer.train(engine, learner)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            losses = losses + 1 if trainer.state.iteration <= reached else 1
            reached = trainer.state.iteration
            never_began = isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed
            if never_began or losses > MAX_LOSSES:
                raise
            told = " ".join(str(error).split())[:200]
            progress.emit("rl", "warn", text=f"learner or experience lost, going back to the last state: {told}")


@contextmanager
def _actors(stage: RlStage, policy_uri: str) -> Iterator[tuple[Any, Any]]:
    """(rollout engine, learner) on a Ray cluster; all gone again at the end, whatever happens."""
    import ray

    from components.rl.actors import LearnerActor
    from gripline.rollout.cluster import ray_cluster
    from gripline.rollout.engine import standard_engine
    from gripline.rollout.shares import Shares

    progress.emit("rl", "note", text="starting Ray actors")
    with ray_cluster(stage.rollout, learners=1):
        options = ray.remote(num_cpus=0, num_gpus=Shares.given().learner_gpus, resources={"learner": 1})
        learner = options(LearnerActor).remote(policy_uri, stage.rl, stage.seed)
        try:
            with standard_engine(stage.env, policy_uri, stage.rollout) as engine:
                progress.emit("rl", "note", text="env workers and policy servers are ready")
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
        policy_uri: str,
        splits: Splits,
        fingerprint: str,
        log: MetricsLog,
    ) -> None:
        self._config, self._seed, self._env, self._rollout = stage.rl, stage.seed, stage.env, stage.rollout
        self._context, self._store, self.policy_uri = context, store, policy_uri
        self._log = log
        self.trace_folder: Path = store.local / "rl" / "trace"
        self._train = {task: [spec for spec in splits.lists["train"] if spec.task == task] for task in stage.env.tasks}
        self._val = splits.lists["val"]
        parents = manifest_at(policy_uri).provenance.seen_states
        self._seen_states = united(parents, seen_in([*splits.lists["train"], *self._val]))
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
        self._guard = guard = Guard(config.guard, state.guard)
        guard.check()
        self._sampler = Sampler(engine, self._train, config, state, kept=kept, seed=self._seed, penalty=guard.penalty)
        if state.iteration == 0:
            before = self._validate()
            progress.emit("rl", "note", text=f"validation success before RL: {before['val/success']:.3f}")
        ahead: Sampled | None = None
        while state.iteration < config.iterations and state.starving < STARVING_LIMIT:
            started = time.perf_counter()
            iteration = state.iteration
            sampled = ahead or self._sample(iteration, learner_version=state.version)
            metrics = sampled.metrics(version=state.version) | guard.watch("train", sampled.ended, sampled.taken)
            update = self._start_update(sampled, iteration)
            ahead = self._sample_ahead(iteration) if update is not None else None
            metrics |= self._finish_update(update)
            state.iteration += 1
            if state.iteration == config.iterations or state.iteration % config.validate_every == 0:
                metrics |= self._validate()
            state.seconds += time.perf_counter() - started
            metrics["seconds"] = state.seconds
            self._log.log(iteration, metrics)
            self._show(metrics)
            stops = bool(stopping.requested() or guard.stops) and ahead is None and state.iteration < config.iterations
            if stops or state.iteration == config.iterations or state.iteration % config.checkpoint_every == 0:
                self._checkpoint()
            if ahead is None:
                guard.check()
            if stops:
                stopping.check()
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
        if self._engine.trace:
            trace.save(self.trace_folder, iteration, self._engine.trace)
        self._engine.record_trace = False
        self._engine.trace.clear()
        return sampled

    def _sample_ahead(self, iteration: int) -> Sampled | None:
        """Experience for the next iteration while the learner makes this one's update, if that is wanted."""
        if not self._config.overlap or self._pauses_after(iteration) or stopping.requested() or self._guard.stops:
            return None
        return self._sample(iteration + 1, learner_version=self.state.version + 1)

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

    def _validate(self) -> dict[str, float]:
        """Greedy success on the validation list; the best weights so far are kept on disk at once."""
        from gripline.rollout.actors import Decoding

        episodes = sorted(self._engine.run(self._val, Decoding(greedy=True)), key=lambda episode: episode.index)
        records = [episode.record for episode in episodes]
        if all(record.error for record in records):
            raise RuntimeError(f"every simulator failed during validation: {records[0].error}")
        success = float(sum(record.success for record in records)) / len(records)
        if success >= self.state.best_success:
            self._keep_best()
            self.state.best_success, self.state.best_iteration = success, self.state.iteration
        ended = [record for record in records if not record.error]
        return {"val/success": success} | self._guard.watch("val", ended, ended)

    def _show(self, metrics: dict[str, float]) -> None:
        shown = {name.split("/")[-1]: metrics[name] for name in ("train/success", "train/mixed_groups")}
        shown |= self._guard.shown(metrics)
        shown |= {"val": self.state.best_success, "steps_per_s": metrics["rollout/useful_steps_per_s"]}
        progress.emit("rl", "advance", done=self.state.iteration, total=self._config.iterations, metrics=shown)

    def _checkpoint(self) -> None:
        import ray

        from components.rl import state as state_files

        new = f"{STATES}/iteration-{self.state.iteration:06d}"
        with self._store.new_folder(new) as (folder, uri):
            ray.get(self._learner.save_state.remote(f"{uri}/{state_files.LEARNER_FILE}"))
            state_files.write_groups(folder, self._sampler.kept, ray.get)
            state_files.write(folder, self.state)
        self._store.push("rl/metrics.jsonl")
        kept = state_files.complete(self._store.files(STATES))[-self._config.keep_checkpoints :]
        self._store.keep_only(STATES, [Path(name).name for name in kept])
        # Those that were outdone go only now: the former state would still have named the best of them.
        self._store.keep_only(BEST, [self._best(self.state.best_iteration)])

    def _resume(self) -> list[ExperienceGroup]:
        """Continue from the newest state, if there is one; returns the groups that were kept for later."""
        import ray

        from components.rl import state as state_files

        self._store.pull("rl/metrics.jsonl")
        found = state_files.complete(self._store.files(STATES))
        if not found:
            self._log.rewind(0)
            return []
        path = self._store.pull(f"{found[-1]}/{state_files.STATE_FILE}").parent
        self._store.pull(f"{found[-1]}/{state_files.GROUPS_FILE}")
        self.state = state_files.read(path, self.state.fingerprint)
        ray.get(self._learner.load_state.remote(f"{self._store.uri}/{found[-1]}/{state_files.LEARNER_FILE}"))
        self._engine.set_weights(self._learner.weights.remote())
        self._log.rewind(self.state.iteration)
        progress.emit("rl", "note", text=f"resumed at iteration {self.state.iteration}")
        return state_files.read_groups(path, ray.put)

    def _keep_best(self) -> None:
        """Write the present weights under the iteration's name, then drop the former best."""
        import ray

        provenance = {
            "stage": "rl",
            "parent": hash_at(self.policy_uri),
            "split_hashes": self._context.split_hashes,
            "seen_states": self._seen_states,
            "config": json.loads(self._config.model_dump_json()),
            "code_version": __version__,
            "mlflow_run_id": self._context.parent_run_id,
        }
        stopping.fence()
        uri = f"{self._store.uri}/{BEST}/{self._best(self.state.iteration)}"
        ray.get(self._learner.save_policy.remote(uri, self._env, provenance))

    @staticmethod
    def _best(iteration: int) -> str:
        """Name of the policy that was the best at an iteration."""
        return f"iteration-{iteration:06d}"

    def _hand_on(self) -> str:
        """The best validated policy becomes the stage's checkpoint."""
        self._store.push("rl/metrics.jsonl")
        self._store.copy(f"{BEST}/{self._best(self.state.best_iteration)}", "rl/checkpoint")
        with read_once(f"{self._store.uri}/rl/checkpoint/{MANIFEST_FILE}") as manifest:
            return file_hash(manifest)
