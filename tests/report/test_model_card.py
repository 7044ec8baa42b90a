"""The model card: what hubs read of it, what it says of figures worked out by hand, and that its snippet runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from fixtures.study import make_study
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.report.model_card import addressed, model_card, write_cards
from nestling.report.page_data import PageData, load_page_data
from nestling.report.tables import training_table

N = 40


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


FIGURES = {
    "pretrained": {Cell(64): share(20), Cell(32): share(15), Cell(16): share(10)},
    "mnrl": {Cell(64): share(30), Cell(32): share(25), Cell(16): share(18)},
    "bm25-stemmed": {None: share(30)},
}
WORSE = {**FIGURES, "mnrl": {Cell(64): share(8), Cell(32): share(7), Cell(16): share(6)}}
SAME = {**FIGURES, "mnrl": {Cell(64): share(21), Cell(32): share(15), Cell(16): share(10)}}


def study(
    path: Path,
    figures: Mapping[str, Any] = FIGURES,
    *,
    dev: tuple[float, float] = (0.5, 0.6),
    trained: Any = "mnrl",
    source: str = "shop.csv",
    change: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Return a run of pretrained and one trained variant; `change` replaces settings of its experiment."""
    folder = make_study(path, figures, variants=["pretrained", trained], dev={"mnrl": dev}, source=source, pages=False)
    found = json.loads(folder.results_json.read_text(encoding="utf-8"))
    found["experiment"].update(change or {})
    folder.results_json.write_text(json.dumps(found), encoding="utf-8")
    return folder


def data_of(path: Path, *arguments: Any, **options: Any) -> PageData:
    return load_page_data(study(path / "run", *arguments, **options))


def test_a_hub_reads_every_measure_at_every_size(tmp_path: Path):
    card = ModelCard(model_card(data_of(tmp_path), "mnrl"))
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in card.data.eval_results or []}
    # 30, 25 and 18 of 40 queries; MRR@10 of the fixture is half of recall@10.
    assert found == {
        "recall@10 (64 dims)": ("recall@10", 0.75),
        "recall@10 (32 dims)": ("recall@10", 0.625),
        "recall@10 (16 dims)": ("recall@10", 0.45),
        "MRR@10 (64 dims)": ("mrr@10", 0.375),
        "MRR@10 (32 dims)": ("mrr@10", 0.3125),
        "MRR@10 (16 dims)": ("mrr@10", 0.225),
    }
    first = (card.data.eval_results or [])[0]
    assert (first.dataset_name, first.dataset_split, first.task_type) == ("shop.csv", "test", "information-retrieval")


def test_the_front_matter_has_what_hubs_sort_models_by(tmp_path: Path):
    variant = {"name": "mnrl", "recipe": "mnrl", "matryoshka": {}}
    head = ModelCard(model_card(data_of(tmp_path, trained=variant), "mnrl")).data.to_dict()
    assert head["library_name"] == "sentence-transformers"
    assert head["pipeline_tag"] == "sentence-similarity"
    assert head["tags"] == [
        *("sentence-transformers", "feature-extraction", "sentence-similarity", "nestling", "mnrl", "matryoshka")
    ]
    plain = ModelCard(model_card(data_of(tmp_path / "plain"), "mnrl")).data.to_dict()
    assert "matryoshka" not in plain["tags"]


