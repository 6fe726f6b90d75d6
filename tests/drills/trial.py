"""One try of a drill: commands as processes of its own, what they say, and what must hold at the end."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.drills import jobs
from tests.drills.jobs import Job
from tests.drills.lab import Lab
from tests.drills.report import Try

REPO = Path(__file__).parents[2]
MARK = "DRILL_TRY"  # in the environment of every process of a try
# Lines on standard error that are no news: progress.
_PROGRESS = re.compile(r"^[\w .,-]+: \d+/\d+ \w+ \(")
_KEPT = (
    "ray",
    "_ray_lockfiles",
    "blindsr-ray-",
    "torchinductor_",
    "matplotlib",
)  # what libraries leave in the temporary folder
_FEW = 3  # a fault is a line; what goes on by itself says that too
PATIENCE_S = 480.0  # on a machine that does other things too
_SITTINGS = 4
_ENDING_S = 60.0  # in which the rest of a killed Ray must have noticed


class DrillError(Exception):
    """What a try waited for did not come."""


class MissedError(DrillError):
    """The command was done before its moment came."""


class SkippedError(Exception):
    """Why a drill cannot be tried on this machine."""


class Sitting:
    """One start of a job's command."""

    def __init__(self, job: Job, number: int, folder: Path, variables: dict[str, str]) -> None:
        self.job, self.killed = job, False
        self._out, self._err = (folder / f"{number}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                job.command, cwd=REPO, env=variables, start_new_session=True, stdout=out, stderr=err
            )

    def poll(self) -> int | None:
        """Return the exit status, nothing while it runs."""
        return self.process.poll()

    def wait(self) -> int:
        """Return the exit status. Raises DrillError when it does not end."""
        try:
            return self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise DrillError(f"did not end within {PATIENCE_S:g} s; said: {self.last_line()}") from None

    def said(self) -> list[str]:
        """Return the lines on standard error that are not progress."""
        lines = self._err.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and not _PROGRESS.match(line)]

    def errors(self) -> list[str]:
        """Return the lines that say why the command ended."""
        return [line for line in self.said() if line.startswith("error: ")]

    def traceback(self) -> bool:
        """Whether a traceback was shown."""
        return any("Traceback (most recent call last)" in path.read_text(errors="replace") for path in self.texts())

    def texts(self) -> tuple[Path, Path]:
        """Return the files that hold what it said."""
        return self._out, self._err

    def last_line(self) -> str:
        """Return the last line said, shortened."""
        said = self.said()
        return said[-1][:200] if said else "nothing"


