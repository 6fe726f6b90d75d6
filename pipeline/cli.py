"""How every job reads its arguments and exits: YAML < environment < command line, one line for a user's error.

Exit status: 0 done, 1 the run failed, 2 the request was bad, 130 ended by SIGINT or SIGTERM, 141 the reader of the
results has closed the pipe, as in `| head -1`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from kernels_bank.runtime import end_request, os_errors, s3, watch
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from kernels_bank.runtime.process import ensure_home
from kernels_bank.runtime.redact import STANDARD_OUTPUT, mask_output, mask_text
from pipeline.config import RunConfig
from pipeline.flags import add_argument, kebab, moved_flag, quoted_places
from pipeline.mistakes import (
    check_given,
    explain,
    explain_unparsed,
    outermost,
    refuse_misplaced,
    refuse_repeated,
    takes_parts,
)
from pipeline.model_config import MOVED, nested
from pipeline.yaml_file import read_yaml

_NO_SETTINGS = ("cache", "local_cluster", "ray_alone")  # variables BLINDSR_... that other parts read

Command_T = TypeVar("Command_T", bound="Command")
Settings_T = TypeVar("Settings_T", bound=BaseModel)


class Command(BaseSettings):
    """Hold the arguments of one job. Environment variables are BLINDSR_<FIELD>, nested as BLINDSR_TRAIN__STEPS."""

    model_config = SettingsConfigDict(
        env_prefix="BLINDSR_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_enforce_required=False,
        nested_model_default_partial_update=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_mistakes(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Refuse empty strings, and booleans in place of numbers."""
        check_given(given, cls)
        return given

    def settings(self, kind: type[Settings_T]) -> Settings_T:
        """Return the part of the arguments that `kind` describes, as one of its instances."""
        return kind.model_validate(self.model_dump(include=set(kind.model_fields)))


def run(command: type[Command_T], job: Callable[[Command_T], None], argv: Sequence[str] | None = None) -> None:
    """Parse the arguments of `command`, call `job` with them, and exit with the right status.

    A `--config FILE` among the arguments names a YAML file of defaults; environment and flags override it. Without
    `argv` the job owns this process and may end it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    mask_output()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    s3.expect_answer_soon()
    ensure_home()
    # At exit, Python would collect garbage among half a million objects and free them: a second of CPU time.
    atexit.register(gc.freeze)
    status = _run(command, job, arguments)
    if argv is None and status != 130:  # the interrupt has been handled
        _let_end(status)
    if watch.death():  # Ray's clean-up at exit would wait for the dead process
        watch.leave_at_once(status)
    if status:
        sys.exit(status)


def _run(command: type[Command_T], job: Callable[[Command_T], None], arguments: Sequence[str]) -> int:
    """Run the job and print why it failed; return the exit status."""
    try:
        with _sigterm_as_interrupt():
            job(parse(command, arguments))
    except BadRequestError as error:
        return _say(str(error), status=2)
    except JobFailedError as error:
        return _say(str(error), status=1)
    except KeyboardInterrupt as error:
        print(mask_text(str(error)) or "interrupted; what is finished is kept", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and error.filename == STANDARD_OUTPUT:
            return 128 + signal.SIGPIPE  # as for a program that does not handle this signal: no message is needed
        if (line := watch.explain(error) or os_errors.explain(error)) is None:
            raise
        return _say(line, status=1)
    return 0


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Make SIGTERM end the job in the block as Ctrl-C does: an orderly exit that keeps finished results."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set signal handlers
        return
    interrupt = end_request.handler(_interrupt, _leave_at_once)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _let_end(130, asked=True)
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, before)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _leave_at_once() -> None:
    watch.leave_at_once(130)


def _let_end(status: int, *, asked: bool = False) -> None:
    """Let the process exit in an orderly way, which takes seconds with Ray. Only a second signal cuts this short.

    Args:
        status: the exit status.
        asked: whether a signal has already requested the exit.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread can set signal handlers
    hurry = end_request.handler(lambda: None, lambda: watch.leave_at_once(status))
    if asked:
        hurry(signal.SIGTERM, None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hurry)


