"""Many clients at once against `wan-vae serve`: none may be lost; peak memory and latencies.

python scripts/measure_serving.py --seconds 120 --clients 32
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time

import psutil
import requests
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--channels", type=int, default=16, help="of the checkpoint's latents")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--latents", type=int, nargs=3, default=(2, 8, 8), metavar=("T", "H", "W"))
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "wan_vae", "serve", "--checkpoint", options.checkpoint, "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"WAN_VAE_TOKEN": ""})
    try:
        measure(options, server, f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        print(f"the server ended with {server.wait(60)} after SIGTERM")


def measure(options: argparse.Namespace, server: subprocess.Popen[bytes], address: str) -> None:
    process = psutil.Process(server.pid)
    while True:
        try:
            requests.get(f"{address}/healthz", timeout=5).raise_for_status()
            break
        except requests.ConnectionError:
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
    shape = [1, options.channels, *options.latents]
    body = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    params = {"shape": shape, "dtype": "float32", "output_type": "pt", "partial_postprocess": "True"}
    expected = requests.post(f"{address}/decode", body, params=params, timeout=60).content
    end = time.monotonic() + options.seconds
    latencies: list[float] = []
    lost: list[str] = []

    def client() -> None:
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                answer = requests.post(f"{address}/decode", body, params=params, timeout=600)
                if answer.status_code != 200 or answer.content != expected:
                    lost.append(f"{answer.status_code}: {answer.text[:100]!r}")
            except requests.RequestException as error:
                lost.append(repr(error))
            latencies.append(time.monotonic() - begun)

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    memory: list[int] = []
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss)
        time.sleep(0.25)
    half = len(memory) // 2
    cuts = statistics.quantiles(latencies, n=100)
    print(f"{options.clients} clients, {options.seconds:g} s, latents {shape}: {len(latencies)} requests")
    print(f"lost: {len(lost)} {lost[:3] if lost else ''}")
    print(f"latency: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s")
    print(f"peak memory: {max(memory) / 2**20:.0f} MiB (first half {max(memory[:half]) / 2**20:.0f} MiB)")
    print(requests.get(f"{address}/healthz", timeout=5).text)


if __name__ == "__main__":
    main()
