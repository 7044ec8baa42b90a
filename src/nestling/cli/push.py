"""The verb that uploads a trained model to a hub: push. Parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nestling.cli.console import print_tables
from nestling.cli.options import Json, Runs, run_path


def push(
    run: Annotated[Path, Parameter(help="A finished run: its folder, or its name in RUNS.")],
    variant: Annotated[str, Parameter(help="One of its trained variants.")],
    hub_id: Annotated[str, Parameter(help="The repository, OWNER/NAME; it is made where it is missing.")],
    *,
    runs: Runs = Path("runs"),
    private: Annotated[bool, Parameter(help="Make the repository private.")] = False,
    revision: Annotated[str | None, Parameter(help="A branch; it is made where it is missing.")] = None,
    message: Annotated[str | None, Parameter(help="Message of the commit.")] = None,
    endpoint: Annotated[str | None, Parameter(help="URL of the hub; by default HF_ENDPOINT or huggingface.co.")] = None,
    dry_run: Annotated[bool, Parameter(help="List what would be sent, and send nothing.")] = False,
    force: Annotated[bool, Parameter(help="Push a model that is a REGRESSION, too.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a trained model and its card to a model hub, in one commit.

    The token is that of hf auth login, or HF_TOKEN.
    """
    from nestling.report.format import size
    from nestling.report.table import Table, row
    from nestling.study import push as publishing

    upload = publishing.plan(run_path(run, runs), variant, hub_id, force=force)
    sizes = upload.sizes
    url = None
    if not dry_run:
        url = publishing.send(upload, private=private, revision=revision, message=message, endpoint=endpoint)
    if as_json:
        print(json.dumps({"repository": hub_id, "files": sizes, "bytes": sum(sizes.values()), "commit": url}))
        return
    lines = [row(name, size(count)) for name, count in sizes.items()]
    groups = [("", lines), ("", [row("all", size(sum(sizes.values())))])]
    print_tables(Table("", ["file", "size"], groups, title=f"{'Would be sent' if dry_run else 'Sent'} to {hub_id}"))
    print(f"commit  {url}" if url else "nothing was sent")
