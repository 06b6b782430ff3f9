"""The connection to Redis, Valkey or a cluster of them: by URL, with time limits, and one kind of error."""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from tritonrank_recommend.stores.interface import StoreError, StoreRefusedError

PASSWORD_VARIABLE = "TRITONRANK_STORE_PASSWORD"
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
RETRIES = 2
"""after a connection broke; everything that the store asks for may be asked twice"""
CONNECTIONS = 32
"""At most so many commands are on their way at once; the next wait for one to end."""
SPARE_CONNECTIONS = 8
"""For what the client asks by itself, such as where a cluster's slots are."""
OLDEST_VERSION = 6
SCANNED_TOGETHER = 1_000
log = logging.getLogger("tritonrank.store")

Command = tuple[Any, ...]


def run(script: str, keys: Sequence[str], *arguments: str | bytes | int | float) -> Command:
    """The command for a script. The server keeps what it has compiled, by the script's text."""
    return ("EVAL", script, len(keys), *keys, *arguments)


class RedisConnection:
    """Commands in, answers out; StoreError where there is none."""

    def __init__(self, url: str) -> None:
        """Prepare connections; the first command opens one.

        Args:
            url: ``redis://``, ``rediss://``, ``unix://``; ``redis+cluster://`` and ``rediss+cluster://`` of any node.

        Raises:
            StoreRefusedError: the package is missing, or it is no such URL.
        """
        try:
            import redis.asyncio
            from redis.asyncio.retry import Retry
            from redis.backoff import ExponentialWithJitterBackoff
        except ModuleNotFoundError:
            raise StoreRefusedError("--store redis:// needs a package: pip install 'tritonrank[redis]'") from None
        self.name = _without_password(url)
        self._errors = (
            redis.exceptions.RedisError,
            redis.exceptions.RedisClusterException,
            OSError,
            TimeoutError,
            RuntimeError,  # of uvloop: the other side hung up before anything was written
        )
        self._password_errors = redis.exceptions.AuthenticationError
        # The client of a cluster has no pool that waits: it fails where a node's connections are all taken.
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self.is_cluster = "+cluster" in url.partition(":")[0]
        password = os.environ.get(PASSWORD_VARIABLE)
        settings: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.02), RETRIES),
            "retry_on_error": [RuntimeError],
            "max_connections": CONNECTIONS + SPARE_CONNECTIONS,
            **({"password": password} if password and urlsplit(url).password is None else {}),
        }
        try:
            if self.is_cluster:
                self._client: Any = redis.asyncio.RedisCluster.from_url(url.replace("+cluster", "", 1), **settings)
            else:
                self._client = redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool.from_url(url, **settings))
        except ValueError as error:
            raise StoreRefusedError(f"--store {self.name}: {error}; such as redis://127.0.0.1:6379/0") from None

    async def ask(self, *command: Any) -> Any:
        """The answer to one command."""
        try:
            async with self._turns:
                return await self._client.execute_command(*command)
        except self._errors as error:
            raise self._failed(error) from error

    async def ask_together(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands that are sent at once; each takes effect by itself."""
        if len(commands) < 2:  # a pipeline costs twice as much as a command
            return [await self.ask(*command) for command in commands]
        try:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            async with self._turns:
                answers: list[Any] = await pipeline.execute()
        except self._errors as error:
            raise self._failed(error) from error
        return answers

    async def keys(self, prefix: bytes) -> list[bytes]:
        """All keys that begin so, of all nodes. It walks over everything that the server holds."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
        try:
            found = [key async for key in self._client.scan_iter(pattern, count=SCANNED_TOGETHER)]
        except self._errors as error:
            raise self._failed(error) from error
        return list(dict.fromkeys(found))  # a server that grows meanwhile tells of some twice

    async def check(self) -> None:
        """Warn of what a user of the store may not expect of its server.

        Raises:
            StoreRefusedError: the server is too old.
        """
        information = await self.ask("INFO")  # of a cluster one node answers
        nodes = [node for node in information.values() if isinstance(node, dict) and "redis_version" in node]
        for node in nodes or [information]:
            version = str(node.get("redis_version", OLDEST_VERSION))
            if int(version.split(".")[0]) < OLDEST_VERSION:
                raise StoreRefusedError(
                    f"{self.name}: is Redis {version}; expected {OLDEST_VERSION} or later, or Valkey"
                )
            if not node.get("aof_enabled", 1):
                log.warning(
                    "%s: appendonly is off, so a server that is killed loses events that were acknowledged; "
                    "turn it on: redis-cli CONFIG SET appendonly yes",
                    self.name,
                )
            if str(node.get("maxmemory_policy", "")).startswith("allkeys") and node.get("maxmemory"):
                log.warning(
                    "%s: maxmemory-policy %s drops profiles and waiting events when memory is full; "
                    "redis-cli CONFIG SET maxmemory-policy volatile-ttl drops pages and old profiles first",
                    self.name,
                    node["maxmemory_policy"],
                )

    async def forget_old_bytes(self) -> None:
        """Have the append only file written anew, without what was removed; where the server lets us."""
        try:
            where = {"target_nodes": self._client.get_primaries()} if self.is_cluster else {}
            await self._client.execute_command("BGREWRITEAOF", **where)
        except self._errors as error:
            log.info("%s: the append only file was not written anew: %s", self.name, error)

    async def close(self) -> None:
        """Close what is open."""
        await self._client.aclose()
        if not self.is_cluster:
            await self._client.connection_pool.aclose()

    def _failed(self, error: Exception) -> StoreError:
        text = str(error) or type(error).__name__
        if isinstance(error, self._password_errors) or isinstance(error.__cause__, self._password_errors):
            return StoreRefusedError(f"{self.name}: {text}; set {PASSWORD_VARIABLE} to the password")
        return StoreError(f"{self.name}: {text}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
