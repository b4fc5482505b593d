"""What the fence should have answered each order, from the log and the audit trail alone.

It knows nothing of the fence's code. For each order it lists the reasons for which it should be refused: an
accepted order must have none, and a refused one must have the reason that it was refused for.

The order log has orders and changes of the fence in one order. What else an order depends on (decisions,
activations, sessions, the world itself) stands in the audit trail, under the same clock: both were written
under the world's lock.
"""

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

DOMAINS = {"paper": "dryrun", "live": "live"}

# A session's lease may have run out so long before the audit trail says that the session has ended.
EXPIRY = timedelta(seconds=15)

LEASE_ENDED = "its lease ended"


class Unrouted(NamedTuple):
    """A time without an order router, as who took it away knows.

    `begun` to `ended`: live orders had to be refused, as none had worked for as long as the fence allows, and
    none could. `since` to `until`: they might be, from so long after one's last work until the next one's.
    """

    begun: str
    ended: str
    since: str
    until: str


class Timeline:
    """The value that held at a time."""

    def __init__(self) -> None:
        self._at: list[str] = []
        self._values: list[Any] = []

    def add(self, at: str, value: Any) -> None:
        self._at.append(at)
        self._values.append(value)

    def value(self, at: str, default: Any = None) -> Any:
        found = bisect_right(self._at, at)
        return self._values[found - 1] if found else default

    def next(self, at: str) -> tuple[str, Any] | None:
        """The first value from `at` on, with its time."""
        found = bisect_left(self._at, at)
        return (self._at[found], self._values[found]) if found < len(self._at) else None


class Surroundings:
    """What an order depends on besides the fence, by time. (Any: rows, and the JSON in them.)"""

    def __init__(self, audit: Any) -> None:
        self.fresh = Timeline()
        self.allowed = Timeline()
        self.edge = Timeline()
        self.breaker = Timeline()
        self.limits = Timeline()
        self.active_world = Timeline()
        self.activations: defaultdict[str, Timeline] = defaultdict(Timeline)
        self.sessions: defaultdict[str, Timeline] = defaultdict(Timeline)
        for row in audit:
            self._add(row["action"], row["at"], row["subject"], json.loads(row["after"]) or {})

    def _add(self, action: str, at: str, subject: str, after: dict[str, Any]) -> None:
        match action:
            case "world.created":
                self._spec(at, after["spec"])
            case "world.updated":
                self._spec(at, after)
            case "decision.made":
                decided = datetime.fromisoformat(after["decided_at"].replace("Z", "+00:00"))
                until = decided + timedelta(seconds=after["ttl"])
                self.fresh.add(at, until.isoformat(timespec="microseconds"))
            case "activation.changed":
                self.activations[subject].add(
                    at, (after["active"], DOMAINS.get(after["effective_mode"], "backtest"))
                )
            case "session.opened":
                self.sessions[subject].add(at, (after["strategy_id"], after["execution_domain"]))
            case "session.ended":
                self.sessions[subject].add(at, after["reason"])
            case "apply.frozen" | "apply.unfrozen" | "apply.switched":
                self.edge.add(at, after["live_edge"])
            case "edge.overridden" if subject == "domain:backtest → domain:live":
                self.edge.add(at, after["active"])

    def _spec(self, at: str, spec: dict[str, Any]) -> None:
        if "allow_live" in spec:
            self.allowed.add(at, spec["allow_live"])
        if "circuit_breaker" in spec:
            breaker = spec["circuit_breaker"]
            self.breaker.add(
                at, (breaker.get("max_orders_per_minute"), breaker.get("max_refused_per_minute"))
            )
        if "order_limits" in spec:
            self.limits.add(at, spec["order_limits"])
        if "state" in spec:
            self.active_world.add(at, spec["state"] == "active")

    def objections(self, at: str, order: dict[str, Any], strategy: str) -> Iterator[str]:
        """The reasons to refuse an order at a time, but for those of the fence row."""
        active, domain = self.activations[strategy].value(at, (False, "backtest"))
        wanted = order["execution_domain"]
        if wanted == "shadow":
            yield "shadow"
        if self.fresh.value(at, "") < at:
            yield "stale_decision"
        if self.sessions[order["session_id"]].value(at) != (strategy, wanted):
            yield "no_session"
        if not active:
            yield "not_active"
        if wanted != domain or wanted not in ("dryrun", "live"):
            yield "wrong_domain"
        if wanted == "live":
            if not (self.allowed.value(at, False) and self.active_world.value(at, True)):
                yield "live_not_allowed"
            if not self.edge.value(at, False):
                yield "edge_closed"
        limits = self.limits.value(at) or {}
        price, quantity = order.get("reference_price"), Decimal(order["quantity"])
        if limits.get("symbols") is not None and order["symbol"] not in limits["symbols"]:
            yield "symbol_limit"
        if limits.get("max_quantity") and quantity > Decimal(limits["max_quantity"]):
            yield "quantity_limit"
        most = limits.get("max_notional")
        if most and (price is None or quantity * Decimal(price) > Decimal(most)):
            yield "notional_limit"

    def lease_may_have_ended(self, session: str, at: str) -> bool:
        """Whether the trail says soon afterwards that a session's lease had run out."""
        found = self.sessions[session].next(at)
        if found is None or not isinstance(found[1], str) or not found[1].startswith(LEASE_ENDED):
            return False
        return datetime.fromisoformat(found[0]) - datetime.fromisoformat(at) < EXPIRY


