"""Everything that can go wrong in the simulator on purpose."""


class FrankaSimError(Exception):
    """Base of the simulator's own errors."""


class ConfigurationError(FrankaSimError):
    """A scene file, or an argument built from one, is wrong; the message names the file and the key."""


class TaskError(FrankaSimError):
    """A task was asked for that the scene does not offer."""
