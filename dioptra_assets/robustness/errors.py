"""Errors that several modules raise and a caller may want to tell apart."""


class NonFiniteError(ValueError):
    """Pixels, logits or distances hold NaN or infinity, so no rate computed from them would mean anything."""
