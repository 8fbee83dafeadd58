"""How fast the model of the caching allocator is: mallocs and frees a second, on one core.

    python benchmarks/allocator.py [--runs 5] [--events 1000000] [--json]

Processor time of this process, median of the runs. ``random`` is the worst that a program can do: 400 live blocks of 200 sizes
from 1 B to 64 MiB, each free in a place of its own, so that nearly every event splits or merges. ``step`` is like training:
layers that save some tensors and drop others, then give all back in reverse. ``replay`` plays the step as a tape.
Target: 1,000,000 events in 2 s.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from statistics import median

from memcalc.allocator.caching import CachingAllocator
from memcalc.allocator.replay import replay
from memcalc.allocator.settings import parse_settings
from memcalc.tape.events import Alloc, Buffer, Event, Free, Mark

Program = list[tuple[int, int]]
"""(number of a buffer, its bytes where it is born, 0 where it dies)."""
MIB = 2**20


def at_random(events: int) -> Program:
    """Births and deaths in no order."""
    chance = random.Random(0)
    sizes = [
        chance.choice([chance.randint(1, 4096), chance.randint(4096, MIB), chance.randint(MIB, 64 * MIB)]) for _ in range(200)
    ]
    program: Program = []
    live: list[int] = []
    while len(program) < events:
        if len(live) < 400 and (not live or chance.random() < 0.5):
            live.append(len(program))
            program.append((len(program), chance.choice(sizes)))
        else:
            at = chance.randrange(len(live))
            live[at], live[-1] = live[-1], live[at]
            program.append((live.pop(), 0))
    return program


def like_steps(events: int, layers: int = 32) -> Program:
    """Steps of so many layers, each of ten operators in the forward and twenty in the backward."""
    saved = [32 * MIB, 32 * MIB, 8 * MIB, 32 * MIB, 262144, 112 * MIB, 112 * MIB]
    program: Program = []
    number = 0
    while len(program) < events:
        kept: list[list[int]] = []
        for backward in (False, True):
            for _ in range(layers):
                own: list[int] = []
                for size in (*saved, *(saved if backward else ())):
                    number += 2
                    program += [(number, size), (number + 1, size + 4096), (number + 1, 0)]
                    own.append(number)
                held = kept.pop() if backward else []
                program += [(one, 0) for one in (*held, *(own if backward else ()))]
                if not backward:
                    kept.append(own)
    return program[:events]


def played(program: Program, settings: str = "") -> Callable[[], object]:
    """The program straight through an allocator."""

    def run() -> object:
        allocator = CachingAllocator(parse_settings(settings))
        malloc, free, held = allocator.malloc, allocator.free, {}
        for number, size in program:
            if size:
                held[number] = malloc(size)
            else:
                free(held.pop(number))  # type: ignore[arg-type]
        return allocator

    return run


def replayed(program: Program) -> Callable[[], object]:
    """The program as a tape, pairing, series and peaks included."""
    buffers: dict[int, Buffer] = {}
    tape: list[Event] = [Mark("forward")]
    for number, size in program:
        if size:
            buffers[number] = Buffer("b", size, "activation")
        tape.append(Alloc(buffers[number]) if size else Free(buffers[number]))
    return lambda: replay(tape)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    worst, steps = at_random(options.events), like_steps(options.events)
    tasks = {
        "random": played(worst),
        "step": played(steps),
        "step, expandable_segments": played(steps, "expandable_segments:True"),
        "step, replay of a tape": replayed(steps),
    }
    results = []
    for name, work in tasks.items():
        seconds = []
        for _ in range(options.runs):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        results.append({"task": name, "events": options.events, "seconds": round(median(seconds), 3)})
        if not options.json:
            print(f"{name:<28} {options.events:>10,} events {median(seconds):>7.3f} s", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
