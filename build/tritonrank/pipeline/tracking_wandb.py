"""Weights & Biases as a tracker: one project per recipe, or the one that was named; one run per build."""

import wandb

from tritonrank.pipeline.tracking import TrackedRun
from tritonrank.system.trackers import set_defaults, wandb_defaults, wandb_place


class WandbTracker:
    """A Tracker."""

    def log(self, run: TrackedRun, target: str) -> str:
        """See Tracker.

        Args:
            run: what to log.
            target: ``ENTITY/PROJECT`` or ``PROJECT``; empty: offline, the recipe's name is the project.
        """
        set_defaults(wandb_defaults(target))
        project, entity = wandb_place(target, run.experiment)
        tags = [f"{name}:{value}"[:64] for name, value in run.tags.items()]
        with wandb.init(
            project=project,
            entity=entity,
            name=run.name,
            config=dict(run.parameters),
            tags=tags,
            job_type=run.kind,
            notes=run.note or None,
        ) as opened:
            opened.summary.update(run.metrics)
            if run.files:
                report = wandb.Artifact(f"report-{run.name}", type="report")
                for path in run.files:
                    report.add_file(str(path))
                opened.log_artifact(report)
            where = opened.url or opened.dir
        return f"W&B, {where}"
