"""How good models are: measure and show it."""
