"""Names and ids of a world's strategies: names where people read, ids where the Gateway needs them."""

from collections import Counter
from collections.abc import Iterable, Sequence

from qmtl_sdk.contracts.decisions import StrategyDecision
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.references import matching_strategies
from qmtl_sdk.contracts.worlds import BindingInfo
from qmtl_sdk.runtime.client import GatewayClient

SHORT_ID = 24
"""Characters of a strategy_id that are shown: `strategy:` and the first 15 digits of the hash."""

_Strategy = StrategyDecision | BindingInfo


class StrategyNames:
    """The names of a world's strategies, read from its newest decision and read again for an unknown id.

    Those of strategies that it does not name are the ones that they were submitted with.
    """

    def __init__(self, client: GatewayClient, world: str) -> None:
        self._client = client
        self._world = world
        self._names: dict[str, str] = {}
        self._unnamed: set[str] = set()

    def __getitem__(self, strategy_id: str) -> str:
        """Return the strategy's name, or the beginning of its id where it has none."""
        if strategy_id not in self._names and strategy_id not in self._unnamed:
            self._names = _labels(_decided(self._client, self._world))
            if strategy_id not in self._names:  # it was submitted, and the newest decision is older or newer
                submitted = {item.strategy_id: item.name for item in self._client.bindings(self._world)}
                self._names = {**{key: name for key, name in submitted.items() if name}, **self._names}
            if strategy_id not in self._names:
                self._unnamed.add(strategy_id)
        return self._names.get(strategy_id, strategy_id[:SHORT_ID])


class StrategiesByWorld(dict[str, StrategyNames]):
    """The names of strategies in each world, read where they are first asked for."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def __missing__(self, world: str) -> StrategyNames:
        self[world] = StrategyNames(self._client, world)
        return self[world]


def strategy_ids(
    client: GatewayClient, world: str, given: Iterable[str], older: bool = False
) -> dict[str, str]:
    """Return the strategy_id of each name, strategy_id or prefix in `given`, of the newest decision.

    With `older`, what it does not name is looked for among all strategies that were submitted.

    Raises QmtlError (E_STRATEGY_UNKNOWN), which lists all that select no strategy or more than one.
    """
    wanted = dict.fromkeys(given)
    if not wanted:
        return {}
    known: Sequence[_Strategy] = _decided(client, world)
    found = {text: matching_strategies(text, known) for text in wanted}
    if older and not all(found.values()):
        known = client.bindings(world)
        found = {text: matches or matching_strategies(text, known) for text, matches in found.items()}
    faults = [_fault(text, matches, known, world) for text, matches in found.items() if len(matches) != 1]
    if faults:
        raise QmtlError(
            "E_STRATEGY_UNKNOWN",
            "; ".join(faults),
            f"give names or strategy_ids; qmtl world show {world} lists the strategies",
        )
    return {text: matches[0].strategy_id for text, matches in found.items()}


def _labels(known: tuple[StrategyDecision, ...]) -> dict[str, str]:
    """Label each strategy with its name; strategies that share a name get the beginning of their id too."""
    uses = Counter(item.name for item in known)
    return {
        item.strategy_id: f"{item.name} {item.strategy_id[:SHORT_ID]}" if uses[item.name] > 1 else item.label
        for item in known
    }


def _decided(client: GatewayClient, world: str) -> tuple[StrategyDecision, ...]:
    decisions = client.decisions(world)
    return decisions[0].strategies if decisions else ()


def _fault(text: str, matches: Sequence[_Strategy], known: Iterable[_Strategy], world: str) -> str:
    if matches:
        return f"{text[:80]!r} selects {len(matches)} strategies of {world}"
    names = [item.name for item in known if item.name]
    return f"{text[:80]!r} is no strategy of {world}{nearest(text, names)}"
