"""Eight kinds of boxes: what their file systems hold and what their NVML says.

Layouts as the kernels of NVIDIA's L4T and of ordinary distributions make them: ``/sys/class`` holds relative links to
the devices, device tree strings end in NUL, a sensor that is off fails when it is read (here: a folder in its place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.fakes.nvml import FakeNvml, absent, memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

GIB = 2**30
OFF = "<off>"
"""Content of a file whose sensor is switched off."""
NAME, CAPABILITY = "nvmlDeviceGetName", "nvmlDeviceGetCudaComputeCapability"
UTILISATION, DRIVER = "nvmlDeviceGetUtilizationRates", "nvmlSystemGetDriverVersion"
TEMPERATURE, POWER = "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage"
MEMORY = "nvmlDeviceGetMemoryInfo"


@dataclass(frozen=True)
class Tree:
    """A box: its files, its links, its NVML."""

    files: Mapping[str, str]
    links: Mapping[str, str]
    nvml: Callable[[], FakeNvml]


def plant(root: Path, files: Mapping[str, str], links: Mapping[str, str] | None = None) -> Path:
    """Write a tree below ``root`` and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if text == OFF else path.write_text(text)
    for name, target in (links or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    return root


def meminfo(total_kib: int, available_kib: int, **more_kib: int) -> str:
    """Return ``/proc/meminfo`` with swap, huge pages that nobody uses, and the lines given."""
    lines = {"MemTotal": total_kib, "MemFree": available_kib // 4, "MemAvailable": available_kib, **more_kib}
    text = "".join(f"{name + ':':<16}{value:>8} kB\n" for name, value in lines.items())
    return f"{text}SwapTotal: 3901204 kB\nSwapFree: 3901204 kB\nHugePages_Total: 64\nHugePages_Free: 64\n"


def thermal(*zones: tuple[str, str]) -> dict[str, str]:
    """Return thermal zones: type, and millidegrees or ``OFF``."""
    found = {}
    for index, (kind, value) in enumerate(zones):
        found[f"sys/class/thermal/thermal_zone{index}/type"] = f"{kind}\n"
        found[f"sys/class/thermal/thermal_zone{index}/temp"] = value if value == OFF else f"{value}\n"
    return found


def hwmon(device: str, *rails: tuple[str, int, int], sums: bool = True) -> dict[str, str]:
    """Return an INA3221 from JetPack 5 on: label, millivolts, milliamperes of channels 1 to 3, and the sum on 7."""
    folder = f"sys/bus/i2c/devices/{device}"
    found = {f"{folder}/name": "ina3221\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        found[f"{folder}/hwmon/hwmon3/in{channel}_label"] = f"{label}\n"
        found[f"{folder}/hwmon/hwmon3/in{channel}_input"] = f"{millivolts}\n"
        found[f"{folder}/hwmon/hwmon3/curr{channel}_input"] = f"{milliamperes}\n"
    if sums:
        found[f"{folder}/hwmon/hwmon3/in7_label"] = "sum of shunt voltages\n"
        found[f"{folder}/hwmon/hwmon3/in7_input"] = "11\n"
        found[f"{folder}/hwmon/hwmon3/curr7_input"] = "99\n"
    return found


def iio(device: str, *rails: tuple[str, int, int]) -> dict[str, str]:
    """Return an INA3221 as JetPack 4 shows it."""
    folder = f"sys/bus/i2c/devices/{device}"
    found = {f"{folder}/name": "ina3221x\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails):
        found[f"{folder}/iio:device0/rail_name_{channel}"] = f"{label}\n"
        found[f"{folder}/iio:device0/in_voltage{channel}_input"] = f"{millivolts}\n"
        found[f"{folder}/iio:device0/in_current{channel}_input"] = f"{milliamperes}\n"
    return found


def nvgpu(node: str, name: str, *, load: int, hz: int, max_hz: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return files and links of an integrated GPU: its device, and devfreq's view of it."""
    device = f"sys/devices/platform/{node}"
    folder = f"{device}/devfreq/{node}"
    files = {
        f"{device}/load": f"{load}\n",
        f"{device}/of_node/name": f"{name}\0",
        f"{folder}/cur_freq": f"{hz}\n",
        f"{folder}/max_freq": f"{max_hz}\n",
    }
    links = {
        f"{folder}/device": f"../../../{node}",
        f"sys/class/devfreq/{node}": f"../../devices/platform/{node}/devfreq/{node}",
    }
    return files, links


def nvpmodel(mode: str, **names: str) -> dict[str, str]:
    """Return the status file and the table: ``_0="MAXN"`` is the mode 0."""
    table = "".join(
        f"< POWER_MODEL ID={number.lstrip('_')} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for number, name in names.items()
    )
    text = f"# FORMAT: < POWER_MODEL ID=id_num NAME=mode_name >\n{table}< PM_CONFIG DEFAULT=0 >\n"
    return {"var/lib/nvpmodel/status": f"pmode:{mode}", "etc/nvpmodel.conf": text}


def board(model: str, *compatible: str, release: str, kernel: str) -> dict[str, str]:
    """Return a Jetson's device tree, L4T release (``R36 4.7``) and kernel."""
    major, _, revision = release.partition(" ")
    words = "".join(f"nvidia,{word}\0" for word in compatible)
    return {
        "sys/firmware/devicetree/base/model": f"{model}\0",
        "sys/firmware/devicetree/base/compatible": words,
        "etc/nv_tegra_release": f"# {major} (release), REVISION: {revision}, GCID: 42132812, BOARD: generic\n",
        "proc/sys/kernel/osrelease": f"{kernel}\n",
        "proc/sys/kernel/random/boot_id": "5f0c\n",
        "proc/self/cgroup": "0::/\n",
    }


def orin() -> Tree:
    """An Orin Nano on JetPack 6: NVML loads and knows a name."""
    files, links = nvgpu("17000000.gpu", "gpu", load=375, hz=612_000_000, max_hz=1_020_000_000)
    words = ("p3768-0000+p3767-0005-super", "p3767-0005", "tegra234")
    return Tree(
        {
            **board(
                "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                *words,
                release="R36 4.7",
                kernel="5.15.148-tegra",
            ),
            **nvpmodel("0002", _0="15W", _1="25W", _2="MAXN_SUPER", _3="MAXN"),
            **thermal(
                ("cpu-thermal", "48250"),
                ("gpu-thermal", "47500"),
                ("cv0-thermal", OFF),
                ("cv1-thermal", OFF),
                ("cv2-thermal", OFF),
                ("soc0-thermal", "46843"),
                ("soc1-thermal", "47218"),
                ("soc2-thermal", "46562"),
                ("tj-thermal", "48250"),
            ),
            **hwmon("1-0040", ("VDD_IN", 5048, 1000), ("VDD_CPU_GPU_CV", 5040, 250), ("VDD_SOC", 5040, 300)),
            "sys/bus/i2c/devices/1-0050/name": "24c02\n",
            "proc/meminfo": meminfo(7_801_856, 4_000_000, NvMapMemFree=0, NvMapMemUsed=500_000),
            **files,
        },
        links,
        lambda: FakeNvml({NAME: b"Orin (nvgpu)", DRIVER: "540.4.0"}, only=(NAME, DRIVER)),
    )


def thor() -> Tree:
    """An AGX Thor on JetPack 7: no load in sysfs; NVML knows the load but not the memory."""
    folder = "sys/devices/platform/bus@0/d0b0000000.pcie/0000:01:00.0/gpu-gpc-0"
    words = ("p4071-0000+p3834-0008", "p3834-0008", "tegra264")
    return Tree(
        {
            **board("NVIDIA Jetson AGX Thor Developer Kit", *words, release="R38 4.0", kernel="6.8.12-1021-tegra"),
            **nvpmodel("0001", _0="MAXN", _1="120W"),
            **thermal(("cpu-thermal", "41000"), ("gpu-thermal", "39500")),
            **hwmon("2-0040", ("VDD_GPU", 12_000, 1500), ("VDD_CPU_SOC_MSS", 12_000, 900), ("NC", 0, 0)),
            "proc/meminfo": meminfo(128_825_804, 110_000_000),
            f"{folder}/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
            f"{folder}/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
        },
        {
            f"{folder}/devfreq/gpu-gpc-0/device": "../../../gpu-gpc-0",
            "sys/class/devfreq/gpu-gpc-0": f"../../../{folder}/devfreq/gpu-gpc-0",
        },
        lambda: FakeNvml(
            {NAME: b"NVIDIA Thor", CAPABILITY: (11, 0), DRIVER: "580.00"}, only=(NAME, CAPABILITY, UTILISATION, DRIVER)
        ),
    )


def xavier() -> Tree:
    """An AGX Xavier on JetPack 5: no NVML; the release is known from the package list only."""
    files, links = nvgpu("17000000.gv11b", "gv11b", load=0, hz=114_750_000, max_hz=1_377_000_000)
    tree = {
        **board("Jetson-AGX", "p2972-0000", "tegra194", release="R35 4.1", kernel="5.10.120-tegra"),
        **nvpmodel("0000", _0="MAXN", _1="MODE_10W", _2="MODE_15W"),
        **thermal(("CPU-therm", "38500"), ("GPU-therm", OFF), ("AUX-therm", "38000")),
        **hwmon("1-0040", ("GPU", 19_072, 40), ("CPU", 19_072, 120), ("SOC", 19_072, 80)),
        **hwmon("1-0041", ("CV", 19_072, 0), ("VDDRQ", 19_072, 20), ("SYS5V", 5032, 400)),
        "proc/meminfo": meminfo(32_000_000, 28_000_000),
        "var/lib/dpkg/status": (
            "Package: zlib1g\nVersion: 1:1.2.11\n\n"
            "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 35.4.1-20230801124926\n"
        ),
        **files,
    }
    del tree["etc/nv_tegra_release"]
    return Tree(tree, links, absent)


def nano() -> Tree:
    """A Nano on JetPack 4: no NVML, kernel 4.9, version 1 control groups, power monitors as iio devices."""
    files, links = nvgpu("57000000.gpu", "gpu", load=998, hz=921_600_000, max_hz=921_600_000)
    words = ("p3449-0000-b00+p3448-0000-b00", "jetson-nano", "tegra210")
    group = "sys/fs/cgroup/memory"
    return Tree(
        {
            **board("NVIDIA Jetson Nano Developer Kit", *words, release="R32 7.4", kernel="4.9.337-tegra"),
            **nvpmodel("0001", _0="MAXN", _1="5W"),
            **thermal(("AO-therm", "43500"), ("CPU-therm", "36000"), ("GPU-therm", "34500"), ("PMIC-Die", "50000")),
            **iio("6-0040", ("POM_5V_IN", 5104, 500), ("POM_5V_GPU", 5104, 100), ("POM_5V_CPU", 5104, 200)),
            "proc/meminfo": meminfo(4_059_376, 2_900_000),
            "proc/self/cgroup": "9:memory:/system.slice/nibbled.service\n1:name=systemd:/system.slice\n",
            f"{group}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/memory.usage_in_bytes": "1000000000\n",
            f"{group}/system.slice/memory.limit_in_bytes": "9223372036854771712\n",
            f"{group}/system.slice/memory.usage_in_bytes": "500000000\n",
            f"{group}/system.slice/nibbled.service/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{group}/system.slice/nibbled.service/memory.usage_in_bytes": f"{GIB}\n",
            f"{group}/system.slice/nibbled.service/memory.stat": f"cache 1\ntotal_inactive_file {GIB // 2}\n",
            **files,
        },
        links,
        absent,
    )


def gb10() -> Tree:
    """A DGX Spark: firmware tables instead of a device tree, an ordinary driver whose memory total is zero."""
    return Tree(
        {
            "sys/class/dmi/id/product_name": "NVIDIA_DGX_Spark\n",
            "sys/class/dmi/id/sys_vendor": "NVIDIA\n",
            "proc/sys/kernel/osrelease": "6.14.0-1015-nvidia\n",
            "proc/self/cgroup": "0::/\n",
            "proc/meminfo": meminfo(125_513_728, 118_000_000),
            **thermal(("acpitz", "42000"), ("acpitz", "43000")),
        },
        {},
        lambda: FakeNvml(
            {
                NAME: b"NVIDIA GB10",
                CAPABILITY: (12, 1),
                MEMORY: memory(0, 0),
                TEMPERATURE: 44,
                POWER: 9_500,
                DRIVER: "580.173.02",
            },
            only=(NAME, CAPABILITY, MEMORY, UTILISATION, TEMPERATURE, POWER, DRIVER),
        ),
    )


def desktop() -> Tree:
    """A desktop with a GeForce."""
    return Tree(
        {
            "sys/class/dmi/id/product_name": "MS-7C56\n",
            "sys/class/dmi/id/sys_vendor": "Micro-Star International Co., Ltd.\n",
            "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice\n",
            "proc/meminfo": meminfo(32_000_000, 20_000_000),
            **thermal(("acpitz", "16800"), ("x86_pkg_temp", "52000")),
        },
        {},
        lambda: FakeNvml(
            {
                NAME: b"NVIDIA GeForce RTX 3090",
                MEMORY: memory(24 * GIB, 22 * GIB),
                "nvmlDeviceGetMaxClockInfo": 9751,
                "nvmlDeviceGetMemoryBusWidth": 384,
            }
        ),
    )


def cloud() -> Tree:
    """A cloud machine, in a container with a memory limit."""
    return Tree(
        {
            "sys/class/dmi/id/product_name": "g6.xlarge\n",
            "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
            "proc/sys/kernel/osrelease": "6.8.0-1016-aws\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
            "proc/meminfo": meminfo(16_000_000, 14_000_000),
        },
        {},
        lambda: FakeNvml(
            {
                NAME: b"NVIDIA L4",
                CAPABILITY: (8, 9),
                MEMORY: memory(23 * GIB, 20 * GIB),
                "nvmlDeviceGetMaxClockInfo": 6251,
                "nvmlDeviceGetMemoryBusWidth": 192,
            }
        ),
    )


def cpu_only() -> Tree:
    """A small server without a GPU."""
    return Tree(
        {
            "sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)\n",
            "sys/class/dmi/id/sys_vendor": "QEMU\n",
            "proc/sys/kernel/osrelease": "6.1.0-25-amd64\n",
            "proc/self/cgroup": "0::/system.slice/nibbled.service\n",
            "sys/fs/cgroup/system.slice/nibbled.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/nibbled.service/memory.high": "max\n",
            "sys/fs/cgroup/system.slice/nibbled.service/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/system.slice/memory.current": f"{3 * GIB}\n",
            "proc/meminfo": meminfo(8_000_000, 6_000_000),
        },
        {},
        absent,
    )


BOXES: dict[str, Callable[[], Tree]] = {
    "orin": orin,
    "thor": thor,
    "xavier": xavier,
    "nano": nano,
    "gb10": gb10,
    "desktop": desktop,
    "cloud": cloud,
    "cpu_only": cpu_only,
}
