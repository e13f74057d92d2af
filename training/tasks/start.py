"""A run that begins with the weights of another: for new data, another CLIP, a change of pace."""

from __future__ import annotations

from unclip.checkpoint import load_strictly
from unclip.config import ConfigError, differences
from unclip.stages import Stage, load_stage


def begin(stage: Stage, path: str | None) -> None:
    """Give a new stage the weights of a checkpoint of the same kind and network; None = leave it as it is.

    What is measured anew (statistics of embeddings, a memory) replaces what comes with them. ``ConfigError``,
    with what differs, for a checkpoint of another kind or network.
    """
    if path is None:
        return
    found = load_stage(path)
    kinds = [one.config.kind for one in (stage, found)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"start: {path} holds a {kinds[1]}, not a {kinds[0]}")
    told = differences(
        *(
            one.config.model_dump(mode="json", include={"net", "text", "last_network"})
            for one in (found, stage)
        )
    )
    if told:
        raise ConfigError(
            f"start: {path} holds another network than the recipe's: "
            + "; ".join(f"{key} {change}" for key, change in told.items())
        )
    load_strictly(stage, found.state_dict(), path)
