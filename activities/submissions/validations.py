"""EvalKeys: what a measurement of a strategy's nodes holds for, and when an earlier one stands.

In an EvalKey the contract is what the world judges by: its policy, data and costs, the node's schema, and
the version of QMTL that measures. The resource policy is the world's limits on orders. A change of any of
them, of the data or of code makes another EvalKey, and with it a measurement of its own.
"""

from importlib.metadata import version

from activities.messages.submission import NodeValidation, RunContextBody
from qmtl_sdk.contracts.canonical import hash_of, hash_parts
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.identity import ValidationScope, eval_key
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import WorldSpec


def contract_id(spec: WorldSpec, policy: Policy) -> str:
    """Return the hash of what a world judges by. Equal versions of a policy are one contract."""
    rules = policy.model_dump(mode="json", by_alias=True, exclude={"world", "version"})
    data = spec.model_dump(mode="json", include={"data", "execution"})
    return hash_of({"policy": rules, "world": data, "measured_by": version("qmtl")})


def resource_policy(spec: WorldSpec) -> str:
    """Return the hash of a world's limits on what its strategies may do."""
    return hash_of(spec.model_dump(mode="json", include={"order_limits", "circuit_breaker"}))


def validations(dag: Dag, run: RunContextBody, dataset_fingerprint: str) -> tuple[NodeValidation, ...]:
    """Build the validation of each node in this world and domain."""
    domain = run.context.execution_domain.value
    return tuple(
        NodeValidation(
            node_id=node.node_id,
            execution_domain=domain,
            eval_key=eval_key(
                ValidationScope(
                    node.node_id,
                    run.world_id,
                    domain,
                    hash_parts(run.contract_id, node.schema_compat_id, node.schema_hash),
                    dataset_fingerprint,
                    node.code_hash,
                    run.resource_policy,
                )
            ),
        )
        for node in dag.nodes
    )


def validation_id(
    checked: tuple[NodeValidation, ...], dag: Dag, run: RunContextBody, returns_hash: str
) -> str:
    """Return the hash of everything that the metrics of a run depend on."""
    return hash_of(
        {
            "eval_keys": sorted(item.eval_key for item in checked),
            "returns": returns_hash,
            "as_of": run.context.as_of,
            "returns_node": dag.returns,
            "weights": dag.weights,
        }
    )
