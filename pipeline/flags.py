"""The spelling of the jobs' flags: kebab case, each at most once, some also under a former name."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pipeline.model_config import MOVED

_PLACES = ("--source", "--data.shards")  # flags that take several places


class _StoreOnce(argparse.Action):
    """Store the value of a flag that may be given only once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Store the value. Raises argparse.ArgumentError if the flag was given before."""
        if option and hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, "given more than once")
        setattr(namespace, self.dest, values)


class _SwitchOnce(argparse.BooleanOptionalAction):
    """Store a switch such as `--gpu` or `--no-gpu`, of which only one may be given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Store the choice. Raises argparse.ArgumentError if the flag was given before."""
        if hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, "given more than once")
        super().__call__(parser, namespace, None, option)  # a switch has no value


def add_argument(group: argparse.ArgumentParser, *names: str, **settings: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
    """Add an argument. Only arguments with the action `append`, which collect several values, may be repeated."""
    once = {None: _StoreOnce, argparse.BooleanOptionalAction: _SwitchOnce}
    action = settings.pop("action", None)
    return group.add_argument(*names, action=once.get(action, action), **settings)


def quoted_places(flags: list[str]) -> list[str]:
    """Return flags with the values of those for several places quoted, so that a name with a comma stays one name."""
    quoted: list[str] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if equals and name in _PLACES:
            quoted.append(f"{name}={_quoted(value)}")
        else:
            quoted.append(_quoted(flag) if quoted and quoted[-1] in _PLACES else flag)
    return quoted


def _quoted(value: str) -> str:
    """Return a place as a JSON string; a JSON list or object is returned unchanged."""
    try:
        return value if isinstance(json.loads(value), (list, dict)) else json.dumps(value)
    except ValueError:
        return json.dumps(value)


def moved_flag(flag: str) -> str:
    """Replace a flag's former name, as in `--model.kernel-steps=6` or `--no-model.detach`; print a line about it."""
    name, equals, value = flag.partition("=")
    for start in ("--model.", "--no-model."):
        former = name.removeprefix(start).replace("-", "_")
        if name.startswith(start) and former in MOVED:
            now = start + MOVED[former].replace("_", "-")
            print(f"{name} is now {now}", file=sys.stderr, flush=True)
            return now + equals + value
    return flag


def kebab(argument: str) -> str:
    """Convert a flag from the spelling of config files, --shard_mib, to that of flags, --shard-mib."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value
