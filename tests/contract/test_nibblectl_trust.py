"""`nibblectl keygen | sign | verify | inspect` as a person types them: what is printed, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from agent.adapters.trusted_keys import read_key
from agent.fleet import keys
from agent.fleet.cli import main

if TYPE_CHECKING:
    from click.testing import Result

OMS = Path(__file__).parents[1] / "data" / "oms"
URL = "https://h.example/kanji.pt"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


class Shell:
    """A directory with a checkpoint and the keys ``old`` and ``new`` in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.checkpoint = directory / "kanji.pt"
        self.checkpoint.write_bytes(b"weights")
        for name in ("old", "new"):
            assert self.run("keygen", name, "--directory", str(directory)).exit_code == 0

    def run(self, *arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)

    def path(self, name: str) -> Path:
        return self.directory / name

    def try_to_sign(self, *options: str) -> Result:
        asked = ("--url", URL, "--model", "kanji", "--version", "v1", "--sequence", "7")
        return self.run("sign", self.checkpoint, "--key", self.path("old.key"), *asked, *options)

    def sign(self, *options: str) -> Path:
        done = self.try_to_sign(*options)
        assert done.exit_code == 0, done.output
        target = self.path("manifest.json")
        target.write_text(done.stdout)
        return target

    def sign_as_it_stands(self, **changes: Any) -> Path:
        body = {"model": "kanji", "version": "v1", "sequence": 7, "files": [keys.describe_file(self.checkpoint, URL)]}
        target = self.path("manifest.json")
        target.write_text(json.dumps(keys.sign({**body, **changes}, self.path("old.key"))))
        return target


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_what_is_signed_is_trusted_by_its_key_and_by_a_directory_with_it(shell: Shell) -> None:
    manifest = shell.sign()
    for trusted in (("--key", shell.path("old.pub")), ("--keys-dir", shell.directory)):
        done = shell.run("verify", manifest, *trusted, "--file", shell.checkpoint)
        assert (done.exit_code, done.stdout) == (0, "signed by old: kanji v1, sequence 7\n")
    assert shell.run("verify", "-", "--key", shell.path("old.pub"), stdin=manifest.read_text()).exit_code == 0


def test_during_a_rotation_either_key_is_enough(shell: Shell) -> None:
    manifest = shell.sign("--key", str(shell.path("new.key")))
    for name in ("old", "new"):
        assert f"signed by {name}" in shell.run("verify", manifest, "--key", shell.path(f"{name}.pub")).stdout
    assert json.loads(shell.run("--json", "inspect", manifest).stdout)["signers"] == ["old", "new"]


@pytest.mark.parametrize(
    ("options", "asked", "code"),
    [
        (("--not-before", FUTURE), (), "not_yet_valid"),
        (("--for-device", "box-1"), ("--for-device", "box-2"), "wrong_audience"),
        (("--for-group", "north"), ("--for-device", "box-2", "--for-group", "south"), "wrong_audience"),
    ],
)
def test_what_a_device_would_refuse_is_not_to_be_trusted(
    shell: Shell, options: tuple[str, ...], asked: tuple[str, ...], code: str
) -> None:
    manifest = shell.sign(*options)
    done = shell.run("verify", manifest, "--key", shell.path("old.pub"), *asked)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{code}: ")


def test_what_is_refused_prints_nothing_that_looks_like_a_manifest(shell: Shell) -> None:
    manifest = shell.sign()
    done = shell.run("verify", manifest, "--key", shell.path("new.pub"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("untrusted_key: signed by old; trusted here: new\n")
    assert done.stderr.endswith("copy old.pub to trust.keys_dir\n")
    told = shell.run("inspect", manifest, "--key", shell.path("new.pub"))
    assert (told.exit_code, told.stdout.splitlines()[-1].split()) == (1, ["trusted", "no"])


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_nothing_where_a_manifest_should_be_is_called_that(shell: Shell, command: str) -> None:
    keys_dir = ("--keys-dir", shell.directory)
    expected = "expected a signed manifest as nibblectl sign prints it"
    for target, words in (("/dev/null", "/dev/null: empty"), ("-", "stdin: empty")):
        done = shell.run(command, target, *keys_dir, stdin=" \n")
        assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"nibblectl: {words}, {expected}\n")
    done = shell.run(command, shell.directory, *keys_dir)
    told = f"{shell.directory}: Is a directory, {expected}; a directory is verified with --oms BUNDLE"
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"nibblectl: {told}\n")


