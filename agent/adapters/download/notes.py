"""What is remembered beside a partial file, and how much of the file may be gone on with. Pure, save for JSON.

After the death of a process the kernel still holds all that was written; after a power cut only what was synchronised
is sure. So a part is trusted as a whole within one run of the operating system, and up to its last mark after another:
a length that was synchronised, and the digest of the file up to there. The prefix is hashed again before it is trusted.

No address is kept: it may carry a secret, and a presigned one is renewed with another query for the same file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Mark:
    """A prefix that is on the disk for sure."""

    length: int
    sha256: str


@dataclass(frozen=True)
class Notes:
    """What a partial file is a part of.

    Attributes:
        place: digest of the address without query; see `agent.adapters.download.resume.place_of`.
        validator: the entity's, None if it has none.
        boot: the run of the operating system that wrote last, None if unknown.
        mark: what a power cut leaves, None before there is one.
        is_pieced: whether it came in more than one answer.
    """

    place: str
    validator: str | None = None
    boot: str | None = None
    mark: Mark | None = None
    is_pieced: bool = False

    def to_json(self) -> str:
        """Return them as they are kept."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Notes | None:
        """Return the notes in ``text``, None where it holds none."""
        try:
            found = json.loads(text)
            mark = found["mark"]
            read = Notes(
                str(found["place"]),
                found["validator"],
                found["boot"],
                None if mark is None else Mark(int(mark["length"]), str(mark["sha256"])),
                bool(found["is_pieced"]),
            )
        except (ValueError, TypeError, KeyError):
            return None
        return read if isinstance(read.validator, str | None) else None


def trusted_length(notes: Notes | None, place: str, length: int, boot: str | None) -> int:
    """Return how much of a part of ``length`` bytes may be gone on with, if its prefix hashes to what its mark says.

    Args:
        notes: what was kept beside it.
        place: digest of the address that is asked for now.
        length: bytes on the disk.
        boot: this run of the operating system, None if unknown.
    """
    if notes is None or notes.place != place:
        return 0
    if boot is not None and notes.boot == boot:
        return length
    return notes.mark.length if notes.mark is not None and notes.mark.length <= length else 0
