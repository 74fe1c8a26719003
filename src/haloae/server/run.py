"""Runs the service until it is told to stop."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from haloae.data.limits import limit_images, read_limits
from haloae.errors import ConfigError, MissingExtraError
from haloae.server.settings import read_settings


def run(
    models: Path,
    *,
    host: str,
    port: int,
    data: Path,
    token_file: Path | None = None,
    config: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    limits: Sequence[str] = (),
    say: Callable[[str], None],
) -> None:
    """Serve until a signal says stop; then finish what was taken in.

    Args:
        models: a model file, or a folder of them.
        host: address to listen on.
        port: of it; 0: any that is free.
        data: folder for all that is kept.
        token_file: see `haloae.server.safety.read_tokens`.
        config: `serve.toml`.
        certificate: PEM; with `key`, TLS.
        key: PEM of its private key.
        limits: of images, each ``name=value``, over those of the settings.
        say: is told the address, once it is listened on.

    Raises:
        ConfigError: a setting is wrong, the address cannot be had, or others reach it and there
            are no tokens.
        DataError: there are no models.
        OutputError: the folder for what is kept cannot be had.
        MissingExtraError: what serves is not installed, or what a source or a sink needs.
    """
    try:
        from haloae.server.app import create_app
        from haloae.server.connections import check_certificate, listen, serve, url_of
        from haloae.server.safety import is_loopback, read_tokens
        from haloae.server.telemetry import start_tracing
        from haloae.server.watch import log_as_json
    except ImportError as error:
        package = (error.name or "fastapi").partition(".")[0]
        raise MissingExtraError(package, "serve", error) from error
    settings = read_settings(config)
    limit_images(**settings.image.model_dump())
    read_limits(list(limits))
    tokens = read_tokens(token_file) if token_file else None
    if tokens is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines may reach this address, so it needs tokens: give "
            f"--token-file, or listen on 127.0.0.1."
        )
    check_certificate(certificate, key)
    app = create_app(models, data=data, settings=settings, tokens=tokens)
    records = app.state.service.records
    with listen(host, port) as listening, ExitStack() as stack:
        records.open()  # what is wrong with them is said now
        stack.callback(records.close, settings.http.stop)
        log_as_json()
        start_tracing()
        say(url_of(listening, is_secure=certificate is not None))
        serve(app, listening, settings.http, certificate=certificate, key=key)
