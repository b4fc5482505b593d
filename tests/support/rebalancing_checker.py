"""Says which promises runs of rebalancings broke, from facts collected once everything rests.

A pure function: it knows nothing of the code that carries runs out, only what stores and exchange hold.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

ENDS = {"completed", "partial", "rolled_back", "aborted"}
ORDERED = {"ordered", "filled", "unfilled"}
LOT = 1
STILL_OPEN = "still open at its venue"

Place = tuple[str, str, str, str]
"""World, strategy, account and symbol."""


@dataclass(frozen=True)
class TradeFact:
    """A trade of a run as it is stored. Quantities are signed."""

    place: Place
    quantity: Decimal
    crossed: Decimal
    filled: Decimal
    state: str
    order_id: str
    reason: str = ""


@dataclass(frozen=True)
class RunFact:
    """A run as it is stored.

    `changes`: the shares of its worlds before and after. `planned`: what its plan gives each place.
    """

    run_id: str
    changes: Mapping[str, tuple[Decimal, Decimal]]
    outcome: str
    locked_at: str
    ended_at: str
    planned: Mapping[Place, Decimal] = field(default_factory=dict)
    trades: Sequence[TradeFact] = ()


@dataclass(frozen=True)
class LogFact:
    """A row of the order log. `fills`: by their ids, unsigned."""

    world: str
    at: str
    kind: str
    ref: str
    origin: str = ""
    fills: Sequence[tuple[str, Decimal]] = ()


@dataclass(frozen=True)
class TheirOrder:
    """An order as the exchange has it."""

    world: str
    strategy: str
    symbol: str
    sign: int
    quantity: Decimal
    fills: Mapping[str, Decimal]


@dataclass(frozen=True)
class Facts:
    """What stores and exchange hold of some worlds at rest.

    `first`: their shares before any run. `wanted`: what targets that were set again at rest come to by the
    weights of decisions alone.
    """

    runs: Sequence[RunFact]
    log: Sequence[LogFact]
    theirs: Mapping[str, TheirOrder]
    doubled: Sequence[str]
    held: Mapping[Place, Decimal]
    differences: Sequence[str]
    locks: Mapping[str, str]
    first: Mapping[str, Decimal]
    shares: Mapping[str, Decimal]
    scales: Mapping[str, Fraction]
    wanted: Mapping[Place, Decimal] = field(default_factory=dict)


def rebalancing_violations(facts: Facts) -> list[str]:
    """Name every promise that was broken."""
    broken = [*facts.differences]
    for run in facts.runs:
        broken += _end(run)
        broken += _plan(run)
    broken += _orders(facts)
    broken += _exchange(facts)
    broken += _positions(facts)
    broken += _locks(facts)
    broken += _shares(facts)
    broken += _targets(facts)
    return broken


def _end(run: RunFact) -> Iterator[str]:
    if run.outcome not in ENDS or not run.ended_at:
        yield f"{run.run_id} has not ended: {run.outcome or 'it has no outcome'}"
    if run.outcome == "rolled_back" and run.locked_at:
        yield f"{run.run_id} is rolled back, and its worlds were locked"
    changes = any(before != after for before, after in run.changes.values()) or any(run.planned.values())
    if (run.outcome == "partial" or (run.outcome == "completed" and changes)) and not run.locked_at:
        yield f"{run.run_id} is {run.outcome}, and its worlds were never locked"
    if not run.locked_at and run.trades:
        yield f"{run.run_id} has trades, and its worlds were never locked"
    undone = [item for item in run.trades if item.quantity and item.filled != item.quantity]
    if run.outcome == "completed" and undone:
        yield f"{run.run_id} is completed, and {len(undone)} of its trades are not filled"
    if run.outcome == "partial" and not undone:
        yield f"{run.run_id} is partial, and all of its trades are filled"
    if run.ended_at:
        for item in run.trades:
            if item.state in ("planned", "ordered"):
                yield f"{run.run_id} has ended, and a trade of it is {item.state}"


def _plan(run: RunFact) -> Iterator[str]:
    """The trades of a run give each strategy what its plan says, or less where a position lacks less by then.

    What is crossed adds up to nothing.
    """
    if not run.locked_at:
        return
    ordered, crossed = defaultdict[Place, Decimal](Decimal), defaultdict[Place, Decimal](Decimal)
    of_symbol = defaultdict[tuple[str, str, str], Decimal](Decimal)
    for item in run.trades:
        ordered[item.place] += item.quantity
        crossed[item.place] += item.crossed
        of_symbol[(item.place[0], *item.place[2:])] += item.crossed
    for place in ordered.keys() | run.planned.keys():
        most = run.planned.get(place, Decimal(0)) - crossed[place]
        if not min(most, 0) <= ordered[place] <= max(most, 0):
            yield f"{run.run_id} orders {ordered[place]} at {place}, and its plan leaves {most}"
    for place in run.planned.keys() - {item.place for item in run.trades}:
        if run.planned[place]:
            yield f"{run.run_id} has no trade at {place}, where its plan has {run.planned[place]}"
    for where, total in of_symbol.items():
        if total:
            yield f"{run.run_id} crosses {total} of {where}, which does not add up to nothing"


def _orders(facts: Facts) -> Iterator[str]:
    """Each ordered trade has one accepted order, and each accepted order of a run is of one trade."""
    accepted = Counter(row.ref for row in facts.log if row.kind == "accepted" and row.origin == "rebalancing")
    traded = Counter[str]()
    for run in facts.runs:
        for item in run.trades:
            wanted = item.state in ORDERED and item.quantity != 0
            traded[item.order_id] += wanted
            if accepted[item.order_id] != wanted:
                yield (
                    f"order {item.order_id} of {run.run_id} is {item.state} and was accepted "
                    f"{accepted[item.order_id]} times"
                )
            there = facts.theirs.get(item.order_id)
            filled = there.sign * sum(there.fills.values(), Decimal(0)) if there else Decimal(0)
            if wanted and filled != item.filled and STILL_OPEN not in item.reason:
                said = f"and its trade says {item.filled}"
                yield f"order {item.order_id} of {run.run_id} filled {filled}, {said}"
    for ref, count in traded.items():
        if count > 1:
            yield f"order {ref} is that of {count} trades"
    for ref in accepted.keys() - traded.keys():
        yield f"order {ref} was accepted for a rebalancing, and is of no trade"


def _exchange(facts: Facts) -> Iterator[str]:
    """The exchange has what the log says was sent, with the same fills, each once."""
    yield from (f"order {ref} was placed twice with other content" for ref in facts.doubled)
    sent = {row.ref for row in facts.log if row.kind == "sent"}
    told = defaultdict[str, Counter[str]](Counter)
    for row in facts.log:
        told[row.ref].update(fill_id for fill_id, _ in row.fills)
    for ref, order in facts.theirs.items():
        if ref not in sent:
            yield f"order {ref} is at the exchange, and was never marked as sent"
        filled = sum(order.fills.values(), Decimal(0))
        if filled > order.quantity:
            yield f"order {ref} of {order.quantity} filled {filled}"
    for ref in told.keys() | facts.theirs.keys():
        theirs = facts.theirs[ref].fills if ref in facts.theirs else {}
        for fill_id in theirs.keys() - told[ref].keys():
            yield f"the fill {fill_id} is lost: the log does not have it"
        for fill_id, count in told[ref].items():
            if count > 1 or fill_id not in theirs:
                yield f"the fill {fill_id} is doubled: {count} in the log, {fill_id in theirs:d} there"


def _positions(facts: Facts) -> Iterator[str]:
    """Each strategy holds its fills and what it was given by others; an account holds the fills alone."""
    wanted = defaultdict[tuple[str, str, str], Decimal](Decimal)
    theirs = defaultdict[str, Decimal](Decimal)
    for order in facts.theirs.values():
        filled = order.sign * sum(order.fills.values(), Decimal(0))
        wanted[(order.world, order.strategy, order.symbol)] += filled
        theirs[order.symbol] += filled
    for run in facts.runs:
        for item in run.trades:
            wanted[(*item.place[:2], item.place[3])] += item.crossed
    held, ours = defaultdict[tuple[str, str, str], Decimal](Decimal), defaultdict[str, Decimal](Decimal)
    for (world, strategy, _, symbol), quantity in facts.held.items():
        held[(world, strategy, symbol)] += quantity
        ours[symbol] += quantity
    for symbol in ours.keys() | theirs.keys():
        if ours[symbol] != theirs[symbol]:
            yield f"the ledger holds {ours[symbol]} of {symbol}, the exchange {theirs[symbol]}"
    for place in held.keys() | wanted.keys():
        if held[place] != wanted[place]:
            yield f"{place} holds {held[place]}, and its fills and crossings are {wanted[place]}"


def _locks(facts: Facts) -> Iterator[str]:
    """No apply holds a world while a run does, and no two runs hold one at once."""
    for world, run_id in facts.locks.items():
        if run_id:
            yield f"{world} is locked by {run_id}, and everything rests"
    freezer = dict[str, str]()
    frozen = defaultdict[str, list[tuple[str, str]]](list)
    since = dict[str, str]()
    for row in facts.log:
        if row.kind == "freeze":
            freezer[row.world], since[row.world] = row.ref, row.at
        elif row.kind == "unfreeze" and row.world in freezer:
            frozen[row.world].append((since[row.world], row.at))
            del freezer[row.world]
        elif row.kind == "accepted" and row.origin == "rebalancing" and row.world in freezer:
            yield f"order {row.ref} of a rebalancing was accepted while {freezer[row.world]} held {row.world}"
    for world in freezer:
        frozen[world].append((since[world], "9999"))
    locked = defaultdict[str, list[tuple[str, str, str]]](list)
    for run in facts.runs:
        for world in run.changes if run.locked_at else ():
            locked[world].append((run.locked_at, run.ended_at or "9999", run.run_id))
    for world, spans in locked.items():
        spans.sort()
        for begun, ended, run_id in spans:
            for frozen_at, opened_at in frozen[world]:
                if begun < opened_at and frozen_at < ended:
                    yield f"an apply froze {world} at {frozen_at} while {run_id} held it ({begun} to {ended})"
        for (_, ended, run_id), (begun, _, other) in pairwise(spans):
            if begun < ended:
                yield f"{other} locked {world} while {run_id} held it"


def _shares(facts: Facts) -> Iterator[str]:
    """Shares follow one from another; a scale is the product of the changes between shares above 0."""
    shares, scales = dict(facts.first), dict.fromkeys(facts.first, Fraction(1))
    last = dict(facts.first)
    stopped = {world for world, share in shares.items() if not share}
    for run in sorted((run for run in facts.runs if run.locked_at), key=lambda run: run.locked_at):
        for world, (before, after) in run.changes.items():
            if shares[world] != before:
                yield f"{run.run_id} begins with {world} at {before:f}, and it had {shares[world]:f}"
            if after and last[world]:
                scales[world] *= Fraction(after) / Fraction(last[world])
            last[world] = after or last[world]
            (stopped.discard if after else stopped.add)(world)
            shares[world] = after
    for world, share in shares.items():
        if facts.shares.get(world) != share:
            yield f"{world} has a share of {facts.shares.get(world)}, and the last run gave it {share:f}"
        scale = Fraction(0) if world in stopped else scales[world]
        if facts.scales.get(world, Fraction(1)) != scale:
            yield f"{world} is scaled by {facts.scales.get(world)}, and its runs make {scale}"


def _targets(facts: Facts) -> Iterator[str]:
    """A strategy holds its target times its weight and the scale of its world, within the lots of a rounding.

    One lot is that of the target, the other that of the plan.
    """
    for place, value in facts.wanted.items():
        wanted = Fraction(value) * facts.scales.get(place[0], Fraction(1))
        held = facts.held.get(place, Decimal(0))
        if abs(Fraction(held) - wanted) >= 2 * LOT:
            yield f"{place} holds {held} at rest, and wants {float(wanted):.3f}"
