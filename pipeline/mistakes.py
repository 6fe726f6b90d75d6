"""Error messages for the settings of a job: one line that says what is wrong and where."""

from __future__ import annotations

import itertools
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from kernels_bank.runtime.errors import BadRequestError

_MOST_MISTAKES = 10  # at most so many are named in one line
_MOST_CHARACTERS = 500  # for each of them
_LONG_INTEGER = 2**1000  # Python refuses to convert integers of more than 4300 digits to text


class _Short(reprlib.Repr):
    """Write values in few characters, including integers of any length."""

    def repr_int(self, x: int, level: int) -> str:
        """Write an integer; for a long one only its length."""
        return super().repr_int(x, level) if abs(x) < _LONG_INTEGER else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()
_SHORT.maxstring = 200


def check_given(given: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Refuse values that pydantic would misread.

    An empty string usually comes from an unset shell variable. It is accepted where it is the default.

    Args:
        given: settings before validation.
        model: class that they are meant for.

    Raises:
        ValueError: an empty string, or a boolean in place of a number.
    """
    defaults = {name: field.default for name, field in model.model_fields.items()}
    if where := next(_empty(given, defaults), None):
        raise ValueError(f"{where}: is empty; give it a value or leave it out")
    if where := next(_truths(given, model), None):
        raise ValueError(f"{where.rstrip('.')}: a number is expected, got a truth value")


def _empty(given: object, default: object) -> Iterator[str]:
    """Yield the paths of the empty strings in settings, except those that are empty by default."""
    match given:
        case "" if default != "":
            yield ""
        case dict():
            for name, value in given.items():
                usual = default.get(name) if isinstance(default, dict) else getattr(default, str(name), None)
                yield from (f"{name}.{inner}".rstrip(".") for inner in _empty(value, usual))
        case list() | tuple():
            for value in given:
                yield from _empty(value, None)


def _truths(given: object, annotation: object) -> Iterator[str]:
    """Yield the paths of `yes` and `no` in place of numbers, which pydantic reads as 1 and 0; each ends with a dot."""
    kinds = list(_kinds(annotation))
    if isinstance(given, bool) and bool not in kinds and (int in kinds or float in kinds):
        yield ""
    for kind in kinds:
        for name, value, inner in _inside(given, kind):
            yield from (f"{name}.{path}" for path in _truths(value, inner))


def _inside(given: object, kind: Any) -> Iterator[tuple[str, object, object]]:  # noqa: ANN401 - of an annotation
    """Yield the name, value and annotation of every member of a value of this type."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(given, dict):
        if origin is dict:
            yield from ((str(name), name, inner[0]) for name in given)
            yield from ((str(name), value, inner[1]) for name, value in given.items())
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields
            yield from ((name, value, fields[name].annotation) for name, value in given.items() if name in fields)
    elif isinstance(given, (list, tuple)) and origin in (list, tuple):
        each = itertools.repeat(inner[0]) if inner[-1] is Ellipsis or origin is list else inner
        yield from ((str(place), value, of) for place, (value, of) in enumerate(zip(given, each, strict=False)))


def _kinds(annotation: object) -> Iterator[object]:
    """Yield the types of an annotation such as `int | None`, except those of the items of a list or a mapping."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def refuse_misplaced(given: Mapping[str, Any], model: type[BaseModel], where: str) -> None:
    """Check that what has settings of its own is given as a mapping; another source's mapping would replace it.

    Args:
        given: settings of one source.
        model: class that they are meant for.
        where: name of the source.

    Raises:
        BadRequestError: `train` is a number, for instance.
    """
    for name, value in given.items():
        if name not in model.model_fields or value is None:
            continue
        kinds = list(_kinds(model.model_fields[name].annotation))
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is None:
            continue
        if not isinstance(value, Mapping):
            raise BadRequestError(f"{where}: {name}: a mapping of settings is expected, got {_SHORT.repr(value)}")
        refuse_misplaced(value, part, f"{where}: {name}")


def takes_parts(annotation: object) -> bool:
    """Tell whether a setting of this type has settings of its own, as `train` has `train.steps`."""
    return any(
        get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))
        for kind in _kinds(annotation)
    )


def refuse_repeated(given: str, where: str) -> None:
    """Check that JSON holds no name twice, of which the last would count.

    Args:
        given: the value of a flag or a variable; what is no JSON holds none.
        where: its name.

    Raises:
        BadRequestError: it does.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if twice := [name for name, uses in Counter(name for name, _ in pairs).items() if uses > 1]:
            raise BadRequestError(f"{where}: '{twice[0][:100]}' is given more than once")
        return dict(pairs)

    try:
        json.loads(given, object_pairs_hook=once)
    except BadRequestError:
        raise
    except (ValueError, RecursionError):
        return


def explain(error: ValidationError) -> str:
    """Describe the errors: `train.stepz: unknown setting; train.steps: Input should be greater than 0 (got -1)`."""
    lines = []
    mistakes = error.errors()
    for item in mistakes[:_MOST_MISTAKES]:
        where = ".".join(str(part) for part in item["loc"]) or "config"
        match item["type"]:
            case "extra_forbidden":
                lines.append(f"{where}: unknown setting; see --help for the known ones")
            case "missing":
                lines.append(f"{where}: required; set it in the config file or as --{where}")
            case "value_error":
                said = str(item["ctx"]["error"])
                lines.append(f"{where}: {said}" if item["loc"] else said)
            case _:
                lines.append(f"{where}: {item['msg']} (got {_SHORT.repr(item['input'])})")
    if left_out := len(mistakes) - len(lines):
        lines.append(f"and {left_out} more")
    return "; ".join(line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..." for line in lines)


def explain_unparsed(error: SettingsError) -> str:
    """Return `BLINDSR_SIGMA: is no JSON; write a list as [1, 2]` instead of pydantic's text of class and field."""
    said = re.fullmatch(r'error parsing value for field "(\w+)" from source "(\w+)"', str(error))
    if said is None:
        return f"{str(error).removeprefix('error parsing CLI: ')}; see --help"
    where = f"--{said[1].replace('_', '-')}"
    if said[2] == "EnvSettingsSource":
        names = [name for name in os.environ if outermost(name) == said[1]]
        where = f"the environment's {', '.join(sorted(names))}"
    return f'{where}: is no JSON; write a list as [1, 2], several settings as {{"name": 1}}'


def outermost(variable: str) -> str:
    """Return the top-level setting of a variable, `train` for BLINDSR_TRAIN__STEPS; empty if there is none."""
    name = variable.lower()
    return name.removeprefix("blindsr_").partition("__")[0] if name.startswith("blindsr_") else ""
