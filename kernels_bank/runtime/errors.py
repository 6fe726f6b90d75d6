"""The errors a job reports as one line: a bad request exits with status 2, a failed run with status 1."""


class BadRequestError(ValueError):
    """Report what is wrong, where, and what to do about it, in one line."""


class ArtefactError(BadRequestError):
    """Report a stored artefact (bank, shards, checkpoint, model) that is missing, damaged or of other origin."""


class DamagedError(ArtefactError):
    """Report a file whose content is, at a second reading too, not what is known of it."""


class UnavailableError(ArtefactError):
    """Report a stored artefact that cannot be read now, which says nothing about its content."""


class JobFailedError(RuntimeError):
    """Report that the request was right but the run failed; what is kept and how to go on, in one line."""
