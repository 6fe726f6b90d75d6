"""The errors that a job reports in one line: a bad request exits with status 2, a failed run with status 1."""


class BadRequestError(ValueError):
    """Report in one line what is wrong, where, and what to do about it."""


class ArtefactError(BadRequestError):
    """Report a stored artefact (bank, shards, checkpoint, model) that is missing, damaged or of other origin."""


class DamagedError(ArtefactError):
    """Report a file whose content differs from its known digest, also when read a second time."""


class UnavailableError(ArtefactError):
    """Report a stored artefact that cannot be read now; its content may be intact."""


class JobFailedError(RuntimeError):
    """Report in one line that a valid request failed, with what is kept and how to continue."""
