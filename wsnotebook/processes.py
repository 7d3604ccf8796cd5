"""Processes that do not outlive the one that started them, however that one ends."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a process of multiprocessing: end it when its parent has ended, killed or not."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
