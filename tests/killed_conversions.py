"""Converts a file again and again, and is killed at a random moment each time.

A program of its own: it forks, which a process with running threads had better not.
Prints the exit status of each child and how long a conversion takes undisturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import torch

from ckpt_streamer import convert


def main(source: str, target: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)

    def run() -> None:
        convert(source, target, torch.bfloat16, memory_limit_mb=4)

    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    os.unlink(target)
    os.link(source, target)
    generator = random.Random(seed)
    statuses = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        time.sleep(generator.uniform(0, 1.3 * seconds))
        os.kill(child, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(json.dumps([statuses[-1], os.stat(target).st_size]), flush=True)
        if statuses[-1] == 0:
            # The next one has something to lose again.
            os.unlink(target)
            os.link(source, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
