"""The Spark that ``prepare --engine spark`` runs on: what Spark's own settings name, else this machine's cores."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tritonrank.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

INSTALL = "pip install 'tritonrank[spark]'"
WITHOUT = "or prepare on this machine alone, without --engine spark"
QUIET = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
"""Unless spark-defaults.conf says otherwise: the page of a driver listens on all addresses."""
LOCAL = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
"""Of a driver whose executors are on this machine: nobody else has to reach it."""


@contextmanager
def spark_session(master: str | None) -> Iterator["SparkSession"]:
    """A session, stopped at the end unless it was running before.

    Args:
        master: such as local[4], yarn, spark://host:7077; None: what Spark's settings name (spark-defaults.conf in
            SPARK_CONF_DIR, spark-submit), else all cores of this machine.

    Raises:
        DataError: pyspark or Java is missing, or no cluster answers.
    """
    # It works with pandas 3 as far as it is used here, which is not at all.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise DataError(f"--engine spark needs {error.name}, which is not installed: {INSTALL}, {WITHOUT}") from None
    if os.environ.get("SPARK_REMOTE") or (master or "").startswith("sc://"):
        told = master if (master or "").startswith("sc://") else "SPARK_REMOTE is set"
        raise DataError(
            f"--engine spark runs on a Spark of its own and not over Spark Connect ({told}): name the cluster itself, "
            f"such as --spark-master spark://host:7077, {WITHOUT}"
        )
    _require_java()
    running = SparkSession.getActiveSession()
    # Else the workers are whatever python3 is.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        session = running or _start(master)
    except Exception as error:
        if not isinstance(error, PySparkException) and type(error).__module__.partition(".")[0] != "py4j":
            raise
        where = f"Spark at {master}" if master else "Spark"
        raise DataError(
            f"--engine spark: {where} does not start ({_first_line(error)}). Look at --spark-master, SPARK_HOME and "
            f"SPARK_CONF_DIR, {WITHOUT}"
        ) from None
    try:
        yield session
    finally:
        if running is None:
            session.stop()


def _start(master: str | None) -> "SparkSession":
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("tritonrank prepare")
    if master:
        builder = builder.master(master)
    known = SparkConf()  # starts Java, which reads spark-defaults.conf
    is_here = (master or known.get("spark.master", "local")).startswith("local")
    for key, value in (QUIET | (LOCAL if is_here else {})).items():
        if not known.contains(key):
            builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if home and not (Path(home) / "bin" / "java").is_file():
        raise DataError(
            f"--engine spark: JAVA_HOME is {home}, where no bin/java is; set it to Java 17 or 21, {WITHOUT}"
        )
    if not home and shutil.which("java") is None:
        raise DataError(
            f"--engine spark needs Java 17 or 21, and there is none on the PATH: install it (apt-get install "
            f"openjdk-17-jre-headless) or set JAVA_HOME, {WITHOUT}"
        )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
