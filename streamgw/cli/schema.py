"""`streamgw schema`: JSON Schemas, for editors that check a file while it is typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from streamgw.cli.failure import IO_ERROR, Failure

if TYPE_CHECKING:
    from streamgw.config.wording import Schema

KINDS: Final = ("routes", "config", "stream_route", "upstream", "service", "ssl", "plugin_metadata")
"""Both files, then what a file of routes is made of."""


@click.command()
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="routes",
    show_default=True,
    help="routes: a file of routes.d; config: conf/config.yaml; or one object.",
)
@click.option(
    *("-o", "--output"),
    type=click.Path(path_type=Path, file_okay=False),
    help="Write all of them into this directory, as KIND.schema.json.",
)
def schema(kind: str, output: Path | None) -> None:
    """Print the JSON Schema of a file, for editors.

    With the options of every plugin that is installed.

    \b
    streamgw schema -o .schemas
    and in the first line of a file of routes.d:
    # yaml-language-server: $schema=../.schemas/routes.schema.json
    """  # noqa: D301  # \b is Click's mark for lines that stay as they are
    schemas = _schemas()
    if output is None:
        click.echo(_text(schemas[kind]), nl=False)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in schemas.items():
            path = output / f"{name}.schema.json"
            path.write_text(_text(content))
            click.echo(path)
    except OSError as error:
        raise Failure(IO_ERROR, f"error: {error.filename}: {error.strerror}") from None


def _schemas() -> Mapping[str, Schema]:
    # What reads both files, which --help does not need.
    from streamgw.config import json_schema  # noqa: PLC0415  see above
    from streamgw.config.plugins import PluginSet  # noqa: PLC0415  see above
    from streamgw.process.plugins import installed  # noqa: PLC0415  see above

    plugins = PluginSet(installed().plugins)
    return {
        "routes": json_schema.of_file(plugins),
        "config": json_schema.of_config(),
        **{name: json_schema.of_object(name, plugins) for name in json_schema.OBJECTS},
    }


def _text(content: Schema) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
