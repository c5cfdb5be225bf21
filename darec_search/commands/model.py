"""Commands about an exported model: `recommend`, `serve`, `evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from darec_search.commands.output import console, errors, print_json, say, say_metrics
from trainer.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from darec_search.histories import History
    from darec_search.recommender import Recommendation


def recommend(parsed: argparse.Namespace, rest: list[str]) -> None:
    """The best next items after each history."""
    from darec_search import histories as batches
    from darec_search.export import load

    if parsed.top < 1:
        raise BadInput(f"--top {parsed.top}: must be at least 1")
    if parsed.out is not None:
        batches.check_output(parsed.out)
    asked = _asked(parsed)
    recommender = load(parsed.model)
    if parsed.user is not None and not recommender.knows(parsed.user):
        raise BadInput(f"--user {parsed.user}: was not trained on; leave it out, a history alone is enough")
    histories = batches.resolved(recommender, asked)
    items, users = [history.items for history in histories], [history.user for history in histories]
    found = recommender.recommend(items, parsed.top, users, exclude_seen=parsed.exclude_seen)
    if parsed.out is not None:
        batches.write(parsed.out, histories, found)
        say(f"{len(found):,} histories: {parsed.out}")
    elif parsed.json:
        print_json([history.document(items) for history, items in zip(histories, found, strict=True)])
    else:
        for history, best in zip(histories, found, strict=True):
            console.print(_table(recommender.titles(history.items), best))


def _asked(parsed: argparse.Namespace) -> list[History]:
    """The histories that the arguments name, by one way of naming them."""
    from darec_search import histories as batches

    given = [name for name in ("history", "title", "histories") if getattr(parsed, name) is not None]
    if len(given) > 1 or (given and parsed.data is not None):
        raise BadInput("recommend: give one of --history, --title, --histories, or --user with --data")
    if parsed.histories is not None and parsed.user is not None:
        raise BadInput("--user: is for one history; in a file of histories give a column `user`")
    if parsed.histories is not None:
        return batches.read(parsed.histories)
    if parsed.history is not None:
        return [batches.History(batches.split_items(parsed.history), parsed.user)]
    if parsed.title is not None:
        return [batches.History(tuple(parsed.title), parsed.user)]
    if parsed.user is None or parsed.data is None:
        raise BadInput("recommend: needs --history, --title, --histories, or --user with --data")
    return [_of_user(parsed.data, parsed.user)]


def _of_user(data: str, user: str) -> History:
    """All that a dataset holds of a user, the held-out items included."""
    from darec_search.histories import History
    from trainer.data.dataset import Dataset

    dataset = Dataset.open(data)
    try:
        number = list(dataset.user_ids).index(user)
    except ValueError:
        raise BadInput(f"--user {user}: is no user of {data}") from None
    held_out = dataset.unsealed("recommendations for one of its users").targets("test")
    items = [*dataset.inputs("test")[number].tolist(), int(held_out[number])]
    return History(tuple(dataset.item_ids[item] for item in items), user)


def _table(titles: Sequence[str], found: Sequence[Recommendation]) -> Table:
    from rich.table import Table
    from rich.text import Text

    after = f"after {', '.join(titles[-_SHOWN:])}" + (f" and {len(titles) - _SHOWN} before" * (len(titles) > _SHOWN))
    table = Table(title=Text(after), title_justify="left")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id")
    table.add_column("title")
    for place, item in enumerate(found, 1):
        table.add_row(str(place), f"{item.score:.3f}", Text(item.id), Text(item.title))
    return table


_SHOWN = 5
"""Titles of a history in a table's head."""


def serve(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Recommendations over HTTP until it is stopped."""
    import uvicorn

    from darec_search.export import load
    from darec_search.serve import create_app

    if not 0 <= parsed.port <= 65_535:
        raise BadInput(f"--port {parsed.port}: must be between 0 and 65535")
    if parsed.host not in ("127.0.0.1", "localhost", "::1"):
        errors.print(
            f"{parsed.host} is not this machine alone: whoever reaches port {parsed.port} may ask, without a password "
            "or encryption; put a gateway in front of it",
            markup=False,
        )
    _require_free(parsed.host, parsed.port)
    app = create_app(load(parsed.model))
    uvicorn.run(app, host=parsed.host, port=parsed.port, log_level="info" if parsed.verbose else "warning")


def _require_free(host: str, port: int) -> None:
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise BadInput(f"--host {host} --port {port}: cannot be used ({error.strerror}); choose others") from error


def evaluate(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Metrics of an exported model on a dataset."""
    from darec_search.evaluation import cutoff_table, segment_table
    from darec_search.export import load
    from trainer.data.dataset import Dataset

    cutoffs = _cutoffs(parsed.cutoffs)
    if parsed.per_user is not None and (parsed.per_user.is_dir() or not parsed.per_user.parent.is_dir()):
        raise BadInput(f"--per-user {parsed.per_user}: must be a file in a folder that exists")
    model, dataset = load(parsed.model), Dataset.open(parsed.data)
    evaluation = model.evaluate(dataset, parsed.split, cutoffs, exclude_seen=parsed.exclude_seen)
    if parsed.split == "test" and (parsed.model.absolute().parent / "environment.json").exists():
        from darec_search.final_models import record_opening

        record_opening(parsed.model.absolute().parent, "evaluate", dataset.fingerprint, {"best": model.card.sha256})
    if parsed.per_user is not None:
        evaluation.save_per_user(parsed.per_user)
    found = evaluation.document()
    if parsed.json:
        print_json(found)
        return
    say_metrics(found)
    console.print(cutoff_table(found, evaluation.cutoffs))
    console.print(segment_table(found))


def _cutoffs(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not part.isdecimal() or int(part) < 1), None)
    if wrong is not None:
        raise BadInput(f"--cutoffs {text}: {wrong!r} is no whole number from 1; write them like 5,10,20")
    return [int(part) for part in parts]
