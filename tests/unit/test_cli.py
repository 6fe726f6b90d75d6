"""Arguments: YAML < environment < command line; a mistake is one line with the field's path, and exit status 2."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import Field

from jobs import plan
from jobs.plan import Plan
from jobs.serve import Serve
from kernels_bank.runtime import local_ray
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.cli import Command, parse, run
from pipeline.config import RunConfig
from pipeline.yaml_file import read_yaml

REPO = Path(__file__).parents[2]
BILLION_LAUGHS = b"l0: &l0 lol\n" + b"".join(
    b"l%d: &l%d [%s]\n" % (number, number, b", ".join([b"*l%d" % (number - 1)] * 10)) for number in range(1, 10)
)


class Train(Command, RunConfig):
    """A command around the whole tree."""

    config: Path | None = Field(None)


@pytest.fixture
def yaml(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text("name: a\ndata: {shards: s, bank: b}\ntrain: {steps: 5, batch_size: 12}\n")
    return str(file)


def test_command_line_beats_environment_beats_yaml(yaml: str, monkeypatch: pytest.MonkeyPatch):
    assert parse(Train, ["--config", yaml]).train.steps == 5
    monkeypatch.setenv("BLINDSR_TRAIN__STEPS", "6")
    assert parse(Train, ["--config", yaml]).train.steps == 6
    command = parse(Train, ["--config", yaml, "--train.steps", "7"])
    assert (command.train.steps, command.train.batch_size) == (7, 12)


def test_both_spellings_of_a_flag_are_understood(yaml: str):
    assert parse(Train, ["--config", yaml, "--train.batch_size", "4"]).train.batch_size == 4
    assert parse(Train, [f"--config={yaml}", "--train.batch-size=4"]).train.batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.stepz", "3"], r"unrecognized arguments: --train\.stepz 3"),
        (["--train.steps=0"], r"train\.steps: .*greater than or equal to 1 \(got '0'\)"),
        (["--train.steps=many"], r"train\.steps: .*integer"),
        (["--train.workers=5"], "batch_size 12 does not split over 5 workers"),
        (["--model.scales=2,3,2"], r"^model\.scales: 2 is given more than once$"),
        (["--data.patch=97"], "patch 97 is not a multiple of scale 2"),
        (["--model.rounds=6"], "do not fit between 6 unfoldings"),
        (["--data.sigma=0.2,0.1"], "the lower bound comes first"),
        (["--name=../up"], "name: "),
        (["--train.steps=6", "--train.steps", "7"], r"--train\.steps: given more than once; see --help"),
        (["--train.gpu", "--no-train.gpu"], r"train\.gpu: given more than once"),
        (["--train", '{"steps": 6, "steps": 7}'], "^--train: 'steps' is given more than once$"),
        (['--data.shards=[{"uri": "a", "uri": "b"}]'], r"^--data\.shards: 'uri' is given more than once$"),
        ([f"--train.steps={'a' * 1000}"], r"train\.steps: .{100,400}$"),
        ([f"--train.schedule={'a' * 100_000}", f"--name={'b' * 100_000}"], "^name: .{100,1000}$"),
        (["--train.checkpoint-minutes=inf"], r"train\.checkpoint_minutes: .*finite number \(got 'inf'\)"),
        (["--train.learning-rate=nan"], r"train\.learning_rate: "),
        ([f"--seed={2**64}"], r"^seed: an integer beyond 64 bits; at most 9223372036854775807"),
        ([f"--train.steps={10**30}", "--train.gpu"], r"^train\.steps: an integer beyond 64 bits"),
        ([f"--train.halve-at=1,{2**63}", "--train.schedule=halving"], r"^train\.halve_at: an integer beyond 64 bits"),
    ],
)
def test_mistakes_name_the_field(yaml: str, arguments: list[str], message: str):
    with pytest.raises(BadRequestError, match=message):
        parse(Train, ["--config", yaml, *arguments])


def test_unknown_keys_in_the_file_are_errors(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("name: a\ndata: {shards: s, bank: b, blur: 3}\ntrain: {steps: 5}\n")
    with pytest.raises(BadRequestError, match=r"data\.blur: unknown setting"):
        parse(Train, ["--config", str(file)])


@pytest.mark.parametrize("content", ["- a list", "{unclosed", None])
def test_unreadable_config_files(tmp_path: Path, content: str | None):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadRequestError, match="--config"):
        parse(Train, ["--config", str(file)])


@pytest.mark.parametrize(("error", "status"), [(BadRequestError("a\nb"), 2), (JobFailedError("a\nb"), 1)])
def test_errors_are_one_line_with_the_right_status(error, status, yaml, capsys):
    def job(_: Train) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run(Train, job, ["--config", yaml])
    assert stop.value.code == status
    assert capsys.readouterr().err == "error: a b\n"


@pytest.mark.parametrize("config", sorted((REPO / "jobs/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(config: Path):
    assert parse(Train, ["--config", str(config)]).name == config.stem


@pytest.mark.parametrize("job", sorted((REPO / "jobs").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_help_costs_no_heavy_import(job: Path):
    script = (
        "import sys, runpy\n"
        f"sys.argv = [{str(job)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(job)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'ray', 'torch', 'mlflow', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: caf\xe9", "not UTF-8 text \\(byte 9\\)"),
        (b"\xff\xfen\0", "not UTF-8 text"),
        (b"a: \x07", "not YAML"),
        (b"[" * 5000, "nested too deeply"),
        (b"2001-99-99: 1", "month must be in 1..12"),
        (b"a: !!timestamp x", "not YAML"),
        (b"a: !!python/object:os.system {}", "not YAML"),
        (b"1: 2", "'1' is no name of a setting"),
        (b"on: 2", "'True' is no name of a setting"),
        (b"- a", "got list"),
        (b"", "got NoneType"),
        (b"#" * (2 << 20), "larger than"),
        (b"train: {steps: 5, steps: 7}", "'steps' is given more than once, again in line 1"),
        (b"a: 1\nb: 2\n'a': 3", "'a' is given more than once, again in line 3"),
        (b"a: &a {x: &b {<<: {k: 1}, k: 2, k: 3}}\nc: *a", "'k' is given more than once"),
        (b"a: &a [*a]", "more than 100000 values"),
        (b"a: &a [" + b"0," * 90_000 + b"*a]", "more than 100000 values"),  # each turn of it is long
        (BILLION_LAUGHS, "more than 100000 values"),
    ],
)
def test_a_file_that_holds_no_settings_is_one_line(tmp_path: Path, content: bytes, told: str):
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(BadRequestError, match=f"--config .*odd.yaml: .*{told}"):
        parse(Train, ["--config", str(tmp_path / "odd.yaml")])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: 010", "'010' in line 3 would be read as 8"),
        ("steps: 1:30", "'1:30' in line 3 would be read as 90"),
        ("learning_rate: 1:30.5", "would be read as 90.5"),
        ("steps: yes", r"train\.steps: a number is expected, got a truth value"),
        ("micro_batch: no", r"train\.micro_batch: a number is expected"),
        ("schedule: halving, halve_at: [5, 5]", r"train\.halve_at: 5 is given more than once"),
        ("halve_at: [5, yes]", r"train\.halve_at\.1: a number is expected, got a truth value"),
        ("steps: 5}\nmodel: {restorer: {widths: [8, 8, on, 8]}", r"model\.restorer\.widths\.2: a number is expected"),
        ("steps: 5}\nmodel: {scales: [yes, 2]", r"model\.scales\.0: a number is expected"),
        ("steps: 1.0e+30", r"train\.steps: .*integer.* \(got 1e\+30\)"),
        (f"steps: 0x{2**20000:x}", r"train\.steps: an integer beyond 64 bits"),
        (f"ema_decay: 0x{2**20000:x}", r"train\.ema_decay: .* \(got an integer of 20001 bits\)"),
    ],
)
def test_numbers_that_mean_another_are_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "odd.yaml").write_text(f"name: a\ndata: {{shards: s, bank: b}}\ntrain: {{{text}}}\n")
    with pytest.raises(BadRequestError, match=told):
        parse(Train, ["--config", str(tmp_path / "odd.yaml")])


def test_plain_numbers_and_switches_in_a_file_are_taken(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "name: a\nseed: 0\ndata: {shards: s, bank: b}\ntrain: {steps: 1_000, learning_rate: 1.0e-3, gpu: yes}\n"
    )
    command = parse(Train, ["--config", str(tmp_path / "run.yaml")])
    assert (command.seed, command.train.steps, command.train.learning_rate) == (0, 1000, 1e-3)
    assert command.train.gpu


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("BLINDSR_TRAIN", "{steps", r"the environment's BLINDSR_TRAIN: is no JSON; write a list as \[1, 2\]"),
        ("BLINDSR_DATA__SIGMA", "0.1,0.2", "the environment's BLINDSR_DATA__SIGMA: is no JSON"),
        ("BLINDSR_TRAIN", "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_variable_that_is_no_json_is_named(
    yaml: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadRequestError, match=told):
        parse(Train, ["--config", yaml])


def test_a_variable_without_effect_is_told(
    yaml: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BLINDSR_TRIAN__STEPS", "6")
    monkeypatch.setenv("BLINDSR_CACHE", "somewhere")
    monkeypatch.setenv(local_ray._ALONE, "1")  # of a job that a process of another job's Ray starts
    assert parse(Train, ["--config", yaml]).train.steps == 5
    assert capsys.readouterr().err == "BLINDSR_TRIAN__STEPS: no settings of this job, without effect\n"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"BLINDSR_TRAIN": '{"steps": 6, "steps": 7}'}, "BLINDSR_TRAIN: 'steps' is given more than once"),
        (
            {"BLINDSR_TRAIN__STEPS": "6", "blindsr_train__steps": "7"},
            "the environment's BLINDSR_TRAIN__STEPS and blindsr_train__steps are one setting, given more than once",
        ),
    ],
)
def test_a_variable_that_sets_something_twice_is_refused(yaml, monkeypatch, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadRequestError, match=f"^{told}$"):
        parse(Train, ["--config", yaml])


@pytest.mark.parametrize(
    ("text", "flags", "told"),
    [
        ("Train: {steps: 5}", ["--train.steps=6"], "run.yaml: Train: unknown setting; write it as train"),
        ("seed: 1\nSeed: 2\ntrain: {steps: 5}", [], "run.yaml: Seed: unknown setting; write it as seed"),
        ("train: 3", ["--train.steps=6"], "the config file: train: a mapping of settings is expected, got 3"),
        (
            "train: {steps: 5, loss: [1]}",
            ["--train.loss.code=1"],
            "the config file: train: loss: a mapping of settings is expected",
        ),
        ("train: {steps: 5}\nconfig: base.yaml", [], "run.yaml: 'config' would name another file, which is not read"),
    ],
)
def test_no_part_of_a_file_is_dropped_in_silence(tmp_path, text, flags, told):
    (tmp_path / "run.yaml").write_text(f"name: a\ndata: {{shards: s, bank: b}}\n{text}\n")
    with pytest.raises(BadRequestError, match=told):
        parse(Train, ["--config", str(tmp_path / "run.yaml"), *flags])


def test_a_variable_that_is_no_mapping_does_not_give_way_to_a_flag(yaml, monkeypatch):
    monkeypatch.setenv("BLINDSR_TRAIN", "[6]")
    with pytest.raises(BadRequestError, match="the environment: train: a mapping of settings is expected"):
        parse(Train, ["--config", yaml, "--train.steps=7"])


def test_the_file_of_settings_is_named_by_a_flag_alone(yaml, monkeypatch, capsys):
    monkeypatch.setenv("BLINDSR_CONFIG", "other.yaml")
    assert parse(Train, ["--config", yaml]).train.steps == 5
    assert capsys.readouterr().err == "BLINDSR_CONFIG: no settings of this job, without effect\n"


def test_a_variable_below_a_setting_without_parts_is_told(yaml, monkeypatch, capsys):
    monkeypatch.setenv("BLINDSR_NAME__X", "3")
    assert parse(Train, ["--config", yaml]).name == "a"
    assert capsys.readouterr().err == "BLINDSR_NAME__X: no settings of this job, without effect\n"


def test_a_plan_of_all_shipped_configs_tells_a_variable_once(monkeypatch, capsys):
    monkeypatch.setenv("BLINDSR_FOO", "3")
    monkeypatch.setattr("pipeline.training.planning.table.plan_table", lambda configs, *_, **__: len(configs))
    monkeypatch.setattr(sys, "argv", ["plan.py"])
    run(Plan, plan.main, [])
    told = capsys.readouterr()
    assert int(told.out) == len(list((REPO / "jobs/configs").glob("*.yaml")))
    assert told.err == "BLINDSR_FOO: no settings of this job, without effect\n"


def test_a_file_may_merge_what_it_then_sets_itself(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("a: {b: &b {<<: {k: 1}, k: 2}}\nc: {<<: *b}\nd: {<<: *b, k: 3}\n")
    content = read_yaml(str(file), "a file")
    assert content == {"a": {"b": {"k": 2}}, "c": {"k": 2}, "d": {"k": 3}}


@pytest.mark.parametrize(
    ("job", "arguments", "field"),
    [
        ("restore", ["--input=a.png", "--output=o", "--kernel", ""], "kernel"),
        ("restore", ["--input", "", "--output=o"], "input"),
        ("restore", ["--input=a.png", "--output="], "output"),
        ("shard_images", ["--source", "", "--output=o"], "source"),
        ("shard_images", ["--source=a", "--source=", "--output=o"], "source"),
        ("shard_images", ["--download=div2k-valid", "--downloads", "", "--output=o"], "downloads"),
        ("registry", ["export", "m@a", "--output", ""], r"export\.output"),
        ("plan", ["--train.start-from", "", "--config=run.yaml"], r"train\.start_from"),
        ("train", ["--config=run.yaml", "--data.bank="], r"data\.bank"),
        ("train", ["--config=empty.yaml"], r"data\.shards\.uri"),
    ],
)
def test_empty_texts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, arguments: list[str], field: str
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("name: a\ndata: {shards: s, bank: b}\ntrain: {steps: 5}\n")
    Path("empty.yaml").write_text("name: a\ndata: {shards: [s, {uri: ''}], bank: b}\ntrain: {steps: 5}\n")
    command = getattr(importlib.import_module(f"jobs.{job}"), job.title().replace("_", ""))
    with pytest.raises(BadRequestError, match=f"^{field}: is empty; give it a value or leave it out$"):
        parse(command, arguments)


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("shard_images", ["--downloads", "s3://b/c", "--output=o"]),
        ("registry", ["export", "a/1", "--output", "s3://b/c"]),
    ],
)
def test_a_folder_of_this_machine_is_not_made_under_the_name_of_a_uri(job: str, arguments: list[str]):
    command = getattr(importlib.import_module(f"jobs.{job}"), job.title().replace("_", ""))
    with pytest.raises(BadRequestError, match=r"s3://b/c: a folder of this machine is expected$"):
        parse(command, arguments)


def test_a_name_that_is_a_number_is_an_unknown_setting(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("name: a\ndata: {1: 2}\ntrain: {steps: 5}\n")
    with pytest.raises(BadRequestError, match=r"data\.1: Keys should be strings \(got 1\)$"):
        parse(Train, ["--config", str(tmp_path / "run.yaml")])


def test_what_is_empty_by_default_may_be_given_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLINDSR_TRUSTED_PROXIES", "")
    assert parse(Serve, []).trusted_proxies == ""
    assert parse(Plan, ["--data.patch=48"]).data.bank == ""


def test_flags_of_several_values_may_be_given_again():
    class Several(Command):
        """Take several values."""

        source: str | tuple[str, ...] = ()
        scales: tuple[int, ...] = ()
        shares: dict[str, float] | None = None

    given = parse(Several, ["--source", "a", "--source", "b", "--scales=2", "--scales=3", "--shares", "x=1"])
    assert (given.source, given.scales, given.shares) == (("a", "b"), (2, 3), {"x": 1})


def test_many_mistakes_are_a_short_line(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("\n".join(f"setting{number}: 1" for number in range(1000)))
    with pytest.raises(BadRequestError, match=r"and 99\d more$") as told:
        parse(Train, ["--config", str(file)])
    assert len(str(told.value)) < 1000


def test_a_device_is_not_read_for_ever():
    with pytest.raises(BadRequestError, match="/dev/zero: larger than"):
        parse(Train, ["--config", "/dev/zero"])


@pytest.mark.parametrize("before", [None, ""])
def test_a_user_without_a_home_has_that_of_containers(monkeypatch: pytest.MonkeyPatch, before: str | None):
    """MLflow, for one, cannot be imported where the home directory is not known."""
    monkeypatch.setenv("HOME", before or "")
    if before is None:
        monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 3_000_000_000)
    homes: list[Path] = []
    run(Command, lambda _command: homes.append(Path.home()), [])
    assert homes == [Path("/")]


def test_results_that_nobody_reads_end_a_job_without_a_line():
    script = "from pipeline.cli import Command, run\nrun(Command, lambda _: print('x' * 100_000))"
    assert ended_with_closed_pipe("-c", script) == (141, b"")
    assert ended_with_closed_pipe("-m", "jobs", "--help") == (-signal.SIGPIPE, b"")


def ended_with_closed_pipe(*arguments: str) -> tuple[int, bytes]:
    """Run Python with a standard output that nobody reads; return its exit status and standard error."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=REPO, stdout=writes, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writes)
    return done.returncode, done.stderr


