"""Speed, compared with other ways of doing the same work: python -m benchmarks"""

import detsd  # first: it sets what torch reads when it is imported  # noqa: F401
