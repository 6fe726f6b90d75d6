"""A user's YAML file: settings of a job, or a protocol."""

from __future__ import annotations

import yaml

from kernels_bank.runtime.errors import BadRequestError

_MOST_BYTES = 1 << 20  # far more than settings take; a device would never end


def read_yaml(path: str, what: str) -> dict[str, object]:
    """Read the mapping in a file.

    Args:
        path: of the file; a pipe will do.
        what: begins the text of an error, such as `--config run.yaml`.

    Raises:
        BadRequestError: it cannot be read, is too large, not UTF-8, not YAML, or not a mapping of names.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the name may be no text
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BadRequestError(f"{what}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise BadRequestError(f"{what}: larger than {_MOST_BYTES} bytes; this is no file of settings")
    try:
        content = yaml.safe_load(data.decode())
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{what}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise BadRequestError(f"{what}: not YAML (nested too deeply)") from error
    except Exception as error:  # a date that is none, for one, is a ValueError
        raise BadRequestError(f"{what}: not YAML ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(content, dict):
        raise BadRequestError(f"{what}: a mapping of settings is expected, got {type(content).__name__}")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise BadRequestError(f"{what}: '{odd[0]}' is no name of a setting; put it in quotes if it is meant as one")
    return content
