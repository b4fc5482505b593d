"""Who may do what, by whose token, under which policy: one table, over HTTP and by the command.

`WAITS` is an apply that the owner `registrar` has requested, and that waits for approval; `CHANGE` a looser
policy that they have requested. Each case leaves the world as it is. Signals straight to Temporal come last.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qmtl_sdk import Runner
from qmtl_sdk.contracts.access import Role, TokenRequest
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.promotions import PromotionRequest
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.runtime.client import GatewayClient
from temporal.client import connect
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import GATING, ApplyScenario, person
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, world
from workflows.ids import apply_id

WORLD = "governed"
ELSEWHERE = "elsewhere"
WAITS = "run-waits"
RULES = {**GATING, "approvals": {"required": 1, "live": 2, "policy": 1}}


@dataclass(frozen=True)
class Case:
    """`who` does it by `method` and `path` with `body`, and by the `words` of the command, if it has some.

    `code`: of the refusal.
    """

    name: str
    who: str
    method: str
    path: str
    body: Any
    words: str
    code: str
    live: bool = False


W = f"/worlds/{WORLD}"
APPROVE = f"{W}/applies/{WAITS}/approve"
APPROVE_WORDS = f"world approve {WORLD} {WAITS} --yes"
CHANGE_WORDS = f"world approve {WORLD} CHANGE --yes"
LIMITS = {"order_limits": {"max_quantity": "1000"}}
TOKEN = {"subject": "ana", "grants": {WORLD: "reader"}}

CASES = (
    # an apply that waits: who approves it
    Case("a reader approves", "rita", "POST", APPROVE, {}, APPROVE_WORDS, "E_ROLE"),
    Case("an author approves", "arthur", "POST", APPROVE, {}, APPROVE_WORDS, "E_APPROVAL_ROLE"),
    Case("who asked approves", "registrar", "POST", APPROVE, {}, APPROVE_WORDS, "E_APPROVAL_OWN"),
    Case("by a token of who asked", "otto", "POST", APPROVE, {}, APPROVE_WORDS, "E_APPROVAL_OWN"),
    Case("by a renewed token of who asked", "renewed", "POST", APPROVE, {}, APPROVE_WORDS, "E_APPROVAL_OWN"),
    Case("an operator of another world", "ella", "POST", APPROVE, {}, APPROVE_WORDS, "E_WORLD_FORBIDDEN"),
    Case("somebody disabled", "dora", "POST", APPROVE, {}, APPROVE_WORDS, "E_TOKEN_REVOKED"),
    Case("nobody", "", "POST", APPROVE, {}, APPROVE_WORDS, "E_TOKEN_MISSING"),
    Case("a forged token", "forged", "POST", APPROVE, {}, APPROVE_WORDS, "E_TOKEN_INVALID"),
    Case("of another plan", "ana", "POST", APPROVE, {"etag": "blake3:other"}, "", "E_ETAG"),
    Case(
        "an apply that is not there",
        "ana",
        "POST",
        f"{W}/applies/run-none/approve",
        {},
        f"world approve {WORLD} run-none --yes",
        "E_APPLY_UNKNOWN",
    ),
    Case(
        "a reader rejects",
        "rita",
        "POST",
        f"{W}/applies/{WAITS}/reject",
        {},
        f"world reject {WORLD} {WAITS}",
        "E_ROLE",
    ),
    Case(
        "an author rejects",
        "arthur",
        "POST",
        f"{W}/applies/{WAITS}/reject",
        {},
        f"world reject {WORLD} {WAITS}",
        "E_APPROVAL_ROLE",
    ),
    Case(
        "an author aborts",
        "arthur",
        "POST",
        f"{W}/applies/{WAITS}/abort",
        {},
        f"world abort {WORLD} {WAITS}",
        "E_ROLE",
    ),
    # who requests one
    Case("a reader applies", "rita", "POST", f"{W}/apply", {"run_id": "r"}, f"world apply {WORLD}", "E_ROLE"),
    Case(
        "an author applies", "arthur", "POST", f"{W}/apply", {"run_id": "r"}, f"world apply {WORLD}", "E_ROLE"
    ),
    Case(
        "a second apply",
        "ana",
        "POST",
        f"{W}/apply",
        {"run_id": "r"},
        f"world apply {WORLD}",
        "E_APPLY_RUNNING",
    ),
    Case("an apply as a change", "ana", "POST", f"{W}/apply", {"run_id": "change-1"}, "", "E_BODY_INVALID"),
    Case("an operator reads the owners' trail", "ana", "GET", "/audit", None, "", "E_ROLE"),
    Case(
        "an author promotes",
        "arthur",
        "POST",
        f"{W}/promotions",
        {"strategy": "Trend"},
        f"world promote {WORLD} Trend",
        "E_ROLE",
    ),
    Case("an author judges", "arthur", "POST", f"{W}/decide", {}, f"world decide {WORLD}", "E_ROLE"),
    # the rules
    Case(
        "an author adds a policy",
        "arthur",
        "POST",
        f"{W}/policies",
        {},
        f"world policy add {WORLD} looser.yml",
        "E_ROLE",
    ),
    Case(
        "a looser policy",
        "ana",
        "POST",
        f"{W}/policies",
        "LOOSER",
        f"world policy add {WORLD} looser.yml",
        "E_CHANGE_PENDING",
    ),
    Case(
        "live is allowed",
        "ana",
        "PATCH",
        W,
        {"allow_live": True},
        f"world allow-live {WORLD}",
        "E_CHANGE_PENDING",
        live=True,
    ),
    Case("live without the header", "ana", "PATCH", W, {"allow_live": True}, "", "E_LIVE_HEADER"),
    Case(
        "higher limits",
        "ana",
        "PATCH",
        W,
        LIMITS,
        f"world update {WORLD} limits.yml --yes",
        "E_CHANGE_PENDING",
    ),
    Case(
        "an author changes limits",
        "arthur",
        "PATCH",
        W,
        LIMITS,
        f"world update {WORLD} limits.yml --yes",
        "E_ROLE",
    ),
    Case("a halt that leaves orders", "ana", "PATCH", W, {"on_halt": "leave"}, "", "E_CHANGE_PENDING"),
    Case(
        "a reader approves a change",
        "rita",
        "POST",
        f"{W}/changes/CHANGE/approve",
        {},
        CHANGE_WORDS,
        "E_ROLE",
    ),
    Case(
        "an author approves a change",
        "arthur",
        "POST",
        f"{W}/changes/CHANGE/approve",
        {},
        CHANGE_WORDS,
        "E_APPROVAL_ROLE",
    ),
    Case(
        "who asked approves a change",
        "registrar",
        "POST",
        f"{W}/changes/CHANGE/approve",
        {},
        CHANGE_WORDS,
        "E_APPROVAL_OWN",
    ),
    Case(
        "a change by a token of who asked",
        "otto",
        "POST",
        f"{W}/changes/CHANGE/approve",
        {},
        CHANGE_WORDS,
        "E_APPROVAL_OWN",
    ),
    Case(
        "a change that is not there",
        "ana",
        "POST",
        f"{W}/changes/change-none/approve",
        {},
        f"world approve {WORLD} change-none --yes",
        "E_CHANGE_UNKNOWN",
    ),
    Case(
        "an operator opens the edge to live",
        "ana",
        "POST",
        f"{W}/edges/overrides",
        {"src": "domain:backtest", "dst": "domain:live", "active": True},
        "",
        "E_EDGE_LIVE",
    ),
    Case(
        "an operator closes an edge that nothing passes",
        "ana",
        "POST",
        f"{W}/edges/overrides",
        {"src": "domain:backtest", "dst": "domain:dryrun", "active": False},
        f"world override {WORLD} domain:backtest domain:dryrun",
        "E_EDGE_NO_EFFECT",
    ),
    # people and tokens
    Case(
        "an operator registers somebody",
        "ana",
        "POST",
        "/principals",
        {"name": "mallory"},
        "principal add mallory",
        "E_ROLE",
    ),
    Case(
        "an operator disables somebody",
        "ana",
        "POST",
        "/principals/ben/disable",
        {},
        "principal disable ben",
        "E_ROLE",
    ),
    Case(
        "an operator issues a token to another",
        "ben",
        "POST",
        "/tokens",
        TOKEN,
        "token create ana",
        "E_GRANT",
    ),
    Case(
        "an operator issues more than they have",
        "ana",
        "POST",
        "/tokens",
        {"subject": "ana", "grants": {"*": "owner"}},
        "token create ana --role owner",
        "E_GRANT",
    ),
    Case(
        "an author issues a token",
        "arthur",
        "POST",
        "/tokens",
        {**TOKEN, "subject": "arthur"},
        "token create arthur",
        "E_ROLE",
    ),
    Case(
        "a name of the system",
        "registrar",
        "POST",
        "/principals",
        {"name": "relay"},
        "principal add relay",
        "E_PRINCIPAL_RESERVED",
    ),
    Case(
        "a token for somebody unknown",
        "registrar",
        "POST",
        "/tokens",
        {**TOKEN, "subject": "mallory"},
        "token create mallory",
        "E_PRINCIPAL_UNKNOWN",
    ),
    Case(
        "a token for somebody disabled",
        "registrar",
        "POST",
        "/tokens",
        {**TOKEN, "subject": "dora"},
        "token create dora",
        "E_PRINCIPAL_DISABLED",
    ),
    Case("an operator rotates the keys", "ana", "POST", "/tokens/rotate", {}, "token rotate", "E_ROLE"),
    # the kill switch and what opens it again
    Case("a reader halts", "rita", "POST", f"{W}/halt", {}, f"world halt {WORLD}", "E_ROLE"),
    Case("an author halts", "arthur", "POST", f"{W}/halt", {}, f"world halt {WORLD}", "E_ROLE"),
    Case("an author resumes", "arthur", "POST", f"{W}/resume", {}, f"world resume {WORLD}", "E_ROLE"),
    Case(
        "an author cancels orders",
        "arthur",
        "POST",
        f"{W}/orders/cancel",
        {"all": True},
        f"world cancel {WORLD} --all",
        "E_ROLE",
    ),
    Case(
        "an author flattens",
        "arthur",
        "POST",
        f"{W}/flatten",
        {"flatten_id": "not-mine"},
        f"world flatten {WORLD} --yes",
        "E_ROLE",
    ),
    # sessions and queues
    Case(
        "an author without a session writes a queue",
        "arthur",
        "POST",
        "QUEUE",
        {"messages": [{"key": "k", "ts": 0, "values": {}}]},
        "",
        "E_SESSION_UNKNOWN",
    ),
    Case(
        "an author without a session reads a queue", "arthur", "GET", "QUEUE", None, "", "E_SESSION_UNKNOWN"
    ),
    Case(
        "an author reads dead letters",
        "arthur",
        "GET",
        "/events/dead-letters",
        None,
        "events dead-letters list",
        "E_ROLE",
    ),
)


class Court:
    """The world, the people with their tokens, and what waits."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        everywhere = {"*": Role.OPERATOR}
        self.tokens = {
            "": "",
            "forged": machine.token("ana")[:-8] + "AAAAAAAA",
            "ana": machine.token("ana"),
            "ben": machine.token("ben"),
            "rita": machine.issue("rita", {WORLD: Role.READER}).token,
            "arthur": machine.issue("arthur", {WORLD: Role.AUTHOR}).token,
            "otto": machine.issue("otto", everywhere).token,
            "ella": machine.issue("ella", {ELSEWHERE: Role.OPERATOR}).token,
            "dora": machine.issue("dora", everywhere).token,
            "registrar": machine.issue("registrar", {"*": Role.OWNER}).token,
        }
        with self.client("registrar") as owner:
            owner.disable_principal("dora")
        with self.client("otto") as otto:
            self.tokens["renewed"] = otto.create_token(TokenRequest(subject="otto", grants=everywhere)).token
        spec = {**world(WORLD), "order_limits": {"max_quantity": "10"}}
        with self.client("ana") as ana:
            ana.create_world(world(ELSEWHERE), POLICY)
            ana.create_world(spec, POLICY)
            Runner.submit(Trend, world=WORLD, config=machine.config, run=False)
            fingerprint = ana.fingerprints(WORLD)[0]
            self.rules = {
                **POLICY,
                "decision_ttl": 3600,
                "gating_policy": {**RULES, "dataset_fingerprint": fingerprint},
            }
            ana.add_policy(WORLD, self.rules)
            ana.decide(WORLD, uuid.uuid4().hex)
        self.looser = {**self.rules, "selection": {"score": "sharpe"}}
        (folder / "looser.yml").write_text(str(self.looser).replace("'", '"'))
        (folder / "limits.yml").write_text(json.dumps(LIMITS))
        self.ask()
        found = self.http("registrar", "POST", f"{W}/policies", self.looser)
        assert found.json()["code"] == "E_CHANGE_PENDING", found.text
        self.change = str(found.json()["details"]["change_id"])
        with self.client("ana") as ana:
            self.queue = next(
                item.topic for item in ana.queues_by_tag(["AAPL"], 86_400, "any", WORLD, "backtest")
            )

    def ask(self) -> None:
        found = self.http("registrar", "POST", f"{W}/apply", {"run_id": WAITS, "to": "dryrun"})
        assert found.status_code == 202, found.text
        with self.client("ana") as ana:
            wait_for(lambda: ana.apply_status(WORLD, WAITS).state == "approval", "the wait for approvals")

    def client(self, who: str) -> GatewayClient:
        return GatewayClient(self.machine.url, self.tokens[who])

    def http(self, who: str, method: str, path: str, body: Any, live: bool = False) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if self.tokens[who] else {}
        if live:
            headers["X-Allow-Live"] = "true"
        path = path.replace("CHANGE", self.change if hasattr(self, "change") else "")
        path = f"/queues/{self.queue}/messages" if path == "QUEUE" else path
        body = self.looser if body == "LOOSER" else body
        return httpx.request(
            method, f"{self.machine.url}{path}", json=body, headers=headers, timeout=60, trust_env=False
        )

    def types(self, who: str, words: str) -> Any:
        variables = {"QMTL_GATEWAY__TOKEN": self.tokens[who]} if self.tokens[who] else {}
        person = Person(
            self.folder,
            QMTL_GATEWAY__URL=self.machine.url,
            QMTL_HOME=str(self.folder / "nobody"),
            **variables,
        )
        return person.types(*words.replace("CHANGE", self.change).split())

    def state(self) -> Any:
        """What no refused request changes."""
        with self.client("ana") as ana:
            apply = ana.apply_status(WORLD, WAITS)
            return [
                ana.fence(WORLD),
                ana.world(WORLD),
                ana.policies(WORLD),
                ana.activation(WORLD),
                (apply.state, apply.approvals),
                [item for item in ana.changes(WORLD) if item.change_id == self.change],
                [item for item in ana.principals() if item.name != "registrar"],
                ana.fingerprints(WORLD),
                ana.queue_read(self.queue, 0),
            ]


