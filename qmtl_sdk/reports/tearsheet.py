"""The report of a decision: one HTML page with every strategy's metrics, equity and drawdown.

The page loads nothing from the network.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.reports.metrics import descriptions, drawdown, equity
from qmtl_sdk.reports.returns import Returns

# Points of a curve that are drawn.
_POINTS = 4000

# Metrics that the page shows, in order.
_SHOWN = (
    "sharpe",
    "annual_return",
    "annual_volatility",
    "max_drawdown",
    "win_rate",
    "turnover",
    "trades",
    "sample_days",
    "total_return",
)


@dataclass(frozen=True)
class Tearsheet:
    """What the page shows of one strategy."""

    name: str
    strategy_id: str
    verdict: str
    active: bool
    metrics: dict[str, float | None]
    returns: Returns | None
    ui_url: str


def write(path: Path, decision: DecisionEnvelope, sheets: list[Tearsheet]) -> Path:
    """Write the page. Returns its absolute path."""
    environment = Environment(loader=PackageLoader("qmtl_sdk.reports"), autoescape=select_autoescape())
    page = environment.get_template("tearsheet.html.j2").render(
        decision=decision,
        sheets=sheets,
        shown=_SHOWN,
        meanings=descriptions(),
        figure=_figure(sheets),
        plotly=get_plotlyjs(),
    )
    path.write_text(page, encoding="utf-8")
    return path.resolve()


def _figure(sheets: list[Tearsheet]) -> str:
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.65, 0.35],
        vertical_spacing=0.05,
        subplot_titles=("Equity, from 1", "Drawdown"),
    )
    colours = ("#0b6e4f", "#c1666b", "#4357ad", "#b8860b", "#6b4c9a", "#2f4b5c")
    for sheet, colour in zip(
        (item for item in sheets if item.returns is not None), colours * len(sheets), strict=False
    ):
        assert sheet.returns is not None  # the generator left the others out
        keep = np.unique(np.linspace(0, len(sheet.returns.ts) - 1, _POINTS).astype(int))
        times = sheet.returns.ts[keep].view("M8[ns]").astype("M8[s]").astype(str).tolist()
        curve = equity(sheet.returns.values)[keep].tolist()
        falls = (-drawdown(sheet.returns.values)[keep]).tolist()
        figure.add_trace(
            go.Scatter(
                x=times,
                y=curve,
                name=sheet.name,
                legendgroup=sheet.name,
                line={"color": colour, "width": 1.5},
            ),
            row=1,
            col=1,
        )
        figure.add_trace(
            go.Scatter(
                x=times,
                y=falls,
                name=sheet.name,
                legendgroup=sheet.name,
                showlegend=False,
                fill="tozeroy",
                line={"color": colour, "width": 1},
            ),
            row=2,
            col=1,
        )
    figure.update_layout(
        template="plotly_white",
        height=620,
        margin={"l": 50, "r": 20, "t": 40, "b": 40},
        hovermode="x unified",
        legend={"orientation": "h", "y": 1.08},
    )
    figure.update_yaxes(tickformat=".0%", row=2, col=1)
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id="curves")
    return text