class FenceRows:
    """The fence's own state, as the log's rows change it one after the other."""

    def __init__(self) -> None:
        self.owner = ""
        self.draining = False
        self.halted = False
        self.epoch = 1
        self.halted_strategies = set[str]()
        self._minute: datetime | None = None
        self._counts = Counter[str]()

    def change(self, row: Any) -> Iterator[str]:
        """Take a change of the fence; say what it breaks."""
        kind, ref = row["kind"], row["ref"]
        if kind in ("halt", "resume") and row["strategy_id"]:  # of one strategy: the epoch stays
            (self.halted_strategies.add if kind == "halt" else self.halted_strategies.discard)(ref)
            return
        if kind in ("freeze", "unfreeze", "halt", "resume"):
            # What opens a world that was left frozen and halted writes `unfreeze` and `resume`.
            if row["epoch"] < self.epoch + (kind != "resume"):
                yield f"{row['seq']}: {kind} does not raise the epoch beyond {self.epoch}"
            self.epoch = row["epoch"]
        if kind == "freeze":
            if self.owner:
                yield f"{row['seq']}: {ref} froze the world inside {self.owner}"
            self.owner = ref
            self.draining = False
        elif kind in ("drain", "switch", "restore", "unfreeze"):
            if self.owner != ref:
                yield f"{row['seq']}: {kind} by {ref}, while {self.owner or 'nobody'} holds the world"
            self.draining = kind != "unfreeze"
            self.owner = "" if kind == "unfreeze" else self.owner
        elif kind == "halt":
            self.halted = True
        if kind == "resume":
            self.halted = False
            self._counts.clear()

    def objections(self, order: dict[str, Any]) -> Iterator[str]:
        """The reasons for which the fence row refuses an order now."""
        if self.halted:
            yield "halted"
        if order["strategy_id"] in self.halted_strategies:
            yield "strategy_halted"
        if self.owner:
            yield "draining" if self.draining else "frozen"
        if order["epoch"] != self.epoch:
            yield "stale_epoch"

    def count(self, at: str, accepted: bool, breaker: tuple[int | None, int | None]) -> bool:
        """Count an order while there is a circuit breaker; return whether it had tripped before."""
        # An order whose Gateway's clock is behind counts in the minute that has begun by another's.
        minute = datetime.fromisoformat(at[:16])
        if self._minute is None or not minute <= self._minute <= minute + timedelta(minutes=1):
            self._minute = minute
            self._counts.clear()
        most, most_refused = breaker
        if most is None and most_refused is None:
            return False
        tripped = (most is not None and self._counts["accepted"] >= most) or (
            most_refused is not None and self._counts["refused"] > most_refused
        )
        self._counts["accepted" if accepted else "refused"] += 1
        return tripped


def fence_violations(log: Any, audit: Any, unrouted: Sequence[Unrouted] = ()) -> list[str]:
    """Orders that were accepted and should not have been, or refused without that reason. (Any: rows.)"""
    broken, fence, around = list[str](), FenceRows(), Surroundings(audit)
    for row in log:
        kind = row["kind"]
        if kind not in ("accepted", "refused"):
            broken += fence.change(row)
            continue
        order, at, accepted = json.loads(row["body"]), row["at"], kind == "accepted"
        if order.get("origin") == "flatten":  # no rule of a strategy's orders: `flatten_model.py` has its own
            continue
        reasons = {*fence.objections(order), *around.objections(at, order, row["strategy_id"])}
        if fence.count(at, accepted, around.breaker.value(at) or (None, None)):
            reasons.add("circuit_breaker")
        if order["execution_domain"] == "live" and any(item.begun <= at <= item.ended for item in unrouted):
            reasons.add("no_router")
        where = f"{row['seq']}: order {row['ref']}"
        if row["epoch"] != fence.epoch:
            broken.append(f"{where} has epoch {row['epoch']}, the world's is {fence.epoch}")
        if accepted and reasons:
            broken.append(f"{where} was accepted in spite of {', '.join(sorted(reasons))}")
        elif not accepted and row["reason"] not in reasons:
            late = row["reason"] == "no_session" and around.lease_may_have_ended(order["session_id"], at)
            late = late or (
                row["reason"] == "no_router" and any(item.since <= at <= item.until for item in unrouted)
            )
            if not late:
                there = ", ".join(sorted(reasons)) or "nothing"
                broken.append(f"{where} was refused for {row['reason']}, and there was {there} against it")
    return broken
