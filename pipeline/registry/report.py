"""Output of the registry's commands on a terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.registry import commands


def render(request: commands.Request, answer: Any) -> None:  # noqa: ANN401 - plain data, of a shape for each command
    """Print an answer as JSON or as readable text."""
    if request.as_json:
        print(json.dumps(answer, indent=1))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)  # for a file or a pipe: wide enough not to break names
    match request:
        case commands.ListModels():
            _models(console, answer)
        case commands.Show() if "versions" in answer:
            _model(console, answer)
        case commands.Show():
            _version(console, answer)
        case commands.Promote() if answer["action"] == "none":
            print(f"{answer['name']} version {answer['version']} is {answer['alias']} already; nothing to do")
        case commands.Promote() | commands.Rollback():
            _move(answer)
        case commands.Export() if request.form != "folder":
            print(f"{answer['model']} at x{answer['scale']}: {answer['output']}/{answer['file']}")
            print(f"  at most {answer['difference']:.1e} from the network's own answers; docs/export.md shows its use")
        case commands.Export():
            print(f"{answer['model']} is in {answer['output']}")
            print(f"  use it with  python jobs/restore.py --model {answer['output']} ...")
        case commands.ImportWeights():
            done = "registered as" if answer["new"] else "is there already:"
            print(f"{done} {answer['name']} version {answer['version']}: {answer['description']}")
            print(f"  aliases: {', '.join(answer['aliases'])}")
            if "import.read" in answer["origin"]:
                print(f"  read: {answer['origin']['import.read']}; left: {answer['origin']['import.left']}")
        case commands.Compare():
            _comparison(console, answer)
        case commands.Gc():
            _spare(console, answer)


def _models(console: Console, models: list[dict[str, Any]]) -> None:
    if not models:
        print("no models are registered yet; jobs/train.py and 'import-weights' register some")
        return
    table = _table("model", "versions", "aliases", "newest", "created", "what it is")
    for model in models:
        newest = str(model["newest"] or "")
        aliases = ", ".join(f"{alias} = {number}" for alias, number in sorted(model["aliases"].items()))
        created = _minute(model["created"])
        table.add_row(model["name"], str(model["versions"]), aliases, newest, created, model["description"])
    console.print(table)


def _model(console: Console, model: dict[str, Any]) -> None:
    table = _table("version", "aliases", "created", "evaluation", "run", title=model["name"])
    for version in model["versions"]:
        metrics = "\n".join(f"{key} {_number(value)}" for key, value in version["metrics"].items()) or "none stored"
        row = (str(version["version"]), ", ".join(version["aliases"]), _minute(version["created"]), metrics)
        table.add_row(*row, version["run_id"])
    console.print(table)
    moves = [move for version in model["versions"] for move in version["moves"]]
    _moves(console, sorted(moves, key=lambda move: (move["at"], move["number"])))


def _version(console: Console, version: dict[str, Any]) -> None:
    print(f"{version['uri']}  {', '.join(version['aliases'])}")
    print(version["description"])
    facts = _table("", "")
    facts.show_header = False
    facts.add_row("created", version["created"])
    facts.add_row("run", version["run_id"])
    facts.add_row("digest", version["digest"])
    for part in ("input", "origin", "config", "metrics"):
        for key, value in version[part].items():
            facts.add_row(f"{part}  {key}", _number(value) if part == "metrics" else _text(value))
    console.print(facts)
    _moves(console, version["moves"])


def _moves(console: Console, moves: list[dict[str, Any]]) -> None:
    if not moves:
        return
    table = _table("when", "what", "alias", "from", "to", "by", "in spite of", "because", title="promotions")
    for move in moves:
        table.add_row(
            _minute(move["at"]),
            move["action"],
            move["alias"],
            str(move["previous"] or ""),
            str(move["version"]),
            move["by"],
            "\n".join(move["objections"]),
            move["reason"] or "",
        )
    console.print(table)


def _move(answer: dict[str, Any]) -> None:
    before = f", before version {answer['previous']}" if answer["previous"] else ""
    print(f"{answer['name']}: {answer['alias']} is version {answer['version']} now{before}")
    for objection in answer["objections"]:
        print(f"  in spite of: {objection}")


def _comparison(console: Console, answer: dict[str, Any]) -> None:
    table = _table("", answer["one"], answer["other"], "difference")
    for key, (one, other, difference) in answer["metrics"].items():
        table.add_row(key, _number(one), _number(other), f"{difference:+.3f}" if difference is not None else "")
    for part in ("config", "input", "origin"):
        for key, (one, other) in answer[part].items():
            table.add_row(f"{part}  {key}", _text(one), _text(other))
    console.print(table)
    if answer["same_files"]:
        print("both hold the same files")
    elif not answer["metrics"]:
        print("neither has a stored evaluation; python jobs/evaluate.py makes one")


def _spare(console: Console, versions: list[dict[str, Any]]) -> None:
    if not versions:
        print("nothing to delete")
        return
    table = _table("model", "version", "created", "run")
    for version in versions:
        table.add_row(version["name"], str(version["version"]), _minute(version["created"]), version["run_id"])
    console.print(table)
    if versions[0]["deleted"]:
        print(f"{len(versions)} versions deleted; 'mlflow gc' frees their disk space")
    else:
        print(f"{len(versions)} versions would be deleted; --delete does it")


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _minute(iso: str | None) -> str:
    return iso[:16].replace("T", " ") if iso else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
