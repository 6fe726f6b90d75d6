"""What is taken as a name, MLflow takes too; what it would refuse after the work is refused with the request."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels_bank.runtime.errors import BadRequestError
from pipeline.cli import parse
from pipeline.names import LEASE, check_alias, check_experiment, check_model_name

ODD = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text(
    string.ascii_letters + string.digits + "._-/:@ '\"\\%\n", max_size=12
)
TRAIN = ["--name", "r", "--data.shards", "s", "--data.bank", "b", "--train.steps", "1"]


@given(ODD | st.text("ab", min_size=190, max_size=300))
def test_mlflow_takes_what_we_take(name: str):
    from mlflow.utils import validation

    try:
        check_model_name(name)
    except ValueError:
        pass
    else:
        validation._validate_model_name(name)
        validation._validate_model_name(f"{name}.{'0' * 32}{LEASE}")
        assert len(name + LEASE) + 33 <= 256  # the column
    try:
        check_alias(name)
    except ValueError:
        pass
    else:
        validation._validate_model_alias_name(name)
        validation._validate_model_alias_name_reserved(name)
        validation._validate_tag(f"promoted.{name}.000001", "x")
    try:
        check_experiment(name)
    except ValueError:
        pass
    else:
        validation._validate_experiment_name(name)
        assert len(name) <= 256


@pytest.mark.parametrize("name", ["blind-sr-x2", "usrnet_v2.1", "O'Brien", "modèle 2", "100%", "v1"])
def test_usual_names_are_taken(name: str):
    assert check_model_name(name) == name


@pytest.mark.parametrize("alias", ["champion", "candidate", "v1-rc", "latest-good", "prüfung", "2026_11"])
def test_usual_aliases_are_taken(alias: str):
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["v1", "V12", "latest", "LATEST", "", "a b", "a.b", "a/b", "champion\n", "a" * 201])
def test_a_wrong_alias_is_refused_by_every_command(alias: str):
    from jobs.registry import Registry
    from jobs.train import Train

    for command, arguments in (
        (Train, [*TRAIN, f"--tracking.alias={alias}"]),
        (Registry, ["promote", "m", "1", f"--alias={alias}"]),
        (Registry, ["rollback", "m", f"--alias={alias}"]),
        (Registry, ["import-weights", "x.pth", "--name=m", f"--alias={alias}"]),
    ):
        with pytest.raises(BadRequestError, match="alias"):
            parse(command, arguments)


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "", " ", " a", ".", "..", "a\nb", "x" * 201, f"x{LEASE}"])
def test_a_wrong_name_is_refused_by_every_command(name: str):
    from jobs.registry import Registry
    from jobs.train import Train

    for command, arguments in (
        (Train, [*TRAIN, f"--tracking.model-name={name}"]),
        (Registry, ["import-weights", "x.pth", f"--name={name}"]),
    ):
        with pytest.raises(BadRequestError, match="name"):
            parse(command, arguments)


@pytest.mark.parametrize(
    "argument", ["--tracking.experiment=", "--tracking.experiment= x", f"--tracking.experiment={'x' * 300}"]
)
def test_a_wrong_experiment_is_refused(argument: str):
    from jobs.train import Train

    with pytest.raises(BadRequestError, match="experiment"):
        parse(Train, [*TRAIN, argument])


def test_a_run_name_fits_its_column():
    from jobs.train import Train

    with pytest.raises(BadRequestError, match="name"):
        parse(Train, [*TRAIN[2:], "--name", "r" * 251])
