"""A Gateway that asks once for a Temporal that is away (10 s), and soon starts what it has recorded."""

from api import gateway
from temporal import applies, promotions, recovery, submissions

if __name__ == "__main__":
    for module, limits in {
        applies: ("_LIMIT_S",),
        promotions: ("_LIMIT_S",),
        submissions: ("_LIMIT_S", "_AWAY_LIMIT_S"),
    }.items():
        for limit in limits:
            assert hasattr(module, limit)
            setattr(module, limit, 0.5)
    recovery._RETRY_S = 0.5
    gateway.RECOVER_EVERY_S = 0.5
    gateway.main()
