"""The paper's claims and choices, as far as they can be measured here."""
