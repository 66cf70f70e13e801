#!/usr/bin/env bash
# swanlab 0.10.3, Python 3.11; seen on 2026-11-29.
#
# Seen: a run that logs locally keeps two files side by side: the records in run-<id>.swanlab, and logs/<n>/1000.log with a line
# per step. Of a metric that is logged twice at one step the records have the first value and the log has the second; nothing
# is said of either. Offline there are the records alone, so that there the second value is lost.
#
# Why it surprises: both are the same run, in one folder, written by one call of log; which value is seen depends on who reads,
# the board that is drawn from the logs or what is later uploaded from the records.
#
# Ends with 0 as long as this is so, and with 1 once both hold the same value.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check swanlab==0.10.3
cd "$place"
"$place/venv/bin/python" - "$place" <<'PYTHON'
import json
import sys
from pathlib import Path

import swanlab
from swanlab.proto.swanlab.record.v1 import record_pb2
from swanlab.sdk.internal.core_python.store import DataStoreReader

place = Path(sys.argv[1]) / "logs"
swanlab.init(project="example", experiment_name="one", mode="local", logdir=str(place))
swanlab.log({"loss": 9.0}, step=2)
swanlab.log({"loss": 0.5}, step=2)
swanlab.finish()

(file,) = place.rglob("*.swanlab")
reader = DataStoreReader()
reader.open(file)
records = []
for content in reader:
    record = record_pb2.Record()
    record.ParseFromString(content)
    if record.HasField("scalar"):
        records.append(record.scalar.value.number)
(log,) = place.rglob("1000.log")
lines = [json.loads(line)["data"] for line in log.read_text().splitlines()]
print("logged at step 2: 9.0, then 0.5")
print("in the records:", records)
print("in the log beside them:", lines)
sys.exit(records == lines)
PYTHON
