"""The configuration from real files and a real environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import parts, settings
from agent.adapters.download.policy import Policy
from agent.contract.config import parse_size
from agent.settings import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("NIBBLED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "no-such-default.toml")


def load(tmp_path: Path, text: str) -> settings.Settings:
    file = tmp_path / "nibbled.toml"
    file.write_text(text)
    return settings.load(file)


def refuse(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return str(caught.value)


def test_every_example_loads() -> None:
    examples = sorted(CONFIGS.glob("nibbled*.toml"))
    assert examples, f"{CONFIGS} holds no example"
    for example in examples:
        assert settings.load(example).device_id


def test_the_defaults_are_the_safe_ones() -> None:
    found = settings.load()
    assert found.trust.require_signature
    assert found.downloads.allowed_schemes == ("https",)
    assert found.downloads.allowed_hosts == ()
    assert (found.mqtt.port, found.serving.http_port, found.status.port) == (1883, 8000, 8002)
    assert found.memory.reserve == 512 * 2**20


def test_the_fixed_keys_of_a_file_are_read(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        device_id = "box-17"
        state_dir = "/tmp/state"
        [mqtt]
        host = "broker"
        port = 8883
        groups = ["north"]
        [memory]
        reserve = "1.5GiB"
        budget = "300MiB"
        [deployment]
        soak_s = 0
        """,
    )
    assert (found.device_id, found.state_dir, found.mqtt.groups) == ("box-17", Path("/tmp/state"), ("north",))
    assert found.mqtt.uses_tls
    assert (found.memory.reserve, found.memory.budget) == (3 * 2**29, 300 * 2**20)
    assert found.deployment.soak_s == 0


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIBBLED_DEVICE_ID", "from-env")
    monkeypatch.setenv("NIBBLED_MQTT__HOST", "env-broker")
    found = load(tmp_path, 'device_id = "from-file"\n[mqtt]\nhost = "file-broker"\nport = 1884\n')
    assert (found.device_id, found.mqtt.host, found.mqtt.port) == ("from-env", "env-broker", 1884)


def test_what_the_environment_fixes_is_known_by_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.fixed_by_environment() == frozenset()
    monkeypatch.setenv("NIBBLED_DEVICE_ID", "from-env")
    monkeypatch.setenv("NIBBLED_HEALTH__INTERVAL_S", "5")
    monkeypatch.setenv("NIBBLED_MEMORY", '{"reserve": "1GiB"}')
    assert settings.fixed_by_environment() == {"health.interval_s", "memory.reserve"}


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    text = refuse(tmp_path, "[trust]\nrequire_signatures = false\n")
    assert "trust.require_signatures: unknown key; did you mean require_signature?" in text
    assert "nibbled.toml" in text


def test_a_key_like_no_other_is_refused_with_all_that_exist(tmp_path: Path) -> None:
    assert "known: interval_s" in refuse(tmp_path, "[health]\nqqq = 1\n")
    assert "mqtt" in refuse(tmp_path, "[zzzz]\nx = 1\n")


def test_a_misspelt_environment_variable_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIBBLED_MQTT__HOTS", "broker")
    with pytest.raises(ConfigError, match=r"environment:\n.*did you mean host"):
        settings.load()


def test_every_wrong_value_is_named_at_once(tmp_path: Path) -> None:
    text = refuse(tmp_path, 'device_id = "a/b"\n[mqtt]\nport = "x"\n[serving]\ndevice = "tpu"\n')
    for words in ("device_id", "'a/b'", "mqtt.port", "'x'", "serving.device", "'tpu'"):
        assert words in text


