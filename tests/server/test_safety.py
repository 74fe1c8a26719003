"""Who may ask for what, and how much of it."""

import logging
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from conftest import texture
from haloae.data.limits import limit_images
from haloae.errors import ConfigError
from haloae.server.safety import COOKIE, Tokens, is_loopback, read_tokens
from haloae.server.settings import Settings
from server.services import Start, coded

OPERATOR, ENGINEER = "operators-token-0123456789", "engineers-token-0123456789"
UNLOAD = "/v2/repository/models/cloth/unload"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens.toml"
    path.write_text(f'operator = "{OPERATOR}"\nengineer = "{ENGINEER}"\n')
    return read_tokens(path)


@pytest.fixture
def guarded(start: Start, tokens: Tokens) -> TestClient:
    return start(tokens=tokens)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("operator = 1", "expected two tokens"),
        ('operator = "short"\nengineer = "shorter"', "at least 20 characters"),
        (f'operator = "{OPERATOR}"\nengineer = "{OPERATOR}"', "both tokens are the same"),
        (f'operator = "{OPERATOR}"\nengineer = "{ENGINEER}"\nguest = "x"', "and nothing else"),
        (f"operator = {OPERATOR}", "not a TOML file"),
    ],
)
def test_a_wrong_token_file_is_one_sentence_without_a_token(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as error:
        read_tokens(path)
    assert OPERATOR not in str(error.value)


def test_without_a_token_only_the_health_is_told(guarded: TestClient) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert guarded.get(path).status_code == 200
    for path in ("/v1/predict", "/v2", "/v2/health", "/metrics", "/openapi.json", "/docs", "/nix"):
        for headers in ({}, bearer("wrong"), bearer(OPERATOR[:-1]), {"authorization": "Basic x"}):
            found = guarded.get(path, headers=headers)
            assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")


def test_operators_inspect_and_engineers_change(guarded: TestClient) -> None:
    image = coded(texture(1))
    for token in (OPERATOR, ENGINEER):
        found = guarded.post("/v1/predict", content=image, headers=bearer(token))
        assert found.status_code == 200
    refused = guarded.post(UNLOAD, headers=bearer(OPERATOR))
    assert (refused.status_code, refused.json()) == (
        403,
        {"error": "this needs the engineers' token."},
    )
    assert guarded.post(UNLOAD, headers=bearer(ENGINEER)).status_code == 200


def test_a_browser_keeps_its_session_in_a_cookie_that_scripts_do_not_see(
    guarded: TestClient,
) -> None:
    assert guarded.get("/v1/session").json() == {"role": None}
    assert guarded.post("/v1/session", json={"token": "guess"}).status_code == 401
    opened = guarded.post("/v1/session", json={"token": OPERATOR})
    assert opened.json() == {"role": "operator"}
    cookie = opened.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "max-age"))
    assert (OPERATOR in cookie, "secure" in cookie) == (False, False)
    assert guarded.get("/v2").status_code == 200
    assert guarded.post(UNLOAD).status_code == 403
    secret = guarded.cookies[COOKIE]
    assert guarded.delete("/v1/session").json() == {"role": None}
    guarded.cookies.set(COOKIE, secret)
    assert guarded.get("/v2").status_code == 401
    proxied = {"x-forwarded-proto": "https"}
    opened = guarded.post("/v1/session", json={"token": OPERATOR}, headers=proxied)
    assert "secure" in opened.headers["set-cookie"].lower()


def test_pages_of_other_origins_may_ask_for_nothing(start: Start) -> None:
    client = start()
    for headers, status in (
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://localhost"}, 422),
        ({"origin": "http://localhost"}, 422),
    ):
        assert client.post("/v1/predict", content=b"x", headers=headers).status_code == status


def test_a_name_that_leads_here_by_someone_else_s_doing_is_refused(start: Start) -> None:
    client = start()
    for host, status in (
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("localhost:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
    ):
        assert client.get("/v2/health/live", headers={"host": host}).status_code == status
    named = start(settings=Settings.model_validate({"http": {"names": ["line3.plant"]}}))
    for host in ("Line3.plant", "192.168.1.5:8080", "localhost"):
        assert named.get("/v2", headers={"host": host}).status_code == 200


def test_with_tokens_names_are_asked_where_some_are_given(start: Start, tokens: Tokens) -> None:
    settings = Settings.model_validate({"http": {"names": ["line3.plant"]}})
    for client, status in (
        (start(tokens=tokens), 200),
        (start(tokens=tokens, settings=settings), 421),
    ):
        headers = {"host": "other.plant"}
        assert client.get("/v2/health/live", headers=headers).status_code == status


def test_a_body_over_the_limit_is_not_received(start: Start) -> None:
    client = start()
    limit_images(bytes=1000)
    declared = client.post("/v1/predict", content=bytes(1001))
    sent = client.post("/v1/predict", content=iter([bytes(600)] * 2))
    for found in (declared, sent):
        assert found.status_code == 413
        assert "more than the limit of 1,000 bytes" in found.json()["error"]


def test_bodies_that_wait_are_bounded_together(start: Start) -> None:
    settings = Settings.model_validate({"queue": {"bytes": 100}})
    found = start(settings=settings).post("/v1/predict", content=bytes(101))
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")


def test_every_answer_carries_the_headers_that_keep_browsers_safe(start: Start) -> None:
    client = start()
    for path in ("/v2", "/nothing", "/docs"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_what_fails_within_is_said_without_telling_how(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()

    def breaks() -> None:
        raise LookupError("the secret of the house")

    monkeypatch.setattr(client.app.state.service.recipes, "listed", breaks)
    found = client.get("/v1/recipes")
    assert found.status_code == 500
    assert found.json() == {"error": "the request failed: see the log."}
    assert found.headers["x-content-type-options"] == "nosniff"


def test_no_secret_is_logged_nor_counted(
    guarded: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded.post("/v1/session", json={"token": OPERATOR})
    secret = guarded.cookies[COOKIE]
    guarded.get(f"/{ENGINEER}?token={ENGINEER}", headers=bearer(ENGINEER))
    guarded.post(f"/v1/predict?recipe={ENGINEER}", headers=bearer(ENGINEER), content=b"x")
    logged = "\n".join(str(record.__dict__) for record in caplog.records if "haloae" in record.name)
    assert "'path': '/v1/predict'" in logged
    counted = guarded.get("/metrics").text
    for text in (OPERATOR, ENGINEER, secret):
        assert text not in logged
        assert text not in counted


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("::", "192.168.1.5", "plant"))
