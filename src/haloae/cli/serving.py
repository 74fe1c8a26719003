"""The command that serves."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from haloae.cli import options
from haloae.cli.shared import DONE


def serve(
    models: Annotated[
        Path,
        Argument(metavar="MODELS", help="a model file, or a folder of them"),
    ],
    *,
    host: Annotated[
        str, Option(metavar="ADDRESS", help="to listen on; any but loopback needs --token-file")
    ] = "127.0.0.1",
    port: Annotated[int, Option(metavar="N", min=0, max=65535, help="0: any that is free")] = 8080,
    data: Annotated[
        Path, Option(metavar="DIR", help="folder for all that is kept: records, images, models")
    ] = Path("haloae-data"),
    token_file: Annotated[
        Path | None,
        Option(metavar="FILE.toml", help="two lines: the tokens of operator and engineer"),
    ] = None,
    config: Annotated[
        Path | None, Option(metavar="serve.toml", help="settings of the service")
    ] = None,
    certificate: Annotated[
        Path | None, Option(metavar="FILE.pem", help="with --key, for https")
    ] = None,
    key: Annotated[Path | None, Option(metavar="FILE.pem", help="the certificate's key")] = None,
    limits: options.Limits = None,
    quiet: options.Quiet = False,
) -> int:
    """Inspect for cameras and people: a service with an operator's page."""
    from haloae.server.run import run

    run(
        models,
        host=host,
        port=port,
        data=data,
        token_file=token_file,
        config=config,
        certificate=certificate,
        key=key,
        limits=limits or (),
        say=lambda url: print(f"haloae serves at {url}", flush=True),
    )
    return DONE
