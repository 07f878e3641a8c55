"""What can go wrong while recording or reading a recording."""


class RecordingError(Exception):
    """A bag could not be written; the message names it, the cause, and what is left of it."""


class EpisodeError(Exception):
    """An episode cannot be read, or must not be changed in this way; the message names it."""


class DefinitionError(Exception):
    """A message type has no definition on this machine."""


class ConfigurationError(Exception):
    """A settings file is not usable; the message names it, the entry, and what was expected."""
