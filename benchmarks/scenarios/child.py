"""One scenario in a process of its own, which Ctrl-C can end: the load generator's own threads cannot be stopped.

python -m benchmarks.scenarios.child '{"artifact": "runs/demo/artifact", "setting": {...}, "scenario": {...}, ...}'
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.scenarios.loadgen import Scenario, run_scenario
from sovit.artifact import open_artifact
from sovit.errors import SoViTError
from sovit.runtime.open import open_lanes
from sovit.runtime.profile import Setting

_WARM_UP_RUNS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a child does. `scratch` is a folder for the load generator's logs, which the parent removes."""

    artifact: str
    setting: Setting
    scenario: Scenario
    scratch: str


def main(words: Sequence[str]) -> int:
    """Run what the first word orders, and print the outcome as one line of JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it: an exception cannot pass the load generator
    given = json.loads(words[0])
    tempfile.tempdir = given["scratch"]
    scenario = Scenario(**given["scenario"])
    try:
        artifact = open_artifact(given["artifact"])
        images, _ = artifact.reference()
        with closing(open_lanes(artifact, Setting(**given["setting"]))[0]) as runtime:
            for _ in range(_WARM_UP_RUNS):
                runtime.run(images[: scenario.max_batch])
                runtime.run(images[:1])
            outcome = run_scenario(runtime, images, scenario)
    except SoViTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
