"""Processes that may end between two looks at them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """Of a process that has ended it is empty."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def titled(processes: Iterable[psutil.Process], title: str) -> list[psutil.Process]:
    """Those whose title or command line has this in it."""
    return [process for process in processes if any(title in part for part in command_line(process))]


def named(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == name:
                found.append(process)
    return found
