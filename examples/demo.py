"""What `make demo` runs: the whole platform, from nothing, on this machine, in three commands.

Makes a base model, starts the platform on free ports, fine-tunes the model through it, and stops the platform again.
Everything is kept in `.demo/`. The commands are printed; each can be typed by hand.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PYTHON = os.path.relpath(sys.executable)
PLATFORM = str(Path(PYTHON).with_name("tinker-platform"))
EXAMPLES = Path(os.path.relpath(__file__)).parent
STOP_GRACE_S = 30


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the whole platform, from nothing, on this machine.")
    parser.add_argument("--directory", type=Path, default=Path(".demo"), help="where everything is kept")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is to stop the children too, as Ctrl-C does
    try:
        demo(arguments.directory)
    except subprocess.CalledProcessError as error:
        sys.exit(f"\nFailed with exit code {error.returncode}: {shlex.join(error.cmd)}")
    except KeyboardInterrupt:
        sys.exit(130)


def demo(directory: Path) -> None:
    """The three commands, and what to type next."""
    started = time.monotonic()
    base_model = directory / "base-model"
    if base_model.exists():
        print(f"There is a base model in {base_model} already.")
    else:
        run([PYTHON, str(EXAMPLES / "base_model.py"), str(base_model)])

    grpc_port, http_port = free_ports(2)
    address, api_key = f"127.0.0.1:{grpc_port}", f"tml-{secrets.token_urlsafe(32)}"
    environment = {"TINKER_GRPC_URL": f"grpc://{address}", "TINKER_API_KEY": api_key}
    up = [PLATFORM, "up", "--base-model", f"tiny-stories={base_model}", "--data-dir", str(directory / "data")]
    ports = ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]

    with child([*up, *ports], environment, stdout=subprocess.PIPE) as platform:
        wait_until_ready(platform)
        run([PYTHON, str(EXAMPLES / "sft.py")], environment, needs=platform)
        print(f"""
Done in {time.monotonic() - started:.0f} s. While the platform runs, try in another terminal:

  grpcurl -plaintext -H 'x-api-key: {api_key}' {address} tinker.v1.CapabilityService/GetServerCapabilities

  export TINKER_GRPC_URL=grpc://{address} TINKER_API_KEY={api_key}
  {PYTHON} {EXAMPLES / "rl.py"}
""")
        if sys.stdin.isatty():
            print("Press Enter to stop the platform. ", end="", flush=True)
            sys.stdin.readline()

    print(f"""
The platform has stopped. Start it again, with the same key and checkpoints, or with a model of your own:

  {shlex.join(up)}
  {PLATFORM} up --base-model Qwen/Qwen3-0.6B""")


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    needs: subprocess.Popen[str] | None = None,
) -> None:
    """Runs a command to its end; raises CalledProcessError if it fails, or what it needs ends before it."""
    with child(command, environment or {}) as process:
        while process.poll() is None:
            if needs is not None and needs.poll() is not None:
                raise subprocess.CalledProcessError(needs.returncode, needs.args)
            time.sleep(0.1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A child process that has ended when the block is left, however it is left."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=stdout,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops its children in order
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(platform: subprocess.Popen[str]) -> None:
    """Returns when the platform says that it is ready; raises CalledProcessError if it ends instead."""
    assert platform.stdout is not None
    for line in platform.stdout:
        if line.startswith("ready"):
            print(line, end="", flush=True)
            return
    raise subprocess.CalledProcessError(platform.wait(), platform.args)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    main()
