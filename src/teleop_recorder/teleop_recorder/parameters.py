"""The parameters of the recorder, set in config/recorder.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_ros.parameters import parameter


@dataclass(frozen=True)
class RecorderParameters:
    """See the descriptions."""

    directory: str = parameter("episodes", "of the episodes, created when it is not there; ~ is home")
    topics: tuple[str, ...] = parameter(
        (), "a line for each: topic, then what holds for it: the rate it has to keep ('25 Hz'), raw or jpeg, its type"
    )
    silence_timeout: float = parameter(
        1.0, "s a topic with a rate may be silent; longer, no episode begins and one under way fails", minimum=0.05
    )
    jpeg_quality: int = parameter(90, "of 8 bit images of jpeg topics; deeper ones become PNG", minimum=1, maximum=100)
    disk_reserve: int = parameter(1024, "MiB that are left on the disk; an episode ends before", minimum=16)
    buffer: int = parameter(512, "MiB that may wait for the disk; what does not fit is dropped and counted", minimum=16)
    depth: int = parameter(1000, "messages of each topic that the middleware keeps until they are taken", minimum=1)
