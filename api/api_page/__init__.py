"""The page `/docs`: Swagger UI over `/openapi.json`, from files of this package.

It works without a network: the page's security policy lets a browser load nothing from elsewhere.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent
# Swagger UI sets styles on its elements, and its images are in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)


def install(app: FastAPI) -> None:
    """Serve the page and its files. No token is needed: they say what `/openapi.json` says."""

    @app.get("/docs", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", headers={"Content-Security-Policy": _POLICY})

    app.mount("/docs", StaticFiles(directory=_FOLDER))
