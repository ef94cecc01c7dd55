"""Speed, beside other ways of doing the same. `python -m benchmarks` measures all of it."""

import detsd  # first: it sets what torch reads when it is imported  # noqa: F401
