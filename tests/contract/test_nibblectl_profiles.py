"""Where ``nibblectl`` takes its options from: command line, environment, profile; and what is wrong with a profile."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent.fleet import profile
from agent.fleet.options import Program, before_the_command, target_of
from agent.fleet.target import Target

SITE = """\
default = "site"
[profiles.site]
host = "broker.example.com"
port = 8884
username = "operator"
password_file = "operator.password"
wait = 5
[profiles.cloud]
host = "cloud.example.com"
port = 443
transport = "websockets"
ws_path = "/ws"
tls = true
prefix = "acme/edge"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nibblectl.toml"
    path.write_text(SITE)
    password = tmp_path / "operator.password"
    password.write_text("canary\n")
    password.chmod(0o600)
    monkeypatch.setenv("NIBBLECTL_PROFILES", str(path))
    return path


def taken(*arguments: str) -> Target:
    """Return the target that a command is given."""
    found = []

    @click.group(cls=Program, context_settings={"auto_envvar_prefix": "NIBBLECTL"})
    @before_the_command
    @click.pass_context
    def program(context: click.Context, /, **options: object) -> None:
        context.obj = target_of(options)

    @program.command()
    @click.pass_obj
    def look(target: Target) -> None:
        found.append(target)

    done = CliRunner().invoke(program, arguments)
    assert done.exit_code == 0, done.output
    return found[0]


def refused(*arguments: str) -> str:
    from agent.fleet.cli import main  # noqa: PLC0415

    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    return done.stderr


def test_the_default_profile_is_taken_and_its_files_lie_beside_it(file: Path) -> None:
    target = taken("look")
    assert (target.host, target.port, target.username) == ("broker.example.com", 8884, "operator")
    assert target.password_file == str(file.with_name("operator.password"))
    assert target.wait_s == 5.0


@pytest.mark.usefixtures("file")
def test_another_profile_is_taken_whole_and_leaves_the_rest_as_it_is_by_default() -> None:
    target = taken("--profile", "cloud", "look")
    assert (target.host, target.port, target.transport, target.ws_path) == (
        "cloud.example.com",
        443,
        "websockets",
        "/ws",
    )
    assert (target.tls, target.prefix, target.username, target.wait_s) == (True, "acme/edge", None, 600.0)


@pytest.mark.usefixtures("file")
def test_what_is_given_wins_over_the_environment_and_that_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIBBLECTL_PORT", "1884")
    assert taken("look").port == 1884
    assert taken("--port", "1885", "look").port == 1885
    monkeypatch.setenv("NIBBLECTL_PROFILE", "cloud")
    assert taken("look").host == "cloud.example.com"


def test_without_a_file_everything_is_as_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIBBLECTL_PROFILES", str(tmp_path / "none.toml"))
    assert taken("look") == Target()


@pytest.mark.usefixtures("file")
def test_some_options_may_stand_behind_the_command_and_the_last_one_counts() -> None:
    target = taken("--device", "box-1", "--wait", "9", "look", "-d", "box-2", "--json", "--no-wait")
    assert (target.device, target.as_json, target.wait_s) == ("box-2", True, 0.0)
    assert taken("--no-wait", "look").wait_s == 0.0
    assert taken("--json", "look", "--wait", "3").wait_s == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.site]\nhots = 'x'", "profile 'site': unknown: hots; did you mean host?"),
        ("[profiles.site]\npassword = 'x'", "a password does not stand here; write it into a file"),
        ("[profiles.site]\nhost = {a = 1}", "profile 'site': host is neither text, number, true or false, nor a list"),
        ("[profiles.site]\nport = 99999", "99999 is not in the range 1<=x<=65535"),
        ("[profiles.site]\nca_file = 'gone.pem'", "gone.pem' does not exist"),
        ("[profiles]\nsite = 3", "profile 'site' is no table, expected [profiles.site]"),
        ("[profiles.lab]", "no profile 'site'; there: lab"),
        ("", "no profile 'site'; there: none; write [profiles.site] into it"),
        ("profile = 1", "unknown: profile; expected default = NAME and tables [profiles.NAME]"),
        ("[profiles", "no TOML: "),
    ],
)
def test_what_is_wrong_with_a_profile_is_told_with_what_would_be_right(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    assert words in refused("--profile", "site", "-d", "box", "status")


@pytest.mark.usefixtures("file")
def test_a_password_that_others_may_read_is_not_sent(tmp_path: Path) -> None:
    password = tmp_path / "operator.password"
    password.chmod(0o644)
    told = refused("--port", "1", "-d", "box", "status")
    assert f"password file {password}: its mode is 0644, others may not read it\n  chmod 600 {password}" in told
    assert "canary" not in told


def test_the_names_of_profiles_are_those_of_the_file(file: Path) -> None:
    assert profile.names(file) == ["cloud", "site"]
    assert profile.names(file.with_name("none.toml")) == []
    assert profile.default_file({"HOME": "/home/anna"}) == Path("/home/anna/.config/nibbled/nibblectl.toml")
    assert profile.default_file({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == Path("/x/nibbled/nibblectl.toml")
