"""What detect-secrets cannot know: the form of our own API keys."""

import re

from detect_secrets.plugins.base import RegexBasedDetector


class IronkeyDetector(RegexBasedDetector):  # type: ignore[misc]
    """Finds keys that `ironcart apikey new` has drawn."""

    secret_type = "Ironcart API key"  # noqa: S105 - what it is called
    denylist = (re.compile(r"ick_[0-9a-f]{16}_[A-Za-z0-9_-]{43}"),)
