"""Detectors of personal data and secrets in text.

A fast pattern finds candidates, a maintained library validates them: python-stdnum for the check digits of cards and
IBANs, phonenumbers for numbering plans, ipaddress, and detect-secrets' patterns for keys and tokens of known services.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

KINDS = ("secret", "email", "iban", "card", "ip", "phone")

Span = tuple[int, int]
Detector = Callable[[str], Iterator[Span]]

# Linear-time patterns for RE2: only text that matches is searched by the detectors.
_HINTS = (
    r"@[A-Za-z0-9]",
    r"[A-Z]{2}[0-9]{2} ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9] ?[A-Z0-9]",
    r"[2-6](?:[ -]?[0-9]){12}",
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]:[0-9A-Fa-f:]{0,4}:[0-9A-Fa-f]",
    r"\+[0-9]|[0-9]{3}\)? ?[.-]?[0-9]{3}[ .-][0-9]{4}",
)
# Prefixes of the secrets that detect-secrets detects.
_SECRET_HINT = (
    r"A3T[A-Z0-9]|A[BKS]IA[0-9A-Z]{4}|ACCA[0-9A-Z]{4}|[Aa][Ww][Ss]|AccountKey=|://[^\s/@:]+:[^\s/@]+@|"
    r"[MNO][\w-]{23,25}\.[\w-]{6}\.|gh[opsur]_|gl[a-z]{2,6}-|GR1348941|eyJ[\w-]+\.|-us[0-9]|:_authToken=|sk-|"
    r"PRIVATE KEY|PuTTY-User|pypi-A|SG\.[\w-]{22}|(?i:xox[abposr])-|hooks\.slack|sq0csp-|[rs]k_live_|"
    r"[0-9]{8}:[\w-]{35}|(?:AC|SK)[a-z0-9]{32}|hf_[A-Za-z0-9]{10}|AIza[\w-]{10}"
)
# Without the detectors that use entropy or words such as `password`, which would redact much of any code.
_DETECTORS = (
    "AWS Access Key",
    "Azure Storage Account access key",
    "Basic Auth Credentials",
    "Discord Bot Token",
    "GitHub Token",
    "GitLab Token",
    "JSON Web Token",
    "Mailchimp Access Key",
    "NPM tokens",
    "OpenAI Token",
    "Private Key",
    "PyPI Token",
    "SendGrid API Key",
    "Slack Token",
    "Square OAuth Secret",
    "Stripe Access Key",
    "Telegram Bot Token",
    "Twilio API Key",
)
# Tokens that detect-secrets 1.5 has no detector for: Hugging Face, Google.
_MORE_SECRETS = (re.compile(r"\bhf_[A-Za-z0-9]{34}\b"), re.compile(r"\bAIza[\w-]{35}"))
_REST_OF_TOKEN = re.compile(r"(?<=[\w+/=.-])[\w+/=-]*")
_REST_OF_KEY = re.compile(r"[\s\w+/=:,-]*?-----END[A-Z0-9 ]*-----|[\s\w+/=:,-]*")

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
# Without separators, or in groups as printed on cards: of four digits, or of four, six and the rest.
_CARD = re.compile(
    r"(?<![\w.-])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}"
    r"|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w-])"
)
_IP = re.compile(
    rf"(?<![\w.])(?:{_BYTE}\.){{3}}{_BYTE}(?![\w]|\.\d)|(?<![\w:.])[0-9A-Fa-f]{{1,4}}:[0-9A-Fa-f:]{{2,35}}(?![\w:])"
)
_INTERNATIONAL = r"\+[0-9]{1,3}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){1,4}"
_NORTH_AMERICAN = r"(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}"
_NATIONAL = r"\(?[0-9]{2,5}\)?(?:[ /.-][0-9]{2,8}){1,4}"
_NATIONAL_HINT = r"[0-9]{2}\)?[ /.-][0-9]{2}"
# First digits and lengths of the card networks' numbers (ISO/IEC 7812 issuer identification numbers).
_CARD_LENGTHS = (
    ("4", (13, 16, 19)),
    (("2", "5"), (16,)),
    (("34", "37"), (15,)),
    (("30", "36", "38", "39"), (14,)),
    (("35", "6"), (16, 17, 18, 19)),
)


def hint_pattern(region: str) -> str:
    """Returns an RE2 pattern that matches every text with a candidate."""
    return "|".join((*_HINTS, _SECRET_HINT, *(() if _is_north_american(region) else (_NATIONAL_HINT,))))


def detectors(region: str) -> dict[str, Detector]:
    """Returns the detectors by kind.

    Args:
        region: Country of phone numbers without a country code (ISO 3166, such as US).

    Returns:
        Detectors in the order in which to apply them: a card number can contain what looks like a phone number.
    """
    national = _NORTH_AMERICAN if _is_north_american(region) else _NATIONAL
    phone = re.compile(rf"(?<![\w.+-])(?:{_INTERNATIONAL}|{national})(?![\w-])")
    return {
        "secret": _secrets,
        "email": lambda text: (match.span() for match in _EMAIL.finditer(text)),
        "iban": _ibans,
        "card": _cards,
        "ip": _addresses,
        "phone": partial(_phones, pattern=phone, region=region),
    }


def phone_regions() -> set[str]:
    """Returns the supported regions."""
    import phonenumbers

    return set(phonenumbers.SUPPORTED_REGIONS)


def _secrets(text: str) -> Iterator[Span]:
    for pattern in _secret_patterns():
        for match in pattern.finditer(text):
            start, end = match.span()
            if "PRIVATE KEY" in match[0]:
                start = len(text[:start].rstrip("-"))
                rest = _REST_OF_KEY.match(text, end)
            else:
                rest = _REST_OF_TOKEN.match(text, end)
            yield start, rest.end() if rest else end


@cache
def _secret_patterns() -> list[re.Pattern[str]]:
    # Imports requests (almost half a second), which text without candidates does not need.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return [*(pattern for name in _DETECTORS for pattern in plugins[name].denylist), *_MORE_SECRETS]


def _ibans(text: str) -> Iterator[Span]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # The pattern can include following words; an IBAN's length depends on its country.
        places = [place for place, character in enumerate(match[0]) if character != " "]
        for place in places[14:34]:
            following = match[0][place + 1 : place + 2]
            if not following.isalnum() and iban.is_valid(match[0][: place + 1]):
                yield match.start(), match.start() + place + 1
                break


def _cards(text: str) -> Iterator[Span]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        number = "".join(filter(str.isdigit, match[0]))
        known = any(number.startswith(begins) and len(number) in lengths for begins, lengths in _CARD_LENGTHS)
        if known and luhn.is_valid(number):
            yield match.span()


def _addresses(text: str) -> Iterator[Span]:
    for match in _IP.finditer(text):
        # `12:30:45` is a time of day, and `::1` is the loopback address.
        if ":" in match[0] and sum(bool(group) for group in match[0].split(":")) < 3:
            continue
        try:
            ipaddress.ip_address(match[0])
        except ValueError:
            continue
        yield match.span()


def _phones(text: str, pattern: re.Pattern[str], region: str) -> Iterator[Span]:
    import phonenumbers

    for match in pattern.finditer(text):
        try:
            number = phonenumbers.parse(match[0], region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            yield match.span()


def _is_north_american(region: str) -> bool:
    import phonenumbers

    return phonenumbers.country_code_for_region(region) == 1
