"""``python -m ckpt_streamer``: the command ``ckpt-streamer``."""

from ckpt_streamer._cli import main

if __name__ == "__main__":
    main()
