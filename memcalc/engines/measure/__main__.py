"""One measurement in a process of its own: ``python -m memcalc.engines.measure ASK.json RECORD.json``.

Started by ``memcalc.engines.measure.process``, under ``torchrun`` where there are several ranks. What libraries print goes to
stderr. Leaves with 0 once there is a record, whatever it says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from memcalc.campaign import RunSettings
from memcalc.engines.measure.here import Ask, measure_here
from memcalc.errors import EXIT_UNJUDGED, MemcalcError
from memcalc.measurement_files import write_atomically, write_measurement

REFUSED = ".refused"
"""What is put behind the record's name for the file that holds an error said before there could be a record."""


def main(arguments: list[str]) -> int:
    """Measure what the first file asks and write the second."""
    ask_file, record_file = (Path(argument) for argument in arguments)
    told = json.loads(ask_file.read_text())
    ask = Ask(**{**told, "settings": RunSettings.model_validate(told["settings"]), "command": tuple(told["command"])})
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        record = measure_here(ask)
    except MemcalcError as error:
        said = {"kind": type(error).__name__, "parts": [error.path, str(error.value), error.rule, error.way_out]}
        write_atomically(record_file.with_name(record_file.name + REFUSED), json.dumps(said).encode())
        return EXIT_UNJUDGED
    finally:
        sys.stdout = answers
    if record is None:
        return 0
    write_measurement(record, record_file)
    # a rank that failed must not leave the others waiting for it: torchrun ends them
    return 0 if record.failure is None or len(record.ranks) > 1 or _alone() else EXIT_UNJUDGED


def _alone() -> bool:
    import os

    return os.environ.get("WORLD_SIZE", "1") == "1"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
