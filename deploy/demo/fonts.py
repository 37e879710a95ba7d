"""The fonts of the demo: which Debian package brings each, its licence, and on which side of the split it stands.

Rules:
- A font of `HELD_OUT` has no relative among the training fonts: neither another weight or style of its family, nor a
  font drawn from the same outlines, nor (stricter than needed) another design of the same foundry. So Klee One keeps
  the other Fontworks designs (RocknRoll, Reggae, Stick) and LXGW WenKai, which was drawn from it, out of training.
- Known relatives may train together (VL Gothic and M+, the weights of Noto): they only weigh their design more.
- Fonts that draw old or cursive forms in place of the taught ones (Oradano, Aoyagi Soseki) teach nothing here.

It reads no font file; `render` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHARE = Path("/usr/share/fonts")
"""Where Debian's policy puts fonts."""


@dataclass(frozen=True)
class Font:
    """One face: its name, Debian package, licence as the package states it, and file below `SHARE`.

    `index` selects the face within a collection (`.ttc`).
    """

    name: str
    package: str
    licence: str
    file: str
    index: int = 0

    @property
    def path(self) -> Path:
        """The font file."""
        return SHARE / self.file


class MissingFontError(RuntimeError):
    """Font files are absent; carries the packages to install."""


_OFL = "SIL OFL 1.1"
_NOTO = "opentype/noto/Noto"

TRAINING: tuple[Font, ...] = (
    Font("Noto Sans CJK JP Regular", "fonts-noto-cjk", _OFL, f"{_NOTO}SansCJK-Regular.ttc"),
    Font("Noto Sans CJK JP Bold", "fonts-noto-cjk", _OFL, f"{_NOTO}SansCJK-Bold.ttc"),
    Font("Noto Serif CJK JP Regular", "fonts-noto-cjk", _OFL, f"{_NOTO}SerifCJK-Regular.ttc"),
    Font("Noto Serif CJK JP Bold", "fonts-noto-cjk", _OFL, f"{_NOTO}SerifCJK-Bold.ttc"),
    Font("IPAex Gothic", "fonts-ipaexfont-gothic", "IPA Font License 1.0", "opentype/ipaexfont-gothic/ipaexg.ttf"),
    Font("IPAex Mincho", "fonts-ipaexfont-mincho", "IPA Font License 1.0", "opentype/ipaexfont-mincho/ipaexm.ttf"),
    Font("VL Gothic", "fonts-vlgothic", "M+, Sazanami, BSD-3-Clause", "truetype/vlgothic/VL-Gothic-Regular.ttf"),
    Font("M PLUS 1 Light", "fonts-mplus", _OFL, "opentype/mplus/Mplus1-Light.otf"),
    Font("M PLUS 1 Black", "fonts-mplus", _OFL, "opentype/mplus/Mplus1-Black.otf"),
    Font(
        "Sawarabi Gothic",
        "fonts-sawarabi-gothic",
        "CC BY 3.0",
        "truetype/sawarabi-gothic/sawarabi-gothic-medium.ttf",
    ),
    Font(
        "Sawarabi Mincho",
        "fonts-sawarabi-mincho",
        "CC BY-SA 3.0 or OFL 1.1",
        "truetype/sawarabi-mincho/sawarabi-mincho-medium.ttf",
    ),
    Font("Hanazono Mincho A", "fonts-hanazono", "Hanazono or OFL 1.1", "truetype/hanazono/HanaMinA.ttf"),
    Font("Ume Gothic", "fonts-horai-umefont", "Ume (free, any use)", "truetype/horai-umefont/ume-tgo4.ttf"),
    Font("Ume Gothic O5", "fonts-horai-umefont", "Ume (free, any use)", "truetype/horai-umefont/ume-tgo5.ttf"),
    Font("Ume Mincho", "fonts-horai-umefont", "Ume (free, any use)", "truetype/horai-umefont/ume-tmo3.ttf"),
    Font("Konatu", "fonts-konatu", "MIT", "truetype/konatu/Konatu.ttf"),
    Font("BIZ UDGothic Regular", "fonts-morisawa-bizud-gothic", _OFL, "truetype/bizud-gothic/BIZUDGothic-Regular.ttf"),
    Font("BIZ UDGothic Bold", "fonts-morisawa-bizud-gothic", _OFL, "truetype/bizud-gothic/BIZUDGothic-Bold.ttf"),
    Font("BIZ UDMincho", "fonts-morisawa-bizud-mincho", _OFL, "truetype/bizud-mincho/BIZUDMincho-Regular.ttf"),
    Font("Motoya L Cedar", "fonts-motoya-l-cedar", "Apache-2.0", "truetype/motoya-l-cedar/MTLc3m.ttf"),
    Font("Motoya L Maruberi", "fonts-motoya-l-maruberi", "Apache-2.0", "truetype/motoya-l-maruberi/MTLmr3m.ttf"),
    Font("SetoFont", "fonts-seto", _OFL, "truetype/seto/setofont.ttf"),
    Font("Kiloji", "fonts-kiloji", "BSD-3-Clause", "truetype/kiloji/kiloji.ttf"),
    Font("Kiloji Bold", "fonts-kiloji", "BSD-3-Clause", "truetype/kiloji/kiloji_b.ttf"),
    Font("YOzFontE Regular", "fonts-yozvox-yozfont-edu", "Expat, OFL 1.1", "truetype/yozvox-yozfont/YOzRE_.ttf"),
    Font("YOzFontE Bold", "fonts-yozvox-yozfont-edu", "Expat, OFL 1.1", "truetype/yozvox-yozfont/YOzBE_.ttf"),
    Font("Aoyagi Kouzan T", "fonts-aoyagi-kouzan-t", "public domain", "truetype/aoyagi-kouzan-t/AoyagiKouzanT.ttf"),
    Font("Kouzan Mouhitsu", "fonts-kouzan-mouhitsu", "public domain", "truetype/kouzan-mouhitsu/kouzan-mouhitsu.ttf"),
    Font(
        "Kouzan Gyousyo",
        "fonts-kouzan-mouhitsu",
        "public domain",
        "truetype/kouzan-mouhitsu/kouzan-mouhitsu-gyosho.ttf",
    ),
    Font("Dejima Mincho", "fonts-dejima-mincho", "MIT", "truetype/dejima-mincho/dejima-mincho-r227.ttf"),
)