def test_the_bundled_base_is_called_by_its_hub_id_and_has_its_license(tmp_path: Path):
    head = ModelCard(model_card(data_of(tmp_path, change={"model": "all-MiniLM-L6-v2"}), "mnrl")).data.to_dict()
    assert head["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert head["license"] == "apache-2.0"


@pytest.mark.parametrize("model", ["someone/unheard-of", "someone/unheard-of@v1"])
def test_a_base_without_a_card_at_hand_leaves_the_license_unknown(tmp_path: Path, model: str):
    text = model_card(data_of(tmp_path, change={"model": model}), "mnrl")
    head = ModelCard(text).data.to_dict()
    assert head["base_model"] == "someone/unheard-of"
    assert "license" not in head
    assert "License: unknown" in text


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: mit", {"license": "mit"}),
        (
            "license: other\nlicense_name: shop\nlicense_link: https://a.b",
            {"license": "other", "license_name": "shop", "license_link": "https://a.b"},
        ),
        ("license: 'a\n\n  <b>'", {}),
        ("license: [mit]", {}),
        ("license: {", {}),
        ("tags: [a]", {}),
    ],
)
def test_a_base_in_a_folder_gives_its_license_and_not_its_path(tmp_path: Path, front: str, license: dict[str, str]):
    base = tmp_path / "secret" / "mini"
    base.mkdir(parents=True)
    (base / "README.md").write_text(f"---\n{front}\n---\n\n# Mini\n", encoding="utf-8")
    text = model_card(data_of(tmp_path, change={"model": str(base)}), "mnrl")
    head = ModelCard(text).data.to_dict()
    assert {name: value for name, value in head.items() if name.startswith("license")} == license
    assert "base_model" not in head
    assert "made of mini with" in text
    assert "secret" not in text
    assert ("License: unknown" in text) == (not license)


def test_a_gain_is_told_with_figures_and_the_studys_own_p(tmp_path: Path):
    data = data_of(tmp_path)
    row = data.comparisons.filter((data.comparisons["b"] == "mnrl") & (data.comparisons["measure"] == "recall@10"))
    # Ten wins and no loss: both signs of ten, 2 / 1024, are as far from 0; two variants are compared, Holm.
    assert row["p_holm"].item() == pytest.approx(2 * 2 / 1024)
    text = model_card(data, "mnrl")
    assert "On the test side it is better than its base: recall@10 0.5000 → 0.7500 (+50.0%, interval" in text
    assert "p = .004)" in text.split("## Usage")[0]
    assert "REGRESSION" not in text


def test_results_stand_by_size_with_the_base_and_bm25_beside_them(tmp_path: Path):
    text = model_card(data_of(tmp_path), "mnrl")
    table = text.split("**recall@10**")[1].split("**MRR@10**")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert rows[0] == ["dims", "this model", "pretrained", "difference", "p", "bm25-stemmed", "difference", "p"]
    by_dim = {row[0]: row for row in rows[2:]}
    assert list(by_dim) == ["64", "32", "16"]
    # Three sizes: ten wins at 64 and at 32 dims, 2 / 1024 by 3; eight at 16, 2 / 256.
    assert by_dim["64"][2:5] == ["0.5000", by_dim["64"][3], ".006"]
    assert by_dim["64"][3].startswith("+25.00<br><sub>+")
    assert by_dim["32"][4] == ".006"
    assert by_dim["16"][4] == ".008"
    # BM25 finds 30 of 40 at any size.
    assert by_dim["64"][5:] == ["0.7500", "+0.00<br><sub>+0.00 to +0.00</sub>", "1.000<br><sub>not significant</sub>"]
    assert by_dim["16"][5] == "0.7500"
    assert by_dim["16"][6].startswith("-30.00<br>")


def test_a_regression_and_a_loss_are_said_first_and_plainly(tmp_path: Path):
    text = model_card(data_of(tmp_path, WORSE, dev=(0.5, 0.4)), "mnrl")
    body = text.split("---\n", 2)[2].strip().splitlines()
    assert body[2] == "**REGRESSION: on dev this model ended below its base. Do not use it in place of its base.**"
    assert "On the test side it is WORSE than its base: recall@10 0.5000 → 0.2000" in body[4]


def test_steps_that_were_left_out_are_named_in_the_card_and_in_the_reports_table(tmp_path: Path):
    data = data_of(tmp_path)
    line = "the rotation: dev recall@10 0.7000 0.4000 with it, 0.7000 0.5000 without"
    data.study["training"]["mnrl"]["left_out"] = [line]
    assert f"Left out, as dev was lower for it: {line}." in model_card(data, "mnrl")
    assert training_table(data.study["training"], {}).groups[0][1][0][0].below == line


