"""MLflow as a tracker: one experiment per recipe, one run per build."""

import os
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from tritonrank.pipeline.tracking import TrackedRun, set_defaults

URI_VARIABLE = "MLFLOW_TRACKING_URI"
FILES = "mlruns"
"""Where runs go when nobody named a place; ``mlflow ui --backend-store-uri`` shows them."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
"""A server that is down is asked for 7 minutes else."""
ALLOW_FILES = {"MLFLOW_ALLOW_FILE_STORE": "true"}
"""MLflow 3 asks for it, as its file store gets no new features; it needs neither a server nor a database."""
BATCH = 100
"""Parameters and tags in one call: MLflow's limit."""
SCHEMES_OF_FILES = ("file", "")


class MLflowTracker:
    """A Tracker."""

    def log(self, run: TrackedRun, target: str) -> str:
        """See Tracker.

        Args:
            run: what to log.
            target: a tracking URI; empty: MLFLOW_TRACKING_URI, else files.
        """
        uri = target or os.environ.get(URI_VARIABLE) or Path(FILES).absolute().as_uri()
        set_defaults(IMPATIENT)
        if uri.partition(":")[0] in SCHEMES_OF_FILES or "://" not in uri:
            set_defaults(ALLOW_FILES)
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
            client.log_batch(run_id, tags=[RunTag("mlflow.source.name", f"tritonrank {mlflow.__version__}")])
            for path in run.files:
                client.log_artifact(run_id, str(path))
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
        return f"MLflow at {uri}, experiment {run.experiment}, run {run_id}"
