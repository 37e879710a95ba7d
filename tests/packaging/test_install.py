"""The installer, into a tree of its own: what it writes, what it leaves alone, and how versions follow each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_systemd import UNITS

TREE = UNITS.parent
needs_root = pytest.mark.skipif(
    (os.geteuid() != 0 or shutil.which("systemd-sysusers") is None) and "CI" not in os.environ,
    reason="the installer needs root and systemd-sysusers",
)


SETTINGS = """
import os

class ConfigError(Exception):
    pass

def load(path):
    if "refuse = this" in path.read_text():
        raise ConfigError(f"{path}: refuse")
    if unknown := [name for name in os.environ if name.startswith("NIBBLED_")]:
        raise ConfigError(f"environment: {unknown}")
"""


def wheel(folder: Path, version: str, *, needs: str = "") -> Path:
    """Make a wheel that is called nibbled and knows its version, in place of one that takes a minute to install."""
    folder.mkdir(exist_ok=True)
    info = f"nibbled-{version}.dist-info"
    files = {
        "agent/__init__.py": f'__version__ = "{version}"\n',
        "agent/cli.py": f'def main():\n    print("nibbled, version {version}")\n',
        "agent/settings.py": SETTINGS,
        f"nibbled-{version}.data/data/share/man/man1/nibbled.1": f".TH nibbled 1 {version}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: nibbled\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nnibbled = agent.cli:main\nnibblectl = agent.cli:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"nibbled-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return folder


def install(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--root", str(root), "--python", sys.executable, "--without-model", *arguments]
    return subprocess.run([str(TREE / "deploy" / "install.sh"), *options], capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


def in_use(root: Path) -> str:
    return str((root / "opt/nibbled/bin").readlink())


def everything(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(file): (file.lstat().st_mtime_ns, file.lstat().st_mode) for file in root.rglob("*") if not file.is_dir()
    }


@needs_root
def test_it_writes_units_user_folders_and_configuration_and_a_second_run_changes_nothing(
    root: Path, tmp_path: Path
) -> None:
    wheels = str(wheel(tmp_path / "wheels", "1.0.0"))
    done = install(root, "--wheelhouse", wheels, "--device-id", "box-9", "--profile", "orin-nano")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "etc/systemd/system/nibbled.service").read_text() == (UNITS / "nibbled.service").read_text()
    assert (root / "etc/passwd").read_text().startswith("nibbled:")
    config = root / "etc/nibbled/nibbled.toml"
    assert 'device_id = "box-9"' in config.read_text()
    assert "Orin Nano" in config.read_text()
    assert oct(config.stat().st_mode & 0o777) == "0o640"
    assert config.stat().st_gid == (root / "var/lib/nibbled").stat().st_gid != 0
    script = (root / "opt/nibbled/versions/1.0.0/bin/nibbled").read_text()
    assert str(root) not in script
    assert "/opt/nibbled/versions/1.0.0/bin/python" in script
    before = everything(root / "etc") | everything(root / "opt/nibbled/versions")
    again = install(root, "--wheelhouse", wheels)
    assert again.returncode == 0, again.stdout + again.stderr
    assert everything(root / "etc") | everything(root / "opt/nibbled/versions") == before
    assert "wrote" not in again.stdout


@needs_root
def test_versions_come_and_go_and_journal_models_and_configuration_stay(root: Path, tmp_path: Path) -> None:
    assert install(root, "--wheelhouse", str(wheel(tmp_path / "one", "1.0.0"))).returncode == 0
    kept = {root / "var/lib/nibbled/journal.db": "journal", root / "etc/nibbled/nibbled.toml": 'device_id = "mine"\n'}
    for file, text in kept.items():
        file.write_text(text)
    assert install(root, "--wheelhouse", str(wheel(tmp_path / "two", "2.0.0"))).returncode == 0
    assert in_use(root) == "versions/2.0.0/bin"
    assert install(root, "--switch", "1.0.0").returncode == 0
    assert in_use(root) == "versions/1.0.0/bin"
    assert "installed: 1.0.0 2.0.0" in install(root, "--switch", "3.0.0").stderr
    assert install(root, "--uninstall").returncode == 0
    assert {file: file.read_text() for file in kept} == kept
    assert not (root / "opt/nibbled").exists()
    assert not list((root / "etc/systemd/system").iterdir())
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert not (root / "etc/nibbled").exists()
    assert not (root / "var/lib/nibbled").exists()


@needs_root
def test_a_version_that_cannot_be_installed_leaves_the_old_one_in_use(root: Path, tmp_path: Path) -> None:
    assert install(root, "--wheelhouse", str(wheel(tmp_path / "one", "1.0.0"))).returncode == 0
    broken = wheel(tmp_path / "two", "2.0.0", needs="Requires-Dist: no-such-package-at-all\n")
    done = install(root, "--wheelhouse", str(broken))
    assert done.returncode == 1
    assert "what was installed before still is" in done.stderr
    assert in_use(root) == "versions/1.0.0/bin"
    assert [file.name for file in (root / "opt/nibbled/versions").iterdir()] == ["1.0.0"]


@needs_root
def test_a_configuration_that_the_version_refuses_keeps_it_out_of_use_below_a_root_too(
    root: Path, tmp_path: Path
) -> None:
    (root / "etc/nibbled").mkdir()
    (root / "etc/nibbled/nibbled.toml").write_text("refuse = this\n")
    done = install(root, "--wheelhouse", str(wheel(tmp_path / "wheels", "1.0.0")))
    assert done.returncode == 1
    assert f"install: {root}/etc/nibbled/nibbled.toml: refuse" in done.stderr
    assert "version 1.0.0 is installed and not in use" in done.stderr
    assert not (root / "opt/nibbled/bin").exists()


@needs_root
def test_a_version_that_refuses_the_configuration_is_not_switched_to_either(root: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        assert install(root, "--wheelhouse", str(wheel(tmp_path / version, version))).returncode == 0
    (root / "etc/nibbled/nibbled.toml").write_text("refuse = this\n")
    done = install(root, "--switch", "1.0.0")
    assert done.returncode == 1
    assert "version 1.0.0 is installed and not in use: it refuses /etc/nibbled/nibbled.toml" in done.stderr
    assert in_use(root) == "versions/2.0.0/bin"


@needs_root
def test_variables_of_the_shell_that_installs_are_not_taken_for_those_of_the_service(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIBBLED_PROFILE", "site")
    done = install(root, "--wheelhouse", str(wheel(tmp_path / "wheels", "1.0.0")))
    assert done.returncode == 0, done.stderr
    assert in_use(root) == "versions/1.0.0/bin"


@needs_root
def test_credentials_and_nodes_that_are_there_get_their_lines(root: Path, tmp_path: Path) -> None:
    wheels = str(wheel(tmp_path / "wheels", "1.0.0"))
    assert install(root, "--wheelhouse", wheels).returncode == 0
    dropins = root / "etc/systemd/system/nibbled.service.d"
    assert not dropins.exists()
    secret = root / "etc/nibbled/credentials/mqtt.key"
    secret.write_text("key")
    (root / "dev").mkdir(exist_ok=True)
    os.mknod(root / "dev/nvmap", 0o600 | 0o020000, os.makedev(10, 99))
    assert install(root, "--wheelhouse", wheels, "--harden").returncode == 0
    assert (
        "LoadCredential=mqtt.key:/etc/nibbled/credentials/mqtt.key\n" in (dropins / "10-credentials.conf").read_text()
    )
    devices = (dropins / "30-devices.conf").read_text()
    assert "DevicePolicy=closed\nDeviceAllow=/dev/nvmap rw\n" in devices
    secret.unlink()
    assert install(root, "--wheelhouse", wheels).returncode == 0
    assert not (dropins / "10-credentials.conf").exists()


@needs_root
def test_programs_and_their_man_pages_are_found_and_are_those_of_the_version_in_use(root: Path, tmp_path: Path) -> None:
    links = [root / "usr/local/bin/nibbled", root / "usr/local/share/man/man1/nibbled.1"]
    foreign = root / "usr/local/bin/nibblectl"
    foreign.parent.mkdir(parents=True)
    foreign.symlink_to("/somewhere/else")

    def found() -> list[Path]:
        # What a shell on the device would open: the links are the device's own paths.
        return [(root / str(link.readlink()).lstrip("/")).resolve().relative_to(root.resolve()) for link in links]

    for version in ("1.0.0", "2.0.0"):
        done = install(root, "--wheelhouse", str(wheel(tmp_path / version, version)))
        assert "kept /usr/local/bin/nibblectl, which is not this one" in done.stdout
    folder = Path("opt/nibbled/versions/2.0.0")
    assert found() == [folder / "bin/nibbled", folder / "share/man/man1/nibbled.1"]
    assert install(root, "--switch", "1.0.0").returncode == 0
    assert (root / found()[1]).read_text() == ".TH nibbled 1 1.0.0\n"
    assert install(root, "--uninstall").returncode == 0
    assert not any(link.is_symlink() for link in links)
    assert foreign.is_symlink()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_the_package_brings_a_page_for_every_command_and_links_to_the_programs(tmp_path: Path) -> None:
    build = [TREE / "deploy" / "deb" / "build.sh", wheel(tmp_path / "wheels", "1.0.0"), tmp_path]
    made = subprocess.run(list(map(str, build)), capture_output=True, text=True, check=True).stdout.strip()
    listed = subprocess.run(["dpkg-deb", "--contents", made], capture_output=True, text=True, check=True).stdout
    for page in (TREE / "docs" / "man").iterdir():
        assert f"./usr/share/man/man1/{page.name}.gz\n" in listed
    assert "./usr/bin/nibbled -> /opt/nibbled/bin/nibbled\n" in listed
    assert "./usr/bin/nibblectl -> /opt/nibbled/bin/nibblectl\n" in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wheels", "x"], "unknown argument --wheels"),
        (["--profile"], "--profile needs a value"),
        (["--prefix", "/opt"], "expected a folder of its own"),
        (["--python", "/bin/false"], "no Python 3.10 to 3.13"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--profile", "matrix"], "no profile matrix"),
        (["--profile", "rollout"], "there are: agx-orin cloud-gpu cpu-dev desktop-gpu nibbled orin-nano thor\n"),
        (["--profile", "profiles"], "no profile profiles"),
        (["--profile", "../configs/thor"], "no profile ../configs/thor"),
        (["--device-id", "box 17"], "--device-id box 17: expected 1 to 64 of"),
        (["--device-id", 'a|b"c'], '--device-id a|b"c: expected 1 to 64 of'),
    ],
)
@needs_root
def test_what_it_cannot_do_it_refuses_in_a_sentence(root: Path, arguments: list[str], words: str) -> None:
    done = install(root, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert list(root.iterdir()) == [root / "etc"]


@pytest.mark.skipif(shutil.which("shellcheck") is None and "CI" not in os.environ, reason="shellcheck is not installed")
def test_the_scripts_are_sound() -> None:
    scripts = [*(TREE / "deploy").glob("*.sh"), *(TREE / "deploy").glob("d*/*.sh"), TREE / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
