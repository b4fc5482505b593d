"""Changes of a world's spec: the file in which a person writes one, and what it changes."""

from typing import Any

from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy_text import Difference, dotted_differences
from qmtl_sdk.contracts.worlds import WorldSpec, WorldUpdate

_FIXED = ("clock", "execution")

# Keys of a world's file that other commands change.
_ELSEWHERE = {
    "policy": "qmtl world policy add W FILE adds a version of the policy",
    "state": "qmtl world archive W archives it",
}


def merged_spec(before: WorldSpec, change: WorldUpdate) -> WorldSpec:
    """Return a spec with the given parts of `change`.

    Raises QmtlError (E_WORLD_INVALID) where they do not go with the others.
    """
    values = before.model_dump()
    for name in WorldUpdate.model_fields.keys() - {"state"}:
        value = getattr(change, name)
        if value is not None:
            values[name] = value.model_dump() if isinstance(value, Model) else value
    spec: WorldSpec = validated(WorldSpec, values, "E_WORLD_INVALID", "world")
    return spec


def parse_update(text: str, spec: WorldSpec) -> WorldUpdate:
    """Read a change of a world from YAML: the keys of a world's file that change, or all of the file.

    Raises QmtlError (E_WORLD_INVALID), also where the file is of another world, or changes what stays as it
    was created or what other commands change.
    """
    body = mapping_of(text, "E_WORLD_INVALID", "world", "see docs/worlds.md for the keys")
    if body.pop("world", spec.world) != spec.world:
        raise QmtlError(
            "E_WORLD_INVALID", f"the file is not of world {spec.world}", "name the world that it is of"
        )
    for key, remedy in _ELSEWHERE.items():
        if key in body:
            raise QmtlError("E_WORLD_INVALID", f"{key} is not changed so", remedy)
    _require_as_created({key: body.pop(key) for key in _FIXED if key in body}, spec)
    update: WorldUpdate = validated(WorldUpdate, body, "E_WORLD_INVALID", "world")
    return update


def _require_as_created(fixed: dict[str, Any], spec: WorldSpec) -> None:
    """Check that parts of a file are those of the world. (Any: YAML.)"""
    given = validated(WorldSpec, {"world": spec.world, **fixed}, "E_WORLD_INVALID", "world")
    for key in fixed:
        if getattr(given, key) != getattr(spec, key):
            raise QmtlError(
                "E_WORLD_INVALID",
                f"{key} stays as it was when {spec.world} was created",
                "create another world with it",
            )


def world_differences(before: WorldSpec, after: WorldSpec) -> list[Difference]:
    """Return the keys that differ, as dotted names, sorted."""
    return dotted_differences(before.model_dump(mode="json"), after.model_dump(mode="json"))


def only_changed(change: WorldUpdate, differences: list[Difference]) -> WorldUpdate:
    """Return a change without the parts in which nothing differs."""
    names = {item.key.split(".", 1)[0] for item in differences}
    return WorldUpdate(**{name: getattr(change, name) for name in names})
