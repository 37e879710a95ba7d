"""Tokens on the inference port: who may ask what, how files are judged, and how they are renewed."""

from __future__ import annotations

import asyncio
import grp
import hmac
import os
from typing import TYPE_CHECKING, Any

import pytest

from agent import tokens
from agent.serving.access import Access
from agent.serving.repository import UNLOADED
from agent.tokens import LOOK_AGAIN_S, TokenFile, TokenFileError, how_to_keep, read_tokens
from tests.fakes.serving import FakeNetwork, harness, json_request, run, until

if TYPE_CHECKING:
    from pathlib import Path

USER, ADMIN, OTHER = "user-" + "u" * 32, "admin-" + "a" * 32, "other-" + "o" * 32
INFER = "/v2/models/m/infer"
ROW = [[1.0, 2.0, 3.0, 4.0]]


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(TokenFile(write(tmp_path / "users", USER)), TokenFile(write(tmp_path / "admins", ADMIN)))


def test_inference_needs_a_token_and_health_does_not(access: Access) -> None:
    async def scenario() -> None:
        async with harness(access=access) as it:
            await it.serve("m", FakeNetwork())
            for path in ("/v2/health/live", "/v2/health/ready"):
                assert (await it.data.get(path)).status_code == 200
            for path in ("/v2", "/v2/models/m", "/v2/models/unknown", "/metrics", "/openapi.json", "/nowhere"):
                reply = await it.data.get(path)
                assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), path
                assert reply.json()["error"]
                assert "'m'" not in reply.text, "who may not list models is not told of any"
            known = await it.data.get("/v2/models/unknown", headers=bearer(USER))
            assert (known.status_code, "only 'm' answers" in known.text) == (404, True)
            for scheme in ("Bearer", "bearer", "BEARER"):
                reply = await it.data.post(INFER, json=json_request(ROW), headers=bearer(USER, scheme))
                assert reply.status_code == 200
            assert (await it.data.get("/metrics", headers=bearer(ADMIN))).status_code == 200
            told = (await it.data.get("/openapi.json", headers=bearer(USER))).json()
            assert told["paths"]["/v2"]["get"]["security"] == [{"bearer": []}]
            assert "security" not in told["paths"]["/v2/health/live"]["get"]

    run(scenario)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "no token was sent; send Authorization: Bearer TOKEN, with a token of the device's serving."),
        ({"X-API-Key": USER}, "no token was sent"),
        (bearer(USER, "Basic"), "the Authorization header is none of a bearer token; send Authorization: Bearer TOKEN"),
        ({"Authorization": USER}, "the Authorization header is none of a bearer token"),
        (bearer(OTHER), "the token that was sent is not known here; send a token of the device's serving."),
    ],
)
def test_a_refusal_tells_a_missing_token_from_a_wrong_one_and_shows_neither(
    access: Access, headers: dict[str, str], words: str
) -> None:
    async def scenario() -> None:
        async with harness(access=access) as it:
            for path, file in (("/v2/models/m/infer", "token_file"), ("/v2/repository/index", "admin_token_file")):
                reply = await it.data.post(path, json={}, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"].startswith(words)
                assert reply.json()["error"].endswith(f" a token of the device's serving.{file}")
                assert USER not in reply.text
                assert OTHER not in reply.text

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        bearer(OTHER), bearer(USER[:-1]), bearer(USER + "x"), bearer(USER.upper()), bearer(""), bearer(USER, "Basic"),
        {"Authorization": USER}, {"Authorization": ""}, {"X-API-Key": USER}, {"Cookie": f"Authorization=Bearer {USER}"},
    ],
)  # fmt: skip
def test_whatever_is_not_the_token_is_refused_before_the_body_is_read(access: Access, headers: dict[str, str]) -> None:
    async def scenario() -> None:
        asked = 0

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return {"type": "http.disconnect"}

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append({**message, "asked": asked})

        async with harness(access=access) as it:
            await it.serve("m", FakeNetwork())
            scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": INFER.encode()}
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await it.app({**scope, "headers": raw}, receive, send)
        assert (sent[0]["status"], sent[0]["asked"]) == (401, 0)
        assert (b"connection", b"close") in sent[0]["headers"]

    run(scenario)


