"""What can go wrong while recording or reading a recording."""


class RecordingError(Exception):
    """A bag could not be written; the message names it, the cause, and what is left of it."""


class DefinitionError(Exception):
    """A message type has no definition on this machine."""
