"""What a server says is passed on, quoted, and never grows without bound."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tritonrank.serve import server_log
from tritonrank.serve.server_log import FileLog, RelayedLog


def test_a_relayed_log_comes_out_on_standard_error_and_its_end_is_kept(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "KEPT_BYTES", 1_000)
    log = RelayedLog()
    lines = b"".join(b"line %d\n" % number for number in range(5_000))
    os.write(log.descriptor, lines)
    log.close()
    log.close()
    assert log.tail() == lines[-1_000:]
    assert capfdbinary.readouterr().err == lines


def test_a_server_goes_on_when_nobody_reads_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with suppress(BrokenPipeError), os.fdopen(write_end, "w") as broken:  # closing it tries once more
        monkeypatch.setattr(sys, "stderr", broken)
        log = RelayedLog()
        for _ in range(64):  # more than a pipe holds: it blocks unless somebody takes it out
            os.write(log.descriptor, b"x" * 4_096)
        log.close()
        monkeypatch.undo()
    assert log.tail() == b"x" * 64 * 4_096


def test_a_file_log_can_be_read_after_it_was_closed(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "logs" / "server.log")
    os.write(log.descriptor, b"successfully loaded 'echo'\n")
    log.close()
    log.close()
    assert log.tail() == b"successfully loaded 'echo'\n"
