"""One update's experience: rounds of groups on the rollout engine until enough have mixed outcomes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from components.rl.sampling import MixedGroup, Round, allocate, draw_round
from components.rl.state import ExperienceGroup, RlState
from gripline import progress
from gripline.config import RlConfig
from gripline.rollout.stats import RolloutStats
from gripline.types import EpisodeRecord, EpisodeSpec

if TYPE_CHECKING:
    from gripline.rollout.messages import Decoding

LOST_TRIES = 3


@dataclass
class Sampled:
    """What one iteration brought."""

    groups: list[ExperienceGroup] = field(default_factory=list)
    """To learn from: those kept from before, then those of this iteration's rounds, each in draw order."""
    episodes: int = 0
    successes: int = 0
    drawn_groups: int = 0
    mixed: int = 0
    """Groups with mixed outcomes in this iteration's rounds."""
    kept: int = 0
    """Groups left over for later iterations."""
    too_old: int = 0
    """Groups kept from before that grew too old."""
    rounds: int = 0
    rollouts: list[RolloutStats] = field(default_factory=list)
    ended: list[EpisodeRecord] = field(default_factory=list)
    """Every episode of this iteration's rounds that came to its end."""
    taken: list[EpisodeRecord] = field(default_factory=list)
    """Those of them that are in groups to learn from now."""

    def metrics(self, *, version: int) -> dict[str, float]:
        """Sampling figures of the iteration. version: updates that the learner has made before this one."""
        ages = [version - group.version for group in self.groups]
        return {
            "train/success": self.successes / max(self.episodes, 1),
            "train/mixed_groups": float(self.mixed),
            "train/used_groups": float(len(self.groups)),
            "train/groups": float(self.drawn_groups),
            "train/rounds": float(self.rounds),
            "train/kept_groups": float(self.kept),
            "train/too_old_groups": float(self.too_old),
            "train/staleness_mean": sum(ages) / max(len(ages), 1),
            "train/staleness_max": float(max(ages, default=0)),
        } | RolloutStats.total(self.rollouts).metrics()


class Sampler:
    """Draws, runs and selects groups; owns those that are kept for later iterations."""

    def __init__(
        self,
        engine: Any,
        train: dict[str, list[EpisodeSpec]],
        config: RlConfig,
        state: RlState,
        *,
        kept: list[ExperienceGroup],
        seed: int,
        penalty: Callable[[EpisodeRecord], float] = lambda record: 0.0,
    ) -> None:
        """state: its counters of drawn groups and of control steps are counted up here. kept: from before a resume.

        penalty: what an episode loses of its reward.
        """
        self._engine, self._train, self._config, self._state, self._seed = engine, train, config, state, seed
        self.kept, self._penalty = kept, penalty

    def sample(self, *, learner_version: int) -> Sampled:
        """Run rounds until an update has enough mixed groups, or the rounds are used up.

        learner_version: updates that will have been made when these groups are learned from; the acting policy may be
        one behind. Raises RuntimeError when every simulator of a round failed.
        """
        config, out = self._config, Sampled()
        young = [group for group in self.kept if learner_version - group.version <= config.max_staleness]
        out.too_old = len(self.kept) - len(young)
        out.groups, self.kept = young[: config.min_mixed_groups], young[config.min_mixed_groups :]
        while out.rounds < config.max_rounds and len(out.groups) < config.min_mixed_groups:
            self._run_round(out, needed=config.min_mixed_groups - len(out.groups))
        out.kept = len(self.kept)
        self._state.starving = 0 if out.groups else self._state.starving + 1
        if len(out.groups) < config.min_mixed_groups:
            found = f"{len(out.groups)} of {config.min_mixed_groups} mixed groups after {out.rounds} rounds"
            progress.emit("rl", "note", text=f"few groups to learn from: {found}")
        return out

    def _run_round(self, out: Sampled, *, needed: int) -> None:
        from gripline.rollout.actors import Decoding

        config, state = self._config, self._state
        counts = allocate(state.mixed_share, config)
        specs = draw_round(self._train, state.drawn, counts, group_size=config.group_size, seed=self._seed)
        round_ = Round(specs, config, needed=needed)
        decoding = Decoding(greedy=False, temperature=config.temperature, keep_trajectory=True)

        def note(episode: Any) -> set[int]:
            success = None if episode.record.error else episode.record.success
            return round_.ended(episode.index, success, self._penalty(episode.record))

        finished = {episode.index: episode for episode in self._engine.run(specs, decoding, useless=note)}
        self._book(out)
        usable = [finished[index].record for index in sorted(finished) if not finished[index].record.error]
        if not usable:
            errors = sorted({episode.record.error for episode in finished.values()})
            raise RuntimeError(f"every simulator failed: {errors[0] if errors else 'no episode ended'}")

        def experience(mixed: MixedGroup) -> ExperienceGroup:
            trajectories = tuple(finished[index].trajectory for index in mixed.members)
            return ExperienceGroup(state.version, trajectories, mixed.advantages)

        wanted, left_over = round_.taken(), round_.surplus() if config.surplus == "keep" else []
        self._run_lost_again(
            finished, [index for mixed in (*wanted, *left_over) for index in mixed.members], out, decoding
        )
        taken, surplus = [experience(mixed) for mixed in wanted], [experience(mixed) for mixed in left_over]
        out.groups += taken
        self.kept += surplus
        out.mixed += len(taken) + len(surplus)
        out.drawn_groups += round_.num_groups
        out.episodes += len(usable)
        out.successes += sum(record.success for record in usable)
        out.ended += usable
        out.taken += [finished[index].record for mixed in wanted for index in mixed.members]
        out.rounds += 1
        for task, share in round_.mixed_share().items():
            state.mixed_share[task] = (state.mixed_share[task] + share) / 2

    def _book(self, out: Sampled) -> None:
        """Count what the latest rollout cost."""
        out.rollouts.append(self._engine.last)
        self._state.env_steps += self._engine.last.env_steps

    def _run_lost_again(self, finished: dict[int, Any], indices: list[int], out: Sampled, decoding: "Decoding") -> None:
        """Trajectories go with the machine in whose memory they lie; run again, the same episodes come out."""
        for _ in range(LOST_TRIES):
            lost = self._engine.without_trajectory(finished[index] for index in indices)
            if not lost:
                return
            progress.emit("rl", "note", text=f"{len(lost)} trajectories went with a machine; they are run again")
            for episode in self._engine.run([each.record.spec for each in lost], decoding):
                if episode.record.error:
                    raise RuntimeError(f"a lost episode cannot be run again: {episode.record.error}")
                finished[lost[episode.index].index] = replace(episode, index=lost[episode.index].index)
            self._book(out)
        raise RuntimeError(f"machines are lost faster than {len(lost)} episodes can be run again")