HELD_OUT: tuple[Font, ...] = (
    Font("Klee One", "fonts-klee", _OFL, "truetype/klee/KleeOne-Regular.ttf"),
    Font("Yusei Magic", "fonts-yusei-magic", _OFL, "truetype/yusei-magic/YuseiMagic-Regular.ttf"),
)
"""A textbook hand in pencil, and a felt-tip handwriting: two designers, no relative in `TRAINING`."""

FURTHER: tuple[Font, ...] = (
    Font("Stick", "fonts-stick", _OFL, "truetype/stick/Stick-Regular.ttf"),
    Font("RocknRoll One", "fonts-rocknroll", _OFL, "truetype/rocknroll/RocknRollOne-Regular.ttf"),
    Font("Reggae One", "fonts-reggae", _OFL, "truetype/reggae/ReggaeOne-Regular.ttf"),
    Font("Aoyagi Soseki", "fonts-aoyagi-soseki", "public domain", "truetype/aoyagi-soseki/aoyagi-soseki.ttf"),
)
"""Never trained on either; scored for the README only, to show where reading gets hard: the last is a running brush
hand that joins and drops strokes (its author's regular hand, Aoyagi Kouzan T, is in `TRAINING`)."""

ALL = TRAINING + HELD_OUT + FURTHER


def packages() -> list[str]:
    """The Debian packages that bring every font, sorted."""
    return sorted({font.package for font in ALL})


def require_installed() -> None:
    """Refuse to go on with fewer fonts than the tables name.

    Raises:
        MissingFontError: some files are absent; the message holds the command that installs them.
    """
    missing = sorted({font.package for font in ALL if not font.path.is_file()})
    if missing:
        raise MissingFontError(f"{len(missing)} font packages are missing: apt-get install {' '.join(missing)}")
