"""The processes of a trial that several train together: the trial's own leads, the others are Ray's actors beside it.

The trial's placement group has a bundle for each. The others are started once, and serve all trials of the process
that started them. They do what it asks for, an epoch at a time. So what it decides, to stop or to begin another trial,
they need not be told.
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
"""Makes a rank's training of a trial's config."""


class WorkerLost(Disconnected):
    """A process of the trial has ended, or does not answer."""


@dataclass(frozen=True)
class RankPlan:
    """Holds what a trial needs to start its other ranks.

    Attributes:
        size: ranks of a trial, at least 2.
        cpus, gpus: of each.
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
    """A rank other than the first, as Ray's actor.

    Args:
        builder: makes a Build of the TrialSetup and the data.
    """

    def __init__(self, builder: Callable[[Any, Any], Build], setup: Any, arrays: Any, rank: int, plan: RankPlan):
        self._build, self._rank, self._plan = builder(setup, arrays), rank, plan
        self._ranks: Ranks | None = None
        self._training: Training | OwnTraining | None = None

    def do(self, what: str, *args: Any) -> None:
        """Do what the first rank does at the same time. On an error leave it, or it would wait for this process."""
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
    if address == _LOOPBACK:  # of a private Ray: nothing else is to listen to other machines either
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return Ranks(rank, plan.size, store, plan.device)


class Others:
    """The other ranks, for the first one.

    Args:
        builder: as of Rank; Ray carries it, and the data, to the others.
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
        """Return this process's rank: the one that is connected, or one of new connections after an error."""
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
        """Have the others do something while this process does its part of it within the block.

        Raises:
            Disconnected: if one of them has ended, or does not answer: the trial is worth another try in other
                processes.
            Exception: what was raised in one of the processes, if that is what made the others fail.
        """
        asked = [actor.do.remote(what, *args) for actor in self._actors]
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
            self._leave()  # before anything else: others may wait for this process
        failures = [error for error in (own, *map(_failure, asked)) if error is not None]
        if failures:
            self._leave()
            raise min(failures, key=_consequence)

    def _leave(self) -> None:
        if self._ranks is not None:
            self._ranks.leave()


def _failure(asked: Any) -> Exception | None:
    """Wait for another rank. Return why it failed, or None."""
    try:
        ray.get(asked, timeout=TIMEOUT.total_seconds())
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return WorkerLost(f"a worker of the trial was lost: {one_line(error)}")
    return None


def _consequence(error: Exception) -> int:
    """Order errors that came together, the one first that is the cause of the others."""
    return 0 if isinstance(error, WorkerLost) else 2 if isinstance(error, Disconnected) else 1


class LeadingTraining(Training):
    """The training of the first rank: whatever happens to it happens to the others' too.

    Args:
        others: with which it trains.
        config: of the trial, for the others.
        args, options: of Training.
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
