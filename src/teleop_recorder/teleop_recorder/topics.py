"""What is recorded of a topic, as one line of the parameters says it. No ROS in here.

    camera/front/color/image_raw   25 Hz   jpeg
    joint_states                   20 Hz
    action_chunk
    tf_static                      tf2_msgs/msg/TFMessage

The first word is the topic; the rest, in any order: the rate it has to keep, without which it may be silent; how images
are stored; its type, where it shall not be taken from whoever publishes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from teleop_recorder.errors import TopicError

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSIONS = ("raw", "jpeg")

_TOPIC = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
_TYPE = re.compile(r"[a-z]\w*/msg/[A-Z]\w*", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*Hz\b", re.ASCII)


@dataclass(frozen=True)
class TopicSpec:
    """A topic to record."""

    name: str
    required_hz: float | None = None  # None: it may be silent
    compression: str = "raw"
    type: str | None = None  # None: what its publishers say


def parse_topic(line: str) -> TopicSpec:
    """The topic that a line describes. Raises TopicError when it says something else, or something twice."""
    name, *_ = line.split() or [""]
    if not _TOPIC.fullmatch(name):
        raise TopicError(f"{line!r}: {name!r} is not the name of a topic")
    rest = line.strip()[len(name) :]
    rates = _RATE.findall(rest)
    words = _RATE.sub(" ", rest).split()
    compressions = [word for word in words if word in COMPRESSIONS]
    types = [word for word in words if _TYPE.fullmatch(word)]
    for word in words:
        if word not in (*compressions, *types):
            raise TopicError(f"{line!r}: {word!r} is no rate ('25 Hz'), compression (raw, jpeg) or message type")
    for found in (rates, compressions, types):
        if len(found) > 1:
            raise TopicError(f"{line!r}: says both {found[0]} and {found[1]}")
    if rates and float(rates[0]) == 0.0:
        raise TopicError(f"{line!r}: a topic that may be silent has no rate")
    return TopicSpec(
        name,
        float(rates[0]) if rates else None,
        compressions[0] if compressions else "raw",
        types[0] if types else None,
    )
