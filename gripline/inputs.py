"""Which run a folder belongs to: the whole profile, and the checkpoint that the run starts from."""

from dataclasses import dataclass
from pathlib import Path

from gripline import profiles
from gripline.atomic import write_whole
from gripline.cluster_config import ClusterConfig
from gripline.config import Profile, RolloutConfig
from gripline.errors import UserError
from gripline.guard_config import GuardConfig
from gripline.store import RunStore

CHECKPOINT_FILE = "checkpoint.txt"
PROFILE_FILE = "profile.yaml"
"""Written last: where it is, the record is complete."""


@dataclass(frozen=True)
class RunInputs:
    """What decides a run's results. Two runs of equal inputs are the same run.

    The sections `rollout` and `cluster` say only where and how fast work is done: a run may be continued with others,
    and so it may with another `rl.guard`, unless that changes what is learned.
    """

    profile: Profile
    checkpoint_uri: str = ""
    """Empty: the run begins with SFT."""

    @classmethod
    def read(cls, store: RunStore) -> "RunInputs":
        """What a run's folder was begun with. Raises UserError where that is not recorded."""
        profile, checkpoint = store.pull(PROFILE_FILE), store.pull(CHECKPOINT_FILE)
        for name, path in ((PROFILE_FILE, profile), (CHECKPOINT_FILE, checkpoint)):
            if not path.exists():
                raise UserError(f"{store.uri}/{name}", "", "is missing", "name a run's folder, or copy it again, whole")
        return cls(profiles.load(str(profile)), checkpoint.read_text(encoding="utf-8"))

    def write(self, folder: Path) -> None:
        """Leave the record in a run folder, each file whole or not at all. Raises UserError where that fails."""
        write_whole(folder / CHECKPOINT_FILE, self.checkpoint_uri)
        write_whole(folder / PROFILE_FILE, profiles.dump(self.profile))

    def difference(self, folder: Path) -> str:
        """The first thing in which the recorded run is another one; empty if none is recorded, or this one.

        Raises UserError when the record cannot be read.
        """
        if not (folder / PROFILE_FILE).exists():
            return ""
        recorded_profile = profiles.load(str(folder / PROFILE_FILE))
        difference = profiles.first_difference(_deciding(self.profile), _deciding(recorded_profile))
        recorded = (folder / CHECKPOINT_FILE).read_text(encoding="utf-8")
        if not difference and recorded != self.checkpoint_uri:
            difference = f"the checkpoint is {self.checkpoint_uri or 'none'} here, {recorded or 'none'} there"
        return difference


def _deciding(profile: Profile) -> Profile:
    """Without what decides nothing."""
    rl = profile.rl if profile.rl.guard.decides else profile.rl.model_copy(update={"guard": GuardConfig()})
    return profile.model_copy(update={"rl": rl, "rollout": RolloutConfig(), "cluster": ClusterConfig()})