@pytest.mark.parametrize(
    "line",
    [
        "[mqtt]\nport = 70000",
        "[health]\ninterval_s = 0",
        "[serving]\nthreads = 0",
        '[memory]\nreserve = "-1"',
        '[downloads]\nallowed_schemes = ["ftp"]',
        "[downloads]\nmax_size = 0",
        '[downloads]\nmax_bytes_per_s = "fast"',
        "[deployment]\nsoak_s = -1",
        '[mqtt]\ngroups = ["a b"]',
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, line: str) -> None:
    section, _, key = line.partition(" =")[0].partition("\n")
    assert f"{section[1:-1]}.{key}" in refuse(tmp_path, line)


def test_what_the_file_says_of_downloads_is_what_limits_them(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        [downloads]
        allowed_schemes = ["https", "s3"]
        allowed_hosts = ["files.example.com"]
        stall_s = 7.0
        min_bytes_per_s = "2KiB"
        max_size = "3GiB"
        disk_reserve = "1GiB"
        ca_file = "/etc/nibbled/ca.pem"
        [downloads.token_files]
        "files.example.com" = "/etc/nibbled/files.token"
        [downloads.store_files]
        "s3://models" = "/etc/nibbled/models.toml"
        """,
    )
    assert parts.downloader(found, lambda: 0)._policy == Policy(
        schemes=frozenset({"https", "s3"}),
        hosts=frozenset({"files.example.com"}),
        stall_s=7.0,
        min_bytes_per_s=2048,
        max_bytes=3 * 2**30,
        reserve_bytes=2**30,
        ca_file="/etc/nibbled/ca.pem",
        token_files={"files.example.com": "/etc/nibbled/files.token"},
        store_files={"s3://models": "/etc/nibbled/models.toml"},
    )


def test_a_password_is_in_no_complaint_and_no_printout(tmp_path: Path) -> None:
    assert "hunter2" not in refuse(tmp_path, '[mqtt]\npassword = ["hunter2"]\n')
    assert "hunter2" not in repr(load(tmp_path, '[mqtt]\nusername = "box"\npassword = "hunter2"\n'))


def test_a_file_that_is_no_toml_is_named_with_the_place(tmp_path: Path) -> None:
    text = refuse(tmp_path, "[mqtt\n")
    assert "nibbled.toml" in text
    assert "line 1" in text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; see configs/"):
        settings.load(tmp_path / "missing.toml")


def test_the_settings_cannot_be_changed(tmp_path: Path) -> None:
    found = load(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        found.device_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * 2**20), ("1 GiB", 2**30), ("0.5KiB", 512), ("2GB", 2 * 10**9), ("7B", 7), ("7", 7), (" 9 ", 9)],
)
def test_a_size_is_read_in_binary_and_decimal_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "5 MiBs", "1e3", "-1", "5TiB", "½GiB"])
def test_what_is_no_size_is_refused_with_an_example(tmp_path: Path, text: str) -> None:
    told = refuse(tmp_path, f'[memory]\nreserve = "{text}"\n')
    assert f"should be a number of bytes, or one with KiB, MiB or GiB, got '{text}'" in told
    assert "Value error" not in told


def test_a_token_in_place_of_its_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    told = refuse(tmp_path, '[serving]\ntoken_file = "0123456789abcdef0123456789abcdef"\n')
    assert "serving.token_file: " in told
    assert "0123456789" not in told


def test_a_certificate_and_its_key_belong_together(tmp_path: Path) -> None:
    assert "belong together" in refuse(tmp_path, '[serving]\ncert_file = "/etc/nibbled/box.pem"\n')


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("box-17.example.com", False)],
)  # fmt: skip
def test_an_address_is_local_only_when_no_other_machine_reaches_it(
    tmp_path: Path, host: str, *, is_local: bool
) -> None:
    assert load(tmp_path, f'[serving]\nhost = "{host}"\n').serving.is_local is is_local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[mqtt]\ntls = false\nca_file = "/ca.pem"', ("mqtt:", "tls = false contradicts ca_file", "expected")),
        ('[mqtt]\ncert_file = "/c.pem"', ("mqtt:", "cert_file and key_file belong together", "both or neither")),
        ('[mqtt]\nusername = "u"\npassword = "p"\npassword_file = "/p"', ("password and password_file contradict",)),
        ('[mqtt]\npassword_file = "/p"', ("a password needs a username",)),
        ("[serving]\nhttp_port = 9000\n[status]\nport = 9000", ("serving.http_port and status.port are both 9000",)),
        ("[serving]\nhttp_port = 9000\ngrpc_port = 9000", ("serving.http_port and serving.grpc_port are both 9000",)),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_what_was_expected(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    told = refuse(tmp_path, text + "\n")
    for word in ("nibbled.toml", "expected", *words):
        assert word in told


def credentials(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))


def test_a_credential_is_the_file_of_the_setting_that_it_is_named_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "credentials"
    names = ("mqtt.password", "mqtt.ca", "mqtt.cert", "mqtt.key", "downloads.ca", "downloads.token.files.example.com")
    credentials(monkeypatch, folder, *names, "another-service.key")
    found = load(tmp_path, '[mqtt]\nusername = "box"\nhost = "broker"\n')
    mqtt, downloads = found.mqtt, found.downloads
    assert mqtt.host == "broker"
    assert [mqtt.password_file, mqtt.ca_file, mqtt.cert_file, mqtt.key_file] == [folder / name for name in names[:4]]
    assert downloads.ca_file == folder / "downloads.ca"
    assert downloads.token_files == {"files.example.com": folder / names[5]}
    assert parts.broker(found).password == "secret"


def test_a_misspelt_credential_is_refused_with_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch, tmp_path / "credentials", "mqtt.pasword")
    assert "credential mqtt.pasword: unknown; did you mean mqtt.password?" in refuse(tmp_path, "")


def test_a_setting_that_is_also_a_credential_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials(monkeypatch, tmp_path / "credentials", "mqtt.ca")
    assert "mqtt.ca_file: given here and as a credential" in refuse(tmp_path, '[mqtt]\nca_file = "/etc/ca.pem"\n')
    monkeypatch.setenv("NIBBLED_MQTT__CA_FILE", "/by-hand.pem")
    assert load(tmp_path, "").mqtt.ca_file == Path("/by-hand.pem")