def test_what_expired_since_is_not_to_be_trusted(shell: Shell) -> None:
    manifest = shell.sign_as_it_stands(expires=PAST)
    done = shell.run("verify", manifest, "--key", shell.path("old.pub"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("expired: the manifest expired at 2020-01-01")
    assert "not judged: no keys given" in shell.run("inspect", manifest).stdout


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (("--expires", PAST), "--expires 2020-01-01T00:00:00.000Z is past, it is 20"),
        (("--expires", FUTURE, "--not-before", FUTURE), f"--expires {FUTURE[:-1]}.000Z is not after --not-before"),
        (("--expires", "2999-01-01T00:00:00"), "expires: Input should have timezone info"),
        (("--expires", "soon"), "expires: "),
    ],
)
def test_dates_that_no_device_would_accept_are_not_signed(shell: Shell, dates: tuple[str, ...], words: str) -> None:
    done = shell.try_to_sign(*dates)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr


def test_a_key_that_has_ended_already_is_not_made(shell: Shell) -> None:
    done = shell.run("keygen", "late", "--directory", shell.directory, "--not-after", PAST)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "not_after 2020-01-01T00:00:00.000Z is past, it is 20" in done.stderr
    assert list(shell.directory.glob("late.*")) == []


def test_a_stranger_s_signature_and_another_file_are_both_named(shell: Shell) -> None:
    manifest = shell.sign()
    shell.checkpoint.write_bytes(b"other weights")
    done = shell.run("--json", "verify", manifest, "--key", shell.path("new.pub"), "--file", shell.checkpoint)
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (found["ok"], found["trusted_by"]) == (False, None)
    assert [fault["code"] for fault in found["faults"]] == ["untrusted_key", "checksum_mismatch"]


def test_inspect_tells_everything_and_judges_no_signature_without_keys(shell: Shell) -> None:
    manifest = shell.sign("--allow-downgrade", "--for-group", "north", "--expires", FUTURE, "--source-dtype", "fp32")
    done = shell.run("inspect", manifest)
    assert done.exit_code == 0
    for words in ("kanji v1", "7, may go back", "groups north", FUTURE, "https://h.example/kanji.pt", "not judged"):
        assert words in done.stdout
    says = json.loads(shell.run("--json", "inspect", manifest).stdout)["says"]
    assert (says["allow_downgrade"], says["source_dtype"]) == (True, "fp32")


def test_inspect_finds_the_manifest_in_a_deploy(shell: Shell) -> None:
    command = {"schema": 1, "id": "d-1", "model": "kanji", "manifest": json.loads(shell.sign().read_text())}
    done = shell.run("inspect", "-", stdin=json.dumps(command))
    assert (done.exit_code, "kanji v1" in done.stdout) == (0, True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"payload": 1}', "\x00"])
def test_what_is_no_manifest_is_status_2_and_a_sentence(shell: Shell, text: str) -> None:
    target = shell.path("x")
    target.write_text(text)
    for command in (("inspect", target), ("verify", target, "--key", shell.path("old.pub"))):
        done = shell.run(*command)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"nibblectl: {target}: ")
        assert "Traceback" not in done.output


def test_verify_has_to_be_told_whom_to_trust(shell: Shell) -> None:
    done = shell.run("verify", shell.sign())
    assert done.exit_code == 2
    assert "--keys-dir" in done.stderr


def test_a_private_key_is_recognised_and_not_shown(shell: Shell) -> None:
    secret = shell.path("old.key").read_text().splitlines()[1]
    for name in ("old.key", "stolen.pub"):
        shell.path("stolen.pub").write_bytes(shell.path("old.key").read_bytes())
        done = shell.run("verify", shell.sign(), "--key", shell.path(name))
        assert done.exit_code == 2
        assert "a private key" in done.stderr
        assert secret not in done.output


def test_the_limits_of_a_key_are_written_into_its_file(shell: Shell) -> None:
    limits = ("--models", "kanji, digits-*", "--not-after", FUTURE)
    assert shell.run("keygen", "shop", "--directory", shell.directory, *limits).exit_code == 0
    key = read_key(shell.path("shop.pub"))
    assert (key.models, key.not_after and key.not_after.year) == (("kanji", "digits-*"), 2999)
    assert shell.run("keygen", "bad", "--directory", shell.directory, "--not-after", "soon").exit_code == 2
    assert not shell.path("bad.key").exists()
    assert not shell.path("bad.pub").exists()


