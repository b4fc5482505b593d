"""The event stream: every subscriber of this Gateway reads the ControlBus at its own position.

1. One hub per Gateway reads the bus and keeps the newest frames of each topic in memory (`hub`).
2. A subscriber has a position in each of its topics and pulls what comes after it: from memory, or from the
   bus where it is further behind. So no queue can overflow, and there is no gap and no duplicate between what
   a subscriber catches up on and what is new (`subscriber`).
3. A subscriber whose position the bus no longer holds, or whose position is of another log, gets a snapshot.
   A position in the future is refused.
4. A client that takes nothing for a while is closed with a reason; no other client waits for it (`socket`).
5. A stream ends with its token: when it expires, or when the token that it was requested with is revoked
   (`authorization`).
"""

from api.stream.authorization import StreamAuthorization
from api.stream.hub import Hub, RetentionError
from api.stream.subscriber import Subscriber

__all__ = ["Hub", "RetentionError", "StreamAuthorization", "Subscriber"]
