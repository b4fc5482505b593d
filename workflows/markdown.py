"""Text for the Temporal UI: one-line summaries, and details in Markdown."""

from collections.abc import Iterable

# Bytes of a summary. Temporal's default limit is 400; the UI shows about 200 in one line.
_SUMMARY_BYTES = 200

# Bytes of a workflow's details. Temporal's default limit is 20 000.
_DETAILS_BYTES = 18_000

# The metrics that people compare first.
_MAIN_METRICS = ("sharpe", "max_drawdown", "trades", "sample_days", "total_return")


def one_line(text: str) -> str:
    """Cut a summary to what the Temporal UI shows in one line, at most 200 bytes."""
    return _cut(" ".join(text.split()), _SUMMARY_BYTES)


def paragraphs(lines: Iterable[str]) -> str:
    """Join paragraphs to a workflow's details, cut to what Temporal accepts."""
    return _cut("\n\n".join(lines), _DETAILS_BYTES)


def table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    """Build a Markdown table. In a cell, `|` becomes `/` and a line break a space."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def plural(count: int, noun: str, plural_form: str = "") -> str:
    """Count a noun: `1 request`, `2 requests`."""
    return f"{count} {noun if count == 1 else plural_form or noun + 's'}"


def with_reason(text: str, reason: str) -> str:
    """Append a person's reason, if they gave one."""
    return f"{text}: {reason}" if reason else text


def metrics_line(metrics: dict[str, float | None]) -> str:
    """List the main metrics of a run in one line."""
    known = [(name, metrics[name]) for name in _MAIN_METRICS if name in metrics]
    return ", ".join(
        f"{name} {'missing' if value is None else format(value, '.4g')}" for name, value in known
    )


def _cut(text: str, limit: int) -> str:
    """Cut text to `limit` bytes of UTF-8, with an ellipsis where something is missing."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
