"""The errors a job reports as one line: a bad request exits with status 2, a failed run with status 1."""


class BadRequestError(ValueError):
    """What is wrong, where, and what to do about it, in one line."""


class ArtefactError(BadRequestError):
    """A stored artefact (bank, shards, checkpoint, model) is missing, damaged or made from something else."""


class DamagedError(ArtefactError):
    """A file whose content is, at a second reading too, not what is known of it."""


class UnavailableError(ArtefactError):
    """A stored artefact cannot be read now, which says nothing about its content."""


class JobFailedError(RuntimeError):
    """The request was right but the run failed; what is kept and how to go on, in one line."""
