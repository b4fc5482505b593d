"""An empty FastAPI route that takes the body of `POST /orders` unread: a limit for the Gateway's route.

`python -m benchmarks.empty_route PORT` serves it until SIGTERM, on the same server with the same settings.
"""

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

from qmtl_sdk.contracts.orders import OrderVerdict, OrderVerdicts

app = FastAPI()
_VERDICT = OrderVerdict(order_id="order:" + "0" * 32, accepted=True, reason=None, epoch=1)
_ANSWER = OrderVerdicts(verdicts=(_VERDICT,)).model_dump_json()


@app.post("/orders")
async def orders(request: Request) -> Response:
    """Read the body, and answer as if the one order in it were accepted."""
    await request.body()
    return Response(_ANSWER, media_type="application/json")


@app.get("/ready")
async def ready() -> None:
    """Answer once the server listens."""


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
