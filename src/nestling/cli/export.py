"""The verbs that hand a model on: export and push. Parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer, print_tables
from nestling.cli.options import Json, PromptOptions, Runs, run_path


def export(
    model: Annotated[str, Parameter(help="A model: a run's, a folder that shrink wrote, any other, or a hub id.")],
    out: Annotated[Path, Parameter(help="The folder to write; it must not exist.")],
    *,
    format: Annotated[
        Literal["onnx", "openvino"], Parameter(help="What runs it; a static model needs neither.")
    ] = "onnx",
    precision: Annotated[Literal["fp32", "bf16", "int8"], Parameter(help="bf16 is for openvino.")] = "fp32",
    split: Annotated[
        Path | None, Parameter(help="A split's folder, whose dev side checks the export; the run's own by default.")
    ] = None,
    threshold: Annotated[float | None, Parameter(help="Relevant above this (2.5 on a scale of 1 to 3).")] = None,
    prompts: PromptOptions = PromptOptions(),
    force: Annotated[bool, Parameter(help="Write it even if it loses quality.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model for a runtime without torch, and check it against torch: quality and speed."""
    from nestling.report.table import Table, row
    from nestling.serving.export.export import export as write

    done = write(
        model,
        out,
        format=format,
        precision=precision,
        split=split,
        threshold=threshold,
        prompts=prompts.given(),
        force=force,
        observer=observer(),
    )
    check = done.check
    if as_json:
        about = {"format": done.format, "precision": done.precision, "dim": done.dim, "bytes": done.size}
        print(json.dumps({"out": str(done.folder), **about, "check": check.as_dict()}))
        return
    counts = f"{check.queries:,} queries, {check.documents:,} documents"
    what = f"no split was given: {counts} of the generated catalogue; its recall says little of your data"
    if check.texts == "dev":
        what = f"dev: {counts}, searched as the model stores them"
    caption = (
        f"{what}; cosine of a text's two vectors: mean {check.cosine_mean:.5f}, lowest {check.cosine_lowest:.5f}; of "
        f"torch's ten nearest {check.agreement:.1%} are found; threads: {check.threads}, measured in turn"
    )
    rows = []
    for name, recall, speed in (
        ("torch fp32", check.recall_torch, check.torch),
        (f"{done.format} {done.precision}", check.recall_exported, check.exported),
    ):
        times = (f"{value:.2f} ms" for value in (speed.p50_ms, speed.p95_ms))
        rows.append(row(name, f"{recall:.4f}", f"{speed.documents_per_second:,.0f}", *times))
    columns = ["", "recall@10", "documents/s", "query p50", "p95"]
    print_tables(Table(caption, columns, [("", rows)], title="Export against torch"))
    if check.fault:
        Console().print(f"written all the same: {check.fault}", style="bold red", highlight=False, markup=False)
    print(f"size   {done.size / 1e6:,.1f} MB")
    print(f"model  {done.folder}")


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
