"""What can go wrong while a system is brought up or run."""


class BringupError(Exception):
    """Base of this package's errors; the message is meant for the person who typed the command."""


class ConfigurationError(BringupError):
    """An argument, a file or a package is missing or wrong. Nothing was started."""


class DomainBusyError(BringupError):
    """The ROS domain already has a node of ours. Nothing was started."""


class SystemFailure(BringupError):
    """A running system ended or stopped answering; the message names the node and why."""
