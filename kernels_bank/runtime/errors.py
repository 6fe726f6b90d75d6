"""Errors that are the user's to fix. Jobs print them as one line and exit with status 2."""


class BadRequestError(ValueError):
    """What is wrong, where, and what to do about it, in one line."""


class ArtefactError(BadRequestError):
    """A stored artefact (bank, shards, checkpoint, model) is missing, damaged or made from something else."""
