"""What can be checked about a run before any work is done, in a fraction of a second: nothing heavy is imported."""

from pydantic import ValidationError

from gripline import credentials
from gripline.checkpoint import MANIFEST_FILE, Manifest, check_fits, read_manifest
from gripline.config import Profile
from gripline.envs.suites import env_spec
from gripline.errors import UserError
from gripline.splits import Splits, build_splits
from gripline.store import fetch, is_local


def check(profile: Profile, checkpoint_uri: str) -> Splits:
    """Tasks exist, split lists can be drawn, the given checkpoint (if any) is whole and fits. Returns the split lists.

    Of a checkpoint in a remote store only the manifest is read; the SFT stage checks the rest. Raises UserError.
    """
    credentials.refuse(profile.tracking.uri, "tracking.uri")
    spec = env_spec(profile.env)
    if checkpoint_uri:
        check_fits(_manifest(checkpoint_uri), spec, profile.env, where=checkpoint_uri)
    return build_splits(profile)


def _manifest(checkpoint_uri: str) -> Manifest:
    if is_local(checkpoint_uri):
        return read_manifest(fetch(checkpoint_uri))
    uri = f"{checkpoint_uri.rstrip('/')}/{MANIFEST_FILE}"
    try:
        return Manifest.model_validate_json(fetch(uri).read_bytes())
    except ValidationError as error:
        problem = f"is not a manifest: {error.errors()[0]['msg']}"
        raise UserError(uri, "", problem, "use a checkpoint as gripline wrote it") from error
