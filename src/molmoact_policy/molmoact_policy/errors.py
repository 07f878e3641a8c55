"""What can go wrong between a checkpoint directory and an action, by name."""


class PolicyError(ValueError):
    """Base of every error this package raises on purpose."""


class CheckpointError(PolicyError):
    """A checkpoint that cannot be used: a missing file, a tensor too many, statistics that do not fit."""


class ObservationError(PolicyError):
    """Images, instruction or trace that must not reach the model."""


class EmbodimentError(PolicyError):
    """An embodiment file whose entry is missing, incomplete or wrong."""


class ReplyError(PolicyError):
    """A reply from which no action may be taken.

    `text` is the whole reply; `depth_codes` (list of int, or None) and `trace` (list of (x, y), or None) are the parts
    that did parse, so that a caller can still show what the model was thinking.
    """

    def __init__(
        self,
        reason: str,
        text: str = "",
        depth_codes: list[int] | None = None,
        trace: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(reason)
        self.text = text
        self.depth_codes = depth_codes
        self.trace = trace


class Interrupted(PolicyError):
    """A reply that was not finished because it is no longer wanted."""
