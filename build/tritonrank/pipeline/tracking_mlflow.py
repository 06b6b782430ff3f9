"""MLflow as a tracker: one experiment per recipe, one run per build."""

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME

from tritonrank.pipeline.tracking import TrackedRun
from tritonrank.system.trackers import mlflow_defaults, mlflow_uri, set_defaults

BATCH = 100
"""Parameters and tags in one call: MLflow's limit."""


class MLflowTracker:
    """A Tracker."""

    def log(self, run: TrackedRun, target: str) -> str:
        """See Tracker.

        Args:
            run: what to log.
            target: a tracking URI; empty: MLFLOW_TRACKING_URI, else files.
        """
        uri = mlflow_uri(target)
        set_defaults(mlflow_defaults(uri))
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(run.experiment)
        experiment = found.experiment_id if found else client.create_experiment(run.experiment)
        run_id = client.create_run(experiment, run_name=run.name, tags=run.tags).info.run_id
        try:
            parameters = [Param(name, value) for name, value in run.parameters.items()]
            for start in range(0, len(parameters), BATCH):
                client.log_batch(run_id, params=parameters[start : start + BATCH])
            at = client.get_run(run_id).info.start_time
            client.log_batch(run_id, metrics=[Metric(name, value, at, 0) for name, value in run.metrics.items()])
            tags = {MLFLOW_SOURCE_NAME: f"tritonrank {mlflow.__version__}"}
            tags |= {MLFLOW_RUN_NOTE: run.note} if run.note else {}
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            for path in run.files:
                client.log_artifact(run_id, str(path))
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
        return f"MLflow at {uri}, experiment {run.experiment}, run {run_id}"
