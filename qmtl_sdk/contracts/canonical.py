"""JSON from outside, and canonical JSON, in which equal values have equal bytes: their hash is an identity.

In the style of RFC 8785: keys sorted by code point, no spaces, UTF-8, shortest round-trip floats. `1.0` is
written as `1`, `-0.0` as `0`; NaN and infinity are refused.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import orjson
from blake3 import blake3

from qmtl_sdk.contracts.errors import QmtlError

_LARGEST_EXACT = 2.0**53
"""Below this, a whole float is the same number as an integer."""

_INT64 = 2**63
"""The bound of integers that every JSON parser here reads."""

MAX_DEPTH = 64
"""Levels of lists and mappings in JSON from outside."""

_MAX_CANONICAL_DEPTH = 128
"""Levels of what is written: text from outside with room around it. Pydantic reads fewer than 200."""


class JsonRefusedError(json.JSONDecodeError):
    """JSON from outside that is refused. A ValueError, as every error of a JSON parser."""

    def __init__(self, why: str) -> None:
        super().__init__(why, "", 0)


def read_json(text: bytes | str) -> Any:
    """Read JSON that comes from outside. (Any: JSON of any form, checked by a contract later.)

    Raises ValueError where it is not JSON or too deep. NaN, infinity, lone surrogates and U+0000 are not JSON
    here: no database or hash takes them. Python's own parser accepts them, and raises RecursionError, no
    ValueError, for what is nested a thousand levels deep.
    """
    value = orjson.loads(text)
    if depth_exceeds(value, MAX_DEPTH):
        raise JsonRefusedError(f"nested deeper than {MAX_DEPTH} levels")
    escaped = b"\\u0000" in text if isinstance(text, bytes) else "\\u0000" in text
    if escaped and "\0" in _texts(value):
        raise JsonRefusedError("a text contains U+0000")
    return value


def _texts(value: Any) -> str:
    """Return all texts of a JSON value, keys too, as one. (Any: as above; not nested deeper than allowed.)"""
    if isinstance(value, dict):
        return "".join(f"{key}{_texts(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(map(_texts, value))
    return value if isinstance(value, str) else ""


def depth_exceeds(value: Any, limit: int) -> bool:
    """Return whether lists and mappings are nested deeper than `limit` levels. (Any: a JSON value.)

    Level by level, without recursion.
    """
    level = [value] if isinstance(value, list | tuple | dict) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, list | tuple | dict)
        ]
    return bool(level)


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value.

    (Any: a JSON value.) Raises QmtlError: E_PARAM_NOT_FINITE, E_PARAM_TYPE.
    """
    if depth_exceeds(value, _MAX_CANONICAL_DEPTH):
        raise QmtlError(
            "E_PARAM_TYPE",
            f"the value is nested deeper than {_MAX_CANONICAL_DEPTH} levels",
            "use fewer levels of lists and mappings",
        )
    return orjson.dumps(_normal(value, ""), option=orjson.OPT_SORT_KEYS)


def content_hash(data: bytes) -> str:
    """Return `blake3:` and the digest in hex."""
    return "blake3:" + blake3(data).hexdigest()


def hash_of(value: Any) -> str:
    """Return the content hash of a JSON value's canonical bytes."""
    return content_hash(canonical_json(value))


def hash_parts(*parts: str) -> str:
    """Return the hash of a sequence of strings, each preceded by its length: different sequences give other
    bytes.
    """
    encoded = [part.encode() for part in parts]
    return content_hash(b"".join(len(part).to_bytes(8, "big") + part for part in encoded))


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with dotted keys: `{"a": {"b": 1}}` → `{"a.b": 1}`.

    A dot inside a key is escaped, to differ from a level. Raises QmtlError: E_PARAM_TYPE.
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if not isinstance(key, str):
            raise QmtlError("E_PARAM_TYPE", f"the parameter key {key!r} is not text", "use text keys")
        name = key.replace("\\", "\\\\").replace(".", "\\.") if "." in key or "\\" in key else key
        if isinstance(value, Mapping) and value:
            for inner, leaf in flatten(value).items():
                flat[f"{name}.{inner}"] = leaf
        else:
            flat[name] = value
    return flat


def _normal(value: Any, where: str) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if not -_INT64 <= value < _INT64:
            raise QmtlError(
                "E_PARAM_TYPE", f"{where or 'the value'} is {value}, beyond 64 bits", "write it as text"
            )
        return value
    if kind is float:
        if not math.isfinite(value):
            raise QmtlError(
                "E_PARAM_NOT_FINITE",
                f"{where or 'the value'} is {value}",
                "use a finite number, or leave the parameter out",
                field=where,
            )
        return int(value) if value == int(value) and abs(value) < _LARGEST_EXACT else value
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise QmtlError(
                    "E_PARAM_TYPE",
                    f"{where or 'the value'} has the key {key!r}, which is not text",
                    "use text keys",
                )
        return {key: _normal(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item, where) for item in value]
    raise QmtlError(
        "E_PARAM_TYPE",
        f"{where or 'the value'} is a {kind.__name__}, which JSON does not have",
        "use numbers, texts, lists and mappings",
        field=where,
    )
