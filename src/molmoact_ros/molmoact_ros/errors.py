"""The errors of the ROS layer. Each message names the thing at fault, what it was and what was expected."""


class ConfigurationError(Exception):
    """A parameter, a file or the graph does not allow the node to run. The message is for the operator."""


class ImageError(ValueError):
    """An image message that cannot be turned into an array, or an array that cannot become a message."""
