"""Ray's callback of Weights & Biases, whose logs are whole; imported where W&B is asked for, and by its processes."""

from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor


class Closing(_WandbLoggingActor):
    """Ends once W&B's own process has written its file, for which `finish` does not wait: Ray then kills both."""

    def run(self) -> None:
        super().run()  # type: ignore[no-untyped-call]  # Ray leaves it unannotated
        self._wandb.teardown()


class Complete(WandbLoggerCallback):
    _logger_actor_cls = Closing
