"""A gateway for the status pages: it says what the test tells it to say."""

from collections.abc import Mapping

import attrs


@attrs.define
class FakeGateway:
    is_ready: bool = True
    body: Mapping[str, object] = attrs.Factory(dict)

    def ready(self) -> bool:
        return self.is_ready

    async def status(self) -> Mapping[str, object]:
        if "bug" in self.body:
            raise ZeroDivisionError("a bug in the status page")
        return self.body
