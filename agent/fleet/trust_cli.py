"""The part of ``nibblectl`` that needs no broker: keys, signed manifests, and what is wrong with them."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from pydantic import ValidationError

from agent.adapters.signatures import KeyDirectory
from agent.adapters.trusted_keys import KeyFileError, read_key
from agent.contract import sources
from agent.contract.errors import RefusalError
from agent.contract.manifest import Identity, Manifest
from agent.contract.topics import check_group
from agent.contract.wire import describe, rfc3339
from agent.fleet import keys
from agent.fleet.examination import examine, examine_bundle
from agent.fleet.target import fail

if TYPE_CHECKING:
    from agent.adapters.trusted_keys import TrustedKey
    from agent.fleet.examination import Examination

JsonObject = dict[str, Any]
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_KEYS = click.option("--key", "key_files", multiple=True, type=_FILE, help="A trusted NAME.pub; may be repeated.")
_KEYS_DIR = click.option(
    "--keys-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Trusted keys, as in a device's trust.keys_dir.",
)
MANIFEST = click.Path(exists=True, allow_dash=True, path_type=Path)
_EXPECTED = "a signed manifest as nibblectl sign prints it"
_DEVICE = click.option("--for-device", help="Judge the audience too, as that device does.")
_GROUP = click.option("--for-group", multiple=True, help="A group of that device; may be repeated.")


def checked_groups(_context: click.Context, _option: click.Parameter, given: Any) -> Any:
    """Return the value of an option that names a group, or several; one that no device may be in ends the program."""
    try:
        for each in (given,) if isinstance(given, str) else given or ():
            check_group(each)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return given


@click.command()
@click.argument("name")
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), help="Where to write the pair.")
@click.option("--not-after", help="RFC 3339 time to come until which devices trust the key.")
@click.option("--models", help="Names that the key may sign for, such as kanji,digits-*. Default: all.")
@click.pass_context
def keygen(context: click.Context, /, name: str, directory: Path, not_after: str | None, models: str | None) -> None:
    """Make a signing key.

    NAME.key signs and stays here; devices get NAME.pub in their trust.keys_dir.
    """
    try:
        private, public = keys.generate(directory, name, {"not_after": not_after, "models": models}, _now())
    except FileExistsError as error:
        fail(f"{error.filename} exists; choose another name", 2)
    except KeyFileError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", 2)
    if _as_json(context):
        click.echo(json.dumps({"key": name, "private": str(private), "public": str(public)}))
    else:
        click.echo(f"{private}  keep it secret\n{public}  copy it to trust.keys_dir of every device")


@click.command()
@click.argument("checkpoint", type=_FILE)
@click.option("--key", "key_files", required=True, multiple=True, type=_FILE, help="NAME.key; twice while keys rotate.")
@click.option("--url", required=True, help="Where devices fetch it: https://, s3://, hf://, models:/, oci:// …")
@click.option("--model", required=True, help="Name that it is served by.")
@click.option("--version", "version_", required=True, help="What reports call this release.")
@click.option("--sequence", required=True, type=int, help="Higher than that of the last release of this model.")
@click.option("--model-type", default="auto", show_default=True, help="auto: devices recognise it by its tensors.")
@click.option("--source-dtype", help="Precision of the checkpoint, for people.")
@click.option("--for-device", multiple=True, help="Audience; may be repeated. Default: every device.")
@click.option("--for-group", multiple=True, callback=checked_groups, help="Audience, by group; may be repeated.")
@click.option("--for-hardware", multiple=True, help="Board as health's device.board.model names it.")
@click.option("--not-before", help="RFC 3339 time, e.g. 2027-01-01T00:00:00Z.")
@click.option("--expires", help="RFC 3339 time to come. Devices whose clock is not set wait with it.")
@click.option("--allow-downgrade", is_flag=True, help="Devices accept it although they have seen a higher sequence.")
def sign(checkpoint: Path, key_files: tuple[Path, ...], url: str, **fields: Any) -> None:
    """Hash CHECKPOINT and print a signed manifest for it.

    Save it (> manifest.json) for deploy, verify and inspect. CHECKPOINT itself has to lie at --url before that.
    """
    audience = {"devices": fields["for_device"], "groups": fields["for_group"], "hardware": fields["for_hardware"]}
    manifest: JsonObject = {
        "model": fields["model"],
        "version": fields["version_"],
        "sequence": fields["sequence"],
        "audience": audience,
        "files": [keys.describe_file(checkpoint, url)],
        "model_type": fields["model_type"],
        "source_dtype": fields["source_dtype"],
        "not_before": fields["not_before"],
        "expires": fields["expires"],
        "allow_downgrade": fields["allow_downgrade"],
    }
    try:
        _refuse_useless(Manifest.model_validate(manifest))
        click.echo(json.dumps(keys.sign(manifest, *key_files)))
    except ValidationError as error:
        fail(describe(error), 2)
    except keys.SigningKeyError as error:
        fail(str(error), 2)


def _refuse_useless(manifest: Manifest) -> None:
    """Refuse an address and dates that no device will ever accept."""
    for file in manifest.files:
        _refuse_address(file.url)
    now, begin, end = _now(), manifest.not_before, manifest.expires
    if end is not None and end <= now:
        fail(f"--expires {rfc3339(end)} is past, it is {rfc3339(now)} by this machine's clock; give a later time", 2)
    if begin is not None and end is not None and end <= begin:
        fail(f"--expires {rfc3339(end)} is not after --not-before {rfc3339(begin)}; give a later time", 2)


def _refuse_address(url: str) -> None:
    try:
        is_registry_s = sources.parse(url) is not None
    except RefusalError as refusal:
        fail(f"--url: {refusal.detail}\n  {refusal.hint}", 2)
    scheme, has_scheme, _ = url.partition("://")
    if not is_registry_s and not has_scheme:
        fail(f"--url {url!r} has no scheme, such as https://", 2)
    if not is_registry_s and scheme.lower() not in sources.SCHEMES:
        known = ", ".join(sources.SCHEMES)
        fail(f"--url: no device fetches from {scheme}://; what downloads.allowed_schemes can have: {known}", 2)


@click.command()
@click.argument("target", metavar="MANIFEST", type=MANIFEST)
@_KEYS
@_KEYS_DIR
@click.option("--file", type=_FILE, help="The model's file, compared with what the manifest says of it.")
@click.option("--oms", "bundle", type=_FILE, help="A bundle of OpenSSF Model Signing; MANIFEST is then the model.")
@click.option("--model", default="", help="With --oms: the name that the key has to be trusted for.")
@_DEVICE
@_GROUP
@click.pass_context
def verify(
    context: click.Context, /, target: Path, key_files: tuple[Path, ...], keys_dir: Path | None, **asked: Any
) -> None:
    """Check MANIFEST as a device does.

    MANIFEST (- for stdin) has to be signed by a trusted key; its dates are checked, and what else is given.
    With --oms the directory or file is checked against a bundle that model_signing made with a key.
    """
    if not key_files and keys_dir is None:
        raise click.UsageError("whom is to be trusted? give --key or --keys-dir")
    if asked["bundle"] is not None:
        found = _examined_bundle(asked["bundle"], target, key_files, keys_dir, asked["model"])
    else:
        found = _examined(target, key_files, keys_dir, **asked)
    _report(found, _verified(found), as_json=_as_json(context))


@click.command()
@click.argument("target", metavar="MANIFEST", type=MANIFEST)
@_KEYS
@_KEYS_DIR
@click.option("--file", type=_FILE, help="The model's file, compared with what the manifest says of it.")
@_DEVICE
@_GROUP
@click.pass_context
def inspect(
    context: click.Context, /, target: Path, key_files: tuple[Path, ...], keys_dir: Path | None, **asked: Any
) -> None:
    """Tell what MANIFEST says, and what is wrong with it.

    MANIFEST (- for stdin) is an envelope or a whole deploy command. Told is what it says, who signed it, and everything
    that is wrong; without keys no signature is judged.
    """
    found = _examined(target, key_files, keys_dir, **asked)
    is_judged = bool(key_files) or keys_dir is not None
    _report(found, _described(found, is_judged=is_judged), as_json=_as_json(context))


def _examined(
    target: Path,
    key_files: tuple[Path, ...],
    keys_dir: Path | None,
    *,
    file: Path | None,
    for_device: str | None,
    for_group: tuple[str, ...],
    **_unused: Any,
) -> Examination:
    trusted, where = _trusted(key_files, keys_dir)
    identity = Identity(for_device, frozenset(for_group)) if for_device else None
    try:
        return examine(read_manifest(target), trusted, _now(), identity=identity, file=file, where=where)
    except RefusalError as refusal:
        fail_refused(target, refusal)


def _examined_bundle(
    bundle: Path, target: Path, key_files: tuple[Path, ...], keys_dir: Path | None, model: str
) -> Examination:
    trusted, where = _trusted(key_files, keys_dir)
    try:
        return examine_bundle(bundle.read_bytes(), trusted, target, _now(), model=model, where=where)
    except RefusalError as refusal:
        fail_refused(bundle, refusal)


def _trusted(key_files: tuple[Path, ...], keys_dir: Path | None) -> tuple[list[TrustedKey] | None, str]:
    """Return whom to trust, None when nobody was named, and where they lie."""
    if not key_files and keys_dir is None:
        return None, "trust.keys_dir"
    found = []
    try:
        found = [read_key(path) for path in key_files]
    except KeyFileError as error:
        fail(str(error), 2)
    if keys_dir is not None:
        directory = KeyDirectory(keys_dir)
        found += directory.keys()
        for problem in directory.problems():
            click.echo(f"nibblectl: {problem}", err=True)
    return found, str(keys_dir or "trust.keys_dir")


def _report(found: Examination, lines: list[str], *, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        for line in lines:
            click.echo(line)
        for fault in found.faults:
            click.echo(f"{fault.code}: {fault.detail}" + (f"\n  hint: {fault.hint}" if fault.hint else ""), err=True)
    sys.exit(1 if found.faults else 0)


def _verified(found: Examination) -> list[str]:
    """Return nothing of what is refused: who reads stdout alone must not take it for verified."""
    if found.faults:
        return []
    says = found.says
    name = f"{says['model']} {says['version']}, sequence {says['sequence']}" if "sequence" in says else says["name"]
    return [f"signed by {found.trusted_by}: {name}"]


def _described(found: Examination, *, is_judged: bool) -> list[str]:
    says = found.says
    trusted = f"by {found.trusted_by}" if found.trusted_by else "no" if is_judged else "not judged: no keys given"
    audience = [f"{kind} {', '.join(names)}" for kind, names in says["audience"].items() if names]
    rows = {
        "model": f"{says['model']} {says['version']}, type {says['model_type']}",
        "sequence": f"{says['sequence']}" + (", may go back (allow_downgrade)" if says["allow_downgrade"] else ""),
        "audience": "; ".join(audience) or "every device",
        "valid": f"from {says['not_before'] or 'now on'} until {says['expires'] or 'replaced'}",
        **{
            f"file {each['name']}": f"{each['size']} bytes, sha256 {each['sha256']}, {each['url'].partition('?')[0]}"
            for each in says["files"]
        },
        "signatures": ", ".join(name or "unnamed" for name in found.signers),
        "trusted": trusted,
    }
    return [f"{name:<12} {text}" for name, text in rows.items()]


def read_manifest(target: Path) -> bytes:
    """Return what is in a file, or on stdin for ``-``; ends the program where that is nothing."""
    return read_file(target, _EXPECTED, "; a directory is verified with --oms BUNDLE")


def read_file(target: Path, expected: str, of_a_directory: str = "") -> bytes:
    """Return what is in a file, or on stdin for ``-``; ends the program where that is not ``expected`` but nothing."""
    try:
        content = sys.stdin.buffer.read() if str(target) == "-" else target.read_bytes()
    except OSError as error:
        more = of_a_directory if isinstance(error, IsADirectoryError) else ""
        fail(f"{target}: {error.strerror}, expected {expected}{more}", 2)
    if not content.strip():
        fail(f"{'stdin' if str(target) == '-' else target}: empty, expected {expected}", 2)
    return content


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _as_json(context: click.Context) -> bool:
    return bool(context.obj.as_json)


def fail_refused(file: Path, refusal: RefusalError) -> NoReturn:
    """End with what is wrong with a file, and the next step."""
    fail(f"{file}: {refusal.detail}" + (f"\n  {refusal.hint}" if refusal.hint else ""), 2)