def test_a_difference_that_may_be_chance_is_no_gain(tmp_path: Path):
    text = model_card(data_of(tmp_path, SAME), "mnrl")
    assert "not shown to differ from its base, since no difference is significant: recall@10 0.5000 → 0.5250" in text
    assert "better than its base" not in text


def test_without_its_base_in_the_run_no_gain_is_claimed(tmp_path: Path):
    other = {"name": "mnrl", "recipe": "mnrl", "base": "someone/else"}
    text = model_card(data_of(tmp_path, trained=other), "mnrl")
    assert "The run did not measure its base model, so what training did is not known." in text
    assert "| dims | this model | bm25-stemmed | difference | p |" in text


def test_settings_are_listed_where_they_differ_from_the_defaults(tmp_path: Path):
    variant = {"name": "mnrl", "recipe": "mnrl", "training": {"epochs": 7, "checkpoint_seconds": 5}}
    text = model_card(data_of(tmp_path, trained=variant), "mnrl")
    table = text.split("Settings that differ from the defaults.")[1].split("##")[0]
    assert re.findall(r"^\| (\w+) \| (\S+) \| (\S+) \|$", table, re.MULTILINE)[1:] == [("epochs", "7.0", "3")]
    steps = {"finetune": {"crops": 1}, "merge_base": {"share": 0.3}, "rotate": True}
    card = model_card(data_of(tmp_path / "steps", trained={**variant, "training": steps}), "mnrl")
    table = card.split("Settings that differ from the defaults.")[1].split("##")[0]
    assert re.findall(r"^\| ([a-z_.]+) \| (.+) \| (.+) \|$", table, re.MULTILINE)[1:] == [
        ("merge_base", "made", "left out"),
        ("rotate", "made", "left out"),
        ("finetune.crops", "1", "0"),
        ("merge_base.share", "0.3", "None"),
    ]
    assert "All settings are the defaults." in model_card(data_of(tmp_path / "plain"), "mnrl")


def test_only_what_was_used_is_cited(tmp_path: Path):
    variant = {"name": "mnrl", "recipe": "cosine", "matryoshka": {}}
    nested = model_card(data_of(tmp_path, trained=variant), "mnrl").split("## Citation")[1]
    assert re.findall(r"arXiv ([\d.]+)", nested) == ["1908.10084", "2205.13147"]
    plain = model_card(data_of(tmp_path / "plain"), "mnrl").split("## Citation")[1]
    assert re.findall(r"arXiv ([\d.]+)", plain) == ["1908.10084", "1807.03748"]
    taught = {"name": "mnrl", "recipe": "mnrl", "training": {"distill": {"weight": 1.0}}}
    card = model_card(data_of(tmp_path / "taught", trained=taught), "mnrl").split("## Citation")[1]
    assert re.findall(r"arXiv ([\d.]+)", card) == ["1908.10084", "1807.03748", "2010.02666"]


@pytest.mark.parametrize("nested", [False, True])
def test_the_usage_snippet_runs_as_given_in_the_folder_of_the_card(
    tmp_path: Path,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nested: bool,
):
    variant = {"name": "mnrl", "recipe": "mnrl", **({"matryoshka": {}} if nested else {})}
    folder = study(tmp_path / "run", trained=variant)
    shutil.copytree(tiny_model_path, folder.model("mnrl"))
    (card,) = write_cards(folder, load_page_data(folder))
    snippets = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(card.parent)
    names: dict[str, Any] = {}
    exec(snippets[0], names)
    assert "tensor([[" in capsys.readouterr().out
    assert len(snippets) == 1 + nested
    if nested:
        exec(snippets[1], names)
        assert names["model"].truncate_dim == 32


