"""Describe a node of a cluster. This module runs on the node. The module imports only Python's standard library, so
that it can report a missing package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "numpy", "safetensors", "pydantic")
"""The packages that a trial's process imports. Only the driver imports optuna and mlflow."""
OURS = "tune_sparsity"
PATIENCE = 10.0  # seconds that a network file system may take to show what another machine wrote


def probe(storage: Any, token: str, name: str) -> dict[str, Any]:
    """Return a description of this node: its versions, its GPUs and its access to the storage.

    Args:
        storage: a tuner.storage.places.Place that contains a file "driver". The driver has written the token into this
            file. If None, the storage is not tested.
        token: the content that the file "driver" must have.
        name: the name of a file that this node writes into the storage. The file's content is the token.

    Returns:
        A dict with three keys.
        versions: a dict with an entry for each package of PACKAGES: the package's version, or "" if the package is not
            installed. The entry "python" is the version of Python. The entry "tune-sparsity" is a digest of our code.
        gpus: a list with a dict for each GPU: its "name", and its "total" and "free" memory in MiB.
        storage: the problem with the storage, as the end of a sentence about this node, such as "cannot write there".
            "" if there is no problem.
    """
    return {"versions": versions(), "gpus": gpus(), "storage": _storage(storage, token, name)}


def versions() -> dict[str, str]:
    """Return the versions of Python, our code and the packages that a trial's process needs."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}, "tune-sparsity": code()}


def code() -> str:
    """Return a digest of the code of the package `tune_sparsity`, or "" if this process cannot import the package."""
    spec = importlib.util.find_spec(OURS)
    if spec is None or spec.origin is None:
        return ""
    package, digest = Path(spec.origin).parent, hashlib.sha256()
    # In a checkout the package's folders are links, which only os.walk follows.
    files = [Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names]
    for path in sorted(file for file in files if file.suffix == ".py"):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def gpus() -> list[dict[str, Any]]:
    """Return the GPUs that nvidia-smi lists, including GPUs that CUDA_VISIBLE_DEVICES hides. The result is the entry
    "gpus" of the result of `probe`."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.rsplit(",", 2)] for line in listed.splitlines() if line.strip()]
    return [
        {"name": name, "total": int(total), "free": int(free)}
        for name, total, free in rows
        if total.isdecimal() and free.isdecimal()
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _storage(place: Any, token: str, name: str) -> str:
    if place is None:
        return ""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            seen = place.read("driver") == token.encode()
            break
        except FileNotFoundError:
            if time.monotonic() > end:
                return "does not see the files that the driver writes there"
            time.sleep(0.2)
        except OSError as error:
            return f"cannot read there ({error.strerror or error})"
    if not seen:
        return "has another folder of this name"
    try:
        place.write(name, token.encode())
    except OSError as error:
        return f"cannot write there ({error.strerror or error})"
    return ""
