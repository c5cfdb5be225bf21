"""An export behind HTTP: `POST /recommend`, `GET /health`, and OpenAPI at /openapi.json and /docs.

It has no password and no encryption: it is meant for this machine, or for a network behind a gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from darec_search.histories import History, resolved
from darec_search.recommender import Recommender
from trainer.errors import BadInput


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    histories: int = 256
    items: int = 1000
    """Of one history."""
    top: int = 1000
    name: int = 1000
    """Letters of an id or a title."""


LIMITS = Limits()
_Name = Annotated[str, Field(min_length=1, max_length=LIMITS.name)]


class Asked(BaseModel):
    """One user."""

    model_config = ConfigDict(extra="forbid")

    history: list[_Name] = Field(
        min_length=1, max_length=LIMITS.items, description="Ids or titles of items, oldest first."
    )
    user: _Name | None = Field(None, description="Id of a user who was trained on.")


class Question(BaseModel):
    """What is asked of `/recommend`."""

    model_config = ConfigDict(extra="forbid")

    histories: list[Asked] = Field(min_length=1, max_length=LIMITS.histories)
    top: int = Field(10, ge=1, le=LIMITS.top, strict=True, description="Items for each history.")
    exclude_seen: bool = Field(False, strict=True, description="Leave out the items of the history.")


class Item(BaseModel):
    """One recommended item."""

    id: str
    title: str
    score: float = Field(description="Larger is better; comparable within one history.")


class Recommended(BaseModel):
    """The best items after one history, best first."""

    history: list[str] = Field(description="Ids of the items.")
    items: list[Item]


class Health(BaseModel):
    """What is being served."""

    status: str
    study: str
    architecture: str
    items: int
    users: int


class Problem(BaseModel):
    """One sentence that says what to mend."""

    error: str


def create_app(recommender: Recommender) -> FastAPI:
    """The ASGI app over a loaded export."""
    app = FastAPI(
        title="darec-search", version=str(recommender.card.version), description="Recommendations of an exported model."
    )
    refusals: dict[int | str, dict[str, Any]] = {400: {"model": Problem}, 422: {"model": Problem}}
    card = recommender.card

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return _problem(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}", 422)

    @app.exception_handler(BadInput)
    async def explain(request: Request, error: BadInput) -> JSONResponse:
        return _problem(str(error), 400)

    @app.exception_handler(HTTPException)
    async def tell(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(str(error.detail), error.status_code, error.headers)

    @app.get("/health")
    def health() -> Health:
        """Whether it is ready, and with what."""
        return Health(
            status="ready", study=card.study, architecture=card.architecture, items=card.items, users=card.users
        )

    # Not `async`: the framework runs it in a thread, so that /health answers while the model computes.
    @app.post("/recommend", responses=refusals)
    def recommend(asked: Question) -> list[Recommended]:
        """The best next items after each history."""
        histories = resolved(recommender, [History(tuple(one.history), one.user) for one in asked.histories])
        found = recommender.recommend(
            [history.items for history in histories],
            asked.top,
            [history.user for history in histories],
            exclude_seen=asked.exclude_seen,
        )
        return [
            Recommended.model_validate(history.document(items)) for history, items in zip(histories, found, strict=True)
        ]

    return app


def _problem(sentence: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    # A request may hold halves of surrogate pairs, which UTF-8 cannot.
    return JSONResponse({"error": sentence.encode("utf-8", "backslashreplace").decode()}, status, headers)
