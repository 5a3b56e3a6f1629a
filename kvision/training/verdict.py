"""What a sanity check found: whether it is as it should be, the numbers, and a sentence."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of one check. `str()` of it is one line; its truth is `ok`.

    Args:
        ok: Whether the model passed.
        sentence: What was got, what was expected and, where it failed, what to do.

    >>> print(Verdict(False, "The loss is 4.6, expected 2.3."))
    FAILED  The loss is 4.6, expected 2.3.
    """

    ok: bool
    sentence: str

    def __bool__(self):
        return self.ok

    def __str__(self):
        return f"{'ok' if self.ok else 'FAILED':8}{self.sentence}"
