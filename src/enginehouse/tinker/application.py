"""The HTTP application: its routes, and how errors are answered."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from enginehouse.core.errors import EnginehouseError, TinkerError, nearest
from enginehouse.tinker.guard import answer_with


def make_application(routers: Sequence[APIRouter]) -> FastAPI:
    """The application that answers on `routers`. Nothing in it knows who is asking: see Guard."""
    app = FastAPI(title="Tinker", openapi_url=None)
    for router in routers:
        app.include_router(router)
    known = sorted(
        f"{', '.join(sorted(route.methods))} {route.path}"
        for router in routers
        for route in router.routes
        if hasattr(route, "methods") and hasattr(route, "path")
    )

    @app.exception_handler(TinkerError)
    async def refuse(request: Request, error: TinkerError) -> JSONResponse:
        status, content = answer_with(error, openai=request.url.path.startswith("/v1"))
        headers = {"retry-after": "1"} if status in {429, 503} else None
        return JSONResponse(content, status, headers=headers)

    @app.exception_handler(EnginehouseError)
    async def fail(request: Request, error: EnginehouseError) -> JSONResponse:
        return await refuse(request, TinkerError(str(error), category="server", status=500))

    @app.exception_handler(Exception)
    async def fail_unexpectedly(request: Request, _: Exception) -> JSONResponse:
        logged = f"an unexpected error, logged as request {request.state.request_id}"
        return await refuse(request, TinkerError(logged, category="server", status=500))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        requested = f"{request.method} {request.url.path}"
        if error.status_code not in {404, 405}:
            return await refuse(request, TinkerError(str(error.detail), status=error.status_code))
        close = nearest(requested, known)
        refusal = TinkerError(
            f"{requested} is not supported by this service",
            why="it implements the API of the tinker SDK 0.38.0, and not every route of it",
            fix=f"did you mean {close}?" if close else "`supported` lists the routes there are",
            status=error.status_code,
        )
        status, content = answer_with(refusal, openai=request.url.path.startswith("/v1"))
        return JSONResponse(content | {"supported": known}, status)

    return app


def current_user(request: Request) -> str:
    """The user whose key the request carries. Raises TinkerError (401) where it has none."""
    user = request.state.user
    if user is None:
        raise TinkerError("the request has no API key", status=401)
    return str(user)
