"""The search attributes of QMTL's workflows: what the Temporal UI can filter its list by."""

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

SEARCH_WORLD = SearchAttributeKey.for_keyword("QmtlWorld")
SEARCH_STRATEGY = SearchAttributeKey.for_keyword("QmtlStrategy")
# What the workflow is at: for an apply the step, or its outcome.
SEARCH_STEP = SearchAttributeKey.for_keyword("QmtlStep")
# The run_id of an apply; submissions have Temporal's own RunId.
SEARCH_RUN = SearchAttributeKey.for_keyword("QmtlRunId")
SEARCH_DOMAIN = SearchAttributeKey.for_keyword("QmtlDomain")

# All of them; each process registers them when it connects (temporal.client).
SEARCH_ATTRIBUTES = (SEARCH_WORLD, SEARCH_STRATEGY, SEARCH_STEP, SEARCH_RUN, SEARCH_DOMAIN)


def attributes(values: dict[SearchAttributeKey[str], str]) -> TypedSearchAttributes:
    """Build the search attributes that a workflow is started with."""
    return TypedSearchAttributes([SearchAttributePair(key, value) for key, value in values.items()])
