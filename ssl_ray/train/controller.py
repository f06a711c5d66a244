"""Ray Train's controller in the job's own process, which only waits for it.

As an actor it is a process whose imports every training waits for, five to seven seconds on two cores. What the actor's end
would have cleaned up is cleaned up here: the workers' places belong to the job's process, and that may live on (a notebook).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from ssl_ray.cluster import own_ray

PAUSE_S = 0.2
"""Between two looks for room, where there is none yet: Ray's own controller looks without a pause."""
STOP_S = 2.0
"""How long a controller that is stopped may take to notice. Ray kills a job three seconds after it was asked to stop."""


class _Group(WorkerGroup):
    """Ray's, whose workers get no handle of the controller, through which ours would ask it nothing: it is no actor here."""

    places: list[Any]  # handles of the placement groups that were made

    def _create_placement_group(self, *args: Any) -> Any:
        self.places.append(super()._create_placement_group(*args))
        return self.places[-1]

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: dict[str, list[Any]]) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[place] for name, values in train_context_args.items()},
            )
            for place, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    def __init__(self, **given: Any) -> None:
        self.places: list[Any] = []
        self.worker_group_cls = type("Group", (_Group,), {"places": self.places})
        super().__init__(**given)

    async def _step(self) -> Any:
        await asyncio.sleep(0)  # else a stop would not get through while places are waited for
        result = await super()._step()
        if result.next_state is result.previous_state:  # waits for room
            await asyncio.sleep(PAUSE_S)
        return result

    def release(self) -> None:
        """Take back whatever workers and places there still are."""
        with contextlib.suppress(Exception):
            if self._worker_group is not None:
                self._worker_group.abort()
        for place in self.places:
            with contextlib.suppress(Exception):
                place.shutdown()


def control_here(**given: Any) -> Result:
    """Run a controller to its end, in a thread: so the main thread hears of Ctrl-C at once, whatever the controller waits for,
    and a notebook's own event loop is not in its way.

    Raises:
        TrainingFailedError: as Ray's trainer does.
    """
    if own_ray():  # what goes wrong comes out as an error, or as a line of ours; on a cluster Ray's say what is waited for
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    controller = _Controller(**given)
    loop, ended = asyncio.new_event_loop(), Future[None]()
    task = loop.create_task(controller.run())

    def work() -> None:
        try:
            loop.run_until_complete(task)
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=work, name="train-controller", daemon=True)
    thread.start()
    try:
        ended.result()
        return controller.get_result()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join(STOP_S)
        controller.release()  # also from under a controller that still waits for its places
        raise
