"""Runs the suite once, from one seed.

    python -m chaos --seed 1 --duration-s 60

The last line of its output is the run's figures in JSON. The exit code is 1 if an invariant was violated;
then the logs are kept, and the lines before say where, what was wrong and how to run it again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from harness import Kafka, eventually

from chaos.cast import SESSION_TIMEOUT_S, Cluster, Replica, Stream, Upstreams, await_ready, settings, streams
from chaos.checker import Violation
from chaos.judge import Judge
from chaos.leash import Leash
from chaos.links import Links
from chaos.plot import Publishers, Stage, Trouble, Violence, lane
from chaos.reader import Watcher

STATUS_PARTITIONS = 6
HOSTS = 3
SPARE = 2


def main() -> None:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="chaos", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="what happens, and when")
    parser.add_argument("--duration-s", type=float, default=60, help="how long faults go on")
    parser.add_argument("--replicas", type=int, default=3, help="outside of rebalance storms")
    parser.add_argument("--streams", type=int, default=16, help="upstream streams; each fourth cannot resume")
    parser.add_argument("--partitions", type=int, default=8, help="of the control topic")
    parser.add_argument("--rate", type=float, default=15, help="statuses per second of an upstream, about")
    parser.add_argument("--results", type=Path, help="file to append the figures to")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a run that is well, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-"))
    with ExitStack() as stack:
        figures, found = run(options, folder, stack)
    for violation in found:
        print(f"VIOLATED {violation.invariant}: {violation.detail}")
    if found:
        more = " ".join(f"{name.upper()}={getattr(options, name)}" for name in ("replicas", "streams"))
        print(f"logs: {folder}")
        print(f"again: make chaos SEED={options.seed} DURATION_S={options.duration_s:g} {more}")
    line = json.dumps(figures)
    print(line)
    (folder / "figures.json").write_text(line)
    (folder / "violations.txt").write_text("".join(f"{one.invariant}: {one.detail}\n" for one in found))
    if options.results is not None:
        with options.results.open("a") as results:
            results.write(f"{line}\n")
    if not found and not options.keep:
        shutil.rmtree(folder)
    sys.exit(1 if found else 0)


def _ended(*_: object) -> NoReturn:
    sys.exit("ended by a signal")


def run(
    options: argparse.Namespace, folder: Path, stack: ExitStack
) -> tuple[dict[str, Any], list[Violation]]:
    """Play it, and return the figures and what was wrong."""
    rng = Random(options.seed)
    leash = Leash()
    stack.callback(leash.close)
    links = Links(options.replicas + SPARE)
    stack.callback(links.close)
    cluster = Cluster(folder / "kafka", links, leash)
    cluster.start()
    stack.callback(cluster.kill)
    kafka = Kafka(cluster.bootstrap)
    them = streams(options.streams, options.rate, rng)
    upstreams = [Upstreams(them[number::HOSTS], leash) for number in range(HOSTS)]
    replicas = _replicas(options, folder, links, leash, kafka, upstreams)
    stage = Stage(
        cluster=cluster,
        links=links,
        usual=replicas[: options.replicas],
        spare=replicas[options.replicas :],
        upstreams=upstreams,
        group=f"{kafka.topics.prefix}-connector",
        control=kafka.topics.of("predicates"),
    )
    stage.usual[0].command("topics", "--create")
    watcher = Watcher(cluster.bootstrap, kafka.topics.of("statuses"), STATUS_PARTITIONS)
    for one in stage.usual:
        one.start()
    await_ready(stage.usual)
    _set_out(stage, them, watcher, options)
    print(json.dumps({"at": round(time.time(), 1), "streams": len(them), "logs": str(folder)}), flush=True)

    end_at = time.monotonic() + options.duration_s
    publishers = Publishers(stage, them, Random(f"{options.seed} publishers"), end_at)
    trouble = Trouble(stage, Random(f"{options.seed} upstreams"), end_at)
    violence = Violence(stage, Random(f"{options.seed} replicas"), end_at)
    for thread in [lane(stage, one.play) for one in (publishers, trouble, violence)]:
        thread.join()
    figures, found = Judge(stage, kafka, watcher, them, options.partitions).judge()
    told = {
        "seed": options.seed,
        "duration_s": options.duration_s,
        "replicas": options.replicas,
        "streams": options.streams,
        "faults": stage.kinds,
        **figures,
        "violated": sorted({one.invariant for one in found}),
    }
    return told, found


def _replicas(
    options: argparse.Namespace,
    folder: Path,
    links: Links,
    leash: Leash,
    kafka: Kafka,
    upstreams: list[Upstreams],
) -> list[Replica]:
    content = {
        "kafka": {
            "group": f"{kafka.topics.prefix}-connector",
            "session_timeout_s": SESSION_TIMEOUT_S,
            "topics": kafka.topics.as_dict(),
            "control_partitions": options.partitions,
            "status_partitions": STATUS_PARTITIONS,
        },
        "delivery": {"commit_interval_s": 0.1},
        "streams": {one.name: settings(one, host.url) for host in upstreams for one in host.streams},
    }
    return [Replica(f"r{number}", folder, link, content, leash) for number, link in enumerate(links.links)]


def _set_out(stage: Stage, them: list[Stream], watcher: Watcher, options: argparse.Namespace) -> None:
    """Let every stream flow before anything goes wrong: nothing is owed of one that never began."""

    def is_shared_out() -> bool:
        """Whether all have joined: a later hand-over is a gap, and nothing has gone wrong yet."""
        owned = [its for its in stage.owners().values() if its]
        all_of_them = sorted(one for its in owned for one in its) == [*range(options.partitions)]
        return all_of_them and len(owned) == min(len(stage.usual), options.partitions)

    eventually(is_shared_out, "each replica has partitions, and each partition an owner")
    first = Publishers(stage, them, Random(), 0)
    for one in them:
        first.publish(one.name, json.dumps({"track": list(one.core)}).encode())
    first.flush()
    eventually(lambda: all(len(watcher.numbers(one.name)) > 3 for one in them), "every stream flows", 120)


if __name__ == "__main__":
    main()
