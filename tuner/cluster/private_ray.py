"""Control, from the driver, the process that runs a private Ray on this machine (tuner.cluster.private_ray_main)."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Mapping
from typing import Self

from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.system.processes import own_process

_END_WITHIN = 30.0  # seconds until the process is killed if it does not end by itself
_NOTHING: Mapping[str, str] = {}
MODE, _TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# The driver writes all records. Ray's loggers, snapshots and reporter would only cost time.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PL_DISABLE_FORK": "1",  # Tune would set it for its actors, but `in_waiting_processes` prevents this
    # One thread per trial process: on busy CPUs, a trial of one second with two threads takes 35 seconds.
    "OMP_NUM_THREADS": "1",
}

# Nobody reads the task events of a private Ray. They would take 15 KiB for each trial.
_OWN = {"RAY_task_events_report_interval_ms": "0", MODE: "token"}
# Ray waits 40 s in each attempt to join a cluster that does not answer, and by default makes 20 attempts.
_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # without it Ray listens on all interfaces


def settle_environment(*, own: bool = False) -> None:
    """Set Ray's environment variables for this process and its children. Variables that the user has set keep their
    values, except the variable that makes a private Ray listen on loopback only.

    Args:
        own: whether to set the variables of a private Ray. If False, the variables for joining a running cluster are
            set. If True, call this function before Ray is imported. The private Ray then requires a token that only its
            own processes have, except if the user has set RAY_AUTH_MODE to another mode.
    """
    for name, value in (_ENVIRONMENT | (_OWN if own else _JOINING)).items():
        os.environ.setdefault(name, value)
    if own:
        os.environ.update(_LOOPBACK)
        if asks_for_token() and not any(name in os.environ for name in _TOKENS):
            os.environ[_TOKENS[0]] = secrets.token_hex()


def asks_for_token() -> bool:
    """Return whether this process's environment makes Ray require a token from each process that connects."""
    return os.environ.get(MODE, "").lower() == "token"


class NodeProcess:
    """Makes a new process, which starts a private Ray and keeps it running. Use this object as a context manager. The
    new process ends at the end of the block. If the driver dies earlier, the new process ends, too.

    Args:
        config: the study's settings.
        variables: more environment variables for Ray's processes.
        plain: the reason, in one line, to start Ray through its public API. If "", the fast start (see
            tuner.cluster.private_ray_main) is tried first.
        ahead: whether workers start, and load the libraries of trials, before the first trial.
        say: a function that is called with each line for the user, in the thread that calls `address`.

    Attributes:
        plain: the reason why Ray was started through its public API. It is "" if the fast start succeeded, and before
            `address` has returned.
    """

    def __init__(
        self,
        config: StudyConfig,
        variables: Mapping[str, str] = _NOTHING,
        *,
        plain: str = "",
        ahead: bool = True,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        names = ("cpus_per_trial", "gpus_per_trial", "workers_per_trial", "trials", "concurrency")
        wanted = {"ahead": ahead, "sizes": {name: getattr(config, name) for name in names}}
        self._process = subprocess.Popen(
            own_process("tune_sparsity.tuner.cluster.private_ray_main", json.dumps(wanted), plain),
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is only for the driver
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._said: dict[str, str] | None = None
        self._say, self.plain = say, ""

    def address(self) -> str:
        """Wait until Ray has started, and return its address.

        Raises:
            RuntimeError: if Ray does not start.
        """
        while self._said is None:
            message = json.loads(self._output.readline() or "{}")
            if "plain" in message:
                self.plain = message["plain"]
                self._say(f"Ray is started through its public API, which takes longer ({self.plain})")
            elif "again" in message:
                self._say(f"Ray is started once more ({message['again']})")
            else:
                self._said = message
        if "address" not in self._said:
            raise RuntimeError(f"Ray did not start: {self._said.get('error', 'its process died')}")
        return self._said["address"]

    def wait(self) -> None:
        """Wait until Ray ends: because the driver ends it, or because one of Ray's two servers (gcs_server, raylet) has
        died. Call `address` first."""
        self._output.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        # If the driver never used Ray, for example after a user's mistake, Ray need not end gracefully. The kernel
        # kills Ray's servers when the process that started them is killed.
        if self._said is None:
            self._process.kill()
        self._input.close()
        try:
            self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
