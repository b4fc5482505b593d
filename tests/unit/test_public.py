"""What is public, and what is configured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import qmtl_sdk
from activities import settings
from api.cli.config import validate
from api.cli.output import Format
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.errors import CODES
from qmtl_sdk.contracts.registry import Registry
from qmtl_sdk.runtime import config


def test_the_public_names() -> None:
    names = [
        "CacheView",
        "CsvSource",
        "ExecutionModel",
        "ExecutionNode",
        "FillModel",
        "GatewayClient",
        "INTENT_FIRST_DEFAULT_THRESHOLDS",
        "IntentFirstAdapter",
        "MatchMode",
        "Node",
        "ParquetSource",
        "PositionTargetNode",
        "ProcessingNode",
        "QmtlError",
        "RiskControlNode",
        "RiskLimits",
        "Runner",
        "SizingNode",
        "Strategy",
        "StreamClient",
        "StreamInput",
        "SubmitResult",
        "Subscribe",
        "TagQueryNode",
        "Thresholds",
        "TimingGateNode",
        "TradeOrderPublisherNode",
        "make_intent_first_nodeset",
        "settings",
    ]
    assert sorted(qmtl_sdk.__all__) == names
    assert dir(qmtl_sdk) == names
    assert all(getattr(qmtl_sdk, name) for name in names)
    with pytest.raises(AttributeError):
        _ = qmtl_sdk.Nonsense


def test_there_is_one_way_in() -> None:
    assert not hasattr(qmtl_sdk.Runner, "run")
    assert not hasattr(qmtl_sdk.Runner, "offline")


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = QmtlError("E_INTERVAL", "it is wrong", "mend it", value=3)
    assert str(error) == "it is wrong [E_INTERVAL] → mend it"
    assert (error.status, error.details) == (CODES["E_INTERVAL"], {"value": 3})
    with pytest.raises(KeyError):
        QmtlError("E_NEW", "not registered")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in list(__import__("os").environ):
        if name.startswith("QMTL_"):
            monkeypatch.delenv(name)
    return tmp_path


def test_variables_win_over_the_file_and_the_file_over_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "qmtl.yml").write_text("gateway: { port: 81, host: filehost }\ntemporal: { api_key: secret }\n")
    monkeypatch.setenv("QMTL_GATEWAY__PORT", "82")
    found = settings.load()
    assert (found.gateway.port, found.gateway.host, found.temporal.namespace) == (82, "filehost", "default")
    rows = {key: (value, origin) for key, value, origin, _ in config.explain(found)}
    assert rows["gateway.port"] == ("82", "QMTL_GATEWAY__PORT")
    assert rows["gateway.host"] == ("filehost", "qmtl.yml")
    assert rows["temporal.namespace"] == ("default", "default")
    assert rows["temporal.api_key"][0] == "***"
    assert (rows["gateway.url"], rows["events.bus_options"]) == (("", "default"), ("{}", "default"))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("postgresql://qmtl:s3cr/et@db:5432/q", "postgresql://qmtl:***@db:5432/q"),
        ("postgresql://qmtl:p@ss@db/q", "postgresql://qmtl:***@db/q"),
        ("postgresql://qmtl@db/q", "postgresql://qmtl@db/q"),
        ("sqlite:////data/q.db", "sqlite:////data/q.db"),
    ],
)
def test_the_configuration_is_shown_without_passwords(folder: Path, written: str, shown: str) -> None:
    options = "orders: { broker_options: { api_secret: s3cret } }"
    (folder / "qmtl.yml").write_text(f"gateway: {{ database_dsn: '{written}' }}\n{options}\n")
    rows = {key: value for key, value, *_ in config.explain(settings.load())}
    assert (rows["gateway.database_dsn"], rows["orders.broker_options.api_secret"]) == (shown, "***")


LOADERS = [settings.load, config.load]


@pytest.mark.parametrize("load", LOADERS, ids=["services", "sdk"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gatway: {}", "did you mean 'gateway'"),
        ("gateway: { prot: 1 }", "did you mean 'gateway.port'"),
        ("gateway: { port: many }", "gateway.port"),
        ("gateway: { tokn: x }", "did you mean 'gateway.token'"),
        ("events: { heartbeats: 1 }", "did you mean 'events.heartbeat_s'"),
        ("orders: { broker_option: {} }", "did you mean 'orders.broker_options'"),
        ("temporal: { tls_cert: [] }", "temporal.tls_cert"),
        ("a: [", "not YAML"),
        ("profile: staging", "profile"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    folder: Path, load: Callable[[], config.Settings], text: str, said: str
) -> None:
    (folder / "qmtl.yml").write_text(text)
    with pytest.raises(QmtlError) as caught:
        load()
    assert caught.value.code == "E_CONFIG"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{ exchange: binance, symbols: BTC/USDT, api_key: k }", "there is no option 'api_key'"),
        ("{ exchange: binnance, symbols: BTC/USDT }", "did you mean 'binance'"),
        ("{ exchange: binance, symbols: BTC }", "symbols are markets"),
        ("{ exchange: binance, symbols: BTC/USDT }", "no credentials are named"),
    ],
)
def test_validate_names_a_wrong_option_of_a_broker(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    said: str,
) -> None:
    """It said that nothing was missing, and the router did not start."""
    orders = f"{{ live_broker: ccxt, live_account: binance, broker_options: {options} }}"
    (folder / "qmtl.yml").write_text(f"orders: {orders}\n")
    monkeypatch.setattr("api.cli.config.settings", settings.load)
    with pytest.raises(typer.Exit) as caught:
        validate(target="all", output=Format.TEXT)
    assert caught.value.exit_code == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "htps://a",
        "http://",
        "http://a:b",
        "http://a:0",
        "http://a/ b",
        "http://a\n",
        "http://[::",
    ],
)
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    monkeypatch.setenv("QMTL_GATEWAY__URL", url)
    with pytest.raises(QmtlError, match=r"gateway\.url: .* is no address"):
        settings.load()


def test_the_password_of_what_is_no_address_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("QMTL_GATEWAY__URL", "htps://user:s3cret@a")
    with pytest.raises(QmtlError) as caught:
        settings.load()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a", "https://[::1]:80/qmtl/", "HTTP://a:8000", "http://user:p@a"])
def test_an_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    monkeypatch.setenv("QMTL_GATEWAY__URL", url)
    assert settings.load().gateway.url == url


@pytest.mark.parametrize("load", LOADERS, ids=["services", "sdk"])
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("QMTL_EVENTS__HEARTBEATS", "did you mean 'events.heartbeat_s'"),
        ("QMTL_GATWAY__PORT", "QMTL_GATWAY__PORT: gatway is not a known section (did you mean 'gateway'?)"),
        ("QMTL_FOO__BAR", "foo is not a known section"),
        ("QMTL_GATEWAY__PORT", "gateway.port"),
        ("QMTL_GATEWAY_URL", "QMTL_GATEWAY_URL sets nothing"),
        ("QMTL_GATEWAY__URL", "'many' is no address: write http://HOST:PORT or https://HOST"),
    ],
)
def test_a_mistake_in_a_variable_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[], config.Settings],
    variable: str,
    said: str,
) -> None:
    monkeypatch.setenv(variable, "many")
    with pytest.raises(QmtlError) as caught:
        load()
    assert caught.value.code == "E_CONFIG"
    assert said in str(caught.value)


def test_the_sdk_reads_with_the_class_of_the_services(folder: Path) -> None:
    (folder / "qmtl.yml").write_text("gateway: { url: 'http://g', port: 81 }\nevents: { keep: 7 }\n")
    found = config.load()
    assert found == settings.load()
    assert (found.gateway.url, settings.load().events.keep) == ("http://g", 7)


def test_without_the_services_the_sdk_reads_its_own_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"sdk": "qmtl_sdk.runtime.config:Settings"}
    monkeypatch.setattr(config, "CLASSES", Registry("qmtl.none", "settings class", own))
    (folder / "qmtl.yml").write_text("profile: prod\ngateway: { url: 'http://g' }\ncache: { dir: kept }\n")
    monkeypatch.setenv("QMTL_GATEWAY__TOKEN", "secret")
    found = config.load()
    assert type(found) is config.Settings
    assert (found.profile, found.gateway.url, found.token) == ("prod", "http://g", "secret")
    assert found.cache_dir == Path("kept")
    keys = [key for key, *_ in config.explain(found)]
    assert keys == ["profile", "home", "gateway.url", "gateway.token", "cache.dir", "test.test_mode"]
    (folder / "qmtl.yml").write_text("gateway: { ulr: 'http://g' }\n")
    with pytest.raises(QmtlError, match=r"did you mean 'gateway\.url'"):
        config.load()


def test_prod_lists_everything_that_it_lacks_at_once(folder: Path) -> None:
    (folder / "qmtl.yml").write_text("profile: prod\n")
    with pytest.raises(QmtlError) as caught:
        settings.load().require_profile()
    assert caught.value.details["missing"] == [
        "gateway.database_backend: postgres",
        "gateway.database_dsn",
        "temporal.address",
        "events.bus: one that hosts share",
        "queues that hosts share (no backend yet)",
        "artifacts that hosts share (no backend yet)",
        "signing keys that hosts share (no backend yet)",
    ]


def test_prod_does_not_start_while_anything_is_a_file_of_one_host(folder: Path) -> None:
    """A second host followed its own empty bus, and rejected good strategies."""
    (folder / "qmtl.yml").write_text(
        "profile: prod\ngateway: { database_backend: postgres, database_dsn: 'postgresql://x' }\n"
        "temporal: { address: 'h:1' }\nevents: { bus: kafka }\n"
    )
    with pytest.raises(QmtlError, match="profile prod lacks queues that hosts share") as caught:
        settings.load().require_profile()
    assert len(caught.value.details["missing"]) == 3


@pytest.mark.parametrize(
    ("gateway", "remedy"),
    [
        (
            "{ database_dsn: 'postgresql://h/x' }",
            "set gateway.database_backend: postgres, or remove gateway.database_dsn",
        ),
        (
            "{ database_backend: postgres, database_dsn: 'sqlite:///x' }",
            "set gateway.database_dsn to its postgres",
        ),
        ("{ database_backend: postgres }", "set gateway.database_dsn to its postgres"),
    ],
)
def test_a_backend_and_its_dsn_agree(folder: Path, gateway: str, remedy: str) -> None:
    (folder / "qmtl.yml").write_text(f"gateway: {gateway}\ntemporal: {{ address: 'h:1' }}\n")
    with pytest.raises(QmtlError, match="names another database") as caught:
        settings.load().require_profile()
    assert remedy in caught.value.remedy


def test_each_key_of_the_configuration_has_its_meaning(folder: Path) -> None:
    meanings = {key: meaning for key, _, _, meaning in config.explain(settings.load())}
    assert len(meanings) > 40
    assert [key for key, meaning in meanings.items() if not meaning] == []


def test_a_named_file_must_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMTL_CONFIG", str(folder / "none.yml"))
    with pytest.raises(QmtlError, match="does not exist"):
        config.load()


@pytest.mark.parametrize("load", LOADERS, ids=["services", "sdk"])
def test_an_address_that_kubernetes_sets_is_no_mistake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[], config.Settings]
) -> None:
    """It does so in each container where a service is called qmtl-gateway; no process started there."""
    monkeypatch.setenv("QMTL_GATEWAY_PORT", "tcp://10.0.0.1:8000")
    assert load()
