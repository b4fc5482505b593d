"""The page `/docs` works without a network: everything that it loads comes from the Gateway."""

import asyncio
import re
from collections.abc import Callable
from importlib.resources import files

import httpx
import pytest

from activities.settings import Settings
from api.gateway import create_app

Get = Callable[[str], httpx.Response]


@pytest.fixture(scope="module")
def get() -> Get:
    """Requests to an application that is not started: the page needs no store."""
    app = create_app(Settings(_env_file=None))  # type: ignore[call-arg]

    async def request(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path)

    return lambda path: asyncio.run(request(path))


def test_the_page_loads_only_what_the_gateway_serves(get: Get) -> None:
    page = get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert [address for address in loaded if "//" in address] == []
    assert {address.rpartition(".")[2] for address in loaded} >= {"js", "css", "json"}
    for address in loaded:
        answer = get(f"/{address}")
        assert (answer.status_code, bool(answer.content)) == (200, True), address
    script = get("/docs/page.js").text
    assert 'url: "openapi.json"' in script
    assert "validatorUrl: null" in script  # else Swagger UI shows a badge of a public server


def test_a_browser_may_load_nothing_from_elsewhere(get: Get) -> None:
    policy = get("/docs").headers["content-security-policy"]
    sources = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert sources["default-src"] == "'none'"
    assert not re.search(r"https?:|\*|'unsafe-eval'", policy)
    assert sources["script-src"] == "'self'"


def test_pages_that_need_a_network_are_not_served(get: Get) -> None:
    assert get("/redoc").status_code == 404


def test_the_files_are_part_of_the_package() -> None:
    folder = files("api.api_page")
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert (folder / "swagger-ui-bundle.js").is_file()
