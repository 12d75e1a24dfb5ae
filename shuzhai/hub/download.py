"""Fetch a checkpoint from Hugging Face or ModelScope, whichever can be reached.

The hubs' own packages say what a repository holds; `fetch` brings the bytes. Only weights, JSON
and the tokenizer come: code in a repository is never downloaded, as it would never be run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import httpx
from huggingface_hub import HfApi, hf_hub_url

# HTTPError is that of the HTTP library which the installed huggingface_hub happens to use.
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from modelscope_hub import (
    AuthenticationError,
    HubApi,
    HubConfig,
    HubError,
    NotExistError,
    PermissionDeniedError,
)

from shuzhai.config import Environment
from shuzhai.errors import ConfigError, DownloadError
from shuzhai.hub.catalog import CatalogEntry
from shuzhai.hub.fetch import RemoteFile, fetch, new_client
from shuzhai.hub.progress import Progress, format_bytes

SourceName = Literal["auto", "huggingface", "modelscope"]

PROBE_SECONDS = 5.0
LIST_SECONDS = 20.0

# One folder deep, plain names: what a hub says can become no path outside ours.
_USEFUL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.(json|safetensors)|tokenizer\.model")
_PICKLED = re.compile(r"pytorch_model[A-Za-z0-9_.-]*\.bin")
_WHAT_TO_DO = (
    "Check the network, set HF_ENDPOINT to a mirror of huggingface.co (such as "
    "https://hf-mirror.com), or give a folder that holds the checkpoint instead of a name."
)


class Hub(Protocol):
    """A place that holds model repositories."""

    @property
    def label(self) -> str: ...

    @property
    def endpoint(self) -> str: ...

    def list_files(self, repo: str) -> list[RemoteFile]:
        """All files of a repository's main branch; DownloadError if that cannot be had."""
        ...


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """huggingface.co or a mirror of it."""

    endpoint: str
    label: str = "Hugging Face"

    def list_files(self, repo: str) -> list[RemoteFile]:
        api = HfApi(endpoint=self.endpoint, token=False)
        try:
            info = api.model_info(repo, files_metadata=True, timeout=LIST_SECONDS)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403, 404):  # 401 is what it says of names that do not exist
                raise DownloadError(f"{repo} is not public on {_host(self)}") from error
            raise DownloadError(f"{_host(self)} answered {status} for {repo}") from error
        except OfflineModeIsEnabled as error:
            raise DownloadError("HF_HUB_OFFLINE is set, which forbids downloads") from error
        except (HTTPError, OSError, ValueError, KeyError) as error:
            raise DownloadError(f"{_host(self)} gave no list of files ({_brief(error)})") from error
        files = []
        for sibling in info.siblings or ():
            digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
            # By commit, so that all files are of one state even if the authors push meanwhile.
            url = hf_hub_url(repo, sibling.rfilename, revision=info.sha, endpoint=self.endpoint)
            size = -1 if sibling.size is None else sibling.size
            files.append(RemoteFile(sibling.rfilename, url, size, digest))
        return files


@dataclass(frozen=True, slots=True)
class ModelScope:
    """modelscope.cn or a mirror of it."""

    endpoint: str
    label: str = "ModelScope"

    def list_files(self, repo: str) -> list[RemoteFile]:
        # The package keeps an id of the installation, which it sends along, and credentials in
        # its folder: an empty one that is thrown away says nothing about the user.
        with tempfile.TemporaryDirectory() as folder:
            config = HubConfig(
                endpoint=self.endpoint, cache_dir=Path(folder), config_dir=Path(folder), token=""
            )
            api = HubApi(config=config)
            try:
                listed = api.list_repo_files(repo, "model", recursive=False)
            except (NotExistError, AuthenticationError, PermissionDeniedError) as error:
                raise DownloadError(f"{repo} is not public on {_host(self)}") from error
            except (HubError, OSError, ValueError, KeyError) as error:
                raise DownloadError(
                    f"{_host(self)} gave no list of files ({_brief(error)})"
                ) from error
        url_of = api.legacy.get_download_url
        return [
            RemoteFile(file.path, url_of(repo, "model", file.path), file.size, file.sha256)
            for file in listed
            if not file.is_dir
        ]


def download(
    entry: CatalogEntry,
    staging: Path,
    source: SourceName,
    environment: Environment,
    progress: Progress,
) -> Path:
    """Fetch the entry's checkpoint to a folder in `staging`, complete and checked; its path.

    What is in `staging` from an earlier run is gone on with. With source "auto" the hub that
    answers first is used, and the other one if that fails. DownloadError tells each reason.
    """
    reasons = []
    for hub, repo in _choose(entry, source, environment):
        try:
            return _download_from(hub, repo, entry.name, staging, progress)
        except DownloadError as error:
            reasons.append(f"{hub.label}: {str(error).rstrip('.')}.")
    raise DownloadError(f"{entry.name} could not be fetched. {' '.join(reasons)} {_WHAT_TO_DO}")


