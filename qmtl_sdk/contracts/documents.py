"""Reads what a person wrote (YAML, or a request's body) into a contract, with errors that name the fault."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.model import Model

_FAULTS = 20
"""Faults to list in an error's details: more would not be read."""


def mapping_of(text: str, code: str, what: str, remedy: str) -> dict[str, Any]:
    """Return the mapping in a YAML text.

    Raises QmtlError: `code`. (Any: a contract checks the values later.)
    """
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        one_line = " ".join(str(error).split())
        raise QmtlError(code, f"the {what} is not YAML: {one_line}", "correct the text there") from error
    if not isinstance(body, dict):
        raise QmtlError(code, f"a {what} is a mapping of keys", remedy)
    return body


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
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
    if item["type"] == "extra_forbidden":
        known = list(dict.fromkeys(_known_keys(model)))
        return f"{where} is not a known key{nearest(str(item['loc'][-1]), known)}"
    return f"{where}: {item['msg']}" if where else str(item["msg"])
