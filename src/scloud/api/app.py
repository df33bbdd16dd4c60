"""The application: routes, limits, errors, and the docs page with assets of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scloud import __version__
from scloud.api import problems
from scloud.api.context import Context
from scloud.api.problems import MEDIA_TYPE
from scloud.api.routes import (
    accounts,
    disk_data,
    disk_types,
    disks,
    ha,
    images,
    keypairs,
    networks,
    nics,
    nodes,
    operations,
    pools,
    relocations,
    security_groups,
    snapshots,
    storage_clusters,
    streams,
    system,
    usage,
    vms,
)
from scloud.model.errors import CloudError, ErrorKind

PREFIX = "/api/v1"
MAX_BODY = 1024 * 1024
"""Bytes of a request, except an image's upload."""
TOO_LARGE = f"a request may have at most {MAX_BODY} bytes"


class BodyLimit:
    """Refuses a body that is too large before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "PUT" and scope["path"].endswith("/data")):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self._app(scope, limited, send)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
        error = CloudError(ErrorKind.TOO_LARGE, TOO_LARGE)
        await problems.response(error)(scope, receive, send)


def make_app(context: Context) -> FastAPI:
    app = FastAPI(
        title="SCloudStack",
        version=__version__,
        description="The cloud's REST API. Every write answers 202 with an operation; wait for its end with "
        "GET /operations/{id}?wait=30. Errors are problem documents (RFC 9457) with a stable `code`.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    problems.install(app)
    # The busiest first: a request's path is compared with one router's after another's.
    for router in (
        vms.router,
        operations.router,
        images.router,
        networks.vpcs,
        networks.subnets,
        security_groups.router,
        nics.router,
        disks.router,
        disk_data.router,
        disk_data.vms,
        snapshots.router,
        keypairs.keypairs,
        keypairs.placement_groups,
        nodes.nodes,
        nodes.clusters,
        relocations.nodes,
        relocations.clusters,
        storage_clusters.router,
        pools.router,
        disk_types.router,
        usage.router,
        ha.router,
        accounts.accounts,
        accounts.router,
        system.router,
        streams.router,
    ):
        app.include_router(router, prefix=PREFIX)
    app.include_router(system.public)
    _add_docs(app)
    app.add_middleware(BodyLimit)
    return app


def _add_docs(app: FastAPI) -> None:
    """Swagger's page, from files that came with the installation: a cloud may have no internet."""
    assets = Path(swagger_ui_bundle.__file__).parent / "vendor"
    folder = max(path for path in assets.iterdir() if path.name.startswith("swagger-ui"))
    app.mount("/docs/assets", StaticFiles(directory=folder), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="SCloudStack API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            _publish_problems(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _publish_problems(schema: dict[str, Any]) -> None:
    """Problems have a media type of their own, which FastAPI cannot state beside a model."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            for answer in operation["responses"].values():
                if MEDIA_TYPE in answer.get("content", {}):
                    answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
