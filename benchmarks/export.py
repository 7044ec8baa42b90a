"""The model in torch against each exported form of it: the same texts, in turn, in one run.

    python benchmarks/export.py --quick
    python benchmarks/export.py --model runs/NAME/models/VARIANT --split runs/NAME/split

Documents a second in batches of like length, milliseconds of a single query, size of the folder, recall@10 on the dev
side of the split (without one: on the generated catalogue), and which part of torch's ten nearest documents is found.
All sides take a share of the documents, or a query, after one another, so that what else the machine does falls on all
alike. A form whose package is missing is left out.

The last line is `export: RATIO`: of the forms that keep 99.5 % of torch's recall@10, the fastest one's documents a
second over torch's.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from nestling.config.names import DEFAULT_MODEL, Kind
from nestling.environment import hardware, versions
from nestling.errors import InputError
from nestling.evaluation.cell_search import Vectors
from nestling.evaluation.measures import Measure
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.load import find_model
from nestling.models.torch_encoder import embed
from nestling.serving.export import check as export_check
from nestling.serving.export.export import Format, Precision, export, read_model, read_texts

FORMS: tuple[tuple[Format, Precision], ...] = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
QUICK = FORMS[::3]


def encode_exported(
    encoder: ExportedEncoder, texts: Sequence[str], kind: Literal["query", "document"]
) -> export_check.Matrix:
    """Encode with the runtime."""
    return encoder.encode(texts, kind=kind)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two forms, without calibration: half a minute or less")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a name or a folder, as for nestling")
    parser.add_argument("--split", type=Path, help="a run's split folder; recall is measured on its dev side")
    options = parser.parse_args(arguments)

    machine, threads = hardware(), torch.get_num_threads()
    print(f"processor {machine['processor']}, threads {threads}, torch {versions()['torch']}, {options.model}")
    model, codec, _ = read_model(find_model(options.model))
    _, qrels = read_texts(options.split, None)

    def encode_torch(texts: Sequence[str], kind: Kind) -> export_check.Matrix:
        return embed(model, texts, kind=kind)

    sides: dict[str, export_check.Encode] = {"torch fp32": encode_torch}
    sizes: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        for form, precision in QUICK if options.quick else FORMS:
            name = f"{form} {precision}"
            try:
                done = export(
                    options.model,
                    Path(temporary) / name,
                    format=form,
                    precision=precision,
                    split=options.split,
                    force=True,
                )
            except InputError as error:
                print(f"{name:<14} left out: {error}")
                continue
            sizes[name] = done.size / 1e6
            sides[name] = partial(encode_exported, ExportedEncoder.open(done.folder, threads=threads))
        speeds = export_check.speeds(list(sides.values()), qrels.queries, qrels.documents)
        rankings = {
            name: export_check.search(
                Vectors(encode(qrels.queries, "query"), encode(qrels.documents, "document")), codec
            )
            for name, encode in sides.items()
        }
    recall = {name: float(Measure("recall", 10).per_query(each, qrels).mean()) for name, each in rankings.items()}
    stock = next(iter(sides))
    ratios = {}
    for (name, ranking), speed in zip(rankings.items(), speeds, strict=True):
        ratios[name] = speed.documents_per_second / speeds[0].documents_per_second
        size = f"{sizes[name]:7.1f} MB" if name in sizes else " " * 10
        print(
            f"{name:<14} {speed.documents_per_second:9.1f} documents/s   ratio {ratios[name]:5.2f}   query p50 "
            f"{speed.p50_ms:6.2f} ms   {size}   recall@10 {recall[name]:.4f}   of torch's ten nearest "
            f"{export_check.agreement(rankings[stock], ranking):.4f}"
        )
    print(f"{qrels.n_queries} queries, {qrels.n_documents} documents")
    kept = [name for name in sides if recall[name] >= (1 - export_check.LARGEST_LOSS) * recall[stock] and name != stock]
    best = max(kept, key=lambda name: ratios[name], default=stock)
    print(f"best that keeps recall: {best}")
    print(f"export: {ratios[best]:.1f}")


if __name__ == "__main__":
    main()
