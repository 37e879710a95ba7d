"""What a board says of itself and what its sensors measure; files may be missing, malformed, or fail when read."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from agent.devices import files, hardware, sensors, system, tegra
from agent.devices.look import Look
from agent.devices.nvml import Nvml
from agent.devices.sensors import Readings
from agent.devices.tegra import Board
from tests.fakes.boxes import BOXES, OFF, hwmon, iio, meminfo, nvpmodel, orin, plant, thermal
from tests.fakes.nvml import absent

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_box_says_nothing(tmp_path: Path) -> None:
    assert tegra.read(tmp_path) == Board()
    assert sensors.read(tmp_path) == Readings()
    assert system.boot_id(tmp_path) == "unknown"


@pytest.mark.parametrize("content", ["", "\0\0", "-", "nan", "1e999 W", OFF])
@pytest.mark.parametrize("name", list(BOXES))
def test_no_content_of_any_file_raises(name: str, content: str, tmp_path: Path) -> None:
    tree = BOXES[name]()
    root = plant(tmp_path, dict.fromkeys(tree.files, content), tree.links)
    tegra.read(root)
    found = sensors.read(root)
    assert found.gpu_load_percent is None
    assert not any(found.rails_w.values())


def test_files_that_may_not_be_text_are_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"Box \xff\0")
    assert files.text(path) == "Box \ufffd"


def test_a_sensor_that_is_off_is_null_and_the_others_are_not(tmp_path: Path) -> None:
    root = plant(tmp_path, thermal(("cpu-thermal", "48250"), ("cv0-thermal", OFF), ("cold", "-4500"), ("odd", "hot")))
    assert sensors.read(root).temperatures_c == {"cpu-thermal": 48.25, "cv0-thermal": None, "cold": -4.5, "odd": None}


def test_zones_of_one_name_are_numbered_in_the_kernel_s_order(tmp_path: Path) -> None:
    zones = [("acpitz", str(index * 1000)) for index in range(11)]
    found = sensors.read(plant(tmp_path, thermal(*zones))).temperatures_c
    assert (found["acpitz"], found["acpitz 2"], found["acpitz 11"]) == (0.0, 1.0, 10.0)


def test_a_server_with_hundreds_of_zones_reports_a_few(tmp_path: Path) -> None:
    root = plant(tmp_path, thermal(*((f"zone-{index}", "1000") for index in range(100))))
    assert len(sensors.read(root).temperatures_c) == 32


def test_a_rail_is_millivolts_times_milliamperes_without_unused_channels_and_the_sum(tmp_path: Path) -> None:
    root = plant(tmp_path, hwmon("1-0040", ("VDD_IN", 19_072, 520), ("NC", 5000, 1000), ("VDD_SOC", 5000, 100)))
    found = sensors.read(root)
    assert found.rails_w == {"VDD_IN": 9.917, "VDD_SOC": 0.5}
    assert found.total_rail == "VDD_IN"


def test_a_rail_of_jetpack_4_is_read_as_an_iio_device(tmp_path: Path) -> None:
    root = plant(tmp_path, iio("6-0040", ("POM_5V_IN", 5104, 500), ("NC", 1, 1), ("POM_5V_CPU", 5104, 200)))
    found = sensors.read(root)
    assert (found.rails_w, found.total_rail) == ({"POM_5V_IN": 2.552, "POM_5V_CPU": 1.021}, "POM_5V_IN")


def test_a_rail_that_cannot_be_read_is_null(tmp_path: Path) -> None:
    tree = hwmon("1-0040", ("VDD_IN", 5000, 100), ("VDD_SOC", 5000, 100))
    tree["sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"] = OFF
    assert sensors.read(plant(tmp_path, tree)).rails_w == {"VDD_IN": None, "VDD_SOC": 0.5}


def test_a_board_without_a_total_rail_has_no_total(tmp_path: Path) -> None:
    assert sensors.read(plant(tmp_path, hwmon("1-0040", ("GPU", 19_000, 100)))).total_rail is None


def test_other_devices_on_the_bus_are_no_power_monitors(tmp_path: Path) -> None:
    tree = {name: text.replace("ina3221", "ina219") for name, text in hwmon("1-0040", ("VDD_IN", 5000, 100)).items()}
    assert sensors.read(plant(tmp_path, tree)).rails_w == {}


def test_a_devfreq_device_that_is_no_gpu_is_passed_over(tmp_path: Path) -> None:
    found = {"sys/class/devfreq/bwmgr/cur_freq": "1\n", "sys/class/devfreq/vic/device/of_node/name": "vic\0"}
    assert sensors.read(plant(tmp_path, found)) == Readings()


@pytest.mark.parametrize("name", ["gv11b", "gp10b", "ga10b", "gb10b", "gpu"])
def test_an_integrated_gpu_is_known_by_its_node(name: str, tmp_path: Path) -> None:
    folder = "sys/class/devfreq/17000000.x"
    tree = {f"{folder}/device/of_node/name": f"{name}\0", f"{folder}/device/load": "1000\n"}
    found = sensors.read(plant(tmp_path, tree))
    assert (found.gpu_node, found.gpu_load_percent, found.gpu_hz) == (name, 100.0, None)


@pytest.mark.parametrize(
    ("status", "mode", "name"),
    [
        ("pmode:0002", "0002", "30W"),
        ("pmode:0009", "0009", None),
        ("pmode:0010 fmode:cool\n", "0010", "50W"),
        ("pmode:custom", "custom", None),
        ("", None, None),
    ],
)
def test_a_power_mode_has_its_name_in_the_table(
    status: str, mode: str | None, name: str | None, tmp_path: Path
) -> None:
    tree = {**nvpmodel("0", _0="MAXN", _2="30W", _10="50W"), "var/lib/nvpmodel/status": status}
    found = tegra.read(plant(tmp_path, tree))
    assert (found.power_mode, found.power_mode_name) == (mode, name)


def test_the_release_is_looked_up_in_the_package_list_without_its_own_file(tmp_path: Path) -> None:
    path = "var/lib/dpkg/status"
    package = "Package: {}\nStatus: install ok installed\nVersion: {}\n\n"
    plant(tmp_path, {path: package.format("nvidia-l4t-core-x", "1.0") + package.format("nvidia-l4t-core", "36.4.3-2")})
    assert tegra.read(tmp_path).l4t == "36.4.3"
    (tmp_path / path).write_text(package.format("nvidia-l4t-core", "36.4.7-2"))
    os.utime(tmp_path / path, ns=(1, 1))
    found = tegra.read(tmp_path)
    assert (found.l4t, found.sources["l4t"], found.jetpack) == ("36.4.7", "dpkg", "6.2.1")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.4.3", "6.2"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("38.2.0", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("36.99.0", "6"),
        ("41.0", None),
        (None, None),
    ],
)
def test_a_release_belongs_to_a_jetpack_or_at_least_to_a_family(l4t: str | None, jetpack: str | None) -> None:
    assert hardware.jetpack(l4t) == jetpack


@pytest.mark.parametrize(
    ("compatible", "chip", "bandwidth"),
    [
        ("nvidia,p3768-0000+p3767-0004 nvidia,tegra234", "orin-nano-4gb", 34.0),
        ("nvidia,p3768-0000+p3767-0003 nvidia,tegra234", "orin-nano", 68.0),
        ("nvidia,p3768-0000+p3767-0000 nvidia,tegra234", "orin-nx", 102.4),
        ("nvidia,p3737-0000+p3701-0005 nvidia,tegra234", "agx-orin", 204.8),
        ("somebody,own-carrier nvidia,tegra234", "orin", None),
        ("nvidia,p3509-0000+p3668-0001 nvidia,tegra194", "xavier-nx", 59.7),
        ("nvidia,p2972-0000 nvidia,tegra194", "agx-xavier", 136.5),
        ("nvidia,p2771-0000 nvidia,tegra186", "tx2", 59.7),
        ("nvidia,p2371-2180 nvidia,tegra210", "nano", 25.6),
        ("nvidia,p4071-0000+p3834-0008 nvidia,tegra264", "thor", 273.0),
        ("raspberrypi,5-model-b brcm,bcm2712", None, None),
    ],
)
def test_a_module_is_known_by_its_part_number(compatible: str, chip: str | None, bandwidth: float | None) -> None:
    found = hardware.module(compatible)
    assert (found and found.chip, found and found.bandwidth_gb_s) == (chip, bandwidth)


def test_every_module_in_the_table_shares_its_memory() -> None:
    assert {module.capability for module in hardware.MODULES} <= hardware.SHARED_MEMORY_CAPABILITIES


@pytest.mark.parametrize(("mode", "bandwidth"), [("0001", 68.0), ("0002", 102.0), ("0003", 68.0), (None, 68.0)])
def test_an_orin_nano_s_memory_is_faster_in_the_super_mode(mode: str | None, bandwidth: float, tmp_path: Path) -> None:
    tree = orin()
    changed = {**tree.files, "var/lib/nvpmodel/status": f"pmode:{mode}" if mode else ""}
    assert tegra.read(plant(tmp_path, changed, tree.links)).bandwidth_gb_s == bandwidth


def test_a_sensor_that_hangs_keeps_nobody_waiting(tmp_path: Path) -> None:
    root = plant(tmp_path, {"proc/meminfo": meminfo(1000, 500)})
    look = Look(root, Nvml(absent()), deadline_s=0.02)
    pipe = root / "etc/nv_tegra_release"
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # reading it blocks until somebody writes
    seen = look()
    assert (seen.files_source, seen.board, seen.readings) == ("hung", Board(), Readings())
    call = look._files._call
    assert call is not None
    threading.Thread(target=lambda: pipe.write_text("# R36 (release), REVISION: 4.7,"), daemon=True).start()
    assert call.done.wait(30.0)
    pipe.unlink()
    pipe.write_text("# R36 (release), REVISION: 4.7,")
    look._files._deadline_s = 30.0
    assert look().board.l4t == "36.4.7"


def test_a_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/7/statm": "1000 300 20 1 0 50 0\n", "proc/8/statm": ""})
    assert system.resident_bytes(7, tmp_path) == 300 * os.sysconf("SC_PAGE_SIZE")
    assert system.resident_bytes(8, tmp_path) is None
    assert system.resident_bytes(9, tmp_path) is None


def test_this_very_box_can_be_read() -> None:
    assert (system.resident_bytes() or 0) > 2**20
    assert system.load()["cpus"] >= 1
    assert tegra.read().kernel
    assert isinstance(sensors.read(), Readings)
