"""Reads what a person wrote (YAML, or a request's body) into a contract, with errors that name the fault."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from qmtl_sdk.contracts.canonical import MAX_DEPTH
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.model import Model

MAX_YAML = 2**20
"""Characters of a YAML text, as many as a request's body may have bytes by default."""

_MAX_VALUES = 100_000
"""Values that a YAML text may stand for, with each alias counted as what it repeats."""

_SHOWN = 300
"""Characters of a place, and of what is wrong there, to show: a key may be as long as the body."""

_FAULTS = 20
"""Faults to list in an error's details: more would not be read."""


def mapping_of(text: str, code: str, what: str, remedy: str) -> dict[str, Any]:
    """Return the mapping in a YAML text.

    Raises QmtlError: `code`, also where the text is too long, nested too deeply, or stands for too many
    values. An alias repeats what it names, so that a few lines can stand for billions of values. (Any: a
    contract checks the values later.)
    """
    if len(text) > MAX_YAML:
        raise QmtlError(
            code, f"the {what} has {len(text)} characters; {MAX_YAML} are allowed", "keep it shorter"
        )
    try:
        body = yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader
        _require_small(body, what)
    except (RecursionError, ValueError) as error:  # RecursionError: of the parser
        why = (
            str(error) if isinstance(error, _TooLargeError) else "it is nested too deeply or has a bad value"
        )
        raise QmtlError(code, f"the {what} is refused: {why}", "write fewer levels and aliases") from error
    except yaml.YAMLError as error:
        one_line = " ".join(str(error).split())
        raise QmtlError(code, f"the {what} is not YAML: {one_line}", "correct the text there") from error
    if not isinstance(body, dict):
        raise QmtlError(code, f"a {what} is a mapping of keys", remedy)
    return body


class _Loader(yaml.SafeLoader):
    """A safe loader without merge keys: it would copy what they name, aliases of aliases too, at once."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Raise YAMLError where a mapping has the key `<<`."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) are not supported: write the keys out", key.start_mark
                )


class _TooLargeError(ValueError):
    """A document stands for more than is allowed."""


def _require_small(body: Any, what: str) -> None:
    """Count the values that a document stands for, level by level. (Any: YAML's.) Raises _TooLargeError."""
    level, count = [body], 0
    for _ in range(MAX_DEPTH):
        containers = [item for item in level if isinstance(item, dict | list)]
        count += sum(map(len, containers))
        if count > _MAX_VALUES:
            raise _TooLargeError(f"it stands for more than {_MAX_VALUES} values")
        level = [
            item
            for container in containers
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    raise _TooLargeError(f"it is nested deeper than {MAX_DEPTH} levels")


def validated(model: type[Any], body: Any, code: str, what: str) -> Any:
    """Return `model` made from `body`. (Any: one function for every contract.)

    Raises QmtlError: `code`, with the first fault in the message and all faults in the details.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = [_fault(item, model) for item in error.errors(include_url=False, include_input=False)]
        raise QmtlError(
            code,
            f"the {what} is refused: {faults[0]}",
            "correct it and send it again",
            faults=faults[:_FAULTS],
        ) from error


def _known_keys(model: Any) -> Iterator[str]:
    """Yield every key of a contract and of the contracts inside it.

    (Any: field types exist at run time only.)
    """
    for name, field in model.model_fields.items():
        yield field.alias or name
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in inner:
            if isinstance(kind, type) and issubclass(kind, Model) and kind is not model:
                yield from _known_keys(kind)


def _fault(item: Any, model: Any) -> str:
    """Describe one of Pydantic's errors: the place and what is wrong there."""
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))[:_SHOWN]
    if item["type"] == "extra_forbidden":
        known = list(dict.fromkeys(_known_keys(model)))
        return f"{where} is not a known key{nearest(str(item['loc'][-1]), known)}"
    message = str(item["msg"]).removeprefix("Value error, ")[:_SHOWN]
    return f"{where}: {message}" if where else message
