"""Where a training keeps its model of a moment."""


def snapshot_folder(step: int) -> str:
    """Below the training stage's own folder."""
    return f"snapshots/{step:08d}"
