"""Push a trained model of a run to a model hub: what is uploaded, the checks before, and one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling import atomic
from nestling.config.manifests import read_json
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError, first_line, unread
from nestling.models.load import needs_newest
from nestling.report.model_card import CARD, addressed, model_card
from nestling.report.page_data import PageData, load_page_data
from nestling.training.result import SUMMARY

SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model"})
"""File suffixes of a SentenceTransformer; no pickle, so no state of an optimizer, and no code."""
AGAIN = "train the variant again with nestling run"


@dataclass(frozen=True)
class _Module:
    path: str


@dataclass(frozen=True)
class Upload:
    """The files of a push: paths within the repository, each with where its file lies or, of the card, its bytes."""

    repo_id: str
    variant: str
    model: Path
    files: dict[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


def plan(run: Path, variant: str, repo_id: str, *, force: bool = False) -> Upload:
    """Check a run's model and return what `send` sends, without a look at the network and without writing anything.

    The card is the one in the model's folder, else made from the run's tables; its usage snippet names the repository.

    With `force` a model that ended on dev below its base is taken, too.
    """
    _check_repo_id(repo_id)
    folder = RunFolder(run)
    data = load_page_data(folder)
    _check_variant(folder, data, variant)
    worse = data.regressions.get(variant)
    if worse and not force:
        raise InputError(
            f"{variant} of {run} is a REGRESSION: on dev it ended below {worse}; push another variant, or give --force"
        )
    model = folder.model(variant)
    files: dict[str, Path | bytes] = dict(_model_files(model))
    card = model / CARD
    if card.is_symlink():
        raise InputError(f"{card} is a link; put the file there")
    try:
        text = card.read_text("utf-8") if card.is_file() else model_card(data, variant, newest=needs_newest(model))
    except UnicodeDecodeError:
        raise InputError(f"{card} is not UTF-8; remove it, and nestling report {run} writes it again") from None
    files[CARD] = addressed(text, repo_id).encode()
    return Upload(repo_id, variant, model, dict(sorted(files.items())))


def send(
    upload: Upload,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload what `plan` returned to a hub, in one commit; return the commit's URL.

    The repository is made where it is missing, and so is the branch. Files that it has and the model has not stay. The
    token is what huggingface_hub finds. Afterwards the card in the model's folder is the one that was sent.

    A private push to a repository that is public is refused. The branch `revision` is by default the main one, the
    hub's URL `endpoint` huggingface.co or HF_ENDPOINT.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if endpoint is not None and not re.match(r"https?://[^/\s]", endpoint):
        raise InputError(f"endpoint {endpoint!r} is no URL; give one that begins with https://")
    token = get_token()
    if token is None:
        raise InputError("no token for the hub; log in with hf auth login, or set HF_TOKEN to one that may write")
    api, repo_id = HfApi(endpoint=endpoint, token=token), upload.repo_id
    with _hub_errors(repo_id, api.endpoint):
        # A token may be good for one repository and not for making any.
        if not api.repo_exists(repo_id):
            # None, not False, leaves the choice to the owner's settings.
            api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(f"{repo_id} exists and is public; make it private there first, or push without --private")
        if revision not in (None, "main"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # upload_folder may spread its files over several commits, so that a reader meets half a model.
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in upload.files.items()],
            commit_message=message or f"Upload {upload.variant}, trained with Nestling",
            revision=revision,
        )
    card = upload.files[CARD]
    assert isinstance(card, bytes)
    atomic.write_text(upload.model / CARD, card.decode())
    return str(commit.commit_url)


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    with suppress(HFValidationError):
        validate_repo_id(repo_id)
        if re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
            return
    raise InputError(
        f"{repo_id!r} is no valid id of a repository; give OWNER/NAME of letters, digits, '-', '_' and '.', as in "
        "my-shop/search-model"
    )


def _check_variant(folder: RunFolder, data: PageData, variant: str) -> None:
    results: dict[str, Any] = data.study["training"]
    trained = [name for name in data.trained if name in results]
    if variant not in trained or Path(variant).name != variant:
        known = variant in [each["name"] for each in data.variants]
        what = f"{variant!r} was not trained, so it is its base as it was" if known else f"no variant {variant!r}"
        raise InputError(f"{folder.path}: {what}; trained are: {', '.join(trained) or 'none'}")
    summary = folder.training(variant) / SUMMARY
    if summary.is_file() and read_json(summary, Any, advice=AGAIN) != results[variant]:
        raise InputError(
            f"{folder.path}: {variant} was trained again after the run's results were written; finish it with nestling "
            "run"
        )


def _model_files(model: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path within the repository, path) of the model's files, and raise where the model is not whole."""
    from safetensors import SafetensorError, safe_open

    path = model / "modules.json"
    missing = f"there is no {path}, so the model is not whole; train it again with nestling run"
    modules = read_json(path, list[_Module], advice=AGAIN, missing=missing)
    paths: list[Path] = []
    for place in dict.fromkeys(["", *(module.path for module in modules)]):
        folder = model / place
        if ".." in Path(place).parts or Path(place).is_absolute() or not folder.is_dir():
            raise InputError(f"{model}: its module {place!r} is not there; {AGAIN}")
        # Of the model's own folder the files alone, since not every folder in it need be a module.
        paths += sorted(folder.rglob("*") if place else folder.iterdir())
    weights = 0
    for path in dict.fromkeys(paths):
        name = path.relative_to(model)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_dir() or hidden or path.suffix not in SUFFIXES or path.name == "trainer_state.json":
            continue
        if path.is_symlink() or not path.resolve().is_relative_to(model.resolve()):
            raise InputError(f"{path} is a link, and what it leads to may be no part of the model; put the file there")
        if path.suffix == ".safetensors":
            try:
                # Reads the header alone, and compares the file's length with it.
                with safe_open(path, framework="numpy"):
                    weights += 1
            except (SafetensorError, OSError) as error:
                raise unread(path, error, f"{path} is damaged ({error}); {AGAIN}") from None
        yield name.as_posix(), path
    if not weights:
        raise InputError(f"{model} holds no .safetensors weights; {AGAIN}")


@contextmanager
def _hub_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn what the hub's client raises into a line that says what to do."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # The client's threads wrap the hub's answer.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        if isinstance(cause, HfHubHTTPError):
            line = _refusal(cause.response.status_code, cause.server_message, repo_id, endpoint)
        elif isinstance(cause, OfflineModeIsEnabled):
            line = "HF_HUB_OFFLINE is set, so nothing is sent; unset it, then push again"
        elif isinstance(cause, HTTPError | ConnectionError):
            line = f"{endpoint} cannot be reached ({first_line(cause)}); look at the network, then push again"
        elif isinstance(cause, RuntimeError | ValueError):
            line = f"{endpoint} did not take {repo_id}: {first_line(cause)}"
        else:
            raise
        raise InputError(line) from None


def _refusal(status: int, message: str | None, repo_id: str, endpoint: str) -> str:
    advice = {
        401: "the token is not accepted; log in again with hf auth login, or set HF_TOKEN to one that may write",
        403: f"the token may not write to {repo_id}; take one with the write role, or an owner that it belongs to",
        404: f"there is no {repo_id}, or the token may not see it; look at the id, the owner and the revision",
        409: f"{repo_id} changed meanwhile; push again",
        429: "too many requests; wait, then push again",
    }.get(status, "push again later" if status >= 500 else "look at what it says")
    quoted = f" ({' '.join(message.split())})" if message else ""
    return f"{endpoint} answers {status}{quoted}: {advice}"
