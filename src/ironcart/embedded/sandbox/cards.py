"""What the issuing bank says to each of Stripe's test payment methods."""

from typing import Literal

import msgspec


class Verdict(msgspec.Struct, frozen=True):
    """The issuer's answer; `code`, `decline_code` and `message` are set for a decline only."""

    kind: Literal["approved", "declined", "needs_action"]
    code: str = ""
    decline_code: str = ""
    message: str = ""


APPROVED = Verdict("approved")
NEEDS_ACTION = Verdict("needs_action")
DECLINED = Verdict("declined", "card_declined", "generic_decline", "Your card was declined.")
AUTHENTICATION_REQUIRED = Verdict(
    "declined",
    "authentication_required",
    "authentication_required",
    "This payment required an authentication action to complete, "
    "but no customer is there to take it.",
)

_APPROVED = (
    "pm_card_visa",
    "pm_card_visa_debit",
    "pm_card_mastercard",
    "pm_card_mastercard_debit",
    "pm_card_amex",
    "pm_card_discover",
    "pm_card_diners",
    "pm_card_jcb",
    "pm_card_unionpay",
)
_NEEDS_ACTION = (
    "pm_card_authenticationRequired",
    "pm_card_authenticationRequiredOnSetup",
    "pm_card_authenticationRequiredSetupForOffSession",
    "pm_card_threeDSecure2Required",
    "pm_card_threeDSecureRequired",
)
_DECLINED = {
    "chargeDeclined": DECLINED,
    "chargeDeclinedInsufficientFunds": Verdict(
        "declined", "card_declined", "insufficient_funds", "Your card has insufficient funds."
    ),
    "chargeDeclinedLostCard": Verdict(
        "declined", "card_declined", "lost_card", "Your card was declined."
    ),
    "chargeDeclinedStolenCard": Verdict(
        "declined", "card_declined", "stolen_card", "Your card was declined."
    ),
    "chargeDeclinedExpiredCard": Verdict(
        "declined", "expired_card", "expired_card", "Your card has expired."
    ),
    "chargeDeclinedIncorrectCvc": Verdict(
        "declined", "incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect."
    ),
    "chargeDeclinedProcessingError": Verdict(
        "declined",
        "processing_error",
        "processing_error",
        "An error occurred while processing your card. Try again in a little bit.",
    ),
    "chargeCustomerFail": DECLINED,
}

# Stripe names the declining cards both with and without the brand.
VERDICTS: dict[str, Verdict] = {
    **dict.fromkeys(_APPROVED, APPROVED),
    **dict.fromkeys(_NEEDS_ACTION, NEEDS_ACTION),
    **{f"pm_card_{name}": verdict for name, verdict in _DECLINED.items()},
    **{f"pm_card_visa_{name}": verdict for name, verdict in _DECLINED.items()},
}