def test_what_a_job_leaves_is_not_taken_apart_at_its_end(monkeypatch: pytest.MonkeyPatch):
    called: list[object] = []
    monkeypatch.setattr(atexit, "register", called.append)
    run(Command, lambda _command: called.append("job"), [])
    assert called == [gc.freeze, "job"]  # before all that the job registers, so that it is called after them


@pytest.mark.parametrize(("ending", "status"), [("", 0), ("raise JobFailedError('it failed')", 1)])
@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=["once", "twice"])
def test_a_signal_after_the_job_changes_no_status(ending: str, status: int, signals: tuple[signal.Signals, ...]):
    """A process that has ended its Ray, or is about to, is in Python's clean-up; the signal comes into it.

    Only a second signal, more than a second later, ends that early.
    """
    script = f"""
import atexit, time
from kernels_bank.runtime.errors import JobFailedError
from pipeline.cli import Command, run

def clean_up():
    print("cleaning up", flush=True)
    time.sleep(0.5 if {len(signals)} == 1 else 60)
    print("done", flush=True)

def main(command):
    atexit.register(clean_up)
    {ending or "pass"}

run(Command, main)
"""
    job = subprocess.Popen([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == b"cleaning up\n"
        for number, one in enumerate(signals):
            if number:
                time.sleep(1.1)
            job.send_signal(one)
        out, err = job.communicate(timeout=30)
    finally:
        job.kill()
    assert job.returncode == status, err
    assert (out, err) == (b"done\n" if len(signals) == 1 else b"", b"error: it failed\n" if ending else b"")
