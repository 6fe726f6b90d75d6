"""What a training left in the tracking store, read past MLflow from its database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy
from sqlalchemy.pool import NullPool

_RUNS = """select r.run_uuid, r.status from runs r join experiments e on r.experiment_id = e.experiment_id
           where e.name = :name and r.lifecycle_stage = 'active'"""
_POINTS = "select step from metrics where run_uuid = :run and key = 'loss' order by step, timestamp"
_VERSIONS = "select count(*) from model_versions where run_id = :run and current_stage <> 'Deleted_Internal'"


def wrong(backend: str, experiment: str, steps: Sequence[int]) -> list[str]:
    """Return what is wrong with the one run that the experiment must have.

    Args:
        backend: URI of the database.
        experiment: its name.
        steps: those at which the loss must have a point, each once.
    """
    engine = sqlalchemy.create_engine(backend, poolclass=NullPool)
    try:
        with engine.connect() as database:
            runs = database.execute(sqlalchemy.text(_RUNS), {"name": experiment}).all()
            if [run.status for run in runs] != ["FINISHED"]:
                return [f"tracking runs: {', '.join(run.status for run in runs) or 'none'}; wanted is one, FINISHED"]
            run = {"run": runs[0].run_uuid}
            points = list(database.execute(sqlalchemy.text(_POINTS), run).scalars())
            versions = database.execute(sqlalchemy.text(_VERSIONS), run).scalar_one()
    except sqlalchemy.exc.SQLAlchemyError as error:
        return [f"the tracking store cannot be read: {str(error).splitlines()[0][:150]}"]
    finally:
        engine.dispose()
    found = []
    if lost := sorted(set(steps) - set(points)):
        found.append(f"points of the loss are lost at steps {lost}")
    if doubled := sorted({step for step in points if points.count(step) > 1}):
        found.append(f"points of the loss are doubled at steps {doubled}")
    if versions != 1:
        found.append(f"{versions} registered versions instead of one")
    return found
