"""What can be checked about a run before any work is done, in a fraction of a second: nothing heavy is imported."""

from gripline import credentials
from gripline.checkpoint import check_fits, manifest_at
from gripline.config import Profile
from gripline.envs.suites import env_spec
from gripline.kube.placement import check_placements
from gripline.splits import Splits, build_splits


def check(profile: Profile, checkpoint_uri: str) -> Splits:
    """Tasks exist, split lists can be drawn, the given checkpoint (if any) is whole and fits, and so do placements.

    Of a checkpoint in a remote store only the manifest is read; the SFT stage checks the rest. Returns the split lists.
    Raises UserError.
    """
    credentials.refuse(profile.tracking.uri, "tracking.uri")
    if profile.cluster.stages:
        check_placements(profile.cluster)
    spec = env_spec(profile.env)
    if checkpoint_uri:
        check_fits(manifest_at(checkpoint_uri), spec, profile.env, where=checkpoint_uri)
    return build_splits(profile)
