"""What can be wrong with data, a preset or a run, by name. Every message names the thing and what was expected."""


class TrainingError(ValueError):
    """Base of every error this package raises on purpose."""


class DatasetError(TrainingError):
    """A dataset that cannot be annotated, trained or evaluated on."""


class PresetError(TrainingError):
    """A preset or mixture whose field is missing, unknown or out of range."""
