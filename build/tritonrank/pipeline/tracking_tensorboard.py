"""TensorBoard as a tracker: event files of builds beside those of their trainings."""

from torch.utils.tensorboard import SummaryWriter

from tritonrank.pipeline.tracking import TrackedRun
from tritonrank.system.trackers import tensorboard_folder


class TensorBoardTracker:
    """A Tracker."""

    def log(self, run: TrackedRun, target: str) -> str:
        """See Tracker.

        Args:
            run: what to log; its files stay where they are, as event files hold none.
            target: a folder; empty: ``runs`` in the working folder.
        """
        folder = tensorboard_folder(target, run.experiment) / run.name
        with SummaryWriter(log_dir=str(folder)) as writer:
            for name, value in run.metrics.items():
                writer.add_scalar(name, value)
            for kind, values in (("settings", run.parameters), ("tags", run.tags)):
                rows = "".join(f"| {name} | {value} |\n" for name, value in values.items())
                writer.add_text(kind, f"| name | value |\n| --- | --- |\n{rows}")
            if run.note:
                writer.add_text("note", run.note)
        return f"TensorBoard, {folder}"