def test_cards_replace_those_of_trained_models_that_are_there(tmp_path: Path):
    folder = study(tmp_path / "run")
    for name in ("mnrl", "pretrained"):
        folder.model(name).mkdir(parents=True)
        (folder.model(name) / "README.md").write_text("as the library wrote it", encoding="utf-8")
    data = load_page_data(folder)
    assert write_cards(folder, data) == [folder.model("mnrl") / "README.md"]
    assert (folder.model("mnrl") / "README.md").read_text(encoding="utf-8") == model_card(data, "mnrl")
    assert [path.name for path in folder.model("mnrl").iterdir()] == ["README.md"]
    shutil.rmtree(folder.model("mnrl"))
    assert write_cards(folder, data) == []
    assert not folder.model("mnrl").exists()


def test_a_card_gets_the_address_of_its_model_and_keeps_the_rest():
    card = (
        'model = SentenceTransformer(".")\nmodel = SentenceTransformer("a/b", truncate_dim=8)\n'
        '# as SentenceTransformer(".")'
    )
    assert addressed(card, "shop/search") == (
        'model = SentenceTransformer("shop/search")\nmodel = SentenceTransformer("shop/search", truncate_dim=8)\n'
        '# as SentenceTransformer(".")'
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "hostile",
    [
        "a\n---\nlicense: mit\n---\n# b",
        "'\"}]: {[& *x !!python/object:os.system #",
        "<script>alert(1)</script>|`|[a](javascript:b)\r\n## c\x1b\u2028\u202e",
        "\ud800 half",
    ],
)
def test_hostile_names_break_neither_yaml_nor_markdown(tmp_path: Path, hostile: str):
    folder = study(tmp_path / "run")
    found = json.loads(folder.results_json.read_text(encoding="utf-8"))
    found["data"]["source"] = hostile
    found["hardware"]["processor"] = found["split"]["reason"] = found["training"]["mnrl"]["precision"] = hostile
    folder.results_json.write_text(json.dumps(found), encoding="utf-8")
    text = model_card(load_page_data(folder), "mnrl")
    text.encode()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    head = yaml.safe_load(front)
    assert set(head) == {"base_model", "library_name", "pipeline_tag", "tags", "model-index"}
    (result,) = head["model-index"][0]["results"]
    assert "\n" not in result["dataset"]["name"]
    tags = Tags()
    tags.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    assert "script" not in {tag for tag, _ in tags.seen}
    assert [attrs["href"] for tag, attrs in tags.seen if tag == "a"] == [
        "https://huggingface.co/sentence-transformers/tiny"
    ]
    assert sum(tag == "h1" for tag, _ in tags.seen) == 1


def test_a_leak_is_told_where_the_figures_are(tmp_path: Path):
    folder = make_study(
        tmp_path / "run",
        FIGURES,
        variants=["pretrained", "mnrl"],
        dev={"mnrl": (0.5, 0.6)},
        queries=["train 1", *(f"query {i}" for i in range(N - 1))],
        pages=False,
    )
    text = model_card(load_page_data(folder), "mnrl")
    assert "**Leak, so the figures are too good: train and test share 1 query texts" in text.split("## Usage")[0]


def test_no_text_of_the_data_and_no_folder_is_in_the_card(tmp_path: Path):
    text = model_card(data_of(tmp_path, source="/srv/secret/shop.csv"), "mnrl")
    for leak in ("secret", str(tmp_path), "query 001", "document 1"):
        assert leak not in text


def test_what_was_not_trained_has_no_card(tmp_path: Path):
    with pytest.raises(ValueError, match="'pretrained' was not trained"):
        model_card(data_of(tmp_path), "pretrained")


def test_settings_of_an_earlier_version_are_refused_in_a_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"the run's setting evaluation\.measured does not fit this version"):
        model_card(data_of(tmp_path, change={"evaluation": {"measures": ["recall@10"], "measured": 1}}), "mnrl")
