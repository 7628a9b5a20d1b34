"""Which run a folder belongs to: the whole profile, and the checkpoint that the run starts from."""

from dataclasses import dataclass
from pathlib import Path

from gripline import profiles
from gripline.atomic import write_whole
from gripline.cluster_config import ClusterConfig
from gripline.config import Profile, RolloutConfig

CHECKPOINT_FILE = "checkpoint.txt"
PROFILE_FILE = "profile.yaml"
"""Written last: where it is, the record is complete."""


@dataclass(frozen=True)
class RunInputs:
    """What decides a run's results. Two runs of equal inputs are the same run.

    The sections `rollout` and `cluster` say only where and how fast work is done: a run may be continued with others.
    """

    profile: Profile
    checkpoint_uri: str = ""
    """Empty: the run begins with SFT."""

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
    return profile.model_copy(update={"rollout": RolloutConfig(), "cluster": ClusterConfig()})
