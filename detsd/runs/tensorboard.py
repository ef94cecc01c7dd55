"""TensorBoard's event files: scalars, and images as they are."""

import contextlib
import hashlib
import io
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer import record_writer

from detsd.utils.formats import open_picture


def masked_crc32c(data: bytes) -> int:
    """Compute the checksum of a record in C; TensorBoard's own code takes 70 ms for 450 KB."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


record_writer.masked_crc32c = masked_crc32c


def image_tags(names: Sequence[tuple[str, ...]], max_length: int | None = None) -> list[str]:
    """Return a tag for each image: for each tag and step, the page shows only the last image.

    A part is cut after `max_length` characters, and its slashes, which would make groups, become
    bars. Only parts that then have the same text get a digest, so that a resumed run finds its
    tags; equal names are numbered.
    """

    def short(part: str) -> str:
        return part[:max_length].replace("/", "|")

    parts = {(place, part) for name in names for place, part in enumerate(name)}
    same = Counter((place, short(part)) for place, part in parts)

    def text(place: int, part: str) -> str:
        digest = hashlib.sha256(part.encode()).hexdigest()[:6]
        return short(part) + (f" #{digest}" if same[place, short(part)] > 1 else "")

    tags, count = [], Counter()
    for name in names:
        count[name] += 1
        tag = "/".join(text(place, part) for place, part in enumerate(name))
        tags.append(tag if count[name] == 1 else f"{tag} ({count[name]})")
    return tags


class TensorBoard:
    """The writer of a run's event files.

    It writes at once, in the calling thread. The libraries' own writers hand events to a thread,
    which prints a traceback when the disk is full, before it can be reported in a sentence, and
    loses the last two minutes if the process is killed.

    Args:
        purge_step: the step from which on earlier events are hidden: these steps are repeated. The
            first process sets one, too: `det tensorboard` takes the first for a run's beginning.
    """

    _numbers = itertools.count()  # of the files of this process

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names. With microseconds, this is the order
        # in time even if two processes start within a second.
        place = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._file = (folder / f"events.out.tfevents.{place}").open("wb")
        self._records = record_writer.RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()

    def scalars(self, steps: int, metrics: dict[str, float], group: str) -> None:
        """Write metrics as `group/name`."""
        for name, value in metrics.items():
            value = Summary.Value(tag=f"{group}/{name}", simple_value=value)
            self._write(step=steps, summary=Summary(value=[value]))

    def image(self, tag: str, file: bytes, steps: int = 0) -> None:
        """Write a PNG or JPEG file as it is."""
        with open_picture(io.BytesIO(file)) as opened:  # reads only the header
            width, height = opened.size
        image = Summary.Image(
            encoded_image_string=file, width=width, height=height, colorspace=3  # RGB
        )  # fmt: skip
        self._write(step=steps, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """Close the event file; a full disk has been reported by now."""
        with contextlib.suppress(OSError):
            self._file.close()