class Trial:
    """A try: a folder, a mark on all its processes, and the problems found so far."""

    def __init__(self, lab: Lab, record: Try, attempt: int = 0) -> None:
        self.lab, self.record = lab, record
        self.random = dice(record, attempt)
        self.folder = Path(tempfile.mkdtemp(prefix="bsd-", dir="/tmp"))  # short: Ray's sockets lie in it
        self.mark = f"{lab.folder.name}/{self.folder.name}"
        self.temporary = self.folder / "t"
        self.temporary.mkdir()
        self.sittings: list[Sitting] = []

    def __enter__(self) -> Trial:
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        kill_all(self.mark)
        for sitting in self.sittings:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sitting.process.wait(timeout=20)
        self.record.seconds = time.monotonic() - self._started
        self.record.starts = len(self.sittings)
        shutil.rmtree(self.folder, ignore_errors=True)

    def problem(self, text: str) -> None:
        """Note what is not as it should be."""
        self.record.problems.append(text)

    def check(self, condition: object, problem: str) -> None:
        """Note a problem unless the condition holds."""
        if not condition:
            self.problem(problem)

    def start(self, job: Job, **variables: str) -> Sitting:
        """Give the job's command once. Raises DrillError when the whole drill is ending."""
        if self.lab.ending:
            raise DrillError("the drill was ended")
        own = jobs.environment(self.temporary, self.lab.cache) | {MARK: self.mark}
        environment = own | job.variables | variables
        sitting = Sitting(job, len(self.sittings), self.folder, environment)
        self.sittings.append(sitting)
        return sitting

    def wait_for(self, condition: Callable[[], object], sitting: Sitting, what: str) -> None:
        """Wait until the condition holds. Raises DrillError when the sitting ends before, or it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if (status := sitting.poll()) is not None:
                if status == 0:
                    raise MissedError(f"it ended well before {what}")
                raise DrillError(f"ended with status {sitting.poll()} before {what}; said: {sitting.last_line()}")
            if time.monotonic() > deadline:
                raise DrillError(f"after {PATIENCE_S:g} s: {what} did not come; said: {sitting.last_line()}")
            time.sleep(0.01)

    def let_end(self, sitting: Sitting) -> int:
        """Wait for a sitting that was not killed itself, judge what it said, return its status."""
        status = sitting.wait()
        self._judge(sitting, status)
        return status

    def finish(self, job: Job, **variables: str) -> None:
        """Give the same command until it ends well, and compare the result with that of an undisturbed run."""
        for _ in range(_SITTINGS):
            sitting = self.start(job, **variables)
            if (status := self.let_end(sitting)) == 0:
                break
            if status == 2:
                self.problem(f"the same command was refused: {sitting.last_line()}")
                break
        else:
            self.problem(f"{_SITTINGS} starts did not end it; said: {sitting.last_line()}")
        self.compare(job)

    def compare_or_finish(self, job: Job, status: int) -> None:
        """Look at the result of a command that ended well; give one that did not the same command again."""
        if status == 0:
            self.compare(job)
        else:
            self.finish(job)

    def compare(self, job: Job) -> None:
        """Look at the result, the tracking run and what is left behind."""
        try:
            found = job.result()
        except Exception as error:  # whatever the product left there
            found = {}
            self.problem(f"no result: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
        expected = self.lab.undisturbed(job.kind)
        self.record.equal = found == expected
        if found and not self.record.equal:
            names = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
            self.problem(f"the result is another: {', '.join(names[:5])}")
        for text in job.recorded():
            self.problem(text)
        self.nothing_left()

    def nothing_left(self) -> None:
        """Note processes and temporary files that outlive the command."""
        deadline = time.monotonic() + _ENDING_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self.problem(f"processes are left: {', '.join(sorted({title(one) for one in left}))}")
        files = sorted(path.name for path in self.temporary.iterdir() if not path.name.startswith(_KEPT))
        if files:
            self.problem(f"temporary files are left: {', '.join(files[:5])}")

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of this try, whoever is their parent by now."""
        return marked(self.mark)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Turn a wait that failed into a problem, so that what comes after is still looked at."""
        try:
            yield
        except DrillError as error:
            self.problem(str(error))

    def signal_group(self, sitting: Sitting, number: signal.Signals) -> None:
        """Send a signal to the command's process group, as `timeout`, systemd and Slurm do."""
        os.killpg(sitting.process.pid, number)

    def _judge(self, sitting: Sitting, status: int) -> None:
        deadline = time.monotonic() + 5.0
        while status not in (0, 130) and not sitting.errors() and time.monotonic() < deadline:
            time.sleep(0.1)  # whoever watches over the command may say why it died
        said = sitting.said()
        self.record.lines = max(self.record.lines, len(said))
        self.check(not sitting.traceback(), f"a traceback, {len(said)} lines: {sitting.last_line()}")
        logs = sitting.job.kind == "serving"  # a server's lines are its log
        self.check(logs or len(said) <= _FEW, f"{len(said)} lines said, such as: {(said or [''])[0][:120]}")
        if status not in (0, 130):
            self.check(len(sitting.errors()) == 1, f"status {status} with {len(sitting.errors())} error lines")


def marked(mark: str) -> list[psutil.Process]:
    """Return all living processes whose mark begins so."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError, psutil.Error):
            if wanted in entry.read_bytes():
                process = psutil.Process(int(entry.parent.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def kill_all(mark: str) -> None:
    """Kill all processes whose mark begins so."""
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


def dice(record: Try, attempt: int = 0) -> random.Random:
    """Return the generator of a try: it depends on nothing else that is drilled."""
    return random.Random(f"{record.seed} {record.drill} {record.moment} {attempt}")


def title(process: psutil.Process) -> str:
    """Return a process's short name, such as raylet or ray::RayTrainWorker."""
    try:
        command = process.cmdline()
        return Path(command[0]).name.split("(")[0] if command else process.name()
    except psutil.Error:
        return "gone"
