"""Runs the service until it is told to stop."""

import logging
from collections.abc import Sequence
from pathlib import Path

from haloae.data.limits import limit_images, read_limits
from haloae.errors import ConfigError, MissingExtraError
from haloae.server.settings import read_settings

log = logging.getLogger(__name__)


def run(
    models: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    config: Path | None,
    limits: Sequence[str] = (),
) -> None:
    """Serve until a signal says stop; then finish what was taken in.

    Args:
        models: a model file, or a folder of them.
        host: address to listen on.
        port: of it; 0: any that is free.
        token_file: see `haloae.server.safety.read_tokens`.
        config: `serve.toml`.
        limits: of images, each ``name=value``, over those of the settings.

    Raises:
        ConfigError: a setting is wrong, or an address that others reach is to have no tokens.
        DataError: there are no models.
        MissingExtraError: what serves is not installed.
    """
    try:
        import uvicorn

        from haloae.server.app import create_app
        from haloae.server.safety import is_loopback, read_tokens
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", error) from error
    settings = read_settings(config)
    limit_images(**settings.image.model_dump())
    read_limits(list(limits))
    tokens = read_tokens(token_file) if token_file else None
    if tokens is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines may reach this address, so it needs tokens: give "
            f"--token-file, or listen on 127.0.0.1."
        )
    app = create_app(models, settings=settings, tokens=tokens)
    http = settings.http
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=http.connections,
        timeout_keep_alive=http.idle,
        timeout_graceful_shutdown=http.stop,
        ssl_certfile=http.certificate,
        ssl_keyfile=http.key,
    )
