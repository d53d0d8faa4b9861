"""What an instance is told about strangers, by its options or by the environment (``spec/security.py``)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from llmdd._core.status import LLMStatusCode, failure
from llmdd.link.keys import LinkKeys, UnusableKeys
from llmdd.link.security import LinkSecurity

#: Option → the environment variable that takes its place where it is not given.
ENVIRONMENT = {
    "llmdd.LinkKey": "LLMDD_LINK_KEY",
    "llmdd.LinkAllowedKeys": "LLMDD_LINK_ALLOWED_KEYS",
    "llmdd.OpenLinks": "LLMDD_OPEN_LINKS",
}

_TAG = "LLMDataDist.init"


def link_security(options: Mapping[str, str]) -> LinkSecurity:
    """Whether links are authenticated, and by which keys.

    Parameters
    ----------
    options
        Of ``LLMDataDist.init``. What is not there is taken from the environment.

    Raises
    ------
    LLMException
        ``LLM_PARAM_INVALID``: one of the two keys is not given, or cannot be used; ``llmdd.OpenLinks`` is not 0 or 1.
    """
    key, allowed_keys, is_open = (_given(options, option) for option in ENVIRONMENT)
    if bool(key) != bool(allowed_keys):
        given, missing = ("LinkKey", "LinkAllowedKeys") if key else ("LinkAllowedKeys", "LinkKey")
        raise failure(
            _TAG,
            LLMStatusCode.LLM_PARAM_INVALID,
            f"llmdd.{given} is given and llmdd.{missing} is not: set both, as options or by "
            f"{ENVIRONMENT['llmdd.LinkKey']} and {ENVIRONMENT['llmdd.LinkAllowedKeys']}",
        )
    if is_open not in ("", "0", "1"):
        raise failure(_TAG, LLMStatusCode.LLM_PARAM_INVALID, f"llmdd.OpenLinks is {is_open!r}, it should be 0 or 1")
    if not key:
        return LinkSecurity(None, is_open == "1")
    try:
        return LinkSecurity(LinkKeys(key, allowed_keys), is_open == "1")
    except UnusableKeys as error:
        raise failure(_TAG, LLMStatusCode.LLM_PARAM_INVALID, str(error)) from None


def _given(options: Mapping[str, str], option: str) -> str:
    return options.get(option) or os.environ.get(ENVIRONMENT[option], "")
