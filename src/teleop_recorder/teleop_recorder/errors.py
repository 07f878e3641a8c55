"""What can go wrong while recording or reading a recording."""


class RecordingError(Exception):
    """A bag could not be written; the message names it, the cause, and what is left of it."""


class DiskFullError(RecordingError):
    """The disk has less space left than is kept in reserve. The bag is still open and can be closed in good order."""


class EpisodeError(Exception):
    """An episode cannot be read, or must not be changed in this way; the message names it."""


class DefinitionError(Exception):
    """A message type has no definition on this machine."""


class TopicError(Exception):
    """A line that describes a topic to record says something that cannot be; the message quotes it."""


class RequestRefused(Exception):
    """What an operator asked for cannot be done now; the message says why."""


class ConfigurationError(Exception):
    """A settings file is not usable; the message names it, the entry, and what was expected."""