def test_the_repository_needs_an_administrators_token(access: Access, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(access=access, store=tmp_path) as it:
            await it.serve("m", FakeNetwork())
            for path in ("index", "models/m/load", "models/m/unload"):
                assert (await it.data.post(f"/v2/repository/{path}")).status_code == 401
                assert (await it.data.post(f"/v2/repository/{path}", headers=bearer(OTHER))).status_code == 401
                assert (await it.data.post(f"/v2/repository/{path}", headers=bearer(USER))).status_code == 403
            assert (await it.data.post(INFER, json=json_request(ROW), headers=bearer(USER))).status_code == 200
            index = await it.data.post("/v2/repository/index", headers=bearer(ADMIN))
            assert [entry["state"] for entry in index.json()] == ["READY"]

    run(scenario)


def test_without_an_administrators_file_the_repository_is_read_by_users_and_changed_by_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with harness(access=Access(TokenFile(write(tmp_path / "users", USER)))) as it:
            index, unload = "/v2/repository/index", "/v2/repository/models/m/unload"
            assert (await it.data.post(index)).status_code == 401
            assert (await it.data.post(index, headers=bearer(USER))).status_code == 200
            assert (await it.data.post(unload, headers=bearer(USER))).status_code == 403

    run(scenario)


def test_inference_may_be_open_while_the_repository_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        admins = TokenFile(write(tmp_path / "admins", ADMIN))
        async with harness(access=Access(None, admins), store=tmp_path) as it:
            await it.serve("m", FakeNetwork())
            assert (await it.data.post(INFER, json=json_request(ROW))).status_code == 200
            assert (await it.data.post("/v2/repository/index")).status_code == 401
            told = (await it.data.get("/openapi.json")).json()
            assert "security" not in told["paths"]["/v2"]["get"]
            assert told["paths"]["/v2/repository/index"]["post"]["security"] == [{"bearer": []}]

    run(scenario)


class TestRepository:
    def test_artifacts_come_from_the_store_and_from_nowhere_else(self, tmp_path: Path) -> None:
        store, outside = tmp_path / "store", tmp_path / "outside"
        store.mkdir()
        outside.mkdir()
        (store / "link").symlink_to(outside)

        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=store) as it:
                it.loader.networks["r1"] = FakeNetwork()
                for artifact in (outside / "r1", store / ".." / "outside" / "r1", store / "link" / "r1", "r1", "\0", 5):
                    reply = await it.data.post(
                        "/v2/repository/models/m/load",
                        json={"parameters": {"artifact": artifact if artifact == 5 else str(artifact)}},
                        headers=bearer(ADMIN),
                    )
                    assert reply.status_code == 400
                    assert "this device's store" in reply.json()["error"]
                assert it.loader.loads == []
                parameters = {"artifact": str(store / "r1"), "release": "r1", "version": "1", "activate": True}
                reply = await it.data.post(
                    "/v2/repository/models/m/load", json={"parameters": parameters}, headers=bearer(ADMIN)
                )
                assert (reply.status_code, reply.json()["release"]) == (200, "r1")
                assert (await it.data.post(INFER, json=json_request(ROW))).status_code == 200
                reply = await it.data.post(
                    "/v2/repository/models/m/unload",
                    json={"parameters": {"unload_dependents": False}},
                    headers=bearer(ADMIN),
                )
                assert (reply.status_code, reply.json()["unloaded"]) == (200, ["r1"])

        run(scenario)

    @pytest.mark.parametrize("body", [b"", b"{}", b'{"parameters":{}}'])
    def test_a_load_that_names_no_artifact_asks_for_what_is_there(self, tmp_path: Path, body: bytes) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                path, headers = "/v2/repository/models/m/load", bearer(ADMIN)
                assert (await it.data.post(path, content=body, headers=headers)).status_code == 404
                await it.serve("m", FakeNetwork())
                reply = await it.data.post(path, content=body, headers=headers)
                assert (reply.status_code, reply.json()["release"]) == (200, "r1")

        run(scenario)

    def test_a_plain_load_brings_back_what_a_plain_unload_took(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                path, headers = "/v2/repository/models/m", bearer(ADMIN)

                async def states(request: dict[str, bool] | None = None) -> list[tuple[str, str]]:
                    entries = (await it.data.post("/v2/repository/index", json=request, headers=headers)).json()
                    return [(entry["state"], entry["reason"]) for entry in entries]

                never = await it.data.post(f"{path}/load", headers=headers)
                assert never.status_code == 404
                assert "deploy it" in never.json()["error"]
                await it.serve("m", FakeNetwork())
                for _ in range(2):
                    assert (await it.data.post(f"{path}/unload", headers=headers)).status_code == 200
                    assert (await it.data.post(INFER, json=json_request(ROW))).status_code == 404
                    assert await states() == [("UNAVAILABLE", UNLOADED)]
                    assert await states({"ready": True}) == []
                    it.loader.networks["r1"] = FakeNetwork()
                    reply = await it.data.post(f"{path}/load", headers=headers)
                    assert (reply.status_code, reply.json()["release"]) == (200, "r1")
                    assert (await it.data.post(INFER, json=json_request(ROW))).status_code == 200
                    assert await states() == [("READY", "")]
                await it.data.post(f"{path}/unload", headers=headers)
                await it.serve("m", FakeNetwork(), release="r2")
                assert (await it.data.post(f"{path}/load", headers=headers)).json()["release"] == "r2"
                await it.change("m", "unload")  # by the supervisor: r1 must not come back in its place
                assert await states() == []
                assert (await it.data.post(f"{path}/load", headers=headers)).status_code == 404

        run(scenario)

    def test_what_the_supervisor_takes_away_is_listed_no_more_and_does_not_come_back(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                headers = bearer(ADMIN)
                await it.serve("m", FakeNetwork())
                assert (await it.data.post("/v2/repository/models/m/unload", headers=headers)).status_code == 200
                again = await it.data.post("/v2/repository/models/m/unload", headers=headers)
                assert again.status_code == 404, "nothing is there to unload, and what was set aside stays so"
                for client in (it.data, it.control):
                    (entry,) = (await client.post("/v2/repository/index", headers=headers)).json()
                    assert (entry["name"], entry["state"], entry["reason"]) == ("m", "UNAVAILABLE", UNLOADED)
                refused = await it.change("m", "unload", release="r1")
                assert refused.status_code == 404, "a release that is not loaded cannot be unloaded"
                gone = await it.change("m", "unload")
                assert (gone.status_code, gone.json()["unloaded"]) == (200, [])
                for client in (it.data, it.control):
                    assert (await client.post("/v2/repository/index", headers=headers)).json() == []
                assert (await it.data.post("/v2/repository/models/m/load", headers=headers)).status_code == 404
                assert (await it.change("m", "unload")).status_code == 404

        run(scenario)

    def test_what_was_set_aside_does_not_come_back_in_a_switch_after_a_deploy(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                headers = bearer(ADMIN)
                await it.serve("m", FakeNetwork())
                assert (await it.data.post("/v2/repository/models/m/unload", headers=headers)).status_code == 200
                await it.serve("m", FakeNetwork(), version="2", release="r2")
                it.loader.networks["r3"] = FakeNetwork()
                switch = {"artifact": "/store/r3", "version": "3", "release": "r3", "unload_first": True}
                assert (await it.change("m", "load", **switch)).status_code == 200
                assert it.plane.models.get("m").active is None
                refused = await it.data.post("/v2/repository/models/m/load", headers=headers)
                assert refused.status_code == 503
                assert list(it.plane.models.get("m").slots) == ["r3"]

        run(scenario)

    def test_an_undeploy_that_waits_for_an_administrators_unload_is_the_last_word(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                network, headers = FakeNetwork(), bearer(ADMIN)
                await it.serve("m", network)
                network.gate.clear()
                asked = asyncio.create_task(it.data.post(INFER, json=json_request(ROW)))
                await until(network.entered.is_set)
                unload = it.data.post("/v2/repository/models/m/unload", headers=headers)
                setting_aside = asyncio.create_task(unload)
                await until(lambda: it.plane.models.get("m").active is None)
                undeploying = asyncio.create_task(it.change("m", "unload"))
                await until(lambda: bool(it.plane.models.get("m").changes._waiters))
                network.gate.set()
                assert [(await task).status_code for task in (asked, setting_aside, undeploying)] == [200] * 3
                assert (await it.data.post("/v2/repository/index", headers=headers)).json() == []

        run(scenario)

    def test_a_release_that_cannot_be_activated_leaves_what_was_set_aside(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                headers = bearer(ADMIN)
                await it.serve("m", FakeNetwork())
                await it.data.post("/v2/repository/models/m/unload", headers=headers)
                failed = {"artifact": "/store/r2", "version": "2", "release": "r2"}
                assert (await it.change("m", "load", **failed)).status_code == 400
                assert (await it.change("m", "activate", release="r2")).status_code == 404
                back = await it.data.post("/v2/repository/models/m/load", headers=headers)
                assert (back.status_code, back.json().get("release")) == (200, "r1")

        run(scenario)

    def test_what_only_the_supervisor_may_is_not_offered(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            access = Access(None, TokenFile(write(tmp_path / "admins", ADMIN)))
            async with harness(access=access, store=tmp_path) as it:
                await it.serve("m", FakeNetwork())
                for path in ("repository/models/m/activate", "repository/models/m/canary", "control/status"):
                    reply = await it.data.post(f"/v2/{path}", headers=bearer(ADMIN))
                    assert reply.status_code == 404, path

        run(scenario)


class TestTokenFile:
    def test_a_renewed_file_counts_from_the_next_look_on_and_the_old_token_does_not(self, tmp_path: Path) -> None:
        clock = Clock()
        file = TokenFile(write(tmp_path / "tokens", USER), clock)
        write(tmp_path / "tokens", f"# both, for a day\n{OTHER} # new\n{USER}\n")
        clock.now = LOOK_AGAIN_S / 2
        assert not file.accepts(OTHER.encode())
        clock.now = LOOK_AGAIN_S
        assert file.accepts(OTHER.encode())
        assert file.accepts(USER.encode())
        write(tmp_path / "tokens", OTHER)
        clock.now = 2 * LOOK_AGAIN_S
        assert not file.accepts(USER.encode())

    @pytest.mark.parametrize("torn", ["", "short", None])
    def test_a_torn_renewal_leaves_the_last_good_token_in_force(self, tmp_path: Path, torn: str | None) -> None:
        clock = Clock()
        file = TokenFile(write(tmp_path / "tokens", USER), clock)
        if torn is None:
            (tmp_path / "tokens").unlink()
        else:
            write(tmp_path / "tokens", torn)
        clock.now = LOOK_AGAIN_S
        assert file.accepts(USER.encode())
        assert not file.accepts(torn.encode() if torn else b"")
        write(tmp_path / "tokens", OTHER)
        clock.now = 2 * LOOK_AGAIN_S
        assert file.accepts(OTHER.encode())

    def test_a_file_that_never_could_be_used_lets_nobody_in_until_it_can(self, tmp_path: Path) -> None:
        clock = Clock()
        file = TokenFile(tmp_path / "tokens", clock)
        assert not file.accepts(b"")
        write(tmp_path / "tokens", USER)
        clock.now = LOOK_AGAIN_S
        assert file.accepts(USER.encode())

    @pytest.mark.parametrize(
        ("text", "mode", "complaint"),
        [
            (USER, 0o604, "its mode is 0604, others may not read it; chmod 0640 "),
            (USER, 0o660, "its mode is 0660"),
            ("", 0o600, "holds no token"),
            ("# nothing but words", 0o600, "holds no token"),
            ("short", 0o600, "token 1 has to be 16 or more"),
            (f"{USER}\nwith spaces inside it", 0o600, "token 2 has to be 16 or more"),
            ("ü" * 20, 0o600, "holds something that is no token"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_named_and_its_content_is_not(
        self, tmp_path: Path, text: str, mode: int, complaint: str
    ) -> None:
        with pytest.raises(TokenFileError) as caught:
            read_tokens(write(tmp_path / "tokens", text, mode))
        assert complaint in str(caught.value)
        assert str(tmp_path / "tokens") in str(caught.value)
        assert not text or text not in str(caught.value)

    def test_a_file_of_somebody_else_gets_the_group_of_this_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "tokens", USER)
        assert how_to_keep(path) == f"chmod 0640 {path}"
        for name, found in (("geteuid", 4321), ("getegid", 1), ("getgroups", [])):
            monkeypatch.setattr(os, name, lambda found=found: found)
        assert how_to_keep(path) == f"chown root:{grp.getgrgid(1).gr_name} {path} && chmod 0640 {path}"

    def test_every_token_is_compared_in_constant_time_whichever_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared: list[tuple[int, int]] = []

        def compare(a: bytes, b: bytes) -> bool:
            compared.append((len(a), len(b)))
            return hmac.compare_digest(a, b)

        read = read_tokens(write(tmp_path / "tokens", f"{USER}\n{OTHER}\n{ADMIN}"))
        monkeypatch.setattr(tokens, "hmac", type("Hmac", (), {"compare_digest": staticmethod(compare)}))
        for given in (USER, OTHER, ADMIN, "x"):
            read.accept(given.encode())
        assert compared == [(32, 32)] * 12

    def test_no_token_is_kept(self, tmp_path: Path) -> None:
        assert USER not in repr(vars(read_tokens(write(tmp_path / "tokens", USER))))
