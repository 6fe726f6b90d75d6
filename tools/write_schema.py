"""Write the JSON schema of a run's YAML file, by which editors complete and check it.

python tools/write_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config import RunConfig

SCHEMA = Path(__file__).parents[1] / "jobs" / "configs" / "run.schema.json"


def schema_text() -> str:
    """Return the schema in the file's form."""
    return json.dumps(RunConfig.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