@pytest.mark.parametrize("name", ["../x y", "a/b", "/nowhere/x", "..", "x y", "x.y", "", "k" * 65, "x\n"])
def test_a_key_s_name_is_an_id_and_writes_nowhere_else(shell: Shell, name: str) -> None:
    inside = shell.path("inside")
    inside.mkdir()
    before = sorted(shell.directory.rglob("*"))
    done = shell.run("keygen", "--directory", inside, "--", name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"key name {name!r} must match ^[A-Za-z0-9_-]{{1,64}}$" in done.stderr
    assert sorted(shell.directory.rglob("*")) == before


def test_a_directory_that_is_not_there_is_named(shell: Shell) -> None:
    done = shell.run("keygen", "x", "--directory", shell.path("nowhere"))
    assert done.exit_code == 2
    assert done.stderr == f"nibblectl: {shell.path('nowhere/x.key')}: No such file or directory\n"


def test_a_file_that_is_no_key_signs_nothing(shell: Shell) -> None:
    asked = ("--url", URL, "--model", "kanji", "--version", "v1", "--sequence", "7")
    done = shell.run("sign", shell.checkpoint, "--key", shell.checkpoint, *asked)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "kanji.pt" in done.stderr
    done = shell.run("sign", shell.checkpoint, "--key", shell.path("old.pub"), *asked)
    assert (done.exit_code, done.stdout) == (2, "")
    told = "a public key, which signs nothing; give the private one, which keygen wrote beside it"
    assert done.stderr == f"nibblectl: {shell.path('old.pub')}: {told}: {shell.path('old.key')}\n"


def test_a_pair_that_is_there_is_not_written_over(shell: Shell) -> None:
    before = shell.path("old.key").read_bytes()
    done = shell.run("keygen", "old", "--directory", shell.directory)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"nibblectl: {shell.path('old.pub')} exists; choose another name\n"
    shell.path("old.pub").unlink()
    assert f"{shell.path('old.key')} exists" in shell.run("keygen", "old", "--directory", shell.directory).stderr
    assert shell.path("old.key").read_bytes() == before


def test_programs_are_told_in_json_which_files_a_key_is(shell: Shell) -> None:
    done = shell.run("--json", "keygen", "shop", "--directory", shell.directory)
    files = {"private": str(shell.path("shop.key")), "public": str(shell.path("shop.pub"))}
    assert json.loads(done.stdout) == {"key": "shop", **files}


@pytest.mark.parametrize(
    ("models", "wrong"),
    [("a*,b c", "b c"), ("kanji;digits", "kanji;digits"), ("kanji,", ""), ("a.b", "a.b"), ("[a-", "[a-")],
)
def test_a_key_for_models_that_cannot_be_is_not_made(shell: Shell, models: str, wrong: str) -> None:
    done = shell.run("keygen", "shop", "--directory", shell.directory, "--models", models)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"models: {wrong!r} is no name that a model can have" in done.stderr
    assert list(shell.directory.glob("shop.*")) == []
    sets = ("--models", "digits-[0-9],x[!a]?,*")
    assert shell.run("keygen", "shop", "--directory", shell.directory, *sets).exit_code == 0


def oms(shell: Shell, *arguments: Any, key: str = "p384") -> Result:
    return shell.run("verify", "--oms", OMS / "p384.sig", "--key", OMS / f"{key}.pub", *arguments)


def test_a_model_is_checked_against_a_bundle_of_openssf_model_signing(shell: Shell) -> None:
    assert (oms(shell, OMS / "model").exit_code, oms(shell, OMS / "model").stdout) == (0, "signed by p384: model\n")
    one = shell.run("verify", "--oms", OMS / "file.sig", "--key", OMS / "p256.pub", OMS / "model" / "model.safetensors")
    assert one.exit_code == 0
    stranger = oms(shell, OMS / "model", key="p256")
    assert (stranger.exit_code, stranger.stderr.partition(":")[0]) == (1, "untrusted_key")
    assert oms(shell, OMS / "model", "--key", OMS / "p256.pub", key="p384").exit_code == 0


def test_every_file_that_differs_from_a_bundle_is_named(shell: Shell) -> None:
    model = shell.path("model")
    model.mkdir()
    (model / "config.json").write_bytes(b"{}")
    (model / "extra.py").write_bytes(b"import os")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_bytes(b"left out by the signer")
    done = oms(shell, model)
    assert done.exit_code == 1
    for words in ("config.json has ", "extra.py was not signed", "model.safetensors was signed and is missing"):
        assert words in done.stderr
    assert ".git" not in done.stderr


def test_a_link_is_no_signed_file(shell: Shell) -> None:
    model = shell.path("model")
    model.mkdir()
    for path in (OMS / "model").iterdir():
        (model / path.name).symlink_to(path)
    assert "a symbolic link" in oms(shell, model).stderr
