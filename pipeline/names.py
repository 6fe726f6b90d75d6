"""Checks of names for MLflow: names that its stores would refuse are refused before anything is computed.

The rules are MLflow's (a test compares them). This program adds some, since a name must also fit into a model's URI,
the name of a model's lock, and a database column. Importing this module does not import mlflow.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated

from pydantic import AfterValidator

LEASE = ".promotion"  # suffix of the entry that serves as a model's lock
_LONGEST = 200  # MLflow's columns take 256; the lock's name and a tag's prefix go there too


def check_model_name(name: str) -> str:
    """Return `name` if it is valid for a registered model. Raises ValueError."""
    _check_text("model name", name)
    if wrong := sorted(set("/:@") & set(name)):
        raise ValueError(f"model name '{name}': it cannot hold '{wrong[0]}', which ends a name in a model's URI")
    if posixpath.normpath(name) != name or name in (".", ".."):
        raise ValueError(f"model name '{name}': it would be read as a path; choose another")
    if name.endswith(LEASE):
        raise ValueError(f"model name '{name}': names that end in {LEASE} are those of locks; choose another")
    return name


def check_alias(alias: str) -> str:
    """Return `alias` if it is valid for a model version. Raises ValueError."""
    if not re.fullmatch(rf"[\w-]{{1,{_LONGEST}}}", alias) or re.fullmatch(r"latest|v\d+", alias, re.I):
        raise ValueError(
            f"alias '{alias}': use 1 to {_LONGEST} letters, digits, - and _, but neither 'latest' nor 'v1', 'v2', ..."
        )
    return alias


def check_experiment(name: str) -> str:
    """Return `name` if it is valid for an experiment. Raises ValueError."""
    _check_text("experiment", name)
    return name


def _check_text(what: str, name: str) -> None:
    if not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"{what} {name!r}: it cannot be empty, begin or end with a blank, or hold control characters")
    if len(name) > _LONGEST:
        raise ValueError(f"{what} '{name[:40]}...': {len(name)} characters are too many; use at most {_LONGEST}")


ModelName = Annotated[str, AfterValidator(check_model_name)]
Alias = Annotated[str, AfterValidator(check_alias)]
Experiment = Annotated[str, AfterValidator(check_experiment)]
