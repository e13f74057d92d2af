"""What may change between the parts of one run, and what may not."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

from unclip.config import Config, ConfigError, differences

# What a run can go on without; a key stands for all below it.
FREE = (
    "clip",  # another path: that it is the same CLIP is seen by its identity
    "stage.sampling", "stage.net.attention", "stage.net.dropout",
    "train.out", "train.pictures", "train.accumulate", "train.learning_rate", "train.warmup", "train.decay",
    "train.weight_decay", "train.beta1", "train.beta2", "train.eps", "train.clip_norm", "train.ema_half_life",
    "train.timestep_sampler", "train.precision", "train.checkpointing", "train.compile", "train.shard",
    "train.max_skipped", "train.new_data", "train.trackers", "train.log_every", "train.validate_every",
    "train.sample_every", "train.save_every", "train.keep", "train.keep_by", "train.patience",
    "data.heldout", "data.workers", "data.max_corrupt",
)  # fmt: skip
BEGINNING = 4096  # bytes: of a tar, the name, date and size of its first file, and some of it
# What else it can go on with when ``train.new_data`` says so.
DATA = ("data", "embeddings", "order", "train.seed")


def check(out: object, old: dict, recipe: Config, order: dict, new_data: bool) -> dict[str, str]:
    """What changed since the save, by key, if the run in ``out`` can be continued so; else ``ConfigError``.

    old:   what the save says of its recipe, as far as it does; of settings that came later the defaults
           count.
    order: what the order of the data depends on besides; under "order" in ``old``.
    """
    new = {**recipe.model_dump(mode="json"), "order": order}
    old = {
        **_reread({key: value for key, value in old.items() if key != "order"}, recipe),
        "order": old.get("order", order),
    }
    changed = differences(old, {key: new[key] for key in old if key in new})
    refused = {key: how for key, how in changed.items() if not _under(key, FREE)}
    data = {key for key in refused if _under(key, DATA)}
    if new_data:
        refused = {key: how for key, how in refused.items() if key not in data}
    if refused:
        hint = "restore the recipe, or choose another out="
        if data.issuperset(refused):
            hint += "; train.new_data=true goes on with the new data (or the old, if it only moved)"
        raise ConfigError(f"{out} holds a run that this recipe cannot continue ({in_words(refused)}); {hint}")
    return changed


def sealed(listing: dict[str, int | None]) -> dict[str, str]:
    """What tells a file from another of its name: its size, and a sum of how it begins; "" of an address.

    listing: bytes by path, None for what lies on no disk here.
    """
    seals = {}
    for path, size in listing.items():
        seals[path] = ""
        if size is not None:
            with open(path, "rb") as file:
                seals[path] = f"{size:,} bytes that begin {crc32(file.read(BEGINNING)):08x}"
    return seals


def of_files(old: dict, new: dict) -> dict[str, str]:
    """How the files that a run learns from (``sealed``) differ from those before: "new", "gone", or how.

    They are known by their last names, since data may move. Of a save that says nothing there is nothing.
    """
    if not old:
        return {}
    old, new = ({Path(path).name: seal for path, seal in files.items()} for files in (old, new))
    changed = {name: "gone" for name in old.keys() - new.keys()}
    changed |= {name: "new" for name in new.keys() - old.keys()}
    changed |= {
        name: f"{old[name]} -> {new[name]}" for name in old.keys() & new.keys() if old[name] != new[name]
    }
    return dict(sorted(changed.items()))


def in_words(changes: dict[str, str]) -> str:
    """Changes as one line of text."""
    return ", ".join(f"{key}: {how}" for key, how in changes.items())


def _under(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _reread(old: dict, recipe: Config) -> dict:
    """An earlier version's recipe with the defaults of settings that came later; as it is, if it is not
    valid now.
    """
    parts = {}
    for key, value in old.items():
        config = getattr(recipe, key, None)
        try:
            parts[key] = (
                type(config).model_validate(value).model_dump(mode="json")
                if isinstance(config, Config) and isinstance(value, dict)
                else value
            )
        except ValueError:
            parts[key] = value
    return parts
