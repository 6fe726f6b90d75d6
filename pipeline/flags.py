"""How the flags of jobs are spelled: each once, kebab case, some with former names."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pipeline.model_config import MOVED

_PLACES = ("--source", "--data.shards")  # flags that take several places


class _StoreOnce(argparse.Action):
    """Keep the value of a flag, which must not be given again."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Keep the value. Raises argparse.ArgumentError when there is one."""
        if option and hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, "given more than once")
        setattr(namespace, self.dest, values)


class _SwitchOnce(argparse.BooleanOptionalAction):
    """Switch something on or off, as `--gpu` and `--no-gpu` do, of which only one can be given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Keep the choice. Raises argparse.ArgumentError when there is one."""
        if hasattr(namespace, self.dest):
            raise argparse.ArgumentError(self, "given more than once")
        super().__call__(parser, namespace, None, option)  # a switch has no value


def add_argument(group: argparse.ArgumentParser, *names: str, **settings: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
    """Add an argument; only those that collect several values, whose action is `append`, may be given again."""
    once = {None: _StoreOnce, argparse.BooleanOptionalAction: _SwitchOnce}
    action = settings.pop("action", None)
    return group.add_argument(*names, action=once.get(action, action), **settings)


def quoted_places(flags: list[str]) -> list[str]:
    """Return flags with what follows those that take several places quoted, so that a name with a comma stays one."""
    quoted: list[str] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if equals and name in _PLACES:
            quoted.append(f"{name}={_quoted(value)}")
        else:
            quoted.append(_quoted(flag) if quoted and quoted[-1] in _PLACES else flag)
    return quoted


def _quoted(value: str) -> str:
    """A place as a JSON text; a JSON list or object as it is."""
    try:
        return value if isinstance(json.loads(value), (list, dict)) else json.dumps(value)
    except ValueError:
        return json.dumps(value)


def moved_flag(flag: str) -> str:
    """Return `--model.kernel-steps=6` or `--no-model.detach` as it is spelled now, and say so in a line."""
    name, equals, value = flag.partition("=")
    for start in ("--model.", "--no-model."):
        former = name.removeprefix(start).replace("-", "_")
        if name.startswith(start) and former in MOVED:
            now = start + MOVED[former].replace("_", "-")
            print(f"{name} is now {now}", file=sys.stderr, flush=True)
            return now + equals + value
    return flag


def kebab(argument: str) -> str:
    """Return a flag as it is spelled, --shard-mib, where it is given in the config files' spelling, --shard_mib."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value
