"""Turn a cloud's notice to a spot machine into a drain of its Ray node: `python spot_notice.py aws|gcp|azure ADDRESS`.

It runs on each spot worker, beside Ray, and asks the machine's metadata service every 5 s. From the drain on, Ray
places nothing new there, and ray-ft ends each epoch there with a checkpoint and does not count the retry.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

METADATA = "http://169.254.169.254"  # of the machine itself, in all three clouds
PERIOD_S = 5.0
TIMEOUT_S = 3.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for another machine


def ask(url: str, method: str = "GET", **headers: str) -> str:
    """Answer of the metadata service; empty where it has none."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except OSError:  # 404 is AWS's "no notice"; else ask again
        return ""


def read_aws(metadata: str) -> int | None:
    """Two minutes before."""
    token = ask(f"{metadata}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    notice = ask(f"{metadata}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)
    if not notice:
        return None
    gone = datetime.fromisoformat(json.loads(notice)["time"])
    return max(0, int((gone - datetime.now(UTC)).total_seconds()))


def read_gcp(metadata: str) -> int | None:
    """Thirty seconds before."""
    said = ask(f"{metadata}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google")
    return 30 if said.strip() == "TRUE" else None


def read_azure(metadata: str) -> int | None:
    """Thirty seconds before."""
    said = ask(f"{metadata}/metadata/scheduledevents?api-version=2020-07-01", Metadata="true")
    events = json.loads(said)["Events"] if said else []
    return 30 if any(event["EventType"] == "Preempt" for event in events) else None


READERS = {"aws": read_aws, "gcp": read_gcp, "azure": read_azure}


def drain(address: str, seconds: int) -> None:
    """Tell the cluster that this machine's node will be gone."""
    import ray

    ray.init(address=address, log_to_driver=False)
    node = ray.get_runtime_context().get_node_id()
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True)
    print(f"drained {node}, which has {seconds} s", flush=True)


def main() -> None:
    """Wait for the notice, pass it on, and end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cloud", choices=READERS)
    parser.add_argument("address", help="host:port of the cluster's head")
    parser.add_argument("--metadata", default=METADATA, help="metadata service")
    asked = parser.parse_args()
    while (seconds := READERS[asked.cloud](asked.metadata)) is None:
        time.sleep(PERIOD_S)
    drain(asked.address, seconds)


if __name__ == "__main__":
    main()