@pytest.fixture(scope="module")
def court(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Court:
    return Court(machine, tmp_path_factory.mktemp("court"))


def test_the_table_has_forty_cases_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_the_table_refuses_is_refused_and_changes_nothing(court: Court, case: Case) -> None:
    before = court.state()
    answer = court.http(case.who, case.method, case.path, case.body, case.live)
    assert (answer.status_code // 100, answer.json()["code"]) == (4, case.code), answer.text
    if case.words:
        done = court.types(case.who, case.words)
        assert done.returncode != 0
        assert case.code in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, "one clear line"
    assert court.state() == before


@pytest.mark.parametrize("actor", ["mallory", "registrar", "ana", ""])
def test_a_signal_straight_to_temporal_counts_for_nobody_here(court: Court, actor: str) -> None:
    """The policy in force does not take direct signals, whatever name they claim."""

    async def signal() -> None:
        client = await connect(court.machine.config.temporal)
        approval = {"actor": actor, "reason": "trust me", "approval_id": f"approval-{actor or 'nobody'}"}
        await client.get_workflow_handle(apply_id(WORLD)).signal("approve", approval)

    asyncio.run(signal())
    with court.client("ana") as ana:
        found = wait_for(
            lambda: next(
                (item for item in ana.apply_status(WORLD, WAITS).approvals if item.actor == actor), None
            ),
            "the stored signal",
        )
        assert (found.via, found.counts, found.plan_hash) == ("direct", False, "")
        assert ana.apply_status(WORLD, WAITS).state == "approval"


def test_who_had_a_hand_in_the_token_of_a_promotion_does_not_approve_its_apply(machine: Machine) -> None:
    """A promotion requests its applies itself, long after the request."""
    stage = ApplyScenario(machine, "handed")
    try:
        with person(machine, "olaf") as olaf:  # who started the stack issued the token of who issued this
            olaf.promote(stage.world, PromotionRequest(strategy=stage.strategy, to="dryrun"))
        run = wait_for(lambda: stage.client.applies(stage.world), "the apply")[0].run_id
        stage.at(run, "approval")
        with pytest.raises(QmtlError, match="E_APPROVAL_OWN"):
            stage.client.approve(stage.world, run, ApprovalBody())
        stage.ana.approve(stage.world, run, ApprovalBody())
        assert stage.client.apply_status(stage.world, run, wait_s=30).outcome == "completed"
    finally:
        stage.close()


def test_those_who_may_do_it_can(machine: Machine) -> None:
    stage = ApplyScenario(machine, "allowed", {"approvals": {"required": 1, "live": 2, "policy": 1}})
    try:
        run = stage.ask("dryrun").run_id
        plan = stage.at(run, "approval").plan
        approval = stage.ben.approve(stage.world, run, ApprovalBody(etag=plan.etag))
        assert approval.plan_hash == plan.content_hash
        assert stage.client.apply_status(stage.world, run, wait_s=30).outcome == "completed"
        looser = {**stage.policy, "selection": {"score": "sharpe"}}
        with pytest.raises(QmtlError, match="E_CHANGE_PENDING") as caught:
            stage.client.add_policy(stage.world, looser)
        change = str(caught.value.details["change_id"])
        assert stage.ana.approve_change(stage.world, change).state == "made"
        assert stage.client.policies(stage.world)[-1]["selection"]["gates"]["and"] == []
        stage.client.add_policy(stage.world, stage.policy)  # stricter again: nobody is asked
    finally:
        stage.close()


def test_a_change_that_leads_to_live_takes_an_operator_who_says_so(machine: Machine) -> None:
    """An author whom the policy lets approve allowed live, without the header that says what it leads to."""
    gating = {
        "domains": {"from": "backtest", "to": "dryrun"},
        "approvals": {"required": 1, "live": 1, "policy": 1, "roles": ["author", "operator"]},
    }
    stage = ApplyScenario(machine, "leads", gating)
    author = GatewayClient(machine.url, machine.issue("arthur", {stage.world: Role.AUTHOR}).token)

    def pending(request: Callable[[], object]) -> str:
        with pytest.raises(QmtlError, match="E_CHANGE_PENDING") as caught:
            request()
        return str(caught.value.details["change_id"])

    def refused(code: str, by: GatewayClient, change: str, live: bool) -> None:
        with pytest.raises(QmtlError, match=code):
            by.approve_change(stage.world, change, live=live)

    try:
        stage.client.update_world(stage.world, WorldUpdate(allow_live=False))
        live_gating = {**stage.policy["gating_policy"], "domains": {"from": "backtest", "to": "live"}}
        requests: tuple[Callable[[], object], ...] = (
            lambda: stage.ana.update_world(stage.world, WorldUpdate(allow_live=True), live=True),
            lambda: stage.ana.add_policy(stage.world, {**stage.policy, "gating_policy": live_gating}),
        )
        for request in requests:
            change = pending(request)
            refused("E_ROLE", author, change, live=True)
            refused("E_LIVE_HEADER", stage.ben, change, live=False)
            assert stage.ben.approve_change(stage.world, change, live=True).state == "made"
        assert stage.client.world(stage.world).spec.allow_live
        looser = {**stage.policy, "gating_policy": live_gating, "selection": {"score": "sharpe"}}
        change = pending(lambda: stage.ana.add_policy(stage.world, looser))
        assert author.approve_change(stage.world, change).state == "made", "live was allowed before"
    finally:
        author.close()
        stage.close()