def parse(command: type[Command_T], arguments: Sequence[str]) -> Command_T:
    """Parse and validate the arguments. Raises BadRequestError, which names every invalid field by its path."""
    flags = quoted_places([kebab(argument) for argument in arguments])
    config = _config_file(command, flags)
    for before, flag in itertools.pairwise(["", *flags]):
        name, _, value = flag.partition("=") if flag.startswith("--") else (before, "", flag)
        refuse_repeated(value, name)
    if issubclass(command, RunConfig):
        flags = [moved_flag(flag) for flag in flags]
        config = _moved(config, "the config file")
    refuse_misplaced(config, command, "the config file")

    class WithSources(command):  # type: ignore[valid-type, misc]
        """Put the YAML file of `command` below the environment."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                CliSettingsSource(
                    settings_cls,
                    cli_parse_args=flags,
                    cli_prog_name=Path(sys.argv[0]).name,
                    add_argument_method=add_argument,
                ),
                _Environment(settings_cls, env_settings),
                InitSettingsSource(settings_cls, init_kwargs=config),
            )

    WithSources.__name__, WithSources.__doc__ = command.__name__, command.__doc__
    try:
        return WithSources()
    except ValidationError as error:
        raise BadRequestError(explain(error)) from error
    except SettingsError as error:
        raise BadRequestError(explain_unparsed(error)) from error
    except RecursionError as error:
        raise BadRequestError("a setting is nested too deeply; see --help") from error


class _Environment(PydanticBaseSettingsSource):
    """Read the environment, in which a network's settings may still have their former names."""

    def __init__(self, settings_cls: type[BaseSettings], variables: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Look up one field as pydantic's source for the environment does."""
        return self._variables.get_field_value(field, field_name)

    def __call__(self) -> dict[str, Any]:
        """Return all that the environment sets."""
        ours = sorted(name for name in os.environ if outermost(name))
        for name in ours:
            refuse_repeated(os.environ[name], name)
        if twice := [
            f"{one} and {other}" for one, other in itertools.combinations(ours, 2) if one.lower() == other.lower()
        ]:
            raise BadRequestError(f"the environment's {twice[0]} are one setting, given more than once")
        settings = self._variables()
        if unknown := [name for name in ours if not self._is_known(name)]:
            print(f"{', '.join(unknown)}: no settings of this job, without effect", file=sys.stderr, flush=True)
        if issubclass(self.settings_cls, RunConfig):
            settings = _moved(settings, "the environment")
        refuse_misplaced(settings, self.settings_cls, "the environment")
        return settings

    def _is_known(self, variable: str) -> bool:
        """Tell whether a variable has an effect on this job, or is for another part of the program."""
        field = self.settings_cls.model_fields.get(outermost(variable))
        if field is None or outermost(variable) == "config":  # only a flag names the file
            return outermost(variable) in _NO_SETTINGS
        is_part = "__" in variable.lower().removeprefix("blindsr_")
        return not is_part or takes_parts(field.annotation)


def _moved(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Move the network's settings to their present place; print in one line which had their former names."""
    model = settings.get("model")
    if not isinstance(model, Mapping):
        return settings
    try:
        inner, names = nested(model)
    except ValueError as error:
        raise BadRequestError(f"{where}: {error}") from error
    if names:
        moves = ", ".join(f"model.{name} is now model.{MOVED[name]}" for name in names)
        print(f"{where}: {moves}", file=sys.stderr, flush=True)
    return settings | {"model": inner}


def _config_file(command: type[Command], arguments: Sequence[str]) -> dict[str, object]:
    """Return the mapping in the file after `--config`; an empty one without that flag, or if the job has none."""
    path = None
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            path = arguments[position + 1]
        elif argument.startswith("--config="):
            path = argument.partition("=")[2]
    if path is None or "config" not in command.model_fields:
        return {}
    content = read_yaml(path, f"--config {path}")
    if "config" in content:
        raise BadRequestError(f"--config {path}: 'config' would name another file, which is not read; use one file")
    for name in content:
        # pydantic-settings takes names in any case, and of `seed` and `Seed` the first.
        if name not in command.model_fields and (known := name.lower()) in command.model_fields:
            raise BadRequestError(f"--config {path}: {name}: unknown setting; write it as {known}")
    return content


def _say(message: str, status: int) -> int:
    print(f"error: {' '.join(mask_text(message).split())}", file=sys.stderr, flush=True)
    return status
