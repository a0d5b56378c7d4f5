"""What a call of the command line gave."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        assert len(self.out.splitlines()) == 1, self.out
        body = json.loads(self.out)
        assert isinstance(body, dict)
        return body

    @property
    def said(self) -> str:
        """stderr without line breaks: where it is folded depends on the width of the terminal."""
        return re.sub(r"\s+", " ", self.err)


Adclick = Callable[..., Ran]
