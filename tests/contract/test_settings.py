"""The configuration from real files and a real environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

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
    monkeypatch.setattr(settings, "SERVICE_CREDENTIALS", tmp_path / "no-such-service")


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
    with pytest.raises(ConfigError, match=r"environment:\n.*did you mean NIBBLED_MQTT__HOST\?"):
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
        '[downloads]\nhugging_face_endpoint = "huggingface.co"',
        '[downloads]\nmlflow_tracking_uri = "https://me:secret@mlflow.example.com"',
        '[downloads]\nmlflow_tracking_uri = "https://mlflow.example.com/?token=x"',
        "[deployment]\nsoak_s = -1",
        '[mqtt]\ngroups = ["a b"]',
        '[mqtt]\ntopic_prefix = "edge/#"',
        '[mqtt]\ntopic_prefix = ""',
        '[mqtt]\nhost = ""',
        '[mqtt]\nhost = "mqtt://broker"',
        '[serving]\nhost = ""',
        '[status]\nhost = ""',
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, line: str) -> None:
    section, _, key = line.partition(" =")[0].partition("\n")
    assert f"{section[1:-1]}.{key}" in refuse(tmp_path, line)


def test_a_group_cannot_have_the_name_of_the_device_s_own_document(tmp_path: Path) -> None:
    why = "no group can be called 'own': a device calls its own document that, beside those of its groups"
    assert why in refuse(tmp_path, '[mqtt]\ngroups = ["lab", "own"]')


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
        hugging_face_endpoint = "https://hub.example.com/"
        mlflow_tracking_uri = "https://example.com/mlflow"
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
        hugging_face_endpoint="https://hub.example.com",
        mlflow_tracking_uri="https://example.com/mlflow",
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


@pytest.mark.parametrize(
    ("section", "key"),
    [("serving", "token_file"), ("downloads.token_files", '"files.example.com"')],
    ids=["serving", "downloads"],
)
def test_a_token_in_place_of_its_file_is_refused_and_not_shown(tmp_path: Path, section: str, key: str) -> None:
    told = refuse(tmp_path, f'[{section}]\n{key} = "0123456789abcdef0123456789abcdef"\n')
    assert f"{section}.{key}: ".replace('"', "") in told
    assert "give the absolute path of a file, not the token" in told
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
    assert load(tmp_path, f'[serving]\nhost = "{host}"\nallow_anonymous = true\n').serving.is_local is is_local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[mqtt]\ntls = false\nca_file = "/ca.pem"', ("mqtt:", "tls = false contradicts ca_file", "expected")),
        ('[mqtt]\ncert_file = "/c.pem"', ("mqtt:", "cert_file and key_file belong together", "both or neither")),
        ('[mqtt]\nusername = "u"\npassword = "p"\npassword_file = "/p"', ("password and password_file contradict",)),
        ('[mqtt]\npassword_file = "/p"', ("a password needs a username",)),
        ("[serving]\nhttp_port = 9000\n[status]\nport = 9000", ("serving.http_port and status.port are both 9000",)),
        (
            '[serving]\nhost = "0.0.0.0"',
            ("nibbled.toml:\n  serving: host 0.0.0.0", "token_file", "allow_anonymous = true"),
        ),
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


WRONG = {bool: ('"yes"', "1", "0.0"), int: ("true", "3.0"), float: ("true",)}


def parts_of(kind: Any) -> set[Any]:
    return {kind}.union(*(parts_of(each) for each in get_args(kind)))


def test_a_setting_of_another_type_is_refused_in_every_section(tmp_path: Path) -> None:
    asked = 0
    for section, field in settings.Settings.model_fields.items():
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            for kind in parts_of(inner.annotation) & set(WRONG):
                for wrong in WRONG[kind]:
                    told = refuse(tmp_path, f"[{section}]\n{key} = {wrong}\n")
                    assert f"nibbled.toml:\n  {section}.{key}: Input should be " in told, told
                    assert " a valid " in told
                    asked += 1
    assert asked > 50


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('[serving]\nhttp_port = "28000"', "a valid integer, got '28000'"),
        ("[serving]\nhttp_port = true", "a valid integer, got True"),
        ("[serving]\nmax_queue = 3.0", "a valid integer, got 3.0"),
        ("[serving]\nmax_body = 3.0", "a valid integer, got 3.0"),
        ("[deployment]\nsoak_s = true", "a valid number, got True"),
        ('[watch]\nmin_dwell_s = "900"', "a valid number, got '900'"),
        ('[status]\nenabled = "yes"', "a valid boolean, got 'yes'"),
        ('[trust]\nrequire_signature = "off"', "a valid boolean, got 'off'"),
        ('[mqtt]\ntls = "yes"', "a valid boolean, got 'yes'"),
        ('[mqtt]\ngroups = "north"', "a list, got 'north'"),
        ("serving = 3", "a table [serving], got 3"),
        ("labels = 3", "a table [labels], got 3"),
        ('[memory]\nbudget = "2 Gib"', "'auto' or a number of bytes, or one with KiB, MiB or GiB, got '2 Gib'"),
        ("[memory]\nbudget = true", "'auto' or a valid integer, got True"),
    ],
)
def test_what_was_expected_is_told_in_the_words_of_the_file(tmp_path: Path, line: str, expected: str) -> None:
    section, _, rest = line.rpartition("\n")
    key = f"{section[1:-1]}.{rest.partition(' =')[0]}".lstrip(".")
    assert refuse(tmp_path, line + "\n").endswith(f"nibbled.toml:\n  {key}: Input should be {expected}")


def test_an_integer_is_a_number_and_sizes_may_be_texts(tmp_path: Path) -> None:
    found = load(tmp_path, '[deployment]\nsoak_s = 3\n[memory]\nbudget = "2 GiB"\nreserve = "7"\n')
    assert (found.deployment.soak_s, found.memory.budget, found.memory.reserve) == (3.0, 2**31, 7)


def test_a_variable_is_a_text_and_read_as_what_its_setting_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "STATUS__ENABLED": "no", "MQTT__TLS": "yes", "SERVING__GRPC_PORT": "8001", "DEPLOYMENT__SOAK_S": "2",
        "MEMORY__BUDGET": "1GiB", "HEALTH": '{"interval_s": "7"}', "LABELS": '{"hall": "3"}',
    }  # fmt: skip
    for name, text in told.items():
        monkeypatch.setenv(f"NIBBLED_{name}", text)
    found = settings.load()
    assert (found.status.enabled, found.mqtt.tls, found.serving.grpc_port) == (False, True, 8001)
    assert (found.deployment.soak_s, found.memory.budget, found.health.interval_s) == (2.0, 2**30, 7.0)
    assert found.labels == {"hall": "3"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("STATUS__PORT", "x", "Input should be a valid integer, got 'x'"),
        ("STATUS", '{"port": "x"}', "Input should be a valid integer, got 'x'"),
        ("SERVING__HTTP_PRT", "1", "unknown variable; did you mean NIBBLED_SERVING__HTTP_PORT?"),
        ("SERVIG__HTTP_PORT", "1", "unknown variable; did you mean NIBBLED_SERVING__HTTP_PORT?"),
        ("MQTT_HOST", "broker", "unknown variable; did you mean NIBBLED_MQTT__HOST?"),
        ("DEVICE_ID__X", "broker", "unknown variable; did you mean NIBBLED_DEVICE_ID?"),
        ("QQQQQQQQQQQQQQ", "1", "unknown variable; configs/nibbled.toml has the keys"),
        ("PORT_HTTP", "1", "unknown variable"),
        ("HALT_AFTER", "3", "unknown variable"),
        ("MQTT__GROUPS", "north", "expected JSON, such as"),
        ("MQTT__PASSWORD", "hunter2", "a password needs a username"),
    ],
)
def test_a_wrong_variable_is_named_and_the_file_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, words: str
) -> None:
    monkeypatch.setenv(f"NIBBLED_{name}", text)
    told = refuse(tmp_path, "[health]\ninterval_s = 7\n")
    if name == "MQTT__PASSWORD":  # a contradiction is of the whole, wherever its parts come from
        assert words in told
        assert "hunter2" not in told
    else:
        assert f"environment:\n  NIBBLED_{name}: " in told
        assert words in told
        assert "nibbled.toml:" not in told


def test_wrong_keys_and_wrong_variables_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIBBLED_BOGUS", "1")
    monkeypatch.setenv("NIBBLED_STATUS__PORT", "x")
    told = refuse(tmp_path, "[health]\ninterval_s = true\n")
    for words in (
        "nibbled.toml:\n  health.interval_s: ",
        "environment:\n  NIBBLED_BOGUS: ",
        "\n  NIBBLED_STATUS__PORT",
    ):
        assert words in told


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]
)
def test_what_kubernetes_tells_of_a_service_is_no_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"NIBBLED_{name}", "tcp://10.0.0.1:8000")
    assert settings.load().serving.http_port == 8000


@pytest.mark.parametrize("service", ["BROKER", "MQTT", "STATUS_SITE", "FLEET_2"])
def test_of_a_service_beside_it_neither(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "1883",
        "SERVICE_PORT_MQTT_TLS": "8883",
        "PORT": "tcp://10.0.0.1:1883",
        "PORT_1883_TCP": "tcp://10.0.0.1:1883",
        "PORT_1883_TCP_ADDR": "10.0.0.1",
        "PORT_1883_TCP_PORT": "1883",
        "PORT_1883_TCP_PROTO": "tcp",
    }.items():
        monkeypatch.setenv(f"NIBBLED_{service}_{name}", value)
    assert settings.load().mqtt.port == settings.Mqtt().port


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NIBBLED_MQTT_PORT", "1884", "did you mean NIBBLED_MQTT__PORT?"),
        ("NIBBLED_STATUS_PORT", "8081", "did you mean NIBBLED_STATUS__PORT?"),
        ("NIBBLED_SERVING_HTTP_PORT", "8001", "did you mean NIBBLED_SERVING__HTTP_PORT?"),
        ("NIBBLED_MQTT__SERVICE_HOST", "10.0.0.1", "did you mean NIBBLED_MQTT__HOST?"),
        ("NIBBLED_SERVICE_HOSTS", "10.0.0.1", "unknown variable"),
        ("NIBBLED_BROKER_PORT_1883", "1883", "unknown variable"),
        ("NIBBLED_BROKER__PORT", "tcp://10.0.0.1:1883", "unknown variable"),
    ],
)
def test_what_is_a_misspelt_setting_is_refused_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    told = refuse(tmp_path, "")
    assert name in told
    assert words in told


def test_a_key_that_is_given_twice_is_named_without_its_value(tmp_path: Path) -> None:
    told = refuse(tmp_path, '[mqtt]\npassword = "hunter1"\npassword = "hunter2"\n')
    assert "line 3" in told
    assert "password is given twice" in told
    assert "hunter" not in told


def test_a_directory_in_place_of_the_file_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory, expected a file"):
        settings.load(tmp_path)


def test_a_command_beside_the_service_sees_the_credentials_that_it_runs_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials(monkeypatch, tmp_path / "service", "serving.token")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.setattr(settings, "SERVICE_CREDENTIALS", tmp_path / "service")
    text = '[serving]\nhost = "0.0.0.0"\n'
    assert "other machines" in refuse(tmp_path, text)
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "nibbled.toml")
    assert load(tmp_path, text).serving.token_file == tmp_path / "service" / "serving.token"
