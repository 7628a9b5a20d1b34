"""What can be checked about a run before any work is done, in a fraction of a second: nothing heavy is imported."""

import re
from collections.abc import Callable
from itertools import chain

from gripline import credentials
from gripline.checkpoint import check_fits, manifest_at
from gripline.config import Profile
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.kube.placement import check_placements
from gripline.seen_states import check_unseen
from gripline.splits import Splits, build_splits


def check(profile: Profile, checkpoint_uri: str, *, warn: Callable[[str], None] = lambda _text: None) -> Splits:
    """Tasks exist, split lists can be drawn, the given checkpoint (if any) is whole and fits, and so do placements.

    Nor may that checkpoint have been trained on what is tested here; one that does not say what it was trained on is
    worth a warning. Of a checkpoint in a remote store only the manifest is read; the SFT stage checks the rest. Returns
    the split lists. Raises UserError.
    """
    credentials.refuse(profile.tracking.uri, "tracking.uri")
    if profile.cluster.stages:
        check_placements(profile.cluster)
    spec = env_spec(profile.env)
    if not checkpoint_uri:
        splits = build_splits(profile)
        _check_instructions(profile, splits)
        return splits
    manifest = manifest_at(checkpoint_uri)
    check_fits(manifest, spec, profile.env, where=checkpoint_uri)
    splits = build_splits(profile)
    if not check_unseen(manifest, splits.tested, where=checkpoint_uri):
        warn(f"{checkpoint_uri} does not say what it was trained on: it may have seen what is tested here")
    return splits


def _check_instructions(profile: Profile, splits: Splits) -> None:
    """A policy of preset 'tiny' reads so many words; others have limits of their own, far above any instruction."""
    if profile.policy.preset != "tiny":
        return
    limit = profile.policy.tiny.max_text_tokens
    for spec in chain.from_iterable(splits.lists.values()):
        words = len(re.findall("[a-z0-9]+", spec.instruction.lower()))
        if words >= limit:
            problem = f"is {limit}, but {spec.instruction!r} ({spec.task}, list {spec.split}) has {words} words"
            raise UserError(profile.name, "policy.tiny.max_text_tokens", problem, f"set it to {words + 1} or more")
