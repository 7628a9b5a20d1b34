"""Which version of a registered model may take an alias from another: never silently one that succeeded less often."""

from collections.abc import Mapping

LIST_TAG, SUCCESS_TAG = "gripline.iid_list", "gripline.iid_success"
"""Tags of a version: which IID episodes it was tested on, and on what share of them it succeeded."""
FORMER_TAG = "gripline.former_"
"""With the alias behind it: the version that had the alias before."""


def reason_to_stay(former: str, former_tags: Mapping[str, str], tags: Mapping[str, str], alias: str) -> str:
    """Why the version `former` keeps the alias; empty where it does not, or where the two cannot be compared because
    they were tested on other episodes."""
    if not {LIST_TAG, SUCCESS_TAG} <= former_tags.keys() & tags.keys() or former_tags[LIST_TAG] != tags[LIST_TAG]:
        return ""
    before, now = float(former_tags[SUCCESS_TAG]), float(tags[SUCCESS_TAG])
    if now >= before:
        return ""
    return (
        f"registered, but alias {alias!r} stays on version {former}, which succeeded on {before:.1%} of the same IID "
        f"episodes, this policy on {now:.1%}; promote.replace_better_champion moves it nevertheless"
    )