def select_files(files: Sequence[RemoteFile], repo: str) -> list[RemoteFile]:
    """Those files of a repository that a checkpoint needs, small ones first.

    Pickled weights (.bin) only where there are no safetensors. DownloadError when something is
    missing, or when weights come without a checksum or a size.
    """
    chosen = [file for file in files if _USEFUL.fullmatch(file.name)]
    if any(file.name.endswith(".safetensors") for file in chosen):
        chosen = [file for file in chosen if not file.name.endswith(".bin.index.json")]
    else:
        chosen += [file for file in files if _PICKLED.fullmatch(file.name)]
    weights = [file for file in chosen if file.name.endswith((".safetensors", ".bin"))]
    if not weights or not any(file.name == "config.json" for file in chosen):
        raise DownloadError(f"{repo} holds no checkpoint (config.json and weights)")
    for file in chosen:
        if file.size < 0 or (file in weights and len(file.digest or "") != 64):
            raise DownloadError(f"the hub does not tell size and sha256 of {file.name}")
    return sorted(chosen, key=lambda file: (file.size, file.name))


def _download_from(hub: Hub, repo: str, name: str, staging: Path, progress: Progress) -> Path:
    if not _answers(hub):  # the hubs' packages would try for long
        raise DownloadError(f"{_host(hub)} cannot be reached")
    files = select_files(hub.list_files(repo), repo)
    folder, parts = staging / "files", staging / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    for stale in folder.iterdir():
        if stale.name not in {file.name for file in files}:
            stale.unlink()
    total = sum(file.size for file in files)
    here = sum(path.stat().st_size for each in (folder, parts) for path in each.iterdir())
    free = shutil.disk_usage(staging).free
    if free < total - here:
        raise DownloadError(
            f"{name} needs {format_bytes(total - here)} more and the disk of {staging} has "
            f"{format_bytes(free)} free"
        )
    progress.begin(f"Downloading {name} from {hub.label}", total)
    with new_client() as client:
        for file in files:
            fetch(client, file, folder / file.name, parts, progress)
    return folder


def _choose(
    entry: CatalogEntry, source: SourceName, environment: Environment
) -> list[tuple[Hub, str]]:
    """The hubs to try, in order, each with the entry's id there."""
    known: dict[str, tuple[Hub, str]] = {}
    if entry.huggingface is not None:
        endpoint = _endpoint(environment.hf_endpoint, "https://huggingface.co")
        known["huggingface"] = (HuggingFace(endpoint), entry.huggingface)
    if entry.modelscope is not None:
        endpoint = _endpoint(environment.modelscope_endpoint, "https://modelscope.cn")
        known["modelscope"] = (ModelScope(endpoint), entry.modelscope)
    if source != "auto":
        if source not in known:
            raise ConfigError(f"{entry.name} is not on {source}; leave the source out")
        return [known[source]]
    if environment.hf_endpoint is not None:
        return list(known.values())  # who names a mirror wants it used
    first = _first_to_answer([hub for hub, _ in known.values()])
    if first is None:
        hosts = " nor ".join(_host(hub) for hub, _ in known.values())
        raise DownloadError(f"neither {hosts} can be reached. {_WHAT_TO_DO}")
    return sorted(known.values(), key=lambda pair: pair[0] != first)


def _first_to_answer(hubs: Sequence[Hub]) -> Hub | None:
    """The hub that answers first; None if none does within PROBE_SECONDS."""
    pool = ThreadPoolExecutor(len(hubs))
    try:
        probes = {pool.submit(_answers, hub): hub for hub in hubs}
        return next((probes[done] for done in as_completed(probes) if done.result()), None)
    finally:
        pool.shutdown(wait=False)


def _answers(hub: Hub) -> bool:
    """Whatever it answers. DownloadError when the environment's proxy cannot be used."""
    try:
        with new_client() as client:
            client.head(hub.endpoint, timeout=PROBE_SECONDS, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


def _endpoint(given: str | None, default: str) -> str:
    endpoint = (given or default).rstrip("/")
    return endpoint if "://" in endpoint else f"https://{endpoint}"


def _host(hub: Hub) -> str:
    return urlsplit(hub.endpoint).hostname or "the hub"


def _brief(error: BaseException) -> str:
    """The kind of an error: its text may hold addresses, and is seldom for people."""
    return type(error).__name__
