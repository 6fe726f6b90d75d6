"""A user's YAML file: settings of a job, or a protocol."""

from __future__ import annotations

import re
from typing import Any

import yaml

from kernels_bank.runtime.errors import BadRequestError

_MOST_BYTES = 1 << 20  # far more than settings need; reading a device would never end
_MOST_VALUES = 100_000  # a few aliases of aliases stand for billions

_OCTAL = re.compile(r"[-+]?0[0-9_]+")


class _Loader(yaml.SafeLoader):
    """Read what the safe loader reads, but refuse repeated keys and numbers with surprising meanings in YAML."""

    def plain_number(self, node: yaml.ScalarNode) -> int | float:
        """Return a number. Raises BadRequestError for 010, which is 8 in YAML, and 1:30, which is 90."""
        kind = node.tag.rpartition(":")[2]
        value: int | float = self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)
        if ":" in node.value or (kind == "int" and _OCTAL.fullmatch(node.value)):
            line = node.start_mark.line + 1
            raise BadRequestError(f"'{node.value[:100]}' in line {line} would be read as {value}; write it in decimal")
        return value

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - a name, no mapping as the stubs say
        """Return a mapping. Raises BadRequestError for a repeated key; overriding a merged key is allowed."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:  # 2 and "2" are the same setting
                    line = key.start_mark.line + 1
                    raise BadRequestError(f"'{key.value[:100]}' is given more than once, again in line {line}")
                seen.add(key.value)
        return node


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.plain_number)


def read_yaml(path: str, what: str) -> dict[str, object]:
    """Read the mapping in a file.

    Args:
        path: path of the file, which may be a pipe.
        what: start of an error message, such as `--config run.yaml`.

    Raises:
        BadRequestError: the file cannot be read, is too large, not UTF-8, not YAML, not a mapping of names, or gives a
            setting more than once.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the name may not be valid text
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BadRequestError(f"{what}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise BadRequestError(f"{what}: larger than {_MOST_BYTES} bytes; this is no file of settings")
    try:
        content = yaml.load(data.decode(), _Loader)
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{what}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except BadRequestError as error:
        raise BadRequestError(f"{what}: {error}") from error
    except RecursionError as error:
        raise BadRequestError(f"{what}: not YAML (nested too deeply)") from error
    except Exception as error:  # an impossible date, for instance, is a ValueError
        raise BadRequestError(f"{what}: not YAML ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(content, dict):
        raise BadRequestError(f"{what}: a mapping of settings is expected, got {type(content).__name__}")
    if _is_huge(content):
        raise BadRequestError(f"{what}: more than {_MOST_VALUES} values; this is no file of settings")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise BadRequestError(f"{what}: '{odd[0]}' is no name of a setting; put it in quotes if it is meant as one")
    return content


def _is_huge(content: object) -> bool:
    """Return whether there are too many values; values repeated by aliases count each time."""
    left, seen = [content], 1
    while left and seen <= _MOST_VALUES:
        value = left.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        seen += len(inner)
        left += inner
    return seen > _MOST_VALUES
