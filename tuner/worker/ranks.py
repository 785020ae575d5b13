"""Trains one trial in several processes, called ranks. The first rank is the process in which Ray Tune runs the trial.
The other ranks are actors of Ray.

The trial's placement group has one bundle for each rank. Ray Tune runs several trials in the first rank, one after
another. The first rank starts the other ranks once, and uses them for all these trials. The other ranks do nothing
until the first rank calls them, once in each epoch. If a trial is stopped early, the other ranks therefore need no
message.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore

from tune_sparsity.experiments import OwnTraining
from tune_sparsity.experiments.ranks import TIMEOUT, Disconnected, Ranks
from tune_sparsity.experiments.training import Training
from tune_sparsity.tuner.errors import one_line

_LOOPBACK = "127.0.0.1"

Build = Callable[[dict[str, Any], Ranks], Training | OwnTraining]
"""A function that returns the training in one rank. Its arguments are the trial's config and the rank's connections."""


class WorkerLost(Disconnected):
    """Reports that another process of the same trial has ended, or does not answer."""


@dataclass(frozen=True)
class RankPlan:
    """Describes the ranks (processes) that train a trial together.

    Attributes:
        size: the number of ranks of a trial, at least 2.
        cpus: the number of CPUs for each rank.
        gpus: the number of GPUs for each rank.
        setup: a reference to the study's TrialSetup in Ray's object store.
    """

    size: int
    cpus: float
    gpus: float
    setup: Any

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


class Rank:
    """One rank of a trial, as an actor of Ray. The ranks are the processes that train the trial together. Each rank
    except the first one is an actor of this class.

    Args:
        builder: a function with the arguments `setup` and `arrays`. It returns a `Build`: a function that returns the
            training of one trial.
        setup: the study's TrialSetup.
        arrays: the training and validation data, from `tuner.cluster.node_data.for_workers`.
        rank: the number of this rank, from 1.
        plan: the plan of all ranks.
    """

    def __init__(self, builder: Callable[[Any, Any], Build], setup: Any, arrays: Any, rank: int, plan: RankPlan):
        self._build, self._rank, self._plan = builder(setup, arrays), rank, plan
        self._ranks: Ranks | None = None
        self._training: Training | OwnTraining | None = None

    def do(self, what: str, *args: Any) -> None:
        """Run this rank's part of a step that all ranks do together. If the step fails, leave the process group, so
        that the other ranks do not wait for this process. Then raise the error.

        Args:
            what: the step: "join", "begin", "load", "train" or "leave".
            args: the arguments of this step.
        """
        try:
            getattr(self, f"_{what}")(*args)
        except Exception:
            self._leave()
            raise

    def _leave(self) -> None:
        self._training = None
        if self._ranks is not None:
            self._ranks.leave()

    def _join(self, address: str, port: int) -> None:
        self._ranks = _joined(self._rank, self._plan, TCPStore(address, port, timeout=TIMEOUT), address)

    def _begin(self, config: dict[str, Any]) -> None:
        assert self._ranks is not None
        self._training = None
        self._training = self._build(config, self._ranks)

    def _load(self, state: dict[str, Any]) -> None:
        assert self._training is not None
        self._training.load_state_dict(state)

    def _train(self) -> None:
        assert self._training is not None
        self._training.train()


def _joined(rank: int, plan: RankPlan, store: TCPStore, address: str) -> Ranks:
    if address == _LOOPBACK:  # Ray runs only on this machine, so Gloo and NCCL must not listen on other interfaces
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return Ranks(rank, plan.size, store, plan.device)


class Others:
    """Starts the other ranks of a trial and calls them. The first rank uses this class.

    Args:
        plan: the plan of all ranks.
        builder: the argument of Rank. Ray sends it to the other ranks.
        arrays: the training and validation data. Ray sends them to the other ranks.
    """

    def __init__(self, plan: RankPlan, builder: Callable[[Any, Any], Build], arrays: Any) -> None:
        self._plan = plan
        self._ranks: Ranks | None = None
        actor: Any = ray.remote(Rank)
        group = ray.util.get_current_placement_group()
        assert group is not None
        self._actors: list[Any] = [
            actor.options(
                num_cpus=plan.cpus,
                num_gpus=plan.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote(builder, plan.setup, arrays, rank, plan)
            for rank in range(1, plan.size)
        ]

    def connected(self) -> Ranks:
        """Return the connections to the other ranks. If there are none yet, or if an error has closed them, connect all
        ranks first."""
        if self._ranks is None or not self._ranks.connected:
            with self.doing("leave"):
                pass
            address = ray.util.get_node_ip_address()
            listener = socket.create_server((address, 0))
            port = listener.getsockname()[1]
            store = TCPStore(
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=TIMEOUT,
                master_listen_fd=listener.detach(),
            )
            with self.doing("join", address, port):
                self._ranks = _joined(0, self._plan, store, address)
        return self._ranks

    @contextmanager
    def doing(self, what: str, *args: Any) -> Iterator[None]:
        """Run a step in the other ranks. Within the `with` block, the caller does this process's own part of the step.

        Args:
            what: the step, as in `Rank.do`.
            args: the arguments of this step.

        Raises:
            Disconnected: if another rank has ended, or does not answer. The error may be a WorkerLost, which is a
                subclass of Disconnected. The trial can then be tried again in new processes.
            Exception: the error of a rank. If several ranks fail, this is the error that made the others fail.
        """
        asked = [actor.do.remote(what, *args) for actor in self._actors]
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
            self._leave()  # first of all, because the other ranks may wait for this process
        failures = [error for error in (own, *map(_failure, asked)) if error is not None]
        if failures:
            self._leave()
            raise min(failures, key=_consequence)

    def _leave(self) -> None:
        if self._ranks is not None:
            self._ranks.leave()


def _failure(asked: Any) -> Exception | None:
    """Wait for another rank. Return its error, or None if it succeeded."""
    try:
        ray.get(asked, timeout=TIMEOUT.total_seconds())
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return WorkerLost(f"a worker of the trial was lost: {one_line(error)}")
    return None


def _consequence(error: Exception) -> int:
    """Return a key that sorts errors of several ranks. The smallest key is the cause, and the other errors are
    consequences."""
    return 0 if isinstance(error, WorkerLost) else 2 if isinstance(error, Disconnected) else 1


class LeadingTraining(Training):
    """The training in the first rank of a trial. Each step also runs in the other ranks.

    Args:
        others: the other ranks.
        config: the trial's config, which is sent to the other ranks.
        args: positional arguments of Training.
        options: keyword arguments of Training.
    """

    def __init__(self, others: Others, config: dict[str, Any], *args: Any, **options: Any) -> None:
        self._others = others
        ranks = others.connected()
        with others.doing("begin", config):
            super().__init__(*args, ranks=ranks, **options)

    def train(self) -> float:
        with self._others.doing("train"):
            return super().train()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self._others.doing("load", ray.put(state)):
            super().load_state_dict(state)
