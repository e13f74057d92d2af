"""Which CLIP it is: a name, and what its weights come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256

from torch import Tensor


def digest_of(names: Iterable[str], tensor_of: Callable[[str], Tensor]) -> str:
    """Twelve hexadecimal digits of the tensors of these names, in any order and read one at a time; they
    count at half precision, whatever they are saved at.
    """
    total = sha256()
    for name in sorted(names):
        total.update(name.encode() + tensor_of(name).detach().cpu().half().numpy().tobytes())
    return total.hexdigest()[:12]


def named(source: str, digest: str) -> str:
    """An identity: "SOURCE#DIGEST"; a published model may go by its SOURCE alone."""
    return f"{source}#{digest}"


def weights_of(identity: str) -> str | None:
    """The digest of an identity; None of one that is a name alone."""
    return identity.rpartition("#")[2] if "#" in identity else None


def same_weights(a: str, b: str) -> bool:
    """Whether two identities are of one CLIP: by their weights, or by name where one is a name alone."""
    weights = [weights_of(a), weights_of(b)]
    if None in weights:
        a, b = (one.rpartition("#")[0] if "#" in one else one for one in (a, b))
        return a == b
    return weights[0] == weights[1]
